//! The tree of layers, as the layers' own parent links say it; pure.
//!
//! Parent links come from a disk, so they may lead nowhere or in a circle: every walk here ends.

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
}

impl Tree {
    pub(crate) fn insert(&mut self, layer: Uuid, node: Node) {
        self.remove(layer);
        self.nodes.insert(layer, node);
        if let Some(parent) = node.parent {
            self.children.entry(parent).or_default().insert(layer);
        }
    }

    pub(crate) fn remove(&mut self, layer: Uuid) {
        let Some(node) = self.nodes.remove(&layer) else { return };
        let Some(parent) = node.parent else { return };
        if let Some(siblings) = self.children.get_mut(&parent) {
            siblings.remove(&layer);
            if siblings.is_empty() {
                self.children.remove(&parent);
            }
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

    pub(crate) fn layers(&self) -> impl Iterator<Item = (Uuid, Node)> + '_ {
        self.nodes.iter().map(|(layer, node)| (*layer, *node))
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
