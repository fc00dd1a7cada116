//! Requests of the transmission phase: 28 hostile bytes in, a checked command out.

use io::{ByteCount, ByteRange, Clear, Durability};

use crate::handshake::Session;
use crate::wire::{Errno, MAX_PAYLOAD, REQUEST_LEN, REQUEST_MAGIC, command, command_flag};

/// A request as it stands on the wire, its magic checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    flags: u16,
    kind: u16,
    /// The client's name for the request, returned with the reply.
    pub cookie: u64,
    offset: u64,
    len: u32,
}

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read `range`.
    Read(ByteRange),
    /// Write the payload that follows to `range`.
    Write(ByteRange, Durability),
    /// Make `range` read as zero.
    Clear(ByteRange, Clear, Durability),
    /// Make completed writes durable.
    Flush,
    /// Say what `range` is; with `one` only the first extent.
    Status {
        /// Which bytes.
        range: ByteRange,
        /// One extent is enough.
        one: bool,
    },
    /// Finish what is in flight and close; there is no reply.
    Disconnect,
}

/// The stream does not hold a request where one must start; nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request starts with {found:#010x} instead of the NBD request magic")]
pub struct BadMagic {
    /// What was found.
    pub found: u32,
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
    /// Takes a request header apart.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Result<Self, BadMagic> {
        let (found, rest) = split4(bytes);
        let found = u32::from_be_bytes(found);
        if found != REQUEST_MAGIC {
            return Err(BadMagic { found });
        }
        let [f0, f1, k0, k1, rest @ ..] = rest;
        let [c0, c1, c2, c3, c4, c5, c6, c7, rest @ ..] = rest;
        let [o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            kind: u16::from_be_bytes([k0, k1]),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Bytes of payload that follow the header, whether the command is good or not.
    #[must_use]
    pub fn payload(&self) -> u32 {
        if self.kind == command::WRITE { self.len } else { 0 }
    }

    /// Whether a failure must be said in a structured chunk, if those were negotiated.
    #[must_use]
    pub fn wants_chunk(&self) -> bool {
        matches!(self.kind, command::READ | command::BLOCK_STATUS)
    }

    /// What the request wants, or why it is refused.
    pub fn command(&self, session: &Session, bounds: Bounds) -> Result<Command, Errno> {
        let allowed = match self.kind {
            command::READ if session.structured => command_flag::DONT_FRAGMENT,
            command::WRITE_ZEROES => command_flag::NO_HOLE,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        // FUA may stand on any command; it means something on those that write
        if self.flags & !(allowed | command_flag::FUA) != 0 {
            return Err(Errno::Invalid);
        }
        let durability = if self.flags & command_flag::FUA == 0 {
            Durability::Cached
        } else {
            Durability::Durable
        };
        match self.kind {
            command::READ => Ok(Command::Read(self.range(bounds, MAX_PAYLOAD, Errno::Invalid)?)),
            command::WRITE => {
                let range = self.writable(bounds, MAX_PAYLOAD)?;
                Ok(Command::Write(range, durability))
            }
            command::TRIM => {
                let range = self.writable(bounds, u32::MAX)?;
                Ok(Command::Clear(range, Clear::Deallocate, durability))
            }
            command::WRITE_ZEROES => {
                let range = self.writable(bounds, u32::MAX)?;
                let how = if self.flags & command_flag::NO_HOLE == 0 {
                    Clear::Deallocate
                } else {
                    Clear::KeepSpace
                };
                Ok(Command::Clear(range, how, durability))
            }
            command::FLUSH if self.offset == 0 && self.len == 0 => Ok(Command::Flush),
            command::BLOCK_STATUS if session.allocation && self.len > 0 => Ok(Command::Status {
                range: self.range(bounds, u32::MAX, Errno::Invalid)?,
                one: self.flags & command_flag::REQ_ONE != 0,
            }),
            command::DISCONNECT => Ok(Command::Disconnect),
            _ => Err(Errno::Invalid),
        }
    }

    fn writable(&self, bounds: Bounds, longest: u32) -> Result<ByteRange, Errno> {
        if bounds.read_only {
            return Err(Errno::Perm);
        }
        self.range(bounds, longest, Errno::NoSpace)
    }

    fn range(&self, bounds: Bounds, longest: u32, outside: Errno) -> Result<ByteRange, Errno> {
        let block = u64::from(bounds.block);
        if self.len > longest
            || !self.offset.is_multiple_of(block)
            || !u64::from(self.len).is_multiple_of(block)
        {
            return Err(Errno::Invalid);
        }
        let range = ByteRange::new(self.offset, u64::from(self.len));
        if range.is_within(bounds.size) { Ok(range) } else { Err(outside) }
    }
}

fn split4(bytes: &[u8; REQUEST_LEN]) -> ([u8; 4], [u8; REQUEST_LEN - 4]) {
    let [a, b, c, d, rest @ ..] = *bytes;
    ([a, b, c, d], rest)
}

#[cfg(test)]
mod tests {
    use io::{ByteCount, ByteRange, Clear, Durability};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    use super::{Bounds, Command, Header};
    use crate::handshake::Session;
    use crate::wire::{Errno, command as c, command_flag as f};

    const SIZE: u64 = 1 << 20;
    const WRITABLE: Bounds = Bounds { size: ByteCount(SIZE), block: 512, read_only: false };
    const FULL: Session = Session { export: String::new(), structured: true, allocation: true };

    fn bytes(flags: u16, kind: u16, offset: u64, len: u32) -> [u8; 28] {
        let mut all = [0; 28];
        all[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
        all[4..6].copy_from_slice(&flags.to_be_bytes());
        all[6..8].copy_from_slice(&kind.to_be_bytes());
        all[8..16].copy_from_slice(&77_u64.to_be_bytes());
        all[16..24].copy_from_slice(&offset.to_be_bytes());
        all[24..].copy_from_slice(&len.to_be_bytes());
        all
    }

    fn check(
        session: &Session,
        bounds: Bounds,
        request: (u16, u16, u64, u32),
        want: Result<Command, Errno>,
    ) {
        let (flags, kind, offset, len) = request;
        let header = Header::decode(&bytes(flags, kind, offset, len)).expect("the magic is right");
        assert_eq!(header.cookie, 77);
        assert_eq!(header.command(session, bounds), want, "request {request:?}");
    }

    #[test]
    fn every_command_and_its_refusals() {
        let r = ByteRange::new;
        let (cached, durable) = (Durability::Cached, Durability::Durable);
        let ok = [
            ((0, c::READ, 512, 1024), Command::Read(r(512, 1024))),
            ((f::DONT_FRAGMENT, c::READ, 0, 512), Command::Read(r(0, 512))),
            ((f::FUA, c::READ, 0, 512), Command::Read(r(0, 512))),
            ((0, c::READ, SIZE, 0), Command::Read(r(SIZE, 0))),
            ((0, c::WRITE, 0, 4096), Command::Write(r(0, 4096), cached)),
            ((f::FUA, c::WRITE, 0, 4096), Command::Write(r(0, 4096), durable)),
            ((0, c::TRIM, 0, 4096), Command::Clear(r(0, 4096), Clear::Deallocate, cached)),
            ((f::FUA, c::TRIM, 0, 512), Command::Clear(r(0, 512), Clear::Deallocate, durable)),
            ((0, c::WRITE_ZEROES, 0, 512), Command::Clear(r(0, 512), Clear::Deallocate, cached)),
            (
                (f::NO_HOLE | f::FUA, c::WRITE_ZEROES, 0, 512),
                Command::Clear(r(0, 512), Clear::KeepSpace, durable),
            ),
            ((0, c::FLUSH, 0, 0), Command::Flush),
            ((0, c::BLOCK_STATUS, 0, 512), Command::Status { range: r(0, 512), one: false }),
            (
                (f::REQ_ONE, c::BLOCK_STATUS, 0, 1024),
                Command::Status { range: r(0, 1024), one: true },
            ),
            ((0, c::DISCONNECT, 0, 0), Command::Disconnect),
        ];
        for (request, want) in ok {
            check(&FULL, WRITABLE, request, Ok(want));
        }
        let refused = [
            ((0, c::READ, SIZE - 512, 1024), Errno::Invalid),
            ((0, c::READ, u64::MAX - 511, 512), Errno::Invalid),
            ((0, c::READ, 1, 512), Errno::Invalid),
            ((0, c::READ, 0, 511), Errno::Invalid),
            ((0, c::WRITE, SIZE - 512, 1024), Errno::NoSpace),
            ((0, c::TRIM, SIZE, 512), Errno::NoSpace),
            ((0, c::WRITE, 0, (32 << 20) + 512), Errno::Invalid),
            ((f::NO_HOLE, c::WRITE, 0, 512), Errno::Invalid),
            ((1 << 4, c::WRITE_ZEROES, 0, 512), Errno::Invalid),
            ((0, c::FLUSH, 512, 0), Errno::Invalid),
            ((0, c::FLUSH, 0, 1), Errno::Invalid),
            ((0, c::BLOCK_STATUS, 0, 0), Errno::Invalid),
            ((0, 5, 0, 0), Errno::Invalid),
            ((0, 999, 0, 512), Errno::Invalid),
        ];
        for (request, want) in refused {
            check(&FULL, WRITABLE, request, Err(want));
        }
        let read_only = Bounds { read_only: true, ..WRITABLE };
        for kind in [c::WRITE, c::TRIM, c::WRITE_ZEROES] {
            check(&FULL, read_only, (0, kind, 0, 512), Err(Errno::Perm));
        }
        let plain = Session { structured: false, allocation: false, ..FULL };
        check(&plain, WRITABLE, (f::DONT_FRAGMENT, c::READ, 0, 512), Err(Errno::Invalid));
        check(&plain, WRITABLE, (0, c::BLOCK_STATUS, 0, 512), Err(Errno::Invalid));
    }

    #[test]
    fn a_wrong_magic_is_no_request() {
        let mut raw = bytes(0, 0, 0, 512);
        raw[0] ^= 1;
        assert_eq!(Header::decode(&raw).expect_err("wrong magic").found, 0x2460_9513);
    }

    #[test]
    fn whatever_is_accepted_lies_inside_the_device() {
        let mut runner = TestRunner::new_with_rng(
            Config::with_cases(4096),
            TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]),
        );
        let near = prop_oneof![0..=2 * SIZE, any::<u64>(), Just(u64::MAX - 511)];
        let aligned = any::<bool>();
        runner
            .run(&(0..16_u16, 0..10_u16, near, any::<u32>(), aligned), |(fl, kind, at, len, al)| {
                let (at, len) = if al { (at & !511, len & 0x1f_fe00) } else { (at, len) };
                let header = Header::decode(&bytes(fl, kind, at, len)).expect("magic");
                match header.command(&FULL, WRITABLE) {
                    Ok(
                        Command::Read(range)
                        | Command::Write(range, _)
                        | Command::Clear(range, _, _)
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
