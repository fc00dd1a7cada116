//! Requests of the transmission phase: 28 or 32 hostile bytes in, a checked command out.

use io::{ByteCount, ByteRange, Clear, Durability, Effort};

use crate::context::{Context, Contexts};
use crate::fields::Fields;
use crate::handshake::Session;
use crate::wire::{
    EXTENDED_REQUEST_MAGIC, Errno, Framing, MAX_PAYLOAD, REQUEST_MAGIC, command, command_flag,
};

/// Longest payload of a block status request that means anything: a length, and each context once.
const MAX_QUERY: u64 = 8 + 4 * Context::ALL.len() as u64;

/// A request as it stands on the wire: it can be answered, and what follows it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    flags: u16,
    kind: u16,
    tag: Tag,
    /// Of the payload, if one follows; else of the range.
    len: u64,
    framing: Framing,
}

/// What a reply returns of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The client's name for the request.
    pub cookie: u64,
    /// Where in the export.
    pub offset: u64,
}

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read `range`.
    Read {
        /// Which bytes.
        range: ByteRange,
        /// All of them in one chunk.
        whole: bool,
    },
    /// Write the payload that follows to `range`.
    Write(ByteRange, Durability),
    /// Make `range` read as zero.
    Clear {
        /// Which bytes.
        range: ByteRange,
        /// Whether space is given back.
        how: Clear,
        /// What it may cost.
        effort: Effort,
        /// When to reply.
        durability: Durability,
    },
    /// Make `range` quicker to read.
    Cache(ByteRange),
    /// Make completed writes durable.
    Flush,
    /// Say what `range` is; with `one` only the first extent of each context.
    Status {
        /// Which bytes.
        range: ByteRange,
        /// What to tell.
        contexts: Contexts,
        /// One extent is enough.
        one: bool,
    },
    /// Finish what is in flight and close; there is no reply.
    Disconnect,
}

/// The client broke the protocol in a way that leaves open what its next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// No request where one must start.
    #[error("a request starts with {found:#010x} instead of the NBD request magic {wanted:#010x}")]
    Magic {
        /// What was found.
        found: u32,
        /// What the agreed framing starts with.
        wanted: u32,
    },
    /// A payload longer than any may be.
    #[error("a payload of {len} bytes follows, and {MAX_PAYLOAD} is the most")]
    LongPayload {
        /// Its length.
        len: u64,
    },
}

/// The limits a command is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Current size of the device.
    pub size: ByteCount,
    /// Offsets and lengths are multiples of it.
    pub block: u32,
    /// Writes are refused.
    pub read_only: bool,
}

impl Header {
    /// Takes a request header apart: [`Framing::request_len`] bytes.
    pub fn decode(bytes: &[u8], framing: Framing) -> Result<Self, Breach> {
        assert_eq!(bytes.len(), framing.request_len(), "the length of a {framing:?} request");
        let mut fields = Fields(bytes);
        let header = Self::fields(&mut fields, framing).expect("as long as all fields");
        let (found, header) = header;
        let wanted = match framing {
            Framing::Simple | Framing::Structured => REQUEST_MAGIC,
            Framing::Extended => EXTENDED_REQUEST_MAGIC,
        };
        if found != wanted {
            return Err(Breach::Magic { found, wanted });
        }
        let len = header.len;
        if framing == Framing::Extended && header.payload() > u64::from(MAX_PAYLOAD) {
            return Err(Breach::LongPayload { len });
        }
        Ok(header)
    }

    fn fields(fields: &mut Fields<'_>, framing: Framing) -> Option<(u32, Self)> {
        let magic = fields.u32()?;
        let (flags, kind) = (fields.u16()?, fields.u16()?);
        let tag = Tag { cookie: fields.u64()?, offset: fields.u64()? };
        let len = match framing {
            Framing::Simple | Framing::Structured => u64::from(fields.u32()?),
            Framing::Extended => fields.u64()?,
        };
        Some((magic, Self { flags, kind, tag, len, framing }))
    }

    /// What its reply returns.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.tag
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// With extended headers a write must say that its payload follows. QEMU (10.0) sends it without
    /// saying so: it is taken either way, as a write without a payload means nothing.
    fn has_payload(&self) -> bool {
        let says_so = self.framing == Framing::Extended && self.has(command_flag::PAYLOAD_LEN);
        says_so || self.kind == command::WRITE
    }

    /// Bytes of payload that follow the header, whether the command is good or not.
    #[must_use]
    pub fn payload(&self) -> u64 {
        if self.has_payload() { self.len } else { 0 }
    }

