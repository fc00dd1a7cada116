//! A guest's memory, mapped as the front end describes it, and buffers in it.
//!
//! A table of regions is replaced whole, never changed: requests hold the table they were resolved in, so
//! that memory stays mapped until the last request into it has ended, whatever the front end says meanwhile.

use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;

use io::{IoBuf, Memory, RawIov};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestRegionMmap};

use super::dirty::DirtyLog;
use super::mapping;

/// Bytes of a table at most: addresses of this process are for all.
const MAX_BYTES: u64 = 16 << 40;
/// Regions of a table at most.
pub(crate) const MAX_REGIONS: usize = 128;

/// A region as the front end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    /// Where the guest sees it.
    pub(crate) guest: u64,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// Where the front end sees it: rings are named by these addresses.
    pub(crate) user: u64,
    /// Where it starts in its file.
    pub(crate) offset: u64,
}

/// A mapped region; it may belong to several tables.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    mapped: Arc<GuestRegionMmap<()>>,
    described: Described,
}

/// Why a region or a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("the guest memory region {0:?} does not fit the address space")]
    Range(Described),
    #[error("the guest memory region {described:?} cannot be mapped: {why}")]
    Map { described: Described, why: String },
    #[error("the guest's memory is larger than 16 TiB")]
    TooLarge,
    #[error("guest memory regions overlap")]
    Overlap,
    #[error("{0} guest memory regions; at most {MAX_REGIONS} are taken")]
    TooMany(usize),
    #[error("no such guest memory region: {0:?}")]
    Unknown(Described),
}

impl Region {
    pub(crate) fn map(described: Described, file: File) -> Result<Self, MemoryError> {
        let range = || MemoryError::Range(described);
        described.user.checked_add(described.len).ok_or_else(range)?;
        let mapping = mapping::map(file, described.offset, described.len)
            .map_err(|why| MemoryError::Map { described, why })?;
        let mapped =
            GuestRegionMmap::new(mapping, GuestAddress(described.guest)).ok_or_else(range)?;
        Ok(Self { mapped: Arc::new(mapped), described })
    }
}

/// A table of regions. Empty where the front end shared none.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestMemory {
    map: GuestMemoryMmap<()>,
    regions: Vec<Region>,
}

// SAFETY: the regions stay mapped, at the same addresses and for reading and writing, as long as the table
// holds them, and a buffer's keeper is the table. What the front end does to the file behind a mapping is
// the kernel's to answer, which fails the I/O. Nobody here forms references into it.
#[expect(unsafe_code, reason = "keeps the guest's memory behind a buffer")]
unsafe impl Memory for GuestMemory {}

