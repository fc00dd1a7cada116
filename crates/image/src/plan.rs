//! The tree of a volume's layers, and what to do to it when a snapshot is deleted or reverted to.
//!
//! ```text
//!   base ── s1 ──┬── s2 ── leaf        a layer is the tip of a snapshot, the leaf, or a ghost: the
//!                └── s3                tip of a deleted snapshot that others still read through
//! ```
//! Deleting a snapshot only takes its name off its layer. What becomes of the layer follows from who
//! reads through it, and is the same for deletion, revert and recovery after a crash: see
//! [`LayerTree::settle`].

use std::collections::{BTreeMap, BTreeSet};

use crate::Uuid;

/// One layer of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its identity.
    pub id: Uuid,
    /// The layer below; one that is not in the tree belongs to someone else (a template).
    pub parent: Option<Uuid>,
    /// What keeps it.
    pub tip: Tip,
    /// Layers of other volumes that stand on it: linked clones.
    pub foreign_children: u32,
}

/// What a layer is the newest layer of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tip {
    /// Of the running volume.
    Leaf,
    /// Of a snapshot.
    Snapshot(Uuid),
    /// Of nothing any more.
    Ghost,
}

/// A step of a plan. Steps are done in order; each is safe to do again after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Move every block of `child` into its parent `into`, which takes over its tip.
    Merge {
        /// The layer that is emptied.
        child: Uuid,
        /// The layer that keeps the content.
        into: Uuid,
    },
    /// Make `to` the parent of `layer`: its headers name it from then on.
    Reparent {
        /// The layer whose parent changes.
        layer: Uuid,
        /// Its new parent.
        to: Uuid,
    },
    /// Delete a layer that nobody reads.
    Drop(Uuid),
}

/// What to do, what then is, and what must wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The tree once all of them are done.
    pub after: LayerTree,
    /// Ghosts that stay, and why: they cost space and nothing else.
    pub waiting: Vec<(Uuid, Waiting)>,
}

/// Why a ghost stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Several layers read through it.
    Shared {
        /// How many, in this volume and others.
        children: u64,
    },
    /// One layer reads through it, and above that one stand other volumes' clones: its content must
    /// not move while another host may be reading it.
    ClonesAbove {
        /// The layer with clones.
        layer: Uuid,
    },
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Two layers with one identity.
    #[error("layer {0} stands twice in the record")]
    Duplicate(Uuid),
    /// Parents go round in a circle.
    #[error("the parents of layer {0} go round in a circle")]
    Circle(Uuid),
    /// No layer has that snapshot.
    #[error("there is no snapshot {0} in this volume")]
    NoSnapshot(Uuid),
    /// There is not exactly one leaf.
    #[error("the volume has {0} current layers instead of one")]
    Leaves(usize),
    /// The leaf has children, so it could not be written.
    #[error("the current layer {0} has layers above it")]
    LeafInUse(Uuid),
}

/// The layers of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerTree {
    layers: BTreeMap<Uuid, Layer>,
}

impl LayerTree {
    /// A tree of these layers. A template has no leaf; a volume has one, without children.
    ///
    /// # Errors
    /// If the layers form no tree, or have more than one leaf, or one with children.
    pub fn new(layers: impl IntoIterator<Item = Layer>) -> Result<Self, TreeError> {
        let mut tree = Self { layers: BTreeMap::new() };
        for layer in layers {
            let id = layer.id;
            if tree.layers.insert(id, layer).is_some() {
                return Err(TreeError::Duplicate(id));
            }
        }
        for id in tree.layers.keys() {
            let mut seen = BTreeSet::new();
            let mut at = Some(*id);
            while let Some(layer) = at.and_then(|at| tree.layers.get(&at)) {
                if !seen.insert(layer.id) {
                    return Err(TreeError::Circle(*id));
                }
                at = layer.parent;
            }
        }
        let leaves: Vec<_> =
            tree.layers.values().filter(|l| l.tip == Tip::Leaf).map(|l| l.id).collect();
        match leaves.as_slice() {
            [] => Ok(tree),
            [leaf] if tree.children(*leaf).is_empty() => Ok(tree),
            [leaf] => Err(TreeError::LeafInUse(*leaf)),
            several => Err(TreeError::Leaves(several.len())),
        }
    }

