//! Memory that the disks of a process share for what they can read again.
//!
//! ```text
//!   disk ─► its floor, which nobody else can have ─► what is left of the shared cache ─► its own oldest
//! ```
//!
//! What a disk must remember (the owner map's words, the leaf's table) is its own, and bounded by its
//! size. Everything else is read again when it is needed again, and shares one bound, however many
//! disks there are and however long their chains. A disk evicts its own entries only: so nothing of
//! another thread is touched, and a request that finds what it needs asks nobody.
//!
//! Two kinds of entries share it: pages of parents' block tables ([`Pages`]), and the tables of blocks
//! that several layers hold, which the owner map keeps. Of the latter those stay that a flush has yet to
//! bring to the disk; a disk flushes before they are too many.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::PAGE;
use image::owner::Slot;

/// Bytes that an entry is counted as: a page, what stands beside it, and the gaps that such entries leave
/// in the heap as they come and go.
const ENTRY: usize = 4096 + 1024;
/// Entries of a kind that a disk has in any case: more than the layers of a chain, so that one block can
/// be looked up without reading a page twice.
const FLOOR: usize = 64;
/// Changed blocks that a disk may have between two flushes in any case, although they cannot be evicted:
/// fewer would make it flush all the time.
const CHANGED: usize = 256;

/// A bound on what the disks that share it remember beyond what they must. Clones are the same cache.
#[derive(Clone, Debug)]
pub struct SharedCache {
    inner: Arc<Bound>,
}

#[derive(Debug)]
struct Bound {
    entries: usize,
    /// What each disk has in any case.
    floor: usize,
    changed: usize,
    leased: AtomicUsize,
}

impl SharedCache {
    /// A cache of at most `bytes` for all disks together.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self::with_floor(bytes, FLOOR, CHANGED)
    }

    /// The smallest there can be, for proofs: whatever can be evicted is evicted.
    #[must_use]
    pub fn none() -> Self {
        Self::with_floor(0, 1, 4)
    }

    fn with_floor(bytes: usize, floor: usize, changed: usize) -> Self {
        let entries = bytes / ENTRY;
        let bound = Bound { entries, floor, changed, leased: AtomicUsize::new(0) };
        Self { inner: Arc::new(bound) }
    }

    /// Bytes that disks use of it now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.inner.leased.load(Ordering::Relaxed) * ENTRY
    }

    fn take(&self) -> bool {
        // a number that nothing else depends on: no order is needed
        self.inner
            .leased
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |leased| {
                (leased < self.inner.entries).then_some(leased + 1)
            })
            .is_ok()
    }
}

/// What one disk has of a shared cache, for entries of one kind.
#[derive(Debug)]
pub(crate) struct Lease {
    cache: SharedCache,
    leased: usize,
}

impl Lease {
    pub(crate) fn new(cache: SharedCache) -> Self {
        Self { cache, leased: 0 }
    }

    /// Whether `entries` may be held; takes more of the cache for them where it can.
    pub(crate) fn covers(&mut self, entries: usize) -> bool {
        while entries > self.cache.inner.floor + self.leased {
            if !self.cache.take() {
                return false;
            }
            self.leased += 1;
        }
        true
    }

    /// How many entries may be such that they cannot be evicted before a flush: a part of what there is
    /// room for, so that the rest can be.
    pub(crate) fn changed(&self) -> usize {
        let bound = &self.cache.inner;
        let left = bound.entries.saturating_sub(bound.leased.load(Ordering::Relaxed));
        bound.changed.max((bound.floor + self.leased + left) / 4)
    }

