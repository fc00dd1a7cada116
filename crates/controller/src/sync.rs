//! Keeps the index equal to the node: loads its lists once, then follows its events, and starts over
//! when either breaks. The only writer of objects.
//!
//! ```text
//!   event of a volume ──► its snapshots, and the volume or template that it stands on, are asked for
//!   end of a task     ──► told after all that, so that whoever waits for a task sees what it did;
//!                         of one that failed everything is loaded: how far it came is not told
//! ```
//! So an operation costs what it touches, however much else there is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use hyper::Method;
use model::{
    Alarm, Change, Code, Datastore, DatastoreKind, DatastoreState, Event, Name, ObjectKind,
    ObjectRef, Origin, Problem, Severity, Space, StoreFeatures, Task, TaskState, Timestamp, Uuid,
    Volume,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::hub::now;
use crate::index::{Index, Known, Lists};
use crate::inventory::{Expected, Inventory, Write};
use crate::node::NodeClient;
use crate::policy;
use crate::store::Store;

/// Space figures of running guests change without an event.
const REFRESH: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);
/// Attempts before a node that was never there is an alarm: a start takes a moment.
const PATIENCE: u32 = 50;
/// How long the events of an operation that has ended may take, before everything is loaded instead.
pub(crate) const TOLD: Duration = Duration::from_secs(5);
/// More objects than this are asked for by loading everything.
const FEW: usize = 32;
const PREFIX: &str = "datastore/";
/// The alarm that the controller raises itself.
const NODE_ALARM: Uuid = Uuid::from_u128(0x7368_616c_6500_4000_8000_6e6f_6465_0001);

/// What the inventory remembers of a datastore: enough to say that it is missing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Remembered {
    name: Name,
    path: String,
    file_system: String,
    created: Timestamp,
}

/// Asks the sync task to load the lists now.
#[derive(Clone, Debug)]
pub(crate) struct Refresher(mpsc::Sender<oneshot::Sender<()>>);

impl Refresher {
    /// Returns when the index is as new as this call, or when the node does not answer.
    pub(crate) async fn refresh(&self) {
        let (done, wait) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // an error is a sync task that gave up this attempt: the index stays as it was
            wait.await.ok();
        }
    }
}

pub(crate) struct Sync {
    pub(crate) node: NodeClient,
    pub(crate) index: Arc<Index>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) store: Store,
    requests: mpsc::Receiver<oneshot::Sender<()>>,
}

impl Sync {
    pub(crate) fn new(
        node: NodeClient,
        index: Arc<Index>,
        inventory: Arc<Inventory>,
        store: Store,
    ) -> (Self, Refresher) {
        let (sender, requests) = mpsc::channel(16);
        (Self { node, index, inventory, store, requests }, Refresher(sender))
    }

