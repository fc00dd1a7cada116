//! Each operation once: what it does, what it refuses, and in which words.

use std::rc::Rc;

use catalog::{
    Code, ConnectRequest, CopyTarget, Deploy, LeafSpace, LogPlan, NewVolume, Severity, Source,
    Unwatched, VolumeKind,
};
use datastore::{Access, FileStore as _, Kind, ObjectName};
use io::ByteCount;
use uuid::Uuid;

use crate::world::{CancelAfter, FakeDisks, Lab, MIB, Node, SIZE};

fn lab() -> Lab {
    Lab::new(7, ByteCount::mib(512))
}

fn writer(volume: Uuid) -> ConnectRequest {
    ConnectRequest {
        volume,
        snapshot: None,
        read_only: false,
        holder: "guest".into(),
        log_found: None,
    }
}

fn source(node: &Node, volume: &str, snapshot: Option<&str>) -> Source {
    Source { volume: node.id(volume), snapshot: snapshot.map(|s| node.snap_id(volume, s)) }
}

#[test]
fn volumes_of_every_kind_grow_and_go() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        for (name, kind) in
            [("thin", VolumeKind::Thin), ("lazy", VolumeKind::Lazy), ("fixed", VolumeKind::Fixed)]
        {
            node.create(name, SIZE, kind).await;
            node.write(name, 4096, 5).await;
            node.write(name, 10240, 6).await;
            let grown =
                node.catalog.resize(node.id(name), ByteCount(SIZE + 2 * MIB)).await.unwrap();
            assert_eq!(grown.size, SIZE + 2 * MIB);
            // Enough blocks that the BAT outgrows its page; fixed stays small.
            if kind == VolumeKind::Thin {
                node.catalog.resize(node.id(name), ByteCount::mib(3 << 10)).await.unwrap();
            }
            node.write(name, 12300, 7).await;
            let seen = node.view().await[name].clone();
            assert_eq!(seen.content, [0, 0, 0, 0, 0, 5, 0, 0, 6, 7], "{name}");
            let usage = node.catalog.usage(node.id(name)).await.unwrap();
            if kind != VolumeKind::Thin {
                assert!(usage.used.0 >= SIZE, "{name} takes its space: {usage:?}");
            }
            node.assert_sound(name).await;
        }
        let error = node.catalog.resize(node.id("thin"), ByteCount::mib(1)).await.unwrap_err();
        assert_eq!(error.code, Code::BadSize);
        assert_eq!(error.message, "cannot shrink thin from 3072 MiB to 1 MiB");
        node.catalog.rename(node.id("thin"), "slim").await.unwrap();
        for name in ["slim", "lazy", "fixed"] {
            node.catalog.delete_volume(node.id(name)).await.unwrap();
        }
        for kind in Kind::DIRECTORIES {
            assert_eq!(node.store.list(kind).await.unwrap(), [], "nothing is left behind");
        }
    });
}

/// What is kept of the volumes' space is what their files take, after each operation.
#[test]
fn the_accounts_are_those_of_the_files() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let right = async |when: &str| {
            assert_eq!(
                node.catalog.audit_accounts().await.unwrap(),
                Vec::<String>::new(),
                "{when}"
            );
        };
        right("empty").await;
        for (name, kind) in
            [("thin", VolumeKind::Thin), ("lazy", VolumeKind::Lazy), ("fixed", VolumeKind::Fixed)]
        {
            node.create(name, SIZE, kind).await;
            right(name).await;
            // what a guest writes between connect and disconnect
            let plan = node.catalog.connect(writer(node.id(name))).await.unwrap();
            right("connected").await;
            node.write(name, 4096, 5).await;
            right("written").await;
            node.catalog.disconnect(plan.connection, true).await.unwrap();
            right("disconnected").await;
            node.snapshot(name, "s").await;
            right("snapshot").await;
            node.catalog.resize(node.id(name), ByteCount(SIZE + 2 * MIB)).await.unwrap();
            right("resize").await;
        }
        let snapshot = node.snap_id("thin", "s");
        let source = Source { volume: node.id("thin"), snapshot: Some(snapshot) };
        node.catalog.clone_linked(source, vec!["one".into(), "two".into()]).await.unwrap();
        right("clones").await;
        node.catalog.delete_volume(node.id("one")).await.unwrap();
        right("a clone deleted").await;
        node.catalog.snapshot_revert(node.id("lazy"), node.snap_id("lazy", "s")).await.unwrap();
        right("revert").await;
        let gone = node.snap_id("lazy", "s");
        node.catalog.snapshot_delete(node.id("lazy"), gone, &Unwatched).await.unwrap();
        right("a snapshot deleted").await;
        let lazy = node.id("lazy");
        node.catalog.convert(lazy, VolumeKind::Thin, false, &Unwatched).await.unwrap();
        right("converted").await;
        // what nobody told of is found in time
        node.write("thin", 0, 6).await;
        assert_ne!(node.catalog.audit_accounts().await.unwrap(), Vec::<String>::new());
        lab.pass(61_000);
        right("a minute later").await;
        drop(node);
        let again = lab.open().await;
        assert_eq!(again.catalog.audit_accounts().await.unwrap(), Vec::<String>::new(), "reopened");
    });
}

