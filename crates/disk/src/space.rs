//! Space inside the leaf's file: which places for blocks are taken, ready, free or being freed.
//!
//! ```text
//!   file   | headers, BAT | place | place | ...            place = 4 KiB metadata page + 2 MiB
//!   life   fresh ──reserve──► ready ──take──► taken ──drop──► freeing ──clear──► free ──reserve──► ready
//! ```
//!
//! A ready place has its space on the store (so a write there cannot run out of it) and is zero. A
//! place becomes free only after the metadata that dropped it is durable, every request that may have
//! resolved to it has ended, and it was cleared (invariant 8, rule D6).

use std::collections::VecDeque;

use image::{
    BLOCK_BYTES, BLOCK_STRIDE_SECTORS, LayerImage, METADATA_SECTORS, PAGE, PAGE_SECTORS, SECTOR,
    Sector,
};
use io::{ByteCount, ByteRange};

use crate::runs::{Run, Runs};

/// A place in the leaf's file, by its first sector: the metadata page, which starts on a page boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place(Sector);

/// How many places are reserved ahead at first, and at most.
const FIRST_BATCH: u32 = 2;
const LARGEST_BATCH: u32 = 64;

/// Where places end at the latest: BAT entries are 32-bit sector numbers.
const LIMIT: Sector = Sector(1 << 32);

impl Place {
    /// The place whose bitmap stands at `bitmap`, if bitmaps of ours can stand there.
    pub(crate) fn at_bitmap(bitmap: Sector) -> Option<Self> {
        let start = Sector(bitmap.0.checked_sub(METADATA_SECTORS - 1)?);
        start.is_page_aligned().then_some(Self(start))
    }

    /// The place that starts at the file's page `page`.
    pub(crate) fn at_page(page: u32) -> Self {
        Self(Sector(u64::from(page) * PAGE_SECTORS))
    }

    /// The number of its first page in the file: a BAT cannot name one that does not fit.
    pub(crate) fn page(self) -> u32 {
        u32::try_from(self.0.0 / PAGE_SECTORS).expect("BAT entries are 32-bit sectors")
    }

    /// The sector of the place's bitmap: what its BAT entry says.
    pub(crate) fn bitmap(self) -> Sector {
        self.0.plus(METADATA_SECTORS - 1)
    }

    /// The first sector of its data.
    pub(crate) fn data(self) -> Sector {
        self.0.plus(METADATA_SECTORS)
    }

    /// Its first sector, and with it its metadata page.
    pub(crate) fn start(self) -> Sector {
        self.0
    }

    /// The first sector after it.
    pub(crate) fn end(self) -> Sector {
        self.0.plus(BLOCK_STRIDE_SECTORS)
    }

    /// The place that stands `count` places behind it, each right behind the one before.
    pub(crate) fn nth(self, count: u32) -> Self {
        Self(self.0.plus(u64::from(count) * BLOCK_STRIDE_SECTORS))
    }

    /// How many places, each right behind the one before, start below `end`, with this one as the first.
    pub(crate) fn count_below(self, end: Sector) -> u32 {
        let sectors = end.0.saturating_sub(self.0.0);
        u32::try_from(sectors.div_ceil(BLOCK_STRIDE_SECTORS)).unwrap_or(u32::MAX)
    }

    /// Its bytes, metadata page and data.
    pub(crate) fn bytes(self) -> ByteRange {
        ByteRange::new(self.0.bytes(), PAGE + BLOCK_BYTES)
    }

    /// The first of these places, in their order, that shares a sector with the one before it.
    pub(crate) fn overlap(sorted: impl IntoIterator<Item = Self>) -> Option<usize> {
        let mut end = Sector(0);
        sorted.into_iter().position(|place| place.0 < std::mem::replace(&mut end, place.end()))
    }
}

/// A place that was dropped, and the ticket below which requests may still use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) place: Place,
    pub(crate) bound: u64,
}

/// The space of one leaf.
#[derive(Debug)]
pub(crate) struct Space {
    /// Where places at the end start that were never used.
    fresh: Sector,
    ready: VecDeque<Place>,
    free: Runs,
    /// Dropped since the last freeze of the metadata.
    dropped: Vec<Dropped>,
    batch: u32,
}

/// A run of places that a refill is about to reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    from: Place,
    count: u32,
    /// Beyond the used end of the file, rather than in a hole of it.
    at_end: bool,
}

impl Batch {
    /// The first places of the batch that end within a file of `len`.
    pub(crate) fn within(self, len: ByteCount) -> Option<Self> {
        let stride = BLOCK_STRIDE_SECTORS * SECTOR;
        let fit = len.0.saturating_sub(self.from.0.bytes()) / stride;
        let count = self.count.min(u32::try_from(fit).unwrap_or(u32::MAX));
        (count > 0).then_some(Self { count, ..self })
    }

