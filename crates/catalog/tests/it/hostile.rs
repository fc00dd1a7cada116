//! Invariant 2 and rule R4: bytes of a datastore that nobody of ours wrote.

use catalog::{
    Cell, Code, CopyTarget, Intent, LeafSpace, NewLayer, NewVolume, Record, Source, Unwatched,
    VolumeKind,
};
use datastore::{Access, Expected, FileStore as _, Kind, ObjectName};
use image::{ParentRef, SectorCount, Timestamp, create};
use io::ByteCount;
use io::sim::SplitMix64;
use uuid::Uuid;

use crate::world::{Lab, Node, SIZE, flush, put};

async fn web(node: &Node) -> catalog::VolumeRecord {
    node.create("web", SIZE, VolumeKind::Thin).await;
    node.write("web", 0, 1).await;
    node.snapshot("web", "one").await;
    node.catalog.find("web").unwrap()
}

#[test]
fn flipped_bytes_are_an_error_or_a_sound_object() {
    let lab = Lab::new(1, ByteCount::mib(64));
    let (record, cell) = lab.executor.block_on(async {
        let node = lab.open().await;
        let record = web(&node).await;
        let read = async |name| node.store.get(&name).await.unwrap().unwrap().1;
        (
            (record.uuid, read(ObjectName::Record(record.uuid)).await),
            (
                record.current.tip.layers()[0],
                read(ObjectName::Cell(record.current.tip.layers()[0])).await,
            ),
        )
    });
    let intent = Intent {
        uuid: record.0,
        title: "t".into(),
        created: 1,
        volumes: vec![record.0],
        commit: catalog::Commit::Record(record.0),
        creates: Vec::new(),
        drops: vec![cell.0],
        rewrites: vec![catalog::Rewrite {
            layer: cell.0,
            pieces: vec![catalog::Piece { at: 0, bytes: vec![1, 2, 0xff] }],
            len: 4096,
            parent: None,
            size: 512,
        }],
        cut_back: Vec::new(),
        cells: Vec::new(),
        void_sessions: Vec::new(),
        drop_cells: Vec::new(),
    };
    assert_eq!(Intent::decode(record.0, &intent.encode()).unwrap(), intent);
    assert_eq!(Record::decode(record.0, &record.1).unwrap().encode(), record.1);
    assert_eq!(Cell::decode(cell.0, &cell.1).unwrap().encode(), cell.1);
    assert!(Record::decode(cell.0, &record.1).is_err(), "another object's bytes");

    let mut rng = SplitMix64::new(5);
    let mut refused = 0;
    for (bytes, which) in [(&record.1, 0), (&cell.1, 1), (&intent.encode(), 2)] {
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= u8::try_from(rng.between(1, 255)).unwrap();
            let error = match which {
                0 => Record::decode(record.0, &flipped).err(),
                1 => Cell::decode(cell.0, &flipped).err(),
                _ => Intent::decode(record.0, &flipped).err(),
            };
            refused += u32::from(error.is_some());
            assert!(error.is_none_or(|e| matches!(e.code, Code::RecordUnreadable | Code::Corrupt)));
        }
    }
    assert!(refused > 1000, "{refused}");
    let deep =
        [b"{\"type\":\"volume\",\"format\":1,\"name\":".as_slice(), &[b'['; 100_000]].concat();
    assert!(Record::decode(record.0, &deep).is_err());
    for other in [r#"{"type":"volume","format":2}"#, r#"{"format":1}"#, "[]", "", "\0", "{}"] {
        assert!(Record::decode(record.0, other.as_bytes()).is_err(), "{other}");
    }
    // Right in all but the version.
    let newer = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.contains("\"format\": 1"), "{text}");
        text.replacen("\"format\": 1", "\"format\": 2", 1).into_bytes()
    };
    for error in [
        Record::decode(record.0, &newer(&record.1)).unwrap_err(),
        Cell::decode(cell.0, &newer(&cell.1)).unwrap_err(),
        Intent::decode(record.0, &newer(&intent.encode())).unwrap_err(),
    ] {
        assert_eq!(error.code, Code::RecordUnreadable);
        assert!(error.to_string().contains("format 2"), "{error}");
    }
}