    /// Only `entries` are held now: what they do not need is anyone's.
    pub(crate) fn shrink(&mut self, entries: usize) {
        let needed = entries.saturating_sub(self.cache.inner.floor);
        let surplus = self.leased.saturating_sub(needed);
        if surplus > 0 {
            self.leased -= surplus;
            self.cache.inner.leased.fetch_sub(surplus, Ordering::Relaxed);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// A page of a layer's block table: the layer, and which of its pages.
pub(crate) type PageKey = (Slot, u32);
pub(crate) type PageBytes = Box<[u8]>;

/// Pages of the tables of a disk's parents. They never change while the disk is open, so any of them
/// can be forgotten at any time.
#[derive(Debug)]
pub(crate) struct Pages {
    index: HashMap<PageKey, usize>,
    held: Vec<Held>,
    /// Where the search for one to evict goes on.
    hand: usize,
    lease: Lease,
}

#[derive(Debug)]
struct Held {
    key: PageKey,
    bytes: PageBytes,
    /// Since the hand came by.
    used: bool,
}

impl Pages {
    pub(crate) fn new(cache: SharedCache) -> Self {
        Self { index: HashMap::new(), held: Vec::new(), hand: 0, lease: Lease::new(cache) }
    }

    pub(crate) fn get(&mut self, key: PageKey) -> Option<&[u8]> {
        let held = self.held.get_mut(*self.index.get(&key)?)?;
        held.used = true;
        Some(&held.bytes)
    }

    /// Keeps a page, in the place of another where there is no room for both.
    pub(crate) fn keep(&mut self, key: PageKey, bytes: PageBytes) {
        if self.index.contains_key(&key) {
            return;
        }
        // one that is never used again goes before those that are
        let new = Held { key, bytes, used: false };
        if self.held.is_empty() || self.lease.covers(self.held.len() + 1) {
            self.index.insert(key, self.held.len());
            self.held.push(new);
            return;
        }
        // ends after one round at most: that clears every mark
        while std::mem::take(&mut self.held[self.hand].used) {
            self.hand = (self.hand + 1) % self.held.len();
        }
        let old = std::mem::replace(&mut self.held[self.hand], new);
        self.index.remove(&old.key);
        self.index.insert(key, self.hand);
        self.hand = (self.hand + 1) % self.held.len();
    }

    /// Bytes of memory that they take.
    pub(crate) fn memory(&self) -> usize {
        self.held.len() * usize::try_from(PAGE).expect("a page")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(page: u32) -> PageKey {
        (Slot(3), page)
    }

    fn keep(pages: &mut Pages, page: u32) {
        pages.keep(key(page), Box::from(page.to_be_bytes()));
    }

    #[test]
    fn pages_beyond_the_bound_take_the_place_of_others() {
        let cache = SharedCache::new(10 * ENTRY);
        let mut pages = Pages::new(cache.clone());
        for page in 0..200 {
            keep(&mut pages, page);
            assert_eq!(pages.get(key(page)), Some(&page.to_be_bytes()[..]));
        }
        assert_eq!((pages.held.len(), cache.used()), (FLOOR + 10, 10 * ENTRY));
        // another disk has its floor all the same
        let mut other = Pages::new(cache.clone());
        (0..200).for_each(|page| keep(&mut other, page));
        assert_eq!((other.held.len(), cache.used()), (FLOOR, 10 * ENTRY));
        for page in 0..200 {
            assert!(pages.get(key(page)).is_none_or(|bytes| bytes == page.to_be_bytes()));
        }
        drop(pages);
        assert_eq!(cache.used(), 0);
        (200..300).for_each(|page| keep(&mut other, page));
        assert_eq!((other.held.len(), cache.used()), (FLOOR + 10, 10 * ENTRY));
    }

    #[test]
    fn what_is_used_stays_longer() {
        let mut pages = Pages::new(SharedCache::with_floor(0, 4, 1));
        for page in 0..100 {
            keep(&mut pages, page);
            let used = pages.get(key(3)).is_some();
            assert_eq!(used, page >= 3);
        }
        let mut pages = Pages::new(SharedCache::none());
        keep(&mut pages, 1);
        keep(&mut pages, 2);
        assert_eq!(pages.held.len(), 1);
        assert_eq!(pages.get(key(1)), None);
        assert_eq!(pages.get(key(2)), Some(&2u32.to_be_bytes()[..]));
    }

    #[test]
    fn a_lease_gives_back_what_it_does_not_need() {
        let cache = SharedCache::with_floor(5 * ENTRY, 2, 1);
        let mut lease = Lease::new(cache.clone());
        assert_eq!((lease.changed(), Lease::new(SharedCache::none()).changed()), (1, 4));
        assert!(lease.covers(2));
        assert_eq!(cache.used(), 0);
        assert!(lease.covers(7));
        assert!(!lease.covers(8));
        lease.shrink(4);
        assert_eq!(cache.used(), 2 * ENTRY);
        lease.shrink(1);
        assert_eq!(cache.used(), 0);
    }
}
