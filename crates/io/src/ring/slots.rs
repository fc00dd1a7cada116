//! Slots: what the kernel (or a helper thread) works on, kept at a fixed address until it is done.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::buffer::IoBuf;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Read { at: u64 },
    Write { at: u64, dsync: bool },
    Fdatasync,
    Fallocate { mode: i32, at: u64, len: u64 },
    Accept,
    Recv { all: bool },
    Send,
    Poll,
    PollFor(i16),
}

impl Op {
    pub(super) fn is_socket(self) -> bool {
        matches!(self, Self::Accept | Self::Recv { .. } | Self::Send)
    }

    /// Waits for others, possibly for ever: worth cancelling when nobody wants it any more.
    pub(super) fn waits_for_others(self) -> bool {
        matches!(self, Self::Accept | Self::Recv { .. } | Self::Poll | Self::PollFor(_))
    }

    pub(super) fn poll_events(self) -> i16 {
        match self {
            Self::PollFor(events) => events,
            Self::Send => libc::POLLOUT,
            _ => libc::POLLIN,
        }
    }
}

/// How many buffers one send takes at most (the kernel's UIO_MAXIOV).
const MAX_PIECES: usize = 1024;

#[derive(Debug)]
enum State {
    Free,
    /// The kernel works on it; the waker of who waits.
    InFlight(Option<Waker>),
    /// The kernel works on it, nobody waits.
    Detached,
    Done(i32),
}

/// A request with all that it uses.
pub(super) struct Slot {
    state: State,
    pub(super) op: Op,
    fd: Option<Rc<OwnedFd>>,
    bufs: Vec<IoBuf>,
    pub(super) iovecs: Vec<libc::iovec>,
    pub(super) message: libc::msghdr,
}

impl Slot {
    #[expect(unsafe_code, reason = "a C struct whose zero value is its empty value")]
    fn new() -> Self {
        Self {
            state: State::Free,
            op: Op::Fdatasync,
            fd: None,
            bufs: Vec::new(),
            iovecs: Vec::new(),
            // SAFETY: msghdr is plain data; null pointers with zero lengths are its empty value.
            message: unsafe { std::mem::zeroed() },
        }
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().expect("a slot in flight has its descriptor").as_raw_fd()
    }

    fn is_with_kernel(&self) -> bool {
        matches!(self.state, State::InFlight(_) | State::Detached)
    }

    fn release(&mut self) {
        self.state = State::Free;
        self.fd = None;
        self.bufs.clear();
        self.iovecs.clear();
    }
}

/// All slots of a ring. Boxed each: the kernel knows their addresses while the list grows.
#[derive(Default)]
pub(super) struct Slots {
    #[expect(clippy::vec_box, reason = "the kernel holds addresses into the slots")]
    slots: Vec<Box<Slot>>,
    free: Vec<u32>,
}

impl Slots {
    /// Puts a request into a free slot.
    pub(super) fn start(
        &mut self,
        op: Op,
        fd: &Rc<OwnedFd>,
        bufs: impl IntoIterator<Item = IoBuf>,
    ) -> (u32, &mut Slot) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::new(Slot::new()));
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 requests in flight")
        });
        let slot = &mut *self.slots[index as usize];
        slot.state = State::InFlight(None);
        slot.op = op;
        slot.fd = Some(Rc::clone(fd));
        slot.bufs.extend(bufs);
        let pieces = slot.bufs.iter().flat_map(IoBuf::iovecs).take(MAX_PIECES);
        slot.iovecs.extend(pieces.map(|p| libc::iovec { iov_base: p.base.cast(), iov_len: p.len }));
        slot.message.msg_iov = slot.iovecs.as_mut_ptr();
        slot.message.msg_iovlen = slot.iovecs.len();
        (index, slot)
    }

    pub(super) fn get(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    /// Ends a request; the waker is to be woken by the caller once its borrows have ended.
    pub(super) fn finish(&mut self, index: u32, result: i32) -> Option<Waker> {
        let slot = &mut *self.slots[index as usize];
        match std::mem::replace(&mut slot.state, State::Done(result)) {
            State::InFlight(waker) => {
                // The future picks the result up; what the kernel used is free at once.
                slot.fd = None;
                slot.bufs.clear();
                slot.iovecs.clear();
                waker
            }
            State::Detached => {
                if slot.op == Op::Accept && result >= 0 {
                    #[expect(unsafe_code, reason = "closes a connection that nobody waits for")]
                    // SAFETY: accept returned a fresh descriptor that nobody else knows.
                    drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(result) });
                }
                slot.release();
                self.free.push(index);
                None
            }
            state @ (State::Free | State::Done(_)) => {
                unreachable!("completion {result} for slot {index} that is {state:?}")
            }
        }
    }

    /// The result, if it is there; else remembers whom to wake.
    pub(super) fn poll(&mut self, index: u32, context: &mut Context<'_>) -> Poll<i32> {
        let slot = &mut *self.slots[index as usize];
        match &mut slot.state {
            State::Done(result) => {
                let result = *result;
                slot.release();
                self.free.push(index);
                Poll::Ready(result)
            }
            State::InFlight(waker) => {
                if !waker.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
                Poll::Pending
            }
            state @ (State::Free | State::Detached) => {
                unreachable!("slot {index} is polled while {state:?}")
            }
        }
    }

    /// The future was dropped. True when the request is still with the kernel.
    pub(super) fn detach(&mut self, index: u32) -> bool {
        let slot = &mut *self.slots[index as usize];
        match &slot.state {
            State::InFlight(_) => {
                slot.state = State::Detached;
                true
            }
            State::Done(result) => {
                let result = *result;
                slot.state = State::Detached;
                let _nobody = self.finish(index, result);
                false
            }
            state @ (State::Free | State::Detached) => {
                unreachable!("slot {index} is detached while {state:?}")
            }
        }
    }

    /// How many requests are with the kernel.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_with_kernel()).count()
    }

    /// Requests with the kernel that may never end by themselves.
    pub(super) fn waiting_for_others(&self) -> Vec<u32> {
        let indexed = (0_u32..).zip(&self.slots);
        let waiting = indexed.filter(|(_, slot)| {
            slot.is_with_kernel() && (slot.op.waits_for_others() || slot.op == Op::Send)
        });
        waiting.map(|(index, _)| index).collect()
    }

    /// Gives up slots that the kernel may still write to: their memory is never freed.
    pub(super) fn leak_in_flight(&mut self) {
        for slot in self.slots.drain(..) {
            if slot.is_with_kernel() {
                let _leaked = Box::leak(slot);
            }
        }
        self.free.clear();
    }
}
