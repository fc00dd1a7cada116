//! What a datastore stores: an error, or an object that is written as it was read.

use catalog::{Cell, Intent, Record};
use uuid::Uuid;

/// Records of volumes (with their snapshots, segments, schedules) and of sets.
pub fn record(bytes: &[u8]) {
    let id = claimed(bytes);
    if let Ok(record) = Record::decode(id, bytes) {
        assert_eq!(Record::decode(id, &record.encode()).as_ref().ok(), Some(&record));
        if let Record::Volume(volume) = &record {
            let ghosts = volume.ghosts().filter(|layer| volume.is_tip(*layer)).count();
            assert_eq!(ghosts, 0, "a layer is a tip and a ghost");
            assert!(volume.fixed_layers.iter().all(|layer| volume.layers.contains(layer)));
        }
    }
}

/// Cells of layers and of volumes.
pub fn cell(bytes: &[u8]) {
    let id = claimed(bytes);
    if let Ok(cell) = Cell::decode(id, bytes) {
        assert_eq!(Cell::decode(id, &cell.encode()).as_ref().ok(), Some(&cell));
    }
}

/// Intents.
pub fn intent(bytes: &[u8]) {
    let id = claimed(bytes);
    if let Ok(intent) = Intent::decode(id, bytes) {
        assert_eq!(Intent::decode(id, &intent.encode()).as_ref().ok(), Some(&intent));
    }
}

/// The name that the bytes themselves claim, so that the check behind it is reached.
fn claimed(bytes: &[u8]) -> Uuid {
    let text = String::from_utf8_lossy(bytes);
    text.split('"').find_map(|part| Uuid::try_parse(part).ok()).unwrap_or_default()
}
