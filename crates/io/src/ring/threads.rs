//! The fall-back: files on helper threads, sockets by poll(2) on the home thread itself.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::WakeFd;
use super::helpers::Helpers;
use super::slots::{Op, Slot, Slots};
use crate::buffer::IoBuf;
use crate::local::Unpark;

pub(super) struct Threads {
    slots: RefCell<Slots>,
    helpers: Rc<Helpers>,
    done: Arc<Mutex<Vec<(u32, i32)>>>,
    wake: Arc<WakeFd>,
    /// Slots of sockets that are not ready yet.
    waiting: RefCell<Vec<u32>>,
    /// Requests with helper threads.
    jobs: Cell<usize>,
}

/// A file request on its way to a helper thread.
struct Job {
    op: Op,
    fd: RawFd,
    iovecs: *const libc::iovec,
    pieces: i32,
}

// SAFETY: what it points to is owned by a boxed slot that stays untouched until the result is back.
#[expect(unsafe_code, reason = "a slot's memory is lent to a helper thread")]
unsafe impl Send for Job {}

impl Job {
    #[expect(unsafe_code, reason = "system calls on raw memory")]
    fn run(&self) -> i32 {
        let offset = |at: u64| at.cast_signed();
        // SAFETY: descriptor and memory belong to the slot, which stays until the result is back.
        let result = unsafe {
            match self.op {
                Op::Read { at } => libc::preadv(self.fd, self.iovecs, self.pieces, offset(at)),
                Op::Write { at, dsync } => {
                    let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                    libc::pwritev2(self.fd, self.iovecs, self.pieces, offset(at), flags)
                }
                Op::Fdatasync => libc::fdatasync(self.fd) as isize,
                Op::Fallocate { mode, at, len } => {
                    libc::fallocate(self.fd, mode, offset(at), offset(len)) as isize
                }
                Op::Accept | Op::Recv { .. } | Op::Send | Op::Poll | Op::PollFor(_) => {
                    unreachable!("sockets are served on the home thread")
                }
            }
        };
        outcome(result)
    }
}

/// A result as io_uring gives it: what the call returned, or the negative error number.
fn outcome(result: isize) -> i32 {
    if result < 0 {
        -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
    } else {
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}

fn poll(fds: &mut [libc::pollfd], wait: Option<Duration>) -> i32 {
    let time = wait.map(|wait| libc::timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(wait.subsec_nanos()),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    #[expect(unsafe_code, reason = "ppoll")]
    // SAFETY: the list and the time live through the call.
    let ready =
        unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, time, std::ptr::null()) };
    ready
}

/// Tries a socket's request without waiting; EAGAIN where it would have to.
fn attempt(slot: &Slot) -> i32 {
    let fd = slot.raw_fd();
    let mut ready = [libc::pollfd { fd, events: slot.op.poll_events(), revents: 0 }];
    if poll(&mut ready, Some(Duration::ZERO)) == 0 {
        return -libc::EAGAIN;
    }
    let quick = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    #[expect(unsafe_code, reason = "system calls on raw memory")]
    // SAFETY: descriptor, message and buffers belong to the slot.
    let result = unsafe {
        match slot.op {
            Op::Accept => {
                // The peer may be gone again: accept must not wait for the next one.
                let flags = libc::fcntl(fd, libc::F_GETFL);
                libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
                let none = std::ptr::null_mut();
                libc::accept4(fd, none, none.cast(), libc::SOCK_CLOEXEC) as isize
            }
            Op::Recv { .. } => {
                let message = (&raw const slot.message).cast_mut();
                libc::recvmsg(fd, message, quick)
            }
            Op::Send => libc::sendmsg(fd, &raw const slot.message, quick),
            Op::Poll | Op::PollFor(_) => return i32::from(ready[0].revents),
            Op::Read { .. } | Op::Write { .. } | Op::Fdatasync | Op::Fallocate { .. } => {
                unreachable!("files are served by helper threads")
            }
        }
    };
    outcome(result)
}

