//! A node without disks: it keeps objects in memory and tells events like a real one. Used only by
//! tests. A volume named like an error code answers `disconnect` with that code; `connect` begins a
//! task that goes on until the test ends it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::extract::{Path as Segment, State};
use axum::http::StatusCode;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt};
use model::{
    Change, Code, CreateDatastore, CreateSnapshot, CreateVolume, Datastore, DatastoreKind,
    DatastoreState, Event, Name, NodeInfo, ObjectKind, ObjectRef, Operation, Problem, PutSchedule,
    Reference, RunSchedule, Schedule, ScheduleRule, Scheduled, Size, Snapshot, Space,
    StoreFeatures, Task, TaskOrigin, TaskState, Timestamp, Uuid, Volume, VolumeState,
};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

#[derive(Default)]
struct Known {
    datastores: BTreeMap<Uuid, Datastore>,
    volumes: BTreeMap<Uuid, Volume>,
    snapshots: BTreeMap<Uuid, Snapshot>,
    tasks: BTreeMap<Uuid, Task>,
    /// How often a volume was asked for.
    created: u64,
    /// The next creations fail with this.
    broken: Option<Code>,
    /// How many scheduled runs were refused for that.
    refused: u64,
    /// A volume of this name is made, by a task of its own, just before tasks are listed.
    late: Option<Name>,
    last: u64,
}

#[derive(Clone)]
struct Node {
    known: Arc<Mutex<Known>>,
    events: broadcast::Sender<Event>,
    /// True when it dies: streams end, as those of a dead process do.
    dead: watch::Sender<bool>,
}

impl Node {
    fn of(known: Known) -> Self {
        let (events, _) = broadcast::channel(256);
        Self { known: Arc::new(Mutex::new(known)), events, dead: watch::Sender::new(false) }
    }
}

/// A running fake.
pub(crate) struct Fake {
    node: Node,
    server: tokio::task::JoinHandle<()>,
    socket: std::path::PathBuf,
}

impl Fake {
    /// Listens on `data/node.sock`.
    pub(crate) fn start(data: &Path) -> Self {
        Self::on(data, Node::of(Known::default()))
    }

    fn on(data: &Path, node: Node) -> Self {
        std::fs::create_dir_all(data).expect("the data directory");
        let socket = data.join("node.sock");
        std::fs::remove_file(&socket).ok();
        let listener = tokio::net::UnixListener::bind(&socket).expect("the node's socket");
        let router = router(node.clone());
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("the fake serves");
        });
        Self { node, server, socket }
    }

    /// Dies and comes back with its objects, but without its tasks.
    pub(crate) async fn restart(self, data: &Path) -> Self {
        let mut known = std::mem::take(&mut *self.known());
        known.tasks.clear();
        self.die().await;
        Self::on(data, Node::of(known))
    }

    /// Stops listening and cuts every connection.
    pub(crate) async fn die(self) {
        std::fs::remove_file(&self.socket).ok();
        self.server.abort();
        self.server.await.ok();
        self.node.dead.send_replace(true);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.node.known.lock().expect("the fake's state")
    }

    pub(crate) fn created(&self) -> u64 {
        self.known().created
    }

    pub(crate) fn break_creations(&self, with: Option<Code>) {
        self.known().broken = with;
    }

    pub(crate) fn refused(&self) -> u64 {
        self.known().refused
    }

    /// Puts linked clones on a snapshot.
    pub(crate) fn cloned(&self, name: &str, clones: u32) {
        {
            let mut known = self.known();
            let snapshot = known.snapshots.values_mut().find(|s| s.name.as_str() == name);
            snapshot.expect("a snapshot").clones = clones;
        }
        self.node.tell_all();
    }

    /// Loses a datastore with its volumes, as a node does whose list was lost.
    pub(crate) fn lose_datastores(&self) {
        let gone: Vec<Datastore> =
            std::mem::take(&mut self.known().datastores).into_values().collect();
        self.known().volumes.clear();
        for datastore in gone {
            let object = ObjectRef {
                kind: ObjectKind::Datastore,
                id: datastore.id,
                name: datastore.name.to_string(),
            };
            self.node.tell(Change::Removed(object));
        }
        self.node.tell(Change::Resync);
    }

    /// A volume comes to be just before tasks are listed the next time.
    pub(crate) fn late(&self, name: &str) {
        self.known().late = Some(name.parse().expect("a name"));
    }

    /// Events were lost.
    pub(crate) fn resync(&self) {
        self.node.tell(Change::Resync);
    }

    /// Ends a running task.
    pub(crate) fn finish(&self, id: Uuid, outcome: Result<Value, Problem>) {
        self.node.finish(id, outcome);
    }
}

