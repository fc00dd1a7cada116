//! Tests of the image crate over its public API.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "files of tests are small, random bytes are cut"
)]

mod chains;
mod checking;
mod codecs;
mod golden;
mod merging;
mod planning;
mod quirks;
mod sniffing;
mod support;
