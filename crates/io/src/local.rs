//! The local executor: every disk, socket and timer of a home thread runs as tasks of one thread.
//!
//! ```text
//!   wake on this thread ──────────► home queue (VecDeque, no lock) ──► run, first in first out
//!   wake from another thread ──► mutexed queue ──┘   + Unpark, only while the thread is parked
//!   nothing left to run ──► Park::park(until next timer): submits I/O, waits, completes
//! ```
//!
//! [`Park`] is the seam to the world: [`crate::Ring`] parks in the kernel, [`crate::sim::SimPark`]
//! jumps a virtual clock. Everything above runs unchanged on either.
//!
//! Invariants: tasks run in the order they became ready, so a run under the simulator is a function
//! of its seed. Futures are polled and dropped on the home thread only. The thread never spins.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use async_task::{FallibleTask, Runnable};

use crate::device::Io;

/// A moment on the clock that counts from boot and goes on through suspend (`CLOCK_BOOTTIME`), or
/// on the simulator's virtual clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootInstant(Duration);

impl BootInstant {
    /// The moment `since` after boot.
    #[must_use]
    pub const fn at(since: Duration) -> Self {
        Self(since)
    }

    /// The time from boot to this moment.
    #[must_use]
    pub const fn since_boot(self) -> Duration {
        self.0
    }
}

impl std::ops::Add<Duration> for BootInstant {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

/// Time from the right moment to the left one; zero where the right one is later.
impl std::ops::Sub for BootInstant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Ends a [`Park::park`] from another thread.
pub trait Unpark: Send + Sync {
    /// Makes the current or the next park return soon.
    fn unpark(&self);
}

/// What a thread does when it has nothing to run.
pub trait Park {
    /// The clock.
    fn now(&self) -> BootInstant;

    /// Submits what is queued, then waits for an I/O completion, an unpark or the moment `until`,
    /// whichever comes first. A moment already past means: collect what is ready, don't wait.
    fn park(&mut self, until: Option<BootInstant>);

    /// Ends parks from other threads.
    fn waker(&self) -> Arc<dyn Unpark>;
}

/// Tasks run between two looks at I/O, so that ready tasks cannot starve completions.
const BUDGET: usize = 256;

type Start = Box<dyn FnOnce(Local) -> Io<'static, ()> + Send>;

enum Message {
    Run(Runnable),
    Start(Start),
}

/// The half that wakers of any thread hold.
struct Shared {
    home: ThreadId,
    /// Ready tasks. Touched by the home thread only.
    ready: RefCell<VecDeque<Runnable>>,
    /// What other threads sent; None once the executor is gone.
    sent: Mutex<Option<Vec<Message>>>,
    /// `sent` is not empty.
    has_sent: AtomicBool,
    /// The home thread is parked or about to: whoever sends must unpark it.
    parked: AtomicBool,
    unpark: Arc<dyn Unpark>,
}

// SAFETY: `ready` is the only field that is not thread-safe; each access checks that it runs on the
// home thread (`on_home`), or comes from `Home`, which is !Send and was made there.
#[expect(unsafe_code, reason = "the queue without a lock that only the home thread touches")]
unsafe impl Sync for Shared {}
// SAFETY: as above. On drop, `ready` is empty: the executor drained it and nothing enters after.
#[expect(unsafe_code, reason = "the queue without a lock that only the home thread touches")]
unsafe impl Send for Shared {}

impl Shared {
    fn on_home(&self) -> bool {
        thread::current().id() == self.home
    }

    fn schedule(&self, task: Runnable) {
        if self.on_home() {
            self.ready.borrow_mut().push_back(task);
        } else {
            self.send(Message::Run(task));
        }
    }

    fn send(&self, message: Message) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = sent.as_mut() else {
            drop(sent);
            // The executor is gone, and with it the task's future; what is left of the task may not
            // be dropped here if its future still stands, so it is left alone.
            if let Message::Run(task) = message {
                let _leaked = ManuallyDrop::new(task);
            }
            return;
        };
        queue.push(message);
        drop(sent);
        // Sequential consistency on both sides: either we see `parked`, or the home thread sees
        // `has_sent` before it parks.
        self.has_sent.store(true, Ordering::SeqCst);
        if self.parked.swap(false, Ordering::SeqCst) {
            self.unpark.unpark();
        }
    }
}

/// Tells `block_on` that its own future may go on.
struct MainWaker {
    shared: Arc<Shared>,
    woken: AtomicBool,
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::SeqCst)
            && !self.shared.on_home()
            && self.shared.parked.swap(false, Ordering::SeqCst)
        {
            self.shared.unpark.unpark();
        }
    }
}

