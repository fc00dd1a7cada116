//! Snapshot schedules: the policy of a volume, as it is asked for, as it stands, and its runs.
//!
//! Every rule that falls due at one moment is served by one snapshot. Each rule keeps the newest of
//! the snapshots that were made for it; what no rule keeps is deleted, never a snapshot of a user.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::object::words;
use crate::text::as_text;
use crate::{Code, Name, Problem, Timestamp};

/// Most snapshots a volume may have, layers of deleted ones that wait for their merge included.
pub const MAX_SNAPSHOTS: u32 = 32;
/// Most snapshots that the rules of a schedule may keep: the next one is made before the oldest goes.
pub const MAX_SCHEDULED: u32 = 31;

/// How often a rule makes a snapshot.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Every hour, at the minute of the schedule.
    Hourly,
    /// Every day, at the time of the schedule.
    Daily,
    /// Every week, at the day and time of the schedule.
    Weekly,
}
words!(Rule { Hourly = "hourly", Daily = "daily", Weekly = "weekly" });

/// A day of the week.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Weekday {
    /// Monday.
    Monday,
    /// Tuesday.
    Tuesday,
    /// Wednesday.
    Wednesday,
    /// Thursday.
    Thursday,
    /// Friday.
    Friday,
    /// Saturday.
    Saturday,
    /// Sunday.
    #[default]
    Sunday,
}
words!(Weekday {
    Monday = "monday",
    Tuesday = "tuesday",
    Wednesday = "wednesday",
    Thursday = "thursday",
    Friday = "friday",
    Saturday = "saturday",
    Sunday = "sunday",
});

/// A time of the day on the local clock of the controller's host, `HH:MM`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$", example = "02:00")]
pub struct TimeOfDay(u16);

/// A text that is no time of the day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no time of the day; write HH:MM, from 00:00 to 23:59")]
pub struct TimeOfDayError(String);

impl TimeOfDay {
    /// Minutes in a day.
    const DAY: u16 = 24 * 60;

    /// So many minutes after midnight; none after the last minute of the day.
    pub const fn from_minutes(minutes: u16) -> Option<Self> {
        if minutes < Self::DAY { Some(Self(minutes)) } else { None }
    }

    /// Minutes after midnight.
    pub const fn minutes(self) -> u16 {
        self.0
    }

    /// 0 to 23.
    pub const fn hour(self) -> u16 {
        self.0 / 60
    }

    /// 0 to 59.
    pub const fn minute(self) -> u16 {
        self.0 % 60
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour(), self.minute())
    }
}

impl FromStr for TimeOfDay {
    type Err = TimeOfDayError;

    fn from_str(text: &str) -> Result<Self, TimeOfDayError> {
        let bad = || TimeOfDayError(text.to_owned());
        let (hour, minute) = text.split_once(':').ok_or_else(bad)?;
        let field = |digits: &str, max: u16| {
            let plain = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|value: &u16| plain && *value <= max).ok_or_else(bad)
        };
        let (hour, minute) = (field(hour, 23)?, field(minute, 59)?);
        Ok(Self(hour.saturating_mul(60).saturating_add(minute)))
    }
}

as_text!(TimeOfDay);

/// `PUT /volumes/{volume}/schedule`: takes the place of the schedule that the volume has. It begins
/// with the next moment after now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSchedule {
    /// How many hourly snapshots are kept; absent: none are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u32>,
    /// How many daily ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// How many weekly ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// When, on the local clock of the controller's host; hourly ones at its minute.
    #[serde(default)]
    pub at: TimeOfDay,
    /// On which day the weekly ones.
    #[serde(default)]
    pub weekday: Weekday,
    /// What lazy and fixed volumes write after each snapshot takes space as it grows, instead of having
    /// all of it reserved once more.
    #[serde(default)]
    pub unreserved: bool,
}

impl SetSchedule {
    /// The rules with what each keeps, the most frequent first.
    pub fn rules(&self) -> impl Iterator<Item = (Rule, u32)> {
        let keeps =
            [(Rule::Hourly, self.hourly), (Rule::Daily, self.daily), (Rule::Weekly, self.weekly)];
        keeps.into_iter().filter_map(|(rule, keep)| Some((rule, keep?)))
    }

    /// How many snapshots all rules keep at most.
    pub fn keeps(&self) -> u32 {
        self.rules().fold(0, |sum: u32, (_, keep)| sum.saturating_add(keep))
    }

    /// Why no volume can have this schedule.
    pub fn refusal(&self) -> Option<Problem> {
        if self.rules().next().is_none() {
            return Some(
                Problem::new(Code::BadRequest, "A schedule needs at least one rule.")
                    .hint("say how many to keep: hourly, daily or weekly (--hourly 12)"),
            );
        }
        if let Some((rule, _)) = self.rules().find(|(_, keep)| *keep == 0) {
            return Some(
                Problem::new(Code::BadRequest, format!("The {rule} rule keeps no snapshot."))
                    .hint("keep at least one, or leave the rule out"),
            );
        }
        let keeps = self.keeps();
        (keeps > MAX_SCHEDULED).then(|| {
            Problem::new(
                Code::SnapshotLimit,
                format!(
                    "The rules keep up to {keeps} snapshots; a volume has {MAX_SNAPSHOTS}, and the next \
                     one is made before the oldest is deleted."
                ),
            )
            .hint(format!("keep at most {MAX_SCHEDULED} in all, like 16 hourly, 7 daily and 4 weekly"))
        })
    }
}

/// A rule as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleRule {
    /// How often.
    pub rule: Rule,
    /// How many snapshots of it are kept.
    pub keep: u32,
    /// When it last made one; before the first, when it was set.
    pub last: Timestamp,
}

/// The schedule of a volume. It is stored with the volume, on its datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    /// Its rules, the most frequent first.
    pub rules: Vec<ScheduleRule>,
    /// When, on the local clock of the controller's host; hourly ones at its minute.
    pub at: TimeOfDay,
    /// On which day the weekly ones.
    pub weekday: Weekday,
    /// Whether what lazy and fixed volumes write after each snapshot takes space as it grows.
    #[serde(default)]
    pub unreserved: bool,
}

/// What a snapshot was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scheduled {
    /// The rules that fell due at its moment.
    pub rules: Vec<Rule>,
    /// Tells the order in which the snapshots of a schedule were made, whatever the clock said.
    pub run: u64,
}

/// A moment at which a schedule makes a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduledRun {
    /// When.
    pub at: Timestamp,
    /// The same on the local clock of the controller's host, `2026-11-26 09:00 CET`.
    pub local: String,
    /// For which rules.
    pub rules: Vec<Rule>,
}

/// A schedule, whose it is, and how it gets on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleStatus {
    /// The volume.
    pub volume: Uuid,
    /// Its name.
    pub volume_name: Name,
    /// The name of its datastore.
    pub datastore_name: Name,
    /// The schedule.
    pub schedule: Schedule,
    /// The next runs.
    pub next: Vec<ScheduledRun>,
    /// How many of the volume's snapshots were made by a schedule.
    pub kept: u32,
    /// Why the last run was not made, or what could not be deleted; absent: all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What the controller has the node write down; no schedule clears it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutSchedule {
    /// The schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<SetSchedule>,
    /// From when on it counts, by the controller's clock.
    pub since: Timestamp,
}

/// One run, as the controller asks the node for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSchedule {
    /// The snapshot's name.
    pub name: Name,
    /// The rules that fell due.
    pub rules: Vec<Rule>,
    /// Now, by the controller's clock.
    pub at: Timestamp,
}
