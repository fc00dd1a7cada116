//! A dynamic header that decodes is written back so that it decodes to the same.
#![no_main]

use image::DynamicHeader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; 1024]| {
    let mut bytes = bytes;
    bytes[..8].copy_from_slice(b"cxsparse");
    bytes[36..40].fill(0);
    let sum = bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    bytes[36..40].copy_from_slice(&(!sum).to_be_bytes());
    if let Ok(header) = DynamicHeader::decode(&bytes) {
        assert!(header.block_size.is_power_of_two() && header.block_sectors() >= 1);
        assert_eq!(DynamicHeader::decode(&header.encode()), Ok(header));
    }
});
