//! Foreign endpoints behind the `io` traits. Today: regular files, through the ring.
//!
//! Invariant (rule P1): the lock of a file that is written is held on the open file description
//! that does the I/O. A killed process's last requests keep that description, and so the lock, alive
//! until they have landed: whoever gets the lock next knows that nothing of the former holder can
//! still arrive.

mod claims;
mod extents;
mod file;
mod open;

pub use file::FileDevice;
pub use open::Access;
