//! The `dir` driver on a real directory: the cases of every driver, and who is refused and why.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;

use io::{ByteCount, IoErrorKind, Ring};
use tempfile::TempDir;
use uuid::Uuid;

use super::{DirHandle, Inner, headroom, temp};
use crate::conformance;
use crate::error::{DatastoreError, Result};
use crate::name::{Kind, ObjectName};
use crate::store::{Access, Expected, FileStore, Identity};

fn identity() -> Identity {
    Identity { uuid: Uuid::from_u128(0xd1), name: "fast1".into(), created: 1_700_000_000_000 }
}

fn create(dir: &TempDir) -> DirHandle {
    DirHandle::create(dir.path(), &identity()).unwrap()
}

#[track_caller]
fn refused(result: Result<DirHandle>, kind: IoErrorKind, says: &str) {
    let error = result.map(|_| ()).expect_err(says);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(says), "{error:?} says {error}, not {says:?}");
}

/// Every path below a directory, with its content.
fn snapshot(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.insert(name.clone(), Vec::new());
            let below = snapshot(&path).into_iter();
            found.extend(below.map(|(below, content)| (format!("{name}/{below}"), content)));
        } else {
            found.insert(name, std::fs::read(path).unwrap());
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    for (name, content) in snapshot(from) {
        if from.join(&name).is_dir() {
            std::fs::create_dir(to.join(&name)).unwrap();
        } else {
            std::fs::write(to.join(&name), content).unwrap();
        }
    }
}

fn on_ring(choice: io::Choice, test: impl AsyncFnOnce(Ring)) {
    let (executor, ring) = Ring::start_with(choice).unwrap();
    executor.block_on(test(ring));
}

#[test]
fn conforms_with_either_backend() {
    for choice in [io::Choice::Best, io::Choice::Threads] {
        for case in conformance::CASES {
            println!("{} ({choice:?})", case.name);
            let dir = TempDir::new().unwrap();
            on_ring(choice, async |ring| (case.run)(Rc::new(create(&dir).on(&ring))).await);
        }
    }
}

#[test]
fn a_second_node_is_refused_by_the_holders_name() {
    let dir = TempDir::new().unwrap();
    let handle = create(&dir);
    let holder = format!("process {}", std::process::id());
    refused(DirHandle::open(dir.path()), IoErrorKind::Busy, &holder);
    refused(DirHandle::adopt(dir.path(), Uuid::from_u128(2)), IoErrorKind::Busy, &holder);
    let other = handle.clone();
    drop(handle);
    refused(DirHandle::open(dir.path()), IoErrorKind::Busy, &holder);
    drop(other);
    assert_eq!(DirHandle::open(dir.path()).unwrap().identity(), &identity());
}

#[test]
fn a_file_has_one_writer_over_all_threads() {
    let dir = TempDir::new().unwrap();
    let handle = create(&dir);
    let name = ObjectName::Layer(Uuid::from_u128(1));
    on_ring(io::Choice::Best, async |ring| {
        let _file = handle.on(&ring).create(&name).await.unwrap();
        let elsewhere = handle.clone();
        let open = std::thread::spawn(move || {
            let (executor, ring) = Ring::start().unwrap();
            let store = elsewhere.on(&ring);
            executor.block_on(async {
                store.open(&name, Access::Read).await.map(drop).unwrap();
                store.open(&name, Access::Write).await.map(drop).map_err(|error| error.kind())
            })
        });
        assert_eq!(open.join().unwrap(), Err(IoErrorKind::Busy));
    });
}

#[test]
fn a_copy_is_refused_until_it_is_adopted() {
    let [original, copied] = [(); 2].map(|()| TempDir::new().unwrap());
    drop(create(&original));
    copy(original.path(), copied.path());
    let before = snapshot(copied.path());

    let says = "is a copy of datastore fast1 (00000000-0000-0000-0000-0000000000d1)";
    refused(DirHandle::open(copied.path()), IoErrorKind::Denied, says);
    assert_eq!(snapshot(copied.path()), before, "a refused copy was changed");

    let new = Uuid::from_u128(0xd2);
    let adopted = DirHandle::adopt(copied.path(), new).unwrap();
    assert_eq!(adopted.identity(), &Identity { uuid: new, ..identity() });
    let both = DirHandle::open(original.path()).unwrap();
    assert_eq!(both.identity().uuid, identity().uuid);
    drop((adopted, both));

    assert_eq!(DirHandle::open(copied.path()).unwrap().identity().uuid, new);
    let kept = DirHandle::adopt(original.path(), Uuid::from_u128(0xd3)).unwrap();
    assert_eq!(kept.identity(), &identity(), "an original was adopted as a copy");
}

#[test]
fn a_renamed_directory_is_the_same_datastore() {
    let dir = TempDir::new().unwrap();
    let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
    std::fs::create_dir(&old).unwrap();
    drop(DirHandle::create(&old, &identity()).unwrap());
    std::fs::rename(&old, &new).unwrap();
    assert_eq!(DirHandle::open(&new).unwrap().identity(), &identity());
}

