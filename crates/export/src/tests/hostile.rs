//! Clients that break the protocol, stall or go away: only their own connection suffers.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::client::{
    ask, ask_extended, connect, greet, greet_extended, one, ready, ready_extended, run, simple,
};
use crate::hub::Limits;
use crate::wire::{command as c, command_flag as f};

#[test]
fn a_breach_ends_one_connection_and_no_other() {
    run(Limits::default(), async |hub, _device| {
        let good = ready(&hub, false).await;
        let bad = ready(&hub, false).await;
        bad.say(
            &[&ask(1, (0, c::WRITE, 0, 512))[..], &[1; 512], b"not a request, no not at all"]
                .concat(),
        )
        .await;
        assert_eq!(bad.hear_all().await.len(), 16, "what came before is answered");
        let flags = connect(&hub, 1 << 16, usize::MAX);
        flags.hear(18).await;
        flags.say(&[0xff; 4]).await;
        assert_eq!(flags.hear_all().await, b"");
        assert_eq!(hub.counters().protocol_errors, 2);
        assert_eq!(one(&good, (0, c::FLUSH, 0, 0), b"").await, 0);
    });
}

#[test]
fn a_payload_that_is_never_taken_ends_the_connection() {
    let requests = [
        (f::PAYLOAD_LEN, c::WRITE, 0, (32 << 20) + 512),
        (0, c::WRITE, 0, 1 << 40),
        (f::PAYLOAD_LEN, c::TRIM, 0, u64::MAX),
    ];
    for request in requests {
        run(Limits::default(), async |hub, device| {
            let bad = ready_extended(&hub).await;
            bad.say(&[ask_extended(1, request), vec![0; 512]].concat()).await;
            assert_eq!(bad.hear_all().await, b"", "{request:?}");
            assert!(device.log.borrow().is_empty(), "nothing was done of {request:?}");
            assert_eq!(hub.counters().protocol_errors, 1);
        });
    }
    // and compact requests where extended ones were agreed on
    run(Limits::default(), async |hub, _device| {
        let bad = ready_extended(&hub).await;
        bad.say(&[ask(1, (0, c::FLUSH, 0, 0)), vec![0; 4]].concat()).await;
        assert_eq!(bad.hear_all().await, b"");
    });
}

