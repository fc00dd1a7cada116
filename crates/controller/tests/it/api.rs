//! Objects, names, pages, tasks.

use std::time::Duration;

use controller::client::Method;
use model::{Code, Estimate, SnapshotTree, Task, TaskState, Volume};
use serde_json::{Value, json};

use crate::world::{World, volume};

#[tokio::test]
async fn who_waited_for_a_task_sees_what_it_made() {
    let world = World::with_datastore().await;
    for n in 0..20 {
        let name = format!("v{n}");
        world.volume(&name).await;
        let found: Volume =
            world.client().get(&format!("/api/v1/volumes/{name}")).await.expect("just made");
        assert_eq!(found.name.as_str(), name);
        let task: Task = world
            .client()
            .call(Method::DELETE, &format!("/api/v1/volumes/{name}?wait=60"), None::<&()>)
            .await
            .expect("a task");
        assert_eq!(task.state, TaskState::Success);
        let gone = world.client().get::<Volume>(&format!("/api/v1/volumes/{name}")).await;
        assert_eq!(gone.expect_err("just deleted").code, Code::NotFound);
    }
}

#[tokio::test]
async fn a_change_is_accepted_with_its_task() {
    let world = World::with_datastore().await;
    world.volume("web").await;
    let answer = world.raw("POST", "/api/v1/volumes/web/connect", Some(&json!({}))).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(answer.header("location"), Some(format!("/api/v1/tasks/{id}").as_str()));
    assert_eq!(
        world.raw("GET", &format!("/api/v1/tasks/{id}?wait=0"), None).await.json()["state"],
        "running"
    );

    let client = world.client();
    let path = format!("/api/v1/tasks/{id}?wait=60");
    let waiting = tokio::spawn(async move { client.get::<Task>(&path).await });
    world.fake.finish(id.parse().expect("a UUID"), Ok(json!({ "uri": "nbd://x" })));
    let task = waiting.await.expect("no panic").expect("a task");
    assert_eq!((task.state, task.result), (TaskState::Success, Some(json!({ "uri": "nbd://x" }))));
}

#[tokio::test]
async fn a_task_can_be_cancelled() {
    let world = World::with_datastore().await;
    world.volume("web").await;
    let task = world.post("/api/v1/volumes/web/connect", &json!({})).await.expect("a task");
    let path = format!("/api/v1/tasks/{}/cancel?wait=60", task.id);
    let task: Task = world.client().call(Method::POST, &path, None::<&()>).await.expect("a task");
    assert_eq!(task.state, TaskState::Cancelled);
    let again: Task = world.client().call(Method::POST, &path, None::<&()>).await.expect("a task");
    assert_eq!(again.state, TaskState::Cancelled, "a cancelled task stays as it is");
    let list = world.raw("GET", "/api/v1/tasks?state=cancelled", None).await.json();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
}

#[tokio::test]
async fn every_code_of_the_node_reaches_the_caller() {
    let world = World::with_datastore().await;
    for code in Code::ALL {
        world.volume(code.as_str()).await;
        let path = format!("/api/v1/volumes/{code}/disconnect");
        let problem = world.post(&path, &json!({})).await.expect_err(code.as_str());
        assert_eq!((problem.code, problem.exit()), (*code, code.exit()));
        let raw = world.raw("POST", &path, None).await;
        assert_eq!(raw.status, code.status(), "{code}");
        assert_eq!(raw.header("content-type"), Some("application/problem+json"), "{code}");
        let body = raw.json();
        assert_eq!((&body["hint"], &body["extra"]["fact"]), (&json!("none"), &json!(7)), "{code}");
    }
}

#[tokio::test]
async fn one_name_on_two_datastores_must_be_told_apart() {
    let world = World::with_datastore().await;
    world.datastore("slow").await;
    world.volume("web").await;
    let mut other = volume("web");
    other["datastore"] = "slow".into();
    world.done("/api/v1/volumes", &other).await;
    let client = world.client();
    let problem = client.get::<Volume>("/api/v1/volumes/web").await.expect_err("two of them");
    assert_eq!(problem.code, Code::AmbiguousName);
    let hint = problem.hint.unwrap_or_default();
    assert!(hint.contains("fast/web") && hint.contains("slow/web"), "{hint}");
    let found: Volume = client.get("/api/v1/volumes/slow%2Fweb").await.expect("one of them");
    assert_eq!(found.datastore_name.as_str(), "slow");
    let by_id: Volume = client.get(&format!("/api/v1/volumes/{}", found.id)).await.expect("by id");
    assert_eq!(by_id, found);
    let on: Vec<Volume> = client.list("/api/v1/volumes?datastore=slow").await.expect("a list");
    assert_eq!(on, [found]);
}

