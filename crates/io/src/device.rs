//! What a device and a file are to the layers above: requests in, futures out.
//!
//! Futures are `!Send` on purpose: one disk lives on one home thread. The same traits are served by
//! real files and by the simulator.

use std::future::Future;
use std::pin::Pin;

use crate::buffer::IoBuf;
use crate::error::Result;
use crate::units::{ByteCount, ByteOffset, ByteRange};

/// A boxed local future: what every I/O operation returns.
pub type Io<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// When a write's completion is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As soon as later reads see it; a power cut may lose it until the next flush.
    Cached,
    /// When it survives a power cut (FUA).
    Durable,
}

/// How a range is cleared. In each case it reads as zero afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// Space may and should be given back where granularity allows; partial units are zeroed.
    Deallocate,
    /// Space is kept.
    KeepSpace,
}

/// What a clear may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Whatever it takes: where nothing else helps, zeros are written.
    Any,
    /// Less than writing the range. Where zeros would have to be written it fails as `Unsupported`,
    /// and nothing of the range that was reached was changed.
    Quick,
}

/// One request to a device.
#[derive(Debug)]
pub enum Request {
    /// Fills `into` from `at`.
    Read {
        /// Where in the device.
        at: ByteOffset,
        /// Filled whole on success.
        into: IoBuf,
    },
    /// Writes all of `from` at `at`.
    Write {
        /// Where in the device.
        at: ByteOffset,
        /// What to write.
        from: IoBuf,
        /// When to complete.
        durability: Durability,
    },
    /// Makes `range` read as zero.
    Clear {
        /// Where.
        range: ByteRange,
        /// Whether space is given back.
        how: Clear,
        /// What it may cost.
        effort: Effort,
        /// When to complete.
        durability: Durability,
    },
    /// Completes when every write that completed before it was submitted is durable.
    Flush,
}

/// What a device is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Size in bytes.
    pub size: ByteCount,
    /// Smallest unit of a request: offsets and lengths are multiples of it (512 or 4096).
    pub logical_block: u32,
    /// The unit that is written without reading first.
    pub physical_block: u32,
    /// Alignment that buffers in memory want for the fast path; others are bounced.
    pub memory_align: u32,
    /// Longest single request in bytes; callers split.
    pub max_io: u32,
    /// The granularity at which clearing gives space back, in bytes.
    pub clear_granularity: u32,
    /// Writes and clears are refused.
    pub read_only: bool,
}

/// What a range of a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored data.
    Data,
    /// Reads as zero and takes no space.
    Hole,
    /// Reads as zero, space is kept.
    Zero,
}

/// A run of a device of one kind, in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which bytes.
    pub range: ByteRange,
    /// What they are.
    pub kind: ExtentKind,
    /// The layer they stand in, counted from the top of the device's chain: 1 is the topmost, 0 is
    /// none. A device without layers has only the topmost.
    pub depth: u32,
}

impl Extent {
    /// A run of a device without layers.
    #[must_use]
    pub fn flat(range: ByteRange, kind: ExtentKind) -> Self {
        let depth = match kind {
            ExtentKind::Hole => 0,
            ExtentKind::Data | ExtentKind::Zero => 1,
        };
        Self { range, kind, depth }
    }

    /// Takes the run that follows as its own, if that is of the same kind and layer.
    #[must_use]
    pub fn absorbs(&mut self, next: &Self) -> bool {
        let same = (self.kind, self.depth) == (next.kind, next.depth);
        if same {
            self.range.len.0 += next.range.len.0;
        }
        same
    }
}

/// A block device: all that an export sees.
pub trait BlockDevice {
    /// Size, alignment, limits. The size may grow between calls.
    fn info(&self) -> DeviceInfo;

    /// Runs one request. The device, not the returned future, owns the request's buffers until it
    /// has ended: dropping the future detaches, it does not cancel.
    fn submit(&self, request: Request) -> Io<'_, Result<()>>;

    /// The extents of `range` in order, without gaps, merged where kinds and layers are equal. May
    /// stop early (at least one extent is returned for a non-empty range).
    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>>;
}

/// A file on a datastore: a layer, a memory image. Reads beyond the end fail with `OutOfRange`;
/// writes beyond the end extend it.
pub trait BlockFile: BlockDevice {
    /// Takes space for `range`, extending the file where needed, so that writes to it cannot fail for
    /// lack of space. Fresh space reads as zero. `NoSpace` is said here, and nothing is taken then.
    fn reserve(&self, range: ByteRange) -> Io<'_, Result<()>>;

    /// Sets the length; what is cut off is gone, what is added reads as zero and takes no space.
    fn truncate(&self, len: ByteCount) -> Io<'_, Result<()>>;

    /// Bytes of storage that the file really takes.
    fn used(&self) -> Io<'_, Result<ByteCount>>;
}
