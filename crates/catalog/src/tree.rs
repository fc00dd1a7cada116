//! The tree of layers, as the layers' own parent links say it; pure.
//!
//! Parent links come from a disk, so they may lead nowhere or in a circle: every walk here ends.
//!
//! How many paths end above each layer is kept, not counted: one snapshot may have thousands of clones.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

/// A layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// The layer below.
    pub(crate) parent: Option<Uuid>,
    /// Its own size in bytes.
    pub(crate) size: u64,
    /// Whether it is a fixed VHD.
    pub(crate) fixed: bool,
    /// The volume whose record owns it; None for an orphan.
    pub(crate) owner: Option<Uuid>,
}

/// Why a chain cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// This layer is not there or cannot be read.
    Missing(Uuid),
    /// The parents come back to this layer.
    Cyclic(Uuid),
}

/// All layers of a datastore.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<Uuid, Node>,
    children: BTreeMap<Uuid, BTreeSet<Uuid>>,
    /// Ends of paths through each layer.
    ends: BTreeMap<Uuid, u32>,
    /// There was a circle among the links: from then on ends are counted, as `ends` may be wrong.
    circular: bool,
}

impl Tree {
    pub(crate) fn insert(&mut self, layer: Uuid, node: Node) {
        self.remove(layer);
        self.nodes.insert(layer, node);
        let above: u32 = self.children(layer).filter_map(|child| self.ends.get(&child)).sum();
        let own = above.max(1);
        self.ends.insert(layer, own);
        let Some(parent) = node.parent else { return };
        let siblings = self.children.entry(parent).or_default();
        // The parent was an end itself.
        let ended = u32::from(siblings.is_empty());
        siblings.insert(layer);
        self.shift(layer, parent, i64::from(own) - i64::from(ended));
    }

    pub(crate) fn remove(&mut self, layer: Uuid) {
        let Some(node) = self.nodes.remove(&layer) else { return };
        let own = self.ends.remove(&layer).unwrap_or(0);
        let Some(parent) = node.parent else { return };
        let Some(siblings) = self.children.get_mut(&parent) else { return };
        siblings.remove(&layer);
        let ends = u32::from(siblings.is_empty());
        if siblings.is_empty() {
            self.children.remove(&parent);
        }
        self.shift(layer, parent, i64::from(ends) - i64::from(own));
    }

    /// Ends of paths came to, or went from, `layer`, which stands on `below`.
    fn shift(&mut self, layer: Uuid, below: Uuid, ends: i64) {
        let mut steps = self.nodes.len();
        let mut next = Some(below);
        while let Some(at) = next {
            let Some(node) = self.nodes.get(&at) else { return };
            if at == layer || steps == 0 {
                self.circular = true;
                return;
            }
            if let Some(count) = self.ends.get_mut(&at) {
                *count = u32::try_from(i64::from(*count) + ends).unwrap_or(0);
            }
            next = node.parent;
            steps -= 1;
        }
    }

    pub(crate) fn get(&self, layer: Uuid) -> Option<Node> {
        self.nodes.get(&layer).copied()
    }

    pub(crate) fn set_owner(&mut self, layer: Uuid, owner: Option<Uuid>) {
        if let Some(node) = self.nodes.get_mut(&layer) {
            node.owner = owner;
        }
    }

