//! Keeps one node running beside this controller.
//!
//! ```text
//!   answers on its socket? ──yes──► adopt it: wait on its pidfd ──┐
//!        ▲         │no                                            │ it ended
//!        │         ▼                                              │
//!        └──── back-off ◄── start `shale node` in its own session◄┘
//! ```
//! The node is never stopped from here except by `down`: guests' disks outlive the controller.
//! Where something else keeps the node up (systemd), it is only attended, never started.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use model::{Code, Problem};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::process::Command;
use tokio::sync::watch;

use crate::node::NodeClient;

/// How a node is started: program and arguments, which must make a session of their own.
#[derive(Clone, Debug)]
pub struct NodeCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A node that ran this long was healthy: the next pause is short again.
const HEALTHY: Duration = Duration::from_secs(30);
/// Between two looks for a node that is started elsewhere.
const LOOK: Duration = Duration::from_millis(500);
/// A running node answers this fast or is not one.
const ANSWER: Duration = Duration::from_secs(5);

/// Runs until `stopping` and the node's end.
pub(crate) async fn supervise(
    command: NodeCommand,
    data: PathBuf,
    node: NodeClient,
    stopping: watch::Receiver<bool>,
) {
    let mut pause = FIRST_PAUSE;
    while !*stopping.borrow() {
        let started = Instant::now();
        match running(&node).await {
            Some(pid) => {
                tracing::info!(pid, "the node is running already");
                if let Err(e) = ended(pid).await {
                    tracing::warn!(pid, "the node cannot be watched: {e}");
                }
                tracing::warn!(pid, "the node ended");
            }
            None => match start(&command, &data).await {
                Ok(status) if *stopping.borrow() => tracing::info!("the node ended: {status}"),
                Ok(status) => tracing::warn!("the node ended: {status}; see node.log"),
                Err(problem) => tracing::error!("{problem}"),
            },
        }
        if *stopping.borrow() {
            return;
        }
        if started.elapsed() >= HEALTHY {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The same for a node that somebody else keeps up: its coming and its end are told, and after `down`
/// its end is awaited.
pub(crate) async fn attend(node: NodeClient, stopping: watch::Receiver<bool>) {
    loop {
        match running(&node).await {
            Some(pid) => {
                tracing::info!(pid, "the node is there");
                if let Err(e) = ended(pid).await {
                    tracing::warn!(pid, "the node cannot be watched: {e}");
                }
                tracing::warn!(pid, "the node ended; who started it starts it again");
            }
            None if *stopping.borrow() => return,
            None => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn running(node: &NodeClient) -> Option<u32> {
    tokio::time::timeout(ANSWER, node.info()).await.ok()?.ok().map(|info| info.pid)
}

/// Starts a node and waits for its end.
async fn start(command: &NodeCommand, data: &Path) -> Result<std::process::ExitStatus, Problem> {
    let failed = |e: std::io::Error| {
        Problem::new(Code::NodeUnavailable, format!("The node cannot be started: {e}."))
            .hint("see node.log in the data directory")
    };
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(data.join("node.log"))
        .map_err(failed)?;
    let mut child = Command::new(&command.program)
        .args(&command.arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .kill_on_drop(false)
        .spawn()
        .map_err(failed)?;
    tracing::info!(pid = child.id(), "the node is started");
    child.wait().await.map_err(failed)
}

/// Returns when process `pid` has ended.
pub async fn ended(pid: u32) -> std::io::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other?,
    };
    let (done, wait) = tokio::sync::oneshot::channel();
    // a plain thread: the runtime's end must not wait for the node's
    std::thread::Builder::new().name("node-watch".into()).spawn(move || {
        // nobody listens any more: the controller ends
        done.send(wait_readable(&fd)).ok();
    })?;
    wait.await.unwrap_or(Ok(()))
}

fn wait_readable(fd: &OwnedFd) -> std::io::Result<()> {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
