//! The node's own state files: small JSON documents that say their format first.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::data_dir::{DataError, read_file};

/// The format of every state file that this version writes, and the only one that it reads.
pub(crate) const FORMAT: u32 = 1;

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// The system refused.
    #[error(transparent)]
    Data(#[from] DataError),
    /// It does not parse.
    #[error(
        "{path} cannot be read: {source}; put it right or move it away: without it {without}, and nothing else is lost"
    )]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it went wrong.
        source: serde_json::Error,
        /// What it costs to do without it.
        without: &'static str,
    },
    /// A later program wrote it.
    #[error(
        "{path} has format {found}, this program knows {FORMAT}: start the version that wrote it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it says.
        found: u32,
    },
}

/// Reads a state file; None where there is none. Its format decides what the rest means, so it is
/// read first and alone.
pub(crate) fn load<T: DeserializeOwned>(
    path: &Path,
    without: &'static str,
) -> Result<Option<T>, StateError> {
    #[derive(Deserialize)]
    struct Header {
        format: u32,
    }
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    let parse = |source| StateError::Parse { path: path.to_path_buf(), source, without };
    let header: Header = serde_json::from_slice(&bytes).map_err(parse)?;
    if header.format != FORMAT {
        return Err(StateError::Format { path: path.to_path_buf(), found: header.format });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(parse)
}
