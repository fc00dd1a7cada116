//! Merging a layer into its parent while neither is in use: the plan, block by block.
//!
//! ```text
//!   batch of blocks:  reserve ─► zero, copy ─► barrier ─► parent's bitmaps ─► barrier ─► parent's BAT
//!                     ─► barrier ─► child's BAT entries cleared ─► barrier ─► child's space freed
//! ```
//! Whatever is lost at a power cut, each sector is found in one of the two files: the child gives up
//! a block only after the parent owns it durably (rule L4). So a merge can stop anywhere, for as long
//! as it likes, and a new one goes on with what the child still has (rule L3). Its end is the child's
//! BAT durably empty.

use std::collections::BTreeMap;

use crate::{
    BLOCK_STRIDE_SECTORS, Bitmap, BlockIndex, FormatError, Kind, LayerImage, METADATA_SECTORS,
    PAGE, PAGE_SECTORS, Result, SECTOR, Sector, SectorCount, bat,
};

/// Blocks moved between two sets of barriers: enough that barriers cost little, few enough that a
/// pause or a full store is noticed soon.
const BATCH: usize = 16;

/// One of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The layer that keeps the content.
    Parent,
    /// The layer that is emptied.
    Child,
}

/// A range of data to copy from the child's file to the parent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Sector of the child's file.
    pub from: Sector,
    /// Sector of the parent's file.
    pub to: Sector,
    /// Length.
    pub len: SectorCount,
}

/// What to do next. A step's work is over before the next step is asked for; within a step, ranges
/// may be worked on at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// Read these bytes and supply them.
    Read {
        /// Of which file.
        side: Side,
        /// Byte offset.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// Make sure that writing these ranges of the parent cannot lack space. If there is none, the
    /// merge may be dropped here: nothing was changed since the last batch.
    Reserve(Vec<(Sector, SectorCount)>),
    /// Make these ranges of the parent zeros, whatever they held.
    Zero(Vec<(Sector, SectorCount)>),
    /// Copy these ranges.
    Copy(Vec<Copy>),
    /// Write these pieces.
    Write {
        /// To which file.
        side: Side,
        /// Pieces: where, and what; whole pages at page boundaries.
        pieces: Vec<(Sector, Vec<u8>)>,
    },
    /// Wait until everything written to the file is durable.
    Barrier(Side),
    /// These ranges of the child hold nothing any more; punching them is optional.
    Free(Vec<(Sector, SectorCount)>),
    /// A batch of blocks belongs to the parent, durably. A good moment to report and to stop.
    Moved(Progress),
    /// The child's BAT is durably empty.
    Done(Progress),
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Blocks that the parent owns now.
    pub blocks: u64,
    /// Blocks that the child had at the start.
    pub of: u64,
    /// Bytes copied.
    pub bytes: u64,
}

/// The plan of a merge, as a state machine.
#[derive(Debug)]
pub struct Merge {
    parent: LayerImage,
    parent_len: u64,
    child: LayerImage,
    child_len: u64,
    state: State,
    supplied: Option<Vec<u8>>,
    parent_bat: Vec<Option<Sector>>,
    child_bat: Vec<Option<Sector>>,
    /// Where new blocks of the parent may go, in order.
    free: Free,
    /// Blocks of the child that are still to be moved, in reverse order.
    left: Vec<BlockIndex>,
    progress: Progress,
    batch: Batch,
}

#[derive(Debug, Default)]
struct Batch {
    /// Blocks, with the child's entry.
    blocks: Vec<(BlockIndex, Sector)>,
    child_bits: Vec<Bitmap>,
    /// For each block: where the parent has it, and its bitmap there if it had one before.
    parent_at: Vec<(Sector, Option<Bitmap>)>,
    reserve: Vec<(Sector, SectorCount)>,
    zero: Vec<(Sector, SectorCount)>,
    copies: Vec<Copy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ParentBat,
    ChildBat,
    NextBatch,
    ChildBitmap(usize),
    ParentBitmap(usize),
    Reserve,
    Zero,
    Copy,
    DataBarrier,
    Bitmaps,
    BitmapBarrier,
    ParentEntries,
    ParentBarrier,
    ChildEntries,
    ChildBarrier,
    FreeSpace,
    Report,
    Over,
}

