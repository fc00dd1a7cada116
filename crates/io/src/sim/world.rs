//! The world: clock, randomness, events, and how it ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::rng::SplitMix64;
use super::space::{FileId, SimSpace, Space};
use crate::local::{BootInstant, Executor, Local, Park, Unpark};
use crate::shm::LogMemory;
use crate::units::ByteCount;

/// Virtual time: it stands still while tasks run, and jumps to the next timer when none can.
#[derive(Debug, Default)]
pub struct SimPark {
    now: BootInstant,
}

struct NobodyElse;

impl Unpark for NobodyElse {
    fn unpark(&self) {}
}

impl Park for SimPark {
    fn now(&self) -> BootInstant {
        self.now
    }

    /// # Panics
    /// When there is nothing to wait for: every task waits for another one.
    fn park(&mut self, until: Option<BootInstant>) {
        let until = until.expect(
            "deadlock in the simulated world: no task can run and no timer is set, so nothing \
             will ever happen again; some future waits for an event that nobody is left to send",
        );
        self.now = self.now.max(until);
    }

    fn waker(&self) -> Arc<dyn Unpark> {
        Arc::new(NobodyElse)
    }
}

/// What happens at the devices of a world; each event has a number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields: the file and its byte range")]
pub enum Event {
    /// A write was handed to the device.
    WriteSubmitted { file: FileId, at: u64, len: u64 },
    /// It became visible, and is about to complete.
    WriteLanded { file: FileId, at: u64, len: u64 },
    /// A clear took effect.
    Cleared { file: FileId, at: u64, len: u64 },
    /// A flush was handed to the device.
    FlushSubmitted { file: FileId },
    /// What it covered is durable.
    Flushed { file: FileId },
    /// Space was taken.
    Reserved { file: FileId, at: u64, len: u64 },
    /// The length was set.
    Truncated { file: FileId, len: u64 },
    /// Log memory was written.
    Logged { at: u64, len: u64 },
    /// Something of a layer above, see [`SimWorld::note`].
    Other(&'static str),
}

type Hook = Box<dyn FnMut(u64, &Event)>;

struct World {
    local: Local,
    rng: RefCell<SplitMix64>,
    events: Cell<u64>,
    halt_at: Cell<Option<u64>>,
    stopped: Cell<bool>,
    hook: RefCell<Option<Hook>>,
    spaces: RefCell<Vec<Rc<Space>>>,
    logs: RefCell<BTreeMap<String, Rc<RefCell<Vec<u8>>>>>,
}

/// A simulated host with its storage.
#[derive(Clone)]
pub struct SimWorld(Rc<World>);

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimWorld")
            .field("events", &self.0.events)
            .field("stopped", &self.0.stopped)
            .finish_non_exhaustive()
    }
}

/// What is left of a world: hand it to [`SimWorld::restart`].
#[derive(Debug, Default)]
pub struct Survivors {
    spaces: Vec<Space>,
    logs: BTreeMap<String, Vec<u8>>,
    now: BootInstant,
}

impl SimWorld {
    /// An empty world whose course is determined by `seed`.
    #[must_use]
    pub fn start(seed: u64) -> (Executor, Self) {
        Self::restart(seed, Survivors::default())
    }

    /// A world that begins with what another one left.
    #[must_use]
    pub fn restart(seed: u64, survivors: Survivors) -> (Executor, Self) {
        let executor = Executor::new(Box::new(SimPark { now: survivors.now }));
        let logs = survivors.logs.into_iter();
        let world = World {
            local: executor.local(),
            rng: RefCell::new(SplitMix64::new(seed)),
            events: Cell::new(0),
            halt_at: Cell::new(None),
            stopped: Cell::new(false),
            hook: RefCell::default(),
            spaces: RefCell::new(survivors.spaces.into_iter().map(Rc::new).collect()),
            logs: RefCell::new(logs.map(|(k, v)| (k, Rc::new(RefCell::new(v)))).collect()),
        };
        (executor, Self(Rc::new(world)))
    }

    /// The executor's handle.
    #[must_use]
    pub fn local(&self) -> &Local {
        &self.0.local
    }

    /// Adds storage of `capacity` bytes. Spaces keep their order over a restart.
    #[must_use]
    pub fn add_space(&self, capacity: ByteCount) -> SimSpace {
        let space = Rc::new(Space::new(capacity));
        self.0.spaces.borrow_mut().push(Rc::clone(&space));
        SimSpace::new(self.clone(), space)
    }

    /// All storage, in the order it was added.
    #[must_use]
    pub fn spaces(&self) -> Vec<SimSpace> {
        let spaces = self.0.spaces.borrow();
        spaces.iter().map(|space| SimSpace::new(self.clone(), Rc::clone(space))).collect()
    }

