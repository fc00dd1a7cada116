//! What the catalog asks of its surroundings: clock, new names, the disks that are running, and
//! someone who watches a long operation.

use io::Io;
use uuid::Uuid;

use crate::error::Result;
use crate::segments::{MAX_SEGMENT, Tip};

/// Clock, UUIDs and the boot's identity: the simulator supplies its own.
pub trait Env {
    /// Unix time in milliseconds.
    fn now_ms(&self) -> u64;
    /// A UUID that nobody has had before.
    fn new_uuid(&self) -> Uuid;
    /// Identity of this boot of the host: a log in memory outlives the process, not the boot.
    fn boot_id(&self) -> String;
    /// Bytes of each segment but the last of new volumes: whole blocks, up to [`MAX_SEGMENT`].
    fn segment_bytes(&self) -> u64 {
        MAX_SEGMENT
    }
}

/// The disks that run on this host, as far as operations on their volumes need them. Implemented by
/// the node over its home threads, and by the simulator.
pub trait Running {
    /// Whether a disk of the volume is open for writing here.
    fn is_connected(&self, volume: Uuid) -> bool;
    /// While the guest goes on: flushes most dirty metadata and opens `leaves`, whose files are durable,
    /// so that the gate is short.
    fn prepare(&self, volume: Uuid, leaves: Tip) -> Io<'_, Result<()>>;
    /// Holds new guest requests, drains the others, and ends in a full flush (rules D4, R1).
    fn gate(&self, volume: Uuid) -> Io<'_, Result<()>>;
    /// After the commit: the disk goes on in `leaves`, which were prepared.
    fn switch(&self, volume: Uuid, leaves: Tip) -> Io<'_, Result<()>>;
    /// Lets guest requests go on; also when the commit did not happen, or the gate was never shut.
    /// Leaves that were prepared and not taken are let go.
    fn ungate(&self, volume: Uuid) -> Io<'_, ()>;
    /// Nobody can tell which leaves the volume's record names: its disk must not write any more, not
    /// even what waits at the gate, until the volume is connected again.
    fn abandon(&self, volume: Uuid) -> Io<'_, ()>;
}

/// No disk runs here: for tools and tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NothingRuns;

impl Running for NothingRuns {
    fn is_connected(&self, _volume: Uuid) -> bool {
        false
    }
    fn prepare(&self, _volume: Uuid, _leaves: Tip) -> Io<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn gate(&self, _volume: Uuid) -> Io<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn switch(&self, _volume: Uuid, _leaves: Tip) -> Io<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn ungate(&self, _volume: Uuid) -> Io<'_, ()> {
        Box::pin(async {})
    }
    fn abandon(&self, _volume: Uuid) -> Io<'_, ()> {
        Box::pin(async {})
    }
}

/// Watches a long operation, and may end it.
pub trait Progress {
    /// Called as the operation enters a phase (`copying`, `merging`, `zeroing`), with the bytes it
    /// expects to move.
    fn phase(&self, name: &'static str, total_bytes: u64);
    /// Called as bytes have been moved; `done` counts from the start of the phase.
    fn advance(&self, done_bytes: u64);
    /// Asked between batches. A copy is undone; a merge pauses where it is and can be continued.
    fn cancelled(&self) -> bool;
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn phase(&self, _name: &'static str, _total_bytes: u64) {}
    fn advance(&self, _done_bytes: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}
