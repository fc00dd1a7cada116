//! Snapshots of running disks, and what is made of them.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::Host;
use crate::api::id;
use crate::nbd::Nbd;

const MIB: u64 = 1 << 20;

/// Writes 1, 2, 3 ... to two volumes in turn until told to stop; how far it came.
fn count_up(one: &mut Nbd, other: &mut Nbd, stop: &AtomicBool) -> u64 {
    let mut n = 0_u64;
    while !stop.load(Ordering::Relaxed) || n < 100 {
        n += 1;
        for guest in [&mut *one, &mut *other] {
            let mut sector = [0; 512];
            sector[..8].copy_from_slice(&n.to_be_bytes());
            guest.write(n % 64 * MIB, &sector).expect("a write while snapshots are taken");
        }
    }
    n
}

/// The newest number on a volume.
fn newest(guest: &mut Nbd) -> u64 {
    let read = |slot: u64, guest: &mut Nbd| {
        let sector = guest.read(slot * MIB, 512).expect("a read");
        u64::from_be_bytes(sector[..8].try_into().expect("eight bytes"))
    };
    (0..64).map(|slot| read(slot, guest)).max().expect("some slots")
}

#[test]
fn two_volumes_are_snapshotted_at_one_moment_while_they_are_written() {
    let (host, store) = Host::with_store();
    let names = ["data", "journal"];
    let volumes = names.map(|name| host.api.volume(&store, name, 64 * MIB));
    let sockets = volumes.clone().map(|volume| host.api.connect(&volume));
    let stop = AtomicBool::new(false);
    let (mut one, mut other) =
        (Nbd::connect(&sockets[0]).unwrap(), Nbd::connect(&sockets[1]).unwrap());
    let mut sets = Vec::new();
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| count_up(&mut one, &mut other, &stop));
        for n in 0..3 {
            let body = json!({ "name": format!("s{n}"), "volumes": volumes });
            let made = host.api.post("/v1/snapshots", &body);
            assert!(made["pauseMs"].as_f64().is_some_and(|ms| ms > 0.0), "{made}");
            sets.push(made);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the guest goes on")
    });
    assert_eq!((newest(&mut one), newest(&mut other)), (written, written));
    for made in &sets {
        let seen: Vec<u64> = volumes
            .iter()
            .map(|volume| {
                let snapshot = made["snapshots"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|s| s["volume"] == volume.as_str())
                    .map(id)
                    .unwrap();
                let body = json!({ "snapshot": snapshot, "read_only": true });
                let path = format!("/v1/volumes/{volume}/connect");
                let connection = host.api.post(&path, &body);
                let socket = connection["socket"].as_str().unwrap();
                let mut reader = Nbd::connect(socket.as_ref()).unwrap();
                assert!(reader.is_read_only());
                newest(&mut reader)
            })
            .collect();
        // One writer, one after the other: what the second has, the first had before.
        assert!(seen[0] == seen[1] || seen[0] == seen[1] + 1, "not one moment: {seen:?}");
    }
    let sure = host.api.refused(
        "POST",
        &format!("/v1/volumes/{}/connect", volumes[0]),
        &json!({
            "snapshot": id(&sets[0]["snapshots"][0]),
        }),
    );
    assert_eq!(sure, "read-only");
}

#[test]
fn revert_clone_merge_and_diff() {
    let (host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 * MIB);
    let path = format!("/v1/volumes/{volume}");
    let write = |at: u64, byte: u8| {
        let mut guest = Nbd::connect(&host.api.connect(&volume)).unwrap();
        guest.write(at, &[byte; 4096]).unwrap();
        drop(guest);
        host.api.disconnect(&volume);
    };
    let read = |volume: &str, at: u64| {
        let mut guest = Nbd::connect(&host.api.connect(volume)).unwrap();
        let byte = guest.read(at, 4096).unwrap()[0];
        drop(guest);
        host.api.disconnect(volume);
        byte
    };
    let snapshot = |name: &str| {
        let made = host.api.post("/v1/snapshots", &json!({ "name": name, "volumes": [volume] }));
        assert_eq!(made["pauseMs"], Value::Null, "nobody waited");
        id(&made["snapshots"][0])
    };
    write(0, 1);
    let first = snapshot("first");
    write(0, 2);
    write(10 * MIB, 3);
    let second = snapshot("second");
    write(0, 4);
    let list = host.api.get(&format!("{path}/snapshots"));
    assert_eq!(list.as_array().unwrap().len(), 2);
    let diff = host.api.get(&format!("{path}/diff?from={first}&to={second}"));
    assert!(diff["bytes"].as_u64().is_some_and(|bytes| bytes >= 8192), "{diff}");

    let clone = json!({ "names": ["copy-1", "copy-2"], "linked": true, "snapshot": first });
    let clones = host.api.post(&format!("{path}/clone"), &clone);
    assert_eq!(read(&id(&clones[0]), 0), 1);
    assert_eq!(host.api.refused("DELETE", &path, &Value::Null), "has-dependents");
    let full = json!({ "names": ["full"], "linked": false });
    let full = host.api.post(&format!("{path}/clone"), &full);
    assert_eq!((read(&id(&full[0]), 0), read(&id(&full[0]), 10 * MIB)), (4, 3));

    host.api.post(&format!("{path}/snapshots/{second}/revert"), &Value::Null);
    assert_eq!((read(&volume, 0), read(&volume, 10 * MIB)), (2, 3));
    host.api.done("DELETE", &format!("{path}/snapshots/{second}"), &Value::Null);
    assert_eq!((read(&volume, 0), read(&volume, 10 * MIB)), (2, 3));
    for clone in clones.as_array().unwrap() {
        host.api.done("DELETE", &format!("/v1/volumes/{}", id(clone)), &Value::Null);
    }
    host.api.done("DELETE", &format!("{path}/snapshots/{first}"), &Value::Null);
    assert_eq!((read(&volume, 0), read(&volume, 10 * MIB)), (2, 3));
    let check = host.api.post(&format!("/v1/datastores/{store}/check"), &Value::Null);
    assert_eq!(check["findings"], json!([]));
}

