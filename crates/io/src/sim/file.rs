//! The simulated file. Requests run as tasks of their own with random delays; the file, not the
//! caller's future, owns their buffers. Bytes are taken when the write lands, not before, so that a
//! caller that touches its buffer too early is found out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::image::{Layers, PAGE, PageKind, SECTOR, Tearing};
use super::rng::SplitMix64;
use super::space::{FileId, Space};
use super::world::{Event, SimWorld};
use crate::buffer::IoBuf;
use crate::device::{
    BlockDevice, BlockFile, Clear, DeviceInfo, Durability, Extent, ExtentKind, Io, Request,
};
use crate::error::{IoError, IoErrorKind, Result};
use crate::units::{ByteCount, ByteOffset, ByteRange};

/// `SECTOR` and `PAGE` as a device tells them.
const LOGICAL_BLOCK: u32 = 512;
const PHYSICAL_BLOCK: u32 = 4096;
/// Longest single request.
const MAX_IO: u32 = 4 << 20;
/// Longest answer of `extents`; callers must go on.
const MAX_EXTENTS: usize = 64;

const fn micros(time: u64) -> Duration {
    Duration::from_micros(time)
}

/// What a file is, apart from who has it open.
#[derive(Debug, Default)]
pub(super) struct FileState {
    layers: RefCell<Layers>,
    /// Writes handed over, not landed: they may land when the world ends.
    in_flight: RefCell<BTreeMap<u64, (u64, IoBuf)>>,
    next_write: Cell<u64>,
}

impl FileState {
    pub(super) fn pages_taken(&self) -> u64 {
        self.layers.borrow().view.pages_taken()
    }

    /// Some of what is in flight lands, in any order.
    fn after_landing(&self, rng: &mut SplitMix64) -> Layers {
        let mut layers = self.layers.borrow().clone();
        let mut writes: Vec<_> = self.in_flight.borrow().values().cloned().collect();
        while !writes.is_empty() {
            let pick = usize::try_from(rng.below(writes.len() as u64)).unwrap_or(0);
            let (at, from) = writes.swap_remove(pick);
            let sectors = from.len() as u64 / SECTOR;
            // All of it, nothing, or its first sectors.
            let landing = match rng.below(3) {
                0 => 0,
                1 => sectors,
                _ => rng.between(0, sectors),
            };
            if landing > 0 {
                let bytes = from.slice(0, ByteCount(landing * SECTOR).as_len()).to_vec();
                let _number = layers.write(at, &bytes);
            }
        }
        layers
    }

    pub(super) fn after_cut(&self, rng: &mut SplitMix64) -> Self {
        let mut layers = self.after_landing(rng);
        layers.cut(Tearing::draw(rng), rng);
        Self { layers: RefCell::new(layers), ..Self::default() }
    }

    pub(super) fn after_kill(&self, rng: &mut SplitMix64) -> Self {
        Self { layers: RefCell::new(self.after_landing(rng)), ..Self::default() }
    }
}

/// A file of the simulated world.
#[derive(Clone, Debug)]
pub struct SimFile {
    world: SimWorld,
    space: Rc<Space>,
    id: FileId,
    state: Rc<FileState>,
    read_only: bool,
}

impl SimFile {
    pub(super) fn new(
        world: SimWorld,
        space: Rc<Space>,
        id: FileId,
        state: Rc<FileState>,
        read_only: bool,
    ) -> Self {
        Self { world, space, id, state, read_only }
    }

    /// Its number in the space.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// What reads would see, at once and without an event; for checks of a harness.
    ///
    /// # Panics
    /// If the range lies outside the file.
    #[must_use]
    pub fn peek(&self, range: ByteRange) -> Vec<u8> {
        let layers = self.state.layers.borrow();
        assert!(range.is_within(ByteCount(layers.view.len)), "peek {range:?} of {}", self.name());
        let mut bytes = vec![0; range.len.as_len()];
        layers.view.read(range.start.0, &mut bytes);
        bytes
    }

    fn name(&self) -> String {
        format!("simulated file {}", self.id.0)
    }

    fn error(&self, kind: IoErrorKind, what: impl std::fmt::Display) -> IoError {
        IoError::new(kind, format!("{}: {what}", self.name()))
    }

