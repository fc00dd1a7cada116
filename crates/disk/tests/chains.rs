//! Chains by hand, in the simulated world: sizes that differ, space that runs out, writes that fail or
//! whose callers go away, gates, the cost of reads.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use disk::{Access, Disk, GATE_LIMIT, LogIdentity, LogState, OpenChain, Rules, SharedCache};
use futures_util::poll;
use image::{SectorCount, Timestamp, Uuid, create};
use io::sim::{SimSpace, SimWorld};
use io::{
    BlockDevice, BlockFile, ByteCount, ByteOffset, ByteRange, Clear, DeviceInfo, Durability,
    Effort, Extent, ExtentKind, Io, IoBuf, IoError, IoErrorKind, Request, Result,
};

use common::layer;

const BLOCK: u64 = 2 << 20;

async fn open(world: &SimWorld, files: Vec<Rc<dyn BlockFile>>, rules: Rules) -> Disk {
    open_with(world, files, rules, false).await
}

async fn open_with(
    world: &SimWorld,
    files: Vec<Rc<dyn BlockFile>>,
    rules: Rules,
    keep_space: bool,
) -> Disk {
    let identity = LogIdentity {
        volume: Uuid::nil(),
        boot: Uuid::nil(),
        generation: 1,
        log: Uuid::from_u128(files.len() as u128),
    };
    let memory = Rc::new(world.log(&format!("log{}", files.len()), 1 << 20));
    let access = Access::Write { memory, identity, state: LogState::Clean };
    Disk::open(
        world.local().clone(),
        OpenChain {
            files,
            access,
            rules,
            fixed_base: false,
            keep_space,
            cache: SharedCache::new(1 << 20),
        },
    )
    .await
    .unwrap()
}

async fn clear(disk: &Disk, at: u64, len: u64) {
    let (how, effort, durability) = (Clear::Deallocate, Effort::Any, Durability::Cached);
    let range = ByteRange::new(at, len);
    disk.submit(Request::Clear { range, how, effort, durability }).await.unwrap();
}

fn writing(at: u64, byte: u8, len: usize) -> Request {
    let from = IoBuf::copied(&vec![byte; len]);
    Request::Write { at: ByteOffset(at), from, durability: Durability::Cached }
}

async fn write(disk: &Disk, at: u64, byte: u8, len: usize) {
    disk.submit(writing(at, byte, len)).await.unwrap();
}

async fn discard(disk: &Disk, range: ByteRange, durability: Durability) {
    let (how, effort) = (Clear::Deallocate, Effort::Any);
    disk.submit(Request::Clear { range, how, effort, durability }).await.unwrap();
}

async fn read(disk: &Disk, at: u64, len: usize) -> Vec<u8> {
    let into = IoBuf::zeroed(len);
    disk.submit(Request::Read { at: ByteOffset(at), into: into.clone() }).await.unwrap();
    into.to_vec()
}

/// A layer in the middle is shorter than its parent and its child: beyond its end nothing of the
/// parent may show through.
async fn grown_over_a_shorter_layer(world: &SimWorld, rules: Rules) -> (Vec<u8>, Vec<u8>) {
    let space = world.add_space(ByteCount::mib(100));
    let base = layer(&space, 1, 4 * BLOCK, None).await;
    let disk = open(world, vec![Rc::clone(&base)], rules).await;
    write(&disk, 0, 7, 4096).await;
    write(&disk, BLOCK + 8192, 7, 4096).await;
    write(&disk, 3 * BLOCK, 7, 4096).await;
    disk.close().await.unwrap();
    let middle = layer(&space, 2, BLOCK + 4096, Some(1)).await;
    let leaf = layer(&space, 3, 4 * BLOCK, Some(2)).await;
    let disk = open(world, vec![base, middle, leaf], rules).await;
    let inside = read(&disk, 0, 4096).await;
    let mut beyond = read(&disk, BLOCK + 8192, 4096).await;
    beyond.extend(read(&disk, 3 * BLOCK, 4096).await);
    (inside, beyond)
}