    /// Bytes of payload that say what is asked, and that [`Header::command`] wants to see.
    #[must_use]
    pub fn query(&self) -> usize {
        let asks = self.kind == command::BLOCK_STATUS && self.payload() <= MAX_QUERY;
        if asks { usize::try_from(self.payload()).expect("short") } else { 0 }
    }

    /// What the request wants, or why it is refused. `query` is the part of the payload that
    /// [`Header::query`] measures.
    pub fn command(
        &self,
        session: &Session,
        bounds: Bounds,
        query: &[u8],
    ) -> Result<Command, Errno> {
        let extended = self.framing == Framing::Extended;
        let allowed = match self.kind {
            // it has no reply: a client that goes may go, however it says so
            command::DISCONNECT => return Ok(Command::Disconnect),
            command::READ if self.framing.has_chunks() => command_flag::DONT_FRAGMENT,
            command::WRITE if extended => command_flag::PAYLOAD_LEN,
            command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::BLOCK_STATUS if extended => command_flag::REQ_ONE | command_flag::PAYLOAD_LEN,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        // FUA may stand on any command; it means something on those that write
        if self.flags & !(allowed | command_flag::FUA) != 0 {
            return Err(Errno::Invalid);
        }
        let durability =
            if self.has(command_flag::FUA) { Durability::Durable } else { Durability::Cached };
        match self.kind {
            command::READ => {
                let range = self.range(self.len, bounds, Errno::Invalid)?;
                let whole = self.has(command_flag::DONT_FRAGMENT);
                let too_long = if whole { Errno::Overflow } else { Errno::Invalid };
                self.check_payload(too_long)?;
                Ok(Command::Read { range, whole })
            }
            command::WRITE => {
                let range = self.writable(bounds, Errno::NoSpace)?;
                self.check_payload(Errno::Invalid)?;
                Ok(Command::Write(range, durability))
            }
            command::TRIM => Ok(Command::Clear {
                range: self.writable(bounds, Errno::Invalid)?,
                how: Clear::Deallocate,
                effort: Effort::Any,
                durability,
            }),
            command::WRITE_ZEROES => {
                let keep = self.has(command_flag::NO_HOLE);
                let quick = self.has(command_flag::FAST_ZERO);
                Ok(Command::Clear {
                    range: self.writable(bounds, Errno::NoSpace)?,
                    how: if keep { Clear::KeepSpace } else { Clear::Deallocate },
                    effort: if quick { Effort::Quick } else { Effort::Any },
                    durability,
                })
            }
            command::CACHE => Ok(Command::Cache(self.range(self.len, bounds, Errno::Invalid)?)),
            command::FLUSH if self.tag.offset == 0 && self.len == 0 => Ok(Command::Flush),
            command::BLOCK_STATUS => {
                let (len, contexts) = if self.has_payload() {
                    parse_query(query, session.contexts).ok_or(Errno::Invalid)?
                } else {
                    (self.len, session.contexts)
                };
                if len == 0 || contexts.is_empty() {
                    return Err(Errno::Invalid);
                }
                let range = self.range(len, bounds, Errno::Invalid)?;
                Ok(Command::Status { range, contexts, one: self.has(command_flag::REQ_ONE) })
            }
            _ => Err(Errno::Invalid),
        }
    }

    fn check_payload(&self, too_long: Errno) -> Result<(), Errno> {
        if self.len > u64::from(MAX_PAYLOAD) { Err(too_long) } else { Ok(()) }
    }

    fn writable(&self, bounds: Bounds, outside: Errno) -> Result<ByteRange, Errno> {
        if bounds.read_only {
            return Err(Errno::Perm);
        }
        self.range(self.len, bounds, outside)
    }

    fn range(&self, len: u64, bounds: Bounds, outside: Errno) -> Result<ByteRange, Errno> {
        let block = u64::from(bounds.block);
        if !self.tag.offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(Errno::Invalid);
        }
        let range = ByteRange::new(self.tag.offset, len);
        if range.is_within(bounds.size) { Ok(range) } else { Err(outside) }
    }
}

/// `{u64 length, u32 context...}`: contexts that were selected, each at most once.
fn parse_query(query: &[u8], selected: Contexts) -> Option<(u64, Contexts)> {
    let mut fields = Fields(query);
    let len = fields.u64()?;
    let mut contexts = Contexts::default();
    while !fields.is_empty() {
        let context = Context::of(fields.u32()?)?;
        if contexts.has(context) || !selected.has(context) {
            return None;
        }
        contexts = contexts.with(context);
    }
    Some((len, contexts))
}

