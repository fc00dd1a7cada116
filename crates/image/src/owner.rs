//! The owner map: which layer of a chain holds each sector of the virtual disk.
//!
//! Reads ask this map, never the chain, so their cost does not grow with the chain's length
//! (invariant 10). Per 2 MiB block there is one word of five bytes, which is what a disk costs at least
//! in memory; only blocks whose sectors come from several layers carry a table with one byte a sector,
//! built on demand:
//!
//! ```text
//!   word    byte 0          bytes 1..4
//!           0 unknown       -                                nobody has looked yet: the bitmaps down the
//!                                                            chain must be read
//!           1 zero          -                                no layer holds anything here
//!           2 mixed         index of a table                 {sources, owner of each sector}
//!           3 + slot        file sector of the block's data  one layer holds every sector
//! ```
//!
//! Words are grouped in chunks that exist only once a block of theirs was looked at, so a 2 TiB disk
//! of which little is touched costs little. Slots are stable ids of layers: a snapshot adds one,
//! a merge renumbers nothing.
//!
//! The map of the leaf's own sectors doubles as the leaf's sector bitmaps: a bit is set exactly when
//! the leaf owns the sector here ([`OwnerMap::bitmap_of`]). A word changes only after the data it
//! names is written, so what the map says is what may become durable (rule D1).
//!
//! Tables are the part of the map that grows with what a guest does. A block whose table can be built
//! again from the layers' bitmaps may be forgotten: it is unknown then ([`OwnerMap::evict`]).

use std::cell::Cell;

use crate::{BLOCK_SECTORS, Bitmap, BlockIndex, Sector};

const SECTORS: usize = BLOCK_SECTORS as usize;
/// Words a chunk: 5 KiB of memory for 2 GiB of disk.
const CHUNK: usize = 1024;

/// What is known of a block, as it is kept.
type Word = [u8; 5];
const UNKNOWN: Word = [0; 5];
const ZERO: Word = [1, 0, 0, 0, 0];
const MIXED: u8 = 2;
const WHOLE: u8 = 3;

/// Stable number of a layer in an open chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u16);

/// A layer's block: which layer, and where its data starts in that layer's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The layer.
    pub slot: Slot,
    /// File sector of the block's first data sector (after the bitmap); below 2^32.
    pub data: Sector,
}

/// What the map knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Not looked at yet.
    Unknown,
    /// No layer holds anything: reads as zero.
    Zero,
    /// One layer holds every sector.
    Whole(Source),
    /// Several layers, or a layer and zeros.
    Mixed,
}

/// Where a run of sectors is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: reads as zero.
    Zero,
    /// In a layer's file, from this sector on.
    Data {
        /// The layer.
        slot: Slot,
        /// File sector of the run's first sector.
        at: Sector,
    },
}

/// A run of sectors of a block that is found in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First sector within the block.
    pub from: u32,
    /// Number of sectors, at least 1.
    pub len: u32,
    /// Where it is.
    pub place: Place,
}

/// One layer's part of a block, given when a block is first resolved.
#[derive(Clone, Copy, Debug)]
pub struct LayerBlock<'a> {
    /// Which layer and where.
    pub source: Source,
    /// The sectors it owns; None = all of them (a dynamic base layer, where a clear bit is zero
    /// on disk by rule D9).
    pub owned: Option<&'a Bitmap>,
    /// Sectors of the block from this one on are not visible through the layers above, or lie
    /// beyond this layer's end (rule D8); [`BLOCK_SECTORS`] when all are visible.
    pub visible: u32,
}

/// Owner of each sector of a mixed block: 0 = zero, n = `sources[n - 1]`.
#[derive(Clone, Debug)]
struct Table {
    block: BlockIndex,
    /// Since the search for one to evict came by.
    used: Cell<bool>,
    sources: Vec<Source>,
    owners: Box<[u8; SECTORS]>,
}

impl Table {
    fn zero(block: BlockIndex) -> Self {
        let owners = Box::new([0; SECTORS]);
        Self { block, used: Cell::new(false), sources: Vec::new(), owners }
    }

