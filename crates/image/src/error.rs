//! Errors about what a file holds. Which file it was, the caller adds.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, FormatError>;

/// Why bytes are not the image that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No footer was found anywhere.
    #[error(
        "no VHD footer at the end or the start of the file ({file_len} bytes): it is not a VHD, or both were overwritten"
    )]
    NotVhd {
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// A structure contradicts itself or the format.
    #[error("{structure}: {field} is {found}, expected {expected}")]
    Corrupt {
        /// Which structure.
        structure: &'static str,
        /// Which field of it.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// Something stands where the file does not reach, or where something else stands.
    #[error(
        "{structure} at byte {at}, {len} bytes, does not fit the file of {file_len} bytes: it was cut off or damaged"
    )]
    OutsideFile {
        /// Which structure.
        structure: &'static str,
        /// Its byte offset.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// Valid, but not a file that Shale wrote, where only those are opened in place.
    #[error(
        "the file is not laid out as Shale writes layers ({field} is {found}, expected {expected}); import it instead of opening it in place"
    )]
    NotOurs {
        /// Which property.
        field: &'static str,
        /// What it is.
        found: String,
        /// What our files have.
        expected: String,
    },
    /// Valid, but beyond what this program reads.
    #[error("{0}")]
    Unsupported(String),
    /// The file ended earlier than its length promised.
    #[error(
        "the file gave {got} bytes at byte {at} where {wanted} were asked for: it shrank while it was read"
    )]
    ShortRead {
        /// Byte offset asked for.
        at: u64,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes supplied.
        got: u64,
    },
}

impl FormatError {
    #[expect(clippy::needless_pass_by_value, reason = "values are made for the message only")]
    pub(crate) fn corrupt(
        structure: &'static str,
        field: &'static str,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Self::Corrupt { structure, field, found: found.to_string(), expected: expected.to_string() }
    }

    #[expect(clippy::needless_pass_by_value, reason = "values are made for the message only")]
    pub(crate) fn not_ours(
        field: &'static str,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Self::NotOurs { field, found: found.to_string(), expected: expected.to_string() }
    }
}
