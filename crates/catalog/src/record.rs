//! Records: the unit of commit. A volume's record holds everything about it but the parent links of
//! its layers, which live in the layers themselves (invariant 3).
//!
//! ```text
//!   record/UUID.json    {"type": "volume", "format": 1, ...}   one volume or template
//!                       {"type": "set",    "format": 1, ...}   several volumes changed by one commit:
//!                                                               rolled forward into theirs, then gone
//! ```
//!
//! Records are replaced whole. One of an unknown format or type is refused, never guessed at.

use datastore::ObjectName;
use image::BLOCK_BYTES;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{CatalogError, Code, Result};
use crate::segments::{Layout, MAX_SEGMENT, MAX_SEGMENTS, Tip, one_or_more};

/// The record format that this version writes.
pub const FORMAT: u32 = 1;

/// Most snapshots a volume may have, branches and layers that still wait for their merge included.
pub const MAX_SNAPSHOTS: usize = 32;

/// Largest volume: 64 TiB.
pub const MAX_SIZE: u64 = 64 << 40;

/// Sizes are multiples of this many bytes.
pub(crate) const SIZE_UNIT: u64 = 512;

/// How a volume takes space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// Every byte is written at creation; a fixed VHD.
    Fixed,
    /// All space is reserved, zeroed at first write; a dynamic VHD.
    Lazy,
    /// Grows; a dynamic VHD.
    Thin,
}

impl VolumeKind {
    /// As it is stored and shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Lazy => "lazy",
            Self::Thin => "thin",
        }
    }
}

/// Where a volume came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The volume or template.
    pub volume: Uuid,
    /// Its snapshot, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Uuid>,
    /// Whether layers are shared (a linked clone) or everything was copied.
    pub linked: bool,
}

/// How often a rule of a schedule makes a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Every {
    /// Every hour.
    Hour,
    /// Every day.
    Day,
    /// Every week.
    Week,
}

/// A rule of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRule {
    /// How often it makes a snapshot.
    pub every: Every,
    /// How many of them are kept.
    pub keep: u32,
    /// When it last made one, or was set, by the clock of whoever runs it: Unix time in milliseconds.
    /// It changes with the very commit that makes the snapshot, so no run is lost or made twice.
    pub last: u64,
}

/// Snapshots by the clock: policy of the volume, so it is kept with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The rules, each kind once, the most frequent first.
    pub rules: Vec<ScheduleRule>,
    /// When: minutes after midnight on the local clock of whoever runs it.
    pub minute: u16,
    /// On which day the weekly ones, 0 = Monday.
    pub weekday: u8,
    /// The layers that its snapshots put above take space as they grow, whatever the kind (rule N2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unreserved: bool,
}

/// What a schedule made a snapshot for. Only such ones are ever deleted by a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduled {
    /// The rules that fell due together.
    pub rules: Vec<Every>,
    /// Larger than that of every older one the volume has: clocks may go back, this does not.
    pub run: u64,
}

/// A point in time of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name, unique within the volume.
    pub name: String,
    /// Unix time in milliseconds.
    pub created: u64,
    /// The snapshot that was current when this one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Uuid>,
    /// The frozen layers that are its content.
    #[serde(rename = "layer")]
    pub tip: Tip,
    /// The volume's size then, in bytes.
    pub size: u64,
    /// The operation that made it, where it took several volumes at one moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Uuid>,
    /// What a schedule made it for; None: it is a user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Scheduled>,
}

/// What the volume is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Current {
    /// The leaves that are written; frozen in a template.
    #[serde(rename = "layer")]
    pub tip: Tip,
    /// The snapshot it stands on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Uuid>,
    /// The leaves take space as they grow although the volume's kind reserves: asked for with the
    /// snapshot that made it (rule N2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unreserved: bool,
}

/// A volume or template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// Its UUID, which also names the record and the volume's cell.
    pub uuid: Uuid,
    /// Its name, unique in the datastore.
    pub name: String,
    /// Counts the changes of this record.
    pub revision: u64,
    /// The operation that wrote this revision.
    pub operation: Uuid,
    /// Size in bytes, a multiple of 512.
    pub size: u64,
    /// How it takes space.
    pub kind: VolumeKind,
    /// Unix time in milliseconds.
    pub created: u64,
    /// Frozen: it can be deployed, read and deleted, not written.
    pub template: bool,
    /// Where it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// What it is now.
    pub current: Current,
    /// Every layer it owns: the current ones, those of snapshots, and *ghosts*, layers of deleted
    /// snapshots that wait for their merge. Layers below a linked clone's belong to its origin.
    pub layers: Vec<Uuid>,
    /// Those of them that are fixed VHDs, at most one a segment. It is said here, because in a fixed VHD
    /// every byte but the footer is the guest's, who could make it look like another kind of file.
    #[serde(
        default,
        rename = "fixed_layer",
        with = "one_or_more",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub fixed_layers: Vec<Uuid>,
    /// Bytes of each segment but the last, whole blocks. Volumes that can be one VHD have one.
    #[serde(default = "max_segment", skip_serializing_if = "is_max_segment")]
    pub segment: u64,
    /// Snapshots of it by the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
}