impl Merge {
    /// A merge of `child` into `parent`, both files of ours, whose lengths are in bytes.
    ///
    /// # Errors
    /// If the child's parent is another layer, or the parent is shorter than the child: it must be
    /// grown first (rule L5).
    pub fn new(
        parent: LayerImage,
        parent_len: u64,
        child: LayerImage,
        child_len: u64,
    ) -> Result<Self> {
        let named = child.parent.as_ref().map(|parent| parent.uuid);
        if named != Some(parent.uuid) {
            return Err(FormatError::Unsupported(format!(
                "layer {} cannot be merged into {}: it does not stand on it",
                child.uuid, parent.uuid
            )));
        }
        if parent.size < child.size {
            return Err(FormatError::Unsupported(format!(
                "layer {} of {:?} cannot be merged into {} of {:?}: grow that first",
                child.uuid, child.size, parent.uuid, parent.size
            )));
        }
        Ok(Self {
            parent,
            parent_len,
            child,
            child_len,
            state: State::ParentBat,
            supplied: None,
            parent_bat: Vec::new(),
            child_bat: Vec::new(),
            free: Free::default(),
            left: Vec::new(),
            progress: Progress::default(),
            batch: Batch::default(),
        })
    }

    /// Takes the bytes of a [`MergeStep::Read`].
    pub fn supply(&mut self, bytes: Vec<u8>) {
        self.supplied = Some(bytes);
    }

    /// What to do next.
    ///
    /// # Errors
    /// If a block of either file stands outside it: nothing is changed then.
    pub fn step(&mut self) -> Result<MergeStep> {
        loop {
            if let Some(step) = self.turn()? {
                return Ok(step);
            }
        }
    }

    /// One turn of the machine; None where it goes on without the caller.
    fn turn(&mut self) -> Result<Option<MergeStep>> {
        let supplied = self.supplied.take();
        let (next, step) = match self.state {
            State::ParentBat if self.parent.kind == Kind::Fixed => (State::ChildBat, None),
            State::ParentBat => match supplied {
                None => (State::ParentBat, Some(read_bat(Side::Parent, &self.parent))),
                Some(bytes) => {
                    self.parent_bat = load(&self.parent, self.parent_len, &bytes)?;
                    self.free = Free::of(&self.parent, &self.parent_bat)?;
                    (State::ChildBat, None)
                }
            },
            State::ChildBat => match supplied {
                None => (State::ChildBat, Some(read_bat(Side::Child, &self.child))),
                Some(bytes) => {
                    self.child_bat = load(&self.child, self.child_len, &bytes)?;
                    self.left = allocated(&self.child_bat).map(|(block, _)| block).collect();
                    self.left.reverse();
                    self.progress.of = self.left.len() as u64;
                    (State::NextBatch, None)
                }
            },
            State::NextBatch => self.next_batch(),
            State::ChildBitmap(index) => self.child_bitmap(index, supplied),
            State::ParentBitmap(index) => self.parent_bitmap(index, supplied)?,
            State::Reserve => {
                let ranges = std::mem::take(&mut self.batch.reserve);
                (State::Zero, (!ranges.is_empty()).then_some(MergeStep::Reserve(ranges)))
            }
            State::Zero => {
                let ranges = std::mem::take(&mut self.batch.zero);
                (State::Copy, (!ranges.is_empty()).then_some(MergeStep::Zero(ranges)))
            }
            State::Copy => {
                let copies = std::mem::take(&mut self.batch.copies);
                (State::DataBarrier, (!copies.is_empty()).then_some(MergeStep::Copy(copies)))
            }
            State::DataBarrier => (State::Bitmaps, Some(MergeStep::Barrier(Side::Parent))),
            State::Bitmaps if self.parent.kind == Kind::Fixed => (State::ChildEntries, None),
            State::Bitmaps => {
                let pieces = self.bitmap_pages();
                let write = MergeStep::Write { side: Side::Parent, pieces };
                (State::BitmapBarrier, Some(write))
            }
            State::BitmapBarrier => (State::ParentEntries, Some(MergeStep::Barrier(Side::Parent))),
            State::ParentEntries => {
                let pieces = self.parent_entries();
                if pieces.is_empty() {
                    (State::ChildEntries, None)
                } else {
                    let write = MergeStep::Write { side: Side::Parent, pieces };
                    (State::ParentBarrier, Some(write))
                }
            }
            State::ParentBarrier => (State::ChildEntries, Some(MergeStep::Barrier(Side::Parent))),
            State::ChildEntries => {
                let pieces = self.child_entries();
                (State::ChildBarrier, Some(MergeStep::Write { side: Side::Child, pieces }))
            }
            State::ChildBarrier => (State::FreeSpace, Some(MergeStep::Barrier(Side::Child))),
            State::FreeSpace => {
                let blocks = self.batch.blocks.iter();
                let ranges = blocks.map(|(_, entry)| whole_block(*entry)).collect();
                (State::Report, Some(MergeStep::Free(ranges)))
            }
            State::Report => {
                let moved = self.batch.blocks.len() as u64;
                self.progress.blocks = self.progress.blocks.saturating_add(moved);
                (State::NextBatch, Some(MergeStep::Moved(self.progress)))
            }
            State::Over => (State::Over, Some(MergeStep::Done(self.progress))),
        };
        self.state = next;
        Ok(step)
    }

