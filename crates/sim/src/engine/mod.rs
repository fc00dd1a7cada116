//! The whole engine of one host under power cuts and kills: catalog, disks and a datastore, run over
//! random operations of administrators and guests. A run is a function of its seed.
//!
//! ```text
//!   run      several lives of one datastore; each ends at a random device event
//!   host     one process: catalog, its open disks, the gate between them
//!   deeds    what administrators do, and what may be found if they are interrupted
//!   ledger   what every volume and snapshot may hold
//! ```
//!
//! After each life everything is recovered and compared: each sector of each volume and snapshot
//! (invariant 6), and that each interrupted operation happened wholly or not at all, with nothing
//! half-made left (invariant 7).

mod deeds;
mod host;
mod ledger;
mod run;

pub use run::{Outcome, run};
