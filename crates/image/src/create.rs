//! Making files: what to write for a new layer, and the full images of headers and footers that a
//! resize or a new parent needs.
//!
//! ```text
//!  page 0            footer copy [0,512)  dynamic header [512,1536)  zeros
//!  pages 1..         one page per parent locator (differencing only)
//!  next page         BAT, padded with ones to a page
//!  first_free        blocks: | 3584 zeros | bitmap 512 | data 2 MiB |   any order, any gaps
//!  end, when closed  footer 512
//! ```
//! Everything that is ever rewritten in place stands in pages of its own, so that one writer per page
//! is possible and a torn write touches one structure only.

use crate::{
    BLOCK_BYTES, BLOCK_SECTORS, DynamicHeader, Footer, FormatError, Kind, LayerImage, LocatorEntry,
    MAX_SECTORS, PAGE, PAGE_SECTORS, ParentRef, Result, Sector, SectorCount, Timestamp, Uuid,
    WideName,
};

/// A page as a length in memory.
const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE);

/// Parts of a file and where they belong.
pub type Pieces = Vec<(Sector, Vec<u8>)>;

/// A new file: what to write, and what it then is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// What to write; each piece starts on a page and is whole pages long, but for a fixed disk's
    /// footer.
    pub pieces: Pieces,
    /// Length of the file in bytes. Ranges without a piece are zeros.
    pub len: u64,
    /// The image as opening the file would give it.
    pub image: LayerImage,
}

/// A new dynamic layer: every sector reads as zero. There is no footer at its end yet; see
/// [`tail_for`].
///
/// # Errors
/// If the size is nothing or above 2040 GiB.
pub fn dynamic(uuid: Uuid, size: SectorCount, now: Timestamp) -> Result<NewImage> {
    sparse(uuid, size, now, None)
}

/// A new differencing layer: every sector is its parent's.
///
/// # Errors
/// If the size is nothing or above 2040 GiB, or a locator does not fit a page or there are more
/// than eight.
pub fn differencing(
    uuid: Uuid,
    size: SectorCount,
    now: Timestamp,
    parent: &ParentRef,
) -> Result<NewImage> {
    sparse(uuid, size, now, Some(parent.clone()))
}

/// A new fixed layer: all that is written is its footer; its data must be zeros.
///
/// # Errors
/// If the size is nothing or above 2040 GiB.
pub fn fixed(uuid: Uuid, size: SectorCount, now: Timestamp) -> Result<NewImage> {
    check_size(size)?;
    let image = LayerImage {
        uuid,
        kind: Kind::Fixed,
        size,
        block_sectors: BLOCK_SECTORS,
        bat_at: Sector(0),
        bat_entries: 0,
        first_free: Sector(size.0),
        parent: None,
        creator: crate::CREATOR,
        timestamp: now,
        saved_state: false,
        repairs: Vec::new(),
    };
    let footer = (Sector(size.0), footer_for(&image).to_vec());
    let len = size.bytes().saturating_add(Footer::LEN as u64);
    Ok(NewImage { pieces: vec![footer], len, image })
}

fn sparse(
    uuid: Uuid,
    size: SectorCount,
    now: Timestamp,
    parent: Option<ParentRef>,
) -> Result<NewImage> {
    check_size(size)?;
    let locator_pages = parent.as_ref().map_or(0, ParentRef::locator_pages);
    let bat_at = Sector(PAGE_SECTORS.saturating_mul(locator_pages.saturating_add(1)));
    let mut image = LayerImage {
        uuid,
        kind: if parent.is_some() { Kind::Differencing } else { Kind::Dynamic },
        size,
        block_sectors: BLOCK_SECTORS,
        bat_at,
        bat_entries: u32::try_from(size.blocks()).unwrap_or(u32::MAX),
        first_free: Sector(0),
        parent,
        creator: crate::CREATOR,
        timestamp: now,
        saved_state: false,
        repairs: Vec::new(),
    };
    check_locators(&image)?;
    let bat = vec![0xff; usize::try_from(bat_pages_bytes(&image)).unwrap_or(usize::MAX)];
    image.first_free = bat_at.plus(bat_pages_bytes(&image) / crate::SECTOR);
    let mut pieces = headers_for(&image);
    pieces.push((bat_at, bat));
    Ok(NewImage { pieces, len: image.first_free.bytes(), image })
}

/// The footer of a layer of ours.
#[must_use]
pub fn footer_for(image: &LayerImage) -> [u8; Footer::LEN] {
    let mut footer = Footer::new(image.uuid, image.kind, image.size, image.timestamp);
    footer.saved_state = image.saved_state;
    footer.encode()
}

