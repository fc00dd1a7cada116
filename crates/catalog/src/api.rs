//! What callers hand in and get back.

use io::{ByteCount, ByteRange};
use uuid::Uuid;

use crate::error::Named;
use crate::record::{Snapshot, VolumeKind, VolumeRecord};

/// A volume to be made.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its size, a multiple of 512 up to 64 TiB.
    pub size: ByteCount,
    /// How it takes space.
    pub kind: VolumeKind,
}

/// What is cloned or copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// A volume or template.
    pub volume: Uuid,
    /// One of its snapshots; None = what it is now.
    pub snapshot: Option<Uuid>,
}

/// A full copy to be made.
#[derive(Clone, Debug)]
pub struct CopyTarget {
    /// Name of the new volume.
    pub name: String,
    /// How it takes space; None = as its source.
    pub kind: Option<VolumeKind>,
    /// Whether the copy is a template.
    pub template: bool,
}

/// How a template is deployed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deploy {
    /// Differencing layers on the template: at once, and they need it as long as they live.
    Linked,
    /// Copies of everything, of this kind (None = the template's).
    Full(Option<VolumeKind>),
}

/// Whether the layer that a snapshot puts above has all its space at once (rule N2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeafSpace {
    /// As the volume's kind says: lazy and fixed ones reserve it.
    #[default]
    AsTheKind,
    /// It takes space as it grows, whatever the kind.
    AsItGrows,
}

/// Snapshots of one or several volumes, made at one moment.
#[derive(Clone, Debug)]
pub struct SnapshotSet {
    /// The operation that made them.
    pub uuid: Uuid,
    /// Each volume and its new snapshot, in the order asked for.
    pub members: Vec<(Uuid, Snapshot)>,
}

/// A snapshot and where it stands in the tree of its volume.
#[derive(Clone, Debug)]
pub struct SnapshotNode {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// How many snapshots it stands on.
    pub depth: usize,
    /// Snapshots that stand on it, oldest first.
    pub children: Vec<Uuid>,
    /// Whether what the volume is now stands on it.
    pub is_current_parent: bool,
    /// How many volumes are linked clones of it.
    pub clones: usize,
    /// Bytes that only its own layer holds.
    pub used: ByteCount,
}

/// What a conversion comes to, before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// What is done.
    pub way: ConversionWay,
    /// Bytes that it takes from the datastore, while it runs and after.
    pub takes: ByteCount,
    /// Bytes that it gives back in the end, at least.
    pub frees: ByteCount,
    /// Bytes that it copies.
    pub moves: ByteCount,
    /// Snapshots that the target cannot keep: they are deleted if the caller agrees.
    pub loses: usize,
}

/// How a volume becomes one of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConversionWay {
    /// It takes space as the other kind does already.
    Relabel,
    /// Its layer takes the space that is missing.
    Reserve,
    /// Its layer gives back what holds no data.
    GiveBack,
    /// Its content is written into a new layer.
    Rewrite,
}

/// What a deletion of a snapshot, or the merging after it, came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Bytes that merging moved.
    pub moved: ByteCount,
    /// Layers that are gone.
    pub dropped: Vec<Uuid>,
    /// Layers that still wait: for the volume to be disconnected, for a clone or branch to go, or
    /// because the merge was paused.
    pub waiting: Vec<Uuid>,
    /// What happened, in sentences.
    pub notes: Vec<String>,
}

/// A merge that is possible now, or was paused or interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingMerge {
    /// Its volume.
    pub volume: Uuid,
    /// Layer of a deleted snapshot.
    pub into: Uuid,
    /// Its one child, which goes.
    pub child: Uuid,
}

/// How a volume is to be connected.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// The volume.
    pub volume: Uuid,
    /// One of its snapshots: always read-only, and beside a connected volume.
    pub snapshot: Option<Uuid>,
    /// Nothing is written; the volume may be connected so any number of times, unless it is
    /// connected for writing. Templates can only be connected so.
    pub read_only: bool,
    /// Who connects, in words for others who meet it.
    pub holder: String,
    /// The identity that the volume's log in memory carries, where one survived (rule D4).
    pub log_found: Option<LogIdentity>,
}