#[test]
fn damaged_and_foreign_identities_are_refused_unchanged() {
    use IoErrorKind::{Corrupt, Unsupported};
    let cases: &[(&[u8], IoErrorKind, &str)] = &[
        (
            br#"{"format": 2, "new": true}"#,
            Unsupported,
            "format version 2; this version of Shale knows up to 1",
        ),
        (br#"{"format": 0}"#, Unsupported, "format version 0"),
        (br#"{"format": "1"}"#, Corrupt, "names no format version"),
        (br#"{"format": 1}"#, Corrupt, "shale.json is damaged"),
        (b"{}", Corrupt, "names no format version"),
        (b"[1]", Corrupt, "names no format version"),
        (b"", Corrupt, "shale.json is damaged"),
        (b"\xff\xfe\0", Corrupt, "shale.json is damaged"),
        (&[b'['; 60_000], Corrupt, "shale.json is damaged"),
        (&[b' '; 70_000], Corrupt, "70000 bytes"),
    ];
    for (content, kind, says) in cases {
        let dir = TempDir::new().unwrap();
        drop(create(&dir));
        std::fs::write(dir.path().join("shale.json"), content).unwrap();
        let before = snapshot(dir.path());
        refused(DirHandle::open(dir.path()), *kind, says);
        refused(DirHandle::create(dir.path(), &identity()), *kind, says);
        assert_eq!(snapshot(dir.path()), before);
    }
}

#[test]
fn unsuitable_directories_are_refused_and_left_as_they_were() {
    type Prepare = fn(&Path);
    let cases: &[(Prepare, IoErrorKind, &str)] = &[
        (|path| std::fs::remove_dir(path).unwrap(), IoErrorKind::NotFound, "does not exist"),
        (
            |path| {
                std::fs::remove_dir(path).unwrap();
                std::fs::write(path, b"a file").unwrap();
            },
            IoErrorKind::Unsupported,
            "is not a directory",
        ),
        (
            |path| std::fs::write(path.join("holiday.jpg"), b"x").unwrap(),
            IoErrorKind::Exists,
            "holds \"holiday.jpg\"",
        ),
        (
            |path| {
                std::fs::create_dir(path.join("layer")).unwrap();
                std::fs::write(path.join("layer/x.vhd"), b"x").unwrap();
            },
            IoErrorKind::Exists,
            "holds \"layer\"",
        ),
        // Found only after other things were made.
        (
            |path| std::fs::create_dir(path.join("shale.reserve")).unwrap(),
            IoErrorKind::Device,
            "head-room",
        ),
        (
            |path| std::fs::create_dir(path.join("shale.lock")).unwrap(),
            IoErrorKind::Device,
            "cannot be written",
        ),
    ];
    for (prepare, kind, says) in cases {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("store");
        std::fs::create_dir(&path).unwrap();
        prepare(&path);
        let before = snapshot(dir.path());
        refused(DirHandle::create(&path, &identity()), *kind, says);
        assert_eq!(snapshot(dir.path()), before, "{says}: something was left behind");
    }
    refused(
        DirHandle::create(Path::new("/proc/self"), &identity()),
        IoErrorKind::Unsupported,
        "lies on proc",
    );
    let dir = TempDir::new().unwrap();
    refused(DirHandle::open(dir.path()), IoErrorKind::NotFound, "no datastore in it");
    assert_eq!(snapshot(dir.path()), BTreeMap::new());
    drop(create(&dir));
    refused(DirHandle::create(dir.path(), &identity()), IoErrorKind::Exists, "datastore fast1");
}

#[test]
fn a_creation_that_died_can_be_repeated() {
    let dir = TempDir::new().unwrap();
    drop(create(&dir));
    // All but the commit.
    std::fs::remove_file(dir.path().join("shale.json")).unwrap();
    std::fs::write(dir.path().join(format!("{}1-1", temp::PREFIX)), b"half").unwrap();
    drop(create(&dir));
    DirHandle::open(dir.path()).unwrap();
}

#[test]
fn only_own_leftovers_are_removed_at_open() {
    let dir = TempDir::new().unwrap();
    drop(create(&dir));
    let stale = ["", "record/", "layer/"].map(|at| format!("{at}{}123-4", temp::PREFIX));
    let foreign = ["note.txt", "record/.shale-tm", "layer/x.tmp", "record/.hidden"];
    for name in stale.iter().map(String::as_str).chain(foreign) {
        std::fs::write(dir.path().join(name), b"x").unwrap();
    }
    std::fs::remove_dir(dir.path().join("memory")).unwrap();
    drop(DirHandle::open(dir.path()).unwrap());
    for name in &stale {
        assert!(!dir.path().join(name).exists(), "{name} stayed");
    }
    for name in foreign {
        assert!(dir.path().join(name).exists(), "{name} was removed");
    }
    assert!(dir.path().join("memory").is_dir());
}

#[test]
fn nothing_follows_links_or_opens_what_is_no_file() {
    let dir = TempDir::new().unwrap();
    let outside = TempDir::new().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, b"secret").unwrap();
    let handle = create(&dir);
    let [link, pipe, folder] =
        [1, 2, 3].map(|id| (ObjectName::Record(Uuid::from_u128(id)), Uuid::from_u128(id)));
    std::os::unix::fs::symlink(&secret, dir.path().join(link.0.to_string())).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        dir.path().join(pipe.0.to_string()),
        rustix::fs::Mode::RWXU,
    )
    .unwrap();
    std::fs::create_dir(dir.path().join(folder.0.to_string())).unwrap();
    on_ring(io::Choice::Best, async |ring| {
        let store = handle.on(&ring);
        for (name, _) in [link, pipe, folder] {
            assert_eq!(store.get(&name).await.unwrap_err().kind(), IoErrorKind::Corrupt, "{name}");
            for access in [Access::Read, Access::Write] {
                let kind = store.open(&name, access).await.map(drop).unwrap_err().kind();
                assert_eq!(kind, IoErrorKind::Corrupt, "{name}");
            }
        }
        assert_eq!(store.list(Kind::Record).await.unwrap(), []);
        // Replacing replaces the link, not what it points to.
        store.put(&link.0, Expected::Any, b"new".to_vec()).await.unwrap();
    });
    assert_eq!(std::fs::read(&secret).unwrap(), b"secret");

    drop(handle);
    std::fs::remove_dir(dir.path().join("layer")).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("layer")).unwrap();
    refused(DirHandle::open(dir.path()), IoErrorKind::Corrupt, "\"layer\" is not a directory");
}

