//! A small NBD client for tests: it says exactly what it is told.

use std::future::Future;
use std::rc::Rc;

use io::BlockDevice;
use io::sim::SimWorld;

use super::pipe::{ClientEnd, pipe};
use super::ram::RamDevice;
use crate::connection::serve;
use crate::hub::{Export, Hub, Limits};

/// A request: flags, kind, offset, length.
pub(super) type Ask = (u16, u16, u64, u32);

/// Runs a test on a virtual clock.
pub(super) fn run<F: Future<Output = ()>>(
    limits: Limits,
    body: impl FnOnce(Rc<Hub>, Rc<RamDevice>) -> F,
) {
    let (executor, world) = SimWorld::start(1);
    let hub = Hub::new(world.local().clone(), limits);
    let device = RamDevice::new(4 << 20);
    device.keep_log.set(true);
    let export = Export {
        name: "disk".into(),
        description: "a disk".into(),
        device: Rc::clone(&device) as Rc<dyn BlockDevice>,
        read_only: false,
    };
    assert!(hub.add(export));
    executor.block_on(body(hub, device));
}

/// A connection whose handshake is still to come.
pub(super) fn connect(hub: &Rc<Hub>, room: usize, step: usize) -> ClientEnd {
    let (server, client) = pipe(room, step);
    drop(hub.local.spawn(serve(Rc::clone(hub), server)));
    client
}

/// Negotiates; with `structured` replies come in chunks and `base:allocation` is selected.
pub(super) async fn greet(client: &ClientEnd, structured: bool) {
    client.hear(18).await;
    client.say(&3_u32.to_be_bytes()).await;
    if structured {
        client.say(b"IHAVEOPT\0\0\0\x08\0\0\0\0").await;
        client.hear(20).await;
        client
            .say(b"IHAVEOPT\0\0\0\x0a\0\0\0\x1b\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation")
            .await;
        client.hear(20 + 19 + 20).await;
    }
    client.say(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0").await;
    client.hear(20 + 12 + 20 + 14 + 20).await;
}

/// Negotiates extended headers and selects both contexts; 1 is `base:allocation`, 2 the depth.
pub(super) async fn greet_extended(client: &ClientEnd) {
    client.hear(18).await;
    client.say(&3_u32.to_be_bytes()).await;
    client.say(b"IHAVEOPT\0\0\0\x0b\0\0\0\0").await;
    client.hear(20).await;
    client.say(b"IHAVEOPT\0\0\0\x0a\0\0\0\x34\0\0\0\0\0\0\0\x02").await;
    client.say(b"\0\0\0\x0fbase:allocation\0\0\0\x15qemu:allocation-depth").await;
    client.hear(20 + 19 + 20 + 25 + 20).await;
    client.say(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0").await;
    client.hear(20 + 12 + 20 + 14 + 20).await;
}

/// A connection with extended headers.
pub(super) async fn ready_extended(hub: &Rc<Hub>) -> ClientEnd {
    let client = connect(hub, 1 << 20, usize::MAX);
    greet_extended(&client).await;
    client
}

/// An extended request on the wire: flags, kind, offset, length of payload or range.
pub(super) fn ask_extended(
    cookie: u64,
    (flags, kind, offset, len): (u16, u16, u64, u64),
) -> Vec<u8> {
    [
        &0x21e4_1c71_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

/// A chunk with an extended header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) last: bool,
    pub(super) kind: u64,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) payload: Vec<u8>,
}

pub(super) async fn extended_chunk(client: &ClientEnd) -> Chunk {
    let head = client.hear(32).await;
    assert_eq!(number(&head[..4]), 0x6e8a_278c, "a chunk with an extended header");
    let flags = number(&head[4..6]);
    assert!(flags < 2, "flags {flags}");
    let len = usize::try_from(number(&head[24..])).expect("short");
    Chunk {
        last: flags == 1,
        kind: number(&head[6..8]),
        cookie: number(&head[8..16]),
        offset: number(&head[16..24]),
        payload: client.hear(len).await,
    }
}

/// Sends one extended request without content in its reply; the error's number, 0 for success.
pub(super) async fn one_extended(
    client: &ClientEnd,
    request: (u16, u16, u64, u64),
    payload: &[u8],
) -> u64 {
    client.say(&[&ask_extended(5, request)[..], payload].concat()).await;
    let chunk = extended_chunk(client).await;
    assert_eq!((chunk.last, chunk.cookie, chunk.offset), (true, 5, request.2));
    match chunk.kind {
        0 => {
            assert_eq!(chunk.payload, b"", "a success without content");
            0
        }
        0x8001 => number(&chunk.payload[..4]),
        other => panic!("a chunk of type {other}"),
    }
}

/// A connection that is ready for requests.
pub(super) async fn ready(hub: &Rc<Hub>, structured: bool) -> ClientEnd {
    let client = connect(hub, 1 << 20, usize::MAX);
    greet(&client, structured).await;
    client
}

/// A request on the wire.
pub(super) fn ask(cookie: u64, (flags, kind, offset, len): Ask) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Hears a simple reply: (cookie, error).
pub(super) async fn simple(client: &ClientEnd) -> (u64, u64) {
    let reply = client.hear(16).await;
    assert_eq!(number(&reply[..4]), 0x6744_6698, "a simple reply");
    (number(&reply[8..]), number(&reply[4..8]))
}

/// Hears a chunk: (cookie, type, payload). It is the last of its reply.
pub(super) async fn chunk(client: &ClientEnd) -> (u64, u64, Vec<u8>) {
    let head = client.hear(20).await;
    assert_eq!(number(&head[..6]), 0x668e_33ef_0001, "a last chunk");
    let len = usize::try_from(number(&head[16..])).expect("short");
    (number(&head[8..16]), number(&head[6..8]), client.hear(len).await)
}

/// Sends one request and hears its simple reply's error.
pub(super) async fn one(client: &ClientEnd, request: Ask, payload: &[u8]) -> u64 {
    client.say(&[&ask(5, request)[..], payload].concat()).await;
    let (cookie, error) = simple(client).await;
    assert_eq!(cookie, 5);
    error
}