    fn next_batch(&mut self) -> (State, Option<MergeStep>) {
        if self.left.is_empty() {
            return (State::Over, None);
        }
        let mut blocks = Vec::with_capacity(BATCH);
        while blocks.len() < BATCH
            && let Some(block) = self.left.pop()
        {
            if let Some(entry) = entry(&self.child_bat, block) {
                blocks.push((block, entry));
            }
        }
        self.batch = Batch { blocks, ..Batch::default() };
        (State::ChildBitmap(0), None)
    }

    fn child_bitmap(&mut self, index: usize, bytes: Option<Vec<u8>>) -> (State, Option<MergeStep>) {
        if let Some(bytes) = bytes {
            self.batch.child_bits.push(bitmap_in(&bytes));
            return (State::ChildBitmap(index.saturating_add(1)), None);
        }
        match self.batch.blocks.get(index) {
            Some((_, at)) => (State::ChildBitmap(index), Some(read_bitmap(Side::Child, *at))),
            None => (State::ParentBitmap(0), None),
        }
    }

    /// Settles where block `index` goes in the parent, and what of it must be copied or zeroed.
    fn parent_bitmap(
        &mut self,
        index: usize,
        bytes: Option<Vec<u8>>,
    ) -> Result<(State, Option<MergeStep>)> {
        let Some((block, from)) = self.batch.blocks.get(index).copied() else {
            return Ok((State::Reserve, None));
        };
        let mut child_bits =
            self.batch.child_bits.get(index).cloned().unwrap_or_else(Bitmap::empty);
        // What lies past the disk's end belongs to nobody.
        let length = self.child.sectors_in(block);
        child_bits.clear_range(length, self.child.block_sectors.saturating_sub(length));
        let had = entry(&self.parent_bat, block);
        if had.is_some_and(|_| bytes.is_none()) {
            let read = had.map(|at| read_bitmap(Side::Parent, at));
            return Ok((State::ParentBitmap(index), read));
        }
        let before =
            had.map(|at| (at, bytes.map_or_else(Bitmap::empty, |bytes| bitmap_in(&bytes))));
        let data_to = if self.parent.kind == Kind::Fixed {
            let at = Sector(u64::from(block.0).saturating_mul(u64::from(self.child.block_sectors)));
            self.batch.parent_at.push((at, None));
            at
        } else if let Some((at, bits)) = before {
            self.batch.parent_at.push((at, Some(bits)));
            self.parent.data_at(at)
        } else if child_bits.is_empty() {
            // Nothing of the block is the child's: the parent needs no block for it.
            self.batch.parent_at.push((Sector(0), None));
            Sector(0)
        } else {
            let at = self.free.take();
            if at.plus(BLOCK_STRIDE_SECTORS).0 >= u64::from(u32::MAX) {
                return Err(FormatError::Unsupported(
                    "the parent's file would grow past 2 TiB, which the format cannot address"
                        .into(),
                ));
            }
            let (start, length) = whole_block(at);
            self.batch.reserve.push((start, length));
            self.batch.parent_at.push((at, None));
            self.parent.data_at(at)
        };
        let new = had.is_none() && self.parent.kind != Kind::Fixed && !child_bits.is_empty();
        for (first, length, set) in child_bits.runs() {
            let to = data_to.plus(u64::from(first));
            let len = SectorCount(u64::from(length));
            if set {
                let from = self.child.data_at(from).plus(u64::from(first));
                self.batch.copies.push(Copy { from, to, len });
                self.progress.bytes = self.progress.bytes.saturating_add(len.bytes());
            } else if new {
                self.batch.zero.push((to, len));
            }
        }
        if let Some(bits) = self.batch.child_bits.get_mut(index) {
            *bits = child_bits;
        }
        Ok((State::ParentBitmap(index.saturating_add(1)), None))
    }

