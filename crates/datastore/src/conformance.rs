//! What every driver must do, as a table of cases. Each driver's tests run all of them, each on a
//! fresh empty store:
//!
//! ```text
//!   for case in conformance::CASES { let store = ..; executor.block_on((case.run)(store)); }
//! ```
//!
//! A case panics where the store does not hold what the trait promises. Power cuts and dead
//! processes are not in here: how to bring them about differs by driver.

use std::collections::BTreeSet;
use std::rc::Rc;

use futures_util::future::join_all;
use io::{
    BlockFile, ByteCount, ByteOffset, ByteRange, Durability, Io, IoBuf, IoErrorKind, Request,
};
use uuid::Uuid;

use crate::error::{DatastoreError, Result};
use crate::name::{Kind, ObjectName};
use crate::store::{Access, Expected, FileStore, MAX_OBJECT, Version};

type Store = Rc<dyn FileStore>;

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it is about.
    pub name: &'static str,
    /// Runs it on a fresh store.
    pub run: fn(Store) -> Io<'static, ()>,
}

/// All cases for a store with plenty of space (64 MiB at least).
pub const CASES: &[Case] = &[
    Case { name: "files come and go by name", run: |s| Box::pin(come_and_go(s)) },
    Case { name: "one writer at a time", run: |s| Box::pin(one_writer(s)) },
    Case { name: "a removed file lives while open", run: |s| Box::pin(removed_while_open(s)) },
    Case { name: "put compares", run: |s| Box::pin(put_compares(s)) },
    Case { name: "what is staged is not there yet", run: |s| Box::pin(staged_is_not_there_yet(s)) },
    Case { name: "of rival puts one wins", run: |s| Box::pin(rival_puts(s)) },
    Case { name: "small objects are small", run: |s| Box::pin(limits(s)) },
    Case { name: "list keeps kinds apart", run: |s| Box::pin(lists(s)) },
    Case { name: "the identity stays", run: |s| Box::pin(identity_stays(s)) },
    Case { name: "space adds up", run: |s| Box::pin(space_adds_up(s)) },
    Case { name: "dropped futures leave whole objects", run: |s| Box::pin(dropped_put(s)) },
];

fn id(number: u128) -> Uuid {
    Uuid::from_u128(0xfeed_0000_0000_4000_8000_0000_0000_0000 | number)
}

#[track_caller]
fn refused<T>(result: Result<T>, kind: IoErrorKind) {
    match result {
        Ok(_) => panic!("done, where {kind:?} was expected"),
        Err(error) => assert_eq!(error.kind(), kind, "{error}"),
    }
}

async fn write(file: &Rc<dyn BlockFile>, at: u64, bytes: &[u8]) {
    let from = IoBuf::copied(bytes);
    let durability = Durability::Cached;
    file.submit(Request::Write { at: ByteOffset(at), from, durability }).await.expect("a write");
}

async fn read(file: &Rc<dyn BlockFile>, at: u64, len: usize) -> Vec<u8> {
    let into = IoBuf::zeroed(len);
    file.submit(Request::Read { at: ByteOffset(at), into: into.clone() }).await.expect("a read");
    into.to_vec()
}

async fn names(store: &Store, kind: Kind) -> Vec<ObjectName> {
    store.list(kind).await.expect("a list").into_iter().map(|object| object.name).collect()
}

async fn come_and_go(store: Store) {
    let name = ObjectName::Layer(id(1));
    refused(store.open(&name, Access::Read).await, IoErrorKind::NotFound);
    refused(store.remove(&name).await, IoErrorKind::NotFound);
    assert_eq!(store.get(&name).await.expect("get"), None);

    let file = store.create(&name).await.expect("create");
    assert_eq!(file.info().size, ByteCount::ZERO);
    refused(store.create(&name).await, IoErrorKind::Exists);
    write(&file, 4096, &[7; 8192]).await;
    assert_eq!(file.info().size, ByteCount(12288));
    drop(file);
    store.sync_names().await.expect("sync");
    store.sync_names().await.expect("a second sync");

    let file = store.open(&name, Access::Read).await.expect("open to read");
    assert_eq!(file.info().size, ByteCount(12288));
    assert_eq!(read(&file, 0, 4096).await, [0; 4096]);
    assert_eq!(read(&file, 4096, 8192).await, [7; 8192]);
    let from = IoBuf::copied(&[1; 4096]);
    let request = Request::Write { at: ByteOffset(0), from, durability: Durability::Cached };
    assert!(file.submit(request).await.is_err(), "a file opened to read was written");
    drop(file);

    let objects = store.list(Kind::Layer).await.expect("list");
    assert_eq!(objects.len(), 1);
    assert_eq!((objects[0].name, objects[0].len), (name, ByteCount(12288)));
    store.remove(&name).await.expect("remove");
    assert_eq!(names(&store, Kind::Layer).await, []);
    refused(store.open(&name, Access::Write).await, IoErrorKind::NotFound);
}

