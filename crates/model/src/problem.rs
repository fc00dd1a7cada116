//! What went wrong, in one shape everywhere: RFC 9457 problem details with a stable code.
//!
//! The table below is the contract with scripts: a code's text, its HTTP status and the exit
//! status of the command line never change; new codes may be added.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Exit status of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It was tried and failed.
    Failed = 1,
    /// The request itself is wrong.
    Usage = 2,
    /// The object does not exist.
    NotFound = 3,
    /// A conflict, a busy object or a refusal: something else must change first.
    Conflict = 4,
    /// There is not enough space.
    NoSpace = 5,
    /// The caller may not do this.
    Denied = 6,
    /// The wait ended before the work did; the task goes on.
    TimeOut = 7,
}

impl Exit {
    /// The number that the process exits with.
    pub const fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::NoSpace => 5,
            Self::Denied => 6,
            Self::TimeOut => 7,
        }
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal, $status:literal, $exit:ident, $title:literal;)+) => {
        /// A stable error code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $variant,)+
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The code as it appears on the wire and in messages.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The HTTP status of an answer with this code.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),+ }
            }

            /// The exit status of a command that ends with this code.
            pub const fn exit(self) -> Exit {
                match self { $(Self::$variant => Exit::$exit),+ }
            }

            /// A short title, the same for every occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }
        }
    };
}

codes! {
    /// The request does not parse or lacks something.
    BadRequest = "bad-request", 400, Usage, "The request is malformed";
    /// A name breaks the rules of names.
    InvalidName = "invalid-name", 400, Usage, "The name is not valid";
    /// A size is out of range or misaligned.
    InvalidSize = "invalid-size", 400, Usage, "The size is not valid";
    /// A cursor that this server did not make.
    InvalidCursor = "invalid-cursor", 400, Usage, "The cursor is not valid";
    /// No token, or one that is unknown, revoked or expired.
    Unauthenticated = "unauthenticated", 401, Denied, "A valid token is required";
    /// The token's role does not allow this.
    Denied = "denied", 403, Denied, "The role does not allow this";
    /// The Host or Origin header is not this server's (DNS rebinding).
    ForeignOrigin = "foreign-origin", 403, Denied, "The request comes from a foreign origin";
    /// The object does not exist.
    NotFound = "not-found", 404, NotFound, "The object does not exist";
    /// The path is no part of the API.
    NoSuchPath = "no-such-path", 404, NotFound, "The path does not exist";
    /// The path exists, the method does not.
    MethodNotAllowed = "method-not-allowed", 405, Usage, "The method is not allowed here";
    /// The body is larger than any request needs.
    TooLarge = "too-large", 413, Usage, "The request is too large";
    /// The body is not JSON.
    UnsupportedMediaType = "unsupported-media-type", 415, Usage, "The body must be JSON";
    /// The name is used by another object.
    NameTaken = "name-taken", 409, Conflict, "The name is taken";
    /// Several objects have this name.
    AmbiguousName = "ambiguous-name", 409, Conflict, "The name is ambiguous";
    /// The object changed since it was read.
    Conflict = "conflict", 409, Conflict, "The object changed meanwhile";
    /// Another operation or process holds the object.
    Busy = "busy", 409, Conflict, "The object is busy";
    /// The operation needs a disconnected volume.
    Connected = "connected", 409, Conflict, "The volume is connected";
    /// The operation needs a connected volume.
    NotConnected = "not-connected", 409, Conflict, "The volume is not connected";
    /// Clones, snapshots or volumes depend on the object.
    HasDependents = "has-dependents", 409, Conflict, "Other objects depend on it";
    /// The volume has as many snapshots as it may have.
    SnapshotLimit = "snapshot-limit", 409, Conflict, "The volume has the limit of snapshots";
    /// This store or kind cannot serve the operation.
    Unsupported = "unsupported", 409, Conflict, "This is not supported here";
    /// The object cannot be written.
    ReadOnly = "read-only", 409, Conflict, "The object is read-only";
    /// Refused to protect data.
    Refused = "refused", 409, Conflict, "Refused to protect data";
    /// The data is of a version that this program does not know.
    UnknownFormat = "unknown-format", 409, Conflict, "The format is unknown";
    /// The idempotency key was used for another request.
    IdempotencyMismatch = "idempotency-mismatch", 422, Conflict, "The idempotency key was used for another request";
    /// The task was cancelled.
    Cancelled = "cancelled", 409, Failed, "The task was cancelled";
    /// There is not enough space.
    NoSpace = "no-space", 507, NoSpace, "There is not enough space";
    /// More would be promised to guests than the datastore's limit allows.
    OvercommitLimit = "overcommit-limit", 507, NoSpace, "The limit of over-commitment is reached";
    /// The wait ended; the task goes on.
    TimeOut = "time-out", 504, TimeOut, "The wait ended before the work did";
    /// The storage below failed.
    IoError = "io-error", 500, Failed, "The storage failed";
    /// Stored data breaks its own rules.
    Corrupt = "corrupt", 500, Failed, "Stored data is damaged";
    /// The node does not answer.
    NodeUnavailable = "node-unavailable", 503, Failed, "The node does not answer";
    /// The server does not answer.
    ServerUnavailable = "server-unavailable", 503, Failed, "The server does not answer";
    /// A fault of Shale itself.
    Internal = "internal", 500, Failed, "An internal error";
    /// A code that this version does not know (a newer server sent it).
    Unknown = "unknown", 500, Failed, "An error of an unknown kind";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self::ALL.iter().copied().find(|code| code.as_str() == text).unwrap_or(Self::Unknown))
    }
}

/// An error on the wire: `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:shale:problem:CODE`.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: Box<str>, // boxed, here and below: errors are returned by value everywhere
    /// The code's title, the same for every occurrence.
    #[schema(value_type = String)]
    pub title: Box<str>,
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: Code,
    /// What happened to which object, and why.
    pub detail: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Facts for programs, by code: names of dependents, bytes that are missing, a task's id.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    /// A problem of this code; `detail` says what happened to which object.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:shale:problem:{code}").into(),
            title: code.title().into(),
            status: code.status(),
            code,
            detail: detail.into(),
            hint: None,
            extra: serde_json::Map::new(),
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.extra.insert(key.into(), value.into());
        self
    }

    /// `kind 'name' does not exist`.
    pub fn not_found(kind: impl fmt::Display, name: impl fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("There is no {kind} '{name}'."))
            .hint(format!("list them: shale {kind} list"))
    }

    /// The exit status of a command that ends with this problem.
    pub fn exit(&self) -> Exit {
        if self.code != Code::Unknown {
            return self.code.exit();
        }
        // a newer server's code: its HTTP status still tells the family
        match self.status {
            400 | 405 | 413 | 415 => Exit::Usage,
            401 | 403 => Exit::Denied,
            404 => Exit::NotFound,
            409 | 412 | 422 => Exit::Conflict,
            504 => Exit::TimeOut,
            507 => Exit::NoSpace,
            _ => Exit::Failed,
        }
    }
}

/// `what (code, exit)  hint`, as the command line prints it after `error: `.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.detail, self.code, self.exit().number())?;
        match &self.hint {
            Some(hint) => write!(f, "  {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}
