//! Simulated storage and proofs on it: whole engines run on virtual time, on disks that lose power.

pub mod engine;
pub mod guest;
mod store;

pub use store::{SimDirectory, SimNames, SimStore};
