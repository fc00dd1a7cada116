//! The simulated store against the cases of every driver, and against cuts at every event.

use std::cell::RefCell;
use std::rc::Rc;

use datastore::{
    Access, DatastoreError, Expected, FileStore as _, Identity, Kind, ObjectName, Version,
    conformance,
};
use io::sim::SimWorld;
use io::{
    BlockFile, ByteCount, ByteOffset, ByteRange, Durability, Executor, IoBuf, IoErrorKind, Request,
};
use uuid::Uuid;

use super::{SimDirectory, SimNames, SimStore};

fn identity() -> Identity {
    Identity { uuid: Uuid::from_u128(77), name: "fast1".into(), created: 5 }
}

fn start(seed: u64, capacity: ByteCount) -> (Executor, SimWorld, SimStore) {
    let (executor, world) = SimWorld::start(seed);
    let store = SimDirectory::create(&world, capacity, &identity()).open().unwrap();
    (executor, world, store)
}

/// The next world after a power cut.
fn cut(seed: u64, world: &SimWorld, directory: &SimDirectory) -> (Executor, SimStore) {
    let names = directory.cut();
    again(seed, SimWorld::restart(seed, world.cut()), names)
}

fn again(seed: u64, next: (Executor, SimWorld), names: SimNames) -> (Executor, SimStore) {
    let (executor, world) = next;
    let store = SimDirectory::restart(&world.spaces()[0], names).open();
    (executor, store.unwrap_or_else(|error| panic!("seed {seed}: {error}")))
}

async fn write(file: &Rc<dyn BlockFile>, byte: u8) {
    let from = IoBuf::copied(&[byte; 4096]);
    let request = Request::Write { at: ByteOffset(0), from, durability: Durability::Cached };
    file.submit(request).await.unwrap();
}

async fn content(store: &SimStore, name: ObjectName) -> Option<Vec<u8>> {
    store.get(&name).await.unwrap().map(|(_, content)| content)
}

#[test]
fn conforms() {
    for case in conformance::CASES {
        // Hashing 16 MiB over and over shows nothing new.
        let seeds = if case.name == "small objects are small" { 1 } else { 8 };
        for seed in 0..seeds {
            let (executor, _world, store) = start(seed, ByteCount::mib(128));
            println!("{} (seed {seed})", case.name);
            executor.block_on((case.run)(Rc::new(store)));
        }
    }
}

#[test]
fn n1_records_and_deletes_go_on_when_the_store_is_full() {
    for seed in 0..4 {
        let (executor, _world, store) = start(seed, ByteCount::mib(16));
        executor.block_on(conformance::full_store(Rc::new(store)));
    }
}

#[test]
fn one_node_at_a_time() {
    let (_executor, world) = SimWorld::start(0);
    let directory = SimDirectory::create(&world, ByteCount::mib(8), &identity());
    let first = directory.open().unwrap();
    let second = first.clone();
    drop(first);
    assert!(matches!(directory.open(), Err(DatastoreError::Held { .. })));
    drop(second);
    let _third = directory.open().unwrap();
}

/// Puts, creates and removes; `acknowledged` is what returned, `begun` what may be there as well.
struct Workload {
    acknowledged: RefCell<Vec<(ObjectName, Option<Vec<u8>>)>>,
    begun: RefCell<Option<(ObjectName, Option<Vec<u8>>)>>,
}

fn version(round: u8) -> Vec<u8> {
    vec![round; 700 * usize::from(round) + 1]
}

impl Workload {
    async fn run(&self, world: &SimWorld, store: &SimStore) {
        let [one, two] = [1, 2].map(|id| ObjectName::Record(Uuid::from_u128(id)));
        for round in 1..5 {
            for name in [one, two] {
                let content = version(round);
                *self.begun.borrow_mut() = Some((name, Some(content.clone())));
                store.put(&name, Expected::Any, content).await.unwrap();
                self.done(world);
            }
            if round % 2 == 0 {
                *self.begun.borrow_mut() = Some((one, None));
                store.remove(&one).await.unwrap();
                self.done(world);
            }
        }
    }

    fn done(&self, world: &SimWorld) {
        if !world.is_stopped() {
            self.acknowledged.borrow_mut().extend(self.begun.take());
        }
    }