impl GuestMemory {
    pub(crate) fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooMany(regions.len()));
        }
        let sum = regions.iter().try_fold(0_u64, |sum, r| sum.checked_add(r.described.len));
        if sum.is_none_or(|sum| sum > MAX_BYTES) {
            return Err(MemoryError::TooLarge);
        }
        regions.sort_by_key(|region| region.described.guest);
        if regions.is_empty() {
            return Ok(Self::default());
        }
        let mapped = regions.iter().map(|region| Arc::clone(&region.mapped)).collect();
        let map =
            GuestMemoryMmap::from_arc_regions(mapped).map_err(|_overlap| MemoryError::Overlap)?;
        Ok(Self { map, regions })
    }

    pub(crate) fn with(&self, region: Region) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        regions.push(region);
        Self::new(regions)
    }

    pub(crate) fn without(&self, described: Described) -> Result<Self, MemoryError> {
        let is = |region: &&Region| {
            let known = region.described;
            (known.guest, known.len, known.user) == (described.guest, described.len, described.user)
        };
        if !self.regions.iter().any(|region| is(&region)) {
            return Err(MemoryError::Unknown(described));
        }
        Self::new(self.regions.iter().filter(|region| !is(region)).cloned().collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// What the queue's own structures are read and written through.
    pub(crate) fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// The guest's address of what the front end has at `user`.
    pub(crate) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().map(|region| region.described).find_map(|region| {
            let within = user.checked_sub(region.user)?;
            (within < region.len).then(|| region.guest + within)
        })
    }

    /// Adds the pieces of `len` bytes from `guest` on; false, and nothing is added, if they are not all memory.
    pub(crate) fn pieces(&self, guest: u64, len: usize, into: &mut Vec<RawIov>) -> bool {
        let before = into.len();
        let slices = self.map.get_slices(GuestAddress(guest), len);
        for slice in slices {
            let Ok(slice) = slice else {
                into.truncate(before);
                return false;
            };
            into.push(RawIov { base: slice.ptr_guard_mut().as_ptr(), len: slice.len() });
        }
        true
    }

    /// A buffer over pieces of this table.
    pub(crate) fn buffer(self: &Rc<Self>, pieces: &[RawIov]) -> IoBuf {
        let keep: Rc<dyn Memory> = Rc::<Self>::clone(self);
        IoBuf::from_parts(keep, Rc::from(pieces))
    }

    /// Notes that `buffer`, which was made of this table, was written.
    pub(crate) fn log(&self, log: &DirtyLog, buffer: &IoBuf) {
        for piece in buffer.iovecs() {
            let found = self.regions.iter().find_map(|region| {
                let within = (piece.base as usize).checked_sub(region.mapped.as_ptr() as usize)?;
                (within < region.mapped.size()).then(|| region.described.guest + within as u64)
            });
            if let Some(guest) = found {
                log.mark(guest, piece.len as u64);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use vm_memory::Bytes as _;

    /// A memfd of that length.
    pub(crate) fn memfd(len: u64) -> File {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(len).unwrap();
        file
    }

    fn described(guest: u64, len: u64) -> Described {
        Described { guest, len, user: 0x7000_0000_u64.wrapping_add(guest), offset: 0 }
    }

    fn region(guest: u64, len: u64) -> Region {
        Region::map(described(guest, len), memfd(len)).unwrap()
    }

    #[test]
    fn buffers_cross_regions_and_outlive_the_table() {
        let memory = Rc::new(
            GuestMemory::new(vec![region(0x2000, 0x1000), region(0x1000, 0x1000)]).unwrap(),
        );
        memory.map().write_slice(&[1, 2, 3, 4], GuestAddress(0x1ffe)).unwrap();
        let mut pieces = Vec::new();
        assert!(memory.pieces(0x1ffe, 4, &mut pieces));
        assert_eq!(pieces.len(), 2);
        let buffer = memory.buffer(&pieces);
        assert_eq!(memory.guest_address(0x7000_2004), Some(0x2004));
        assert_eq!(memory.guest_address(0x7000_3000), None);
        drop(memory);
        assert_eq!(buffer.to_vec(), [1, 2, 3, 4]);
    }

    #[test]
    fn what_is_not_memory_is_no_buffer() {
        let memory =
            GuestMemory::new(vec![region(0x1000, 0x1000), region(0x3000, 0x1000)]).unwrap();
        let mut pieces = Vec::new();
        for (at, len) in [(0, 1), (0x1fff, 2), (0x2000, 1), (u64::MAX, 2), (0x3fff, 0x2000)] {
            assert!(!memory.pieces(at, len, &mut pieces), "{at:x}+{len}");
            assert!(pieces.is_empty());
        }
        assert!(!GuestMemory::default().pieces(0, 1, &mut pieces));
    }

    #[test]
    fn bad_regions_are_refused() {
        assert!(matches!(
            GuestMemory::new(vec![region(0, 0x2000), region(0x1000, 0x1000)]),
            Err(MemoryError::Overlap)
        ));
        // longer than its file
        let beyond = Region::map(described(0, 0x3000), memfd(0x1000));
        assert!(matches!(beyond, Err(MemoryError::Map { .. })));
        let high = Region::map(described(u64::MAX - 10, 0x1000), memfd(0x1000));
        assert!(matches!(high, Err(MemoryError::Range(_))));
        let memory = GuestMemory::new(vec![region(0, 0x1000)]).unwrap();
        assert!(matches!(memory.without(described(0, 0x2000)), Err(MemoryError::Unknown(_))));
        let memory = memory.with(region(0x1000, 0x1000)).unwrap();
        assert!(
            memory
                .without(described(0, 0x1000))
                .unwrap()
                .without(described(0x1000, 0x1000))
                .unwrap()
                .is_empty()
        );
    }
}