    /// Every sector is `source`'s.
    fn of(block: BlockIndex, source: Source) -> Self {
        let mut table = Self::zero(block);
        let id = table.id_of(source);
        table.owners.fill(id);
        table
    }

    /// The byte that stands for `source`.
    ///
    /// # Panics
    /// If 255 other layers own sectors of the block: a chain has far fewer.
    fn id_of(&mut self, source: Source) -> u8 {
        let at = self.sources.iter().position(|s| *s == source).unwrap_or_else(|| {
            if self.sources.len() >= usize::from(u8::MAX) {
                // layers that owned sectors once, and under later snapshots own none any more
                self.forget_hidden();
            }
            self.sources.push(source);
            self.sources.len().saturating_sub(1)
        });
        let id = u8::try_from(at.saturating_add(1));
        assert!(id.is_ok(), "more than 255 layers own sectors of {:?}", self.block);
        id.unwrap_or(u8::MAX)
    }

    /// Takes out the sources that own no sector, and numbers the others anew.
    fn forget_hidden(&mut self) {
        let mut seen = [false; 256];
        for owner in self.owners.iter() {
            if let Some(seen) = seen.get_mut(usize::from(*owner)) {
                *seen = true;
            }
        }
        let mut ids = [0u8; 256];
        let mut next = 1u8;
        let mut kept = Vec::new();
        for ((id, seen), source) in ids.iter_mut().zip(seen).skip(1).zip(&self.sources) {
            if seen {
                *id = next;
                next = next.saturating_add(1);
                kept.push(*source);
            }
        }
        for owner in self.owners.iter_mut() {
            *owner = ids.get(usize::from(*owner)).copied().unwrap_or(0);
        }
        self.sources = kept;
    }

    fn place(&self, sector: u32, id: u8) -> Place {
        match usize::from(id).checked_sub(1).and_then(|i| self.sources.get(i)) {
            None => Place::Zero,
            Some(source) => Place::Data {
                slot: source.slot,
                at: Sector(source.data.0.saturating_add(u64::from(sector))),
            },
        }
    }

    /// The single state of all sectors, if there is one.
    fn uniform(&self) -> Option<BlockState> {
        let first = *self.owners.first()?;
        if self.owners.iter().any(|o| *o != first) {
            return None;
        }
        Some(match usize::from(first).checked_sub(1).and_then(|i| self.sources.get(i)) {
            None => BlockState::Zero,
            Some(source) => BlockState::Whole(*source),
        })
    }
}

/// The map of one open chain.
#[derive(Debug)]
pub struct OwnerMap {
    chunks: Vec<Option<Box<[Word; CHUNK]>>>,
    tables: Vec<Option<Table>>,
    free_tables: Vec<u32>,
    /// Where the search for a table to evict goes on.
    hand: usize,
    blocks: u32,
}

impl OwnerMap {
    /// A map of `blocks` unknown blocks.
    #[must_use]
    pub fn new(blocks: u32) -> Self {
        let mut map = Self {
            chunks: Vec::new(),
            tables: Vec::new(),
            free_tables: Vec::new(),
            hand: 0,
            blocks: 0,
        };
        map.grow(blocks);
        map
    }

    /// Makes room for `blocks` blocks; new ones are unknown.
    pub fn grow(&mut self, blocks: u32) {
        self.blocks = self.blocks.max(blocks);
        self.chunks.resize_with((self.blocks as usize).div_ceil(CHUNK), || None);
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Bytes of memory that the map takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let chunks = self
            .chunks
            .iter()
            .flatten()
            .count()
            .saturating_mul(CHUNK.saturating_mul(size_of::<Word>()));
        let tables = self.tables.iter().flatten().map(|table| {
            let sources = table.sources.capacity().saturating_mul(size_of::<Source>());
            SECTORS.saturating_add(sources)
        });
        chunks.saturating_add(tables.sum())
    }

