//! Snapshots: of one or several volumes at one moment, deletion, and going back.

use std::collections::BTreeSet;

use io::ByteCount;
use uuid::Uuid;

use crate::api::{LeafSpace, Settled, SnapshotSet};
use crate::catalog::{Catalog, State, check_name, find_snapshot, refuse_template};
use crate::env::Progress;
use crate::error::{CatalogError, Code, Named, Result};
use crate::intent::NewLayer;
use crate::layer;
use crate::locks::Pace;
use crate::record::{Current, MAX_SNAPSHOTS, Snapshot, VolumeKind, VolumeRecord};
use crate::schedule::Due;
use crate::segments::{Layout, Tip};
use crate::space::Measured;
use crate::txn::{Begun, Plan};
use crate::volumes::{mib, one};

impl Catalog {
    /// Makes snapshots of all `volumes` at one moment, connected or not: either all or none exist.
    /// Guests of connected ones are held from the gate to the commit only.
    ///
    /// # Errors
    /// `not-found`, `bad-name`, `name-taken`, `snapshot-limit` (naming the cheapest to delete),
    /// `is-template`, `not-clean`, `no-space`, `busy`.
    pub async fn snapshot_create(
        &self,
        volumes: &[Uuid],
        name: &str,
        space: LeafSpace,
    ) -> Result<SnapshotSet> {
        self.snapshot_as(volumes, name, space, None).await
    }

    /// As [`Catalog::snapshot_create`]; also for a schedule, whose rules note the moment in the record
    /// that commits the snapshot.
    pub(crate) async fn snapshot_as(
        &self,
        volumes: &[Uuid],
        name: &str,
        space: LeafSpace,
        due: Option<&Due<'_>>,
    ) -> Result<SnapshotSet> {
        check_name(name)?;
        let mut ids = volumes.to_vec();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() || ids.len() != volumes.len() {
            let message = "a snapshot wants one or several volumes, each named once";
            return Err(CatalogError::new(Code::BadRequest, message));
        }
        let held = self.hold(&ids, "a snapshot", Pace::Short).await?;
        let set = (ids.len() > 1).then(|| self.env().new_uuid());
        let (mut puts, mut creates, mut connected) = (Vec::new(), Vec::new(), Vec::new());
        let mut reserved = 0;
        for id in &ids {
            let record = self.volume(*id)?;
            self.may_snapshot(&record, name).await?;
            if self.is_connected(*id) {
                connected.push(*id);
            } else {
                self.at_rest(&record, "snapshot")?;
            }
            let (mut put, new) = self.with_snapshot(&record, name, set, space);
            if let Some(due) = due {
                due.note(&mut put)?;
            }
            if put.reserves() {
                reserved += record.size;
            }
            puts.push(put);
            creates.extend(new);
        }
        let title = match puts.as_slice() {
            [one] => format!("snapshot {name} of {}", one.name),
            several => format!("snapshot {name} of {} volumes", several.len()),
        };
        self.has_room(reserved, &title).await?;
        let begun = self.begin(Plan { title, puts, creates, ..Plan::default() }).await?;
        let begun = self.commit_gated(begun, &connected).await?;
        let made = self.finish(begun).await;
        drop(held);
        let last = |record: &VolumeRecord| Some((record.uuid, record.snapshots.last()?.clone()));
        let members = volumes
            .iter()
            .filter_map(|id| made.iter().find(|record| record.uuid == *id).and_then(last))
            .collect();
        let uuid = set.or_else(|| made.first().map(|record| record.operation)).unwrap_or_default();
        Ok(SnapshotSet { uuid, members })
    }

    async fn may_snapshot(&self, record: &VolumeRecord, name: &str) -> Result<()> {
        refuse_template(record, "snapshot")?;
        if record.snapshots.iter().any(|s| s.name == name) {
            let message = format!("{} has a snapshot {name} already", record.name);
            return Err(CatalogError::new(Code::NameTaken, message).hint("choose another name"));
        }
        self.chain_has_room(&record.name, &record.current.tip)?;
        let waiting = self.waiting_layers(record);
        if record.snapshots.len() + waiting < MAX_SNAPSHOTS {
            return Ok(());
        }
        let ghosts = match waiting {
            0 => String::new(),
            _ => format!(", {waiting} deleted ones that still wait for their merge included"),
        };
        let message = format!("{} has {MAX_SNAPSHOTS} snapshots, the limit{ghosts}", record.name);
        let error = CatalogError::new(Code::SnapshotLimit, message);
        Err(match self.cheapest_to_delete(record).await? {
            None => {
                error.hint("delete branches or clones, so that deleted snapshots can be merged")
            }
            Some((snapshot, bytes)) => error
                .hint(format!(
                    "cheapest to delete: {} (moves {}): shale snapshot delete {} --volume {}",
                    snapshot.name,
                    mib(bytes.0),
                    snapshot.name,
                    record.name
                ))
                .related(vec![Named { uuid: snapshot.uuid, name: snapshot.name.clone() }]),
        })
    }

