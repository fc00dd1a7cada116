//! Scaffolding for tests and demos on real parts: the released binary, real QEMU guests, real tools.
//!
//! ```text
//!   tests/*.rs, bin/demo.rs, bench
//!        │
//!        ├── shale    `shale serve` on a directory of its own, and its CLI as a typed call
//!        ├── guest    a bootable Debian disk image, made without mounting anything
//!        ├── qemu     one running guest, driven over its serial console
//!        ├── need     what a test asks of the machine; a missing thing is a clear failure
//!        ├── tools    qemu-img and qemu-io on a connected volume
//!        ├── second_reader  the layer format as its document tells it, in Python
//!        ├── mount    a small file system of its own, for full stores
//!        ├── model    random lives of a system against a model in memory
//!        └── process  children that end with their owner
//! ```
//!
//! Nothing here knows how Shale works inside: it uses only what a user could, and what guests may expect.
#![forbid(unsafe_code)]

pub mod guest;
pub mod model;
pub mod mount;
pub mod need;
pub mod process;
pub mod qemu;
pub mod second_reader;
pub mod shale;
pub mod tools;

pub use qemu::Guest;
pub use shale::{Connection, Shale};