    /// Runs until the runtime ends.
    pub(crate) async fn run(mut self) {
        let mut failures = 0_u32;
        loop {
            let problem = match self.follow().await {
                Ok(()) => Problem::new(Code::NodeUnavailable, "The node ended its event stream."),
                Err(problem) => problem,
            };
            tracing::debug!("the node is out of reach: {problem}");
            let (lost, told) = {
                let known = self.index.read();
                (known.node.is_some(), known.alarms.contains_key(&NODE_ALARM))
            };
            failures = if lost { 1 } else { failures.saturating_add(1) };
            if lost {
                self.index.set_node(None);
            }
            if !told && (lost || failures >= PATIENCE) {
                self.index.apply(Change::Alarm(node_alarm(&problem)));
            }
            let pause = tokio::time::sleep(RETRY);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(request) = self.requests.recv() => drop(request),
                }
            }
        }
    }

    /// One connection to the node, from its first list to the end of its events.
    async fn follow(&mut self) -> Result<(), Problem> {
        let info = self.node.info().await?;
        // listen first, then load: what happens in between comes as an event
        let mut events = self.node.events(None).await?;
        let mut lost = self.index.unfinished();
        let tasks = self.load_with_tasks().await?;
        for task in &tasks {
            lost.remove(&task.id);
        }
        for task in tasks {
            self.take_task(task).await;
        }
        for lost in self.index.end_lost(&lost, now()) {
            self.keep(lost).await;
        }
        self.index.set_node(Some(info));
        let mut commits = self.inventory.watch();
        let mut tick = tokio::time::interval(REFRESH);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.reset();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.take(event, &mut events).await?,
                    None => return Ok(()),
                },
                Some(first) = self.requests.recv() => self.answer(first).await?,
                committed = commits.recv() => {
                    // a datastore was forgotten and must not be shown as missing, or it has a new policy
                    if committed.is_ok_and(|c| {
                        c.keys.iter().any(|key| {
                            key.starts_with(PREFIX) || key.starts_with(policy::PREFIX)
                        })
                    }) {
                        self.load().await?;
                    }
                }
                _ = tick.tick() => self.look_at_guests().await?,
            }
        }
    }

    /// Loads everything: once for all who wait already.
    async fn answer(&mut self, first: oneshot::Sender<()>) -> Result<(), Problem> {
        let mut waiting = vec![first];
        while let Ok(more) = self.requests.try_recv() {
            waiting.push(more);
        }
        self.load().await?;
        for done in waiting {
            done.send(()).ok();
        }
        Ok(())
    }

    /// Applies an event and those that are there already behind it: one look serves all of them.
    async fn take(
        &self,
        first: Event,
        more: &mut (impl Stream<Item = Event> + Unpin),
    ) -> Result<(), Problem> {
        let mut ended = Vec::new();
        let (mut all, mut resync) = (false, false);
        let mut related = BTreeSet::new();
        let mut next = Some(first);
        while let Some(event) = next {
            match event.change {
                Change::Resync => resync = true,
                Change::Task(task) if task.state.is_final() => {
                    all |= task.state != TaskState::Success;
                    ended.push(task);
                }
                Change::Datastore(datastore) => {
                    // one that is new, or has another name or place, goes into the inventory
                    all |= !self.is_remembered(&datastore)?;
                    self.put_datastore(datastore);
                }
                change => {
                    all |= self.relate(&change, &mut related);
                    self.index.apply(change);
                }
            }
            next = futures_util::FutureExt::now_or_never(more.next()).flatten();
        }
        if resync {
            ended.extend(self.load_with_tasks().await?);
        } else if all || related.len() > FEW {
            self.load().await?;
        } else {
            for id in related {
                self.look_at_volume(id).await?;
            }
        }
        for task in ended {
            self.index.release(task.id);
            self.take_task(task).await;
        }
        Ok(())
    }

    /// Notes the volumes and templates that are not as they were because of `change`, which is not applied
    /// yet; whether they are too many to say.
    fn relate(&self, change: &Change, related: &mut BTreeSet<Uuid>) -> bool {
        let known = self.index.read();
        match change {
            Change::Volume(now) => {
                let before = known.volumes.get(&now.id);
                // it came to stand on others, or stands on them no more
                let stood = before.and_then(|before| before.origin.as_ref());
                if stood.map(|origin| origin.id) != now.origin.as_ref().map(|origin| origin.id) {
                    relate_origins(&known, stood, related);
                    relate_origins(&known, now.origin.as_ref(), related);
                }
                let revised = before.is_none_or(|before| before.revision != now.revision);
                if revised && (now.snapshots > 0 || before.is_some_and(|b| b.snapshots > 0)) {
                    related.insert(now.id);
                }
                // its snapshots and its clones name it
                before.is_some_and(|before| before.name != now.name)
            }
            Change::Template(now) => {
                related.insert(now.id);
                // its clones name it; a volume that became one may have got another name
                let clones = |v: &Volume| v.origin.as_ref().is_some_and(|o| o.id == now.id);
                match known.templates.get(&now.id) {
                    Some(before) => before.name != now.name,
                    None => known.volumes.values().any(clones),
                }
            }
            Change::Removed(gone) => {
                let stood = known.volumes.get(&gone.id).and_then(|volume| volume.origin.as_ref());
                relate_origins(&known, stood, related);
                related.extend(known.snapshots.get(&gone.id).map(|snapshot| snapshot.volume));
                gone.kind == ObjectKind::Datastore
            }
            Change::Resync
            | Change::Datastore(_)
            | Change::Snapshot(_)
            | Change::Task(_)
            | Change::Alarm(_)
            | Change::AlarmCleared(_) => false,
        }
    }

    /// Asks for a volume or template, and its snapshots.
    async fn look_at_volume(&self, id: Uuid) -> Result<(), Problem> {
        let is_template = self.index.read().templates.contains_key(&id);
        let found = if is_template {
            let template = self.ask(&format!("/v1/templates/{id}")).await?;
            template.map(Change::Template)
        } else {
            let volume = self.ask(&format!("/v1/volumes/{id}")).await?;
            volume.map(Change::Volume)
        };
        // One that is gone is told as removed.
        let Some(found) = found else { return Ok(()) };
        self.index.apply(found);
        match self.node.list(&format!("/v1/volumes/{id}/snapshots")).await {
            Ok(snapshots) => self.index.replace_snapshots(id, snapshots),
            Err(problem) if problem.code == Code::NotFound => {}
            Err(problem) => return Err(problem),
        }
        Ok(())
    }

    /// What running guests take changes without an event.
    async fn look_at_guests(&self) -> Result<(), Problem> {
        for datastore in self.node.list("/v1/datastores").await? {
            self.put_datastore(datastore);
        }
        for volume in self.node.list("/v1/volumes?connected=true").await? {
            self.index.apply(Change::Volume(volume));
        }
        Ok(())
    }

    /// One object; None if the node does not have it.
    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Problem> {
        match self.node.call(Method::GET, path, None::<&()>).await {
            Ok(found) => Ok(Some(found)),
            Err(problem) if problem.code == Code::NotFound => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    fn put_datastore(&self, mut datastore: Datastore) {
        datastore.policy = policy::of(&self.inventory, datastore.id);
        policy::watch_one(&self.index, &datastore);
        self.index.apply(Change::Datastore(datastore));
    }

    async fn take_task(&self, task: Task) {
        let known = self.index.read().tasks.get(&task.id).is_some_and(|t| t.state.is_final());
        if task.state.is_final() && !known {
            self.keep(task.clone()).await;
        }
        self.index.put_task(task);
    }

    async fn keep(&self, task: Task) {
        if let Err(problem) = self.store.keep_task(task).await {
            tracing::warn!("a finished task is not kept: {problem}");
        }
    }

    /// Loads everything; the node's tasks, to be told of when that is done. They are asked for first: one
    /// that has ended by then changed nothing that was not loaded.
    async fn load_with_tasks(&self) -> Result<Vec<Task>, Problem> {
        let tasks = self.node.list("/v1/tasks").await?;
        self.load().await?;
        Ok(tasks)
    }

    async fn load(&self) -> Result<(), Problem> {
        let (datastores, volumes, snapshots, templates, alarms) = tokio::try_join!(
            self.node.list::<Datastore>("/v1/datastores"),
            self.node.list("/v1/volumes"),
            self.node.list("/v1/snapshots"),
            self.node.list("/v1/templates"),
            self.node.list("/v1/alarms"),
        )?;
        self.remember(&datastores).await?;
        let mut all = datastores;
        all.extend(self.missing(&all));
        for datastore in &mut all {
            datastore.policy = policy::of(&self.inventory, datastore.id);
        }
        policy::watch(&self.index, &all);
        self.index.replace(Lists { datastores: all, volumes, snapshots, templates, alarms });
        Ok(())
    }

    /// Writes down datastores that are new to the inventory, or changed name or place.
    async fn remember(&self, datastores: &[Datastore]) -> Result<(), Problem> {
        let mut writes = Vec::new();
        for datastore in datastores {
            if self.is_remembered(datastore)? {
                continue;
            }
            let (key, body) = remembered(datastore)?;
            let known = self.inventory.get(&key);
            let expected = known.map_or(Expected::Absent, |k| Expected::Revision(k.revision));
            writes.push(Write { key, expected, body: Some(body) });
        }
        if !writes.is_empty() {
            self.inventory.commit(writes).await?;
        }
        Ok(())
    }

    fn is_remembered(&self, datastore: &Datastore) -> Result<bool, Problem> {
        let (key, body) = remembered(datastore)?;
        Ok(self.inventory.get(&key).is_some_and(|known| known.body == body))
    }

    /// Datastores that belong here and that the node does not have.
    fn missing(&self, listed: &[Datastore]) -> Vec<Datastore> {
        self.inventory
            .with_prefix(PREFIX)
            .into_iter()
            .filter_map(|(key, document)| {
                let id = Uuid::parse_str(key.strip_prefix(PREFIX)?).ok()?;
                if listed.iter().any(|d| d.id == id) {
                    return None;
                }
                let was: Remembered = serde_json::from_value(document.body).ok()?;
                Some(Datastore {
                    id,
                    state: DatastoreState::Abnormal,
                    state_reason: Some(format!(
                        "the node does not have it; if {} is in place: shale datastore create {} --dir {}",
                        was.path, was.name, was.path
                    )),
                    name: was.name,
                    kind: DatastoreKind::Dir,
                    path: was.path,
                    file_system: was.file_system,
                    space: Space::default(),
                    volumes: 0,
                    templates: 0,
                    snapshots: 0,
                    features: StoreFeatures::default(),
                    policy: policy::of(&self.inventory, id),
                    created: was.created,
                })
            })
            .collect()
    }
}

/// Notes an origin, and those below it: what only one clone held up may go in all of them.
fn relate_origins(known: &Known, origin: Option<&Origin>, related: &mut BTreeSet<Uuid>) {
    let (mut below, mut next) = (BTreeSet::new(), origin);
    // ends also where two name each other: each is noted once
    while let Some(origin) = next.filter(|origin| below.insert(origin.id)) {
        next = known.volumes.get(&origin.id).and_then(|volume| volume.origin.as_ref());
    }
    related.extend(below);
}

/// What the inventory has of a datastore, and where.
fn remembered(datastore: &Datastore) -> Result<(String, Value), Problem> {
    let body = serde_json::to_value(Remembered {
        name: datastore.name.clone(),
        path: datastore.path.clone(),
        file_system: datastore.file_system.clone(),
        created: datastore.created,
    });
    Ok((format!("{PREFIX}{}", datastore.id), body.map_err(crate::store::internal)?))
}

/// Takes a datastore out of the inventory after the node deleted it.
pub(crate) async fn forget(inventory: &Inventory, id: Uuid) -> Result<(), Problem> {
    let gone = |prefix| Write { key: format!("{prefix}{id}"), expected: Expected::Any, body: None };
    inventory.commit(vec![gone(PREFIX), gone(policy::PREFIX)]).await.map(drop)
}

fn node_alarm(problem: &Problem) -> Alarm {
    Alarm {
        id: NODE_ALARM,
        severity: Severity::Critical,
        code: "node-unavailable".into(),
        object: ObjectRef { kind: ObjectKind::Node, id: Uuid::nil(), name: "node".into() },
        message: problem.detail.clone(),
        hint: Some("`shale serve` starts it again; connected guests wait meanwhile".into()),
        since: now(),
    }
}
