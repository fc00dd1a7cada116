//! Work that takes time, and conditions that need a person.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::object::words;
use crate::{Problem, Size, Timestamp};

/// What sort of object is meant.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A datastore.
    Datastore,
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// A template.
    Template,
    /// A task.
    Task,
    /// A token.
    Token,
    /// The node itself.
    Node,
}
words!(ObjectKind {
    Datastore = "datastore",
    Volume = "volume",
    Snapshot = "snapshot",
    Template = "template",
    Task = "task",
    Token = "token",
    Node = "node",
});

/// Which object something is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct ObjectRef {
    /// Its sort.
    pub kind: ObjectKind,
    /// Its identity.
    pub id: Uuid,
    /// Its name when this was written.
    pub name: String,
}

/// An operation that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Make or adopt a datastore.
    DatastoreCreate,
    /// Forget a datastore; its directory must be empty of volumes.
    DatastoreDelete,
    /// Check every object of a datastore.
    DatastoreCheck,
    /// Make a volume.
    VolumeCreate,
    /// Give a volume another name.
    VolumeRename,
    /// Make a volume larger.
    VolumeResize,
    /// Make a volume one of another kind.
    VolumeConvert,
    /// Delete a volume.
    VolumeDelete,
    /// Open a way to a volume.
    VolumeConnect,
    /// Close it.
    VolumeDisconnect,
    /// Make linked clones.
    VolumeClone,
    /// Make a full copy.
    VolumeCopy,
    /// Make a volume of a disk that stands elsewhere.
    VolumeImport,
    /// Write a volume, or a snapshot of it, into files elsewhere.
    VolumeExport,
    /// Snapshot one or several volumes at one point in time.
    SnapshotCreate,
    /// Delete a snapshot: merge it away.
    SnapshotDelete,
    /// Bring a volume back to a snapshot.
    SnapshotRevert,
    /// Set or clear the schedule that makes snapshots of a volume.
    SnapshotSchedule,
    /// Compare two points in time.
    SnapshotDiff,
    /// Make a template.
    TemplateCreate,
    /// Make volumes from a template.
    TemplateDeploy,
    /// Delete a template.
    TemplateDelete,
}
words!(Operation {
    DatastoreCreate = "datastore-create",
    DatastoreDelete = "datastore-delete",
    DatastoreCheck = "datastore-check",
    VolumeCreate = "volume-create",
    VolumeRename = "volume-rename",
    VolumeResize = "volume-resize",
    VolumeConvert = "volume-convert",
    VolumeDelete = "volume-delete",
    VolumeConnect = "volume-connect",
    VolumeDisconnect = "volume-disconnect",
    VolumeClone = "volume-clone",
    VolumeCopy = "volume-copy",
    VolumeImport = "volume-import",
    VolumeExport = "volume-export",
    SnapshotCreate = "snapshot-create",
    SnapshotDelete = "snapshot-delete",
    SnapshotRevert = "snapshot-revert",
    SnapshotSchedule = "snapshot-schedule",
    SnapshotDiff = "snapshot-diff",
    TemplateCreate = "template-create",
    TemplateDeploy = "template-deploy",
    TemplateDelete = "template-delete",
});

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// It waits for its turn.
    Waiting,
    /// It works.
    Running,
    /// It stops at the next safe point.
    Cancelling,
    /// Done.
    Success,
    /// It failed; `error` says why.
    Failed,
    /// It was cancelled; nothing half-made is left.
    Cancelled,
}
words!(TaskState {
    Waiting = "waiting",
    Running = "running",
    Cancelling = "cancelling",
    Success = "success",
    Failed = "failed",
    Cancelled = "cancelled",
});

impl TaskState {
    /// Whether it will not change any more.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Success | Self::Failed | Self::Cancelled => true,
            Self::Waiting | Self::Running | Self::Cancelling => false,
        }
    }
}

/// What began a task, where that was no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskOrigin {
    /// The volume's snapshot schedule.
    Schedule,
}
words!(TaskOrigin { Schedule = "schedule" });

/// A piece of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Its identity.
    pub id: Uuid,
    /// Where it stands.
    pub state: TaskState,
    /// What it does.
    pub operation: Operation,
    /// To what.
    pub object: ObjectRef,
    /// What began it; absent: a caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<TaskOrigin>,
    /// What it is doing just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// 0..=100.
    pub percent: u8,
    /// Bytes that were moved.
    pub bytes_done: Size,
    /// Bytes that are to be moved; 0 if there are none to count.
    pub bytes_total: Size,
    /// Bytes a second, lately.
    pub rate: Size,
    /// Whether a cancel is possible now.
    pub cancellable: bool,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
    /// What it made, by operation: the new objects, a connection, a report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
}

/// How bad something is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Needs a look.
    Warning,
    /// Something does not work or data is at risk.
    Critical,
}
words!(Severity { Info = "info", Warning = "warning", Critical = "critical" });

/// A condition that needs a person, for as long as it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Alarm {
    /// Its identity.
    pub id: Uuid,
    /// How bad it is.
    pub severity: Severity,
    /// A stable code, like `datastore-full`.
    pub code: String,
    /// What it is about.
    pub object: ObjectRef,
    /// What happened.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Since when.
    pub since: Timestamp,
}
