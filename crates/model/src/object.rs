//! What exists: datastores, volumes, snapshots, templates and connections, as every API shows them.
//!
//! All byte counts are exact. `used` is what the store really holds for the object, `reserved` what
//! is kept for it beyond that, `provisioned` what was promised to guests, `reclaimable` what a
//! reclaim would give back (absent until it was measured; never guessed).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Name, Size, StoreFeatures, Timestamp};

macro_rules! words {
    ($type:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $type {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The value as it stands on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.as_str()) }
        }
        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.as_str() == text).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|v| v.as_str()).collect();
                    format!("'{text}' is not one of {}", all.join(", "))
                })
            }
        }
    };
}
pub(crate) use words;

/// Space of a datastore or of one volume, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Space {
    /// What the store's file system holds in all; 0 for a volume.
    pub total: Size,
    /// What is free for guests' data; 0 for a volume.
    pub free: Size,
    /// Sizes promised to guests.
    pub provisioned: Size,
    /// Space kept for them and not yet used.
    pub reserved: Size,
    /// Bytes really taken by this object.
    pub used: Size,
    /// Bytes that a reclaim would give back; absent until measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaimable: Option<Size>,
}

/// What a datastore is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DatastoreKind {
    /// An existing directory.
    Dir,
}
words!(DatastoreKind { Dir = "dir" });

/// Whether a datastore can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DatastoreState {
    /// Everything works.
    Normal,
    /// It can be read, not changed.
    ReadOnly,
    /// It cannot be used; `state_reason` says why.
    Abnormal,
    /// It is being made.
    Creating,
    /// It is being removed.
    Deleting,
}
words!(DatastoreState {
    Normal = "normal",
    ReadOnly = "read-only",
    Abnormal = "abnormal",
    Creating = "creating",
    Deleting = "deleting",
});

/// A datastore.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Datastore {
    /// Its identity, stored in the datastore itself.
    pub id: Uuid,
    /// Its name, unique on this system.
    pub name: Name,
    /// What it is made on.
    pub kind: DatastoreKind,
    /// The directory, as the node sees it.
    pub path: String,
    /// The file system that was found there, like `ext4`.
    pub file_system: String,
    /// Whether it can be used.
    pub state: DatastoreState,
    /// Why it is not normal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// Its space.
    pub space: Space,
    /// How many volumes it holds.
    pub volumes: u64,
    /// How many templates it holds.
    pub templates: u64,
    /// How many snapshots it holds.
    pub snapshots: u64,
    /// What its file system can do.
    pub features: StoreFeatures,
    /// When it is an alarm, and what it refuses.
    #[serde(default)]
    pub policy: crate::DatastorePolicy,
    /// When it was made.
    pub created: Timestamp,
}

/// How a volume's space is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// Every byte is written at creation.
    #[serde(alias = "eager")]
    Fixed,
    /// All space is reserved, zeroed at the first write.
    Lazy,
    /// Grows with what is written.
    Thin,
}

impl VolumeKind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[Self::Fixed, Self::Lazy, Self::Thin];

    /// The kind as it stands on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Lazy => "lazy",
            Self::Thin => "thin",
        }
    }

    /// Whether all of its space is kept for it from the start.
    pub const fn reserves(self) -> bool {
        match self {
            Self::Fixed | Self::Lazy => true,
            Self::Thin => false,
        }
    }
}

impl fmt::Display for VolumeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for VolumeKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fixed" | "eager" => Ok(Self::Fixed),
            "lazy" => Ok(Self::Lazy),
            "thin" => Ok(Self::Thin),
            other => Err(format!("'{other}' is no kind of volume; use thin, lazy or fixed")),
        }
    }
}

/// What a volume is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Nobody uses it.
    Disconnected,
    /// A guest or a tool can use it now.
    Connected,
    /// A guest's requests wait for space.
    Held,
    /// It cannot be used; its alarms say why.
    Abnormal,
}
words!(VolumeState {
    Disconnected = "disconnected",
    Connected = "connected",
    Held = "held",
    Abnormal = "abnormal",
});

/// Where a linked clone comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Origin {
    /// The volume or template.
    pub id: Uuid,
    /// Its name when this was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The snapshot of it, if one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Uuid>,
}

