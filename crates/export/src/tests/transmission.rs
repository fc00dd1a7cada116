//! Commands, their flags, errors and bounds, over a whole connection.

use std::time::Duration;

use io::{ByteCount, IoErrorKind};

use super::client::{ask, chunk, connect, greet, number, one, ready, run, simple};
use crate::hub::Limits;
use crate::wire::{command as c, command_flag as f};

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let low = |n: usize| n.to_le_bytes()[0];
    (0..len).map(|i| seed.wrapping_add(low(i / 512)).wrapping_mul(31) ^ low(i)).collect()
}

#[test]
fn what_is_written_is_read_in_both_styles_and_however_the_stream_is_cut() {
    for (structured, step) in [(false, usize::MAX), (true, usize::MAX), (true, 1), (false, 37)] {
        run(Limits::default(), async |hub, device| {
            let client = connect(&hub, 1 << 16, step);
            greet(&client, structured).await;
            for (seed, at, size) in
                [(1, 4096, 512), (2, 0, 4096), (3, 512, 69_632), (4, 1 << 20, 40_960)]
            {
                if step == 1 && size > 5000 {
                    continue;
                }
                let len = ByteCount(u64::from(size)).as_len();
                let data = pattern(len, seed);
                assert_eq!(one(&client, (0, c::WRITE, at, size), &data).await, 0);
                client.say(&ask(9, (0, c::READ, at, size))).await;
                let got = if structured {
                    let (cookie, kind, payload) = chunk(&client).await;
                    assert_eq!((cookie, kind, number(&payload[..8])), (9, 1, at));
                    payload[8..].to_vec()
                } else {
                    assert_eq!(simple(&client).await, (9, 0));
                    client.hear(len).await
                };
                assert!(got == data, "{len} bytes at {at}, steps of {step}");
                assert!(device.bytes(ByteCount(at).as_len(), len) == data);
            }
            client.say(&ask(1, (0, c::DISCONNECT, 0, 0))).await;
            assert_eq!(client.hear_all().await, b"");
            assert_eq!(hub.counters().failures, 0);
        });
    }
}

#[test]
fn requests_reach_the_device_as_meant() {
    run(Limits::default(), async |hub, device| {
        let client = ready(&hub, true).await;
        let table = [
            ((0, c::WRITE, 0, 512), "write 0+512 Cached"),
            ((f::FUA, c::WRITE, 0, 512), "write 0+512 Durable"),
            ((0, c::FLUSH, 0, 0), "flush"),
            ((0, c::TRIM, 4096, 8192), "clear 4096+8192 Deallocate Cached"),
            ((f::FUA, c::TRIM, 4096, 512), "clear 4096+512 Deallocate Durable"),
            ((0, c::WRITE_ZEROES, 0, 4096), "clear 0+4096 Deallocate Cached"),
            ((f::NO_HOLE, c::WRITE_ZEROES, 0, 4096), "clear 0+4096 KeepSpace Cached"),
        ];
        for (request, want) in table {
            let payload = if request.1 == c::WRITE { vec![1; 512] } else { vec![] };
            assert_eq!(one(&client, request, &payload).await, 0, "{want}");
            assert_eq!(device.log.borrow_mut().drain(..).collect::<Vec<_>>(), [want]);
        }
        // nothing to do is done at once
        for kind in [c::WRITE, c::TRIM, c::WRITE_ZEROES] {
            assert_eq!(one(&client, (0, kind, 512, 0), b"").await, 0);
        }
        client.say(&ask(6, (0, c::READ, 512, 0))).await;
        assert_eq!(chunk(&client).await, (6, 0, vec![]), "a chunk of type none");
        assert_eq!(device.log.borrow().len(), 0);
    });
}

#[test]
fn long_requests_are_split_to_the_devices_limit() {
    run(Limits::default(), async |hub, device| {
        device.set_info(|i| i.max_io = 64 << 10);
        let client = ready(&hub, false).await;
        let data = pattern(160 << 10, 3);
        assert_eq!(one(&client, (f::FUA, c::WRITE, 4096, 160 << 10), &data).await, 0);
        let want =
            ["write 4096+65536 Durable", "write 69632+65536 Durable", "write 135168+32768 Durable"];
        assert_eq!(device.log.borrow_mut().drain(..).collect::<Vec<_>>(), want);
        client.say(&ask(1, (0, c::READ, 4096, 160 << 10))).await;
        assert_eq!(simple(&client).await, (1, 0));
        assert!(client.hear(160 << 10).await == data);
        assert_eq!(device.log.borrow().len(), 3);
    });
}

