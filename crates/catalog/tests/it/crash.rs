//! Invariant 7: each operation, ended by a power cut or a dead process at every event of the
//! simulated devices. After recovery everything is sound and looks as before or as after the operation.

use std::cell::Cell;

use catalog::{
    CopyTarget, Deploy, Every, LeafSpace, MAX_SEGMENT, NewVolume, Source, Unwatched, VolumeKind,
};
use datastore::{FileStore as _, ObjectName};
use image::{ParentRef, SectorCount, Timestamp, create};
use io::{ByteCount, Io};
use uuid::Uuid;

use crate::schedules::hourly_and_daily;
use crate::world::{Crash, FakeLayers, Lab, MIB, Node, SIZE, View, flush, put};

type Operation = for<'a> fn(&'a Node) -> Io<'a, ()>;

/// Most events of an operation that are each tried; longer operations are tried at evenly spread ones.
const MOST: u64 = 90;

/// web: snapshots one and two, a branch; linked clone of one; a template with a clone.
async fn setup(node: &Node) {
    node.create("web", SIZE, VolumeKind::Thin).await;
    node.write("web", 0, 1).await;
    node.write("web", 8192, 1).await;
    node.snapshot("web", "one").await;
    node.write("web", 0, 2).await;
    node.write("web", 4096, 2).await;
    node.snapshot("web", "two").await;
    node.write("web", 4096, 3).await;
    node.write("web", 10240, 3).await;
    node.create("fix", 2 * MIB + 512, VolumeKind::Fixed).await;
    node.write("fix", 7, 4).await;
    node.snapshot("fix", "s").await;
    node.write("fix", 8, 5).await;
    node.create("gold", SIZE, VolumeKind::Thin).await;
    node.write("gold", 1, 6).await;
    let gold = Source { volume: node.id("gold"), snapshot: None };
    node.catalog.template_create(gold, "gold", &Unwatched).await.unwrap();
    node.catalog.clone_linked(gold, vec!["clone".into()]).await.unwrap();
}

async fn view_of(lab: &Lab, operation: Option<Operation>) -> View {
    let node = lab.open().await;
    setup(&node).await;
    if let Some(operation) = operation {
        operation(&node).await;
    }
    node.settle_all().await;
    node.assert_sound("uncut").await;
    node.view().await
}

fn check(name: &str, operation: Operation) {
    check_segmented(name, operation, MAX_SEGMENT);
    // a segment is one block: the volumes have up to three
    check_segmented(&format!("{name}, in segments"), operation, 2 * MIB);
}

fn check_segmented(name: &str, operation: Operation, segment: u64) {
    let fresh = || Lab::segmented(3, ByteCount::mib(256), segment);
    let lab = fresh();
    let before = lab.executor.block_on(view_of(&lab, None));
    let lab = fresh();
    let after = lab.executor.block_on(view_of(&lab, Some(operation)));
    assert_ne!(before, after, "{name} changes nothing");

    let lab = fresh();
    let (first, last) = lab.executor.block_on(async {
        let node = lab.open().await;
        setup(&node).await;
        let first = lab.world.events();
        operation(&node).await;
        (first + 1, lab.world.events())
    });
    let step = (last - first).div_ceil(MOST).max(1);
    let (mut undone, mut finished) = (0, 0);
    for (round, event) in (first..=last).step_by(usize::try_from(step).unwrap()).enumerate() {
        let crash = if round % 3 == 2 { Crash::Kill } else { Crash::Cut };
        let lab = fresh();
        lab.world.halt_at(event);
        let ended = lab.executor.run_until_halt(async {
            let node = lab.open().await;
            setup(&node).await;
            operation(&node).await;
        });
        assert!(ended.is_none() || event == last, "{name}: event {event} of {last} is reached");
        let when = format!("{name}, {crash:?} at event {event} of {first}..={last}");
        let lab = lab.crashed(event, crash);
        lab.executor.block_on(async {
            let node = lab.open().await;
            node.assert_sound(&when).await;
            let seen = node.view().await;
            node.settle_all().await;
            node.assert_sound(&format!("{when}, settled")).await;
            assert_eq!(node.view().await, seen, "{when}: settling is not seen");
            if seen == before {
                undone += 1;
            } else {
                assert_eq!(seen, after, "{when}: {:?}", node.recovered);
                finished += 1;
            }
        });
    }
    println!("{name}: {undone} undone, {finished} finished");
    assert!(undone > 0 && finished > 0, "{name}: {undone} undone, {finished} finished");
}

