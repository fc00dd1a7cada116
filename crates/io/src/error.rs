//! The one error of the I/O layer: a kind that callers decide by, and what was being done.

use std::borrow::Cow;

/// What a caller can decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoErrorKind {
    /// No space on the store; the request may be held and tried again.
    NoSpace,
    /// The target may not be written.
    ReadOnly,
    /// The range lies outside the device.
    OutOfRange,
    /// The request breaks the device's alignment or size limits.
    Misaligned,
    /// The device does not serve this operation.
    Unsupported,
    /// Another process or host holds the object.
    Busy,
    /// There is no such object.
    NotFound,
    /// The object exists already.
    Exists,
    /// The caller lacks the right, or the directory cannot be written.
    Denied,
    /// An earlier flush failed: nothing is durable any more until the volume is reconnected (rule D7).
    Poisoned,
    /// The device was closed or its lease ended.
    Closed,
    /// Bytes on the device contradict their format.
    Corrupt,
    /// The device failed.
    Device,
}

/// An I/O error: kind, what was being done to which object, and the system's own error.
#[derive(Debug, thiserror::Error)]
#[error("{context}{}", .source.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
pub struct IoError {
    /// What callers decide by.
    pub kind: IoErrorKind,
    /// What was being done, to which object.
    pub context: Cow<'static, str>,
    /// The system's error, where it came from there.
    #[source]
    pub source: Option<std::io::Error>,
}

/// Result of the I/O layer.
pub type Result<T> = std::result::Result<T, IoError>;

impl IoError {
    /// An error of `kind` with its context.
    pub fn new(kind: IoErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// Wraps a system error; the kind follows from its number.
    pub fn system(context: impl Into<Cow<'static, str>>, source: std::io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => IoErrorKind::NoSpace,
            Some(libc::EROFS) => IoErrorKind::ReadOnly,
            Some(libc::EACCES | libc::EPERM) => IoErrorKind::Denied,
            Some(libc::ENOENT) => IoErrorKind::NotFound,
            Some(libc::EEXIST) => IoErrorKind::Exists,
            Some(libc::EAGAIN | libc::EBUSY) => IoErrorKind::Busy,
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => IoErrorKind::Unsupported,
            _ => IoErrorKind::Device,
        };
        Self { kind, context: context.into(), source: Some(source) }
    }

    /// Puts `context` in front of what was being done.
    #[must_use]
    pub fn during(mut self, context: impl std::fmt::Display) -> Self {
        self.context = format!("{context}: {}", self.context).into();
        self
    }

    /// A copy for a second waiter; the system error keeps its number.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let source = self.source.as_ref().map(|e| {
            e.raw_os_error().map_or_else(
                || std::io::Error::new(e.kind(), e.to_string()),
                std::io::Error::from_raw_os_error,
            )
        });
        Self { kind: self.kind, context: self.context.clone(), source }
    }
}