#[cfg(test)]
mod tests {
    use io::{ByteCount, ByteRange, Clear, Durability, Effort};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    use super::{Bounds, Breach, Command, Header};
    use crate::context::{Context, Contexts};
    use crate::handshake::Session;
    use crate::wire::{Errno, Framing, command as c, command_flag as f};

    const SIZE: u64 = 1 << 20;
    const WRITABLE: Bounds = Bounds { size: ByteCount(SIZE), block: 512, read_only: false };
    const BOTH: Contexts = Contexts::NONE.with(Context::Allocation).with(Context::Depth);

    fn session(framing: Framing) -> Session {
        Session { export: String::new(), framing, contexts: BOTH }
    }

    type Ask = (u16, u16, u64, u64);

    fn bytes(framing: Framing, (flags, kind, offset, len): Ask) -> Vec<u8> {
        let (magic, len) = match framing {
            Framing::Extended => (0x21e4_1c71_u32, len.to_be_bytes().to_vec()),
            Framing::Simple | Framing::Structured => {
                let len = u32::try_from(len).expect("32 bits");
                (0x2560_9513, len.to_be_bytes().to_vec())
            }
        };
        [
            &magic.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &77_u64.to_be_bytes(),
            &offset.to_be_bytes(),
            &len,
        ]
        .concat()
    }

    fn check(session: &Session, bounds: Bounds, request: Ask, want: Result<Command, Errno>) {
        let raw = bytes(session.framing, request);
        let header = Header::decode(&raw, session.framing).expect("no breach");
        assert_eq!((header.tag().cookie, header.tag().offset), (77, request.2));
        assert_eq!(header.command(session, bounds, &[]), want, "request {request:?}");
    }

    fn clear(at: u64, len: u64, how: Clear, durability: Durability) -> Command {
        Command::Clear { range: ByteRange::new(at, len), how, effort: Effort::Any, durability }
    }

    fn status(at: u64, len: u64, one: bool) -> Command {
        Command::Status { range: ByteRange::new(at, len), contexts: BOTH, one }
    }

