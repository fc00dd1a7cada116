//! `/metrics`: the Prometheus text format, from the index.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use model::{Severity, Size, Space, TaskState, VolumeState};

use super::App;
use super::guard::{May, Read};
use crate::index::Known;

pub(super) async fn metrics(_: May<Read>, State(app): State<Arc<App>>) -> impl IntoResponse {
    let mut text = String::new();
    render(&mut text, &app.index.read());
    head(&mut text, "shale_http_responses_total", "counter", "Answers of the REST API.");
    for (class, count) in app.requests.iter().enumerate().skip(1) {
        let count = count.load(Ordering::Relaxed);
        line(&mut text, "shale_http_responses_total", &[("class", &format!("{class}xx"))], count);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

fn render(text: &mut String, known: &Known) {
    head(text, "shale_build_info", "gauge", "The program's version.");
    line(text, "shale_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    head(text, "shale_node_up", "gauge", "Whether the node answers.");
    line(text, "shale_node_up", &[], u64::from(known.node.is_some()));

    type Figure = fn(&Space) -> Option<Size>;
    let figures: [(&str, &str, Figure); 6] = [
        ("total", "What the file system holds.", |s| Some(s.total)),
        ("free", "What is free for guests' data.", |s| Some(s.free)),
        ("provisioned", "Sizes promised to guests.", |s| Some(s.provisioned)),
        ("reserved", "Space kept and not yet used.", |s| Some(s.reserved)),
        ("used", "Bytes really taken.", |s| Some(s.used)),
        ("reclaimable", "Bytes that a reclaim would give back.", |s| s.reclaimable),
    ];
    for (figure, help, get) in figures {
        let name = format!("shale_datastore_{figure}_bytes");
        head(text, &name, "gauge", help);
        for datastore in known.datastores.values() {
            if let Some(size) = get(&datastore.space) {
                line(text, &name, &[("datastore", datastore.name.as_str())], size.bytes());
            }
        }
    }
    for (figure, help, get) in &figures[2..] {
        let name = format!("shale_volume_{figure}_bytes");
        head(text, &name, "gauge", help);
        for volume in known.volumes.values() {
            if let Some(size) = get(&volume.space) {
                let labels = [
                    ("datastore", volume.datastore_name.as_str()),
                    ("volume", volume.name.as_str()),
                ];
                line(text, &name, &labels, size.bytes());
            }
        }
    }
    counts(
        text,
        "shale_volumes",
        "Volumes.",
        "state",
        VolumeState::ALL,
        VolumeState::as_str,
        &known.volumes.values().map(|v| v.state.as_str()).collect::<Vec<_>>(),
    );
    head(text, "shale_snapshots", "gauge", "Snapshots.");
    line(text, "shale_snapshots", &[], known.snapshots.len() as u64);
    head(text, "shale_templates", "gauge", "Templates.");
    line(text, "shale_templates", &[], known.templates.len() as u64);
    counts(
        text,
        "shale_tasks",
        "Tasks in memory.",
        "state",
        TaskState::ALL,
        TaskState::as_str,
        &known.tasks.values().map(|t| t.state.as_str()).collect::<Vec<_>>(),
    );
    counts(
        text,
        "shale_alarms",
        "Alarms.",
        "severity",
        Severity::ALL,
        Severity::as_str,
        &known.alarms.values().map(|a| a.severity.as_str()).collect::<Vec<_>>(),
    );
}

/// One line for each possible value, also for those that do not occur.
fn counts<T: Copy>(
    text: &mut String,
    name: &str,
    help: &str,
    label: &str,
    all: &[T],
    word: fn(T) -> &'static str,
    found: &[&str],
) {
    head(text, name, "gauge", help);
    let mut counts: BTreeMap<&str, u64> = all.iter().map(|value| (word(*value), 0)).collect();
    for value in found {
        *counts.entry(value).or_default() += 1;
    }
    for (value, count) in counts {
        line(text, name, &[(label, value)], count);
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
}

/// Label values need no escapes: names are letters, digits, '.', '_' and '-'; the rest is ours.
fn line(text: &mut String, name: &str, labels: &[(&str, &str)], value: u64) {
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
    match labels.is_empty() {
        true => writeln!(text, "{name} {value}").ok(),
        false => writeln!(text, "{name}{{{}}} {value}", labels.join(",")).ok(),
    };
}
