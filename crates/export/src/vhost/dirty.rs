//! The log of pages that this side wrote, which the front end reads while it moves the guest.

use std::fs::File;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{MmapRegion, VolatileMemory as _};

use super::mapping;

/// Bytes of guest memory that one bit stands for: the protocol's constant, whatever the host's pages are.
const PAGE: u64 = 4096;

/// A bitmap shared with the front end: bit `n % 8` of byte `n / 8` is page `n`.
#[derive(Debug)]
pub(crate) struct DirtyLog(MmapRegion<()>);

impl DirtyLog {
    pub(crate) fn map(file: File, offset: u64, len: u64) -> Result<Self, String> {
        let mapped = mapping::map(file, offset, len);
        mapped.map(Self).map_err(|why| format!("the dirty log cannot be mapped: {why}"))
    }

    /// Notes that `len` bytes from `guest` on were written. Pages behind the end of the log are not
    /// anybody's to move: the front end chose its length.
    pub(crate) fn mark(&self, guest: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|more| guest.checked_add(more)) else {
            return;
        };
        for page in guest / PAGE..=last / PAGE {
            let byte = usize::try_from(page / 8).unwrap_or(usize::MAX);
            let Ok(bits) = self.0.get_atomic_ref::<AtomicU8>(byte) else { return };
            bits.fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DirtyLog;
    use crate::vhost::memory::tests::memfd;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn every_page_touched_is_marked_and_none_beyond() {
        let file = memfd(4096);
        let log = DirtyLog::map(file.try_clone().unwrap(), 0, 4).unwrap();
        log.mark(4095, 2);
        log.mark(9 * 4096, 4096);
        log.mark(31 * 4096, 10 * 4096);
        log.mark(u64::MAX - 1, 1);
        log.mark(4096 * 20, 0);
        let mut bits = [0; 8];
        file.read_exact_at(&mut bits, 0).unwrap();
        assert_eq!(bits, [0b11, 0b10, 0, 0b1000_0000, 0, 0, 0, 0]);
        assert!(DirtyLog::map(memfd(10), 0, 4096).is_err());
    }
}