#[test]
fn templates() {
    let (host, store) = Host::with_store();
    let volume = host.api.volume(&store, "golden", 64 * MIB);
    let mut guest = Nbd::connect(&host.api.connect(&volume)).unwrap();
    guest.write(MIB, &[5; 512]).unwrap();
    drop(guest);
    let body = json!({ "name": "base", "from": volume });
    assert_eq!(host.api.refused("POST", "/v1/templates", &body), "connected");
    host.api.disconnect(&volume);
    let template = id(&host.api.post("/v1/templates", &body));
    assert_eq!(host.api.get("/v1/volumes"), json!([]), "the volume became the template");
    for linked in [true, false] {
        let names = [format!("a-{linked}"), format!("b-{linked}")];
        let body = json!({ "names": names, "linked": linked });
        let made = host.api.post(&format!("/v1/templates/{template}/deploy"), &body);
        let made = made.as_array().unwrap();
        assert_eq!(made.len(), 2);
        let mut guest = Nbd::connect(&host.api.connect(&id(&made[1]))).unwrap();
        assert_eq!(guest.read(MIB, 512).unwrap(), [5; 512]);
    }
    let path = format!("/v1/templates/{template}");
    assert_eq!(host.api.get(&path)["clones"], 2);
    assert_eq!(host.api.refused("DELETE", &path, &Value::Null), "has-dependents");
    assert_eq!(
        host.api.refused("POST", &format!("/v1/volumes/{template}/connect"), &json!({})),
        "refused"
    );
}

/// Whatever a controller believes: for a schedule only its own snapshots go, and none with clones on it.
#[test]
fn a_schedule_deletes_only_what_it_made_and_nothing_that_clones_need() {
    let (host, store) = Host::with_store();
    let web = host.api.volume(&store, "web", 16 * MIB);
    let at = |path: &str| format!("/v1/volumes/{web}/{path}");
    let since = "2026-11-26T00:00:00.000Z";
    let schedule = json!({ "schedule": { "hourly": 2 }, "since": since });
    host.api.done("PUT", &at("schedule"), &schedule);
    host.api.connect(&web);
    let run = |name: &str| {
        let body = json!({ "name": name, "rules": ["hourly"], "at": "2026-11-26T01:00:00.000Z" });
        id(&host.api.post(&at("schedule/run"), &body)["snapshots"][0])
    };
    let (one, two) = (run("one"), run("two"));
    let body = json!({ "name": "mine", "volumes": [web] });
    let mine = id(&host.api.post("/v1/snapshots", &body)["snapshots"][0]);
    let body = json!({ "names": ["clone"], "linked": true, "snapshot": two });
    host.api.post(&at("clone"), &body);

    let retire = |snapshot: &str| at(&format!("schedule/snapshots/{snapshot}"));
    assert_eq!(host.api.refused("DELETE", &retire(&mine), &Value::Null), "refused");
    assert_eq!(host.api.refused("DELETE", &retire(&two), &Value::Null), "has-dependents");
    host.api.done("DELETE", &retire(&one), &Value::Null);
    let now = host.api.get(&format!("/v1/volumes/{web}"));
    assert_eq!((&now["snapshots"], &now["waiting_merges"]), (&json!(2), &json!(1)), "{now}");
    assert_eq!(now["schedule"]["rules"][0]["last"], "2026-11-26T01:00:00.000Z");
    // the tasks say what began them
    let tasks = host.api.get("/v1/tasks");
    let of_schedule = |operation: &str| {
        let all = tasks.as_array().expect("a list").iter();
        all.filter(|t| t["operation"] == operation && t["origin"] == "schedule").count()
    };
    assert_eq!((of_schedule("snapshot-create"), of_schedule("snapshot-delete")), (2, 2));
    host.api.disconnect(&web);
    // the policy is gone: so are its runs
    host.api.done("PUT", &at("schedule"), &json!({ "since": since }));
    let body = json!({ "name": "late", "rules": ["hourly"], "at": since });
    assert_eq!(host.api.refused("POST", &at("schedule/run"), &body), "bad-request");
}