fn source(node: &Node, volume: &str, snapshot: Option<&str>) -> Source {
    Source { volume: node.id(volume), snapshot: snapshot.map(|s| node.snap_id(volume, s)) }
}

#[test]
fn create() {
    for (name, kind) in
        [("thin", VolumeKind::Thin), ("lazy", VolumeKind::Lazy), ("fixed", VolumeKind::Fixed)]
    {
        let operation: Operation = match kind {
            VolumeKind::Thin => |node| Box::pin(make(node, VolumeKind::Thin)),
            VolumeKind::Lazy => |node| Box::pin(make(node, VolumeKind::Lazy)),
            VolumeKind::Fixed => |node| Box::pin(make(node, VolumeKind::Fixed)),
        };
        check(&format!("create {name}"), operation);
    }
}

async fn make(node: &Node, kind: VolumeKind) {
    let new = NewVolume { name: "new".into(), size: ByteCount(MIB), kind };
    node.catalog.create_volume(new, &Unwatched).await.unwrap();
}

/// A base and a layer on it that is larger, in blocks that come in parts and out of order.
async fn import(node: &Node, kind: VolumeKind, sized: bool) {
    let base = (4 * MIB, Some("old"), vec![(4096, 1), (0, 2), (4097, 3)]);
    let leaf = (SIZE, None, vec![(0, 4), (8192, 5), (1, 0)]);
    let layers = if sized { vec![base, leaf] } else { vec![leaf] };
    let mut from = FakeLayers::new(layers);
    let new = from.import("new", kind, sized);
    node.catalog.import(new, &mut from, &Unwatched).await.unwrap();
}

#[test]
fn imports() {
    check("import a chain", |node| Box::pin(import(node, VolumeKind::Thin, true)));
    check("import a chain on a fixed base", |node| Box::pin(import(node, VolumeKind::Fixed, true)));
    check("import a stream", |node| Box::pin(import(node, VolumeKind::Thin, false)));
    check("import a fixed stream", |node| Box::pin(import(node, VolumeKind::Fixed, false)));
    check("import a lazy stream", |node| Box::pin(import(node, VolumeKind::Lazy, false)));
}

#[test]
fn rename() {
    check("rename", |node| {
        Box::pin(async { drop(node.catalog.rename(node.id("web"), "www").await.unwrap()) })
    });
}

#[test]
fn delete() {
    check("delete", |node| {
        Box::pin(async { node.catalog.delete_volume(node.id("web")).await.unwrap() })
    });
    check("delete a clone", |node| {
        Box::pin(async { node.catalog.delete_volume(node.id("clone")).await.unwrap() })
    });
}

#[test]
fn d8_grow() {
    check("grow within the BAT's page", |node| {
        Box::pin(async {
            let size = ByteCount(SIZE + 3 * MIB);
            drop(node.catalog.resize(node.id("web"), size).await.unwrap());
        })
    });
    let far: Operation = |node| {
        Box::pin(async {
            drop(node.catalog.resize(node.id("web"), ByteCount::mib(3000)).await.unwrap());
        })
    };
    check_segmented("grow out of the BAT's page", far, MAX_SEGMENT);
}

