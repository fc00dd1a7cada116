//! Snapshot schedules on a clock that the test turns.

use std::sync::Arc;

use controller::WallClock;
use controller::client::Method;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use jiff::tz::TimeZone;
use model::{
    Alarm, Change, Code, Event, Exit, Problem, ScheduleStatus, Snapshot, Task, TaskOrigin,
    Timestamp, Volume,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::world::World;

/// Stands still until it is turned.
#[derive(Clone, Debug)]
struct Hands(watch::Sender<Timestamp>);

impl Hands {
    fn at(text: &str) -> Self {
        Self(watch::Sender::new(time(text)))
    }

    fn turn(&self, text: &str) {
        self.0.send_replace(time(text));
    }
}

impl WallClock for Hands {
    fn now(&self) -> Timestamp {
        *self.0.borrow()
    }

    fn zone(&self) -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone")
    }

    fn until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        let mut hands = self.0.subscribe();
        Box::pin(async move {
            let began = *hands.borrow_and_update();
            // a clock without hands stands still
            if hands.wait_for(|now| *now >= at || *now < began).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

fn time(text: &str) -> Timestamp {
    format!("{text}:00.000Z").parse().expect("a time")
}

async fn until<S: futures_util::Stream<Item = Event> + Unpin>(
    events: &mut S,
    wanted: impl Fn(&Change) -> bool,
) -> Change {
    loop {
        let event = events.next().await.expect("the stream goes on");
        if wanted(&event.change) {
            return event.change;
        }
    }
}

fn snapshot(name: &str) -> impl Fn(&Change) -> bool {
    move |change| matches!(change, Change::Snapshot(s) if s.name.as_str() == name)
}

fn alarm(code: &str) -> impl Fn(&Change) -> bool {
    move |change| matches!(change, Change::Alarm(alarm) if alarm.code == code)
}

fn cleared(code: &str) -> impl Fn(&Change) -> bool {
    move |change| matches!(change, Change::AlarmCleared(alarm) if alarm.code == code)
}

async fn world(clock: &Hands) -> World {
    let world = World::start_at(Arc::new(clock.clone())).await;
    world.datastore("fast").await;
    world.volume("db").await;
    world
}

async fn set(world: &World, schedule: &Value) -> Result<Task, Problem> {
    let path = "/api/v1/volumes/db/schedule?wait=60";
    world.client().call(Method::PUT, path, Some(schedule)).await
}

async fn names(world: &World) -> Vec<String> {
    let mut all: Vec<Snapshot> = world.client().list("/api/v1/snapshots").await.expect("a list");
    all.sort_by_key(|s| s.scheduled.as_ref().map(|made| made.run));
    all.into_iter().map(|s| s.name.to_string()).collect()
}

#[tokio::test]
async fn snapshots_come_by_the_clock_and_the_oldest_go() {
    let clock = Hands::at("2026-11-26T08:10");
    let world = world(&clock).await;
    world.done("/api/v1/snapshots", &json!({ "name": "mine", "volumes": ["db"] })).await;
    let mut events = world.client().events(None).await.expect("events");
    set(&world, &json!({ "hourly": 2, "daily": 1, "at": "10:00" })).await.expect("set");
    let shown: Volume = world.client().get("/api/v1/volumes/db").await.expect("the volume");
    assert_eq!(shown.next_snapshot, Some(time("2026-11-26T09:00")));

    for (now, name) in [
        ("2026-11-26T09:00", "daily-20261126-1000"),
        ("2026-11-26T10:00", "hourly-20261126-1100"),
        ("2026-11-26T11:00", "hourly-20261126-1200"),
        ("2026-11-26T12:00", "hourly-20261126-1300"),
    ] {
        clock.turn(now);
        until(&mut events, snapshot(name)).await;
    }
    until(
        &mut events,
        |change| matches!(change, Change::Removed(o) if o.name == "hourly-20261126-1100"),
    )
    .await;
    let kept = ["mine", "daily-20261126-1000", "hourly-20261126-1200", "hourly-20261126-1300"];
    assert_eq!(names(&world).await, kept);

    let status: ScheduleStatus =
        world.client().get("/api/v1/volumes/db/schedule").await.expect("a schedule");
    assert_eq!((status.kept, status.trouble), (3, None));
    assert_eq!(status.schedule.rules[0].last, time("2026-11-26T12:00"));
    assert_eq!(status.next[0].local, "2026-11-26 14:00 CET");
    let all: Vec<ScheduleStatus> = world.client().list("/api/v1/schedules").await.expect("a list");
    assert_eq!(all.len(), 1);
    let tasks: Vec<Task> = world.client().list("/api/v1/tasks").await.expect("tasks");
    let origin = |origin| tasks.iter().filter(|task| task.origin == origin).count();
    assert!(origin(Some(TaskOrigin::Schedule)) >= 5, "four made and at least one deleted");
    assert_eq!(origin(None), 4, "datastore, volume, snapshot, schedule");

    // no schedule, no snapshots, and what there is stays
    let path = "/api/v1/volumes/db/schedule?wait=60";
    world.client().call::<(), Task>(Method::DELETE, path, None).await.expect("cleared");
    clock.turn("2026-11-29T12:00");
    let gone = world.client().get::<ScheduleStatus>("/api/v1/volumes/db/schedule").await;
    assert_eq!(gone.expect_err("none").code, Code::NotFound);
    assert_eq!(names(&world).await, kept);
}

#[tokio::test]
async fn a_missed_run_is_made_up_for_once_also_by_a_controller_that_lost_its_database() {
    let clock = Hands::at("2026-11-26T08:10");
    let world = world(&clock).await;
    set(&world, &json!({ "hourly": 5 })).await.expect("set");
    let data = world.data();
    let world = world
        .restart_after(|| {
            for file in ["controller.db", "controller.db-wal", "controller.db-shm"] {
                std::fs::remove_file(data.join(file)).ok();
            }
            clock.turn("2026-11-26T15:20");
        })
        .await;
    // made while the lists were first loaded, or soon after
    let mut events = world.client().events(None).await.expect("events");
    if names(&world).await.is_empty() {
        until(&mut events, snapshot("hourly-20261126-1620")).await;
    }
    clock.turn("2026-11-26T16:00");
    until(&mut events, snapshot("hourly-20261126-1700")).await;
    assert_eq!(names(&world).await, ["hourly-20261126-1620", "hourly-20261126-1700"]);
}

#[tokio::test]
async fn a_run_that_fails_is_an_alarm_until_one_succeeds() {
    let clock = Hands::at("2026-11-26T08:10");
    let world = world(&clock).await;
    set(&world, &json!({ "hourly": 5 })).await.expect("set");
    let mut events = world.client().events(None).await.expect("events");
    for code in [Code::NoSpace, Code::SnapshotLimit, Code::Busy] {
        world.fake.break_creations(Some(code));
        let before = world.fake.refused();
        clock.turn("2026-11-26T09:00");
        let raised = until(&mut events, alarm("snapshot-schedule-failed")).await;
        let Change::Alarm(Alarm { message, hint, object, .. }) = raised else { unreachable!() };
        assert_eq!(object.name, "db");
        assert!(message.contains("hourly") && message.contains("The fake is told"), "{message}");
        let hint = hint.expect("what to do");
        let said = if code == Code::SnapshotLimit { "volume disconnect db" } else { "tell it" };
        assert!(hint.contains(said), "{code}: {hint}");
        assert_eq!(world.fake.refused(), before + 1, "tried once, then it waits");
        let status: ScheduleStatus =
            world.client().get("/api/v1/volumes/db/schedule").await.expect("a schedule");
        assert_eq!(status.trouble.as_deref(), Some(message.as_str()));
        // it outlives the next load of the node's lists: showing a volume makes one
        world.client().get::<Volume>("/api/v1/volumes/db").await.expect("the volume");
        let standing: Vec<Alarm> = world.client().list("/api/v1/alarms").await.expect("alarms");
        assert!(standing.iter().any(|a| a.message == message), "{standing:?}");
        world.fake.break_creations(None);
        clock.turn("2026-11-26T09:05");
        until(&mut events, cleared("snapshot-schedule-failed")).await;
        world
            .client()
            .call::<(), Task>(Method::DELETE, "/api/v1/volumes/db/schedule?wait=60", None)
            .await
            .expect("cleared");
        clock.turn("2026-11-26T08:10");
        set(&world, &json!({ "hourly": 5 })).await.expect("set");
    }
}

#[tokio::test]
async fn a_datastore_that_is_gone_when_a_run_is_due_is_said() {
    let clock = Hands::at("2026-11-26T08:10");
    let world = world(&clock).await;
    set(&world, &json!({ "daily": 5, "at": "10:00" })).await.expect("set");
    let mut events = world.client().events(None).await.expect("events");
    world.fake.lose_datastores();
    until(&mut events, |change| matches!(change, Change::Removed(o) if o.name == "db")).await;
    clock.turn("2026-11-26T09:00");
    let raised = until(&mut events, alarm("snapshot-schedule-failed")).await;
    let Change::Alarm(Alarm { message, .. }) = raised else { unreachable!() };
    assert!(message.contains("'fast' is not available"), "{message}");
    // the operator gives it up: then nothing is owed any more
    let path = "/api/v1/datastores/fast";
    world.client().call::<(), ()>(Method::DELETE, path, None).await.expect("forgotten");
    until(&mut events, cleared("snapshot-schedule-failed")).await;
}

#[tokio::test]
async fn what_clones_stand_on_stays_and_is_told() {
    let clock = Hands::at("2026-11-26T08:10");
    let world = world(&clock).await;
    set(&world, &json!({ "hourly": 1 })).await.expect("set");
    let mut events = world.client().events(None).await.expect("events");
    clock.turn("2026-11-26T09:00");
    until(&mut events, snapshot("hourly-20261126-1000")).await;
    world.fake.cloned("hourly-20261126-1000", 2);
    clock.turn("2026-11-26T10:00");
    let raised = until(&mut events, alarm("snapshot-schedule-kept")).await;
    let Change::Alarm(Alarm { message, .. }) = raised else { unreachable!() };
    assert!(message.contains("'hourly-20261126-1000' has 2 linked clones"), "{message}");
    assert_eq!(names(&world).await, ["hourly-20261126-1000", "hourly-20261126-1100"]);
    world.fake.cloned("hourly-20261126-1000", 0);
    clock.turn("2026-11-26T11:00");
    until(&mut events, cleared("snapshot-schedule-kept")).await;
    assert_eq!(names(&world).await, ["hourly-20261126-1200"]);
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_and_a_dry_run_says_what_would_be() {
    let clock = Hands::at("2026-11-26T08:10");
    let world = world(&clock).await;
    for (schedule, code) in [
        (json!({}), Code::BadRequest),
        (json!({ "daily": 0 }), Code::BadRequest),
        (json!({ "daily": 7, "at": "24:00" }), Code::BadRequest),
        (json!({ "daily": 7, "misspelt": 1 }), Code::BadRequest),
        (json!({ "hourly": 24, "daily": 7, "weekly": 4 }), Code::SnapshotLimit),
    ] {
        let refused = set(&world, &schedule).await.expect_err("refused");
        assert_eq!(refused.code, code, "{schedule}: {refused}");
        assert_ne!(refused.exit(), Exit::Failed);
    }
    let path = "/api/v1/volumes/db/schedule?dry_run=true";
    let tried = json!({ "hourly": 24, "weekly": 4, "at": "02:00", "weekday": "friday" });
    let told: model::Estimate =
        world.client().call(Method::PUT, path, Some(&tried)).await.expect("an estimate");
    for part in ["24 hourly, 4 weekly", "at most 28 of the 32", "2026-11-26 10:00 CET (hourly)"] {
        assert!(told.summary.contains(part), "{}", told.summary);
    }
    assert_eq!(told.refused, None);
    let tried = json!({ "hourly": 32 });
    let told: model::Estimate =
        world.client().call(Method::PUT, path, Some(&tried)).await.expect("an estimate");
    assert_eq!(told.refused.map(|problem| problem.code), Some(Code::SnapshotLimit));
    let none = world.client().get::<ScheduleStatus>("/api/v1/volumes/db/schedule").await;
    assert_eq!(none.expect_err("nothing was set").code, Code::NotFound);
}
