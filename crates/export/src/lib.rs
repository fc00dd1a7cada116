//! NBD in front of any block device.
//!
//! [`NbdServer`] serves [`io::BlockDevice`]s on one home thread, over unix sockets or loopback TCP.
//! It speaks the fixed newstyle handshake with structured replies and `base:allocation`, and any
//! number of requests of a connection are in flight at a time.
//!
//! Layers, from the pure to the effective: [`Handshake`] and [`request`] understand hostile bytes
//! without I/O; a connection runs them over a [`Socket`]; the server accepts sockets from the ring.
//! This crate knows no file, no format and no catalog.

mod connection;
mod execute;
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
mod wire;

#[cfg(test)]
mod tests;

pub use handshake::{Handshake, HandshakeError, Offer, Offers, Session, Step};
pub use hub::{Counters, Export, Limits};
pub use listen::ListenError;
pub use server::{NameTaken, NbdServer, tcp_uri, unix_uri};
pub use socket::{End, Socket};
pub use wire::{Errno, MAX_PAYLOAD};
