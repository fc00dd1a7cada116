//! A client of other people's NBD servers: one connection, one request at a time, blocking. It is what
//! an import reads by and an export writes by, so it runs on a helper thread and asks for megabytes.
//!
//! The server is not trusted: every length it says is held against what was asked for.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::context::Context;
use crate::wire::{
    CHUNK_MAGIC, FIXED_NEWSTYLE, GREETING_MAGIC, MAX_OPTION, MAX_STRING, NO_ZEROES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, chunk, command, command_flag,
    export_flag, info, option, option_reply, state,
};

/// The port of `nbd://` addresses that name none.
const PORT: u16 = 10_809;
/// Longest single read or write: what every server takes.
const MAX_REQUEST: usize = 2 << 20;
/// Most replies to one option: a server that says more is not answered any more.
const MAX_REPLIES: usize = 64;
/// Most descriptors of one answer about a range's blocks.
const MAX_DESCRIPTORS: usize = 1 << 16;
/// A chunk that says that a range is zero, as the protocol numbers it.
const OFFSET_HOLE: u16 = 2;
/// Set in the type of every chunk that reports an error.
const ERROR_CHUNK: u16 = 1 << 15;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdAddress {
    server: Server,
    export: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Server {
    Unix(PathBuf),
    Tcp(String, u16),
}

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The address is none.
    #[error("'{0}' is not an address of an NBD server: {1}")]
    Address(String, &'static str),
    /// The connection failed.
    #[error("cannot {0} the NBD server: {1}")]
    Io(&'static str, std::io::Error),
    /// The server refused.
    #[error("the NBD server refused to {0}: {1}")]
    Refused(&'static str, String),
    /// The server does not keep to the protocol.
    #[error("the NBD server does not keep to the protocol: {0}")]
    Protocol(String),
}

/// Result of this module.
pub type NbdResult<T> = Result<T, NbdError>;

trait Stream: Read + Write + Send + std::fmt::Debug {}
impl<T: Read + Write + Send + std::fmt::Debug> Stream for T {}

/// A connection to an export.
#[derive(Debug)]
pub struct NbdClient {
    stream: Box<dyn Stream>,
    size: u64,
    flags: u16,
    structured: bool,
    /// The id under which the server tells holes.
    allocation: Option<u32>,
    cookie: u64,
}

/// A run of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdExtent {
    /// Bytes; never 0.
    pub len: u64,
    /// Whether it reads as zero.
    pub zero: bool,
}

impl NbdAddress {
    /// Takes `nbd://HOST[:PORT][/EXPORT]` or `nbd+unix:///[EXPORT]?socket=PATH` apart.
    ///
    /// # Errors
    /// If the text is neither, or a part of it is too long.
    pub fn parse(text: &str) -> NbdResult<Self> {
        let bad = |why| NbdError::Address(text.to_owned(), why);
        let (server, export) = if let Some(rest) = text.strip_prefix("nbd+unix://") {
            let (path, query) = rest.split_once('?').ok_or_else(|| bad("it names no socket"))?;
            let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
            let socket = socket.ok_or_else(|| bad("it names no socket"))?;
            let socket = PathBuf::from(unescaped(socket));
            if !socket.is_absolute() {
                return Err(bad("the path of its socket is not absolute"));
            }
            (Server::Unix(socket), path)
        } else if let Some(rest) = text.strip_prefix("nbd://") {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) if !port.ends_with(']') => {
                    (host, port.parse().map_err(|_not_a_number| bad("its port is no port"))?)
                }
                Some(_) | None => (authority, PORT),
            };
            let host = host.trim_start_matches('[').trim_end_matches(']');
            if host.is_empty() {
                return Err(bad("it names no host"));
            }
            (Server::Tcp(host.to_owned(), port), path)
        } else {
            return Err(bad("it starts with neither nbd:// nor nbd+unix://"));
        };
        let export = unescaped(export.strip_prefix('/').unwrap_or(export));
        if export.len() > MAX_STRING {
            return Err(bad("the name of its export is too long"));
        }
        Ok(Self { server, export })
    }

    /// The default export of the server at a unix socket.
    #[must_use]
    pub fn unix(socket: PathBuf) -> Self {
        Self { server: Server::Unix(socket), export: String::new() }
    }
}