/// The half that stays on the home thread.
struct Home {
    shared: Arc<Shared>,
    park: RefCell<Box<dyn Park>>,
    timers: RefCell<BTreeMap<(BootInstant, u64), Waker>>,
    next_timer: Cell<u64>,
    tasks: RefCell<Tasks>,
    halted: Cell<bool>,
}

/// Wakers of all unfinished tasks, so that the executor can drop them when it goes.
#[derive(Default)]
struct Tasks {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Tasks {
    fn vacant(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.wakers.push(None);
            self.wakers.len() - 1
        })
    }
}

/// Removes a task from the list when its future is dropped.
struct Listed {
    home: Rc<Home>,
    index: usize,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut tasks = self.home.tasks.borrow_mut();
        tasks.free.push(self.index);
        let waker = tasks.wakers[self.index].take();
        drop(tasks);
        drop(waker);
    }
}

/// Runs the tasks of one thread. Dropping it drops every unfinished task.
pub struct Executor {
    local: Local,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("home", &self.local.0.shared.home).finish_non_exhaustive()
    }
}

impl Executor {
    /// An executor for the calling thread.
    #[must_use]
    pub fn new(park: Box<dyn Park>) -> Self {
        let shared = Arc::new(Shared {
            home: thread::current().id(),
            ready: RefCell::default(),
            sent: Mutex::new(Some(Vec::new())),
            has_sent: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            unpark: park.waker(),
        });
        Self {
            local: Local(Rc::new(Home {
                shared,
                park: RefCell::new(park),
                timers: RefCell::default(),
                next_timer: Cell::new(0),
                tasks: RefCell::default(),
                halted: Cell::new(false),
            })),
        }
    }

    /// The handle that tasks use.
    #[must_use]
    pub fn local(&self) -> Local {
        self.local.clone()
    }

    /// Runs `future` and all spawned tasks until `future` is ready. Tasks that are not done stay,
    /// and go on at the next call.
    ///
    /// # Panics
    /// If a task halted the executor ([`Local::halt`]): then [`Executor::run_until_halt`] is meant.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.run_until_halt(future).expect("block_on: a task halted the executor")
    }

    /// Like [`Executor::block_on`], but returns None as soon as a task called [`Local::halt`]:
    /// nothing runs after that.
    pub fn run_until_halt<F: Future>(&self, future: F) -> Option<F::Output> {
        let home = &*self.local.0;
        let mut future = pin!(future);
        let main =
            Arc::new(MainWaker { shared: Arc::clone(&home.shared), woken: AtomicBool::new(true) });
        let waker = Waker::from(Arc::clone(&main));
        let mut context = Context::from_waker(&waker);
        loop {
            if home.halted.get() {
                return None;
            }
            if main.woken.swap(false, Ordering::SeqCst)
                && let Poll::Ready(output) = future.as_mut().poll(&mut context)
            {
                return Some(output);
            }
            self.take_sent();
            let ran_out = home.run_ready();
            if home.halted.get() {
                return None;
            }
            let idle = ran_out && !main.woken.load(Ordering::SeqCst);
            home.park_once(idle, &main.woken);
        }
    }

    fn take_sent(&self) {
        let shared = &self.local.0.shared;
        if !shared.has_sent.swap(false, Ordering::SeqCst) {
            return;
        }
        let messages = {
            let mut sent = shared.sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.as_mut().map(std::mem::take).unwrap_or_default()
        };
        for message in messages {
            match message {
                Message::Run(task) => shared.ready.borrow_mut().push_back(task),
                Message::Start(start) => drop(self.local.spawn(start(self.local.clone()))),
            }
        }
    }
}

impl Home {
    /// Runs ready tasks within the budget; true if none is left.
    fn run_ready(&self) -> bool {
        for _ in 0..BUDGET {
            let Some(task) = self.shared.ready.borrow_mut().pop_front() else { return true };
            task.run();
            if self.halted.get() {
                return false;
            }
        }
        self.shared.ready.borrow().is_empty()
    }

    /// Parks (when `idle`) or only looks at I/O, then wakes due timers.
    fn park_once(&self, idle: bool, main_woken: &AtomicBool) {
        let next = self.timers.borrow().first_key_value().map(|((at, _), _)| *at);
        let past = Some(BootInstant::default());
        if idle {
            self.shared.parked.store(true, Ordering::SeqCst);
            let missed =
                self.shared.has_sent.load(Ordering::SeqCst) || main_woken.load(Ordering::SeqCst);
            self.park.borrow_mut().park(if missed { past } else { next });
            self.shared.parked.store(false, Ordering::SeqCst);
        } else {
            self.park.borrow_mut().park(past);
        }
        if next.is_some() {
            self.wake_due();
        }
    }

