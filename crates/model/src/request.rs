//! What a caller may ask for. The public API and the node take the same bodies; the controller
//! resolves names to UUIDs before it passes them on.
//!
//! Unknown fields are refused: a misspelt option must not be ignored.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    ExportFormat, ImportFormat, Name, Problem, Protocol, Reference, Role, Size, Timestamp,
    VolumeKind,
};

/// `POST /datastores`: make a datastore in a directory, or adopt the one that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDatastore {
    /// Its name; one that is adopted takes this name.
    pub name: Name,
    /// An existing directory, absolute.
    pub dir: String,
}

/// `POST /volumes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: Name,
    /// Where.
    pub datastore: Reference,
    /// What the guest sees; a multiple of 512 bytes.
    pub size: Size,
    /// How its space is taken.
    pub kind: VolumeKind,
}

/// `PATCH /volumes/{volume}`: rename, resize, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateVolume {
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The new size; larger than the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

/// `POST /volumes/{volume}/convert`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConvertVolume {
    /// The kind that it becomes.
    pub kind: VolumeKind,
    /// Snapshots that the kind cannot keep may be deleted; else the conversion is refused then. A dry
    /// run tells how many there are.
    #[serde(default)]
    pub lose_snapshots: bool,
}

/// `POST /volumes/{volume}/connect`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectVolume {
    /// How to reach it.
    #[serde(default)]
    pub protocol: Protocol,
    /// Listen on a loopback TCP port instead of a unix socket.
    #[serde(default)]
    pub tcp: bool,
    /// Show this snapshot instead of the current state; needs `read_only`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Reference>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

/// `POST /volumes/{volume}/clone`: linked clones or full copies, all or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneVolume {
    /// The new volumes' names.
    pub names: Vec<Name>,
    /// Share the source's data (linked) instead of copying it.
    pub linked: bool,
    /// From this snapshot; absent: from the current state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Reference>,
    /// Where; absent: beside the source. A linked clone stays beside its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<Reference>,
    /// The kind of a full copy; absent: the source's. A linked clone is thin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<VolumeKind>,
}

/// `POST /imports`: make a volume of a disk that stands elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportVolume {
    /// The new volume's name.
    pub name: Name,
    /// Where.
    pub datastore: Reference,
    /// What is read: an absolute path on the node's host or an `nbd://` or `nbd+unix://` address, both
    /// for storage-admins only; or `-`, a stream that is sent to `/tasks/{task}/data` afterwards.
    pub source: String,
    /// The format of the source.
    #[serde(default)]
    pub format: ImportFormat,
    /// How its space is taken.
    pub kind: VolumeKind,
    /// Import the parents of a differencing VHD too, as snapshots; they are looked for beside it.
    #[serde(default)]
    pub chain: bool,
    /// Let a qcow2 image read the backing files that it names, whichever they are.
    #[serde(default)]
    pub allow_backing: bool,
}

/// What an import would read, as the node tells the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSource {
    /// What a guest will see.
    pub size: Size,
    /// Sum of the sizes of its layers.
    pub layers_size: Size,
    /// Bytes that are stored there, as far as it tells.
    pub stored: Size,
    /// The names of the snapshots that it brings, the oldest first.
    pub snapshots: Vec<String>,
}

/// `POST /volumes/{volume}/export`: write it into files on the node's host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportVolume {
    /// An absolute path: of the new file, or of the new folder for `with_snapshots`.
    pub to: String,
    /// Its format.
    #[serde(default)]
    pub format: ExportFormat,
    /// Of this snapshot; absent: of the current state, while it is disconnected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Reference>,
    /// Write a folder of VHDs, one a layer, each naming its parent.
    #[serde(default)]
    pub with_snapshots: bool,
    /// With `with_snapshots`: of every snapshot, not only of those it stands on.
    #[serde(default)]
    pub all_branches: bool,
    /// Replace a file that is there. A folder is never replaced.
    #[serde(default)]
    pub force: bool,
}

/// `POST /snapshots`: snapshot all these volumes at one point in time, all or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// The snapshot's name on each volume.
    pub name: Name,
    /// The volumes; at least one.
    pub volumes: Vec<Reference>,
    /// What lazy and fixed volumes write from now on takes space as it grows, instead of having all
    /// of it reserved once more.
    #[serde(default)]
    pub unreserved: bool,
}

/// `POST /templates`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTemplate {
    /// Its name.
    pub name: Name,
    /// The volume it is made from.
    pub from: Reference,
    /// Of this snapshot, which leaves the volume as it is; absent: the volume itself becomes the
    /// template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Reference>,
}

/// `POST /templates/{template}/deploy`: all or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployTemplate {
    /// The new volumes' names.
    pub names: Vec<Name>,
    /// Share the template's data (linked) instead of copying it.
    pub linked: bool,
    /// The kind of a full copy; absent: the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<VolumeKind>,
    /// Where a full copy goes; absent: beside the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore: Option<Reference>,
}

/// `POST /tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Its name: who or what uses it.
    pub name: Name,
    /// What it may do.
    pub role: Role,
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its identity.
    pub id: Uuid,
    /// Its name.
    pub name: Name,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created: Timestamp,
}

/// A new token with its secret, which is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The token.
    #[serde(flatten)]
    pub token: Token,
    /// What to send as `Authorization: Bearer ...`. Only its hash is kept.
    pub secret: String,
}

impl std::fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // a secret must not reach a log through a careless {:?}
        f.debug_struct("CreatedToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// What a request with `?dry_run=true` would do; nothing is changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// In words.
    pub summary: String,
    /// Bytes that it takes at once.
    pub takes: Size,
    /// Bytes that it gives back.
    pub frees: Size,
    /// Bytes that it moves.
    pub moves: Size,
    /// About how long, from the rate of earlier tasks; absent until there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Why it would be refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Problem>,
}
