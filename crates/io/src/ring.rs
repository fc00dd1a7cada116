//! The real [`Park`]: io_uring, or poll(2) and a pool of threads where io_uring is missing or
//! forbidden. One [`Ring`] per home thread; files and sockets alike.
//!
//! ```text
//!   async fn ─► slot {fd, IoBufs, iovecs} ─► submission queue ─┐ (batched: one system call
//!      ▲                                                       ▼  submits and waits)
//!      └── waker ◄── slot: Done(result) ◄── completion ◄── Park::park
//! ```
//!
//! The slot, not the future, owns the descriptor and the buffers until the kernel is done with
//! them: dropping a future detaches. Of what waits for somebody else's bytes (accept, receive, poll)
//! dropping also asks the kernel to give up; data that such a request took already is lost.

mod helpers;
mod slots;
mod threads;
mod uring;

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::fs::FallocateFlags;
use rustix::time::ClockId;

use crate::buffer::IoBuf;
use crate::local::{BootInstant, Executor, Local, Park, Unpark};
use crate::units::ByteRange;
use helpers::Helpers;
use slots::Op;
use threads::Threads;
use uring::Uring;

/// Environment variable that chooses the backend: `threads` forces the fall-back.
const BACKEND: &str = "SHALE_IO";

/// The kernel's side of a home thread: files, sockets, helper threads.
#[derive(Clone)]
pub struct Ring {
    local: Local,
    backend: Backend,
    helpers: Rc<Helpers>,
}

#[derive(Clone)]
enum Backend {
    Uring(Rc<Uring>),
    Threads(Rc<Threads>),
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("backend", &self.backend()).finish_non_exhaustive()
    }
}

/// Which backend [`Ring::start_with`] uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// io_uring where the kernel has it and permits it, threads otherwise.
    Best,
    /// io_uring or an error.
    Uring,
    /// Threads.
    Threads,
}

fn boot_now() -> BootInstant {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    BootInstant::at(now.try_into().expect("the time since boot is not negative"))
}

impl Backend {
    fn park(&self, until: Option<BootInstant>) {
        let wait = until.map(|until| {
            if until == BootInstant::default() {
                std::time::Duration::ZERO
            } else {
                until - boot_now()
            }
        });
        match self {
            Self::Uring(uring) => uring.park(wait),
            Self::Threads(threads) => threads.park(wait),
        }
    }
}

struct RingPark(Backend);

impl Park for RingPark {
    fn now(&self) -> BootInstant {
        boot_now()
    }

    fn park(&mut self, until: Option<BootInstant>) {
        self.0.park(until);
    }

    fn waker(&self) -> Arc<dyn Unpark> {
        match &self.0 {
            Backend::Uring(uring) => uring.waker(),
            Backend::Threads(threads) => threads.waker(),
        }
    }
}

impl Ring {
    /// An executor for the calling thread and its ring. `SHALE_IO=threads` forces the fall-back.
    ///
    /// # Errors
    /// When not even an eventfd can be had.
    pub fn start() -> io::Result<(Executor, Self)> {
        let forced = std::env::var_os(BACKEND).is_some_and(|choice| choice == "threads");
        Self::start_with(if forced { Choice::Threads } else { Choice::Best })
    }

    /// Like [`Ring::start`] with the backend said.
    ///
    /// # Errors
    /// When the backend cannot be had.
    pub fn start_with(choice: Choice) -> io::Result<(Executor, Self)> {
        let helpers = Rc::new(Helpers::default());
        let threads = |helpers: &Rc<Helpers>| {
            Threads::start(Rc::clone(helpers)).map(|threads| Backend::Threads(Rc::new(threads)))
        };
        let backend = match choice {
            Choice::Threads => threads(&helpers)?,
            Choice::Uring => Backend::Uring(Rc::new(Uring::start()?)),
            Choice::Best => match Uring::start() {
                Ok(uring) => Backend::Uring(Rc::new(uring)),
                Err(error) => {
                    tracing::info!(%error, "io_uring is not to be had; using threads for I/O");
                    threads(&helpers)?
                }
            },
        };
        let executor = Executor::new(Box::new(RingPark(backend.clone())));
        let ring = Self { local: executor.local(), backend, helpers };
        Ok((executor, ring))
    }