#[test]
fn used_and_overhead_are_what_du_says() {
    fn du(path: &Path) -> u64 {
        let own = std::fs::symlink_metadata(path).unwrap().blocks() * 512;
        let Ok(entries) = std::fs::read_dir(path) else { return own };
        own + entries.flatten().map(|entry| du(&entry.path())).sum::<u64>()
    }
    let dir = TempDir::new().unwrap();
    let handle = create(&dir);
    on_ring(io::Choice::Best, async |ring| {
        let store = handle.on(&ring);
        let file = store.create(&ObjectName::Layer(Uuid::from_u128(1))).await.unwrap();
        file.truncate(ByteCount::mib(100)).await.unwrap();
        file.reserve(io::ByteRange::new(1 << 20, 3 << 20)).await.unwrap();
        for id in 0..20 {
            let name = ObjectName::Record(Uuid::from_u128(id));
            store.put(&name, Expected::Absent, vec![1; 5000]).await.unwrap();
        }
        let space = store.space().await.unwrap();
        assert!(space.used_by_store.0 >= (3 << 20) + 20 * 5000);
        assert!(space.used_by_store.0 < 50 << 20, "a sparse file is counted by its length");
        assert_eq!(space.used_by_store.0 + space.overhead.0, du(dir.path()));
    });
}

#[test]
fn head_room_is_taken_and_kept() {
    let dir = TempDir::new().unwrap();
    drop(create(&dir));
    let path = dir.path().join(headroom::FILE);
    let taken = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let want = taken();
    assert!((4 << 20..=65 << 20).contains(&want), "{want}");
    // Restored from a backup as a hole, or lent by a process that died then.
    for len in [0, 1 << 20, want] {
        std::fs::write(&path, b"").unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        drop(DirHandle::open(dir.path()).unwrap());
        assert_eq!(taken(), want);
    }
}

#[test]
fn n1_what_meets_a_full_store_gets_head_room_while_guests_wait() {
    let no_space = |inner: &Inner, until: u64| {
        let full = || io::IoError::new(IoErrorKind::NoSpace, "as full as the test wants it");
        if inner.head_room.missing() < until { Err(full().into()) } else { Ok(()) }
    };
    for choice in [io::Choice::Best, io::Choice::Threads] {
        let dir = TempDir::new().unwrap();
        let handle = create(&dir);
        on_ring(choice, async |ring| {
            let store = handle.on(&ring);
            let file = store.create(&ObjectName::Layer(Uuid::from_u128(1))).await.unwrap();
            let inner = &handle.0;
            let guests = (0..64).map(|n| {
                let file = Rc::clone(&file);
                let range = io::ByteRange::new(n << 16, 1 << 16);
                ring.local().spawn(async move { file.reserve(range).await.unwrap() })
            });
            let guests: Vec<_> = guests.collect();
            let steps = (1..4).map(|slices| {
                let until = slices * headroom::SLICE;
                store.with_head_room(move |inner| no_space(inner, until))
            });
            let results = futures_util::future::join_all(steps).await;
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            futures_util::future::join_all(guests).await;
            assert_eq!(inner.head_room.missing(), 0, "head-room was not put back");

            // More than there is: said, and put back.
            let never = store.with_head_room(move |inner| no_space(inner, u64::MAX)).await;
            assert_eq!(never.unwrap_err().kind(), IoErrorKind::NoSpace);
            assert_eq!(inner.head_room.missing(), 0, "head-room was not put back");
        });
    }
}

#[test]
fn errors_convert_for_the_layers_above() {
    let error = DatastoreError::Conflict { object: ObjectName::Identity, found: "exists already" };
    let error = io::IoError::from(error);
    assert_eq!(error.kind, IoErrorKind::Busy);
    assert!(error.to_string().contains("shale.json exists already"), "{error}");
}