#[tokio::test]
async fn pages_are_the_whole_list() {
    let world = World::with_datastore().await;
    for n in 0..7 {
        world.volume(&format!("v{n}")).await;
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    for _ in 0..3 {
        let page = world.raw("GET", &format!("/api/v1/volumes?limit=3{cursor}"), None).await.json();
        for item in page["items"].as_array().expect("items") {
            seen.push(item["name"].as_str().expect("a name").to_owned());
        }
        cursor = match page["next"].as_str() {
            Some(next) => format!("&cursor={next}"),
            None => break,
        };
    }
    assert_eq!(seen, ["v0", "v1", "v2", "v3", "v4", "v5", "v6"]);
}

#[tokio::test]
async fn several_volumes_are_one_snapshot_and_stand_in_a_tree() {
    let world = World::with_datastore().await;
    world.volume("data").await;
    world.volume("log").await;
    let client = world.client();
    for name in ["one", "two"] {
        let body = json!({ "name": name, "volumes": ["data", "fast/log"] });
        world.done("/api/v1/snapshots", &body).await;
    }
    let tree: SnapshotTree = client.get("/api/v1/volumes/data/tree").await.expect("a tree");
    assert_eq!(tree.roots.len(), 1);
    let one = &tree.roots[0];
    assert_eq!((one.snapshot.name.as_str(), one.here), ("one", false));
    assert_eq!((one.children[0].snapshot.name.as_str(), one.children[0].here), ("two", true));
    let of_log: Vec<model::Snapshot> =
        client.list("/api/v1/snapshots?volume=log").await.expect("a list");
    assert_eq!(of_log.len(), 2);
    let estimate: Estimate = client
        .call(Method::DELETE, "/api/v1/volumes/log/snapshots/one?dry_run=true", None::<&()>)
        .await
        .expect("an estimate");
    assert_eq!(estimate.moves.bytes(), 2 << 20);
    let missing = client.get::<model::Snapshot>("/api/v1/volumes/log/snapshots/three").await;
    assert_eq!(missing.expect_err("no such").code, Code::NotFound);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let world = World::with_datastore().await;
    let try_it = async |body: &Value| -> Estimate {
        let path = "/api/v1/volumes?dry_run=true";
        world.client().call(Method::POST, path, Some(body)).await.expect("an estimate")
    };
    let mut body = volume("web");
    let thin = try_it(&body).await;
    assert_eq!((thin.takes.bytes(), thin.refused), (0, None));
    body["kind"] = "fixed".into();
    assert_eq!(try_it(&body).await.takes.bytes(), 1 << 30);
    body["size"] = "51G".into();
    assert_eq!(try_it(&body).await.refused.map(|problem| problem.code), Some(Code::NoSpace));
    assert_eq!(world.fake.created(), 0);
}

#[tokio::test]
async fn the_end_of_the_node_is_an_alarm_and_ends_its_tasks() {
    let world = World::with_datastore().await;
    world.volume("web").await;
    let (client, data) = (world.client(), world.data());
    let task: Task = client
        .call(Method::POST, "/api/v1/volumes/web/connect", Some(&json!({})))
        .await
        .expect("a task");
    let mut events = client.events(None).await.expect("events");
    let fake = world.fake.restart(&data).await;
    let ended: Task = client.get(&format!("/api/v1/tasks/{}?wait=60", task.id)).await.expect("it");
    assert_eq!(ended.state, TaskState::Failed);
    assert_eq!(ended.error.map(|problem| problem.code), Some(Code::NodeUnavailable));
    // raised when it was lost, cleared when it was back
    let mut seen = Vec::new();
    while !seen.ends_with(&["alarm-cleared"]) {
        let next = futures_util::StreamExt::next(&mut events);
        let event = tokio::time::timeout(Duration::from_secs(60), next).await.expect("in time");
        seen.push(event.expect("an event").change.name());
    }
    assert!(seen.contains(&"alarm"), "{seen:?}");
    let alarms: Vec<model::Alarm> = client.list("/api/v1/alarms").await.expect("a list");
    assert!(alarms.is_empty(), "{alarms:?}");
    fake.die().await;
}

#[tokio::test]
async fn an_operator_says_how_much_may_be_promised_and_what_is_an_alarm() {
    let world = World::with_datastore().await; // 100 GiB, 50 of them free
    let client = world.client();
    let change = async |body: Value| {
        let path = "/api/v1/datastores/fast";
        client.call::<_, model::Datastore>(Method::PATCH, path, Some(&body)).await
    };
    for wrong in
        [json!({}), json!({ "low": "10" }), json!({ "low": "2%" }), json!({ "low": "101%" })]
    {
        let refused = change(wrong.clone()).await.expect_err("refused");
        assert_eq!(refused.code, Code::BadRequest, "{wrong}: {refused}");
    }
    let codes = async || {
        let all: Vec<model::Alarm> = client.list("/api/v1/alarms").await.expect("alarms");
        all.into_iter().map(|a| (a.code, a.severity)).collect::<Vec<_>>()
    };
    assert_eq!(codes().await, []);
    let set = change(json!({ "overcommit_alarm": "1.5%", "overcommit_limit": "3%", "low": "60%" }));
    assert_eq!(set.await.expect("set").policy.critical.to_string(), "3.3%", "stays");
    assert_eq!(codes().await, [("datastore-low".into(), model::Severity::Warning)]);

    world.volume("one").await;
    world.volume("two").await;
    client.get::<model::Datastore>("/api/v1/datastores/fast").await.expect("as it is now");
    let both = codes().await;
    assert!(both.iter().any(|(code, _)| code == "datastore-overcommitted"), "{both:?}");
    // a third GiB is the limit, a fourth is beyond it, by whatever way
    let four = volume("four");
    let mut large = four.clone();
    large["size"] = json!("2G");
    for (method, path, body) in [
        ("POST", "/api/v1/volumes", large),
        ("PATCH", "/api/v1/volumes/one", json!({ "size": "3G" })),
        ("POST", "/api/v1/volumes/one/clone", json!({ "names": ["a", "b"], "linked": true })),
        ("POST", "/api/v1/volumes/one/clone", json!({ "names": ["a", "b"], "linked": false })),
    ] {
        let refused = world.raw(method, path, Some(&body)).await;
        assert_eq!(refused.status, 507, "{method} {path}: {}", refused.body);
        assert_eq!(refused.json()["code"], "overcommit-limit");
        assert!(refused.json()["hint"].as_str().is_some_and(|h| h.contains("datastore set fast")));
        let tried = world.raw(method, &format!("{path}?dry_run=true"), Some(&body)).await;
        assert_eq!(tried.json()["refused"]["code"], "overcommit-limit", "{}", tried.body);
    }
    world.volume("three").await;
    let refused = world.post("/api/v1/volumes", &four).await.expect_err("beyond the limit");
    assert_eq!(refused.exit(), model::Exit::NoSpace);
    // it survives the controller, and goes on request
    let world = world.restart().await;
    let client = world.client();
    let now: model::Datastore = client.get("/api/v1/datastores/fast").await.expect("the datastore");
    assert_eq!(now.policy.overcommit_limit.to_string(), "3%");
    let none = json!({ "overcommit_limit": "none", "overcommit_alarm": "none", "low": "none", "critical": "none" });
    let path = "/api/v1/datastores/fast";
    client
        .call::<_, model::Datastore>(Method::PATCH, path, Some(&none))
        .await
        .expect("switched off");
    world.done("/api/v1/volumes", &four).await;
    let left: Vec<model::Alarm> = client.list("/api/v1/alarms").await.expect("alarms");
    assert_eq!(left, []);
}

#[tokio::test]
async fn a_dry_run_of_a_snapshot_says_what_it_reserves_and_how_many_are_left() {
    let world = World::with_datastore().await;
    for name in ["thin", "other"] {
        world.volume(name).await;
    }
    let mut fixed = volume("fixed");
    fixed["kind"] = json!("fixed");
    world.done("/api/v1/volumes", &fixed).await;
    world.done("/api/v1/snapshots", &json!({ "name": "taken", "volumes": ["other"] })).await;
    let tried = async |body: Value| {
        let path = "/api/v1/snapshots?dry_run=true";
        world.client().call::<_, Estimate>(Method::POST, path, Some(&body)).await.expect("told")
    };
    let told = tried(json!({ "name": "s", "volumes": ["thin"] })).await;
    assert_eq!((told.takes.bytes(), &told.refused), (0, &None));
    assert!(told.summary.contains("takes next to nothing now, and can have 31 more"), "{told:?}");
    let told = tried(json!({ "name": "s", "volumes": ["other"] })).await;
    assert!(told.summary.contains("can have 30 more"), "{told:?}");
    let told = tried(json!({ "name": "s", "volumes": ["thin", "fixed"] })).await;
    assert_eq!(told.takes.bytes(), 1 << 30, "only one of them reserves");
    assert!(told.summary.contains("reserves its 1 GiB once more"), "{told:?}");
    let told = tried(json!({ "name": "s", "volumes": ["fixed"], "unreserved": true })).await;
    assert_eq!(told.takes.bytes(), 0);
    let told = tried(json!({ "name": "taken", "volumes": ["thin", "other"] })).await;
    assert_eq!(told.refused.map(|p| p.code), Some(Code::NameTaken));
    for n in 1..32 {
        let body = json!({ "name": format!("n{n}"), "volumes": ["other"] });
        world.done("/api/v1/snapshots", &body).await;
    }
    let told = tried(json!({ "name": "s", "volumes": ["thin", "other"] })).await;
    assert_eq!(told.refused.map(|p| p.code), Some(Code::SnapshotLimit));
    let volumes: Vec<Volume> = world.client().list("/api/v1/volumes").await.expect("a list");
    assert_eq!(volumes.iter().map(|v| v.snapshots).sum::<u32>(), 32, "nothing was made");
}
