//! Tasks: every mutation is one. The registry outlives the request that began it; finished tasks
//! are kept for a while so that a client that lost its connection can still learn the outcome.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{Change, Code, ObjectRef, Operation, Problem, Size, Task, TaskOrigin, TaskState};
use tokio::sync::watch;
use uuid::Uuid;

use crate::events::{Events, now};

/// Finished tasks that are kept.
const HISTORY: usize = 1000;
/// Progress is told at most this often; the state always.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What a mutation is about, for people and for filters.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) operation: Operation,
    /// What it works on.
    pub(crate) object: ObjectRef,
    /// What began it, where that was no caller.
    pub(crate) origin: Option<TaskOrigin>,
}

impl About {
    pub(crate) fn new(operation: Operation, object: ObjectRef) -> Self {
        Self { operation, object, origin: None }
    }

    /// Begun by a schedule.
    pub(crate) fn scheduled(self) -> Self {
        Self { origin: Some(TaskOrigin::Schedule), ..self }
    }
}

struct Entry {
    task: Task,
    cancel: Arc<AtomicBool>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Uuid, Entry>,
    /// All tasks, oldest first.
    order: VecDeque<Uuid>,
    finished: usize,
}

/// All tasks of this node. Shared by all threads; the lock is never held across an await.
pub(crate) struct Tasks {
    inner: Mutex<Inner>,
    events: Events,
    /// Counts changes, for those who wait for an outcome.
    changes: watch::Sender<u64>,
}

