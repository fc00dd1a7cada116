//! Runs schedules: waits for the next moment or a change of a schedule, has the node make the snapshot
//! and delete what is no longer kept, and raises an alarm for as long as that does not work.
//!
//! ```text
//!   index (volumes with schedules) ──► due? ──no──► wait: timer │ change │ a run that ended
//!                                       │ yes
//!                                       └──► one job a volume: delete surplus, snapshot, delete surplus
//! ```
//!
//! A volume that is out of sight because its datastore is gone stays known here: its runs fail and say
//! so, until it comes back or is deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::Method;
use model::{
    Alarm, Change, Code, DatastoreState, ObjectKind, ObjectRef, Problem, Rule, RunSchedule,
    Schedule, Severity, Task, TaskState, Timestamp, Uuid, Volume,
};
use serde::Serialize;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinSet;

use super::{WallClock, due, made_for, name_of, surplus, upcoming};
use crate::hub::now;
use crate::index::{Entity as _, Index, Known, alarm_id};
use crate::node::NodeClient;
use crate::sync::Refresher;

/// After a run that failed, the next try.
const RETRY_MS: u64 = 5 * 60_000;
/// One look at a task; merges may take hours.
const LOOK: std::time::Duration = std::time::Duration::from_secs(3600);

/// A run that was not made.
const FAILED: &str = "snapshot-schedule-failed";
/// A snapshot that a schedule would delete and cannot.
const KEPT: &str = "snapshot-schedule-kept";

/// What runs schedules.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    pub(crate) index: Arc<Index>,
    pub(crate) node: NodeClient,
    pub(crate) refresher: Refresher,
    pub(crate) clock: Arc<dyn WallClock>,
}

/// A run that failed: it is tried again after a while, or when its schedule is another.
#[derive(Debug)]
struct Failed {
    at: Timestamp,
    schedule: Schedule,
}

/// How a job ended.
#[derive(Debug)]
struct Ended {
    volume: Volume,
    rules: Vec<Rule>,
    made: Result<(), Problem>,
    /// Snapshots that should have gone, in sentences.
    kept: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    /// Volumes with schedules.
    volumes: BTreeMap<Uuid, Volume>,
    failed: BTreeMap<Uuid, Failed>,
    /// Volumes that a job works on.
    working: BTreeMap<Uuid, tokio::task::Id>,
}

