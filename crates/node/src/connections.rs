//! What is connected on this host, kept in `connections.json`.
//!
//! An entry is durable before its connection is told to anybody, and marked `closing` before a
//! disconnect begins. So after a crash each connection is in one of three known states: told and to
//! be resumed, half closed and to be closed to the end, or never told.

use std::path::PathBuf;

use model::Protocol;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::data_dir::{DataDir, DataError, replace_file};
use crate::state::{self, FORMAT, StateError};

const FILE: &str = "connections.json";

/// How far a connection is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub(crate) enum Phase {
    /// Serving, or to be served again after a restart.
    Open,
    /// A disconnect has begun; recovery finishes it.
    Closing,
    /// Not resumed after a crash: the guest must not go on unknowingly (rules D4, P2).
    Stopped {
        /// Why, for people.
        reason: String,
    },
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) volume: Uuid,
    pub(crate) datastore: Uuid,
    /// The exported snapshot; its connection is read-only and stands beside the volume's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<Uuid>,
    pub(crate) read_only: bool,
    pub(crate) protocol: Protocol,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tcp_port: Option<u16>,
    /// Of the volume's cell at connect; resuming wants the same.
    pub(crate) generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log_id: Option<Uuid>,
    pub(crate) boot_id: Uuid,
    /// The export's name: what its guest asks for when it comes back, whatever the volume is called by
    /// then. Absent in files of versions that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) export: Option<String>,
    /// Of connections without a log: what tells whether the volume was written meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) witness: Option<String>,
    #[serde(flatten)]
    pub(crate) phase: Phase,
}

impl Entry {
    /// What tells connections apart: the snapshot's id, or the volume's.
    pub(crate) fn id(&self) -> Uuid {
        self.snapshot.unwrap_or(self.volume)
    }
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    connections: Vec<Entry>,
}

/// Reads all entries; none where there is no file.
pub(crate) fn load(data: &DataDir) -> Result<Vec<Entry>, StateError> {
    let document: Option<Document> =
        state::load(&data.state(FILE), "connected volumes are not resumed")?;
    Ok(document.map_or_else(Vec::new, |document| document.connections))
}

/// Replaces the file; durable on return.
pub(crate) fn save(data: &DataDir, entries: &[Entry]) -> Result<(), DataError> {
    let document = Document { format: FORMAT, connections: entries.to_vec() };
    let bytes = serde_json::to_vec_pretty(&document).expect("plain data serializes");
    replace_file(&data.state(FILE), &bytes)
}

#[cfg(test)]
mod tests {
    use super::{Entry, Phase, load, save};
    use crate::data_dir::DataDir;
    use crate::state::StateError;
    use model::Protocol;
    use uuid::Uuid;

    #[test]
    fn entries_come_back_and_unknown_formats_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path(), Some(&dir.path().join("logs"))).unwrap();
        assert!(load(&data).unwrap().is_empty());
        let entry = |phase| Entry {
            volume: Uuid::from_u128(1),
            datastore: Uuid::from_u128(2),
            snapshot: Some(Uuid::from_u128(3)),
            read_only: true,
            protocol: Protocol::Nbd,
            socket: Some("/run/x.sock".into()),
            tcp_port: None,
            generation: 7,
            log_id: None,
            boot_id: Uuid::from_u128(4),
            export: Some("web".into()),
            witness: None,
            phase,
        };
        let entries = [
            entry(Phase::Open),
            entry(Phase::Closing),
            entry(Phase::Stopped { reason: "r".into() }),
        ];
        save(&data, &entries).unwrap();
        assert_eq!(load(&data).unwrap(), entries);
        std::fs::write(data.state("connections.json"), br#"{"format": 2, "x": []}"#).unwrap();
        assert!(matches!(load(&data), Err(StateError::Format { found: 2, .. })));
        std::fs::write(data.state("connections.json"), b"{").unwrap();
        assert!(matches!(load(&data), Err(StateError::Parse { .. })));
    }
}
