//! The dynamic disk header (VHD 1.0, "Dynamic Disk Header Format"): where the BAT stands, how large
//! blocks are, and who the parent is.

use crate::bytes::{Fields, Image, checksum};
use crate::{FormatError, LocatorEntry, Result, SECTOR, Timestamp, Uuid, WideName};

const COOKIE: &[u8; 8] = b"cxsparse";
const CHECKSUM_AT: usize = 36;
const NAME_UNITS: usize = 256;
const STRUCTURE: &str = "dynamic header";

/// A decoded dynamic header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicHeader {
    /// The unused "next structure" offset: 64 one-bits where the writer followed the format, 32 where
    /// it followed a misprint in the specification.
    pub next: u64,
    /// Byte offset of the BAT.
    pub table_offset: u64,
    /// Entries in the BAT.
    pub entries: u32,
    /// Bytes of data in a block; a power of two, at least a sector.
    pub block_size: u32,
    /// The parent's identity; nil where there is none, or where the parent is a raw file.
    pub parent_uuid: Uuid,
    /// The parent's modification time when the child was made. Kept, never enforced: merging
    /// changes it.
    pub parent_time: Timestamp,
    /// The parent's file name.
    pub parent_name: WideName,
    /// The eight places for parent locators.
    pub locators: [LocatorEntry; 8],
}

impl DynamicHeader {
    /// Length of the structure.
    pub const LEN: usize = 1024;
    /// The value that [`DynamicHeader::next`] should hold.
    pub const NO_NEXT: u64 = u64::MAX;

    /// Decodes and checks a header.
    ///
    /// # Errors
    /// If the bytes are no header, the checksum is wrong, or a block size cannot be.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self> {
        let mut fields = Fields::of(bytes);
        let cookie = fields.take::<8>();
        if &cookie != COOKIE {
            return Err(FormatError::corrupt(
                STRUCTURE,
                "cookie",
                cookie.escape_ascii(),
                COOKIE.escape_ascii(),
            ));
        }
        let next = fields.u64();
        let table_offset = fields.u64();
        let version = fields.u32();
        let entries = fields.u32();
        let block_size = fields.u32();
        let stored = fields.u32();
        let computed = checksum(bytes, CHECKSUM_AT);
        if stored != computed {
            let hex = |value: u32| format!("{value:#010x}");
            return Err(FormatError::corrupt(STRUCTURE, "checksum", hex(stored), hex(computed)));
        }
        if version >> 16 != 1 {
            return Err(FormatError::Unsupported(format!(
                "the dynamic header is of format version {}.{}; only version 1 is known",
                version >> 16,
                version & 0xffff
            )));
        }
        if !block_size.is_power_of_two() || u64::from(block_size) < SECTOR {
            return Err(FormatError::corrupt(
                STRUCTURE,
                "block size",
                block_size,
                "a power of two of at least 512",
            ));
        }
        let parent_uuid = Uuid::from_bytes(fields.take());
        let parent_time = Timestamp(fields.u32());
        let _reserved = fields.u32();
        let parent_name = WideName::from_be_bytes(&fields.take::<{ NAME_UNITS * 2 }>());
        let locators = std::array::from_fn(|_| LocatorEntry::decode(&fields.take()));
        Ok(Self {
            next,
            table_offset,
            entries,
            block_size,
            parent_uuid,
            parent_time,
            parent_name,
            locators,
        })
    }

    /// Sectors of data in a block.
    #[must_use]
    pub fn block_sectors(&self) -> u32 {
        self.block_size >> 9
    }

    /// The structure as it stands on disk. A name that is too long is cut: only the locators count.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut image = Image::<{ Self::LEN }>::new();
        image.put(COOKIE);
        image.put(&self.next.to_be_bytes());
        image.put(&self.table_offset.to_be_bytes());
        image.put(&0x0001_0000u32.to_be_bytes());
        image.put(&self.entries.to_be_bytes());
        image.put(&self.block_size.to_be_bytes());
        image.put(&[0; 4]);
        image.put(self.parent_uuid.as_bytes());
        image.put(&self.parent_time.0.to_be_bytes());
        image.put(&[0; 4]);
        let mut name = self.parent_name.to_be_bytes();
        name.resize(NAME_UNITS * 2, 0);
        image.put(&name);
        for locator in &self.locators {
            image.put(&locator.encode());
        }
        image.finish(CHECKSUM_AT)
    }
}
