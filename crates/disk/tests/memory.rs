//! What an open chain remembers: bounded by the disk's size and a shared cache, whatever the chain; and
//! what was forgotten reads as it did before.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use disk::{Access, Disk, LogIdentity, LogState, OpenChain, Rules, SharedCache};
use futures_util::future::{join, join_all};
use image::{ParentRef, SectorCount, Timestamp, Uuid, create};
use io::sim::{SimSpace, SimWorld, SplitMix64};
use io::{
    BlockDevice, BlockFile, ByteCount, ByteOffset, ByteRange, Clear, DeviceInfo, Durability,
    Effort, Extent, Io, IoBuf, IoErrorKind, Request, Result,
};

use common::layer;

const BLOCK: u64 = 2 << 20;
/// The largest disk of one chain.
const LARGEST: u64 = 2040 << 30;

async fn open(world: &SimWorld, files: &[Rc<dyn BlockFile>], cache: &SharedCache) -> Disk {
    open_after(world, files, cache, LogState::Clean).await
}

async fn open_after(
    world: &SimWorld,
    files: &[Rc<dyn BlockFile>],
    cache: &SharedCache,
    state: LogState,
) -> Disk {
    let identity = LogIdentity {
        volume: Uuid::nil(),
        boot: Uuid::nil(),
        generation: 1,
        log: Uuid::from_u128(files.len() as u128),
    };
    let memory = Rc::new(world.log(&format!("log{}", files.len()), 1 << 20));
    let open = OpenChain {
        files: files.to_vec(),
        access: Access::Write { memory, identity, state },
        rules: Rules::all(),
        fixed_base: false,
        keep_space: false,
        cache: cache.clone(),
    };
    Disk::open(world.local().clone(), open).await.unwrap()
}

async fn write(disk: &Disk, at: u64, byte: u8, len: usize) {
    let (at, from) = (ByteOffset(at), IoBuf::copied(&vec![byte; len]));
    disk.submit(Request::Write { at, from, durability: Durability::Cached }).await.unwrap();
}

async fn read(disk: &Disk, at: u64, len: usize) -> Result<Vec<u8>> {
    let into = IoBuf::zeroed(len);
    disk.submit(Request::Read { at: ByteOffset(at), into: into.clone() }).await?;
    Ok(into.to_vec())
}

/// Where the table of a layer of `size` bytes stands in its file.
fn table_at(number: u128, size: u64) -> image::LayerImage {
    let (uuid, size, now) =
        (Uuid::from_u128(number), SectorCount(size / 512), Timestamp::default());
    match number {
        1 => create::dynamic(uuid, size, now),
        _ => {
            let parent = ParentRef::sibling(Uuid::from_u128(number - 1));
            create::differencing(uuid, size, now, &parent)
        }
    }
    .unwrap()
    .image
}

/// A layer of the largest size that has every block, on the one of the number before.
async fn full_layer(space: &SimSpace, number: u128) -> Rc<dyn BlockFile> {
    let image = table_at(number, LARGEST);
    let file = layer(space, number, LARGEST, (number > 1).then(|| number - 1)).await;
    let place = |block: u64| image.first_free.0 + block * 4104;
    let blocks = LARGEST / BLOCK;
    let bat: Vec<u8> = (0..blocks)
        .flat_map(|block| u32::try_from(place(block) + 7).unwrap().to_be_bytes())
        .collect();
    for (at, piece) in (image.bat_at.bytes()..).step_by(1 << 20).zip(bat.chunks(1 << 20)) {
        let (at, from) = (ByteOffset(at), IoBuf::copied(piece));
        file.submit(Request::Write { at, from, durability: Durability::Cached }).await.unwrap();
    }
    file.truncate(ByteCount(place(blocks) * 512)).await.unwrap();
    file
}

#[test]
fn full_layers_below_cost_a_disk_no_memory_of_their_own() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(16 << 20));
        let mut files = Vec::new();
        for number in 1..=4 {
            files.push(full_layer(&space, number).await);
        }
        let leaf = 5;
        files.push(layer(&space, leaf, LARGEST, Some(leaf - 1)).await);
        let cache = SharedCache::new(1 << 20);
        let disk = open(&world, &files, &cache).await;
        // a bit for each block, a checksum for each page of a table
        let opened = disk.stats().map_bytes;
        assert!(opened < 400 << 10, "{opened} bytes for a chain that nobody read");
        for at in (0..LARGEST).step_by(1 << 30) {
            assert_eq!(read(&disk, at, 512).await.unwrap(), [0; 512]);
        }
        // the map's words, and the pages that the cache has room for
        let read = disk.stats().map_bytes;
        let bound = opened + (5 << 20) + (1 << 20) + (64 * 4096);
        assert!(read < bound, "{read} bytes after a look at every part of the disk");
        assert!(cache.used() <= 1 << 20);
        disk.close().await.unwrap();
        drop(disk);
        assert_eq!(cache.used(), 0);
    });
}

