//! Waiting for what a dead process still holds. The kernel keeps the flock of a killed process until
//! the last of its requests has ended (rule P1): normally milliseconds, seconds on a slow device.

use std::future::Future;
use std::time::Duration;

use io::{IoErrorKind, Local};

/// How long a lock of a dead predecessor is waited for before it is an error.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(30);
/// There is no event for the release of a flock that could be awaited without a thread each.
const POLL: Duration = Duration::from_millis(20);

/// Errors that can say that somebody else holds the thing.
pub(crate) trait Kind {
    fn kind(&self) -> IoErrorKind;
}

impl Kind for io::IoError {
    fn kind(&self) -> IoErrorKind {
        self.kind
    }
}

impl Kind for datastore::DatastoreError {
    fn kind(&self) -> IoErrorKind {
        Self::kind(self)
    }
}

/// Repeats `attempt` while it fails as `Busy`, up to [`LOCK_WAIT`]; then the last error stands.
pub(crate) async fn until_free<T, E, F, Fut>(
    local: &Local,
    object: &str,
    mut attempt: F,
) -> Result<T, E>
where
    E: Kind + std::fmt::Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let give_up = local.now() + LOCK_WAIT;
    let mut told = false;
    loop {
        match attempt().await {
            Err(error) if error.kind() == IoErrorKind::Busy && local.now() < give_up => {
                if !told {
                    tracing::info!(object, %error, "waiting for its holder to let go");
                    told = true;
                }
                local.sleep(POLL).await;
            }
            outcome => return outcome,
        }
    }
}
