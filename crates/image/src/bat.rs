//! The block allocation table: for each block of the disk a 32-bit sector number, big-endian, where
//! its bitmap stands; all ones where it is not allocated. Padded with ones to a sector.

use crate::{BlockIndex, Sector};

/// An entry without a block.
pub const UNALLOCATED: u32 = u32::MAX;
/// Bytes in an entry.
pub const ENTRY: u64 = 4;

/// Decodes entries; a rest of less than an entry is left out.
pub fn decode(bytes: &[u8]) -> impl ExactSizeIterator<Item = Option<Sector>> + '_ {
    let (entries, _rest) = bytes.as_chunks::<4>();
    entries.iter().map(|entry| decode_entry(*entry))
}

/// Decodes one entry.
#[must_use]
pub fn decode_entry(entry: [u8; 4]) -> Option<Sector> {
    let sector = u32::from_be_bytes(entry);
    (sector != UNALLOCATED).then_some(Sector(u64::from(sector)))
}

/// Encodes one entry.
///
/// # Panics
/// If the sector does not fit an entry: files are kept below 2 TiB, so that is a mistake of ours.
#[must_use]
pub fn encode_entry(block: Option<Sector>) -> [u8; 4] {
    let Some(sector) = block else { return UNALLOCATED.to_be_bytes() };
    let entry = u32::try_from(sector.0).unwrap_or(UNALLOCATED);
    assert!(entry != UNALLOCATED, "{sector:?} does not fit a BAT entry");
    entry.to_be_bytes()
}

/// Byte offset of a block's entry from the start of the BAT.
#[must_use]
pub fn offset_of(block: BlockIndex) -> u64 {
    u64::from(block.0).saturating_mul(ENTRY)
}