#[test]
fn names_and_sizes_are_checked() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("web", SIZE, VolumeKind::Thin).await;
        let long = "a".repeat(64);
        for (name, size, code) in [
            ("web", SIZE, Code::NameTaken),
            ("", SIZE, Code::BadName),
            (".web", SIZE, Code::BadName),
            ("we b", SIZE, Code::BadName),
            (&long, SIZE, Code::BadName),
            ("db", 0, Code::BadSize),
            ("db", 513, Code::BadSize),
            ("db", (64 << 40) + 512, Code::BadSize),
        ] {
            let new =
                NewVolume { name: name.into(), size: ByteCount(size), kind: VolumeKind::Thin };
            let error = node.catalog.create_volume(new, &Unwatched).await.unwrap_err();
            assert_eq!(error.code, code, "{name} {size}: {error}");
        }
        assert_eq!(node.catalog.find("nobody").unwrap_err().code, Code::NotFound);
        let new =
            NewVolume { name: "big".into(), size: ByteCount::mib(600), kind: VolumeKind::Fixed };
        let error = node.catalog.create_volume(new, &Unwatched).await.unwrap_err();
        assert_eq!(error.code, Code::NoSpace);
        node.assert_sound("after refusals").await;
    });
}

#[test]
fn snapshots_freeze_revert_branch_and_merge() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("web", SIZE, VolumeKind::Thin).await;
        node.write("web", 0, 1).await;
        node.snapshot("web", "one").await;
        node.write("web", 0, 2).await;
        node.write("web", 4096, 2).await;
        node.snapshot("web", "two").await;
        node.write("web", 8192, 3).await;
        let seen = node.view().await["web"].clone();
        assert_eq!(seen.content, [2, 0, 0, 0, 0, 2, 0, 3, 0]);
        assert_eq!(seen.snapshots["one"].2, [1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(seen.snapshots["two"].2, [2, 0, 0, 0, 0, 2, 0, 0, 0]);

        // A middle one: its layer takes over the next one's content.
        let id = node.snap_id("web", "one");
        let settled = node.catalog.snapshot_delete(node.id("web"), id, &Unwatched).await.unwrap();
        assert_eq!((settled.moved.0, settled.dropped.len(), settled.waiting.len()), (1024, 1, 0));
        assert_eq!(node.view().await["web"].content, [2, 0, 0, 0, 0, 2, 0, 3, 0]);
        node.assert_sound("after a merge").await;

        // Back to two, and a branch: two has then one layer on it again.
        let two = node.snap_id("web", "two");
        node.catalog.snapshot_revert(node.id("web"), two).await.unwrap();
        assert_eq!(node.view().await["web"].content, [2, 0, 0, 0, 0, 2, 0, 0, 0]);
        node.write("web", 1, 4).await;
        node.snapshot("web", "left").await;
        node.catalog.snapshot_revert(node.id("web"), two).await.unwrap();
        node.write("web", 1, 5).await;
        let tree = node.catalog.snapshot_tree(node.id("web")).await.unwrap();
        let shape: Vec<_> = tree
            .iter()
            .map(|n| (n.snapshot.name.as_str(), n.depth, n.children.len(), n.is_current_parent))
            .collect();
        assert_eq!(shape, [("two", 0, 1, true), ("left", 1, 0, false)]);

        // Deleted while two paths lead through it: gone from sight, merged once one of them is gone.
        let settled = node.catalog.snapshot_delete(node.id("web"), two, &Unwatched).await.unwrap();
        assert_eq!(settled.waiting.len(), 1);
        node.assert_sound("with a ghost").await;
        let left = node.snap_id("web", "left");
        let settled = node.catalog.snapshot_delete(node.id("web"), left, &Unwatched).await.unwrap();
        assert_eq!((settled.dropped.len(), settled.waiting.len()), (2, 0));
        let seen = node.view().await["web"].clone();
        assert_eq!(seen.content, [2, 5, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(node.catalog.volume(node.id("web")).unwrap().layers.len(), 1);
        node.assert_sound("at the end").await;
    });
}

#[test]
fn l5_a_longer_child_merges_into_a_lengthened_parent() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        for (name, kind) in [("thin", VolumeKind::Thin), ("fixed", VolumeKind::Fixed)] {
            node.create(name, SIZE, kind).await;
            node.write(name, 0, 1).await;
            node.snapshot(name, "small").await;
            node.catalog.resize(node.id(name), ByteCount(SIZE + 2 * MIB)).await.unwrap();
            node.write(name, 12300, 9).await;
            let small = node.snap_id(name, "small");
            node.catalog.snapshot_delete(node.id(name), small, &Unwatched).await.unwrap();
            let seen = node.view().await[name].clone();
            assert_eq!(seen.content, [1, 0, 0, 0, 0, 0, 0, 0, 0, 9], "{name}");
            assert_eq!(node.catalog.volume(node.id(name)).unwrap().layers.len(), 1);
            node.assert_sound(name).await;
        }
    });
}