    async fn check(&self, store: &SimStore, context: &str) {
        for id in [1, 2] {
            let name = ObjectName::Record(Uuid::from_u128(id));
            let acknowledged = self.acknowledged.borrow().clone();
            let last = acknowledged.into_iter().rev().find(|(of, _)| *of == name);
            let last = last.and_then(|(_, content)| content);
            let begun = self.begun.borrow().clone().filter(|(of, _)| *of == name);
            let found = content(store, name).await;
            let allowed = found == last || begun.is_some_and(|(_, content)| found == content);
            let show = |content: &Option<Vec<u8>>| content.as_ref().map(|c| (c.len(), c[0]));
            assert!(allowed, "{context}: {name} is {:?} after {:?}", show(&found), show(&last));
        }
    }
}

#[test]
fn a_cut_at_any_event_leaves_the_old_or_the_new_object() {
    let mut both = [false; 2];
    let mut points = 0;
    for number in 1.. {
        let mut finished = false;
        for seed in 0..6 {
            let (executor, world, store) = start(seed, ByteCount::mib(16));
            let work = Workload { acknowledged: RefCell::default(), begun: RefCell::default() };
            world.halt_at(number);
            finished |= executor.run_until_halt(work.run(&world, &store)).is_some();
            let directory = store.directory();
            drop(store);
            let seed = seed * 1000 + number;
            let (executor, store) = cut(seed, &world, &directory);
            executor.block_on(work.check(&store, &format!("event {number}, seed {seed}")));
            if let Some((name, new)) = work.begun.take() {
                let found = executor.block_on(content(&store, name));
                both[usize::from(found == new)] = true;
            }
            points += 1;
        }
        if finished {
            break;
        }
    }
    assert_eq!(both, [true; 2], "all of {points} cuts had the same outcome");
}

#[test]
fn created_names_are_lost_or_kept_until_synced() {
    let name = ObjectName::Layer(Uuid::from_u128(1));
    let mut seen = [false; 2];
    for seed in 0..40 {
        let (executor, world, store) = start(seed, ByteCount::mib(16));
        let file = executor.block_on(store.create(&name)).unwrap();
        drop(file);
        let (executor, store) = cut(seed, &world, &store.directory());
        seen[executor.block_on(store.list(Kind::Layer)).unwrap().len()] = true;
    }
    assert_eq!(seen, [true; 2]);

    for (seed, by_put) in (0..40).flat_map(|seed| [(seed, false), (seed, true)]) {
        let (executor, world, store) = start(seed, ByteCount::mib(16));
        executor.block_on(async {
            let file = store.create(&name).await.unwrap();
            write(&file, 9).await;
            file.submit(Request::Flush).await.unwrap();
            if by_put {
                let record = ObjectName::Record(Uuid::from_u128(1));
                store.put(&record, Expected::Absent, b"names the layer".to_vec()).await.unwrap();
            } else {
                store.sync_names().await.unwrap();
            }
        });
        let (executor, store) = cut(seed, &world, &store.directory());
        assert_eq!(executor.block_on(content(&store, name)), Some(vec![9; 4096]), "seed {seed}");
    }
}

#[test]
fn p1_requests_of_a_dead_process_hold_the_lock_until_they_ended() {
    let name = ObjectName::Layer(Uuid::from_u128(1));
    let mut refused = 0;
    for seed in 0..20 {
        let (executor, world, store) = start(seed, ByteCount::mib(16));
        let file = executor.block_on(store.create(&name)).unwrap();
        let names = store.directory().kill();
        let (executor, store) = again(seed, SimWorld::restart(seed, world.kill()), names);
        drop(file);
        executor.block_on(async {
            let world = store.directory().space().world().clone();
            while let Err(error) = store.open(&name, Access::Write).await {
                assert_eq!(error.kind(), IoErrorKind::Busy);
                refused += 1;
                world.local().sleep(std::time::Duration::from_millis(50)).await;
            }
        });
    }
    assert!(refused > 0, "no request outlived its process");
}

