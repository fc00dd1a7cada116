//! A thread that owns `!Send` state and runs jobs sent to it: the control thread and the home threads
//! are workers. Only handles and messages cross threads; what a worker owns never leaves it.

use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::thread::JoinHandle;

use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use io::Ring;

type Job<S> = Box<dyn FnOnce(Rc<S>) -> LocalBoxFuture<'static, ()> + Send>;

/// The thread ended: the node is going down.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the node is shutting down; connect to it again when it is back")]
pub(crate) struct Gone;

/// A handle to a worker with state `S`; any thread may hold one.
pub(crate) struct Worker<S: 'static> {
    name: &'static str,
    backend: &'static str,
    jobs: mpsc::UnboundedSender<Job<S>>,
}

impl<S> Clone for Worker<S> {
    fn clone(&self) -> Self {
        Self { name: self.name, backend: self.backend, jobs: self.jobs.clone() }
    }
}

impl<S> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({})", self.name)
    }
}

impl<S: 'static> Worker<S> {
    /// Starts a thread with a ring of its own. `init` makes the state on the thread; jobs sent
    /// meanwhile wait for it.
    pub(crate) fn start<F, Fut>(
        name: &'static str,
        init: F,
    ) -> std::io::Result<(Self, JoinHandle<()>)>
    where
        F: FnOnce(Ring) -> Fut + Send + 'static,
        Fut: Future<Output = Rc<S>> + 'static,
    {
        let (jobs, mut inbox) = mpsc::unbounded::<Job<S>>();
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let (executor, ring) = match Ring::start() {
                Ok(both) => both,
                Err(error) => {
                    started.send(Err(error)).expect("the starter waits for this");
                    return;
                }
            };
            started.send(Ok(ring.backend())).expect("the starter waits for this");
            let local = ring.local().clone();
            executor.block_on(async move {
                let state = init(ring).await;
                while let Some(job) = inbox.next().await {
                    drop(local.spawn(job(Rc::clone(&state))));
                }
            });
        })?;
        match start.recv() {
            Ok(Ok(backend)) => Ok((Self { name, backend, jobs }, thread)),
            Ok(Err(error)) => Err(std::io::Error::other(error)),
            Err(gone) => Err(std::io::Error::other(gone)),
        }
    }

    /// How the thread does I/O.
    pub(crate) fn backend(&self) -> &'static str {
        self.backend
    }

    /// Runs `job` on the thread and returns what it says.
    pub(crate) async fn call<T, F, Fut>(&self, job: F) -> Result<T, Gone>
    where
        F: FnOnce(Rc<S>) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.send(move |state| async move {
            // The caller may have gone; the job's work stands either way.
            drop(answer.send(job(state).await));
        })?;
        answered.await.map_err(|oneshot::Canceled| Gone)
    }

    /// Runs `job` on the thread; nobody waits for it.
    pub(crate) fn send<F, Fut>(&self, job: F) -> Result<(), Gone>
    where
        F: FnOnce(Rc<S>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let job: Job<S> = Box::new(move |state| Box::pin(job(state)));
        self.jobs.unbounded_send(job).map_err(|_closed| Gone)
    }

    /// Takes no further jobs: the thread ends after those already sent were started.
    pub(crate) fn stop(&self) {
        self.jobs.close_channel();
    }
}