#[test]
fn d8_growth_owns_its_range_as_zero() {
    let (executor, world) = SimWorld::start(1);
    let (inside, beyond) = executor.block_on(grown_over_a_shorter_layer(&world, Rules::all()));
    assert_eq!(inside, vec![7; 4096]);
    assert_eq!(beyond, vec![0; 8192]);

    let (executor, world) = SimWorld::start(1);
    let off = Rules { d8_grown_range_is_zero: false, ..Rules::all() };
    let (_, beyond) = executor.block_on(grown_over_a_shorter_layer(&world, off));
    assert!(beyond.contains(&7), "with the rule off the parent shows through");
}

#[test]
fn a_full_store_holds_only_what_needs_space() {
    let (executor, world) = SimWorld::start(2);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(7));
        let base = layer(&space, 1, 16 * BLOCK, None).await;
        let disk = open(&world, vec![base], Rules::all()).await;
        let held = Rc::new(Cell::new(0));
        let told = Rc::clone(&held);
        disk.on_held(move |count| told.set(count));
        for block in 0..3 {
            write(&disk, block * BLOCK, 1, 4096).await;
        }
        let waiting = {
            let disk = disk.clone();
            world.local().spawn(async move { write(&disk, 5 * BLOCK, 9, 4096).await })
        };
        while held.get() == 0 {
            world.delay(Duration::ZERO, Duration::from_micros(50)).await;
        }
        assert_eq!(disk.stats().held, 1);
        // what has its place goes on, flushes and snapshots' gates too
        write(&disk, BLOCK, 2, 8192).await;
        disk.submit(Request::Flush).await.unwrap();
        disk.gate().await.unwrap();
        disk.ungate();
        // the guest itself frees a block: that is space too
        let range = ByteRange::new(2 * BLOCK, BLOCK);
        let clear = Request::Clear {
            range,
            how: Clear::Deallocate,
            effort: Effort::Any,
            durability: Durability::Durable,
        };
        disk.submit(clear).await.unwrap();
        discard(&disk, ByteRange::new(2 * BLOCK, BLOCK), Durability::Durable).await;
        waiting.await;
        assert_eq!(held.get(), 0);
        assert_eq!(read(&disk, 5 * BLOCK, 4096).await, vec![9; 4096]);
        assert_eq!(read(&disk, 2 * BLOCK, 4096).await, vec![0; 4096]);
        assert_eq!(read(&disk, BLOCK, 4096).await, vec![2; 4096]);
    });
}

/// A file system in ordered mode writes before it flushes: the flush that frees what it discarded
/// must not be waited for.
#[test]
fn n1_discarded_space_serves_the_writes_of_a_full_store() {
    let (executor, world) = SimWorld::start(2);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(7));
        let base = layer(&space, 1, 16 * BLOCK, None).await;
        let disk = open(&world, vec![base], Rules::all()).await;
        let held = Rc::new(Cell::new(0));
        let most = Rc::clone(&held);
        disk.on_held(move |count| most.set(most.get().max(count)));
        for block in 0..3 {
            write(&disk, block * BLOCK, 1, 4096).await;
        }
        discard(&disk, ByteRange::new(0, 3 * BLOCK), Durability::Cached).await;
        for block in 5..8 {
            write(&disk, block * BLOCK, 9, 4096).await;
        }
        assert_eq!(held.get(), 0, "there was space enough all the time");
        // a hole in a place needs space again, and the store is full once more
        let hole = ByteRange::new(5 * BLOCK, 1 << 20);
        discard(&disk, hole, Durability::Cached).await;
        space.set_capacity(space.used());
        discard(&disk, ByteRange::new(6 * BLOCK, BLOCK), Durability::Cached).await;
        write(&disk, 5 * BLOCK, 7, 4096).await;
        discard(&disk, ByteRange::new(7 * BLOCK, BLOCK), Durability::Cached).await;
        space.set_capacity(space.used());
        let (how, effort, durability) = (Clear::KeepSpace, Effort::Any, Durability::Cached);
        let range = ByteRange::new(5 * BLOCK + 8192, 4096);
        disk.submit(Request::Clear { range, how, effort, durability }).await.unwrap();
        assert_eq!(held.get(), 0);
        assert_eq!(read(&disk, 5 * BLOCK, 4096).await, vec![7; 4096]);
        assert_eq!(read(&disk, 6 * BLOCK, 4096).await, vec![0; 4096]);
        space.set_capacity(ByteCount::mib(7));
        // and what is discarded only when a write is held already serves it too
        for block in 6..8 {
            write(&disk, block * BLOCK, 1, 4096).await;
        }
        let mut waits = disk.submit(writing(9 * BLOCK, 8, 4096));
        while held.get() == 0 {
            assert!(poll!(&mut waits).is_pending());
            world.delay(Duration::ZERO, Duration::from_micros(50)).await;
        }
        discard(&disk, ByteRange::new(6 * BLOCK, BLOCK), Durability::Cached).await;
        waits.await.unwrap();
        assert_eq!(read(&disk, 9 * BLOCK, 4096).await, vec![8; 4096]);
    });
}

