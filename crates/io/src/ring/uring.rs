//! The io_uring backend. Requests pile up in the submission queue while tasks run; parking hands
//! them over and waits in one system call.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::WakeFd;
use super::slots::{Op, Slot, Slots};
use crate::buffer::IoBuf;
use crate::local::Unpark;

const ENTRIES: u32 = 256;
/// Completions may pile up while tasks run; the kernel keeps what does not fit, at a cost.
const COMPLETIONS: u32 = 4096;
/// User data of the poll on the wake eventfd, and of requests whose completion nobody looks at.
const WAKE: u64 = u64::MAX;
const IGNORED: u64 = u64::MAX - 1;
/// Completions taken from the queue in one go.
const BATCH: usize = 64;

pub(super) struct Uring {
    ring: RefCell<ManuallyDrop<IoUring>>,
    slots: RefCell<Slots>,
    wake: Arc<WakeFd>,
    /// The poll on `wake` is with the kernel.
    wake_armed: Cell<bool>,
}

/// The best set of flags that this kernel takes.
fn build() -> io::Result<IoUring> {
    let modern = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(COMPLETIONS)
        .build(ENTRIES);
    let ring = modern.or_else(|error| match error.raw_os_error() {
        // Before 6.1.
        Some(libc::EINVAL) => {
            IoUring::builder().setup_clamp().setup_cqsize(COMPLETIONS).build(ENTRIES)
        }
        _ => Err(error),
    })?;
    let params = ring.params();
    if !params.is_feature_ext_arg() || !params.is_feature_nodrop() || !params.is_feature_fast_poll()
    {
        return Err(io::Error::other("this kernel's io_uring is too old (needs 5.11)"));
    }
    Ok(ring)
}

impl Uring {
    pub(super) fn start() -> io::Result<Self> {
        Ok(Self {
            ring: RefCell::new(ManuallyDrop::new(build()?)),
            slots: RefCell::default(),
            wake: WakeFd::new()?,
            wake_armed: Cell::new(false),
        })
    }

    /// The ring's table of files holds `fd` until the last request has ended.
    pub(super) fn hold(&self, fd: RawFd) -> io::Result<()> {
        self.ring.borrow().submitter().register_files(&[fd])
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
        let (index, entry) = {
            let mut slots = self.slots.borrow_mut();
            let (index, slot) = slots.start(op, fd, bufs);
            (index, entry(slot).user_data(u64::from(index)))
        };
        self.push(&entry);
        index
    }

    #[expect(unsafe_code, reason = "hands memory to the kernel")]
    fn push(&self, entry: &squeue::Entry) {
        loop {
            let mut ring = self.ring.borrow_mut();
            // SAFETY: what the entry points to lives in a boxed slot (or is static, or is the
            // eventfd of `self`), which stays until its completion, or is leaked on drop.
            if unsafe { ring.submission().push(entry) }.is_ok() {
                return;
            }
            let submitted = ring.submit();
            drop(ring);
            // Full on both sides: make room by taking completions.
            if submitted.is_err() {
                self.take_completions();
            }
        }
    }

    pub(super) fn poll_slot(&self, slot: u32, context: &mut Context<'_>) -> Poll<i32> {
        self.slots.borrow_mut().poll(slot, context)
    }

    pub(super) fn detach(&self, slot: u32) {
        let mut slots = self.slots.borrow_mut();
        let still_there = slots.detach(slot);
        let cancel = still_there && slots.get(slot).op.waits_for_others();
        drop(slots);
        if cancel {
            self.push(&opcode::AsyncCancel::new(u64::from(slot)).build().user_data(IGNORED));
        }
    }

    /// Submits, waits at most `wait` (None: until something happens), wakes who waited.
    pub(super) fn park(&self, wait: Option<Duration>) {
        if !self.wake_armed.replace(true) {
            let readable = libc::POLLIN as u32;
            let poll = opcode::PollAdd::new(Fd(self.wake.0.as_raw_fd()), readable);
            self.push(&poll.build().user_data(WAKE));
        }
        let entered = {
            let mut ring = self.ring.borrow_mut();
            let ready = !ring.completion().is_empty();
            match wait {
                _ if ready => submit_pending(&mut ring),
                Some(Duration::ZERO) => submit_pending(&mut ring),
                None => ring.submit_and_wait(1),
                Some(wait) => {
                    let time = Timespec::from(wait);
                    ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
                }
            }
        };
        if let Err(error) = entered {
            match error.raw_os_error() {
                // Time is up; a signal; the kernel wants completions taken first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => panic!("io_uring_enter failed, and no I/O can go on without it: {error}"),
            }
        }
        self.take_completions();
    }

