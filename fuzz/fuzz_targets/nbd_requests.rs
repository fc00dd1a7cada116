//! NBD requests, compact and extended: no header makes a panic, and no command that is accepted leaves
//! the device, tells what was not selected, or comes with another payload than it says.
#![no_main]

use export::request::{Bounds, Command, Header};
use export::{Context, Contexts, Framing, MAX_PAYLOAD, Session};
use io::ByteCount;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ([bool; 5], u64, Vec<([u8; 32], [u8; 16])>)| {
    let ([chunks, extended, allocation, depth, read_only], size, requests) = input;
    let (framing, magic) = match (extended, chunks) {
        (true, _) => (Framing::Extended, 0x21e4_1c71_u32),
        (false, true) => (Framing::Structured, 0x2560_9513),
        (false, false) => (Framing::Simple, 0x2560_9513),
    };
    let mut contexts = Contexts::NONE;
    for (context, selected) in [(Context::Allocation, allocation), (Context::Depth, depth)] {
        contexts = if selected { contexts.with(context) } else { contexts };
    }
    let session = Session { export: "disk".into(), framing, contexts };
    let bounds = Bounds { size: ByteCount(size & !511), block: 512, read_only };
    for (mut bytes, query) in requests {
        let bytes = &mut bytes[..framing.request_len()];
        // one in sixteen keeps whatever magic it has
        if bytes[0] % 16 != 0 {
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
        }
        let Ok(header) = Header::decode(bytes, framing) else { continue };
        let payload = header.payload();
        assert!(!extended || payload <= u64::from(MAX_PAYLOAD));
        assert!(header.query() as u64 <= payload);
        match header.command(&session, bounds, &query[..header.query()]) {
            Ok(Command::Read { range, .. } | Command::Cache(range)) => {
                assert!(range.is_within(bounds.size) && payload == 0);
            }
            Ok(Command::Write(range, _)) => {
                assert!(!read_only && range.is_within(bounds.size) && range.len.0 == payload);
            }
            Ok(Command::Clear { range, .. }) => {
                assert!(!read_only && range.is_within(bounds.size) && payload == 0);
            }
            Ok(Command::Status { range, contexts, .. }) => {
                assert!(range.is_within(bounds.size) && payload == header.query() as u64);
                assert!(!contexts.is_empty() && contexts.iter().all(|c| session.contexts.has(c)));
            }
            Ok(Command::Flush | Command::Disconnect) | Err(_) => {}
        }
    }
});
