//! A set of blocks: one bit a block, 128 KiB for the largest disk.

use image::BlockIndex;

/// A set of blocks, as long as its highest member.
#[derive(Debug, Default)]
pub(crate) struct BlockSet {
    words: Vec<u64>,
}

impl BlockSet {
    pub(crate) fn contains(&self, block: BlockIndex) -> bool {
        let (word, bit) = place(block);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    pub(crate) fn insert(&mut self, block: BlockIndex) {
        let (word, bit) = place(block);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
    }

    pub(crate) fn remove(&mut self, block: BlockIndex) {
        let (word, bit) = place(block);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.words = Vec::new();
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}

fn place(block: BlockIndex) -> (usize, u64) {
    ((block.0 / 64) as usize, 1 << (block.0 % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_what_was_put_in_and_not_taken_out() {
        let mut set = BlockSet::default();
        let last = BlockIndex(1_044_479);
        for block in [BlockIndex(0), BlockIndex(63), BlockIndex(64), last] {
            assert!(!set.contains(block));
            set.insert(block);
        }
        set.remove(BlockIndex(63));
        set.remove(BlockIndex(2_000_000));
        let found: Vec<u32> = (0..=last.0).filter(|b| set.contains(BlockIndex(*b))).collect();
        assert_eq!(found, [0, 64, last.0]);
        assert!(set.memory() <= 256 << 10);
        set.clear();
        assert!(!set.contains(last));
    }
}
