//! Names of objects. A name is parsed once into a kind and a UUID; what is not of this shape cannot
//! be expressed, so no name can leave its directory.
//!
//! ```text
//!   shale.json           identity of the datastore
//!   layer/UUID.vhd       a layer: guest data
//!   memory/UUID          a memory image: guest data
//!   record/UUID.json     a record: the unit of commit
//!   intent/UUID.json     what an operation is about to do
//!   cell/UUID.json       who uses a layer or a volume
//! ```

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// What an object is; each kind but the identity has a directory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `shale.json`.
    Identity,
    /// `layer/UUID.vhd`.
    Layer,
    /// `record/UUID.json`.
    Record,
    /// `intent/UUID.json`.
    Intent,
    /// `cell/UUID.json`.
    Cell,
    /// `memory/UUID`.
    Memory,
}

impl Kind {
    /// The kinds that have a directory.
    pub const DIRECTORIES: [Self; 5] =
        [Self::Layer, Self::Record, Self::Intent, Self::Cell, Self::Memory];

    /// The directory's name; empty for the identity, which lies at the top.
    #[must_use]
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Identity => "",
            Self::Layer => "layer",
            Self::Record => "record",
            Self::Intent => "intent",
            Self::Cell => "cell",
            Self::Memory => "memory",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Identity | Self::Memory => "",
            Self::Layer => ".vhd",
            Self::Record | Self::Intent | Self::Cell => ".json",
        }
    }

    /// Whether objects of this kind hold guest data: those stay out of the head-room.
    #[must_use]
    pub const fn is_guest_data(self) -> bool {
        matches!(self, Self::Layer | Self::Memory)
    }
}

/// The name of one object of a datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// The datastore's own identity; read-only through a store.
    Identity,
    /// A layer.
    Layer(Uuid),
    /// A record.
    Record(Uuid),
    /// An intent.
    Intent(Uuid),
    /// A cell.
    Cell(Uuid),
    /// A memory image.
    Memory(Uuid),
}

impl ObjectName {
    /// The object of `kind` with `id`; the identity has no id.
    #[must_use]
    pub const fn new(kind: Kind, id: Uuid) -> Self {
        match kind {
            Kind::Identity => Self::Identity,
            Kind::Layer => Self::Layer(id),
            Kind::Record => Self::Record(id),
            Kind::Intent => Self::Intent(id),
            Kind::Cell => Self::Cell(id),
            Kind::Memory => Self::Memory(id),
        }
    }

    /// What the object is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Identity => Kind::Identity,
            Self::Layer(_) => Kind::Layer,
            Self::Record(_) => Kind::Record,
            Self::Intent(_) => Kind::Intent,
            Self::Cell(_) => Kind::Cell,
            Self::Memory(_) => Kind::Memory,
        }
    }

    /// Its UUID; the identity has none.
    #[must_use]
    pub const fn id(&self) -> Option<Uuid> {
        match self {
            Self::Identity => None,
            Self::Layer(id)
            | Self::Record(id)
            | Self::Intent(id)
            | Self::Cell(id)
            | Self::Memory(id) => Some(*id),
        }
    }

    /// The file's name within its kind's directory.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.id().map_or_else(
            || "shale.json".to_owned(),
            |id| format!("{}{}", id.hyphenated(), self.kind().suffix()),
        )
    }

    /// Reads a file's name within the directory of `kind`; None where it is not one of ours.
    #[must_use]
    pub fn from_file_name(kind: Kind, file: &str) -> Option<Self> {
        if kind == Kind::Identity {
            return (file == "shale.json").then_some(Self::Identity);
        }
        let stem = file.strip_suffix(kind.suffix())?;
        let id = Uuid::try_parse(stem).ok()?;
        // One object has one name: no upper case, braces or missing hyphens.
        (id.hyphenated().to_string() == stem).then(|| Self::new(kind, id))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            Kind::Identity => f.write_str("shale.json"),
            kind => write!(f, "{}/{}", kind.directory(), self.file_name()),
        }
    }
}

/// A text that names no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not the name of an object: expected shale.json, layer/UUID.vhd, memory/UUID, \
     record/UUID.json, intent/UUID.json or cell/UUID.json"
)]
pub struct NameError {
    /// The text, cut to a printable length.
    pub text: String,
}

impl FromStr for ObjectName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let found = match text.split_once('/') {
            None => Self::from_file_name(Kind::Identity, text),
            Some((directory, file)) => Kind::DIRECTORIES
                .into_iter()
                .find(|kind| kind.directory() == directory)
                .and_then(|kind| Self::from_file_name(kind, file)),
        };
        found.ok_or_else(|| NameError { text: text.chars().take(80).collect() })
    }
}

impl serde::Serialize for ObjectName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ObjectName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, ObjectName};
    use uuid::Uuid;

    #[test]
    fn every_name_reads_back() {
        let id = Uuid::from_u128(0x1234_5678_9abc_def0_1122_3344_5566_7788);
        for kind in Kind::DIRECTORIES.into_iter().chain([Kind::Identity]) {
            let name = ObjectName::new(kind, id);
            assert_eq!(name.to_string().parse(), Ok(name));
            assert_eq!(ObjectName::from_file_name(kind, &name.file_name()), Some(name));
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<ObjectName>(&json).unwrap(), name);
        }
        assert_eq!(
            ObjectName::Layer(id).to_string(),
            "layer/12345678-9abc-def0-1122-334455667788.vhd"
        );
    }

    #[test]
    fn hostile_names_are_refused() {
        let id = "12345678-9abc-def0-1122-334455667788";
        let hostile = [
            String::new(),
            "/".into(),
            "..".into(),
            "shale.lock".into(),
            "shale.reserve".into(),
            "./shale.json".into(),
            "/shale.json".into(),
            "shale.json\0".into(),
            "layer".into(),
            "layer/".into(),
            "layer/.vhd".into(),
            "layer/../shale.json".into(),
            "layer/..".into(),
            format!("layer/{id}"),
            format!("layer/{id}.vhd/"),
            format!("layer//{id}.vhd"),
            format!("layer/../record/{id}.vhd"),
            format!("layer/{id}.json"),
            format!("layer/{id}.vhd.vhd"),
            format!("layer/{id}.vhd\n"),
            format!(" layer/{id}.vhd"),
            format!("Layer/{id}.vhd"),
            format!("/layer/{id}.vhd"),
            format!("layer\\{id}.vhd"),
            format!("layer/{}.vhd", id.to_uppercase()),
            format!("layer/{{{id}}}.vhd"),
            format!("layer/urn:uuid:{id}.vhd"),
            format!("layer/{}.vhd", id.replace('-', "")),
            format!("memory/{id}.json"),
            format!("lease/{id}"),
            format!("record/{id}.json\0"),
            format!("record/{}.json", "a".repeat(100_000)),
        ];
        for text in hostile {
            let error = text.parse::<ObjectName>().expect_err(&text);
            assert!(error.text.len() <= 320, "the error repeats {} bytes", error.text.len());
            assert!(serde_json::from_value::<ObjectName>(text.into()).is_err());
        }
    }
}
