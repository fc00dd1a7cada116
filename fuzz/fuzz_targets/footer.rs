//! A footer that decodes is written back so that it decodes to the same.
#![no_main]

use image::Footer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; 512]| {
    if let Ok(footer) = Footer::decode(&bytes) {
        assert_eq!(Footer::decode(&footer.encode()), Ok(footer));
    }
    // the checksum stops almost everything: try again with the right one
    let mut bytes = bytes;
    bytes[..8].copy_from_slice(b"conectix");
    bytes[64..68].fill(0);
    let sum = bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    bytes[64..68].copy_from_slice(&(!sum).to_be_bytes());
    if let Ok(footer) = Footer::decode(&bytes) {
        assert!(footer.size() <= image::MAX_SECTORS);
        assert_eq!(Footer::decode(&footer.encode()), Ok(footer));
    }
});
