//! Random lives of a real system against a model in memory: every operation through the REST API,
//! guests over NBD, processes that are killed, power that is cut.
//!
//! ```text
//!   run ─► deeds (administrators, REST) ─┐            ┌─► ledger: what every sector, volume and
//!        ├► guest (NBD, all the while)   ├─► machine ─┤           snapshot may be
//!        └► the killer                  ─┘            └─► check: all of it, after every crash
//! ```
//!
//! The machine's disk is a real ext4, shut down without its journal on a power cut; its memory (the
//! logs) and its boot id go with it. What a seed decides is the plan; when exactly the processes die in
//! it is up to the real machine, so a seed that failed may take a few tries to fail again.

mod check;
mod deeds;
mod guest;
mod ledger;
mod machine;
mod rest;
mod run;

pub use run::{Outcome, run};
