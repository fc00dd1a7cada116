//! When rules fall due: moments on the local clock, found on the real one.
//!
//! A time of the day that a change to summer time leaves out is taken as much later as the clock jumps,
//! one that happens twice is taken the first time: a day has one daily run, whatever its length. Hourly
//! runs come at every passing of the minute, also in an hour that happens twice.

use jiff::ToSpan as _;
use jiff::tz::TimeZone;
use model::{Rule, TimeOfDay, Timestamp, Weekday};

const MINUTE: u64 = 60_000;
/// Longest way from one passing of a minute to the next: an hour, and the largest change of a clock.
const HOUR_SEARCH: u64 = 180;
/// Days around a moment in which a weekly run lies.
const DAYS_SEARCH: i64 = 8;

/// The moments of one schedule in one time zone.
#[derive(Clone, Debug)]
pub(crate) struct Calendar<'a> {
    pub(crate) zone: &'a TimeZone,
    pub(crate) at: TimeOfDay,
    pub(crate) weekday: Weekday,
}

impl Calendar<'_> {
    /// The first moment of `rule` after `after`.
    pub(crate) fn next(&self, rule: Rule, after: Timestamp) -> Option<Timestamp> {
        match rule {
            Rule::Hourly => {
                let from = after.unix_ms() / MINUTE;
                (1..=HOUR_SEARCH).find_map(|step| self.passing(from.checked_add(step)?))
            }
            Rule::Daily | Rule::Weekly => self.days(rule, after).find(|moment| *moment > after),
        }
    }

    /// The last moment of `rule` that is not after `now`.
    pub(crate) fn latest(&self, rule: Rule, now: Timestamp) -> Option<Timestamp> {
        match rule {
            Rule::Hourly => {
                let from = now.unix_ms() / MINUTE;
                (0..=HOUR_SEARCH).find_map(|step| self.passing(from.checked_sub(step)?))
            }
            Rule::Daily | Rule::Weekly => {
                self.days(rule, now).take_while(|moment| *moment <= now).last()
            }
        }
    }

    /// The start of this minute since 1970, if the local clock then shows the schedule's minute.
    fn passing(&self, minute: u64) -> Option<Timestamp> {
        let moment = Timestamp::from_unix_ms(minute.checked_mul(MINUTE)?);
        let shown = self.zone.to_datetime(instant(moment)?).minute();
        (i16::from(shown) == i16::try_from(self.at.minute()).ok()?).then_some(moment)
    }

    /// Daily or weekly moments around `moment`, in order.
    fn days(&self, rule: Rule, moment: Timestamp) -> impl Iterator<Item = Timestamp> {
        let today = instant(moment).map(|instant| self.zone.to_datetime(instant).date());
        (-DAYS_SEARCH..=DAYS_SEARCH).filter_map(move |days| {
            let date = today?.checked_add(days.days()).ok()?;
            let day = usize::try_from(date.weekday().to_monday_zero_offset()).ok()?;
            if rule == Rule::Weekly && Weekday::ALL.get(day) != Some(&self.weekday) {
                return None;
            }
            let (hour, minute) = (self.at.hour(), self.at.minute());
            let local = date.at(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0);
            let real = self.zone.to_ambiguous_timestamp(local).compatible().ok()?;
            u64::try_from(real.as_millisecond()).ok().map(Timestamp::from_unix_ms)
        })
    }
}

/// How long a rule usually waits.
pub(crate) const fn period(rule: Rule) -> u64 {
    let hour = 60 * MINUTE;
    match rule {
        Rule::Hourly => hour,
        Rule::Daily => 24 * hour,
        Rule::Weekly => 7 * 24 * hour,
    }
}

