//! A small blocking NBD client: enough to read, write and flush as a guest would.

use std::io::{Error, Read, Result, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;

/// A connection to an export.
pub(crate) struct Nbd<S = UnixStream> {
    stream: S,
    size: u64,
    flags: u16,
    next: u64,
}

impl Nbd {
    /// Connects to the default export behind a unix socket.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        Self::handshake(UnixStream::connect(path)?)
    }
}

#[allow(dead_code, reason = "each test that includes this file uses a part of it")]
impl Nbd<TcpStream> {
    /// The same over TCP.
    pub(crate) fn connect_tcp(address: &str) -> Result<Self> {
        Self::handshake(TcpStream::connect(address)?)
    }
}

#[allow(dead_code, reason = "each test that includes this file uses a part of it")]
impl<S: Read + Write> Nbd<S> {
    fn handshake(mut stream: S) -> Result<Self> {
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        expect(&hello[..8] == b"NBDMAGIC" && &hello[8..16] == b"IHAVEOPT", "a greeting")?;
        // Fixed newstyle, no zeroes.
        stream.write_all(&3_u32.to_be_bytes())?;
        let mut option = Vec::new();
        option.extend(OPTION.to_be_bytes());
        option.extend(OPT_GO.to_be_bytes());
        option.extend(6_u32.to_be_bytes());
        option.extend(0_u32.to_be_bytes());
        option.extend(0_u16.to_be_bytes());
        stream.write_all(&option)?;
        let (mut size, mut flags) = (0, 0);
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            expect(be64(&head) == OPTION_REPLY, "an option reply")?;
            let (kind, len) = (be32(&head[12..]), be32(&head[16..]));
            let mut data = vec![0; len as usize];
            stream.read_exact(&mut data)?;
            match kind {
                REP_ACK => break,
                REP_INFO if data.len() == 12 && data[..2] == [0, 0] => {
                    size = be64(&data[2..]);
                    flags = u16::from_be_bytes([data[10], data[11]]);
                }
                REP_INFO => {}
                other => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(Error::other(format!("option refused with {other:#x}: {text}")));
                }
            }
        }
        Ok(Self { stream, size, flags, next: 1 })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.flags & 2 != 0
    }

    fn request(&mut self, kind: u16, at: u64, len: u32, payload: &[u8]) -> Result<u64> {
        let handle = self.next;
        self.next += 1;
        let mut bytes = Vec::with_capacity(28 + payload.len());
        bytes.extend(REQUEST.to_be_bytes());
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(handle.to_be_bytes());
        bytes.extend(at.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        self.stream.write_all(&bytes)?;
        Ok(handle)
    }

    fn reply(&mut self, handle: u64) -> Result<()> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        expect(be32(&head) == REPLY && be64(&head[8..]) == handle, "the reply to the request")?;
        match be32(&head[4..]) {
            0 => Ok(()),
            error => Err(Error::other(Refused(error))),
        }
    }

    pub(crate) fn read(&mut self, at: u64, len: u32) -> Result<Vec<u8>> {
        let handle = self.request(0, at, len, &[])?;
        self.reply(handle)?;
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    pub(crate) fn write(&mut self, at: u64, data: &[u8]) -> Result<()> {
        let len = u32::try_from(data.len()).expect("a short write");
        let handle = self.request(1, at, len, data)?;
        self.reply(handle)
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        let handle = self.request(3, 0, 0, &[])?;
        self.reply(handle)
    }

    pub(crate) fn trim(&mut self, at: u64, len: u32) -> Result<()> {
        let handle = self.request(4, at, len, &[])?;
        self.reply(handle)
    }
}

/// The server answered with an error number: the connection goes on.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) u32);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server refused the request with error {}", self.0)
    }
}

impl std::error::Error for Refused {}

fn expect(is: bool, what: &str) -> Result<()> {
    if is { Ok(()) } else { Err(Error::other(format!("the server did not send {what}"))) }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}
