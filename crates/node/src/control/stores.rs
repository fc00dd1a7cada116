//! The datastores in use on this host. The list of directories is the node's own state; everything
//! about a datastore stands in the datastore.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use catalog::Catalog;
use datastore::{DatastoreError, DirHandle, FileStore, Identity};
use io::IoErrorKind;
use model::{
    Change, CheckFinding, CheckReport, Code, CreateDatastore, ObjectKind, ObjectRef, Operation,
    Problem, Severity, Size,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::running::Homes;
use super::{Control, catalog_problem};
use crate::alarms;
use crate::crash::{self, CrashStore};
use crate::data_dir::{DataDir, replace_file};
use crate::env::NodeEnv;
use crate::events::now;
use crate::problem::{Outcome, from_datastore};
use crate::state::{self, FORMAT, StateError};
use crate::tasks::{About, Progress};
use crate::wait::until_free;

const FILE: &str = "datastores.json";

/// One line of the node's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoreEntry {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    datastores: Vec<StoreEntry>,
}

pub(super) fn load(data: &DataDir) -> Result<Vec<StoreEntry>, StateError> {
    let without = "datastores are not in use until they are created again with their directories";
    let document: Option<Document> = state::load(&data.state(FILE), without)?;
    Ok(document.map_or_else(Vec::new, |document| document.datastores))
}

/// A datastore and whether it can be used.
pub(super) struct Store {
    pub(super) entry: StoreEntry,
    state: RefCell<State>,
}

enum State {
    Open(Rc<Opened>),
    Unavailable(Problem),
}

/// What an open datastore consists of.
pub(super) struct Opened {
    pub(super) handle: DirHandle,
    pub(super) catalog: Catalog,
    pub(super) files: Rc<dyn FileStore>,
    pub(super) homes: Rc<Homes>,
}

impl Store {
    pub(super) fn id(&self) -> Uuid {
        self.entry.id
    }

    pub(super) fn name(&self) -> &str {
        &self.entry.name
    }

    pub(super) fn reference(&self) -> ObjectRef {
        ObjectRef { kind: ObjectKind::Datastore, id: self.entry.id, name: self.entry.name.clone() }
    }

    /// All of it, or why it cannot be used.
    pub(super) fn opened(&self) -> Outcome<Rc<Opened>> {
        match &*self.state.borrow() {
            State::Open(opened) => Ok(Rc::clone(opened)),
            State::Unavailable(problem) => Err(problem.clone()),
        }
    }

    pub(super) fn catalog(&self) -> Outcome<Catalog> {
        self.opened().map(|opened| opened.catalog.clone())
    }
}

impl Control {
    pub(super) fn store(&self, id: Uuid) -> Outcome<Rc<Store>> {
        let found = self.stores.borrow().get(&id).cloned();
        found.ok_or_else(|| Problem::not_found(ObjectKind::Datastore, id))
    }

    pub(super) fn all_stores(&self) -> Vec<Rc<Store>> {
        self.stores.borrow().values().cloned().collect()
    }

    /// The datastore that a caller means.
    pub(crate) fn resolve_store(&self, reference: &model::Reference) -> Outcome<Uuid> {
        if let Some(id) = reference.id() {
            return Ok(id);
        }
        let name = reference.to_string();
        let stores = self.stores.borrow();
        let found = stores.values().find(|store| store.name() == name).map(|store| store.id());
        found.ok_or_else(|| Problem::not_found(ObjectKind::Datastore, name))
    }

    /// Opens what is on the list. One that cannot be opened is kept, with an alarm, and tried again.
    pub(super) async fn open_stores(self: &Rc<Self>, entries: Vec<StoreEntry>) {
        for entry in entries {
            self.open_entry(entry).await;
        }
    }

    async fn open_entry(self: &Rc<Self>, entry: StoreEntry) {
        let state = match self.open_dir(&entry).await {
            Ok(opened) => {
                self.shared.alarms.clear(alarms::DATASTORE_UNAVAILABLE, entry.id);
                State::Open(Rc::new(opened))
            }
            Err(problem) => State::Unavailable(problem),
        };
        let failed = match &state {
            State::Open(_) => None,
            State::Unavailable(problem) => Some(problem.detail.clone()),
        };
        let store = Rc::new(Store { entry, state: RefCell::new(state) });
        if let Some(detail) = failed {
            self.shared.alarms.raise(
                alarms::DATASTORE_UNAVAILABLE,
                Severity::Critical,
                store.reference(),
                format!("Datastore {} cannot be used: {detail}", store.name()),
                "put right what it says; the node tries again by itself",
            );
        }
        self.stores.borrow_mut().insert(store.id(), store);
    }

