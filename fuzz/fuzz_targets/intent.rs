//! Intents of a datastore: an error, or an intent that is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let claimed = text.split('"').find_map(|part| Uuid::try_parse(part).ok()).unwrap_or_default();
    if let Ok(intent) = catalog::Intent::decode(claimed, bytes) {
        assert_eq!(catalog::Intent::decode(claimed, &intent.encode()).unwrap(), intent);
    }
});
