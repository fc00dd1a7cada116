//! What changed, as the event streams of node and controller say it.
//!
//! A stream starts with what is missed since `Last-Event-ID`; when that is no longer known it
//! starts with `resync`, and the reader loads its lists again.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Alarm, Datastore, ObjectRef, Snapshot, Task, Template, Timestamp, Volume};

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows with every event of one stream; the `id` field of the server-sent event.
    pub id: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What changed.
    #[serde(flatten)]
    pub change: Change,
}

/// What changed; `data` is the whole object as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum Change {
    /// Events were lost: load the lists again.
    Resync,
    /// A datastore is new or changed.
    Datastore(Datastore),
    /// A volume is new or changed.
    Volume(Volume),
    /// A snapshot is new or changed.
    Snapshot(Snapshot),
    /// A template is new or changed.
    Template(Template),
    /// An object is gone.
    Removed(ObjectRef),
    /// A task is new or moved on.
    Task(Task),
    /// An alarm was raised or changed.
    Alarm(Alarm),
    /// An alarm is over.
    AlarmCleared(Alarm),
}

impl Change {
    /// The event's name: the `event` field of the server-sent event.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Resync => "resync",
            Self::Datastore(_) => "datastore",
            Self::Volume(_) => "volume",
            Self::Snapshot(_) => "snapshot",
            Self::Template(_) => "template",
            Self::Removed(_) => "removed",
            Self::Task(_) => "task",
            Self::Alarm(_) => "alarm",
            Self::AlarmCleared(_) => "alarm-cleared",
        }
    }
}
