//! Every reader of bytes from outside, as a function of those bytes: VHD structures, records, intents,
//! the write log, state files, NBD from both sides, a guest's rings, REST.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs   libFuzzer, nightly ──┐
//!                                                    ├──► NAME(bytes)
//!   tests/replay.rs             every build ─────────┘
//!   fuzz/corpus/NAME            what both begin with: made by `examples/seeds.rs`, and found by fuzzing
//! ```
//!
//! A target returns whatever its bytes are; it panics when what it calls does, or breaks its word: an
//! access outside, a value that is written other than it was read, an answer that is none.
//! Checksums are put right on the way, where they would stop nearly everything.
#![forbid(unsafe_code)]

mod input;
mod log;
mod nbd;
mod records;
mod rest;
mod sparse;
mod state;
mod vhd;
mod vhost;

pub use log::log;
pub use nbd::{nbd_client, nbd_handshake, nbd_requests};
pub use records::{cell, intent, record};
pub use rest::{end, rest_bodies, rest_controller, rest_node, texts};
pub use state::{controller_state, node_state};
pub use vhd::{bat, bitmap, footer, header, locators, opener, sniff};
pub use vhost::vhost_ring;

/// A target: its name, which is also its corpus's, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

macro_rules! targets {
    ($($name:ident)+) => { &[$((stringify!($name), $name)),+] };
}

/// All of them. A fuzzer's program calls its own function instead: whatever else is linked into it
/// costs time with every input.
pub const TARGETS: &[Target] = targets![
    footer header bat bitmap locators opener sniff
    record cell intent
    log node_state controller_state
    nbd_handshake nbd_requests nbd_client vhost_ring
    texts rest_bodies rest_node rest_controller
];
