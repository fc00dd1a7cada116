//! Listening sockets: unix sockets that only their owner reaches, and loopback TCP.

use std::fs::Metadata;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};

/// Longest path of a unix socket: the kernel's field has 108 bytes, one ends the string.
const MAX_PATH: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The kernel cannot hold the path.
    #[error(
        "the socket path {} has {len} bytes, more than the {MAX_PATH} that a unix socket may have; \
         choose a shorter data directory", path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// Others could replace the socket.
    #[error(
        "others may write to the socket directory {} (mode {mode:03o}); make it private: chmod 700",
        path.display()
    )]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A live server listens there.
    #[error("another process listens on {}; stop it first", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket stands there; it is left alone.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// NBD without TLS stays on this host.
    #[error("{address} is not a loopback address; NBD is served on this host only")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// vhost-user passes descriptors, which only unix sockets do.
    #[error("vhost-user is served on unix sockets only")]
    UnixOnly,
    /// The server was closed.
    #[error("the server is closed")]
    Closed,
    /// The system said no.
    #[error("cannot listen on {what}: {source}")]
    System {
        /// Where.
        what: String,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
}

/// A unix socket that listens; its file is removed on drop, if it is still the same.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: FileId,
}

/// Device, inode, and time of its making: inode numbers are used again.
type FileId = (u64, u64, i64, i64);

fn identity(meta: &Metadata) -> FileId {
    (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| identity(&m) == self.id)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a socket file stays behind");
        }
    }
}

/// Listens on `path` with mode 0600. A missing directory is made with mode 0700; one that others may
/// write to is refused. The socket of a dead server is replaced.
pub(crate) fn unix(path: &Path) -> Result<(OwnedFd, SocketFile), ListenError> {
    let len = path.as_os_str().len();
    if len > MAX_PATH {
        return Err(ListenError::PathTooLong { path: path.to_owned(), len });
    }
    let system =
        |source: std::io::Error| ListenError::System { what: path.display().to_string(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_private(directory).map_err(system)?;
    let mode = std::fs::metadata(directory).map_err(system)?.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(ListenError::OpenDirectory { path: directory.to_owned(), mode });
    }
    let address = SocketAddrUnix::new(path).map_err(|e| system(e.into()))?;
    let socket = stream(AddressFamily::UNIX).map_err(|e| system(e.into()))?;
    // the file takes the mode of the socket: it is never there with another
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))
        .map_err(|e| system(e.into()))?;
    if let Err(error) = bind(&socket, &address) {
        if error != Errno::ADDRINUSE {
            return Err(system(error.into()));
        }
        remove_stale(path, &address)?;
        bind(&socket, &address).map_err(|e| system(e.into()))?;
    }
    let meta = std::fs::symlink_metadata(path).map_err(system)?;
    let file = SocketFile { path: path.to_owned(), id: identity(&meta) };
    listen(&socket, BACKLOG).map_err(|e| system(e.into()))?;
    Ok((socket, file))
}

fn make_private(directory: &Path) -> std::io::Result<()> {
    if directory.exists() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let system =
        |source: std::io::Error| ListenError::System { what: path.display().to_string(), source };
    if !std::fs::symlink_metadata(path).map_err(system)?.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    let probe = stream(AddressFamily::UNIX).map_err(|e| system(e.into()))?;
    rustix::io::ioctl_fionbio(&probe, true).map_err(|e| system(e.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(system),
        // accepted, or a full queue of those that wait: somebody is alive
        Ok(()) | Err(_) => Err(ListenError::InUse { path: path.to_owned() }),
    }
}

/// Listens on a loopback address; port 0 takes a free one. The address is the one in use.
pub(crate) fn tcp(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), ListenError> {
    if !address.ip().is_loopback() {
        return Err(ListenError::NotLoopback { address });
    }
    let run = || -> Result<(OwnedFd, SocketAddr), Errno> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = stream(family)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        let bound = rustix::net::getsockname(&socket)?;
        Ok((socket, SocketAddr::try_from(bound)?))
    };
    run().map_err(|e| ListenError::System { what: address.to_string(), source: e.into() })
}

fn stream(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::{ListenError, tcp, unix};

    fn mode(path: &std::path::Path) -> u32 {
        std::fs::symlink_metadata(path).expect("exists").mode() & 0o777
    }

    #[test]
    fn the_socket_and_its_directory_are_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/a.sock");
        let (socket, file) = unix(&path).expect("listens");
        assert_eq!((mode(&path), mode(&dir.path().join("run"))), (0o600, 0o700));
        assert!(matches!(unix(&path), Err(ListenError::InUse { .. })), "it is alive");
        drop(socket);
        let (_socket, second) = unix(&path).expect("a dead server's socket is replaced");
        drop(file);
        assert!(path.exists(), "the file of the successor stays");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_cannot_be_listened_on_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let long = dir.path().join("x".repeat(108));
        let said = unix(&long).expect_err("too long").to_string();
        assert!(said.contains("more than the 107"), "{said}");
        let plain = dir.path().join("file");
        std::fs::write(&plain, b"precious").expect("writes");
        assert!(matches!(unix(&plain), Err(ListenError::NotASocket { .. })));
        assert_eq!(std::fs::read(&plain).expect("still there"), b"precious");
        let open = dir.path().join("open");
        std::fs::create_dir(&open).expect("makes");
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o770)).expect("sets");
        let said = unix(&open.join("s")).expect_err("open to a group").to_string();
        assert!(said.contains("mode 770"), "{said}");
        let outside = "192.0.2.1:0".parse().expect("an address");
        assert!(matches!(tcp(outside), Err(ListenError::NotLoopback { .. })));
    }

    #[test]
    fn a_free_port_is_told() {
        let (_socket, address) = tcp("127.0.0.1:0".parse().expect("an address")).expect("listens");
        assert_ne!(address.port(), 0);
    }
}