    /// The layers, by identity.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.values()
    }

    /// A layer of the tree.
    #[must_use]
    pub fn get(&self, id: Uuid) -> Option<&Layer> {
        self.layers.get(&id)
    }

    /// The running volume's newest layer.
    #[must_use]
    pub fn leaf(&self) -> Option<&Layer> {
        self.layers.values().find(|layer| layer.tip == Tip::Leaf)
    }

    /// The layers of the tree from `id` down to the base. What lies below, in a template, is not ours
    /// to list.
    #[must_use]
    pub fn path(&self, id: Uuid) -> Vec<Uuid> {
        std::iter::successors(self.layers.get(&id), |layer| {
            layer.parent.and_then(|parent| self.layers.get(&parent))
        })
        .map(|layer| layer.id)
        .collect()
    }

    /// The layers of this volume right above `id`.
    #[must_use]
    pub fn children(&self, id: Uuid) -> Vec<Uuid> {
        self.layers.values().filter(|layer| layer.parent == Some(id)).map(|l| l.id).collect()
    }

    /// What deleting a snapshot leads to.
    ///
    /// # Errors
    /// If there is no such snapshot.
    pub fn plan_delete(&self, snapshot: Uuid) -> Result<Plan, TreeError> {
        let mut tree = self.clone();
        let id = tree.tip_of(snapshot)?;
        tree.set_tip(id, Tip::Ghost);
        Ok(tree.settle())
    }

    /// What going back to a snapshot leads to: the current leaf goes, `new_leaf` stands on the
    /// snapshot. It must be durable, and the record must name it, before the steps are done.
    ///
    /// # Errors
    /// If there is no such snapshot, or `new_leaf` is in the tree already.
    pub fn plan_revert(&self, snapshot: Uuid, new_leaf: Uuid) -> Result<Plan, TreeError> {
        let mut tree = self.clone();
        let parent = tree.tip_of(snapshot)?;
        if let Some(leaf) = tree.leaf().map(|leaf| leaf.id) {
            tree.set_tip(leaf, Tip::Ghost);
        }
        let leaf =
            Layer { id: new_leaf, parent: Some(parent), tip: Tip::Leaf, foreign_children: 0 };
        if tree.layers.insert(new_leaf, leaf).is_some() {
            return Err(TreeError::Duplicate(new_leaf));
        }
        Ok(tree.settle())
    }

    /// What to do about ghosts, until nothing more can be done:
    /// - nobody reads through it: it is dropped, which may leave its parent without readers;
    /// - one layer reads through it, and no clone stands anywhere above: that layer is merged into it.
    ///   At every moment of a merge each block is found in one of the two, so it is right for every
    ///   layer above, however many; clones of other volumes may be read by other hosts, which keep
    ///   maps of their own, so they forbid it;
    /// - otherwise it stays.
    ///
    /// Whether readers from outside (a copy, a backup) hold a layer just now, the layer's cell says
    /// when the step is done.
    #[must_use]
    pub fn settle(&self) -> Plan {
        let mut tree = self.clone();
        let mut steps = Vec::new();
        while let Some(next) = tree.next_steps() {
            for step in next {
                tree.apply(step);
                steps.push(step);
            }
        }
        let waiting = tree.ghosts().filter_map(|id| Some((id, tree.why_waiting(id)?))).collect();
        Plan { steps, waiting, after: tree }
    }

    /// The tree after a step.
    pub fn apply(&mut self, step: Step) {
        match step {
            Step::Drop(id) => {
                self.layers.remove(&id);
            }
            Step::Reparent { layer, to } => {
                if let Some(layer) = self.layers.get_mut(&layer) {
                    layer.parent = Some(to);
                }
            }
            Step::Merge { child, into } => {
                if let Some(tip) = self.layers.get(&child).map(|child| child.tip) {
                    self.set_tip(child, Tip::Ghost);
                    self.set_tip(into, tip);
                }
            }
        }
    }

    fn next_steps(&self) -> Option<Vec<Step>> {
        self.ghosts().find_map(|id| {
            let ghost = self.layers.get(&id)?;
            let children = self.children(id);
            match (children.as_slice(), ghost.foreign_children) {
                ([], 0) => Some(vec![Step::Drop(id)]),
                ([child], 0) if self.clones_above(*child).is_none() => {
                    let child = *child;
                    let above = self.children(child);
                    let mut steps = vec![Step::Merge { child, into: id }];
                    steps.extend(above.into_iter().map(|layer| Step::Reparent { layer, to: id }));
                    steps.push(Step::Drop(child));
                    Some(steps)
                }
                _ => None,
            }
        })
    }

    fn why_waiting(&self, id: Uuid) -> Option<Waiting> {
        let children = self.children(id);
        let foreign = u64::from(self.layers.get(&id)?.foreign_children);
        match (children.as_slice(), foreign) {
            ([child], 0) => self.clones_above(*child).map(|layer| Waiting::ClonesAbove { layer }),
            (several, foreign) => {
                Some(Waiting::Shared { children: foreign.saturating_add(several.len() as u64) })
            }
        }
    }

    /// A layer from `id` upwards on which clones stand.
    fn clones_above(&self, id: Uuid) -> Option<Uuid> {
        let mut left = vec![id];
        while let Some(id) = left.pop() {
            if self.layers.get(&id).is_some_and(|layer| layer.foreign_children > 0) {
                return Some(id);
            }
            left.extend(self.children(id));
        }
        None
    }

    fn ghosts(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.layers.values().filter(|layer| layer.tip == Tip::Ghost).map(|layer| layer.id)
    }

    fn tip_of(&self, snapshot: Uuid) -> Result<Uuid, TreeError> {
        let tip = Tip::Snapshot(snapshot);
        let layer = self.layers.values().find(|layer| layer.tip == tip);
        layer.map(|layer| layer.id).ok_or(TreeError::NoSnapshot(snapshot))
    }

    fn set_tip(&mut self, id: Uuid, tip: Tip) {
        if let Some(layer) = self.layers.get_mut(&id) {
            layer.tip = tip;
        }
    }
}
