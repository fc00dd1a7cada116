//! NBD requests: no header makes a panic, and no command that is accepted leaves the device.
#![no_main]

use export::Session;
use export::request::{Bounds, Command, Header};
use io::ByteCount;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, bool, bool, bool, u64, Vec<[u8; 28]>)| {
    let (structured, allocation, read_only, magic, size, requests) = input;
    let session = Session { export: "disk".into(), structured, allocation };
    let bounds = Bounds { size: ByteCount(size & !511), block: 512, read_only };
    for mut bytes in requests {
        if magic {
            bytes[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
        }
        let Ok(header) = Header::decode(&bytes) else { continue };
        let payload = u64::from(header.payload());
        match header.command(&session, bounds) {
            Ok(Command::Read(range)) => assert!(range.is_within(bounds.size)),
            Ok(Command::Write(range, _)) => {
                assert!(!read_only && range.is_within(bounds.size) && range.len.0 == payload);
            }
            Ok(Command::Clear(range, _, _)) => {
                assert!(!read_only && range.is_within(bounds.size));
            }
            Ok(Command::Status { range, .. }) => {
                assert!(allocation && range.is_within(bounds.size));
            }
            Ok(Command::Flush | Command::Disconnect) | Err(_) => {}
        }
    }
});
