//! One virtqueue: takes what the guest offers, has it done (see `request`), and answers.
//!
//! ```text
//!   kick ─► pump: all that is offered ─► one task a request ─► device
//!            ▲ asks for a kick again, looks once more              │
//!            └─ sleeps                    used ring, in flight ◄───┘
//!                                             └─► one call for all that ended together
//! ```
//!
//! The guest writes the rings while they are read, and may write anything: what cannot be followed breaks
//! this queue, and only it. A queue has at most as many requests in flight as descriptors, whatever it offers.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{Either, select};
use io::{BlockDevice, IoBuf, Ring, Task};
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use virtio_queue::{Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::GuestAddress;

use super::blk::{self, Asked, Status};
use super::chain::Descriptors;
use super::dirty::DirtyLog;
use super::inflight::Inflight;
use super::memory::GuestMemory;
use super::request::{self, Buffers};
use super::turn::Turn;
use crate::signal::Signal;

/// How long a queue that stops waits for writes: those that wait for space may do so for ever, and the
/// front end's guest with them.
const GRACE: Duration = Duration::from_secs(3);

/// What the queues of a connection share.
pub(crate) struct Shared {
    pub(crate) ring: Ring,
    pub(crate) device: Rc<dyn BlockDevice>,
    /// Identifies the disk to its guest.
    pub(crate) serial: String,
    pub(crate) read_only: bool,
    pub(crate) memory: RefCell<Rc<GuestMemory>>,
    /// Where written pages are noted, while the guest is being moved.
    pub(crate) log: RefCell<Option<Rc<DirtyLog>>>,
    pub(crate) inflight: RefCell<Option<Rc<Inflight>>>,
    /// Writes are durable before they are answered: the guest flushes nothing (rule D7).
    pub(crate) write_through: Cell<bool>,
    pub(crate) event_idx: Cell<bool>,
    /// Only one connection's queues run at a time.
    pub(crate) turn: Turn,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("serial", &self.serial).finish_non_exhaustive()
    }
}

impl Shared {
    fn memory(&self) -> Rc<GuestMemory> {
        Rc::clone(&self.memory.borrow())
    }
}

/// How a guest is told that requests ended.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) fd: Rc<OwnedFd>,
    /// Writing it might have waited when it came, which this thread must not.
    pub(crate) blocks: bool,
}

/// A request under way.
struct UnderWay {
    task: Task<()>,
    /// It may wait for space, and goes on by itself if it is let go.
    writes: bool,
    status: IoBuf,
}

struct State {
    queue: Queue,
    kick: Option<Rc<OwnedFd>>,
    call: Option<Call>,
    /// Started by the front end, and not stopped.
    running: bool,
    enabled: bool,
    /// Counts the starts: what served an earlier one ends.
    run: u64,
    /// Nothing more is taken: the guest's rings cannot be followed.
    broken: bool,
    /// Where the front end wants to go on; what is in flight may change it.
    base: u16,
    /// Guest address under which changes of the used ring are logged.
    used_log: Option<u64>,
    /// By head.
    under_way: Vec<Option<UnderWay>>,
    in_flight: usize,
    counter: u64,
}

impl State {
    /// Whether it runs, or what it began has not ended.
    fn is_busy(&self) -> bool {
        self.running || self.in_flight > 0
    }
}

/// A virtqueue.
pub(crate) struct Vring {
    index: u16,
    shared: Rc<Shared>,
    state: RefCell<State>,
    /// The state changed.
    changed: Signal,
    /// Answers wait to be told.
    to_tell: Cell<bool>,
    /// A task tells them.
    telling: Cell<bool>,
    /// The guest is told whatever it asked for: what is known of it may be a dead process's.
    in_any_case: Cell<bool>,
}

impl fmt::Debug for Vring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        f.debug_struct("Vring")
            .field("index", &self.index)
            .field("running", &state.running)
            .field("in_flight", &state.in_flight)
            .finish_non_exhaustive()
    }
}

/// Why a queue is not set up as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error("queue {0} is running")]
    Running(u16),
    #[error("a queue of {0} descriptors: it must be a power of two of at most {max}", max = blk::QUEUE_SIZE)]
    Size(u32),
    #[error(
        "the guest's memory is not shared with this process; start QEMU with \
         -object memory-backend-memfd,id=mem,share=on,size=... -machine memory-backend=mem"
    )]
    Private,
    #[error("queue {0} lies outside the guest's memory")]
    Outside(u16),
    #[error("queue {0} is not covered by the memory for requests in flight")]
    Uncovered(u16),
}

