//! What a store can serve: one rule, asked by the node before it starts an operation and served
//! as a table at `/api/v1/capabilities`. A refusal always has its reason; nothing is faked.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DatastoreKind, Operation, VolumeKind};

/// What a datastore's file system can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreFeatures {
    /// Space can be reserved before it is written: fixed and lazy volumes are possible.
    pub reserve: bool,
    /// Parts of a file can be given back: discard frees space inside blocks.
    pub punch_hole: bool,
    /// Several hosts use it.
    pub shared: bool,
}

/// Whether one operation works in one situation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capability {
    /// The operation.
    pub operation: Operation,
    /// On which sort of datastore.
    pub store: DatastoreKind,
    /// Whether that store can reserve space.
    pub reserve: bool,
    /// On which kind of volume.
    pub kind: VolumeKind,
    /// While the volume is connected.
    pub connected: bool,
    /// Whether it works.
    pub supported: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The full table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capabilities {
    /// Every operation in every situation.
    pub table: Vec<Capability>,
}

impl Capabilities {
    /// Every cell of the table.
    pub fn all() -> Self {
        let mut table = Vec::new();
        for &operation in Operation::ALL {
            for &store in DatastoreKind::ALL {
                for reserve in [true, false] {
                    for &kind in VolumeKind::ALL {
                        for connected in [false, true] {
                            let features = StoreFeatures { reserve, ..StoreFeatures::default() };
                            let reason = support(operation, kind, connected, features).err();
                            table.push(Capability {
                                operation,
                                store,
                                reserve,
                                kind,
                                connected,
                                supported: reason.is_none(),
                                reason: reason.map(str::to_owned),
                            });
                        }
                    }
                }
            }
        }
        Self { table }
    }
}

const NO_RESERVE: &str =
    "the file system under this datastore cannot reserve space, so only thin volumes are possible";

/// Whether `operation` works on a volume of `kind` (for operations that make one: of the kind to
/// be made) on a store with these features; the error is the reason for the refusal.
pub const fn support(
    operation: Operation,
    kind: VolumeKind,
    connected: bool,
    features: StoreFeatures,
) -> Result<(), &'static str> {
    match operation {
        Operation::VolumeCreate
        | Operation::VolumeCopy
        | Operation::VolumeConvert
        | Operation::VolumeImport
        | Operation::TemplateDeploy
            if kind.reserves() && !features.reserve =>
        {
            Err(NO_RESERVE)
        }
        Operation::VolumeResize if connected => Err("a volume is resized while it is disconnected"),
        Operation::VolumeConvert if connected => {
            Err("a volume is converted while it is disconnected")
        }
        Operation::VolumeDelete if connected => Err("a connected volume cannot be deleted"),
        Operation::SnapshotDelete if connected => {
            Err("a snapshot is merged away while its volume is disconnected")
        }
        Operation::SnapshotRevert if connected => {
            Err("a volume goes back to a snapshot while it is disconnected")
        }
        Operation::TemplateCreate if connected => {
            Err("a volume becomes a template while it is disconnected")
        }
        Operation::VolumeExport if connected => {
            Err("a connected volume changes while it is read: export a snapshot of it")
        }
        Operation::VolumeConnect if connected => Err("the volume is connected already"),
        Operation::VolumeDisconnect if !connected => Err("the volume is not connected"),
        Operation::DatastoreCreate
        | Operation::DatastoreDelete
        | Operation::DatastoreCheck
        | Operation::VolumeCreate
        | Operation::VolumeRename
        | Operation::VolumeResize
        | Operation::VolumeConvert
        | Operation::VolumeDelete
        | Operation::VolumeConnect
        | Operation::VolumeDisconnect
        | Operation::VolumeClone
        | Operation::VolumeCopy
        | Operation::VolumeImport
        | Operation::VolumeExport
        | Operation::SnapshotCreate
        | Operation::SnapshotDelete
        | Operation::SnapshotRevert
        | Operation::SnapshotSchedule
        | Operation::SnapshotDiff
        | Operation::TemplateCreate
        | Operation::TemplateDeploy
        | Operation::TemplateDelete => Ok(()),
    }
}
