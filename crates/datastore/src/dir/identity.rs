//! `shale.json`: which datastore a directory is, and on which device it was made.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::place::{Device, Place};
use super::{files, temp};
use crate::error::{DatastoreError, Result};
use crate::store::Identity;

/// Name of the identity object.
pub(super) const FILE: &str = "shale.json";
/// The format of a directory that this version writes, and the highest that it reads.
pub(super) const FORMAT: u64 = 1;
/// No identity is longer; what is, is not one.
const MAX_LEN: u64 = 64 << 10;

/// The whole object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) format: u64,
    pub(super) uuid: Uuid,
    pub(super) name: String,
    pub(super) created: u64,
    pub(super) device: Device,
}

impl Stored {
    pub(super) fn new(identity: &Identity, device: Device) -> Self {
        Self {
            format: FORMAT,
            uuid: identity.uuid,
            name: identity.name.clone(),
            created: identity.created,
            device,
        }
    }

    pub(super) fn identity(&self) -> Identity {
        Identity { uuid: self.uuid, name: self.name.clone(), created: self.created }
    }

    /// Reads the identity of the datastore in `place`; None where there is none.
    pub(super) fn read(place: &Place) -> Result<Option<Self>> {
        let bytes = match files::read(&place.fd, FILE, MAX_LEN) {
            Ok(bytes) => bytes,
            Err(files::ReadError::System(Errno::NOENT)) => return Ok(None),
            Err(files::ReadError::System(error)) => {
                return Err(place.system("its shale.json cannot be read", error));
            }
            Err(files::ReadError::NotAFile) => return Err(damaged(place, &"it is not a file")),
            Err(files::ReadError::TooLarge(len)) => {
                return Err(damaged(place, &format!("it is {len} bytes long")));
            }
        };
        // The version decides what the rest means, so it is read first and alone.
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| damaged(place, &error))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(FORMAT) => {}
            Some(found) => {
                let path = place.path.clone();
                return Err(DatastoreError::Format { path, found, known: FORMAT });
            }
            None => return Err(damaged(place, &"it names no format version")),
        }
        serde_json::from_value(value).map(Some).map_err(|error| damaged(place, &error))
    }

    /// Replaces the identity, durably.
    pub(super) fn write(&self, place: &Place) -> std::result::Result<(), Errno> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("an identity is plain JSON");
        bytes.push(b'\n');
        let temp = temp::unique();
        files::write_new(&place.fd, &temp, &bytes)?;
        rustix::fs::renameat(&place.fd, &temp, &place.fd, FILE)
            .inspect_err(|_| files::forget(&place.fd, &temp))?;
        rustix::fs::fsync(&place.fd)
    }
}

fn damaged(place: &Place, problem: &impl ToString) -> DatastoreError {
    DatastoreError::Damaged { path: place.path.clone(), problem: problem.to_string() }
}
