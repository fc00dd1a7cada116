//! What is refused, with which status and code; who may do what.

use controller::client::Method;
use model::{Code, Permission, Problem, Role};
use serde_json::{Value, json};

use crate::world::{World, volume};

#[tokio::test]
async fn bad_requests_get_problems() {
    let world = World::with_datastore().await;
    let json = "application/json";
    let big = format!("{{\"name\": \"{}\"}}", "x".repeat(2 << 20));
    let bad_name = r#"{"name": "a b", "datastore": "fast", "size": 1, "kind": "thin"}"#;
    let bad_size = r#"{"name": "a", "datastore": "fast", "size": "1X", "kind": "thin"}"#;
    let bad_kind = r#"{"name": "a", "datastore": "fast", "size": 1, "kind": "x"}"#;
    let extra = r#"{"name": "a", "datastore": "fast", "size": 1, "kind": "thin", "thick": 1}"#;
    let lost = r#"{"name": "a", "datastore": "nope", "size": 1, "kind": "thin"}"#;
    let cases: &[(&str, &str, &str, &str, u16, &str)] = &[
        ("GET", "/api/v1/nothing", "", "", 404, "no-such-path"),
        ("GET", "/elsewhere", "", "", 404, "no-such-path"),
        ("PUT", "/api/v1/volumes", "", "", 405, "method-not-allowed"),
        ("POST", "/metrics", "", "", 405, "method-not-allowed"),
        ("POST", "/api/v1/volumes", "", "{}", 415, "unsupported-media-type"),
        ("POST", "/api/v1/volumes", "text/plain", "{}", 415, "unsupported-media-type"),
        ("POST", "/api/v1/volumes", json, "", 400, "bad-request"),
        ("POST", "/api/v1/volumes", json, "{", 400, "bad-request"),
        ("POST", "/api/v1/volumes", json, "[]", 400, "bad-request"),
        ("POST", "/api/v1/volumes", json, "{}", 400, "bad-request"),
        ("POST", "/api/v1/volumes", json, bad_name, 400, "bad-request"),
        ("POST", "/api/v1/volumes", json, bad_size, 400, "bad-request"),
        ("POST", "/api/v1/volumes", json, bad_kind, 400, "bad-request"),
        ("POST", "/api/v1/volumes", json, extra, 400, "bad-request"),
        ("POST", "/api/v1/volumes", json, lost, 404, "not-found"),
        ("POST", "/api/v1/volumes", json, &big, 413, "too-large"),
        ("POST", "/api/v1/volumes?dry_run=perhaps", json, bad_name, 400, "bad-request"),
        ("PATCH", "/api/v1/volumes/nope", json, "{}", 400, "bad-request"),
        ("GET", "/api/v1/volumes/nope", "", "", 404, "not-found"),
        ("GET", "/api/v1/volumes/a%20b", "", "", 404, "not-found"),
        ("GET", "/api/v1/volumes/%FF", "", "", 400, "bad-request"),
        ("GET", "/api/v1/volumes?limit=0", "", "", 400, "bad-request"),
        ("GET", "/api/v1/volumes?limit=1001", "", "", 400, "bad-request"),
        ("GET", "/api/v1/volumes?limit=-1", "", "", 400, "bad-request"),
        ("GET", "/api/v1/volumes?cursor=zz", "", "", 400, "invalid-cursor"),
        ("GET", "/api/v1/volumes?cursor=0000000061", "", "", 400, "invalid-cursor"),
        ("GET", "/api/v1/volumes?datastore=nope", "", "", 404, "not-found"),
        ("GET", "/api/v1/tasks/nope", "", "", 404, "not-found"),
        ("GET", "/api/v1/tasks?state=odd", "", "", 400, "bad-request"),
        ("GET", "/api/v1/tasks/00000000-0000-0000-0000-000000000000", "", "", 404, "not-found"),
        ("POST", "/api/v1/snapshots", json, r#"{"name": "a", "volumes": []}"#, 400, "bad-request"),
        ("DELETE", "/api/v1/tokens/nope", "", "", 404, "not-found"),
        ("DELETE", "/api/v1/tokens/local-admin", "", "", 409, "refused"),
    ];
    for (method, path, kind, body, status, code) in cases {
        let mut request = world.request(method, path);
        if !kind.is_empty() {
            request = request.header("content-type", *kind);
        }
        let answer = world.send(request, body.to_string()).await;
        let what = format!("{method} {path} {}", &body[..body.len().min(60)]);
        assert_eq!(answer.status, *status, "{what}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
        let problem: Problem = serde_json::from_str(&answer.body).expect("a problem");
        assert_eq!((problem.code.as_str(), problem.status), (*code, *status), "{what}");
        assert_eq!(*problem.kind, *format!("urn:shale:problem:{code}"), "{what}");
        assert!(problem.detail.ends_with('.'), "{what}: {}", problem.detail);
    }
    assert_eq!(world.fake.created(), 0, "nothing of this reached the node");
}

#[tokio::test]
async fn tokens_that_are_not_ours_open_nothing() {
    let world = World::start().await;
    let mut almost = world.token.clone();
    let last = almost.pop().expect("a token");
    almost.push(if last == '0' { '1' } else { '0' });
    let cut = &world.token[..world.token.len() - 1];
    let longer = format!("{}0", world.token);
    let foreign = format!("shale_{}_{}", "0".repeat(32), "0".repeat(64));
    for token in ["", "x", &almost, cut, &longer, &foreign, "shale_", &world.token.to_uppercase()] {
        for path in ["/api/v1/volumes", "/metrics", "/api/v1/nothing"] {
            let answer = world.send(world.request_of(token, "GET", path), "").await;
            assert_eq!(answer.status, 401, "{token} {path}");
            assert_eq!(answer.json()["code"], "unauthenticated");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    let basic = hyper::Request::builder()
        .uri("/api/v1/volumes")
        .header("host", "localhost")
        .header("authorization", format!("Basic {}", world.token));
    assert_eq!(world.send(basic, "").await.status, 401);
    let none = hyper::Request::builder().uri("/api/v1/volumes").header("host", "localhost");
    assert_eq!(world.send(none, "").await.status, 401);
}

#[tokio::test]
async fn other_hosts_and_pages_are_kept_out() {
    let world = World::start().await;
    let ours = world.served.url.clone();
    for (name, value, status) in [
        ("host", "evil.example", 403),
        ("host", "127.0.0.1.evil.example", 403),
        ("origin", "http://evil.example", 403),
        ("origin", "null", 403),
        ("origin", ours.as_str(), 200),
    ] {
        let mut request = hyper::Request::builder()
            .uri("/api/v1/volumes")
            .header("authorization", format!("Bearer {}", world.token));
        if name != "host" {
            request = request.header("host", ours.trim_start_matches("http://"));
        }
        let answer = world.send(request.header(name, value), "").await;
        assert_eq!(answer.status, status, "{name}: {value}");
        if status == 403 {
            assert_eq!(answer.json()["code"], "foreign-origin");
        }
    }
}

/// What each call needs, written down apart from the code.
fn needed(method: &str, path: &str) -> Permission {
    match (method, path) {
        (_, "/api/v1/tokens" | "/api/v1/tokens/{token}" | "/api/v1/audit") => {
            Permission::Administer
        }
        ("post", "/api/v1/system/down") => Permission::Administer,
        // its content, not what it is like
        ("get", "/api/v1/volumes/{volume}/data") => Permission::Operate,
        ("get", _) => Permission::Read,
        // files of the node's host
        ("post", "/api/v1/volumes/{volume}/export") => Permission::ManageStorage,
        (_, path) if path.starts_with("/api/v1/datastores") => Permission::ManageStorage,
        _ => Permission::Operate,
    }
}

#[tokio::test]
async fn every_call_asks_for_its_role() {
    let world = World::start().await;
    let mut tokens = Vec::new();
    for role in Role::ALL {
        let body = json!({ "name": role.as_str(), "role": role });
        let made: Value =
            world.client().call(Method::POST, "/api/v1/tokens", Some(&body)).await.expect("it");
        tokens.push((role, made["secret"].as_str().expect("a secret").to_owned()));
    }
    let api: Value = serde_json::from_str(&controller::openapi()).expect("JSON");
    let mut calls = 0;
    for (path, methods) in api["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            if path == "/api/v1/openapi.json" {
                continue;
            }
            let target = path.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
            let target = target.collect::<Vec<_>>().join("/");
            for (role, token) in &tokens {
                let allowed = role.allows(needed(method, path));
                if allowed && path == "/api/v1/system/down" {
                    continue; // it would be over
                }
                let request = world.request_of(token, &method.to_uppercase(), &target);
                let status = world.open(request, "").await.status().as_u16();
                assert_eq!(status != 403, allowed, "{method} {path} as {role}: {status}");
                calls += 1;
            }
            let anyone = world.request_of("x", &method.to_uppercase(), &target);
            assert_eq!(world.open(anyone, "").await.status().as_u16(), 401, "{method} {path}");
        }
    }
    assert!(calls > 100, "{calls} calls were tried");
}

#[tokio::test]
async fn a_revoked_token_stops_at_once_and_secrets_are_not_kept() {
    let world = World::start().await;
    let client = world.client();
    let body = json!({ "name": "dash", "role": "reader" });
    let made: Value =
        client.call(Method::POST, "/api/v1/tokens", Some(&body)).await.expect("a token");
    let secret = made["secret"].as_str().expect("a secret");
    let theirs = world.client_of(secret);
    assert!(theirs.list::<Value>("/api/v1/volumes").await.is_ok());
    let again = client.call::<_, Value>(Method::POST, "/api/v1/tokens", Some(&body)).await;
    assert_eq!(again.expect_err("a second one").code, Code::NameTaken);
    let list = world.raw("GET", "/api/v1/tokens", None).await.body;
    assert!(
        list.contains("dash") && !list.contains("sha256") && !list.contains("secret"),
        "{list}"
    );
    client.call::<(), ()>(Method::DELETE, "/api/v1/tokens/dash", None).await.expect("revoked");
    let refused = theirs.list::<Value>("/api/v1/volumes").await.expect_err("revoked");
    assert_eq!(refused.code, Code::Unauthenticated);
    for entry in std::fs::read_dir(world.data()).expect("the directory") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        for secret in [secret, world.token.as_str()] {
            let tail = &secret.as_bytes()[secret.len() - 40..];
            let found = bytes.windows(tail.len()).any(|window| window == tail);
            let own = path.ends_with("admin.token") && secret == world.token;
            assert_eq!(found, own, "{}", path.display());
        }
    }
}

#[tokio::test]
async fn changes_and_refused_attempts_are_on_record() {
    let world = World::with_datastore().await;
    world.volume("web").await;
    let body = json!({ "name": "dash", "role": "reader" });
    let made: Value =
        world.client().call(Method::POST, "/api/v1/tokens", Some(&body)).await.expect("a token");
    let theirs = world.client_of(made["secret"].as_str().expect("a secret"));
    let denied = theirs.call::<_, Value>(Method::POST, "/api/v1/volumes", Some(&volume("x"))).await;
    assert_eq!(denied.expect_err("a reader").code, Code::Denied);
    world.send(world.request_of("x", "GET", "/api/v1/volumes"), "").await;
    world.raw("GET", "/api/v1/volumes", None).await;
    let log = world.raw("GET", "/api/v1/audit", None).await.json();
    let seen: Vec<String> = log
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| {
            let text = |key: &str| e[key].as_str().unwrap_or("-").to_owned();
            format!("{} {} {} {}", text("name"), text("method"), text("path"), e["status"])
        })
        .collect();
    let expected = [
        "- GET /api/v1/volumes 401",
        "dash POST /api/v1/volumes 403",
        "local-admin POST /api/v1/tokens 201",
        "local-admin POST /api/v1/volumes 200",
        "local-admin POST /api/v1/datastores 200",
    ];
    assert_eq!(seen, expected);
    let older = format!("/api/v1/audit?before={}&limit=2", log[1]["id"]);
    assert_eq!(world.raw("GET", &older, None).await.json().as_array().map(Vec::len), Some(2));
}
