//! The committed description is what the code says.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

#[test]
fn openapi_is_committed_as_it_is() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let now = controller::openapi();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &now).expect("docs/openapi.json is written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == now,
        "docs/openapi.json is not what the code says: run `UPDATE=1 cargo test -p controller \
         openapi` and read the difference"
    );
}

#[test]
fn openapi_is_whole() {
    let api: Value = serde_json::from_str(&controller::openapi()).expect("JSON");
    let mut ids = BTreeSet::new();
    for (path, methods) in api["paths"].as_object().expect("paths") {
        assert!(path.starts_with("/api/v1/"), "{path}");
        for (method, call) in methods.as_object().expect("methods") {
            let id = call["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} stands twice");
            assert!(call["summary"].is_string(), "{method} {path} has no summary");
            for part in path.split('/').filter(|part| part.starts_with('{')) {
                let name = part.trim_matches(['{', '}']);
                let parameters = call["parameters"].as_array().expect("parameters");
                assert!(parameters.iter().any(|p| p["name"] == name), "{method} {path}: {name}");
            }
        }
    }
    // every reference leads somewhere
    let text = api.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().expect("a name");
        assert!(api["components"]["schemas"][name].is_object(), "{name} is not described");
    }
}