#[test]
fn l3_a_merge_pauses_where_it_is_and_goes_on() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let size = 70 * MIB;
        node.create("web", size, VolumeKind::Thin).await;
        node.snapshot("web", "base").await;
        for block in 0..30u8 {
            node.write("web", u64::from(block) * 4096, block + 1).await;
        }
        let before = node.view().await["web"].content.clone();
        let base = node.snap_id("web", "base");
        let cancel = CancelAfter(0.into());
        let settled = node.catalog.snapshot_delete(node.id("web"), base, &cancel).await.unwrap();
        assert_eq!((settled.moved.0, settled.waiting.len()), (16 * 512, 1));
        assert_eq!(node.view().await["web"].content, before);
        assert_eq!(node.catalog.pending_merges().len(), 1);
        node.assert_sound("paused").await;
        let settled = node.catalog.settle(node.id("web"), &Unwatched).await.unwrap();
        assert_eq!((settled.moved.0, settled.waiting.len()), (14 * 512, 0));
        assert_eq!(node.view().await["web"].content, before);
        node.assert_sound("done").await;
    });
}

#[test]
fn clones_templates_and_copies() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("gold", SIZE, VolumeKind::Lazy).await;
        node.write("gold", 0, 1).await;
        let error = node
            .catalog
            .clone_linked(source(&node, "gold", None), vec!["x".into()])
            .await
            .unwrap_err();
        assert_eq!(error.code, Code::BadRequest);
        let gold = node
            .catalog
            .template_create(source(&node, "gold", None), "golden", &Unwatched)
            .await
            .unwrap();
        assert!(gold.template);
        let error = node.catalog.connect(writer(gold.uuid)).await.unwrap_err();
        assert_eq!(error.code, Code::IsTemplate);
        let names = ["a", "b", "c"].map(String::from).to_vec();
        let made = node
            .catalog
            .template_deploy(gold.uuid, names, Deploy::Linked, &Unwatched)
            .await
            .unwrap();
        assert_eq!(made.iter().map(|v| v.kind).collect::<Vec<_>>(), [VolumeKind::Thin; 3]);
        node.write("a", 0, 2).await;
        let error = node.catalog.delete_volume(gold.uuid).await.unwrap_err();
        assert_eq!(error.message, "cannot delete golden: a, b, c are linked to it");
        assert_eq!(error.code, Code::HasDependents);
        let full = node
            .catalog
            .template_deploy(
                gold.uuid,
                vec!["full".into()],
                Deploy::Full(Some(VolumeKind::Fixed)),
                &Unwatched,
            )
            .await
            .unwrap();
        assert_eq!(full[0].fixed_layers, full[0].current.tip.layers());
        node.snapshot("a", "s").await;
        let copy = CopyTarget { name: "a2".into(), kind: None, template: false };
        node.catalog.copy_full(source(&node, "a", Some("s")), copy, &Unwatched).await.unwrap();
        let view = node.view().await;
        let first = |name: &str| view[name].content[0];
        assert_eq!(["golden", "a", "b", "full", "a2"].map(first), [1, 2, 1, 1, 2]);
        node.assert_sound("deployed").await;

        // A clone of a clone's snapshot keeps the snapshot's layer when the snapshot goes.
        node.catalog.clone_linked(source(&node, "a", Some("s")), vec!["d".into()]).await.unwrap();
        let s = node.snap_id("a", "s");
        let settled = node.catalog.snapshot_delete(node.id("a"), s, &Unwatched).await.unwrap();
        assert_eq!(settled.waiting.len(), 1);
        node.assert_sound("a ghost under a clone").await;
        node.catalog.delete_volume(node.id("d")).await.unwrap();
        node.settle_all().await;
        assert_eq!(node.catalog.volume(node.id("a")).unwrap().layers.len(), 1);
        assert_eq!(node.view().await["a"].content[0], 2);
        for name in ["a", "b", "c", "golden"] {
            node.catalog.delete_volume(node.id(name)).await.unwrap();
        }
        node.assert_sound("at the end").await;
    });
}