/// As jiff has it.
pub(crate) fn instant(moment: Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond(i64::try_from(moment.unix_ms()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngSeed};

    /// Rules of real places, without asking the machine for its own.
    fn zones() -> [TimeZone; 5] {
        [
            "UTC0",
            "CET-1CEST,M3.5.0,M10.5.0/3",
            "EST5EDT,M3.2.0,M11.1.0",
            "<+0545>-5:45",
            // Lord Howe: half an hour of summer time
            "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
        ]
        .map(|rules| TimeZone::posix(rules).expect("a zone"))
    }

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn at(text: &str) -> TimeOfDay {
        text.parse().expect("a time of the day")
    }

    fn moments(zone: &TimeZone, of: (Rule, &str), from: &str, count: usize) -> Vec<String> {
        let calendar = Calendar { zone, at: at(of.1), weekday: Weekday::Sunday };
        let mut moment = time(from);
        let mut found = Vec::new();
        for _ in 0..count {
            moment = calendar.next(of.0, moment).expect("a moment");
            found.push(moment.to_string()[..16].to_owned());
        }
        found
    }

    #[test]
    fn a_day_has_one_daily_run_however_long_it_is() {
        let [_, berlin, ..] = zones();
        let daily = |of, from| moments(&berlin, (Rule::Daily, of), from, 3);
        // 29 March 2026: 02:00 becomes 03:00. 02:30 does not exist and is taken at 03:30.
        assert_eq!(
            daily("02:30", "2026-03-28T00:00:00.000Z"),
            ["2026-03-28T01:30", "2026-03-29T01:30", "2026-03-30T00:30"]
        );
        // 25 October 2026: 03:00 becomes 02:00. 02:30 happens twice and is taken the first time.
        assert_eq!(
            daily("02:30", "2026-10-24T00:00:00.000Z"),
            ["2026-10-24T00:30", "2026-10-25T00:30", "2026-10-26T01:30"]
        );
        assert_eq!(
            moments(&berlin, (Rule::Weekly, "02:30"), "2026-03-20T00:00:00.000Z", 3),
            ["2026-03-22T01:30", "2026-03-29T01:30", "2026-04-05T00:30"]
        );
    }

    #[test]
    fn hourly_runs_follow_the_minute_also_where_clocks_change_by_half_an_hour() {
        let [_, berlin, .., lord_howe] = zones();
        assert_eq!(
            moments(&berlin, (Rule::Hourly, "00:15"), "2026-10-24T23:20:00.000Z", 4),
            ["2026-10-25T00:15", "2026-10-25T01:15", "2026-10-25T02:15", "2026-10-25T03:15"]
        );
        // 4 October 2026: 02:00 becomes 02:30 at 15:30 UTC of the day before
        assert_eq!(
            moments(&lord_howe, (Rule::Hourly, "00:00"), "2026-10-03T14:00:00.000Z", 3),
            ["2026-10-03T14:30", "2026-10-03T16:00", "2026-10-03T17:00"]
        );
    }

    proptest! {
        #![proptest_config(Config {
            cases: 400, rng_seed: RngSeed::Fixed(0x5c4e_d01e), failure_persistence: None,
            ..Config::default()
        })]

        /// `next` and `latest` are the same moments from both sides, and none is left out.
        #[test]
        fn moments_are_the_same_from_both_sides(
            zone in 0..5_usize,
            minutes in 0..1440_u16,
            day in 0..7_usize,
            start in 1_700_000_000_000..1_900_000_000_000_u64,
            rule in prop_oneof![Just(Rule::Hourly), Just(Rule::Daily), Just(Rule::Weekly)],
        ) {
            let zone = &zones()[zone];
            let at = TimeOfDay::from_minutes(minutes).expect("a time");
            let calendar = Calendar { zone, at, weekday: Weekday::ALL[day] };
            let now = Timestamp::from_unix_ms(start);
            let latest = calendar.latest(rule, now).expect("one before");
            let next = calendar.next(rule, now).expect("one after");
            prop_assert!(latest <= now && now < next);
            prop_assert_eq!(calendar.next(rule, latest), Some(next));
            prop_assert_eq!(calendar.latest(rule, next), Some(next));
            let just_before = Timestamp::from_unix_ms(next.unix_ms() - 1);
            prop_assert_eq!(calendar.latest(rule, just_before), Some(latest));
            // no longer than the period and a change of the clock
            let apart = next.unix_ms() - latest.unix_ms();
            prop_assert!(apart <= period(rule) + 60 * MINUTE, "{apart}");
            prop_assert!(apart + 60 * MINUTE >= period(rule), "{apart}");
        }
    }
}
