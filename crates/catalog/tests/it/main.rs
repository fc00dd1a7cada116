//! The catalog on simulated storage: operations, crashes at every event, full stores, hostile bytes.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail and tell as tests do"
)]

mod crash;
mod faults;
mod hostile;
mod imports;
mod model;
mod operations;
mod schedules;
mod world;
