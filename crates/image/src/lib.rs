//! The VHD format, and every decision about images and chains of them that needs no I/O.
//!
//! Bytes and numbers go in, values and plans come out; someone else reads and writes. So each rule
//! here runs unchanged under the simulator, under a fuzzer and on a real disk.
//!
//! What holds throughout:
//! - this crate knows no file, no datastore, no clock and no source of randomness;
//! - bytes from a disk are hostile: they end in a [`FormatError`] or a finding, never in a panic, an
//!   access outside the file, or an allocation larger than the file justifies;
//! - a structure is decoded once; from then on its type carries that it is valid.
//!
//! The layout that we write, and what we read of others, is told in `docs/format-vhd.md`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::panic,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod bat;
pub mod check;
pub mod create;
pub mod merge;
pub mod owner;
pub mod plan;

mod bitmap;
mod bytes;
mod error;
mod footer;
mod geometry;
mod header;
mod layer;
mod locator;
mod open;
mod read;
mod sniff;
mod units;

pub use bitmap::{BitRuns, Bitmap, bit_runs};
pub use create::{NewImage, footer_for, headers_for};
pub use error::{FormatError, Result};
pub use footer::{CREATOR, Footer, Kind, Timestamp};
pub use geometry::Geometry;
pub use header::DynamicHeader;
pub use layer::{LayerImage, ParentRef, Repair};
pub use locator::{Locator, LocatorEntry, Platform, WideName};
pub use open::{Opener, Step, Trust};
pub use read::{ChainReader, Content, LayerReader, Mapped};
pub use sniff::{HEAD, Qcow2, Sniffed, Vmdk, sniff};
pub use units::{
    BLOCK_BYTES, BLOCK_SECTORS, BLOCK_STRIDE_SECTORS, BlockIndex, MAX_SECTORS, METADATA_SECTORS,
    PAGE, PAGE_SECTORS, SECTOR, Sector, SectorCount,
};
// One identifier type for the whole workspace.
pub use uuid::Uuid;
