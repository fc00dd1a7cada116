//! A schedule over months of a virtual clock, with everything that clocks do.

use jiff::tz::TimeZone;
use model::{Name, Rule, Scheduled, SetSchedule, Size, Snapshot, Timestamp, Uuid, Weekday};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use super::*;

fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone")
}

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// A volume whose snapshots are only names.
struct Sim {
    schedule: Schedule,
    snapshots: Vec<Snapshot>,
    zone: TimeZone,
    runs: Vec<(Timestamp, Vec<Rule>)>,
}

impl Sim {
    fn new(asked: &SetSchedule, now: Timestamp, zone: TimeZone) -> Self {
        let schedule = planned(asked, now);
        Self { schedule, snapshots: Vec::new(), zone, runs: Vec::new() }
    }

    /// What the driver and the node do together at this moment; whether a snapshot was made.
    fn tick(&mut self, now: Timestamp) -> bool {
        let rules = due(&self.schedule, now, &self.zone);
        if rules.is_empty() {
            return false;
        }
        let taken = |name: &str| self.snapshots.iter().any(|s| s.name.as_str() == name);
        let name = name_of(&rules, now, &self.zone, taken).expect("a name");
        let run = self.snapshots.iter().filter_map(|s| Some(s.scheduled.as_ref()?.run)).max();
        let scheduled = Scheduled { rules: rules.clone(), run: run.unwrap_or(0) + 1 };
        self.snapshots.push(snapshot(name.as_str(), Some(scheduled), now));
        for rule in self.schedule.rules.iter_mut().filter(|r| rules.contains(&r.rule)) {
            rule.last = now;
        }
        self.runs.push((now, rules));
        let gone: Vec<Uuid> =
            surplus(&self.schedule, &self.snapshots).iter().map(|s| s.id).collect();
        self.snapshots.retain(|s| !gone.contains(&s.id));
        true
    }

    fn keeps(&self) -> usize {
        self.schedule.rules.iter().map(|r| r.keep as usize).sum()
    }

    fn names(&self) -> Vec<&str> {
        self.snapshots.iter().map(|s| s.name.as_str()).collect()
    }
}

fn snapshot(name: &str, scheduled: Option<Scheduled>, created: Timestamp) -> Snapshot {
    Snapshot {
        id: Uuid::new_v4(),
        name: Name::new(name).expect("a name"),
        volume: Uuid::nil(),
        volume_name: Name::new("v").expect("a name"),
        parent: None,
        size: Size::default(),
        used: Size::default(),
        merge_bytes: None,
        set: None,
        scheduled,
        clones: 0,
        created,
    }
}

#[test]
fn rules_that_fall_due_together_share_a_snapshot() {
    let asked = SetSchedule {
        hourly: Some(3),
        daily: Some(2),
        weekly: Some(1),
        at: "02:00".parse().expect("a time"),
        ..SetSchedule::default()
    };
    // a Saturday
    let start = time("2026-11-21T22:30:00.000Z");
    let mut sim = Sim::new(&asked, start, berlin());
    let told: Vec<_> = upcoming(&sim.schedule, start, &sim.zone, 4);
    assert_eq!(told[0].local, "2026-11-22 00:00 CET");
    assert_eq!(told[2].rules, [Rule::Hourly, Rule::Daily, Rule::Weekly]);
    for run in &told {
        assert!(
            !sim.tick(Timestamp::from_unix_ms(run.at.unix_ms() - 1)),
            "not before {}",
            run.local
        );
        assert!(sim.tick(run.at), "at {}", run.local);
        assert!(!sim.tick(Timestamp::from_unix_ms(run.at.unix_ms() + 1)), "only once");
    }
    assert_eq!(
        sim.names(),
        ["hourly-20261122-0100", "weekly-20261122-0200", "hourly-20261122-0300"]
    );
    for _ in 0..5 {
        let now = sim.runs.last().expect("a run").0;
        let next = upcoming(&sim.schedule, now, &sim.zone, 1)[0].at;
        sim.tick(next);
    }
    // the shared one stays for the day and the week after the hours have let it go
    assert_eq!(sim.names()[0], "weekly-20261122-0200");
    assert_eq!(sim.names().len(), 4);
}

#[test]
fn a_night_without_a_controller_is_made_up_for_once() {
    let asked = SetSchedule { hourly: Some(24), daily: Some(5), ..SetSchedule::default() };
    let mut sim = Sim::new(&asked, time("2026-11-20T12:00:00.000Z"), berlin());
    assert!(sim.tick(time("2026-11-23T07:31:00.000Z")), "two days later");
    assert!(!sim.tick(time("2026-11-23T07:32:00.000Z")));
    assert_eq!(sim.names(), ["daily-20261123-0831"]);
    assert_eq!(sim.runs[0].1, [Rule::Hourly, Rule::Daily]);
}

#[test]
fn the_hour_that_happens_twice_has_two_names() {
    let asked = SetSchedule { hourly: Some(9), ..SetSchedule::default() };
    let mut sim = Sim::new(&asked, time("2026-10-24T23:30:00.000Z"), berlin());
    for at in ["2026-10-25T00:00:00.000Z", "2026-10-25T01:00:00.000Z", "2026-10-25T02:00:00.000Z"] {
        assert!(sim.tick(time(at)), "{at}");
    }
    assert_eq!(
        sim.names(),
        ["hourly-20261025-0200", "hourly-20261025-0200-2", "hourly-20261025-0300"]
    );
}