/// What becomes of writes that wait for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Fail,
    /// They stay noted as in flight.
    Leave,
}

/// What was found in the available ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offered {
    Nothing,
    All,
    /// There was no room for more.
    More,
}

impl Vring {
    pub(crate) fn new(index: u16, shared: &Rc<Shared>) -> Rc<Self> {
        let queue = Queue::new(blk::QUEUE_SIZE).expect("a power of two");
        Rc::new(Self {
            index,
            shared: Rc::clone(shared),
            state: RefCell::new(State {
                queue,
                kick: None,
                call: None,
                running: false,
                run: 0,
                enabled: false,
                broken: false,
                base: 0,
                used_log: None,
                under_way: Vec::new(),
                in_flight: 0,
                counter: 0,
            }),
            changed: Signal::default(),
            to_tell: Cell::new(false),
            telling: Cell::new(false),
            in_any_case: Cell::new(false),
        })
    }

    // --- what the front end says ---

    pub(crate) fn is_busy(&self) -> bool {
        self.state.borrow().is_busy()
    }

    pub(crate) fn set_size(&self, size: u32) -> Result<(), RingError> {
        let mut state = self.state.borrow_mut();
        if state.is_busy() {
            return Err(RingError::Running(self.index));
        }
        let fits = u16::try_from(size).ok().filter(|size| size.is_power_of_two());
        let size = fits.filter(|size| *size <= blk::QUEUE_SIZE).ok_or(RingError::Size(size))?;
        state.queue.set_size(size);
        Ok(())
    }

    /// The ring's parts, by the addresses that the front end sees them at. A running queue may be told
    /// again, with another log.
    pub(crate) fn set_addresses(
        &self,
        [descriptors, available, used]: [u64; 3],
        used_log: Option<u64>,
    ) -> Result<(), RingError> {
        let memory = self.shared.memory();
        if memory.is_empty() {
            return Err(RingError::Private);
        }
        let guest = |user| memory.guest_address(user).ok_or(RingError::Outside(self.index));
        let addresses = [guest(descriptors)?, guest(available)?, guest(used)?];
        let mut state = self.state.borrow_mut();
        state.used_log = used_log;
        let now = [state.queue.desc_table(), state.queue.avail_ring(), state.queue.used_ring()];
        if now == addresses {
            return Ok(());
        }
        if state.is_busy() {
            return Err(RingError::Running(self.index));
        }
        let [descriptors, available, used] = addresses.map(GuestAddress);
        let queue = &mut state.queue;
        queue
            .try_set_desc_table_address(descriptors)
            .and_then(|()| queue.try_set_avail_ring_address(available))
            .and_then(|()| queue.try_set_used_ring_address(used))
            .map_err(|_crooked| RingError::Outside(self.index))
    }

    pub(crate) fn set_base(&self, base: u16) -> Result<(), RingError> {
        let mut state = self.state.borrow_mut();
        if state.is_busy() {
            return Err(RingError::Running(self.index));
        }
        state.base = base;
        // one that never runs is where it was
        state.queue.set_next_avail(base);
        Ok(())
    }

    pub(crate) fn set_call(self: &Rc<Self>, call: Option<Call>) {
        self.state.borrow_mut().call = call;
        // what ended before may have been told to nobody
        self.in_any_case.set(true);
        self.tell();
    }

    pub(crate) fn enable(&self, enabled: bool) {
        self.state.borrow_mut().enabled = enabled;
        self.changed.wake();
    }