    async fn open_dir(self: &Rc<Self>, entry: &StoreEntry) -> Outcome<Opened> {
        let dir = entry.dir.clone();
        let what = format!("datastore {}", entry.name);
        let handle = until_free(self.ring.local(), &what, || {
            let dir = dir.clone();
            self.ring.run_blocking(move || DirHandle::open(&dir))
        })
        .await
        .map_err(|error| from_datastore(&error))?;
        if handle.identity().uuid != entry.id {
            return Err(Problem::new(
                Code::Refused,
                format!(
                    "{} holds another datastore than {} ({}).",
                    entry.dir.display(),
                    entry.name,
                    entry.id
                ),
            )
            .hint("mount the right file system there"));
        }
        self.open_catalog(handle, &entry.name).await
    }

    async fn open_catalog(self: &Rc<Self>, handle: DirHandle, name: &str) -> Outcome<Opened> {
        let files: Rc<dyn FileStore> = Rc::new(handle.on(&self.ring));
        let files = if crash::is_armed() { Rc::new(CrashStore(files)) } else { files };
        let homes = Homes::new(self);
        let env = Rc::new(NodeEnv::new(self.shared.boot));
        let running: Rc<dyn catalog::Running> = Rc::<Homes>::clone(&homes);
        let (catalog, recovered) =
            Catalog::open(Rc::clone(&files), env, running).await.map_err(catalog_problem)?;
        for one in recovered {
            let how = if one.finished { "finished" } else { "undone" };
            tracing::warn!(datastore = name, operation = %one.operation, how, "{}", one.sentence);
        }
        Ok(Opened { handle, catalog, files, homes })
    }

    /// Tries again what could not be opened.
    pub(super) async fn retry_stores(self: &Rc<Self>) {
        let failed: Vec<StoreEntry> = self
            .all_stores()
            .iter()
            .filter(|store| store.opened().is_err())
            .map(|store| store.entry.clone())
            .collect();
        for entry in failed {
            let id = entry.id;
            let dir = entry.dir.clone();
            // One look first: waiting for a lock is for the start, not for every retry.
            let look = self.ring.run_blocking(move || DirHandle::open(&dir).map(drop)).await;
            if look.is_ok() {
                self.open_entry(entry).await;
                self.resume_store(id).await;
                if let Ok(store) = self.store(id) {
                    self.settle_store(&store).await;
                }
                self.tell_store(id).await;
            }
        }
    }

    async fn save_stores(&self) -> Outcome<()> {
        let _ordered = self.saving.lock().await;
        let datastores = self.all_stores().iter().map(|store| store.entry.clone()).collect();
        let document = Document { format: FORMAT, datastores };
        let bytes = serde_json::to_vec_pretty(&document).expect("plain data serializes");
        let path = self.shared.data.state(FILE);
        self.ring
            .run_blocking(move || replace_file(&path, &bytes))
            .await
            .map_err(|error| Problem::new(Code::IoError, format!("{error}.")))
    }

    pub(super) async fn tell_store(&self, id: Uuid) {
        if let Ok(store) = self.store(id) {
            let view = self.store_view(&store).await;
            self.shared.events.tell(Change::Datastore(view));
        }
    }

    /// What a creation is about: it has no datastore yet.
    pub(crate) fn about_new_store(&self, request: &CreateDatastore) -> Outcome<About> {
        let name = request.name.as_str();
        if self.stores.borrow().values().any(|store| store.name() == name) {
            return Err(Problem::new(
                Code::NameTaken,
                format!("There is a datastore '{name}' already."),
            )
            .hint("choose another name"));
        }
        if !Path::new(&request.dir).is_absolute() {
            return Err(Problem::new(
                Code::BadRequest,
                format!("The directory '{}' is not an absolute path.", request.dir),
            ));
        }
        let object =
            ObjectRef { kind: ObjectKind::Datastore, id: Uuid::nil(), name: name.to_owned() };
        Ok(About::new(Operation::DatastoreCreate, object))
    }

