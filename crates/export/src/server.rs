//! The server: listeners on the ring, and what the node sees of it.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use io::{IoBuf, Ring};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;

use crate::connection;
use crate::hub::{Counters, Export, Hub, Limits};
use crate::listen::{self, ListenError, SocketFile};
use crate::socket::{End, Socket};

/// Pause before accepting again when the process has no file descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An NBD server on one home thread. Clones are handles of the same server; dropping them closes
/// nothing, [`NbdServer::close`] does.
#[derive(Clone)]
pub struct NbdServer(Rc<Inner>);

struct Inner {
    ring: Ring,
    hub: Rc<Hub>,
    listeners: RefCell<Vec<Listener>>,
}

struct Listener {
    fd: Rc<OwnedFd>,
    _file: Option<SocketFile>,
}

impl fmt::Debug for NbdServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NbdServer").field(&self.0.hub).finish()
    }
}

/// The name is taken by another export of the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the NBD server already has an export named {0:?}")]
pub struct NameTaken(pub String);

impl NbdServer {
    /// A server with one export, reachable under its name and under the empty name. It listens
    /// nowhere yet.
    #[must_use]
    pub fn new(ring: &Ring, export: Export) -> Self {
        let server = Self::with_limits(ring, Limits::default());
        let added = server.0.hub.add(export);
        debug_assert!(added, "the first export finds no other");
        server
    }

    /// A server without exports.
    #[must_use]
    pub fn with_limits(ring: &Ring, limits: Limits) -> Self {
        let hub = Hub::new(ring.local().clone(), limits);
        Self(Rc::new(Inner { ring: ring.clone(), hub, listeners: RefCell::default() }))
    }

    /// Adds an export. With more than one, the empty name is served only if one is called so.
    pub fn add(&self, export: Export) -> Result<(), NameTaken> {
        let name = export.name.clone();
        if self.0.hub.add(export) { Ok(()) } else { Err(NameTaken(name)) }
    }

    /// Takes an export away and drains its connections; false if there is none of that name. When
    /// this returns, the server holds no reference to the device any more.
    pub async fn remove(&self, name: &str) -> bool {
        let found = self.0.hub.withdraw(name);
        self.0.hub.drain(Some(name)).await;
        found
    }

    /// Listens on a unix socket: mode 0600, in a directory of mode 0700 that is made if missing.
    pub fn listen_unix(&self, path: &Path) -> Result<(), ListenError> {
        self.open()?;
        let (fd, file) = listen::unix(path)?;
        self.accept_from(fd, Some(file), Kind::Unix);
        Ok(())
    }

    /// Listens on a loopback address (port 0: a free one); returns the address in use.
    pub fn listen_tcp(&self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        self.open()?;
        let (fd, address) = listen::tcp(address)?;
        self.accept_from(fd, None, Kind::Tcp);
        Ok(address)
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.hub.counters()
    }

    /// Takes no more connections and no more requests, answers what is in flight, closes all.
    /// Returns when the devices have nothing of this server's left to do. Clients that do not take
    /// their replies are cut off after the grace time.
    pub async fn close(&self) {
        self.0.hub.closing.set(true);
        let listeners = std::mem::take(&mut *self.0.listeners.borrow_mut());
        for listener in &listeners {
            end(&listener.fd, Shutdown::Both);
        }
        drop(listeners);
        self.0.hub.drain(None).await;
        self.0.hub.withdraw_all();
    }

    fn open(&self) -> Result<(), ListenError> {
        if self.0.hub.closing.get() { Err(ListenError::Closed) } else { Ok(()) }
    }

    fn accept_from(&self, fd: OwnedFd, file: Option<SocketFile>, kind: Kind) {
        let fd = Rc::new(fd);
        self.0.listeners.borrow_mut().push(Listener { fd: Rc::clone(&fd), _file: file });
        let (ring, hub) = (self.0.ring.clone(), Rc::clone(&self.0.hub));
        drop(self.0.hub.local.spawn(accept(ring, hub, fd, kind)));
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Unix,
    Tcp,
}

async fn accept(ring: Ring, hub: Rc<Hub>, listener: Rc<OwnedFd>, kind: Kind) {
    loop {
        let accepted = ring.accept(&listener).await;
        if hub.closing.get() {
            return;
        }
        match accepted {
            Ok(_) if !hub.has_room() => {
                hub.count(|c| c.refused += 1);
                tracing::warn!(limit = hub.limits.connections, "an NBD client was turned away");
            }
            Ok(fd) => {
                if let Kind::Tcp = kind
                    && let Err(error) = rustix::net::sockopt::set_tcp_nodelay(&fd, true)
                {
                    tracing::debug!(%error, "replies may be delayed by the TCP stack");
                }
                let socket = RingSocket { ring: ring.clone(), fd: Rc::new(fd) };
                drop(hub.local.spawn(connection::serve(Rc::clone(&hub), socket)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an NBD client");
                hub.local.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connected socket on the ring.
struct RingSocket {
    ring: Ring,
    fd: Rc<OwnedFd>,
}

impl Socket for RingSocket {
    async fn recv(&self, into: &IoBuf) -> std::io::Result<usize> {
        self.ring.recv(&self.fd, into).await
    }

    async fn send(&self, parts: &[IoBuf]) -> std::io::Result<usize> {
        self.ring.send(&self.fd, parts).await
    }

    fn is_gone(&self) -> bool {
        let mut sockets = [PollFd::new(&*self.fd, PollFlags::RDHUP)];
        poll(&mut sockets, Some(&Timespec::default())).is_ok_and(|gone| gone > 0)
    }

    fn end(&self, what: End) {
        end(
            &self.fd,
            match what {
                End::Receiving => Shutdown::Read,
                End::Both => Shutdown::Both,
            },
        );
    }
}

/// Wakes whoever waits on the socket. It may be unconnected by now, which is as good.
fn end(fd: &OwnedFd, how: Shutdown) {
    if let Err(error) = rustix::net::shutdown(fd, how) {
        tracing::trace!(%error, "shutdown of a socket that is gone");
    }
}

/// The URI of an export behind a unix socket, as NBD tools take it.
#[must_use]
pub fn unix_uri(export: &str, socket: &Path) -> String {
    let path = encode(socket.as_os_str().as_encoded_bytes(), b"/");
    format!("nbd+unix:///{}?socket={path}", encode(export.as_bytes(), b""))
}

/// The URI of an export behind a TCP address.
#[must_use]
pub fn tcp_uri(export: &str, address: SocketAddr) -> String {
    format!("nbd://{address}/{}", encode(export.as_bytes(), b""))
}

fn encode(bytes: &[u8], also: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || also.contains(byte) {
            text.push(char::from(*byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes everything");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{tcp_uri, unix_uri};

    #[test]
    fn uris_are_escaped() {
        let uri = unix_uri("a b/ä", Path::new("/run/shale volumes/x.sock"));
        assert_eq!(uri, "nbd+unix:///a%20b%2F%C3%A4?socket=/run/shale%20volumes/x.sock");
        assert_eq!(unix_uri("", Path::new("/s")), "nbd+unix:///?socket=/s");
        let address = "[::1]:10809".parse().expect("an address");
        assert_eq!(tcp_uri("db", address), "nbd://[::1]:10809/db");
    }
}
