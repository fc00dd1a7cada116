//! The controller from outside: its HTTP, with a node that is a test double.

mod api;
mod events;
mod fake;
mod guard;
mod once;
mod openapi;
mod restart;
mod schedules;
mod world;
