//! BAT entries: each is read as it is written, and blocks are judged without a panic.
#![no_main]

use image::{Sector, SectorCount, Timestamp, Uuid, bat, create};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, u64, Vec<u8>)| {
    let (size, file_len, bytes) = input;
    let size = SectorCount(u64::from(size.max(1)).min(image::MAX_SECTORS.0));
    let new = create::dynamic(Uuid::nil(), size, Timestamp(0)).expect("a size within the limits");
    for (entry, raw) in bat::decode(&bytes).zip(bytes.chunks_exact(4)) {
        assert_eq!(bat::encode_entry(entry), raw);
        let Some(entry) = entry else { continue };
        if new.image.block_fits(entry, file_len) {
            let data = new.image.data_at(entry);
            assert!(data.plus(u64::from(new.image.block_sectors)).bytes() <= file_len);
            assert!(entry >= Sector(8));
        }
    }
});
