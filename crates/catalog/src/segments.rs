//! Segments: a volume larger than one VHD can be is several chains in a row.
//!
//! ```text
//!   volume    0 ─────────── 2040 GiB ─────────── 4080 GiB ─── size
//!   segment        0              1                   2            each a chain of its own
//!   snapshot   layer          layer               layer            its tip: one layer a segment
//! ```
//! One record holds all of it, so an operation on a volume of many segments commits as one. Where they
//! divide stands in the record; it never changes.

use image::{BLOCK_BYTES, MAX_SECTORS};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Largest segment, and how new volumes divide: what one VHD can be (2040 GiB).
pub const MAX_SEGMENT: u64 = MAX_SECTORS.bytes();
const _: () = assert!(MAX_SEGMENT.is_multiple_of(BLOCK_BYTES));

/// Most segments of a volume.
pub(crate) const MAX_SEGMENTS: usize = 64;

/// The layers of one point in time, one for each segment, in their order; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tip(Vec<Uuid>);

impl Tip {
    /// Of these layers.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn new(layers: Vec<Uuid>) -> Self {
        assert!(!layers.is_empty(), "a tip has a layer for each segment");
        Self(layers)
    }

    /// The layers, in the order of their segments.
    #[must_use]
    pub fn layers(&self) -> &[Uuid] {
        &self.0
    }

    /// Whether `layer` is one of them.
    #[must_use]
    pub fn contains(&self, layer: Uuid) -> bool {
        self.0.contains(&layer)
    }

    /// Names another layer where `old` was named.
    pub(crate) fn replace(&mut self, old: Uuid, new: Uuid) {
        self.0.iter_mut().filter(|layer| **layer == old).for_each(|layer| *layer = new);
    }
}

impl From<Uuid> for Tip {
    fn from(layer: Uuid) -> Self {
        Self(vec![layer])
    }
}

impl Serialize for Tip {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        one_or_more::serialize(&self.0, to)
    }
}

impl<'de> Deserialize<'de> for Tip {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let layers = one_or_more::deserialize(from)?;
        if layers.is_empty() {
            return Err(serde::de::Error::custom("no layer is named"));
        }
        Ok(Self(layers))
    }
}

/// UUIDs as a list, or where there is one, as that.
pub(crate) mod one_or_more {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use uuid::Uuid;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        One(Uuid),
        More(Vec<Uuid>),
    }

    pub(crate) fn serialize<S: Serializer>(layers: &[Uuid], to: S) -> Result<S::Ok, S::Error> {
        match layers {
            [one] => one.serialize(to),
            more => more.serialize(to),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Uuid>, D::Error> {
        Ok(match Stored::deserialize(from)? {
            Stored::One(layer) => vec![layer],
            Stored::More(layers) => layers,
        })
    }
}

/// How a disk divides into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// Bytes of each segment but the last: whole blocks.
    pub(crate) segment: u64,
}

impl Layout {
    /// How many there are; a disk of no size has one.
    pub(crate) fn count(self) -> usize {
        usize::try_from(self.size.div_ceil(self.segment)).unwrap_or(usize::MAX).max(1)
    }

    /// Bytes of the `index`-th segment; 0 beyond the disk's end.
    pub(crate) fn size_of(self, index: usize) -> u64 {
        self.size.saturating_sub(self.start_of(index)).min(self.segment)
    }

    /// Where the `index`-th segment starts, in bytes of the disk.
    pub(crate) fn start_of(self, index: usize) -> u64 {
        self.segment.saturating_mul(index as u64)
    }

    /// The segment of a block of the disk, and the block within it.
    pub(crate) fn locate(self, block: u32) -> (usize, u32) {
        let each = u32::try_from(self.segment / BLOCK_BYTES).unwrap_or(u32::MAX).max(1);
        ((block / each) as usize, block % each)
    }

    /// The block of the disk that is `block` of the `index`-th segment.
    pub(crate) fn block_of(self, index: usize, block: u32) -> u32 {
        let first = self.start_of(index) / BLOCK_BYTES;
        u32::try_from(first + u64::from(block)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_divides_where_its_segments_end() {
        let two = Layout { size: MAX_SEGMENT + 512, segment: MAX_SEGMENT };
        assert_eq!((two.count(), two.size_of(0), two.size_of(1)), (2, MAX_SEGMENT, 512));
        assert_eq!(two.size_of(2), 0);
        let last = u32::try_from(MAX_SEGMENT / BLOCK_BYTES).unwrap();
        assert_eq!(two.locate(last - 1), (0, last - 1));
        assert_eq!(two.locate(last), (1, 0));
        let one = Layout { size: MAX_SEGMENT, ..two };
        assert_eq!((one.count(), one.size_of(0)), (1, MAX_SEGMENT));
        let small = Layout { size: 5 * BLOCK_BYTES + 512, segment: 2 * BLOCK_BYTES };
        assert_eq!((small.count(), small.size_of(2)), (3, BLOCK_BYTES + 512));
        for block in 0..6 {
            let (segment, within) = small.locate(block);
            assert_eq!(small.block_of(segment, within), block);
        }
    }

    #[test]
    fn a_tip_of_one_layer_is_stored_as_that_layer() {
        let [a, b] = [1, 2].map(Uuid::from_u128);
        let one = serde_json::to_value(Tip::from(a)).unwrap();
        assert_eq!(one, serde_json::json!(a.to_string()));
        let two = serde_json::to_value(Tip::new(vec![a, b])).unwrap();
        assert_eq!(two, serde_json::json!([a.to_string(), b.to_string()]));
        for value in [one, two] {
            let tip: Tip = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(serde_json::to_value(tip).unwrap(), value);
        }
        for wrong in [serde_json::json!([]), serde_json::json!(7), serde_json::json!(["x"])] {
            assert!(serde_json::from_value::<Tip>(wrong).is_err());
        }
    }
}
