//! The server of one disk: its socket, and the connections to it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::mpsc::unbounded;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use io::Ring;
use rustix::net::{Shutdown, shutdown};

use super::front::Front;
use super::session::{self, Job};
use super::turn::Turns;
use crate::hub::Export;
use crate::listen::{self, ListenError, SocketFile};
use crate::signal::Signal;

/// Connections at a time: the guest's, the one it moves to, and tools that look.
const CONNECTIONS: usize = 8;
/// Pause before accepting again when the process has no file descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A vhost-user-blk server on one home thread, for one device. Clones are handles of the same server;
/// dropping them closes nothing, [`VhostServer::close`] does.
#[derive(Clone)]
pub struct VhostServer(Rc<Inner>);

struct Inner {
    ring: Ring,
    export: Export,
    serial: String,
    turns: Turns,
    listener: RefCell<Option<(Rc<OwnedFd>, SocketFile)>>,
    connections: RefCell<BTreeMap<u64, Connection>>,
    next: Cell<u64>,
    closing: Cell<bool>,
    ended: Signal,
}

struct Connection {
    front: Rc<Front>,
    /// To end its session from here.
    socket: Rc<UnixStream>,
}

impl fmt::Debug for VhostServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostServer")
            .field("export", &self.0.export)
            .field("connections", &self.0.connections.borrow().len())
            .finish_non_exhaustive()
    }
}

impl VhostServer {
    /// A server that listens nowhere yet. Guests know the disk by `serial`, of which they see 20 bytes.
    #[must_use]
    pub fn new(ring: &Ring, export: Export, serial: String) -> Self {
        Self(Rc::new(Inner {
            ring: ring.clone(),
            export,
            serial,
            turns: Turns::default(),
            listener: RefCell::default(),
            connections: RefCell::default(),
            next: Cell::new(1),
            closing: Cell::new(false),
            ended: Signal::default(),
        }))
    }

    /// Listens on a unix socket: mode 0600, in a directory of mode 0700 that is made if missing.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn listen_unix(&self, path: &Path) -> Result<(), ListenError> {
        if self.0.closing.get() {
            return Err(ListenError::Closed);
        }
        let (fd, file) = listen::unix(path)?;
        let fd = Rc::new(fd);
        *self.0.listener.borrow_mut() = Some((Rc::clone(&fd), file));
        drop(self.0.ring.local().spawn(accept(Rc::clone(&self.0), fd)));
        Ok(())
    }

    /// Connections now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections.borrow().len()
    }

    /// Leaves writes that wait to whoever serves their front ends next, instead of waiting for them.
    pub fn let_writes_go(&self) {
        self.0
            .connections
            .borrow()
            .values()
            .for_each(|connection| connection.front.let_writes_go());
    }

    /// Takes no more requests, answers what is in flight, ends all connections. Writes that wait for space
    /// are let go after a while: their front end keeps them, for whoever serves it next. Returns when the
    /// device has nothing of this server's left to do but those.
    pub async fn close(&self) {
        self.0.closing.set(true);
        if let Some((fd, file)) = self.0.listener.borrow_mut().take() {
            end(&*fd);
            drop(file);
        }
        let all: Vec<(Rc<Front>, Rc<UnixStream>)> = {
            let connections = self.0.connections.borrow();
            connections.values().map(|c| (Rc::clone(&c.front), Rc::clone(&c.socket))).collect()
        };
        join_all(all.into_iter().map(|(front, socket)| async move {
            front.drain().await;
            end(&*socket);
        }))
        .await;
        self.0.ended.until(|| self.0.connections.borrow().is_empty()).await;
    }
}

/// Wakes whoever waits on the socket. It may be unconnected by now, which is as good.
fn end(fd: impl AsFd) {
    if let Err(error) = shutdown(fd, Shutdown::Both) {
        tracing::trace!(%error, "shutdown of a socket that is gone");
    }
}

async fn accept(server: Rc<Inner>, listener: Rc<OwnedFd>) {
    loop {
        let accepted = server.ring.accept(&listener).await;
        if server.closing.get() {
            return;
        }
        let begun = match accepted {
            Ok(_) if server.connections.borrow().len() >= CONNECTIONS => {
                tracing::warn!(limit = CONNECTIONS, "a vhost-user front end was turned away");
                Ok(())
            }
            Ok(fd) => serve(&server, UnixStream::from(fd)),
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            tracing::warn!(%error, "cannot serve a vhost-user front end");
            server.ring.local().sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// Begins a connection: its thread, and the task that does what it says.
fn serve(server: &Rc<Inner>, socket: UnixStream) -> std::io::Result<()> {
    let id = server.next.get();
    server.next.set(id + 1);
    let name = server.export.name.clone();
    let own = socket.try_clone()?;
    let (jobs, mut said) = unbounded::<Job>();
    std::thread::Builder::new()
        .name("vhost-user".into())
        .spawn(move || session::serve(socket, jobs, &name))?;
    let export = &server.export;
    let front = Rc::new(Front::new(
        &server.ring,
        Rc::clone(&export.device),
        &server.serial,
        export.is_read_only(),
        server.turns.of(id),
    ));
    let connection = Connection { front: Rc::clone(&front), socket: Rc::new(own) };
    drop(server.connections.borrow_mut().insert(id, connection));
    let server = Rc::clone(server);
    drop(server.ring.local().clone().spawn(async move {
        while let Some(job) = said.next().await {
            job(Rc::clone(&front)).await;
        }
        front.end().await;
        let connection = server.connections.borrow_mut().remove(&id);
        drop(connection);
        server.ended.wake();
    }));
    Ok(())
}
