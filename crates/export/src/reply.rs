//! Replies of the transmission phase: the few bytes in front of the data.
//!
//! ```text
//!   simple      magic, error, cookie                               then the data of a read
//!   structured  magic, flags, type, cookie, length                 then a chunk's content
//!   extended    magic, flags, type, cookie, offset, length (64)    then a chunk's content
//! ```

use io::{Effort, IoError, IoErrorKind};

use crate::context::Context;
use crate::request::{Command, Tag};
use crate::wire::{CHUNK_MAGIC, EXTENDED_CHUNK_MAGIC, Errno, Framing, SIMPLE_REPLY_MAGIC, chunk};

/// Most bytes of error text that go to a client.
const MAX_MESSAGE: usize = 512;
/// Longest head that is not a chunk of its own: that of a hole, with extended headers.
pub(crate) const MAX_HEAD: usize = 32 + 12;

/// What stands in front of a reply's data.
#[derive(Debug)]
pub(crate) enum Head {
    /// A simple reply: `error` 0 is success.
    Simple { cookie: u64, error: u32 },
    /// Content of a read, whose data follows.
    Data { tag: Tag, at: u64, len: u32, last: bool },
    /// Content of a read: zeros that are not sent.
    Hole { tag: Tag, at: u64, len: u32, last: bool },
    /// A success without content.
    None { tag: Tag },
    /// Any other chunk, whole.
    Chunk(Vec<u8>),
}

/// The bytes of a short head.
pub(crate) struct Bytes {
    bytes: [u8; MAX_HEAD],
    len: usize,
}

impl Bytes {
    fn new() -> Self {
        Self { bytes: [0; MAX_HEAD], len: 0 }
    }

    fn put(mut self, more: &[u8]) -> Self {
        let end = self.len + more.len();
        self.bytes[self.len..end].copy_from_slice(more);
        self.len = end;
        self
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Head {
    /// The bytes of the head, in the framing that was agreed on; None for one that is whole.
    pub(crate) fn bytes(&self, framing: Framing) -> Option<Bytes> {
        Some(match *self {
            Self::Simple { cookie, error } => Bytes::new()
                .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
                .put(&error.to_be_bytes())
                .put(&cookie.to_be_bytes()),
            Self::Data { tag, at, len, last } => {
                header(framing, tag, chunk::OFFSET_DATA, last, len + 8).put(&at.to_be_bytes())
            }
            Self::Hole { tag, at, len, last } => header(framing, tag, chunk::OFFSET_HOLE, last, 12)
                .put(&at.to_be_bytes())
                .put(&len.to_be_bytes()),
            Self::None { tag } => header(framing, tag, chunk::NONE, true, 0),
            Self::Chunk(_) => return None,
        })
    }

    /// A failure with its text.
    pub(crate) fn error(framing: Framing, tag: Tag, errno: Errno, message: &str) -> Self {
        let mut end = message.len().min(MAX_MESSAGE);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let text = &message.as_bytes()[..end];
        let text_len = u16::try_from(text.len()).expect("bounded by MAX_MESSAGE");
        let head = header(framing, tag, chunk::ERROR, true, u32::from(text_len) + 6)
            .put(&(errno as u32).to_be_bytes())
            .put(&text_len.to_be_bytes());
        Self::Chunk([head.as_slice(), text].concat())
    }

    /// What a context says of a range.
    pub(crate) fn status(
        framing: Framing,
        tag: Tag,
        context: Context,
        runs: &[Run],
        last: bool,
    ) -> Self {
        let count = u32::try_from(runs.len()).expect("runs are bounded by the caller");
        let id = context.id().to_be_bytes();
        let mut bytes = Vec::with_capacity(MAX_HEAD + 16 * runs.len());
        match framing {
            Framing::Simple | Framing::Structured => {
                let head = header(framing, tag, chunk::BLOCK_STATUS, last, 4 + 8 * count);
                bytes.extend_from_slice(head.put(&id).as_slice());
                for run in runs {
                    let len = u32::try_from(run.len).expect("clipped to a 32-bit request");
                    bytes.extend_from_slice(&len.to_be_bytes());
                    bytes.extend_from_slice(&run.status.to_be_bytes());
                }
            }
            Framing::Extended => {
                let head = header(framing, tag, chunk::BLOCK_STATUS_EXT, last, 8 + 16 * count);
                bytes.extend_from_slice(head.put(&id).put(&count.to_be_bytes()).as_slice());
                for run in runs {
                    bytes.extend_from_slice(&run.len.to_be_bytes());
                    bytes.extend_from_slice(&u64::from(run.status).to_be_bytes());
                }
            }
        }
        Self::Chunk(bytes)
    }
}

/// The header of a chunk with `len` bytes of content.
fn header(framing: Framing, tag: Tag, kind: u16, last: bool, len: u32) -> Bytes {
    let flags = if last { chunk::DONE } else { 0 };
    let start = |magic: u32| {
        Bytes::new()
            .put(&magic.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&tag.cookie.to_be_bytes())
    };
    match framing {
        Framing::Simple | Framing::Structured => start(CHUNK_MAGIC).put(&len.to_be_bytes()),
        Framing::Extended => start(EXTENDED_CHUNK_MAGIC)
            .put(&tag.offset.to_be_bytes())
            .put(&u64::from(len).to_be_bytes()),
    }
}

/// One descriptor of a block status reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) len: u64,
    pub(crate) status: u32,
}

/// Appends a run to `runs`, merged with the last where they say the same.
pub(crate) fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.status == run.status => last.len += run.len,
        _ => runs.push(run),
    }
}

