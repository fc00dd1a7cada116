//! Opening files from elsewhere: every place where tools have put a footer is tried, and every
//! structure is bounded by the file before it is read.

use super::{Want, part};
use crate::{
    DynamicHeader, Footer, FormatError, Kind, LayerImage, Locator, LocatorEntry, ParentRef, Repair,
    Result, SECTOR, Sector,
};

/// The longest path of a locator that is read: Windows paths end at 32,767 units.
const MAX_PATH: u64 = 64 << 10;
/// The block map of Xen's tools starts with this.
const BATMAP_COOKIE: &[u8; 8] = b"tdbatmap";

#[derive(Debug)]
pub(super) struct Foreign {
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Start,
    /// The last sector was asked for.
    Tail,
    /// The first sector was asked for; what was found at the end.
    Copy {
        tail: Option<(Footer, bool)>,
        error: Option<FormatError>,
    },
    /// The dynamic header was asked for.
    Header {
        footer: Box<Footer>,
        repairs: Vec<Repair>,
    },
    /// The header of the block map was asked for.
    BlockMap {
        image: Box<LayerImage>,
        left: Vec<(usize, LocatorEntry)>,
    },
    /// A locator was asked for.
    Locators {
        image: Box<LayerImage>,
        reading: LocatorEntry,
        left: Vec<(usize, LocatorEntry)>,
    },
}

impl Foreign {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Start }
    }

    pub(super) fn next(&mut self, file_len: u64, supplied: Option<Vec<u8>>) -> Result<Want> {
        let bytes = supplied.unwrap_or_default();
        match std::mem::replace(&mut self.phase, Phase::Start) {
            Phase::Start => {
                let len = Footer::LEN as u64;
                let Some(at) = file_len.checked_sub(len) else {
                    return Err(FormatError::NotVhd { file_len });
                };
                self.phase = Phase::Tail;
                Ok(Want::Bytes { at, len, structure: "the footer" })
            }
            Phase::Tail => self.tail(&bytes, file_len),
            Phase::Copy { tail, error } => self.copy(&bytes, tail, error, file_len),
            Phase::Header { footer, repairs } => {
                let Some(header) = part(&bytes, 0) else {
                    return Err(FormatError::NotVhd { file_len });
                };
                self.header(&footer, &DynamicHeader::decode(header)?, repairs, file_len)
            }
            Phase::BlockMap { mut image, left } => {
                image.first_free = image.first_free.max(block_map_end(&bytes, file_len));
                Ok(self.locators(image, left, file_len))
            }
            Phase::Locators { mut image, reading, left } => {
                if let Some(parent) = &mut image.parent {
                    parent.locators.push(Locator { platform: reading.platform, data: bytes });
                }
                Ok(self.locators(image, left, file_len))
            }
        }
    }

    fn tail(&mut self, bytes: &[u8], file_len: u64) -> Result<Want> {
        let Some(sector) = part::<{ Footer::LEN }>(bytes, 0) else {
            return Err(FormatError::NotVhd { file_len });
        };
        let mut found = Footer::decode(sector).map(|footer| (footer, false));
        if found.is_err() && file_len % SECTOR == SECTOR.saturating_sub(1) {
            // A footer without its last byte, which was always zero.
            let mut short = [0; Footer::LEN];
            for (to, from) in short.iter_mut().zip(sector.iter().skip(1)) {
                *to = *from;
            }
            found = Footer::decode(&short).map(|footer| (footer, true)).or(found);
        }
        match found {
            Ok((footer, short)) if footer.kind == Kind::Fixed => {
                let repairs = if short { vec![Repair::TailFooterShort] } else { Vec::new() };
                fixed(&footer, file_len, repairs).map(Want::Done)
            }
            Ok(found) => Ok(self.ask_copy(Some(found), None)),
            Err(error) => Ok(self.ask_copy(None, Some(error))),
        }
    }

    fn ask_copy(&mut self, tail: Option<(Footer, bool)>, error: Option<FormatError>) -> Want {
        self.phase = Phase::Copy { tail, error };
        Want::Bytes { at: 0, len: Footer::LEN as u64, structure: "the footer's copy" }
    }

    fn copy(
        &mut self,
        bytes: &[u8],
        tail: Option<(Footer, bool)>,
        error: Option<FormatError>,
        file_len: u64,
    ) -> Result<Want> {
        let copy = part(bytes, 0).map(Footer::decode);
        let mut repairs = Vec::new();
        let footer = match (tail, copy) {
            (Some((footer, short)), copy) => {
                if short {
                    repairs.push(Repair::TailFooterShort);
                }
                match copy {
                    Some(Ok(copy)) if copy == footer => {}
                    Some(Ok(_)) => repairs.push(Repair::FooterCopyDiffers),
                    Some(Err(_)) | None => repairs.push(Repair::FooterCopyDamaged),
                }
                footer
            }
            (None, Some(Ok(copy))) if copy.kind != Kind::Fixed => {
                repairs.push(Repair::TailFooterMissing);
                copy
            }
            // A damaged footer tells more than "no footer", unless the bytes never were one.
            (None, _) => {
                let cookie = |error: &FormatError| {
                    matches!(error, FormatError::Corrupt { field: "cookie", .. })
                };
                return Err(error
                    .filter(|error| !cookie(error))
                    .unwrap_or(FormatError::NotVhd { file_len }));
            }
        };
        let at = footer.data_offset;
        self.phase = Phase::Header { footer: Box::new(footer), repairs };
        let len = DynamicHeader::LEN as u64;
        Ok(Want::Bytes { at, len, structure: "the dynamic header" })
    }

    fn header(
        &mut self,
        footer: &Footer,
        header: &DynamicHeader,
        mut repairs: Vec<Repair>,
        file_len: u64,
    ) -> Result<Want> {
        rounding(footer, &mut repairs);
        let size = footer.size();
        let block_sectors = header.block_sectors();
        let blocks = size.0.div_ceil(u64::from(block_sectors));
        if blocks > u64::from(header.entries) {
            return Err(FormatError::corrupt(
                "dynamic header",
                "number of BAT entries",
                header.entries,
                format!("at least {blocks} for {} bytes", size.bytes()),
            ));
        }
        // The whole table counts for where free space starts, also entries that the disk has no
        // use for; bounding it by the file bounds what anyone reads or keeps in memory.
        let table = u64::from(header.entries).saturating_mul(4).next_multiple_of(SECTOR);
        let table_end = header.table_offset.saturating_add(table);
        if table_end > file_len || !header.table_offset.is_multiple_of(SECTOR) {
            return Err(FormatError::OutsideFile {
                structure: "the BAT",
                at: header.table_offset,
                len: table,
                file_len,
            });
        }
        let header_end = footer.data_offset.saturating_add(DynamicHeader::LEN as u64);
        let used: Vec<_> =
            header.locators.iter().copied().enumerate().filter(|(_, l)| l.is_used()).collect();
        let locators_end = used
            .iter()
            .map(|(_, locator)| locator.data_offset.saturating_add(locator.space_bytes()))
            .filter(|end| *end <= file_len)
            .max()
            .unwrap_or(0);
        let end = header_end.max(table_end).max(locators_end).max(Footer::LEN as u64);
        let image = Box::new(LayerImage {
            uuid: footer.uuid,
            kind: footer.kind,
            size,
            block_sectors,
            bat_at: Sector(header.table_offset / SECTOR),
            bat_entries: u32::try_from(blocks).unwrap_or(header.entries),
            first_free: Sector::at_or_after(end),
            parent: (footer.kind == Kind::Differencing).then(|| ParentRef {
                uuid: header.parent_uuid,
                name: header.parent_name.clone(),
                locators: Vec::with_capacity(used.len()),
            }),
            creator: footer.creator,
            timestamp: footer.timestamp,
            saved_state: footer.saved_state,
            repairs,
        });
        let left = if image.parent.is_some() { used } else { Vec::new() };
        let has_map = &footer.creator == b"tap\0" && footer.creator_version >= 0x0001_0002;
        if has_map && table_end.saturating_add(SECTOR) <= file_len {
            self.phase = Phase::BlockMap { image, left };
            return Ok(Want::Bytes { at: table_end, len: SECTOR, structure: "the block map" });
        }
        Ok(self.locators(image, left, file_len))
    }

    /// Asks for the next locator that can be read; the others are noted. A path that cannot be read
    /// does not keep the disk from being opened: the identity decides which parent is right.
    fn locators(
        &mut self,
        mut image: Box<LayerImage>,
        mut left: Vec<(usize, LocatorEntry)>,
        file_len: u64,
    ) -> Want {
        while !left.is_empty() {
            let (slot, reading) = left.remove(0);
            let len = u64::from(reading.data_len);
            let fits = reading.data_offset.checked_add(len).is_some_and(|end| end <= file_len);
            if fits && (1..=MAX_PATH).contains(&len) {
                self.phase = Phase::Locators { image, reading, left };
                return Want::Bytes { at: reading.data_offset, len, structure: "a parent locator" };
            }
            image.repairs.push(Repair::LocatorUnreadable { slot });
        }
        Want::Done(*image)
    }
}

