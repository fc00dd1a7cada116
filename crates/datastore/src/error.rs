//! Why a datastore refused or failed, in words for the one who has to act.

use std::path::PathBuf;

use io::{IoError, IoErrorKind};

use crate::name::ObjectName;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, DatastoreError>;

/// An error of a datastore.
#[derive(Debug, thiserror::Error)]
pub enum DatastoreError {
    /// The object is not what the caller expected: someone changed it since.
    #[error("{object} {found}: it was changed by someone else since it was read; read it again")]
    Conflict {
        /// Which object.
        object: ObjectName,
        /// What is there instead, in words.
        found: &'static str,
    },
    /// An object is larger than such objects may be.
    #[error("{object} is {len} bytes long, more than the limit of {limit}")]
    TooLarge {
        /// Which object.
        object: ObjectName,
        /// Its length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// The directory lies on a file system that a `dir` datastore cannot use.
    #[error("{} lies on {file_system}: {reason}", path.display())]
    FileSystem {
        /// The directory.
        path: PathBuf,
        /// The file system's name.
        file_system: String,
        /// Why not, and what to do instead.
        reason: &'static str,
    },
    /// Another process holds the datastore.
    #[error("the datastore in {} is in use by {holder}; stop it there first", path.display())]
    Held {
        /// The directory.
        path: PathBuf,
        /// Who holds it, as far as it said.
        holder: String,
    },
    /// The directory is a copy of a datastore, not the datastore.
    #[error(
        "{} is a copy of datastore {name} ({uuid}): {difference}. Using both would mix up their \
         volumes. If the original is gone or the copy is to live on its own, adopt it as a copy: \
         it gets a new UUID",
        path.display()
    )]
    Copied {
        /// The directory.
        path: PathBuf,
        /// The original's name.
        name: String,
        /// The original's UUID.
        uuid: uuid::Uuid,
        /// What told.
        difference: String,
    },
    /// The datastore was written by another version of the software.
    #[error(
        "the datastore in {} has format version {found}; this version of Shale knows up to {known}. \
         Nothing was changed; use the version that wrote it, or a newer one",
        path.display()
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The highest version known.
        known: u64,
    },
    /// The identity object cannot be read as one.
    #[error("{}/shale.json is damaged: {problem}. Nothing was changed", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// There is a datastore already.
    #[error("{} holds datastore {name} ({uuid}) already; add that one instead", path.display())]
    AlreadyDatastore {
        /// The directory.
        path: PathBuf,
        /// Its name.
        name: String,
        /// Its UUID.
        uuid: uuid::Uuid,
    },
    /// The directory cannot hold a datastore.
    #[error("{} cannot be used as a datastore: {problem}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What to decide by.
        kind: IoErrorKind,
        /// What is wrong and what to do.
        problem: String,
    },
    /// An operation on an object or its file failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl DatastoreError {
    /// What callers decide by.
    #[must_use]
    pub fn kind(&self) -> IoErrorKind {
        match self {
            Self::Conflict { .. } | Self::Held { .. } => IoErrorKind::Busy,
            Self::TooLarge { .. } => IoErrorKind::OutOfRange,
            Self::FileSystem { .. } | Self::Format { .. } => IoErrorKind::Unsupported,
            Self::Copied { .. } => IoErrorKind::Denied,
            Self::Damaged { .. } => IoErrorKind::Corrupt,
            Self::AlreadyDatastore { .. } => IoErrorKind::Exists,
            Self::Directory { kind, .. } => *kind,
            Self::Io(error) => error.kind,
        }
    }

    /// Wraps a system error that met `object`.
    pub(crate) fn system(doing: &str, object: &ObjectName, error: rustix::io::Errno) -> Self {
        Self::Io(IoError::system(format!("cannot {doing} {object}"), error.into()))
    }
}

impl From<DatastoreError> for IoError {
    fn from(error: DatastoreError) -> Self {
        match error {
            DatastoreError::Io(error) => error,
            other => Self::new(other.kind(), other.to_string()),
        }
    }
}
