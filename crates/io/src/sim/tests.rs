//! What a simulated file promises, as properties over fixed seeds.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{SimFile, SimWorld, SplitMix64, Survivors};
use crate::buffer::IoBuf;
use crate::device::{BlockDevice, BlockFile, Clear, Durability, Effort, ExtentKind, Request};
use crate::error::{IoErrorKind, Result};
use crate::units::{ByteCount, ByteOffset, ByteRange};

const KIB: u64 = 1024;

async fn write(file: &SimFile, at: u64, bytes: &[u8], durability: Durability) -> Result<()> {
    let from = IoBuf::copied(bytes);
    file.submit(Request::Write { at: ByteOffset(at), from, durability }).await
}

async fn read(file: &SimFile, at: u64, len: usize) -> Result<Vec<u8>> {
    let into = IoBuf::zeroed(len);
    file.submit(Request::Read { at: ByteOffset(at), into: into.clone() }).await?;
    Ok(into.to_vec())
}

async fn clear(file: &SimFile, range: ByteRange, how: Clear) -> Result<()> {
    file.submit(Request::Clear { range, how, effort: Effort::Any, durability: Durability::Cached })
        .await
}

fn number_in(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// A sector that holds `number` all over.
fn sector(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(64)
}

/// Sectors whose content after a cut is allowed: any that was written since the last covering flush.
#[derive(Default)]
struct Allowed(BTreeMap<u64, Vec<u64>>);

/// Random writes of numbered sectors, flushes, FUA writes and clears; then a cut at a random event.
/// Every sector must hold a version that the rules allow, whole.
fn cut_respects_flushes(seed: u64) -> (u64, u64) {
    const SECTORS: u64 = 64;
    let (executor, world) = SimWorld::start(seed);
    let file = world.add_space(ByteCount::mib(1)).create();
    let mut rng = SplitMix64::new(seed ^ 0xABCD);
    world.halt_at(rng.between(20, 400));
    let allowed = Rc::new(std::cell::RefCell::new(Allowed::default()));
    let seen = Rc::clone(&allowed);
    let target = Rc::clone(&file);
    let ended = executor.run_until_halt(async move {
        target.truncate(ByteCount(SECTORS * 512)).await.unwrap();
        target.submit(Request::Flush).await.unwrap();
        for number in 1.. {
            let at = rng.below(SECTORS);
            match rng.below(10) {
                0 => {
                    target.submit(Request::Flush).await.unwrap();
                    // What was there before the flush is gone for good; the last version stays.
                    for versions in seen.borrow_mut().0.values_mut() {
                        versions.drain(..versions.len() - 1);
                    }
                }
                1 => {
                    seen.borrow_mut().0.entry(at).or_insert_with(|| vec![0]).push(number);
                    write(&target, at * 512, &sector(number), Durability::Durable).await.unwrap();
                    seen.borrow_mut().0.insert(at, vec![number]);
                }
                2 => {
                    seen.borrow_mut().0.entry(at).or_insert_with(|| vec![0]).push(0);
                    let range = ByteRange::new(at * 512, 512);
                    clear(&target, range, Clear::Deallocate).await.unwrap();
                }
                _ => {
                    // Allowed from submission on: what is in flight may land.
                    seen.borrow_mut().0.entry(at).or_insert_with(|| vec![0]).push(number);
                    write(&target, at * 512, &sector(number), Durability::Cached).await.unwrap();
                }
            }
        }
    });
    assert!(ended.is_none());
    let survivors = world.cut();
    drop(executor);
    let (_executor, world) = SimWorld::restart(seed, survivors);
    let file = world.spaces()[0].open(file.id(), true).unwrap();
    let size = file.info().size.0;
    let (mut old, mut new) = (0, 0);
    for (at, versions) in &allowed.borrow().0 {
        if (at + 1) * 512 > size {
            // Only a world cut before its first flush may have lost the length.
            assert_eq!(size, 0, "seed {seed}");
            continue;
        }
        let found = file.peek(ByteRange::new(at * 512, 512));
        let number = number_in(&found);
        assert_eq!(found, sector(number), "seed {seed}: sector {at} holds junk");
        assert!(
            versions.contains(&number),
            "seed {seed}: sector {at}: {number} not in {versions:?}"
        );
        if versions.len() > 1 {
            if versions.last() == Some(&number) { new += 1 } else { old += 1 }
        }
    }
    (old, new)
}

#[test]
fn a_cut_keeps_what_was_flushed_and_tears_the_rest() {
    let outcomes = (0..400).map(cut_respects_flushes);
    let (old, new) = outcomes.fold((0, 0), |(a, b), (old, new)| (a + old, b + new));
    assert!(old > 100 && new > 100, "the simulator must be hostile: {old} old, {new} new");
}

#[test]
fn a_flush_does_not_cover_writes_that_complete_after_its_submission() {
    let mut lost = 0;
    for seed in 0..64 {
        let (executor, world) = SimWorld::start(seed);
        let file = world.add_space(ByteCount::mib(1)).create();
        executor.block_on(async {
            file.truncate(ByteCount(512)).await.unwrap();
            file.submit(Request::Flush).await.unwrap();
            let bytes = sector(7);
            let (flushed, written) = futures_util::future::join(
                file.submit(Request::Flush),
                write(&file, 0, &bytes, Durability::Cached),
            )
            .await;
            flushed.and(written).unwrap();
        });
        let (_executor, after) = SimWorld::restart(seed, world.cut());
        let file = after.spaces()[0].open(file.id(), true).unwrap();
        lost += u64::from(number_in(&file.peek(ByteRange::new(0, 512))) != 7);
    }
    assert!(lost > 8, "the write was lost {lost} times of 64");
}

/// Sectors of a 16-sector write that are new after `end`, for each of 200 seeds; `halt` says at
/// which event the world stops.
fn new_sectors_after(halt: u64, end: impl Fn(&SimWorld) -> Survivors) -> Vec<usize> {
    let one = |seed| {
        let (executor, world) = SimWorld::start(seed);
        let file = world.add_space(ByteCount::mib(1)).create();
        executor.block_on(async {
            write(&file, 0, &sector(1).repeat(16), Durability::Cached).await.unwrap();
            file.submit(Request::Flush).await.unwrap();
        });
        world.halt_at(world.events() + halt);
        let write = async { write(&file, 0, &sector(2).repeat(16), Durability::Cached).await };
        let acknowledged = executor.run_until_halt(async {
            write.await.unwrap();
            world.note("acknowledged");
            world.local().sleep(std::time::Duration::from_secs(1)).await;
        });
        assert!(acknowledged.is_none());
        let survivors = end(&world);
        drop(executor);
        let (_executor, world) = SimWorld::restart(seed, survivors);
        let file = world.spaces()[0].open(file.id(), true).unwrap();
        let found = file.peek(ByteRange::new(0, 16 * 512));
        let sectors = found.chunks(512).map(|found| {
            let number = number_in(found);
            assert!(number == 1 || number == 2, "seed {seed}: {number}");
            assert_eq!(found, sector(number), "seed {seed}: a sector is torn");
            usize::from(number == 2)
        });
        sectors.sum()
    };
    (0..200).map(one).collect()
}

fn outcomes(found: &[usize]) -> (bool, bool, bool) {
    (found.contains(&0), found.contains(&16), found.iter().any(|n| (1..16).contains(n)))
}

#[test]
fn a_write_in_flight_or_unflushed_is_lost_kept_or_torn_by_a_cut() {
    let (submitted, landed, acknowledged) = (1, 2, 3);
    for halt in [submitted, landed, acknowledged] {
        assert_eq!(outcomes(&new_sectors_after(halt, SimWorld::cut)), (true, true, true), "{halt}");
    }
}

#[test]
fn after_a_kill_a_write_in_flight_may_land_and_one_that_landed_stays() {
    let (submitted, landed) = (1, 2);
    assert_eq!(outcomes(&new_sectors_after(submitted, SimWorld::kill)), (true, true, true));
    assert_eq!(outcomes(&new_sectors_after(landed, SimWorld::kill)), (false, true, false));
}

#[test]
fn lengths_and_reservations_are_volatile_until_a_flush() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..64 {
        let (executor, world) = SimWorld::start(seed);
        let file = world.add_space(ByteCount::mib(1)).create();
        executor.block_on(async {
            file.reserve(ByteRange::new(0, 8 * KIB)).await.unwrap();
            file.submit(Request::Flush).await.unwrap();
            file.reserve(ByteRange::new(8 * KIB, 8 * KIB)).await.unwrap();
        });
        let (_executor, world) = SimWorld::restart(seed, world.cut());
        let file = world.spaces()[0].open(file.id(), true).unwrap();
        match file.info().size.0 / KIB {
            8 => lost += 1,
            16 => kept += 1,
            other => panic!("seed {seed}: {other} KiB"),
        }
        assert!(world.spaces()[0].used().0 >= 8 * KIB, "seed {seed}: flushed space is taken");
    }
    assert!(lost > 8 && kept > 8, "{lost} lost, {kept} kept");
}