    /// The metadata pages of the batch's blocks in the parent: in a dynamic layer all ones, in a
    /// differencing one what either file owned.
    fn bitmap_pages(&self) -> Vec<(Sector, Vec<u8>)> {
        let batch = self.batch.parent_at.iter().zip(&self.batch.child_bits);
        batch
            .filter(|((at, _), _)| *at != Sector(0))
            .map(|((at, before), child)| {
                let mut bits = child.clone();
                if let Some(before) = before {
                    bits.union(before);
                }
                if self.parent.kind == Kind::Dynamic {
                    bits = Bitmap::full();
                }
                let mut page = vec![0; usize::try_from(PAGE.saturating_sub(SECTOR)).unwrap_or(0)];
                page.extend_from_slice(bits.as_bytes());
                (whole_block(*at).0, page)
            })
            .collect()
    }

    fn parent_entries(&mut self) -> Vec<(Sector, Vec<u8>)> {
        let mut changed = Vec::new();
        for ((block, _), (at, before)) in self.batch.blocks.iter().zip(&self.batch.parent_at) {
            if before.is_none() && *at != Sector(0) {
                set(&mut self.parent_bat, *block, Some(*at));
                changed.push(*block);
            }
        }
        bat_pages(&self.parent, &self.parent_bat, &changed)
    }

    fn child_entries(&mut self) -> Vec<(Sector, Vec<u8>)> {
        let changed: Vec<_> = self.batch.blocks.iter().map(|(block, _)| *block).collect();
        for block in &changed {
            set(&mut self.child_bat, *block, None);
        }
        bat_pages(&self.child, &self.child_bat, &changed)
    }
}

/// Bytes by which the parent may grow at most while a child with `allocated` blocks is merged into
/// it: what must be free before the start (rule L5).
#[must_use]
pub fn worst_case_growth(parent: Kind, allocated: u64) -> u64 {
    match parent {
        Kind::Fixed => 0,
        Kind::Dynamic | Kind::Differencing => {
            allocated.saturating_mul(BLOCK_STRIDE_SECTORS).saturating_mul(SECTOR)
        }
    }
}

/// Where new blocks of a file may stand: the gaps between its blocks, then its end.
#[derive(Debug, Default)]
struct Free {
    /// Starts of the pages of the blocks that are there, in order.
    taken: std::collections::VecDeque<Sector>,
    /// Nothing before this is free.
    at: Sector,
}

impl Free {
    fn of(image: &LayerImage, table: &[Option<Sector>]) -> Result<Self> {
        let mut taken: Vec<_> = allocated(table).map(|(_, entry)| whole_block(entry).0).collect();
        taken.sort_unstable();
        for (left, right) in taken.iter().zip(taken.iter().skip(1)) {
            if left.plus(BLOCK_STRIDE_SECTORS) > *right {
                return Err(FormatError::corrupt(
                    "BAT",
                    "an entry",
                    format!("{}, within another block", right.0),
                    "blocks that do not overlap",
                ));
            }
        }
        Ok(Self { taken: taken.into(), at: image.first_free.page_up() })
    }

