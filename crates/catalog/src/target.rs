//! A VHD being written in one go: by a copy or an import, which make it a layer, and by an export.
//! Nobody reads it before it is closed, so nothing needs an order until then.
//!
//! ```text
//!   size known        headers | BAT | blocks as they come | (reserved) | footer
//!   known at the end  headers | blocks as they come | BAT | (reserved) | footer
//!   fixed             data | footer
//! ```

use std::ops::Range;
use std::rc::Rc;

use image::{
    BLOCK_BYTES, BLOCK_SECTORS, Bitmap, Kind, NewImage, SECTOR, Sector, bat, create, headers_for,
};
use io::{BlockFile, ByteCount, ByteRange, IoBuf, IoErrorKind};

use crate::error::{CatalogError, Code, Result};
use crate::layer::{self, block_count};

/// Zeros become holes in pieces of this many bytes: the grain in which file systems store.
const HOLE: usize = 4 << 10;

/// The runs of `bytes` that hold something; between them are whole pieces of zeros, which nobody need
/// store where nothing stands yet.
pub fn stored_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let holds = |(_, piece): &(usize, &[u8])| piece.iter().any(|byte| *byte != 0);
    let mut pieces = bytes.chunks(HOLE).enumerate().peekable();
    std::iter::from_fn(move || {
        let (first, piece) = pieces.find(holds)?;
        let start = first * HOLE;
        let mut end = start + piece.len();
        while let Some((_, piece)) = pieces.next_if(holds) {
            end += piece.len();
        }
        Some(start..end)
    })
}

/// A block, as what writes it has it: 2 MiB, zero where it holds nothing.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Which block of the disk.
    pub block: u32,
    /// 2 MiB.
    pub bytes: Vec<u8>,
    /// Which sectors it speaks of; in a layer on a parent, those that become its own.
    pub owned: Bitmap,
}

/// When the size of the disk is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeKnown {
    /// From the start.
    Now,
    /// With the last chunk: the plan holds the largest there can be.
    AtTheEnd,
}

/// A file that is being filled.
pub(crate) struct Target {
    file: Rc<dyn BlockFile>,
    plan: NewImage,
    sized: SizeKnown,
    bat: Vec<Option<Sector>>,
    next: Sector,
    reserve: bool,
    /// Whether the space of the whole disk was taken at the start.
    reserved: bool,
    /// The differencing block whose bitmap is not written yet.
    open: Option<(u32, Sector, Bitmap)>,
    /// Blocks of a fixed disk that were written.
    filled: Vec<bool>,
}

impl Target {
    /// Starts to fill a new, empty file.
    pub(crate) async fn over(
        file: Rc<dyn BlockFile>,
        plan: NewImage,
        sized: SizeKnown,
        reserve: bool,
    ) -> Result<Self> {
        let fixed = plan.image.kind == Kind::Fixed;
        let reserved = reserve && sized == SizeKnown::Now;
        if reserved {
            let full = if fixed { plan.len } else { layer::full_len(&plan.image) };
            file.reserve(ByteRange::new(0, full)).await?;
        }
        let next = match sized {
            SizeKnown::Now => plan.image.first_free.page_up(),
            SizeKnown::AtTheEnd => plan.image.bat_at,
        };
        let (bat, open, filled) = (Vec::new(), None, Vec::new());
        Ok(Self { file, plan, sized, bat, next, reserve, reserved, open, filled })
    }

    fn is_fixed(&self) -> bool {
        self.plan.image.kind == Kind::Fixed
    }

    /// Takes a chunk. Blocks may come in any order, and in parts.
    pub(crate) async fn put(&mut self, chunk: &Chunk) -> Result<()> {
        let at = chunk.block as usize;
        if self.is_fixed() {
            if self.filled.len() <= at {
                self.filled.resize(at + 1, false);
            }
            if !self.filled[at] && !chunk.owned.is_full() {
                self.zero(chunk.block).await?;
            }
            self.filled[at] = true;
            return self.write_owned(u64::from(chunk.block) * BLOCK_BYTES, chunk).await;
        }
        let on_parent = self.plan.image.kind == Kind::Differencing;
        let all_zero = chunk.bytes.iter().all(|byte| *byte == 0);
        let known = self.bat.get(at).copied().flatten();
        if (all_zero && !on_parent && known.is_none()) || chunk.owned.is_empty() {
            return Ok(());
        }
        let fresh = known.is_none();
        let entry = match known {
            Some(entry) => entry,
            None => self.place(chunk.block).await?,
        };
        if on_parent {
            self.own(chunk.block, entry, &chunk.owned, fresh).await?;
        } else if fresh {
            let page = layer::bitmap_page(&Bitmap::full());
            self.write(layer::page_of(entry), &page).await?;
        }
        let data = self.plan.image.data_at(entry).bytes();
        if fresh {
            return self.write_holes(data, &chunk.bytes).await;
        }
        self.write_owned(data, chunk).await
    }

