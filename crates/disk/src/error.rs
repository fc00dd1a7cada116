//! Why a chain cannot be opened.

use image::FormatError;
use io::IoError;
use uuid::Uuid;

use crate::chain::MAX_LAYERS;
use crate::log::LogError;

/// A chain that does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no layer at all.
    #[error("the chain has no layer")]
    Empty,
    /// There are more layers than can be told apart.
    #[error("the chain has {0} layers, more than {MAX_LAYERS}")]
    TooLong(usize),
    /// A layer's bytes contradict the format.
    #[error("layer {layer} of the chain (0 = base): {source}")]
    Format {
        /// Its depth, the base first.
        layer: usize,
        /// What is wrong.
        source: FormatError,
    },
    /// A layer's parent is not the layer below it.
    #[error(
        "layer {layer} names parent {found:?}, below it lies {expected:?}: the chain is torn apart"
    )]
    Parent {
        /// The layer.
        layer: Uuid,
        /// The parent that it names.
        found: Option<Uuid>,
        /// The layer below it.
        expected: Option<Uuid>,
    },
    /// A block allocation table names a place that cannot be.
    #[error("layer {layer}: block {block} stands at sector {sector}, {why}")]
    Table {
        /// The layer.
        layer: Uuid,
        /// The block.
        block: u32,
        /// Its entry.
        sector: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The log cannot be used.
    #[error("metadata log: {0}")]
    Log(#[from] LogError),
    /// A layer cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
}