/// The number a client gets for a failure of the device.
pub(crate) fn errno(error: &IoError, command: &Command) -> Errno {
    let (writing, quick) = match command {
        Command::Write(..) => (true, false),
        Command::Clear { effort, .. } => (true, *effort == Effort::Quick),
        Command::Read { .. }
        | Command::Cache(_)
        | Command::Flush
        | Command::Status { .. }
        | Command::Disconnect => (false, false),
    };
    match error.kind {
        IoErrorKind::NoSpace => Errno::NoSpace,
        IoErrorKind::ReadOnly | IoErrorKind::Denied => Errno::Perm,
        IoErrorKind::OutOfRange if writing => Errno::NoSpace,
        // a client asks for it by name, and takes it for nothing else
        IoErrorKind::Unsupported if quick => Errno::NotSupported,
        IoErrorKind::OutOfRange | IoErrorKind::Misaligned | IoErrorKind::Unsupported => {
            Errno::Invalid
        }
        IoErrorKind::Closed => Errno::Shutdown,
        IoErrorKind::Busy
        | IoErrorKind::NotFound
        | IoErrorKind::Exists
        | IoErrorKind::Poisoned
        | IoErrorKind::Corrupt
        | IoErrorKind::Device => Errno::Io,
    }
}

#[cfg(test)]
mod tests {
    use io::{ByteRange, Clear, Durability, Effort, IoError, IoErrorKind};

    use super::{Head, Run, errno, push_run};
    use crate::context::Context;
    use crate::request::{Command, Tag};
    use crate::wire::{Errno, Framing};

    const TAG: Tag = Tag { cookie: 9, offset: 0x1000 };

    fn bytes(head: &Head, framing: Framing) -> Vec<u8> {
        match head {
            Head::Chunk(chunk) => chunk.clone(),
            Head::Simple { .. } | Head::Data { .. } | Head::Hole { .. } | Head::None { .. } => {
                head.bytes(framing).expect("a short head").as_slice().to_vec()
            }
        }
    }

    type Make = fn(Framing, &[Run]) -> Head;

