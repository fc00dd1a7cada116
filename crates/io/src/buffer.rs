//! Buffers that requests own: a list of memory pieces kept alive by whoever lends them (a pool slot,
//! a mapping of guest memory). Cloning and slicing copy nothing.

use std::fmt;
use std::rc::Rc;

use crate::units::ByteCount;

/// A piece of memory: address and length, valid while the buffer's keeper lives.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RawIov {
    /// First byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

/// Owner of the memory behind an [`IoBuf`].
///
/// # Safety
/// The pieces named in the buffers made with this keeper stay valid for reads and writes, at the
/// same addresses, until the keeper is dropped. The memory may be shared with a guest: nobody forms
/// Rust references to it, all access is by raw copies.
#[expect(unsafe_code, reason = "the promise of valid memory is what makes IoBuf's copies sound")]
pub unsafe trait Memory {}

/// A buffer of one or more pieces of memory.
#[derive(Clone)]
pub struct IoBuf {
    keep: Rc<dyn Memory>,
    pieces: Rc<[RawIov]>,
    /// Start of this view within `pieces`, in bytes.
    skip: usize,
    len: usize,
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

/// A heap allocation with alignment, freed on drop.
struct HeapSlab {
    base: *mut u8,
    layout: std::alloc::Layout,
}

// SAFETY: the allocation lives at one address until drop.
#[expect(unsafe_code, reason = "keeps the heap memory behind a buffer")]
unsafe impl Memory for HeapSlab {}

impl Drop for HeapSlab {
    #[expect(unsafe_code, reason = "frees what `zeroed` allocated")]
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc_zeroed` with this very layout and is freed once.
        unsafe { std::alloc::dealloc(self.base, self.layout) }
    }
}

/// Alignment of the buffers made here: enough for O_DIRECT on 4Kn devices.
pub const BUFFER_ALIGN: usize = 4096;

impl IoBuf {
    /// A buffer over memory that `keep` owns.
    #[must_use]
    pub fn from_parts(keep: Rc<dyn Memory>, pieces: Rc<[RawIov]>) -> Self {
        let len = pieces.iter().map(|p| p.len).sum();
        Self { keep, pieces, skip: 0, len }
    }

    /// A fresh zeroed buffer of `len` bytes, aligned to 4 KiB.
    ///
    /// # Panics
    /// If the allocation fails or `len` exceeds the address space: callers bound it.
    #[must_use]
    #[expect(unsafe_code, reason = "aligned allocation")]
    pub fn zeroed(len: usize) -> Self {
        let layout = std::alloc::Layout::from_size_align(len.max(1), BUFFER_ALIGN)
            .expect("a buffer length within the address space");
        // SAFETY: the layout has a non-zero size.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        if base.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        Self::from_parts(Rc::new(HeapSlab { base, layout }), Rc::new([RawIov { base, len }]))
    }

    /// A fresh buffer with a copy of `bytes`.
    #[must_use]
    pub fn copied(bytes: &[u8]) -> Self {
        let buf = Self::zeroed(bytes.len());
        buf.write_at(0, bytes);
        buf
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Length as a count.
    #[must_use]
    pub fn count(&self) -> ByteCount {
        ByteCount::of(self.len)
    }

    /// The `len` bytes from `at` on, sharing the memory.
    ///
    /// # Panics
    /// If the range lies outside the buffer.
    #[must_use]
    pub fn slice(&self, at: usize, len: usize) -> Self {
        assert!(at <= self.len && len <= self.len - at, "slice {at}+{len} of {} bytes", self.len);
        Self {
            keep: Rc::clone(&self.keep),
            pieces: Rc::clone(&self.pieces),
            skip: self.skip + at,
            len,
        }
    }

    /// The memory pieces of this view, in order; valid while the buffer lives.
    pub fn iovecs(&self) -> impl Iterator<Item = RawIov> + '_ {
        let (mut skip, mut left) = (self.skip, self.len);
        self.pieces.iter().filter_map(move |piece| {
            if skip >= piece.len {
                skip -= piece.len;
                return None;
            }
            let len = (piece.len - skip).min(left);
            let base = piece.base.wrapping_add(skip);
            skip = 0;
            left -= len;
            (len > 0).then_some(RawIov { base, len })
        })
    }

    /// Whether every piece starts and ends on a multiple of `align` in memory.
    #[must_use]
    pub fn is_aligned(&self, align: usize) -> bool {
        self.iovecs()
            .all(|p| (p.base as usize).is_multiple_of(align) && p.len.is_multiple_of(align))
    }

    /// Copies `bytes` into the buffer from `at` on.
    ///
    /// # Panics
    /// If they do not fit.
    #[expect(unsafe_code, reason = "raw copies: the memory may be shared with a guest")]
    pub fn write_at(&self, at: usize, bytes: &[u8]) {
        let mut from = bytes;
        for piece in self.slice(at, bytes.len()).iovecs() {
            let (head, tail) = from.split_at(piece.len);
            // SAFETY: Memory's promise makes the piece valid; `head` is a distinct Rust slice.
            unsafe { std::ptr::copy_nonoverlapping(head.as_ptr(), piece.base, piece.len) }
            from = tail;
        }
    }

    /// Copies bytes of the buffer from `at` on into `bytes`.
    ///
    /// # Panics
    /// If the buffer ends before.
    #[expect(unsafe_code, reason = "raw copies: the memory may be shared with a guest")]
    pub fn read_at(&self, at: usize, bytes: &mut [u8]) {
        let mut to = bytes;
        let len = to.len();
        for piece in self.slice(at, len).iovecs() {
            let (head, tail) = to.split_at_mut(piece.len);
            // SAFETY: Memory's promise makes the piece valid; `head` is a distinct Rust slice.
            unsafe { std::ptr::copy_nonoverlapping(piece.base, head.as_mut_ptr(), piece.len) }
            to = tail;
        }
    }

    /// A copy of the whole buffer.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read_at(0, &mut bytes);
        bytes
    }

    /// Sets every byte.
    #[expect(unsafe_code, reason = "raw fill: the memory may be shared with a guest")]
    pub fn fill(&self, byte: u8) {
        for piece in self.iovecs() {
            // SAFETY: Memory's promise makes the piece valid for writes.
            unsafe { std::ptr::write_bytes(piece.base, byte, piece.len) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::IoBuf;

    #[test]
    fn slices_share_memory_and_keep_bounds() {
        let buf = IoBuf::zeroed(10_000);
        let part = buf.slice(4_000, 2_000).slice(500, 100);
        part.write_at(10, b"hello");
        let mut seen = [0; 5];
        buf.read_at(4_510, &mut seen);
        assert_eq!(&seen, b"hello");
        assert!(buf.is_aligned(16));
        assert_eq!(part.iovecs().map(|p| p.len).sum::<usize>(), 100);
    }

    #[test]
    #[should_panic(expected = "slice 9+2 of 10 bytes")]
    fn slice_outside_is_our_own_mistake() {
        let _outside = IoBuf::zeroed(10).slice(9, 2);
    }
}