    /// A place for a block, within the file.
    async fn place(&mut self, block: u32) -> Result<Sector> {
        let entry = layer::entry_at(self.next);
        self.next = layer::place_after(self.next);
        if !self.reserved {
            // The whole block lies within the file; what is not written stays a hole.
            self.file.truncate(ByteCount(self.next.bytes())).await?;
        }
        let at = block as usize;
        if self.bat.len() <= at {
            self.bat.resize(at + 1, None);
        }
        self.bat[at] = Some(entry);
        Ok(entry)
    }

    /// Adds sectors to what a block owns; its bitmap is written when the next block comes.
    async fn own(&mut self, block: u32, entry: Sector, owned: &Bitmap, fresh: bool) -> Result<()> {
        if let Some((_, _, bits)) = self.open.as_mut().filter(|(open, ..)| *open == block) {
            bits.union(owned);
            return Ok(());
        }
        self.write_open().await?;
        let mut bits = owned.clone();
        if !fresh {
            let before = layer::read(&*self.file, entry.bytes(), SECTOR).await?;
            bits.union(&Bitmap::from_bytes(before.as_slice().try_into().expect("a sector")));
        }
        self.open = Some((block, entry, bits));
        Ok(())
    }

    async fn write_open(&mut self) -> Result<()> {
        let Some((_, entry, bits)) = self.open.take() else { return Ok(()) };
        let page = layer::bitmap_page(&bits);
        self.write(layer::page_of(entry), &page).await
    }

    /// Writes what is not zero of a block that is all holes.
    async fn write_holes(&self, at: u64, bytes: &[u8]) -> Result<()> {
        for run in stored_runs(bytes) {
            self.write(at + run.start as u64, &bytes[run]).await?;
        }
        Ok(())
    }

    /// Writes the sectors that a chunk speaks of; whole runs, as something may stand there.
    async fn write_owned(&self, at: u64, chunk: &Chunk) -> Result<()> {
        for (first, len, set) in chunk.owned.runs().collect::<Vec<_>>() {
            if set {
                let from = ByteCount(u64::from(first) * SECTOR).as_len();
                let run = &chunk.bytes[from..from + ByteCount(u64::from(len) * SECTOR).as_len()];
                self.write(at + from as u64, run).await?;
            }
        }
        Ok(())
    }

