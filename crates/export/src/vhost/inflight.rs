//! Which requests are under way, in memory that the front end keeps: what a dead process left unanswered
//! is done again by the next one, and nothing that was answered is.
//!
//! The layout is that of the protocol's split rings, one region for each queue:
//!
//! ```text
//!   0 features  8 version  10 descriptors  12 last head of a batch  14 used index
//!  16 for each descriptor: 0 in flight  6 next head of the batch  8 counter     (16 bytes)
//! ```
//!
//! An answer takes four stores: the head is the batch; the used ring; no longer in flight; the used index.
//! Whoever dies between two of them leaves enough to tell whether the guest saw the answer.

use std::fs::File;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{MmapRegion, VolatileMemory as _};

use super::mapping;

const HEADER: u64 = 16;
const DESCRIPTOR: u64 = 16;
/// Regions start at multiples of it.
const ALIGN: u64 = 64;
const VERSION: u16 = 1;

/// The queues' regions.
#[derive(Debug)]
pub(crate) struct Inflight {
    memory: MmapRegion<()>,
    queues: u16,
    descriptors: u16,
}

fn region_len(descriptors: u16) -> u64 {
    (HEADER + DESCRIPTOR * u64::from(descriptors)).next_multiple_of(ALIGN)
}

/// Bytes for so many queues of so many descriptors.
pub(crate) fn len_for(queues: u16, descriptors: u16) -> u64 {
    region_len(descriptors) * u64::from(queues)
}

