//! A guest's side of a vhost-user-blk device without a guest, for tests and benchmarks (feature `driver`).
//!
//! Requests name one of the driver's buffers; as many can be in flight as there are buffers.

use std::fmt;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use virtio_driver::{
    QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

/// A connection with one queue.
pub struct Driver {
    // dropped in this order: the queue lies in the transport's memory
    queue: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    completions: std::sync::Arc<virtio_driver::EventFd>,
    transport: Box<VirtioBlkTransport>,
    buffers: Buffers,
}

/// Memory that both sides have mapped.
struct Buffers {
    base: NonNull<u8>,
    each: usize,
    count: usize,
    fd: OwnedFd,
}

impl Buffers {
    #[expect(unsafe_code, reason = "maps memory that is shared with the device")]
    fn map(each: usize, count: usize) -> std::io::Result<Self> {
        let len = each * count;
        let fd = rustix::fs::memfd_create("driver", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        let (prot, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a new mapping at an address the kernel chooses overlaps nothing of ours.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, &fd, 0)? };
        let base = NonNull::new(base.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, each, count, fd })
    }

    /// The first `len` bytes of a buffer.
    fn at(&self, buffer: usize, len: usize) -> *mut u8 {
        assert!(buffer < self.count && len <= self.each, "{len} bytes of buffer {buffer}");
        self.base.as_ptr().wrapping_add(buffer * self.each)
    }
}

impl Drop for Buffers {
    #[expect(unsafe_code, reason = "unmaps what was mapped")]
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and of this length; no reference into it exists.
        let unmapped =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.each * self.count) };
        debug_assert!(unmapped.is_ok(), "unmapping what was mapped");
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("buffers", &self.buffers.count).finish_non_exhaustive()
    }
}

/// A request that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its buffer.
    pub buffer: usize,
    /// Whether it succeeded.
    pub ok: bool,
}

impl Driver {
    /// Connects, with `count` buffers of `each` bytes.
    ///
    /// # Errors
    /// The system's, and whatever the device refuses.
    pub fn connect(socket: &Path, each: usize, count: usize) -> std::io::Result<Self> {
        let path = socket.to_str().ok_or(std::io::ErrorKind::InvalidInput)?;
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let own = VirtioBlkFeatureFlags::FLUSH
            | VirtioBlkFeatureFlags::MQ
            | VirtioBlkFeatureFlags::DISCARD
            | VirtioBlkFeatureFlags::WRITE_ZEROES;
        let vhost =
            VhostUser::new(path, features.bits() | own.bits()).map_err(std::io::Error::other)?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(vhost);
        let buffers = Buffers::map(each, count)?;
        let len = each * count;
        transport.map_mem_region(buffers.base.as_ptr() as usize, len, buffers.fd.as_raw_fd(), 0)?;
        let size = u16::try_from(4 * count.max(32)).unwrap_or(1024).next_power_of_two().min(1024);
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, size)?;
        let mut queue = queues.pop().ok_or(std::io::ErrorKind::NotFound)?;
        queue.set_used_notif_enabled(true);
        let notifier = transport.get_submission_notifier(0);
        let completions = transport.get_completion_fd(0);
        // as QEMU's are
        let flags = rustix::fs::fcntl_getfl(raw(&completions))?;
        rustix::fs::fcntl_setfl(raw(&completions), flags | OFlags::NONBLOCK)?;
        Ok(Self { queue, notifier, completions, transport, buffers })
    }

    /// Bytes of the disk.
    ///
    /// # Errors
    /// When the device does not say.
    pub fn capacity(&self) -> std::io::Result<u64> {
        Ok(u64::from(self.transport.get_config()?.capacity) * 512)
    }

    /// Fills a buffer.
    #[expect(unsafe_code, reason = "writes shared memory")]
    pub fn put(&mut self, buffer: usize, bytes: &[u8]) {
        let to = self.buffers.at(buffer, bytes.len());
        // SAFETY: `at` checked the range, which is mapped; `bytes` is memory of its own.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// The first bytes of a buffer.
    #[must_use]
    #[expect(unsafe_code, reason = "reads shared memory")]
    pub fn get(&self, buffer: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let from = self.buffers.at(buffer, len);
        // SAFETY: `at` checked the range, which is mapped; `bytes` is memory of its own.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) }
        bytes
    }

    /// Reads into a buffer.
    ///
    /// # Errors
    /// When the queue is full.
    #[expect(unsafe_code, reason = "names memory to the device")]
    pub fn read(&mut self, buffer: usize, at: u64, len: usize) -> std::io::Result<()> {
        let to = self.buffers.at(buffer, len);
        // SAFETY: `at` checked the range, which is mapped as long as the queue lives.
        unsafe { self.queue.read_raw(at, to, len, buffer) }
    }

    /// Writes from a buffer.
    ///
    /// # Errors
    /// When the queue is full.
    #[expect(unsafe_code, reason = "names memory to the device")]
    pub fn write(&mut self, buffer: usize, at: u64, len: usize) -> std::io::Result<()> {
        let from = self.buffers.at(buffer, len);
        // SAFETY: `at` checked the range, which is mapped as long as the queue lives.
        unsafe { self.queue.write_raw(at, from, len, buffer) }
    }

    /// Flushes; `buffer` only names the request.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn flush(&mut self, buffer: usize) -> std::io::Result<()> {
        self.queue.flush(buffer)
    }

    /// Zeroes a range, giving its space back.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn zero(&mut self, buffer: usize, at: u64, len: u64) -> std::io::Result<()> {
        self.queue.write_zeroes(at, len, true, buffer)
    }

    /// Tells the device of new requests, where it wants to know.
    ///
    /// # Errors
    /// The system's.
    pub fn kick(&mut self) -> std::io::Result<()> {
        if self.queue.avail_notif_needed() { self.notifier.notify() } else { Ok(()) }
    }

    /// Requests that ended since the last call.
    pub fn ended(&mut self) -> Vec<Ended> {
        self.queue.completions().map(|c| Ended { buffer: c.context, ok: c.ret == 0 }).collect()
    }

    /// Waits until requests ended; empty when `limit` is over first.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&mut self, limit: Duration) -> std::io::Result<Vec<Ended>> {
        loop {
            let ended = self.ended();
            if !ended.is_empty() {
                return Ok(ended);
            }
            let mut fds = [PollFd::from_borrowed_fd(raw(&self.completions), PollFlags::IN)];
            let limit = Timespec::try_from(limit).map_err(std::io::Error::other)?;
            if poll(&mut fds, Some(&limit))? == 0 {
                return Ok(self.ended());
            }
            let _taken = self.completions.read();
        }
    }
}

/// The descriptor, for this workspace's version of rustix.
fn raw(fd: &virtio_driver::EventFd) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}