    /// The BAT entry of the next free place.
    fn take(&mut self) -> Sector {
        while let Some(next) = self.taken.front().copied() {
            if self.at.plus(BLOCK_STRIDE_SECTORS) <= next {
                break;
            }
            self.at = self.at.max(next.plus(BLOCK_STRIDE_SECTORS));
            self.taken.pop_front();
        }
        let start = self.at;
        self.at = start.plus(BLOCK_STRIDE_SECTORS);
        start.plus(METADATA_SECTORS.saturating_sub(1))
    }
}

/// A block with its metadata page, from its BAT entry.
fn whole_block(entry: Sector) -> (Sector, SectorCount) {
    let start = entry.0.saturating_sub(METADATA_SECTORS.saturating_sub(1));
    (Sector(start), SectorCount(BLOCK_STRIDE_SECTORS))
}

fn read_bat(side: Side, image: &LayerImage) -> MergeStep {
    let len = crate::create::bat_pages_bytes(image);
    MergeStep::Read { side, at: image.bat_at.bytes(), len }
}

/// The whole metadata page of a block.
fn read_bitmap(side: Side, entry: Sector) -> MergeStep {
    MergeStep::Read { side, at: whole_block(entry).0.bytes(), len: PAGE }
}

fn bitmap_in(page: &[u8]) -> Bitmap {
    page.last_chunk::<512>().map_or_else(Bitmap::empty, Bitmap::from_bytes)
}

fn load(image: &LayerImage, file_len: u64, bytes: &[u8]) -> Result<Vec<Option<Sector>>> {
    let entries = usize::try_from(image.bat_entries).unwrap_or(usize::MAX);
    let table: Vec<_> = bat::decode(bytes).take(entries).collect();
    if table.len() != entries {
        let wanted = crate::create::bat_pages_bytes(image);
        let at = image.bat_at.bytes();
        return Err(FormatError::ShortRead { at, wanted, got: bytes.len() as u64 });
    }
    for (block, entry) in allocated(&table) {
        if !image.block_fits(entry, file_len) || !image.is_aligned(entry) {
            return Err(FormatError::corrupt(
                "BAT",
                "an entry",
                format!("{} for {block:?}", entry.0),
                "a block between the headers and the file's end, its data on a 4 KiB boundary",
            ));
        }
    }
    Ok(table)
}

fn allocated(table: &[Option<Sector>]) -> impl Iterator<Item = (BlockIndex, Sector)> + '_ {
    (0u32..).zip(table).filter_map(|(block, entry)| Some((BlockIndex(block), (*entry)?)))
}

fn entry(table: &[Option<Sector>], block: BlockIndex) -> Option<Sector> {
    table.get(block.0 as usize).copied().flatten()
}

fn set(table: &mut [Option<Sector>], block: BlockIndex, entry: Option<Sector>) {
    if let Some(slot) = table.get_mut(block.0 as usize) {
        *slot = entry;
    }
}

/// The BAT pages that hold the entries of `blocks`, complete.
fn bat_pages(
    image: &LayerImage,
    table: &[Option<Sector>],
    blocks: &[BlockIndex],
) -> Vec<(Sector, Vec<u8>)> {
    let per_page = PAGE / bat::ENTRY;
    let mut pages = BTreeMap::new();
    for block in blocks {
        let page = u64::from(block.0) / per_page;
        pages.entry(page).or_insert_with(|| {
            let first = usize::try_from(page.saturating_mul(per_page)).unwrap_or(usize::MAX);
            (first..)
                .take(usize::try_from(per_page).unwrap_or(0))
                .flat_map(|index| bat::encode_entry(table.get(index).copied().flatten()))
                .collect::<Vec<u8>>()
        });
    }
    let at = |page: u64| image.bat_at.plus(page.saturating_mul(PAGE_SECTORS));
    pages.into_iter().map(|(page, bytes)| (at(page), bytes)).collect()
}
