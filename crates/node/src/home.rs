//! A home thread: the disks that live on it, each with the server that guests reach it by. Everything of a disk happens
//! here; the control thread only sends messages.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use catalog::LayerRef;
use datastore::{DirHandle, DirStore, FileStore as _, ObjectName};
use disk::{
    Access, Disk, LogIdentity, LogState, NewLeaves, OpenChain, OpenError, Rules, SharedCache,
    Volume,
};
use export::{Export, ListenError, NbdServer, VhostServer};
use futures_util::future::{Either, select};
use io::{
    BlockDevice, ByteRange, DeviceInfo, Extent, Io, IoError, IoErrorKind, LogMemory, Request,
    Result, Ring, ShmFile,
};
use model::{Code, Problem, Protocol};
use uuid::Uuid;

use crate::problem::{Outcome, from_datastore, from_io};
use crate::wait::until_free;

/// Space of a metadata log: tens of thousands of changes between two flushes, and small beside the
/// host's memory, of which every connected volume takes so much.
pub(crate) const LOG_BYTES: usize = 2 << 20;
/// Lengths of logs that are read: another version's may be longer.
pub(crate) const LOG_LENGTHS: RangeInclusive<usize> = disk::LOG_MIN..=64 << 20;

/// How often a drain looks whether it waits for requests that wait for space.
const HELD_POLL: Duration = Duration::from_millis(100);

/// Where a connection listens.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A unix socket.
    Socket(PathBuf),
    /// The loopback address; 0 lets the system choose a port.
    Tcp(u16),
}

/// The metadata logs of a writable disk.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// One for each segment.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) identity: LogIdentity,
    pub(crate) state: LogState,
}

/// All that a home needs to open a disk.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    /// The connection: the exported snapshot's id, or the volume's.
    pub(crate) id: Uuid,
    pub(crate) datastore: DirHandle,
    /// The chain of each segment, leaf first, as the catalog says it.
    pub(crate) segments: Vec<Vec<LayerRef>>,
    /// Whether the volume keeps its space whatever the guest discards.
    pub(crate) keep_space: bool,
    /// None: read-only.
    pub(crate) log: Option<Log>,
    /// The export's name.
    pub(crate) name: String,
    /// How guests reach it.
    pub(crate) protocol: Protocol,
}

/// How a disk is doing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) id: Uuid,
    /// Requests that wait for space.
    pub(crate) held: u64,
    /// A flush failed: every later one does (rule D7).
    pub(crate) failed: bool,
}

/// What lets guests in.
enum Server {
    Nbd(NbdServer),
    VhostUser(VhostServer),
}

impl Server {
    fn new(protocol: Protocol, ring: &Ring, export: Export, id: Uuid) -> Self {
        match protocol {
            Protocol::Nbd => Self::Nbd(NbdServer::new(ring, export)),
            Protocol::VhostUser => {
                // stays the same when the volume is renamed, and differs in what a guest sees of it
                let serial = id.simple().to_string();
                Self::VhostUser(VhostServer::new(ring, export, serial))
            }
        }
    }

    /// Returns the port where it is TCP.
    fn listen(&self, place: &Place) -> std::result::Result<Option<u16>, ListenError> {
        match (self, place) {
            (Self::Nbd(server), Place::Socket(path)) => server.listen_unix(path).map(|()| None),
            (Self::Nbd(server), Place::Tcp(port)) => server
                .listen_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, *port)))
                .map(|address| Some(address.port())),
            (Self::VhostUser(server), Place::Socket(path)) => {
                server.listen_unix(path).map(|()| None)
            }
            (Self::VhostUser(_), Place::Tcp(_)) => Err(ListenError::UnixOnly),
        }
    }

    fn let_writes_go(&self) {
        if let Self::VhostUser(server) = self {
            server.let_writes_go();
        }
    }

    async fn close(&self) {
        match self {
            Self::Nbd(server) => server.close().await,
            Self::VhostUser(server) => server.close().await,
        }
    }
}

struct Served {
    disk: Volume,
    server: Server,
    store: DirStore,
    datastore: Uuid,
    failed: Rc<Cell<bool>>,
    /// The layers in which the disk goes on after the snapshot that is being made.
    next: RefCell<Option<NewLeaves>>,
    /// Whether the gate is shut for a snapshot. A disk that closes shuts it too, and for good.
    gated: Cell<bool>,
}

/// A disk whose failed flushes are noticed: they are an alarm, not only the guest's business.
struct Watched {
    disk: Volume,
    failed: Rc<Cell<bool>>,
}

impl BlockDevice for Watched {
    fn info(&self) -> DeviceInfo {
        self.disk.info()
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        if !matches!(request, Request::Flush) {
            return self.disk.submit(request);
        }
        Box::pin(async move {
            let flushed = self.disk.submit(request).await;
            note(&self.failed, flushed)
        })
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        self.disk.extents(range)
    }
}