/// Its entries were checked when the chain was opened; later only their sameness can be.
#[test]
fn a_parents_table_that_changed_is_an_error_and_no_data() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(64));
        let mut files = vec![layer(&space, 1, 4 * BLOCK, None).await];
        let disk = open(&world, &files, &SharedCache::none()).await;
        for block in 0..4 {
            write(&disk, block * BLOCK, 7, 4096).await;
        }
        disk.close().await.unwrap();
        files.push(layer(&space, 2, 4 * BLOCK, Some(1)).await);
        let disk = open(&world, &files, &SharedCache::none()).await;
        assert_eq!(read(&disk, 0, 4096).await.unwrap(), [7; 4096]);
        drop(disk);
        // two blocks change places: each entry by itself is a good one
        let disk = open(&world, &files, &SharedCache::none()).await;
        let at = table_at(1, 4 * BLOCK).bat_at.bytes();
        let page = IoBuf::zeroed(4096);
        let request = Request::Read { at: ByteOffset(at), into: page.clone() };
        files[0].submit(request).await.unwrap();
        let mut bytes = page.to_vec();
        bytes[..8].rotate_left(4);
        let (at, from) = (ByteOffset(at), IoBuf::copied(&bytes));
        let request = Request::Write { at, from, durability: Durability::Cached };
        files[0].submit(request).await.unwrap();
        let error = read(&disk, 0, 4096).await.unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("its block table is not what it was"), "{error}");
    });
}

/// A disk with layers below whose blocks all mix owners: a byte at the start of each of its blocks is the
/// leaf's, the rest the base's.
async fn mixed(world: &SimWorld, space: &SimSpace, blocks: u64) -> Vec<Rc<dyn BlockFile>> {
    let size = blocks * BLOCK;
    let mut files = vec![layer(space, 1, size, None).await];
    let base = open(world, &files, &SharedCache::none()).await;
    for block in 0..blocks {
        write(&base, block * BLOCK, 0xBA, 8192).await;
    }
    base.close().await.unwrap();
    files.push(layer(space, 2, size, Some(1)).await);
    files
}

fn byte_of(block: u64) -> u8 {
    u8::try_from(block % 199 + 1).unwrap()
}

async fn check_mixed(disk: &Disk, blocks: u64) {
    for block in 0..blocks {
        let want = [[byte_of(block); 4096], [0xBA; 4096]].concat();
        assert!(read(disk, block * BLOCK, 8192).await.unwrap() == want, "block {block}");
    }
}

#[test]
fn mixed_blocks_beyond_the_bound_are_read_again() {
    let (executor, world) = SimWorld::start(3);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(4000));
        let (blocks, cache) = (600, SharedCache::new(0));
        let files = mixed(&world, &space, blocks).await;
        let disk = open(&world, &files, &cache).await;
        for block in 0..blocks {
            write(&disk, block * BLOCK, byte_of(block), 4096).await;
        }
        check_mixed(&disk, blocks).await;
        disk.submit(Request::Flush).await.unwrap();
        check_mixed(&disk, blocks).await;
        // a chunk of the map, a page each of the leaf's table and the base's, the floor
        let bytes = disk.stats().map_bytes;
        assert!(bytes < (64 * 4200) + (32 << 10), "{bytes} bytes");
        let before = disk.stats().file_reads;
        check_mixed(&disk, blocks).await;
        let reads = disk.stats().file_reads - before;
        assert!(reads > 2 * blocks + blocks / 2, "{reads} reads: nothing was forgotten");
        disk.close().await.unwrap();
        check_mixed(&open(&world, &files, &SharedCache::new(64 << 20)).await, blocks).await;
    });
}

