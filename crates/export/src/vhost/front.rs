//! One front end's connection, on the home thread: what it negotiated, its memory, its queues.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::rc::Rc;

use futures_util::future::join_all;
use io::{BlockDevice, Ring};
use rustix::fs::OFlags;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::blk;
use super::dirty::DirtyLog;
use super::inflight::{self, Inflight};
use super::memory::{Described, GuestMemory, Region};
use super::ring::{self, Call, Fate, Shared, Vring};
use super::turn::Turn;

/// Of the transport: the front end logs dirty pages.
pub(crate) const LOG_ALL: u64 = 1 << 26;
/// Of the transport: there are protocol features.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What is said to a front end that is refused something: to the log, as the protocol has no words for it.
pub(crate) type Refusal = String;
type Outcome<T> = Result<T, Refusal>;

/// A connection's state. Everything here happens on the home thread, in the order it was said.
pub(crate) struct Front {
    shared: Rc<Shared>,
    queues: Vec<Rc<Vring>>,
    features: Cell<u64>,
    /// The guest's own choice, where it may choose.
    writeback: Cell<bool>,
    log: RefCell<Option<Rc<DirtyLog>>>,
    /// This side goes: nothing is set up any more.
    closing: Cell<bool>,
}

impl Front {
    pub(crate) fn new(
        ring: &Ring,
        device: Rc<dyn BlockDevice>,
        serial: &str,
        read_only: bool,
        turn: Turn,
    ) -> Self {
        let shared = Rc::new(Shared {
            ring: ring.clone(),
            device,
            serial: serial.to_owned(),
            read_only,
            memory: RefCell::default(),
            log: RefCell::default(),
            inflight: RefCell::default(),
            write_through: Cell::new(true),
            event_idx: Cell::new(false),
            turn,
        });
        let queues = (0..blk::QUEUES).map(|index| Vring::new(index, &shared)).collect();
        Self {
            shared,
            queues,
            features: Cell::new(0),
            writeback: Cell::new(true),
            log: RefCell::default(),
            closing: Cell::new(false),
        }
    }

    /// The queue of that number, to be set up.
    fn idle_queue(&self, index: u32) -> Outcome<&Rc<Vring>> {
        if self.closing.get() {
            return Err("the disk is being closed".into());
        }
        self.queue(index)
    }

    fn queue(&self, index: u32) -> Outcome<&Rc<Vring>> {
        let queue = usize::try_from(index).ok().and_then(|index| self.queues.get(index));
        queue.ok_or_else(|| format!("there is no queue {index}; a disk has {}", blk::QUEUES))
    }

    // --- features and configuration ---

