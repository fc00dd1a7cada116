//! The node's data directory: who owns it, and where things stand in it.
//!
//! ```text
//! DATA/node.lock               flock: one node a data directory
//! DATA/rings.lock              flock: held until the kernel has ended all I/O of a node
//! DATA/node.sock               HTTP, mode 0600
//! DATA/node/datastores.json    datastores that are in use on this host
//! DATA/node/connections.json   what is connected (connections.rs)
//! DATA/node/transfers.json     temporary files of exports that run
//! DATA/run/volumes/UUID.sock   a guest's socket; the path never changes
//! DATA/run/transfers/UUID.sock a foreign file, served to this node while it is read or written
//! ```
//!
//! The metadata logs stand elsewhere: their place follows from the volume's identity, so that a
//! second node on the same datastore would find the same log.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use uuid::Uuid;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Another node works on it.
    #[error(
        "the data directory {dir} is in use by another node (process {holder}); stop it first, or \
         name another directory with --data"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Process id as the holder wrote it, or `unknown`.
        holder: String,
    },
    /// A directory that must be private belongs to somebody else.
    #[error(
        "{dir} belongs to user {owner}, not to this process's user; remove it or run as its owner"
    )]
    ForeignOwner {
        /// The directory.
        dir: PathBuf,
        /// User id of its owner.
        owner: u32,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    System {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The data directory, held by this process until dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    logs: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates what is missing and takes the lock.
    pub(crate) fn open(root: &Path, logs: Option<&Path>) -> Result<Self, DataError> {
        private_dir(root)?;
        for sub in ["node", "run", "run/volumes", "run/transfers"] {
            private_dir(&root.join(sub))?;
        }
        let lock = take_lock(root)?;
        empty(&root.join("run/transfers"));
        let logs = logs.map_or_else(default_log_dir, Path::to_path_buf);
        private_dir(&logs)?;
        Ok(Self { root: root.to_path_buf(), logs, _lock: lock })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The node's HTTP socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("node.sock")
    }

    /// The socket of a connection; `id` is the volume's, or the exported snapshot's.
    pub(crate) fn guest_socket(&self, id: Uuid) -> PathBuf {
        self.root.join("run/volumes").join(format!("{id}.sock"))
    }

    /// A socket between this node and a tool that serves a file to it.
    pub(crate) fn transfer_socket(&self, id: Uuid) -> PathBuf {
        self.root.join("run/transfers").join(format!("{id}.sock"))
    }

    /// A file of the node's own state.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.root.join("node").join(name)
    }

    /// Where the metadata logs stand.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// The metadata log of a segment of a volume; most volumes have only the one of index 0.
    pub(crate) fn log(&self, volume: Uuid, segment: usize) -> PathBuf {
        self.logs.join(match segment {
            0 => format!("{volume}.log"),
            more => format!("{volume}.{more}.log"),
        })
    }
}

/// Removes sockets that a dead process left.
fn empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "a socket stays");
        }
    }
}

/// Waits until all requests of the node before this one have ended, and begins our own row: the file is
/// locked as long as a ring holds it. A read of a killed process may still land in a guest's memory, which
/// the guest has long used for something else (rule P1).
pub(crate) fn take_rings(root: &Path) -> Result<OwnedFd, DataError> {
    let path = root.join("rings.lock");
    let system = |action, source| DataError::System { action, path: path.clone(), source };
    let file = open_lock(&path).map_err(|e| system("open", e))?;
    let taken = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            tracing::warn!("waiting for the last requests of the node before this one");
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
        }
        taken => taken,
    };
    taken.map_err(|errno| system("lock", errno.into()))?;
    Ok(file.into())
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn take_lock(root: &Path) -> Result<File, DataError> {
    let path = root.join("node.lock");
    let system = |action, source| DataError::System { action, path: path.clone(), source };
    let mut file = open_lock(&path).map_err(|e| system("open", e))?;
    if let Err(errno) = rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        if errno == rustix::io::Errno::WOULDBLOCK {
            let holder = std::fs::read_to_string(&path)
                .ok()
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| "unknown".into());
            return Err(DataError::InUse { dir: root.to_path_buf(), holder });
        }
        return Err(system("lock", errno.into()));
    }
    file.set_len(0).map_err(|e| system("truncate", e))?;
    writeln!(file, "{}", std::process::id()).map_err(|e| system("write", e))?;
    Ok(file)
}

/// Tmpfs on every Linux: survives the process, not the host, which is what the log wants (rule D2).
pub(crate) fn default_log_dir() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let shm = Path::new("/dev/shm");
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !shm.is_dir() => Path::new(&dir).join("shale"),
        _ => shm.join(format!("shale-{user}")),
    }
}

/// A directory of mode 0700 that is ours: in a shared place somebody else could have made it first.
fn private_dir(path: &Path) -> Result<(), DataError> {
    let system = |action, source| DataError::System { action, path: path.to_path_buf(), source };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| system("create the directory", e))?;
    let meta = std::fs::symlink_metadata(path).map_err(|e| system("look at", e))?;
    let user = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != user {
        return Err(DataError::ForeignOwner { dir: path.to_path_buf(), owner: meta.uid() });
    }
    Ok(())
}

/// Replaces a state file: afterwards either the old or the new content is there, durably.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let system = |action, source| DataError::System { action, path: path.to_path_buf(), source };
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(|e| system("create the successor of", e))?;
    file.write_all(bytes).map_err(|e| system("write the successor of", e))?;
    file.sync_all().map_err(|e| system("sync the successor of", e))?;
    std::fs::rename(&fresh, path).map_err(|e| system("replace", e))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let dir = File::open(dir).map_err(|e| system("open the directory of", e))?;
    dir.sync_all().map_err(|e| system("sync the directory of", e))
}

/// Reads a state file; None where there is none.
pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, DataError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataError::System { action: "read", path: path.to_path_buf(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::{DataDir, DataError, read_file, replace_file};

    #[test]
    fn a_second_node_is_refused_and_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        let first = DataDir::open(dir.path(), Some(&logs)).unwrap();
        match DataDir::open(dir.path(), Some(&logs)) {
            Err(DataError::InUse { holder, .. }) => {
                assert_eq!(holder, std::process::id().to_string());
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        DataDir::open(dir.path(), Some(&logs)).unwrap();
    }

    #[test]
    fn state_files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert!(read_file(&path).unwrap().is_none());
        replace_file(&path, b"one, and long").unwrap();
        replace_file(&path, b"two").unwrap();
        assert_eq!(read_file(&path).unwrap().unwrap(), b"two");
    }
}
