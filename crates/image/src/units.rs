//! Units of the format, and the numbers of the layout that we write.

use std::fmt;

/// Bytes in a sector, everywhere in this format.
pub const SECTOR: u64 = 512;
/// Bytes in a metadata page: nothing smaller is written in place, so each has one writer.
pub const PAGE: u64 = 4096;
/// Sectors in a page.
pub const PAGE_SECTORS: u64 = PAGE / SECTOR;
/// Sectors of data in a block that we write.
pub const BLOCK_SECTORS: u32 = 4096;
/// Bytes of data in a block that we write: 2 MiB.
pub const BLOCK_BYTES: u64 = BLOCK_SECTORS as u64 * SECTOR;
/// Sectors in front of a block's data: one page, whose last sector is the bitmap. So data starts on
/// a page boundary and no bitmap shares its page with anything else.
pub const METADATA_SECTORS: u64 = PAGE_SECTORS;
/// Distance between two neighbouring blocks of a file that we wrote.
pub const BLOCK_STRIDE_SECTORS: u64 = METADATA_SECTORS + BLOCK_SECTORS as u64;
/// The largest disk of the format: 2040 GiB.
pub const MAX_SECTORS: SectorCount = SectorCount(0xff00_0000);

const _: () = assert!(BLOCK_SECTORS as u64 / 8 == SECTOR, "a block's bitmap is exactly one sector");
const _: () = assert!(
    (MAX_SECTORS.0 / BLOCK_SECTORS as u64 + 1) * BLOCK_STRIDE_SECTORS < u32::MAX as u64,
    "a full disk of the largest size stays within 32-bit sector numbers"
);

/// A position in a file or disk, in sectors of 512 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sector(pub u64);

/// A number of sectors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SectorCount(pub u64);

/// The number of a block of a disk: the index of its entry in the BAT.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockIndex(pub u32);

impl Sector {
    /// The byte offset of the sector; saturates, which no file reaches.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(SECTOR)
    }

    /// The first sector at or after byte `offset`.
    #[must_use]
    pub const fn at_or_after(offset: u64) -> Self {
        Self(offset.div_ceil(SECTOR))
    }

    /// `count` sectors on; saturates, which no file reaches.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The next page boundary at or after this sector.
    #[must_use]
    pub const fn page_up(self) -> Self {
        Self(self.0.div_ceil(PAGE_SECTORS).saturating_mul(PAGE_SECTORS))
    }

    /// The page boundary at or before this sector.
    #[must_use]
    pub const fn page_down(self) -> Self {
        Self(self.0 & !(PAGE_SECTORS - 1))
    }

    /// Whether the sector starts a page.
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_SECTORS)
    }
}

impl SectorCount {
    /// The number of bytes; saturates, which no disk reaches.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(SECTOR)
    }

    /// The whole sectors in `bytes`; a rest is dropped.
    #[must_use]
    pub const fn whole_in(bytes: u64) -> Self {
        Self(bytes / SECTOR)
    }

    /// How many blocks of [`BLOCK_SECTORS`] cover this many sectors.
    #[must_use]
    pub const fn blocks(self) -> u64 {
        self.0.div_ceil(BLOCK_SECTORS as u64)
    }
}

impl fmt::Debug for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {}", self.0)
    }
}

impl fmt::Debug for SectorCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors", self.0)
    }
}

impl fmt::Debug for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}
