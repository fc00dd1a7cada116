//! The metadata log: what outlives the process but not the host (rules D2, D3, D4).
//!
//! Guest writes do not wait for bitmaps and BAT entries to reach the disk. Until the next flush, the
//! only copy of such a change beside our memory is a record here, in memory of the host (a tmpfs file)
//! that a killed process leaves behind. A record is in the log before the guest sees the completion.
//!
//! ```text
//!   0      identity {magic, version, volume, boot id, generation, log id, leaf, crc}
//!   512    the same again: one of the two is whole whenever the process dies
//!   4096   half 0: {epoch, crc} then records of 32 bytes
//!   ...    half 1: the same
//! ```
//!
//! Records go to one half. A flush switches to the other and, when all that the first half says is
//! durable on disk, empties it. A half with epoch 0, or with a torn header, is empty: no completion was
//! told for it yet. Records are applied in order of epoch and position, the last one wins.

use std::rc::Rc;

use io::LogMemory;
use uuid::Uuid;

const MAGIC: &[u8; 8] = b"SHALELOG";
/// Version of this layout; any other is refused.
pub const LOG_VERSION: u32 = 1;
const HEADER: usize = 4096;
const IDENTITY: usize = 96;
const COPY: usize = 512;
const HALF_HEADER: usize = 32;
const RECORD: usize = 32;
/// The smallest memory a log works in.
pub const LOG_MIN: usize = HEADER + 2 * (HALF_HEADER + 64 * RECORD);

/// Which volume, on which boot of which host, in which connection the log belongs to (rule D4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The volume.
    pub volume: Uuid,
    /// The boot of the host whose memory this is.
    pub boot: Uuid,
    /// Generation of the volume's lock.
    pub generation: u64,
    /// The connection.
    pub log: Uuid,
}

/// A change to the leaf's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The block has a place in the file: its bitmap's sector. Its bitmap is empty so far.
    Map { block: u32, bitmap: u32 },
    /// The leaf owns these sectors of the block.
    Own { block: u32, from: u32, len: u32 },
    /// The block has no place any more.
    Unmap { block: u32 },
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    /// It belongs to another volume, boot, generation or connection, or is no log at all.
    #[error("the log is not the one of this connection")]
    Mismatch,
    /// It was written by another version of the program.
    #[error(
        "the log has version {0}, this program knows version 1: finish with the program that wrote it"
    )]
    Version(u32),
    /// It holds records for another leaf than the volume's.
    #[error("the log holds changes of layer {found}, the volume's leaf is {expected}")]
    Leaf {
        /// The leaf that the log names.
        found: Uuid,
        /// The volume's leaf.
        expected: Uuid,
    },
    /// The memory is too small for a log.
    #[error("a log needs at least {LOG_MIN} bytes, this one has {0}")]
    TooSmall(usize),
}

/// A half whose records are being made durable; emptied by [`MetaLog::trim`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Frozen(usize);

/// The log of one connection.
pub(crate) struct MetaLog {
    memory: Rc<dyn LogMemory>,
    identity: LogIdentity,
    /// Bytes of a half, header included.
    half_len: usize,
    active: usize,
    /// Bytes of records in the active half.
    filled: usize,
    epoch: u64,
}

