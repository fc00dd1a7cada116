//! Layers' BATs in memory. Of the leaf's, which changes: the 4 KiB pages that hold an entry. Of a
//! parent's, which never changes while the disk is open: which pages hold an entry, and the checksum
//! that each had when its entries were checked. Its pages are read when they are needed.

use std::num::NonZeroU32;

use image::{BlockIndex, PAGE, Sector, bat};

/// Entries on a page.
pub(crate) const ENTRIES: u32 = 1024;

type Page = Box<[u32; ENTRIES as usize]>;

/// The block table of one layer.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pages: Vec<Option<Page>>,
    allocated: u32,
}

impl Table {
    /// The sector of the block's bitmap.
    pub(crate) fn get(&self, block: BlockIndex) -> Option<Sector> {
        let page = self.pages.get((block.0 / ENTRIES) as usize)?.as_ref()?;
        let entry = page[(block.0 % ENTRIES) as usize];
        (entry != bat::UNALLOCATED).then_some(Sector(u64::from(entry)))
    }

    /// Gives the block a place.
    pub(crate) fn set(&mut self, block: BlockIndex, bitmap: Sector) {
        let entry = u32::try_from(bitmap.0).expect("files stay below 2 TiB");
        let at = (block.0 / ENTRIES) as usize;
        if self.pages.len() <= at {
            self.pages.resize_with(at + 1, || None);
        }
        let page =
            self.pages[at].get_or_insert_with(|| Box::new([bat::UNALLOCATED; ENTRIES as usize]));
        let old = std::mem::replace(&mut page[(block.0 % ENTRIES) as usize], entry);
        self.allocated += u32::from(old == bat::UNALLOCATED);
    }

    /// Takes the block's place away, and says what it was.
    pub(crate) fn remove(&mut self, block: BlockIndex) -> Option<Sector> {
        let old = self.get(block)?;
        let page = self.pages[(block.0 / ENTRIES) as usize].as_mut()?;
        page[(block.0 % ENTRIES) as usize] = bat::UNALLOCATED;
        self.allocated -= 1;
        Some(old)
    }

    /// How many blocks have a place.
    pub(crate) fn allocated(&self) -> u32 {
        self.allocated
    }

    /// Every block with a place, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (BlockIndex, Sector)> + '_ {
        (0u32..).zip(&self.pages).flat_map(|(number, page)| {
            page.iter().flat_map(move |page| {
                (0u32..).zip(page.iter()).filter(|(_, e)| **e != bat::UNALLOCATED).map(
                    move |(at, entry)| {
                        (BlockIndex(number * ENTRIES + at), Sector(u64::from(*entry)))
                    },
                )
            })
        })
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        self.pages.iter().flatten().count() * size_of::<[u32; ENTRIES as usize]>()
    }

    /// The page of the BAT as it stands on disk; entries past the table's end are unallocated too,
    /// as the padding of a BAT is.
    pub(crate) fn page_bytes(&self, number: u32) -> Vec<u8> {
        let len = usize::try_from(PAGE).expect("a page");
        match self.pages.get(number as usize).and_then(Option::as_ref) {
            None => vec![0xFF; len],
            Some(page) => page.iter().flat_map(|entry| entry.to_be_bytes()).collect(),
        }
    }
}

/// What is remembered of a parent's table.
#[derive(Debug)]
pub(crate) struct Summary {
    /// Of the table: what pads its last page is none of ours.
    entries: u32,
    /// Of each page, None where it holds no entry; up to the last page with one.
    sums: Vec<Option<NonZeroU32>>,
}

impl Summary {
    /// Of a table of `entries` without a single block.
    pub(crate) fn new(entries: u32) -> Self {
        Self { entries, sums: Vec::new() }
    }

    /// Of a table of `entries` that was the leaf's, and is on disk as it stands here.
    pub(crate) fn of(table: &Table, entries: u32) -> Self {
        let mut summary = Self::new(entries);
        for (number, page) in (0u32..).zip(&table.pages) {
            if page.as_ref().is_some_and(|p| p.iter().any(|entry| *entry != bat::UNALLOCATED)) {
                summary.note(number, &table.page_bytes(number));
            }
        }
        summary
    }

    /// Page `number`, which holds an entry, was checked.
    pub(crate) fn note(&mut self, number: u32, bytes: &[u8]) {
        let at = number as usize;
        if self.sums.len() <= at {
            self.sums.resize(at + 1, None);
        }
        self.sums[at] = Some(self.sum(number, bytes));
    }

    /// Whether page `number` holds an entry.
    pub(crate) fn has(&self, number: u32) -> bool {
        self.sums.get(number as usize).is_some_and(Option::is_some)
    }

    /// Whether `bytes` are what page `number` was when it was checked.
    pub(crate) fn matches(&self, number: u32, bytes: &[u8]) -> bool {
        self.sums.get(number as usize).copied().flatten() == Some(self.sum(number, bytes))
    }

    fn sum(&self, number: u32, bytes: &[u8]) -> NonZeroU32 {
        let entries = self.entries.saturating_sub(number.saturating_mul(ENTRIES)).min(ENTRIES);
        let len = bytes.len().min(entries as usize * 4);
        NonZeroU32::new(crc32c::crc32c(&bytes[..len])).unwrap_or(NonZeroU32::MIN)
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        self.sums.capacity() * size_of::<Option<NonZeroU32>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_pages_read_as_on_disk() {
        let mut table = Table::default();
        table.set(BlockIndex(5), Sector(7));
        table.set(BlockIndex(3000), Sector(9));
        table.set(BlockIndex(3000), Sector(10));
        assert_eq!(table.allocated(), 2);
        assert_eq!(
            table.entries().collect::<Vec<_>>(),
            [(BlockIndex(5), Sector(7)), (BlockIndex(3000), Sector(10))]
        );
        let page = table.page_bytes(2);
        assert_eq!(bat::decode(&page).nth(3000 - 2048), Some(Some(Sector(10))));
        assert_eq!(table.page_bytes(1), vec![0xFF; 4096]);
        assert_eq!(table.remove(BlockIndex(5)), Some(Sector(7)));
        assert_eq!((table.get(BlockIndex(5)), table.allocated()), (None, 1));
    }

    #[test]
    fn a_summary_knows_each_page_with_an_entry_and_no_other() {
        let mut table = Table::default();
        table.set(BlockIndex(5), Sector(7));
        table.set(BlockIndex(3000), Sector(15));
        table.remove(BlockIndex(5));
        let summary = Summary::of(&table, 3001);
        assert_eq!([0, 1, 2, 3].map(|page| summary.has(page)), [false, false, true, false]);
        let mut bytes = table.page_bytes(2);
        assert!(summary.matches(2, &bytes));
        assert!(!summary.matches(1, &bytes) && !summary.matches(0, &table.page_bytes(0)));
        let past_the_table = 4 * (3001 - 2048);
        bytes[past_the_table] = 0;
        assert!(summary.matches(2, &bytes));
        bytes[past_the_table - 1] ^= 1;
        assert!(!summary.matches(2, &bytes));
    }
}