#[test]
fn n2_a_leaf_that_keeps_its_space_asks_a_full_store_for_nothing() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount(64 << 20));
        let file = layer(&space, 1, 6 * BLOCK, None).await;
        file.reserve(ByteRange::new(0, file.info().size.0 + 6 * (BLOCK + 4096))).await.unwrap();
        space.set_capacity(space.used());
        let disk = open_with(&world, vec![file], Rules::all(), true).await;
        for block in 0..6 {
            write(&disk, block * BLOCK, 5, 4096).await;
        }
        discard(&disk, ByteRange::new(0, 2 * BLOCK), Durability::Durable).await;
        write(&disk, 4096, 6, 4096).await;
        assert_eq!(read(&disk, 4096, 4096).await, vec![6; 4096]);
        assert_eq!(read(&disk, BLOCK, 4096).await, vec![0; 4096]);
        disk.close().await.unwrap();
    });
}

#[test]
fn d7_after_a_failed_flush_no_write_is_held_for_space() {
    let (executor, world) = SimWorld::start(2);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(3));
        let base = layer(&space, 1, 16 * BLOCK, None).await;
        let disk = open(&world, vec![base], Rules::all()).await;
        write(&disk, 0, 1, 4096).await;
        let mut waits = disk.submit(writing(3 * BLOCK, 2, 4096));
        while disk.stats().held == 0 {
            assert!(poll!(&mut waits).is_pending());
            world.delay(Duration::ZERO, Duration::from_micros(50)).await;
        }
        space.faults().fail_flush(1);
        disk.submit(Request::Flush).await.unwrap_err();
        assert_eq!(waits.await.unwrap_err().kind, IoErrorKind::Poisoned);
        let error = disk.submit(writing(4 * BLOCK, 2, 4096)).await.unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Poisoned, "{error}");
        write(&disk, 0, 3, 4096).await;
    });
}

/// Whether discards free space follows the leaf, which a snapshot may have made another way.
#[test]
fn n2_a_snapshots_leaf_keeps_the_space_that_it_was_made_with() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        for (first, second) in [(true, false), (false, true)] {
            let space = world.add_space(ByteCount(64 << 20));
            let full = 3 * (BLOCK + 4096);
            let reserve = async |file: &Rc<dyn BlockFile>, wanted: bool| {
                let len = file.info().size.0.next_multiple_of(4096) + full;
                if wanted {
                    file.reserve(ByteRange::new(0, len)).await.unwrap();
                }
            };
            let base = layer(&space, 1, 3 * BLOCK, None).await;
            reserve(&base, first).await;
            let disk = open_with(&world, vec![base], Rules::all(), first).await;
            let leaf = layer(&space, 2, 3 * BLOCK, Some(1)).await;
            reserve(&leaf, second).await;
            let new = disk.open_leaf(Rc::clone(&leaf)).await.unwrap();
            disk.gate().await.unwrap();
            disk.switch(new);
            disk.ungate();
            write(&disk, 0, 1, 4096).await;
            disk.close().await.unwrap();
            let used = leaf.used().await.unwrap().0;
            assert_eq!(used >= full, second, "{used} bytes; reserved: {first}, then {second}");
        }
    });
}

