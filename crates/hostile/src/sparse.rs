//! A file in memory that takes no time and no space where it is zero. The simulated one is fairer to
//! what disks do, and hundreds of times slower.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::ready;
use std::rc::Rc;

use io::{
    BlockDevice, BlockFile, ByteCount, ByteRange, DeviceInfo, Extent, ExtentKind, Io, IoError,
    IoErrorKind, Request, Result,
};

const SECTOR: u64 = 512;

pub(crate) struct SparseFile {
    len: Cell<u64>,
    /// By number, those that are not zero.
    sectors: RefCell<BTreeMap<u64, [u8; 512]>>,
}

impl SparseFile {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { len: Cell::new(0), sectors: RefCell::default() })
    }

    fn grow(&self, end: u64) {
        self.len.set(self.len.get().max(end));
    }

    fn clear(&self, from: u64, to: u64) {
        let mut sectors = self.sectors.borrow_mut();
        let mut rest = sectors.split_off(&from);
        sectors.append(&mut rest.split_off(&to));
    }

    fn run(&self, request: Request) -> Result<()> {
        match request {
            Request::Read { at, into } => {
                let mut bytes = vec![0; into.len()];
                if at.0 + bytes.len() as u64 > self.len.get() {
                    return Err(IoError::new(IoErrorKind::OutOfRange, "a read beyond the end"));
                }
                let sectors = self.sectors.borrow();
                for (number, part) in (at.0 / SECTOR..).zip(bytes.chunks_mut(512)) {
                    if let Some(sector) = sectors.get(&number) {
                        part.copy_from_slice(&sector[..part.len()]);
                    }
                }
                into.write_at(0, &bytes);
            }
            Request::Write { at, from, durability: _ } => {
                let bytes = from.to_vec();
                let (parts, rest) = bytes.as_chunks::<512>();
                assert!(rest.is_empty() && at.0 % SECTOR == 0, "whole sectors");
                self.grow(at.0 + bytes.len() as u64);
                self.sectors.borrow_mut().extend((at.0 / SECTOR..).zip(parts.iter().copied()));
            }
            Request::Clear { range, .. } => {
                self.clear(range.start.0 / SECTOR, (range.start.0 + range.len.0) / SECTOR);
            }
            Request::Flush => {}
        }
        Ok(())
    }
}

impl BlockDevice for SparseFile {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size: ByteCount(self.len.get()),
            logical_block: 512,
            physical_block: 4096,
            memory_align: 512,
            max_io: 1 << 20,
            clear_granularity: 4096,
            read_only: false,
        }
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        Box::pin(ready(self.run(request)))
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        Box::pin(ready(Ok(vec![Extent::flat(range, ExtentKind::Data)])))
    }
}

impl BlockFile for SparseFile {
    fn reserve(&self, range: ByteRange) -> Io<'_, Result<()>> {
        self.grow(range.start.0 + range.len.0);
        Box::pin(ready(Ok(())))
    }

    fn truncate(&self, len: ByteCount) -> Io<'_, Result<()>> {
        self.clear(len.0.div_ceil(SECTOR), u64::MAX);
        self.len.set(len.0);
        Box::pin(ready(Ok(())))
    }

    fn used(&self) -> Io<'_, Result<ByteCount>> {
        Box::pin(ready(Ok(ByteCount(self.sectors.borrow().len() as u64 * SECTOR))))
    }
}