    /// The bytes of its places.
    pub(crate) fn bytes(self) -> ByteRange {
        let stride = self.from.bytes().len.0;
        ByteRange::new(self.from.0.bytes(), u64::from(self.count) * stride)
    }
}

impl Space {
    /// The space of a layer of which `taken` places are in use, in their order.
    pub(crate) fn new(image: &LayerImage, taken: &[Place]) -> Self {
        let bat_end = image.bat_at.plus(image.bat_bytes().div_ceil(SECTOR)).page_up();
        // a BAT that grew stands behind the first blocks
        let moved = taken.first().is_some_and(|p| p.0 < image.bat_at);
        let mut low =
            if moved { taken.first().map_or(image.first_free, |p| p.0) } else { image.first_free };
        let mut free = Runs::default();
        for place in taken {
            if moved && low <= image.bat_at && image.bat_at < place.0 {
                fill(&mut free, low, image.bat_at);
                low = low.max(bat_end);
            }
            fill(&mut free, low, place.0);
            low = low.max(place.end());
        }
        let fresh = low.max(image.first_free).page_up();
        Self { fresh, ready: VecDeque::new(), free, dropped: Vec::new(), batch: FIRST_BATCH }
    }

    /// Where the file ends when it is closed: after the last place that was ever used.
    pub(crate) fn end(&self) -> Sector {
        self.fresh
    }

    /// A ready place.
    pub(crate) fn take(&mut self) -> Option<Place> {
        self.ready.pop_front()
    }

    /// Whether so few are ready that more should be reserved in the background.
    pub(crate) fn is_low(&self) -> bool {
        self.ready.len() < self.batch as usize / 2
    }

    /// What to reserve next: a run of free places, or of fresh ones at the end. None when nothing is
    /// free and the file is as long as a BAT can say.
    pub(crate) fn next_batch(&self) -> Option<Batch> {
        let Some((from, run)) = self.free.first() else {
            let left = LIMIT.0.saturating_sub(self.fresh.0) / BLOCK_STRIDE_SECTORS;
            let count = self.batch.min(u32::try_from(left).unwrap_or(u32::MAX));
            return (count > 0).then_some(Batch { from: Place(self.fresh), count, at_end: true });
        };
        Some(Batch { from, count: run.min(self.batch), at_end: false })
    }

    /// A batch was reserved.
    pub(crate) fn reserved(&mut self, batch: Batch) {
        self.free.remove(batch.from, batch.count);
        self.ready.extend((0..batch.count).map(|number| batch.from.nth(number)));
        if batch.at_end {
            self.fresh = self.fresh.max(batch.from.nth(batch.count).0);
            self.batch = (self.batch * 2).min(LARGEST_BATCH);
        }
    }

    /// A batch could not be had: the next smaller one, or None when it was a single place.
    pub(crate) fn smaller(&mut self, batch: Batch) -> Option<Batch> {
        self.batch = (batch.count / 2).max(1);
        (batch.count > 1).then_some(Batch { count: batch.count / 2, ..batch })
    }

    /// A place was dropped from the metadata in memory.
    pub(crate) fn drop_place(&mut self, dropped: Dropped) {
        self.dropped.push(dropped);
    }

    /// Whether places were dropped since the last freeze of the metadata.
    pub(crate) fn has_dropped(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// What was dropped up to now; a freeze of the metadata takes it along.
    pub(crate) fn take_dropped(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.dropped)
    }

    /// A dropped place is zero and nobody's.
    pub(crate) fn freed(&mut self, place: Place) {
        self.free.insert(place, 1);
    }

    /// Takes all ready places away. The file may end at `end`; what lies before it must be cleared.
    pub(crate) fn give_back(&mut self, end: Sector) -> Vec<Place> {
        self.fresh = end;
        self.free.cut(end);
        let inside: Vec<Place> = self.ready.drain(..).filter(|p| p.0 < end).collect();
        for place in &inside {
            self.free.insert(*place, 1);
        }
        inside
    }

    /// Ranges of the file that no block owns, below the end: after an open without the log they may
    /// hold anything (rule D5).
    pub(crate) fn unowned(&self) -> Vec<ByteRange> {
        let bytes = |(from, count): Run| {
            ByteRange::new(from.0.bytes(), u64::from(count) * BLOCK_STRIDE_SECTORS * SECTOR)
        };
        self.free.iter().map(bytes).collect()
    }
}

