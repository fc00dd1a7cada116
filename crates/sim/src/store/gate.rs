//! The door of the head-room: guests taking space on one side, those who may have all of it on the
//! other, never both.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Who is inside.
#[derive(Debug, Default)]
pub(super) struct Gate {
    guests: Cell<usize>,
    borrowers: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    /// A guest waits until nobody borrows, and goes in.
    pub(super) async fn enter(&self) {
        self.until(|gate| gate.borrowers.get() == 0).await;
        self.guests.set(self.guests.get() + 1);
    }

    pub(super) fn leave(&self) {
        self.guests.set(self.guests.get() - 1);
        self.wake();
    }

    /// A borrower keeps further guests out, and waits until those inside have left.
    pub(super) async fn borrow(&self) {
        self.borrowers.set(self.borrowers.get() + 1);
        self.until(|gate| gate.guests.get() == 0).await;
    }

    /// Whether this was the last borrower.
    pub(super) fn give_back(&self) -> bool {
        self.borrowers.set(self.borrowers.get() - 1);
        self.wake();
        self.borrowers.get() == 0
    }

    async fn until(&self, open: impl Fn(&Self) -> bool) {
        poll_fn(|context| {
            if open(self) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wake(&self) {
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}
