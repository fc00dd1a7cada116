//! What an opened image file is: all that later decisions need, without its bytes.

use crate::{
    BLOCK_SECTORS, BlockIndex, CREATOR, Kind, Locator, PAGE, Platform, SECTOR, Sector, SectorCount,
    Timestamp, Uuid, WideName,
};

/// An opened image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerImage {
    /// Identity of the disk; children name it.
    pub uuid: Uuid,
    /// Kind of disk.
    pub kind: Kind,
    /// Size of the disk.
    pub size: SectorCount,
    /// Sectors of data in a block; a power of two. Ours have [`BLOCK_SECTORS`].
    pub block_sectors: u32,
    /// Where the BAT stands; at 0 in fixed disks, which have none.
    pub bat_at: Sector,
    /// Entries of the BAT that belong to the disk.
    pub bat_entries: u32,
    /// The first sector after all headers, the BAT, foreign block maps and locators: no block can
    /// stand before the headers' end, and no new one may be placed before this. In a fixed disk, the
    /// footer.
    pub first_free: Sector,
    /// The parent; always there in a differencing disk.
    pub parent: Option<ParentRef>,
    /// Which program made the file.
    pub creator: [u8; 4],
    /// When the disk was created.
    pub timestamp: Timestamp,
    /// A virtual machine was suspended on this disk.
    pub saved_state: bool,
    /// What was not as a clean file has it, and was read all the same.
    pub repairs: Vec<Repair>,
}

/// How a differencing disk names its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// The parent's identity: the one thing that is enforced. Nil means a raw file.
    pub uuid: Uuid,
    /// The parent's file name, or its whole path.
    pub name: WideName,
    /// Paths to the parent, most trusted first as they stand in the header.
    pub locators: Vec<Locator>,
}

/// Something that a reader put right, or had to do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// There is no footer at the end: the file was not closed. Normal after a crash.
    TailFooterMissing,
    /// The footer at the end is the 511-byte one of very old files.
    TailFooterShort,
    /// The footer at the end and its copy at the start differ; the one at the end was used.
    FooterCopyDiffers,
    /// The copy of the footer at the start is damaged; the one at the end was used. Rewrite the first
    /// page from [`crate::headers_for`] before anything else changes in the file.
    FooterCopyDamaged,
    /// The disk's size in bytes is no multiple of a sector: the rest was dropped.
    SizeRounded {
        /// Bytes dropped.
        dropped: u64,
    },
    /// The path of a parent locator could not be read.
    LocatorUnreadable {
        /// Which of the eight places.
        slot: usize,
    },
}

impl LayerImage {
    /// Sectors of a block's bitmap.
    #[must_use]
    pub fn bitmap_sectors(&self) -> u32 {
        self.block_sectors.div_ceil(8 * 512)
    }

    /// Bytes that the BAT takes, padded to a sector as every writer does.
    #[must_use]
    pub fn bat_bytes(&self) -> u64 {
        u64::from(self.bat_entries).saturating_mul(4).next_multiple_of(SECTOR)
    }

    /// The block that holds a sector of the disk, and the sector's place in that block.
    #[must_use]
    pub fn locate(&self, sector: Sector) -> (BlockIndex, u32) {
        let per_block = u64::from(self.block_sectors).max(1);
        let block = u32::try_from(sector.0.checked_div(per_block).unwrap_or(0));
        let within = u32::try_from(sector.0.checked_rem(per_block).unwrap_or(0));
        (BlockIndex(block.unwrap_or(u32::MAX)), within.unwrap_or(0))
    }

    /// Sectors of the disk in `block`: fewer than a whole block at the disk's end.
    #[must_use]
    pub fn sectors_in(&self, block: BlockIndex) -> u32 {
        let start = u64::from(block.0).saturating_mul(u64::from(self.block_sectors));
        let left = self.size.0.saturating_sub(start);
        u32::try_from(left).unwrap_or(u32::MAX).min(self.block_sectors)
    }

    /// Where the data of a block stands whose BAT entry is `entry`.
    #[must_use]
    pub fn data_at(&self, entry: Sector) -> Sector {
        entry.plus(u64::from(self.bitmap_sectors()))
    }