/// A disk of the largest size, whose blocks stand as `place` says: first sectors of their metadata.
/// `without` have none.
async fn largest_disk(
    space: &SimSpace,
    without: std::ops::Range<u64>,
    place: impl Fn(&image::LayerImage, u64) -> u64,
) -> Rc<dyn BlockFile> {
    let size = 2040 << 30;
    let now = Timestamp::default();
    let image = create::dynamic(Uuid::from_u128(1), SectorCount(size / 512), now).unwrap().image;
    let file = layer(space, 1, size, None).await;
    let entry = |block| match without.contains(&block) {
        true => image::bat::UNALLOCATED,
        false => u32::try_from(place(&image, block) + 7).unwrap(),
    };
    let blocks = size / BLOCK;
    let bat: Vec<u8> = (0..blocks).flat_map(|block| entry(block).to_be_bytes()).collect();
    for (at, piece) in (image.bat_at.bytes()..).step_by(1 << 20).zip(bat.chunks(1 << 20)) {
        let (at, from) = (ByteOffset(at), IoBuf::copied(piece));
        file.submit(Request::Write { at, from, durability: Durability::Cached }).await.unwrap();
    }
    let end = (0..blocks).map(|block| place(&image, block)).max().unwrap() + 4104;
    file.truncate(ByteCount(end * 512)).await.unwrap();
    file
}

/// 2 TiB of file are 2052 places more than the largest disk has blocks: whoever discards and writes
/// more than that between two flushes is served from what was discarded.
#[test]
fn no_discards_and_writes_lead_past_two_tib() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(4 << 20));
        let file = largest_disk(&space, 0..0, |image, block| image.first_free.0 + block * 4104);
        let disk = open(&world, vec![file.await], Rules::all()).await;
        let blocks = 2200;
        discard(&disk, ByteRange::new(0, blocks * BLOCK), Durability::Cached).await;
        for block in 0..blocks {
            write(&disk, block * BLOCK, 9, 512).await;
        }
        disk.submit(Request::Flush).await.unwrap();
        assert_eq!(read(&disk, (blocks - 1) * BLOCK, 1024).await, [[9; 512], [0; 512]].concat());
    });
}

/// Where nothing is free below 2 TiB no space on the store would help: the guest is told.
#[test]
fn a_file_that_cannot_grow_is_no_full_store() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(4 << 20));
        // gaps of a page or two behind each block eat all that a further place could stand in
        let wide = 7600;
        let file = largest_disk(&space, 7..8, |image, block| {
            let block = block - u64::from(block > 7);
            image.first_free.0 + block * 4112 + block.min(wide) * 8
        });
        let disk = open(&world, vec![file.await], Rules::all()).await;
        let error = disk.submit(writing(7 * BLOCK, 1, 512)).await.unwrap_err();
        assert_eq!((error.kind, disk.stats().held), (IoErrorKind::NoSpace, 0), "{error}");
        // what has its place is written, and a discarded block's place serves the one without
        write(&disk, 6 * BLOCK, 1, 512).await;
        discard(&disk, ByteRange::new(6 * BLOCK, BLOCK), Durability::Cached).await;
        write(&disk, 7 * BLOCK, 2, 512).await;
        assert_eq!(read(&disk, 7 * BLOCK, 512).await, [2; 512]);
        let error = disk.submit(writing(6 * BLOCK, 1, 512)).await.unwrap_err();
        assert_eq!(error.kind, IoErrorKind::NoSpace, "{error}");
    });
}

#[test]
fn d9_a_failed_write_comes_to_light_at_once_or_never() {
    for seed in 0..20 {
        let (executor, world) = SimWorld::start(seed);
        executor.block_on(async {
            let space = world.add_space(ByteCount::mib(100));
            let mut files = vec![layer(&space, 1, 4 * BLOCK, None).await];
            if seed % 2 == 0 {
                files.push(layer(&space, 2, 4 * BLOCK, Some(1)).await);
            }
            let disk = open(&world, files, Rules::all()).await;
            space.faults().fail_write(1);
            disk.submit(writing(0, 7, 65536)).await.unwrap_err();
            let seen = read(&disk, 0, 65536).await;
            write(&disk, BLOCK - 4096, 9, 4096).await;
            assert!(read(&disk, 0, 65536).await == seen, "seed {seed}: it came to light later");
        });
    }
}

#[test]
fn d9_zeroes_after_a_failed_write_stay_zero() {
    for seed in 0..20 {
        let (executor, world) = SimWorld::start(seed);
        executor.block_on(async {
            let space = world.add_space(ByteCount::mib(100));
            let base = layer(&space, 1, 4 * BLOCK, None).await;
            let disk = open(&world, vec![base], Rules::all()).await;
            space.faults().fail_write(1);
            disk.submit(writing(0, 7, 65536)).await.unwrap_err();
            discard(&disk, ByteRange::new(0, BLOCK), Durability::Durable).await;
            assert_eq!(read(&disk, 0, 65536).await, vec![0; 65536]);
            // another sector of the block makes its place visible
            write(&disk, BLOCK - 4096, 9, 4096).await;
            assert!(read(&disk, 0, 65536).await == [0; 65536], "seed {seed}: old bytes are back");
        });
    }
}

