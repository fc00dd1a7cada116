//! Sector bitmaps: one bit a sector, the most significant bit of a byte first.

use std::fmt;

use crate::BLOCK_SECTORS;

/// The bitmap of a block of ours: 4096 sectors, 512 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Bitmap([u8; 512]);

impl Bitmap {
    /// No bit set.
    #[must_use]
    pub fn empty() -> Self {
        Self([0; 512])
    }

    /// Every bit set.
    #[must_use]
    pub fn full() -> Self {
        Self([0xff; 512])
    }

    /// As it stands on disk; every content is valid.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 512]) -> Self {
        Self(*bytes)
    }

    /// As it stands on disk.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 512] {
        &self.0
    }

    /// Whether the bit of `sector_in_block` is set.
    ///
    /// # Panics
    /// If the sector is not below [`BLOCK_SECTORS`].
    #[must_use]
    pub fn get(&self, sector_in_block: u32) -> bool {
        assert!(sector_in_block < BLOCK_SECTORS, "sector {sector_in_block} of a block");
        let byte = self.0.get(sector_in_block as usize / 8).copied().unwrap_or(0);
        byte & (0x80 >> (sector_in_block % 8)) != 0
    }

    /// Sets `len` bits from `from`.
    ///
    /// # Panics
    /// If the range does not lie within the block.
    pub fn set_range(&mut self, from: u32, len: u32) {
        self.change(from, len, |byte, mask| byte | mask);
    }

    /// Clears `len` bits from `from`.
    ///
    /// # Panics
    /// If the range does not lie within the block.
    pub fn clear_range(&mut self, from: u32, len: u32) {
        self.change(from, len, |byte, mask| byte & !mask);
    }

    /// Sets every bit that is set in `other`.
    pub fn union(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine |= theirs;
        }
    }

    /// Whether every bit is set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0 == [0xff; 512]
    }

    /// Whether no bit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 512]
    }

    /// How many bits are set.
    #[must_use]
    pub fn count(&self) -> u32 {
        let (words, _) = self.0.as_chunks::<8>();
        words.iter().map(|word| u64::from_ne_bytes(*word).count_ones()).sum()
    }

    /// The bitmap as runs of equal bits, in order and without gaps: (first sector, length, set).
    #[must_use]
    pub fn runs(&self) -> BitRuns<'_> {
        bit_runs(&self.0, 0, BLOCK_SECTORS)
    }

    /// The runs of equal bits within `len` sectors from `from`.
    ///
    /// # Panics
    /// If the range does not lie within the block.
    #[must_use]
    pub fn runs_in(&self, from: u32, len: u32) -> BitRuns<'_> {
        bit_runs(&self.0, from, len)
    }

    fn change(&mut self, from: u32, len: u32, apply: impl Fn(u8, u8) -> u8) {
        let end = from.saturating_add(len);
        assert!(end <= BLOCK_SECTORS, "sectors {from}+{len} of a block");
        let mut at = from;
        while at < end {
            // as many bits as this byte has of the range
            let first = at % 8;
            let count = end.saturating_sub(at).min(8u32.saturating_sub(first));
            let ones = (0xff00u16 >> count) & 0xff;
            let mask = ones.checked_shr(first).unwrap_or(0).to_be_bytes()[1];
            if let Some(byte) = self.0.get_mut(at as usize / 8) {
                *byte = apply(*byte, mask);
            }
            at = at.saturating_add(count);
        }
    }
}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bitmap({} of {BLOCK_SECTORS} set)", self.count())
    }
}

/// The runs of equal bits among `len` bits from `from`; bits past the bytes count as clear.
///
/// # Panics
/// If `from + len` overflows.
#[must_use]
pub fn bit_runs(bits: &[u8], from: u32, len: u32) -> BitRuns<'_> {
    let Some(end) = from.checked_add(len) else { unreachable!("a run of {len} bits from {from}") };
    BitRuns { bits, at: from, end }
}

/// Iterator of [`bit_runs`]: (first sector, length, set).
#[derive(Clone, Debug)]
pub struct BitRuns<'a> {
    bits: &'a [u8],
    at: u32,
    end: u32,
}

impl BitRuns<'_> {
    /// The 64 bits from a multiple of 64, the first as the most significant.
    fn word(&self, from: u32) -> u64 {
        let start = from as usize / 8;
        let tail = self.bits.get(start..).unwrap_or_default();
        tail.first_chunk::<8>().map_or_else(
            || {
                tail.iter()
                    .zip((0u32..8).rev())
                    .fold(0, |word, (byte, place)| word | u64::from(*byte) << place.wrapping_mul(8))
            },
            |bytes| u64::from_be_bytes(*bytes),
        )
    }
}

impl Iterator for BitRuns<'_> {
    type Item = (u32, u32, bool);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let from = self.at;
        let set = self.word(from & !63) << (from % 64) >> 63 == 1;
        let mut at = from;
        while at < self.end {
            let word = self.word(at & !63);
            // ones where the bit differs from the run's
            let differs = if set { !word } else { word } << (at % 64);
            let left_in_word = 64u32.saturating_sub(at % 64);
            let same = differs.leading_zeros().min(left_in_word);
            at = at.saturating_add(same);
            if same < left_in_word {
                break;
            }
        }
        self.at = at.min(self.end);
        Some((from, self.at.saturating_sub(from), set))
    }
}
