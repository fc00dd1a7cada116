//! Snapshots as a tree, with the place that the volume is at.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Name, Snapshot};

/// One snapshot and what came after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotNode {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Whether the volume's current state descends from this one directly: "you are here".
    pub here: bool,
    /// The snapshots after it, oldest first.
    #[schema(no_recursion)]
    pub children: Vec<Self>,
}

/// All snapshots of one volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotTree {
    /// The volume.
    pub volume: Uuid,
    /// Its name.
    pub volume_name: Name,
    /// The snapshot that the current state descends from; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_snapshot: Option<Uuid>,
    /// The snapshots without a parent, oldest first.
    pub roots: Vec<SnapshotNode>,
}

impl SnapshotTree {
    /// Builds the tree of one volume's snapshots. Every snapshot appears exactly once: one whose
    /// parent is unknown, or that is its own ancestor, becomes a root.
    pub fn build(
        volume: Uuid,
        volume_name: Name,
        current_snapshot: Option<Uuid>,
        snapshots: Vec<Snapshot>,
    ) -> Self {
        let known: BTreeSet<Uuid> = snapshots.iter().map(|s| s.id).collect();
        let mut by_parent: BTreeMap<Option<Uuid>, Vec<Snapshot>> = BTreeMap::new();
        for snapshot in snapshots {
            let parent = snapshot.parent.filter(|p| known.contains(p) && *p != snapshot.id);
            by_parent.entry(parent).or_default().push(snapshot);
        }
        for siblings in by_parent.values_mut() {
            siblings.sort_by_key(|s| (s.created, s.id));
        }
        let mut roots = Vec::new();
        grow(None, current_snapshot, &mut by_parent, &mut roots);
        // what is left hangs on a cycle: cut each at its first member
        while let Some((parent, mut rest)) = by_parent.pop_first() {
            let snapshot = rest.remove(0);
            if !rest.is_empty() {
                by_parent.insert(parent, rest);
            }
            let id = snapshot.id;
            let here = current_snapshot == Some(id);
            let mut children = Vec::new();
            grow(Some(id), current_snapshot, &mut by_parent, &mut children);
            roots.push(SnapshotNode { snapshot, here, children });
        }
        Self { volume, volume_name, current_snapshot, roots }
    }
}

/// Moves everything that descends from `parent` out of `by_parent`. Depth is bounded by the number
/// of snapshots of a volume; a set of siblings is taken out before its children are visited, so a
/// cycle ends by itself.
fn grow(
    parent: Option<Uuid>,
    current: Option<Uuid>,
    by_parent: &mut BTreeMap<Option<Uuid>, Vec<Snapshot>>,
    into: &mut Vec<SnapshotNode>,
) {
    for snapshot in by_parent.remove(&parent).unwrap_or_default() {
        let id = snapshot.id;
        let mut children = Vec::new();
        grow(Some(id), current, by_parent, &mut children);
        into.push(SnapshotNode { snapshot, here: current == Some(id), children });
    }
}