/// Remembers a flush that failed; one that came too late for a disk that closed did not.
fn note(failed: &Cell<bool>, flushed: Result<()>) -> Result<()> {
    if flushed.as_ref().is_err_and(|e| !matches!(e.kind, IoErrorKind::Closed | IoErrorKind::Busy)) {
        failed.set(true);
    }
    flushed
}

/// The state of a home thread.
pub(crate) struct Home {
    ring: Ring,
    /// Of all home threads.
    cache: SharedCache,
    served: RefCell<HashMap<Uuid, Rc<Served>>>,
}

impl Home {
    pub(crate) fn new(ring: Ring, cache: SharedCache) -> Self {
        Self { ring, cache, served: RefCell::default() }
    }

    fn served(&self, id: Uuid) -> Result<Rc<Served>> {
        self.served.borrow().get(&id).cloned().ok_or_else(|| {
            IoError::new(IoErrorKind::Closed, format!("connection {id} is not open"))
        })
    }

    /// Opens the chain; nobody can reach the disk before [`Home::listen`].
    pub(crate) async fn open(&self, opening: Opening) -> Outcome<()> {
        let store = opening.datastore.on(&self.ring);
        let mut disks = Vec::with_capacity(opening.segments.len());
        for at in 0..opening.segments.len() {
            match self.open_segment(&store, &opening, at).await {
                Ok(disk) => disks.push(disk),
                Err(problem) => {
                    // What was opened must not go on by itself, nor keep its files from the next try.
                    disks.iter().for_each(Disk::abandon);
                    return Err(problem);
                }
            }
        }
        let disk = Volume::new(disks);
        let failed = Rc::new(Cell::new(false));
        let device: Rc<dyn BlockDevice> =
            Rc::new(Watched { disk: disk.clone(), failed: Rc::clone(&failed) });
        let export = Export {
            name: opening.name.clone(),
            description: format!("Shale volume {}", opening.name),
            device,
            read_only: opening.log.is_none(),
        };
        let served = Served {
            disk,
            server: Server::new(opening.protocol, &self.ring, export, opening.id),
            store,
            datastore: opening.datastore.identity().uuid,
            failed,
            next: RefCell::default(),
            gated: Cell::new(false),
        };
        self.served.borrow_mut().insert(opening.id, Rc::new(served));
        Ok(())
    }

    async fn open_segment(&self, store: &DirStore, opening: &Opening, at: usize) -> Outcome<Disk> {
        let layers = opening.segments.get(at).map_or(&[][..], Vec::as_slice);
        let mut files = Vec::with_capacity(layers.len());
        // Base first, as the disk wants them. The leaf alone is written: its lock is the barrier
        // against the last requests of a dead predecessor (rule P1).
        for (from_leaf, layer) in layers.iter().enumerate().rev() {
            let writes = from_leaf == 0 && opening.log.is_some();
            let access = if writes { datastore::Access::Write } else { datastore::Access::Read };
            let name = ObjectName::Layer(layer.uuid);
            let file =
                until_free(self.ring.local(), &name.to_string(), || store.open(&name, access))
                    .await
                    .map_err(|error| from_datastore(&error))?;
            files.push(file);
        }
        let access = match &opening.log {
            None => Access::ReadOnly,
            Some(log) => {
                let path = log.paths.get(at).expect("a log for each segment");
                let memory = open_log(path, log.state).map_err(|error| from_io(&error))?;
                Access::Write { memory, identity: log.identity, state: log.state }
            }
        };
        let fixed_base = layers.last().is_some_and(|base| base.fixed);
        let (keep_space, rules, cache) = (opening.keep_space, Rules::all(), self.cache.clone());
        let chain = OpenChain { files, fixed_base, keep_space, access, rules, cache };
        Disk::open(self.ring.local().clone(), chain)
            .await
            .map_err(|error| from_open(&opening.name, &error))
    }

    /// Lets clients in; returns the port where it is TCP.
    pub(crate) fn listen(&self, id: Uuid, place: &Place) -> Outcome<Option<u16>> {
        let served = self.served(id).map_err(|error| from_io(&error))?;
        served.server.listen(place).map_err(|error| {
            Problem::new(Code::IoError, format!("{error}."))
                .hint("see that nothing else listens there, then try again")
        })
    }

    /// Answers what is under way, then closes the disk with a full flush.
    pub(crate) async fn close(&self, id: Uuid) -> Result<()> {
        let served = self.served(id)?;
        let early = self.drain(id, &served, Volume::close).await;
        let closed = match early {
            Some(outcome) => outcome,
            None => served.disk.close().await,
        };
        self.served.borrow_mut().remove(&id);
        closed
    }

    /// Answers what is under way and closes the sockets. Requests that wait for space cannot be
    /// waited for (rule N1): then `end` ends the disk under them, and its outcome is returned.
    async fn drain(
        &self,
        id: Uuid,
        served: &Served,
        end: impl AsyncFn(&Volume) -> Result<()>,
    ) -> Option<Result<()>> {
        let mut closing = pin!(served.server.close());
        loop {
            let pause = pin!(self.ring.local().sleep(HELD_POLL));
            if let Either::Left(_) = select(closing.as_mut(), pause).await {
                return None;
            }
            if served.disk.stats().held > 0 {
                tracing::warn!(%id, "closing while requests wait for space");
                // a guest keeps its own for the next process; a client's fail
                served.server.let_writes_go();
                let outcome = end(&served.disk).await;
                served.disk.abandon();
                closing.await;
                return Some(outcome);
            }
        }
    }

