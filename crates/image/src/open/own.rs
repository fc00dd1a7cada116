//! Opening files of ours: only the bytes that no guest writes are believed, and the layout must be
//! the one that `create` makes.

use super::{Want, part};
use crate::{
    BLOCK_BYTES, BLOCK_SECTORS, CREATOR, DynamicHeader, Footer, FormatError, Kind, LayerImage,
    Locator, LocatorEntry, PAGE, ParentRef, Repair, Result, SECTOR, Sector, Uuid,
};

#[derive(Debug)]
pub(super) struct Own {
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Nothing was read yet.
    Start { fixed: bool },
    /// The first page was asked for.
    Page,
    /// The footer at the end was asked for, in place of the torn copy before this header.
    TornCopy(Box<DynamicHeader>),
    /// The footer at the end of a fixed layer was asked for.
    Fixed,
    /// A locator was asked for; those still to be read.
    Locators { image: Box<LayerImage>, reading: LocatorEntry, left: Vec<LocatorEntry> },
}

impl Own {
    pub(super) fn sparse() -> Self {
        Self { phase: Phase::Start { fixed: false } }
    }

    pub(super) fn fixed() -> Self {
        Self { phase: Phase::Start { fixed: true } }
    }

    pub(super) fn next(&mut self, file_len: u64, supplied: Option<Vec<u8>>) -> Result<Want> {
        let bytes = supplied.unwrap_or_default();
        match std::mem::replace(&mut self.phase, Phase::Start { fixed: false }) {
            Phase::Start { fixed: true } => {
                self.phase = Phase::Fixed;
                Ok(tail(file_len))
            }
            Phase::Start { fixed: false } => {
                self.phase = Phase::Page;
                Ok(Want::Bytes { at: 0, len: PAGE, structure: "the first page" })
            }
            Phase::Fixed => fixed(&Footer::decode(footer_in(&bytes)?)?, file_len).map(Want::Done),
            Phase::Page => {
                let header = part::<{ DynamicHeader::LEN }>(&bytes, Footer::LEN)
                    .ok_or(FormatError::NotVhd { file_len })
                    .and_then(DynamicHeader::decode);
                match (Footer::decode(footer_in(&bytes)?), header) {
                    (Ok(footer), Ok(header)) => {
                        self.headers(&footer, &header, file_len, Vec::new())
                    }
                    (Err(_), Ok(header)) if file_len.is_multiple_of(SECTOR) => {
                        self.phase = Phase::TornCopy(Box::new(header));
                        Ok(tail(file_len))
                    }
                    (Err(error), Ok(_) | Err(_)) | (Ok(_), Err(error)) => Err(error),
                }
            }
            Phase::TornCopy(header) => {
                let footer = Footer::decode(footer_in(&bytes)?)?;
                self.headers(&footer, &header, file_len, vec![Repair::FooterCopyDamaged])
            }
            Phase::Locators { mut image, reading, left } => {
                if let Some(parent) = &mut image.parent {
                    let len = usize::try_from(reading.data_len).unwrap_or(usize::MAX);
                    let data = bytes.get(..len).unwrap_or(&bytes).to_vec();
                    parent.locators.push(Locator { platform: reading.platform, data });
                }
                Ok(self.locators(image, left))
            }
        }
    }

    fn headers(
        &mut self,
        footer: &Footer,
        header: &DynamicHeader,
        file_len: u64,
        repairs: Vec<Repair>,
    ) -> Result<Want> {
        let (image, locators) = sparse(footer, header, file_len, repairs)?;
        Ok(self.locators(Box::new(image), locators))
    }

    /// Asks for the next locator; `left` is in the header's order.
    fn locators(&mut self, image: Box<LayerImage>, mut left: Vec<LocatorEntry>) -> Want {
        if left.is_empty() {
            return Want::Done(*image);
        }
        let reading = left.remove(0);
        self.phase = Phase::Locators { image, reading, left };
        Want::Bytes { at: reading.data_offset, len: PAGE, structure: "a parent locator" }
    }
}

fn tail(file_len: u64) -> Want {
    let len = Footer::LEN as u64;
    // a file shorter than a footer ends in "outside the file"
    Want::Bytes { at: file_len.saturating_sub(len), len, structure: "the footer" }
}

