//! Units of the I/O layer: bytes, as offsets, counts and ranges. Each role is its own type, so that
//! an offset cannot be passed where a length is meant.

use std::fmt;

/// A position in a device or file, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteOffset(pub u64);

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteCount(pub u64);

/// `len` bytes from `start`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ByteRange {
    /// First byte.
    pub start: ByteOffset,
    /// Length in bytes; may be 0.
    pub len: ByteCount,
}

impl ByteOffset {
    /// `self + count`, or None where a 64-bit offset overflows.
    #[must_use]
    pub fn checked_add(self, count: ByteCount) -> Option<Self> {
        self.0.checked_add(count.0).map(Self)
    }

    /// Whether the offset is a multiple of `align` bytes.
    #[must_use]
    pub fn is_aligned(self, align: u32) -> bool {
        self.0.is_multiple_of(u64::from(align))
    }
}

impl ByteCount {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// `n` KiB.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The count of bytes of a buffer in memory.
    #[must_use]
    pub const fn of(len: usize) -> Self {
        Self(len as u64)
    }

    /// The count as a length in memory.
    ///
    /// # Panics
    /// If it does not fit the address space: callers bound it first.
    #[must_use]
    pub fn as_len(self) -> usize {
        usize::try_from(self.0).expect("a byte count within the address space")
    }
}

impl ByteRange {
    /// `len` bytes from `start`.
    #[must_use]
    pub const fn new(start: u64, len: u64) -> Self {
        Self { start: ByteOffset(start), len: ByteCount(len) }
    }

    /// The first byte after the range, or None where a 64-bit offset overflows.
    #[must_use]
    pub fn end(self) -> Option<ByteOffset> {
        self.start.checked_add(self.len)
    }

    /// Whether the range lies wholly inside the first `size` bytes.
    #[must_use]
    pub fn is_within(self, size: ByteCount) -> bool {
        self.end().is_some_and(|end| end.0 <= size.0)
    }
}

impl fmt::Debug for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

impl fmt::Debug for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B", self.0)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start.0, self.len.0)
    }
}
