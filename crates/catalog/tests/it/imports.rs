//! Imports and exports by the catalog alone: what a layer holds, what is refused, what fails.

use std::cell::Cell;
use std::rc::Rc;

use catalog::{Code, FlatFormat, Source, Unwatched, VolumeKind};
use datastore::{FileStore as _, ObjectName};
use io::ByteCount;
use uuid::Uuid;

use crate::world::{CancelAfter, FakeLayers, Lab, MIB, SIZE, get};

fn lab() -> Lab {
    Lab::new(7, ByteCount::mib(512))
}

fn layers() -> FakeLayers {
    FakeLayers::new(vec![
        (4 * MIB, Some("old"), vec![(4096, 1), (0, 2), (4097, 3), (7, 9)]),
        (4 * MIB, Some("newer"), vec![(7, 0), (4096, 6)]),
        (SIZE, None, vec![(0, 4), (8192, 5), (10240, 7), (8, 0)]),
    ])
}

#[test]
fn layers_become_snapshots_of_every_kind() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        for (name, kind) in
            [("thin", VolumeKind::Thin), ("lazy", VolumeKind::Lazy), ("fixed", VolumeKind::Fixed)]
        {
            let mut from = layers();
            let new = from.import(name, kind, true);
            let record = node.catalog.import(new, &mut from, &Unwatched).await.unwrap();
            assert_eq!((record.size, record.kind, record.snapshots.len()), (SIZE, kind, 2));
            let seen = node.view().await[name].clone();
            // probes: 0, 1, 7, 8, 4095, 4096, 8191, 8192, 10240
            assert_eq!(seen.content, [4, 0, 0, 0, 0, 6, 0, 5, 7], "{name}");
            assert_eq!(seen.snapshots["old"].2, [2, 0, 9, 0, 0, 1, 0], "{name}");
            let newer = &seen.snapshots["newer"];
            assert_eq!((newer.0.as_deref(), newer.2[2], newer.2[5]), (Some("old"), 0, 6), "{name}");
            let usage = node.catalog.usage(record.uuid).await.unwrap();
            assert!(kind == VolumeKind::Thin || usage.used.0 >= SIZE, "{name}: {usage:?}");
            node.assert_sound(name).await;
            // a chain as any other
            let one = node.snap_id(name, "newer");
            node.catalog.snapshot_delete(record.uuid, one, &Unwatched).await.unwrap();
            assert_eq!(node.view().await[name].content, seen.content, "{name}");
            node.assert_sound(name).await;
        }
    });
}

#[test]
fn a_size_that_is_known_at_the_end() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        for (name, kind) in
            [("thin", VolumeKind::Thin), ("lazy", VolumeKind::Lazy), ("fixed", VolumeKind::Fixed)]
        {
            let content = vec![(8192, 5), (0, 4), (10240, 7)];
            let mut from = FakeLayers::new(vec![(SIZE, None, content)]);
            let new = from.import(name, kind, false);
            let record = node.catalog.import(new, &mut from, &Unwatched).await.unwrap();
            assert_eq!(record.size, SIZE, "{name}");
            assert_eq!(node.view().await[name].content, [4, 0, 0, 0, 0, 0, 0, 5, 7], "{name}");
            node.write(name, 4096, 8).await;
            node.assert_sound(name).await;
            // its table stands behind its blocks, and moves when it outgrows its page
            node.catalog.resize(record.uuid, ByteCount::mib(100)).await.unwrap();
            node.write(name, 12300, 9).await;
            let seen = node.view().await[name].clone();
            assert_eq!(seen.content, [4, 0, 0, 0, 0, 8, 0, 5, 7, 9], "{name}");
            node.assert_sound(name).await;
        }
    });
}

#[test]
fn what_fails_or_is_cancelled_leaves_nothing() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        for after in 0..8 {
            let mut from = layers();
            from.fails_after = after;
            let new = from.import("new", VolumeKind::Thin, true);
            let error = node.catalog.import(new, &mut from, &Unwatched).await.unwrap_err();
            assert_eq!(error.message, "cannot import new: the source failed");
            let mut from = layers();
            let new = from.import("new", VolumeKind::Fixed, true);
            let cancel = CancelAfter(Cell::new(u32::try_from(after).unwrap()));
            let error = node.catalog.import(new, &mut from, &cancel).await.unwrap_err();
            assert_eq!(error.code, Code::Cancelled);
            assert!(node.view().await.is_empty());
            node.assert_sound("after").await;
        }
        // layers that cannot be
        let unnamed = FakeLayers::new(vec![(MIB, None, vec![]), (MIB, None, vec![])]);
        let shrinks = FakeLayers::new(vec![(2 * MIB, Some("a"), vec![]), (MIB, None, vec![])]);
        let beyond = FakeLayers::new(vec![(MIB, None, vec![(4096, 1)])]);
        let odd = FakeLayers::new(vec![(MIB + 1, None, vec![])]);
        for (mut from, code) in [
            (unnamed, Code::BadRequest),
            (shrinks, Code::BadSize),
            (beyond, Code::Corrupt),
            (odd, Code::BadSize),
        ] {
            let new = from.import("new", VolumeKind::Thin, true);
            let error = node.catalog.import(new, &mut from, &Unwatched).await.unwrap_err();
            assert_eq!(error.code, code, "{error}");
            node.assert_sound("refused").await;
        }
    });
}

#[test]
fn an_export_pins_what_it_reads() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("web", SIZE, VolumeKind::Thin).await;
        node.write("web", 4096, 5).await;
        let snapshot = node.snapshot("web", "s").await;
        node.write("web", 4096, 6).await;
        let source = Source { volume: node.id("web"), snapshot: Some(snapshot.uuid) };
        let mut point = node.catalog.read_point(source).await.unwrap();
        let refused = node.catalog.delete_volume(source.volume).await.unwrap_err();
        assert_eq!(refused.code, Code::Busy, "{refused}");
        assert!(refused.message.contains("export"), "{refused}");
        let to = node.store.create(&ObjectName::Layer(Uuid::from_u128(99))).await.unwrap();
        point.write(Rc::clone(&to), FlatFormat::Raw, Uuid::nil(), 0, &Unwatched).await.unwrap();
        assert_eq!(to.info().size.0, SIZE);
        assert_eq!(get(&*to, 4096 * 512, 512).await, [5; 512]);
        drop(point);
        node.catalog.delete_volume(source.volume).await.unwrap();
    });
}