fn footer_in(bytes: &[u8]) -> Result<&[u8; Footer::LEN]> {
    part(bytes, 0).ok_or(FormatError::NotVhd { file_len: bytes.len() as u64 })
}

fn fixed(footer: &Footer, file_len: u64) -> Result<LayerImage> {
    ours(footer)?;
    same("kind", format!("{:?}", footer.kind), "Fixed")?;
    let size = footer.size();
    same("file length", file_len, size.bytes().saturating_add(Footer::LEN as u64))?;
    Ok(LayerImage {
        uuid: footer.uuid,
        kind: Kind::Fixed,
        size,
        block_sectors: BLOCK_SECTORS,
        bat_at: Sector(0),
        bat_entries: 0,
        first_free: Sector(size.0),
        parent: None,
        creator: footer.creator,
        timestamp: footer.timestamp,
        saved_state: footer.saved_state,
        repairs: Vec::new(),
    })
}

fn sparse(
    footer: &Footer,
    header: &DynamicHeader,
    file_len: u64,
    repairs: Vec<Repair>,
) -> Result<(LayerImage, Vec<LocatorEntry>)> {
    ours(footer)?;
    if footer.kind == Kind::Fixed {
        return Err(FormatError::not_ours("kind", "Fixed", "Dynamic or Differencing"));
    }
    same("header offset", footer.data_offset, Footer::LEN)?;
    same("block size", header.block_size, BLOCK_BYTES)?;
    same("number of BAT entries", header.entries, footer.size().blocks())?;
    let differencing = footer.kind == Kind::Differencing;
    let used: Vec<_> = header.locators.iter().copied().filter(LocatorEntry::is_used).collect();
    // Locators stand in the pages after the first, one each, in order: so a place cannot point at a
    // guest's data, nor two places at one page.
    for (locator, page) in used.iter().zip(1u64..) {
        same("place of a parent locator", locator.data_offset, page.saturating_mul(PAGE))?;
        if u64::from(locator.data_len) > PAGE {
            return Err(FormatError::not_ours(
                "length of a parent locator",
                locator.data_len,
                PAGE,
            ));
        }
    }
    if !differencing {
        same("number of parent locators", used.len(), 0)?;
        same("parent", header.parent_uuid, Uuid::nil())?;
    }
    let headers_end = (used.len() as u64).saturating_add(1).saturating_mul(PAGE);
    if !header.table_offset.is_multiple_of(PAGE) || header.table_offset < headers_end {
        return Err(FormatError::not_ours(
            "place of the BAT",
            header.table_offset,
            format!("a page from {headers_end} on"),
        ));
    }
    let mut image = LayerImage {
        uuid: footer.uuid,
        kind: footer.kind,
        size: footer.size(),
        block_sectors: BLOCK_SECTORS,
        bat_at: Sector(header.table_offset / SECTOR),
        bat_entries: header.entries,
        first_free: Sector(0),
        parent: differencing.then(|| ParentRef {
            uuid: header.parent_uuid,
            name: header.parent_name.clone(),
            locators: Vec::with_capacity(used.len()),
        }),
        creator: footer.creator,
        timestamp: footer.timestamp,
        saved_state: footer.saved_state,
        repairs,
    };
    let bat_len = crate::create::bat_pages_bytes(&image);
    image.first_free = image.bat_at.plus(bat_len / SECTOR);
    if image.first_free.bytes() > file_len {
        return Err(FormatError::OutsideFile {
            structure: "the BAT",
            at: header.table_offset,
            len: bat_len,
            file_len,
        });
    }
    Ok((image, used))
}

fn ours(footer: &Footer) -> Result<()> {
    same("creator", footer.creator.escape_ascii(), CREATOR.escape_ascii())?;
    same("size in bytes", footer.current_size, footer.size().bytes())
}

#[expect(clippy::needless_pass_by_value, reason = "values are made for the message only")]
fn same(field: &'static str, found: impl ToString, expected: impl ToString) -> Result<()> {
    let (found, expected) = (found.to_string(), expected.to_string());
    if found == expected { Ok(()) } else { Err(FormatError::NotOurs { field, found, expected }) }
}
