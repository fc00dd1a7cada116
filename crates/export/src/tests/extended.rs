//! Extended headers, and what came with them: long ranges, chosen contexts, holes in reads, quick
//! zeroing, caching.

use std::time::Duration;

use super::client::{
    Chunk, ask, ask_extended, chunk, extended_chunk, number, one, one_extended, ready,
    ready_extended, run,
};
use crate::hub::Limits;
use crate::wire::{command as c, command_flag as f};

const MIB: u64 = 1 << 20;

/// The runs of a status chunk: its context, then (length, status).
fn runs(chunk: &Chunk) -> (u64, Vec<(u64, u64)>) {
    assert_eq!((chunk.kind, chunk.cookie), (6, 3), "block status, extended: {chunk:?}");
    let (head, rest) = chunk.payload.split_at(8);
    assert_eq!(number(&head[4..]), rest.len() as u64 / 16, "as many as are said");
    let runs = rest.chunks(16).map(|run| (number(&run[..8]), number(&run[8..]))).collect();
    (number(&head[..4]), runs)
}

#[test]
fn every_reply_has_the_long_header_and_the_requests_offset() {
    run(Limits::default(), async |hub, device| {
        let client = ready_extended(&hub).await;
        let p = f::PAYLOAD_LEN;
        assert_eq!(one_extended(&client, (p, c::WRITE, 4096, 512), &[7; 512]).await, 0);
        // as QEMU does: the payload is there, the flag is not
        assert_eq!(one_extended(&client, (f::FUA, c::WRITE, 512, 512), &[8; 512]).await, 0);
        for kind in [c::TRIM, c::WRITE_ZEROES, c::CACHE] {
            assert_eq!(one_extended(&client, (0, kind, MIB, 4096), b"").await, 0);
        }
        assert_eq!(one_extended(&client, (0, c::FLUSH, 0, 0), b"").await, 0);
        assert_eq!(one_extended(&client, (0, c::READ, 4096, 0), b"").await, 0);
        client.say(&ask_extended(9, (0, c::READ, 4096, 512))).await;
        let got = extended_chunk(&client).await;
        assert_eq!((got.last, got.kind, got.cookie, got.offset), (true, 1, 9, 4096));
        assert_eq!((number(&got.payload[..8]), &got.payload[8..]), (4096, &[7; 512][..]));
        assert_eq!(device.bytes(512, 512), [8; 512]);
        // refused, with the payload taken away
        assert_eq!(one_extended(&client, (p, c::WRITE, 1, 512), &[0x21; 512]).await, 22);
        assert_eq!(one_extended(&client, (p, c::WRITE, 4 * MIB, 512), &[0x21; 512]).await, 28);
        assert_eq!(one_extended(&client, (p, c::FLUSH, 0, 100), &[0x21; 100]).await, 22);
        assert_eq!(one_extended(&client, (p, c::BLOCK_STATUS, 0, 200), &[0; 200]).await, 22);
        assert_eq!(one_extended(&client, (0, c::READ, 1, 512), b"").await, 22);
        assert_eq!(one_extended(&client, (0, c::FLUSH, 0, 0), b"").await, 0);
        client.say(&ask_extended(1, (0, c::DISCONNECT, 0, 0))).await;
        assert_eq!(client.hear_all().await, b"");
        assert_eq!(hub.counters().protocol_errors, 0);
    });
}

#[test]
fn long_ranges_are_cleared_step_by_step() {
    run(Limits::default(), async |hub, device| {
        // sizes that no memory holds: only what is asked of it is looked at
        device.set_info(|i| i.size.0 = 3 << 30);
        device.ignore_clears.set(true);
        let client = ready_extended(&hub).await;
        let all = (f::FUA, c::WRITE_ZEROES, 512, (3 << 30) - 512);
        assert_eq!(one_extended(&client, all, b"").await, 0);
        let step = 1_u64 << 30;
        let want = [
            format!("clear 512+{step} Deallocate Cached"),
            format!("clear {}+{step} Deallocate Cached", step + 512),
            format!("clear {}+{} Deallocate Cached", 2 * step + 512, step - 512),
            "flush".to_owned(),
        ];
        let log: Vec<_> = device.log.borrow_mut().drain(..).collect();
        assert_eq!(log, want);
        assert_eq!(hub.counters().clear_bytes, (3 << 30) - 512);
        // a server that closes waits for one step, not for all
        device.hold(0);
        client.say(&ask_extended(1, (0, c::TRIM, 0, 3 << 30))).await;
        hub.local.sleep(Duration::from_secs(1)).await;
        let drained = hub.local.spawn({
            let hub = std::rc::Rc::clone(&hub);
            async move { hub.drain(None).await }
        });
        hub.local.sleep(Duration::from_secs(1)).await;
        device.release(0);
        drained.await;
        let told = extended_chunk(&client).await;
        assert_eq!((told.kind, number(&told.payload[..4])), (0x8001, 108));
        assert_eq!(device.log.borrow().len(), 1, "the rest was not begun");
    });
}

