//! What a file is taken for: no bytes make it panic, and a file that opens as a VHD by its end is told
//! as one, or as ambiguous.
#![no_main]

use image::{Footer, Sniffed, sniff};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (head, tail) = input;
    let told = sniff(&head, &tail);
    let footer = tail.first_chunk().is_some_and(|tail| Footer::decode(tail).is_ok());
    if footer {
        assert!(matches!(told, Sniffed::Vhd { .. } | Sniffed::Ambiguous), "{told:?}");
    }
});