    fn check(&self, range: ByteRange, writes: bool, may_extend: bool) -> Result<()> {
        if writes && self.read_only {
            return Err(self.error(IoErrorKind::ReadOnly, "it was opened for reading"));
        }
        if !range.start.is_aligned(LOGICAL_BLOCK) || !range.len.0.is_multiple_of(SECTOR) {
            let what = format!("{range:?} is not in whole sectors");
            return Err(self.error(IoErrorKind::Misaligned, what));
        }
        let size = self.state.layers.borrow().view.len;
        let inside =
            if may_extend { range.end().is_some() } else { range.is_within(ByteCount(size)) };
        if !inside {
            let what = format!("{range:?} lies outside its {size} bytes");
            return Err(self.error(IoErrorKind::OutOfRange, what));
        }
        Ok(())
    }

    fn check_length(&self, len: u64) -> Result<()> {
        if len > u64::from(MAX_IO) {
            let what = format!("a request of {len} bytes is longer than {MAX_IO}");
            return Err(self.error(IoErrorKind::Misaligned, what));
        }
        Ok(())
    }

    /// Pages of the range that writing would have to take.
    fn holes(&self, range: ByteRange) -> u64 {
        let layers = self.state.layers.borrow();
        let pages = range.start.0 / PAGE..(range.start.0 + range.len.0).div_ceil(PAGE);
        pages.filter(|page| layers.view.kind(*page) == PageKind::Hole).count() as u64
    }

    async fn read(self, at: u64, into: IoBuf) -> Result<()> {
        self.world.delay(micros(20), micros(200)).await;
        if self.space.faults.read.strikes() {
            return Err(self.error(IoErrorKind::Device, "a read failed, as the harness wished"));
        }
        // The file may have been cut short since the read was checked.
        self.check(ByteRange { start: ByteOffset(at), len: into.count() }, false, false)?;
        let mut bytes = vec![0; into.len()];
        self.state.layers.borrow().view.read(at, &mut bytes);
        into.write_at(0, &bytes);
        Ok(())
    }

    async fn write(self, at: u64, from: IoBuf, durability: Durability) -> Result<()> {
        let (file, len) = (self.id, from.len() as u64);
        self.world.alive().await;
        let ticket = self.state.next_write.get();
        self.state.next_write.set(ticket + 1);
        self.state.in_flight.borrow_mut().insert(ticket, (at, from.clone()));
        self.world.happened(&Event::WriteSubmitted { file, at, len });
        self.world.delay(micros(20), micros(400)).await;
        let landed = self.land(at, &from);
        self.state.in_flight.borrow_mut().remove(&ticket);
        let number = landed?;
        if durability == Durability::Durable {
            self.state.layers.borrow_mut().made_durable(number, at, len);
        }
        self.world.happened(&Event::WriteLanded { file, at, len });
        self.world.alive().await;
        Ok(())
    }

    fn land(&self, at: u64, from: &IoBuf) -> Result<u64> {
        let bytes = from.to_vec();
        self.space.check_free(self.holes(ByteRange::new(at, bytes.len() as u64)))?;
        let mut layers = self.state.layers.borrow_mut();
        if self.space.faults.write.strikes() {
            let sectors = bytes.len() as u64 / SECTOR;
            let part = self.world.random(|rng| rng.between(0, sectors)) * SECTOR;
            if part > 0 {
                let _number = layers.write(at, &bytes[..ByteCount(part).as_len()]);
            }
            return Err(self.error(IoErrorKind::Device, "a write failed, as the harness wished"));
        }
        Ok(layers.write(at, &bytes))
    }

    async fn clear(self, range: ByteRange, how: Clear, durability: Durability) -> Result<()> {
        self.world.delay(micros(20), micros(400)).await;
        let (at, len) = (range.start.0, range.len.0);
        self.check(range, true, false)?;
        if how == Clear::KeepSpace {
            self.space.check_free(self.holes(range))?;
        }
        {
            let mut layers = self.state.layers.borrow_mut();
            let number = layers.clear(at, len, how == Clear::Deallocate);
            if durability == Durability::Durable {
                layers.made_durable(number, at, len);
            }
        }
        self.world.happened(&Event::Cleared { file: self.id, at, len });
        self.world.alive().await;
        Ok(())
    }

    async fn flush(self, covers: u64) -> Result<()> {
        self.world.happened(&Event::FlushSubmitted { file: self.id });
        self.world.delay(micros(100), micros(2000)).await;
        if self.space.faults.flush.strikes() {
            let mut layers = self.state.layers.borrow_mut();
            self.world.random(|rng| layers.flush_failed(covers, rng));
            return Err(self.error(IoErrorKind::Device, "a flush failed, as the harness wished"));
        }
        self.state.layers.borrow_mut().flushed(covers);
        self.world.happened(&Event::Flushed { file: self.id });
        self.world.alive().await;
        Ok(())
    }

