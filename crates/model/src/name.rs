//! Names that people give to things, and references that find them again.
//!
//! A name is 1..=63 characters of `[A-Za-z0-9._-]` that starts with a letter or digit. A name that
//! reads as a UUID is refused: wherever an object is named, a UUID works too, and one text must
//! never mean two objects.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use uuid::Uuid;

use crate::text::as_text;

/// A validated name. Unique per datastore and object kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", example = "web-01")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing was given.
    #[error("a name is empty; use 1 to 63 letters, digits, '.', '_' or '-'")]
    Empty,
    /// More than 63 characters.
    #[error("a name has {0} characters; the limit is 63")]
    TooLong(usize),
    /// The first character is not a letter or digit.
    #[error("'{0}' does not start with a letter or digit")]
    Start(String),
    /// A character outside the set.
    #[error("'{0}' contains {1:?}; use letters, digits, '.', '_' and '-'")]
    Character(String, char),
    /// A UUID as a name would be ambiguous.
    #[error("'{0}' reads as a UUID and cannot be a name")]
    Uuid(String),
}

impl Name {
    /// Longest name in characters (all are ASCII, so in bytes too).
    pub const MAX: usize = 63;

    /// Checks `text` against the rules of a name.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let Some(first) = text.chars().next() else { return Err(NameError::Empty) };
        if text.chars().count() > Self::MAX {
            return Err(NameError::TooLong(text.chars().count()));
        }
        if let Some(bad) =
            text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
        {
            return Err(NameError::Character(text, bad));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::Start(text));
        }
        if Uuid::parse_str(&text).is_ok() {
            return Err(NameError::Uuid(text));
        }
        Ok(Self(text))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

as_text!(Name);

/// How a caller names an object: by UUID, by name, or by `DATASTORE/NAME` where the same name
/// exists on several datastores.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Reference {
    /// The object's UUID.
    Id(Uuid),
    /// The object's name.
    Name(Name),
    /// The object's name on one datastore.
    Qualified {
        /// The datastore's name.
        datastore: Name,
        /// The object's name there.
        name: Name,
    },
}

impl Reference {
    /// The UUID, if the caller gave one.
    pub fn id(&self) -> Option<Uuid> {
        match self {
            Self::Id(id) => Some(*id),
            Self::Name(_) | Self::Qualified { .. } => None,
        }
    }
}

impl From<Uuid> for Reference {
    fn from(id: Uuid) -> Self {
        Self::Id(id)
    }
}

impl From<Name> for Reference {
    fn from(name: Name) -> Self {
        Self::Name(name)
    }
}

impl FromStr for Reference {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Ok(id) = Uuid::parse_str(text) {
            return Ok(Self::Id(id));
        }
        match text.split_once('/') {
            Some((datastore, name)) => {
                Ok(Self::Qualified { datastore: Name::new(datastore)?, name: Name::new(name)? })
            }
            None => Ok(Self::Name(Name::new(text)?)),
        }
    }
}

as_text!(Reference);

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => write!(f, "{name}"),
            Self::Qualified { datastore, name } => write!(f, "{datastore}/{name}"),
        }
    }
}

impl utoipa::PartialSchema for Reference {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("A UUID, a name, or DATASTORE/NAME."))
            .examples(["fast1/web-01"])
            .into()
    }
}

impl ToSchema for Reference {}