    /// What is offered.
    pub(crate) fn features(&self) -> u64 {
        let transport = (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | PROTOCOL_FEATURES
            | LOG_ALL;
        transport | blk::features(self.shared.read_only)
    }

    pub(crate) fn set_features(&self, features: u64) -> Outcome<()> {
        let unknown = features & !self.features();
        if unknown != 0 {
            return Err(format!("features {unknown:#x} were not offered"));
        }
        self.features.set(features);
        self.shared.event_idx.set(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        self.set_write_through();
        self.set_logging();
        if features & PROTOCOL_FEATURES == 0 {
            // then there is no message that enables queues
            self.queues.iter().for_each(|queue| queue.enable(true));
        }
        Ok(())
    }

    /// A guest that cannot flush, or that switched its cache off, gets durable writes.
    fn set_write_through(&self) {
        let features = self.features.get();
        let flushes = features & blk::FLUSH != 0;
        let chosen = features & blk::CONFIG_WCE == 0 || self.writeback.get();
        self.shared.write_through.set(!flushes || !chosen);
    }

    fn set_logging(&self) {
        let logs = self.features.get() & LOG_ALL != 0;
        let log = self.log.borrow().as_ref().filter(|_| logs).cloned();
        *self.shared.log.borrow_mut() = log;
    }

    /// Bytes of the configuration space; behind its end are zeros.
    pub(crate) fn config(&self, offset: u32, len: u32) -> Vec<u8> {
        let space = blk::config(&self.shared.device.info(), blk::QUEUES, self.writeback.get());
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = space.get(from..).unwrap_or_default();
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(256);
        let mut bytes = vec![0; len];
        let known = rest.len().min(len);
        bytes[..known].copy_from_slice(&rest[..known]);
        bytes
    }

    /// The guest switches its write cache; nothing else can be written.
    pub(crate) fn set_config(&self, offset: u32, bytes: &[u8]) -> Outcome<()> {
        let (blk::WRITEBACK_AT, [on @ (0 | 1)]) = (offset, bytes) else {
            return Err(format!("the configuration cannot be changed at {offset}"));
        };
        self.writeback.set(*on == 1);
        if let Some(inflight) = &*self.shared.inflight.borrow() {
            inflight.set_write_through(*on == 0);
        }
        self.set_write_through();
        Ok(())
    }

    // --- memory ---

    pub(crate) fn set_memory(&self, regions: Vec<(Described, File)>) -> Outcome<()> {
        let mapped = regions.into_iter().map(|(described, file)| Region::map(described, file));
        let mapped: Vec<Region> = mapped.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        self.remember(GuestMemory::new(mapped))
    }

    pub(crate) fn add_memory(&self, described: Described, file: File) -> Outcome<()> {
        let region = Region::map(described, file).map_err(|error| error.to_string())?;
        let memory = self.shared.memory.borrow().with(region);
        self.remember(memory)
    }

    pub(crate) fn remove_memory(&self, described: Described) -> Outcome<()> {
        let memory = self.shared.memory.borrow().without(described);
        self.remember(memory)
    }

    fn remember(&self, memory: Result<GuestMemory, super::memory::MemoryError>) -> Outcome<()> {
        let memory = Rc::new(memory.map_err(|error| error.to_string())?);
        *self.shared.memory.borrow_mut() = memory;
        Ok(())
    }

    pub(crate) fn set_log(&self, file: File, offset: u64, len: u64) -> Outcome<()> {
        *self.log.borrow_mut() = Some(Rc::new(DirtyLog::map(file, offset, len)?));
        self.set_logging();
        Ok(())
    }

    // --- requests in flight ---

    /// Fresh memory for them: its length and itself.
    pub(crate) fn new_inflight(&self, queues: u16, descriptors: u16) -> Outcome<(u64, File)> {
        Self::check_inflight(queues, descriptors)?;
        Ok((inflight::len_for(queues, descriptors), Inflight::create(queues, descriptors)?))
    }

    pub(crate) fn set_inflight(
        &self,
        file: File,
        offset: u64,
        queues: u16,
        descriptors: u16,
    ) -> Outcome<()> {
        Self::check_inflight(queues, descriptors)?;
        if self.closing.get() || self.queues.iter().any(|queue| queue.is_busy()) {
            return Err("queues are running".into());
        }
        let inflight = Inflight::map(file, offset, queues, descriptors)?;
        // what the guest chose before the process that it told it to died
        self.writeback.set(!inflight.is_write_through());
        self.set_write_through();
        *self.shared.inflight.borrow_mut() = Some(Rc::new(inflight));
        Ok(())
    }

    fn check_inflight(queues: u16, descriptors: u16) -> Outcome<()> {
        let fits =
            (1..=blk::QUEUES).contains(&queues) && (1..=blk::QUEUE_SIZE).contains(&descriptors);
        fits.then_some(()).ok_or_else(|| format!("{queues} queues of {descriptors} descriptors"))
    }

    // --- queues ---

    pub(crate) fn set_size(&self, index: u32, size: u32) -> Outcome<()> {
        self.idle_queue(index)?.set_size(size).map_err(|error| error.to_string())
    }

    /// The ring's three addresses, and where changes of the used ring are logged.
    pub(crate) fn set_addresses(
        &self,
        index: u32,
        addresses: [u64; 3],
        used_log: Option<u64>,
    ) -> Outcome<()> {
        self.idle_queue(index)?
            .set_addresses(addresses, used_log)
            .map_err(|error| error.to_string())
    }

    pub(crate) fn set_base(&self, index: u32, base: u32) -> Outcome<()> {
        let base = u16::try_from(base).map_err(|_too_high| format!("a queue begins at {base}"))?;
        self.idle_queue(index)?.set_base(base).map_err(|error| error.to_string())
    }

    pub(crate) fn kick(&self, index: u32, fd: Option<File>) -> Outcome<()> {
        let fd = fd.map(eventfd).transpose()?;
        if let Some(fd) = &fd {
            // its other side only writes it
            rustix::fs::fcntl_getfl(fd)
                .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK))
                .map_err(|error| format!("a kick cannot be made non-blocking: {error}"))?;
        }
        self.idle_queue(index)?.start(fd).map_err(|error| error.to_string())
    }

    pub(crate) fn set_call(&self, index: u32, fd: Option<File>) -> Outcome<()> {
        let call = |fd: Rc<OwnedFd>| Call { blocks: !ring::is_nonblocking(&fd), fd };
        let call = fd.map(eventfd).transpose()?.map(call);
        self.queue(index)?.set_call(call);
        Ok(())
    }

    pub(crate) fn enable(&self, index: u32, enabled: bool) -> Outcome<()> {
        self.queue(index)?.enable(enabled);
        Ok(())
    }

    pub(crate) async fn stop(&self, index: u32) -> Outcome<u32> {
        let next = self.queue(index)?.stop(Fate::Fail).await;
        self.maybe_give_back();
        Ok(u32::from(next))
    }

    /// Stops all queues and forgets what was negotiated.
    pub(crate) async fn reset(&self) {
        join_all(self.queues.iter().map(|queue| queue.stop(Fate::Fail))).await;
        self.queues.iter().for_each(|queue| queue.enable(false));
        self.features.set(0);
        self.writeback.set(true);
        self.set_write_through();
        self.set_logging();
        self.shared.turn.give_back();
    }

    fn maybe_give_back(&self) {
        if !self.queues.iter().any(|queue| queue.is_busy()) {
            self.shared.turn.give_back();
        }
    }

    /// The front end is gone.
    pub(crate) async fn end(&self) {
        join_all(self.queues.iter().map(|queue| queue.end())).await;
        self.shared.turn.give_back();
    }

    /// This side goes: what is under way is answered, so that the front end needs nobody for it.
    pub(crate) async fn drain(&self) {
        self.closing.set(true);
        join_all(self.queues.iter().map(|queue| queue.stop(Fate::Leave))).await;
    }

    /// Writes that wait are left to the next process now.
    pub(crate) fn let_writes_go(&self) {
        self.closing.set(true);
        self.queues.iter().for_each(|queue| queue.let_writes_go(Fate::Leave));
    }
}

/// Takes only what kicks and calls are: another kind of file might keep a thread for as long as it likes.
fn eventfd(file: File) -> Outcome<Rc<OwnedFd>> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if !link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]") {
        return Err("a kick or call that is no eventfd".into());
    }
    Ok(Rc::new(file.into()))
}