#[test]
fn d8_grow_fixed() {
    // A layer whose every byte but the footer is a guest's.
    async fn fixed(node: &Node) {
        let web = node.snap_id("fix", "s");
        node.catalog.snapshot_revert(node.id("fix"), web).await.unwrap();
        node.catalog.snapshot_delete(node.id("fix"), web, &Unwatched).await.unwrap();
        node.catalog.resize(node.id("fix"), ByteCount(4 * MIB)).await.unwrap();
    }
    let lab = Lab::new(5, ByteCount::mib(256));
    let (first, last) = lab.executor.block_on(async {
        let node = lab.open().await;
        setup(&node).await;
        let first = lab.world.events();
        fixed(&node).await;
        (first, lab.world.events())
    });
    for event in first + 1..=last {
        let lab = Lab::new(5, ByteCount::mib(256));
        lab.world.halt_at(event);
        lab.executor.run_until_halt(async {
            let node = lab.open().await;
            setup(&node).await;
            fixed(&node).await;
        });
        let lab = lab.crashed(event, Crash::Cut);
        lab.executor.block_on(async {
            let node = lab.open().await;
            node.settle_all().await;
            node.assert_sound(&format!("event {event}")).await;
            let seen = &node.view().await["fix"];
            assert_eq!(seen.content[2], 4, "event {event}");
            assert!([2 * MIB + 512, 4 * MIB].contains(&seen.size), "event {event}");
            // The old footer's sector reads as zero once the disk is longer.
            assert_eq!(seen.content[4..].iter().max(), Some(&0), "event {event}");
        });
    }
}

/// A leaf shorter than its parent, made by hand: its growth must not show what the parent has there.
async fn shorter_leaf(lab: &Lab) -> Uuid {
    let leaf = Uuid::from_u128(77);
    let node = lab.open().await;
    node.create("base", SIZE, VolumeKind::Thin).await;
    for probe in [0, 4096, 8191, 8192, 10240] {
        node.write("base", probe, 9).await;
    }
    let parent = ParentRef::sibling(node.snapshot("base", "s").await.tip.layers()[0]);
    let size = SectorCount((2 * MIB + 512) / 512);
    let image = create::differencing(leaf, size, Timestamp(0), &parent).unwrap();
    let file = node.store.create(&ObjectName::Layer(leaf)).await.unwrap();
    file.truncate(ByteCount(image.len)).await.unwrap();
    for (at, bytes) in &image.pieces {
        put(&*file, at.bytes(), bytes).await;
    }
    flush(&*file).await;
    node.store.sync_names().await.unwrap();
    leaf
}

#[test]
fn d8_growth_owns_its_range_as_zero_where_an_ancestor_is_longer() {
    let short = [9, 0, 0, 0, 0, 9];
    let long = [9, 0, 0, 0, 0, 9, 0, 0, 0];
    for written in [false, true] {
        let run = async |lab: &Lab, events: &Cell<u64>| {
            let leaf = shorter_leaf(lab).await;
            let node = lab.open().await;
            node.catalog.adopt(leaf, "short").await.unwrap();
            if written {
                // The block at the border has a place already.
                node.write("short", 4096, 9).await;
            }
            assert_eq!(node.view().await["short"].content, short);
            events.set(lab.world.events());
            node.catalog.resize(node.id("short"), ByteCount(SIZE)).await.unwrap();
            assert_eq!(node.view().await["short"].content, long);
            node.assert_sound("grown").await;
        };
        let (lab, first) = (Lab::new(5, ByteCount::mib(64)), Cell::new(0));
        lab.executor.block_on(run(&lab, &first));
        let last = lab.world.events();
        let (mut undone, mut finished) = (0, 0);
        for event in first.get() + 1..=last {
            let lab = Lab::new(5, ByteCount::mib(64));
            lab.world.halt_at(event);
            if lab.executor.run_until_halt(run(&lab, &first)).is_some() {
                continue;
            }
            let lab = lab.crashed(event, Crash::Cut);
            lab.executor.block_on(async {
                let node = lab.open().await;
                node.assert_sound(&format!("event {event}")).await;
                let seen = node.view().await["short"].content.clone();
                if seen == short {
                    undone += 1;
                    node.catalog.resize(node.id("short"), ByteCount(SIZE)).await.unwrap();
                } else {
                    finished += 1;
                }
                assert_eq!(node.view().await["short"].content, long, "event {event}");
                node.assert_sound(&format!("event {event}, grown")).await;
            });
        }
        assert!(undone > 0 && finished > 0, "{undone} undone, {finished} finished");
    }
}

