//! The in-memory index: everything the node has, as every query of the API sees it.
//!
//! ```text
//!   node's lists ──replace──►┌───────┐──read──► handlers, metrics, console
//!   node's events ──apply───►│ index │
//!   answers with a task ────►└───┬───┘
//!                                └─► events (hub.rs), for each change exactly one
//! ```
//! One writer (sync.rs) loads and applies; handlers only add the tasks they were just given. The
//! lock is held for lookups and copies only, never across an await.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use model::{
    Alarm, Change, Code, Datastore, Name, NodeInfo, ObjectKind, ObjectRef, Problem, Reference,
    Snapshot, Task, TaskState, Template, Uuid, Volume,
};
use tokio::sync::watch;

use crate::hub::Hub;

/// Finished tasks that stay in memory; older ones are in the database only.
const FINISHED_KEPT: usize = 2000;

/// An indexed object.
pub(crate) trait Entity: Clone + PartialEq {
    const KIND: ObjectKind;
    fn id(&self) -> Uuid;
    fn name(&self) -> &Name;
    /// The datastore or volume that qualifies the name.
    fn within(&self) -> Option<&Name>;
    fn change(self) -> Change;
    fn all(known: &Known) -> &BTreeMap<Uuid, Self>;
    fn all_mut(known: &mut Known) -> &mut BTreeMap<Uuid, Self>;

    fn reference(&self) -> ObjectRef {
        ObjectRef { kind: Self::KIND, id: self.id(), name: self.name().to_string() }
    }
}

macro_rules! entity {
    ($type:ident, $field:ident, $within:expr) => {
        impl Entity for $type {
            const KIND: ObjectKind = ObjectKind::$type;
            fn id(&self) -> Uuid {
                self.id
            }
            fn name(&self) -> &Name {
                &self.name
            }
            fn within(&self) -> Option<&Name> {
                let within: fn(&Self) -> Option<&Name> = $within;
                within(self)
            }
            fn change(self) -> Change {
                Change::$type(self)
            }
            fn all(known: &Known) -> &BTreeMap<Uuid, Self> {
                &known.$field
            }
            fn all_mut(known: &mut Known) -> &mut BTreeMap<Uuid, Self> {
                &mut known.$field
            }
        }
    };
}
entity!(Datastore, datastores, |_| None);
entity!(Volume, volumes, |v| Some(&v.datastore_name));
entity!(Snapshot, snapshots, |s| Some(&s.volume_name));
entity!(Template, templates, |t| Some(&t.datastore_name));

/// What is known now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) datastores: BTreeMap<Uuid, Datastore>,
    pub(crate) volumes: BTreeMap<Uuid, Volume>,
    pub(crate) snapshots: BTreeMap<Uuid, Snapshot>,
    pub(crate) templates: BTreeMap<Uuid, Template>,
    pub(crate) tasks: BTreeMap<Uuid, Task>,
    pub(crate) alarms: BTreeMap<Uuid, Alarm>,
    /// Those of them that the controller raised itself: the node's list does not have them.
    own_alarms: BTreeMap<Uuid, Alarm>,
    /// The node that answers; none: it does not.
    pub(crate) node: Option<NodeInfo>,
}

/// Everything a node lists.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    pub(crate) datastores: Vec<Datastore>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) templates: Vec<Template>,
    pub(crate) alarms: Vec<Alarm>,
}

#[derive(Debug)]
pub(crate) struct Index {
    known: RwLock<Known>,
    hub: Hub,
    /// Counts changes of tasks and of the node, for those who wait.
    changed: watch::Sender<u64>,
}