#[test]
fn only_what_its_own_rules_let_go_is_surplus() {
    let asked = SetSchedule { daily: Some(1), ..SetSchedule::default() };
    let now = time("2026-11-26T00:00:00.000Z");
    let schedule = planned(&asked, now);
    let made = |rules: &[Rule], run| Some(Scheduled { rules: rules.to_vec(), run });
    let all = [
        snapshot("mine", None, now),
        snapshot("old-rule", made(&[Rule::Hourly], 1), now),
        snapshot("both", made(&[Rule::Hourly, Rule::Daily], 2), now),
        // its clock was years ahead: the order of the runs counts
        snapshot("first", made(&[Rule::Daily], 3), time("2099-01-01T00:00:00.000Z")),
        snapshot("second", made(&[Rule::Daily], 4), now),
    ];
    let gone: Vec<&str> = surplus(&schedule, &all).iter().map(|s| s.name.as_str()).collect();
    assert_eq!(gone, ["first"]);
}

#[test]
fn a_clock_that_was_years_ahead_stops_no_schedule() {
    let asked = SetSchedule { daily: Some(3), ..SetSchedule::default() };
    let mut sim = Sim::new(&asked, time("2060-01-01T00:00:00.000Z"), berlin());
    assert!(sim.tick(time("2060-01-01T23:00:00.000Z")));
    let now = time("2026-11-26T12:00:00.000Z");
    assert!(sim.tick(now), "the wrong time is put right by a run");
    assert!(!sim.tick(time("2026-11-26T12:00:01.000Z")));
    assert_eq!(upcoming(&sim.schedule, now, &sim.zone, 1)[0].at, time("2026-11-26T23:00:00.000Z"));
}

/// What happens to a clock.
#[derive(Clone, Debug)]
enum Step {
    /// The driver wakes at the next moment.
    Sleep,
    /// Time passes without anyone looking.
    Pass(u64),
    /// The clock is set back.
    Back(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let minute = 60_000_u64;
    let step = prop_oneof![
        8 => Just(Step::Sleep),
        2 => (1..60 * 24 * 20_u64).prop_map(move |m| Step::Pass(m * minute / 3)),
        1 => (1..60 * 24 * 9_u64).prop_map(move |m| Step::Back(m * minute / 2)),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(Config {
        cases: 200, rng_seed: RngSeed::Fixed(0x5c4e_d02e), failure_persistence: None,
        ..Config::default()
    })]

    /// Over every path of the clock: never more than the rules keep, never a user's snapshot, never two
    /// runs without a moment between them, and no moment that passes unserved.
    #[test]
    fn schedules_keep_their_promise_whatever_the_clock_does(
        start in 1_790_000_000_000..1_830_000_000_000_u64,
        keep in (0..20_u32, 0..8_u32, 1..4_u32),
        minutes in 0..1440_u16,
        weekday in 0..7_usize,
        steps in steps(),
    ) {
        let some = |n: u32| (n > 0).then_some(n);
        let asked = SetSchedule {
            hourly: some(keep.0),
            daily: some(keep.1),
            weekly: some(keep.2),
            at: model::TimeOfDay::from_minutes(minutes).expect("a time"),
            weekday: Weekday::ALL[weekday],
            unreserved: false,
        };
        prop_assert!(asked.refusal().is_none());
        let mut now = Timestamp::from_unix_ms(start);
        let mut sim = Sim::new(&asked, now, berlin());
        sim.snapshots.push(snapshot("mine", None, now));
        for step in steps {
            let runs = sim.runs.len();
            let (before, lasts) = (now, sim.schedule.rules.clone());
            now = match step {
                Step::Sleep => upcoming(&sim.schedule, now, &sim.zone, 1)[0].at,
                Step::Pass(ms) => Timestamp::from_unix_ms(now.unix_ms() + ms),
                Step::Back(ms) => Timestamp::from_unix_ms(now.unix_ms() - ms),
            };
            let ran = sim.tick(now);
            prop_assert!(!sim.tick(now), "one run serves all that is due");
            prop_assert!(sim.runs.len() - runs <= 1);
            match step {
                // nothing was far ahead before: then the next moment is served when it comes
                Step::Sleep => prop_assert!(ran, "{now}"),
                Step::Pass(_) | Step::Back(_) => {
                    for rule in &lasts {
                        let calendar = calendar(&sim.schedule, &sim.zone);
                        let latest = calendar.latest(rule.rule, now).expect("a moment");
                        let served = sim.schedule.rules.iter().any(|r| {
                            r.rule == rule.rule && r.last >= latest
                        });
                        prop_assert!(served, "{} of {before} to {now}", rule.rule);
                    }
                }
            }
            let scheduled = sim.snapshots.iter().filter(|s| s.scheduled.is_some()).count();
            prop_assert!(scheduled <= sim.keeps());
            prop_assert!(sim.snapshots.iter().any(|s| s.name.as_str() == "mine"));
            if let Some((_, rules)) = sim.runs.last().filter(|_| ran) {
                let newest = sim.snapshots.last().expect("just made");
                prop_assert_eq!(&newest.scheduled.as_ref().expect("made").rules, rules);
            }
        }
    }
}