/// A part of an address without its `%XX`.
fn unescaped(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.first_chunk::<2>().filter(|_| *first == b'%');
        let value = digits.and_then(|pair| std::str::from_utf8(pair).ok());
        match value.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl NbdClient {
    /// Connects and opens the export. A server that says nothing for `limit` has failed, now and later.
    ///
    /// # Errors
    /// If it cannot be reached, has no such export, or speaks another protocol.
    pub fn connect(address: &NbdAddress, limit: Duration) -> NbdResult<Self> {
        let failed = |error| NbdError::Io("connect to", error);
        let stream: Box<dyn Stream> = match &address.server {
            Server::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(failed)?;
                stream.set_read_timeout(Some(limit)).map_err(failed)?;
                stream.set_write_timeout(Some(limit)).map_err(failed)?;
                Box::new(stream)
            }
            Server::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                stream.set_read_timeout(Some(limit)).map_err(failed)?;
                stream.set_write_timeout(Some(limit)).map_err(failed)?;
                Box::new(stream)
            }
        };
        Self::open(stream, &address.export)
    }

    /// Opens the export over a stream that leads to a server. How long it waits is the stream's.
    ///
    /// # Errors
    /// If the server has no such export, or speaks another protocol.
    pub fn over(
        stream: impl Read + Write + Send + std::fmt::Debug + 'static,
        export: &str,
    ) -> NbdResult<Self> {
        Self::open(Box::new(stream), export)
    }

    fn open(stream: Box<dyn Stream>, export: &str) -> NbdResult<Self> {
        let (size, flags, structured, allocation, cookie) = (0, 0, false, None, 0);
        let mut client = Self { stream, size, flags, structured, allocation, cookie };
        client.negotiate(export)?;
        Ok(client)
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    fn negotiate(&mut self, export: &str) -> NbdResult<()> {
        let (magic, kind) = (self.u64()?, self.u64()?);
        if magic != GREETING_MAGIC || kind != OPTION_MAGIC {
            return Err(protocol("it does not greet as a fixed newstyle server"));
        }
        let flags = self.u16()?;
        if flags & FIXED_NEWSTYLE == 0 {
            return Err(protocol("it does not offer the fixed newstyle handshake"));
        }
        let answer = u32::from(FIXED_NEWSTYLE | (flags & NO_ZEROES));
        self.send(&answer.to_be_bytes())?;

        self.option(option::STRUCTURED_REPLY, &[])?;
        self.structured = self.replies(option::STRUCTURED_REPLY, |_, _| Ok(()))?.is_ok();
        let name = export.as_bytes();
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
        if self.structured {
            let query = Context::Allocation.name().as_bytes();
            let query_length = u32::try_from(query.len()).unwrap_or(u32::MAX).to_be_bytes();
            let data = [&length, name, &1_u32.to_be_bytes(), &query_length, query].concat();
            self.option(option::SET_META_CONTEXT, &data)?;
            let mut found = None;
            let told = self.replies(option::SET_META_CONTEXT, |kind, data| {
                if kind == option_reply::META_CONTEXT
                    && let Some((id, name)) = data.split_first_chunk::<4>()
                    && name == query
                {
                    found = Some(u32::from_be_bytes(*id));
                }
                Ok(())
            })?;
            self.allocation = found.filter(|_| told.is_ok());
        }
        // no kinds of information beyond what every server tells
        let data = [&length, name, &0_u16.to_be_bytes()[..]].concat();
        self.option(option::GO, &data)?;
        let mut told = None;
        let went = self.replies(option::GO, |kind, data| {
            if kind == option_reply::INFO
                && let Some((kind, rest)) = data.split_first_chunk::<2>()
                && u16::from_be_bytes(*kind) == info::EXPORT
            {
                let size = rest.first_chunk::<8>().copied().map(u64::from_be_bytes);
                let flags = rest.get(8..10).and_then(|two| two.try_into().ok());
                told = size.zip(flags.map(u16::from_be_bytes));
            }
            Ok(())
        })?;
        went.map_err(|why| NbdError::Refused("open the export", why))?;
        (self.size, self.flags) = told.ok_or_else(|| protocol("it tells no size"))?;
        Ok(())
    }

    fn option(&mut self, option: u32, data: &[u8]) -> NbdResult<()> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let head = [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &length.to_be_bytes()];
        self.send(&[&head.concat(), data].concat())
    }

    /// Reads the replies to an option up to the last; that may be a refusal, in words.
    fn replies(
        &mut self,
        option: u32,
        mut each: impl FnMut(u32, &[u8]) -> NbdResult<()>,
    ) -> NbdResult<Result<(), String>> {
        for _ in 0..MAX_REPLIES {
            let (magic, of, kind, length) = (self.u64()?, self.u32()?, self.u32()?, self.u32()?);
            if magic != OPTION_REPLY_MAGIC || of != option {
                return Err(protocol("a reply belongs to no option"));
            }
            if length as usize > MAX_OPTION {
                return Err(protocol(format!("a reply to an option has {length} bytes")));
            }
            let mut data = vec![0; length as usize];
            self.receive(&mut data)?;
            if kind == option_reply::ACK {
                return Ok(Ok(()));
            }
            if kind >> 31 == 1 {
                let why = String::from_utf8_lossy(&data).trim().to_owned();
                let why = if why.is_empty() { format!("error {}", kind & 0xffff) } else { why };
                return Ok(Err(why));
            }
            each(kind, &data)?;
        }
        Err(protocol("it does not end its replies to an option"))
    }

    /// What a range is made of, from its start; one extent at least. A server that does not tell has
    /// data everywhere.
    ///
    /// # Errors
    /// If the connection fails, or the answer is none.
    ///
    /// # Panics
    /// If the range is empty or does not lie within the export.
    pub fn status(&mut self, at: u64, len: u64) -> NbdResult<Vec<NbdExtent>> {
        self.check(at, len);
        let Some(id) = self.allocation else { return Ok(vec![NbdExtent { len, zero: false }]) };
        let asked = u32::try_from(len).unwrap_or(1 << 30).min(1 << 30);
        let cookie = self.request(command::BLOCK_STATUS, 0, at, asked)?;
        let mut extents = Vec::new();
        loop {
            let head = self.chunk(cookie)?;
            match head.kind {
                chunk::BLOCK_STATUS => {
                    let length = head.length as usize;
                    if !(12..=4 + 8 * MAX_DESCRIPTORS).contains(&length) {
                        return Err(protocol("an answer about blocks has no length of one"));
                    }
                    let mut data = vec![0; length];
                    self.receive(&mut data)?;
                    let (of, rest) = data.split_first_chunk::<4>().expect("12 bytes at least");
                    // once for each context, and only one was selected: else there were no end to it
                    if u32::from_be_bytes(*of) != id || !extents.is_empty() {
                        return Err(protocol("it tells of blocks that it was not asked for"));
                    }
                    let (descriptors, _) = rest.as_chunks::<8>();
                    extents.extend(descriptors.iter().map(|one| {
                        let [a, b, c, d, e, f, g, h] = *one;
                        let len = u64::from(u32::from_be_bytes([a, b, c, d]));
                        let flags = u32::from_be_bytes([e, f, g, h]);
                        NbdExtent { len, zero: flags & state::ZERO != 0 }
                    }));
                }
                chunk::NONE if head.length == 0 => {}
                _ => self.failed("tell its blocks", &head)?,
            }
            if head.done {
                break;
            }
        }
        let mut left = len;
        extents.retain_mut(|extent| {
            extent.len = extent.len.min(left);
            left -= extent.len;
            extent.len > 0
        });
        if extents.is_empty() {
            return Err(protocol("it tells nothing about a range's blocks"));
        }
        Ok(extents)
    }

    /// Fills `into` from `at`.
    ///
    /// # Errors
    /// If the server fails to read, or the connection fails.
    ///
    /// # Panics
    /// If the range is empty or does not lie within the export.
    pub fn read(&mut self, at: u64, into: &mut [u8]) -> NbdResult<()> {
        self.check(at, into.len() as u64);
        for (index, part) in into.chunks_mut(MAX_REQUEST).enumerate() {
            self.read_part(at + (index * MAX_REQUEST) as u64, part)?;
        }
        Ok(())
    }

    fn read_part(&mut self, at: u64, into: &mut [u8]) -> NbdResult<()> {
        let length = u32::try_from(into.len()).expect("parts are small");
        let cookie = self.request(command::READ, 0, at, length)?;
        if !self.structured {
            self.simple("read", cookie)?;
            return self.receive(into);
        }
        let mut filled = Filled::default();
        loop {
            let head = self.chunk(cookie)?;
            match head.kind {
                chunk::OFFSET_DATA | OFFSET_HOLE => {
                    let from = self.u64()?;
                    let len = if head.kind == OFFSET_HOLE {
                        self.u32()?
                    } else {
                        head.length.saturating_sub(8)
                    };
                    let start = from.checked_sub(at).and_then(|at| usize::try_from(at).ok());
                    let end = start.and_then(|start| start.checked_add(len as usize));
                    let range = start.zip(end).filter(|range| filled.take(*range));
                    let place = range.and_then(|(start, end)| into.get_mut(start..end));
                    let Some(place) = place else {
                        return Err(protocol("it sends data that was not asked for, or twice"));
                    };
                    if head.kind == OFFSET_HOLE {
                        place.fill(0);
                    } else {
                        read_exact(&mut *self.stream, place)?;
                    }
                }
                chunk::NONE if head.length == 0 => {}
                _ => self.failed("read", &head)?,
            }
            if head.done {
                break;
            }
        }
        let filled = filled.len();
        if filled == into.len() {
            return Ok(());
        }
        Err(protocol(format!("it sent {filled} bytes of {} that were asked for", into.len())))
    }

    /// Writes `bytes` at `at`.
    ///
    /// # Errors
    /// If the server fails to write, or the connection fails.
    ///
    /// # Panics
    /// If the range is empty or does not lie within the export.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> NbdResult<()> {
        self.check(at, bytes.len() as u64);
        for (index, part) in bytes.chunks(MAX_REQUEST).enumerate() {
            let length = u32::try_from(part.len()).expect("parts are small");
            let at = at + (index * MAX_REQUEST) as u64;
            let cookie = self.request(command::WRITE, 0, at, length)?;
            self.send(part)?;
            self.ended("write", cookie)?;
        }
        Ok(())
    }

    /// Makes a range read as zero; with `keep` its space is kept.
    ///
    /// # Errors
    /// If the server does not offer it or fails to, or the connection fails.
    ///
    /// # Panics
    /// If the range is empty or does not lie within the export.
    pub fn zero(&mut self, at: u64, len: u32, keep: bool) -> NbdResult<()> {
        self.check(at, u64::from(len));
        if self.flags & export_flag::SEND_WRITE_ZEROES == 0 {
            return Err(protocol("it does not offer write-zeroes"));
        }
        let flags = if keep { command_flag::NO_HOLE } else { 0 };
        let cookie = self.request(command::WRITE_ZEROES, flags, at, len)?;
        self.ended("zero", cookie)
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// If the server fails to, or the connection fails.
    pub fn flush(&mut self) -> NbdResult<()> {
        if self.flags & export_flag::SEND_FLUSH == 0 {
            return Ok(());
        }
        let cookie = self.request(command::FLUSH, 0, 0, 0)?;
        self.ended("flush", cookie)
    }

    /// Says good-bye.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn close(mut self) -> NbdResult<()> {
        self.request(command::DISCONNECT, 0, 0, 0).map(drop)
    }

    fn check(&self, at: u64, len: u64) {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.size);
        assert!(len > 0 && fits, "{at}+{len} of an export of {} bytes", self.size);
    }

    fn request(&mut self, command: u16, flags: u16, at: u64, len: u32) -> NbdResult<u64> {
        // one extent would do, but a long answer costs no more
        let flags = flags & !command_flag::REQ_ONE;
        self.cookie += 1;
        let cookie = self.cookie;
        let head = [
            &REQUEST_MAGIC.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &cookie.to_be_bytes(),
            &at.to_be_bytes(),
            &len.to_be_bytes(),
        ];
        self.send(&head.concat())?;
        Ok(cookie)
    }

    /// The reply to a request without an answer, in either form.
    fn ended(&mut self, doing: &'static str, cookie: u64) -> NbdResult<()> {
        let magic = self.u32()?;
        if magic == SIMPLE_REPLY_MAGIC {
            return self.simple_after_magic(doing, cookie);
        }
        let mut head = self.chunk_after_magic(magic, cookie)?;
        loop {
            if head.kind != chunk::NONE || head.length != 0 {
                self.failed(doing, &head)?;
            }
            if head.done {
                return Ok(());
            }
            head = self.chunk(cookie)?;
        }
    }

    fn simple(&mut self, doing: &'static str, cookie: u64) -> NbdResult<()> {
        if self.u32()? != SIMPLE_REPLY_MAGIC {
            return Err(protocol("a reply does not start as one"));
        }
        self.simple_after_magic(doing, cookie)
    }

    fn simple_after_magic(&mut self, doing: &'static str, cookie: u64) -> NbdResult<()> {
        let (error, of) = (self.u32()?, self.u64()?);
        if of != cookie {
            return Err(protocol("a reply belongs to no request"));
        }
        if error == 0 { Ok(()) } else { Err(refused(doing, error, "")) }
    }

    fn chunk(&mut self, cookie: u64) -> NbdResult<Head> {
        let magic = self.u32()?;
        self.chunk_after_magic(magic, cookie)
    }

    fn chunk_after_magic(&mut self, magic: u32, cookie: u64) -> NbdResult<Head> {
        if magic != CHUNK_MAGIC {
            return Err(protocol("a reply does not start as one"));
        }
        let (flags, kind, of, length) = (self.u16()?, self.u16()?, self.u64()?, self.u32()?);
        if of != cookie {
            return Err(protocol("a reply belongs to no request"));
        }
        let done = flags & chunk::DONE != 0;
        if kind == chunk::NONE && !done {
            return Err(protocol("a reply has a part that says nothing and is not its last"));
        }
        Ok(Head { done, kind, length })
    }

    /// An error chunk, or one that has no place here.
    fn failed(&mut self, doing: &'static str, head: &Head) -> NbdResult<()> {
        if head.kind & ERROR_CHUNK == 0 || head.length < 6 || head.length as usize > MAX_OPTION {
            return Err(protocol(format!("a reply has a part of kind {}", head.kind)));
        }
        let (error, length) = (self.u32()?, self.u16()?);
        let mut rest = vec![0; head.length as usize - 6];
        self.receive(&mut rest)?;
        let text = rest.get(..usize::from(length)).unwrap_or_default();
        Err(refused(doing, error, &String::from_utf8_lossy(text)))
    }

    fn send(&mut self, bytes: &[u8]) -> NbdResult<()> {
        self.stream.write_all(bytes).map_err(|error| NbdError::Io("send to", error))
    }

    fn receive(&mut self, into: &mut [u8]) -> NbdResult<()> {
        read_exact(&mut *self.stream, into)
    }

    fn u16(&mut self) -> NbdResult<u16> {
        let mut bytes = [0; 2];
        self.receive(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn u32(&mut self) -> NbdResult<u32> {
        let mut bytes = [0; 4];
        self.receive(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> NbdResult<u64> {
        let mut bytes = [0; 8];
        self.receive(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

/// The head of a chunk of a reply.
struct Head {
    done: bool,
    kind: u16,
    length: u32,
}

/// The parts of a read that have come: by their starts, their ends.
#[derive(Debug, Default)]
struct Filled(BTreeMap<usize, usize>);

impl Filled {
    /// Notes a part; false if it is empty or some of it has come before.
    fn take(&mut self, (start, end): (usize, usize)) -> bool {
        let after = self.0.range(start..).next();
        if start >= end || after.is_some_and(|(next, _)| *next < end) {
            return false;
        }
        match self.0.range_mut(..start).next_back() {
            Some((_, last)) if *last > start => return false,
            // parts mostly come in order: then there is one
            Some((_, last)) if *last == start => *last = end,
            Some(_) | None => drop(self.0.insert(start, end)),
        }
        true
    }

    /// Bytes of all parts.
    fn len(&self) -> usize {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

fn read_exact(stream: &mut dyn Stream, into: &mut [u8]) -> NbdResult<()> {
    stream.read_exact(into).map_err(|error| NbdError::Io("read from", error))
}

fn protocol(what: impl Into<String>) -> NbdError {
    NbdError::Protocol(what.into())
}

fn refused(doing: &'static str, error: u32, text: &str) -> NbdError {
    let number = i32::try_from(error).unwrap_or(i32::MAX);
    let system = std::io::Error::from_raw_os_error(number).to_string();
    NbdError::Refused(doing, if text.is_empty() { system } else { format!("{text} ({system})") })
}

impl NbdError {
    /// Whether the server lacked space.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Refused(_, text) if text.contains("No space left"))
    }
}

#[cfg(test)]
mod tests {
    use super::{NbdAddress, NbdError, Server};

    #[test]
    fn addresses() {
        let tcp = |host: &str, port, export: &str| NbdAddress {
            server: Server::Tcp(host.into(), port),
            export: export.into(),
        };
        let unix = |path: &str, export: &str| NbdAddress {
            server: Server::Unix(path.into()),
            export: export.into(),
        };
        let good = [
            ("nbd://host", tcp("host", 10_809, "")),
            ("nbd://host:1/a%20b", tcp("host", 1, "a b")),
            ("nbd://[::1]:7/x/y", tcp("::1", 7, "x/y")),
            ("nbd://[::1]", tcp("::1", 10_809, "")),
            ("nbd+unix:///?socket=/run/x", unix("/run/x", "")),
            ("nbd+unix:///disk?socket=/run/%78", unix("/run/x", "disk")),
        ];
        for (text, wanted) in good {
            assert_eq!(NbdAddress::parse(text).unwrap(), wanted, "{text}");
        }
        for text in
            ["", "nbd://", "nbd://h:x", "http://h", "nbd+unix:///x", "nbd+unix:///?socket=x"]
        {
            assert!(matches!(NbdAddress::parse(text), Err(NbdError::Address(..))), "{text}");
        }
    }
}