    /// Ends a disk as it is: it must not be written any more.
    pub(crate) async fn abandon(&self, id: Uuid) {
        let Ok(served) = self.served(id) else { return };
        served.disk.abandon();
        served.server.close().await;
        self.served.borrow_mut().remove(&id);
    }

    /// Flushes, and opens the new leaves, which are durable: nothing of it is left for the gate.
    pub(crate) async fn prepare(&self, id: Uuid, leaves: &[Uuid]) -> Outcome<()> {
        let served = self.served(id).map_err(|error| from_io(&error))?;
        let mut files = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            let opened =
                served.store.open(&ObjectName::Layer(*leaf), datastore::Access::Write).await;
            files.push(opened.map_err(|error| from_datastore(&error))?);
        }
        let leaves = served.disk.open_leaves(files).await;
        let leaves = leaves.map_err(|error| from_open("the new leaf", &error))?;
        *served.next.borrow_mut() = Some(leaves);
        note(&served.failed, served.disk.prepare().await).map_err(|error| from_io(&error))
    }

    pub(crate) async fn gate(&self, id: Uuid) -> Result<()> {
        let served = self.served(id)?;
        let gated = served.disk.gate().await;
        served.gated.set(gated.is_ok());
        note(&served.failed, gated)
    }

    /// Goes on in the prepared leaves, which are committed by now.
    pub(crate) fn switch(&self, id: Uuid, leaves: &[Uuid]) -> Outcome<()> {
        let served = self.served(id).map_err(|error| from_io(&error))?;
        let next = served.next.borrow_mut().take().filter(|next| next.uuids() == leaves);
        let next = next.ok_or_else(|| {
            let names: Vec<String> = leaves.iter().map(Uuid::to_string).collect();
            let message = format!("the new leaf {} was not prepared.", names.join(", "));
            Problem::new(Code::IoError, message)
        })?;
        served.disk.switch(next);
        Ok(())
    }

    pub(crate) fn ungate(&self, id: Uuid) {
        if let Ok(served) = self.served(id) {
            drop(served.next.borrow_mut().take());
            if served.gated.take() {
                served.disk.ungate();
            }
        }
    }

    /// Space of a datastore may be there again.
    pub(crate) fn space_freed(&self, datastore: Uuid) {
        let served = self.served.borrow();
        served.values().filter(|s| s.datastore == datastore).for_each(|s| s.disk.space_freed());
    }

    /// How every disk is doing.
    pub(crate) fn reports(&self) -> Vec<Report> {
        let served = self.served.borrow();
        served
            .iter()
            .map(|(id, served)| Report {
                id: *id,
                held: served.disk.stats().held,
                failed: served.failed.get(),
            })
            .collect()
    }

    /// Drains every disk and makes all durable, so that its log is empty; then nothing enters any
    /// more. Sockets are closed: clients that reconnect find the next process.
    pub(crate) async fn suspend(&self) {
        // each stays reachable to its end: a snapshot may have its gate shut, and the drain waits for that
        let all: Vec<_> =
            self.served.borrow().iter().map(|(id, served)| (*id, Rc::clone(served))).collect();
        futures_util::future::join_all(all.into_iter().map(|(id, served)| async move {
            let early = self.drain(id, &served, Volume::gate).await;
            let flushed = match early {
                Some(outcome) => outcome,
                None => served.disk.gate().await,
            };
            if let Err(error) = flushed {
                tracing::warn!(%id, %error, "not flushed; the log is replayed at the next start");
            }
            served.disk.abandon();
            served.server.close().await;
            self.served.borrow_mut().remove(&id);
        }))
        .await;
    }
}

fn open_log(path: &Path, state: LogState) -> Result<Rc<dyn LogMemory>> {
    let memory = match state {
        LogState::Replay => ShmFile::open(path, LOG_LENGTHS)?,
        LogState::Clean | LogState::Lost => {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let what = format!("removing the old metadata log {}", path.display());
                    return Err(IoError::system(what, error));
                }
                _ => {}
            }
            ShmFile::create(path, LOG_BYTES)?
        }
    };
    Ok(Rc::new(memory))
}

fn from_open(name: &str, error: &OpenError) -> Problem {
    let code = match error {
        OpenError::Io(error) => return from_io(error),
        OpenError::Log(_) => Code::Refused,
        OpenError::Empty
        | OpenError::TooLong(_)
        | OpenError::Format { .. }
        | OpenError::Parent { .. }
        | OpenError::Table { .. } => Code::Corrupt,
    };
    Problem::new(code, format!("{name} cannot be opened: {error}."))
        .hint("check the datastore: shale datastore check")
}
