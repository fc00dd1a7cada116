//! The I/O layer: what devices, files and buffers are, and the local executor that runs a disk.
//!
//! This crate knows no format, no datastore and no network protocol. Everything above is written
//! against its traits, and runs unchanged on real files and under the simulator.

mod buffer;
mod device;
mod error;
mod heap;
mod local;
mod ring;
mod shm;
pub mod sim;
mod units;

pub use buffer::{BUFFER_ALIGN, IoBuf, Memory, RawIov};
pub use device::{
    BlockDevice, BlockFile, Clear, DeviceInfo, Durability, Effort, Extent, ExtentKind, Io, Request,
};
pub use error::{IoError, IoErrorKind, Result};
pub use heap::give_back_large_allocations;
pub use local::{BootInstant, Executor, Local, Park, Remote, Sleep, Task, Unpark};
pub use ring::{Choice, Ring};
pub use shm::{LogMemory, ShmFile};
pub use units::{ByteCount, ByteOffset, ByteRange};