/// A clone that was made a volume of its own leaves behind the layers that its own clones stand on; what
/// they stood on has those clones then.
#[test]
fn a_clone_in_the_middle_that_left_is_none_of_those_that_stand_below() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("gold", SIZE, VolumeKind::Thin).await;
        node.write("gold", 0, 1).await;
        node.snapshot("gold", "s").await;
        let clone = |of: Source, name: &str| node.catalog.clone_linked(of, vec![name.into()]);
        drop(clone(source(&node, "gold", Some("s")), "middle").await.unwrap());
        node.write("middle", 4096, 2).await;
        node.snapshot("middle", "t").await;
        drop(clone(source(&node, "middle", Some("t")), "top").await.unwrap());
        node.write("top", 10240, 3).await;
        let dependents = |name: &str| {
            let all = node.catalog.dependents(node.id(name));
            all.into_iter().map(|named| named.name).collect::<Vec<_>>()
        };
        assert_eq!([dependents("gold"), dependents("middle")], [["middle"], ["top"]]);
        // as a snapshot that is gone, its layer still carries what is above
        let t = node.snap_id("middle", "t");
        node.catalog.snapshot_delete(node.id("middle"), t, &Unwatched).await.unwrap();
        assert_eq!([dependents("gold"), dependents("middle")], [["middle"], ["top"]]);
        let middle = node.id("middle");
        node.catalog.convert(middle, VolumeKind::Fixed, false, &Unwatched).await.unwrap();
        assert_eq!([dependents("gold"), dependents("middle")], [["top"], ["top"]]);
        let snapshots = node.catalog.snapshot_tree(node.id("gold")).await.unwrap();
        assert_eq!(snapshots[0].clones, 1);
        assert_eq!(node.catalog.origins(node.id("top")).len(), 2);
        let error = node.catalog.delete_volume(node.id("gold")).await.unwrap_err();
        assert_eq!(error.message, "cannot delete gold: top is linked to it");
        node.assert_sound("left").await;
        let content = async |name: &str| {
            let content = node.view().await[name].content.clone();
            [content[0], content[5], content[8]]
        };
        assert_eq!(content("top").await, [1, 2, 3]);
        node.catalog.delete_volume(node.id("top")).await.unwrap();
        assert_eq!(node.catalog.volume(node.id("middle")).unwrap().layers.len(), 1);
        assert_eq!([dependents("gold"), dependents("middle")], [[""; 0]; 2]);
        node.catalog.delete_volume(node.id("gold")).await.unwrap();
        assert_eq!(content("middle").await, [1, 2, 0]);
        node.assert_sound("at the end").await;
    });
}

#[test]
fn full_copies_keep_holes_and_are_cancelled_whole() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("web", 100 * MIB, VolumeKind::Thin).await;
        node.write("web", 4096, 3).await;
        node.write("web", 8192, 3).await;
        let target = |name: &str| CopyTarget { name: name.into(), kind: None, template: false };
        let from = source(&node, "web", None);
        let cancel = CancelAfter(1.into());
        let error = node.catalog.copy_full(from, target("no"), &cancel).await.unwrap_err();
        assert_eq!(error.code, Code::Cancelled);
        node.assert_sound("cancelled").await;
        let copy = node.catalog.copy_full(from, target("copy"), &Unwatched).await.unwrap();
        let used = node.catalog.usage(copy.uuid).await.unwrap().used;
        assert!(used.0 < MIB, "the holes of the source stay holes: {used:?}");
        assert_eq!(node.view().await["copy"].content, node.view().await["web"].content);
        node.assert_sound("copied").await;
    });
}

