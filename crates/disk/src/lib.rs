//! A running chain: the guest's reads, writes, flushes and discards on a chain of VHD layers.
//!
//! ```text
//!   guest ─► Disk (BlockDevice) ─► owner map ─► layer files          reads: one lookup, whatever the depth
//!              │ gate, tickets        ▲
//!              │                      │ published after the data write, after the log record
//!              ├─► metadata log (memory that outlives the process)
//!              └─► flush: freeze ► data barrier ► bitmaps, barrier ► BAT, barrier ► trim the log
//! ```
//!
//! What holds (numbers are the rules in docs/safety.md):
//! - only the leaf is written; its metadata reaches the disk by flushes alone (D1, D9);
//! - no completion is told before the log can replay it (D2, D3), and no flush after a failed one
//!   succeeds (D7);
//! - a place in the file is reused only when its drop is durable and older requests ended (D6);
//! - what a caller left behind ends before anything later begins (P4);
//! - a request that waits for space or for the gate holds no ticket and resolves again (L4).
//!
//! This crate knows no names, no records and no datastore: it gets open files and gives back a device.

mod blocks;
mod cache;
mod caller;
mod chain;
mod clear;
mod disk;
mod error;
mod event;
mod flat;
mod flush;
mod gate;
mod log;
mod read;
mod replay;
mod rules;
mod runs;
mod space;
mod table;
mod volume;
mod write;

pub use cache::SharedCache;
pub use disk::{Access, Disk, LogState, OpenChain, Stats};
pub use error::OpenError;
pub use gate::{GATE_LIMIT, NewLeaf};
pub use log::{LOG_MIN, LOG_VERSION, LogError, LogIdentity, log_identity, log_version};
pub use rules::Rules;
pub use volume::{NewLeaves, Volume};
