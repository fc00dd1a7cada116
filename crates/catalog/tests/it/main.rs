//! The catalog on simulated storage: operations, crashes at every event, full stores, hostile bytes.

mod crash;
mod faults;
mod hostile;
mod model;
mod operations;
mod world;
