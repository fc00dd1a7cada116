//! The NBD handshake: whatever comes, in whatever pieces, there is no panic, the answer is bounded by
//! the question, and it does not depend on the pieces.
#![no_main]

use export::{Handshake, Offer, Offers, Step};
use libfuzzer_sys::fuzz_target;

struct One;

impl Offers for One {
    fn find(&self, name: &str) -> Option<Offer> {
        matches!(name, "" | "disk").then(|| Offer {
            name: "disk".into(),
            description: "a disk".into(),
            size: 1 << 30,
            flags: 0x16d,
            min_block: 512,
            preferred_block: 4096,
        })
    }

    fn all(&self) -> Vec<Offer> {
        self.find("").into_iter().collect()
    }
}

fn run(input: &[u8], step: usize) -> (Vec<u8>, String) {
    let mut out = Vec::new();
    let mut handshake = Handshake::start(&mut out);
    let (mut from, mut to) = (0, 0);
    loop {
        match handshake.advance(&input[from..to], &One, &mut out) {
            Ok(Step::More) if to == input.len() => return (out, "open".into()),
            Ok(Step::More) => to = input.len().min(to + step),
            Ok(Step::Handled { used }) => {
                assert!(used > 0 && used <= to - from);
                from += used;
            }
            Ok(Step::Start { used, session }) => {
                assert!(used <= to - from);
                return (out, format!("{session:?}"));
            }
            Ok(Step::End) => return (out, "end".into()),
            Err(error) => return (out, error.to_string()),
        }
    }
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (step, bytes) = input;
    let whole = run(&bytes, usize::MAX / 2);
    assert!(whole.0.len() <= 400 * (1 + bytes.len() / 16));
    assert_eq!(run(&bytes, usize::from(step).max(1)), whole);
});
