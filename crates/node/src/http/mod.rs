//! The node's HTTP API on a unix socket of mode 0600: whoever may open it is the user who runs the
//! node, so there are no tokens here. Bodies are bounded, unknown fields refused, and every error is
//! a problem document.

mod answer;
mod routes;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::control::{Control, Shared};
use crate::data_dir::DataError;
use crate::worker::Worker;

/// How long answers that are under way may take when the node stops.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// How the node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It runs.
    No,
    /// A planned restart: connections stay on record, their logs are empty.
    Suspend,
    /// Everything was disconnected.
    Down,
}

/// What handlers work with.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) control: Worker<Control>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) stop: watch::Sender<Stop>,
    pub(crate) info: Arc<model::NodeInfo>,
}

/// The socket, bound: from now on clients can come, they are answered when the server runs.
pub(crate) fn bind(path: &Path) -> Result<std::os::unix::net::UnixListener, DataError> {
    let system = |action, source| DataError::System { action, path: path.to_path_buf(), source };
    // The lock on the data directory is ours, so a socket that is there belongs to nobody.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(system("remove the old socket", e));
        }
        _ => {}
    }
    // The directory is 0700, so nobody gets in between these two steps.
    let listener = std::os::unix::net::UnixListener::bind(path)
        .map_err(|e| system("listen on the socket (its path may have up to 107 bytes)", e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| system("protect the socket", e))?;
    listener.set_nonblocking(true).map_err(|e| system("prepare the socket", e))?;
    Ok(listener)
}

/// Serves until the node is told to stop, then lets the control thread end things.
pub(crate) async fn serve(app: App, listener: std::os::unix::net::UnixListener, signals: bool) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the HTTP socket cannot be used");
            return;
        }
    };
    if signals {
        tokio::spawn(stop_on_signal(app.stop.clone()));
    }
    let router = routes::router(app.clone());
    let server = axum::serve(listener, router).with_graceful_shutdown(stopped(app.stop.clone()));
    let late = async {
        stopped(app.stop.clone()).await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        served = async { server.await } => {
            if let Err(error) = served {
                tracing::error!(%error, "the HTTP server ended");
            }
        }
        () = late => tracing::debug!("some clients did not take their answers"),
    }
    if *app.stop.borrow() == Stop::Suspend
        && app.control.call(|control| async move { control.suspend().await }).await.is_err()
    {
        tracing::error!("the control thread ended early; the next start recovers");
    }
}

/// Completes when the node is to stop.
pub(crate) async fn stopped(stop: watch::Sender<Stop>) {
    let mut stop = stop.subscribe();
    // The sender lives in `stop` itself, so this cannot fail before the value comes.
    drop(stop.wait_for(|stop| *stop != Stop::No).await);
}

async fn stop_on_signal(stop: watch::Sender<Stop>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(term), Ok(int)) => (term, int),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "signals cannot be caught");
                return;
            }
        };
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: going down, to be resumed"),
        _ = int.recv() => tracing::info!("SIGINT: going down, to be resumed"),
    }
    stop.send_replace(Stop::Suspend);
}