impl Node {
    fn tell(&self, change: Change) {
        let mut known = self.known.lock().expect("the fake's state");
        known.last += 1;
        let event = Event { id: known.last, at: now(), change };
        self.events.send(event).ok();
    }

    fn begin(&self, operation: Operation, object: ObjectRef) -> Task {
        self.begin_as(operation, object, None)
    }

    fn begin_as(
        &self,
        operation: Operation,
        object: ObjectRef,
        origin: Option<TaskOrigin>,
    ) -> Task {
        let task = Task {
            id: Uuid::new_v4(),
            state: TaskState::Running,
            operation,
            object,
            origin,
            phase: Some("working".into()),
            percent: 0,
            bytes_done: Size::default(),
            bytes_total: Size::default(),
            rate: Size::default(),
            cancellable: true,
            error: None,
            result: None,
            created: now(),
            finished: None,
        };
        self.known.lock().expect("state").tasks.insert(task.id, task.clone());
        self.tell(Change::Task(task.clone()));
        task
    }

    fn finish(&self, id: Uuid, outcome: Result<Value, Problem>) {
        let task = {
            let mut known = self.known.lock().expect("state");
            let task = known.tasks.get_mut(&id).expect("a task of this fake");
            task.finished = Some(now());
            match outcome {
                Ok(result) => {
                    task.state = TaskState::Success;
                    task.percent = 100;
                    task.result = Some(result);
                }
                Err(problem) if problem.code == Code::Cancelled => {
                    task.state = TaskState::Cancelled;
                    task.error = Some(problem);
                }
                Err(problem) => {
                    task.state = TaskState::Failed;
                    task.error = Some(problem);
                }
            }
            task.clone()
        };
        self.tell(Change::Task(task));
    }

    /// Tells how everything is now.
    fn tell_all(&self) {
        let changes: Vec<Change> = {
            let known = self.known.lock().expect("the fake's state");
            let datastores = known.datastores.values().map(|d| with_promises(&known, d));
            let volumes = known.volumes.values().cloned().map(Change::Volume);
            let snapshots = known.snapshots.values().cloned().map(Change::Snapshot);
            datastores.map(Change::Datastore).chain(volumes).chain(snapshots).collect()
        };
        changes.into_iter().for_each(|change| self.tell(change));
    }