/// The first page and the pages of the locators of a layer of ours, complete: whichever of them a
/// crash tore, writing them again makes the file whole. Nothing for a fixed layer.
#[must_use]
pub fn headers_for(image: &LayerImage) -> Pieces {
    if image.kind == Kind::Fixed {
        return Vec::new();
    }
    let mut pieces = vec![(Sector(0), Vec::new())];
    let mut locators = [LocatorEntry::UNUSED; 8];
    let mut at = Sector(PAGE_SECTORS);
    let paths = image.parent.iter().flat_map(|parent| &parent.locators);
    for (slot, locator) in locators.iter_mut().zip(paths) {
        let mut path = locator.data.clone();
        path.resize(path.len().next_multiple_of(PAGE_LEN).max(PAGE_LEN), 0);
        *slot = LocatorEntry {
            platform: locator.platform,
            // in bytes, as Windows and Xen's tools write and read it
            data_space: u32::try_from(path.len()).unwrap_or(u32::MAX),
            data_len: u32::try_from(locator.data.len()).unwrap_or(u32::MAX),
            data_offset: at.bytes(),
        };
        let pages = path.len() as u64 / crate::SECTOR;
        pieces.push((at, path));
        at = at.plus(pages);
    }
    let header = DynamicHeader {
        next: DynamicHeader::NO_NEXT,
        table_offset: image.bat_at.bytes(),
        entries: image.bat_entries,
        block_size: image.block_sectors.saturating_mul(512),
        parent_uuid: image.parent.as_ref().map_or(Uuid::nil(), |parent| parent.uuid),
        parent_time: if image.parent.is_some() { image.timestamp } else { Timestamp(0) },
        parent_name: image.parent.as_ref().map_or_else(WideName::default, |p| p.name.clone()),
        locators,
    };
    if let Some((_, page)) = pieces.first_mut() {
        page.extend_from_slice(&footer_for(image));
        page.extend_from_slice(&header.encode());
        page.resize(PAGE_LEN, 0);
    }
    pieces
}

/// The footer that closes a layer of ours, and where it goes: at `end`, the end of the last block or
/// of the headers. The file is cut off after it. A reader that finds none knows that the file was not
/// closed; for other tools, which look there first, it must be there.
#[must_use]
pub fn tail_for(image: &LayerImage, end: Sector) -> (Sector, Vec<u8>) {
    (end.max(image.first_free), footer_for(image).to_vec())
}

/// A layer of ours grown to `size`, and where its BAT then stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grown {
    /// The image afterwards.
    pub image: LayerImage,
    /// Whether the BAT moved: then copy the old entries to the new place, padded with ones, and make
    /// that durable before the headers.
    pub bat_moved: bool,
}

/// Plans growth. A BAT that does not fit its pages any more moves to `free`, a page boundary after
/// everything in the file; its old pages stay unused.
///
/// Write the BAT first, then a barrier, then [`headers_for`] from an image kept in the intent: a torn
/// header page is then written again. Where an ancestor is longer than the old size, the new range
/// must be made to belong to this layer as zeros before its size shows (rule D8).
///
/// # Errors
/// If the size shrinks or is above 2040 GiB.
pub fn grow(image: &LayerImage, size: SectorCount, free: Sector) -> Result<Grown> {
    check_size(size)?;
    if size < image.size {
        return Err(FormatError::Unsupported(format!(
            "a layer of {:?} cannot shrink to {size:?}",
            image.size
        )));
    }
    let mut grown = image.clone();
    grown.size = size;
    if image.kind == Kind::Fixed {
        grown.first_free = Sector(size.0);
        return Ok(Grown { image: grown, bat_moved: false });
    }
    grown.bat_entries = u32::try_from(size.blocks()).unwrap_or(u32::MAX);
    let bat_moved = bat_pages_bytes(&grown) > bat_pages_bytes(image);
    if bat_moved {
        assert!(
            free.is_page_aligned() && free >= image.first_free,
            "the BAT cannot move to {free:?}"
        );
        grown.bat_at = free;
        grown.first_free = free.plus(bat_pages_bytes(&grown) / crate::SECTOR);
    }
    Ok(Grown { image: grown, bat_moved })
}

/// Bytes of the pages that hold the BAT.
pub(crate) fn bat_pages_bytes(image: &LayerImage) -> u64 {
    u64::from(image.bat_entries).saturating_mul(4).next_multiple_of(PAGE)
}

fn check_size(size: SectorCount) -> Result<()> {
    if size.0 == 0 || size > MAX_SECTORS {
        return Err(FormatError::Unsupported(format!(
            "a layer holds 512 bytes to 2040 GiB; {} bytes were asked for",
            size.bytes()
        )));
    }
    Ok(())
}

fn check_locators(image: &LayerImage) -> Result<()> {
    let Some(parent) = &image.parent else { return Ok(()) };
    if parent.locators.len() > 8 {
        return Err(FormatError::Unsupported(format!(
            "a layer holds 8 parent locators; {} were given",
            parent.locators.len()
        )));
    }
    if let Some(long) = parent.locators.iter().find(|locator| locator.data.len() > PAGE_LEN) {
        return Err(FormatError::Unsupported(format!(
            "the path of a parent locator takes {} bytes; {PAGE} is the most",
            long.data.len()
        )));
    }
    Ok(())
}

const _: () = assert!(BLOCK_BYTES.is_multiple_of(PAGE));
