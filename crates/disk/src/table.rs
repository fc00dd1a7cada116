//! A layer's BAT in memory: only the 4 KiB pages that hold an entry.

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
}
