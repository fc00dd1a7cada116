//! Every reader of bytes from outside, as a function of those bytes: VHD structures, records, intents,
//! the write log, state files, NBD from both sides, REST.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs   libFuzzer, nightly ──┐
//!                                                    ├──► run(NAME, bytes)
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
mod state;
mod vhd;

pub use rest::end;

/// A target: its name, which is also its corpus's, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("footer", vhd::footer),
    ("header", vhd::header),
    ("bat", vhd::bat),
    ("bitmap", vhd::bitmap),
    ("locators", vhd::locators),
    ("opener", vhd::opener),
    ("sniff", vhd::sniff),
    ("record", records::record),
    ("cell", records::cell),
    ("intent", records::intent),
    ("log", log::log),
    ("node_state", state::node),
    ("controller_state", state::controller),
    ("nbd_handshake", nbd::handshake),
    ("nbd_requests", nbd::requests),
    ("nbd_client", nbd::client),
    ("texts", rest::texts),
    ("rest_bodies", rest::bodies),
    ("rest_node", rest::node),
    ("rest_controller", rest::controller),
];

/// Gives `bytes` to the target of this name.
///
/// # Panics
/// If there is no such target, or the bytes are a finding.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("there is no target {name}"));
    target(bytes);
}