fn max_segment() -> u64 {
    MAX_SEGMENT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde wants")]
fn is_max_segment(segment: &u64) -> bool {
    *segment == MAX_SEGMENT
}

/// Several volumes changed by one commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRecord {
    /// The operation, which also names the record.
    pub uuid: Uuid,
    /// The volumes as they are by this commit.
    pub volumes: Vec<VolumeRecord>,
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "read and taken apart one at a time")]
pub enum Record {
    /// A volume or template.
    Volume(VolumeRecord),
    /// Several volumes changed by one commit.
    Set(SetRecord),
}

/// What every stored object says of itself first.
#[derive(Deserialize)]
struct Head {
    format: u32,
    r#type: String,
}

#[derive(Serialize)]
struct Stored<'a, T> {
    r#type: &'static str,
    format: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// Writes `body` with its type and format in front.
pub(crate) fn encode_as<T: Serialize>(kind: &'static str, body: &T) -> Vec<u8> {
    serde_json::to_vec_pretty(&Stored { r#type: kind, format: FORMAT, body })
        .expect("records have string keys and no failing fields")
}

/// Reads type and format, then the rest by `kind`'s own shape.
pub(crate) fn decode_as<T>(
    name: ObjectName,
    bytes: &[u8],
    body: impl FnOnce(&str, serde_json::Value) -> Option<serde_json::Result<T>>,
) -> Result<T> {
    let unreadable = |problem: String| {
        CatalogError::new(Code::RecordUnreadable, format!("{name} cannot be read: {problem}"))
            .hint("nothing was changed; restore the object from a backup, or look at it by hand")
    };
    // serde_json limits nesting to 128 levels, so hostile depth is an error, not a stack overflow.
    let mut value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|e| unreadable(e.to_string()))?;
    let head = Head::deserialize(&value).map_err(|e| unreadable(e.to_string()))?;
    if head.format != FORMAT {
        return Err(unreadable(format!(
            "it has format {}; this version of Shale knows {FORMAT}",
            head.format
        )));
    }
    if let Some(fields) = value.as_object_mut() {
        fields.remove("format");
        fields.remove("type");
    }
    match body(&head.r#type, value) {
        Some(read) => read.map_err(|e| unreadable(e.to_string())),
        None => Err(unreadable(format!("its type is {:?}", head.r#type))),
    }
}

impl Record {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Volume(volume) => encode_as("volume", volume),
            Self::Set(set) => encode_as("set", set),
        }
    }

    /// Reads the record stored as `record/ID.json`.
    ///
    /// # Errors
    /// `record-unreadable` for what does not parse or contradicts itself.
    pub fn decode(id: Uuid, bytes: &[u8]) -> Result<Self> {
        let name = ObjectName::Record(id);
        let record = decode_as(name, bytes, |kind, value| match kind {
            "volume" => Some(serde_json::from_value(value).map(Self::Volume)),
            "set" => Some(serde_json::from_value(value).map(Self::Set)),
            _ => None,
        })?;
        let problem = match &record {
            Self::Volume(volume) if volume.uuid != id => Some("it holds another UUID".to_owned()),
            Self::Volume(volume) => volume.problem(),
            Self::Set(set) if set.uuid != id => Some("it holds another UUID".to_owned()),
            Self::Set(set) => set.volumes.iter().find_map(VolumeRecord::problem),
        };
        match problem {
            None => Ok(record),
            Some(problem) => Err(CatalogError::new(
                Code::RecordUnreadable,
                format!("{name} contradicts itself: {problem}"),
            )
            .hint("nothing was changed; restore the object from a backup, or look at it by hand")),
        }
    }
}

impl Schedule {
    /// What no schedule can be, if it is that.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if self.rules.is_empty() || !self.rules.is_sorted_by(|a, b| a.every < b.every) {
            return Some("the rules of its schedule are none, or out of order");
        }
        let known = self.minute < 24 * 60 && self.weekday < 7;
        (!known).then_some("the time of its schedule is none of a week")
    }
}

