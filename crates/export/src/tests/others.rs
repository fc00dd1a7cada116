//! The client of other people's servers, against ones that lie.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::wire::{
    CHUNK_MAGIC, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, chunk,
    option, option_reply,
};
use crate::{NbdAddress, NbdClient, NbdError, NbdResult};

/// What a server sends as the answer to the request with this cookie.
type Lie = fn(&mut TcpStream, [u8; 8]);

const LIMIT: Duration = Duration::from_secs(20);

/// A server that runs `answer` on its one connection.
fn server(answer: impl FnOnce(&mut TcpStream) + Send + 'static) -> (NbdAddress, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || answer(&mut listener.accept().unwrap().0));
    (NbdAddress::parse(&format!("nbd://127.0.0.1:{port}/x")).unwrap(), thread)
}

fn put(stream: &mut TcpStream, parts: &[&[u8]]) {
    // the client may have given up already
    drop(stream.write_all(&parts.concat()));
}

fn reply(stream: &mut TcpStream, option: u32, kind: u32, data: &[u8]) {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    let head = [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()];
    put(stream, &[&head.concat(), &length, data]);
}

/// Greets and negotiates honestly an export of 4096 bytes, with or without structured replies.
fn greet(stream: &mut TcpStream, structured: bool) {
    put(stream, &[&GREETING_MAGIC.to_be_bytes(), &OPTION_MAGIC.to_be_bytes(), &[0, 3]]);
    stream.read_exact(&mut [0; 4]).unwrap();
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        let kind = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let length = u32::from_be_bytes(head[12..].try_into().unwrap());
        stream.read_exact(&mut vec![0; length as usize]).unwrap();
        match kind {
            option::STRUCTURED_REPLY if structured => reply(stream, kind, option_reply::ACK, &[]),
            option::SET_META_CONTEXT => {
                let context = [&7_u32.to_be_bytes()[..], b"base:allocation"].concat();
                reply(stream, kind, option_reply::META_CONTEXT, &context);
                reply(stream, kind, option_reply::ACK, &[]);
            }
            option::GO => {
                let told = [&[0, 0][..], &4096_u64.to_be_bytes(), &[0, 1]].concat();
                reply(stream, kind, option_reply::INFO, &told);
                reply(stream, kind, option_reply::ACK, &[]);
                return;
            }
            _ => reply(stream, kind, option_reply::ERR_UNSUP, b"no"),
        }
    }
}

/// The cookie of the next request.
fn request(stream: &mut TcpStream) -> [u8; 8] {
    let mut head = [0; 28];
    stream.read_exact(&mut head).unwrap();
    head[8..16].try_into().unwrap()
}

fn chunk_head(kind: u16, done: bool, cookie: [u8; 8], length: u32) -> Vec<u8> {
    let flags = if done { chunk::DONE } else { 0 };
    [
        &CHUNK_MAGIC.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie,
        &length.to_be_bytes(),
    ]
    .concat()
}

fn read(structured: bool, answer: Lie) -> NbdResult<Vec<u8>> {
    let (address, thread) = server(move |stream| {
        greet(stream, structured);
        let cookie = request(stream);
        answer(stream, cookie);
    });
    let mut client = NbdClient::connect(&address, LIMIT)?;
    assert_eq!(client.size(), 4096);
    let mut bytes = vec![9; 1024];
    let outcome = client.read(512, &mut bytes);
    thread.join().unwrap();
    outcome.map(|()| bytes)
}

#[test]
fn honest_answers_in_every_form() {
    let simple = read(false, |stream, cookie| {
        put(stream, &[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &[0; 4], &cookie, &[5; 1024]]);
    });
    assert_eq!(simple.unwrap(), [5; 1024]);
    let parts = read(true, |stream, cookie| {
        // the second half first, then a hole
        let data = chunk_head(chunk::OFFSET_DATA, false, cookie, 8 + 512);
        put(stream, &[&data, &1024_u64.to_be_bytes(), &[6; 512]]);
        let hole = chunk_head(2, true, cookie, 12);
        put(stream, &[&hole, &512_u64.to_be_bytes(), &512_u32.to_be_bytes()]);
    });
    assert_eq!(parts.unwrap(), [[0; 512], [6; 512]].concat());
    let failed = read(true, |stream, cookie| {
        let error = chunk_head(chunk::ERROR, true, cookie, 6 + 3);
        put(stream, &[&error, &5_u32.to_be_bytes(), &[0, 3], b"bad"]);
    });
    assert!(matches!(failed, Err(NbdError::Refused("read", text)) if text.contains("bad")));
}