#[test]
fn several_volumes_are_snapshot_at_one_moment() {
    let lab = lab();
    lab.executor.block_on(async {
        let disks = Rc::new(FakeDisks::default());
        let node = lab.open_with(Rc::clone(&disks)).await;
        let one = node.create("one", SIZE, VolumeKind::Thin).await.uuid;
        let two = node.create("two", SIZE, VolumeKind::Thin).await.uuid;
        node.catalog.connect(writer(one)).await.unwrap();
        disks.running.borrow_mut().insert(one);
        let set =
            node.catalog.snapshot_create(&[two, one], "both", LeafSpace::AsTheKind).await.unwrap();
        assert_eq!(set.members.iter().map(|(v, _)| *v).collect::<Vec<_>>(), [two, one]);
        assert!(set.members.iter().all(|(_, s)| s.set == Some(set.uuid)));
        assert_eq!(*disks.calls.borrow(), ["prepare", "gate", "switch", "ungate"]);
        node.assert_sound("a set").await;

        // A gate that fails leaves everything as it was, and the guest running.
        disks.calls.borrow_mut().clear();
        disks.fails.set(Some("gate"));
        let error = node
            .catalog
            .snapshot_create(&[one, two], "none", LeafSpace::AsTheKind)
            .await
            .unwrap_err();
        assert_eq!(error.message, "cannot snapshot none of 2 volumes: gate failed");
        assert_eq!(*disks.calls.borrow(), ["prepare", "gate", "ungate"]);
        assert!(node.catalog.volumes().iter().all(|v| v.snapshots.len() == 1));
        node.assert_sound("no set").await;

        // After the commit it only goes forward: the disk that could not switch stays gated.
        disks.calls.borrow_mut().clear();
        disks.fails.set(Some("switch"));
        let error =
            node.catalog.snapshot_create(&[one], "made", LeafSpace::AsTheKind).await.unwrap_err();
        assert!(error.message.starts_with("the snapshot is made, but one cannot go on"), "{error}");
        assert_eq!(*disks.calls.borrow(), ["prepare", "gate", "switch"]);
        assert_eq!(node.catalog.volume(one).unwrap().snapshots.len(), 2);
        node.assert_sound("a set after all").await;
    });
}

#[test]
fn the_32nd_snapshot_is_the_last_and_says_what_to_delete() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("web", SIZE, VolumeKind::Thin).await;
        for number in 0..32u8 {
            if number != 5 {
                node.write("web", 0, number + 1).await;
            }
            node.snapshot("web", &format!("s{number:02}")).await;
        }
        node.write("web", 0, 40).await;
        let web = node.id("web");
        let error =
            node.catalog.snapshot_create(&[web], "more", LeafSpace::AsTheKind).await.unwrap_err();
        assert_eq!(error.code, Code::SnapshotLimit);
        assert_eq!(error.message, "web has 32 snapshots, the limit");
        let hint = error.hint.unwrap();
        assert!(
            hint.starts_with("cheapest to delete: s04 (moves 0 KiB): shale snapshot delete s04"),
            "{hint}"
        );
        assert_eq!(error.related[0].name, "s04");
        node.catalog.snapshot_delete(web, error.related[0].uuid, &Unwatched).await.unwrap();
        node.catalog.snapshot_create(&[web], "more", LeafSpace::AsTheKind).await.unwrap();
        node.assert_sound("at the limit").await;
    });
}

#[test]
fn d4_a_log_is_replayed_on_an_exact_match_only() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let web = node.create("web", SIZE, VolumeKind::Thin).await.uuid;
        let first = node.catalog.connect(writer(web)).await.unwrap();
        assert_eq!((first.log_plan, first.clean), (LogPlan::Fresh, true));
        let log = first.log.clone().unwrap();
        let error = node.catalog.connect(writer(web)).await.unwrap_err();
        assert_eq!(error.message, "web is connected already, by guest");
        node.catalog.disconnect(first.connection, false).await.unwrap();
        assert!(node.catalog.needs_recovery(web));
        assert_eq!(
            node.catalog.resize(web, ByteCount(2 * SIZE)).await.unwrap_err().code,
            Code::NotClean
        );

        let mut again = writer(web);
        again.log_found = Some(log.clone());
        let second = node.catalog.connect(again.clone()).await.unwrap();
        assert_eq!((second.log_plan, second.clean), (LogPlan::Replay, true));
        assert_eq!(second.log.as_ref(), Some(&log));
        node.catalog.disconnect(second.connection, false).await.unwrap();

        again.log_found.as_mut().unwrap().generation += 1;
        let third = node.catalog.connect(again).await.unwrap();
        assert_eq!((third.log_plan, third.clean), (LogPlan::Lost, false));
        let renewed = third.log.clone().unwrap();
        assert_eq!(renewed.generation, log.generation + 1);
        assert_ne!(renewed.log_id, log.log_id);
        node.catalog.disconnect(third.connection, false).await.unwrap();

        // D5 outlives a replay: only a clean close ends it.
        let mut fourth = writer(web);
        fourth.log_found = Some(renewed);
        let fourth = node.catalog.connect(fourth).await.unwrap();
        assert_eq!((fourth.log_plan, fourth.clean), (LogPlan::Replay, false));
        node.catalog.disconnect(fourth.connection, true).await.unwrap();
        let fifth = node.catalog.connect(writer(web)).await.unwrap();
        assert_eq!((fifth.log_plan, fifth.clean), (LogPlan::Fresh, true));
        node.catalog.disconnect(fifth.connection, true).await.unwrap();
        node.assert_sound("closed").await;
    });
}