impl Driver {
    /// Runs until it is dropped or the runtime ends.
    pub(crate) async fn run(self) {
        let mut state = State::default();
        let mut jobs: JoinSet<Ended> = JoinSet::new();
        let (_, mut news) = self.index.hub().listen(None);
        loop {
            let gone = state.look(&self.index.read());
            gone.into_iter().for_each(|volume| self.all_is_well(volume));
            let wake = self.start_due(&mut state, &mut jobs);
            let timer = async {
                match wake {
                    Some(at) => self.clock.until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(timer);
            loop {
                tokio::select! {
                    () = &mut timer => break,
                    Some(ended) = jobs.join_next() => {
                        match ended {
                            Ok(ended) => self.settle(&mut state, ended),
                            Err(error) => {
                                tracing::error!(%error, "a scheduled run ended early");
                                state.working.retain(|_, job| *job != error.id());
                            }
                        }
                        break;
                    }
                    event = news.recv() => {
                        let mut told = match event {
                            Ok(event) => state.concerns(&event.change),
                            Err(RecvError::Lagged(_)) => true,
                            Err(RecvError::Closed) => return,
                        };
                        // those that are there already: one look serves all of them
                        loop {
                            match news.try_recv() {
                                Ok(event) => told |= state.concerns(&event.change),
                                Err(TryRecvError::Lagged(_)) => told = true,
                                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                            }
                        }
                        if told {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Begins a job for every volume that is due; when the next one will be.
    fn start_due(&self, state: &mut State, jobs: &mut JoinSet<Ended>) -> Option<Timestamp> {
        let (now, zone) = (self.clock.now(), self.clock.zone());
        let mut wake: Option<Timestamp> = None;
        let mut at = |moment: Timestamp| wake = Some(wake.map_or(moment, |w| w.min(moment)));
        for volume in state.volumes.values() {
            let Some(schedule) = &volume.schedule else { continue };
            if state.working.contains_key(&volume.id) {
                continue;
            }
            let rules = due(schedule, now, &zone);
            let waits = state.failed.get(&volume.id).and_then(|failed| failed.waits(schedule, now));
            match waits {
                _ if rules.is_empty() => {
                    if let Some(run) = upcoming(schedule, now, &zone, 1).first() {
                        at(run.at);
                    }
                }
                Some(until) => at(until),
                None => {
                    let job = self.clone().job(volume.clone(), rules);
                    state.working.insert(volume.id, jobs.spawn(job).id());
                }
            }
        }
        wake
    }

    async fn job(self, volume: Volume, rules: Vec<Rule>) -> Ended {
        // what an earlier run could not delete takes a place that this one may need
        self.prune(&volume).await;
        let made = self.make(&volume, &rules).await;
        let kept = if made.is_ok() { self.prune(&volume).await } else { Vec::new() };
        Ended { volume, rules, made, kept }
    }

    async fn make(&self, volume: &Volume, rules: &[Rule]) -> Result<(), Problem> {
        if !self.index.read().volumes.contains_key(&volume.id) {
            return Err(Problem::new(
                Code::NotFound,
                format!("Datastore '{}' is not available.", volume.datastore_name),
            )
            .hint(format!("see: shale datastore show {}", volume.datastore_name)));
        }
        let at = self.clock.now();
        let name = {
            let known = self.index.read();
            let of: Vec<&str> = known
                .snapshots
                .values()
                .filter(|s| s.volume == volume.id)
                .map(|s| s.name.as_str())
                .collect();
            name_of(rules, at, &self.clock.zone(), |name| of.contains(&name))
        };
        let name = name.ok_or_else(|| {
            Problem::new(Code::Internal, "The clock shows a time that no snapshot can be named by.")
        })?;
        let run = RunSchedule { name, rules: rules.to_vec(), at };
        let path = format!("/v1/volumes/{}/schedule/run", volume.id);
        self.perform(Method::POST, &path, Some(&run)).await
    }

    /// Deletes what the schedule, as it is now, no longer keeps; what could not be deleted.
    async fn prune(&self, volume: &Volume) -> Vec<String> {
        let gone = {
            let known = self.index.read();
            let schedule = known.volumes.get(&volume.id).and_then(|v| v.schedule.clone());
            let Some(schedule) = schedule else { return Vec::new() };
            let made = made_for(&known.snapshots, volume.id);
            surplus(&schedule, &made).into_iter().cloned().collect::<Vec<_>>()
        };
        let mut kept = Vec::new();
        for snapshot in gone {
            if snapshot.clones > 0 {
                kept.push(format!(
                    "snapshot '{}' has {} linked clones and stays until they are deleted",
                    snapshot.name, snapshot.clones
                ));
                continue;
            }
            let path = format!("/v1/volumes/{}/schedule/snapshots/{}", volume.id, snapshot.id);
            if let Err(problem) = self.perform(Method::DELETE, &path, None::<&()>).await {
                kept.push(format!(
                    "snapshot '{}' stays for now: {}",
                    snapshot.name, problem.detail
                ));
            }
        }
        kept
    }

    /// Has the node do something, to its end.
    async fn perform<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<(), Problem> {
        let mut task: Task = self.node.call(method, path, body).await?;
        if task.state.is_final() {
            if !self.index.task_told(task.id, crate::sync::TOLD).await {
                self.refresher.refresh().await;
            }
        } else {
            self.index.put_new_task(&task);
            while !task.state.is_final() {
                let seen = self.index.wait_task(task.id, LOOK).await;
                task = seen.ok_or_else(|| {
                    Problem::new(Code::NodeUnavailable, "The node no longer knows this task.")
                })?;
            }
        }
        match (task.state, task.error) {
            (TaskState::Success, _) => Ok(()),
            (_, Some(problem)) => Err(problem),
            (state, None) => Err(Problem::new(Code::Internal, format!("Its task is {state}."))),
        }
    }

    fn settle(&self, state: &mut State, ended: Ended) {
        let Ended { volume, rules, made, kept } = ended;
        state.working.remove(&volume.id);
        let rules: Vec<&str> = rules.iter().map(|rule| rule.as_str()).collect();
        match made {
            Ok(()) => {
                state.failed.remove(&volume.id);
                self.index.clear_own(alarm_id(FAILED, volume.id));
            }
            Err(problem) => {
                // deleted meanwhile, or its schedule was: then nothing is owed
                let known = self.index.read().volumes.get(&volume.id).cloned();
                if known.is_some_and(|known| known.schedule.is_none()) {
                    return;
                }
                let (at, zone) = (self.clock.now(), self.clock.zone());
                if let Some(schedule) = volume.schedule.clone() {
                    state.failed.insert(volume.id, Failed { at, schedule });
                }
                let message = format!(
                    "The {} snapshot of volume '{}' that was due could not be made at {}: {}",
                    rules.join(" and "),
                    volume.name,
                    super::local(at, &zone),
                    problem.detail
                );
                let hint = format!(
                    "{}; it is tried again every {} minutes",
                    advice(&problem, &volume),
                    RETRY_MS / 60_000
                );
                self.raise(FAILED, Severity::Warning, &volume, message, hint);
            }
        }
        if kept.is_empty() {
            self.index.clear_own(alarm_id(KEPT, volume.id));
        } else {
            let message = format!(
                "The schedule of volume '{}' keeps more than it should: {}.",
                volume.name,
                kept.join("; ")
            );
            let hint = "delete the clones, or the snapshot once nothing needs it".to_owned();
            self.raise(KEPT, Severity::Info, &volume, message, hint);
        }
    }

    fn raise(
        &self,
        code: &'static str,
        severity: Severity,
        volume: &Volume,
        message: String,
        hint: String,
    ) {
        tracing::warn!(code, volume = %volume.name, message, "alarm");
        self.index.raise_own(Alarm {
            id: alarm_id(code, volume.id),
            severity,
            code: code.into(),
            object: ObjectRef {
                kind: ObjectKind::Volume,
                id: volume.id,
                name: volume.name.to_string(),
            },
            message,
            hint: Some(hint),
            since: now(),
        });
    }

    fn all_is_well(&self, volume: Uuid) {
        self.index.clear_own(alarm_id(FAILED, volume));
        self.index.clear_own(alarm_id(KEPT, volume));
    }
}

impl Failed {
    /// Until when it is left alone. Not longer than a wait, whatever became of the clock.
    fn waits(&self, schedule: &Schedule, now: Timestamp) -> Option<Timestamp> {
        let again = self.at.unix_ms().saturating_add(RETRY_MS);
        let waiting = self.at <= now && now.unix_ms() < again && self.schedule == *schedule;
        waiting.then_some(Timestamp::from_unix_ms(again))
    }
}

impl State {
    /// Takes in what is known of volumes; those that have no schedule any more.
    fn look(&mut self, known: &Known) -> Vec<Uuid> {
        let mut gone = Vec::new();
        self.volumes.retain(|id, volume| {
            let stays = match known.volumes.get(id) {
                Some(now) => now.schedule.is_some(),
                // deleted, unless its whole datastore is out of sight
                None => known
                    .datastores
                    .get(&volume.datastore)
                    .is_some_and(|store| store.state != DatastoreState::Normal),
            };
            if !stays {
                gone.push(*id);
            }
            stays
        });
        for volume in known.volumes.values().filter(|volume| volume.schedule.is_some()) {
            let before = self.volumes.insert(volume.id, volume.clone());
            // another policy: what was said of the old one is over
            let failed = self.failed.get(&volume.id);
            if before.is_some()
                && failed.is_some_and(|f| Some(&f.schedule) != volume.schedule.as_ref())
            {
                self.failed.remove(&volume.id);
                gone.push(volume.id);
            }
        }
        for id in &gone {
            self.failed.remove(id);
        }
        gone
    }

    /// Whether a change may mean that something is due, or no longer.
    fn concerns(&self, change: &Change) -> bool {
        match change {
            Change::Resync => true,
            Change::Volume(volume) => {
                let known = self.volumes.get(&volume.id).and_then(|known| known.schedule.as_ref());
                known != volume.schedule.as_ref()
            }
            // a volume, or the whole datastore
            Change::Removed(object) => {
                let gone = object.id;
                self.volumes.values().any(|v| v.id == gone || v.datastore == gone)
            }
            Change::Datastore(store) => self.volumes.values().any(|v| v.datastore == store.id()),
            Change::Snapshot(_)
            | Change::Template(_)
            | Change::Task(_)
            | Change::Alarm(_)
            | Change::AlarmCleared(_) => false,
        }
    }
}

/// What stands against a volume's schedule now, in a sentence.
pub(crate) fn trouble_of(known: &Known, volume: Uuid) -> Option<String> {
    let alarm = |code| known.alarms.get(&alarm_id(code, volume));
    alarm(FAILED).or_else(|| alarm(KEPT)).map(|alarm| alarm.message.clone())
}

/// What to do about a run that failed.
fn advice(problem: &Problem, volume: &Volume) -> String {
    if problem.code == Code::SnapshotLimit {
        return format!(
            "deleted snapshots of a connected volume keep their places until they are merged: shut its \
             guest down and run `shale volume disconnect {}`, delete snapshots that are not needed, or \
             keep fewer",
            volume.name
        );
    }
    problem.hint.clone().unwrap_or_else(|| match problem.code {
        Code::NoSpace => "free space on the datastore, or enlarge it".into(),
        Code::Busy => "wait for the task that works on the volume: shale task list".into(),
        _ => format!("look at the volume: shale volume show {}", volume.name),
    })
}
