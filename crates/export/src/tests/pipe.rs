//! A connected pair in memory: the server's end is a [`Socket`], the client's end speaks bytes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use std::io::{ErrorKind, Result};

use io::IoBuf;

use crate::signal::Signal;
use crate::socket::{End, Socket};

/// One direction.
struct Half {
    bytes: RefCell<(VecDeque<u8>, bool)>,
    /// Most bytes that wait unread.
    capacity: usize,
    /// Most bytes one receive or send moves.
    step: usize,
    changed: Signal,
}

impl Half {
    fn new(capacity: usize, step: usize) -> Rc<Self> {
        Rc::new(Self { bytes: RefCell::default(), capacity, step, changed: Signal::default() })
    }

    fn close(&self) {
        self.bytes.borrow_mut().1 = true;
        self.changed.wake();
    }

    async fn put(&self, bytes: &[u8]) -> Option<usize> {
        let ready = || {
            let (queue, closed) = &*self.bytes.borrow();
            *closed || queue.len() < self.capacity
        };
        self.changed.until(ready).await;
        let (queue, closed) = &mut *self.bytes.borrow_mut();
        if *closed {
            return None;
        }
        let len = bytes.len().min(self.step).min(self.capacity - queue.len());
        queue.extend(&bytes[..len]);
        self.changed.wake();
        Some(len)
    }

    async fn take(&self, most: usize) -> Vec<u8> {
        let ready = || {
            let (queue, closed) = &*self.bytes.borrow();
            *closed || !queue.is_empty()
        };
        self.changed.until(ready).await;
        let queue = &mut self.bytes.borrow_mut().0;
        let len = queue.len().min(most).min(self.step);
        let bytes = queue.drain(..len).collect();
        self.changed.wake();
        bytes
    }
}

pub(super) struct ServerEnd {
    up: Rc<Half>,
    down: Rc<Half>,
}

pub(super) struct ClientEnd {
    up: Rc<Half>,
    down: Rc<Half>,
}

/// A pair whose receives and sends move at most `step` bytes; `room` bytes wait unread each way.
pub(super) fn pipe(room: usize, step: usize) -> (ServerEnd, ClientEnd) {
    let (up, down) = (Half::new(room, step), Half::new(room, step));
    (ServerEnd { up: Rc::clone(&up), down: Rc::clone(&down) }, ClientEnd { up, down })
}

impl Socket for ServerEnd {
    async fn recv(&self, into: &IoBuf) -> Result<usize> {
        let bytes = self.up.take(into.len()).await;
        into.write_at(0, &bytes);
        Ok(bytes.len())
    }

    async fn send(&self, parts: &[IoBuf]) -> Result<usize> {
        let all: Vec<u8> = parts.iter().flat_map(IoBuf::to_vec).collect();
        let sent = self.down.put(&all).await;
        sent.ok_or_else(|| ErrorKind::BrokenPipe.into())
    }

    fn is_gone(&self) -> bool {
        self.up.bytes.borrow().1
    }

    fn end(&self, what: End) {
        self.up.close();
        if what == End::Both {
            self.down.close();
        }
    }
}

impl ClientEnd {
    /// Sends all, or as much as the server takes before it closes.
    pub(super) async fn say(&self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(len) = self.up.put(rest).await else { return };
            rest = &rest[len..];
        }
    }

    /// The next `len` bytes.
    pub(super) async fn hear(&self, len: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(len);
        while all.len() < len {
            let got = self.down.take(len - all.len()).await;
            assert!(!got.is_empty(), "the server closed after {} of {len} bytes", all.len());
            all.extend(got);
        }
        all
    }

    /// Everything until the server closes.
    pub(super) async fn hear_all(&self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let got = self.down.take(usize::MAX).await;
            if got.is_empty() {
                return all;
            }
            all.extend(got);
        }
    }

    /// Bytes that wait to be heard.
    pub(super) fn unheard(&self) -> usize {
        self.down.bytes.borrow().0.len()
    }

    pub(super) fn close(&self) {
        self.up.close();
        self.down.close();
    }

    /// Says nothing more, but listens on.
    pub(super) fn close_sending(&self) {
        self.up.close();
    }
}