impl Inflight {
    /// Fresh memory, which cannot shrink: touching it stays safe whatever the other side does.
    pub(crate) fn create(queues: u16, descriptors: u16) -> Result<File, String> {
        let made = || -> rustix::io::Result<File> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let fd = rustix::fs::memfd_create("shale-inflight", flags)?;
            rustix::fs::ftruncate(&fd, len_for(queues, descriptors))?;
            rustix::fs::fcntl_add_seals(
                &fd,
                SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
            )?;
            Ok(File::from(fd))
        };
        made().map_err(|error| format!("no memory for the requests in flight: {error}"))
    }

    /// Maps what [`Inflight::create`] made, perhaps in a process before this one.
    pub(crate) fn map(
        file: File,
        offset: u64,
        queues: u16,
        descriptors: u16,
    ) -> Result<Self, String> {
        let sealed = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        if !sealed.contains(SealFlags::SHRINK) {
            return Err("the memory for requests in flight is not what this side made".into());
        }
        let memory = mapping::map(file, offset, len_for(queues, descriptors))
            .map_err(|why| format!("the memory for requests in flight cannot be mapped: {why}"))?;
        Ok(Self { memory, queues, descriptors })
    }

    fn at(&self, queue: u16, offset: u64) -> usize {
        assert!(queue < self.queues, "queue {queue} of {}", self.queues);
        usize::try_from(region_len(self.descriptors) * u64::from(queue) + offset)
            .expect("within memory that is mapped")
    }

    fn descriptor(&self, queue: u16, head: u16, offset: u64) -> usize {
        assert!(head < self.descriptors, "descriptor {head} of {}", self.descriptors);
        self.at(queue, HEADER + DESCRIPTOR * u64::from(head) + offset)
    }

    fn word(&self, at: usize) -> &AtomicU16 {
        self.memory.get_atomic_ref(at).expect("aligned, and within the memory that is mapped")
    }

    fn flag(&self, queue: u16, head: u16) -> &AtomicU8 {
        let at = self.descriptor(queue, head, 0);
        self.memory.get_atomic_ref(at).expect("within the memory that is mapped")
    }

    fn counter(&self, queue: u16, head: u16) -> &AtomicU64 {
        let at = self.descriptor(queue, head, 8);
        self.memory.get_atomic_ref(at).expect("aligned, and within the memory that is mapped")
    }

    /// Of the first queue's word for features, which nobody else defines: the guest wants its writes durable.
    fn choices(&self) -> &AtomicU64 {
        self.memory
            .get_atomic_ref(self.at(0, 0))
            .expect("aligned, and within the memory that is mapped")
    }

    /// Whether the guest switched its write cache off.
    pub(crate) fn is_write_through(&self) -> bool {
        self.choices().load(Ordering::SeqCst) & 1 != 0
    }

    /// Notes whether it did.
    pub(crate) fn set_write_through(&self, on: bool) {
        self.choices().store(u64::from(on), Ordering::SeqCst);
    }

    /// Whether there is a region for the queue.
    pub(crate) fn covers(&self, queue: u16, size: u16) -> bool {
        queue < self.queues && size <= self.descriptors
    }

    /// A queue starts, whose used ring is at `used`: the requests to do again, oldest first.
    pub(crate) fn resume(&self, queue: u16, used: u16) -> Vec<u16> {
        let (version, last, known) = (
            self.word(self.at(queue, 8)),
            self.word(self.at(queue, 12)),
            self.word(self.at(queue, 14)),
        );
        if version.load(Ordering::SeqCst) == 0 {
            // fresh
            self.word(self.at(queue, 10)).store(self.descriptors, Ordering::SeqCst);
            known.store(used, Ordering::SeqCst);
            version.store(VERSION, Ordering::SeqCst);
            return Vec::new();
        }
        // An answer reached the used ring, and its process died before it took the request off.
        if known.load(Ordering::SeqCst) != used {
            let head = last.load(Ordering::SeqCst);
            if head < self.descriptors {
                self.flag(queue, head).store(0, Ordering::SeqCst);
            }
            known.store(used, Ordering::SeqCst);
        }
        let in_flight = |head: &u16| self.flag(queue, *head).load(Ordering::SeqCst) != 0;
        let mut heads: Vec<u16> = (0..self.descriptors).filter(in_flight).collect();
        heads.sort_by_key(|head| self.counter(queue, *head).load(Ordering::SeqCst));
        heads
    }

    /// The highest counter of the queue's requests in flight.
    pub(crate) fn newest(&self, queue: u16) -> u64 {
        let heads = 0..self.descriptors;
        let counters = heads.map(|head| self.counter(queue, head).load(Ordering::SeqCst));
        counters.max().unwrap_or(0)
    }

    /// A request was taken from the queue, as the `counter`th.
    pub(crate) fn begin(&self, queue: u16, head: u16, counter: u64) {
        self.counter(queue, head).store(counter, Ordering::Release);
        self.flag(queue, head).store(1, Ordering::Release);
    }

    /// Its answer goes to the used ring next.
    pub(crate) fn answering(&self, queue: u16, head: u16) {
        self.word(self.at(queue, 12)).store(head, Ordering::Release);
    }

    /// Its answer is in the used ring, which is at `used` now.
    pub(crate) fn answered(&self, queue: u16, head: u16, used: u16) {
        self.flag(queue, head).store(0, Ordering::Release);
        self.word(self.at(queue, 14)).store(used, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::{Inflight, len_for};
    use crate::vhost::memory::tests::memfd;

    fn both(descriptors: u16) -> (Inflight, Inflight) {
        let file = Inflight::create(2, descriptors).unwrap();
        let map = || Inflight::map(file.try_clone().unwrap(), 0, 2, descriptors).unwrap();
        (map(), map())
    }

    #[test]
    fn what_was_not_answered_is_done_again_in_order() {
        let (dead, next) = both(8);
        assert!(dead.resume(1, 5).is_empty());
        for (counter, head) in [(1, 7), (2, 0), (3, 3), (4, 2)] {
            dead.begin(1, head, counter);
        }
        dead.answering(1, 0);
        dead.answered(1, 0, 6);
        assert_eq!(next.resume(1, 6), [7, 3, 2]);
        assert_eq!(next.newest(1), 4);
        assert!(next.resume(0, 0).is_empty());
    }

    #[test]
    fn a_death_at_each_step_of_an_answer_repeats_exactly_what_the_guest_did_not_see() {
        for step in 0..4 {
            let (dead, next) = both(4);
            dead.resume(0, 0);
            dead.begin(0, 1, 1);
            dead.begin(0, 2, 2);
            let mut used = 0;
            if step > 0 {
                dead.answering(0, 1);
            }
            if step > 1 {
                used = 1;
            }
            if step > 2 {
                dead.answered(0, 1, 1);
            }
            let again: &[u16] = if step > 1 { &[2] } else { &[1, 2] };
            assert_eq!(next.resume(0, used), again, "step {step}");
        }
    }

    #[test]
    fn a_write_cache_that_was_switched_off_stays_off() {
        let (dead, next) = both(4);
        assert!(!next.is_write_through());
        dead.set_write_through(true);
        assert!(next.is_write_through());
        next.set_write_through(false);
        assert!(!dead.is_write_through());
    }

    #[test]
    fn memory_that_may_shrink_is_refused() {
        assert!(Inflight::map(memfd(len_for(1, 4)), 0, 1, 4).is_err());
        let file = Inflight::create(1, 4).unwrap();
        assert!(Inflight::map(file, 0, 1, 400).is_err());
    }
}