    fn wake_due(&self) {
        let now = self.park.borrow().now();
        loop {
            let waker = {
                let mut timers = self.timers.borrow_mut();
                match timers.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            waker.wake();
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let home = &*self.local.0;
        // Dropping a future may wake, spawn or drop others: go on until nothing is left.
        loop {
            let wakers: Vec<Waker> =
                home.tasks.borrow_mut().wakers.iter_mut().filter_map(Option::take).collect();
            let sent = {
                let mut sent = home.shared.sent.lock().unwrap_or_else(PoisonError::into_inner);
                sent.as_mut().map(std::mem::take).unwrap_or_default()
            };
            let done = wakers.is_empty() && sent.is_empty();
            wakers.into_iter().for_each(Waker::wake);
            drop(sent);
            let done = done && home.shared.ready.borrow().is_empty();
            loop {
                let Some(task) = home.shared.ready.borrow_mut().pop_front() else { break };
                drop(task);
            }
            if done {
                break;
            }
        }
        let rest = home.shared.sent.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(rest);
        drop(std::mem::take(&mut *home.timers.borrow_mut()));
    }
}

/// Handle of the executor for tasks of its thread.
#[derive(Clone)]
pub struct Local(Rc<Home>);

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("home", &self.0.shared.home).finish_non_exhaustive()
    }
}

impl Local {
    /// Starts a task. It runs whether or not its [`Task`] is kept or awaited.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let index = self.0.tasks.borrow_mut().vacant();
        let listed = Listed { home: Rc::clone(&self.0), index };
        let shared = Arc::clone(&self.0.shared);
        let (task, handle) = async_task::spawn_local(
            async move {
                let _listed = listed;
                future.await
            },
            move |task| shared.schedule(task),
        );
        self.0.tasks.borrow_mut().wakers[index] = Some(task.waker());
        task.schedule();
        Task(Some(handle.fallible()))
    }

    /// The clock.
    #[must_use]
    pub fn now(&self) -> BootInstant {
        self.0.park.borrow().now()
    }

    /// Ready at the moment `until`, never before.
    #[must_use]
    pub fn sleep_until(&self, until: BootInstant) -> Sleep {
        Sleep { local: self.clone(), until, registered: None }
    }

    /// Ready when `time` has passed.
    #[must_use]
    pub fn sleep(&self, time: Duration) -> Sleep {
        self.sleep_until(self.now() + time)
    }

    /// Lets every other task that is ready run first: for long work that awaits nothing else.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// A handle for other threads.
    #[must_use]
    pub fn remote(&self) -> Remote {
        Remote(Arc::clone(&self.0.shared))
    }

    /// Stops the executor where it stands: once the running task yields, no task is polled any more
    /// and [`Executor::run_until_halt`] returns None. For harnesses that end a simulated world.
    pub fn halt(&self) {
        self.0.halted.set(true);
    }
}

/// Handle of the executor for other threads.
#[derive(Clone)]
pub struct Remote(Arc<Shared>);

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("home", &self.0.home).finish_non_exhaustive()
    }
}

impl Remote {
    /// Runs `start` on the executor's thread and the future it returns as a task. When the executor
    /// is gone, `start` is dropped unrun: a channel it holds tells its other end.
    pub fn spawn(&self, start: impl FnOnce(Local) -> Io<'static, ()> + Send + 'static) {
        self.0.send(Message::Start(Box::new(start)));
    }
}

/// A spawned task's result. Dropping it detaches the task, which runs on.
pub struct Task<T>(Option<FallibleTask<T>>);

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}

impl<T> Task<T> {
    /// Drops the task's future where it stands, as soon as it is not running. What it handed to a
    /// device goes on without it.
    pub fn abort(mut self) {
        drop(self.0.take());
    }

    /// Whether the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.0.as_ref().is_none_or(FallibleTask::is_finished)
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let task = self.0.as_mut().expect("a task is only emptied by its drop");
        match Pin::new(task).poll(context) {
            Poll::Ready(Some(output)) => Poll::Ready(output),
            // None: the executor was dropped under the task; there is nobody left to go on.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

/// Future of [`Local::sleep_until`].
pub struct Sleep {
    local: Local,
    until: BootInstant,
    registered: Option<u64>,
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.local.now() >= self.until {
            return Poll::Ready(());
        }
        let home = Rc::clone(&self.local.0);
        let number = self.registered.unwrap_or_else(|| {
            let number = home.next_timer.get();
            home.next_timer.set(number + 1);
            number
        });
        self.registered = Some(number);
        let old = home.timers.borrow_mut().insert((self.until, number), context.waker().clone());
        drop(old);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.registered {
            let waker = self.local.0.timers.borrow_mut().remove(&(self.until, number));
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests;
