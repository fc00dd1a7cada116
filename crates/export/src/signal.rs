//! Waiting for a condition among the tasks of one thread.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes those that wait for something to have changed; they look themselves.
#[derive(Default)]
pub(crate) struct Signal(RefCell<Vec<Waker>>);

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signal({} waiting)", self.0.borrow().len())
    }
}

impl Signal {
    /// Makes every waiter look at its condition again.
    pub(crate) fn wake(&self) {
        loop {
            let next = self.0.borrow_mut().pop();
            match next {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Waits until `condition` holds; it is looked at now and after each [`Signal::wake`].
    pub(crate) async fn until(&self, mut condition: impl FnMut() -> bool) {
        poll_fn(|context| {
            if condition() {
                return Poll::Ready(());
            }
            let mut wakers = self.0.borrow_mut();
            if !wakers.iter().any(|w| w.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
