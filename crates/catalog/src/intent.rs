//! Intents: what an operation is about to do, written before it does anything, with all that is
//! needed to finish it or to undo it.
//!
//! ```text
//!   intent/UUID.json ──► files, cells ──► commit ──► headers, drops, cells ──► intent removed
//!        │   not committed: remove what it made     committed: do the rest, each step idempotent
//! ```

use datastore::ObjectName;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cell::LayerState;
use crate::error::Result;
use crate::record::{decode_as, encode_as};

/// How to see whether an operation is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Commit {
    /// This record carries the operation's UUID.
    Record(Uuid),
    /// The set record of the operation's UUID is there, or this member carries the UUID already.
    Set(Uuid),
    /// This record is gone.
    Removed(Uuid),
    /// The intent is the commit: nothing that anyone sees changes.
    Forward,
}

/// A layer that the operation makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLayer {
    /// The layer.
    pub layer: Uuid,
    /// The layer below.
    #[serde(default)]
    pub parent: Option<Uuid>,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it is a fixed VHD.
    pub fixed: bool,
    /// The volume that will own it.
    pub owner: Uuid,
}

/// Bytes that stand somewhere in a file, written whole again whenever in doubt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// Byte offset in the file.
    pub at: u64,
    /// The bytes, as hexadecimal digits.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
}

/// What becomes of a layer's headers after the commit (rule D8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    /// The layer.
    pub layer: Uuid,
    /// Full images, in order.
    pub pieces: Vec<Piece>,
    /// Length of the file afterwards.
    pub len: u64,
    /// The layer's parent afterwards.
    #[serde(default)]
    pub parent: Option<Uuid>,
    /// Its size in bytes afterwards.
    pub size: u64,
}

/// A layer's cell before and after the operation; None where there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellStep {
    /// The layer.
    pub layer: Uuid,
    /// Before.
    #[serde(default)]
    pub before: Option<CellValue>,
    /// After.
    #[serde(default)]
    pub after: Option<CellValue>,
}

/// What a layer's cell says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellValue {
    /// What may happen to the layer.
    pub state: LayerState,
    /// Ends of paths through it.
    pub leaves: u32,
}

/// A layer whose file is cut back when the operation is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutBack {
    /// The layer.
    pub layer: Uuid,
    /// Its length before, in bytes.
    pub len: u64,
    /// A range within that length that the operation used and that must be zero again.
    #[serde(default)]
    pub scratch: Option<Scratch>,
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scratch {
    /// Byte offset.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// An operation's intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The operation.
    pub uuid: Uuid,
    /// The operation in words: `snapshot nightly of web`.
    pub title: String,
    /// Unix time in milliseconds.
    pub created: u64,
    /// The volumes that it changes.
    pub volumes: Vec<Uuid>,
    /// How to see whether it is committed.
    pub commit: Commit,
    /// Layers that it makes: removed when it is undone.
    pub creates: Vec<NewLayer>,
    /// Layers that no record names after it: removed when it is finished.
    pub drops: Vec<Uuid>,
    /// Headers written anew after the commit.
    pub rewrites: Vec<Rewrite>,
    /// Files cut back when it is undone.
    pub cut_back: Vec<CutBack>,
    /// Cells that change.
    pub cells: Vec<CellStep>,
    /// Volumes whose open session is void after it: their leaf was dropped.
    pub void_sessions: Vec<Uuid>,
    /// Volumes whose cells go with it.
    pub drop_cells: Vec<Uuid>,
}

impl Intent {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode_as("intent", self)
    }

    /// Reads the intent stored as `intent/ID.json`.
    ///
    /// # Errors
    /// `record-unreadable` for what does not parse or belongs to another object.
    pub fn decode(id: Uuid, bytes: &[u8]) -> Result<Self> {
        let name = ObjectName::Intent(id);
        let intent = decode_as(name, bytes, |kind, value| {
            (kind == "intent").then(|| serde_json::from_value::<Self>(value))
        })?;
        if intent.uuid != id {
            return Err(crate::CatalogError::corrupt(name, "it holds another UUID"));
        }
        Ok(intent)
    }
}

/// Bytes as a string of hexadecimal digits.
mod hex {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
        let text: String = bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect();
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let value = |c: &u8| char::from(*c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> =
            pairs.iter().map(|[high, low]| Some(value(high)? << 4 | value(low)?)).collect();
        bytes
            .filter(|_| rest.is_empty())
            .ok_or_else(|| D::Error::custom("not a string of hexadecimal digit pairs"))
    }
}
