//! A guest that does anything, for fuzzing: the input is its memory, rings included.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use io::{
    BlockDevice, ByteCount, ByteRange, DeviceInfo, Executor, Extent, ExtentKind, Io, IoError,
    IoErrorKind, Request, Result, Ring,
};
use rustix::event::{EventfdFlags, eventfd};

use super::front::Front;
use super::memory::Described;
use super::turn::Turns;

/// Bytes of the guest's memory.
const MEMORY: u64 = 64 << 10;
/// Where the front end has it.
const USER: u64 = 0x7000_0000;
/// The ring's parts, and its descriptors.
const PARTS: [u64; 3] = [0, 0x400, 0x800];
const SIZE: u32 = 16;

/// A device that keeps nothing.
struct Empty;

impl BlockDevice for Empty {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size: ByteCount(1 << 30),
            logical_block: 512,
            physical_block: 4096,
            memory_align: 512,
            max_io: 1 << 20,
            clear_granularity: 4096,
            read_only: false,
        }
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        let range = match &request {
            Request::Read { at, into } => ByteRange { start: *at, len: into.count() },
            Request::Write { at, from, .. } => ByteRange { start: *at, len: from.count() },
            Request::Clear { range, .. } => *range,
            Request::Flush => ByteRange::new(0, 0),
        };
        let done = if range.is_within(self.info().size) {
            match &request {
                Request::Read { into, .. } => into.fill(0xa5),
                Request::Write { from, .. } => drop(from.to_vec()),
                Request::Clear { .. } | Request::Flush => {}
            }
            Ok(())
        } else {
            Err(IoError::new(IoErrorKind::OutOfRange, "beyond the end"))
        };
        Box::pin(async move { done })
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        Box::pin(async move { Ok(vec![Extent::flat(range, ExtentKind::Hole)]) })
    }
}

thread_local! {
    static THREAD: RefCell<Option<(Executor, Ring)>> = const { RefCell::new(None) };
}

/// Serves a guest with `bytes` in its memory, again with their second half, and stops it.
///
/// # Panics
/// On a defect of what is drilled, or when the system gives no memory or descriptors.
pub fn ring(bytes: &[u8]) {
    let (choices, content) = bytes.split_first().unwrap_or((&0, &[]));
    let choices = *choices;
    THREAD.with_borrow_mut(|thread| {
        let (executor, ring) =
            thread.get_or_insert_with(|| Ring::start().expect("an executor for this thread"));
        executor.block_on(serve(ring, choices, content));
    });
}

/// A connection up to the point where its queue is kicked.
struct Guest {
    front: Front,
    memory: File,
    kick: OwnedFd,
    call: OwnedFd,
}

const REGION: Described = Described { guest: 0, len: MEMORY, user: USER, offset: 0 };

impl Guest {
    fn new(ring: &Ring, choices: u8) -> Self {
        let turn = Turns::default().of(1);
        let front = Front::new(ring, Rc::new(Empty), "drill", choices & 1 != 0, turn);
        let memory = shared(MEMORY);
        front.set_memory(vec![(REGION, copy(&memory))]).expect("plain memory");
        let mut features = front.features();
        if choices & 2 != 0 {
            features &= !(1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX);
        }
        front.set_features(features).expect("what was offered");
        front.set_log(shared(4096), 0, 4096).expect("plain memory");
        if choices & 4 != 0 {
            let (_len, file) = front.new_inflight(1, 16).expect("memory");
            front.set_inflight(file, 0, 1, 16).expect("what was just made");
        }
        front.set_size(0, SIZE).expect("a power of two");
        front
            .set_addresses(0, PARTS.map(|at| USER + at), Some(PARTS[2]))
            .expect("inside the memory");
        front.set_base(0, 0).expect("a fresh queue");
        let [kick, call] =
            [(); 2].map(|()| eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"));
        Self { front, memory, kick, call }
    }

    fn put(&self, bytes: &[u8], at: u64) {
        self.memory.write_all_at(bytes, at).expect("memory");
    }

    fn start(&self) {
        let [kick, call] =
            [&self.kick, &self.call].map(|fd| fd.try_clone().expect("a descriptor").into());
        self.front.set_call(0, Some(call)).expect("an eventfd");
        self.front.kick(0, Some(kick)).expect("a valid queue");
        self.front.enable(0, true).expect("there is a queue 0");
    }
}

async fn serve(ring: &Ring, choices: u8, content: &[u8]) {
    let guest = Guest::new(ring, choices);
    let (first, second) = content.split_at(content.len() / 2);
    guest.put(cut(first), 0);
    guest.start();
    others(ring).await;
    // under what runs
    guest.put(cut(second), 0);
    let _kicked = rustix::io::write(&guest.kick, &1_u64.to_ne_bytes());
    if choices & 8 != 0 {
        guest.front.remove_memory(REGION).expect("it is there");
    }
    others(ring).await;
    let _where = guest.front.stop(0).await.expect("there is a queue 0");
    guest.front.end().await;
}

/// Lets what is ready run.
async fn others(ring: &Ring) {
    for _ in 0..4 {
        ring.local().yield_now().await;
    }
}

fn cut(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(usize::try_from(MEMORY).unwrap_or(0))]
}

fn shared(len: u64) -> File {
    let fd = rustix::fs::memfd_create("drill", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let file = File::from(fd);
    file.set_len(len).expect("memory");
    file
}

fn copy(file: &File) -> File {
    file.try_clone().expect("a descriptor")
}

#[cfg(test)]
mod tests {
    use super::{Guest, others, ring};

    /// A process died between an answer and its call: the next one calls, though nothing ends any more.
    #[test]
    fn a_call_that_a_dead_process_owed_is_made() {
        let (executor, ring) = io::Ring::start().unwrap();
        executor.block_on(async {
            let guest = Guest::new(&ring, 4);
            // one was offered and answered; the guest wants to hear of the first
            guest.put(&1_u16.to_le_bytes(), 0x402);
            guest.put(&1_u16.to_le_bytes(), 0x802);
            guest.start();
            others(&ring).await;
            let mut calls = [0; 8];
            rustix::io::read(&guest.call, &mut calls).expect("the guest was called");
            guest.front.stop(0).await.unwrap();
        });
    }

    /// Rings of random bytes, whose index says that all of it is offered.
    #[test]
    fn a_guest_of_random_bytes_harms_nobody() {
        use proptest::prelude::*;
        let config = ProptestConfig { cases: 300, ..ProptestConfig::default() };
        let small =
            prop::collection::vec((any::<u16>(), any::<u8>(), any::<u8>(), any::<u8>()), 16);
        proptest!(config, |(choices: u8, rows in small, offered in 0_u16..20, junk: [u8; 32])| {
            let mut memory = vec![0_u8; 0x1000];
            for (index, (addr, len, flags, next)) in rows.into_iter().enumerate() {
                let at = index * 16;
                memory[at..at + 8].copy_from_slice(&u64::from(addr).to_le_bytes());
                memory[at + 8] = len;
                memory[at + 12] = flags & 7;
                memory[at + 14] = next & 15;
            }
            memory[0x402..0x404].copy_from_slice(&offered.to_le_bytes());
            for slot in 0..16 {
                memory[0x404 + 2 * slot] = junk[slot] & 31;
            }
            memory[0x900..0x920].copy_from_slice(&junk);
            let twice = [&[choices][..], &memory, &memory].concat();
            ring(&twice);
        });
    }
}
