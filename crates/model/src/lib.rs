//! The words that Shale's processes and its users exchange: one set of types for the public REST
//! API under `/api/v1`, for the node's HTTP API on its unix socket and for the command line.
//!
//! ```text
//!   name, size, time   validated scalars          object    what exists: datastores, volumes, ...
//!   problem            codes -> status, exit      request   what a caller may ask for
//!   role               who may do what            event     what changed; tasks and alarms
//!   capability         what a store can serve     tree      snapshots as a tree
//!   schedule           snapshots by the clock     policy    thresholds of datastores
//! ```
//!
//! Invariants: this crate does no I/O and knows no clock; whatever parses is valid (a `Name` is a
//! legal name, a `Size` fits an `u64`); a code's text, HTTP status and exit status never change.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::panic,
        clippy::wildcard_enum_match_arm
    )
)]

mod capability;
mod event;
mod format;
mod name;
mod object;
mod policy;
mod problem;
mod request;
mod role;
mod schedule;
mod size;
mod task;
mod text;
mod time;
mod tree;

pub use capability::{Capabilities, Capability, StoreFeatures, support};
pub use event::{Change, Event};
pub use format::{ExportFormat, ImportFormat};
pub use name::{Name, NameError, Reference};
pub use object::{
    CheckFinding, CheckReport, Connection, Datastore, DatastoreKind, DatastoreState, Extent,
    NodeInfo, Origin, Page, Protocol, Snapshot, SnapshotDiff, Space, Template, Volume, VolumeKind,
    VolumeState,
};
pub use policy::{DatastorePolicy, Threshold, ThresholdError, UpdateDatastore};
pub use problem::{Code, Exit, Problem};
pub use request::{
    CloneVolume, ConnectVolume, ConvertVolume, CreateDatastore, CreateSnapshot, CreateTemplate,
    CreateToken, CreateVolume, CreatedToken, DeployTemplate, Estimate, ExportVolume, ImportSource,
    ImportVolume, Token, UpdateVolume,
};
pub use role::{Permission, Role};
pub use schedule::{
    MAX_SCHEDULED, MAX_SNAPSHOTS, PutSchedule, Rule, RunSchedule, Schedule, ScheduleRule,
    ScheduleStatus, Scheduled, ScheduledRun, SetSchedule, TimeOfDay, TimeOfDayError, Weekday,
};
pub use size::{Size, SizeError};
pub use task::{Alarm, ObjectKind, ObjectRef, Operation, Severity, Task, TaskOrigin, TaskState};
pub use time::Timestamp;
pub use tree::{SnapshotNode, SnapshotTree};
pub use uuid::Uuid;
