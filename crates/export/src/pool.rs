//! Buffers for payloads: 4 KiB-aligned, kept for the next request instead of going back to the
//! allocator. One pool serves all connections of a server; all of them run on one thread.

use std::cell::RefCell;
use std::fmt;
use std::rc::{Rc, Weak};

use io::{BUFFER_ALIGN, IoBuf, Memory, RawIov};

/// Sizes are powers of two from 4 KiB to 32 MiB.
const CLASSES: usize = 14;
/// Unused memory that is kept while there are connections.
const KEPT_BYTES: usize = 32 << 20;

/// A pool of buffers; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Pool(Rc<RefCell<Shelves>>);

#[derive(Default)]
struct Shelves {
    free: [Vec<Slab>; CLASSES],
    kept: usize,
}

/// Memory of one size class and its one piece, made once.
struct Slab {
    memory: IoBuf,
    pieces: Rc<[RawIov]>,
    class: usize,
}

/// A slab that is out; its drop puts it back.
struct Lent {
    slab: Option<Slab>,
    pool: Weak<RefCell<Shelves>>,
}

// SAFETY: `slab` owns the memory that its pieces name, and stays in place until `Lent` is dropped.
#[expect(unsafe_code, reason = "lends the pool's memory to requests")]
unsafe impl Memory for Lent {}

impl Drop for Lent {
    fn drop(&mut self) {
        let (Some(slab), Some(shelves)) = (self.slab.take(), self.pool.upgrade()) else { return };
        let mut shelves = shelves.borrow_mut();
        let size = class_size(slab.class);
        if shelves.kept + size <= KEPT_BYTES {
            shelves.kept += size;
            shelves.free[slab.class].push(slab);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} bytes kept)", self.0.borrow().kept)
    }
}

impl Pool {
    /// A buffer of `len` bytes with any content; `len` is at most 32 MiB.
    pub(crate) fn get(&self, len: usize) -> IoBuf {
        let class = class_of(len);
        let kept = {
            let mut shelves = self.0.borrow_mut();
            let slab = shelves.free[class].pop();
            if slab.is_some() {
                shelves.kept -= class_size(class);
            }
            slab
        };
        let slab = kept.unwrap_or_else(|| {
            let memory = IoBuf::zeroed(class_size(class));
            let pieces = memory.iovecs().collect();
            Slab { memory, pieces, class }
        });
        debug_assert_eq!(slab.memory.len(), class_size(class), "a slab stands on its own shelf");
        let pieces = Rc::clone(&slab.pieces);
        let lent = Lent { slab: Some(slab), pool: Rc::downgrade(&self.0) };
        IoBuf::from_parts(Rc::new(lent), pieces).slice(0, len)
    }

    /// Gives unused memory back to the system.
    pub(crate) fn trim(&self) {
        let old = std::mem::take(&mut *self.0.borrow_mut());
        drop(old);
    }
}

/// Bytes of memory that a buffer of `len` bytes takes.
pub(crate) fn footprint(len: usize) -> usize {
    class_size(class_of(len))
}

fn class_of(len: usize) -> usize {
    let pages = len.div_ceil(BUFFER_ALIGN).max(1);
    let class = pages.next_power_of_two().trailing_zeros() as usize;
    assert!(class < CLASSES, "a buffer of {len} bytes is over the limit of a request");
    class
}

const fn class_size(class: usize) -> usize {
    BUFFER_ALIGN << class
}

/// Two buffers as one: `recv` fills the rest of a payload and goes on into the input buffer.
pub(crate) fn joined(first: &IoBuf, second: &IoBuf) -> IoBuf {
    struct Joined {
        _both: [IoBuf; 2],
    }
    // SAFETY: the two buffers keep the memory that the pieces name for as long as this lives.
    #[expect(unsafe_code, reason = "lends the memory of two buffers as one")]
    unsafe impl Memory for Joined {}

    let pieces = first.iovecs().chain(second.iovecs()).collect();
    IoBuf::from_parts(Rc::new(Joined { _both: [first.clone(), second.clone()] }), pieces)
}

/// Copies the start of `from` over `to`, whose memory must be another.
#[expect(unsafe_code, reason = "copies between two buffers without a stop on the stack")]
pub(crate) fn copy(from: &IoBuf, to: &IoBuf) {
    assert!(to.len() <= from.len(), "copying {} of {} bytes", to.len(), from.len());
    let mut at = 0;
    for piece in to.iovecs() {
        let mut base = piece.base;
        for source in from.slice(at, piece.len).iovecs() {
            // SAFETY: both keepers promise valid memory for these pieces; the caller's promise makes
            // them distinct; `base` advances by what the sources of this piece add up to.
            unsafe {
                std::ptr::copy_nonoverlapping(source.base, base, source.len);
                base = base.add(source.len);
            }
        }
        at += piece.len;
    }
}

#[cfg(test)]
mod tests {
    use super::{Pool, copy, footprint, joined};

    #[test]
    fn memory_comes_back_and_is_lent_again() {
        let pool = Pool::default();
        let first = pool.get(5000);
        let address = first.iovecs().next().expect("one piece").base;
        assert_eq!((first.len(), first.is_aligned(8)), (5000, true));
        assert!((address as usize).is_multiple_of(4096));
        let view = first.slice(4096, 100);
        drop(first);
        assert_ne!(pool.get(8192).iovecs().next().expect("one piece").base, address);
        drop(view);
        let bases: Vec<_> = [pool.get(4097), pool.get(8192)]
            .iter()
            .map(|b| b.iovecs().next().expect("one piece").base)
            .collect();
        assert!(bases.contains(&address), "the freed slab is reused");
        assert!(format!("{pool:?}").contains("16384"), "two slabs are kept: {pool:?}");
        pool.trim();
        assert!(format!("{pool:?}").contains("(0 bytes"), "nothing is kept: {pool:?}");
    }

    #[test]
    fn sizes_are_rounded_to_classes() {
        let table = [
            (0, 4096),
            (1, 4096),
            (4096, 4096),
            (4097, 8192),
            (1 << 20, 1 << 20),
            (32 << 20, 32 << 20),
        ];
        for (len, want) in table {
            assert_eq!(footprint(len), want, "{len} bytes");
        }
    }

    #[test]
    #[should_panic(expected = "over the limit")]
    fn larger_than_a_request_is_our_own_mistake() {
        footprint((32 << 20) + 1);
    }

    #[test]
    fn joined_and_copied() {
        let pool = Pool::default();
        let (a, b) = (pool.get(10), pool.get(20));
        let both = joined(&a, &b);
        both.write_at(8, b"abcd");
        assert_eq!((&a.to_vec()[8..], &b.to_vec()[..2]), (&b"ab"[..], &b"cd"[..]));
        let all = pool.get(30);
        copy(&both, &all);
        assert_eq!(all.to_vec(), both.to_vec());
        let (x, y) = (pool.get(3), pool.get(7));
        copy(&all.slice(7, 10), &joined(&x, &y));
        assert_eq!([x.to_vec(), y.to_vec()].concat(), all.slice(7, 10).to_vec());
    }
}