    fn take_completions(&self) {
        loop {
            let mut batch = [(0_u64, 0_i32); BATCH];
            let mut count = 0;
            {
                let mut ring = self.ring.borrow_mut();
                let completed = ring.completion();
                for (place, entry) in batch.iter_mut().zip(completed) {
                    *place = (entry.user_data(), entry.result());
                    count += 1;
                }
            }
            for &(data, result) in &batch[..count] {
                self.completed(data, result);
            }
            if count < BATCH {
                return;
            }
        }
    }

    fn completed(&self, data: u64, result: i32) {
        match data {
            WAKE => {
                self.wake.clear();
                self.wake_armed.set(false);
            }
            IGNORED => {}
            index => {
                let index = u32::try_from(index).expect("user data is ours: a slot's number");
                let waker = self.slots.borrow_mut().finish(index, result);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }
}

/// Submits without waiting; no system call when there is nothing to do for the kernel.
fn submit_pending(ring: &mut IoUring) -> io::Result<usize> {
    let queue = ring.submission();
    if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
        return Ok(0);
    }
    drop(queue);
    ring.submit()
}

fn entry(slot: &Slot) -> squeue::Entry {
    let fd = Fd(slot.raw_fd());
    let iovecs = (slot.iovecs.as_ptr(), u32::try_from(slot.iovecs.len()).unwrap_or(u32::MAX));
    let first = |i: &libc::iovec| (i.iov_base.cast::<u8>(), u32::try_from(i.iov_len).ok());
    // One piece of less than 4 GiB takes the short way, without a list to copy.
    let single = match slot.iovecs.as_slice() {
        [only] => Some(first(only)).and_then(|(base, len)| Some((base, len?))),
        _ => None,
    };
    match slot.op {
        Op::Read { at } => match single {
            Some((base, len)) => opcode::Read::new(fd, base, len).offset(at).build(),
            None => opcode::Readv::new(fd, iovecs.0, iovecs.1).offset(at).build(),
        },
        Op::Write { at, dsync } => {
            let flags = if dsync { libc::RWF_DSYNC } else { 0 };
            match single {
                Some((base, len)) => {
                    opcode::Write::new(fd, base, len).offset(at).rw_flags(flags).build()
                }
                None => {
                    opcode::Writev::new(fd, iovecs.0, iovecs.1).offset(at).rw_flags(flags).build()
                }
            }
        }
        Op::Fdatasync => {
            opcode::Fsync::new(fd).flags(io_uring::types::FsyncFlags::DATASYNC).build()
        }
        Op::Fallocate { mode, at, len } => {
            opcode::Fallocate::new(fd, len).offset(at).mode(mode).build()
        }
        Op::Accept => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build(),
        Op::Recv { all } => {
            let flags = if all { libc::MSG_WAITALL } else { 0 };
            match single {
                Some((base, len)) => opcode::Recv::new(fd, base, len).flags(flags).build(),
                None => opcode::RecvMsg::new(fd, std::ptr::from_ref(&slot.message).cast_mut())
                    .flags(flags.cast_unsigned())
                    .build(),
            }
        }
        Op::Send => {
            let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
            match single {
                Some((base, len)) => opcode::Send::new(fd, base, len).flags(flags).build(),
                None => opcode::SendMsg::new(fd, &raw const slot.message)
                    .flags(flags.cast_unsigned())
                    .build(),
            }
        }
        Op::Poll | Op::PollFor(_) => {
            opcode::PollAdd::new(fd, u32::from(slot.op.poll_events().cast_unsigned())).build()
        }
    }
}

/// Time that the last requests get at the end; files need it only on a failing disk.
const DRAIN: Duration = Duration::from_secs(10);

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel writes into buffers until it is done, whatever happens to the ring: nothing is
        // freed before. What waits for others is told to stop.
        let waiting: Vec<u32> = self.slots.borrow().waiting_for_others();
        for slot in waiting {
            self.push(&opcode::AsyncCancel::new(u64::from(slot)).build().user_data(IGNORED));
        }
        let end = Instant::now() + DRAIN;
        while self.slots.borrow().in_flight() > 0 && Instant::now() < end {
            self.park(Some(Duration::from_millis(100)));
        }
        self.slots.borrow_mut().leak_in_flight();
        #[expect(unsafe_code, reason = "closes the ring before the eventfd it polls")]
        // SAFETY: dropped once, here, and not used after.
        unsafe {
            ManuallyDrop::drop(self.ring.get_mut());
        }
    }
}
