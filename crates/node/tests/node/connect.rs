//! Connections: guests read and write over NBD, and every refusal has its code.

use serde_json::{Value, json};

use crate::Host;
use crate::nbd::Nbd;

const MIB: u64 = 1 << 20;

#[test]
fn a_guest_reads_what_it_wrote_also_after_a_reconnect() {
    let (host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let path = format!("/v1/volumes/{volume}");
    assert_eq!(host.api.get(&path)["state"], "disconnected");
    let socket = host.api.connect(&volume);
    assert!(socket.ends_with(format!("run/volumes/{volume}.sock")), "{}", socket.display());
    let shown = host.api.get(&path);
    assert_eq!(shown["state"], "connected");
    assert_eq!(shown["connections"][0]["socket"], socket.to_str().unwrap());
    let mut guest = Nbd::connect(&socket).unwrap();
    assert_eq!((guest.size(), guest.is_read_only()), (64 * MIB, false));
    guest.write(3 * MIB - 512, &[7; 4096]).unwrap();
    assert_eq!(guest.read(3 * MIB - 512, 4096).unwrap(), [7; 4096]);
    assert_eq!(guest.read(40 * MIB, 4096).unwrap(), [0; 4096]);
    guest.flush().unwrap();
    guest.write(40 * MIB, &[9; 512]).unwrap();
    guest.trim(3 * MIB, 512).unwrap();
    drop(guest);

    assert_eq!(host.api.refused("POST", &format!("{path}/connect"), &json!({})), "connected");
    assert_eq!(host.api.refused("DELETE", &path, &Value::Null), "connected");
    let larger = json!({ "size": 128 * MIB });
    assert_eq!(host.api.refused("PATCH", &path, &larger), "connected");
    host.api.disconnect(&volume);
    assert!(!socket.exists());
    let left = std::fs::read_dir(host.logs()).unwrap().count();
    assert_eq!(left, 0, "the log goes with its connection");
    let again = format!("{path}/disconnect");
    assert_eq!(host.api.refused("POST", &again, &json!({})), "not-connected");

    host.api.done("PATCH", &path, &larger);
    let mut guest = Nbd::connect(&host.api.connect(&volume)).unwrap();
    assert_eq!(guest.size(), 128 * MIB);
    assert_eq!(guest.read(3 * MIB - 512, 512).unwrap(), [7; 512]);
    assert_eq!(guest.read(3 * MIB, 512).unwrap(), [0; 512], "trimmed");
    assert_eq!(guest.read(40 * MIB, 512).unwrap(), [9; 512]);
    assert_eq!(guest.read(127 * MIB, 512).unwrap(), [0; 512]);
}

#[test]
fn loopback_tcp_and_read_only() {
    let (host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let path = format!("/v1/volumes/{volume}/connect");
    let connection = host.api.post(&path, &json!({ "tcp": true, "read_only": true }));
    assert_eq!(connection["read_only"], true);
    let uri = connection["uri"].as_str().unwrap();
    let address = uri.strip_prefix("nbd://").unwrap().split('/').next().unwrap();
    let mut tool = Nbd::connect_tcp(address).unwrap();
    assert!(tool.is_read_only());
    assert_eq!(tool.read(0, 512).unwrap(), [0; 512]);
    assert!(tool.write(0, &[1; 512]).is_err());
    let vhost = json!({ "protocol": "vhost-user", "tcp": true });
    assert_eq!(host.api.refused("POST", &path, &vhost), "bad-request");
}

#[test]
fn qemu_can_use_it() {
    let Ok(found) = std::process::Command::new("qemu-io").arg("--version").output() else {
        // Not installed here; the small client above speaks the same protocol.
        return;
    };
    assert!(found.status.success());
    let (host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let connection = host.api.post(&format!("/v1/volumes/{volume}/connect"), &json!({}));
    let out = std::process::Command::new("qemu-io")
        .args(["-f", "raw", connection["uri"].as_str().unwrap()])
        .args(["-c", "write -P 0x5a 1M 3M", "-c", "flush", "-c", "read -P 0x5a 1M 3M"])
        .args(["-c", "discard 2M 1M", "-c", "read -P 0 2M 1M", "-c", "read -P 0 10M 1M"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && !text.contains("failed"), "{text}");
}