/// Whoever can hold them all never reads one again.
#[test]
fn mixed_blocks_within_the_bound_are_read_once() {
    let (executor, world) = SimWorld::start(3);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(4000));
        let (blocks, cache) = (600, SharedCache::new(64 << 20));
        let files = mixed(&world, &space, blocks).await;
        let disk = open(&world, &files, &cache).await;
        for block in 0..blocks {
            write(&disk, block * BLOCK, byte_of(block), 4096).await;
        }
        let before = disk.stats().file_reads;
        check_mixed(&disk, blocks).await;
        assert_eq!(disk.stats().file_reads - before, 2 * blocks);
        assert!(cache.used() > 500 * 4096);
        disk.close().await.unwrap();
        drop(disk);
        assert_eq!(cache.used(), 0);
    });
}

/// A log may have changed more blocks than the next process may remember at a time.
#[test]
fn d2_a_replay_of_many_blocks_needs_little_memory() {
    let (executor, world) = SimWorld::start(5);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(4000));
        let blocks = 600;
        let files = mixed(&world, &space, blocks).await;
        let disk = open(&world, &files, &SharedCache::new(64 << 20)).await;
        for block in 0..blocks {
            write(&disk, block * BLOCK, byte_of(block), 4096).await;
        }
        assert_eq!(disk.stats().flushes, 0);
        disk.abandon();
        drop(disk);
        let none = SharedCache::none();
        let disk = open_after(&world, &files, &none, LogState::Replay).await;
        let bytes = disk.stats().map_bytes;
        assert!(bytes < 64 << 10, "{bytes} bytes");
        check_mixed(&disk, blocks).await;
        disk.close().await.unwrap();
        check_mixed(&open(&world, &files, &none).await, blocks).await;
    });
}

/// What a failed flush did not bring to the disk is nowhere else: it is not forgotten.
#[test]
fn d7_after_a_failed_flush_what_it_held_is_still_read() {
    let (executor, world) = SimWorld::start(7);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(4000));
        let blocks = 200;
        let files = mixed(&world, &space, blocks + 20).await;
        // fewer than may be changed, and more than there is room for
        let disk = open(&world, &files, &SharedCache::new(0)).await;
        for block in 0..blocks {
            write(&disk, block * BLOCK, byte_of(block), 4096).await;
        }
        space.faults().fail_flush(1);
        disk.submit(Request::Flush).await.unwrap_err();
        // more are looked at: others would be forgotten for them
        for block in blocks..blocks + 20 {
            assert_eq!(read(&disk, block * BLOCK, 4096).await.unwrap(), [0xBA; 4096]);
        }
        check_mixed(&disk, blocks).await;
        assert_eq!(disk.submit(Request::Flush).await.unwrap_err().kind, IoErrorKind::Poisoned);
    });
}

/// The next read of a file is answered with what the file says now, but only when it is let go.
struct Late {
    file: Rc<dyn BlockFile>,
    next: Cell<bool>,
    waits: Rc<Cell<bool>>,
    world: SimWorld,
}

impl BlockDevice for Late {
    fn info(&self) -> DeviceInfo {
        self.file.info()
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        let late = matches!(request, Request::Read { .. }) && self.next.replace(false);
        Box::pin(async move {
            let outcome = self.file.submit(request).await;
            self.waits.set(self.waits.get() || late);
            while late && self.waits.get() {
                self.world.delay(Duration::from_micros(50), Duration::from_micros(50)).await;
            }
            outcome
        })
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        self.file.extents(range)
    }
}

impl BlockFile for Late {
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

/// A bitmap that was read before others wrote, flushed and would have had the block forgotten is old: who
/// read it must find the block known, and not take it for what the block holds.
#[test]
fn what_a_slow_look_up_read_is_not_believed_over_later_writes() {
    let (executor, world) = SimWorld::start(9);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(400));
        let blocks = 20;
        let mut files = mixed(&world, &space, blocks).await;
        let disk = open(&world, &files, &SharedCache::none()).await;
        for block in 0..blocks {
            write(&disk, block * BLOCK, byte_of(block), 4096).await;
        }
        disk.close().await.unwrap();
        let waits = Rc::new(Cell::new(false));
        let late = Rc::new(Late {
            file: Rc::clone(&files[1]),
            next: Cell::new(false),
            waits: Rc::clone(&waits),
            world: world.clone(),
        });
        files[1] = Rc::<Late>::clone(&late);
        let disk = open(&world, &files, &SharedCache::none()).await;
        late.next.set(true);
        let slow = {
            let disk = disk.clone();
            world.local().spawn(async move { read(&disk, 0, 4096).await })
        };
        while !waits.get() {
            world.delay(Duration::ZERO, Duration::from_micros(50)).await;
        }
        // a sector that the old bitmap gives to the base
        write(&disk, 4096, 77, 4096).await;
        disk.submit(Request::Flush).await.unwrap();
        for block in 1..blocks {
            read(&disk, block * BLOCK, 4096).await.unwrap();
        }
        waits.set(false);
        assert_eq!(slow.await.unwrap(), [byte_of(0); 4096]);
        assert_eq!(read(&disk, 4096, 4096).await.unwrap(), [77; 4096]);
    });
}