#[test]
fn a_killed_process_loses_nothing_that_completed() {
    for seed in 0..32 {
        let (executor, world) = SimWorld::start(seed);
        let file = world.add_space(ByteCount::mib(1)).create();
        let log = world.log("a", 16);
        executor.block_on(async {
            crate::LogMemory::write(&log, 4, b"kept");
            write(&file, 0, &sector(1), Durability::Cached).await.unwrap();
            write(&file, 512, &sector(2), Durability::Cached).await.unwrap();
        });
        let in_flight = file.submit(Request::Write {
            at: ByteOffset(0),
            from: IoBuf::copied(&sector(3)),
            durability: Durability::Cached,
        });
        drop(in_flight); // never polled, so never submitted
        let survivors = world.kill();
        drop(executor);
        let (_executor, after) = SimWorld::restart(seed, survivors);
        let file = after.spaces()[0].open(file.id(), true).unwrap();
        let content = file.peek(ByteRange::new(0, 1024));
        assert_eq!(content, [sector(1), sector(2)].concat(), "seed {seed}");
        let mut kept = [0; 4];
        crate::LogMemory::read(&after.log("a", 16), 4, &mut kept);
        assert_eq!(&kept, b"kept");
    }
}

#[test]
fn truncate_clear_and_reserve_account_for_space() {
    let (executor, world) = SimWorld::start(1);
    let space = world.add_space(ByteCount::kib(64));
    let file = space.create();
    executor.block_on(async {
        file.reserve(ByteRange::new(0, 16 * KIB)).await.unwrap();
        assert_eq!((file.info().size.0, file.used().await.unwrap().0), (16 * KIB, 16 * KIB));
        write(&file, 4 * KIB, &sector(9), Durability::Cached).await.unwrap();
        let kinds: Vec<_> = file
            .extents(ByteRange::new(0, 16 * KIB))
            .await
            .unwrap()
            .into_iter()
            .map(|e| (e.range.start.0, e.range.len.0, e.kind))
            .collect();
        assert_eq!(
            kinds,
            [
                (0, 4 * KIB, ExtentKind::Zero),
                (4 * KIB, 4 * KIB, ExtentKind::Data),
                (8 * KIB, 8 * KIB, ExtentKind::Zero)
            ]
        );
        clear(&file, ByteRange::new(0, 16 * KIB), Clear::Deallocate).await.unwrap();
        assert_eq!(file.used().await.unwrap().0, 0);
        assert_eq!(read(&file, 4 * KIB, 512).await.unwrap(), sector(0));

        file.reserve(ByteRange::new(0, 60 * KIB)).await.unwrap();
        let other = space.create();
        let full = other.reserve(ByteRange::new(0, 8 * KIB)).await.unwrap_err();
        assert_eq!(full.kind, IoErrorKind::NoSpace);
        assert_eq!((other.info().size.0, space.used().0), (0, 60 * KIB), "all or nothing");
        write(&file, 56 * KIB, &sector(1), Durability::Cached).await.unwrap();
        file.truncate(ByteCount(512)).await.unwrap();
        file.truncate(ByteCount::kib(60)).await.unwrap();
        assert_eq!(read(&file, 56 * KIB, 512).await.unwrap(), sector(0));
        assert_eq!(space.used().0, 4 * KIB);
        let outside = read(&file, 60 * KIB, 512).await.unwrap_err();
        assert_eq!(outside.kind, IoErrorKind::OutOfRange);
        let crooked = read(&file, 100, 512).await.unwrap_err();
        assert_eq!(crooked.kind, IoErrorKind::Misaligned);
    });
}

