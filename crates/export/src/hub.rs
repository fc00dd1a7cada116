//! What all connections of a server share: the exports, the buffers, the limits, the counters.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use io::{BlockDevice, Local};

use crate::handshake::{Offer, Offers};
use crate::pool::Pool;
use crate::signal::Signal;
use crate::wire::export_flag as flag;

/// A device under a name.
#[derive(Clone)]
pub struct Export {
    /// What clients ask for; a server with one export also serves it under the empty name.
    pub name: String,
    /// Free text that clients may show.
    pub description: String,
    /// What is served.
    pub device: Rc<dyn BlockDevice>,
    /// Refuses writes, also where the device would take them.
    pub read_only: bool,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .field("read_only", &self.read_only)
            .field("info", &self.device.info())
            .finish_non_exhaustive()
    }
}

impl Export {
    fn offer(&self) -> Offer {
        let device = self.device.info();
        // several connections are one device: a flush on any of them covers the writes of all
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_CACHE
            | flag::MULTI_CONN;
        if self.is_read_only() {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        }
        Offer {
            name: self.name.clone(),
            description: self.description.clone(),
            size: device.size.0,
            flags,
            min_block: device.logical_block,
            preferred_block: device.physical_block.max(device.logical_block).max(4096),
        }
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only || self.device.info().read_only
    }
}

/// Limits that keep one client from taking what others need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of a server at a time.
    pub connections: usize,
    /// Requests of a connection that are not answered yet; no more are read then.
    pub requests: usize,
    /// Bytes of their payloads. A single request of the largest size always fits.
    pub payload_bytes: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long a closing server waits for clients that do not take their replies.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            requests: 256,
            payload_bytes: 64 << 20,
            handshake: Duration::from_secs(30),
            grace: Duration::from_secs(10),
        }
    }
}

/// What a server has done since it started, and its connections now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections now, those in the handshake included.
    pub connections: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed at once because of the limit.
    pub refused: u64,
    /// Connections ended by a breach of the protocol.
    pub protocol_errors: u64,
    /// Reads answered with data.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Their bytes.
    pub write_bytes: u64,
    /// Trims and zeroings done.
    pub clears: u64,
    /// Their bytes.
    pub clear_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Requests answered with an error.
    pub failures: u64,
    /// Requests answered, and in how many sends: their ratio is how well replies coalesce.
    pub replies: u64,
    /// Sends.
    pub sends: u64,
}

/// A connection, as those see it that end it.
pub(crate) trait Stop {
    /// Takes no more requests; what is in flight is answered.
    fn stop(&self);
    /// Gives up on the client.
    fn abort(&self);
    /// Another client of the same export begins. If this one went away, all that it still has under
    /// way is given up, and true is said: the connection ends soon, and the successor waits for that.
    fn yield_to_successor(&self) -> bool;
}

struct Member {
    export: Option<String>,
    stop: Rc<dyn Stop>,
}

pub(crate) struct Hub {
    pub(crate) local: Local,
    pub(crate) pool: Pool,
    pub(crate) limits: Limits,
    pub(crate) counters: Cell<Counters>,
    exports: RefCell<BTreeMap<String, Rc<Export>>>,
    members: RefCell<BTreeMap<u64, Member>>,
    next: Cell<u64>,
    pub(crate) closing: Cell<bool>,
    /// A connection ended.
    ended: Signal,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("exports", &self.exports.borrow())
            .field("counters", &self.counters.get())
            .finish_non_exhaustive()
    }
}

impl Hub {
    pub(crate) fn new(local: Local, limits: Limits) -> Rc<Self> {
        Rc::new(Self {
            local,
            pool: Pool::default(),
            limits,
            counters: Cell::default(),
            exports: RefCell::default(),
            members: RefCell::default(),
            next: Cell::new(1),
            closing: Cell::new(false),
            ended: Signal::default(),
        })
    }

