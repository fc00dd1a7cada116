//! The footer (VHD 1.0, "Hard Disk Footer Format"): what the disk is, in 512 bytes with a checksum.

use crate::bytes::{Fields, Image, checksum};
use crate::{FormatError, Geometry, MAX_SECTORS, Result, SectorCount, Uuid};

const COOKIE: &[u8; 8] = b"conectix";
const CHECKSUM_AT: usize = 64;
/// A fixed disk has nothing at its "data offset".
const NOWHERE: u64 = u64::MAX;
const STRUCTURE: &str = "footer";

/// The creator application that marks files laid out by Shale.
pub const CREATOR: [u8; 4] = *b"shal";

/// Seconds since 2000-01-01T00:00:00Z, the format's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp(pub u32);

impl Timestamp {
    const UNIX_OF_2000: u64 = 946_684_800;

    /// The time stamp of a Unix time in seconds; times outside the range become its nearest end.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        let since = seconds.saturating_sub(Self::UNIX_OF_2000);
        Self(u32::try_from(since).unwrap_or(u32::MAX))
    }

    /// The Unix time in seconds.
    #[must_use]
    pub fn to_unix(self) -> u64 {
        u64::from(self.0).saturating_add(Self::UNIX_OF_2000)
    }
}

/// What kind of disk a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Every sector stands in the file, in order.
    Fixed,
    /// Blocks are allocated when first written; others read as zeros.
    Dynamic,
    /// As dynamic, but what is not here is the parent's.
    Differencing,
}

/// A decoded footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Feature bits, kept as they are.
    pub features: u32,
    /// Byte offset of the dynamic header; meaningless in fixed disks.
    pub data_offset: u64,
    /// When the disk was created.
    pub timestamp: Timestamp,
    /// Which program made the file.
    pub creator: [u8; 4],
    /// That program's version.
    pub creator_version: u32,
    /// The system it ran on.
    pub creator_os: [u8; 4],
    /// Size at creation, bytes.
    pub original_size: u64,
    /// Size now, bytes; see [`Footer::size`].
    pub current_size: u64,
    /// The size told as a geometry.
    pub geometry: Geometry,
    /// Kind of disk.
    pub kind: Kind,
    /// Identity of the disk; children name it.
    pub uuid: Uuid,
    /// A virtual machine was suspended on this disk.
    pub saved_state: bool,
    /// XenServer's "hidden" mark, in the first reserved byte.
    pub hidden: u8,
}

impl Footer {
    /// Length of the structure.
    pub const LEN: usize = 512;

    /// Decodes and checks a footer.
    ///
    /// # Errors
    /// If the bytes are no footer, its checksum is wrong, or it is of a kind or version unknown.
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
        let features = fields.u32();
        let version = fields.u32();
        let data_offset = fields.u64();
        let timestamp = Timestamp(fields.u32());
        let creator = fields.take();
        let creator_version = fields.u32();
        let creator_os = fields.take();
        let original_size = fields.u64();
        let current_size = fields.u64();
        let geometry =
            Geometry { cylinders: fields.u16(), heads: fields.u8(), sectors: fields.u8() };
        let kind = fields.u32();
        let stored = fields.u32();
        let computed = checksum(bytes, CHECKSUM_AT);
        if stored != computed {
            return Err(FormatError::corrupt(STRUCTURE, "checksum", hex(stored), hex(computed)));
        }
        if version >> 16 != 1 {
            return Err(FormatError::Unsupported(format!(
                "the footer is of format version {}.{}; only version 1 is known",
                version >> 16,
                version & 0xffff
            )));
        }
        let kind = match kind {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return Err(FormatError::corrupt(STRUCTURE, "disk type", other, "2, 3 or 4")),
        };
        let uuid = Uuid::from_bytes(fields.take());
        let saved_state = fields.u8() != 0;
        let hidden = fields.u8();
        let footer = Self {
            features,
            data_offset,
            timestamp,
            creator,
            creator_version,
            creator_os,
            original_size,
            current_size,
            geometry,
            kind,
            uuid,
            saved_state,
            hidden,
        };
        if footer.size() > MAX_SECTORS {
            return Err(FormatError::corrupt(
                STRUCTURE,
                "size",
                format!("{:?}", footer.size()),
                "at most 2040 GiB",
            ));
        }
        Ok(footer)
    }

    /// The structure as it stands on disk.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut image = Image::<{ Self::LEN }>::new();
        image.put(COOKIE);
        image.put(&self.features.to_be_bytes());
        image.put(&0x0001_0000u32.to_be_bytes());
        image.put(&self.data_offset.to_be_bytes());
        image.put(&self.timestamp.0.to_be_bytes());
        image.put(&self.creator);
        image.put(&self.creator_version.to_be_bytes());
        image.put(&self.creator_os);
        image.put(&self.original_size.to_be_bytes());
        image.put(&self.current_size.to_be_bytes());
        image.put(&self.geometry.cylinders.to_be_bytes());
        image.put(&[self.geometry.heads, self.geometry.sectors]);
        let kind: u32 = match self.kind {
            Kind::Fixed => 2,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        image.put(&kind.to_be_bytes());
        image.put(&[0; 4]);
        image.put(self.uuid.as_bytes());
        image.put(&[u8::from(self.saved_state), self.hidden]);
        image.finish(CHECKSUM_AT)
    }

    /// A footer of ours for a new disk.
    #[must_use]
    pub fn new(uuid: Uuid, kind: Kind, size: SectorCount, timestamp: Timestamp) -> Self {
        Self {
            features: 2, // the bit that the specification wants always set
            data_offset: if kind == Kind::Fixed { NOWHERE } else { Self::LEN as u64 },
            timestamp,
            creator: CREATOR,
            creator_version: 0x0001_0000,
            creator_os: *b"Wi2k", // the two values known to readers are this and "Mac "
            original_size: size.bytes(),
            current_size: size.bytes(),
            geometry: Geometry::to_write(size),
            kind,
            uuid,
            saved_state: false,
            hidden: 0,
        }
    }

    /// The disk's size, by the rule that reads every creator's files: the exact size, except for
    /// Virtual PC and old QEMU, which mean the geometry — unless that is the largest one. A rest of
    /// less than a sector is dropped.
    #[must_use]
    pub fn size(&self) -> SectorCount {
        let by_geometry = matches!(&self.creator, b"vpc " | b"qemu");
        if by_geometry && self.geometry != Geometry::MAX {
            self.geometry.size()
        } else {
            SectorCount::whole_in(self.current_size)
        }
    }
}

fn hex(value: u32) -> String {
    format!("{value:#010x}")
}