impl std::fmt::Debug for MetaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetaLog")
            .field("identity", &self.identity)
            .field("active", &self.active)
            .field("filled", &self.filled)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl MetaLog {
    /// Starts an empty log for `leaf`.
    pub(crate) fn create(
        memory: Rc<dyn LogMemory>,
        identity: LogIdentity,
        leaf: Uuid,
    ) -> Result<Self, LogError> {
        if memory.len() < LOG_MIN {
            return Err(LogError::TooSmall(memory.len()));
        }
        let half_len = half_len(memory.len());
        let mut log = Self { memory, identity, half_len, active: 0, filled: 0, epoch: 0 };
        // wiped first: an identity never stands over records of an older life, whose epochs may be
        // the same numbers
        // the older half first: alone it would be replayed over newer durable metadata
        let mut halves = [0, 1].map(|half| (log.epoch_of(half), half));
        halves.sort_unstable();
        for (_, half) in halves {
            log.set_epoch(half, 0);
        }
        let zeros = vec![0; half_len];
        for half in 0..2 {
            log.memory.write(log.half_at(half), &zeros);
        }
        log.bind(leaf);
        log.start(0);
        Ok(log)
    }

    /// The records that a dead process left, oldest first. The log itself is not changed.
    pub(crate) fn read(
        memory: &dyn LogMemory,
        identity: LogIdentity,
        leaf: Uuid,
        exact: bool,
    ) -> Result<Vec<Record>, LogError> {
        if memory.len() < LOG_MIN {
            return Err(LogError::TooSmall(memory.len()));
        }
        let (found, bound) = read_identity(memory)?;
        if found.volume != identity.volume || (exact && found != identity) {
            return Err(LogError::Mismatch);
        }
        let half_len = half_len(memory.len());
        let mut halves: Vec<(u64, Vec<Record>)> = (0..2)
            .filter_map(|half| read_half(memory, HEADER + half * half_len, half_len))
            .collect();
        halves.sort_by_key(|(epoch, _)| *epoch);
        let records: Vec<Record> = halves.into_iter().flat_map(|(_, records)| records).collect();
        // a process that died between a snapshot's commit and `bind` leaves the old leaf and no record
        if bound != leaf && !records.is_empty() {
            return Err(LogError::Leaf { found: bound, expected: leaf });
        }
        Ok(records)
    }

    /// Names the leaf that records are about from now on. The log must be empty.
    pub(crate) fn bind(&mut self, leaf: Uuid) {
        assert_eq!(self.filled, 0, "a log changes its leaf only when it is empty");
        let bytes = identity_bytes(&self.identity, leaf);
        self.memory.write(0, &bytes);
        self.memory.write(COPY, &bytes);
    }

    /// Appends all of `records`, or none and says false when they do not fit before the next flush.
    pub(crate) fn append(&mut self, records: &[Record]) -> bool {
        let room = self.half_len - HALF_HEADER - self.filled;
        if records.len() * RECORD > room {
            return false;
        }
        for record in records {
            let bytes = record_bytes(record, self.epoch);
            let at = self.half_at(self.active) + HALF_HEADER + self.filled;
            self.memory.write(at, &bytes);
            self.filled += RECORD;
        }
        true
    }

    /// Switches to the other half, which must be empty.
    pub(crate) fn freeze(&mut self) -> Frozen {
        let frozen = self.active;
        self.start(1 - frozen);
        Frozen(frozen)
    }

    /// Empties a half: all it says is durable now.
    pub(crate) fn trim(&mut self, frozen: &Frozen) {
        self.set_epoch(frozen.0, 0);
    }

    fn start(&mut self, half: usize) {
        self.epoch += 1;
        self.active = half;
        self.filled = 0;
        self.set_epoch(half, self.epoch);
    }

    fn half_at(&self, half: usize) -> usize {
        HEADER + half * self.half_len
    }

    fn epoch_of(&self, half: usize) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(self.half_at(half), &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn set_epoch(&self, half: usize, epoch: u64) {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&epoch.to_le_bytes());
        bytes[8..].copy_from_slice(&crc32c::crc32c(&epoch.to_le_bytes()).to_le_bytes());
        self.memory.write(self.half_at(half), &bytes);
    }
}

fn half_len(memory: usize) -> usize {
    (memory - HEADER) / 2 / RECORD * RECORD
}

