//! Waiting on one thread: an event that wakes all who listen, and tickets that tell when every
//! older request has ended.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Something that happens again and again; listeners see the next time it does.
#[derive(Debug, Default)]
pub(crate) struct Event {
    count: Cell<u64>,
    wakers: RefCell<Vec<Waker>>,
}

impl Event {
    /// Wakes everyone who listens.
    pub(crate) fn notify(&self) {
        self.count.set(self.count.get() + 1);
        for waker in self.wakers.take() {
            waker.wake();
        }
    }

    /// Completes at the first notification after this call.
    pub(crate) fn listen(&self) -> Listen<'_> {
        Listen { event: self, seen: self.count.get() }
    }
}

/// See [`Event::listen`].
#[derive(Debug)]
pub(crate) struct Listen<'a> {
    event: &'a Event,
    seen: u64,
}

impl Future for Listen<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.event.count.get() != self.seen {
            return Poll::Ready(());
        }
        self.event.wakers.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }
}

/// Hands out tickets to requests, and knows the oldest that is still open. Space that a request may
/// have resolved to is reused only after its ticket ended (rules D6, L4).
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    /// Number of the first entry of `open`.
    base: Cell<u64>,
    open: RefCell<VecDeque<bool>>,
    ended: Event,
}

/// An open request; ends when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    number: u64,
    tickets: Rc<Tickets>,
}

impl Tickets {
    /// Opens a ticket.
    pub(crate) fn take(self: &Rc<Self>) -> Ticket {
        let number = self.next();
        self.open.borrow_mut().push_back(true);
        Ticket { number, tickets: Rc::clone(self) }
    }

    /// The number that the next ticket gets.
    pub(crate) fn next(&self) -> u64 {
        self.base.get() + self.open.borrow().len() as u64
    }

    /// Completes when every ticket below `bound` has ended.
    pub(crate) async fn wait_below(&self, bound: u64) {
        while self.base.get() < bound {
            self.ended.listen().await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let tickets = &self.tickets;
        let mut open = tickets.open.borrow_mut();
        let at = usize::try_from(self.number - tickets.base.get()).expect("tickets fit memory");
        open[at] = false;
        let mut ended = 0;
        while open.front() == Some(&false) {
            open.pop_front();
            ended += 1;
        }
        drop(open);
        if ended > 0 {
            tickets.base.set(tickets.base.get() + ended);
            tickets.ended.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tickets;
    use std::rc::Rc;

    #[test]
    fn the_oldest_open_ticket_holds_the_bound() {
        let tickets = Rc::new(Tickets::default());
        let (a, b, c) = (tickets.take(), tickets.take(), tickets.take());
        drop(b);
        assert_eq!((tickets.base.get(), tickets.next()), (0, 3));
        drop(a);
        assert_eq!(tickets.base.get(), 2);
        drop(c);
        assert_eq!((tickets.base.get(), tickets.next()), (3, 3));
    }
}
