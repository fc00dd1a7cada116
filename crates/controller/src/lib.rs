//! The controller: REST under `/api/v1`, an index of what the node has, and the node's supervisor.
//!
//! ```text
//!   CLI ──client──► api ──► guard (who, from where, once) ──► handlers
//!   browser ──────►  │                                          │ reads        │ changes
//!                    │                                       index.rs       node.rs ──► DATA/node.sock
//!                    └── console (static)                       ▲                          ▲
//!                                             sync.rs (lists, events)        supervise.rs (keeps it up)
//!   DATA/controller.db   inventory (tokens, which datastores), task history, audit, stored answers
//! ```
//!
//! Invariants: the datastores are the truth, and this database can be lost; nothing here touches
//! guest data; the console and the command line use the public API only; no secret is stored,
//! logged or returned twice.
#![forbid(unsafe_code)]

#[expect(unused_qualifications, reason = "utoipa's macros qualify the types they are given")]
mod api;
pub mod client;
mod estimate;
mod hub;
mod index;
mod inventory;
mod node;
mod policy;
mod schedule;
mod serve;
mod sse;
mod store;
mod supervise;
mod sync;
mod tokens;

pub use api::{AuditEntry, System, openapi};
pub use schedule::{WallClock, host_clock};
pub use serve::{Announcement, ServeOptions, Served, check_state, node_info, serve, stop_node};
pub use supervise::{NodeCommand, ended};