impl VolumeRecord {
    /// The snapshot with this UUID.
    #[must_use]
    pub fn snapshot(&self, id: Uuid) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.uuid == id)
    }

    /// Whether `layer` is one of the current layers or a snapshot's.
    #[must_use]
    pub fn is_tip(&self, layer: Uuid) -> bool {
        self.current.tip.contains(layer) || self.snapshots.iter().any(|s| s.tip.contains(layer))
    }

    /// Whether `layer` is a fixed VHD.
    #[must_use]
    pub fn is_fixed(&self, layer: Uuid) -> bool {
        self.fixed_layers.contains(&layer)
    }

    /// How the disk divides.
    pub(crate) fn layout(&self) -> Layout {
        self.layout_at(self.size)
    }

    /// How it divided, or would, with `size` bytes.
    pub(crate) fn layout_at(&self, size: u64) -> Layout {
        Layout { size, segment: self.segment }
    }

    /// Each tip with the size that the disk has, or had: what it is now comes last.
    pub(crate) fn tips(&self) -> impl Iterator<Item = (&Tip, u64)> {
        let snapshots = self.snapshots.iter().map(|snapshot| (&snapshot.tip, snapshot.size));
        snapshots.chain([(&self.current.tip, self.size)])
    }

    /// Whether what the volume is now has all its space: of its kind, unless told otherwise.
    #[must_use]
    pub fn reserves(&self) -> bool {
        self.kind != VolumeKind::Thin && !self.current.unreserved
    }

    /// Layers of deleted snapshots that wait for their merge.
    pub fn ghosts(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.layers.iter().copied().filter(|layer| !self.is_tip(*layer))
    }

    /// What in the record contradicts itself, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.revision == u64::MAX {
            return Some("its revision is the last there is".into());
        }
        let mut layers = self.layers.clone();
        layers.sort_unstable();
        layers.dedup();
        if layers.len() != self.layers.len() {
            return Some("a layer stands in it twice".into());
        }
        let foreign = |layer: &Uuid| layers.binary_search(layer).is_err();
        if self.current.tip.layers().iter().any(foreign) {
            return Some("its current layer is not one of its layers".into());
        }
        if !is_size(self.size) || self.snapshots.iter().any(|s| !is_size(s.size)) {
            return Some("a size is out of bounds".into());
        }
        if !is_segment(self.segment) {
            return Some("the size of its segments is out of bounds".into());
        }
        if self.tips().any(|(tip, size)| tip.layers().len() != self.layout_at(size).count()) {
            return Some("it has not one layer for each segment".into());
        }
        if self.layout().count() > MAX_SEGMENTS {
            return Some(format!("it has more than {MAX_SEGMENTS} segments"));
        }
        if self.fixed_layers.iter().any(foreign) {
            return Some("its fixed layer is not one of its layers".into());
        }
        let mut tips: Vec<Uuid> = self.tips().flat_map(|(tip, _)| tip.layers()).copied().collect();
        tips.sort_unstable();
        if let Some(twice) = tips.windows(2).find(|pair| pair[0] == pair[1]) {
            return Some(format!("layer {} is the tip of two points in time", twice[0]));
        }
        if !is_name(&self.name) {
            return Some("its name is not a name".into());
        }
        if let Some(problem) = self.schedule.as_ref().and_then(Schedule::problem) {
            return Some(problem.into());
        }
        for (at, snapshot) in self.snapshots.iter().enumerate() {
            if snapshot.tip.layers().iter().any(foreign) {
                return Some(format!("the layer of snapshot {} is not its own", snapshot.uuid));
            }
            let same =
                |other: &Snapshot| other.uuid == snapshot.uuid || other.name == snapshot.name;
            if self.snapshots.iter().skip(at + 1).any(same) {
                return Some(format!("snapshot {} collides with another", snapshot.uuid));
            }
            if self.parent_depth(snapshot.parent).is_none() {
                return Some(format!("the parents of snapshot {} lead nowhere", snapshot.uuid));
            }
        }
        if self.parent_depth(self.current.parent).is_none() {
            return Some("the snapshot it stands on does not exist".into());
        }
        None
    }

    /// Steps to the root of the snapshot tree; None where the way ends or goes in a circle.
    fn parent_depth(&self, from: Option<Uuid>) -> Option<usize> {
        let mut at = from;
        for depth in 0..=self.snapshots.len() {
            match at {
                None => return Some(depth),
                Some(id) => at = self.snapshot(id)?.parent,
            }
        }
        None
    }
}

