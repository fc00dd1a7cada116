//! What the tasks of one connection share: the replies that wait to be sent, and the bounds on what
//! is in flight.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use io::{IoBuf, Task};

use crate::handshake::Session;
use crate::hub::{Export, Hub};
use crate::reply::Head;
use crate::request::Tag;
use crate::signal::Signal;
use crate::wire::{Errno, Framing};

/// The transmission phase of one connection.
pub(crate) struct Lane {
    pub(crate) hub: Rc<Hub>,
    pub(crate) export: Rc<Export>,
    pub(crate) session: Session,
    /// Number of the connection, for the log.
    pub(crate) id: u64,
    replies: RefCell<VecDeque<Reply>>,
    /// Requests that were started, oldest first; those that have ended leave now and then.
    started: RefCell<VecDeque<Task<()>>>,
    pub(crate) flight: Rc<Flight>,
    /// No request is taken any more.
    pub(crate) stopping: Cell<bool>,
    /// No request is run any more.
    abandoned: Cell<bool>,
    /// The receiver has ended: once nothing is in flight, the sender ends too.
    pub(crate) received: Cell<bool>,
    /// A reply was queued, or the receiver has ended.
    pub(crate) to_send: Rc<Signal>,
}

/// Requests that are taken and not answered, and the bytes they hold.
#[derive(Default)]
pub(crate) struct Flight {
    requests: Cell<usize>,
    bytes: Cell<usize>,
    pub(crate) room: Signal,
    /// The lane's signal to its sender, which ends when nothing is in flight.
    to_send: Rc<Signal>,
}

/// A request's place in the bounds, from its header until its reply is sent.
pub(crate) struct Permit {
    flight: Rc<Flight>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.flight.requests.set(self.flight.requests.get() - 1);
        self.flight.bytes.set(self.flight.bytes.get() - self.bytes);
        self.flight.room.wake();
        if self.flight.is_empty() {
            self.flight.to_send.wake();
        }
    }
}

impl Flight {
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.get() == 0
    }
}

/// A reply on its way out, or one chunk of it.
pub(crate) struct Reply {
    pub(crate) head: Head,
    pub(crate) data: Option<IoBuf>,
    /// With its last chunk the request is over.
    pub(crate) permit: Option<Permit>,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("id", &self.id)
            .field("session", &self.session)
            .field("in_flight", &self.flight.requests.get())
            .finish_non_exhaustive()
    }
}

impl Lane {
    pub(crate) fn new(hub: &Rc<Hub>, export: Rc<Export>, session: Session, id: u64) -> Rc<Self> {
        let to_send = Rc::new(Signal::default());
        let flight = Flight { to_send: Rc::clone(&to_send), ..Flight::default() };
        Rc::new(Self {
            hub: Rc::clone(hub),
            export,
            session,
            id,
            replies: RefCell::default(),
            started: RefCell::default(),
            flight: Rc::new(flight),
            stopping: Cell::new(false),
            abandoned: Cell::new(false),
            received: Cell::new(false),
            to_send,
        })
    }

    /// Waits for room for a request that holds `bytes`; None when the connection stops meanwhile.
    pub(crate) async fn admit(&self, bytes: usize) -> Option<Permit> {
        let limits = self.hub.limits;
        let flight = &self.flight;
        let fits = || {
            flight.requests.get() < limits.requests
                && (flight.bytes.get() + bytes <= limits.payload_bytes || flight.is_empty())
        };
        if !fits() {
            flight.room.until(|| fits() || self.stopping.get()).await;
        }
        if self.stopping.get() {
            return None;
        }
        flight.requests.set(flight.requests.get() + 1);
        flight.bytes.set(flight.bytes.get() + bytes);
        Some(Permit { flight: Rc::clone(flight), bytes })
    }

    /// A request runs.
    pub(crate) fn started(&self, task: Task<()>) {
        if self.abandoned.get() {
            task.abort();
            return;
        }
        let mut started = self.started.borrow_mut();
        while started.front().is_some_and(Task::is_finished) {
            started.pop_front();
        }
        if started.len() > 2 * self.hub.limits.requests {
            started.retain(|task| !task.is_finished());
        }
        started.push_back(task);
    }

    /// Gives up every request that has not ended, and those that are still being taken. The device
    /// ends what it has begun; what waits for space there is dropped.
    pub(crate) fn abandon(&self) {
        self.abandoned.set(true);
        for task in self.started.take() {
            task.abort();
        }
    }

    /// Queues an answer, or with the permit left out a chunk of one whose rest is queued next.
    pub(crate) fn answer(&self, head: Head, data: Option<IoBuf>, permit: Option<Permit>) {
        self.replies.borrow_mut().push_back(Reply { head, data, permit });
        self.to_send.wake();
    }

    /// Queues a success without data.
    pub(crate) fn done(&self, tag: Tag, permit: Permit) {
        let head = match self.session.framing {
            Framing::Simple | Framing::Structured => Head::Simple { cookie: tag.cookie, error: 0 },
            Framing::Extended => Head::None { tag },
        };
        self.answer(head, None, Some(permit));
    }

    /// Queues a failure, with its text where the framing has room for one.
    pub(crate) fn refuse(&self, tag: Tag, errno: Errno, why: &str, permit: Permit) {
        self.hub.count(|c| c.failures += 1);
        let head = match self.session.framing {
            Framing::Simple => Head::Simple { cookie: tag.cookie, error: errno as u32 },
            framing @ (Framing::Structured | Framing::Extended) => {
                Head::error(framing, tag, errno, why)
            }
        };
        self.answer(head, None, Some(permit));
    }

    pub(crate) fn has_replies(&self) -> bool {
        !self.replies.borrow().is_empty()
    }

    /// The next reply to send.
    pub(crate) fn next_reply(&self) -> Option<Reply> {
        self.replies.borrow_mut().pop_front()
    }
}