/// Cuts the gap from `low` to `high` into places; a rest that holds none stays unused.
fn fill(free: &mut Runs, low: Sector, high: Sector) {
    let places = high.0.saturating_sub(low.0) / BLOCK_STRIDE_SECTORS;
    free.insert(Place(low), u32::try_from(places).unwrap_or(u32::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Kind, SectorCount, Uuid, create};

    fn image() -> LayerImage {
        let now = image::Timestamp::default();
        let size = SectorCount(1 << 21);
        let image = create::dynamic(Uuid::from_u128(1), size, now).unwrap().image;
        assert_eq!(image.kind, Kind::Dynamic);
        image
    }

    fn place(number: u64) -> Place {
        Place(image().first_free.plus(number * BLOCK_STRIDE_SECTORS))
    }

    #[test]
    fn holes_are_used_before_the_file_grows() {
        let taken = [place(0), place(3)];
        let mut space = Space::new(&image(), &taken);
        assert_eq!(space.unowned(), [ByteRange::new(place(1).0.bytes(), 2 * 4104 * 512)]);
        let batch = space.next_batch().unwrap();
        assert_eq!(batch, Batch { from: place(1), count: 2, at_end: false });
        space.reserved(batch);
        assert_eq!(space.next_batch(), Some(Batch { from: place(4), count: 2, at_end: true }));
        assert_eq!(
            (space.take(), space.take(), space.take()),
            (Some(place(1)), Some(place(2)), None)
        );
    }

    #[test]
    fn a_bat_that_moved_behind_blocks_is_no_free_space() {
        let taken = [place(0)];
        let mut moved = image();
        moved.bat_at = place(1).0;
        moved.first_free = moved.bat_at.plus(8);
        let space = Space::new(&moved, &taken);
        assert_eq!((space.unowned(), space.end()), (vec![], moved.first_free));
        let later = Place(moved.first_free.plus(BLOCK_STRIDE_SECTORS));
        let space = Space::new(&moved, &[place(0), later]);
        assert_eq!(space.unowned(), [Place(moved.first_free).bytes()]);
    }

    #[test]
    fn a_refused_batch_shrinks_to_one_place_and_then_says_so() {
        let mut space = Space::new(&image(), &[]);
        let first = space.next_batch().unwrap();
        space.reserved(first);
        let mut batch = space.next_batch().unwrap();
        assert_eq!(batch.count, 4);
        batch = space.smaller(batch).unwrap();
        batch = space.smaller(batch).unwrap();
        assert_eq!((batch.count, space.smaller(batch)), (1, None));
    }

    #[test]
    fn no_place_ends_where_a_table_cannot_point_to() {
        let mut space = Space::new(&image(), &[]);
        space.fresh = Sector(LIMIT.0 - BLOCK_STRIDE_SECTORS - 8);
        let last = space.next_batch().unwrap();
        assert_eq!((last.count, last.from.end()), (1, Sector(LIMIT.0 - 8)));
        assert!(last.from.bitmap().0 < u64::from(image::bat::UNALLOCATED));
        space.reserved(last);
        assert_eq!(space.next_batch(), None);
        // what was freed below is a place again
        space.freed(place(0));
        assert_eq!(space.next_batch(), Some(Batch { from: place(0), count: 1, at_end: false }));
    }

    #[test]
    fn what_a_file_has_already_need_not_be_asked_for() {
        let space = Space::new(&image(), &[]);
        let batch = space.next_batch().unwrap();
        assert_eq!(batch.count, 2);
        let len = |places: u64, more: u64| ByteCount(place(places).0.bytes() + more);
        assert_eq!(batch.within(len(9, 0)), Some(batch));
        assert_eq!(batch.within(len(2, 0)), Some(batch));
        assert_eq!(batch.within(ByteCount(len(2, 0).0 - 1)).unwrap().count, 1);
        assert_eq!(batch.within(len(0, 512)), None);
        assert_eq!(batch.within(ByteCount::ZERO), None);
    }

    #[test]
    fn places_and_bitmap_sectors_convert_both_ways() {
        for number in [0, 1, 77] {
            let bitmap = place(number).bitmap();
            assert_eq!(Place::at_bitmap(bitmap), Some(place(number)));
            assert_eq!(place(number).data(), bitmap.plus(1));
            assert_eq!(Place::at_bitmap(bitmap.plus(1)), None);
        }
        assert_eq!(Place::at_bitmap(Sector(3)), None);
        assert_eq!(Place::at_page(place(77).page()), place(77));
        assert_eq!(Place::overlap([place(1), place(2), Place(place(2).0.plus(8))]), Some(2));
        assert_eq!(Place::overlap([place(1), place(1)]), Some(1));
        assert_eq!(Place::overlap([place(1), place(2), place(3)]), None);
    }

    #[test]
    fn closing_cuts_what_lies_behind_the_last_block() {
        let taken = [place(0), place(2)];
        let mut space = Space::new(&image(), &taken);
        space.reserved(space.next_batch().unwrap());
        space.reserved(space.next_batch().unwrap());
        assert_eq!(space.give_back(place(2).end()), [place(1)]);
        assert_eq!(space.end(), place(3).0);
    }
}