    #[test]
    fn every_command_and_its_refusals() {
        let r = ByteRange::new;
        let read = |at, len, whole| Command::Read { range: r(at, len), whole };
        let (cached, durable) = (Durability::Cached, Durability::Durable);
        let (give, keep) = (Clear::Deallocate, Clear::KeepSpace);
        let quick = |how| Command::Clear {
            range: r(0, 512),
            how,
            effort: Effort::Quick,
            durability: cached,
        };
        let ok = [
            ((0, c::READ, 512, 1024), read(512, 1024, false)),
            ((f::DONT_FRAGMENT, c::READ, 0, 512), read(0, 512, true)),
            ((f::FUA, c::READ, 0, 512), read(0, 512, false)),
            ((0, c::READ, SIZE, 0), read(SIZE, 0, false)),
            ((0, c::TRIM, 0, 4096), clear(0, 4096, give, cached)),
            ((f::FUA, c::TRIM, 0, 512), clear(0, 512, give, durable)),
            ((0, c::WRITE_ZEROES, 0, 512), clear(0, 512, give, cached)),
            ((f::NO_HOLE | f::FUA, c::WRITE_ZEROES, 0, 512), clear(0, 512, keep, durable)),
            ((f::FAST_ZERO, c::WRITE_ZEROES, 0, 512), quick(give)),
            ((f::FAST_ZERO | f::NO_HOLE, c::WRITE_ZEROES, 0, 512), quick(keep)),
            ((0, c::CACHE, 512, SIZE - 512), Command::Cache(r(512, SIZE - 512))),
            ((0, c::FLUSH, 0, 0), Command::Flush),
            ((0, c::BLOCK_STATUS, 0, 512), status(0, 512, false)),
            ((f::REQ_ONE, c::BLOCK_STATUS, 0, 1024), status(0, 1024, true)),
            ((0, c::DISCONNECT, 0, 0), Command::Disconnect),
            ((f::NO_HOLE, c::DISCONNECT, 9, 9), Command::Disconnect),
        ];
        let refused = [
            ((0, c::READ, SIZE - 512, 1024), Errno::Invalid),
            ((0, c::READ, u64::MAX - 511, 512), Errno::Invalid),
            ((0, c::READ, 1, 512), Errno::Invalid),
            ((0, c::READ, 0, 511), Errno::Invalid),
            ((0, c::TRIM, SIZE, 512), Errno::Invalid),
            ((0, c::WRITE_ZEROES, SIZE, 512), Errno::NoSpace),
            ((f::FAST_ZERO, c::TRIM, 0, 512), Errno::Invalid),
            ((1 << 6, c::WRITE_ZEROES, 0, 512), Errno::Invalid),
            ((f::REQ_ONE, c::CACHE, 0, 512), Errno::Invalid),
            ((0, c::CACHE, SIZE, 512), Errno::Invalid),
            ((0, c::FLUSH, 512, 0), Errno::Invalid),
            ((0, c::FLUSH, 0, 1), Errno::Invalid),
            ((0, c::BLOCK_STATUS, 0, 0), Errno::Invalid),
            ((0, 8, 0, 0), Errno::Invalid),
            ((0, 999, 0, 512), Errno::Invalid),
        ];
        for framing in [Framing::Structured, Framing::Extended] {
            let session = session(framing);
            for (request, want) in ok {
                check(&session, WRITABLE, request, Ok(want));
            }
            for (request, want) in refused {
                check(&session, WRITABLE, request, Err(want));
            }
            let read_only = Bounds { read_only: true, ..WRITABLE };
            for kind in [c::TRIM, c::WRITE_ZEROES] {
                check(&session, read_only, (0, kind, 0, 512), Err(Errno::Perm));
            }
            // a write says its payload where all of them do
            let payload = if framing == Framing::Extended { f::PAYLOAD_LEN } else { 0 };
            let writes = [
                ((payload, c::WRITE, 0, 4096), Ok(Command::Write(r(0, 4096), cached))),
                ((payload | f::FUA, c::WRITE, 0, 4096), Ok(Command::Write(r(0, 4096), durable))),
                ((payload, c::WRITE, SIZE - 512, 1024), Err(Errno::NoSpace)),
                ((payload | f::NO_HOLE, c::WRITE, 0, 512), Err(Errno::Invalid)),
            ];
            for (request, want) in writes {
                check(&session, WRITABLE, request, want);
                let header = Header::decode(&bytes(framing, request), framing).expect("good");
                assert_eq!(header.payload(), request.3);
            }
            check(&session, read_only, (payload, c::WRITE, 0, 512), Err(Errno::Perm));
        }
        let simple = session(Framing::Simple);
        check(&simple, WRITABLE, (f::DONT_FRAGMENT, c::READ, 0, 512), Err(Errno::Invalid));
        let plain = Session { contexts: Contexts::NONE, ..session(Framing::Structured) };
        check(&plain, WRITABLE, (0, c::BLOCK_STATUS, 0, 512), Err(Errno::Invalid));
        check(&plain, WRITABLE, (f::PAYLOAD_LEN, c::WRITE, 0, 512), Err(Errno::Invalid));
    }

    #[test]
    fn what_is_too_long_and_what_may_be_long() {
        let big = Bounds { size: ByteCount(1 << 50), ..WRITABLE };
        let long = (32 << 20) + 512;
        for framing in [Framing::Structured, Framing::Extended] {
            let session = session(framing);
            check(&session, big, (0, c::READ, 0, long), Err(Errno::Invalid));
            check(&session, big, (f::DONT_FRAGMENT, c::READ, 0, long), Err(Errno::Overflow));
        }
        check(&session(Framing::Structured), big, (0, c::WRITE, 0, long), Err(Errno::Invalid));
        let extended = session(Framing::Extended);
        let all = ByteRange::new(512, (1 << 50) - 512);
        let (at, len) = (512, all.len.0);
        let give = clear(at, len, Clear::Deallocate, Durability::Cached);
        check(&extended, big, (0, c::TRIM, at, len), Ok(give));
        check(&extended, big, (0, c::WRITE_ZEROES, at, len), Ok(give));
        check(&extended, big, (0, c::CACHE, at, len), Ok(Command::Cache(all)));
        check(&extended, big, (0, c::BLOCK_STATUS, at, len), Ok(status(at, len, false)));
        check(&extended, big, (0, c::TRIM, at, u64::MAX - 511), Err(Errno::Invalid));
    }