    /// Whether a block with BAT entry `entry` lies within a file of `file_len` bytes and clear of
    /// the headers and the BAT — in a file of ours, of all their pages. Blocks that do not are damage:
    /// neither read nor write there.
    #[must_use]
    pub fn block_fits(&self, entry: Sector, file_len: u64) -> bool {
        let end = self.data_at(entry).plus(u64::from(self.block_sectors));
        let bat_end = self.bat_at.bytes().saturating_add(self.bat_bytes());
        let (start, headers_end, bat_end) = if self.creator == CREATOR {
            let locators = self.parent.as_ref().map_or(0, ParentRef::locator_pages);
            let headers_end = locators.saturating_add(1).saturating_mul(PAGE);
            (entry.page_down(), headers_end, Sector::at_or_after(bat_end).page_up())
        } else {
            (entry, Self::HEADERS, Sector::at_or_after(bat_end))
        };
        let clear_of_bat = start >= bat_end || end <= self.bat_at;
        start.bytes() >= headers_end && clear_of_bat && end.bytes() <= file_len
    }

    /// Whether a BAT entry of a file of ours is aligned as we place blocks.
    #[must_use]
    pub fn is_aligned(&self, entry: Sector) -> bool {
        self.data_at(entry).is_page_aligned()
    }

    /// Footer copy and dynamic header at the start of every dynamic file.
    pub(crate) const HEADERS: u64 = 1536;
}

impl ParentRef {
    /// The parent `uuid` as a layer of the same datastore: the relative path `.\UUID.vhd`, which
    /// other tools follow too when they find the files side by side.
    #[must_use]
    pub fn sibling(uuid: Uuid) -> Self {
        Self::beside(uuid, &format!("{uuid}.vhd"))
    }

    /// The parent `uuid` in the file `name` of the same folder, by the relative path `.\NAME`.
    #[must_use]
    pub fn beside(uuid: Uuid, name: &str) -> Self {
        let path = format!(".\\{name}");
        Self {
            uuid,
            name: WideName::from(name),
            locators: vec![
                Locator::wide(Platform::RelativePath, &path),
                Locator::wide(Platform::AbsolutePath, &path),
            ],
        }
    }

    /// Whether the parent is a raw file, an extension of Xen's tools.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        self.uuid.is_nil()
    }

    /// The names that the parent's file may have in the child's folder, most trusted first: the last
    /// parts of all paths, as whoever moved the files kept them together. Names that could lead
    /// elsewhere are left out.
    #[must_use]
    pub fn file_names(&self) -> Vec<String> {
        let of = |wanted: Platform| {
            self.locators.iter().filter(move |l| l.platform == wanted).map(Locator::path)
        };
        let wide = of(Platform::RelativePath).chain(of(Platform::AbsolutePath));
        let urls = of(Platform::FileUrl).map(|url| unescaped(&url));
        let mut names: Vec<String> = Vec::new();
        for path in wide.chain(urls).chain([self.name.to_string()]) {
            let last = path.rsplit(['/', '\\']).next().unwrap_or_default().trim_end_matches('\0');
            let usable = !matches!(last, "" | "." | "..") && !last.contains('\0');
            if usable && !names.iter().any(|name| name == last) {
                names.push(last.to_owned());
            }
        }
        names
    }

    /// Sectors that the locators take in our layout: a page each.
    pub(crate) fn locator_pages(&self) -> u64 {
        self.locators.iter().map(|l| (l.data.len() as u64).div_ceil(PAGE).max(1)).sum()
    }
}

/// A URL's path without its `%XX`; what is no escape stays as it is.
fn unescaped(url: &str) -> String {
    let mut bytes = Vec::with_capacity(url.len());
    let mut rest = url.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escape = tail.first_chunk::<2>().filter(|_| *first == b'%');
        let value = escape.and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 16).ok()
        });
        match value {
            Some(value) => {
                bytes.push(value);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const _: () = assert!(BLOCK_SECTORS.is_power_of_two());
