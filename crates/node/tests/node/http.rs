//! The API as such: errors, bounds, events, tasks, and who may use it.

use std::os::unix::fs::PermissionsExt as _;

use node::{DataError, Node, StartError};
use serde_json::{Value, json};

use crate::{Host, options};

fn problem(host: &Host, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let (status, body) = host.api.raw(method, path, body).expect("an answer");
    assert_eq!(body["status"], status, "{body}");
    (status, body["code"].as_str().expect("a code").to_owned())
}

#[test]
fn hostile_requests_get_problems() {
    let host = Host::new();
    let nil = "00000000-0000-0000-0000-000000000000";
    let long = vec![b' '; 300 << 10];
    let deep = [b'['; 10_000];
    let table: &[(&str, &str, &[u8], u16, &str)] = &[
        ("GET", "/nothing", b"", 404, "no-such-path"),
        ("PUT", "/v1/volumes", b"", 405, "method-not-allowed"),
        ("POST", "/v1/volumes", b"{", 400, "bad-request"),
        ("POST", "/v1/volumes", b"{}", 400, "bad-request"),
        ("POST", "/v1/volumes", &deep, 400, "bad-request"),
        ("POST", "/v1/volumes", &long, 413, "too-large"),
        ("POST", "/v1/datastores", br#"{"name":"a b","dir":"/x"}"#, 400, "bad-request"),
        ("POST", "/v1/datastores", br#"{"name":"a","dir":"x"}"#, 400, "bad-request"),
        ("POST", "/v1/datastores", br#"{"name":"a","dir":"/x","y":1}"#, 400, "bad-request"),
        ("GET", "/v1/volumes/..%2f..%2fetc", b"", 404, "not-found"),
        ("GET", "/v1/tasks/x", b"", 404, "not-found"),
        ("GET", "/v1/snapshots?volume=%00", b"", 400, "bad-request"),
        ("POST", "/v1/snapshots", br#"{"name":"s","volumes":[]}"#, 400, "bad-request"),
    ];
    for (method, path, body, status, code) in table {
        let said = problem(&host, method, path, body);
        assert_eq!(said, (*status, (*code).to_owned()), "{method} {path}");
    }
    for (method, path) in [
        ("GET", "volumes/ID"),
        ("DELETE", "volumes/ID"),
        ("POST", "volumes/ID/connect"),
        ("POST", "volumes/ID/disconnect"),
        ("GET", "datastores/ID"),
        ("POST", "datastores/ID/check"),
        ("GET", "templates/ID"),
        ("DELETE", "templates/ID"),
        ("POST", "tasks/ID/cancel"),
    ] {
        let path = format!("/v1/{}", path.replace("ID", nil));
        assert_eq!(problem(&host, method, &path, b""), (404, "not-found".into()), "{path}");
    }
}

#[test]
fn the_socket_is_private_and_the_directory_has_one_node() {
    let host = Host::new();
    let socket = host.dir.path().join("data/node.sock");
    let mode = std::fs::symlink_metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    match Node::start(&options(&host.dir)) {
        Err(StartError::Data(DataError::InUse { holder, .. })) => {
            assert_eq!(holder, std::process::id().to_string());
        }
        other => panic!("a second node: {other:?}"),
    }
    assert_eq!(host.api.get("/v1/info")["pid"], std::process::id(), "the first one goes on");
}

#[test]
fn tasks_and_events_tell_what_happened() {
    let (host, store) = Host::with_store();
    let volume = host.api.volume(&store, "web", 64 << 20);
    let tasks = host.api.get("/v1/tasks");
    let said: Vec<_> = tasks
        .as_array()
        .unwrap()
        .iter()
        .map(|task| (task["operation"].as_str().unwrap(), task["state"].as_str().unwrap()))
        .collect();
    assert_eq!(said, [("datastore-create", "success"), ("volume-create", "success")]);
    // From the very first event: it is not known any more in this life, so lists are loaded again.
    let mut first = Value::Null;
    host.api.events(Some(0), |event| {
        first = event.clone();
        true
    });
    assert_eq!(first["type"], "resync");
    let last = first["id"].as_u64().unwrap();
    host.api.done("PATCH", &format!("/v1/volumes/{volume}"), &json!({ "name": "www" }));
    let mut kinds = Vec::new();
    host.api.events(Some(last), |event| {
        kinds.push(event["type"].as_str().unwrap().to_owned());
        event["type"] == "task" && event["data"]["state"] == "success"
    });
    assert!(kinds.contains(&"volume".to_owned()), "{kinds:?}");
    assert_eq!(host.api.get(&format!("/v1/volumes/{volume}"))["name"], "www");
}

#[test]
fn datastores_are_made_adopted_and_forgotten() {
    let (mut host, store) = Host::with_store();
    let dir = host.store();
    let again = json!({ "name": "other", "dir": dir });
    assert_eq!(host.api.refused("POST", "/v1/datastores", &again), "conflict");
    let same = json!({ "name": "fast", "dir": dir });
    assert_eq!(host.api.refused("POST", "/v1/datastores", &same), "name-taken");
    let gone = json!({ "name": "gone", "dir": host.dir.path().join("nowhere") });
    assert_eq!(host.api.refused("POST", "/v1/datastores", &gone), "bad-request");
    let volume = host.api.volume(&store, "web", 64 << 20);
    let path = format!("/v1/datastores/{store}");
    assert_eq!(host.api.refused("DELETE", &path, &Value::Null), "has-dependents");
    host.api.done("DELETE", &format!("/v1/volumes/{volume}"), &Value::Null);
    host.api.done("DELETE", &path, &Value::Null);
    assert_eq!(host.api.get("/v1/datastores"), json!([]));
    let adopted = host.api.datastore("renamed", &dir);
    assert_eq!(adopted, store, "the datastore keeps its identity");
    let check = host.api.post(&format!("/v1/datastores/{store}/check"), &Value::Null);
    assert_eq!(check["findings"], json!([]));
    host.restart(|_| {});
    assert_eq!(host.api.get(&path)["name"], "renamed");
}

#[test]
fn a_missing_datastore_is_an_alarm_and_comes_back_by_itself() {
    let (mut host, store) = Host::with_store();
    host.api.volume(&store, "web", 64 << 20);
    let (here, away) = (host.store(), host.dir.path().join("away"));
    host.restart(|_| std::fs::rename(&here, &away).unwrap());
    let view = host.api.get(&format!("/v1/datastores/{store}"));
    assert_eq!(view["state"], "abnormal", "{view}");
    let alarms = host.api.get("/v1/alarms");
    assert_eq!(alarms[0]["code"], "datastore-unavailable", "{alarms}");
    std::fs::rename(&away, &here).unwrap();
    // A check looks at once; without one the node tries again by itself.
    host.api.post(&format!("/v1/datastores/{store}/check"), &Value::Null);
    assert_eq!(host.api.get("/v1/alarms"), json!([]));
    assert_eq!(host.api.get("/v1/volumes").as_array().unwrap().len(), 1);
}
