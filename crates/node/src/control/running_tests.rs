//! Volumes that are disconnected while a snapshot has their gate shut.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use catalog::{LayerRef, Running as _};
use datastore::{DirHandle, FileStore as _, Identity, ObjectName};
use disk::{LogIdentity, LogState, SharedCache};
use image::{ParentRef, SectorCount, Timestamp, create};
use io::{ByteCount, ByteOffset, Durability, IoBuf, IoErrorKind, Request, Ring};
use tempfile::TempDir;
use uuid::Uuid;

use super::Homes;
use crate::home::{Home, Log, Opening};
use crate::worker::Worker;

const VOLUME: Uuid = Uuid::from_u128(1);
const BASE: Uuid = Uuid::from_u128(2);
const LEAF: Uuid = Uuid::from_u128(3);

/// What becomes of the gate while the disk closes behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Switched,
    LetGo,
    Abandoned,
    /// The new leaf cannot be had: the old one must not be written any more.
    NotPrepared,
}

async fn make(ring: &Ring, datastore: &DirHandle, layer: Uuid, new: create::NewImage) {
    let store = datastore.on(ring);
    let file = store.create(&ObjectName::Layer(layer)).await.unwrap();
    for (at, bytes) in new.pieces {
        let (at, from) = (ByteOffset(at.bytes()), IoBuf::copied(&bytes));
        file.submit(Request::Write { at, from, durability: Durability::Cached }).await.unwrap();
    }
    file.truncate(ByteCount(new.len)).await.unwrap();
}

/// Gates an open disk, begins to close it, and says how the close ends when the gate's fate is known.
fn close_behind_a_gate(fate: Fate) -> io::Result<()> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store");
    std::fs::create_dir(&path).unwrap();
    let identity = Identity { uuid: Uuid::from_u128(9), name: "store".to_owned(), created: 1 };
    let datastore = DirHandle::create(&path, &identity).unwrap();
    let (executor, ring) = Ring::start().unwrap();
    let start = async |ring| Rc::new(Home::new(ring, SharedCache::none()));
    let (home, thread) = Worker::start("home", start).unwrap();
    let closed = executor.block_on(async {
        let (size, now) = (SectorCount(8192), Timestamp::default());
        make(&ring, &datastore, BASE, create::dynamic(BASE, size, now).unwrap()).await;
        let parent = ParentRef::sibling(BASE);
        let leaf = create::differencing(LEAF, size, now, &parent).unwrap();
        make(&ring, &datastore, LEAF, leaf).await;
        let identity = LogIdentity {
            volume: VOLUME,
            boot: Uuid::nil(),
            generation: 1,
            log: Uuid::from_u128(4),
        };
        let opening = Opening {
            id: VOLUME,
            datastore,
            segments: vec![vec![LayerRef { uuid: BASE, size: size.bytes(), fixed: false }]],
            keep_space: false,
            log: Some(Log {
                paths: vec![dir.path().join("log")],
                identity,
                state: LogState::Clean,
            }),
            name: "db".to_owned(),
            protocol: model::Protocol::Nbd,
        };
        home.call(|home| async move { home.open(opening).await }).await.unwrap().unwrap();
        if fate != Fate::NotPrepared {
            home.call(|home| async move { home.prepare(VOLUME, &[LEAF]).await })
                .await
                .unwrap()
                .unwrap();
        }

        // no control thread knows the connection any more
        let homes =
            Homes { control: Weak::new(), gated: RefCell::default(), paused: RefCell::default() };
        homes.gate_on(home.clone(), VOLUME).await.unwrap();
        let closing = home.call(|home| async move { home.close(VOLUME).await });
        let deciding = async {
            match fate {
                Fate::Switched => {
                    homes.switch(VOLUME, LEAF.into()).await.unwrap();
                    homes.ungate(VOLUME).await;
                }
                Fate::LetGo => homes.ungate(VOLUME).await,
                Fate::Abandoned => homes.abandon(VOLUME).await,
                Fate::NotPrepared => drop(homes.switch(VOLUME, LEAF.into()).await.unwrap_err()),
            }
            assert!(homes.gated.borrow().is_empty());
        };
        futures_util::future::join(closing, deciding).await.0.unwrap()
    });
    home.stop();
    thread.join().unwrap();
    closed
}

#[test]
fn a_disconnect_behind_a_shut_gate_ends_with_the_snapshot() {
    close_behind_a_gate(Fate::LetGo).unwrap();
    close_behind_a_gate(Fate::Switched).unwrap();
}

/// It is closed, and not as a clean one.
#[test]
fn a_disconnect_behind_a_shut_gate_ends_with_the_disk() {
    for fate in [Fate::Abandoned, Fate::NotPrepared] {
        let error = close_behind_a_gate(fate).unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Closed, "{fate:?}: {error}");
    }
}
