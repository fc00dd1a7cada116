//! Every option, good and bad, as a table; and random bytes.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{Handshake, HandshakeError, Offer, Offers, Session, Step};
use crate::context::{Context, Contexts};
use crate::wire::{Framing, MAX_OPTION, option as o, option_reply as r};

struct Two;

fn offer(name: &str) -> Offer {
    Offer {
        name: name.to_owned(),
        description: format!("disk {name}"),
        size: 0x1_0000,
        flags: 0x16d,
        min_block: 512,
        preferred_block: 4096,
    }
}

impl Offers for Two {
    fn find(&self, name: &str) -> Option<Offer> {
        matches!(name, "a" | "b")
            .then(|| offer(name))
            .or_else(|| name.is_empty().then(|| offer("a")))
    }
    fn all(&self) -> Vec<Offer> {
        vec![offer("a"), offer("b")]
    }
}

/// One option on the wire.
fn opt(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).expect("short");
    [b"IHAVEOPT", &kind.to_be_bytes()[..], &len.to_be_bytes(), data].concat()
}

fn string(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("short");
    [&len.to_be_bytes()[..], text.as_bytes()].concat()
}

fn go_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u16::try_from(infos.len()).expect("few").to_be_bytes());
    data.extend(infos.iter().flat_map(|i| i.to_be_bytes()));
    data
}

fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).expect("few").to_be_bytes());
    data.extend(queries.iter().flat_map(|q| string(q)));
    data
}

const ALLOCATION: Contexts = Contexts::NONE.with(Context::Allocation);

fn started(export: &str, framing: Framing, contexts: Contexts) -> End {
    End::Started(Session { export: export.to_owned(), framing, contexts })
}

#[derive(Debug, PartialEq)]
enum End {
    Open,
    Ended,
    Started(Session),
    Broken(HandshakeError),
}

/// Runs the whole input; returns the output after the greeting, and how it ended.
fn run(input: &[u8], chunk: usize) -> (Vec<u8>, End) {
    let mut out = Vec::new();
    let mut machine = Handshake::start(&mut out);
    assert_eq!(out, b"NBDMAGICIHAVEOPT\0\x03");
    out.clear();
    let (mut from, mut to) = (0, 0);
    loop {
        match machine.advance(&input[from..to], &Two, &mut out) {
            Ok(Step::More) if to == input.len() => return (out, End::Open),
            Ok(Step::More) => to = (to + chunk).min(input.len()),
            Ok(Step::Handled { used }) => {
                assert!(used > 0 && used <= to - from);
                from += used;
            }
            Ok(Step::Start { used, session }) => {
                assert!(used <= to - from);
                return (out, End::Started(session));
            }
            Ok(Step::End) => return (out, End::Ended),
            Err(error) => return (out, End::Broken(error)),
        }
    }
}

/// Client flags, then `options`.
fn talk(options: &[Vec<u8>]) -> (Vec<u8>, End) {
    run(&[&3_u32.to_be_bytes()[..], &options.concat()].concat(), usize::MAX >> 1)
}