#[test]
fn failures_of_the_device_are_told_and_the_connection_goes_on() {
    run(Limits::default(), async |hub, device| {
        let plain = ready(&hub, false).await;
        let chunked = ready(&hub, true).await;
        let table = [
            (IoErrorKind::NoSpace, 28, 28),
            (IoErrorKind::ReadOnly, 1, 1),
            (IoErrorKind::OutOfRange, 22, 28),
            (IoErrorKind::Poisoned, 5, 5),
            (IoErrorKind::Closed, 108, 108),
            (IoErrorKind::Unsupported, 22, 22),
        ];
        for (kind, reading, writing) in table {
            device.fail.set(Some(kind));
            assert_eq!(one(&plain, (0, c::READ, 0, 512), b"").await, reading, "{kind:?}");
            assert_eq!(one(&plain, (0, c::WRITE, 0, 512), &[1; 512]).await, writing, "{kind:?}");
            let table = [
                (c::READ, reading),
                (c::BLOCK_STATUS, reading),
                (c::CACHE, reading),
                (c::TRIM, writing),
            ];
            for (command, want) in table {
                chunked.say(&ask(2, (0, command, 0, 512))).await;
                let (cookie, kind_of_chunk, payload) = chunk(&chunked).await;
                assert_eq!((cookie, kind_of_chunk), (2, 0x8001));
                assert_eq!(number(&payload[..4]), want, "{kind:?}");
                assert!(payload[6..].starts_with(b"the device was told to fail"));
            }
        }
        device.fail.set(None);
        assert_eq!(one(&plain, (0, c::WRITE, 0, 512), &[1; 512]).await, 0);
        assert_eq!(hub.counters().failures, 36);
    });
}

#[test]
fn refused_writes_take_their_payload_with_them() {
    run(Limits::default(), async |hub, device| {
        let client = ready(&hub, false).await;
        let table = [
            ((0, c::WRITE, 4 << 20, 512), 28),
            ((0, c::WRITE, 1, 512), 22),
            ((0, c::WRITE, 0, 100_001), 22),
        ];
        for (request, errno) in table {
            let payload = vec![0x25; request.3 as usize];
            assert_eq!(one(&client, request, &payload).await, errno, "{request:?}");
        }
        device.set_info(|i| i.read_only = true);
        assert_eq!(one(&client, (0, c::WRITE, 0, 65_536), &vec![1; 65_536]).await, 1);
        // longer than any payload may be: still only this request fails
        let long = (33 << 20) + 5;
        assert_eq!(one(&client, (0, c::WRITE, 0, long), &vec![1; long as usize]).await, 1);
        client.say(&ask(7, (0, c::READ, 0, 512))).await;
        assert_eq!(simple(&client).await, (7, 0));
        assert_eq!(client.hear(512).await, [0; 512]);
    });
}

#[test]
fn block_status_names_holes_zeroes_and_data() {
    run(Limits::default(), async |hub, _device| {
        let client = ready(&hub, true).await;
        assert_eq!(one(&client, (0, c::WRITE, 8192, 4096), &[1; 4096]).await, 0);
        assert_eq!(one(&client, (f::NO_HOLE, c::WRITE_ZEROES, 12288, 4096), b"").await, 0);
        let table = [
            (0, 0, 32768, vec![(8192, 3), (4096, 0), (4096, 2), (16384, 3)]),
            (0, 8704, 4096, vec![(3584, 0), (512, 2)]),
            (f::REQ_ONE, 0, 32768, vec![(8192, 3)]),
            (f::REQ_ONE, 16384, (4 << 20) - 16384, vec![((4 << 20) - 16384, 3)]),
        ];
        for (flags, at, len, want) in table {
            client.say(&ask(3, (flags, c::BLOCK_STATUS, at, len))).await;
            let (_, kind, payload) = chunk(&client).await;
            assert_eq!((kind, number(&payload[..4])), (5, 1), "context 1");
            let runs: Vec<_> =
                payload[4..].chunks(8).map(|r| (number(&r[..4]), number(&r[4..]))).collect();
            assert_eq!(runs, want, "{len} bytes from {at}");
        }
    });
}

#[test]
fn replies_come_in_the_order_of_completion() {
    run(Limits::default(), async |hub, device| {
        let client = ready(&hub, false).await;
        device.hold(0);
        let requests = [
            ask(1, (0, c::READ, 0, 512)),
            ask(2, (0, c::READ, 512, 512)),
            ask(3, (0, c::FLUSH, 0, 0)),
        ];
        client.say(&requests.concat()).await;
        assert_eq!(simple(&client).await, (2, 0));
        client.hear(512).await;
        assert_eq!(simple(&client).await, (3, 0));
        device.release(0);
        assert_eq!(simple(&client).await, (1, 0));
    });
}