    pub(crate) fn children(&self, layer: Uuid) -> impl Iterator<Item = Uuid> + '_ {
        self.children.get(&layer).into_iter().flatten().copied()
    }

    /// The chain from `leaf` down to its base, leaf first.
    pub(crate) fn path(&self, leaf: Uuid) -> Result<Vec<Uuid>, Broken> {
        let (mut path, mut seen, mut at) = (Vec::new(), BTreeSet::new(), leaf);
        loop {
            let node = self.nodes.get(&at).ok_or(Broken::Missing(at))?;
            if !seen.insert(at) {
                return Err(Broken::Cyclic(at));
            }
            path.push(at);
            match node.parent {
                Some(parent) => at = parent,
                None => return Ok(path),
            }
        }
    }

    /// As much of the chain as can be followed.
    pub(crate) fn path_so_far(&self, leaf: Uuid) -> Vec<Uuid> {
        let (mut path, mut seen, mut next) = (Vec::new(), BTreeSet::new(), Some(leaf));
        while let Some(at) = next {
            let Some(node) = self.nodes.get(&at) else { break };
            if !seen.insert(at) {
                break;
            }
            path.push(at);
            next = node.parent;
        }
        path
    }

    /// `top` and every layer that descends from it.
    pub(crate) fn subtree(&self, top: Uuid) -> BTreeSet<Uuid> {
        let (mut seen, mut open) = (BTreeSet::new(), vec![top]);
        while let Some(at) = open.pop() {
            if seen.insert(at) {
                open.extend(self.children(at));
            }
        }
        seen
    }

    /// Ends of paths through `layer` (see `cell`).
    pub(crate) fn leaves(&self, layer: Uuid) -> u32 {
        if self.circular {
            return self.counted(layer);
        }
        // Of a layer that is not there, as those have it that stand on it.
        self.ends.get(&layer).copied().unwrap_or_else(|| self.counted(layer))
    }

    fn counted(&self, layer: Uuid) -> u32 {
        let ends = self.subtree(layer).iter().filter(|at| !self.children.contains_key(at)).count();
        u32::try_from(ends).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::{Broken, Node, Tree};
    use uuid::Uuid;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn tree(links: &[(u128, Option<u128>)]) -> Tree {
        let mut tree = Tree::default();
        for (layer, parent) in links {
            let node = Node { parent: parent.map(id), size: 512, fixed: false, owner: None };
            tree.insert(id(*layer), node);
        }
        tree
    }

    #[test]
    fn counts_ends_of_paths() {
        // 1 ─┬─ 2 ─── 3
        //    └─ 4 ─┬─ 5
        //          └─ 6
        let mut tree = tree(&[
            (1, None),
            (2, Some(1)),
            (3, Some(2)),
            (4, Some(1)),
            (5, Some(4)),
            (6, Some(4)),
        ]);
        assert_eq!([1, 2, 3, 4].map(|n| tree.leaves(id(n))), [3, 1, 1, 2]);
        assert_eq!(tree.path(id(6)), Ok(vec![id(6), id(4), id(1)]));
        tree.remove(id(3));
        tree.remove(id(5));
        assert_eq!([1, 2, 4].map(|n| tree.leaves(id(n))), [2, 1, 1]);
    }

    #[test]
    fn kept_counts_are_what_counting_gives() {
        use proptest::prelude::*;
        let change = (0_u128..12, prop::option::of(prop::option::of(0_u128..12)));
        proptest!(|(changes in prop::collection::vec(change, 0..60), circles: bool)| {
            let mut tree = Tree::default();
            for (layer, change) in changes {
                match change {
                    // Without circles a layer stands on one of a lower number.
                    Some(parent) => {
                        let parent = parent.filter(|parent| circles || *parent < layer);
                        let parent = parent.map(id);
                        let node = Node { parent, size: 512, fixed: false, owner: None };
                        tree.insert(id(layer), node);
                    }
                    None => tree.remove(id(layer)),
                }
                prop_assert!(circles || !tree.circular);
                for layer in (0..12).map(id) {
                    prop_assert_eq!(tree.leaves(layer), tree.counted(layer));
                }
            }
        });
    }

    #[test]
    fn broken_links_end_every_walk() {
        let tree = tree(&[(1, Some(2)), (2, Some(1)), (3, Some(3)), (4, Some(9)), (5, Some(1))]);
        assert_eq!(tree.path(id(5)), Err(Broken::Cyclic(id(1))));
        assert_eq!(tree.path(id(3)), Err(Broken::Cyclic(id(3))));
        assert_eq!(tree.path(id(4)), Err(Broken::Missing(id(9))));
        assert_eq!(tree.path_so_far(id(5)), [id(5), id(1), id(2)]);
        assert_eq!(tree.subtree(id(1)).len(), 3);
        assert_eq!(tree.leaves(id(3)), 0);
    }
}
