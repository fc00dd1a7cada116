//! The event stream and what else is told: metrics, console.

use futures_util::StreamExt;
use model::{Change, Event};

use crate::world::World;

async fn until<S: futures_util::Stream<Item = Event> + Unpin>(
    events: &mut S,
    wanted: impl Fn(&Change) -> bool,
) -> Event {
    loop {
        let event = events.next().await.expect("the stream goes on");
        if wanted(&event.change) {
            return event;
        }
    }
}

fn volume_named(name: &str) -> impl Fn(&Change) -> bool {
    move |change| matches!(change, Change::Volume(volume) if volume.name.as_str() == name)
}

#[tokio::test]
async fn a_reader_goes_on_where_it_was() {
    let world = World::with_datastore().await;
    let client = world.client();
    let mut first = client.events(None).await.expect("events");
    world.volume("one").await;
    let seen = until(&mut first, volume_named("one")).await;
    drop(first);
    world.volume("two").await;
    let mut second = client.events(Some(seen.id)).await.expect("events");
    let next = second.next().await.expect("an event");
    assert!(next.id > seen.id, "nothing twice");
    assert!(!volume_named("one")(&next.change));
    until(&mut second, volume_named("two")).await;
    // ids of another life
    for unknown in [1, u64::MAX] {
        let mut lost = client.events(Some(unknown)).await.expect("events");
        assert_eq!(lost.next().await.expect("an event").change, Change::Resync);
    }
}

/// Who learns that a task has ended finds what it made, whichever way the controller learned of it.
#[tokio::test]
async fn a_task_has_not_ended_before_what_it_made_is_there() {
    let mut world = World::with_datastore().await;
    world.volume("web").await;
    for (way, name) in ["late", "later"].into_iter().enumerate() {
        let mut events = world.client().events(None).await.expect("events");
        world.fake.late(name);
        if way == 0 {
            world.fake.resync();
        } else {
            let data = world.data();
            world.fake = world.fake.restart(&data).await;
        }
        let made = |change: &Change| match change {
            Change::Volume(volume) => volume.name.as_str() == name,
            Change::Task(task) => task.object.name == name && task.state.is_final(),
            _ => false,
        };
        let first = until(&mut events, made).await;
        assert!(matches!(first.change, Change::Volume(_)), "{:?}", first.change);
        until(&mut events, made).await;
    }
}

#[tokio::test]
async fn metrics_tell_the_figures() {
    let world = World::with_datastore().await;
    world.volume("web").await;
    let answer = world.raw("GET", "/metrics", None).await;
    assert_eq!(answer.status, 200);
    for line in [
        "shale_node_up 1",
        "shale_datastore_total_bytes{datastore=\"fast\"} 107374182400",
        "shale_volume_provisioned_bytes{datastore=\"fast\",volume=\"web\"} 1073741824",
        "shale_volumes{state=\"disconnected\"} 1",
        "shale_volumes{state=\"connected\"} 0",
        "shale_tasks{state=\"success\"} 2",
    ] {
        assert!(
            answer.body.lines().any(|found| found == line),
            "{line} is not in\n{}",
            answer.body
        );
    }
    let names = |kind| {
        let lines = answer.body.lines().filter_map(move |l| l.strip_prefix(kind));
        lines.filter_map(|l| l.split(' ').next()).collect::<Vec<_>>()
    };
    assert_eq!(names("# HELP "), names("# TYPE "));
}

#[tokio::test]
async fn the_console_needs_nothing_from_elsewhere() {
    let world = World::start().await;
    for path in ["/", "/console.js", "/console.css"] {
        let answer = world.send(world.request_of("none", "GET", path), "").await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body.len() > 500, "{path}");
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        for foreign in ["http://", "https://", "innerHTML", "eval(", " style=", " onclick="] {
            assert!(!answer.body.contains(foreign), "{path} contains {foreign}");
        }
    }
    // every text of the page exists in both languages
    let script = world.send(world.request("GET", "/console.js"), "").await.body;
    let page = world.send(world.request("GET", "/"), "").await.body;
    let (_, texts) = script.split_once("const TEXTS").expect("texts");
    let (english, rest) = texts.split_once("zh: {").expect("two languages");
    let (chinese, _) = rest.split_once("};").expect("an end");
    for part in page.split("data-text=\"").skip(1) {
        let key = part.split('"').next().expect("a key");
        for (language, texts) in [("en", english), ("zh", chinese)] {
            assert!(texts.contains(&format!("{key}: '")), "{key} is missing in {language}");
        }
    }
}
