//! NBD from both sides: what a client may say to our server, and a server to our client.

use std::io::{ErrorKind, Read, Write};

use export::request::{Bounds, Command, Header};
use export::{
    Context, Contexts, Framing, Handshake, MAX_PAYLOAD, NbdClient, NbdResult, Offer, Offers,
    Session, Step,
};
use io::ByteCount;

use crate::input::Input;

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

/// The handshake: whatever comes, in whatever pieces, the answer is bounded by the question, and does
/// not depend on the pieces.
pub fn nbd_handshake(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (step, bytes) = (input.u8(), input.0);
    let whole = run(bytes, usize::MAX / 2);
    assert!(whole.0.len() <= 400 * (1 + bytes.len() / 16));
    assert_eq!(run(bytes, usize::from(step).max(1)), whole);
}

/// Requests, compact and extended: no command that is accepted leaves the device, tells what was not
/// selected, or comes with another payload than it says.
pub fn nbd_requests(bytes: &[u8]) {
    let mut input = Input(bytes);
    let settings = input.u8();
    let [chunks, extended, allocation, depth, read_only] =
        [1, 2, 4, 8, 16].map(|bit| settings & bit != 0);
    let size = input.u64();
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
    while !input.is_empty() {
        let (mut bytes, query): ([u8; 32], [u8; 16]) = (input.array(), input.array());
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
}

/// A server that says `bytes`, whatever it is asked.
#[derive(Debug)]
struct Server(std::io::Cursor<Vec<u8>>);

impl Read for Server {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Server {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // it went away when it has said everything
        let left = self.0.get_ref().len() as u64 - self.0.position();
        if left == 0 { Err(ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The longest read and write of [`nbd_client`].
const PART: u64 = 4096;

/// A hostile server: whatever it answers, the client ends, and takes no more than it asked for.
pub fn nbd_client(bytes: &[u8]) {
    served(bytes);
}

/// How many of its four deeds the client did before it had enough.
fn served(bytes: &[u8]) -> usize {
    let mut input = Input(bytes);
    let deeds: [u8; 4] = input.array();
    let server = Server(std::io::Cursor::new(input.0.to_vec()));
    let Ok(mut client) = NbdClient::over(server, "disk") else { return 0 };
    // an error ends a connection: what follows belongs to no request
    deeds.into_iter().take_while(|deed| ask(&mut client, *deed).is_ok()).count()
}

fn ask(client: &mut NbdClient, deed: u8) -> NbdResult<()> {
    let size = client.size();
    let len = size.min(PART);
    let at = (size - len) & (u64::from(deed >> 3) << 9);
    if len == 0 {
        return client.flush();
    }
    let mut part = vec![0; usize::try_from(len).expect("a short part")];
    match deed % 5 {
        0 => client.read(at, &mut part),
        1 => client.write(at, &part),
        2 => client.zero(at, u32::try_from(len).expect("a short part"), deed & 128 != 0),
        3 => client.flush(),
        _ => {
            let extents = client.status(at, size - at)?;
            assert!(!extents.is_empty() && extents.iter().all(|extent| extent.len > 0));
            assert!(extents.iter().map(|extent| extent.len).sum::<u64>() <= size - at);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_for() {
        let seed = |name| {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/nbd_client/");
            super::served(&std::fs::read(format!("{dir}{name}")).expect("a seed"))
        };
        // the last reply of the first is an error
        assert_eq!((seed("structured"), seed("simple")), (3, 4));
    }
}
