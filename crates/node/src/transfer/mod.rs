//! Imports and exports: where the bytes of a volume come from or go to, outside of datastores.
//!
//! ```text
//!   import   places ── may this path be read? ──► sources ──chunks──► catalog ──► a new volume
//!              │                                   raw, VHD (chain: its parents), NBD, a stream
//!              └ other formats: qemu serves the file over NBD, read-only, alone
//!   export   catalog ──► a file under a temporary name ── durable ──► renamed
//! ```
//!
//! What holds:
//! - a path is looked at only for whoever may manage storage (the controller asks), and is never the
//!   node's own data or a datastore's ([`places`]);
//! - what a file's bytes say never makes the node read a file outside of its folder, and inside only
//!   when a chain was asked for ([`chain`]);
//! - a temporary file is on record before it exists, so that a successor removes it ([`places`]).

pub(crate) mod chain;
pub(crate) mod places;
pub(crate) mod qemu;
pub(crate) mod sources;
pub(crate) mod stream;

use catalog::{CatalogError, Code};

/// An error about a file or address that is not ours.
pub(crate) fn about(what: impl std::fmt::Display, code: Code, problem: &str) -> CatalogError {
    CatalogError::new(code, format!("{what}: {problem}"))
}
