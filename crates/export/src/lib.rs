//! NBD and vhost-user-blk in front of any block device.
//!
//! [`NbdServer`] serves [`io::BlockDevice`]s on one home thread, over unix sockets or loopback TCP.
//! It speaks the fixed newstyle handshake with structured replies, extended headers, and the contexts
//! `base:allocation` and `qemu:allocation-depth`; any number of requests of a connection are in flight
//! at a time. `docs/nbd.md` says what is served and what is left out.
//!
//! Layers, from the pure to the effective: [`Handshake`] and [`request`] understand hostile bytes
//! without I/O; a connection runs them over a [`Socket`]; the server accepts sockets from the ring.
//! [`NbdClient`] is the other side, for disks that other people serve.
//! This crate knows no file, no format and no catalog.

mod client;
mod connection;
mod context;
#[cfg(any(test, feature = "driver"))]
pub mod driver;
mod execute;
mod fields;
mod handshake;
mod hub;
mod lane;
mod listen;
mod pool;
mod reply;
pub mod request;
mod sender;
mod server;
mod signal;
mod socket;
mod sparse;
#[cfg(any(test, feature = "driver"))]
pub use vhost::drill;
mod vhost;
mod wire;

#[cfg(test)]
mod tests;

pub use client::{NbdAddress, NbdClient, NbdError, NbdExtent, NbdResult};
pub use context::{Context, Contexts};
pub use handshake::{Handshake, HandshakeError, Offer, Offers, Session, Step};
pub use hub::{Counters, Export, Limits};
pub use listen::ListenError;
pub use server::{NameTaken, NbdServer, tcp_uri, unix_uri};
pub use socket::{End, Socket};
pub use vhost::VhostServer;
pub use wire::{Errno, Framing, MAX_PAYLOAD};