#[test]
fn p4_what_a_caller_left_behind_ends_before_anything_later_begins() {
    for seed in 0..40 {
        let (executor, world) = SimWorld::start(seed);
        executor.block_on(async {
            let space = world.add_space(ByteCount::mib(100));
            let base = layer(&space, 1, 4 * BLOCK, None).await;
            let disk = open(&world, vec![base], Rules::all()).await;
            write(&disk, 0, 1, 4096).await;
            let mut old = disk.submit(writing(0, 2, 4096));
            assert!(poll!(&mut old).is_pending());
            world.delay(Duration::ZERO, Duration::from_micros(30)).await;
            drop(old);
            let expected = if seed % 2 == 0 {
                write(&disk, 0, 3, 4096).await;
                vec![3; 4096]
            } else {
                read(&disk, 0, 4096).await
            };
            world.delay(Duration::from_millis(50), Duration::from_millis(60)).await;
            assert!(read(&disk, 0, 4096).await == expected, "seed {seed}: it changed afterwards");
        });
    }
}

#[test]
fn p4_what_was_left_behind_and_has_not_begun_never_begins() {
    let (executor, world) = SimWorld::start(5);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(3));
        let base = layer(&space, 1, 16 * BLOCK, None).await;
        let disk = open(&world, vec![base], Rules::all()).await;
        write(&disk, 0, 1, 4096).await;
        let mut waits_for_space = disk.submit(writing(3 * BLOCK, 2, 4096));
        while disk.stats().held == 0 {
            assert!(poll!(&mut waits_for_space).is_pending());
            world.delay(Duration::ZERO, Duration::from_micros(50)).await;
        }
        drop(waits_for_space);
        write(&disk, 0, 3, 4096).await;
        assert_eq!(disk.stats().held, 0);

        disk.gate().await.unwrap();
        let mut at_the_gate = [disk.submit(writing(0, 4, 4096)), disk.submit(Request::Flush)];
        for request in &mut at_the_gate {
            assert!(poll!(request).is_pending());
        }
        world.delay(Duration::from_millis(1), Duration::from_millis(1)).await;
        drop(at_the_gate);
        assert_eq!(read(&disk, 0, 4096).await, [3; 4096]);
        disk.ungate();
        disk.submit(Request::Flush).await.unwrap();
        assert_eq!(read(&disk, 0, 4096).await, [3; 4096]);
    });
}

#[test]
fn a_closing_disk_answers_what_it_holds() {
    let (executor, world) = SimWorld::start(3);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(3));
        let base = layer(&space, 1, 16 * BLOCK, None).await;
        let disk = open(&world, vec![base], Rules::all()).await;
        write(&disk, 0, 1, 4096).await;
        let from = IoBuf::copied(&[2; 512]);
        let request =
            Request::Write { at: ByteOffset(3 * BLOCK), from, durability: Durability::Cached };
        let waiting = {
            let disk = disk.clone();
            world.local().spawn(async move { disk.submit(request).await })
        };
        while disk.stats().held == 0 {
            world.delay(Duration::ZERO, Duration::from_micros(50)).await;
        }
        disk.close().await.unwrap();
        assert_eq!(waiting.await.unwrap_err().kind, IoErrorKind::Closed);
    });
}

/// Writes of a file wait while it is stalled, and its reads from the second on; the first fails then.
struct Stalling {
    file: Rc<dyn BlockFile>,
    stalled: Rc<Cell<bool>>,
    /// Reads that came while it was stalled, and those of them that have ended.
    reads: Rc<Cell<(u32, u32)>>,
    world: SimWorld,
}

