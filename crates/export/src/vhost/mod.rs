//! vhost-user-blk in front of any block device: a guest's queues and memory are read and written in place,
//! and its data goes between its memory and the files without a copy.
//!
//! ```text
//!   QEMU ──socket──► session (a thread a connection) ──jobs──► front (home thread)
//!   guest ──rings in shared memory, eventfds──────────────────► ring ─► device
//! ```
//!
//! `docs/vhost-user.md` says what is served, and what QEMU must be started with.

mod blk;
mod chain;
mod dirty;
#[cfg(any(test, feature = "driver"))]
pub mod drill;
mod front;
mod inflight;
mod mapping;
mod memory;
mod request;
mod ring;
mod server;
mod session;
mod turn;

pub use server::VhostServer;