#[test]
fn lies_end_in_errors() {
    let lies: [(bool, Lie); 10] = [
        (false, |stream, _| put(stream, &[b"garbage garbage!"])),
        (false, |stream, _| put(stream, &[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &[0; 12]])),
        (false, |stream, cookie| {
            put(stream, &[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &[0; 4], &cookie, &[1; 10]]);
        }),
        (true, |stream, cookie| {
            let head = chunk_head(chunk::OFFSET_DATA, true, cookie, u32::MAX);
            put(stream, &[&head, &512_u64.to_be_bytes()]);
        }),
        (true, |stream, cookie| {
            let head = chunk_head(chunk::OFFSET_DATA, true, cookie, 8 + 512);
            put(stream, &[&head, &u64::MAX.to_be_bytes(), &[1; 512]]);
        }),
        (true, |stream, cookie| {
            let head = chunk_head(2, true, cookie, 12);
            put(stream, &[&head, &0_u64.to_be_bytes(), &u32::MAX.to_be_bytes()]);
        }),
        // the first half twice: as many bytes as were asked for, and the second half is not among them
        (true, |stream, cookie| {
            for done in [false, true] {
                let head = chunk_head(chunk::OFFSET_DATA, done, cookie, 8 + 512);
                put(stream, &[&head, &512_u64.to_be_bytes(), &[1; 512]]);
            }
        }),
        // nothing, and more to come: it could go on for ever
        (true, |stream, cookie| {
            put(stream, &[&chunk_head(chunk::NONE, false, cookie, 0)]);
            let head = chunk_head(chunk::OFFSET_DATA, true, cookie, 8 + 1024);
            put(stream, &[&head, &512_u64.to_be_bytes(), &[1; 1024]]);
        }),
        (true, |stream, cookie| put(stream, &[&chunk_head(chunk::NONE, true, cookie, 0)])),
        (true, |stream, cookie| put(stream, &[&chunk_head(chunk::ERROR, true, cookie, u32::MAX)])),
    ];
    for (number, (structured, lie)) in lies.into_iter().enumerate() {
        let error = read(structured, lie).unwrap_err();
        let told = matches!(error, NbdError::Protocol(_) | NbdError::Io(..));
        assert!(told, "lie {number}: {error}");
    }
    let (address, thread) = server(|stream| put(stream, &[b"SSH-2.0-OpenSSH_9.2\r\n"]));
    let error = NbdClient::connect(&address, LIMIT).unwrap_err();
    assert!(matches!(error, NbdError::Protocol(_)), "{error}");
    thread.join().unwrap();
}

#[test]
fn blocks_are_told_within_what_was_asked() {
    let (address, thread) = server(|stream| {
        greet(stream, true);
        let cookie = request(stream);
        let head = chunk_head(chunk::BLOCK_STATUS, true, cookie, 4 + 16);
        let told = [512_u32, 0, u32::MAX, 3].map(u32::to_be_bytes).concat();
        put(stream, &[&head, &7_u32.to_be_bytes(), &told]);
    });
    let mut client = NbdClient::connect(&address, LIMIT).unwrap();
    let extents = client.status(0, 4096).unwrap();
    let seen: Vec<_> = extents.iter().map(|extent| (extent.len, extent.zero)).collect();
    assert_eq!(seen, [(512, false), (3584, true)]);
    thread.join().unwrap();
}

#[test]
fn blocks_are_told_once() {
    let (address, thread) = server(|stream| {
        greet(stream, true);
        let cookie = request(stream);
        for done in [false, true] {
            let head = chunk_head(chunk::BLOCK_STATUS, done, cookie, 4 + 8);
            let told = [512_u32, 0].map(u32::to_be_bytes).concat();
            put(stream, &[&head, &7_u32.to_be_bytes(), &told]);
        }
    });
    let mut client = NbdClient::connect(&address, LIMIT).unwrap();
    // a server that never says that it is done would have all of it kept
    let error = client.status(0, 4096).unwrap_err();
    assert!(matches!(error, NbdError::Protocol(_)), "{error}");
    thread.join().unwrap();
}