#[test]
fn p1_a_request_in_flight_holds_the_lock_after_its_handle_went() {
    let name = ObjectName::Layer(Uuid::from_u128(1));
    let mut refused = 0;
    for seed in 0..20 {
        let (executor, world, store) = start(seed, ByteCount::mib(16));
        executor.block_on(async {
            let file = store.create(&name).await.unwrap();
            let from = IoBuf::copied(&[1; 4096]);
            let request =
                Request::Write { at: ByteOffset(0), from, durability: Durability::Cached };
            let mut write = file.submit(request);
            futures_util::future::select(&mut write, std::future::ready(())).await;
            drop(write);
            drop(file);
            // The write takes up to 400 µs, the open up to 100.
            if let Err(error) = store.open(&name, Access::Write).await.map(drop) {
                assert_eq!(error.kind(), IoErrorKind::Busy);
                refused += 1;
            }
            world.local().sleep(std::time::Duration::from_millis(1)).await;
            store.open(&name, Access::Write).await.map(drop).unwrap();
        });
    }
    assert!(refused > 0, "no write outlived its handle");
}

#[test]
fn no_space_at_any_step_keeps_the_old_object_and_leaks_nothing() {
    let name = ObjectName::Cell(Uuid::from_u128(1));
    let old = vec![1; 9000];
    let mut outcomes = [0; 2];
    // From a store that just holds what is there to one with space for another copy.
    for spare in (0..40).map(|pages| pages * 4096) {
        let (executor, _world, store) = start(spare, ByteCount::mib(16));
        let directory = store.directory();
        executor.block_on(async {
            store.put(&name, Expected::Absent, old.clone()).await.unwrap();
            let used = directory.space().used().0;
            directory.set_capacity(ByteCount(used + spare));
            let new = vec![2; 100_000];
            let result = store.put(&name, Expected::Version(Version::of(&old)), new.clone()).await;
            outcomes[usize::from(result.is_ok())] += 1;
            match result {
                Ok(_) => assert_eq!(content(&store, name).await, Some(new)),
                Err(error) => {
                    assert_eq!(error.kind(), IoErrorKind::NoSpace);
                    assert_eq!(content(&store, name).await, Some(old.clone()));
                    assert_eq!(directory.space().used().0, used);
                }
            }
            store.remove(&name).await.unwrap();
            assert_eq!(directory.space().used(), ByteCount::ZERO);
        });
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

#[test]
fn failed_flushes_and_syncs_are_said() {
    let name = ObjectName::Record(Uuid::from_u128(1));
    for seed in 0..30 {
        let (executor, world, store) = start(seed, ByteCount::mib(16));
        executor.block_on(async {
            store.put(&name, Expected::Absent, version(1)).await.unwrap();
            let directory = store.directory();
            if seed % 2 == 0 {
                directory.fail_sync(1);
            } else {
                directory.space().faults().fail_flush(1);
            }
            let error = store.put(&name, Expected::Any, version(2)).await.unwrap_err();
            assert_eq!(error.kind(), IoErrorKind::Device);
        });
        let (executor, store) = cut(seed, &world, &store.directory());
        let found = executor.block_on(content(&store, name)).unwrap();
        assert!(found == version(1) || (seed % 2 == 0 && found == version(2)), "seed {seed}");
    }
}

#[test]
fn n1_guests_wait_while_the_head_room_is_lent() {
    // A put of a full store and a guest that wants space at the same time, in every order that the
    // seeds give: the guest never gets what the put needs.
    for seed in 0..50 {
        let (executor, _world, store) = start(seed, ByteCount::mib(8));
        let record = ObjectName::Record(Uuid::from_u128(1));
        executor.block_on(async {
            let file = store.create(&ObjectName::Layer(Uuid::from_u128(1))).await.unwrap();
            let guests = ByteRange::new(0, 7 << 20);
            file.reserve(guests).await.unwrap();
            let put = store.put(&record, Expected::Absent, vec![1; 1 << 20]);
            let more = futures_util::future::join_all(
                (0..8).map(|n| file.reserve(ByteRange::new((7 << 20) + n * 4096, 4096))),
            );
            let (put, more) = futures_util::future::join(put, more).await;
            put.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            for result in more {
                assert_eq!(result.map_err(|e| e.kind), Err(IoErrorKind::NoSpace), "seed {seed}");
            }
        });
    }
}