#[test]
fn clone_linked() {
    check("clone", |node| {
        Box::pin(async {
            let names = ["c1", "c2", "c3"].map(String::from).to_vec();
            drop(node.catalog.clone_linked(source(node, "web", Some("one")), names).await.unwrap());
        })
    });
}

#[test]
fn copy_full() {
    check("copy", |node| {
        Box::pin(async {
            let target = CopyTarget { name: "copy".into(), kind: None, template: false };
            let from = source(node, "web", Some("two"));
            drop(node.catalog.copy_full(from, target, &Unwatched).await.unwrap());
        })
    });
    check("deploy in full", |node| {
        Box::pin(async {
            let how = Deploy::Full(Some(VolumeKind::Lazy));
            let gold = node.id("gold");
            let names = vec!["full".into()];
            drop(node.catalog.template_deploy(gold, names, how, &Unwatched).await.unwrap());
        })
    });
}

#[test]
fn snapshot_create() {
    check("snapshot", |node| Box::pin(async { drop(node.snapshot("web", "three").await) }));
    check("snapshot of several", |node| {
        Box::pin(async {
            let all = [node.id("web"), node.id("fix"), node.id("clone")];
            drop(node.catalog.snapshot_create(&all, "all", LeafSpace::AsTheKind).await.unwrap());
        })
    });
}

#[test]
fn snapshot_revert() {
    check("revert", |node| {
        Box::pin(async {
            let one = node.snap_id("web", "one");
            drop(node.catalog.snapshot_revert(node.id("web"), one).await.unwrap());
        })
    });
}

async fn forget(node: &Node, volume: &str, snapshot: &str) {
    let id = node.snap_id(volume, snapshot);
    drop(node.catalog.snapshot_delete(node.id(volume), id, &Unwatched).await.unwrap());
}

#[test]
fn l4_snapshot_delete() {
    check("delete the first snapshot", |node| Box::pin(forget(node, "web", "one")));
    check("delete the last snapshot", |node| Box::pin(forget(node, "web", "two")));
    check("delete a fixed volume's snapshot", |node| Box::pin(forget(node, "fix", "s")));
}

/// A fixed layer that is shorter than what is merged into it is lengthened first; without its footer it
/// could never be opened again.
#[test]
fn l5_a_fixed_layer_is_lengthened_before_the_merge() {
    async fn grown(node: &Node) {
        setup(node).await;
        node.catalog.resize(node.id("fix"), ByteCount(8 * MIB)).await.unwrap();
    }
    let fresh = || Lab::new(3, ByteCount::mib(256));
    let lab = fresh();
    let (first, last, wanted) = lab.executor.block_on(async {
        let node = lab.open().await;
        grown(&node).await;
        let first = lab.world.events();
        forget(&node, "fix", "s").await;
        let last = lab.world.events();
        (first + 1, last, node.view().await["fix"].content.clone())
    });
    for event in first..=last {
        for crash in [Crash::Kill, Crash::Cut] {
            let when = format!("{crash:?} at event {event} of {first}..={last}");
            let lab = fresh();
            lab.world.halt_at(event);
            lab.executor.run_until_halt(async {
                let node = lab.open().await;
                grown(&node).await;
                forget(&node, "fix", "s").await;
            });
            let lab = lab.crashed(event, crash);
            lab.executor.block_on(async {
                let node = lab.open().await;
                node.assert_sound(&when).await;
                node.settle_all().await;
                assert_eq!(node.view().await["fix"].content, wanted, "{when}");
                node.assert_sound(&when).await;
            });
        }
    }
}

