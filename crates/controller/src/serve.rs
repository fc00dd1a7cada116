//! `shale serve`: opens the data directory, starts everything, serves until told to end.
//!
//! ```text
//!   DATA (0700)  serve.lock     held while a controller runs: one a directory
//!                serve.json     where it listens, for the command line on this host
//!                admin.token    0600, the local administrator's
//!                controller.db  inventory, history, audit
//!                node.sock, node.lock, node.log
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use model::{Code, Problem};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api::{App, router};
use crate::hub::{Hub, now};
use crate::index::Index;
use crate::inventory::Inventory;
use crate::node::NodeClient;
use crate::schedule::{Driver, WallClock};
use crate::store::Store;
use crate::supervise::{NodeCommand, attend, ended, supervise};
use crate::sync::Sync;
use crate::tokens::Tokens;

/// How long a request waits for a node that is being started again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long open requests may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the first start of the node may take before this server shows itself.
const FIRST_NODE: Duration = Duration::from_secs(20);
/// How long a node that runs may take to say what it is.
const NODE_ANSWER: Duration = Duration::from_secs(5);
/// How long a node may take to stop.
const NODE_STOP: Duration = Duration::from_secs(60);
/// Finished tasks of earlier lives that are shown.
const HISTORY: u32 = 1000;

/// What `serve` is started with.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The data directory; made if missing.
    pub data: PathBuf,
    /// Where to listen; only loopback is allowed.
    pub listen: SocketAddr,
    /// How a node is started; none: something else keeps one up on the same directory.
    pub node: Option<NodeCommand>,
    /// What snapshot schedules go by.
    pub clock: Arc<dyn WallClock>,
}

/// `DATA/serve.json`: how the command line finds the server of its data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// `http://ADDRESS:PORT`.
    pub url: String,
    /// The server's process.
    pub pid: u32,
}

impl Announcement {
    /// What a running server wrote, if one runs on `data`.
    pub fn read(data: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(data.join("serve.json")).ok()?).ok()
    }
}

/// A server that is ready.
#[derive(Debug)]
pub struct Served {
    /// Where it listens.
    pub url: String,
    /// The file with the administrator's token.
    pub token_file: PathBuf,
    /// Whether the node answers already.
    pub node_ready: bool,
    data: PathBuf,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    supervisor: tokio::task::JoinHandle<()>,
    schedules: tokio::task::JoinHandle<()>,
    closing: watch::Sender<bool>,
    stopping: watch::Sender<bool>,
    _lock: File,
}

/// Starts a controller.
pub async fn serve(options: ServeOptions) -> Result<Served, Problem> {
    if !options.listen.ip().is_loopback() {
        return Err(Problem::new(
            Code::Refused,
            format!(
                "Listening on {} is refused: other hosts would need TLS, which this version does not have.",
                options.listen
            ),
        )
        .hint("listen on 127.0.0.1 and reach it through an SSH tunnel: ssh -L 7070:127.0.0.1:7070 HOST"));
    }
    let data = &options.data;
    let io = |what: &'static str| {
        move |e: std::io::Error| Problem::new(Code::IoError, format!("Cannot {what}: {e}."))
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .map_err(io("make the data directory"))?;
    let data = &std::fs::canonicalize(data).map_err(io("find the data directory"))?;
    let lock = lock(data)?;

    let store = Store::open(&data.join("controller.db"))?;
    let inventory = Arc::new(Inventory::load(store.clone()).await?);
    let tokens = Tokens::new(Arc::clone(&inventory));
    let token_file = data.join("admin.token");
    tokens.local_admin(&token_file, now()).await?;

    let index = Arc::new(Index::new(Hub::new()));
    index.remember(store.tasks(HISTORY).await?);
    let socket = data.join("node.sock");
    let quick = NodeClient::new(socket.clone(), Duration::ZERO);
    let (sync, refresher) =
        Sync::new(quick.clone(), Arc::clone(&index), Arc::clone(&inventory), store.clone());
    let (closing, _) = watch::channel(false);
    let (stopping, stop) = watch::channel(false);
    let app = Arc::new(App {
        index: Arc::clone(&index),
        inventory,
        tokens,
        store,
        node: NodeClient::new(socket.clone(), PATIENCE),
        refresher: refresher.clone(),
        clock: Arc::clone(&options.clock),
        requests: Default::default(),
        closing: closing.clone(),
        stopping: stopping.clone(),
    });

    let listener = TcpListener::bind(options.listen).await.map_err(|e| {
        Problem::new(Code::Busy, format!("Cannot listen on {}: {e}.", options.listen))
            .hint("choose another port with --listen")
    })?;
    let url = format!("http://{}", listener.local_addr().map_err(io("learn the own address"))?);

    let supervisor = match options.node {
        Some(command) => tokio::spawn(supervise(command, data.clone(), quick, stop)),
        None => tokio::spawn(attend(quick, stop)),
    };
    tokio::spawn(sync.run());
    let node = NodeClient::new(socket, PATIENCE);
    let driver = Driver { index: Arc::clone(&index), node, refresher, clock: options.clock };
    let schedules = tokio::spawn(driver.run());
    let node_ready = index.node_ready(FIRST_NODE).await;

    let mut close = closing.subscribe();
    let server = tokio::spawn(async move {
        axum::serve(listener, router(app))
            .with_graceful_shutdown(async move {
                // an error means that nobody is left who could close: the same
                close.wait_for(|closing| *closing).await.map(drop).ok();
            })
            .await
    });
    announce(data, &Announcement { url: url.clone(), pid: std::process::id() })
        .map_err(io("write serve.json"))?;
    Ok(Served {
        url,
        token_file,
        node_ready,
        data: data.clone(),
        server,
        supervisor,
        schedules,
        closing,
        stopping,
        _lock: lock,
    })
}