async fn one_writer(store: Store) {
    let name = ObjectName::Layer(id(1));
    let writer = store.create(&name).await.expect("create");
    write(&writer, 0, &[1; 4096]).await;
    refused(store.open(&name, Access::Write).await, IoErrorKind::Busy);
    let reader = store.open(&name, Access::Read).await.expect("open beside the writer");
    let second = store.open(&name, Access::Read).await.expect("open a second reader");
    assert_eq!(read(&reader, 0, 4096).await, [1; 4096]);
    write(&writer, 0, &[2; 4096]).await;
    assert_eq!(read(&second, 0, 4096).await, [2; 4096]);
    drop(writer);
    let writer = store.open(&name, Access::Write).await.expect("open beside readers");
    write(&writer, 0, &[3; 4096]).await;
    assert_eq!(read(&reader, 0, 4096).await, [3; 4096]);
}

async fn removed_while_open(store: Store) {
    let name = ObjectName::Memory(id(1));
    let old = store.create(&name).await.expect("create");
    write(&old, 0, &[1; 4096]).await;
    store.remove(&name).await.expect("remove");
    let new = store.create(&name).await.expect("create under the same name");
    write(&new, 0, &[2; 4096]).await;
    assert_eq!(read(&old, 0, 4096).await, [1; 4096]);
    drop(old);
    refused(store.open(&name, Access::Write).await, IoErrorKind::Busy);
    assert_eq!(read(&new, 0, 4096).await, [2; 4096]);
}

async fn put_compares(store: Store) {
    let name = ObjectName::Record(id(1));
    let [one, two] = [b"one".to_vec(), b"two".to_vec()];
    let stale = Expected::Version(Version::of(b"stale"));
    let put = async |expected, content: &Vec<u8>| store.put(&name, expected, content.clone()).await;
    let conflict = |result: Result<Version>| match result {
        Err(DatastoreError::Conflict { object, .. }) => assert_eq!(object, name),
        other => panic!("{other:?} instead of a conflict"),
    };

    conflict(put(stale, &one).await);
    assert_eq!(store.get(&name).await.expect("get"), None);
    let first = put(Expected::Absent, &one).await.expect("put what was absent");
    assert_eq!(first, Version::of(&one));
    assert_eq!(store.get(&name).await.expect("get"), Some((first, one.clone())));
    conflict(put(Expected::Absent, &two).await);
    conflict(put(stale, &two).await);
    assert_eq!(store.get(&name).await.expect("get"), Some((first, one.clone())));
    let second = put(Expected::Version(first), &two).await.expect("put over a known version");
    assert_ne!(first, second);
    conflict(put(Expected::Version(first), &one).await);
    assert_eq!(store.get(&name).await.expect("get"), Some((second, two)));
    put(Expected::Any, &Vec::new()).await.expect("put over anything");
    let empty = (Version::of(b""), Vec::new());
    assert_eq!(store.get(&name).await.expect("get"), Some(empty));
    store.remove(&name).await.expect("remove");
    conflict(put(Expected::Version(second), &one).await);
    put(Expected::Any, &one).await.expect("put over nothing");
}