#[test]
fn r4_nothing_is_swept_while_a_record_cannot_be_read() {
    let lab = Lab::new(1, ByteCount::mib(64));
    let bad = Uuid::from_u128(99);
    let record = lab.executor.block_on(async {
        let node = lab.open().await;
        let record = web(&node).await;
        let name = ObjectName::Record(bad);
        node.store.put(&name, Expected::Absent, b"{\"format\": 7}".to_vec()).await.unwrap();
        record
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        let (web, one) = (record.uuid, record.snapshots[0].uuid);
        for error in [
            node.catalog.delete_volume(web).await.unwrap_err(),
            node.catalog.snapshot_delete(web, one, &Unwatched).await.unwrap_err(),
            node.catalog.snapshot_revert(web, one).await.unwrap_err(),
        ] {
            assert_eq!(error.code, Code::RecordUnreadable, "{error}");
        }
        // What deletes nothing goes on.
        let new = NewVolume { name: "db".into(), size: ByteCount(SIZE), kind: VolumeKind::Thin };
        node.catalog.create_volume(new, &Unwatched).await.unwrap();
        node.catalog.snapshot_create(&[web], "two", LeafSpace::AsTheKind).await.unwrap();
        let report = node.catalog.check().await.unwrap();
        assert_eq!(report.findings[0].code, "unreadable-record");
        assert_eq!(node.store.list(Kind::Layer).await.unwrap().len(), 4);
        node.store.remove(&ObjectName::Record(bad)).await.unwrap();
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.catalog.delete_volume(record.uuid).await.unwrap();
        node.assert_sound("readable again").await;
    });
}

#[test]
fn broken_chains_are_reported_and_refused_and_nothing_else_stops() {
    let lab = Lab::new(1, ByteCount::mib(64));
    let (lost, turned) = lab.executor.block_on(async {
        let node = lab.open().await;
        let lost = web(&node).await;
        node.create("ring", SIZE, VolumeKind::Thin).await;
        node.snapshot("ring", "one").await;
        node.create("fine", SIZE, VolumeKind::Thin).await;
        let turned = node.catalog.find("ring").unwrap();
        // ring's base is replaced by a differencing disk on ring's leaf.
        let base = ObjectName::Layer(turned.snapshots[0].tip.layers()[0]);
        let parent = ParentRef::sibling(turned.current.tip.layers()[0]);
        let size = SectorCount(SIZE / 512);
        let image =
            create::differencing(turned.snapshots[0].tip.layers()[0], size, Timestamp(0), &parent)
                .unwrap();
        let file = node.store.open(&base, Access::Write).await.unwrap();
        file.truncate(ByteCount(image.len)).await.unwrap();
        for (at, bytes) in &image.pieces {
            put(&*file, at.bytes(), bytes).await;
        }
        flush(&*file).await;
        drop(file);
        node.store.remove(&ObjectName::Layer(lost.snapshots[0].tip.layers()[0])).await.unwrap();
        (lost, turned)
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        let report = node.catalog.check().await.unwrap();
        let mut codes: Vec<_> = report.findings.iter().map(|f| f.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes, ["cyclic-parents", "missing-layer", "missing-parent", "orphan-cell"]);
        for record in [&lost, &turned] {
            let error = node
                .catalog
                .snapshot_create(&[record.uuid], "two", LeafSpace::AsTheKind)
                .await
                .unwrap_err();
            assert_eq!(error.code, Code::Corrupt, "{error}");
            assert!(node.catalog.snapshot_tree(record.uuid).await.is_ok());
        }
        assert!(!node.catalog.audit().await.unwrap().is_empty());
        node.snapshot("fine", "one").await;
        // What cannot be read can still be deleted on request.
        node.catalog.delete_volume(lost.uuid).await.unwrap();
        node.catalog.delete_volume(turned.uuid).await.unwrap();
        assert_eq!(node.catalog.volumes().len(), 1);
    });
}

#[test]
fn a_layer_that_is_other_than_its_record_says_is_refused() {
    let lab = Lab::new(1, ByteCount::mib(64));
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("fix", SIZE, VolumeKind::Fixed).await;
        let layer = node.catalog.find("fix").unwrap().current.tip.layers()[0];
        // A guest writes what looks like a dynamic disk with a parent at the start of its own.
        let forged = create::dynamic(layer, SectorCount(8), Timestamp(0)).unwrap();
        let file = node.store.open(&ObjectName::Layer(layer), Access::Write).await.unwrap();
        put(&*file, 0, &forged.pieces[0].1).await;
        flush(&*file).await;
        assert!(file.info().size.0 > SIZE);
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        assert_eq!(node.catalog.find("fix").unwrap().size, SIZE);
        node.assert_sound("it is still the fixed disk").await;
    });
}

/// Changes the text of a stored object behind the catalog's back.
async fn edit(node: &Node, name: ObjectName, from: &str, to: &str) {
    let (_, bytes) = node.store.get(&name).await.unwrap().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains(from), "{text}");
    let text = text.replacen(from, to, 1);
    node.store.put(&name, Expected::Any, text.into_bytes()).await.unwrap();
}