#[test]
fn readers_keep_what_they_read() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let web = node.create("web", SIZE, VolumeKind::Thin).await.uuid;
        node.snapshot("web", "one").await;
        node.write("web", 0, 1).await;
        let mut reader = writer(web);
        reader.snapshot = Some(node.snap_id("web", "one"));
        reader.holder = "backup".into();
        let reading = node.catalog.connect(reader).await.unwrap();
        assert!(reading.read_only && reading.log.is_none());
        let one = node.snap_id("web", "one");
        let settled = node.catalog.snapshot_delete(web, one, &Unwatched).await.unwrap();
        assert_eq!(settled.waiting.len(), 1);
        assert!(settled.notes[0].contains("reading of web by backup"), "{:?}", settled.notes);
        assert_eq!(node.catalog.delete_volume(web).await.unwrap_err().code, Code::Busy);
        node.catalog.disconnect(reading.connection, true).await.unwrap();
        assert_eq!(node.catalog.settle(web, &Unwatched).await.unwrap().dropped.len(), 1);
        node.assert_sound("after the reader").await;
    });
}

#[test]
fn connected_volumes_delete_snapshots_at_once_and_merge_later() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let web = node.create("web", SIZE, VolumeKind::Thin).await.uuid;
        node.snapshot("web", "one").await;
        node.write("web", 0, 1).await;
        let plan = node.catalog.connect(writer(web)).await.unwrap();
        let one = node.snap_id("web", "one");
        for error in [
            node.catalog.snapshot_revert(web, one).await.unwrap_err(),
            node.catalog.resize(web, ByteCount(2 * SIZE)).await.unwrap_err(),
            node.catalog.delete_volume(web).await.unwrap_err(),
        ] {
            assert_eq!(error.code, Code::VolumeConnected);
        }
        let settled = node.catalog.snapshot_delete(web, one, &Unwatched).await.unwrap();
        assert_eq!(settled.notes, ["web is connected: merging waits until it is not"]);
        assert_eq!(node.catalog.pending_merges(), []);
        node.catalog.disconnect(plan.connection, true).await.unwrap();
        assert_eq!(node.catalog.pending_merges().len(), 1);
        node.catalog.settle(web, &Unwatched).await.unwrap();
        assert_eq!(node.view().await["web"].content[0], 1);
        node.assert_sound("merged").await;
    });
}

#[test]
fn differences_between_two_points_in_time() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let web = node.create("web", SIZE, VolumeKind::Thin).await.uuid;
        node.snapshot("web", "one").await;
        node.write("web", 7, 1).await;
        node.write("web", 8, 1).await;
        node.snapshot("web", "two").await;
        node.write("web", 4096, 2).await;
        let (one, two) = (node.snap_id("web", "one"), node.snap_id("web", "two"));
        let diff = async |from, to| {
            let extents = node.catalog.snapshot_diff(web, from, to).await.unwrap();
            extents
                .iter()
                .map(|e| (e.range.start.0 / 512, e.range.len.0 / 512, e.zero))
                .collect::<Vec<_>>()
        };
        assert_eq!(diff(Some(one), Some(two)).await, [(7, 2, false)]);
        assert_eq!(diff(Some(one), None).await, [(7, 2, false), (4096, 1, false)]);
        assert_eq!(diff(Some(two), Some(one)).await, [(7, 2, true)]);
        assert_eq!(diff(None, Some(one)).await, []);
        assert_eq!(diff(Some(two), Some(two)).await, []);
    });
}

#[test]
fn operations_on_one_volume_follow_each_other_and_others_run_beside() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let web = node.create("web", SIZE, VolumeKind::Thin).await.uuid;
        let db = node.create("db", SIZE, VolumeKind::Thin).await.uuid;
        let (only_web, only_db, two) = ([web], [db], [db, web]);
        let web_snapshot = node.catalog.snapshot_create(&only_web, "s", LeafSpace::AsTheKind);
        let web_rename = node.catalog.rename(web, "www");
        let db_snapshot = node.catalog.snapshot_create(&only_db, "s", LeafSpace::AsTheKind);
        let both = node.catalog.snapshot_create(&two, "t", LeafSpace::AsTheKind);
        let (a, b, c, d) = futures_util::join!(web_snapshot, web_rename, db_snapshot, both);
        drop((a.unwrap(), b.unwrap(), c.unwrap(), d.unwrap()));
        let names = |name: &str| {
            let record = node.catalog.find(name).unwrap();
            record.snapshots.iter().map(|s| s.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names("www"), ["s", "t"]);
        assert_eq!(names("db"), ["s", "t"]);

        // Long ones are not waited for: who meets one is told what it is.
        let grow = node.catalog.resize(web, ByteCount(2 * SIZE));
        let other = node.catalog.rename(web, "web");
        let (grown, refused) = futures_util::join!(grow, other);
        grown.unwrap();
        assert_eq!(refused.unwrap_err().message, "the volume is busy: a resize is running");
        let new = |name: &str| {
            let kind = VolumeKind::Thin;
            node.catalog.create_volume(
                NewVolume { name: name.into(), size: ByteCount(SIZE), kind },
                &Unwatched,
            )
        };
        let (one, two) = futures_util::join!(new("same"), new("same"));
        assert_eq!(two.or(one).map(|_| ()).map_err(|e| e.code), Ok(()));
        assert_eq!(node.catalog.volumes().iter().filter(|v| v.name == "same").count(), 1);
        node.assert_sound("side by side").await;
    });
}

