//! Bitmaps: runs tell every bit, and changes change what they say.
#![no_main]

use image::Bitmap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ([u8; 512], Vec<(u16, u16, bool)>)| {
    let (bytes, changes) = input;
    let mut bitmap = Bitmap::from_bytes(&bytes);
    let mut flags: Vec<bool> = (0..4096).map(|sector| bitmap.get(sector)).collect();
    for (from, len, set) in changes {
        let from = u32::from(from) % 4096;
        let len = u32::from(len).min(4096 - from);
        if set { bitmap.set_range(from, len) } else { bitmap.clear_range(from, len) }
        flags[from as usize..(from + len) as usize].fill(set);
    }
    let mut told = Vec::new();
    for (from, len, set) in bitmap.runs() {
        assert_eq!(from as usize, told.len());
        told.extend(std::iter::repeat_n(set, len as usize));
    }
    assert_eq!(told, flags);
    assert_eq!(bitmap.is_full(), flags.iter().all(|flag| *flag));
    assert_eq!(bitmap.is_empty(), !flags.iter().any(|flag| *flag));
});
