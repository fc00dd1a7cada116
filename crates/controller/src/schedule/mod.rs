//! Snapshots by the clock.
//!
//! ```text
//!   policy, and when each rule last ran   in the volume's record, on its datastore
//!   calendar.rs   when rules fall due     pure
//!   this file     what is to be done      pure: due, upcoming, surplus, names
//!   clock.rs      the host's clock
//!   driver.rs     waits for the next moment, has the node do it, raises alarms
//! ```
//!
//! A run is noted in the record that commits its snapshot, with the moment on the clock that decided: so
//! one that was missed while nothing ran is made up for once, none is made twice, and a datastore that
//! comes to another controller brings its schedules along.

mod calendar;
mod clock;
mod driver;

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use model::{
    Name, Rule, Schedule, ScheduleRule, ScheduledRun, SetSchedule, Snapshot, Timestamp, Uuid,
};

use calendar::{Calendar, instant, period};
pub use clock::{WallClock, host_clock};
pub(crate) use driver::{Driver, trouble_of};

/// The rules that are due at `now`.
///
/// A `last` that lies further ahead than the rule ever waits is what a wrong clock left: the rule is due,
/// and its run puts that right. One that is only a little ahead is a clock that was set back: the rule
/// waits until it is passed, so that no moment is served twice.
pub(crate) fn due(schedule: &Schedule, now: Timestamp, zone: &TimeZone) -> Vec<Rule> {
    let calendar = calendar(schedule, zone);
    let is_due = |rule: &&ScheduleRule| {
        let latest = calendar.latest(rule.rule, now);
        latest.is_some_and(|moment| rule.last < moment) || far_ahead(rule, now)
    };
    schedule.rules.iter().filter(is_due).map(|rule| rule.rule).collect()
}

/// The next runs after `now`, as many as `count`; what is due already is not among them.
pub(crate) fn upcoming(
    schedule: &Schedule,
    now: Timestamp,
    zone: &TimeZone,
    count: usize,
) -> Vec<ScheduledRun> {
    let calendar = calendar(schedule, zone);
    let mut next: Vec<(Rule, Timestamp)> = schedule
        .rules
        .iter()
        .filter_map(|rule| {
            let after = if far_ahead(rule, now) { now } else { rule.last.max(now) };
            Some((rule.rule, calendar.next(rule.rule, after)?))
        })
        .collect();
    let mut runs = Vec::new();
    while runs.len() < count {
        let Some(at) = next.iter().map(|(_, at)| *at).min() else { break };
        let rules = next.iter().filter(|(_, due)| *due == at).map(|(rule, _)| *rule).collect();
        runs.push(ScheduledRun { at, local: local(at, zone), rules });
        next = next
            .into_iter()
            .filter_map(|(rule, due)| {
                Some((rule, if due == at { calendar.next(rule, at)? } else { due }))
            })
            .collect();
    }
    runs
}

/// Snapshots that no rule keeps any more, oldest first. A user's is never among them, nor one of a rule
/// that the schedule no longer has: nobody asked for that to go.
pub(crate) fn surplus<'a>(schedule: &Schedule, snapshots: &'a [Snapshot]) -> Vec<&'a Snapshot> {
    let mut made: Vec<_> =
        snapshots.iter().filter_map(|s| Some((s.scheduled.as_ref()?, s))).collect();
    made.sort_by_key(|(scheduled, _)| std::cmp::Reverse(scheduled.run));
    let mut places: BTreeMap<Rule, u32> =
        schedule.rules.iter().map(|rule| (rule.rule, rule.keep)).collect();
    let mut gone = Vec::new();
    for (scheduled, snapshot) in made {
        let mut kept = scheduled.rules.is_empty();
        for rule in &scheduled.rules {
            match places.get_mut(rule) {
                Some(0) => {}
                Some(left) => {
                    *left -= 1;
                    kept = true;
                }
                None => kept = true,
            }
        }
        if !kept {
            gone.push(snapshot);
        }
    }
    gone.reverse();
    gone
}

/// `daily-20261126-0200`, of the rarest of the rules; with a number behind it where that is taken, as in
/// the hour that happens twice.
pub(crate) fn name_of(
    rules: &[Rule],
    now: Timestamp,
    zone: &TimeZone,
    taken: impl Fn(&str) -> bool,
) -> Option<Name> {
    let rule = rules.iter().max()?;
    let time = zone.to_datetime(instant(now)?).strftime("%Y%m%d-%H%M").to_string();
    let base = format!("{rule}-{time}");
    let numbered = (2..).map(|n: u32| format!("{base}-{n}"));
    let free = std::iter::once(base.clone()).chain(numbered).find(|name| !taken(name))?;
    Name::new(free).ok()
}

/// A schedule that is set now, as it will stand.
pub(crate) fn planned(asked: &SetSchedule, now: Timestamp) -> Schedule {
    let rule = |(rule, keep)| ScheduleRule { rule, keep, last: now };
    Schedule {
        rules: asked.rules().map(rule).collect(),
        at: asked.at,
        weekday: asked.weekday,
        unreserved: asked.unreserved,
    }
}

/// The snapshots of one volume that a schedule made.
pub(crate) fn made_for(snapshots: &BTreeMap<Uuid, Snapshot>, volume: Uuid) -> Vec<Snapshot> {
    let of = snapshots.values().filter(|s| s.volume == volume && s.scheduled.is_some());
    of.cloned().collect()
}

fn calendar<'a>(schedule: &Schedule, zone: &'a TimeZone) -> Calendar<'a> {
    Calendar { zone, at: schedule.at, weekday: schedule.weekday }
}

fn far_ahead(rule: &ScheduleRule, now: Timestamp) -> bool {
    rule.last.unix_ms() > now.unix_ms().saturating_add(period(rule.rule))
}

/// `2026-11-26 09:00 CET`.
fn local(at: Timestamp, zone: &TimeZone) -> String {
    let Some(instant) = instant(at) else { return at.to_string() };
    instant.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M %Z").to_string()
}

#[cfg(test)]
mod tests;
