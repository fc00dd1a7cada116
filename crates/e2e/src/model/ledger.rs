//! What every volume, snapshot and sector may be.

use std::collections::{BTreeMap, BTreeSet};

use model::{Uuid, VolumeKind};
use sim::guest::{Content, History};

/// Bytes of a block.
pub(super) const BLOCK: u64 = 2 << 20;
/// Sectors of a block.
pub(super) const SECTORS: u64 = BLOCK / 512;
/// Sectors that guests touch at a block's start and at its end.
pub(super) const HEAD: u64 = 16;
pub(super) const TAIL: u64 = 8;
/// Blocks of one VHD at most: where the second segment begins.
pub(super) const SEGMENT: u64 = (2040 << 30) / BLOCK;

/// A volume or template.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) blocks: u64,
    pub(super) kind: VolumeKind,
    pub(super) template: bool,
    pub(super) history: History,
    pub(super) snapshots: BTreeMap<Uuid, Point>,
    /// The snapshot it stands on.
    pub(super) on: Option<Uuid>,
    /// What it is a linked clone of.
    pub(super) origin: Option<Uuid>,
    /// What else it stands on: by layers that its origin left behind.
    pub(super) below: BTreeSet<Uuid>,
    /// Where guests reach it.
    pub(super) uri: Option<String>,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) name: String,
    pub(super) blocks: u64,
    pub(super) parent: Option<Uuid>,
    pub(super) content: Content,
}

/// Everything that was promised.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub(super) volumes: BTreeMap<Uuid, Volume>,
    /// The deed under way, which a crash leaves done or undone.
    pub(super) pending: Option<Pending>,
    names: u64,
    values: u64,
}

/// A deed that may have happened or not.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    /// New volumes of these names, all of them or none; with the first one's shape, and with snapshots of
    /// these points, one on the other.
    Make {
        names: Vec<String>,
        like: Volume,
        points: Vec<Point>,
    },
    Delete {
        volume: Uuid,
    },
    Rename {
        volume: Uuid,
        name: String,
    },
    Grow {
        volume: Uuid,
        blocks: u64,
    },
    Convert {
        volume: Uuid,
        kind: VolumeKind,
    },
    Freeze {
        volume: Uuid,
        name: String,
    },
    Snapshot {
        members: Vec<(Uuid, Content)>,
        name: String,
    },
    DeleteSnapshot {
        volume: Uuid,
        snapshot: Uuid,
    },
    Revert {
        volume: Uuid,
        snapshot: Uuid,
    },
    /// A way to the volume is opened or closed.
    Connect {
        volume: Uuid,
    },
    /// Nothing of it shows.
    Other,
}

impl Volume {
    pub(super) fn new(name: &str, blocks: u64, kind: VolumeKind, content: &Content) -> Self {
        Self {
            name: name.to_owned(),
            blocks,
            kind,
            template: false,
            history: History::of(content),
            snapshots: BTreeMap::new(),
            on: None,
            origin: None,
            below: BTreeSet::new(),
            uri: None,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.blocks * BLOCK
    }

    /// The snapshots that it stands on, the oldest first.
    pub(super) fn path(&self) -> Vec<Uuid> {
        let mut path: Vec<Uuid> =
            std::iter::successors(self.on, |at| self.snapshots.get(at)?.parent).collect();
        path.reverse();
        path
    }

    /// It came with snapshots: identities and names as they were seen, in order.
    pub(super) fn bring(&mut self, points: &[Point], seen: Vec<(Uuid, String)>) {
        for (point, (id, name)) in points.iter().zip(seen) {
            let parent = self.on.replace(id);
            self.snapshots.insert(id, Point { name, parent, ..point.clone() });
        }
    }

    /// It became what it was at a snapshot.
    pub(super) fn reverted(&mut self, snapshot: Uuid) {
        let point = &self.snapshots[&snapshot];
        self.history = History::of(&point.content);
        self.blocks = point.blocks;
        self.on = Some(snapshot);
    }

    /// A snapshot goes: what stood on it stands on its parent.
    pub(super) fn without(&mut self, snapshot: Uuid) {
        let Some(gone) = self.snapshots.remove(&snapshot) else { return };
        for point in self.snapshots.values_mut().filter(|p| p.parent == Some(snapshot)) {
            point.parent = gone.parent;
        }
        if self.on == Some(snapshot) {
            self.on = gone.parent;
        }
    }

    /// A snapshot of what it is.
    pub(super) fn with(&mut self, id: Uuid, name: &str, content: Content) {
        let (blocks, parent) = (self.blocks, self.on);
        let point = Point { name: name.to_owned(), blocks, parent, content };
        self.snapshots.insert(id, point);
        self.on = Some(id);
    }
}

impl Ledger {
    pub(super) fn name(&mut self, letter: char) -> String {
        self.names += 1;
        format!("{letter}{}", self.names)
    }

    pub(super) fn value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    /// A volume became one of another kind; a fixed one is written anew and stands on nothing. Its clones
    /// stand on what it stood on.
    pub(super) fn converted(&mut self, id: Uuid, kind: VolumeKind) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let anew = kind == VolumeKind::Fixed && volume.kind != kind;
        volume.kind = kind;
        if anew {
            volume.snapshots.clear();
            volume.on = None;
            let mut below = std::mem::take(&mut volume.below);
            below.extend(volume.origin.take());
            for clone in self.volumes.values_mut().filter(|other| other.origin == Some(id)) {
                clone.below.extend(&below);
            }
        }
    }

    /// Whether others stand on the volume.
    pub(super) fn has_clones(&self, volume: Uuid) -> bool {
        let stands = |other: &Volume| other.origin == Some(volume) || other.below.contains(&volume);
        self.volumes.values().any(stands)
    }
}

/// The sectors that guests touch in a disk of `blocks` blocks, as runs: (first, length).
pub(super) fn zones(blocks: u64) -> Vec<(u64, u64)> {
    let near = 0..blocks.min(8);
    let over = (SEGMENT - 1..blocks.min(SEGMENT + 2)).filter(|block| *block < blocks);
    let last = (blocks > 8).then(|| blocks - 1).into_iter();
    let mut all: Vec<u64> = near.chain(over).chain(last).collect();
    all.sort_unstable();
    all.dedup();
    let block = |b: u64| [(b * SECTORS, HEAD), (b * SECTORS + SECTORS - TAIL, TAIL)];
    all.into_iter().flat_map(block).collect()
}