    /// The queue's kick: with it a queue that does not run starts.
    pub(crate) fn start(self: &Rc<Self>, kick: Option<Rc<OwnedFd>>) -> Result<(), RingError> {
        let memory = self.shared.memory();
        let mut state = self.state.borrow_mut();
        state.kick = kick;
        if state.running {
            drop(state);
            self.changed.wake();
            return Ok(());
        }
        if state.is_busy() {
            return Err(RingError::Running(self.index));
        }
        if memory.is_empty() {
            return Err(RingError::Private);
        }
        state.queue.set_ready(true);
        if !state.queue.is_valid(memory.map()) {
            return Err(RingError::Outside(self.index));
        }
        let size = state.queue.size();
        if self.shared.inflight.borrow().as_ref().is_some_and(|i| !i.covers(self.index, size)) {
            return Err(RingError::Uncovered(self.index));
        }
        state.running = true;
        state.run += 1;
        let run = state.run;
        state.broken = false;
        state.under_way.clear();
        state.under_way.resize_with(usize::from(size), || None);
        drop(state);
        drop(self.shared.ring.local().spawn(Rc::clone(self).pump(run)));
        Ok(())
    }

    /// Stops: what is in flight is answered, but for writes that wait for too long, whose fate is told. Where
    /// the front end stops the queue they fail: the guest may go on in another process, which knows nothing
    /// of them. Where this side goes they are left to the next process. Returns where the queue goes on.
    pub(crate) async fn stop(self: &Rc<Self>, waiting: Fate) -> u16 {
        self.halt();
        {
            let ended = self.changed.until(|| self.state.borrow().in_flight == 0);
            let grace = self.shared.ring.local().sleep(GRACE);
            let _either = select(pin!(ended), grace).await;
        }
        self.let_writes_go(waiting);
        self.changed.until(|| self.state.borrow().in_flight == 0).await;
        self.state.borrow().queue.next_avail()
    }

    /// The front end is gone: nobody waits for an answer. Returns when nothing is read into its memory
    /// any more; the device ends the writes that it has begun before anything new (rule P4).
    pub(crate) async fn end(self: &Rc<Self>) {
        self.halt();
        self.let_writes_go(Fate::Leave);
        self.changed.until(|| self.state.borrow().in_flight == 0).await;
    }

    fn halt(&self) {
        self.state.borrow_mut().running = false;
        self.changed.wake();
    }

    /// Ends the wait for writes, without an answer or with an error; without a note nobody could answer them.
    pub(crate) fn let_writes_go(self: &Rc<Self>, fate: Fate) {
        let noted = fate == Fate::Leave && self.shared.inflight.borrow().is_some();
        let heads = 0..self.state.borrow().under_way.len();
        for head in heads {
            let mut state = self.state.borrow_mut();
            let writes = state.under_way[head].take_if(|under_way| under_way.writes);
            let Some(UnderWay { task, status, .. }) = writes else { continue };
            state.in_flight -= 1;
            drop(state);
            task.abort();
            let head = u16::try_from(head).expect("a queue has 16-bit heads");
            if !noted {
                status.write_at(0, &[Status::Error.byte()]);
                if let Some(log) = &*self.shared.log.borrow() {
                    self.shared.memory().log(log, &status);
                }
                self.put_used(head, 1);
            }
        }
        self.changed.wake();
    }

    // --- the guest's side ---

    async fn pump(self: Rc<Self>, run: u64) {
        let goes_on = || {
            let state = self.state.borrow();
            state.running && state.run == run && !state.broken
        };
        let has_room = || {
            let state = self.state.borrow();
            state.enabled && state.in_flight < usize::from(state.queue.size())
        };
        self.changed.until(|| !goes_on() || has_room()).await;
        self.shared.turn.take(|| !goes_on(), &self.changed).await;
        if !goes_on() {
            return;
        }
        self.resume();
        let mut unreadable = false;
        while goes_on() {
            if !has_room() {
                self.changed.until(|| !goes_on() || has_room()).await;
                continue;
            }
            let offered = self.take_offered();
            if unreadable && offered == Offered::Nothing {
                self.breaks("what it offers cannot be read");
                continue;
            }
            unreadable = false;
            if offered != Offered::More && self.nothing_more() {
                self.kicked(&goes_on).await;
            } else {
                // it says that there is more; then the next look must find it
                unreadable = offered == Offered::Nothing;
                // others have their turn, however fast this guest is
                self.shared.ring.local().yield_now().await;
            }
        }
    }

