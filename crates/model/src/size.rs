//! Sizes as people write them: `512M`, `10G`, `1.5T`, `4096`. Units are binary.
//!
//! On the wire a size is a number of bytes; requests also take the text form.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{KnownFormat, RefOr, Schema, SchemaFormat};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Size(u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// Not a number with an optional unit.
    #[error("'{0}' is not a size; write bytes or a number with K, M, G, T or P, like 10G")]
    Syntax(String),
    /// A fraction that is no whole number of bytes.
    #[error("'{0}' is not a whole number of bytes")]
    Fraction(String),
    /// More than 2^64 - 1 bytes.
    #[error("'{0}' is more than this system can address")]
    TooLarge(String),
}

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

impl Size {
    /// `bytes` bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// A short form that may round, for tables: `1.5 GiB`, `10 GiB`, `512 B`.
    pub fn human(self) -> String {
        let Some((unit, shift)) = UNITS.iter().rev().find(|(_, shift)| self.0 >> shift > 0) else {
            return format!("{} B", self.0);
        };
        let one = 1_u128 << shift;
        let bytes = u128::from(self.0);
        let whole = self.0 >> shift;
        // below 100 one decimal is worth its width
        if whole < 100 {
            let tenths = bytes.saturating_mul(10).saturating_add(one >> 1) >> shift;
            let (whole, tenth) = (tenths.div_euclid(10), tenths.rem_euclid(10));
            if tenth > 0 {
                return format!("{whole}.{tenth} {unit}iB");
            }
            return format!("{whole} {unit}iB");
        }
        format!("{} {unit}iB", bytes.saturating_add(one >> 1) >> shift)
    }
}

impl From<u64> for Size {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.0
    }
}

/// Exact: the largest unit that divides the size, so that parsing gives the same size back.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |shift: &u32| self.0 > 0 && self.0.trailing_zeros() >= *shift;
        match UNITS.iter().rev().find(|(_, shift)| exact(shift)) {
            Some((unit, shift)) => f.pad(&format!("{}{unit}", self.0 >> shift)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let syntax = || SizeError::Syntax(text.to_owned());
        let trimmed = text.trim();
        let digits_end =
            trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at_checked(digits_end).ok_or_else(syntax)?;
        let unit = unit.trim().to_ascii_uppercase();
        let shift = match unit.as_str() {
            "" | "B" => 0,
            other => {
                let mut letters = other.chars();
                let letter = letters.next().ok_or_else(syntax)?;
                if !matches!(letters.as_str(), "" | "B" | "IB") {
                    return Err(syntax());
                }
                UNITS.iter().find(|(unit, _)| *unit == letter).ok_or_else(syntax)?.1
            }
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (fraction.is_empty() && number.contains('.')) || fraction.len() > 18
        {
            return Err(syntax());
        }
        let too_large = || SizeError::TooLarge(text.to_owned());
        let all = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit());
        if !all(whole) || !all(fraction) {
            return Err(syntax());
        }
        let whole: u64 = whole.parse().ok().ok_or_else(too_large)?;
        let mut bytes = u128::from(whole) << shift;
        if !fraction.is_empty() {
            let value: u64 = fraction.parse().ok().ok_or_else(syntax)?;
            let scale = 10_u128
                .checked_pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX))
                .ok_or_else(syntax)?;
            let part = u128::from(value) << shift;
            if part.checked_rem(scale) != Some(0) {
                return Err(SizeError::Fraction(text.to_owned()));
            }
            bytes = bytes.saturating_add(part.checked_div(scale).unwrap_or(0));
        }
        u64::try_from(bytes).ok().map(Self).ok_or_else(too_large)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Both;
        impl Visitor<'_> for Both {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes or a text like \"10G\"")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .ok()
                    .map(Size)
                    .ok_or_else(|| E::custom("a size cannot be negative"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Both)
    }
}

impl utoipa::PartialSchema for Size {
    fn schema() -> RefOr<Schema> {
        let bytes = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(0))
            .description(Some("bytes; what every answer contains"));
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[0-9]+(\\.[0-9]+)? ?([KMGTP](i?B)?|B)?$"))
            .description(Some("a number with a binary unit; accepted in requests"));
        RefOr::T(Schema::OneOf(
            OneOfBuilder::new().item(bytes).item(text).description(Some("A size.")).build(),
        ))
    }
}

impl ToSchema for Size {}
