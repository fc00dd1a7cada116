//! The simulated world: virtual time, files that a power cut tears, memory that a dead process
//! leaves behind. It replaces [`Park`](crate::Park) and the leaf devices, nothing else.
//!
//! ```text
//!   SimWorld::start(seed) ─► Executor + SimWorld ─► SimSpace ─► SimFile (BlockFile)
//!          ▲                      │                        └► SimLog  (LogMemory)
//!          │                      ├ cut()  : power is gone: torn files, no memory
//!          └─ restart(seed, ..) ◄─┴ kill() : the process is gone: page cache and memory stay
//! ```
//!
//! A run is a function of its seed: delays, tearing and faults come from one generator, and ready
//! tasks run first in, first out. Each device event has a number; [`SimWorld::halt_at`] ends the run
//! exactly there, which lets a harness try every point of a workload.

mod file;
mod image;
mod rng;
mod space;
mod world;

#[cfg(test)]
mod tests;

pub use file::SimFile;
pub use rng::SplitMix64;
pub use space::{Faults, FileId, SimSpace};
pub use world::{Event, SimLog, SimPark, SimWorld, Survivors};