/// Identity of a volume's log in memory: replay is allowed, and mandatory, on an exact match only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The volume.
    pub volume: Uuid,
    /// The boot that the log lived in.
    pub boot_id: String,
    /// The volume's generation: goes up with each connect that does not go on from before.
    pub generation: u64,
    /// The log.
    pub log_id: Uuid,
}

/// What becomes of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogPlan {
    /// The last session ended in a clean close: start a new log.
    Fresh,
    /// The log survived its process: it must be replayed, then goes on.
    Replay,
    /// The log is gone, as after a power cut: start a new one, and distrust what no durable
    /// structure owns (rule D5).
    Lost,
}

/// One layer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRef {
    /// Names the layer's file.
    pub uuid: Uuid,
    /// Its own size in bytes.
    pub size: u64,
    /// Whether the file is a fixed VHD.
    pub fixed: bool,
}

/// How to open a volume.
#[derive(Clone, Debug)]
pub struct ConnectPlan {
    /// Names this connection to [`crate::Catalog::disconnect`].
    pub connection: Uuid,
    /// The volume.
    pub volume: Uuid,
    /// Whether nothing may be written.
    pub read_only: bool,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Whether the leaves keep all their space, so that discards only zero (rule N2).
    pub reserves: bool,
    /// The chain of each segment in order, leaf first.
    pub segments: Vec<Vec<LayerRef>>,
    /// The log to keep; None for read-only connections.
    pub log: Option<LogIdentity>,
    /// What becomes of the log.
    pub log_plan: LogPlan,
    /// Whether no power cut lies between the last clean close and now. With `Replay` it can still be
    /// false: then both the replay and rule D5 apply.
    pub clean: bool,
}

/// Space of one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// The size promised to guests.
    pub provisioned: ByteCount,
    /// Space kept for it beyond what is used.
    pub reserved: ByteCount,
    /// Bytes that the layers it owns really take.
    pub used: ByteCount,
    /// What a reclaim would give back; None until measured.
    pub reclaimable: Option<ByteCount>,
}

/// How many objects a datastore holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Volumes that are no templates.
    pub volumes: usize,
    /// Templates.
    pub templates: usize,
    /// Snapshots of all of them.
    pub snapshots: usize,
}

/// Space of the datastore, as the sum over its volumes and as measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Size of the store.
    pub total: ByteCount,
    /// What guest data may still take.
    pub free: ByteCount,
    /// Sum of the sizes promised.
    pub provisioned: ByteCount,
    /// Sum of what is kept for volumes.
    pub reserved: ByteCount,
    /// Bytes of layers that volumes own.
    pub used: ByteCount,
    /// Bytes of everything else: records, cells, intents, orphans, the store's own.
    pub other: ByteCount,
}

/// A range in which two points in time differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffExtent {
    /// Which bytes.
    pub range: ByteRange,
    /// Whether it reads as zero at the later point, as far as the layers tell without its content.
    pub zero: bool,
}

/// What recovery did with an intent that was found when the catalog was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The operation.
    pub operation: Uuid,
    /// Whether it was finished; else it was undone.
    pub finished: bool,
    /// What was done, as a sentence.
    pub sentence: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Takes space or a name, harms nothing.
    Note,
    /// Should be looked at.
    Warning,
    /// Data cannot be read, or is at risk.
    Error,
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A stable name: `orphan-layer`, `missing-parent`, `cyclic-parents`, `unreadable-record` ….
    pub code: &'static str,
    /// The object, by its name in the datastore.
    pub object: String,
    /// What is wrong and what to do, in sentences.
    pub message: String,
}

/// What a check found; it changes nothing (rule R4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Findings, worst first.
    pub findings: Vec<Finding>,
    /// How many layers were looked at.
    pub layers: usize,
    /// How many volumes and templates there are.
    pub volumes: usize,
}

/// An object that holds another in place.
pub(crate) fn named(volume: &VolumeRecord) -> Named {
    Named { uuid: volume.uuid, name: volume.name.clone() }
}