    #[test]
    fn golden_bytes() {
        let runs = [Run { len: 512, status: 3 }];
        let both = |head: Make| {
            [Framing::Structured, Framing::Extended]
                .map(|framing| bytes(&head(framing, &runs), framing))
        };
        let table: [(Make, &[u8], &[u8]); 6] = [
            (
                |_, _| Head::Simple { cookie: 0x0102, error: 5 },
                b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\x01\x02",
                b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\x01\x02",
            ),
            (
                |_, _| Head::Data { tag: TAG, at: 0x1200, len: 512, last: true },
                b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x09\
                  \0\0\x02\x08\0\0\0\0\0\0\x12\0",
                b"\x6e\x8a\x27\x8c\0\x01\0\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\x10\0\
                  \0\0\0\0\0\0\x02\x08\0\0\0\0\0\0\x12\0",
            ),
            (
                |_, _| Head::Hole { tag: TAG, at: 0x1200, len: 512, last: false },
                b"\x66\x8e\x33\xef\0\0\0\x02\0\0\0\0\0\0\0\x09\
                  \0\0\0\x0c\0\0\0\0\0\0\x12\0\0\0\x02\0",
                b"\x6e\x8a\x27\x8c\0\0\0\x02\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\x10\0\
                  \0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\x12\0\0\0\x02\0",
            ),
            (
                |_, _| Head::None { tag: TAG },
                b"\x66\x8e\x33\xef\0\x01\0\0\0\0\0\0\0\0\0\x09\0\0\0\0",
                b"\x6e\x8a\x27\x8c\0\x01\0\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\x10\0\
                  \0\0\0\0\0\0\0\0",
            ),
            (
                |framing, _| Head::error(framing, TAG, Errno::Io, "no"),
                b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x09\
                  \0\0\0\x08\0\0\0\x05\0\x02no",
                b"\x6e\x8a\x27\x8c\0\x01\x80\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\x10\0\
                  \0\0\0\0\0\0\0\x08\0\0\0\x05\0\x02no",
            ),
            (
                |framing, runs| Head::status(framing, TAG, Context::Depth, runs, true),
                b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x09\
                  \0\0\0\x0c\0\0\0\x02\0\0\x02\0\0\0\0\x03",
                b"\x6e\x8a\x27\x8c\0\x01\0\x06\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\x10\0\
                  \0\0\0\0\0\0\0\x18\0\0\0\x02\0\0\0\x01\
                  \0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x03",
            ),
        ];
        for (head, structured, extended) in table {
            assert_eq!(
                both(head),
                [structured, extended],
                "{:?}",
                head(Framing::Structured, &runs)
            );
        }
    }

    #[test]
    fn error_text_is_cut_at_a_character() {
        let long = format!("x{}", "ä".repeat(400));
        let bytes =
            bytes(&Head::error(Framing::Structured, TAG, Errno::Io, &long), Framing::Simple);
        let text = std::str::from_utf8(&bytes[26..]).expect("whole characters");
        assert_eq!(text.len(), 511);
    }

    #[test]
    fn every_kind_of_failure_has_its_number() {
        let range = ByteRange::new(0, 512);
        let (how, durability) = (Clear::KeepSpace, Durability::Cached);
        let commands = [
            Command::Read { range, whole: false },
            Command::Write(range, durability),
            Command::Clear { range, how, effort: Effort::Any, durability },
            Command::Clear { range, how, effort: Effort::Quick, durability },
        ];
        let all = |errno| [errno; 4];
        let table = [
            (IoErrorKind::NoSpace, all(Errno::NoSpace)),
            (IoErrorKind::ReadOnly, all(Errno::Perm)),
            (IoErrorKind::Denied, all(Errno::Perm)),
            (
                IoErrorKind::OutOfRange,
                [Errno::Invalid, Errno::NoSpace, Errno::NoSpace, Errno::NoSpace],
            ),
            (IoErrorKind::Misaligned, all(Errno::Invalid)),
            (
                IoErrorKind::Unsupported,
                [Errno::Invalid, Errno::Invalid, Errno::Invalid, Errno::NotSupported],
            ),
            (IoErrorKind::Closed, all(Errno::Shutdown)),
            (IoErrorKind::Poisoned, all(Errno::Io)),
            (IoErrorKind::Corrupt, all(Errno::Io)),
            (IoErrorKind::Device, all(Errno::Io)),
            (IoErrorKind::Busy, all(Errno::Io)),
        ];
        for (kind, want) in table {
            let error = IoError::new(kind, "x");
            assert_eq!(commands.map(|command| errno(&error, &command)), want, "{kind:?}");
        }
    }

    #[test]
    fn equal_neighbours_become_one_run() {
        let mut runs = Vec::new();
        for status in [0, 0, 3, 2] {
            push_run(&mut runs, Run { len: 1 << 40, status });
        }
        let want = [(2 << 40, 0), (1 << 40, 3), (1 << 40, 2)];
        assert_eq!(runs, want.map(|(len, status)| Run { len, status }));
    }
}