#[test]
fn both_contexts_tell_of_a_range_each_in_its_own_runs() {
    run(Limits::default(), async |hub, device| {
        let client = ready_extended(&hub).await;
        let p = f::PAYLOAD_LEN;
        assert_eq!(one_extended(&client, (p, c::WRITE, 8192, 12288), &[1; 12288]).await, 0);
        device.sink(3, 2);
        let zeroes = (f::NO_HOLE, c::WRITE_ZEROES, 20480, 4096);
        assert_eq!(one_extended(&client, zeroes, b"").await, 0);
        let rest = 4 * MIB - 24576;
        let allocation = vec![(8192, 3), (12288, 0), (4096, 2), (rest, 3)];
        let depth = vec![(8192, 0), (4096, 1), (4096, 2), (8192, 1), (rest, 0)];
        client.say(&ask_extended(3, (0, c::BLOCK_STATUS, 0, 4 * MIB))).await;
        let first = extended_chunk(&client).await;
        assert_eq!((first.last, runs(&first)), (false, (1, allocation.clone())));
        let second = extended_chunk(&client).await;
        assert_eq!((second.last, runs(&second)), (true, (2, depth.clone())));
        // one each, whole, though the other ends earlier
        client.say(&ask_extended(3, (f::REQ_ONE, c::BLOCK_STATUS, 8192, MIB))).await;
        assert_eq!(runs(&extended_chunk(&client).await), (1, vec![(12288, 0)]));
        assert_eq!(runs(&extended_chunk(&client).await), (2, vec![(4096, 1)]));
        // chosen by payload
        for (ids, want) in [(vec![2_u32], vec![(2, &depth)]), (vec![1], vec![(1, &allocation)])] {
            let ids = ids.into_iter().flat_map(u32::to_be_bytes);
            let query: Vec<u8> = (4 * MIB).to_be_bytes().into_iter().chain(ids).collect();
            let header = ask_extended(3, (p, c::BLOCK_STATUS, 0, query.len() as u64));
            client.say(&[header, query].concat()).await;
            for (number, (id, want)) in (1..).zip(&want) {
                let chunk = extended_chunk(&client).await;
                assert_eq!(chunk.last, number == want.len() || number == 1);
                assert_eq!(runs(&chunk), (*id, (*want).clone()));
            }
        }
        // a context that is not there, one twice, none
        for ids in [&[3_u32][..], &[1, 1], &[]] {
            let ids = ids.iter().flat_map(|id| id.to_be_bytes());
            let query: Vec<u8> = 4096_u64.to_be_bytes().into_iter().chain(ids).collect();
            let request = (p, c::BLOCK_STATUS, 0, query.len() as u64);
            assert_eq!(one_extended(&client, request, &query).await, 22);
        }
    });
}

/// A read's chunks as (kind, offset, length), and its bytes put together.
async fn read(
    client: &super::pipe::ClientEnd,
    flags: u16,
    at: u64,
    len: u64,
) -> (Vec<(u64, u64, u64)>, Vec<u8>) {
    client.say(&ask_extended(4, (flags, c::READ, at, len))).await;
    let mut all = vec![0xee; usize::try_from(len).expect("short")];
    let mut chunks = Vec::new();
    loop {
        let chunk = extended_chunk(client).await;
        assert_eq!((chunk.cookie, chunk.offset), (4, at));
        let (offset, rest) = (number(&chunk.payload[..8]), &chunk.payload[8..]);
        let bytes = match chunk.kind {
            1 => rest.to_vec(),
            2 => vec![0; usize::try_from(number(rest)).expect("short")],
            other => panic!("a chunk of type {other}"),
        };
        chunks.push((chunk.kind, offset, bytes.len() as u64));
        let from = usize::try_from(offset - at).expect("inside");
        all[from..from + bytes.len()].copy_from_slice(&bytes);
        if chunk.last {
            return (chunks, all);
        }
    }
}