    async fn take_space(self, range: ByteRange) -> Result<()> {
        self.world.delay(micros(20), micros(200)).await;
        if self.space.faults.reserve.strikes() {
            return Err(self.error(IoErrorKind::NoSpace, "no space, as the harness wished"));
        }
        self.space.check_free(self.holes(range))?;
        let (at, len) = (range.start.0, range.len.0);
        let _number = self.state.layers.borrow_mut().reserve(at, len);
        self.world.happened(&Event::Reserved { file: self.id, at, len });
        self.world.alive().await;
        Ok(())
    }

    async fn cut_to(self, len: u64) -> Result<()> {
        self.world.delay(micros(20), micros(200)).await;
        let _number = self.state.layers.borrow_mut().truncate(len);
        self.world.happened(&Event::Truncated { file: self.id, len });
        self.world.alive().await;
        Ok(())
    }

    /// Hands an operation to the device: from here on it runs whether or not anyone waits.
    async fn run(&self, operation: impl Future<Output = Result<()>> + 'static) -> Result<()> {
        self.world.alive().await;
        self.world.local().spawn(operation).await
    }

    async fn serve(&self, request: Request) -> Result<()> {
        let this = self.clone();
        match request {
            Request::Read { at, into } => {
                self.check(ByteRange { start: at, len: into.count() }, false, false)?;
                self.check_length(into.len() as u64)?;
                self.run(this.read(at.0, into)).await
            }
            Request::Write { at, from, durability } => {
                self.check(ByteRange { start: at, len: from.count() }, true, true)?;
                self.check_length(from.len() as u64)?;
                self.run(this.write(at.0, from, durability)).await
            }
            // the simulated store clears without writing, whatever the effort
            Request::Clear { range, how, effort: _, durability } => {
                self.check(range, true, false)?;
                self.run(this.clear(range, how, durability)).await
            }
            Request::Flush => {
                let covers = self.state.layers.borrow().landed();
                self.run(this.flush(covers)).await
            }
        }
    }

    fn list_extents(&self, range: ByteRange) -> Vec<Extent> {
        let layers = self.state.layers.borrow();
        let end = range.start.0 + range.len.0;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start.0;
        while at < end {
            let page = at / PAGE;
            let kind = layers.view.kind(page);
            let next = match kind {
                PageKind::Hole => layers.view.next_taken(page).map_or(end, |next| next * PAGE),
                PageKind::Data | PageKind::Zero => (page + 1) * PAGE,
            };
            let len = next.min(end) - at;
            let kind = match kind {
                PageKind::Data => ExtentKind::Data,
                PageKind::Zero => ExtentKind::Zero,
                PageKind::Hole => ExtentKind::Hole,
            };
            let next = Extent::flat(ByteRange::new(at, len), kind);
            if !extents.last_mut().is_some_and(|last| last.absorbs(&next)) {
                if extents.len() == MAX_EXTENTS {
                    break;
                }
                extents.push(next);
            }
            at += len;
        }
        extents
    }
}

impl BlockDevice for SimFile {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size: ByteCount(self.state.layers.borrow().view.len),
            logical_block: LOGICAL_BLOCK,
            physical_block: PHYSICAL_BLOCK,
            memory_align: 1,
            max_io: MAX_IO,
            clear_granularity: PHYSICAL_BLOCK,
            read_only: self.read_only,
        }
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        Box::pin(self.serve(request))
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        Box::pin(async move {
            self.world.delay(micros(1), micros(50)).await;
            self.check(range, false, false)?;
            Ok(self.list_extents(range))
        })
    }
}

impl BlockFile for SimFile {
    fn reserve(&self, range: ByteRange) -> Io<'_, Result<()>> {
        Box::pin(async move {
            self.check(range, true, true)?;
            self.run(self.clone().take_space(range)).await
        })
    }

    fn truncate(&self, len: ByteCount) -> Io<'_, Result<()>> {
        Box::pin(async move {
            self.check(ByteRange { start: ByteOffset(0), len }, true, true)?;
            self.run(self.clone().cut_to(len.0)).await
        })
    }

    fn used(&self) -> Io<'_, Result<ByteCount>> {
        Box::pin(async move {
            self.world.alive().await;
            Ok(ByteCount(self.state.pages_taken() * PAGE))
        })
    }
}
