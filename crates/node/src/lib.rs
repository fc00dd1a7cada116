//! The node: the process that owns this host's datastores, connected disks and their exports.
//!
//! ```text
//!   HTTP (tokio, unix socket) ──► control thread ──► home threads, one ring each
//!     requests, tasks, events       datastores,        disks and their NBD servers:
//!                                   catalogs,          one disk, one home thread
//!                                   operations
//! ```
//!
//! What holds:
//! - tokio never touches guest I/O; only handles and messages cross threads (`worker`);
//! - a connection is on record durably before anybody is told of it (`connections`);
//! - after `kill -9` a successor resumes a connection only if its log matches exactly; everything else
//!   is a power cut, and says so (rules D4, P2);
//! - gates that a snapshot closes are opened again on every path (`control`).

mod alarms;
mod connections;
mod control;
mod crash;
mod data_dir;
pub mod doctor;
mod env;
mod events;
mod home;
mod http;
mod problem;
mod state;
mod tasks;
mod transfer;
mod wait;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

use crate::alarms::Alarms;
use crate::control::{Control, Saved, Shared};
use crate::data_dir::DataDir;
use crate::events::Events;
use crate::home::Home;
use crate::http::{App, Stop};
use crate::state::StateError;
use crate::tasks::Tasks;
use crate::worker::Worker;

pub use data_dir::DataError;

/// Most home threads: more do not help one host's disks.
const MAX_HOMES: usize = 4;

/// Bytes of the cache that all connected volumes share. A page of a parent's block table is 4 KiB of it
/// for 2 GiB of the layer: so this is enough for 28 TiB of layers.
const CACHE_BYTES: u64 = 64 << 20;

/// How to run a node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its data directory, made if missing.
    pub data: PathBuf,
    /// Where metadata logs stand; a tmpfs. None: the place that every node of this user uses.
    pub logs: Option<PathBuf>,
    /// Home threads; None: one a core, up to 4.
    pub homes: Option<usize>,
    /// Whether the process is this node's alone: SIGTERM and SIGINT end the node, a panic ends the
    /// process.
    pub owns_process: bool,
}

impl Options {
    /// A node on `data` with the usual settings, in a process of its own.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), logs: None, homes: None, owns_process: true }
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file of the node's own state is of a version that this program does not know.
    #[error("{0}")]
    Format(String),
    /// A file of the node's own state cannot be used.
    #[error("{0}")]
    State(String),
    /// The system gave no thread, ring or boot identity.
    #[error("cannot {action}: {source}")]
    System {
        /// What was being done.
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    socket: PathBuf,
    stop: watch::Sender<Stop>,
    http: JoinHandle<()>,
    control: (Worker<Control>, JoinHandle<()>),
    homes: Vec<(Worker<Home>, JoinHandle<()>)>,
}

impl Node {
    /// Starts a node. When this returns, clients can connect to its socket; they are answered when
    /// what was here before is recovered.
    ///
    /// # Errors
    /// If the data directory is in use by another node, or its state cannot be read.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let system = |action| move |source| StartError::System { action, source };
        if options.owns_process {
            die_on_panic();
            io::give_back_large_allocations();
        }
        let data = DataDir::open(&options.data, options.logs.as_deref())?;
        let saved = saved(&data)?;
        let socket = data.socket();
        let listener = http::bind(&socket)?;
        let events = Events::new();
        let shared = Arc::new(Shared {
            tasks: Tasks::new(events.clone()),
            alarms: Alarms::new(events.clone()),
            events,
            boot: env::boot_id().map_err(system("read the boot id"))?,
            host: env::host_name(),
            data,
        });
        let count = options.homes.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, usize::from).min(MAX_HOMES)
        });
        // a small host's memory is for its guests
        let cache = CACHE_BYTES.min(env::memory_bytes() / 64);
        let cache = disk::SharedCache::new(usize::try_from(cache).unwrap_or(0));
        let rings = Arc::new(data_dir::take_rings(shared.data.root())?);
        let mut homes = Vec::new();
        for _ in 0..count.max(1) {
            let (cache, rings) = (cache.clone(), Arc::clone(&rings));
            let start = async move |ring: io::Ring| {
                if let Err(error) = ring.hold(&rings) {
                    tracing::warn!(%error, "the next node cannot tell when this one's I/O has ended");
                }
                std::rc::Rc::new(Home::new(ring, cache))
            };
            let home = Worker::start("home", start).map_err(system("start a home thread"))?;
            homes.push(home);
        }
        let handles: Vec<_> = homes.iter().map(|(home, _)| home.clone()).collect();
        let for_control = Arc::clone(&shared);
        let control =
            Worker::start("control", move |ring| Control::start(ring, for_control, handles, saved))
                .map_err(system("start the control thread"))?;
        let info = model::NodeInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            host: shared.host.clone(),
            boot_id: shared.boot,
            io_backend: control.0.backend().into(),
            started: events::now(),
        };
        tracing::info!(
            data = %shared.data.root().display(),
            homes = homes.len(),
            io = info.io_backend,
            "node started"
        );
        let stop = watch::Sender::new(Stop::No);
        let app =
            App { control: control.0.clone(), shared, stop: stop.clone(), info: Arc::new(info) };
        let signals = options.owns_process;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("start the HTTP runtime"))?;
        let http = std::thread::Builder::new()
            .name("http".into())
            .spawn(move || runtime.block_on(http::serve(app, listener, signals)))
            .map_err(system("start the HTTP thread"))?;
        Ok(Self { socket, stop, http, control, homes })
    }

    /// The socket of its HTTP API.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it as for a planned restart: drained, durable, and resumed by the next start.
    pub fn stop(self) {
        self.stop.send_replace(Stop::Suspend);
        self.wait();
    }

    /// Blocks until it was told to end, by a signal or over HTTP, and has.
    pub fn wait(self) {
        let Self { socket, http, control, homes, .. } = self;
        // The HTTP thread ends when the control thread has put everything in order; only then may
        // the others go.
        ended(&http.join());
        control.0.stop();
        ended(&control.1.join());
        for (home, thread) in homes {
            home.stop();
            ended(&thread.join());
        }
        if let Err(error) = std::fs::remove_file(&socket) {
            tracing::debug!(%error, "the HTTP socket is gone already");
        }
        tracing::info!("node ended");
    }
}

/// Whether a node could start with the state that stands in `data`; nothing of it is acted upon.
///
/// # Errors
/// What [`Node::start`] would say.
pub fn check_state(data: &Path) -> Result<(), StartError> {
    let data = DataDir::open(data, Some(&data.join("logs")))?;
    saved(&data).map(drop)
}

fn saved(data: &DataDir) -> Result<Saved, StartError> {
    Saved::load(data).map_err(|error| match error {
        StateError::Format { .. } => StartError::Format(error.to_string()),
        StateError::Data(_) | StateError::Parse { .. } => StartError::State(error.to_string()),
    })
}

fn ended(thread: &std::thread::Result<()>) {
    if thread.is_err() {
        tracing::error!("a thread of the node panicked; the next start recovers");
    }
}

/// A panic anywhere ends the process at once: its successor recovers from the logs, which is safer
/// than going on in an unknown state.
fn die_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        tracing::error!(%info, "panic: the node dies, to be recovered by its successor");
        std::process::abort();
    }));
}