const CELL: usize = 4096;
const CELLS: u64 = 12;
const BLOCKS: u64 = 6;

/// Several guests at once, each on cells of its own that share blocks with the others', over snapshots.
async fn guests(world: &SimWorld, seed: u64, cache: &SharedCache) -> u64 {
    let space = world.add_space(ByteCount::mib(1000));
    let size = BLOCKS * BLOCK;
    let files = RefCell::new(vec![layer(&space, 1, size, None).await]);
    let first = files.borrow().clone();
    let disk = open(world, &first, cache).await;
    let place = |cell: u64| (cell % BLOCKS) * BLOCK + (cell / BLOCKS) * 3 * CELL as u64;
    let model = RefCell::new(vec![0u8; usize::try_from(CELLS * BLOCKS).unwrap()]);
    let index = |cell: u64| usize::try_from(cell).unwrap();
    let count = 6;
    let guest = async |number: u64| {
        let mut dice = SplitMix64::new(seed * 100 + number);
        for _ in 0..60 {
            let cell = dice.between(0, CELLS * BLOCKS / count - 1) * count + number;
            match dice.between(0, 9) {
                0..=3 => {
                    let byte = u8::try_from(dice.between(1, 255)).unwrap();
                    write(&disk, place(cell), byte, CELL).await;
                    model.borrow_mut()[index(cell)] = byte;
                }
                4 => {
                    let range = ByteRange::new(place(cell), CELL as u64);
                    let (how, effort) = (Clear::Deallocate, Effort::Any);
                    let durability = Durability::Cached;
                    let request = Request::Clear { range, how, effort, durability };
                    disk.submit(request).await.unwrap();
                    model.borrow_mut()[index(cell)] = 0;
                }
                5 => disk.submit(Request::Flush).await.unwrap(),
                _ => {
                    let found = read(&disk, place(cell), CELL).await.unwrap();
                    let want = model.borrow()[index(cell)];
                    assert!(found == [want; CELL], "seed {seed}: cell {cell}, {want} {}", found[0]);
                }
            }
        }
    };
    let snapshots = async {
        for number in 2..6 {
            for _ in 0..40 {
                read(&disk, 0, CELL).await.unwrap();
            }
            let leaf = layer(&space, number, size, Some(number - 1)).await;
            let new = disk.open_leaf(Rc::clone(&leaf)).await.unwrap();
            disk.gate().await.unwrap();
            disk.switch(new);
            disk.ungate();
            files.borrow_mut().push(leaf);
        }
    };
    join(join_all((0..count).map(guest)), snapshots).await;
    let verify = async |disk: &Disk| {
        for cell in 0..CELLS * BLOCKS {
            let found = read(disk, place(cell), CELL).await.unwrap();
            let want = model.borrow()[index(cell)];
            assert!(found == [want; CELL], "seed {seed}: cell {cell}, {want} {}", found[0]);
        }
    };
    verify(&disk).await;
    let reads = disk.stats().file_reads;
    disk.close().await.unwrap();
    let files = files.borrow().clone();
    verify(&open(world, &files, cache).await).await;
    reads
}

#[test]
fn guests_see_what_they_wrote_whatever_is_forgotten_meanwhile() {
    let mut forgotten = 0;
    for seed in 1..=30 {
        let run = |cache: SharedCache| {
            let (executor, world) = SimWorld::start(seed);
            executor.block_on(guests(&world, seed, &cache))
        };
        let (little, much) = (run(SharedCache::none()), run(SharedCache::new(64 << 20)));
        forgotten += u32::from(little > much + 100);
    }
    assert!(forgotten > 25, "in {forgotten} runs of 30 much was read again");
}
