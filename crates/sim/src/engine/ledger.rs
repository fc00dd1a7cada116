//! What every volume and snapshot may hold.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use uuid::Uuid;

use crate::guest::{Content, History};

/// Sectors of a block.
pub(super) const BLOCK: u64 = 4096;
/// Sectors that the workload touches at a block's start and at its end.
pub(super) const HEAD: u64 = 16;
pub(super) const TAIL: u64 = 8;

/// A volume as the administrators know it.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) blocks: u64,
    pub(super) template: bool,
    pub(super) history: Rc<RefCell<History>>,
    pub(super) snapshots: BTreeMap<Uuid, Point>,
}

/// A snapshot as the administrators know it.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) name: String,
    pub(super) blocks: u64,
    pub(super) content: Rc<RefCell<Content>>,
}

impl Volume {
    pub(super) fn new(name: &str, blocks: u64, content: &Content) -> Self {
        Self {
            name: name.to_owned(),
            blocks,
            template: false,
            history: Rc::new(RefCell::new(History::of(content))),
            snapshots: BTreeMap::new(),
        }
    }
}

impl Point {
    pub(super) fn new(name: &str, size: u64, content: Content) -> Self {
        let content = Rc::new(RefCell::new(content));
        Self { name: name.to_owned(), blocks: size / 512 / BLOCK, content }
    }
}

/// Everything that was promised.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub(super) volumes: BTreeMap<Uuid, Volume>,
    /// The deed that is under way.
    pub(super) pending: Option<Pending>,
    pub(super) next_name: Rc<Cell<u64>>,
    pub(super) next_value: Rc<Cell<u64>>,
}

/// A deed that may have happened or not when the world ends.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    /// New volumes of these names, all of them or none.
    Make { names: Vec<String>, blocks: u64, content: Content, template: bool },
    /// A volume goes.
    Delete { volume: Uuid },
    /// A volume gets another name.
    Rename { volume: Uuid, name: String },
    /// A volume grows.
    Grow { volume: Uuid, blocks: u64 },
    /// These volumes get a snapshot of this name, all of them or none.
    Snapshot { members: Vec<(Uuid, Content)>, name: String },
    /// A snapshot goes.
    DeleteSnapshot { volume: Uuid, snapshot: Uuid },
    /// A volume becomes what it was.
    Revert { volume: Uuid, snapshot: Uuid },
    /// A volume becomes a template.
    Freeze { volume: Uuid, name: String },
}

impl Ledger {
    pub(super) fn name(&self) -> String {
        self.next_name.set(self.next_name.get() + 1);
        format!("v{}", self.next_name.get())
    }

    /// A volume became what it was at a snapshot.
    pub(super) fn reverted(&mut self, volume: Uuid, snapshot: Uuid) {
        let volume = self.volumes.get_mut(&volume).expect("a known volume");
        let point = &volume.snapshots[&snapshot];
        volume.history = Rc::new(RefCell::new(History::of(&point.content.borrow())));
        volume.blocks = point.blocks;
    }

    pub(super) fn value(&self) -> u64 {
        self.next_value.set(self.next_value.get() + 1);
        self.next_value.get()
    }
}

/// The sectors that the workload touches in a disk of `blocks` blocks, as runs: (first, length).
pub(super) fn zones(blocks: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..blocks).flat_map(|b| [(b * BLOCK, HEAD), (b * BLOCK + BLOCK - TAIL, TAIL)])
}