async fn staged_is_not_there_yet(store: Store) {
    let name = ObjectName::Record(id(1));
    let first = store.put(&name, Expected::Absent, b"one".to_vec()).await.expect("put");
    let before = store.space().await.expect("space").used_by_store;
    let [lost, kept] = [b"lost".to_vec(), b"kept".to_vec()];
    drop(store.stage(&name, lost).await.expect("stage"));
    let staged = store.stage(&name, kept.clone()).await.expect("stage");
    let late = store.stage(&name, b"late".to_vec()).await.expect("stage");
    assert_eq!(store.get(&name).await.expect("get"), Some((first, b"one".to_vec())));
    assert_eq!(store.list(Kind::Record).await.expect("list").len(), 1);
    let second = store.commit(staged, Expected::Version(first)).await.expect("commit");
    assert_eq!(second, Version::of(&kept));
    let conflict = store.commit(late, Expected::Version(first)).await;
    assert!(matches!(conflict, Err(DatastoreError::Conflict { .. })), "{conflict:?}");
    assert_eq!(store.get(&name).await.expect("get"), Some((second, kept)));
    assert_eq!(store.space().await.expect("space").used_by_store, before);
}

async fn rival_puts(store: Store) {
    let name = ObjectName::Cell(id(1));
    let start = store.put(&name, Expected::Absent, b"start".to_vec()).await.expect("put");
    let rivals: Vec<Vec<u8>> = (0..8_u8).map(|rival| vec![rival; 1000]).collect();
    let puts = rivals.iter().map(|rival| {
        let expected = Expected::Version(start);
        store.put(&name, expected, rival.clone())
    });
    let results = join_all(puts).await;
    let winners: Vec<&Vec<u8>> =
        rivals.iter().zip(&results).filter(|(_, r)| r.is_ok()).map(|(rival, _)| rival).collect();
    let losers = results.iter().filter(|r| matches!(r, Err(DatastoreError::Conflict { .. })));
    assert_eq!((winners.len(), losers.count()), (1, 7));
    let (_, found) = store.get(&name).await.expect("get").expect("an object");
    assert_eq!(&found, winners[0]);
}

async fn limits(store: Store) {
    let limit = MAX_OBJECT.as_len();
    let name = ObjectName::Record(id(1));
    store.put(&name, Expected::Any, vec![5; limit]).await.expect("put of the largest object");
    let (_, found) = store.get(&name).await.expect("get").expect("an object");
    assert!(found == vec![5; limit], "the largest object came back changed");
    let too_large = store.put(&name, Expected::Any, vec![6; limit + 1]).await;
    assert!(matches!(too_large, Err(DatastoreError::TooLarge { .. })), "{too_large:?}");

    let layer = ObjectName::Layer(id(1));
    let file = store.create(&layer).await.expect("create");
    file.truncate(ByteCount(MAX_OBJECT.0 + 4096)).await.expect("truncate");
    let found = store.get(&layer).await.map(|found| found.is_some());
    assert!(matches!(found, Err(DatastoreError::TooLarge { .. })), "{found:?}");
}

async fn lists(store: Store) {
    let make = |number: u128| {
        [
            ObjectName::Record(id(number)),
            ObjectName::Intent(id(number)),
            ObjectName::Cell(id(number)),
        ]
    };
    for name in [3, 1, 2].into_iter().flat_map(make) {
        store.put(&name, Expected::Absent, name.to_string().into_bytes()).await.expect("put");
    }
    for name in [ObjectName::Layer(id(9)), ObjectName::Memory(id(8))] {
        store.create(&name).await.expect("create");
    }
    for kind in [Kind::Record, Kind::Intent, Kind::Cell] {
        let expected = [1, 2, 3].map(|number| ObjectName::new(kind, id(number)));
        assert_eq!(names(&store, kind).await, expected);
        for object in store.list(kind).await.expect("list") {
            assert_eq!(object.len, ByteCount::of(object.name.to_string().len()));
        }
    }
    assert_eq!(names(&store, Kind::Layer).await, [ObjectName::Layer(id(9))]);
    assert_eq!(names(&store, Kind::Memory).await, [ObjectName::Memory(id(8))]);
    assert_eq!(names(&store, Kind::Identity).await, [ObjectName::Identity]);
}

async fn identity_stays(store: Store) {
    let name = ObjectName::Identity;
    let before = store.get(&name).await.expect("get").expect("an identity");
    let json: serde_json::Value = serde_json::from_slice(&before.1).expect("JSON");
    assert_eq!(json["uuid"], store.identity().uuid.to_string());
    assert_eq!(json["format"], 1);
    refused(store.put(&name, Expected::Any, b"{}".to_vec()).await, IoErrorKind::Denied);
    refused(store.remove(&name).await, IoErrorKind::Denied);
    refused(store.create(&name).await, IoErrorKind::Denied);
    assert_eq!(store.get(&name).await.expect("get"), Some(before));
}