    /// Takes up the used ring where it stands, and does again what was left unanswered.
    fn resume(self: &Rc<Self>) {
        let memory = self.shared.memory();
        let inflight = self.shared.inflight.borrow().clone();
        let mut state = self.state.borrow_mut();
        let Ok(used) = state.queue.used_idx(memory.map(), Ordering::Acquire) else {
            drop(state);
            return self.breaks("its used ring cannot be read");
        };
        let used = used.0;
        state.queue.set_event_idx(self.shared.event_idx.get());
        state.queue.set_next_used(used);
        let again = inflight.as_ref().map(|i| i.resume(self.index, used)).unwrap_or_default();
        let size = state.queue.size();
        let again: Vec<u16> = again.into_iter().filter(|head| *head < size).collect();
        let next = match &inflight {
            Some(inflight) => {
                state.counter = inflight.newest(self.index);
                used.wrapping_add(u16::try_from(again.len()).expect("at most a queue's size"))
            }
            None => state.base,
        };
        state.queue.set_next_avail(next);
        drop(state);
        for head in again {
            self.begin(&memory, head);
        }
        // it may wait for what the process before this one answered and died before it told
        self.in_any_case.set(true);
        self.tell();
    }

    /// Begins all that is offered, as far as there is room.
    fn take_offered(self: &Rc<Self>) -> Offered {
        let memory = self.shared.memory();
        let mut offered: Vec<u16> = Vec::new();
        let room = {
            let mut state = self.state.borrow_mut();
            let room = usize::from(state.queue.size()) - state.in_flight;
            match state.queue.iter(memory.map()) {
                Ok(chains) => offered.extend(chains.take(room).map(|chain| chain.head_index())),
                Err(error) => {
                    drop(state);
                    self.breaks(&error.to_string());
                    return Offered::All;
                }
            }
            room
        };
        let found = match offered.len() {
            0 => Offered::Nothing,
            some if some < room => Offered::All,
            _ => Offered::More,
        };
        for head in offered {
            self.begin(&memory, head);
        }
        found
    }

    /// Asks to be kicked, and looks whether something came meanwhile.
    fn nothing_more(&self) -> bool {
        let memory = self.shared.memory();
        let asked = self.state.borrow_mut().queue.enable_notification(memory.map());
        self.log_used_ring();
        match asked {
            Ok(more) => !more,
            Err(error) => {
                self.breaks(&error.to_string());
                true
            }
        }
    }

    /// Waits for a kick, or for anything that makes waiting for it wrong.
    async fn kicked(&self, goes_on: impl Fn() -> bool) {
        let kick = self.state.borrow().kick.clone();
        let stale = || {
            let state = self.state.borrow();
            let same = match (&state.kick, &kick) {
                (Some(now), Some(then)) => Rc::ptr_eq(now, then),
                (None, None) => true,
                _ => false,
            };
            !same || !state.enabled || !goes_on()
        };
        let Some(kick) = &kick else { return self.changed.until(stale).await };
        let readable = pin!(self.shared.ring.poll_readable(kick));
        let changed = pin!(self.changed.until(stale));
        if let Either::Left((Err(error), _)) = select(readable, changed).await {
            self.breaks(&format!("its kick cannot be waited for: {error}"));
        }
        // never waits, whatever the other side has made of the descriptor
        let mut count = [0; 8];
        let mut into = [IoSliceMut::new(&mut count)];
        if preadv2(kick, &mut into, u64::MAX, ReadWriteFlags::NOWAIT) == Err(Errno::OPNOTSUPP) {
            // a kernel before 5.8
            let _taken_or_nothing = rustix::io::read(kick, &mut [0; 8]);
        }
    }

    fn breaks(&self, why: &str) {
        tracing::warn!(
            disk = self.shared.serial,
            queue = self.index,
            why,
            "a guest's queue cannot be followed"
        );
        self.state.borrow_mut().broken = true;
        self.changed.wake();
    }

    // --- one request ---