#[test]
fn long_reads_name_their_holes() {
    run(Limits::default(), async |hub, device| {
        device.set_info(|i| i.max_io = 64 << 10);
        let client = ready_extended(&hub).await;
        let write = |at, len: u64| (f::PAYLOAD_LEN, c::WRITE, at, len);
        let data = vec![9; 200 << 10];
        assert_eq!(one_extended(&client, write(MIB, 200 << 10), &data).await, 0);
        // a hole too short to be named
        assert_eq!(one_extended(&client, write(MIB + (216 << 10), 4096), &data[..4096]).await, 0);
        device.log.borrow_mut().clear();
        let (chunks, bytes) = read(&client, 0, 0, 2 * MIB).await;
        let end = MIB + (220 << 10);
        assert_eq!(chunks, [(2, 0, MIB), (1, MIB, 220 << 10), (2, end, 2 * MIB - end)]);
        assert!(bytes == device.bytes(0, 2 << 20));
        assert_eq!(device.log.borrow_mut().drain(..).count(), 4, "220 KiB in pieces of 64");
        let (chunks, bytes) = read(&client, 0, 2 * MIB, MIB).await;
        assert_eq!((chunks, bytes), (vec![(2, 2 * MIB, MIB)], vec![0; 1 << 20]));
        assert!(device.log.borrow().is_empty(), "nothing was read");
        // a client that wants one chunk gets one, and a short read is not looked at
        let (chunks, bytes) = read(&client, f::DONT_FRAGMENT, 0, 2 * MIB).await;
        assert_eq!(chunks, [(1, 0, 2 * MIB)]);
        assert!(bytes == device.bytes(0, 2 << 20));
        assert_eq!(read(&client, 0, 0, 60 << 10).await.0, [(1, 0, 60 << 10)]);
        let counters = hub.counters();
        assert_eq!((counters.reads, counters.replies), (4, 6), "a reply is one, in chunks or not");
    });
}

#[test]
fn holes_are_named_with_compact_chunks_too_but_not_in_simple_replies() {
    run(Limits::default(), async |hub, _device| {
        let structured = ready(&hub, true).await;
        structured.say(&ask(4, (0, c::READ, MIB, 1 << 20))).await;
        let hole = [&MIB.to_be_bytes()[..], &(1_u32 << 20).to_be_bytes()].concat();
        assert_eq!(chunk(&structured).await, (4, 2, hole));
        let simple = ready(&hub, false).await;
        assert_eq!(one(&simple, (0, c::READ, MIB, 1 << 20), b"").await, 0);
        assert_eq!(simple.hear(1 << 20).await, vec![0; 1 << 20]);
    });
}

#[test]
fn a_hole_that_cannot_be_looked_for_is_read() {
    run(Limits::default(), async |hub, device| {
        let client = ready_extended(&hub).await;
        device.fail.set(Some(io::IoErrorKind::Device));
        assert_eq!(one_extended(&client, (0, c::READ, 0, MIB), b"").await, 5, "the read says why");
        assert_eq!(*device.log.borrow(), ["read 0+1048576"]);
    });
}

#[test]
fn zeroing_that_must_be_quick_fails_where_it_would_write() {
    run(Limits::default(), async |hub, device| {
        let client = ready_extended(&hub).await;
        let structured = ready(&hub, true).await;
        let quick = f::FAST_ZERO | f::NO_HOLE;
        assert_eq!(one_extended(&client, (quick, c::WRITE_ZEROES, 0, 4096), b"").await, 0);
        let told = device.log.borrow_mut().drain(..).collect::<Vec<_>>();
        assert_eq!(told, ["quick clear 0+4096 KeepSpace Cached"]);
        device.slow_zeroes.set(true);
        assert_eq!(one_extended(&client, (quick, c::WRITE_ZEROES, 0, 4096), b"").await, 95);
        structured.say(&ask(1, (quick, c::WRITE_ZEROES, 0, 4096))).await;
        let (_, kind, payload) = chunk(&structured).await;
        assert_eq!((kind, number(&payload[..4])), (0x8001, 95));
        // without the flag it is done, however long it takes
        assert_eq!(one_extended(&client, (f::NO_HOLE, c::WRITE_ZEROES, 0, 4096), b"").await, 0);
        assert_eq!(one_extended(&client, (f::FAST_ZERO, c::TRIM, 0, 4096), b"").await, 22);
    });
}

#[test]
fn caching_looks_a_range_up_and_reads_nothing() {
    run(Limits::default(), async |hub, device| {
        let client = ready_extended(&hub).await;
        assert_eq!(one_extended(&client, (0, c::CACHE, 0, 4 * MIB), b"").await, 0);
        assert!(device.log.borrow().is_empty());
        assert_eq!(device.looked_at.get(), 4 * MIB);
        assert_eq!(one_extended(&client, (0, c::CACHE, MIB, 4 * MIB), b"").await, 22);
        assert_eq!(one_extended(&client, (f::REQ_ONE, c::CACHE, 0, MIB), b"").await, 22);
    });
}

#[test]
fn a_read_that_must_be_whole_and_is_too_long_says_so() {
    run(Limits::default(), async |hub, device| {
        device.set_info(|i| i.size.0 = 1 << 30);
        let client = ready_extended(&hub).await;
        let long = (32 << 20) + 512;
        assert_eq!(one_extended(&client, (f::DONT_FRAGMENT, c::READ, 0, long), b"").await, 75);
        assert_eq!(one_extended(&client, (0, c::READ, 0, long), b"").await, 22);
    });
}