fn identity_bytes(identity: &LogIdentity, leaf: Uuid) -> [u8; IDENTITY] {
    let mut bytes = [0; IDENTITY];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&LOG_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(identity.volume.as_bytes());
    bytes[32..48].copy_from_slice(identity.boot.as_bytes());
    bytes[48..56].copy_from_slice(&identity.generation.to_le_bytes());
    bytes[56..72].copy_from_slice(identity.log.as_bytes());
    bytes[72..88].copy_from_slice(leaf.as_bytes());
    let crc = crc32c::crc32c(&bytes[..88]);
    bytes[88..92].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Which connection the log in `memory` belongs to: what decides, before the disk is opened, whether
/// it is to be replayed.
///
/// # Errors
/// If the memory is no log, or one of another version.
pub fn log_identity(memory: &dyn LogMemory) -> Result<LogIdentity, LogError> {
    if memory.len() < LOG_MIN {
        return Err(LogError::TooSmall(memory.len()));
    }
    read_identity(memory).map(|(identity, _leaf)| identity)
}

/// The version of the log that begins with `head`, whatever its length is; None for what is no log.
///
/// Magic, version and checksum stand at the same place in every version.
#[must_use]
pub fn log_version(head: &[u8]) -> Option<u32> {
    let mut copies = [0, COPY].into_iter().filter_map(|at| head.get(at..at + IDENTITY));
    copies.find(|bytes| is_identity(bytes)).map(|bytes| u32_at(bytes, 8))
}

fn is_identity(bytes: &[u8]) -> bool {
    &bytes[..8] == MAGIC && u32_at(bytes, 88) == crc32c::crc32c(&bytes[..88])
}

fn read_identity(memory: &dyn LogMemory) -> Result<(LogIdentity, Uuid), LogError> {
    for at in [0, COPY] {
        let mut bytes = [0; IDENTITY];
        memory.read(at, &mut bytes);
        if !is_identity(&bytes) {
            continue;
        }
        let version = u32_at(&bytes, 8);
        if version != LOG_VERSION {
            return Err(LogError::Version(version));
        }
        let identity = LogIdentity {
            volume: uuid_at(&bytes, 16),
            boot: uuid_at(&bytes, 32),
            generation: u64_at(&bytes, 48),
            log: uuid_at(&bytes, 56),
        };
        return Ok((identity, uuid_at(&bytes, 72)));
    }
    Err(LogError::Mismatch)
}

fn read_half(memory: &dyn LogMemory, at: usize, len: usize) -> Option<(u64, Vec<Record>)> {
    let mut head = [0; 12];
    memory.read(at, &mut head);
    let epoch = u64_at(&head, 0);
    if epoch == 0 || u32_at(&head, 8) != crc32c::crc32c(&head[..8]) {
        return None;
    }
    let mut records = Vec::new();
    let mut bytes = [0; RECORD];
    for record in (HALF_HEADER..len.saturating_sub(RECORD - 1)).step_by(RECORD) {
        memory.read(at + record, &mut bytes);
        match record_of(&bytes, epoch) {
            Some(record) => records.push(record),
            None => break,
        }
    }
    Some((epoch, records))
}

fn record_bytes(record: &Record, epoch: u64) -> [u8; RECORD] {
    let (kind, block, a, b) = match *record {
        Record::Map { block, bitmap } => (1, block, bitmap, 0),
        Record::Own { block, from, len } => (2, block, from, len),
        Record::Unmap { block } => (3, block, 0, 0),
    };
    let mut bytes = [0; RECORD];
    bytes[4] = kind;
    bytes[8..16].copy_from_slice(&epoch.to_le_bytes());
    bytes[16..20].copy_from_slice(&block.to_le_bytes());
    bytes[20..24].copy_from_slice(&a.to_le_bytes());
    bytes[24..28].copy_from_slice(&b.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// None for the end of the records: an older epoch, or a record that was never finished.
fn record_of(bytes: &[u8; RECORD], epoch: u64) -> Option<Record> {
    if u32_at(bytes, 0) != crc32c::crc32c(&bytes[4..]) || u64_at(bytes, 8) != epoch {
        return None;
    }
    let (block, a, b) = (u32_at(bytes, 16), u32_at(bytes, 20), u32_at(bytes, 24));
    match bytes[4] {
        1 => Some(Record::Map { block, bitmap: a }),
        2 => Some(Record::Own { block, from: a, len: b }),
        3 => Some(Record::Unmap { block }),
        _ => None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    struct Ram(RefCell<Vec<u8>>);

    impl LogMemory for Ram {
        fn len(&self) -> usize {
            self.0.borrow().len()
        }
        fn write(&self, at: usize, bytes: &[u8]) {
            self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }
        fn read(&self, at: usize, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0.borrow()[at..at + bytes.len()]);
        }
    }

    fn identity() -> LogIdentity {
        LogIdentity {
            volume: Uuid::from_u128(1),
            boot: Uuid::from_u128(2),
            generation: 3,
            log: Uuid::from_u128(4),
        }
    }

    const LEAF: Uuid = Uuid::from_u128(5);

    fn fresh() -> (Rc<Ram>, MetaLog) {
        let ram = Rc::new(Ram(RefCell::new(vec![0xAA; LOG_MIN])));
        let log = MetaLog::create(Rc::clone(&ram) as Rc<dyn LogMemory>, identity(), LEAF).unwrap();
        (ram, log)
    }

    #[test]
    fn records_of_both_halves_come_back_in_order() {
        let (ram, mut log) = fresh();
        let a = Record::Map { block: 1, bitmap: 7 };
        let b = Record::Own { block: 1, from: 8, len: 8 };
        let c = Record::Unmap { block: 1 };
        assert!(log.append(&[a, b]));
        let frozen = log.freeze();
        assert!(log.append(&[c]));
        assert_eq!(MetaLog::read(&*ram, identity(), LEAF, true).unwrap(), [a, b, c]);
        log.trim(&frozen);
        assert_eq!(MetaLog::read(&*ram, identity(), LEAF, true).unwrap(), [c]);
    }

    #[test]
    fn a_full_half_takes_nothing() {
        let (ram, mut log) = fresh();
        let mut count = 0;
        while log.append(&[Record::Unmap { block: count }, Record::Unmap { block: count }]) {
            count += 1;
        }
        assert_eq!(count, 32);
        assert_eq!(MetaLog::read(&*ram, identity(), LEAF, true).unwrap().len(), 64);
    }

    #[test]
    fn only_the_exact_identity_is_replayed() {
        let (ram, mut log) = fresh();
        assert!(log.append(&[Record::Unmap { block: 9 }]));
        for other in [
            LogIdentity { generation: 4, ..identity() },
            LogIdentity { boot: Uuid::nil(), ..identity() },
            LogIdentity { log: Uuid::nil(), ..identity() },
            LogIdentity { volume: Uuid::nil(), ..identity() },
        ] {
            assert_eq!(MetaLog::read(&*ram, other, LEAF, true), Err(LogError::Mismatch));
        }
        assert!(matches!(
            MetaLog::read(&*ram, identity(), Uuid::nil(), true),
            Err(LogError::Leaf { .. })
        ));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let (ram, _log) = fresh();
        for at in [0, COPY] {
            let mut bytes = identity_bytes(&identity(), LEAF);
            bytes[8..12].copy_from_slice(&9u32.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..88]);
            bytes[88..92].copy_from_slice(&crc.to_le_bytes());
            ram.write(at, &bytes);
        }
        assert_eq!(MetaLog::read(&*ram, identity(), LEAF, true), Err(LogError::Version(9)));
        let bytes = ram.0.borrow();
        assert_eq!(log_version(&bytes), Some(9));
        assert_eq!(log_version(&bytes[COPY..]), Some(9));
        // the second copy alone tells it too
        let mut torn = bytes.clone();
        torn[20] ^= 1;
        assert_eq!(log_version(&torn), Some(9));
        torn[COPY + 20] ^= 1;
        for none in [&torn[..], &[], &bytes[..IDENTITY - 1], &[0; 4096]] {
            assert_eq!(log_version(none), None);
        }
    }

    #[test]
    fn a_torn_record_ends_the_half() {
        let (ram, mut log) = fresh();
        assert!(log.append(&[Record::Unmap { block: 1 }, Record::Unmap { block: 2 }]));
        let second = HEADER + HALF_HEADER + RECORD;
        for byte in 0..RECORD {
            let mut old = [0];
            ram.read(second + byte, &mut old);
            ram.write(second + byte, &[old[0] ^ 0x40]);
            let found = MetaLog::read(&*ram, identity(), LEAF, true).unwrap();
            assert_eq!(found, [Record::Unmap { block: 1 }], "byte {byte}");
            ram.write(second + byte, &old);
        }
    }
}