/// Whether a controller could start with the database at `path`, which is made if it is missing.
///
/// # Errors
/// What [`serve`] would say.
pub fn check_state(path: &Path) -> Result<(), Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.map_err(crate::store::internal)?.block_on(async {
        let store = Store::open(path)?;
        let inventory = Arc::new(Inventory::load(store.clone()).await?);
        let tokens = Tokens::new(Arc::clone(&inventory)).list();
        let tasks = store.tasks(HISTORY).await?;
        tracing::debug!(tokens = tokens.len(), tasks = tasks.len(), "the database can be read");
        Ok(())
    })
}

impl Served {
    /// Tells it to end; the node stays.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Returns when somebody told it to end, through `close` or the API.
    pub async fn closed(&self) {
        let mut closing = self.closing.subscribe();
        closing.wait_for(|closing| *closing).await.map(drop).ok();
    }

    /// Serves until it is told to end; after `down`, until the node has ended too.
    pub async fn finish(self) -> Result<(), Problem> {
        self.closed().await;
        // nothing new; what the node has begun it ends by itself
        self.schedules.abort();
        let abort = self.server.abort_handle();
        match tokio::time::timeout(DRAIN, self.server).await {
            Ok(Ok(Err(e))) => tracing::error!("the server failed: {e}"),
            Ok(Ok(Ok(())) | Err(_)) => {}
            Err(_late) => abort.abort(),
        }
        // another server may have taken the directory over meanwhile: remove only our own
        if Announcement::read(&self.data).is_some_and(|a| a.pid == std::process::id()) {
            std::fs::remove_file(self.data.join("serve.json")).ok();
        }
        let stop_node = *self.stopping.borrow();
        if !stop_node {
            self.supervisor.abort();
            return Ok(());
        }
        let late = |_: tokio::time::error::Elapsed| {
            Problem::new(Code::TimeOut, "The node did not stop in time.")
                .hint("see its log; it goes on stopping by itself")
        };
        tokio::time::timeout(NODE_STOP, self.supervisor).await.map_err(late)?.ok();
        Ok(())
    }
}

/// What the node of `data` says of itself, without a controller between.
pub async fn node_info(data: &Path) -> Result<model::NodeInfo, Problem> {
    let node = NodeClient::new(data.join("node.sock"), Duration::ZERO);
    tokio::time::timeout(NODE_ANSWER, node.info()).await.unwrap_or_else(|_late| {
        Err(Problem::new(Code::NodeUnavailable, "The node does not answer; it may be recovering."))
    })
}

/// Stops the node of `data` where no controller runs, and waits for its end. Whether there was one.
pub async fn stop_node(data: &Path) -> Result<bool, Problem> {
    let node = NodeClient::new(data.join("node.sock"), Duration::ZERO);
    let Ok(info) = node.info().await else { return Ok(false) };
    node.call::<(), serde_json::Value>(Method::POST, "/v1/down", None).await?;
    match tokio::time::timeout(NODE_STOP, ended(info.pid)).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(e)) => Err(Problem::new(Code::IoError, format!("The node cannot be watched: {e}."))),
        Err(_late) => Err(Problem::new(Code::TimeOut, "The node did not stop in time.")
            .hint("see its log; it goes on stopping by itself")),
    }
}

fn lock(data: &Path) -> Result<File, Problem> {
    let path = data.join("serve.lock");
    let failed = |e: std::io::Error| {
        Problem::new(Code::IoError, format!("Cannot lock {}: {e}.", path.display()))
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = Announcement::read(data)
                .map_or_else(String::new, |a| format!(" (process {}, {})", a.pid, a.url));
            Err(Problem::new(
                Code::Busy,
                format!("Another `shale serve`{holder} works on {}.", data.display()),
            )
            .hint("use that one, stop it, or give another --data"))
        }
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Replaces serve.json whole: a reader never sees half of it.
fn announce(data: &Path, announcement: &Announcement) -> std::io::Result<()> {
    let fresh = data.join("serve.json.new");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec(announcement)?)?;
    std::fs::rename(fresh, data.join("serve.json"))
}