impl Threads {
    pub(super) fn start(helpers: Rc<Helpers>) -> io::Result<Self> {
        Ok(Self {
            slots: RefCell::default(),
            helpers,
            done: Arc::default(),
            wake: WakeFd::new()?,
            waiting: RefCell::default(),
            jobs: Cell::new(0),
        })
    }

    pub(super) fn waker(&self) -> Arc<dyn Unpark> {
        Arc::<WakeFd>::clone(&self.wake)
    }

    pub(super) fn start_op(
        &self,
        op: Op,
        fd: &Rc<OwnedFd>,
        bufs: impl IntoIterator<Item = IoBuf>,
    ) -> u32 {
        let mut slots = self.slots.borrow_mut();
        let (index, slot) = slots.start(op, fd, bufs);
        if op.is_socket() || op.waits_for_others() {
            let result = attempt(slot);
            if result == -libc::EAGAIN {
                self.waiting.borrow_mut().push(index);
            } else {
                let _nobody_waits_yet = slots.finish(index, result);
            }
            return index;
        }
        let job = Job {
            op,
            fd: slot.raw_fd(),
            iovecs: slot.iovecs.as_ptr(),
            pieces: i32::try_from(slot.iovecs.len()).unwrap_or(i32::MAX),
        };
        drop(slots);
        let (done, wake) = (Arc::clone(&self.done), Arc::clone(&self.wake));
        self.jobs.set(self.jobs.get() + 1);
        self.helpers.push(Box::new(move || {
            let job = job;
            let result = job.run();
            done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
            wake.unpark();
        }));
        index
    }

    pub(super) fn poll_slot(&self, slot: u32, context: &mut Context<'_>) -> Poll<i32> {
        self.slots.borrow_mut().poll(slot, context)
    }

    pub(super) fn detach(&self, slot: u32) {
        let mut slots = self.slots.borrow_mut();
        if !slots.detach(slot) {
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        if slots.get(slot).op.waits_for_others()
            && let Some(position) = waiting.iter().position(|index| *index == slot)
        {
            waiting.swap_remove(position);
            let _nobody = slots.finish(slot, -libc::ECANCELED);
        }
    }

    /// Waits at most `wait` (None: until something happens), wakes who waited.
    pub(super) fn park(&self, wait: Option<Duration>) {
        let waiting = self.waiting.borrow().clone();
        let mut fds = Vec::with_capacity(waiting.len() + 1);
        let wake = self.wake.0.as_raw_fd();
        fds.push(libc::pollfd { fd: wake, events: libc::POLLIN, revents: 0 });
        {
            let slots = self.slots.borrow();
            fds.extend(waiting.iter().map(|index| {
                let slot = slots.get(*index);
                libc::pollfd { fd: slot.raw_fd(), events: slot.op.poll_events(), revents: 0 }
            }));
        }
        // An error here is a signal at most: the caller looks again anyway.
        let ready = poll(&mut fds, wait);
        if ready <= 0 {
            return;
        }
        let mut finished = Vec::new();
        if fds[0].revents != 0 {
            self.wake.clear();
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            finished.append(&mut done);
            self.jobs.set(self.jobs.get() - finished.len());
        }
        let mut slots = self.slots.borrow_mut();
        for (index, fd) in waiting.into_iter().zip(&fds[1..]) {
            if fd.revents == 0 {
                continue;
            }
            let result = attempt(slots.get(index));
            if result != -libc::EAGAIN {
                self.waiting.borrow_mut().retain(|waiting| *waiting != index);
                finished.push((index, result));
            }
        }
        let ended = finished.into_iter().filter_map(|(index, result)| slots.finish(index, result));
        let wakers: Vec<_> = ended.collect();
        drop(slots);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }
}

/// Time that the last requests get at the end.
const DRAIN: Duration = Duration::from_secs(10);

impl Drop for Threads {
    fn drop(&mut self) {
        for index in self.waiting.take() {
            let waker = self.slots.borrow_mut().finish(index, -libc::ECANCELED);
            drop(waker);
        }
        // Helper threads use the slots' memory until they are done.
        let end = Instant::now() + DRAIN;
        while self.jobs.get() > 0 && Instant::now() < end {
            self.park(Some(Duration::from_millis(100)));
        }
        self.slots.borrow_mut().leak_in_flight();
    }
}