async fn space_adds_up(store: Store) {
    let before = store.space().await.expect("space");
    let free = store.free().await.expect("free");
    // others may use the file system meanwhile
    assert!(free.0.abs_diff(before.free.0) <= before.total.0 / 20, "{free:?} {before:?}");
    assert!(before.free.0 > 0 && before.free < before.total, "{before:?}");
    let name = ObjectName::Layer(id(1));
    let file = store.create(&name).await.expect("create");
    file.reserve(ByteRange::new(0, 8 << 20)).await.expect("reserve");
    assert_eq!(read(&file, 4 << 20, 4096).await, [0; 4096]);
    let used = file.used().await.expect("used");
    assert!(used.0 >= 8 << 20, "{used:?} taken by a reservation of 8 MiB");
    store.put(&ObjectName::Record(id(1)), Expected::Any, vec![1; 10_000]).await.expect("put");

    let mut sum = 0;
    for kind in Kind::DIRECTORIES {
        sum +=
            store.list(kind).await.expect("list").iter().map(|object| object.used.0).sum::<u64>();
    }
    let during = store.space().await.expect("space");
    assert_eq!(during.used_by_store, ByteCount(sum));
    assert!(during.used_by_store.0 >= before.used_by_store.0 + (8 << 20) + 10_000);

    drop(file);
    store.remove(&name).await.expect("remove");
    let after = store.space().await.expect("space");
    assert!(after.used_by_store.0 + (8 << 20) <= during.used_by_store.0, "{after:?}");
}

async fn dropped_put(store: Store) {
    let name = ObjectName::Record(id(1));
    store.put(&name, Expected::Any, vec![0; 5000]).await.expect("put");
    for round in 1..20_u8 {
        // Polled once, so begun, then dropped.
        let put = store.put(&name, Expected::Any, vec![round; 5000]);
        futures_util::future::select(put, std::future::ready(())).await;
        let (_, found) = store.get(&name).await.expect("get").expect("an object");
        assert_eq!(found.len(), 5000);
        assert_eq!(BTreeSet::from_iter(&found).len(), 1, "an object of two halves");
    }
    store.put(&name, Expected::Any, b"last".to_vec()).await.expect("put");
}

/// For a store of little space (up to 256 MiB, used by nobody else): guest data fills it, records
/// and deletes go on, and deleting makes room again. Invariant 9, rule N1.
pub fn full_store(store: Store) -> Io<'static, ()> {
    Box::pin(async move {
        for round in 0..3_u128 {
            let layer = ObjectName::Layer(id(round));
            let file = store.create(&layer).await.expect("create");
            let taken = fill(&file).await;
            assert!(taken > 0, "round {round}: no space for guest data");

            for number in 0..24 {
                let name = ObjectName::Record(id(round << 32 | number));
                let put = store.put(&name, Expected::Absent, vec![9; 20_000]).await;
                put.unwrap_or_else(|e| panic!("round {round}: record {number}: {e}"));
                let more = file.reserve(ByteRange::new(taken, 1 << 20)).await;
                assert_eq!(more.map_err(|e| e.kind), Err(IoErrorKind::NoSpace), "round {round}");
            }
            let name = ObjectName::Record(id(round << 32));
            store.put(&name, Expected::Any, vec![8; 300_000]).await.expect("a larger record");
            for number in 0..24 {
                let name = ObjectName::Record(id(round << 32 | number));
                store.remove(&name).await.expect("remove a record from a full store");
            }
            store.remove(&layer).await.expect("remove a layer from a full store");
        }
    })
}

/// Reserves in steps of 1 MiB, then 64 KiB, until the store is full; how far it came.
async fn fill(file: &Rc<dyn BlockFile>) -> u64 {
    let mut taken = 0;
    for step in [1 << 20, 64 << 10] {
        loop {
            assert!(taken <= 256 << 20, "the store has no end");
            match file.reserve(ByteRange::new(taken, step)).await {
                Ok(()) => taken += step,
                Err(error) => {
                    assert_eq!(error.kind, IoErrorKind::NoSpace, "{error}");
                    break;
                }
            }
        }
    }
    taken
}
