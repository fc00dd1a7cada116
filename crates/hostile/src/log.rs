//! The write log: replayed onto a leaf, whatever it says. A log is refused, or what it left is a sound
//! file and a disk that reads, writes and flushes.

use std::cell::RefCell;
use std::rc::Rc;

use disk::{Access, Disk, LOG_MIN, LogIdentity, LogState, OpenChain, Rules, SharedCache};
use image::check::{CheckStep, Checker};
use image::{ParentRef, SectorCount, Timestamp, Trust, Uuid, create};
use io::sim::SimWorld;
use io::{
    BlockDevice, BlockFile, ByteCount, ByteOffset, Durability, IoBuf, Local, LogMemory, Request,
};

use crate::input::Input;
use crate::sparse::SparseFile;

const LEAF: Uuid = Uuid::from_u128(2);
const BLOCK: u64 = 2 << 20;
const BLOCKS: u64 = 6;
/// Bytes of file beyond what stands in it: places that a log may name.
const ROOM: u64 = 4 * (BLOCK + 4096);

const IDENTITY: LogIdentity = LogIdentity {
    volume: Uuid::from_u128(3),
    boot: Uuid::from_u128(4),
    generation: 5,
    log: Uuid::from_u128(6),
};

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

/// First byte 0: the rest is the log's memory as it is. Else, bit 1: a differencing leaf; the epochs of
/// the two halves; and records of 13 bytes, {kind and half, block, and two numbers}.
pub fn log(bytes: &[u8]) {
    opens(bytes);
}

/// Whether the log is taken.
fn opens(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let mode = input.u8();
    let memory = if mode == 0 { raw(input.0) } else { composed(&mut input) };
    let memory = Rc::new(Ram(RefCell::new(memory)));
    let told = disk::log_identity(&*memory).is_ok();
    assert!(!told || disk::log_version(&memory.0.borrow()).is_some());
    let (executor, world) = SimWorld::start(1);
    executor.block_on(replay(world.local().clone(), memory, mode & 2 != 0))
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    let mut memory = bytes[..bytes.len().min(1 << 16)].to_vec();
    memory.resize(memory.len().max(LOG_MIN), 0);
    memory
}

/// A log whose identity and checksums are right, and whose records say anything.
fn composed(input: &mut Input<'_>) -> Vec<u8> {
    let mut memory = vec![0; LOG_MIN];
    let identity = identity();
    memory[..96].copy_from_slice(&identity);
    memory[512..608].copy_from_slice(&identity);
    let epochs: [u64; 2] = [input.u8().into(), input.u8().into()];
    let half_len = (LOG_MIN - 4096) / 2 / 32 * 32;
    let halves = [4096, 4096 + half_len];
    for (at, epoch) in halves.into_iter().zip(epochs) {
        let epoch = epoch.to_le_bytes();
        memory[at..at + 8].copy_from_slice(&epoch);
        memory[at + 8..at + 12].copy_from_slice(&crc32c::crc32c(&epoch).to_le_bytes());
    }
    let mut next = halves.map(|at| at + 32);
    while !input.is_empty() {
        let [tag, numbers @ ..]: [u8; 13] = input.array();
        let half = usize::from(tag >> 4 & 1);
        let at = next[half];
        if at + 32 > halves[half] + half_len {
            continue;
        }
        next[half] += 32;
        let record = &mut memory[at..at + 32];
        record[4] = tag & 3;
        record[8..16].copy_from_slice(&epochs[half].to_le_bytes());
        record[16..28].copy_from_slice(&numbers);
        let crc = crc32c::crc32c(&record[4..]);
        record[..4].copy_from_slice(&crc.to_le_bytes());
    }
    memory
}