    /// Writes, with the space taken first: a write into a hole would also find what the store lends to
    /// records (rule N1).
    async fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        if !self.reserved {
            let range = ByteRange::new(at, bytes.len() as u64);
            match self.file.reserve(range).await {
                Err(error) if error.kind == IoErrorKind::Unsupported => {}
                reserved => reserved?,
            }
        }
        layer::write(&*self.file, at, &IoBuf::copied(bytes)).await
    }

    /// Blocks of a fixed disk of `size` bytes that nothing was written to.
    pub(crate) fn unfilled(&self, size: u64) -> Vec<u32> {
        if !self.is_fixed() {
            return Vec::new();
        }
        let filled = |block: &u32| self.filled.get(*block as usize).copied().unwrap_or(false);
        (0..block_count(size)).filter(|block| !filled(block)).collect()
    }

    /// A block that holds nothing: in a fixed disk its zeros are written.
    pub(crate) async fn skip(&mut self, block: u32) -> Result<()> {
        if !self.is_fixed() {
            return Ok(());
        }
        let at = block as usize;
        self.filled.resize(self.filled.len().max(at + 1), false);
        self.filled[at] = true;
        self.zero(block).await
    }

    /// Writes zeros over a block of a fixed disk.
    async fn zero(&self, block: u32) -> Result<()> {
        let at = u64::from(block) * BLOCK_BYTES;
        let size = match self.sized {
            SizeKnown::Now => self.plan.image.size.bytes(),
            SizeKnown::AtTheEnd => u64::MAX,
        };
        let len = BLOCK_BYTES.min(size.saturating_sub(at));
        layer::write(&*self.file, at, &IoBuf::zeroed(ByteCount(len).as_len())).await
    }

    /// Completes the file, as a disk of what `plan` says, and makes it durable. `plan` is the one that
    /// it was begun with, but for a size that became known.
    pub(crate) async fn close(mut self, plan: NewImage) -> Result<()> {
        self.write_open().await?;
        let mut image = plan.image;
        let mut pieces = plan.pieces;
        if image.kind == Kind::Fixed {
            if self.sized == SizeKnown::AtTheEnd {
                // what a chunk brought beyond the disk's end goes
                self.file.truncate(ByteCount(image.size.bytes())).await?;
            }
        } else {
            let entries = image.bat_entries as usize;
            assert!(self.bat.len() <= entries, "{} blocks of {entries}", self.bat.len());
            self.bat.resize(entries, None);
            let mut table: Vec<u8> = self.bat.iter().flat_map(|e| bat::encode_entry(*e)).collect();
            table.resize(table.len().next_multiple_of(layer::PAGE_LEN), 0xff);
            if self.sized == SizeKnown::AtTheEnd {
                image.bat_at = self.next;
                image.first_free = self.next.plus(table.len() as u64 / SECTOR);
                self.next = image.first_free.page_up();
                pieces = headers_for(&image);
            } else {
                pieces.retain(|(at, _)| *at != image.bat_at);
            }
            pieces.push((image.bat_at, table));
            let mut end = self.next;
            if self.reserve {
                let left = self.bat.iter().filter(|entry| entry.is_none()).count() as u64;
                end = end.plus(left * image::BLOCK_STRIDE_SECTORS);
                if !self.reserved {
                    self.file.reserve(ByteRange::new(0, end.bytes())).await?;
                }
            }
            pieces.push(create::tail_for(&image, end));
        }
        for (at, bytes) in &pieces {
            layer::write(&*self.file, at.bytes(), &IoBuf::copied(bytes)).await?;
        }
        layer::flush(&*self.file).await
    }

    /// The same where the size was known.
    pub(crate) async fn close_as_begun(self) -> Result<()> {
        let plan = self.plan.clone();
        self.close(plan).await
    }
}

impl Chunk {
    /// A block that is all there: `bytes` are as many as the disk has of it.
    pub(crate) fn whole(block: u32, mut bytes: Vec<u8>) -> Self {
        let mut owned = Bitmap::empty();
        let sectors = u32::try_from(bytes.len() as u64 / SECTOR).unwrap_or(u32::MAX);
        owned.set_range(0, sectors.min(BLOCK_SECTORS));
        bytes.resize(ByteCount(BLOCK_BYTES).as_len(), 0);
        Self { block, bytes, owned }
    }
}

/// Refuses a chunk that cannot be one of a disk of `size` bytes.
pub(crate) fn check_chunk(chunk: &Chunk, size: u64) -> Result<()> {
    let fits = u64::from(chunk.block) * BLOCK_BYTES < size;
    if fits && chunk.bytes.len() as u64 == BLOCK_BYTES {
        return Ok(());
    }
    let message = format!("block {} lies outside a disk of {size} bytes", chunk.block);
    Err(CatalogError::new(Code::Corrupt, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_all_that_is_not_zero_and_no_page_more() {
        let of = |len: usize, set: &[usize]| {
            let mut bytes = vec![0; len];
            set.iter().for_each(|at| bytes[*at] = 1);
            stored_runs(&bytes).map(|run| (run.start, run.end)).collect::<Vec<_>>()
        };
        assert_eq!(of(0, &[]), []);
        assert_eq!(of(9000, &[]), []);
        assert_eq!(of(9000, &[0]), [(0, 4096)]);
        assert_eq!(of(9000, &[4095, 4096]), [(0, 8192)]);
        assert_eq!(of(9000, &[1, 8999]), [(0, 4096), (8192, 9000)]);
        assert_eq!(of(16384, &[5000, 9000]), [(4096, 12288)]);
    }
}