    /// The executor's handle.
    #[must_use]
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// `io_uring` or `threads`.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        match self.backend {
            Backend::Uring(_) => "io_uring",
            Backend::Threads(_) => "threads",
        }
    }

    /// Keeps the open file description of `fd` open until the kernel has ended every request of this ring,
    /// also those of a process that was killed: a lock on it tells when that is. Called once for a ring.
    ///
    /// # Errors
    /// The system's.
    pub fn hold(&self, fd: &OwnedFd) -> io::Result<()> {
        match &self.backend {
            Backend::Uring(uring) => uring.hold(fd.as_raw_fd()),
            // a process does not end before its threads' requests have
            Backend::Threads(_) => Ok(()),
        }
    }

    /// Fills `buf` from byte `at` of a file.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` where the file ends before.
    pub async fn read(&self, fd: &Rc<OwnedFd>, at: u64, buf: &IoBuf) -> io::Result<()> {
        if self.read_up_to(fd, at, buf).await? < buf.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Fills `buf` from byte `at` of a file, or as much of it as the file has; says how much.
    ///
    /// # Errors
    /// The system's.
    pub async fn read_up_to(&self, fd: &Rc<OwnedFd>, at: u64, buf: &IoBuf) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let part = rest_of(buf, done);
            match self.run(Op::Read { at: at + done as u64 }, fd, [part]).await {
                Ok(0) => break,
                Ok(n) => done += n,
                // Direct I/O gives a crooked tail of a file, but cannot go on behind it.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && done % 512 != 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes all of `buf` at byte `at` of a file; with `dsync`, completes when it is durable.
    ///
    /// # Errors
    /// The system's.
    pub async fn write(
        &self,
        fd: &Rc<OwnedFd>,
        at: u64,
        buf: &IoBuf,
        dsync: bool,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let part = rest_of(buf, done);
            match self.run(Op::Write { at: at + done as u64, dsync }, fd, [part]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    /// Makes the completed writes of a file durable.
    ///
    /// # Errors
    /// The system's. After an error nothing is known about any of the writes.
    pub async fn fdatasync(&self, fd: &Rc<OwnedFd>) -> io::Result<()> {
        self.run(Op::Fdatasync, fd, []).await.map(drop)
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// The system's.
    pub async fn fallocate(
        &self,
        fd: &Rc<OwnedFd>,
        mode: FallocateFlags,
        range: ByteRange,
    ) -> io::Result<()> {
        let mode = mode.bits().cast_signed();
        self.run(Op::Fallocate { mode, at: range.start.0, len: range.len.0 }, fd, [])
            .await
            .map(drop)
    }

    /// Sets a file's length.
    ///
    /// # Errors
    /// The system's.
    pub async fn ftruncate(&self, fd: &Rc<OwnedFd>, len: u64) -> io::Result<()> {
        // The helper holds the open file description (not just its number): a lock on it stays
        // until the change has landed, even if everybody here lets go.
        let fd = fd.try_clone()?;
        self.run_blocking(move || rustix::fs::ftruncate(fd, len)).await.map_err(io::Error::from)
    }

    /// The next connection of a listening socket.
    ///
    /// # Errors
    /// The system's.
    pub async fn accept(&self, fd: &Rc<OwnedFd>) -> io::Result<OwnedFd> {
        let accepted = self.run(Op::Accept, fd, []).await?;
        let raw = i32::try_from(accepted).map_err(io::Error::other)?;
        #[expect(unsafe_code, reason = "takes over the descriptor that the kernel made")]
        // SAFETY: accept returned a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(fd)
    }

    /// Receives some bytes, as many as are there; 0 means the peer has closed.
    ///
    /// # Errors
    /// The system's.
    pub async fn recv(&self, fd: &Rc<OwnedFd>, buf: &IoBuf) -> io::Result<usize> {
        self.run(Op::Recv { all: false }, fd, [buf.clone()]).await
    }

    /// Receives until `buf` is full.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` where the peer closes before.
    pub async fn recv_exact(&self, fd: &Rc<OwnedFd>, buf: &IoBuf) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let part = rest_of(buf, done);
            match self.run(Op::Recv { all: true }, fd, [part]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    /// Sends the buffers one after the other and says how many bytes went: usually all, but callers
    /// go on after a short send. No SIGPIPE.
    ///
    /// # Errors
    /// The system's.
    pub async fn send(&self, fd: &Rc<OwnedFd>, bufs: &[IoBuf]) -> io::Result<usize> {
        self.run(Op::Send, fd, bufs.iter().cloned()).await
    }

    /// Ready when `fd` is readable, or has an error or hang-up to tell.
    ///
    /// # Errors
    /// The system's.
    pub async fn poll_readable(&self, fd: &Rc<OwnedFd>) -> io::Result<()> {
        self.run(Op::Poll, fd, []).await.map(drop)
    }

    /// Runs what may stall on a helper thread. Dropping the future detaches.
    ///
    /// # Panics
    /// When `work` panics.
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        helpers::run(&self.helpers, work).await
    }

    async fn run(
        &self,
        op: Op,
        fd: &Rc<OwnedFd>,
        bufs: impl IntoIterator<Item = IoBuf> + Clone,
    ) -> io::Result<usize> {
        loop {
            let slot = match &self.backend {
                Backend::Uring(uring) => uring.start_op(op, fd, bufs.clone()),
                Backend::Threads(threads) => threads.start_op(op, fd, bufs.clone()),
            };
            let result = Completion { backend: &self.backend, slot: Cell::new(Some(slot)) }.await;
            match usize::try_from(result) {
                Ok(n) => return Ok(n),
                Err(_negative) if result == -libc::EINTR => {}
                // A socket that somebody made non-blocking: wait for it ourselves.
                Err(_negative) if result == -libc::EAGAIN && op.is_socket() => {
                    let wait = op.poll_events();
                    let slot = match &self.backend {
                        Backend::Uring(uring) => uring.start_op(Op::PollFor(wait), fd, []),
                        Backend::Threads(threads) => threads.start_op(Op::PollFor(wait), fd, []),
                    };
                    let waiting =
                        Completion { backend: &self.backend, slot: Cell::new(Some(slot)) };
                    let _events = waiting.await;
                }
                Err(_negative) => return Err(io::Error::from_raw_os_error(-result)),
            }
        }
    }
}

fn rest_of(buf: &IoBuf, done: usize) -> IoBuf {
    if done == 0 { buf.clone() } else { buf.slice(done, buf.len() - done) }
}

/// Waits for a slot. Dropped before, it detaches.
struct Completion<'a> {
    backend: &'a Backend,
    slot: Cell<Option<u32>>,
}

impl Future for Completion<'_> {
    type Output = i32;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<i32> {
        let slot = self.slot.get().expect("a completion is polled until it is ready, not after");
        let result = match self.backend {
            Backend::Uring(uring) => uring.poll_slot(slot, context),
            Backend::Threads(threads) => threads.poll_slot(slot, context),
        };
        if result.is_ready() {
            self.slot.set(None);
        }
        result
    }
}

impl Drop for Completion<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.get() {
            match self.backend {
                Backend::Uring(uring) => uring.detach(slot),
                Backend::Threads(threads) => threads.detach(slot),
            }
        }
    }
}

/// An eventfd that ends a park.
struct WakeFd(OwnedFd);

impl WakeFd {
    fn new() -> io::Result<Arc<Self>> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Arc::new(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Takes the wakes that came so far.
    fn clear(&self) {
        let _empty_or_taken = rustix::io::read(self.0.as_fd(), &mut [0; 8]);
    }
}

impl Unpark for WakeFd {
    fn unpark(&self) {
        // It can only fail when the counter is at its end, and then the reader wakes anyway.
        let _full = rustix::io::write(self.0.as_fd(), &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests;
