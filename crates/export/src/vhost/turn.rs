//! Only one connection's queues run at a time: a guest that moves between two QEMU processes, or comes back,
//! is written by the new one when all of the old one's requests have ended.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::select;

use crate::signal::Signal;

#[derive(Debug, Default)]
struct Holder {
    connection: Cell<Option<u64>>,
    /// Connections that wait, in the order they came.
    waiting: RefCell<VecDeque<u64>>,
    freed: Signal,
}

/// A connection's share in a device.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    holder: Rc<Holder>,
    connection: u64,
}

/// Where turns come from.
#[derive(Debug, Default)]
pub(crate) struct Turns(Rc<Holder>);

impl Turns {
    pub(crate) fn of(&self, connection: u64) -> Turn {
        Turn { holder: Rc::clone(&self.0), connection }
    }
}

impl Turn {
    fn try_take(&self) -> bool {
        let holder = &self.holder;
        let free = holder.connection.get().is_none();
        if free && holder.waiting.borrow().front() == Some(&self.connection) {
            holder.connection.set(Some(self.connection));
        }
        holder.connection.get() == Some(self.connection)
    }

    fn leave(&self) {
        let mut waiting = self.holder.waiting.borrow_mut();
        // another queue of the connection may go on waiting
        let own = waiting.iter().position(|waits| *waits == self.connection);
        own.and_then(|at| waiting.remove(at)).expect("whoever leaves has waited");
        drop(waiting);
        // whoever is the first now may have its turn
        self.holder.freed.wake();
    }

    /// Waits until it is this connection's turn, or `given_up`, which is looked at when `changed` says so.
    pub(crate) async fn take(&self, given_up: impl Fn() -> bool, changed: &Signal) {
        self.holder.waiting.borrow_mut().push_back(self.connection);
        {
            let turn = pin!(self.holder.freed.until(|| given_up() || self.try_take()));
            let given_up = pin!(changed.until(&given_up));
            let _either = select(turn, given_up).await;
        }
        self.leave();
    }

    /// None of the connection's queues runs, and nothing of it is under way.
    pub(crate) fn give_back(&self) {
        if self.holder.connection.get() == Some(self.connection) {
            self.holder.connection.set(None);
            self.holder.freed.wake();
        }
    }
}
