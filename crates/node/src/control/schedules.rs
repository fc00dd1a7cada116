//! Snapshots by the clock, as the controller asks for them: the policy, a run, and the deletion of
//! what a schedule no longer keeps. Whatever the controller believes, only snapshots that a schedule
//! made are deleted here, and none that a linked clone stands on.

use std::rc::Rc;

use catalog::Every;
use model::{
    Code, Operation, Problem, PutSchedule, Rule, RunSchedule, Schedule, ScheduleRule, Scheduled,
    SetSchedule, TimeOfDay, Timestamp, Weekday,
};
use serde_json::Value;
use uuid::Uuid;

use super::stores::to_value;
use super::{Control, catalog_problem};
use crate::problem::Outcome;
use crate::tasks::{About, Progress};

const _: () = assert!(catalog::MAX_SNAPSHOTS == model::MAX_SNAPSHOTS as usize);

impl Control {
    /// Sets or clears the schedule of a volume.
    pub(crate) async fn put_schedule(
        self: Rc<Self>,
        id: Uuid,
        request: PutSchedule,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, _) = self.find(id)?;
        let _working = self.work_on(&[id], progress.id())?;
        let schedule = match &request.schedule {
            Some(asked) => {
                if let Some(refusal) = asked.refusal() {
                    return Err(refusal);
                }
                Some(stored(asked, request.since))
            }
            None => None,
        };
        store.catalog()?.schedule_set(id, schedule).await.map_err(catalog_problem)?;
        self.tell_volume(id).await;
        to_value(&self.show_volume(id).await?)
    }

    /// Makes the snapshot that fell due.
    pub(crate) async fn run_schedule(
        self: Rc<Self>,
        id: Uuid,
        request: RunSchedule,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, _) = self.find(id)?;
        let opened = store.opened()?;
        let _working = self.work_on(&[id], progress.id())?;
        progress.running("snapshotting");
        let rules: Vec<Every> = request.rules.iter().map(|rule| every(*rule)).collect();
        let (name, at) = (request.name.as_str(), request.at.unix_ms());
        let made = opened.catalog.snapshot_scheduled(id, name, &rules, at).await;
        self.snapshots_made(&opened, &[id], made).await
    }

    pub(crate) fn about_retired(&self, volume: Uuid, snapshot: Uuid) -> Outcome<About> {
        let (_, record) = self.find(volume)?;
        if record.snapshot(snapshot).is_some_and(|found| found.scheduled.is_none()) {
            return Err(Problem::new(
                Code::Refused,
                format!("Snapshot {snapshot} of {} was made by no schedule.", record.name),
            )
            .hint("delete it yourself if it is to go: shale snapshot delete"));
        }
        Ok(self.about_one_snapshot(Operation::SnapshotDelete, volume, snapshot)?.scheduled())
    }

    /// Deletes a snapshot that its schedule no longer keeps.
    pub(crate) async fn retire_snapshot(
        self: Rc<Self>,
        volume: Uuid,
        snapshot: Uuid,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, record) = self.find(volume)?;
        let clones = store.catalog()?.clones_of(volume, snapshot).map_err(catalog_problem)?;
        if !clones.is_empty() {
            let names: Vec<&str> = clones.iter().map(|clone| clone.name.as_str()).collect();
            return Err(Problem::new(
                Code::HasDependents,
                format!("Linked clones of {} stand on the snapshot.", record.name),
            )
            .hint(format!("it goes when they are deleted: {}", names.join(", "))));
        }
        self.delete_snapshot(volume, snapshot, progress).await
    }
}

fn every(rule: Rule) -> Every {
    match rule {
        Rule::Hourly => Every::Hour,
        Rule::Daily => Every::Day,
        Rule::Weekly => Every::Week,
    }
}

fn rule(every: Every) -> Rule {
    match every {
        Every::Hour => Rule::Hourly,
        Every::Day => Rule::Daily,
        Every::Week => Rule::Weekly,
    }
}

/// As it is kept in the volume's record.
fn stored(asked: &SetSchedule, since: Timestamp) -> catalog::Schedule {
    let last = since.unix_ms();
    let weekday = Weekday::ALL.iter().position(|day| *day == asked.weekday).unwrap_or_default();
    catalog::Schedule {
        rules: asked
            .rules()
            .map(|(rule, keep)| catalog::ScheduleRule { every: every(rule), keep, last })
            .collect(),
        minute: asked.at.minutes(),
        weekday: u8::try_from(weekday).unwrap_or_default(),
        unreserved: asked.unreserved,
    }
}

/// As it is shown. What a record says was checked when it was read.
pub(super) fn wire(schedule: &catalog::Schedule) -> Schedule {
    Schedule {
        rules: schedule
            .rules
            .iter()
            .map(|r| ScheduleRule {
                rule: rule(r.every),
                keep: r.keep,
                last: Timestamp::from_unix_ms(r.last),
            })
            .collect(),
        at: TimeOfDay::from_minutes(schedule.minute).unwrap_or_default(),
        weekday: Weekday::ALL.get(usize::from(schedule.weekday)).copied().unwrap_or_default(),
        unreserved: schedule.unreserved,
    }
}

pub(super) fn wire_made_for(made: &catalog::Scheduled) -> Scheduled {
    Scheduled { rules: made.rules.iter().map(|every| rule(*every)).collect(), run: made.run }
}