    /// Opens the log memory of that name, or creates it zeroed.
    ///
    /// # Panics
    /// If it exists with another length.
    #[must_use]
    pub fn log(&self, name: &str, len: usize) -> SimLog {
        let mut logs = self.0.logs.borrow_mut();
        let bytes =
            logs.entry(name.to_owned()).or_insert_with(|| Rc::new(RefCell::new(vec![0; len])));
        assert_eq!(bytes.borrow().len(), len, "length of log memory {name}");
        SimLog { world: self.clone(), bytes: Rc::clone(bytes) }
    }

    /// Whether log memory of that name exists.
    #[must_use]
    pub fn has_log(&self, name: &str) -> bool {
        self.0.logs.borrow().contains_key(name)
    }

    /// Removes log memory.
    pub fn remove_log(&self, name: &str) {
        if !self.is_stopped() {
            self.0.logs.borrow_mut().remove(name);
        }
    }

    /// Uses the world's generator.
    pub fn random<T>(&self, draw: impl FnOnce(&mut SplitMix64) -> T) -> T {
        draw(&mut self.0.rng.borrow_mut())
    }

    /// Waits a random time, as a device takes for an operation. Never ready in a stopped world.
    pub async fn delay(&self, from: Duration, to: Duration) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 2);
        let drawn = self.random(|rng| rng.between(micros(from), micros(to).max(micros(from))));
        self.local().sleep(Duration::from_micros(drawn)).await;
        self.alive().await;
    }

    /// Ready at once, or never in a stopped world.
    pub(super) async fn alive(&self) {
        if self.is_stopped() {
            pending::<()>().await;
        }
    }

    /// Counts an event of a layer above the devices, so that a run can be cut there too.
    pub fn note(&self, what: &'static str) {
        self.happened(&Event::Other(what));
    }

    pub(super) fn happened(&self, event: &Event) {
        if self.is_stopped() {
            return;
        }
        let number = self.0.events.get() + 1;
        self.0.events.set(number);
        if let Some(hook) = self.0.hook.borrow_mut().as_mut() {
            hook(number, event);
        }
        if self.0.halt_at.get() == Some(number) {
            self.stop();
        }
    }

    /// How many events happened.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.0.events.get()
    }

    /// Calls `hook` at each event with its number.
    pub fn on_event(&self, hook: impl FnMut(u64, &Event) + 'static) {
        *self.0.hook.borrow_mut() = Some(Box::new(hook));
    }

    /// Stops the world right after event `number`; [`Executor::run_until_halt`] then returns None.
    pub fn halt_at(&self, number: u64) {
        self.0.halt_at.set(Some(number));
    }

    /// Stops the world now: no request completes any more, nothing can be written, no task runs.
    pub fn stop(&self) {
        self.0.stopped.set(true);
        self.0.local.halt();
    }

    /// Whether the world was stopped. The task that ran at that moment still runs to its next await:
    /// a harness that records acknowledgements checks this first.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.get()
    }

    /// Power is gone. Requests in flight land in part or not at all; each sector keeps its durable
    /// state or any later one that was not flushed; log memory is lost.
    #[must_use]
    pub fn cut(&self) -> Survivors {
        self.stop();
        let mut rng = self.0.rng.borrow_mut();
        let spaces = self.0.spaces.borrow();
        let spaces = spaces.iter().map(|space| space.after_cut(&mut rng)).collect();
        Survivors { spaces, logs: BTreeMap::new(), now: BootInstant::default() }
    }

    /// The process is gone. What completed stays, requests in flight land or not, what was not
    /// flushed can still be lost in a later cut; log memory stays.
    #[must_use]
    pub fn kill(&self) -> Survivors {
        let now = self.0.local.now();
        self.stop();
        let mut rng = self.0.rng.borrow_mut();
        let spaces = self.0.spaces.borrow();
        let spaces = spaces.iter().map(|space| space.after_kill(&mut rng)).collect();
        let logs = self.0.logs.borrow();
        let logs = logs.iter().map(|(name, log)| (name.clone(), log.borrow().clone())).collect();
        Survivors { spaces, logs, now }
    }
}

/// Log memory of the simulated host.
#[derive(Clone, Debug)]
pub struct SimLog {
    world: SimWorld,
    bytes: Rc<RefCell<Vec<u8>>>,
}

impl LogMemory for SimLog {
    fn len(&self) -> usize {
        self.bytes.borrow().len()
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        if self.world.is_stopped() {
            return;
        }
        self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        self.world.happened(&Event::Logged { at: at as u64, len: bytes.len() as u64 });
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.bytes.borrow()[at..at + bytes.len()]);
    }
}
