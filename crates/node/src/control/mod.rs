//! The control thread: it owns the datastores with their catalogs, knows what is connected, and runs
//! every operation. Home threads do what it tells them; HTTP only asks it.
//!
//! Order of a start: the data directory is locked, datastores are opened (each catalog finishes or
//! undoes what a dead process had begun), connections are resumed, and only then are requests
//! served. Requests that come earlier wait.

mod guard;
mod link;
mod operations;
mod running;
mod schedules;
mod space;
mod stores;
mod transfers;
mod view;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use catalog::VolumeRecord;
use futures_channel::mpsc;
use io::Ring;
use model::{Change, Code, ObjectKind, ObjectRef, Operation, Problem, Reference};
use serde_json::Value;
use uuid::Uuid;

use crate::alarms::Alarms;
use crate::connections;
use crate::data_dir::DataDir;
use crate::events::Events;
use crate::home::Home;
use crate::problem::{Outcome, from_catalog};
use crate::state::StateError;
use crate::tasks::{About, Progress, Tasks};
use crate::worker::Worker;

use crate::transfer::places::{self, Places};
use crate::transfer::stream::Part;
use link::Link;
use stores::{Store, StoreEntry};

/// How long a stop waits for tasks that were told to end.
const STOP_WAIT: Duration = Duration::from_secs(20);

/// What all threads of the node share.
pub(crate) struct Shared {
    pub(crate) data: DataDir,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) alarms: Alarms,
    pub(crate) events: Events,
    /// The kernel's: logs in memory outlive the process, not the boot.
    pub(crate) boot: Uuid,
    pub(crate) host: String,
}

/// State that was read before the threads start, so that a damaged file fails the start.
pub(crate) struct Saved {
    stores: Vec<StoreEntry>,
    connections: Vec<connections::Entry>,
    /// What exports that were cut off left.
    left: BTreeSet<PathBuf>,
}

impl Saved {
    pub(crate) fn load(data: &DataDir) -> Result<Self, StateError> {
        Ok(Self {
            stores: stores::load(data)?,
            connections: connections::load(data)?,
            left: places::load(data)?,
        })
    }
}

/// The state of the control thread.
pub(crate) struct Control {
    ring: Ring,
    shared: Arc<Shared>,
    homes: Vec<Worker<Home>>,
    stores: RefCell<BTreeMap<Uuid, Rc<Store>>>,
    /// By connection: the snapshot's id, or the volume's.
    links: RefCell<BTreeMap<Uuid, Rc<Link>>>,
    /// Orders the writes of `connections.json`.
    saving: futures_util::lock::Mutex<()>,
    /// Volumes under an operation that excludes others, with its task.
    working: RefCell<HashMap<Uuid, Uuid>>,
    /// Volumes whose guests wait for space.
    held: RefCell<BTreeSet<Uuid>>,
    /// What is left by exports, and where files may stand.
    places: Places,
    /// Imports that wait for their data, by task.
    uploads: RefCell<HashMap<Uuid, mpsc::Sender<Part>>>,
    tasks_running: Cell<usize>,
    stopping: Cell<bool>,
}

impl Control {
    /// Brings back what was here before, then is ready for requests.
    pub(crate) async fn start(
        ring: Ring,
        shared: Arc<Shared>,
        homes: Vec<Worker<Home>>,
        saved: Saved,
    ) -> Rc<Self> {
        let places = Places::new(&ring, &shared.data, saved.left);
        places.sweep().await;
        let control = Rc::new(Self {
            ring,
            shared,
            homes,
            stores: RefCell::default(),
            links: RefCell::default(),
            saving: futures_util::lock::Mutex::new(()),
            working: RefCell::default(),
            held: RefCell::default(),
            places,
            uploads: RefCell::default(),
            tasks_running: Cell::new(0),
            stopping: Cell::new(false),
        });
        control.open_stores(saved.stores).await;
        control.resume_all(saved.connections).await;
        control.settle_leftovers().await;
        control.spawn(Rc::clone(&control).watch_space());
        control
    }

    fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        drop(self.ring.local().spawn(work));
    }

    /// Begins a task: `about` refuses what cannot even begin, `job` does the work.
    pub(crate) fn begin<F, Fut>(
        self: &Rc<Self>,
        about: impl FnOnce(&Self) -> Outcome<About>,
        job: F,
    ) -> Outcome<model::Task>
    where
        F: FnOnce(Rc<Self>, Rc<Progress>) -> Fut,
        Fut: Future<Output = Outcome<Value>> + 'static,
    {
        if self.stopping.get() {
            return Err(Problem::new(Code::NodeUnavailable, "The node is going down.")
                .hint("try again when it is back"));
        }
        let about = about(self)?;
        let span =
            tracing::info_span!("task", operation = %about.operation, object = %about.object.name);
        let progress = Rc::new(self.shared.tasks.begin(about));
        let task = progress.task();
        let work = job(Rc::clone(self), Rc::clone(&progress));
        let control = Rc::clone(self);
        self.tasks_running.set(self.tasks_running.get() + 1);
        self.spawn(async move {
            let outcome = work.await;
            match &outcome {
                Ok(_) => tracing::info!(parent: &span, "done"),
                Err(problem) => tracing::warn!(parent: &span, code = %problem.code, detail = %problem.detail, "failed"),
            }
            progress.finish(outcome);
            control.tasks_running.set(control.tasks_running.get() - 1);
        });
        Ok(task)
    }

    // --- finding objects ---

    /// The volume or template, and its datastore.
    fn find(&self, id: Uuid) -> Outcome<(Rc<Store>, VolumeRecord)> {
        self.find_if(id).ok_or_else(|| Problem::not_found(ObjectKind::Volume, id))
    }

    fn find_if(&self, id: Uuid) -> Option<(Rc<Store>, VolumeRecord)> {
        let stores = self.stores.borrow();
        stores.values().find_map(|store| {
            let record = store.catalog().ok()?.volume(id).ok()?;
            Some((Rc::clone(store), record))
        })
    }

    /// The volume that a caller means; the controller sends UUIDs, people at the socket may not.
    fn resolve(&self, reference: &Reference) -> Outcome<Uuid> {
        if let Some(id) = reference.id() {
            return Ok(id);
        }
        let (datastore, name) = match reference {
            Reference::Qualified { datastore, name } => (Some(datastore), name),
            Reference::Name(name) => (None, name),
            Reference::Id(id) => return Ok(*id),
        };
        let stores = self.stores.borrow();
        let mut found = stores
            .values()
            .filter(|store| datastore.is_none_or(|wanted| store.name() == wanted.as_str()))
            .filter_map(|store| store.catalog().ok()?.find(name.as_str()).ok());
        match (found.next(), found.next()) {
            (Some(record), None) => Ok(record.uuid),
            (Some(_), Some(_)) => Err(Problem::new(
                Code::AmbiguousName,
                format!("Several datastores have a '{name}'."),
            )
            .hint("name it DATASTORE/NAME")),
            (None, _) => Err(Problem::not_found(ObjectKind::Volume, name)),
        }
    }

    /// What a task about a volume or template says it is about.
    pub(crate) fn about(&self, operation: Operation, id: Uuid) -> Outcome<About> {
        let (_, record) = self.find(id)?;
        Ok(About::new(operation, reference(&record)))
    }

    /// Tells listeners how the volume is now.
    async fn tell_volume(&self, id: Uuid) {
        self.tell_volumes(&[id]).await;
    }

    /// Tells listeners how volumes, and their datastores, are now.
    async fn tell_volumes(&self, ids: &[Uuid]) {
        let mut stores = BTreeSet::new();
        for id in ids {
            let Some((store, record)) = self.find_if(*id) else { continue };
            let change = if record.template {
                Change::Template(self.template_view(&store, &record).await)
            } else {
                Change::Volume(self.volume_view(&store, &record).await)
            };
            self.shared.events.tell(change);
            stores.insert(store.id());
        }
        for store in stores {
            self.tell_store(store).await;
        }
    }

    /// Tells listeners how many clones these have now, and their snapshots.
    async fn tell_origins(&self, ids: &[Uuid]) {
        self.tell_volumes(ids).await;
        for id in ids {
            let mut snapshots = Vec::new();
            let Some((store, record)) = self.find_if(*id) else { continue };
            if record.template {
                continue;
            }
            // what was done is done, whether it can be told or not
            if let Err(error) = self.snapshots_of(&store, &record, &mut snapshots).await {
                tracing::warn!(volume = %id, %error, "its snapshots cannot be told of");
            }
            // at once: what is told later may be of one that is gone by then
            for snapshot in snapshots {
                self.shared.events.tell(Change::Snapshot(snapshot));
            }
        }
    }

    fn tell_removed(&self, object: ObjectRef) {
        self.shared.alarms.forget(object.id);
        self.shared.events.tell(Change::Removed(object));
    }

    // --- going down ---

    /// Takes no further tasks, tells those that run to end, and waits for them for a while.
    async fn quiesce(&self) {
        self.stopping.set(true);
        self.shared.tasks.cancel_all();
        let local = self.ring.local();
        let until = local.now() + STOP_WAIT;
        while self.tasks_running.get() > 0 && local.now() < until {
            local.sleep(Duration::from_millis(20)).await;
        }
        if self.tasks_running.get() > 0 {
            tracing::warn!("tasks are left unfinished; the next start finishes or undoes them");
        }
    }

    /// A planned restart: every disk is drained and flushed whole, so that its log is empty and any
    /// version can go on; connections stay on record (rule D2).
    pub(crate) async fn suspend(&self) {
        self.quiesce().await;
        for home in &self.homes {
            if home.call(|home| async move { home.suspend().await }).await.is_err() {
                tracing::error!(
                    "a home thread ended early; its logs are replayed at the next start"
                );
            }
        }
    }

    /// Disconnects everything cleanly. On an error the rest is still disconnected, and the node
    /// stays up so that somebody can look.
    pub(crate) async fn down(self: &Rc<Self>) -> Outcome<usize> {
        self.quiesce().await;
        let ids: Vec<Uuid> = self.links.borrow().keys().copied().collect();
        let mut failed = None;
        for id in &ids {
            if let Err(problem) = self.close_link(*id).await {
                failed = Some(problem);
            }
        }
        match failed {
            Some(problem) => {
                self.stopping.set(false);
                Err(problem)
            }
            None => Ok(ids.len()),
        }
    }
}

/// How a volume or template is named on the wire.
fn reference(record: &VolumeRecord) -> ObjectRef {
    let kind = if record.template { ObjectKind::Template } else { ObjectKind::Volume };
    ObjectRef { kind, id: record.uuid, name: record.name.clone() }
}

/// For `map_err`.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn catalog_problem(error: catalog::CatalogError) -> Problem {
    from_catalog(&error)
}
