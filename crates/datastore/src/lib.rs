//! Datastores: named files, atomically replaced small objects, and space, behind one trait.
//!
//! Only this crate knows where bytes live. It does not know what they mean: names have a shape
//! ([`ObjectName`]), contents are opaque.
//!
//! ```text
//!   catalog, disk ── dyn FileStore ──┬── DirStore   an existing local directory (one per thread,
//!                                    │              all over one DirHandle)
//!                                    └── SimStore   the simulator's, in crate `sim`
//! ```
//!
//! What holds for every driver (asserted by [`conformance`]):
//! - `put` and `remove` are durable when they return; a cut during them leaves the old or the new
//!   state, never a mixture.
//! - A created name may be lost at a power cut until `sync_names` has returned, and a file's bytes
//!   until its own flush has.
//! - One holder writes a file at a time; a dead process holds until its last request has ended.
//! - Guest data never eats the head-room that records and deletes need.

pub mod conformance;
mod dir;
mod error;
mod name;
mod store;

pub use dir::{DirHandle, DirStore, Examined, examine};
pub use error::{DatastoreError, Result};
pub use name::{Kind, NameError, ObjectName};
pub use store::{
    Access, Capabilities, Content, Expected, FileStore, Identity, MAX_OBJECT, ObjectInfo, Space,
    Staged, Version,
};