    /// How many blocks have a table.
    #[must_use]
    pub fn mixed(&self) -> usize {
        self.tables.len().saturating_sub(self.free_tables.len())
    }

    /// Makes a mixed block unknown that is not `pinned`: what is pinned cannot be known again from the
    /// layers' files. Looks at `steps` tables for one that was not used lately, and takes another where
    /// there is none; false if all are pinned.
    pub fn evict(&mut self, steps: usize, pinned: impl Fn(BlockIndex) -> bool) -> bool {
        let (mut left, mut second) = (steps, None);
        for _ in 0..self.tables.len() {
            let at = self.hand;
            self.hand = at.saturating_add(1);
            if self.hand >= self.tables.len() {
                self.hand = 0;
            }
            let Some(Some(table)) = self.tables.get(at) else { continue };
            left = left.saturating_sub(1);
            let used = table.used.replace(false);
            if !pinned(table.block) {
                if !used {
                    let block = table.block;
                    self.forget(block);
                    return true;
                }
                second.get_or_insert(table.block);
            }
            if left == 0 {
                break;
            }
        }
        if let Some(block) = second {
            self.forget(block);
        }
        second.is_some()
    }

    fn word(&self, block: BlockIndex) -> Word {
        let at = block.0 as usize;
        self.chunks
            .get(at / CHUNK)
            .and_then(Option::as_ref)
            .and_then(|c| c.get(at % CHUNK))
            .copied()
            .unwrap_or(UNKNOWN)
    }

    fn set_word(&mut self, block: BlockIndex, word: Word) {
        let at = block.0 as usize;
        if let Some(chunk) = self.chunks.get_mut(at / CHUNK) {
            let chunk = chunk.get_or_insert_with(|| Box::new([UNKNOWN; CHUNK]));
            if let Some(place) = chunk.get_mut(at % CHUNK) {
                *place = word;
            }
        }
    }

    /// What is known of `block`.
    #[must_use]
    pub fn state(&self, block: BlockIndex) -> BlockState {
        match self.word(block) {
            UNKNOWN => BlockState::Unknown,
            ZERO => BlockState::Zero,
            [MIXED, ..] => BlockState::Mixed,
            word => BlockState::Whole(source_of(word)),
        }
    }

    fn table(&self, block: BlockIndex) -> Option<&Table> {
        let word = self.word(block);
        if word[0] != MIXED {
            return None;
        }
        let table = self.tables.get(number_of(word) as usize)?.as_ref()?;
        table.used.set(true);
        Some(table)
    }

    /// Takes a block's table out, whatever the block's state; unknown counts as zero.
    fn take_table(&mut self, block: BlockIndex) -> Table {
        match self.word(block) {
            UNKNOWN | ZERO => Table::zero(block),
            word if word[0] == MIXED => {
                let index = number_of(word);
                let taken = self.tables.get_mut(index as usize).and_then(Option::take);
                self.free_tables.push(index);
                taken.unwrap_or_else(|| Table::zero(block))
            }
            word => Table::of(block, source_of(word)),
        }
    }

    fn put_table(&mut self, block: BlockIndex, table: Table) {
        let uniform = match table.uniform() {
            Some(BlockState::Zero) => Some(ZERO),
            Some(BlockState::Whole(source)) => whole(source),
            _ => None,
        };
        if let Some(word) = uniform {
            self.set_word(block, word);
            return;
        }
        let index = self.free_tables.pop().unwrap_or_else(|| {
            self.tables.push(None);
            u32::try_from(self.tables.len().saturating_sub(1)).unwrap_or(u32::MAX)
        });
        if let Some(place) = self.tables.get_mut(index as usize) {
            *place = Some(table);
        }
        self.set_word(block, word_of(MIXED, index));
    }

    /// One layer holds every sector of the block.
    fn set_whole(&mut self, block: BlockIndex, source: Source) {
        self.forget(block);
        match whole(source) {
            Some(word) => self.set_word(block, word),
            None => self.put_table(block, Table::of(block, source)),
        }
    }