    /// Layers of deleted snapshots that wait for their merge, in the segment that has most of them: with
    /// the snapshots they count towards [`MAX_SNAPSHOTS`].
    fn waiting_layers(&self, record: &VolumeRecord) -> usize {
        let ghosts: BTreeSet<Uuid> = record.ghosts().collect();
        if ghosts.is_empty() {
            return 0;
        }
        let segments = record.tips().map(|(tip, _)| tip.layers().len()).max().unwrap_or(0);
        self.with(|state| {
            let in_segment = |at: usize| {
                let tips = record.tips().filter_map(|(tip, _)| tip.layers().get(at).copied());
                let below: BTreeSet<Uuid> =
                    tips.flat_map(|layer| state.tree.path_so_far(layer)).collect();
                below.intersection(&ghosts).count()
            };
            (0..segments).map(in_segment).max().unwrap_or(0)
        })
    }

    fn with_snapshot(
        &self,
        record: &VolumeRecord,
        name: &str,
        set: Option<Uuid>,
        space: LeafSpace,
    ) -> (VolumeRecord, Vec<NewLayer>) {
        let mut put = record.clone();
        let snapshot = self.env().new_uuid();
        put.snapshots.push(Snapshot {
            uuid: snapshot,
            name: name.to_owned(),
            created: self.env().now_ms(),
            parent: record.current.parent,
            tip: record.current.tip.clone(),
            size: record.size,
            set,
            scheduled: None,
        });
        let leaves = self.leaves_on(&record.current.tip, record.layout(), record.uuid);
        let unreserved = record.kind != VolumeKind::Thin && space == LeafSpace::AsItGrows;
        put.current = Current { tip: tip_of(&leaves), parent: Some(snapshot), unreserved };
        put.layers.extend(put.current.tip.layers());
        (put, leaves)
    }

    /// New differencing layers on each layer of `tip`, for a volume of `owner`.
    pub(crate) fn leaves_on(&self, tip: &Tip, layout: Layout, owner: Uuid) -> Vec<NewLayer> {
        let parents = tip.layers().iter().enumerate();
        parents
            .map(|(at, parent)| NewLayer {
                layer: self.env().new_uuid(),
                parent: Some(*parent),
                size: layout.size_of(at),
                fixed: false,
                owner,
            })
            .collect()
    }

    /// Makes the files of new layers.
    pub(crate) async fn create_leaves(&self, leaves: &[NewLayer], reserve: bool) -> Result<()> {
        for new in leaves {
            layer::create_sparse(self.store(), new, self.env().now_ms(), reserve).await?;
        }
        Ok(())
    }

    /// Makes the new leaves durable, and the running disks ready for a short gate.
    async fn prepare_leaves(&self, begun: &Begun, connected: &[Uuid]) -> Result<()> {
        let reserving: BTreeSet<Uuid> =
            begun.puts.iter().filter(|record| record.reserves()).map(|r| r.uuid).collect();
        for new in &begun.intent.creates {
            let reserve = reserving.contains(&new.owner) && self.store().capabilities().reserve;
            layer::create_sparse(self.store(), new, self.env().now_ms(), reserve).await?;
        }
        self.store().sync_names().await?;
        for record in begun.puts.iter().filter(|record| connected.contains(&record.uuid)) {
            self.running().prepare(record.uuid, record.current.tip.clone()).await?;
        }
        Ok(())
    }