impl Index {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { known: RwLock::default(), hub, changed: watch::Sender::new(0) }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    fn notify(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Who answers, or that nobody does.
    pub(crate) fn set_node(&self, node: Option<NodeInfo>) {
        self.write().node = node;
        self.notify();
    }

    /// Waits until a node answers, for as long as `limit`; whether one does.
    pub(crate) async fn node_ready(&self, limit: Duration) -> bool {
        let mut changed = self.changed.subscribe();
        let ready = async {
            while self.read().node.is_none() {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, ready).await.is_ok()
    }

    /// Takes the node's lists in place of what was known, and tells what is different.
    pub(crate) fn replace(&self, lists: Lists) {
        let mut known = self.write();
        self.swap(&mut known, lists.datastores);
        self.swap(&mut known, lists.volumes);
        self.swap(&mut known, lists.snapshots);
        self.swap(&mut known, lists.templates);
        let mut alarms: BTreeMap<_, _> = lists.alarms.into_iter().map(|a| (a.id, a)).collect();
        alarms.extend(known.own_alarms.clone());
        let over: Vec<Alarm> =
            known.alarms.values().filter(|a| !alarms.contains_key(&a.id)).cloned().collect();
        for alarm in over {
            self.hub.tell(Change::AlarmCleared(alarm));
        }
        for alarm in alarms.values() {
            if known.alarms.get(&alarm.id) != Some(alarm) {
                self.hub.tell(Change::Alarm(alarm.clone()));
            }
        }
        known.alarms = alarms;
    }

    fn swap<E: Entity>(&self, known: &mut Known, now: Vec<E>) {
        let now: BTreeMap<_, _> = now.into_iter().map(|e| (e.id(), e)).collect();
        let before = std::mem::take(E::all_mut(known));
        for (id, gone) in &before {
            if !now.contains_key(id) {
                self.hub.tell(Change::Removed(gone.reference()));
            }
        }
        for (id, entity) in &now {
            if before.get(id) != Some(entity) {
                self.hub.tell(entity.clone().change());
            }
        }
        *E::all_mut(known) = now;
    }

    /// Takes the node's list of one volume's snapshots in place of what was known of them.
    pub(crate) fn replace_snapshots(&self, volume: Uuid, now: Vec<Snapshot>) {
        let kept = now.iter().map(|snapshot| snapshot.id).collect();
        self.drop_snapshots(&mut self.write(), volume, &kept);
        now.into_iter().for_each(|snapshot| self.put(snapshot));
    }

    /// Takes out the snapshots of a volume that are not among `kept`.
    fn drop_snapshots(&self, known: &mut Known, volume: Uuid, kept: &BTreeSet<Uuid>) {
        let gone = |s: &&Snapshot| s.volume == volume && !kept.contains(&s.id);
        let gone: Vec<ObjectRef> =
            known.snapshots.values().filter(gone).map(Entity::reference).collect();
        for object in gone {
            known.snapshots.remove(&object.id);
            self.hub.tell(Change::Removed(object));
        }
    }

    /// Applies one change that the node told.
    pub(crate) fn apply(&self, change: Change) {
        match change {
            Change::Resync => {}
            Change::Datastore(object) => self.put(object),
            Change::Volume(object) => self.put(object),
            Change::Snapshot(object) => self.put(object),
            Change::Template(object) => self.put(object),
            Change::Task(task) => self.put_task(task),
            Change::Removed(object) => {
                let mut known = self.write();
                let removed = match object.kind {
                    ObjectKind::Datastore => known.datastores.remove(&object.id).is_some(),
                    ObjectKind::Volume => known.volumes.remove(&object.id).is_some(),
                    ObjectKind::Snapshot => known.snapshots.remove(&object.id).is_some(),
                    ObjectKind::Template => known.templates.remove(&object.id).is_some(),
                    ObjectKind::Task | ObjectKind::Token | ObjectKind::Node => false,
                };
                if removed {
                    // a template keeps the snapshots that it had as a volume
                    if matches!(object.kind, ObjectKind::Volume | ObjectKind::Template) {
                        self.drop_snapshots(&mut known, object.id, &BTreeSet::new());
                    }
                    self.hub.tell(Change::Removed(object));
                }
            }
            Change::Alarm(alarm) => {
                let mut known = self.write();
                if known.alarms.insert(alarm.id, alarm.clone()).as_ref() != Some(&alarm) {
                    self.hub.tell(Change::Alarm(alarm));
                }
            }
            Change::AlarmCleared(alarm) => {
                if self.write().alarms.remove(&alarm.id).is_some() {
                    self.hub.tell(Change::AlarmCleared(alarm));
                }
            }
        }
    }

    /// Raises an alarm of the controller's own, or changes it: it has stood since it was raised.
    pub(crate) fn raise_own(&self, mut alarm: Alarm) {
        {
            let mut known = self.write();
            if let Some(before) = known.own_alarms.get(&alarm.id) {
                alarm.since = before.since;
                if *before == alarm {
                    return;
                }
            }
            known.own_alarms.insert(alarm.id, alarm.clone());
        }
        self.apply(Change::Alarm(alarm));
    }

    /// Ends an alarm of the controller's own, if it stands.
    pub(crate) fn clear_own(&self, id: Uuid) {
        let cleared = self.write().own_alarms.remove(&id);
        if let Some(alarm) = cleared {
            self.apply(Change::AlarmCleared(alarm));
        }
    }

    fn put<E: Entity>(&self, object: E) {
        let mut known = self.write();
        let before = E::all_mut(&mut known).insert(object.id(), object.clone());
        if before.as_ref() != Some(&object) {
            self.hub.tell(object.change());
        }
    }

    /// Takes in a task; a finished one never goes back.
    pub(crate) fn put_task(&self, task: Task) {
        {
            let mut known = self.write();
            let before = known.tasks.get(&task.id);
            if before.is_some_and(|b| b.state.is_final() || *b == task) {
                return;
            }
            known.tasks.insert(task.id, task.clone());
            forget_oldest(&mut known.tasks);
            self.hub.tell(Change::Task(task));
        }
        self.notify();
    }

    /// Volumes that this task had for itself have none any more.
    pub(crate) fn release(&self, task: Uuid) {
        let mut known = self.write();
        for volume in known.volumes.values_mut().filter(|volume| volume.task == Some(task)) {
            volume.task = None;
            self.hub.tell(Change::Volume(volume.clone()));
        }
    }

    /// Takes in a task that was just begun, unless its events were faster.
    pub(crate) fn put_new_task(&self, task: &Task) {
        let known = self.read().tasks.contains_key(&task.id);
        if !known {
            self.put_task(task.clone());
        }
    }

    /// Puts finished tasks of earlier lives back, without telling.
    pub(crate) fn remember(&self, tasks: Vec<Task>) {
        self.write().tasks.extend(tasks.into_iter().map(|task| (task.id, task)));
    }

    /// Tasks that have not ended.
    pub(crate) fn unfinished(&self) -> BTreeSet<Uuid> {
        let known = self.read();
        known.tasks.values().filter(|task| !task.state.is_final()).map(|task| task.id).collect()
    }

    /// Ends those of `lost` that have not ended, which the node does not know: it was restarted under them.
    /// Those that ended.
    pub(crate) fn end_lost(&self, lost: &BTreeSet<Uuid>, now: model::Timestamp) -> Vec<Task> {
        let lost: Vec<Task> = {
            let known = self.read();
            let open = |task: &&Task| !task.state.is_final();
            lost.iter().filter_map(|id| known.tasks.get(id)).filter(open).cloned().collect()
        };
        lost.into_iter()
            .map(|mut task| {
                task.state = TaskState::Failed;
                task.cancellable = false;
                task.finished = Some(now);
                task.error = Some(
                    Problem::new(Code::NodeUnavailable, "The node was restarted during this task.")
                        .hint("the operation was finished or undone when it came back: look at the object"),
                );
                self.put_task(task.clone());
                task
            })
            .collect()
    }

    /// Waits until the end of a task is known, and with it all that it changed; whether it came within
    /// `limit`.
    pub(crate) async fn task_told(&self, id: Uuid, limit: Duration) -> bool {
        let mut changed = self.changed.subscribe();
        let told = async {
            while !self.read().tasks.get(&id).is_some_and(|task| task.state.is_final()) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, told).await.is_ok()
    }

    /// The task when it has ended, or as it is after `limit`.
    pub(crate) async fn wait_task(&self, id: Uuid, limit: Duration) -> Option<Task> {
        let mut changed = self.changed.subscribe();
        let until = tokio::time::Instant::now() + limit;
        loop {
            let task = self.read().tasks.get(&id).cloned()?;
            if task.state.is_final() {
                return Some(task);
            }
            match tokio::time::timeout_at(until, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Some(task),
            }
        }
    }

    /// The one object that `reference` means.
    pub(crate) fn find<E: Entity>(&self, reference: &Reference) -> Result<E, Problem> {
        let known = self.read();
        let all = E::all(&known);
        let found: Vec<&E> = match reference {
            Reference::Id(id) => all.get(id).into_iter().collect(),
            Reference::Name(name) => all.values().filter(|e| e.name() == name).collect(),
            Reference::Qualified { datastore, name } => {
                all.values().filter(|e| e.name() == name && e.within() == Some(datastore)).collect()
            }
        };
        match found.as_slice() {
            [] => Err(Problem::not_found(E::KIND, reference)),
            [one] => Ok((*one).clone()),
            several => {
                let full: Vec<String> = several
                    .iter()
                    .map(|e| match e.within() {
                        Some(within) => format!("{within}/{}", e.name()),
                        None => e.id().to_string(),
                    })
                    .collect();
                Err(Problem::new(
                    Code::AmbiguousName,
                    format!("{} {}s are named '{reference}'.", several.len(), E::KIND),
                )
                .hint(format!("say which: {}", full.join(", "))))
            }
        }
    }

    /// The snapshot of `volume` that `reference` means.
    pub(crate) fn find_snapshot(
        &self,
        volume: &Volume,
        reference: &Reference,
    ) -> Result<Snapshot, Problem> {
        let known = self.read();
        let text = reference.to_string();
        known
            .snapshots
            .values()
            .filter(|s| s.volume == volume.id)
            .find(|s| reference.id() == Some(s.id) || s.name.as_str() == text)
            .cloned()
            .ok_or_else(|| {
                Problem::new(
                    Code::NotFound,
                    format!("Volume '{}' has no snapshot '{reference}'.", volume.name),
                )
                .hint(format!("list them: shale snapshot list --volume {}", volume.name))
            })
    }
}

/// Identifies an alarm of the controller's own: one a code and object, the same over restarts.
pub(crate) fn alarm_id(code: &str, object: Uuid) -> Uuid {
    let salt = code.bytes().fold(0_u128, |salt, byte| salt.rotate_left(7) ^ u128::from(byte));
    Uuid::from_u128(object.as_u128() ^ salt)
}

fn forget_oldest(tasks: &mut BTreeMap<Uuid, Task>) {
    // a margin, so that the search for the oldest is rare
    if tasks.len() < FINISHED_KEPT + FINISHED_KEPT / 4 {
        return;
    }
    let mut finished: Vec<_> =
        tasks.values().filter(|t| t.state.is_final()).map(|t| (t.created, t.id)).collect();
    finished.sort_unstable();
    let surplus = finished.len().saturating_sub(FINISHED_KEPT);
    for (_, id) in finished.into_iter().take(surplus) {
        tasks.remove(&id);
    }
}
