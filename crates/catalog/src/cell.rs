//! Cells: small durable facts beside the records, changed before a record relies on them.
//!
//! ```text
//!   cell/LAYER.json     who stands on a layer: a layer changes only with one path through it (L1, L2)
//!   cell/VOLUME.json    which log belongs to a volume: replay only on an exact match (D4)
//! ```
//!
//! `leaves` counts the *ends of paths* through a layer: the layers of its subtree, itself included,
//! that have no child. A snapshot without anything on it is such an end, so branches, clones and
//! kept tips all count, each once.

use datastore::ObjectName;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::LogIdentity;
use crate::error::Result;
use crate::record::{decode_as, encode_as};

/// Most operations that may be open in one layer's cell.
pub(crate) const MAX_OPEN: usize = 8;

/// What may happen to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// The leaf of a volume: it is written.
    Live,
    /// It does not change.
    Frozen,
    /// Its only child is being merged into it, or that is paused.
    Merging {
        /// The volume that owns both.
        volume: Uuid,
        /// The volume's revision when it began.
        generation: u64,
    },
    /// Nobody's tip any more, and the one path through it belongs to another volume (L6).
    Doomed,
}

/// The cell of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerCell {
    /// The layer.
    pub layer: Uuid,
    /// What may happen to it.
    pub state: LayerState,
    /// Counts the changes of this cell.
    pub generation: u64,
    /// Ends of paths through it.
    pub leaves: u32,
    /// Operations that changed it and have not committed, or not finished.
    pub ops: Vec<Uuid>,
}

/// The cell of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeCell {
    /// The volume.
    pub volume: Uuid,
    /// Goes up with each session that does not go on from the one before.
    pub generation: u64,
    /// The log of the open session; None after a clean close.
    #[serde(default)]
    pub log: Option<Uuid>,
    /// The boot that the open session's log lives in.
    #[serde(default)]
    pub boot_id: String,
    /// Who connected it, in words.
    #[serde(default)]
    pub holder: String,
    /// A log was lost, and no clean close has happened since (D5).
    #[serde(default)]
    pub lost: bool,
}

/// A cell as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Of a layer.
    Layer(LayerCell),
    /// Of a volume.
    Volume(VolumeCell),
}

impl Cell {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Layer(cell) => encode_as("layer", cell),
            Self::Volume(cell) => encode_as("volume", cell),
        }
    }

    /// Reads the cell stored as `cell/ID.json`.
    ///
    /// # Errors
    /// `record-unreadable` for what does not parse or belongs to another object.
    pub fn decode(id: Uuid, bytes: &[u8]) -> Result<Self> {
        let name = ObjectName::Cell(id);
        let cell = decode_as(name, bytes, |kind, value| match kind {
            "layer" => Some(serde_json::from_value(value).map(Self::Layer)),
            "volume" => Some(serde_json::from_value(value).map(Self::Volume)),
            _ => None,
        })?;
        let holds = match &cell {
            Self::Layer(layer) => layer.layer,
            Self::Volume(volume) => volume.volume,
        };
        if holds != id {
            return Err(crate::CatalogError::corrupt(name, "it holds another UUID"));
        }
        let generation = match &cell {
            Self::Layer(layer) => layer.generation,
            Self::Volume(volume) => volume.generation,
        };
        if generation == u64::MAX {
            return Err(crate::CatalogError::corrupt(name, "its generation is the last there is"));
        }
        Ok(cell)
    }
}

impl VolumeCell {
    /// The cell of a volume that was never connected.
    pub(crate) fn new(volume: Uuid) -> Self {
        Self {
            volume,
            generation: 0,
            log: None,
            boot_id: String::new(),
            holder: String::new(),
            lost: false,
        }
    }

    /// The identity that the open session's log carries.
    pub(crate) fn identity(&self) -> Option<LogIdentity> {
        self.log.map(|log_id| LogIdentity {
            volume: self.volume,
            boot_id: self.boot_id.clone(),
            generation: self.generation,
            log_id,
        })
    }
}