    /// Prepare all, gate all, commit, switch, let go (rule R1). After the commit it only goes forward.
    /// What can be done before the gate is done before it: behind it remain the drain, one flush, and
    /// the rename that commits.
    async fn commit_gated(&self, begun: Begun, connected: &[Uuid]) -> Result<Begun> {
        if let Err(error) = self.prepare_leaves(&begun, connected).await {
            self.ungate(connected).await;
            return Err(self.abort(begun, error).await);
        }
        let staged = match self.register(&begun).await {
            Ok(()) => self.stage(&begun).await,
            Err(error) => Err(error),
        };
        let staged = match staged {
            Ok(staged) => staged,
            Err(error) => {
                self.ungate(connected).await;
                return Err(self.abort(begun, error).await);
            }
        };
        for volume in connected {
            if let Err(error) = self.running().gate(*volume).await {
                // A gate that failed half-way is undone too.
                self.ungate(connected).await;
                return Err(self.abort(begun, error).await);
            }
        }
        let begun = match self.commit_staged(begun, staged).await {
            Ok(begun) => begun,
            // Their leaves may be the snapshot's layers already: a write now would change it.
            Err(error) if error.code == Code::OutcomeUnknown => {
                for volume in connected {
                    self.running().abandon(*volume).await;
                }
                return Err(error);
            }
            Err(error) => {
                self.ungate(connected).await;
                return Err(error);
            }
        };
        let mut failed = None;
        for volume in connected {
            let Some(record) = begun.puts.iter().find(|record| record.uuid == *volume) else {
                continue;
            };
            match self.running().switch(*volume, record.current.tip.clone()).await {
                Ok(()) => self.running().ungate(*volume).await,
                // It stays gated: a write now would change the snapshot.
                Err(error) => {
                    let doing = format_args!(
                        "the snapshot is made, but {} cannot go on in its new layer; reconnect it",
                        record.name
                    );
                    failed = Some(error.during(doing));
                }
            }
        }
        match failed {
            None => Ok(begun),
            Some(error) => {
                self.finish(begun).await;
                Err(error)
            }
        }
    }

    async fn ungate(&self, volumes: &[Uuid]) {
        for volume in volumes {
            self.running().ungate(*volume).await;
        }
    }

    /// Deletes a snapshot. Its layer is dropped, or merged with the one on it: at once where the volume
    /// is disconnected, else it waits for [`Catalog::settle`]. The snapshot is gone either way, also if
    /// the merge is cancelled (it pauses) or fails.
    ///
    /// # Errors
    /// `not-found`, `busy`, `record-unreadable`. What the merge after the deletion meets stands in the
    /// notes of the result.
    pub async fn snapshot_delete(
        &self,
        volume: Uuid,
        snapshot: Uuid,
        progress: &dyn Progress,
    ) -> Result<Settled> {
        let held = self.hold_with_origins(volume, "a snapshot's deletion", Pace::Short).await?;
        self.may_sweep()?;
        let mut record = self.volume(volume)?;
        let gone = find_snapshot(&record, snapshot)?.clone();
        record.snapshots.retain(|s| s.uuid != snapshot);
        for child in &mut record.snapshots {
            if child.parent == Some(snapshot) {
                child.parent = gone.parent;
            }
        }
        if record.current.parent == Some(snapshot) {
            record.current.parent = gone.parent;
        }
        let title = format!("delete snapshot {} of {}", gone.name, record.name);
        let mut plan = Plan { title, ..Plan::default() };
        let mut settled = Settled::default();
        for layer in gone.tip.layers() {
            if self.with(|state| state.tree.children(*layer).next().is_none()) {
                without_layer(&mut record, *layer);
                plan.drops.push(*layer);
                settled.dropped.push(*layer);
            }
        }
        plan.puts.push(record);
        let begun = self.begin(plan).await?;
        self.commit(begun).await?;
        drop(held);
        match self.settle(volume, progress).await {
            Ok(rest) => {
                settled.moved = rest.moved;
                settled.dropped.extend(rest.dropped);
                settled.waiting = rest.waiting;
                settled.notes = rest.notes;
            }
            Err(error) => {
                settled.waiting = self.volume(volume)?.ghosts().collect();
                let gone = &gone.name;
                settled.notes.push(format!(
                    "{gone} is deleted; its space comes back when its merge goes on: {error}"
                ));
            }
        }
        Ok(settled)
    }

    /// Bytes that deleting a snapshot would move.
    ///
    /// # Errors
    /// `not-found`, or if the datastore fails.
    pub async fn snapshot_delete_cost(&self, volume: Uuid, snapshot: Uuid) -> Result<ByteCount> {
        let record = self.volume(volume)?;
        self.snapshot_delete_cost_by(volume, snapshot, &self.measure_for(&record).await?)
    }