/// Whether `size` is one that a volume can have.
#[must_use]
pub fn is_size(size: u64) -> bool {
    (1..=MAX_SIZE).contains(&size) && size.is_multiple_of(SIZE_UNIT)
}

/// Whether segments can be of `bytes`.
fn is_segment(bytes: u64) -> bool {
    (BLOCK_BYTES..=MAX_SEGMENT).contains(&bytes) && bytes.is_multiple_of(BLOCK_BYTES)
}

/// Whether `name` keeps the rules: 1 to 63 of `A-Z a-z 0-9 . _ -`, the first a letter or digit.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three segments of a block, and a snapshot of the time when there were two.
    fn segmented() -> VolumeRecord {
        let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(Uuid::from_u128);
        let snapshot = Snapshot {
            uuid: Uuid::from_u128(9),
            name: "s".into(),
            created: 0,
            parent: None,
            tip: Tip::new(vec![a, b]),
            size: BLOCK_BYTES + 512,
            set: None,
            scheduled: None,
        };
        VolumeRecord {
            uuid: Uuid::from_u128(8),
            name: "v".into(),
            revision: 1,
            operation: Uuid::nil(),
            size: 2 * BLOCK_BYTES + 512,
            kind: VolumeKind::Thin,
            created: 0,
            template: false,
            origin: None,
            current: Current {
                tip: Tip::new(vec![c, d, e]),
                parent: Some(snapshot.uuid),
                unreserved: false,
            },
            snapshots: vec![snapshot],
            layers: vec![a, b, c, d, e],
            fixed_layers: vec![a],
            segment: BLOCK_BYTES,
            schedule: None,
        }
    }

    #[test]
    fn a_record_has_one_layer_for_each_segment_of_each_point_in_time() {
        type Damage = fn(&mut VolumeRecord);
        let whole = segmented();
        let stored = Record::Volume(whole.clone()).encode();
        assert_eq!(Record::decode(whole.uuid, &stored).unwrap(), Record::Volume(whole.clone()));
        let [a, c, foreign] = [1, 3, 7].map(Uuid::from_u128);
        assert!(whole.is_tip(a) && !whole.is_tip(foreign));
        let damages: [(&str, Damage); 11] = [
            ("a layer too few", |r| r.current.tip = Tip::new(r.current.tip.layers()[..2].to_vec())),
            ("a layer too many", |r| r.snapshots[0].size = BLOCK_BYTES),
            ("a size too large for its layers", |r| r.size += 2 * BLOCK_BYTES),
            ("segments of nothing", |r| r.segment = 0),
            ("segments of half a block", |r| r.segment = BLOCK_BYTES / 2),
            ("segments that no VHD holds", |r| r.segment = MAX_SEGMENT + BLOCK_BYTES),
            ("segments that end in a block", |r| r.segment += 512),
            ("a foreign layer", |r| r.current.tip.replace(Uuid::from_u128(3), Uuid::from_u128(7))),
            ("a foreign fixed layer", |r| r.fixed_layers.push(Uuid::from_u128(7))),
            ("one layer for two segments", |r| {
                r.current.tip.replace(Uuid::from_u128(4), Uuid::from_u128(3));
            }),
            ("one layer for two points in time", |r| {
                r.current.tip.replace(Uuid::from_u128(3), Uuid::from_u128(1));
            }),
        ];
        for (what, damage) in damages {
            let mut damaged = whole.clone();
            damage(&mut damaged);
            let stored = Record::Volume(damaged).encode();
            let error = Record::decode(whole.uuid, &stored).expect_err(what);
            assert_eq!(error.code, Code::RecordUnreadable, "{what}");
        }
        assert!(whole.current.tip.contains(c));
    }

    #[test]
    fn records_of_one_segment_stay_as_they_were_written() {
        let layer = Uuid::from_u128(1);
        let record = VolumeRecord {
            size: 512,
            snapshots: Vec::new(),
            current: Current { tip: layer.into(), parent: None, unreserved: false },
            layers: vec![layer],
            fixed_layers: vec![layer],
            segment: MAX_SEGMENT,
            ..segmented()
        };
        let stored = Record::Volume(record.clone()).encode();
        let value: serde_json::Value = serde_json::from_slice(&stored).unwrap();
        assert_eq!(value["current"]["layer"], layer.to_string());
        assert_eq!(value["fixed_layer"], layer.to_string());
        assert!(value.get("segment").is_none() && value.get("schedule").is_none());
        assert_eq!(Record::decode(record.uuid, &stored).unwrap(), Record::Volume(record));
    }
}
