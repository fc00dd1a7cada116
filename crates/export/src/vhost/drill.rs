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
use super::inflight::Inflight;
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
    fn new(ring: &Ring, device: Rc<dyn BlockDevice>, choices: u8) -> Self {
        let tracked = choices & 4 != 0;
        let inflight = tracked.then(|| Inflight::create(1, 16).expect("memory"));
        Self::with(ring, device, choices, shared(MEMORY), inflight.as_ref())
    }

    /// With memory that is there, as a front end has that comes back.
    fn with(
        ring: &Ring,
        device: Rc<dyn BlockDevice>,
        choices: u8,
        memory: File,
        inflight: Option<&File>,
    ) -> Self {
        let turn = Turns::default().of(1);
        let front = Front::new(ring, device, "drill", choices & 1 != 0, turn);
        front.set_memory(vec![(REGION, copy(&memory))]).expect("plain memory");
        let mut features = front.features();
        if choices & 2 != 0 {
            features &= !(1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX);
        }
        front.set_features(features).expect("what was offered");
        front.set_log(shared(4096), 0, 4096).expect("plain memory");
        if let Some(file) = inflight {
            front.set_inflight(copy(file), 0, 1, 16).expect("what this side made");
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
    let guest = Guest::new(ring, Rc::new(Empty), choices);
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
    use std::os::unix::fs::FileExt as _;
    use std::rc::Rc;

    use rustix::io::Errno;

    use super::{Empty, Guest, Inflight, MEMORY, copy, others, ring, shared};
    use crate::tests::ram::RamDevice;

    /// A process died between an answer and its call: the next one calls, though nothing ends any more.
    #[test]
    fn a_call_that_a_dead_process_owed_is_made() {
        let (executor, ring) = io::Ring::start().unwrap();
        executor.block_on(async {
            let guest = Guest::new(&ring, Rc::new(Empty), 4);
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

    /// A write of 512 bytes at the start of the disk, offered as the first request.
    fn offer_write(guest: &Guest) {
        let rows: [(u64, u32, u16); 3] = [(0x100, 16, 1), (0x200, 512, 1), (0x120, 1, 2)];
        for (index, (addr, len, flags)) in (0_u16..).zip(rows) {
            let next = (index + 1).to_le_bytes();
            let row = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next];
            guest.put(&row.concat(), u64::from(index) * 16);
        }
        guest.put(&1_u32.to_le_bytes(), 0x100);
        guest.put(&[7; 512], 0x200);
        guest.put(&[0xff], 0x120);
        guest.put(&1_u16.to_le_bytes(), 0x402);
    }

    /// The index of the used ring, and the status of that write.
    fn answered(guest: &Guest) -> (u8, u8) {
        let [mut used, mut status] = [[0]; 2];
        guest.memory.read_exact_at(&mut used, 0x802).unwrap();
        guest.memory.read_exact_at(&mut status, 0x120).unwrap();
        (used[0], status[0])
    }

    /// A write that waits when this side goes is not answered, and whoever comes next does it, once.
    #[test]
    fn a_write_that_waits_is_left_to_the_next_process() {
        let (executor, ring) = io::Ring::start().unwrap();
        executor.block_on(async {
            let device = RamDevice::new(1 << 20);
            device.hold(0);
            let (memory, inflight) = (shared(MEMORY), Inflight::create(1, 16).unwrap());
            let come = || {
                Guest::with(
                    &ring,
                    Rc::<RamDevice>::clone(&device),
                    4,
                    copy(&memory),
                    Some(&inflight),
                )
            };
            let guest = come();
            offer_write(&guest);
            guest.start();
            others(&ring).await;
            guest.front.let_writes_go();
            others(&ring).await;
            assert_eq!(answered(&guest), (0, 0xff));
            guest.front.kick(0, None).expect_err("nothing is set up while this side goes");
            guest.front.drain().await;

            device.release(0);
            let next = come();
            next.start();
            others(&ring).await;
            next.front.stop(0).await.unwrap();
            assert_eq!(answered(&next), (1, 0));
            assert_eq!(device.bytes(0, 512), [7; 512]);
        });
    }

    /// Where the front end stops the queue it may go on elsewhere: such a write fails, and is told.
    #[test]
    fn a_write_that_waits_fails_when_the_queue_is_stopped() {
        let (executor, ring) = io::Ring::start().unwrap();
        executor.block_on(async {
            let device = RamDevice::new(1 << 20);
            device.hold(0);
            let guest = Guest::new(&ring, Rc::<RamDevice>::clone(&device), 4);
            offer_write(&guest);
            guest.start();
            others(&ring).await;
            assert_eq!(guest.front.stop(0).await, Ok(1));
            assert_eq!(answered(&guest), (1, 1));
        });
    }

    /// A kick is taken: one that stays would be waited for in vain, again and again.
    #[test]
    fn a_kick_is_taken() {
        let (executor, ring) = io::Ring::start().unwrap();
        executor.block_on(async {
            let guest = Guest::new(&ring, Rc::new(Empty), 0);
            guest.start();
            others(&ring).await;
            rustix::io::write(&guest.kick, &1_u64.to_ne_bytes()).unwrap();
            others(&ring).await;
            let left = rustix::io::read(&guest.kick, &mut [0; 8]);
            assert_eq!(left, Err(Errno::AGAIN));
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