    /// The same by a measurement that is there.
    ///
    /// # Errors
    /// `not-found`.
    pub fn snapshot_delete_cost_by(
        &self,
        volume: Uuid,
        snapshot: Uuid,
        measured: &Measured,
    ) -> Result<ByteCount> {
        let record = self.volume(volume)?;
        let tip = find_snapshot(&record, snapshot)?.tip.clone();
        Ok(self.with(|state| {
            let moved = tip.layers().iter().map(|layer| {
                let mut children = state.tree.children(*layer);
                match (children.next(), children.next()) {
                    (Some(child), None) => moves(state, measured, child),
                    (None | Some(_), _) => 0,
                }
            });
            ByteCount(moved.sum())
        }))
    }

    /// The snapshot whose deletion frees a place for the fewest bytes moved.
    async fn cheapest_to_delete(
        &self,
        record: &VolumeRecord,
    ) -> Result<Option<(Snapshot, ByteCount)>> {
        let used = self.measure_for(record).await?;
        Ok(self.with(|state| {
            let cost = |layer: &Uuid| {
                let children: Vec<Uuid> = state.tree.children(*layer).collect();
                match children.as_slice() {
                    [] => Some(0),
                    // With several paths through it the layer would only become a ghost.
                    [child] if state.tree.leaves(*layer) == 1 => Some(moves(state, &used, *child)),
                    _ => None,
                }
            };
            let costs = record.snapshots.iter().filter_map(|snapshot| {
                let all: Option<u64> = snapshot.tip.layers().iter().map(cost).sum();
                Some((snapshot.clone(), ByteCount(all?)))
            });
            costs.min_by_key(|(_, bytes)| *bytes)
        }))
    }

    /// Takes the volume back to a snapshot; what was written since is gone.
    ///
    /// # Errors
    /// `not-found`, `volume-connected`, `is-template`, `no-space`, `busy`, `record-unreadable`.
    pub async fn snapshot_revert(&self, volume: Uuid, snapshot: Uuid) -> Result<VolumeRecord> {
        let held = self.hold_with_origins(volume, "a revert", Pace::Short).await?;
        let mut record = self.volume(volume)?;
        refuse_template(&record, "revert")?;
        self.disconnected(&record, "revert")?;
        let target = find_snapshot(&record, snapshot)?.clone();
        let drops = record.current.tip.layers().to_vec();
        let new = self.leaves_on(&target.tip, record.layout_at(target.size), volume);
        let unreserved = record.current.unreserved;
        record.current = Current { tip: tip_of(&new), parent: Some(snapshot), unreserved };
        record.size = target.size;
        record.layers.extend(record.current.tip.layers());
        for old in &drops {
            without_layer(&mut record, *old);
        }
        let reserve = record.reserves() && self.store().capabilities().reserve;
        let plan = Plan {
            title: format!("revert {} to {}", record.name, target.name),
            puts: vec![record],
            creates: new.clone(),
            drops,
            void_sessions: vec![volume],
            ..Plan::default()
        };
        let begun = self.begin(plan).await?;
        let built = self.create_leaves(&new, reserve).await;
        let made = one(self.conclude(begun, built).await?)?;
        drop(held);
        // Layers that only the old leaf stood on go too; merges wait for `settle`.
        if let Err(error) = self.drop_ghosts(volume).await {
            tracing::warn!(%volume, %error, "unused layers stay for now");
        }
        self.volume(made.uuid)
    }
}

/// The tip that new layers make, one for each segment in order.
pub(crate) fn tip_of(leaves: &[NewLayer]) -> Tip {
    Tip::new(leaves.iter().map(|new| new.layer).collect())
}

/// Bytes that merging `child` into its parent moves: what its file takes beyond its own structures
/// (headers, two locators, BAT, footer).
fn moves(state: &State, measured: &Measured, child: Uuid) -> u64 {
    let size = state.tree.get(child).map_or(0, |node| node.size);
    let own = layer::own_bytes(size);
    measured.used(child).0.saturating_sub(own)
}

/// Takes a layer out of a record's own.
pub(crate) fn without_layer(record: &mut VolumeRecord, layer: Uuid) {
    record.layers.retain(|own| *own != layer);
    record.fixed_layers.retain(|own| *own != layer);
}
