//! A small pool of threads for system calls that may stall. Threads start when they are needed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use futures_channel::oneshot;

/// Threads at most: enough to keep a disk busy in the fall-back.
const MAX_THREADS: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pool. Dropping it lets the threads finish what is queued, and then end.
#[derive(Default)]
pub(super) struct Helpers(Arc<Shared>);

impl Helpers {
    /// Queues a job.
    pub(super) fn push(&self, job: Job) {
        let mut queue = self.0.lock();
        queue.jobs.push_back(job);
        if queue.jobs.len() > queue.idle && queue.threads < MAX_THREADS {
            let shared = Arc::clone(&self.0);
            let name = format!("io-helper-{}", queue.threads);
            match std::thread::Builder::new().name(name).spawn(move || serve(&shared)) {
                Ok(_runs_detached) => queue.threads += 1,
                Err(error) if queue.threads > 0 => {
                    tracing::warn!(%error, "no further helper thread; the others take the work");
                }
                // Without any helper the work is done here: slow, but never lost.
                Err(error) => {
                    tracing::warn!(%error, "no helper thread can be started");
                    let jobs: Vec<Job> = queue.jobs.drain(..).collect();
                    drop(queue);
                    jobs.into_iter().for_each(|job| job());
                    return;
                }
            }
        }
        drop(queue);
        self.0.changed.notify_one();
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

fn serve(shared: &Shared) {
    let mut queue = shared.lock();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = shared.lock();
        } else if queue.closed {
            return;
        } else {
            queue.idle += 1;
            queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

/// Runs `work` on a helper; a panic goes on in the caller.
pub(super) async fn run<T: Send + 'static>(
    helpers: &Helpers,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (tell, told) = oneshot::channel();
    helpers.push(Box::new(move || {
        // Nobody may be waiting any more.
        let _detached = tell.send(catch_unwind(AssertUnwindSafe(work))).is_err();
    }));
    match told.await.expect("a helper sends its result, whatever happens") {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    }
}