#[test]
fn an_orphaned_chain_is_reported_and_adopted() {
    let lab = lab();
    let record = lab.executor.block_on(async {
        let node = lab.open().await;
        let web = node.create("web", SIZE, VolumeKind::Thin).await;
        node.write("web", 0, 9).await;
        node.snapshot("web", "s").await;
        let record = node.catalog.volume(web.uuid).unwrap();
        node.store.remove(&ObjectName::Record(web.uuid)).await.unwrap();
        record
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        let report = node.catalog.check().await.unwrap();
        let codes: Vec<_> = report.findings.iter().map(|f| (f.severity, f.code)).collect();
        assert_eq!(codes, [(Severity::Note, "orphan-layer"); 2]);
        let error =
            node.catalog.adopt(record.snapshots[0].tip.layers()[0], "web").await.unwrap_err();
        assert_eq!(error.code, Code::HasDependents);
        node.catalog.adopt(record.current.tip.layers()[0], "web").await.unwrap();
        assert_eq!(node.view().await["web"].content[0], 9);
        node.assert_sound("adopted").await;
        let file = node
            .store
            .open(&ObjectName::Layer(record.current.tip.layers()[0]), Access::Write)
            .await;
        assert!(file.unwrap().info().size.0 > 0, "nobody holds it");
    });
}

#[test]
fn volumes_become_other_kinds_and_keep_their_content() {
    let kinds = [VolumeKind::Thin, VolumeKind::Lazy, VolumeKind::Fixed];
    for (from, to) in kinds.iter().flat_map(|from| kinds.iter().map(move |to| (*from, *to))) {
        for snapshots in [false, true] {
            let what = format!("{from:?} to {to:?}, with snapshots: {snapshots}");
            let lab = lab();
            lab.executor.block_on(async {
                let node = lab.open().await;
                node.create("web", SIZE, from).await;
                node.write("web", 4096, 5).await;
                if snapshots {
                    node.snapshot("web", "one").await;
                    node.write("web", 0, 6).await;
                }
                let id = node.id("web");
                let before = node.view().await["web"].clone();
                let plan = node.catalog.conversion(id, to).await.unwrap();
                let lost = snapshots && to == VolumeKind::Fixed && from != to;
                assert_eq!(plan.loses, usize::from(lost), "{what}");
                if lost {
                    let refused = node.catalog.convert(id, to, false, &Unwatched).await;
                    assert_eq!(refused.unwrap_err().code, Code::HasDependents, "{what}");
                    assert_eq!(node.view().await["web"], before, "{what}");
                }
                let made = node.catalog.convert(id, to, lost, &Unwatched).await.unwrap();
                assert_eq!(made.kind, to, "{what}");
                let after = node.view().await["web"].clone();
                assert_eq!(after.content, before.content, "{what}");
                assert_eq!(after.snapshots.len(), usize::from(snapshots && !lost), "{what}");
                let usage = node.catalog.usage(id).await.unwrap();
                match to {
                    VolumeKind::Thin => assert_eq!(usage.reserved, ByteCount::ZERO, "{what}"),
                    _ => assert!(usage.used.0 >= SIZE, "{what}: {usage:?}"),
                }
                node.write("web", 10240, 7).await;
                assert_eq!(node.view().await["web"].content[8], 7, "{what}");
                node.assert_sound(&what).await;
                if snapshots && !lost {
                    let one = node.snap_id("web", "one");
                    node.catalog.snapshot_delete(id, one, &Unwatched).await.unwrap();
                    node.settle_all().await;
                    let merged = node.catalog.usage(id).await.unwrap();
                    assert!(to == VolumeKind::Thin || merged.used.0 >= SIZE, "{what}: {merged:?}");
                    assert_eq!(node.view().await["web"].content[8], 7, "{what}");
                    // whatever its layer is now, it can go on to any other kind
                    for next in kinds {
                        let made = node.catalog.convert(id, next, true, &Unwatched).await.unwrap();
                        assert_eq!(made.kind, next, "{what}, then {next:?}");
                        assert_eq!(node.view().await["web"].content[8], 7, "{what}, then {next:?}");
                        node.assert_sound(&what).await;
                    }
                }
            });
        }
    }
}

