//! Replies of the transmission phase: the few bytes in front of the data.

use io::{Extent, ExtentKind, IoError, IoErrorKind};

use crate::wire::{ALLOCATION_ID, CHUNK_MAGIC, Errno, SIMPLE_REPLY_MAGIC, chunk, state};

/// Most bytes of error text that go to a client.
const MAX_MESSAGE: usize = 512;

/// A reply without data: `error` 0 is success.
pub(crate) fn simple(cookie: u64, error: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// What stands before the data of a structured read: chunk header and the data's offset.
pub(crate) fn data_chunk(cookie: u64, offset: u64, len: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..20].copy_from_slice(&chunk_header(cookie, chunk::OFFSET_DATA, len + 8));
    bytes[20..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// A structured success without content: a read of no bytes.
pub(crate) fn none_chunk(cookie: u64) -> Vec<u8> {
    chunk_header(cookie, chunk::NONE, 0).to_vec()
}

/// A structured failure with its text.
pub(crate) fn error_chunk(cookie: u64, errno: Errno, message: &str) -> Vec<u8> {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let text = &message.as_bytes()[..end];
    let text_len = u16::try_from(text.len()).expect("bounded by MAX_MESSAGE");
    let mut bytes = chunk_header(cookie, chunk::ERROR, u32::from(text_len) + 6).to_vec();
    bytes.extend_from_slice(&(errno as u32).to_be_bytes());
    bytes.extend_from_slice(&text_len.to_be_bytes());
    bytes.extend_from_slice(text);
    bytes
}

/// The `base:allocation` descriptors of a range.
pub(crate) fn status_chunk(cookie: u64, runs: &[Run]) -> Vec<u8> {
    let len = u32::try_from(4 + 8 * runs.len()).expect("runs are bounded by the caller");
    let mut bytes = chunk_header(cookie, chunk::BLOCK_STATUS, len).to_vec();
    bytes.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
    for run in runs {
        bytes.extend_from_slice(&run.len.to_be_bytes());
        bytes.extend_from_slice(&run.flags.to_be_bytes());
    }
    bytes
}

/// One descriptor of a block status reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) len: u32,
    pub(crate) flags: u32,
}

/// Appends `extent` to `runs`, merged with the last where their states are equal.
pub(crate) fn push_run(runs: &mut Vec<Run>, extent: Extent) {
    let flags = match extent.kind {
        ExtentKind::Data => 0,
        ExtentKind::Hole => state::HOLE | state::ZERO,
        ExtentKind::Zero => state::ZERO,
    };
    let len = u32::try_from(extent.range.len.0).expect("clipped to a 32-bit request");
    match runs.last_mut() {
        Some(last) if last.flags == flags => last.len += len,
        _ => runs.push(Run { len, flags }),
    }
}

/// The number a client gets for a failure of the device.
pub(crate) fn errno(error: &IoError, writing: bool) -> Errno {
    match error.kind {
        IoErrorKind::NoSpace => Errno::NoSpace,
        IoErrorKind::ReadOnly | IoErrorKind::Denied => Errno::Perm,
        IoErrorKind::OutOfRange if writing => Errno::NoSpace,
        IoErrorKind::OutOfRange | IoErrorKind::Misaligned => Errno::Invalid,
        IoErrorKind::Unsupported => Errno::NotSupported,
        IoErrorKind::Closed => Errno::Shutdown,
        IoErrorKind::Busy
        | IoErrorKind::NotFound
        | IoErrorKind::Exists
        | IoErrorKind::Poisoned
        | IoErrorKind::Corrupt
        | IoErrorKind::Device => Errno::Io,
    }
}

fn chunk_header(cookie: u64, kind: u16, len: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&chunk::DONE.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&len.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use io::{ByteRange, Extent, ExtentKind, IoError, IoErrorKind};

    use super::{Run, data_chunk, errno, error_chunk, push_run, simple, status_chunk};
    use crate::wire::Errno;

    #[test]
    fn golden_bytes() {
        assert_eq!(simple(0x0102, 5), *b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\x01\x02");
        assert_eq!(
            data_chunk(9, 0x1000, 512),
            *b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x09\0\0\x02\x08\0\0\0\0\0\0\x10\0"
        );
        assert_eq!(
            error_chunk(9, Errno::Io, "no"),
            *b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x09\0\0\0\x08\0\0\0\x05\0\x02no"
        );
        assert_eq!(
            status_chunk(9, &[Run { len: 512, flags: 3 }]),
            *b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x09\0\0\0\x0c\0\0\0\x01\0\0\x02\0\0\0\0\x03"
        );
    }

    #[test]
    fn error_text_is_cut_at_a_character() {
        let long = "ä".repeat(400);
        let bytes = error_chunk(1, Errno::Io, &format!("x{long}"));
        let text = std::str::from_utf8(&bytes[26..]).expect("whole characters");
        assert_eq!(text.len(), 511);
    }

    #[test]
    fn every_kind_of_failure_has_its_number() {
        let table = [
            (IoErrorKind::NoSpace, Errno::NoSpace, Errno::NoSpace),
            (IoErrorKind::ReadOnly, Errno::Perm, Errno::Perm),
            (IoErrorKind::Denied, Errno::Perm, Errno::Perm),
            (IoErrorKind::OutOfRange, Errno::Invalid, Errno::NoSpace),
            (IoErrorKind::Misaligned, Errno::Invalid, Errno::Invalid),
            (IoErrorKind::Unsupported, Errno::NotSupported, Errno::NotSupported),
            (IoErrorKind::Closed, Errno::Shutdown, Errno::Shutdown),
            (IoErrorKind::Poisoned, Errno::Io, Errno::Io),
            (IoErrorKind::Corrupt, Errno::Io, Errno::Io),
            (IoErrorKind::Device, Errno::Io, Errno::Io),
            (IoErrorKind::Busy, Errno::Io, Errno::Io),
        ];
        for (kind, reading, writing) in table {
            let error = IoError::new(kind, "x");
            assert_eq!((errno(&error, false), errno(&error, true)), (reading, writing), "{kind:?}");
        }
    }

    #[test]
    fn equal_neighbours_become_one_run() {
        let mut runs = Vec::new();
        for (start, kind) in [
            (0, ExtentKind::Data),
            (512, ExtentKind::Data),
            (1024, ExtentKind::Hole),
            (1536, ExtentKind::Zero),
        ] {
            push_run(&mut runs, Extent { range: ByteRange::new(start, 512), kind });
        }
        let want =
            [Run { len: 1024, flags: 0 }, Run { len: 512, flags: 3 }, Run { len: 512, flags: 2 }];
        assert_eq!(runs, want);
    }
}
