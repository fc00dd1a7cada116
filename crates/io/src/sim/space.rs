//! Storage of a simulated host: files by number, one capacity, and switches for faults. Names are
//! the business of the layer above.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::file::{FileState, SimFile};
use super::image::PAGE;
use super::rng::SplitMix64;
use super::world::SimWorld;
use crate::error::{IoError, IoErrorKind, Result};
use crate::units::ByteCount;

/// Identity of a file in its space, as an inode number; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// One-shot faults of a space. Each takes a count: 1 is the next operation of that sort.
#[derive(Debug, Default)]
pub struct Faults {
    pub(super) flush: Countdown,
    pub(super) write: Countdown,
    pub(super) read: Countdown,
    pub(super) reserve: Countdown,
}

impl Faults {
    /// The `n`-th flush from now fails, and what it covered may be lost for good.
    pub fn fail_flush(&self, n: u64) {
        self.flush.0.set(n);
    }

    /// The `n`-th write from now fails, and may have landed in part.
    pub fn fail_write(&self, n: u64) {
        self.write.0.set(n);
    }

    /// The `n`-th read from now fails.
    pub fn fail_read(&self, n: u64) {
        self.read.0.set(n);
    }

    /// The `n`-th reserve from now finds no space.
    pub fn no_space_at_reserve(&self, n: u64) {
        self.reserve.0.set(n);
    }
}

/// Counts down to a fault; 0 is off.
#[derive(Debug, Default)]
pub(super) struct Countdown(Cell<u64>);

impl Countdown {
    /// Whether the fault strikes now.
    pub(super) fn strikes(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left == 1
    }
}

#[derive(Debug)]
pub(super) struct Space {
    capacity: Cell<u64>,
    next_id: Cell<u64>,
    files: RefCell<BTreeMap<FileId, Rc<FileState>>>,
    pub(super) faults: Faults,
}

impl Space {
    pub(super) fn new(capacity: ByteCount) -> Self {
        Self {
            capacity: Cell::new(capacity.0),
            next_id: Cell::new(1),
            files: RefCell::default(),
            faults: Faults::default(),
        }
    }

    fn successor(&self, change: impl FnMut(&FileState) -> FileState) -> Self {
        let mut change = change;
        let files = self.files.borrow();
        let files = files.iter().map(|(id, file)| (*id, Rc::new(change(file)))).collect();
        Self {
            capacity: self.capacity.clone(),
            next_id: self.next_id.clone(),
            files: RefCell::new(files),
            faults: Faults::default(),
        }
    }

    pub(super) fn after_cut(&self, rng: &mut SplitMix64) -> Self {
        self.successor(|file| file.after_cut(rng))
    }

    pub(super) fn after_kill(&self, rng: &mut SplitMix64) -> Self {
        self.successor(|file| file.after_kill(rng))
    }

    pub(super) fn used(&self) -> u64 {
        self.files.borrow().values().map(|file| file.pages_taken()).sum::<u64>() * PAGE
    }

    /// Says no before a change that takes `pages` more.
    pub(super) fn check_free(&self, pages: u64) -> Result<()> {
        let free = self.capacity.get().saturating_sub(self.used());
        if pages == 0 || pages * PAGE <= free {
            return Ok(());
        }
        let message = format!("simulated space: {} bytes asked for, {free} free", pages * PAGE);
        Err(IoError::new(IoErrorKind::NoSpace, message))
    }
}

/// Handle of a space.
#[derive(Clone, Debug)]
pub struct SimSpace {
    world: SimWorld,
    space: Rc<Space>,
}

impl SimSpace {
    pub(super) fn new(world: SimWorld, space: Rc<Space>) -> Self {
        Self { world, space }
    }

    /// The world it belongs to.
    #[must_use]
    pub fn world(&self) -> &SimWorld {
        &self.world
    }

    /// A new empty file.
    #[must_use]
    pub fn create(&self) -> Rc<SimFile> {
        let id = FileId(self.space.next_id.get());
        self.space.next_id.set(id.0 + 1);
        let state = Rc::new(FileState::default());
        self.space.files.borrow_mut().insert(id, Rc::clone(&state));
        self.handle(id, state, false)
    }

    /// Opens a file, for reading only if so said.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open(&self, id: FileId, read_only: bool) -> Result<Rc<SimFile>> {
        let state = self.space.files.borrow().get(&id).cloned();
        state.map(|state| self.handle(id, state, read_only)).ok_or_else(|| {
            IoError::new(IoErrorKind::NotFound, format!("simulated file {} is not there", id.0))
        })
    }

    fn handle(&self, id: FileId, state: Rc<FileState>, read_only: bool) -> Rc<SimFile> {
        let (world, space) = (self.world.clone(), Rc::clone(&self.space));
        Rc::new(SimFile::new(world, space, id, state, read_only))
    }

    /// Removes a file, at once and for good. Open handles go on in the void.
    pub fn remove(&self, id: FileId) {
        if !self.world.is_stopped() {
            self.space.files.borrow_mut().remove(&id);
        }
    }

    /// All files.
    #[must_use]
    pub fn files(&self) -> Vec<FileId> {
        self.space.files.borrow().keys().copied().collect()
    }

    /// Bytes that all files take.
    #[must_use]
    pub fn used(&self) -> ByteCount {
        ByteCount(self.space.used())
    }

    /// Capacity in bytes.
    #[must_use]
    pub fn capacity(&self) -> ByteCount {
        ByteCount(self.space.capacity.get())
    }

    /// Changes the capacity, e.g. to free a store that was full.
    pub fn set_capacity(&self, capacity: ByteCount) {
        self.space.capacity.set(capacity.0);
    }

    /// The fault switches.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.space.faults
    }
}