#[test]
fn what_a_conversion_takes_and_gives_back_is_what_it_said() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let id = node.create("web", 16 * MIB, VolumeKind::Thin).await.uuid;
        node.write("web", 4096, 5).await;
        let used = async || node.catalog.usage(id).await.unwrap().used.0;
        let thin = used().await;
        let plan = node.catalog.conversion(id, VolumeKind::Lazy).await.unwrap();
        node.catalog.convert(id, VolumeKind::Lazy, false, &Unwatched).await.unwrap();
        let lazy = used().await;
        assert!((lazy - thin).abs_diff(plan.takes.0) < MIB, "{thin} {lazy} {plan:?}");
        let plan = node.catalog.conversion(id, VolumeKind::Thin).await.unwrap();
        node.catalog.convert(id, VolumeKind::Thin, false, &Unwatched).await.unwrap();
        let again = used().await;
        assert!(lazy - again + MIB > plan.frees.0 && again <= thin, "{lazy} {again} {plan:?}");
        // and what cannot be had is refused before anything changes
        node.create("rest", 495 * MIB, VolumeKind::Lazy).await;
        let error =
            node.catalog.convert(id, VolumeKind::Lazy, false, &Unwatched).await.unwrap_err();
        assert_eq!(error.code, Code::NoSpace, "{error}");
        let error =
            node.catalog.convert(id, VolumeKind::Fixed, false, &Unwatched).await.unwrap_err();
        assert_eq!(error.code, Code::NoSpace, "{error}");
        assert_eq!(
            (used().await, node.catalog.volume(id).unwrap().kind),
            (again, VolumeKind::Thin)
        );
        node.assert_sound("refused").await;
    });
}

#[test]
fn conversions_are_refused_while_connected_of_templates_and_of_what_clones_need() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let id = node.create("web", SIZE, VolumeKind::Thin).await.uuid;
        let plan = node.catalog.connect(writer(id)).await.unwrap();
        let to_fixed = async || node.catalog.convert(id, VolumeKind::Fixed, true, &Unwatched).await;
        assert_eq!(to_fixed().await.unwrap_err().code, Code::VolumeConnected);
        node.catalog.disconnect(plan.connection, true).await.unwrap();
        node.snapshot("web", "one").await;
        node.catalog
            .clone_linked(source(&node, "web", Some("one")), vec!["c".into()])
            .await
            .unwrap();
        let error = to_fixed().await.unwrap_err();
        assert_eq!((error.code, error.related[0].name.as_str()), (Code::HasDependents, "c"));
        // the clone becomes a volume of its own, and then nothing is in the way
        node.catalog.convert(node.id("c"), VolumeKind::Fixed, false, &Unwatched).await.unwrap();
        assert!(node.catalog.dependents(id).is_empty());
        to_fixed().await.unwrap();
        node.catalog.template_create(source(&node, "web", None), "web", &Unwatched).await.unwrap();
        let error =
            node.catalog.convert(id, VolumeKind::Thin, false, &Unwatched).await.unwrap_err();
        assert_eq!(error.code, Code::IsTemplate);
        node.assert_sound("converted").await;
    });
}

/// Rule N2: a lazy volume's snapshot layer has its space too, unless it is told otherwise.
#[test]
fn n2_layers_over_lazy_volumes_reserve_their_space_unless_told_otherwise() {
    let lab = lab();
    lab.executor.block_on(async {
        let node = lab.open().await;
        let id = node.create("web", 8 * MIB, VolumeKind::Lazy).await.uuid;
        let used = async || node.catalog.usage(id).await.unwrap().used.0;
        node.snapshot("web", "one").await;
        assert!(used().await >= 16 * MIB, "{}", used().await);
        let space = LeafSpace::AsItGrows;
        node.catalog.snapshot_create(&[id], "two", space).await.unwrap();
        assert!(used().await < 17 * MIB, "{}", used().await);
        let plan = node.catalog.connect(writer(id)).await.unwrap();
        assert!(!plan.reserves);
        node.catalog.disconnect(plan.connection, true).await.unwrap();
        // a merge into a layer that has its space makes it a lazy volume's again
        node.catalog.snapshot_delete(id, node.snap_id("web", "two"), &Unwatched).await.unwrap();
        assert!(node.catalog.volume(id).unwrap().reserves());
        node.assert_sound("merged").await;
    });
}
