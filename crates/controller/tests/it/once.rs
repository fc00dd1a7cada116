//! Idempotency-Key.

use model::Code;
use serde_json::{Value, json};

use crate::world::{Raw, World, volume};

async fn post(world: &World, token: &str, key: &str, path: &str, body: &Value) -> Raw {
    let request = world
        .request_of(token, "POST", path)
        .header("content-type", "application/json")
        .header("idempotency-key", key);
    world.send(request, body.to_string()).await
}

#[tokio::test]
async fn the_same_request_twice_is_done_once() {
    let world = World::with_datastore().await;
    let path = "/api/v1/volumes";
    let first = post(&world, &world.token, "k1", path, &volume("web")).await;
    let again = post(&world, &world.token, "k1", path, &volume("web")).await;
    assert_eq!(world.fake.created(), 1);
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.header("location"), first.header("location"));
    assert!(first.header("location").is_some());
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));

    let other = post(&world, &world.token, "k1", path, &volume("www")).await;
    assert_eq!((other.status, &other.json()["code"]), (422, &json!("idempotency-mismatch")));
    let elsewhere = post(&world, &world.token, "k1", "/api/v1/snapshots", &volume("web")).await;
    assert_eq!(elsewhere.status, 422, "the path is part of the request");
    assert_eq!(world.fake.created(), 1);

    // a refusal is an answer too; another key is another request
    let taken = post(&world, &world.token, "k2", path, &volume("web")).await;
    let taken_again = post(&world, &world.token, "k2", path, &volume("web")).await;
    assert_eq!((taken.status, taken_again.status), (409, 409));
    assert_eq!(taken_again.header("content-type"), Some("application/problem+json"));
    assert_eq!(world.fake.created(), 2);
}

#[tokio::test]
async fn keys_belong_to_their_token() {
    let world = World::with_datastore().await;
    let body = json!({ "name": "second", "role": "operator" });
    let made = world.raw("POST", "/api/v1/tokens", Some(&body)).await.json();
    let second = made["secret"].as_str().expect("a secret");
    post(&world, &world.token, "k", "/api/v1/volumes", &volume("a")).await;
    let theirs = post(&world, second, "k", "/api/v1/volumes", &volume("b")).await;
    assert_eq!(theirs.status, 202, "{}", theirs.body);
    assert_eq!(world.fake.created(), 2);
}

#[tokio::test]
async fn a_failure_of_ours_may_be_tried_again() {
    let world = World::with_datastore().await;
    world.fake.break_creations(Some(Code::IoError));
    let broken = post(&world, &world.token, "k", "/api/v1/volumes", &volume("a")).await;
    assert_eq!(broken.status, 500);
    world.fake.break_creations(None);
    let fine = post(&world, &world.token, "k", "/api/v1/volumes", &volume("a")).await;
    assert_eq!(fine.status, 202, "{}", fine.body);
    assert_eq!(world.fake.created(), 2);
}

#[tokio::test]
async fn at_the_same_time_it_is_done_once_too() {
    let world = World::with_datastore().await;
    let body = volume("web");
    let one = || post(&world, &world.token, "k", "/api/v1/volumes", &body);
    let answers = tokio::join!(one(), one(), one(), one());
    assert_eq!(world.fake.created(), 1);
    for answer in [answers.0, answers.1, answers.2, answers.3] {
        assert!([202, 409].contains(&answer.status), "{}", answer.body);
        if answer.status == 409 {
            assert_eq!(answer.json()["code"], "busy");
        }
    }
}

#[tokio::test]
async fn odd_keys_are_refused() {
    let world = World::with_datastore().await;
    for key in ["", &"x".repeat(129)] {
        let answer = post(&world, &world.token, key, "/api/v1/volumes", &volume("a")).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
    }
    let token = json!({ "name": "x", "role": "reader" });
    let answer = post(&world, &world.token, "k", "/api/v1/tokens", &token).await;
    assert_eq!(answer.status, 400, "a secret must not be kept: {}", answer.body);
}

#[tokio::test]
async fn answers_outlive_the_controller() {
    let world = World::with_datastore().await;
    let first = post(&world, &world.token, "k", "/api/v1/volumes", &volume("a")).await;
    let world = world.restart().await;
    let again = post(&world, &world.token, "k", "/api/v1/volumes", &volume("a")).await;
    assert_eq!((again.status, again.body), (first.status, first.body));
    assert_eq!(world.fake.created(), 1);
}