impl BlockDevice for Stalling {
    fn info(&self) -> DeviceInfo {
        self.file.info()
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        Box::pin(async move {
            let reads = self.stalled.get() && matches!(request, Request::Read { .. });
            if reads {
                let (begun, ended) = self.reads.get();
                self.reads.set((begun + 1, ended));
                if begun == 0 {
                    return Err(IoError::new(
                        IoErrorKind::Device,
                        "the first read of a stalled file",
                    ));
                }
            }
            while self.stalled.get()
                && matches!(request, Request::Read { .. } | Request::Write { .. })
            {
                self.world.delay(Duration::from_millis(100), Duration::from_millis(100)).await;
            }
            let done = self.file.submit(request).await;
            if reads {
                let (begun, ended) = self.reads.get();
                self.reads.set((begun, ended + 1));
            }
            done
        })
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        self.file.extents(range)
    }
}

impl BlockFile for Stalling {
    fn reserve(&self, range: ByteRange) -> Io<'_, Result<()>> {
        self.file.reserve(range)
    }

    fn truncate(&self, len: ByteCount) -> Io<'_, Result<()>> {
        self.file.truncate(len)
    }

    fn used(&self) -> Io<'_, Result<ByteCount>> {
        self.file.used()
    }
}

/// A read of several parts is answered when all of them have ended, also when the first has failed: the
/// buffer may be a guest's memory, which is the guest's again then.
#[test]
fn nothing_is_read_into_a_buffer_after_its_request_was_answered() {
    let (executor, world) = SimWorld::start(7);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(100));
        let file = layer(&space, 1, 16 * BLOCK, None).await;
        let (stalled, reads) = (Rc::new(Cell::new(false)), Rc::new(Cell::new((0, 0))));
        let (stalls, seen) = (Rc::clone(&stalled), Rc::clone(&reads));
        let base = Stalling { file, stalled: stalls, reads: seen, world: world.clone() };
        let disk = open(&world, vec![Rc::new(base)], Rules::all()).await;
        write(&disk, BLOCK - 4096, 1, 8192).await;
        stalled.set(true);
        let into = IoBuf::zeroed(8192);
        let mut reading = disk.submit(Request::Read { at: ByteOffset(BLOCK - 4096), into });
        for _ in 0..5 {
            assert!(poll!(&mut reading).is_pending(), "answered while a part of it is read");
            world.delay(Duration::from_millis(100), Duration::from_millis(100)).await;
        }
        stalled.set(false);
        reading.await.unwrap_err();
        assert_eq!(reads.get(), (2, 1));
    });
}

#[test]
fn r1_a_gate_that_is_not_shut_in_time_is_open_again() {
    let (executor, world) = SimWorld::start(6);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(100));
        let file = layer(&space, 1, 16 * BLOCK, None).await;
        let stalled = Rc::new(Cell::new(false));
        let (reads, world_too) = (Rc::default(), world.clone());
        let base = Stalling { file, stalled: Rc::clone(&stalled), reads, world: world_too };
        let disk = open(&world, vec![Rc::new(base)], Rules::all()).await;
        write(&disk, 0, 1, 4096).await;
        // once a guest's write hangs, once the flush behind the gate
        for hangs_in_flush in [false, true] {
            write(&disk, BLOCK, 1, 4096).await;
            discard(&disk, ByteRange::new(BLOCK, BLOCK), Durability::Cached).await;
            stalled.set(true);
            let mut hanging = (!hangs_in_flush).then(|| disk.submit(writing(0, 2, 4096)));
            if let Some(hanging) = &mut hanging {
                assert!(poll!(hanging).is_pending());
                world.delay(Duration::from_millis(1), Duration::from_millis(1)).await;
            }
            let before = world.local().now();
            let error = disk.gate().await.unwrap_err();
            assert_eq!(error.kind, IoErrorKind::Busy, "{error}");
            assert_eq!(world.local().now() - before, GATE_LIMIT);
            stalled.set(false);
            if let Some(hanging) = hanging {
                hanging.await.unwrap();
            }
            write(&disk, 0, 3, 4096).await;
            disk.gate().await.unwrap();
            disk.ungate();
        }
    });
}

