//! What an operator wants to be told, and to be kept from, as a datastore fills.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text::as_text;
use crate::{Code, Problem, Size};

/// A share of a datastore's size in tenths of a percent, `10%`, `3.3%`, `300%`; or `none`, switched off.
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
#[schema(value_type = String, pattern = "^(none|[0-9]{1,6}(\\.[0-9])?%)$", example = "150%")]
pub struct Threshold(Option<u32>);

/// A text that is no threshold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no share; write a percentage above zero like 150% or 3.3%, or none")]
pub struct ThresholdError(String);

impl Threshold {
    /// Switched off.
    pub const NONE: Self = Self(None);

    /// So many tenths of a percent; zero is none.
    pub const fn from_tenths(tenths: u32) -> Self {
        if tenths == 0 { Self::NONE } else { Self(Some(tenths)) }
    }

    /// This share of `whole`, rounded down; none where it is switched off.
    pub fn of(self, whole: Size) -> Option<Size> {
        let share = u128::from(whole.bytes()).saturating_mul(u128::from(self.0?)).div_euclid(1000);
        Some(Size::from_bytes(u64::try_from(share).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(tenths) = self.0 else { return f.pad("none") };
        match (tenths.div_euclid(10), tenths.rem_euclid(10)) {
            (whole, 0) => f.pad(&format!("{whole}%")),
            (whole, tenth) => f.pad(&format!("{whole}.{tenth}%")),
        }
    }
}

impl FromStr for Threshold {
    type Err = ThresholdError;

    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        if text == "none" {
            return Ok(Self::NONE);
        }
        let bad = || ThresholdError(text.to_owned());
        let number = text.strip_suffix('%').ok_or_else(bad)?;
        let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str, most: usize| {
            let plain =
                (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u32>().ok().filter(|_| plain).ok_or_else(bad)
        };
        let tenths = digits(whole, 6)?.saturating_mul(10).saturating_add(digits(tenth, 1)?);
        if tenths == 0 { Err(bad()) } else { Ok(Self(Some(tenths))) }
    }
}

as_text!(Threshold);

/// When a datastore is an alarm, and what it refuses. It is the operator's, kept by the controller, not
/// by the datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DatastorePolicy {
    /// More promised to guests than this share of its size is an alarm, `datastore-overcommitted`.
    pub overcommit_alarm: Threshold,
    /// What would promise more than this is refused.
    pub overcommit_limit: Threshold,
    /// Less free than this is an alarm, `datastore-low`.
    pub low: Threshold,
    /// Less free than this makes it a critical one.
    pub critical: Threshold,
}

/// Thin volumes are there to promise more than there is, so nothing is said of that unless asked for;
/// below a tenth free it is time to look, below a thirtieth to act.
impl Default for DatastorePolicy {
    fn default() -> Self {
        Self {
            overcommit_alarm: Threshold::NONE,
            overcommit_limit: Threshold::NONE,
            low: Threshold::from_tenths(100),
            critical: Threshold::from_tenths(33),
        }
    }
}

/// `PATCH /datastores/{datastore}`: what is absent stays as it is, `none` switches off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateDatastore {
    /// See `DatastorePolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_alarm: Option<Threshold>,
    /// See `DatastorePolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit_limit: Option<Threshold>,
    /// See `DatastorePolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<Threshold>,
    /// See `DatastorePolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critical: Option<Threshold>,
}

impl UpdateDatastore {
    /// The policy with these changes.
    pub fn applied(self, to: DatastorePolicy) -> Result<DatastorePolicy, Problem> {
        let new = DatastorePolicy {
            overcommit_alarm: self.overcommit_alarm.unwrap_or(to.overcommit_alarm),
            overcommit_limit: self.overcommit_limit.unwrap_or(to.overcommit_limit),
            low: self.low.unwrap_or(to.low),
            critical: self.critical.unwrap_or(to.critical),
        };
        let problem = |text: &str| Err(Problem::new(Code::BadRequest, text));
        if self == Self::default() {
            return problem("The request changes nothing.");
        }
        let whole = Threshold::from_tenths(1000);
        if new.low > whole || new.critical > whole {
            return problem("No more than 100% of a datastore can be free.");
        }
        if new.critical > new.low {
            return problem(
                "The critical share is above the one of the warning: it would never come.",
            );
        }
        Ok(new)
    }
}