/// A volume: a virtual disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its identity.
    pub id: Uuid,
    /// Its name, unique on its datastore.
    pub name: Name,
    /// The datastore that holds it.
    pub datastore: Uuid,
    /// That datastore's name.
    pub datastore_name: Name,
    /// How its space is taken.
    pub kind: VolumeKind,
    /// What the guest sees.
    pub size: Size,
    /// Its space; `total` and `free` are 0.
    pub space: Space,
    /// What it is doing.
    pub state: VolumeState,
    /// How many snapshots it has.
    pub snapshots: u32,
    /// Layers of deleted snapshots that wait for their merge; they count as snapshots until then.
    #[serde(default)]
    pub waiting_merges: u32,
    /// The snapshot that its current state descends from: "you are here".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_snapshot: Option<Uuid>,
    /// How many layers a read may pass through, its own and its template's.
    pub chain_length: u32,
    /// What it was cloned from, if it is linked to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The schedule that makes snapshots of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<crate::Schedule>,
    /// When the schedule makes the next one; only where one volume is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_snapshot: Option<Timestamp>,
    /// How it can be reached now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<Connection>,
    /// The task that works on it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Uuid>,
    /// Counts its changes.
    pub revision: u64,
    /// When it was made.
    pub created: Timestamp,
}

/// A snapshot of one volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its identity.
    pub id: Uuid,
    /// Its name, unique on its volume.
    pub name: Name,
    /// The volume.
    pub volume: Uuid,
    /// The volume's name.
    pub volume_name: Name,
    /// The snapshot before it on its branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Uuid>,
    /// The volume's size then.
    pub size: Size,
    /// Bytes of the layer that this snapshot froze.
    pub used: Size,
    /// Bytes that deleting it would move; absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_bytes: Option<Size>,
    /// Shared by the snapshots that were made together, at one point in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Uuid>,
    /// What a schedule made it for; absent: a user made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<crate::Scheduled>,
    /// Linked clones that depend on it.
    #[serde(default)]
    pub clones: u32,
    /// When it was made.
    pub created: Timestamp,
}

/// A template: a frozen volume to deploy others from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// Its identity.
    pub id: Uuid,
    /// Its name, unique on its datastore, among volumes too.
    pub name: Name,
    /// The datastore that holds it.
    pub datastore: Uuid,
    /// That datastore's name.
    pub datastore_name: Name,
    /// The kind of the volume that it was made from.
    pub kind: VolumeKind,
    /// What a guest of it sees.
    pub size: Size,
    /// Bytes that it takes.
    pub used: Size,
    /// Linked clones that depend on it.
    pub clones: u32,
    /// When it was made.
    pub created: Timestamp,
}

/// How a guest or a tool reaches a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Network block device, over a unix socket or loopback TCP.
    #[default]
    Nbd,
    /// vhost-user-blk, over a unix socket.
    VhostUser,
}
words!(Protocol { Nbd = "nbd", VhostUser = "vhost-user" });

/// An open way to a volume or to one of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// The volume.
    pub volume: Uuid,
    /// The snapshot, if one is shown instead of the current state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Uuid>,
    /// The protocol.
    pub protocol: Protocol,
    /// What to give to an NBD client, like `nbd+unix:///web?socket=/path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The socket's path; it stays the same over restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Connection {
    /// What a client is given: the URI, or the socket of a protocol that has none.
    #[must_use]
    pub fn place(&self) -> &str {
        self.uri.as_deref().or(self.socket.as_deref()).unwrap_or_default()
    }
}

/// A range of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Reads as zero in the later state.
    #[serde(default)]
    pub zero: bool,
}

/// What differs between two points in time of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDiff {
    /// The earlier snapshot; absent: an empty disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Uuid>,
    /// The later one; absent: the current state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Uuid>,
    /// Ranges that may differ, in order.
    pub extents: Vec<Extent>,
    /// Sum of their lengths.
    pub bytes: Size,
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckFinding {
    /// Whether data is at risk.
    pub severity: crate::Severity,
    /// The object of the store, like `layer/UUID.vhd`.
    pub object: String,
    /// What is wrong.
    pub message: String,
}

/// What a check of a datastore found; the result of its task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    /// Objects that were read.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: Size,
    /// What was found; empty is good.
    pub findings: Vec<CheckFinding>,
}

/// Which node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeInfo {
    /// Its program version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The host's name.
    pub host: String,
    /// The kernel's boot id: changes with every boot of the host.
    pub boot_id: Uuid,
    /// How it does I/O: `io_uring` or `threads`.
    pub io_backend: String,
    /// When this process started.
    pub started: Timestamp,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The objects.
    pub items: Vec<T>,
    /// Give it as `cursor` to get the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