    fn begin(self: &Rc<Self>, memory: &Rc<GuestMemory>, head: u16) {
        let at = usize::from(head);
        let (table, size) = {
            let mut state = self.state.borrow_mut();
            match state.under_way.get(at) {
                Some(None) => {}
                Some(Some(_)) => {
                    drop(state);
                    return self.breaks("it offers a descriptor that is in use");
                }
                None => {
                    drop(state);
                    return self.breaks("it offers a descriptor that does not exist");
                }
            }
            state.counter = state.counter.wrapping_add(1);
            state.in_flight += 1;
            if let Some(inflight) = &*self.shared.inflight.borrow() {
                inflight.begin(self.index, head, state.counter);
            }
            (GuestAddress(state.queue.desc_table()), state.queue.size())
        };
        let descriptors = Descriptors::of(memory.map(), table, size, head);
        let Some(buffers) = request::understand(memory, descriptors) else {
            // without a place for its status there is nothing to tell
            return self.ended(head, 0);
        };
        let writes = !matches!(buffers.asked, Asked::Read(_) | Asked::Identify | Asked::Unknown);
        let work = request::work(&self.shared, &buffers);
        let Buffers { into, status, asked, .. } = buffers;
        // what is written for the guest; of a read that fails some may have been
        let into = match asked {
            Asked::Read(_) if into.len() <= blk::MOST_DATA => into,
            Asked::Identify => into.slice(0, into.len().min(blk::ID_LEN)),
            _ => into.slice(0, 0),
        };
        let (this, memory, for_status) = (Rc::clone(self), Rc::clone(memory), status.clone());
        let task = self.shared.ring.local().spawn(async move {
            let outcome = work.run(&*this.shared.device).await;
            status.write_at(0, &[outcome.byte()]);
            let got = if outcome == Status::Ok { into.len() } else { 0 };
            if let Some(log) = &*this.shared.log.borrow() {
                memory.log(log, &into);
                memory.log(log, &status);
            }
            this.ended(head, u32::try_from(got + 1).unwrap_or(u32::MAX));
        });
        self.state.borrow_mut().under_way[at] = Some(UnderWay { task, writes, status: for_status });
    }

    /// A request ended; `written` bytes were written for it.
    fn ended(self: &Rc<Self>, head: u16, written: u32) {
        {
            let mut state = self.state.borrow_mut();
            let own = state.under_way.get_mut(usize::from(head)).and_then(Option::take);
            state.in_flight -= 1;
            drop(state);
            // of a task that ends itself just now: nothing is cut short
            drop(own);
        }
        self.put_used(head, written);
        self.changed.wake();
    }

    fn put_used(self: &Rc<Self>, head: u16, written: u32) {
        let memory = self.shared.memory();
        let inflight = self.shared.inflight.borrow().clone();
        if let Some(inflight) = &inflight {
            inflight.answering(self.index, head);
        }
        let put = {
            let mut state = self.state.borrow_mut();
            let put = state.queue.add_used(memory.map(), head, written);
            put.map(|()| state.queue.next_used())
        };
        match put {
            Ok(used) => {
                if let Some(inflight) = &inflight {
                    inflight.answered(self.index, head, used);
                }
            }
            Err(error) => self.breaks(&error.to_string()),
        }
        self.log_used_ring();
        self.tell();
    }

    /// The used ring is memory of the guest's, too.
    fn log_used_ring(&self) {
        if let Some(log) = &*self.shared.log.borrow() {
            let state = self.state.borrow();
            if let Some(at) = state.used_log {
                log.mark(at, 8 * u64::from(state.queue.size()) + 6);
            }
        }
    }

    // --- calls ---

    /// Tells the guest that requests ended: once for all that end before others have their turn.
    fn tell(self: &Rc<Self>) {
        self.to_tell.set(true);
        if !self.telling.replace(true) {
            let this = Rc::clone(self);
            drop(self.shared.ring.local().spawn(async move {
                while this.to_tell.replace(false) {
                    this.call().await;
                }
                this.telling.set(false);
            }));
        }
    }

    async fn call(&self) {
        let memory = self.shared.memory();
        let call = {
            let mut state = self.state.borrow_mut();
            let asked = state.queue.needs_notification(memory.map()).unwrap_or(true);
            if asked || self.in_any_case.get() {
                self.in_any_case.set(state.call.is_none());
                state.call.clone()
            } else {
                None
            }
        };
        let Some(call) = call else { return };
        let one = 1_u64.to_ne_bytes();
        // A counter that is full wakes its reader as well.
        if call.blocks && !is_nonblocking(&call.fd) {
            let fd = Rc::clone(&call.fd).try_clone();
            let write = move || fd.map(|fd| rustix::io::write(fd, &one));
            let _full = self.shared.ring.run_blocking(write).await;
        } else {
            let _full = rustix::io::write(&call.fd, &one);
        }
    }
}

pub(super) fn is_nonblocking(fd: &OwnedFd) -> bool {
    rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
}