    /// Makes a datastore in a directory, or takes the one that is there into use.
    pub(crate) async fn create_store(self: Rc<Self>, request: CreateDatastore) -> Outcome<Value> {
        let name = request.name.to_string();
        let dir = PathBuf::from(&request.dir);
        let identity =
            Identity { uuid: Uuid::new_v4(), name: name.clone(), created: now().unix_ms() };
        let used: Vec<_> = self.all_stores().iter().map(|store| store.entry.clone()).collect();
        let handle = self
            .ring
            .run_blocking(move || {
                if let (Some(held), Ok(wanted)) =
                    (used.iter().find(|entry| same_dir(&entry.dir, &dir)), dir.canonicalize())
                {
                    let text = format!("it is datastore {} of this node already", held.name);
                    return Err(DatastoreError::Directory {
                        path: wanted,
                        kind: IoErrorKind::Exists,
                        problem: text,
                    });
                }
                match DirHandle::open(&dir) {
                    Err(error) if error.kind() == IoErrorKind::NotFound => {
                        DirHandle::create(&dir, &identity)
                    }
                    outcome => outcome,
                }
            })
            .await
            .map_err(|error| from_datastore(&error))?;
        let id = handle.identity().uuid;
        if self.stores.borrow().contains_key(&id) {
            return Err(Problem::new(
                Code::Conflict,
                format!("Datastore {id} is in use on this node already, from another directory."),
            ));
        }
        let dir = handle.path().to_path_buf();
        let opened = self.open_catalog(handle, &name).await?;
        let entry = StoreEntry { id, name, dir };
        let store = Rc::new(Store { entry, state: RefCell::new(State::Open(Rc::new(opened))) });
        self.stores.borrow_mut().insert(id, Rc::clone(&store));
        if let Err(problem) = self.save_stores().await {
            self.stores.borrow_mut().remove(&id);
            return Err(problem);
        }
        self.tell_store(id).await;
        self.settle_store(&store).await;
        to_value(&self.store_view(&store).await)
    }

    pub(crate) fn about_store(&self, operation: Operation, id: Uuid) -> Outcome<About> {
        Ok(About::new(operation, self.store(id)?.reference()))
    }

    /// Forgets a datastore that holds nothing.
    pub(crate) async fn forget_store(self: Rc<Self>, id: Uuid) -> Outcome<Value> {
        let store = self.store(id)?;
        if let Ok(catalog) = store.catalog() {
            let volumes = catalog.volumes();
            if !volumes.is_empty() {
                let names: Vec<_> = volumes.iter().take(5).map(|v| v.name.clone()).collect();
                return Err(Problem::new(
                    Code::HasDependents,
                    format!(
                        "Datastore {} holds {} volumes and templates: {}{}.",
                        store.name(),
                        volumes.len(),
                        names.join(", "),
                        if volumes.len() > names.len() { " and others" } else { "" }
                    ),
                )
                .hint("delete or move them first"));
            }
        }
        let linked = self.links.borrow().values().any(|link| link.entry().datastore == id);
        if linked {
            return Err(Problem::new(
                Code::Connected,
                format!("Volumes of datastore {} are connected.", store.name()),
            )
            .hint("disconnect them first"));
        }
        self.stores.borrow_mut().remove(&id);
        if let Err(problem) = self.save_stores().await {
            self.stores.borrow_mut().insert(id, store);
            return Err(problem);
        }
        self.tell_removed(store.reference());
        Ok(Value::Null)
    }

    /// Looks at every object of a datastore; changes nothing.
    pub(crate) async fn check_store(
        self: Rc<Self>,
        id: Uuid,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        if self.store(id)?.opened().is_err() {
            self.retry_stores().await;
        }
        let catalog = self.store(id)?.catalog()?;
        progress.running("checking");
        let report = catalog.check().await.map_err(catalog_problem)?;
        let findings = report
            .findings
            .into_iter()
            .map(|finding| CheckFinding {
                severity: match finding.severity {
                    catalog::Severity::Note => Severity::Info,
                    catalog::Severity::Warning => Severity::Warning,
                    catalog::Severity::Error => Severity::Critical,
                },
                object: finding.object,
                message: finding.message,
            })
            .collect();
        let objects = u64::try_from(report.layers + report.volumes).unwrap_or(u64::MAX);
        to_value(&CheckReport { objects, bytes: Size::from_bytes(0), findings })
    }
}

fn same_dir(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// A wire type as a task's result.
pub(super) fn to_value<T: Serialize>(view: &T) -> Outcome<Value> {
    serde_json::to_value(view).map_err(|error| Problem::new(Code::Internal, error.to_string()))
}
