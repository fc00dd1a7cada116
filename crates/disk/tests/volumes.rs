//! Volumes of several segments, against a plain vector.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::rc::Rc;

use common::layer;
use disk::{Access, Disk, LogIdentity, LogState, OpenChain, Rules, SharedCache, Volume};
use image::Uuid;
use io::sim::{SimSpace, SimWorld, SplitMix64};
use io::{
    BlockDevice, BlockFile, ByteCount, ByteOffset, ByteRange, Clear, Durability, Effort,
    ExtentKind, IoBuf, IoErrorKind, Request,
};

/// Three segments: of one block, of two, and of a part of one.
const SIZES: [u64; 3] = [2 << 20, 4 << 20, (1 << 20) + 512];
const SIZE: u64 = SIZES[0] + SIZES[1] + SIZES[2];

async fn segment(
    world: &SimWorld,
    at: usize,
    files: Vec<Rc<dyn BlockFile>>,
    state: LogState,
) -> Disk {
    let identity = LogIdentity {
        volume: Uuid::nil(),
        boot: Uuid::nil(),
        generation: 1,
        log: Uuid::from_u128(9),
    };
    let memory = Rc::new(world.log(&format!("log{at}"), 1 << 20));
    let access = Access::Write { memory, identity, state };
    let rules = Rules::all();
    let open = OpenChain {
        files,
        access,
        rules,
        fixed_base: false,
        keep_space: false,
        cache: SharedCache::none(),
    };
    Disk::open(world.local().clone(), open).await.unwrap()
}

/// The base layers, numbered from 1.
async fn bases(space: &SimSpace) -> Vec<Rc<dyn BlockFile>> {
    let mut files = Vec::new();
    for (number, size) in (1..).zip(SIZES) {
        files.push(layer(space, number, size, None).await);
    }
    files
}

async fn open(world: &SimWorld, files: &[Rc<dyn BlockFile>], state: LogState) -> Volume {
    let mut disks = Vec::new();
    for (at, file) in files.iter().enumerate() {
        disks.push(segment(world, at, vec![Rc::clone(file)], state).await);
    }
    Volume::new(disks)
}

async fn read(volume: &Volume, at: u64, len: usize) -> Vec<u8> {
    let into = IoBuf::zeroed(len);
    let request = Request::Read { at: ByteOffset(at), into: into.clone() };
    volume.submit(request).await.unwrap();
    into.to_vec()
}

async fn write(volume: &Volume, at: u64, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let from = IoBuf::copied(bytes);
    volume.submit(Request::Write { at: ByteOffset(at), from, durability }).await
}

/// A range of whole sectors, often over a boundary.
fn range(rng: &mut SplitMix64) -> (u64, usize) {
    let sectors = SIZE / 512;
    let around = [SIZES[0] / 512, (SIZES[0] + SIZES[1]) / 512, rng.between(8, sectors - 8)];
    let near = around[usize::try_from(rng.between(0, 2)).unwrap()];
    let start = near - rng.between(0, 8);
    let most = if rng.chance(5) { sectors } else { 40 };
    let len = rng.between(1, most.min(sectors - start));
    (start * 512, usize::try_from(len * 512).unwrap())
}