/// A volume may be disconnected while a snapshot has its gate shut: the close waits for the snapshot.
#[test]
fn a_gated_disk_closes_once_it_is_let_go_or_ended() {
    let (executor, world) = SimWorld::start(7);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(100));
        let base = layer(&space, 1, 16 * BLOCK, None).await;
        let leaf = layer(&space, 2, 16 * BLOCK, Some(1)).await;
        for let_go in [true, false] {
            let disk = open(&world, vec![Rc::clone(&base)], Rules::all()).await;
            write(&disk, 0, 1, 4096).await;
            let leaf = disk.open_leaf(Rc::clone(&leaf)).await.unwrap();
            disk.gate().await.unwrap();
            let mut closing = std::pin::pin!(disk.close());
            assert!(poll!(closing.as_mut()).is_pending());
            world.delay(GATE_LIMIT, GATE_LIMIT).await;
            assert!(poll!(closing.as_mut()).is_pending());
            if let_go {
                disk.ungate();
                closing.await.unwrap();
            } else {
                disk.abandon();
                // it was not closed cleanly, and says so; what comes too late does no harm
                assert_eq!(closing.await.unwrap_err().kind, IoErrorKind::Closed);
                assert_eq!(disk.close().await.unwrap_err().kind, IoErrorKind::Closed);
                disk.switch(leaf);
            }
        }
    });
}

/// Invariant 10: a warm read costs one I/O at any depth, a first touch at most one bitmap and
/// one page of the table a layer.
#[test]
fn reads_do_not_slow_with_the_chain() {
    let (executor, world) = SimWorld::start(4);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(400));
        let mut files = vec![layer(&space, 1, 8 * BLOCK, None).await];
        let disk = open(&world, files.clone(), Rules::all()).await;
        for block in 0..8 {
            write(&disk, block * BLOCK, 1, 65536).await;
        }
        disk.close().await.unwrap();
        for depth in 2..=33 {
            files.push(layer(&space, depth, 8 * BLOCK, Some(depth - 1)).await);
            let disk = open(&world, files.clone(), Rules::all()).await;
            let byte = u8::try_from(depth).unwrap();
            write(&disk, (u64::from(byte) % 8) * BLOCK + 4096 * (u64::from(byte) % 16), byte, 4096)
                .await;
            disk.close().await.unwrap();
        }
        let disk = open(&world, files, Rules::all()).await;
        for block in 0..8 {
            read(&disk, block * BLOCK, 4096).await;
        }
        let cold = disk.stats().file_reads;
        assert!(cold <= 8 + 2 * 32, "{cold} reads of files for 8 first touches");
        for block in 0..8 {
            for page in 0..16 {
                read(&disk, block * BLOCK + page * 4096, 4096).await;
            }
        }
        assert_eq!(disk.stats().file_reads - cold, 8 * 16, "one read of a file each");
        let extents = disk.extents(ByteRange::new(0, 8 * BLOCK)).await.unwrap();
        let data: u64 =
            extents.iter().filter(|e| e.kind == ExtentKind::Data).map(|e| e.range.len.0).sum();
        assert_eq!(data, 8 * BLOCK);
    });
}

#[test]
fn extents_name_the_layer_that_holds_each_range() {
    let (executor, world) = SimWorld::start(11);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(256));
        let mut files = Vec::new();
        // the leaf is longer than what lies below it
        for number in 1..=3 {
            let parent = (number > 1).then(|| number - 1);
            let size = if number == 3 { 8 * BLOCK } else { 6 * BLOCK };
            files.push(layer(&space, number, size, parent).await);
            let disk = open(&world, files.clone(), Rules::all()).await;
            match number {
                1 => write(&disk, 0, 1, 8192).await,
                2 => write(&disk, BLOCK + 4096, 2, 4096).await,
                _ => {
                    write(&disk, 512, 3, 512).await;
                    // zero, but the leaf's own: nothing may show through
                    clear(&disk, 8192, 4096).await;
                }
            }
            disk.close().await.unwrap();
        }
        let disk = open(&world, files, Rules::all()).await;
        let extents = disk.extents(ByteRange::new(0, 8 * BLOCK)).await.unwrap();
        let found: Vec<_> =
            extents.iter().map(|e| (e.range.start.0, e.range.len.0, e.depth)).collect();
        let want = [
            (0, 512, 3),
            (512, 512, 1),
            (1024, 8192 - 1024, 3),
            (8192, 4096, 1),
            // a dynamic base owns the whole block
            (12288, BLOCK - 12288, 3),
            (BLOCK, 4096, 0),
            (BLOCK + 4096, 4096, 2),
            (BLOCK + 8192, 7 * BLOCK - 8192, 0),
        ];
        assert_eq!(found, want);
        assert!(extents.iter().all(|e| (e.kind == ExtentKind::Hole) == (e.depth == 0)));
    });
}

