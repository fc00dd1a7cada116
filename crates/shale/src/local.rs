//! The processes of this host: `serve`, `node`, `down`.

use std::path::PathBuf;
use std::time::Duration;

use controller::client::{Client, Method};
use controller::{Announcement, NodeCommand, ServeOptions, Served};
use model::{Code, Exit, Problem};
use node::{DataError, StartError};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::grammar::{Node, Place, Serve};
use crate::output;
use crate::session::{Session, data_dir};

/// How long `down` waits for the server's end.
const DOWN: Duration = Duration::from_secs(90);

/// Logs go to stderr: SHALE_LOG says what, SHALE_LOG_FORMAT=json how.
fn log() {
    let filter =
        EnvFilter::try_from_env("SHALE_LOG").unwrap_or_else(|_unset| EnvFilter::new("info"));
    let json = std::env::var("SHALE_LOG_FORMAT").is_ok_and(|format| format == "json");
    let plain = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would say on stderr that stderr cannot be written, and fail: a full disk under the log
        // must not end who serves guests.
        .log_internal_errors(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // an error says that logging is set up already
    if json {
        plain.json().try_init().ok()
    } else {
        plain.try_init().ok()
    };
}

pub(crate) fn serve(place: &Place, command: &Serve) -> Result<Exit, Problem> {
    log();
    let data = data_dir(place)?;
    let data = std::path::absolute(&data).unwrap_or(data);
    let program = std::env::current_exe().map_err(|e| {
        Problem::new(Code::Internal, format!("The own program file cannot be found: {e}."))
    })?;
    let arguments =
        vec!["node".into(), "--data".into(), data.clone().into_os_string(), "--session".into()];
    let node = (!command.no_node).then_some(NodeCommand { program, arguments });
    let options =
        ServeOptions { data, listen: command.listen, node, clock: controller::host_clock() };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Problem::new(Code::Internal, format!("No threads for the server: {e}.")))?;
    let result = runtime.block_on(async {
        let served = controller::serve(options).await?;
        announce(&served, command.no_node)?;
        let signals = |kind| {
            signal(kind).map_err(|e| {
                Problem::new(Code::Internal, format!("Signals cannot be received: {e}."))
            })
        };
        let (mut interrupt, mut terminate) =
            (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
        tokio::select! {
            _ = interrupt.recv() => served.close(),
            _ = terminate.recv() => served.close(),
            () = served.closed() => {}
        }
        served.finish().await
    });
    // what still blocks must not keep the process: nothing of it is half-written
    runtime.shutdown_background();
    result.map(|()| Exit::Ok)
}

fn announce(served: &Served, no_node: bool) -> Result<(), Problem> {
    match (served.node_ready, no_node) {
        (true, _) => {}
        (false, true) => tracing::warn!("no node answers; it is not started from here (--no-node)"),
        (false, false) => {
            tracing::warn!("the node does not answer yet; see node.log in the data directory");
        }
    }
    output::print(&format!("console  {}/\ntoken    {}\n", served.url, served.token_file.display()))
}

pub(crate) fn node(place: &Place, command: &Node) -> Result<Exit, Problem> {
    if command.session {
        // refused only for a process that leads a group already, which then is apart anyway
        rustix::process::setsid().ok();
    }
    log();
    let data = data_dir(place)?;
    let node = node::Node::start(&node::Options::new(data)).map_err(|e| {
        // what a repetition cannot heal has an exit status of its own: systemd then does not try
        let code = match &e {
            StartError::Data(DataError::InUse { .. }) => Code::Busy,
            StartError::Data(DataError::ForeignOwner { .. }) => Code::Denied,
            StartError::Format(_) => Code::UnknownFormat,
            StartError::Data(_) | StartError::State(_) | StartError::System { .. } => {
                Code::Internal
            }
        };
        Problem::new(code, format!("The node cannot start: {e}."))
    })?;
    node.wait();
    Ok(Exit::Ok)
}

/// Through the server where one runs; else the node alone.
pub(crate) fn down(place: &Place) -> Result<Exit, Problem> {
    let runtime = crate::runtime()?;
    let local = data_dir(place).ok();
    let server = local.as_deref().and_then(Announcement::read).filter(is_alive);
    let node_alone = || {
        let data = local.clone().unwrap_or_else(|| PathBuf::from("."));
        let stopped = runtime.block_on(controller::stop_node(&data))?;
        output::print(if stopped { "the node is stopped\n" } else { "nothing is running\n" })?;
        Ok(Exit::Ok)
    };
    if server.is_none() && place.url.is_none() {
        return node_alone();
    }
    let session = Session::open(place)?;
    let client: &Client = &session.client;
    match runtime.block_on(client.call::<(), ()>(Method::POST, "/api/v1/system/down", None)) {
        // it was killed, and its process id is another process's now
        Err(problem) if problem.code == Code::ServerUnavailable && place.url.is_none() => {
            return node_alone();
        }
        asked => asked?,
    }
    if let Some(server) = server.filter(|_| place.url.is_none()) {
        let ended = controller::ended(server.pid);
        let late = runtime.block_on(async { tokio::time::timeout(DOWN, ended).await.is_err() });
        runtime.shutdown_background();
        if late {
            return Err(Problem::new(Code::TimeOut, "The server has not ended yet.")
                .hint("it goes on stopping by itself"));
        }
    }
    output::print("stopped\n")?;
    Ok(Exit::Ok)
}

/// A server that was killed leaves its announcement behind.
pub(crate) fn is_alive(server: &Announcement) -> bool {
    let pid = i32::try_from(server.pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}
