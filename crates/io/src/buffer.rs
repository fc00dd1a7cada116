//! Buffers that requests own: a list of memory pieces kept alive by whoever lends them (a pool slot,
//! a mapping of guest memory). Cloning and slicing copy nothing.

use std::alloc::Layout;
use std::cell::RefCell;
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
    layout: Layout,
}

/// Pages that are kept for the next buffers of a thread, at most.
const POOLED: usize = 256;

/// Pages of dropped buffers. Small aligned allocations that come and go between those that stay would
/// leave the heap full of gaps, which no page fits in.
struct PagePool(Vec<*mut u8>);

thread_local! {
    static PAGES: RefCell<PagePool> = const { RefCell::new(PagePool(Vec::new())) };
}

/// The layout of what the pool keeps.
const PAGE_LAYOUT: Layout = match Layout::from_size_align(BUFFER_ALIGN, BUFFER_ALIGN) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is a layout"),
};

impl PagePool {
    fn take() -> Option<*mut u8> {
        // a thread that ends has none any more
        PAGES.try_with(|pages| pages.borrow_mut().0.pop()).ok().flatten()
    }

    /// False: it is full.
    fn give(page: *mut u8) -> bool {
        let kept = PAGES.try_with(|pages| {
            let pages = &mut pages.borrow_mut().0;
            let room = pages.len() < POOLED;
            if room {
                pages.push(page);
            }
            room
        });
        kept.unwrap_or(false)
    }
}

impl Drop for PagePool {
    #[expect(unsafe_code, reason = "frees what `zeroed` allocated")]
    fn drop(&mut self) {
        for page in self.0.drain(..) {
            // SAFETY: a page in the pool came from a slab of this very layout, whose owner is gone.
            unsafe { std::alloc::dealloc(page, PAGE_LAYOUT) }
        }
    }
}

// SAFETY: the allocation lives at one address until drop.
#[expect(unsafe_code, reason = "keeps the heap memory behind a buffer")]
unsafe impl Memory for HeapSlab {}

impl Drop for HeapSlab {
    #[expect(unsafe_code, reason = "frees what `zeroed` allocated")]
    fn drop(&mut self) {
        if self.layout == PAGE_LAYOUT && PagePool::give(self.base) {
            return;
        }
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
        let layout = if len <= BUFFER_ALIGN {
            PAGE_LAYOUT
        } else {
            Layout::from_size_align(len, BUFFER_ALIGN)
                .expect("a buffer length within the address space")
        };
        let pooled = if layout == PAGE_LAYOUT { PagePool::take() } else { None };
        let base = match pooled {
            Some(page) => {
                // SAFETY: a page in the pool is nobody's, and valid for its layout's size.
                unsafe { std::ptr::write_bytes(page, 0, BUFFER_ALIGN) }
                page
            }
            // SAFETY: the layout has a non-zero size.
            None => unsafe { std::alloc::alloc_zeroed(layout) },
        };
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
    fn a_page_that_was_used_before_is_zero_again_and_nobody_elses() {
        let first = IoBuf::copied(&[7; 100]);
        let at = first.iovecs().next().map(|piece| piece.base);
        let half = first.slice(50, 50);
        drop(first);
        let second = IoBuf::zeroed(4096);
        assert_ne!(second.iovecs().next().map(|piece| piece.base), at);
        drop(half);
        let third = IoBuf::zeroed(300);
        assert_eq!(third.iovecs().next().map(|piece| piece.base), at);
        assert_eq!(third.to_vec(), [0; 300]);
        assert!(second.is_aligned(super::BUFFER_ALIGN));
        // more than are kept, and on a thread that ends
        let many = || (0..1000).map(|_| IoBuf::copied(&[7; 512])).collect::<Vec<_>>();
        std::thread::spawn(move || drop(many())).join().unwrap();
        drop(many());
        assert_eq!(IoBuf::zeroed(512).to_vec(), [0; 512]);
    }

    #[test]
    #[should_panic(expected = "slice 9+2 of 10 bytes")]
    fn slice_outside_is_our_own_mistake() {
        let _outside = IoBuf::zeroed(10).slice(9, 2);
    }
}