#[test]
fn the_whole_disk_is_discarded_in_one_request_and_others_run_beside_it() {
    let (executor, world) = SimWorld::start(12);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(256));
        let size = 1 << 40;
        let disk = open(&world, vec![layer(&space, 1, size, None).await], Rules::all()).await;
        for block in 0..80 {
            write(&disk, 3 * block * BLOCK, 7, 4096).await;
        }
        let turns = Rc::new(Cell::new(0));
        let other = {
            let (local, turns) = (world.local().clone(), Rc::clone(&turns));
            world.local().spawn(async move {
                loop {
                    local.yield_now().await;
                    turns.set(turns.get() + 1);
                }
            })
        };
        clear(&disk, 0, size).await;
        other.abort();
        let turns = turns.get();
        assert!(turns > 1000, "{turns} turns for others while half a million blocks are looked at");
        disk.submit(Request::Flush).await.unwrap();
        assert_eq!(disk.stats().leaf_blocks, 0);
        let extents = disk.extents(ByteRange::new(0, 512 * BLOCK)).await.unwrap();
        let hole = Extent::flat(ByteRange::new(0, 512 * BLOCK), ExtentKind::Hole);
        assert_eq!(extents, [hole]);
        disk.close().await.unwrap();
        let used = space.used();
        assert!(used.0 < 32 << 20, "{used:?} of space are still taken");
    });
}

/// A layer file that counts its barriers.
struct Counted {
    file: Rc<dyn BlockFile>,
    barriers: Cell<u32>,
}

impl BlockDevice for Counted {
    fn info(&self) -> DeviceInfo {
        self.file.info()
    }
    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        if matches!(request, Request::Flush) {
            self.barriers.set(self.barriers.get() + 1);
        }
        self.file.submit(request)
    }
    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        self.file.extents(range)
    }
}

impl BlockFile for Counted {
    fn reserve(&self, range: ByteRange) -> Io<'_, Result<()>> {
        self.file.reserve(range)
    }
    fn truncate(&self, len: ByteCount) -> Io<'_, Result<()>> {
        self.file.truncate(len)
    }
    fn used(&self) -> Io<'_, Result<ByteCount>> {
        self.file.used()
    }
}

#[test]
fn a_flush_makes_no_more_barriers_than_what_was_written_needs() {
    let (executor, world) = SimWorld::start(13);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(256));
        let base = layer(&space, 1, 16 * BLOCK, None).await;
        let leaf = layer(&space, 2, 16 * BLOCK, Some(1)).await;
        let leaf = Rc::new(Counted { file: leaf, barriers: Cell::new(0) });
        let files = vec![base, Rc::clone(&leaf) as Rc<dyn BlockFile>];
        let disk = open(&world, files, Rules::all()).await;
        let barriers = async || {
            let before = leaf.barriers.get();
            disk.submit(Request::Flush).await.unwrap();
            leaf.barriers.get() - before
        };
        // what another process may have left is not known
        assert_eq!([barriers().await, barriers().await], [1, 0], "just opened");
        write(&disk, 0, 1, 4096).await;
        assert_eq!([barriers().await, barriers().await], [3, 0], "a block: data, bitmap, table");
        write(&disk, 8192, 2, 4096).await;
        assert_eq!([barriers().await, barriers().await], [2, 0], "sectors: data, bitmap");
        write(&disk, 8192, 3, 4096).await;
        assert_eq!([barriers().await, barriers().await], [1, 0], "nothing but data");
        clear(&disk, 8192, 4096).await;
        assert_eq!([barriers().await, barriers().await], [1, 0], "cleared in place");
        read(&disk, 0, 8192).await;
        assert_eq!(barriers().await, 0, "reads change nothing");
        // a write that ends while a flush runs is not covered by it
        let writing = write(&disk, 8192, 4, 4096);
        let flushing = disk.submit(Request::Flush);
        let ((), flushed) = futures_util::join!(writing, flushing);
        flushed.unwrap();
        assert_eq!([barriers().await, barriers().await], [1, 0], "the write came after");
        disk.close().await.unwrap();
    });
}