#[test]
fn clients_that_go_away_in_the_middle_leave_nothing_behind() {
    run(Limits::default(), async |hub, device| {
        let good = ready(&hub, true).await;
        let whole = [&ask(1, (0, c::WRITE, 0, 65_536))[..], &[1; 65_536]].concat();
        for cut in [0, 1, 27, 28, 29, 4096, 40_000, 65_563] {
            let client = ready(&hub, false).await;
            client.say(&whole[..cut]).await;
            client.close();
            while hub.counters().connections > 1 {
                hub.local.sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(device.log.borrow().is_empty(), "half a write is no write");
        // one that goes while its read is at work
        device.hold(0);
        let client = ready(&hub, false).await;
        client.say(&ask(1, (0, c::READ, 0, 512))).await;
        client.close();
        hub.local.sleep(Duration::from_secs(1)).await;
        assert_eq!(hub.counters().connections, 2, "the device is waited for");
        device.release(0);
        hub.local.sleep(Duration::from_secs(1)).await;
        assert_eq!(hub.counters().connections, 1);
        assert_eq!(one(&good, (0, c::FLUSH, 0, 0), b"").await, 0);
    });
}

#[test]
fn one_that_stops_talking_still_gets_its_answers() {
    run(Limits::default(), async |hub, device| {
        device.hold(0);
        let client = ready(&hub, false).await;
        client.say(&ask(1, (0, c::READ, 0, 512))).await;
        client.close_sending();
        hub.local.sleep(Duration::from_secs(1)).await;
        device.release(0);
        assert_eq!(client.hear_all().await.len(), 16 + 512);
    });
}

#[test]
fn a_handshake_has_its_time() {
    run(Limits::default(), async |hub, _device| {
        let client = connect(&hub, 1 << 16, usize::MAX);
        client.hear(18).await;
        client.say(b"\0\0\0\x03IHAVE").await;
        let before = hub.local.now();
        assert_eq!(client.hear_all().await, b"");
        assert_eq!(hub.local.now() - before, Duration::from_secs(30));
        // but a session may be idle for ever
        let idle = connect(&hub, 1 << 16, usize::MAX);
        greet(&idle, false).await;
        hub.local.sleep(Duration::from_secs(100_000)).await;
        assert_eq!(one(&idle, (0, c::FLUSH, 0, 0), b"").await, 0);
    });
}

/// Extended requests of the same sorts: what has a payload mostly says so.
fn any_extended_stream() -> impl Strategy<Value = Vec<u8>> {
    let near = prop_oneof![0..(5_u64 << 20), any::<u64>()];
    let len = prop_oneof![6 => 0..200_000_u64, 1 => any::<u64>()];
    let request =
        (0..64_u16, 0..9_u16, near, len, any::<bool>()).prop_map(|(flags, kind, at, len, good)| {
            let (flags, at, len) =
                if good { (flags & 1, at & !511, len & !511) } else { (flags, at, len) };
            let flags = if kind == c::WRITE { flags | f::PAYLOAD_LEN } else { flags };
            let payload = match flags & f::PAYLOAD_LEN {
                0 => 0,
                _ => usize::try_from(len.min(300_000)).expect("short"),
            };
            [ask_extended(at, (flags, kind, at, len)), vec![1; payload]].concat()
        });
    prop::collection::vec(request, 0..12).prop_map(|parts| parts.concat())
}

/// Requests that are right, nearly right and not right at all, with and without their payloads.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let near = prop_oneof![0..(5_u64 << 20), any::<u64>()];
    let request = (0..32_u16, 0..9_u16, near, 0..200_000_u32, any::<bool>()).prop_map(
        |(flags, kind, at, len, good)| {
            let (flags, at, len) =
                if good { (flags & 1, at & !511, len & !511) } else { (flags, at, len) };
            let payload = if kind == c::WRITE { vec![0x5a; len as usize] } else { vec![] };
            [ask(at, (flags, kind, at, len)), payload].concat()
        },
    );
    let part = prop_oneof![
        12 => request,
        1 => prop::collection::vec(any::<u8>(), 0..60),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

#[test]
fn random_streams_end_and_leave_the_server_well() {
    let mut runner = TestRunner::new_with_rng(
        Config::with_cases(240),
        TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]),
    );
    let limits = Limits { requests: 3, payload_bytes: 1 << 20, ..Limits::default() };
    let stream = prop_oneof![
        any_stream().prop_map(|stream| (false, stream)),
        any_extended_stream().prop_map(|stream| (true, stream)),
    ];
    runner
        .run(&(stream, 1..5000_usize, any::<bool>()), |((extended, stream), step, structured)| {
            run(limits, async |hub, _device| {
                let client = connect(&hub, 1 << 16, step.max(20));
                match extended {
                    true => greet_extended(&client).await,
                    false => greet(&client, structured).await,
                }
                let heard = async {
                    client.say(&stream).await;
                    client.close_sending();
                };
                futures_util::join!(heard, client.hear_all());
                while hub.counters().connections > 0 {
                    hub.local.sleep(Duration::from_millis(1)).await;
                }
                let after = ready(&hub, structured).await;
                assert_eq!(one(&after, (0, c::FLUSH, 0, 0), b"").await, 0);
            });
            Ok(())
        })
        .expect("no stream harms the server");
}

#[test]
fn what_a_gone_client_left_waiting_yields_to_the_next() {
    run(Limits::default(), async |hub, device| {
        device.hold(0);
        let gone = ready(&hub, false).await;
        gone.say(&ask(1, (0, c::READ, 0, 512))).await;
        hub.local.sleep(Duration::from_secs(1)).await;
        gone.close();
        hub.local.sleep(Duration::from_secs(1)).await;
        assert_eq!(hub.counters().connections, 1, "its request is still with the device");
        let next = ready(&hub, false).await;
        hub.local.sleep(Duration::from_secs(1)).await;
        assert_eq!(hub.counters().connections, 1, "only the new one is left");
        device.release(0);
        assert_eq!(one(&next, (0, c::READ, 0, 512), b"").await, 0);
    });
}

#[test]
fn p4_nothing_of_a_gone_client_begins_after_its_successor() {
    let limits = Limits { requests: 1, ..Limits::default() };
    run(limits, async |hub, device| {
        device.hold(0);
        let write = |at| [&ask(at, (0, c::WRITE, at, 512))[..], &[9; 512]].concat();
        let gone = ready(&hub, false).await;
        let live = ready(&hub, false).await;
        // one is with the device, one waits for room, one is not read yet, of one a half was sent
        gone.say(&[&write(0)[..], &write(512), &write(1024), &write(1536)[..300]].concat()).await;
        live.say(&ask(7, (0, c::READ, 0, 512))).await;
        hub.local.sleep(Duration::from_secs(1)).await;
        gone.close();
        let next = ready(&hub, false).await;
        assert_eq!(one(&next, (0, c::READ, 4096, 512), b"").await, 0);
        assert_eq!(hub.counters().connections, 2, "the live ones are left");
        device.release(0);
        assert_eq!(simple(&live).await, (7, 0));
        live.hear(512).await;
        hub.local.sleep(Duration::from_secs(1)).await;
        let written = ["write 512+", "write 1024+", "write 1536+"];
        let log = device.log.borrow();
        let begun = |line: &String| written.iter().any(|write| line.starts_with(write));
        assert!(!log.iter().any(begun), "{log:?}");
    });
}