    /// Sets an unknown block from what the layers hold, topmost layer first.
    pub fn resolve<'a>(
        &mut self,
        block: BlockIndex,
        layers: impl IntoIterator<Item = LayerBlock<'a>>,
    ) {
        let mut table = Table::zero(block);
        for (at, layer) in layers.into_iter().enumerate() {
            let all = layer.owned.is_none_or(Bitmap::is_full);
            if at == 0 && all && layer.visible >= BLOCK_SECTORS {
                self.set_whole(block, layer.source);
                return;
            }
            let visible = layer.visible.min(BLOCK_SECTORS);
            let free = |sector: u32, owner: u8| {
                owner == 0 && layer.owned.is_none_or(|bits| bits.get(sector))
            };
            let mut owners = (0..visible).zip(table.owners.iter());
            if !owners.any(|(sector, owner)| free(sector, *owner)) {
                // Hidden by the layers above: it takes neither memory nor a number.
                continue;
            }
            let id = table.id_of(layer.source);
            for (sector, owner) in (0..visible).zip(table.owners.iter_mut()) {
                if free(sector, *owner) {
                    *owner = id;
                }
            }
        }
        table.sources.shrink_to_fit();
        self.forget(block);
        self.put_table(block, table);
    }

    /// Makes a block unknown again.
    pub fn forget(&mut self, block: BlockIndex) {
        if self.word(block)[0] == MIXED {
            let _table = self.take_table(block);
        }
        self.set_word(block, UNKNOWN);
    }

    /// `source` owns `len` sectors from `from` on.
    ///
    /// # Panics
    /// If the block is unknown: its other sectors would read as zero from then on.
    pub fn own(&mut self, block: BlockIndex, source: Source, from: u32, len: u32) {
        assert!(self.state(block) != BlockState::Unknown, "{block:?} gets an owner unseen");
        let end = from.saturating_add(len).min(BLOCK_SECTORS);
        if self.state(block) == BlockState::Whole(source) {
            return;
        }
        if from == 0 && end == BLOCK_SECTORS {
            self.set_whole(block, source);
            return;
        }
        let mut table = self.take_table(block);
        let id = table.id_of(source);
        if let Some(owners) = table.owners.get_mut(from as usize..end as usize) {
            owners.fill(id);
        }
        self.put_table(block, table);
    }

    /// No layer holds anything of the block any more.
    pub fn set_zero(&mut self, block: BlockIndex) {
        self.forget(block);
        self.set_word(block, ZERO);
    }

    /// Whether `slot` owns all of the `len` sectors from `from` on.
    #[must_use]
    pub fn owns(&self, block: BlockIndex, slot: Slot, from: u32, len: u32) -> bool {
        match self.state(block) {
            BlockState::Unknown | BlockState::Zero => false,
            BlockState::Whole(source) => source.slot == slot,
            BlockState::Mixed => self.table(block).is_some_and(|table| {
                let end = from.saturating_add(len);
                table.owners.get(from as usize..end as usize).is_some_and(|owners| {
                    owners.iter().all(|id| {
                        usize::from(*id)
                            .checked_sub(1)
                            .and_then(|i| table.sources.get(i))
                            .is_some_and(|s| s.slot == slot)
                    })
                })
            }),
        }
    }

    /// The run that starts at sector `from` of the block and ends before `end`, at the latest; None
    /// if the block is unknown or the range is empty.
    #[must_use]
    pub fn run_at(&self, block: BlockIndex, from: u32, end: u32) -> Option<Run> {
        let end = end.min(BLOCK_SECTORS);
        let len = end.checked_sub(from).filter(|len| *len > 0)?;
        match self.state(block) {
            BlockState::Unknown => None,
            BlockState::Zero => Some(Run { from, len, place: Place::Zero }),
            BlockState::Whole(source) => {
                let at = Sector(source.data.0.saturating_add(u64::from(from)));
                Some(Run { from, len, place: Place::Data { slot: source.slot, at } })
            }
            BlockState::Mixed => {
                let table = self.table(block)?;
                let owners = table.owners.get(from as usize..end as usize)?;
                let id = *owners.first()?;
                let same = owners.iter().take_while(|o| **o == id).count();
                let len = u32::try_from(same).unwrap_or(len);
                Some(Run { from, len, place: table.place(from, id) })
            }
        }
    }

    /// The sectors of the block that `slot` owns, as a bitmap for disk.
    ///
    /// # Panics
    /// If the block is unknown: an empty bitmap would give up what the layer holds.
    #[must_use]
    pub fn bitmap_of(&self, block: BlockIndex, slot: Slot) -> Bitmap {
        assert!(self.state(block) != BlockState::Unknown, "the bitmap of {block:?} was forgotten");
        let mut bitmap = Bitmap::empty();
        let mut from = 0;
        while let Some(run) = self.run_at(block, from, BLOCK_SECTORS) {
            if matches!(run.place, Place::Data { slot: owner, .. } if owner == slot) {
                bitmap.set_range(run.from, run.len);
            }
            from = run.from.saturating_add(run.len);
        }
        bitmap
    }
}

