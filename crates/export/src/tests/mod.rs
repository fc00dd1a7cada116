//! Whole connections in memory, under the virtual clock.

mod client;
mod extended;
mod hostile;
mod others;
mod pipe;
#[expect(unreachable_pub, reason = "shared with measurements and whole-system tests")]
#[path = "../../tests/ram/mod.rs"]
pub(crate) mod ram;
mod transmission;
mod vhost_user;