    #[test]
    fn a_status_request_may_name_its_contexts() {
        let extended = session(Framing::Extended);
        let one = |context| Contexts::NONE.with(context);
        let query = |len: u64, ids: &[u32]| {
            let ids = ids.iter().flat_map(|id| id.to_be_bytes());
            len.to_be_bytes().into_iter().chain(ids).collect::<Vec<u8>>()
        };
        let table = [
            (query(4096, &[2]), Some((4096, one(Context::Depth)))),
            (query(4096, &[2, 1]), Some((4096, BOTH))),
            (query(0, &[1]), None),
            (query(512, &[]), None),
            (query(512, &[1, 1]), None),
            (query(512, &[3]), None),
            (query(512, &[0]), None),
            (query(2 << 20, &[1]), None),
            (query(513, &[1]), None),
            (vec![0; 7], None),
            (query(512, &[1])[..11].to_vec(), None),
            // too long to be looked at
            (query(512, &[1, 2, 1]), None),
        ];
        for (payload, want) in table {
            let request = (f::PAYLOAD_LEN, c::BLOCK_STATUS, 0, payload.len() as u64);
            let raw = bytes(Framing::Extended, request);
            let header = Header::decode(&raw, Framing::Extended).expect("no breach");
            assert_eq!(header.payload(), payload.len() as u64);
            let seen = &payload[..header.query()];
            let want = want.map(|(len, contexts)| {
                let range = ByteRange::new(0, len);
                Command::Status { range, contexts, one: false }
            });
            let got = header.command(&extended, WRITABLE, seen);
            assert_eq!(got, want.ok_or(Errno::Invalid), "{payload:?}");
        }
        // a context that was not selected
        let only = Session { contexts: one(Context::Depth), ..extended };
        let raw = bytes(Framing::Extended, (f::PAYLOAD_LEN, c::BLOCK_STATUS, 0, 12));
        let header = Header::decode(&raw, Framing::Extended).expect("no breach");
        assert_eq!(header.command(&only, WRITABLE, &query(512, &[1])), Err(Errno::Invalid));
    }

    #[test]
    fn breaches_are_not_answered() {
        let extended =
            |request| Header::decode(&bytes(Framing::Extended, request), Framing::Extended);
        let long = (32 << 20) + 1;
        assert_eq!(
            extended((f::PAYLOAD_LEN, c::WRITE, 0, long)),
            Err(Breach::LongPayload { len: long })
        );
        // also where no payload is expected
        let most = u64::MAX;
        assert_eq!(
            extended((f::PAYLOAD_LEN, c::TRIM, 0, most)),
            Err(Breach::LongPayload { len: most })
        );
        assert_eq!(extended((0, c::WRITE, 0, long)), Err(Breach::LongPayload { len: long }));
        let unsaid = extended((0, c::WRITE, 0, 512)).expect("it follows all the same");
        assert_eq!(unsaid.payload(), 512);
        let header = extended((f::PAYLOAD_LEN, c::FLUSH, 0, 100)).expect("its payload is skipped");
        assert_eq!((header.payload(), header.query()), (100, 0));
        let got = header.command(&session(Framing::Extended), WRITABLE, &[]);
        assert_eq!(got, Err(Errno::Invalid));
        for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
            let mut raw = bytes(framing, (0, 0, 0, 512));
            raw[0] ^= 1;
            let found = u32::from_be_bytes([raw[0], raw[1], raw[2], raw[3]]);
            let wanted = found ^ 0x0100_0000;
            assert_eq!(Header::decode(&raw, framing), Err(Breach::Magic { found, wanted }));
        }
    }

    #[test]
    fn whatever_is_accepted_lies_inside_the_device() {
        let mut runner = TestRunner::new_with_rng(
            Config::with_cases(4096),
            TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]),
        );
        let near = prop_oneof![0..=2 * SIZE, any::<u64>(), Just(u64::MAX - 511)];
        let (aligned, extended) = (any::<bool>(), any::<bool>());
        let query = prop::collection::vec(0..5_u8, 0..17);
        let input = (0..64_u16, 0..10_u16, near, any::<u64>(), aligned, extended, query);
        runner
            .run(&input, |(flags, kind, at, len, aligned, extended, mut query)| {
                let framing = if extended { Framing::Extended } else { Framing::Structured };
                let (at, len) = if aligned { (at & !511, len & 0x1f_fe00) } else { (at, len) };
                let len = if extended { len } else { len & 0xffff_ffff };
                let raw = bytes(framing, (flags, kind, at, len));
                let Ok(header) = Header::decode(&raw, framing) else { return Ok(()) };
                query.resize(header.query(), 1);
                match header.command(&session(framing), WRITABLE, &query) {
                    Ok(
                        Command::Read { range, .. }
                        | Command::Write(range, _)
                        | Command::Clear { range, .. }
                        | Command::Cache(range)
                        | Command::Status { range, .. },
                    ) => {
                        prop_assert!(range.is_within(WRITABLE.size));
                        prop_assert!(range.start.is_aligned(512));
                    }
                    Ok(Command::Flush | Command::Disconnect) | Err(_) => {}
                }
                Ok(())
            })
            .expect("no accepted request leaves the device");
    }
}
