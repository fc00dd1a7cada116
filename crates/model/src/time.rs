//! Points in time on the wire: RFC 3339 in UTC with milliseconds, `2026-11-22T23:20:37.123Z`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text::as_text;

/// Milliseconds since 1970-01-01 UTC, written as RFC 3339. The year is 1970..=9999.
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
#[schema(value_type = String, format = DateTime, example = "2026-11-22T23:20:37.123Z")]
pub struct Timestamp(u64);

/// A text that is not a point in time of the form that Shale writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a UTC time like 2026-11-22T23:20:37.123Z")]
pub struct TimestampError(String);

/// The last millisecond of the year 9999: four digits of year are all the format has.
const MAX: u64 = 253_402_300_799_999;
const DAY: u64 = 86_400_000;

impl Timestamp {
    /// `ms` milliseconds after the epoch; times after the year 9999 become its last millisecond.
    pub const fn from_unix_ms(ms: u64) -> Self {
        Self(if ms > MAX { MAX } else { ms })
    }

    /// Milliseconds since the epoch.
    pub const fn unix_ms(self) -> u64 {
        self.0
    }
}

/// (year, month, day) of a day number, after Howard Hinnant's `civil_from_days`.
#[expect(clippy::arithmetic_side_effects, reason = "days < 2_932_897: every term fits easily")]
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

/// The day number of a date of the years 1970..=9999.
#[expect(clippy::arithmetic_side_effects, reason = "year <= 9999, month and day are checked")]
fn days(year: u64, month: u64, day: u64) -> u64 {
    let y = year - u64::from(month <= 2);
    let (era, yoe) = (y / 400, y % 400);
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.0 / DAY);
        let ms = self.0 % DAY;
        let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
        let (second, milli) = (ms / 1000 % 60, ms % 1000);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    #[expect(clippy::arithmetic_side_effects, reason = "every field is range-checked first")]
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let bad = || TimestampError(text.to_owned());
        let field = |at: usize, len: usize, max: u64| {
            let digits = text.get(at..at.saturating_add(len)).ok_or_else(bad)?;
            if !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad());
            }
            digits.parse::<u64>().ok().filter(|v| *v <= max).ok_or_else(bad)
        };
        let punctuation = [(4_usize, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":")];
        let ok = punctuation.iter().all(|(at, p)| text.get(*at..at.saturating_add(1)) == Some(*p));
        let milli = match text.get(19..) {
            Some("Z") => 0,
            Some(rest) if rest.len() == 5 && rest.starts_with('.') && rest.ends_with('Z') => {
                field(20, 3, 999)?
            }
            _ => return Err(bad()),
        };
        let (year, month, day) = (field(0, 4, 9999)?, field(5, 2, 12)?, field(8, 2, 31)?);
        if !ok || year < 1970 || month == 0 || day == 0 {
            return Err(bad());
        }
        let number = days(year, month, day);
        if civil(number) != (year, month, day) {
            return Err(bad()); // 31 February and friends
        }
        let seconds = field(11, 2, 23)? * 3600 + field(14, 2, 59)? * 60 + field(17, 2, 59)?;
        Ok(Self(number * DAY + seconds * 1000 + milli))
    }
}

as_text!(Timestamp);