#[test]
fn a_volume_reads_as_what_was_written_whatever_the_boundaries() {
    for seed in 0..6 {
        let (executor, world) = SimWorld::start(seed);
        executor.block_on(async {
            let space = world.add_space(ByteCount::mib(200));
            let files = bases(&space).await;
            let mut volume = open(&world, &files, LogState::Clean).await;
            assert_eq!(volume.info().size, ByteCount(SIZE));
            let mut rng = SplitMix64::new(seed);
            let mut model = vec![0_u8; usize::try_from(SIZE).unwrap()];
            let (mut top, mut number) = ([1, 2, 3], 10);
            for step in 0..300_u32 {
                let (at, len) = range(&mut rng);
                let start = usize::try_from(at).unwrap();
                match rng.between(0, 19) {
                    0..=8 => {
                        let byte = u8::try_from(rng.between(1, 255)).unwrap();
                        let durability =
                            if rng.chance(20) { Durability::Durable } else { Durability::Cached };
                        write(&volume, at, &vec![byte; len], durability).await.unwrap();
                        model[start..start + len].fill(byte);
                    }
                    9..=12 => {
                        let how = if rng.chance(50) { Clear::Deallocate } else { Clear::KeepSpace };
                        let (effort, durability) = (Effort::Any, Durability::Cached);
                        let range = ByteRange::new(at, len as u64);
                        let request = Request::Clear { range, how, effort, durability };
                        volume.submit(request).await.unwrap();
                        model[start..start + len].fill(0);
                    }
                    13 => volume.submit(Request::Flush).await.unwrap(),
                    14 => {
                        // a process dies, and its successor replays every segment's log
                        volume.abandon();
                        if number == 10 {
                            volume = open(&world, &files, LogState::Replay).await;
                        } else {
                            break;
                        }
                    }
                    15 => {
                        let mut leaves = Vec::new();
                        for (parent, size) in top.iter_mut().zip(SIZES) {
                            leaves.push(layer(&space, number, size, Some(*parent)).await);
                            (*parent, number) = (number, number + 1);
                        }
                        let leaves = volume.open_leaves(leaves).await.unwrap();
                        assert_eq!(leaves.uuids(), top.map(Uuid::from_u128));
                        volume.prepare().await.unwrap();
                        volume.gate().await.unwrap();
                        assert_eq!(volume.gate().await.unwrap_err().kind, IoErrorKind::Busy);
                        volume.switch(leaves);
                        volume.ungate();
                    }
                    _ => {
                        let found = read(&volume, at, len).await;
                        assert!(found == model[start..start + len], "seed {seed}, step {step}");
                    }
                }
            }
        });
    }
}

#[test]
fn extents_are_told_segment_by_segment() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(200));
        let files = bases(&space).await;
        let volume = open(&world, &files, LogState::Clean).await;
        write(&volume, SIZES[0], &[7; 512], Durability::Cached).await.unwrap();
        let (mut at, mut kinds) = (0, Vec::new());
        while at < SIZE {
            let extents = volume.extents(ByteRange::new(at, SIZE - at)).await.unwrap();
            for extent in extents {
                assert_eq!(extent.range.start.0, at, "no gap, no overlap");
                at += extent.range.len.0;
                kinds.push(extent.kind);
            }
        }
        assert_eq!(at, SIZE);
        assert_eq!(kinds.first(), Some(&ExtentKind::Hole), "nothing in the first segment");
        assert!(kinds.contains(&ExtentKind::Data), "something in the second");
    });
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(200));
        let files = bases(&space).await;
        let volume = open(&world, &files, LogState::Clean).await;
        for (at, len) in [(SIZE, 512), (SIZE - 512, 1024), (u64::MAX - 511, 512)] {
            let error = write(&volume, at, &vec![1; len], Durability::Cached).await.unwrap_err();
            assert_eq!(error.kind, IoErrorKind::OutOfRange, "{at}");
            let error = volume.extents(ByteRange::new(at, len as u64)).await.unwrap_err();
            assert_eq!(error.kind, IoErrorKind::OutOfRange, "{at}");
        }
        // over two boundaries and the end: no part of it may be written
        let len = usize::try_from(SIZE).unwrap();
        let error = write(&volume, 512, &vec![1; len], Durability::Cached).await.unwrap_err();
        assert_eq!(error.kind, IoErrorKind::OutOfRange);
        let odd = vec![1; usize::try_from(SIZES[0]).unwrap() + 100];
        write(&volume, 512, &odd, Durability::Cached).await.unwrap_err();
        assert!(read(&volume, 0, len).await.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_segment_whose_gate_cannot_be_shut_leaves_none_shut() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(200));
        let mut disks = Vec::new();
        for (at, file) in bases(&space).await.into_iter().enumerate() {
            disks.push(segment(&world, at, vec![file], LogState::Clean).await);
        }
        let last = disks[2].clone();
        let volume = Volume::new(disks);
        last.gate().await.unwrap();
        assert_eq!(volume.gate().await.unwrap_err().kind, IoErrorKind::Busy);
        last.ungate();
        write(&volume, 0, &[7; 512], Durability::Cached).await.unwrap();
        volume.gate().await.unwrap();
        volume.ungate();
        volume.close().await.unwrap();
    });
}