    /// Changes the counters.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters { connections: self.members.borrow().len() as u64, ..self.counters.get() }
    }

    /// Adds an export; false if the name is taken.
    pub(crate) fn add(&self, export: Export) -> bool {
        let mut exports = self.exports.borrow_mut();
        if exports.contains_key(&export.name) {
            return false;
        }
        exports.insert(export.name.clone(), Rc::new(export));
        true
    }

    /// Takes an export away from new connections.
    pub(crate) fn withdraw(&self, name: &str) -> bool {
        self.exports.borrow_mut().remove(name).is_some()
    }

    /// Takes all exports away.
    pub(crate) fn withdraw_all(&self) {
        let all = std::mem::take(&mut *self.exports.borrow_mut());
        drop(all);
    }

    /// The export of that name; the empty name is the only one of a server with one.
    pub(crate) fn export(&self, name: &str) -> Option<Rc<Export>> {
        let exports = self.exports.borrow();
        let only = || {
            let mut all = exports.values();
            all.next().filter(|_| name.is_empty() && all.next().is_none())
        };
        exports.get(name).or_else(only).map(Rc::clone)
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.closing.get() && self.members.borrow().len() < self.limits.connections
    }

    /// Notes a connection; the guard's drop is its end.
    pub(crate) fn join(self: &Rc<Self>, stop: Rc<dyn Stop>) -> Membership {
        let id = self.next.get();
        self.next.set(id + 1);
        self.count(|c| c.accepted += 1);
        let old = self.members.borrow_mut().insert(id, Member { export: None, stop });
        debug_assert!(old.is_none(), "connection numbers are not used twice");
        Membership { hub: Rc::clone(self), id }
    }

    /// Ends the connections of one export, or all: no more requests are taken, those in flight are
    /// answered. Clients that do not take their replies are given up on after the grace time; what
    /// the device still works on is waited for in any case.
    pub(crate) async fn drain(&self, export: Option<&str>) {
        let concerns = |m: &Member| export.is_none() || m.export.as_deref() == export;
        let chosen = || {
            let members = self.members.borrow();
            members.values().filter(|m| concerns(m)).map(|m| Rc::clone(&m.stop)).collect::<Vec<_>>()
        };
        for member in chosen() {
            member.stop();
        }
        {
            let gone = self.ended.until(|| !self.members.borrow().values().any(concerns));
            let grace = self.local.sleep(self.limits.grace);
            if let Either::Left(_) = select(pin!(gone), grace).await {
                return;
            }
        }
        for member in chosen() {
            member.abort();
        }
        self.ended.until(|| !self.members.borrow().values().any(concerns)).await;
    }
}

impl Offers for Hub {
    fn find(&self, name: &str) -> Option<Offer> {
        self.export(name).map(|e| e.offer())
    }

    fn all(&self) -> Vec<Offer> {
        self.exports.borrow().values().map(|e| e.offer()).collect()
    }
}

/// A connection's place in the list.
pub(crate) struct Membership {
    hub: Rc<Hub>,
    pub(crate) id: u64,
}

impl Membership {
    /// The handshake chose an export; from now on `stop` ends the connection. Returns when clients of
    /// the export that went away have nothing under way any more: a request of theirs that waited, or
    /// still lay unread in its socket, must not run beside those of this client. What the device has
    /// begun already it ends before it begins anything new (rule P4). Live clients go on.
    pub(crate) async fn serve(&self, export: &str, stop: Rc<dyn Stop>) {
        let others: Vec<_> = {
            let members = self.hub.members.borrow();
            let same = members.iter().filter(|(_, m)| m.export.as_deref() == Some(export));
            same.map(|(id, m)| (*id, Rc::clone(&m.stop))).collect()
        };
        let gone: Vec<u64> = others
            .into_iter()
            .filter_map(|(id, other)| other.yield_to_successor().then_some(id))
            .collect();
        let member = Member { export: Some(export.to_owned()), stop };
        let handshake = self.hub.members.borrow_mut().insert(self.id, member);
        drop(handshake);
        let members = &self.hub.members;
        self.hub.ended.until(|| !gone.iter().any(|id| members.borrow().contains_key(id))).await;
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let gone = self.hub.members.borrow_mut().remove(&self.id);
        drop(gone);
        if self.hub.members.borrow().is_empty() {
            self.hub.pool.trim();
        }
        self.hub.ended.wake();
    }
}