#[test]
fn a_record_that_says_another_size_than_its_layer_is_damage_of_that_volume() {
    let lab = Lab::new(3, ByteCount::mib(256));
    let id = lab.executor.block_on(async {
        let node = lab.open().await;
        let id = node.create("web", 4 << 20, VolumeKind::Thin).await.uuid;
        node.create("fine", SIZE, VolumeKind::Thin).await;
        edit(&node, ObjectName::Record(id), "\"size\": 4194304", "\"size\": 9000448").await;
        id
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        let target = CopyTarget { name: "copy".into(), kind: None, template: false };
        let source = Source { volume: id, snapshot: None };
        let error = node.catalog.copy_full(source, target, &Unwatched).await.unwrap_err();
        assert_eq!(error.code, Code::Corrupt, "{error}");
        assert!(error.to_string().contains("9000448"), "{error}");
        let codes: Vec<_> =
            node.catalog.check().await.unwrap().findings.iter().map(|f| f.code).collect();
        assert_eq!(codes, ["damaged-layer"]);
        node.write("fine", 0, 1).await;
    });
}

#[test]
fn counters_at_their_end_are_refused() {
    let lab = Lab::new(3, ByteCount::mib(256));
    lab.executor.block_on(async {
        let node = lab.open().await;
        let web = node.create("web", SIZE, VolumeKind::Thin).await;
        let last = format!("\"revision\": {}", u64::MAX);
        edit(&node, ObjectName::Record(web.uuid), "\"revision\": 1", &last).await;
        let cell = ObjectName::Cell(web.current.tip.layers()[0]);
        let last = format!("\"generation\": {}", u64::MAX);
        let (_, bytes) = node.store.get(&cell).await.unwrap().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let at = text.find("\"generation\": ").unwrap();
        let end = at + text[at..].find(',').unwrap();
        let text = format!("{}{last}{}", &text[..at], &text[end..]);
        assert!(Cell::decode(web.current.tip.layers()[0], text.as_bytes()).is_err());
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        assert!(node.catalog.volumes().is_empty());
        assert_eq!(node.catalog.check().await.unwrap().findings[0].code, "unreadable-record");
    });
}

/// A folder restored from a backup that was not taken at one moment: an intent older than the record.
#[test]
fn r4_an_outdated_intent_removes_nothing_that_a_record_names() {
    let lab = Lab::new(3, ByteCount::mib(256));
    let web = lab.executor.block_on(async {
        let node = lab.open().await;
        let web = node.create("web", SIZE, VolumeKind::Thin).await;
        node.write("web", 0, 1).await;
        node.catalog.rename(web.uuid, "www").await.unwrap();
        let intent = Intent {
            uuid: web.operation,
            title: "create web".into(),
            created: 0,
            volumes: vec![web.uuid],
            commit: catalog::Commit::Record(web.uuid),
            creates: vec![NewLayer {
                layer: web.current.tip.layers()[0],
                parent: None,
                size: SIZE,
                fixed: false,
                owner: web.uuid,
            }],
            drops: Vec::new(),
            rewrites: Vec::new(),
            cut_back: Vec::new(),
            cells: Vec::new(),
            void_sessions: Vec::new(),
            drop_cells: Vec::new(),
        };
        let name = ObjectName::Intent(intent.uuid);
        node.store.put(&name, Expected::Absent, intent.encode()).await.unwrap();
        web
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        assert!(node.recovered[0].sentence.contains("out of date"), "{:?}", node.recovered);
        let findings = node.catalog.check().await.unwrap().findings;
        assert_eq!(findings.iter().map(|f| f.code).collect::<Vec<_>>(), ["open-intent"]);
        assert_eq!(node.view().await["www"].content[0], 1);
        let error = node.catalog.delete_volume(web.uuid).await.unwrap_err();
        assert!(error.hint.is_some_and(|hint| hint.contains("remove that file")));
        node.store.remove(&ObjectName::Intent(web.operation)).await.unwrap();
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.catalog.delete_volume(web.uuid).await.unwrap();
        node.assert_sound("the intent is gone").await;
    });
}

#[test]
fn one_layer_that_cannot_be_read_takes_no_other_volume_away() {
    let lab = Lab::new(3, ByteCount::mib(256));
    lab.executor.block_on(async {
        let node = lab.open().await;
        for name in ["a", "b", "c"] {
            node.create(name, SIZE, VolumeKind::Thin).await;
        }
    });
    lab.executor.block_on(async {
        lab.directory.space().faults().fail_read(1);
        let node = lab.open().await;
        assert_eq!(node.catalog.volumes().len(), 3);
        let findings = node.catalog.check().await.unwrap().findings;
        assert_eq!(findings.iter().map(|f| f.code).collect::<Vec<_>>(), ["damaged-layer"]);
    });
    lab.executor.block_on(async { lab.open().await.assert_sound("readable again").await });
}