impl Tasks {
    pub(crate) fn new(events: Events) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), events, changes: watch::Sender::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is made in one step, so what a panicking thread left is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a task in state `waiting`.
    pub(crate) fn begin(self: &Arc<Self>, about: About) -> Progress {
        let id = Uuid::now_v7();
        let task = Task {
            id,
            state: TaskState::Waiting,
            operation: about.operation,
            object: about.object,
            origin: about.origin,
            phase: None,
            percent: 0,
            bytes_done: Size::from_bytes(0),
            bytes_total: Size::from_bytes(0),
            rate: Size::from_bytes(0),
            cancellable: is_long(about.operation),
            error: None,
            result: None,
            created: now(),
            finished: None,
        };
        let cancel = Arc::new(AtomicBool::new(false));
        {
            let mut inner = self.lock();
            inner.entries.insert(id, Entry { task: task.clone(), cancel: Arc::clone(&cancel) });
            inner.order.push_back(id);
        }
        self.tell(&task);
        Progress {
            tasks: Arc::clone(self),
            id,
            cancel,
            told: Mutex::new(None),
            phase: Mutex::new(Counting { name: "working", total: 0, began: Instant::now() }),
        }
    }

    /// All tasks, oldest first.
    pub(crate) fn list(&self) -> Vec<Task> {
        let inner = self.lock();
        inner.order.iter().filter_map(|id| inner.entries.get(id)).map(|e| e.task.clone()).collect()
    }

    pub(crate) fn get(&self, id: Uuid) -> Option<Task> {
        self.lock().entries.get(&id).map(|entry| entry.task.clone())
    }

    /// Asks a task to end early. It does so at its next safe point, or not at all where it can only
    /// go forward. None where there is no such task.
    pub(crate) fn cancel(&self, id: Uuid) -> Option<Task> {
        let task = {
            let mut inner = self.lock();
            let entry = inner.entries.get_mut(&id)?;
            if entry.task.state.is_final() || !entry.task.cancellable {
                return Some(entry.task.clone());
            }
            entry.cancel.store(true, Ordering::Relaxed);
            entry.task.state = TaskState::Cancelling;
            entry.task.clone()
        };
        self.tell(&task);
        Some(task)
    }

    /// Asks every task to end early.
    pub(crate) fn cancel_all(&self) {
        self.lock().entries.values().for_each(|entry| entry.cancel.store(true, Ordering::Relaxed));
    }

    /// The task when it has ended, or as it is after `limit`.
    pub(crate) async fn wait(&self, id: Uuid, limit: Duration) -> Option<Task> {
        let mut changes = self.changes.subscribe();
        // one that is too far off to be told is none
        let until = tokio::time::Instant::now().checked_add(limit);
        loop {
            let task = self.get(id)?;
            if task.state.is_final() {
                return Some(task);
            }
            let changed = async {
                match until {
                    Some(until) => tokio::time::timeout_at(until, changes.changed()).await,
                    None => Ok(changes.changed().await),
                }
            };
            match changed.await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return self.get(id),
            }
        }
    }

    fn update(&self, id: Uuid, change: impl FnOnce(&mut Task)) -> Option<Task> {
        let mut inner = self.lock();
        let task = &mut inner.entries.get_mut(&id)?.task;
        let was_finished = task.finished.is_some();
        change(task);
        let task = task.clone();
        if task.finished.is_some() && !was_finished {
            inner.finished += 1;
            inner.forget_oldest();
        }
        Some(task)
    }

    fn tell(&self, task: &Task) {
        self.events.tell(Change::Task(task.clone()));
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

impl Inner {
    fn forget_oldest(&mut self) {
        let mut at = 0;
        while self.finished > HISTORY && at < self.order.len() {
            let done = |e: &Entry| e.task.finished.is_some();
            if self.entries.get(&self.order[at]).is_some_and(done) {
                if let Some(id) = self.order.remove(at) {
                    self.entries.remove(&id);
                    self.finished -= 1;
                }
            } else {
                at += 1;
            }
        }
    }
}

/// The running side of a task. Dropped without an outcome, the task says that it was interrupted.
pub(crate) struct Progress {
    tasks: Arc<Tasks>,
    id: Uuid,
    cancel: Arc<AtomicBool>,
    told: Mutex<Option<Instant>>,
    phase: Mutex<Counting>,
}

/// The phase whose bytes are counted.
struct Counting {
    name: &'static str,
    total: u64,
    began: Instant,
}

/// What the catalog tells of a long operation.
impl catalog::Progress for Progress {
    fn phase(&self, name: &'static str, total_bytes: u64) {
        *self.counting() = Counting { name, total: total_bytes, began: Instant::now() };
        self.bytes(0);
    }

    fn advance(&self, done_bytes: u64) {
        self.bytes(done_bytes);
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

impl Progress {
    fn counting(&self) -> MutexGuard<'_, Counting> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn id(&self) -> Uuid {
        self.id
    }

    pub(crate) fn task(&self) -> Task {
        self.tasks.get(self.id).expect("an unfinished task is not forgotten")
    }

    pub(crate) fn running(&self, phase: &str) {
        if let Some(task) = self.tasks.update(self.id, |task| work_on(task, phase)) {
            self.tasks.tell(&task);
        }
    }

    fn bytes(&self, done: u64) {
        let (phase, total, elapsed) = {
            let counting = self.counting();
            (counting.name, counting.total, counting.began.elapsed().as_millis().max(1))
        };
        let task = self.tasks.update(self.id, |task| {
            work_on(task, phase);
            task.bytes_done = Size::from_bytes(done);
            task.bytes_total = Size::from_bytes(total);
            task.percent = percent(done, total);
            let rate = u64::try_from(u128::from(done) * 1000 / elapsed).unwrap_or(u64::MAX);
            task.rate = Size::from_bytes(rate);
        });
        let now = Instant::now();
        let due = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let due = told.is_none_or(|at| now.duration_since(at) >= TELL_EVERY);
            if due {
                *told = Some(now);
            }
            due
        };
        if let (Some(task), true) = (task, due) {
            self.tasks.tell(&task);
        }
    }

    /// Ends the task; only the first outcome counts.
    pub(crate) fn finish(&self, outcome: Result<serde_json::Value, Problem>) {
        let cancelled = self.cancel.load(Ordering::Relaxed);
        let mut first = true;
        let task = self.tasks.update(self.id, |task| {
            if task.finished.is_some() {
                first = false;
                return;
            }
            task.finished = Some(now());
            task.cancellable = false;
            match outcome {
                Ok(result) => {
                    task.state = TaskState::Success;
                    task.percent = 100;
                    task.result = (!result.is_null()).then_some(result);
                }
                Err(problem) => {
                    let gave_up = cancelled && problem.code == Code::Cancelled;
                    task.state = if gave_up { TaskState::Cancelled } else { TaskState::Failed };
                    task.error = Some(problem);
                }
            }
        });
        if let (Some(task), true) = (task, first) {
            self.tasks.tell(&task);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish(Err(crate::problem::interrupted()));
    }
}

fn work_on(task: &mut Task, phase: &str) {
    if task.state == TaskState::Waiting {
        task.state = TaskState::Running;
    }
    if task.phase.as_deref() != Some(phase) {
        task.phase = Some(phase.to_owned());
    }
}

/// Operations that move bytes can end early; the others are over before anyone could ask.
fn is_long(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::VolumeCopy
            | Operation::VolumeImport
            | Operation::VolumeExport
            | Operation::VolumeCreate
            | Operation::SnapshotDelete
            | Operation::TemplateDeploy
            | Operation::TemplateCreate
            | Operation::DatastoreCheck
    )
}

fn percent(done: u64, total: u64) -> u8 {
    if total == 0 {
        return 0;
    }
    u8::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{About, HISTORY, Tasks};
    use crate::events::Events;
    use catalog::Progress as _;
    use model::{Code, ObjectKind, ObjectRef, Operation, Problem, TaskState, Uuid};
    use serde_json::{Value, json};

    fn about(operation: Operation) -> About {
        let object = ObjectRef { kind: ObjectKind::Volume, id: Uuid::nil(), name: "v".into() };
        About::new(operation, object)
    }

    #[test]
    fn outcomes() {
        let tasks = Tasks::new(Events::new());
        let progress = tasks.begin(about(Operation::VolumeCopy));
        let id = progress.id();
        progress.phase("copying", 200);
        progress.advance(50);
        let task = tasks.get(id).unwrap();
        assert_eq!((task.state, task.percent), (TaskState::Running, 25));
        assert_eq!(tasks.cancel(id).unwrap().state, TaskState::Cancelling);
        assert!(progress.cancelled());
        progress.finish(Err(Problem::new(Code::Cancelled, "cancelled")));
        assert_eq!(tasks.get(id).unwrap().state, TaskState::Cancelled);

        let progress = tasks.begin(about(Operation::VolumeRename));
        let id = progress.id();
        assert_eq!(tasks.cancel(id).unwrap().state, TaskState::Waiting, "over too soon to cancel");
        assert!(!progress.cancelled());
        progress.finish(Ok(json!({"x": 1})));
        let task = tasks.get(id).unwrap();
        assert_eq!((task.state, task.result), (TaskState::Success, Some(json!({"x": 1}))));

        let dropped = tasks.begin(about(Operation::VolumeRename)).id();
        assert_eq!(tasks.get(dropped).unwrap().error.unwrap().code, Code::Internal);
    }

    #[test]
    fn history_is_bounded_and_keeps_what_runs() {
        let tasks = Tasks::new(Events::new());
        let running = tasks.begin(about(Operation::VolumeCopy));
        for _ in 0..HISTORY + 10 {
            tasks.begin(about(Operation::VolumeRename)).finish(Ok(Value::Null));
        }
        assert_eq!(tasks.list().len(), HISTORY + 1);
        assert!(tasks.get(running.id()).is_some());
    }

    #[tokio::test]
    async fn waiting_ends_with_the_task() {
        let tasks = Tasks::new(Events::new());
        let progress = tasks.begin(about(Operation::VolumeCopy));
        let id = progress.id();
        assert!(!tasks.wait(id, Duration::ZERO).await.unwrap().state.is_final());
        let (task, ()) = tokio::join!(tasks.wait(id, Duration::from_secs(60)), async {
            progress.finish(Ok(Value::Null));
        });
        assert_eq!(task.unwrap().state, TaskState::Success);
        assert!(tasks.wait(Uuid::nil(), Duration::ZERO).await.is_none());
    }
}
