//! Why the catalog refused or failed, in words for the one who has to act.

use datastore::{DatastoreError, ObjectName};
use io::{IoError, IoErrorKind};
use uuid::Uuid;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, CatalogError>;

/// What a caller can decide by; stable, also on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// There is no such volume, snapshot or template.
    NotFound,
    /// Another object of this datastore has the name.
    NameTaken,
    /// The name breaks the rules of names.
    BadName,
    /// The size is not one that a volume can have, or would shrink it.
    BadSize,
    /// The request contradicts itself or the state of its object.
    BadRequest,
    /// The volume is in use by a guest; the operation wants it disconnected.
    VolumeConnected,
    /// The volume was not closed cleanly: its log must be replayed by connecting it first.
    NotClean,
    /// Other objects stand on this one; the error names them.
    HasDependents,
    /// The volume has as many snapshots as it may.
    SnapshotLimit,
    /// The datastore lacks the space.
    NoSpace,
    /// A record cannot be read, so nothing that sweeps may run.
    RecordUnreadable,
    /// Bytes on the datastore contradict their format or each other.
    Corrupt,
    /// The datastore or this version cannot do that.
    Unsupported,
    /// Another operation is running on the object; the error says which.
    Busy,
    /// The user cancelled; nothing of it is left unless the message says so.
    Cancelled,
    /// A template is frozen: what would change it is refused.
    IsTemplate,
    /// A commit failed in a way that leaves open whether it is durable; settled at the next open.
    OutcomeUnknown,
    /// The datastore failed.
    Io,
}

impl Code {
    /// The code as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::NameTaken => "name-taken",
            Self::BadName => "bad-name",
            Self::BadSize => "bad-size",
            Self::BadRequest => "bad-request",
            Self::VolumeConnected => "volume-connected",
            Self::NotClean => "not-clean",
            Self::HasDependents => "has-dependents",
            Self::SnapshotLimit => "snapshot-limit",
            Self::NoSpace => "no-space",
            Self::RecordUnreadable => "record-unreadable",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Busy => "busy",
            Self::Cancelled => "cancelled",
            Self::IsTemplate => "is-template",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::Io => "io",
        }
    }
}

/// An object that an error or a report names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
}

/// An error of the catalog: what happened to which object, and what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CatalogError {
    /// What to decide by.
    pub code: Code,
    /// What happened to which object, and why: whole sentences without the final full stop.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The objects in the way (dependents, the cheapest snapshot to delete).
    pub related: Vec<Named>,
    /// Where it came from.
    #[source]
    pub source: Option<Box<DatastoreError>>,
}

impl CatalogError {
    /// An error of `code`.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, related: Vec::new(), source: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the objects in the way.
    #[must_use]
    pub fn related(mut self, related: Vec<Named>) -> Self {
        self.related = related;
        self
    }

    /// Puts what was being done in front.
    #[must_use]
    pub fn during(mut self, doing: impl std::fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    pub(crate) fn corrupt(object: ObjectName, problem: impl std::fmt::Display) -> Self {
        Self::new(Code::Corrupt, format!("{object} is damaged: {problem}"))
    }

    pub(crate) fn busy(what: impl std::fmt::Display, running: &str) -> Self {
        Self::new(Code::Busy, format!("{what} is busy: {running} is running"))
            .hint("wait for it or cancel it, then try again")
    }
}

impl From<DatastoreError> for CatalogError {
    fn from(error: DatastoreError) -> Self {
        let code = match error.kind() {
            IoErrorKind::NoSpace => Code::NoSpace,
            IoErrorKind::Busy => Code::Busy,
            IoErrorKind::Unsupported => Code::Unsupported,
            IoErrorKind::Corrupt => Code::Corrupt,
            IoErrorKind::ReadOnly
            | IoErrorKind::OutOfRange
            | IoErrorKind::Misaligned
            | IoErrorKind::NotFound
            | IoErrorKind::Exists
            | IoErrorKind::Denied
            | IoErrorKind::Poisoned
            | IoErrorKind::Closed
            | IoErrorKind::Device => Code::Io,
        };
        let mut made = Self::new(code, error.to_string());
        if code == Code::NoSpace {
            made.hint = Some("free space on the datastore or enlarge it, then try again".into());
        }
        made.source = Some(Box::new(error));
        made
    }
}

impl From<IoError> for CatalogError {
    fn from(error: IoError) -> Self {
        DatastoreError::from(error).into()
    }
}