fn identity() -> [u8; 96] {
    let mut bytes = [0; 96];
    bytes[..8].copy_from_slice(b"SHALELOG");
    bytes[8..12].copy_from_slice(&disk::LOG_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(IDENTITY.volume.as_bytes());
    bytes[32..48].copy_from_slice(IDENTITY.boot.as_bytes());
    bytes[48..56].copy_from_slice(&IDENTITY.generation.to_le_bytes());
    bytes[56..72].copy_from_slice(IDENTITY.log.as_bytes());
    bytes[72..88].copy_from_slice(LEAF.as_bytes());
    let crc = crc32c::crc32c(&bytes[..88]);
    bytes[88..92].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Opens the leaf with this log, uses it, closes it, and looks at what it left.
async fn replay(local: Local, memory: Rc<Ram>, differencing: bool) -> bool {
    let mut files: Vec<Rc<SparseFile>> = Vec::new();
    let (size, now) = (SectorCount(BLOCKS * BLOCK / 512), Timestamp(0));
    let base = Uuid::from_u128(1);
    if differencing {
        files.push(write(create::dynamic(base, size, now).expect("a base")).await);
        let parent = ParentRef::sibling(base);
        let leaf = create::differencing(LEAF, size, now, &parent).expect("a leaf");
        files.push(write(leaf).await);
    } else {
        files.push(write(create::dynamic(LEAF, size, now).expect("a leaf")).await);
    }
    let open = |memory: Rc<Ram>, state| OpenChain {
        files: files.iter().map(|file| Rc::clone(file) as Rc<dyn BlockFile>).collect(),
        fixed_base: false,
        keep_space: false,
        access: Access::Write { memory, identity: IDENTITY, state },
        cache: SharedCache::none(),
        rules: Rules::all(),
    };
    // a block that stands already, so that a log can take its place away or give it to another
    let other = Rc::new(Ram(RefCell::new(vec![0; LOG_MIN])));
    let before = Disk::open(local.clone(), open(Rc::clone(&other), LogState::Clean)).await;
    let before = before.expect("a new leaf");
    put(&before, 0).await;
    before.submit(Request::Flush).await.expect("durable");
    before.abandon();
    drop(before);
    let leaf = files.last().expect("a leaf");
    let len = leaf.info().size.0;
    leaf.truncate(ByteCount(len + ROOM)).await.expect("a longer file");

    let Ok(disk) = Disk::open(local.clone(), open(memory, LogState::Replay)).await else {
        return false;
    };
    for block in 0..BLOCKS {
        for at in [block * BLOCK, (block + 1) * BLOCK - 4096] {
            let into = IoBuf::zeroed(4096);
            disk.submit(Request::Read { at: ByteOffset(at), into }).await.expect("a sound block");
        }
    }
    put(&disk, BLOCK * (BLOCKS - 1)).await;
    disk.close().await.expect("closed");
    drop(disk);
    let damage = check(leaf).await.into_iter().find(image::check::Finding::is_damage);
    assert_eq!(damage, None);
    let again = Disk::open(local, open(other, LogState::Clean)).await.expect("a sound leaf");
    again.close().await.expect("closed");
    true
}

async fn put(disk: &Disk, at: u64) {
    let from = IoBuf::copied(&[7; 4096]);
    let (at, durability) = (ByteOffset(at), Durability::Cached);
    disk.submit(Request::Write { at, from, durability }).await.expect("written");
}

async fn write(new: create::NewImage) -> Rc<SparseFile> {
    let file = SparseFile::new();
    for (at, bytes) in new.pieces {
        let (at, from) = (ByteOffset(at.bytes()), IoBuf::copied(&bytes));
        let durability = Durability::Cached;
        file.submit(Request::Write { at, from, durability }).await.expect("written");
    }
    file.truncate(ByteCount(new.len)).await.expect("its length");
    file
}

async fn check(file: &Rc<SparseFile>) -> Vec<image::check::Finding> {
    let mut checker = Checker::new(file.info().size.0, Trust::Own);
    loop {
        match checker.step() {
            CheckStep::Read { at, len } => {
                let into = IoBuf::zeroed(usize::try_from(len).expect("a short read"));
                let read = Request::Read { at: ByteOffset(at), into: into.clone() };
                file.submit(read).await.expect("within the file");
                checker.supply(&into.to_vec()).expect("all that was asked");
            }
            CheckStep::Done(report) => return report.findings,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_for() {
        let seed = |name| {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/log/");
            super::opens(&std::fs::read(format!("{dir}{name}")).expect("a seed"))
        };
        for taken in ["empty", "unmap", "map", "map-differencing"] {
            assert!(seed(taken), "{taken}");
        }
        for refused in ["own-without-place", "raw"] {
            assert!(!seed(refused), "{refused}");
        }
    }
}
