//! From the errors of the layers below to the one of the wire: a stable code, what happened to which
//! object, and what to do next.

use catalog::{CatalogError, Code as CatalogCode};
use datastore::DatastoreError;
use io::{IoError, IoErrorKind};
use model::{Code, Problem};

use crate::worker::Gone;

pub(crate) type Outcome<T> = Result<T, Problem>;

/// A task that ended without saying how.
pub(crate) fn interrupted() -> Problem {
    Problem::new(Code::Internal, "the operation was interrupted: the node is going down")
        .hint("it is finished or undone when the node starts again; look at the object then")
}

/// Node errors are sentences without a full stop below, so that they can be put into others.
fn sentence(text: &str) -> String {
    let mut text = text.trim_end().to_owned();
    if !text.ends_with(['.', '!', '?']) {
        text.push('.');
    }
    text
}

pub(crate) fn from_gone(gone: Gone) -> Problem {
    Problem::new(Code::NodeUnavailable, sentence(&gone.to_string()))
}

pub(crate) fn from_catalog(error: &CatalogError) -> Problem {
    let code = match error.code {
        CatalogCode::NotFound => Code::NotFound,
        CatalogCode::NameTaken => Code::NameTaken,
        CatalogCode::BadName => Code::InvalidName,
        CatalogCode::BadSize => Code::InvalidSize,
        CatalogCode::BadRequest => Code::BadRequest,
        CatalogCode::VolumeConnected => Code::Connected,
        CatalogCode::NotClean | CatalogCode::RecordUnreadable | CatalogCode::IsTemplate => {
            Code::Refused
        }
        CatalogCode::HasDependents => Code::HasDependents,
        CatalogCode::SnapshotLimit => Code::SnapshotLimit,
        CatalogCode::NoSpace => Code::NoSpace,
        CatalogCode::Corrupt => Code::Corrupt,
        CatalogCode::Unsupported => Code::Unsupported,
        CatalogCode::Busy => Code::Busy,
        CatalogCode::Cancelled => Code::Cancelled,
        CatalogCode::OutcomeUnknown | CatalogCode::Io => Code::IoError,
    };
    let mut problem = Problem::new(code, sentence(&error.message));
    problem.hint = error.hint.clone();
    if !error.related.is_empty() {
        let related: Vec<_> = error
            .related
            .iter()
            .map(|named| serde_json::json!({ "id": named.uuid, "name": named.name }))
            .collect();
        problem = problem.with("related", related);
    }
    problem
}

fn of_kind(kind: IoErrorKind) -> (Code, &'static str) {
    match kind {
        IoErrorKind::NoSpace => {
            (Code::NoSpace, "free space on the datastore or enlarge it, then try again")
        }
        IoErrorKind::ReadOnly => (Code::ReadOnly, ""),
        IoErrorKind::OutOfRange | IoErrorKind::Misaligned | IoErrorKind::Corrupt => {
            (Code::Corrupt, "check the datastore: shale datastore check")
        }
        IoErrorKind::Unsupported => (Code::Unsupported, ""),
        IoErrorKind::Busy => (Code::Busy, "stop whoever holds it, then try again"),
        IoErrorKind::NotFound => (Code::NotFound, ""),
        IoErrorKind::Exists => (Code::Conflict, ""),
        IoErrorKind::Denied => {
            (Code::Refused, "give this process's user the right, then try again")
        }
        IoErrorKind::Poisoned => (
            Code::IoError,
            "an earlier flush failed: disconnect the volume, check its storage, connect it again",
        ),
        IoErrorKind::Closed => (Code::NotConnected, ""),
        IoErrorKind::Device => (Code::IoError, "look at the host's storage and its kernel log"),
    }
}

fn with_kind(kind: IoErrorKind, text: &str) -> Problem {
    let (code, hint) = of_kind(kind);
    let problem = Problem::new(code, sentence(text));
    if hint.is_empty() { problem } else { problem.hint(hint) }
}

pub(crate) fn from_io(error: &IoError) -> Problem {
    with_kind(error.kind, &error.to_string())
}

pub(crate) fn from_datastore(error: &DatastoreError) -> Problem {
    match error {
        DatastoreError::Format { .. } => {
            Problem::new(Code::UnknownFormat, sentence(&error.to_string()))
        }
        DatastoreError::Copied { .. } => Problem::new(Code::Refused, sentence(&error.to_string())),
        DatastoreError::Directory { kind: IoErrorKind::NotFound, .. } => {
            Problem::new(Code::BadRequest, sentence(&error.to_string()))
        }
        other => with_kind(other.kind(), &other.to_string()),
    }
}