#[test]
fn faults_strike_once_where_they_were_set() {
    let (executor, world) = SimWorld::start(3);
    let space = world.add_space(ByteCount::mib(1));
    let file = space.create();
    executor.block_on(async {
        space.faults().no_space_at_reserve(2);
        file.reserve(ByteRange::new(0, 4096)).await.unwrap();
        let second = file.reserve(ByteRange::new(4096, 4096)).await.unwrap_err();
        assert_eq!(second.kind, IoErrorKind::NoSpace);
        file.reserve(ByteRange::new(4096, 4096)).await.unwrap();
        space.faults().fail_write(1);
        assert!(write(&file, 0, &sector(1), Durability::Cached).await.is_err());
        write(&file, 0, &sector(1), Durability::Cached).await.unwrap();
        space.faults().fail_flush(1);
        assert!(file.submit(Request::Flush).await.is_err());
        file.submit(Request::Flush).await.unwrap();
    });
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let course = |seed| {
        let (executor, world) = SimWorld::start(seed);
        let file = world.add_space(ByteCount::mib(1)).create();
        let events = Rc::new(std::cell::RefCell::new(Vec::new()));
        let sink = Rc::clone(&events);
        world.on_event(move |number, event| sink.borrow_mut().push((number, *event)));
        executor.block_on(async {
            let writes = (0..16).map(|n| {
                let file = Rc::clone(&file);
                async move { write(&file, n * 512, &sector(n), Durability::Cached).await }
            });
            futures_util::future::join_all(writes).await
        });
        (events.borrow().clone(), world.local().now())
    };
    assert_eq!(course(11), course(11));
    assert_ne!(course(11), course(12));
}

#[test]
#[should_panic(expected = "deadlock in the simulated world")]
fn waiting_for_nothing_is_a_deadlock() {
    let (executor, _world) = SimWorld::start(0);
    executor.block_on(std::future::pending::<()>());
}
