//! Planned restarts resume what was connected; anything that looks like a power cut does not.

use node::{Node, StartError};
use serde_json::json;

use crate::Host;
use crate::nbd::Nbd;

const MIB: u64 = 1 << 20;

#[test]
fn a_planned_restart_resumes_at_the_same_path() {
    let (mut host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let socket = host.api.connect(&volume);
    let mut guest = Nbd::connect(&socket).unwrap();
    guest.write(5 * MIB, &[6; 512]).unwrap();
    let made = host.api.post("/v1/snapshots", &json!({ "name": "s", "volumes": [volume] }));
    let snapshot = made["snapshots"][0]["id"].as_str().unwrap().to_owned();
    let body = json!({ "snapshot": snapshot, "read_only": true });
    let view = host.api.post(&format!("/v1/volumes/{volume}/connect"), &body);
    guest.write(6 * MIB, &[8; 512]).unwrap();
    host.restart(|_| assert!(!socket.exists(), "a node that is away listens nowhere"));
    assert!(guest.read(0, 512).is_err(), "the old connection is over");
    let mut guest = Nbd::connect(&socket).unwrap();
    assert_eq!(guest.read(5 * MIB, 512).unwrap(), [6; 512]);
    assert_eq!(guest.read(6 * MIB, 512).unwrap(), [8; 512], "not flushed, and not lost");
    let mut reader = Nbd::connect(view["socket"].as_str().unwrap().as_ref()).unwrap();
    assert_eq!(reader.read(6 * MIB, 512).unwrap(), [0; 512]);
    assert_eq!(host.api.get("/v1/alarms"), json!([]));
    host.api.disconnect(&volume);
    assert_eq!(std::fs::read_dir(host.logs()).unwrap().count(), 0);
}

#[test]
fn without_its_log_a_connection_is_stopped_and_says_so() {
    let (mut host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let socket = host.api.connect(&volume);
    let mut guest = Nbd::connect(&socket).unwrap();
    guest.write(5 * MIB, &[6; 512]).unwrap();
    host.restart(|host| {
        std::fs::remove_file(host.logs().join(format!("{volume}.log"))).unwrap();
    });
    let path = format!("/v1/volumes/{volume}");
    let shown = host.api.get(&path);
    assert_eq!(shown["state"], "abnormal", "{shown}");
    let alarms = host.api.get("/v1/alarms");
    assert_eq!(alarms[0]["code"], "connection-stopped", "{alarms}");
    assert!(Nbd::connect(&socket).is_err(), "the guest is not resumed");
    // It stays so over another restart, until somebody connects it again.
    host.restart(|_| {});
    assert_eq!(host.api.get("/v1/alarms")[0]["code"], "connection-stopped");
    assert_eq!(host.api.connect(&volume), socket);
    assert_eq!(host.api.get("/v1/alarms"), json!([]));
    let mut guest = Nbd::connect(&socket).unwrap();
    assert_eq!(guest.read(5 * MIB, 512).unwrap(), [6; 512], "the planned end had flushed it");
}

#[test]
fn another_boot_is_a_power_cut() {
    let (mut host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    host.api.connect(&volume);
    host.restart(|host| {
        let path = host.dir.path().join("data/node/connections.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        file["connections"][0]["boot_id"] = json!("11111111-2222-4333-8444-555555555555");
        std::fs::write(&path, file.to_string()).unwrap();
    });
    let alarm = &host.api.get("/v1/alarms")[0];
    assert!(alarm["message"].as_str().unwrap().contains("host was restarted"), "{alarm}");
}

#[test]
fn closing_a_reader_to_the_end_leaves_the_writer_alone() {
    let (mut host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let path = format!("/v1/volumes/{volume}/connect");
    let made = host.api.post("/v1/snapshots", &json!({ "name": "s", "volumes": [volume] }));
    let snapshot = made["snapshots"][0]["id"].as_str().unwrap().to_owned();
    let socket = host.api.connect(&volume);
    host.api.post(&path, &json!({ "snapshot": snapshot, "read_only": true }));
    let log = host.logs().join(format!("{volume}.log"));
    // As a node leaves it that died while it disconnected the reader.
    host.restart(|host| {
        let path = host.dir.path().join("data/node/connections.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        for entry in file["connections"].as_array_mut().unwrap() {
            if entry["snapshot"] == snapshot.as_str() {
                entry["state"] = json!("closing");
            }
        }
        std::fs::write(&path, file.to_string()).unwrap();
    });
    assert_eq!(host.api.get("/v1/alarms"), json!([]));
    let shown = host.api.get(&format!("/v1/volumes/{volume}"));
    assert_eq!(shown["connections"].as_array().unwrap().len(), 1, "{shown}");
    assert!(log.exists(), "the writer's log");
    Nbd::connect(&socket).unwrap().write(0, &[1; 512]).unwrap();
}

#[test]
fn down_leaves_everything_clean() {
    let (mut host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let socket = host.api.connect(&volume);
    Nbd::connect(&socket).unwrap().write(0, &[1; 512]).unwrap();
    let (status, said) = host.api.raw("POST", "/v1/down", b"").unwrap();
    assert_eq!((status, &said["disconnected"]), (200, &json!(1)));
    host.node.take().unwrap().wait();
    assert_eq!(std::fs::read_dir(host.logs()).unwrap().count(), 0);
    let (node, api) = crate::start(&host.dir);
    (host.node, host.api) = (Some(node), api);
    assert_eq!(host.api.get(&format!("/v1/volumes/{volume}"))["state"], "disconnected");
}

#[test]
fn a_log_of_another_version_is_left_alone() {
    let (mut host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let socket = host.api.connect(&volume);
    Nbd::connect(&socket).unwrap().write(5 * MIB, &[6; 512]).unwrap();
    let log = host.logs().join(format!("{volume}.log"));
    // Another version may also have logs of another length.
    for (version, times) in [(99, 1), (99, 2)] {
        let mut own = Vec::new();
        let mut other = Vec::new();
        host.restart(|_| {
            own = std::fs::read(&log).unwrap();
            other.clone_from(&own);
            for copy in [0, 512] {
                other[copy + 8] = version;
                let crc = crc32c(&other[copy..copy + 88]);
                other[copy + 88..copy + 92].copy_from_slice(&crc.to_le_bytes());
            }
            other.resize(own.len() * times, 0);
            std::fs::write(&log, &other).unwrap();
        });
        let alarm = &host.api.get("/v1/alarms")[0];
        assert_eq!(alarm["code"], "connection-stopped");
        let told = format!("version {version}");
        assert!(alarm["message"].as_str().unwrap().contains(&told), "{alarm}");
        let path = format!("/v1/volumes/{volume}/connect");
        assert_eq!(host.api.refused("POST", &path, &json!({})), "unknown-format");
        assert!(std::fs::read(&log).unwrap() == other, "whoever wrote it can still use it");
        // And does: the connection was not forgotten.
        host.restart(|_| std::fs::write(&log, &own).unwrap());
        assert_eq!(host.api.get("/v1/alarms"), json!([]));
        let mut guest = Nbd::connect(&socket).unwrap();
        assert_eq!(guest.read(5 * MIB, 512).unwrap(), [6; 512]);
    }
}

/// The length of logs may change with a version whose layout is the same.
#[test]
fn a_log_of_another_length_is_read_as_long_as_it_is() {
    let (mut host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let socket = host.api.connect(&volume);
    Nbd::connect(&socket).unwrap().write(5 * MIB, &[6; 512]).unwrap();
    let log = host.logs().join(format!("{volume}.log"));
    // the identity, and two halves of whole records
    let half_at = |len: usize| 4096 + (len - 4096) / 2 / 32 * 32;
    let longer = 4 << 20;
    host.restart(|_| {
        let own = std::fs::read(&log).unwrap();
        assert_ne!(own.len(), longer);
        let mut other = own[..half_at(own.len())].to_vec();
        other.resize(half_at(longer), 0);
        other.extend(&own[half_at(own.len())..]);
        other.resize(longer, 0);
        std::fs::write(&log, &other).unwrap();
    });
    assert_eq!(host.api.get("/v1/alarms"), json!([]));
    let mut guest = Nbd::connect(&socket).unwrap();
    assert_eq!(guest.read(5 * MIB, 512).unwrap(), [6; 512]);
    guest.write(9 * MIB, &[7; 512]).unwrap();
    drop(guest);
    host.restart(|_| assert_eq!(std::fs::metadata(&log).unwrap().len(), longer as u64));
    let mut guest = Nbd::connect(&socket).unwrap();
    assert_eq!(guest.read(9 * MIB, 512).unwrap(), [7; 512]);
}

#[test]
fn state_of_another_version_is_refused_and_left_as_it_is() {
    let (mut host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let socket = host.api.connect(&volume);
    host.restart(|host| {
        for name in ["datastores.json", "connections.json", "transfers.json"] {
            let path = host.dir.path().join("data/node").join(name);
            let own = std::fs::read(&path).ok();
            let newer = br#"{"format": 2, "what": ["nobody", "knows"]}"#;
            std::fs::write(&path, newer).unwrap();
            match Node::start(&crate::options(&host.dir)) {
                Err(StartError::Format(text)) => {
                    assert!(text.contains(name) && text.contains("format 2"), "{text}");
                }
                other => panic!("{name}: {other:?}"),
            }
            assert_eq!(std::fs::read(&path).unwrap(), newer);
            match own {
                Some(own) => std::fs::write(&path, own).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
        }
    });
    assert_eq!(host.api.get("/v1/alarms"), json!([]));
    Nbd::connect(&socket).unwrap().write(0, &[1; 512]).unwrap();
}

/// The checksum of the log's identity, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
