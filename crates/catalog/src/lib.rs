//! What the bytes of a datastore mean: records, intents, the tree of layers, accounting, and every
//! operation of more than one step.
//!
//! ```text
//!   an operation = a plan (pure)  ──►  intent ──► files, cells ──► ONE record put ──► the rest
//!                                       └── undone up to here ──┘└── finished from here on ──┘
//! ```
//!
//! Asynchronous on one thread, over any `FileStore`. It reads and writes layers only while no disk
//! runs on them; what runs is asked through [`Running`].
//!
//! What holds:
//! - The datastore is the truth; what is kept in memory is an index that [`Catalog::open`] rebuilds.
//! - One record put commits an operation. Before it everything can be undone, after it finished.
//! - Only an intent's own garbage is deleted; nothing is swept while a record cannot be read (R4).
//! - Operations run to their end: cancelling is asked through [`Progress`], never done by dropping an
//!   operation's future, because the datastore would still end the step it was at.
//! - A layer changes only if it is nobody's tip, one path leads through it and nobody reads it (L2).

mod api;
mod catalog;
mod cell;
mod check;
mod connect;
mod content;
mod convert;
mod copy;
mod env;
mod error;
mod export;
mod import;
mod intent;
mod layer;
mod locks;
mod merge;
mod record;
mod resize;
mod schedule;
mod segments;
mod snapshots;
mod space;
mod target;
mod templates;
mod tree;
mod txn;
mod volumes;

pub use api::{
    CheckReport, ConnectPlan, ConnectRequest, Conversion, ConversionWay, CopyTarget, Counts,
    Deploy, DiffExtent, Finding, LayerRef, LeafSpace, LogIdentity, LogPlan, NewVolume,
    PendingMerge, Recovered, Settled, Severity, SnapshotNode, SnapshotSet, Source, StoreUsage,
    VolumeUsage,
};
pub use catalog::Catalog;
pub use cell::{Cell, LayerCell, LayerState, VolumeCell};
pub use env::{Env, NothingRuns, Progress, Running, Unwatched};
pub use error::{CatalogError, Code, Named, Result};
pub use export::{BranchFile, BranchReader, Branches, FlatFormat, Outgoing, ReadPoint};
pub use import::{Incoming, IncomingLayer, NewImport, Next};
pub use intent::{CellStep, CellValue, Commit, CutBack, Intent, NewLayer, Piece, Rewrite, Scratch};
pub use record::{
    Current, Every, FORMAT, MAX_SIZE, MAX_SNAPSHOTS, Origin, Record, Schedule, ScheduleRule,
    Scheduled, SetRecord, Snapshot, VolumeKind, VolumeRecord, is_name, is_size,
};
pub use segments::{MAX_SEGMENT, Tip};
pub use space::Measured;
pub use target::{Chunk, stored_runs};
