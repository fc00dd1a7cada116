//! What a data directory keeps, and what may be lost.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use controller::client::{Client, Method};
use model::{Code, Datastore, DatastoreState, Task};
use serde_json::json;

use crate::fake::Fake;
use crate::world::{World, options};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("it exists").permissions().mode() & 0o777
}

#[tokio::test]
async fn what_is_private_stays_private() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("deep/data");
    // the controller makes the directory before it looks for a node
    let (served, _fake) = tokio::join!(controller::serve(options(&data)), async {
        while !data.join("controller.db").exists() {
            tokio::task::yield_now().await;
        }
        Fake::start(&data)
    });
    let served = served.expect("a controller");
    for private in ["admin.token", "serve.json", "serve.lock"] {
        assert_eq!(mode(&data.join(private)), 0o600, "{private}");
    }
    assert_eq!(mode(&data), 0o700);
    served.close();
    served.finish().await.expect("an end");
    assert!(!data.join("serve.json").exists(), "nobody serves here any more");
}

#[tokio::test]
async fn only_loopback_and_only_one() {
    let world = World::start().await;
    let second = controller::serve(options(&world.data())).await.expect_err("the second");
    assert_eq!(second.code, Code::Busy);
    assert!(second.detail.contains(&world.served.url), "{second}");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let mut options = options(&world.data().join("other"));
        options.listen = address.parse().expect("an address");
        let refused = controller::serve(options).await.expect_err(address);
        assert_eq!(refused.code, Code::Refused, "{address}");
        assert!(refused.detail.contains("TLS"), "{refused}");
    }
    assert!(!world.data().join("other").exists(), "refused before anything is made");
}

#[tokio::test]
async fn tokens_and_history_outlive_the_controller() {
    let world = World::with_datastore().await;
    let body = json!({ "name": "dash", "role": "reader" });
    let made = world.raw("POST", "/api/v1/tokens", Some(&body)).await.json();
    let before: Vec<Task> = world.client().list("/api/v1/tasks").await.expect("tasks");
    let world = world.restart().await;
    let theirs = world.client_of(made["secret"].as_str().expect("a secret"));
    let after: Vec<Task> = theirs.list("/api/v1/tasks").await.expect("tasks");
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_lost_database_costs_no_datastore() {
    let world = World::with_datastore().await;
    world.volume("web").await;
    let (data, token) = (world.data(), world.token.clone());
    world.served.close();
    world.served.finish().await.expect("an end");
    for file in ["controller.db", "controller.db-wal", "controller.db-shm"] {
        std::fs::remove_file(data.join(file)).ok();
    }
    let served = controller::serve(options(&data)).await.expect("again");
    let client = Client::new(&served.url, &token).expect("a client");
    let volumes: Vec<model::Volume> = client.list("/api/v1/volumes").await.expect("the old token");
    assert_eq!(volumes.len(), 1);
}

#[tokio::test]
async fn a_lost_token_file_makes_a_new_token_and_ends_the_old() {
    let world = World::start().await;
    let (data, old) = (world.data(), world.token.clone());
    std::fs::remove_file(data.join("admin.token")).expect("it was there");
    let world = world.restart().await;
    let new = std::fs::read_to_string(data.join("admin.token")).expect("a new one");
    assert_ne!(new.trim(), old);
    assert!(world.client_of(new.trim()).list::<Task>("/api/v1/tasks").await.is_ok());
    let refused = world.client_of(&old).list::<Task>("/api/v1/tasks").await;
    assert_eq!(refused.expect_err("the old one").code, Code::Unauthenticated);
}

#[tokio::test]
async fn a_damaged_token_file_is_refused_with_advice() {
    let world = World::start().await;
    let data = world.data();
    world.served.close();
    world.served.finish().await.expect("an end");
    std::fs::write(data.join("admin.token"), "rubbish\n").expect("written");
    let refused = controller::serve(options(&data)).await.expect_err("rubbish");
    assert_eq!(refused.code, Code::Corrupt);
}

#[tokio::test]
async fn a_datastore_that_the_node_lost_is_shown_and_can_be_forgotten() {
    let world = World::with_datastore().await;
    let client = world.client();
    let mut events = client.events(None).await.expect("events");
    world.fake.lose_datastores();
    loop {
        let event = futures_util::StreamExt::next(&mut events).await.expect("an event");
        if matches!(&event.change, model::Change::Datastore(d) if d.state == DatastoreState::Abnormal)
        {
            break;
        }
    }
    let lost: Datastore = client.get("/api/v1/datastores/fast").await.expect("still shown");
    let reason = lost.state_reason.unwrap_or_default();
    assert!(reason.contains("shale datastore create fast --dir /fake/fast"), "{reason}");
    client
        .call::<(), ()>(Method::DELETE, "/api/v1/datastores/fast", None)
        .await
        .expect("forgotten");
    let all: Vec<Datastore> = client.list("/api/v1/datastores").await.expect("a list");
    assert!(all.is_empty(), "{all:?}");
}