#[test]
fn replies_that_are_ready_together_are_sent_together() {
    run(Limits::default(), async |hub, _device| {
        let client = ready(&hub, false).await;
        let burst: Vec<u8> = (0..32).flat_map(|i| ask(i, (0, c::READ, 4096 * i, 4096))).collect();
        client.say(&burst).await;
        client.hear(32 * (16 + 4096)).await;
        let counters = hub.counters();
        assert_eq!((counters.replies, counters.reads), (32, 32));
        assert!(counters.sends <= 4, "{} sends for one burst", counters.sends);
    });
}

#[test]
fn what_is_in_flight_is_bounded() {
    let limits = Limits { requests: 4, payload_bytes: 64 << 10, ..Limits::default() };
    run(limits, async |hub, device| {
        let other = ready(&hub, false).await;
        // a client that asks and never takes its replies
        let slow = connect(&hub, 1024, usize::MAX);
        greet(&slow, false).await;
        device.log.borrow_mut().clear();
        let many: Vec<u8> = (0..32).flat_map(|i| ask(i, (0, c::READ, 0, 32 << 10))).collect();
        slow.say(&many).await;
        // a later request of another connection: by its reply everything before has settled
        assert_eq!(one(&other, (0, c::FLUSH, 0, 0), b"").await, 0);
        hub.local.sleep(Duration::from_secs(1)).await;
        let reads = device.log.borrow().iter().filter(|l| l.starts_with("read")).count();
        assert_eq!(reads, 2, "64 KiB of replies wait, no more are read");
        assert_eq!(slow.unheard(), 1024);
        // and one larger than the bound is served alone
        let big = vec![7; 128 << 10];
        assert_eq!(one(&other, (0, c::WRITE, 0, 128 << 10), &big).await, 0);
        slow.hear(32 * (16 + (32 << 10))).await;
        let waiting: Vec<u64> = (0..8).map(|i| 4096 * i).collect();
        waiting.iter().for_each(|at| device.hold(*at));
        device.most_in_flight.set(0);
        let many: Vec<u8> =
            waiting.iter().flat_map(|at| ask(*at, (0, c::TRIM, *at, 512))).collect();
        other.say(&many).await;
        hub.local.sleep(Duration::from_secs(1)).await;
        assert_eq!(device.most_in_flight.get(), 4, "four requests, no more");
        waiting.iter().for_each(|at| device.release(*at));
        for _ in &waiting {
            assert_eq!(simple(&other).await.1, 0);
        }
    });
}

#[test]
fn growth_is_seen_by_those_who_connect_later() {
    run(Limits::default(), async |hub, device| {
        let before = ready(&hub, false).await;
        assert_eq!(one(&before, (0, c::WRITE, 4 << 20, 512), &[1; 512]).await, 28);
        device.grow(8 << 20);
        let client = connect(&hub, 1 << 16, usize::MAX);
        client.hear(18).await;
        client.say(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk").await;
        let told = client.hear(10).await;
        assert_eq!(number(&told[..8]), 8 << 20);
        assert_eq!(one(&client, (0, c::WRITE, 4 << 20, 512), &[1; 512]).await, 0);
        assert_eq!(one(&before, (0, c::WRITE, 4 << 20, 512), &[2; 512]).await, 0);
    });
}

#[test]
fn draining_answers_what_is_in_flight_and_takes_nothing_more() {
    run(Limits::default(), async |hub, device| {
        let client = ready(&hub, false).await;
        let idle = connect(&hub, 1 << 16, usize::MAX);
        idle.hear(18).await;
        device.hold(0);
        client.say(&ask(1, (0, c::WRITE, 0, 512))).await;
        client.say(&[9; 512]).await;
        assert_eq!(one(&client, (0, c::FLUSH, 0, 0), b"").await, 0);
        let all = hub.local.spawn({
            let hub = std::rc::Rc::clone(&hub);
            async move { hub.drain(None).await }
        });
        assert_eq!(idle.hear_all().await, b"", "a handshake is cut off");
        hub.local.sleep(Duration::from_secs(1)).await;
        client.say(&ask(2, (0, c::FLUSH, 0, 0))).await;
        assert!(!all.is_finished(), "the device still works on a write");
        device.release(0);
        all.await;
        assert_eq!(device.bytes(0, 512), [9; 512]);
        assert_eq!(client.hear_all().await.len(), 16, "the write's reply and no other");
        assert_eq!(hub.counters().connections, 0);
    });
}

#[test]
fn draining_gives_up_on_a_client_that_takes_no_replies() {
    run(Limits::default(), async |hub, _device| {
        let slow = connect(&hub, 1024, usize::MAX);
        greet(&slow, false).await;
        slow.say(&ask(1, (0, c::READ, 0, 65_536))).await;
        let before = hub.local.now();
        hub.local.sleep(Duration::from_secs(1)).await;
        hub.drain(Some("another")).await;
        assert_eq!(hub.counters().connections, 1, "it is not of that export");
        hub.drain(Some("disk")).await;
        assert_eq!(hub.local.now() - before, Duration::from_secs(11));
    });
}