/// A process dies between a commit and its durability; the next one finishes what it sees, and then the
/// power goes.
fn killed_then_cut(name: &str, operation: Operation) {
    let fresh = || Lab::new(3, ByteCount::mib(256));
    let lab = fresh();
    let (first, last) = lab.executor.block_on(async {
        let node = lab.open().await;
        setup(&node).await;
        let first = lab.world.events();
        operation(&node).await;
        (first + 1, lab.world.events())
    });
    let killed = |event: u64| {
        let lab = fresh();
        lab.world.halt_at(event);
        lab.executor.run_until_halt(async {
            let node = lab.open().await;
            setup(&node).await;
            operation(&node).await;
        });
        lab.crashed(event, Crash::Kill)
    };
    let mut finished = 0;
    // the commit and what follows it stand near the end
    for event in first.max(last.saturating_sub(MOST))..=last {
        let lab = killed(event);
        let (opening, opened, recovered) = lab.executor.block_on(async {
            let opening = lab.world.events();
            let node = lab.open().await;
            (opening + 1, lab.world.events(), node.recovered)
        });
        if !recovered.iter().any(|one| one.finished) {
            continue;
        }
        finished += 1;
        for second in opening..=opened {
            let lab = killed(event);
            lab.world.halt_at(second);
            lab.executor.run_until_halt(async { drop(lab.open().await) });
            let lab = lab.crashed(second, Crash::Cut);
            lab.executor.block_on(async {
                let when = format!("{name}: killed at event {event}, cut at {second}");
                lab.open().await.assert_sound(&when).await;
            });
        }
    }
    assert!(finished > 0, "{name}: nothing was left to finish");
}

#[test]
fn recovery_removes_nothing_before_the_commit_is_durable() {
    killed_then_cut("revert", |node| {
        Box::pin(async {
            let one = node.snap_id("web", "one");
            drop(node.catalog.snapshot_revert(node.id("web"), one).await.unwrap());
        })
    });
    killed_then_cut("delete", |node| {
        Box::pin(async { node.catalog.delete_volume(node.id("web")).await.unwrap() })
    });
}

async fn become_kind(node: &Node, volume: &str, kind: VolumeKind) {
    drop(node.catalog.convert(node.id(volume), kind, true, &Unwatched).await.unwrap());
}

#[test]
fn convert() {
    check("thin to lazy", |node| Box::pin(become_kind(node, "web", VolumeKind::Lazy)));
    check("fixed to thin below a snapshot", |node| {
        Box::pin(become_kind(node, "fix", VolumeKind::Thin))
    });
    check("thin to fixed, its snapshots lost", |node| {
        Box::pin(become_kind(node, "web", VolumeKind::Fixed))
    });
    check("a linked clone to fixed", |node| {
        Box::pin(become_kind(node, "clone", VolumeKind::Fixed))
    });
}

/// gold, a clone of it, a clone of that, and a last one which still stands on what the two in the middle left
/// when they became volumes of their own.
async fn left_behind(node: &Node) {
    node.create("gold", SIZE, VolumeKind::Thin).await;
    for (of, name) in [("gold", "middle"), ("middle", "top"), ("top", "last")] {
        node.snapshot(of, "s").await;
        let names = vec![name.to_owned()];
        drop(node.catalog.clone_linked(source(node, of, Some("s")), names).await.unwrap());
        node.write(name, 0, 1).await;
    }
    for name in ["middle", "top"] {
        let s = node.snap_id(name, "s");
        drop(node.catalog.snapshot_delete(node.id(name), s, &Unwatched).await.unwrap());
        become_kind(node, name, VolumeKind::Fixed).await;
    }
}

async fn remove(node: &Node, name: &str) {
    node.catalog.delete_volume(node.id(name)).await.unwrap();
}

