//! The catalog of one datastore. SIGNATURES ONLY for now: bodies land within the hour.
#![allow(unused_variables, clippy::unimplemented, clippy::unused_async, clippy::large_futures, reason = "signatures first, for the node")]

use std::rc::Rc;

use datastore::FileStore;
use io::ByteCount;
use uuid::Uuid;

use crate::api::*;
use crate::env::{Env, Progress, Running};
use crate::error::Result;
use crate::record::VolumeRecord;

/// The catalog of one datastore.
#[derive(Clone)]
pub struct Catalog(Rc<()>);

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Catalog")
    }
}

impl Catalog {
    /// Opens the catalog and settles every intent; says what it did.
    pub async fn open(store: Rc<dyn FileStore>, env: Rc<dyn Env>, running: Rc<dyn Running>) -> Result<(Self, Vec<Recovered>)> { unimplemented!() }

    // -- reading --
    /// All volumes and templates, by name.
    pub fn volumes(&self) -> Vec<VolumeRecord> { unimplemented!() }
    /// One volume or template.
    pub fn volume(&self, id: Uuid) -> Result<VolumeRecord> { unimplemented!() }
    /// By name or UUID.
    pub fn find(&self, name_or_uuid: &str) -> Result<VolumeRecord> { unimplemented!() }
    /// What runs on the volume, if anything.
    pub fn running_on(&self, volume: Uuid) -> Option<String> { unimplemented!() }
    /// Whether the volume was not closed cleanly and is not connected: connect it once (replay), disconnect.
    pub fn needs_recovery(&self, volume: Uuid) -> bool { unimplemented!() }
    /// Linked clones of a volume or template.
    pub fn dependents(&self, volume: Uuid) -> Vec<crate::Named> { unimplemented!() }
    /// The tree of snapshots, parents before children.
    pub async fn snapshot_tree(&self, volume: Uuid) -> Result<Vec<SnapshotNode>> { unimplemented!() }
    /// Space of one volume.
    pub async fn usage(&self, volume: Uuid) -> Result<VolumeUsage> { unimplemented!() }
    /// Space of the datastore.
    pub async fn store_usage(&self) -> Result<StoreUsage> { unimplemented!() }
    /// Merges that are possible now or were interrupted: run `settle` on their volumes.
    pub fn pending_merges(&self) -> Vec<PendingMerge> { unimplemented!() }

    // -- volumes --
    pub async fn create_volume(&self, new: NewVolume, progress: &dyn Progress) -> Result<VolumeRecord> { unimplemented!() }
    pub async fn rename(&self, volume: Uuid, name: &str) -> Result<VolumeRecord> { unimplemented!() }
    /// Grows; disconnected.
    pub async fn resize(&self, volume: Uuid, size: ByteCount) -> Result<VolumeRecord> { unimplemented!() }
    /// Deletes a volume or template; `has-dependents` while linked clones exist.
    pub async fn delete_volume(&self, volume: Uuid) -> Result<()> { unimplemented!() }
    /// Linked clones of a snapshot or template, all in one operation.
    pub async fn clone_linked(&self, source: Source, names: Vec<String>) -> Result<Vec<VolumeRecord>> { unimplemented!() }
    /// A full, flat copy.
    pub async fn copy_full(&self, source: Source, target: CopyTarget, progress: &dyn Progress) -> Result<VolumeRecord> { unimplemented!() }

    // -- snapshots --
    /// Snapshots of one or several volumes at one moment; connected (gated through `Running`) or not.
    pub async fn snapshot_create(&self, volumes: &[Uuid], name: &str) -> Result<SnapshotSet> { unimplemented!() }
    /// Deletes a snapshot. Disconnected: merges at once. Connected: leaves the record, the merge waits for `settle`.
    pub async fn snapshot_delete(&self, volume: Uuid, snapshot: Uuid, progress: &dyn Progress) -> Result<Settled> { unimplemented!() }
    /// Bytes that the deletion of a snapshot would move.
    pub async fn snapshot_delete_cost(&self, volume: Uuid, snapshot: Uuid) -> Result<ByteCount> { unimplemented!() }
    /// Goes on with merges that wait; call it after a disconnect and after open.
    pub async fn settle(&self, volume: Uuid, progress: &dyn Progress) -> Result<Settled> { unimplemented!() }
    /// Back to a snapshot; disconnected.
    pub async fn snapshot_revert(&self, volume: Uuid, snapshot: Uuid) -> Result<VolumeRecord> { unimplemented!() }
    /// Where two points in time differ; None = from the beginning (all zero) / to what the volume is now.
    pub async fn snapshot_diff(&self, volume: Uuid, from: Option<Uuid>, to: Option<Uuid>) -> Result<Vec<DiffExtent>> { unimplemented!() }

    // -- templates (list = volumes() with .template) --
    /// Snapshot None: the volume itself becomes the template and takes the name. Some: a full copy of the snapshot.
    pub async fn template_create(&self, source: Source, name: &str, progress: &dyn Progress) -> Result<VolumeRecord> { unimplemented!() }
    pub async fn template_deploy(&self, template: Uuid, names: Vec<String>, how: Deploy, progress: &dyn Progress) -> Result<Vec<VolumeRecord>> { unimplemented!() }

    // -- connections --
    /// Says how to open a volume, and registers the connection durably before it does.
    pub async fn connect(&self, request: ConnectRequest) -> Result<ConnectPlan> { unimplemented!() }
    /// Ends a connection. `clean`: the disk was closed with a full flush. Otherwise the next connect replays.
    pub async fn disconnect(&self, connection: Uuid, clean: bool) -> Result<()> { unimplemented!() }

    // -- looking after --
    /// Looks at every object; changes nothing.
    pub async fn check(&self) -> Result<CheckReport> { unimplemented!() }
    /// Every rule of the catalog, for tests: what is broken, in sentences.
    pub async fn audit(&self) -> Result<Vec<String>> { unimplemented!() }
    /// Makes a volume of an orphaned chain.
    pub async fn adopt(&self, leaf_layer: Uuid, name: &str) -> Result<VolumeRecord> { unimplemented!() }
}
