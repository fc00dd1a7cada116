//! Full stores and failing devices: an operation that fails leaves everything as it was, or is done.

use std::time::Duration;

use catalog::{CopyTarget, LeafSpace, Source, Unwatched, VolumeKind};
use io::{ByteCount, Io};

use crate::world::{Crash, Lab, MIB, Node, SIZE};

type Operation = for<'a> fn(&'a Node) -> Io<'a, catalog::Result<()>>;

async fn setup(node: &Node) {
    node.create("web", SIZE, VolumeKind::Thin).await;
    node.write("web", 0, 1).await;
    node.snapshot("web", "one").await;
    node.write("web", 4096, 2).await;
    node.write("web", 8192, 2).await;
}

const OPERATIONS: [(&str, Operation); 6] = [
    ("snapshot", |node| {
        Box::pin(async {
            node.catalog
                .snapshot_create(&[node.id("web")], "two", LeafSpace::AsTheKind)
                .await
                .map(drop)
        })
    }),
    ("delete snapshot", |node| {
        Box::pin(async {
            let one = node.snap_id("web", "one");
            node.catalog.snapshot_delete(node.id("web"), one, &Unwatched).await.map(drop)
        })
    }),
    ("revert", |node| {
        Box::pin(async {
            let one = node.snap_id("web", "one");
            node.catalog.snapshot_revert(node.id("web"), one).await.map(drop)
        })
    }),
    ("copy", |node| {
        Box::pin(async {
            let kind = Some(VolumeKind::Lazy);
            let target = CopyTarget { name: "copy".into(), kind, template: false };
            let from = Source { volume: node.id("web"), snapshot: None };
            node.catalog.copy_full(from, target, &Unwatched).await.map(drop)
        })
    }),
    ("clone", |node| {
        Box::pin(async {
            let from =
                Source { volume: node.id("web"), snapshot: Some(node.snap_id("web", "one")) };
            let names = vec!["c1".into(), "c2".into()];
            node.catalog.clone_linked(from, names).await.map(drop)
        })
    }),
    ("grow", |node| {
        Box::pin(async {
            node.catalog.resize(node.id("web"), ByteCount::mib(3000)).await.map(drop)
        })
    }),
];

/// Runs `operation` with a fault, then everything again without: whatever the fault hit, nothing is
/// broken, and a second try works.
fn check(name: &str, operation: Operation, capacity: ByteCount, fault: impl Fn(&Lab)) -> bool {
    let lab = Lab::new(11, capacity);
    let failed = lab.executor.block_on(async {
        let node = lab.open().await;
        setup(&node).await;
        let before = node.view().await;
        fault(&lab);
        let result = operation(&node).await;
        for faults in lab.world.spaces() {
            faults.faults().fail_write(0);
            faults.faults().fail_flush(0);
            faults.faults().no_space_at_reserve(0);
        }
        lab.directory.fail_sync(0);
        lab.directory.set_capacity(ByteCount::mib(256));
        if let Err(error) = &result {
            assert!(error.message.starts_with("cannot "), "{name}: {error}");
            if before == node.view().await {
                // What waits for a retry is retried by the next operation on the volume.
                operation(&node).await.unwrap_or_else(|e| panic!("{name} after {error}: {e}"));
            }
        }
        result.is_err()
    });
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.settle_all().await;
        node.assert_sound(name).await;
    });
    failed
}

#[test]
fn a_device_that_fails_once() {
    for (name, operation) in OPERATIONS {
        let mut struck = 0;
        for nth in 1..40 {
            let capacity = ByteCount::mib(256);
            struck +=
                u32::from(check(&format!("{name}, write {nth}"), operation, capacity, |lab| {
                    lab.directory.space().faults().fail_write(nth);
                }));
            check(&format!("{name}, flush {nth}"), operation, capacity, |lab| {
                lab.directory.space().faults().fail_flush(nth);
            });
            check(&format!("{name}, sync {nth}"), operation, capacity, |lab| {
                lab.directory.fail_sync(nth);
            });
        }
        assert!(struck > 0, "{name} never failed");
    }
}

#[test]
fn inv9_a_store_that_fills_up() {
    for (name, operation) in OPERATIONS {
        let mut struck = 0;
        for kib in (0..8 * 1024).step_by(384) {
            let fault = |lab: &Lab| {
                let used = lab.directory.space().used().0;
                lab.directory.set_capacity(ByteCount(used + (kib << 10) + MIB));
            };
            let failed =
                check(&format!("{name}, {kib} KiB free"), operation, ByteCount::mib(64), fault);
            struck += u32::from(failed);
        }
        println!("{name}: {struck} times no space");
    }
}

#[test]
fn a_lazy_copy_that_cannot_reserve_says_no_space() {
    let lab = Lab::new(1, ByteCount::mib(64));
    lab.executor.block_on(async {
        let node = lab.open().await;
        setup(&node).await;
        lab.directory.space().faults().no_space_at_reserve(1);
        let target =
            CopyTarget { name: "copy".into(), kind: Some(VolumeKind::Lazy), template: false };
        let from = Source { volume: node.id("web"), snapshot: None };
        let error = node.catalog.copy_full(from, target, &Unwatched).await.unwrap_err();
        assert_eq!(error.code, catalog::Code::NoSpace, "{error}");
        node.assert_sound("after it").await;
    });
}

/// A dead process's last request holds a layer while its successor opens the datastore: what was
/// half-written then is read again once the operation is settled.
#[test]
fn what_was_half_written_at_the_start_is_read_again() {
    async fn grow(node: &Node) -> catalog::Result<()> {
        node.catalog.resize(node.id("web"), ByteCount::mib(3000)).await.map(drop)
    }
    let fresh = |seed| Lab::new(seed, ByteCount::mib(256));
    let lab = fresh(0);
    let (first, last) = lab.executor.block_on(async {
        let node = lab.open().await;
        setup(&node).await;
        let first = lab.world.events();
        grow(&node).await.unwrap();
        (first + 1, lab.world.events())
    });
    let mut waited = 0;
    for (event, seed) in (first..=last).flat_map(|event| (0..8).map(move |seed| (event, seed))) {
        let lab = fresh(seed);
        lab.world.halt_at(event);
        lab.executor.run_until_halt(async {
            let node = lab.open().await;
            setup(&node).await;
            grow(&node).await.unwrap();
        });
        let lab = lab.crashed(event, Crash::KillWithRequests);
        lab.executor.block_on(async {
            let node = lab.open().await;
            let waits = node.recovered.iter().any(|r| r.sentence.contains("it waits"));
            waited += u32::from(waits);
            // a volume is held, so settled, by whatever is done next with it
            let id = node.id("web");
            let mut tries = 0..200;
            while let Err(error) = node.catalog.rename(id, &format!("web{event}")).await {
                assert!(tries.next().is_some(), "event {event}, seed {seed}: {error}");
                lab.world.delay(Duration::from_millis(1), Duration::from_millis(1)).await;
            }
            node.assert_sound(&format!("event {event}, seed {seed}")).await;
        });
    }
    assert!(waited > 0, "no request of the dead process was in the way");
}