    /// Answers with the running task, tells what is now, and ends it at once.
    fn done(&self, operation: Operation, object: ObjectRef, result: Value) -> Response {
        let task = self.begin(operation, object);
        self.tell_all();
        self.finish(task.id, Ok(result));
        (StatusCode::ACCEPTED, Json(task)).into_response()
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_unix_ms(u64::try_from(since.expect("a clock").as_millis()).expect("a time"))
}

fn refuse(problem: &Problem) -> Response {
    (StatusCode::from_u16(problem.status).expect("a status"), Json(problem)).into_response()
}

fn router(node: Node) -> Router {
    Router::new()
        .route("/v1/info", get(info))
        .route("/v1/events", get(events))
        .route("/v1/datastores", get(datastores).post(create_datastore))
        .route("/v1/datastores/{id}", get(datastore))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/volumes/{id}", get(volume_of).delete(delete_volume))
        .route("/v1/volumes/{id}/snapshots", get(snapshots_of))
        .route("/v1/volumes/{id}/connect", post(connect))
        .route("/v1/volumes/{id}/disconnect", post(disconnect))
        .route("/v1/volumes/{id}/schedule", axum::routing::put(put_schedule))
        .route("/v1/volumes/{id}/schedule/run", post(run_schedule))
        .route(
            "/v1/volumes/{id}/schedule/snapshots/{snapshot}",
            axum::routing::delete(retire_snapshot),
        )
        .route("/v1/snapshots", get(snapshots).post(create_snapshot))
        .route("/v1/templates", get(|| async { Json(json!([])) }))
        .route("/v1/alarms", get(|| async { Json(json!([])) }))
        .route("/v1/tasks", get(tasks))
        .route("/v1/tasks/{id}/cancel", post(cancel))
        .with_state(node)
}

async fn info() -> Json<NodeInfo> {
    Json(NodeInfo {
        version: "0.0.0".into(),
        pid: std::process::id(),
        host: "fake".into(),
        boot_id: Uuid::nil(),
        io_backend: "none".into(),
        started: now(),
    })
}

async fn events(
    State(node): State<Node>,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let live = tokio_stream::wrappers::BroadcastStream::new(node.events.subscribe());
    let told = live.filter_map(|event| async move {
        let event = event.ok()?;
        Some(Ok(sse::Event::default().json_data(event).expect("an event")))
    });
    let mut dead = node.dead.subscribe();
    let dies = async move { dead.wait_for(|dead| *dead).await.map(drop) };
    Sse::new(told.take_until(Box::pin(dies)))
}

async fn datastores(State(node): State<Node>) -> Json<Vec<Datastore>> {
    let known = node.known.lock().expect("state");
    Json(known.datastores.values().map(|d| with_promises(&known, d)).collect())
}

async fn datastore(State(node): State<Node>, Segment(id): Segment<Uuid>) -> Response {
    let known = node.known.lock().expect("state");
    match known.datastores.get(&id) {
        Some(datastore) => Json(with_promises(&known, datastore)).into_response(),
        None => refuse(&Problem::not_found("datastore", id)),
    }
}

fn with_promises(known: &Known, datastore: &Datastore) -> Datastore {
    let mut datastore = datastore.clone();
    let of = known.volumes.values().filter(|v| v.datastore == datastore.id);
    datastore.space.provisioned = Size::from_bytes(of.map(|v| v.size.bytes()).sum());
    datastore
}

async fn create_datastore(
    State(node): State<Node>,
    Json(request): Json<CreateDatastore>,
) -> Response {
    let datastore = Datastore {
        id: Uuid::new_v4(),
        name: request.name.clone(),
        kind: DatastoreKind::Dir,
        path: request.dir,
        file_system: "fake".into(),
        state: DatastoreState::Normal,
        state_reason: None,
        space: Space {
            total: Size::from_bytes(100 << 30),
            free: Size::from_bytes(50 << 30),
            ..Space::default()
        },
        volumes: 0,
        templates: 0,
        snapshots: 0,
        features: StoreFeatures { reserve: true, ..StoreFeatures::default() },
        policy: model::DatastorePolicy::default(),
        created: now(),
    };
    let object =
        ObjectRef { kind: ObjectKind::Datastore, id: datastore.id, name: request.name.to_string() };
    node.known.lock().expect("state").datastores.insert(datastore.id, datastore.clone());
    node.done(Operation::DatastoreCreate, object, json!(datastore))
}

async fn volumes(State(node): State<Node>) -> Json<Vec<Volume>> {
    Json(node.known.lock().expect("state").volumes.values().cloned().collect())
}

async fn volume_of(State(node): State<Node>, Segment(id): Segment<Uuid>) -> Response {
    match node.known.lock().expect("state").volumes.get(&id) {
        Some(volume) => Json(volume).into_response(),
        None => refuse(&Problem::not_found("volume", id)),
    }
}

async fn create_volume(State(node): State<Node>, Json(request): Json<CreateVolume>) -> Response {
    let volume = {
        let mut known = node.known.lock().expect("state");
        known.created += 1;
        if let Some(code) = known.broken {
            return refuse(&Problem::new(code, "The fake is told to fail."));
        }
        let Reference::Id(datastore) = request.datastore else {
            return refuse(&Problem::new(Code::BadRequest, "The name was not resolved."));
        };
        let same = |v: &&Volume| v.name == request.name && v.datastore == datastore;
        if known.volumes.values().find(same).is_some() {
            return refuse(&Problem::new(Code::NameTaken, "There is one already."));
        }
        let volume = volume(&request, datastore, known.datastores[&datastore].name.clone());
        known.volumes.insert(volume.id, volume.clone());
        volume
    };
    node.done(Operation::VolumeCreate, of(&volume), json!(volume))
}

fn of(volume: &Volume) -> ObjectRef {
    ObjectRef { kind: ObjectKind::Volume, id: volume.id, name: volume.name.to_string() }
}

fn volume(request: &CreateVolume, datastore: Uuid, datastore_name: Name) -> Volume {
    Volume {
        id: Uuid::new_v4(),
        name: request.name.clone(),
        datastore,
        datastore_name,
        kind: request.kind,
        size: request.size,
        space: Space { provisioned: request.size, ..Space::default() },
        state: VolumeState::Disconnected,
        snapshots: 0,
        waiting_merges: 0,
        current_snapshot: None,
        chain_length: 1,
        origin: None,
        schedule: None,
        next_snapshot: None,
        connections: Vec::new(),
        task: None,
        revision: 1,
        created: now(),
    }
}

async fn delete_volume(State(node): State<Node>, Segment(id): Segment<Uuid>) -> Response {
    let gone = node.known.lock().expect("state").volumes.remove(&id);
    match gone {
        Some(volume) => {
            node.tell(Change::Removed(of(&volume)));
            node.done(Operation::VolumeDelete, of(&volume), Value::Null)
        }
        None => refuse(&Problem::not_found("volume", id)),
    }
}

async fn connect(State(node): State<Node>, Segment(id): Segment<Uuid>) -> Response {
    let volume = node.known.lock().expect("state").volumes[&id].clone();
    let task = node.begin(Operation::VolumeConnect, of(&volume));
    (StatusCode::ACCEPTED, Json(task)).into_response()
}

async fn disconnect(State(node): State<Node>, Segment(id): Segment<Uuid>) -> Response {
    let volume = node.known.lock().expect("state").volumes[&id].clone();
    let code = Code::ALL.iter().find(|code| code.as_str() == volume.name.as_str());
    match code {
        Some(code) => {
            refuse(&Problem::new(*code, "As the name says.").hint("none").with("fact", 7))
        }
        None => node.done(Operation::VolumeDisconnect, of(&volume), Value::Null),
    }
}

async fn snapshots(State(node): State<Node>) -> Json<Vec<Snapshot>> {
    Json(node.known.lock().expect("state").snapshots.values().cloned().collect())
}

async fn snapshots_of(State(node): State<Node>, Segment(id): Segment<Uuid>) -> Json<Vec<Snapshot>> {
    let known = node.known.lock().expect("state");
    Json(known.snapshots.values().filter(|s| s.volume == id).cloned().collect())
}

fn snapshot(
    volume: &mut Volume,
    name: Name,
    set: Option<Uuid>,
    scheduled: Option<Scheduled>,
) -> Snapshot {
    let snapshot = Snapshot {
        id: Uuid::new_v4(),
        name,
        volume: volume.id,
        volume_name: volume.name.clone(),
        parent: volume.current_snapshot,
        size: volume.size,
        used: Size::from_bytes(1 << 20),
        merge_bytes: Some(Size::from_bytes(2 << 20)),
        set,
        scheduled,
        clones: 0,
        created: now(),
    };
    volume.current_snapshot = Some(snapshot.id);
    volume.snapshots += 1;
    volume.revision += 1;
    snapshot
}

async fn create_snapshot(
    State(node): State<Node>,
    Json(request): Json<CreateSnapshot>,
) -> Response {
    let set = Uuid::new_v4();
    let mut object = None;
    for reference in &request.volumes {
        let id = reference.id().expect("a resolved volume");
        let mut known = node.known.lock().expect("state");
        let volume = known.volumes.get_mut(&id).expect("a volume");
        let snapshot = snapshot(volume, request.name.clone(), Some(set), None);
        object = Some(of(volume));
        known.snapshots.insert(snapshot.id, snapshot);
    }
    node.done(Operation::SnapshotCreate, object.expect("a volume"), json!({ "set": set }))
}

async fn put_schedule(
    State(node): State<Node>,
    Segment(id): Segment<Uuid>,
    Json(request): Json<PutSchedule>,
) -> Response {
    let volume = {
        let mut known = node.known.lock().expect("state");
        let volume = known.volumes.get_mut(&id).expect("a volume");
        let rule = |(rule, keep)| ScheduleRule { rule, keep, last: request.since };
        volume.schedule = request.schedule.map(|asked| Schedule {
            rules: asked.rules().map(rule).collect(),
            at: asked.at,
            weekday: asked.weekday,
            unreserved: asked.unreserved,
        });
        volume.clone()
    };
    node.done(Operation::SnapshotSchedule, of(&volume), json!(volume))
}

async fn run_schedule(
    State(node): State<Node>,
    Segment(id): Segment<Uuid>,
    Json(request): Json<RunSchedule>,
) -> Response {
    let volume = {
        let mut known = node.known.lock().expect("state");
        if let Some(code) = known.broken {
            known.refused += 1;
            return refuse(&Problem::new(code, "The fake is told to fail.").hint("tell it better"));
        }
        let newest = known.snapshots.values().filter_map(|s| Some(s.scheduled.as_ref()?.run)).max();
        let volume = known.volumes.get_mut(&id).expect("a volume");
        for rule in volume.schedule.iter_mut().flat_map(|s| &mut s.rules) {
            if request.rules.contains(&rule.rule) {
                rule.last = request.at;
            }
        }
        let scheduled = Scheduled { rules: request.rules, run: newest.unwrap_or(0) + 1 };
        let snapshot = snapshot(volume, request.name, None, Some(scheduled));
        let volume = volume.clone();
        known.snapshots.insert(snapshot.id, snapshot);
        volume
    };
    node.tell(Change::Volume(volume.clone()));
    let task = node.begin_as(Operation::SnapshotCreate, of(&volume), Some(TaskOrigin::Schedule));
    node.finish(task.id, Ok(Value::Null));
    (StatusCode::ACCEPTED, Json(task)).into_response()
}

async fn retire_snapshot(
    State(node): State<Node>,
    Segment((_, id)): Segment<(Uuid, Uuid)>,
) -> Response {
    let gone = node.known.lock().expect("state").snapshots.remove(&id).expect("a snapshot");
    assert!(gone.scheduled.is_some(), "no user's snapshot is deleted: {gone:?}");
    let object = ObjectRef { kind: ObjectKind::Snapshot, id: gone.id, name: gone.name.to_string() };
    node.tell(Change::Removed(object.clone()));
    let task = node.begin_as(Operation::SnapshotDelete, object, Some(TaskOrigin::Schedule));
    node.finish(task.id, Ok(Value::Null));
    (StatusCode::ACCEPTED, Json(task)).into_response()
}

async fn tasks(State(node): State<Node>) -> Json<Vec<Task>> {
    let late = {
        let mut known = node.known.lock().expect("state");
        let name = known.late.take();
        name.map(|name| {
            let like = known.volumes.values().next().expect("a volume").clone();
            let volume = Volume { id: Uuid::new_v4(), name, ..like };
            known.volumes.insert(volume.id, volume.clone());
            volume
        })
    };
    if let Some(volume) = late {
        let task = node.begin(Operation::VolumeCreate, of(&volume));
        node.tell(Change::Volume(volume));
        node.finish(task.id, Ok(Value::Null));
    }
    Json(node.known.lock().expect("state").tasks.values().cloned().collect())
}

async fn cancel(State(node): State<Node>, Segment(id): Segment<Uuid>) -> Response {
    let task = {
        let mut known = node.known.lock().expect("state");
        let task = known.tasks.get_mut(&id).expect("a task");
        task.state = TaskState::Cancelling;
        task.clone()
    };
    node.finish(id, Err(Problem::new(Code::Cancelled, "As asked.")));
    (StatusCode::ACCEPTED, Json(task)).into_response()
}