#[test]
fn whoever_died_before_it_cleared_up_is_in_nobodys_way() {
    let fresh = || Lab::segmented(3, ByteCount::mib(256), MAX_SEGMENT);
    let lab = fresh();
    let (first, last) = lab.executor.block_on(async {
        let node = lab.open().await;
        left_behind(&node).await;
        let first = lab.world.events();
        remove(&node, "last").await;
        (first + 1, lab.world.events())
    });
    let (mut linked, mut cleared) = (0, [0, 0]);
    for event in first..=last {
        let lab = fresh();
        lab.world.halt_at(event);
        let ended = lab.executor.run_until_halt(async {
            let node = lab.open().await;
            left_behind(&node).await;
            remove(&node, "last").await;
        });
        assert!(ended.is_none() || event == last, "event {event} of {last} is reached");
        let lab = lab.crashed(event, Crash::Kill);
        let at_start = event % 2 == 0;
        lab.executor.block_on(async {
            let node = lab.open().await;
            let gold = node.id("gold");
            if !node.catalog.dependents(gold).is_empty() {
                linked += 1;
                return;
            }
            if at_start {
                node.catalog.drop_all_unused().await;
                assert!(node.catalog.left_above(gold).is_empty(), "event {event}");
            }
            cleared[usize::from(at_start)] += 1;
            remove(&node, "gold").await;
            node.assert_sound(&format!("event {event}, gold is deleted")).await;
        });
    }
    assert!(linked > 0 && cleared.iter().all(|n| *n > 2), "{linked} linked, {cleared:?} cleared");
}

#[test]
fn template_create() {
    check("freeze", |node| {
        Box::pin(async {
            let from = source(node, "web", None);
            drop(node.catalog.template_create(from, "model", &Unwatched).await.unwrap());
        })
    });
}

async fn scheduled(node: &Node, last: u64) {
    let schedule = hourly_and_daily(last);
    drop(node.catalog.schedule_set(node.id("web"), Some(schedule)).await.unwrap());
}

async fn run(node: &Node, at: u64) {
    let rules = [Every::Hour, Every::Day];
    let made = node.catalog.snapshot_scheduled(node.id("web"), "daily-1", &rules, at);
    drop(made.await.unwrap());
}

#[test]
fn schedules() {
    check("set a schedule", |node| Box::pin(scheduled(node, 7)));
}

/// A run is made and noted, or neither: else it would be lost, or made twice.
#[test]
fn a_scheduled_snapshot_and_its_note_are_one_commit() {
    let fresh = || Lab::new(3, ByteCount::mib(256));
    let (lab, first) = (fresh(), Cell::new(0));
    lab.executor.block_on(async {
        let node = lab.open().await;
        setup(&node).await;
        scheduled(&node, 7).await;
        first.set(lab.world.events());
        run(&node, 9).await;
    });
    let last = lab.world.events();
    let (mut undone, mut finished) = (0, 0);
    for event in first.get() + 1..=last {
        let crash = if event % 3 == 2 { Crash::Kill } else { Crash::Cut };
        let lab = fresh();
        lab.world.halt_at(event);
        lab.executor.run_until_halt(async {
            let node = lab.open().await;
            setup(&node).await;
            scheduled(&node, 7).await;
            run(&node, 9).await;
        });
        let lab = lab.crashed(event, crash);
        lab.executor.block_on(async {
            let node = lab.open().await;
            node.assert_sound(&format!("event {event}")).await;
            let record = node.catalog.volume(node.id("web")).unwrap();
            let made = record.snapshots.iter().find(|s| s.name == "daily-1");
            let lasts: Vec<u64> = record.schedule.unwrap().rules.iter().map(|r| r.last).collect();
            match made {
                Some(made) => {
                    assert_eq!((lasts, made.scheduled.as_ref().unwrap().run), (vec![9, 9], 1));
                    finished += 1;
                }
                None => {
                    assert_eq!(lasts, [7, 7], "event {event}");
                    undone += 1;
                }
            }
        });
    }
    assert!(undone > 0 && finished > 0, "{undone} undone, {finished} finished");
}