fn word_of(kind: u8, number: u32) -> Word {
    let [a, b, c, d] = number.to_le_bytes();
    [kind, a, b, c, d]
}

fn number_of([_, a, b, c, d]: Word) -> u32 {
    u32::from_le_bytes([a, b, c, d])
}

/// The word of a block that `source` holds whole. None for a layer far up a very long chain: such blocks
/// have tables.
fn whole(source: Source) -> Option<Word> {
    let kind = u8::try_from(source.slot.0).ok()?.checked_add(WHOLE)?;
    Some(word_of(kind, u32::try_from(source.data.0).ok()?))
}

fn source_of(word: Word) -> Source {
    let slot = Slot(u16::from(word[0].saturating_sub(WHOLE)));
    Source { slot, data: Sector(u64::from(number_of(word))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const B: BlockIndex = BlockIndex(7);

    fn source(slot: u16) -> Source {
        Source { slot: Slot(slot), data: Sector(1000 + u64::from(slot) * 10_000) }
    }

    #[test]
    fn a_base_block_is_whole_without_a_table() {
        let mut map = OwnerMap::new(2000);
        assert_eq!(map.state(B), BlockState::Unknown);
        assert_eq!(map.run_at(B, 0, 8), None);
        map.resolve(B, [LayerBlock { source: source(0), owned: None, visible: 4096 }]);
        assert_eq!(map.state(B), BlockState::Whole(source(0)));
        assert_eq!(
            map.run_at(B, 8, 16),
            Some(Run { from: 8, len: 8, place: Place::Data { slot: Slot(0), at: Sector(1008) } })
        );
    }

    #[test]
    fn sectors_beyond_a_shorter_layer_read_as_zero() {
        let mut map = OwnerMap::new(10);
        map.resolve(B, [LayerBlock { source: source(0), owned: None, visible: 100 }]);
        assert_eq!(map.run_at(B, 100, 4096).map(|r| (r.len, r.place)), Some((3996, Place::Zero)));
    }

    #[test]
    fn hidden_layers_take_neither_memory_nor_a_number() {
        let (mut low, mut next) = (Bitmap::empty(), Bitmap::empty());
        low.set_range(0, 1);
        next.set_range(1, 1);
        let mut map = OwnerMap::new(10);
        let hidden = (0..300).map(|slot| (slot, &low));
        map.resolve(
            B,
            hidden.chain([(300, &next)]).map(|(slot, owned)| LayerBlock {
                source: source(slot),
                owned: Some(owned),
                visible: 4096,
            }),
        );
        let below = Place::Data { slot: Slot(300), at: Sector(source(300).data.0 + 1) };
        assert_eq!(map.run_at(B, 1, 2).map(|run| run.place), Some(below));
        assert_eq!(map.memory(), CHUNK * size_of::<Word>() + SECTORS + 2 * size_of::<Source>());
    }

    #[test]
    fn owning_every_sector_gives_the_table_back() {
        let mut map = OwnerMap::new(10);
        map.resolve(B, [LayerBlock { source: source(0), owned: None, visible: 4096 }]);
        map.own(B, source(1), 0, 4000);
        assert_eq!(map.state(B), BlockState::Mixed);
        map.own(B, source(1), 4000, 96);
        assert_eq!(map.state(B), BlockState::Whole(source(1)));
        assert_eq!(map.tables.iter().flatten().count(), 0);
        map.set_zero(B);
        assert_eq!(map.state(B), BlockState::Zero);
    }

    #[test]
    fn layers_that_later_ones_hide_make_room_for_new_ones() {
        let mut map = OwnerMap::new(10);
        map.resolve(B, [LayerBlock { source: source(0), owned: None, visible: 4000 }]);
        // as many snapshots, each with a write to the same sectors and to one of its own
        for slot in 1..1000 {
            map.own(B, source(slot), 0, 8);
            map.own(B, source(slot), 8 + u32::from(slot % 200), 1);
        }
        let at = |sector: u32| match map.run_at(B, sector, sector + 1).map(|run| run.place) {
            Some(Place::Data { slot, at }) => {
                assert_eq!(at.0, source(slot.0).data.0 + u64::from(sector));
                Some(slot.0)
            }
            _ => None,
        };
        assert_eq!((at(0), at(300), at(4050)), (Some(999), Some(0), None));
        for sector in 0..200 {
            let last = (1..1000).rev().find(|slot| slot % 200 == sector);
            assert_eq!(at(8 + u32::from(sector)), last);
        }
    }

    #[test]
    fn a_layer_that_no_word_has_a_number_for_holds_blocks_all_the_same() {
        let mut map = OwnerMap::new(10);
        for slot in [252, 253, u16::MAX] {
            let layer = LayerBlock { source: source(slot), owned: None, visible: BLOCK_SECTORS };
            map.resolve(B, [layer]);
            let other = BlockIndex(4);
            map.set_zero(other);
            map.own(other, source(slot), 0, BLOCK_SECTORS);
            for block in [B, other] {
                assert!(map.owns(block, Slot(slot), 0, BLOCK_SECTORS));
                let run = map.run_at(block, 5, 900).unwrap();
                let at = source(slot).data.plus(5);
                assert_eq!((run.len, run.place), (895, Place::Data { slot: Slot(slot), at }));
            }
            assert_eq!(map.mixed(), if slot == 252 { 0 } else { 2 });
        }
        map.own(B, source(1), 0, BLOCK_SECTORS);
        assert_eq!(map.state(B), BlockState::Whole(source(1)));
        assert_eq!(map.mixed(), 1);
    }

    #[test]
    fn what_is_evicted_is_unknown_and_what_is_pinned_or_used_stays() {
        let mut map = OwnerMap::new(10);
        for block in 0..4 {
            let layer = LayerBlock { source: source(0), owned: None, visible: 100 };
            map.resolve(BlockIndex(block), [layer]);
        }
        map.set_zero(BlockIndex(4));
        assert_eq!(map.mixed(), 4);
        assert!(map.run_at(BlockIndex(1), 0, 8).is_some());
        let pinned = |block| block == BlockIndex(0);
        let mut gone = Vec::new();
        while map.evict(100, pinned) {
            let known = |b: &u32| map.state(BlockIndex(*b)) != BlockState::Unknown;
            gone.extend((0..5).filter(|b| !known(b) && !gone.contains(b)).collect::<Vec<_>>());
        }
        assert_eq!(gone, [2, 3, 1]);
        assert_eq!(map.state(BlockIndex(0)), BlockState::Mixed);
        assert_eq!(map.run_at(BlockIndex(1), 0, 8), None);
        assert_eq!(map.mixed(), 1);
    }

    #[test]
    fn a_guest_that_uses_what_is_looked_at_next_cannot_keep_all_of_it() {
        let mut map = OwnerMap::new(10_000);
        let resolve = |map: &mut OwnerMap, block: u32| {
            let layer = LayerBlock { source: source(0), owned: None, visible: 100 };
            map.resolve(BlockIndex(block), [layer]);
        };
        (0..100).for_each(|block| resolve(&mut map, block));
        for block in 100..1000 {
            for used in 0..block {
                let _run = map.run_at(BlockIndex(used), 0, 8);
            }
            resolve(&mut map, block);
            assert!(map.evict(64, |other| other == BlockIndex(block)));
            assert_eq!(map.mixed(), 100);
        }
        // gaps are no steps: 95 of 100 go, and then 4 of 5
        while map.mixed() > 5 {
            assert!(map.evict(1, |_| false));
        }
        let kept = (0..1000).map(BlockIndex).find(|b| map.state(*b) == BlockState::Mixed).unwrap();
        while map.mixed() > 1 {
            assert!(map.evict(1, |block| block == kept) || map.mixed() > 1);
        }
        assert!(!map.evict(1, |block| block == kept));
    }

    #[test]
    #[should_panic(expected = "was forgotten")]
    fn a_forgotten_block_has_no_bitmap() {
        let mut map = OwnerMap::new(10);
        map.resolve(B, [LayerBlock { source: source(0), owned: None, visible: 100 }]);
        assert!(map.evict(2, |_| false));
        drop(map.bitmap_of(B, Slot(0)));
    }

    #[test]
    #[should_panic(expected = "gets an owner unseen")]
    fn nothing_is_owned_in_an_unknown_block() {
        OwnerMap::new(10).own(B, source(1), 0, 8);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
        /// Against one owner per sector in a plain array.
        #[test]
        fn agrees_with_a_plain_array(
            layers in prop::collection::vec(prop::collection::vec((0u32..4096, 1u32..900), 0..4), 1..5),
            writes in prop::collection::vec((0u32..4096, 1u32..2000, 0u16..3), 0..8),
        ) {
            let mut plain = vec![None; 4096];
            let bitmaps: Vec<Bitmap> = layers.iter().map(|ranges| {
                let mut bitmap = Bitmap::empty();
                for (from, len) in ranges {
                    bitmap.set_range(*from, (*len).min(4096 - from));
                }
                bitmap
            }).collect();
            let mut map = OwnerMap::new(10);
            let sources: Vec<Source> = (0u16..).zip(&layers).map(|(i, _)| source(i)).collect();
            map.resolve(B, bitmaps.iter().zip(&sources).map(|(bits, source)| LayerBlock {
                source: *source, owned: Some(bits), visible: 4096 }));
            for (bits, source) in bitmaps.iter().zip(&sources) {
                for s in 0..4096u32 {
                    if plain[s as usize].is_none() && bits.get(s) { plain[s as usize] = Some(*source); }
                }
            }
            for (from, len, slot) in writes {
                let len = len.min(4096 - from);
                map.own(B, source(slot + 20), from, len);
                plain[from as usize..(from + len) as usize].fill(Some(source(slot + 20)));
            }
            let mut from = 0;
            while from < 4096 {
                let run = map.run_at(B, from, 4096).unwrap();
                for s in run.from..run.from + run.len {
                    let expected = plain[s as usize].map_or(Place::Zero, |o| Place::Data {
                        slot: o.slot, at: Sector(o.data.0 + u64::from(s)) });
                    let found = match run.place {
                        Place::Zero => Place::Zero,
                        Place::Data { slot, at } => Place::Data { slot, at: Sector(at.0 + u64::from(s - run.from)) },
                    };
                    prop_assert_eq!(found, expected);
                }
                from += run.len;
            }
            let bits = map.bitmap_of(B, Slot(20));
            for s in 0..4096u32 {
                prop_assert_eq!(bits.get(s), plain[s as usize].is_some_and(|o| o.slot == Slot(20)));
            }
        }
    }
}