fn rounding(footer: &Footer, repairs: &mut Vec<Repair>) {
    let dropped = footer.current_size % SECTOR;
    if dropped != 0 {
        repairs.push(Repair::SizeRounded { dropped });
    }
}

fn fixed(footer: &Footer, file_len: u64, mut repairs: Vec<Repair>) -> Result<LayerImage> {
    rounding(footer, &mut repairs);
    let size = footer.size();
    if size.bytes() > file_len {
        return Err(FormatError::OutsideFile {
            structure: "the data of the fixed disk",
            at: 0,
            len: size.bytes(),
            file_len,
        });
    }
    Ok(LayerImage {
        uuid: footer.uuid,
        kind: Kind::Fixed,
        size,
        block_sectors: crate::BLOCK_SECTORS,
        bat_at: Sector(0),
        bat_entries: 0,
        first_free: Sector(size.0),
        parent: None,
        creator: footer.creator,
        timestamp: footer.timestamp,
        saved_state: footer.saved_state,
        repairs,
    })
}

/// Where the block map of Xen's tools ends, if there is one: its header names its place and length.
fn block_map_end(header: &[u8], file_len: u64) -> Sector {
    let mut fields = crate::bytes::Fields::of(header);
    if header.len() < 20 || &fields.take::<8>() != BATMAP_COOKIE {
        return Sector(0);
    }
    let at = fields.u64();
    let end = at.saturating_add(u64::from(fields.u32()).saturating_mul(SECTOR));
    Sector::at_or_after(end.min(file_len))
}
