//! Schedules in records: what may be set, what a run leaves, and what survives.

use catalog::{
    Code, Deploy, Every, Record, Schedule, ScheduleRule, Scheduled, Source, Unwatched, VolumeKind,
};
use io::ByteCount;

use crate::world::{Lab, SIZE};

pub(crate) fn hourly_and_daily(last: u64) -> Schedule {
    Schedule {
        rules: vec![
            ScheduleRule { every: Every::Hour, keep: 12, last },
            ScheduleRule { every: Every::Day, keep: 7, last },
        ],
        minute: 120,
        weekday: 6,
        unreserved: false,
    }
}

#[test]
fn a_run_is_noted_and_what_a_user_makes_is_not() {
    let lab = Lab::new(11, ByteCount::mib(256));
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("web", SIZE, VolumeKind::Thin).await;
        let web = node.id("web");
        let none = node.catalog.snapshot_scheduled(web, "early", &[Every::Hour], 1).await;
        assert_eq!(none.expect_err("no schedule").code, Code::BadRequest);
        node.catalog.schedule_set(web, Some(hourly_and_daily(100))).await.unwrap();
        node.snapshot("web", "mine").await;
        for (name, rules, at) in [
            ("a", &[Every::Hour][..], 200),
            ("b", &[Every::Hour, Every::Day], 150), // a clock that went back
        ] {
            node.catalog.snapshot_scheduled(web, name, rules, at).await.unwrap();
        }
        let weekly = node.catalog.snapshot_scheduled(web, "c", &[Every::Week], 300).await;
        assert_eq!(weekly.expect_err("no such rule").code, Code::BadRequest);
        drop(node);
        // all of it is in the record
        let node = lab.open().await;
        let record = node.catalog.volume(web).unwrap();
        let made: Vec<_> = record.snapshots.iter().map(|s| s.scheduled.clone()).collect();
        let run = |rules: &[Every], run| Some(Scheduled { rules: rules.to_vec(), run });
        assert_eq!(made, [None, run(&[Every::Hour], 1), run(&[Every::Hour, Every::Day], 2)]);
        let rules = &record.schedule.as_ref().unwrap().rules;
        assert_eq!(rules.iter().map(|r| r.last).collect::<Vec<_>>(), [150, 150]);

        // going back to a snapshot is no change of policy; a copy, a clone, a template have none
        node.catalog.snapshot_revert(web, node.snap_id("web", "mine")).await.unwrap();
        assert_eq!(node.catalog.volume(web).unwrap().schedule, record.schedule);
        let mine = Some(node.snap_id("web", "mine"));
        let source = Source { volume: web, snapshot: mine };
        let clones = node.catalog.clone_linked(source, vec!["clone".into()]).await.unwrap();
        assert_eq!(clones[0].schedule, None);
        let gold = Source { volume: clones[0].uuid, snapshot: None };
        node.catalog.schedule_set(gold.volume, Some(hourly_and_daily(1))).await.unwrap();
        let gold = node.catalog.template_create(gold, "gold", &Unwatched).await.unwrap();
        assert_eq!(gold.schedule, None, "nobody makes snapshots of a template");
        let refused = node.catalog.schedule_set(gold.uuid, Some(hourly_and_daily(1))).await;
        assert_eq!(refused.expect_err("a template").code, Code::IsTemplate);
        let names = vec!["new".into()];
        let new = node.catalog.template_deploy(gold.uuid, names, Deploy::Linked, &Unwatched).await;
        assert_eq!(new.unwrap()[0].schedule, None);
    });
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let lab = Lab::new(12, ByteCount::mib(256));
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("web", SIZE, VolumeKind::Thin).await;
        let web = node.id("web");
        let with = |change: fn(&mut Schedule)| {
            let mut schedule = hourly_and_daily(1);
            change(&mut schedule);
            schedule
        };
        for (change, code) in [
            (with(|s| s.rules.clear()), Code::BadRequest),
            (with(|s| s.rules.reverse()), Code::BadRequest),
            (with(|s| s.rules[1].every = Every::Hour), Code::BadRequest),
            (with(|s| s.rules[0].keep = 0), Code::BadRequest),
            (with(|s| s.minute = 1440), Code::BadRequest),
            (with(|s| s.weekday = 7), Code::BadRequest),
            (with(|s| s.rules[0].keep = 25), Code::SnapshotLimit),
            (with(|s| s.rules.iter_mut().for_each(|r| r.keep = u32::MAX)), Code::SnapshotLimit),
        ] {
            let refused = node.catalog.schedule_set(web, Some(change.clone())).await;
            assert_eq!(refused.expect_err("refused").code, code, "{change:?}");
        }
        assert_eq!(node.catalog.volume(web).unwrap().schedule, None);
        node.catalog.schedule_set(web, Some(with(|s| s.rules[0].keep = 24))).await.unwrap();
    });
}

/// Records of before there were schedules are read, and written as they were.
#[test]
fn a_record_without_a_schedule_says_nothing_of_one() {
    let lab = Lab::new(13, ByteCount::mib(256));
    lab.executor.block_on(async {
        let node = lab.open().await;
        node.create("web", SIZE, VolumeKind::Thin).await;
        node.snapshot("web", "one").await;
        let record = node.catalog.volume(node.id("web")).unwrap();
        let bytes = Record::Volume(record.clone()).encode();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(!text.contains("schedule"), "{text}");
        assert_eq!(Record::decode(record.uuid, &bytes).unwrap(), Record::Volume(record.clone()));
        let mut odd = record;
        odd.schedule = Some(Schedule { minute: 2000, ..hourly_and_daily(1) });
        let bytes = Record::Volume(odd.clone()).encode();
        let refused = Record::decode(odd.uuid, &bytes).expect_err("no such time");
        assert_eq!(refused.code, Code::RecordUnreadable);
    });
}