/// Replies as (option, kind, data).
fn replies(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"));
        assert_eq!(&bytes[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let len = word(16) as usize;
        all.push((word(8), word(12), bytes[20..20 + len].to_vec()));
        bytes = &bytes[20 + len..];
    }
    all
}

fn kinds(bytes: &[u8]) -> Vec<(u32, u32)> {
    replies(bytes).into_iter().map(|(option, kind, _)| (option, kind)).collect()
}

/// What is asked, the options, the kinds of the replies, how it ends.
type Row = (&'static str, Vec<Vec<u8>>, Vec<(u32, u32)>, End);

#[test]
fn every_option_has_its_answer() {
    let long = "x".repeat(4097);
    let table: Vec<Row> = vec![
        (
            "list",
            vec![opt(o::LIST, b"")],
            vec![(3, r::SERVER), (3, r::SERVER), (3, r::ACK)],
            End::Open,
        ),
        ("list with data", vec![opt(o::LIST, b"x")], vec![(3, r::ERR_INVALID)], End::Open),
        ("abort", vec![opt(o::ABORT, b"")], vec![(2, r::ACK)], End::Ended),
        (
            "info",
            vec![opt(o::INFO, &go_data("b", &[1, 2, 3]))],
            vec![(6, r::INFO), (6, r::INFO), (6, r::INFO), (6, r::INFO), (6, r::ACK)],
            End::Open,
        ),
        (
            "info unknown",
            vec![opt(o::INFO, &go_data("c", &[]))],
            vec![(6, r::ERR_UNKNOWN)],
            End::Open,
        ),
        ("go short", vec![opt(o::GO, b"\0\0\0\x09a\0\0")], vec![(7, r::ERR_INVALID)], End::Open),
        (
            "go with more infos than said",
            vec![opt(o::GO, &[go_data("a", &[]), vec![0]].concat())],
            vec![(7, r::ERR_INVALID)],
            End::Open,
        ),
        (
            "go long name",
            vec![opt(o::GO, &go_data(&long, &[]))],
            vec![(7, r::ERR_INVALID)],
            End::Open,
        ),
        (
            "go not text",
            vec![opt(o::GO, b"\0\0\0\x01\xff\0\0")],
            vec![(7, r::ERR_INVALID)],
            End::Open,
        ),
        (
            "go default",
            vec![opt(o::GO, &go_data("", &[]))],
            vec![(7, r::INFO), (7, r::INFO), (7, r::ACK)],
            started("a", Framing::Simple, Contexts::NONE),
        ),
        (
            "structured with data",
            vec![opt(o::STRUCTURED_REPLY, b"1")],
            vec![(8, r::ERR_INVALID)],
            End::Open,
        ),
        (
            "set context without structured",
            vec![opt(o::SET_META_CONTEXT, &context_data("a", &["base:allocation"]))],
            vec![(10, r::ERR_INVALID)],
            End::Open,
        ),
        (
            "all negotiated",
            vec![
                opt(o::STRUCTURED_REPLY, b""),
                opt(o::SET_META_CONTEXT, &context_data("a", &["base:allocation", "x:y"])),
                opt(o::GO, &go_data("a", &[])),
            ],
            vec![
                (8, r::ACK),
                (10, r::META_CONTEXT),
                (10, r::ACK),
                (7, r::INFO),
                (7, r::INFO),
                (7, r::ACK),
            ],
            started("a", Framing::Structured, ALLOCATION),
        ),
        (
            "context of another export",
            vec![
                opt(o::STRUCTURED_REPLY, b""),
                opt(o::SET_META_CONTEXT, &context_data("b", &["base:allocation"])),
                opt(o::GO, &go_data("a", &[])),
            ],
            vec![
                (8, r::ACK),
                (10, r::META_CONTEXT),
                (10, r::ACK),
                (7, r::INFO),
                (7, r::INFO),
                (7, r::ACK),
            ],
            started("a", Framing::Structured, Contexts::NONE),
        ),
        (
            "context taken back by a bad option",
            vec![
                opt(o::STRUCTURED_REPLY, b""),
                opt(o::SET_META_CONTEXT, &context_data("a", &["base:allocation"])),
                opt(o::SET_META_CONTEXT, &context_data("zzz", &["base:allocation"])),
                opt(o::GO, &go_data("a", &[])),
            ],
            vec![
                (8, r::ACK),
                (10, r::META_CONTEXT),
                (10, r::ACK),
                (10, r::ERR_UNKNOWN),
                (7, r::INFO),
                (7, r::INFO),
                (7, r::ACK),
            ],
            started("a", Framing::Structured, Contexts::NONE),
        ),
        (
            "set context: a namespace selects nothing",
            vec![
                opt(o::STRUCTURED_REPLY, b""),
                opt(o::SET_META_CONTEXT, &context_data("a", &["base:"])),
            ],
            vec![(8, r::ACK), (10, r::ACK)],
            End::Open,
        ),
        (
            "list contexts: all",
            vec![opt(o::LIST_META_CONTEXT, &context_data("a", &[]))],
            vec![(9, r::META_CONTEXT), (9, r::META_CONTEXT), (9, r::ACK)],
            End::Open,
        ),
        (
            "list contexts: namespaces, and one again by its name",
            vec![opt(
                o::LIST_META_CONTEXT,
                &context_data("a", &["qemu:", "base:", "base:allocation"]),
            )],
            vec![(9, r::META_CONTEXT), (9, r::META_CONTEXT), (9, r::ACK)],
            End::Open,
        ),
        (
            "list contexts: one namespace",
            vec![opt(o::LIST_META_CONTEXT, &context_data("a", &["qemu:"]))],
            vec![(9, r::META_CONTEXT), (9, r::ACK)],
            End::Open,
        ),
        (
            "list contexts: unknown",
            vec![opt(o::LIST_META_CONTEXT, &context_data("a", &["qemu:dirty-bitmap:b", "x:"]))],
            vec![(9, r::ACK)],
            End::Open,
        ),
        (
            "a name with a NUL",
            vec![opt(o::GO, &go_data("a\0", &[]))],
            vec![(7, r::ERR_INVALID)],
            End::Open,
        ),
        (
            "a query with a NUL",
            vec![opt(o::LIST_META_CONTEXT, &context_data("a", &["base:\0"]))],
            vec![(9, r::ERR_INVALID)],
            End::Open,
        ),
        (
            "list contexts: a count without queries",
            vec![opt(o::LIST_META_CONTEXT, b"\0\0\0\x01a\xff\xff\xff\xff")],
            vec![(9, r::ERR_INVALID)],
            End::Open,
        ),
        ("start tls", vec![opt(5, b"")], vec![(5, r::ERR_UNSUP)], End::Open),
        ("an option of tomorrow", vec![opt(12, b"")], vec![(12, r::ERR_UNSUP)], End::Open),
        (
            "extended headers with data",
            vec![opt(o::EXTENDED_HEADERS, b"1")],
            vec![(11, r::ERR_INVALID)],
            End::Open,
        ),
        (
            "extended headers alone",
            vec![opt(o::EXTENDED_HEADERS, b""), opt(o::GO, &go_data("a", &[]))],
            vec![(11, r::ACK), (7, r::INFO), (7, r::INFO), (7, r::ACK)],
            started("a", Framing::Extended, Contexts::NONE),
        ),
        (
            "extended headers after structured replies, with both contexts",
            vec![
                opt(o::STRUCTURED_REPLY, b""),
                opt(o::STRUCTURED_REPLY, b""),
                opt(o::EXTENDED_HEADERS, b""),
                opt(
                    o::SET_META_CONTEXT,
                    &context_data("a", &["qemu:allocation-depth", "base:allocation"]),
                ),
                opt(o::GO, &go_data("a", &[])),
            ],
            vec![
                (8, r::ACK),
                (8, r::ACK),
                (11, r::ACK),
                (10, r::META_CONTEXT),
                (10, r::META_CONTEXT),
                (10, r::ACK),
                (7, r::INFO),
                (7, r::INFO),
                (7, r::ACK),
            ],
            started("a", Framing::Extended, ALLOCATION.with(Context::Depth)),
        ),
        (
            "there is no way back from extended headers",
            vec![
                opt(o::EXTENDED_HEADERS, b""),
                opt(o::EXTENDED_HEADERS, b""),
                opt(o::STRUCTURED_REPLY, b""),
                opt(o::INFO, &go_data("a", &[])),
                opt(o::EXPORT_NAME, b"a"),
            ],
            vec![
                (11, r::ACK),
                (11, r::ERR_INVALID),
                (8, r::ERR_EXT_HEADER_REQD),
                (6, r::INFO),
                (6, r::INFO),
                (6, r::ACK),
            ],
            End::Broken(HandshakeError::OldWayIn),
        ),
        (
            "too long, then good",
            vec![opt(o::LIST, &vec![7; MAX_OPTION + 1]), opt(o::ABORT, b"")],
            vec![(3, r::ERR_TOO_BIG), (2, r::ACK)],
            End::Ended,
        ),
    ];
    for (name, options, want, end) in table {
        let (out, ended) = talk(&options);
        assert_eq!((kinds(&out), ended), (want, end), "{name}");
    }
}

#[test]
fn information_is_laid_out_as_specified() {
    let (out, _) = talk(&[opt(o::INFO, &go_data("b", &[1, 2, 3]))]);
    let data: Vec<_> = replies(&out).into_iter().map(|(_, _, data)| data).collect();
    assert_eq!(data[0], b"\0\0\0\0\0\0\0\x01\0\0\x01\x6d");
    assert_eq!(data[1], b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0");
    assert_eq!(data[2], b"\0\x01b");
    assert_eq!(data[3], b"\0\x02disk b");
    let (out, _) = talk(&[opt(o::LIST, b"")]);
    assert_eq!(replies(&out)[0].2, b"\0\0\0\x01adisk a");
    let set = context_data("a", &["base:allocation"]);
    let (out, _) = talk(&[opt(o::STRUCTURED_REPLY, b""), opt(o::SET_META_CONTEXT, &set)]);
    assert_eq!(replies(&out)[1].2, b"\0\0\0\x01base:allocation");
    let set = context_data("a", &["qemu:allocation-depth"]);
    let (out, _) = talk(&[opt(o::EXTENDED_HEADERS, b""), opt(o::SET_META_CONTEXT, &set)]);
    assert_eq!(replies(&out)[1].2, b"\0\0\0\x02qemu:allocation-depth");
    let (out, _) = talk(&[opt(o::LIST_META_CONTEXT, &set)]);
    assert_eq!(replies(&out)[0].2, b"\0\0\0\0qemu:allocation-depth", "a list gives no numbers");
}

#[test]
fn payloads_of_block_status_are_offered_where_they_can_be_sent() {
    let set = |name| opt(o::SET_META_CONTEXT, &context_data(name, &["base:allocation"]));
    let extended = || opt(o::EXTENDED_HEADERS, b"");
    let table = [
        (vec![opt(o::STRUCTURED_REPLY, b""), set("a")], o::GO, 0x1ed),
        (vec![extended()], o::INFO, 0x11ed),
        (vec![extended()], o::GO, 0x1ed),
        (vec![extended(), set("a")], o::GO, 0x11ed),
        (vec![extended(), set("b")], o::GO, 0x1ed),
    ];
    for (mut options, kind, want) in table {
        options.push(opt(kind, &go_data("a", &[])));
        let (out, _) = talk(&options);
        let told = replies(&out).into_iter().find(|(option, ..)| *option == kind);
        let (_, _, data) = told.expect("an answer");
        assert_eq!(u16::from_be_bytes([data[10], data[11]]), want, "{options:?}");
    }
}

#[test]
fn chunks_permit_the_dont_fragment_flag() {
    let (out, _) = talk(&[opt(o::STRUCTURED_REPLY, b""), opt(o::GO, &go_data("a", &[]))]);
    assert_eq!(replies(&out)[1].2[10..], [0x01, 0xed], "SEND_DF is said");
}

#[test]
fn the_old_way_in() {
    let started = || started("b", Framing::Simple, Contexts::NONE);
    let wanted = b"\0\0\0\0\0\x01\0\0\x01\x6d";
    assert_eq!(talk(&[opt(o::EXPORT_NAME, b"b")]), (wanted.to_vec(), started()));
    let padded = run(&[&1_u32.to_be_bytes()[..], &opt(o::EXPORT_NAME, b"b")].concat(), 9);
    assert_eq!(padded, ([&wanted[..], &[0; 124]].concat(), started()));
    let unknown = End::Broken(HandshakeError::UnknownExport("zz".into()));
    assert_eq!(talk(&[opt(o::EXPORT_NAME, b"zz")]), (vec![], unknown));
    let long = opt(o::EXPORT_NAME, &vec![b'a'; MAX_OPTION + 1]);
    assert_eq!(talk(&[long]), (vec![], End::Broken(HandshakeError::BadName)));
}

#[test]
fn breaches_end_the_connection() {
    let flags = run(&7_u32.to_be_bytes(), 4).1;
    assert_eq!(flags, End::Broken(HandshakeError::ClientFlags(7)));
    let (_, magic) = talk(&[b"IHAVEOPX".to_vec()]);
    assert_eq!(magic, End::Broken(HandshakeError::OptionMagic(0x4948_4156_454f_5058)));
    let (_, many) = talk(&vec![opt(99, b""); 4097]);
    assert_eq!(many, End::Broken(HandshakeError::TooManyOptions));
}

/// Options that are right, nearly right and not right at all.
fn any_input() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let name = prop_oneof![Just("a"), Just("b"), Just(""), Just("nope")];
    let queries = prop::collection::vec(
        prop_oneof![
            Just("base:allocation"),
            Just("qemu:allocation-depth"),
            Just("base:"),
            Just("x:y"),
        ],
        0..4,
    );
    let one = prop_oneof![
        4 => (0..13_u32, bytes()).prop_map(|(kind, data)| opt(kind, &data)),
        3 => (6..8_u32, name.clone(), prop::collection::vec(0..5_u16, 0..4))
            .prop_map(|(kind, name, infos)| opt(kind, &go_data(name, &infos))),
        4 => (9..11_u32, name, queries)
            .prop_map(|(kind, name, queries)| opt(kind, &context_data(name, &queries))),
        2 => Just(opt(o::STRUCTURED_REPLY, b"")),
        2 => Just(opt(o::EXTENDED_HEADERS, b"")),
        1 => bytes(),
        1 => (MAX_OPTION..MAX_OPTION + 3).prop_map(|len| opt(o::LIST, &vec![1; len])),
    ];
    let flags = prop_oneof![9 => 0..4_u32, 1 => any::<u32>()];
    (flags, prop::collection::vec(one, 0..8))
        .prop_map(|(flags, parts)| [flags.to_be_bytes().to_vec(), parts.concat()].concat())
}

#[test]
fn hostile_bytes_do_no_harm_however_they_are_cut() {
    let mut runner = TestRunner::new_with_rng(
        Config::with_cases(2000),
        TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]),
    );
    runner
        .run(&(any_input(), 1..50_usize), |(input, chunk)| {
            let whole = run(&input, usize::MAX >> 1);
            prop_assert!(whole.0.len() <= 400 * (1 + input.len() / 16), "the answer is bounded");
            prop_assert_eq!(run(&input, chunk), whole);
            Ok(())
        })
        .expect("the same answer for every cut");
}
