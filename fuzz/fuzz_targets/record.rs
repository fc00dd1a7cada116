//! Records and cells of a datastore: an error, or an object that is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

fuzz_target!(|bytes: &[u8]| {
    // The name that the bytes themselves claim, so that the check behind it is reached.
    let text = String::from_utf8_lossy(bytes);
    let claimed = text.split('"').find_map(|part| Uuid::try_parse(part).ok()).unwrap_or_default();
    if let Ok(record) = catalog::Record::decode(claimed, bytes) {
        assert_eq!(catalog::Record::decode(claimed, &record.encode()).unwrap(), record);
    }
    if let Ok(cell) = catalog::Cell::decode(claimed, bytes) {
        assert_eq!(catalog::Cell::decode(claimed, &cell.encode()).unwrap(), cell);
    }
});
