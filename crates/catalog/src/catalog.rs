//! The catalog of one datastore: its index in memory, opening with recovery, and looking things up.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use datastore::{Access, Content, FileStore, Kind, ObjectName, Version};
use futures_util::lock::Mutex;
use futures_util::stream::{self as streams, Stream, StreamExt as _};
use uuid::Uuid;

use crate::api::{Counts, PendingMerge, Recovered, SnapshotNode, Source, named};
use crate::cell::{Cell, VolumeCell};
use crate::connect::Connection;
use crate::env::{Env, Running};
use crate::error::{CatalogError, Code, Named, Result};
use crate::intent::Intent;
use crate::layer;
use crate::locks::{Held, Locks, Names, Pace};
use crate::record::{Record, Snapshot, VolumeRecord, is_name};
use crate::segments::Tip;
use crate::space::{Ledger, Measured};
use crate::tree::{Broken, Node, Tree};
use crate::txn;

/// Objects that are looked at side by side when a catalog is opened.
const LOOKS: usize = 32;

/// The index in memory: nothing in it that a scan of the datastore would not give again.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) volumes: BTreeMap<Uuid, VolumeRecord>,
    pub(crate) versions: BTreeMap<Uuid, Version>,
    pub(crate) tree: Tree,
    pub(crate) sessions: BTreeMap<Uuid, VolumeCell>,
    /// Intents that are not removed yet: of running operations, and of those that wait for a retry.
    pub(crate) open: BTreeMap<Uuid, Intent>,
    pub(crate) connections: BTreeMap<Uuid, Connection>,
    /// Records and intents that cannot be read: object and problem.
    pub(crate) unreadable: Vec<(ObjectName, String)>,
    /// Layers whose headers cannot be read.
    pub(crate) damaged: BTreeMap<Uuid, String>,
    /// What the volumes took when they were looked at last.
    pub(crate) ledger: Ledger,
}

struct Inner {
    store: Rc<dyn FileStore>,
    env: Rc<dyn Env>,
    running: Rc<dyn Running>,
    locks: Locks,
    state: RefCell<State>,
    /// Held while the ledger is brought up: what was looked at earlier never replaces what was later.
    measuring: Mutex<()>,
}

/// The catalog of one datastore; clones are handles of the same.
#[derive(Clone)]
pub struct Catalog(Rc<Inner>);

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("state", &self.0.state).finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens the catalog: finishes or undoes every operation that a crash left open, and says which
    /// (invariant 7). While a record cannot be read, nothing is swept and such operations wait.
    ///
    /// # Errors
    /// If the datastore fails. What is damaged is reported by [`Catalog::check`], not here.
    pub async fn open(
        store: Rc<dyn FileStore>,
        env: Rc<dyn Env>,
        running: Rc<dyn Running>,
    ) -> Result<(Self, Vec<Recovered>)> {
        let mut state = State::default();
        let intents = load_intents(&*store, &mut state).await?;
        load_records(&*store, &mut state).await?;
        let mut recovered = Vec::new();
        for intent in intents {
            let settled = if state.unreadable.is_empty() {
                txn::recover(&*store, &intent, &state.named_layers()).await
            } else {
                Err(may_not_sweep(&state.unreadable))
            };
            let (finished, sentence) = match &settled {
                Ok(true) => {
                    (true, format!("{}: interrupted after its commit, finished", intent.title))
                }
                Ok(false) => {
                    (false, format!("{}: interrupted before its commit, undone", intent.title))
                }
                Err(error) => (false, format!("{}: interrupted; it waits: {error}", intent.title)),
            };
            recovered.push(Recovered { operation: intent.uuid, finished, sentence });
            if settled.is_err() {
                state.open.insert(intent.uuid, intent);
            }
        }
        if !recovered.is_empty() {
            state = State { open: state.open, unreadable: Vec::new(), ..State::default() };
            let _again = load_intents(&*store, &mut state).await?;
            load_records(&*store, &mut state).await?;
        }
        load_sessions(&*store, &mut state).await?;
        load_layers(&*store, &mut state).await?;
        let locks = Locks::default();
        locks.touch(state.volumes.keys().copied());
        let state = RefCell::new(state);
        let inner = Inner { store, env, running, locks, state, measuring: Mutex::new(()) };
        Ok((Self(Rc::new(inner)), recovered))
    }

    /// All volumes and templates, by name.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeRecord> {
        let mut all: Vec<_> = self.with(|state| state.volumes.values().cloned().collect());
        all.sort_by(|a: &VolumeRecord, b| a.name.cmp(&b.name));
        all
    }

    /// How many volumes, templates and snapshots there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.with(|state| {
            let mut counts = Counts::default();
            for record in state.volumes.values() {
                *(if record.template { &mut counts.templates } else { &mut counts.volumes }) += 1;
                counts.snapshots += record.snapshots.len();
            }
            counts
        })
    }

    /// One volume or template.
    ///
    /// # Errors
    /// `not-found`.
    pub fn volume(&self, id: Uuid) -> Result<VolumeRecord> {
        self.with(|state| state.volumes.get(&id).cloned()).ok_or_else(|| not_found(&id.to_string()))
    }

    /// A volume or template by name or UUID.
    ///
    /// # Errors
    /// `not-found`.
    pub fn find(&self, name_or_uuid: &str) -> Result<VolumeRecord> {
        let id = Uuid::try_parse(name_or_uuid).ok();
        self.with(|state| {
            let by_name = state.volumes.values().find(|volume| volume.name == name_or_uuid);
            by_name.or_else(|| state.volumes.get(&id?)).cloned()
        })
        .ok_or_else(|| not_found(name_or_uuid))
    }

    /// How many layers a read of what the volume is now may pass through, its origin's included.
    ///
    /// # Errors
    /// `not-found`.
    pub fn chain_length(&self, volume: Uuid) -> Result<usize> {
        let record = self.volume(volume)?;
        let layers = record.current.tip.layers().iter();
        Ok(self.with(|state| {
            layers.map(|layer| state.tree.path_so_far(*layer).len()).max().unwrap_or(0)
        }))
    }

    /// How many segments the volume has, each with a chain and, while it is written, a log of its own.
    ///
    /// # Errors
    /// `not-found`.
    pub fn segments(&self, volume: Uuid) -> Result<usize> {
        Ok(self.volume(volume)?.current.tip.layers().len())
    }

    /// What is running on the volume, in words.
    #[must_use]
    pub fn running_on(&self, volume: Uuid) -> Option<String> {
        self.0.locks.running(volume)
    }

    /// Whether the last session did not end in a clean close and none is open now: connect the volume
    /// once, which replays its log, and disconnect it.
    #[must_use]
    pub fn needs_recovery(&self, volume: Uuid) -> bool {
        let open = self.with(|state| state.sessions.get(&volume).is_some_and(|s| s.log.is_some()));
        open && !self.is_connected(volume)
    }

    /// Linked clones of a volume or template, by name.
    #[must_use]
    pub fn dependents(&self, volume: Uuid) -> Vec<Named> {
        self.with(|state| {
            let own = state.volumes.get(&volume);
            let owners = own.map(|record| state.owners_above(volume, &record.layers));
            state.named(&owners.unwrap_or_default())
        })
    }

    /// The tree of snapshots, parents before children.
    ///
    /// # Errors
    /// `not-found`, or if the datastore fails.
    pub async fn snapshot_tree(&self, volume: Uuid) -> Result<Vec<SnapshotNode>> {
        let record = self.volume(volume)?;
        self.snapshot_tree_by(volume, &self.measure_for(&record).await?)
    }

    /// The same by a measurement that is there.
    ///
    /// # Errors
    /// `not-found`.
    pub fn snapshot_tree_by(&self, volume: Uuid, measured: &Measured) -> Result<Vec<SnapshotNode>> {
        let record = self.volume(volume)?;
        let mut nodes = Vec::new();
        let mut next: Vec<(Option<Uuid>, usize)> = vec![(None, 0)];
        while let Some((parent, depth)) = next.pop() {
            let here = record.snapshots.iter().filter(|s| s.parent == parent && parent.is_none());
            let roots: Vec<Uuid> = here.map(|s| s.uuid).collect();
            if let Some(snapshot) = parent.and_then(|id| record.snapshot(id)) {
                let children: Vec<Uuid> = record
                    .snapshots
                    .iter()
                    .filter(|s| s.parent == Some(snapshot.uuid))
                    .map(|s| s.uuid)
                    .collect();
                next.extend(children.iter().rev().map(|id| (Some(*id), depth + 1)));
                nodes.push(SnapshotNode {
                    snapshot: snapshot.clone(),
                    depth,
                    children,
                    is_current_parent: record.current.parent == Some(snapshot.uuid),
                    clones: self.with(|s| s.owners_above(volume, snapshot.tip.layers()).len()),
                    used: measured.used_by(snapshot.tip.layers()),
                });
            }
            next.extend(roots.iter().rev().map(|id| (Some(*id), 0)));
        }
        Ok(nodes)
    }

    /// Linked clones that stand on a snapshot, by name.
    ///
    /// # Errors
    /// `not-found`.
    pub fn clones_of(&self, volume: Uuid, snapshot: Uuid) -> Result<Vec<Named>> {
        let record = self.volume(volume)?;
        let tip = &find_snapshot(&record, snapshot)?.tip;
        Ok(self.with(|state| state.named(&state.owners_above(volume, tip.layers()))))
    }

    /// Merges that are possible now, or were paused or interrupted: run [`Catalog::settle`] on their
    /// volumes.
    #[must_use]
    pub fn pending_merges(&self) -> Vec<PendingMerge> {
        let volumes: Vec<Uuid> = self.with(|state| state.volumes.keys().copied().collect());
        volumes.into_iter().filter_map(|volume| self.next_merge(volume)).collect()
    }

    /// The one of them that is possible on a volume, if any.
    #[must_use]
    pub fn pending_merge(&self, volume: Uuid) -> Option<PendingMerge> {
        self.next_merge(volume)
    }

    // -- for the operations ---------------------------------------------------------------------

    pub(crate) fn store(&self) -> &dyn FileStore {
        &*self.0.store
    }

    pub(crate) fn env(&self) -> &dyn Env {
        &*self.0.env
    }

    pub(crate) fn running(&self) -> &dyn Running {
        &*self.0.running
    }

    pub(crate) fn measuring(&self) -> &Mutex<()> {
        &self.0.measuring
    }

    pub(crate) fn locks(&self) -> &Locks {
        &self.0.locks
    }

    /// Looks at the index. Never across an await: closures cannot.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.state.borrow())
    }

    pub(crate) fn with_mut<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.state.borrow_mut())
    }

    /// Whether a disk of the volume is open for writing.
    pub(crate) fn is_connected(&self, volume: Uuid) -> bool {
        self.with(|state| state.connections.values().any(|c| c.writes && c.volume == volume))
            || self.running().is_connected(volume)
    }

    /// Refuses where nothing may be swept (R4).
    pub(crate) fn may_sweep(&self) -> Result<()> {
        self.with(|state| match state.unreadable.as_slice() {
            [] => Ok(()),
            unreadable => Err(may_not_sweep(unreadable)),
        })
    }

    /// Holds volumes for an operation, and settles what was left open on them.
    pub(crate) async fn hold(&self, volumes: &[Uuid], what: &str, pace: Pace) -> Result<Held> {
        let mut wanted = volumes.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let held = self.0.locks.hold(&wanted, what, pace).await?;
        self.settle_left_open(&wanted).await?;
        Ok(held)
    }

    /// Holds a volume and the owners of every layer below its own: for operations that change how many
    /// paths lead through those.
    pub(crate) async fn hold_with_origins(
        &self,
        volume: Uuid,
        what: &str,
        pace: Pace,
    ) -> Result<Held> {
        loop {
            let wanted = self.owners_below(volume)?;
            let held = self.hold(&wanted, what, pace).await?;
            if self.owners_below(volume)?.iter().all(|owner| wanted.contains(owner)) {
                return Ok(held);
            }
        }
    }

    fn owners_below(&self, volume: Uuid) -> Result<Vec<Uuid>> {
        let record = self.volume(volume)?;
        Ok(self.with(|state| {
            let layers = record.layers.iter().flat_map(|layer| state.tree.path_so_far(*layer));
            let owners = layers.filter_map(|layer| state.tree.get(layer)?.owner);
            let all: BTreeSet<Uuid> = owners.chain([volume]).collect();
            all.into_iter().collect()
        }))
    }

    /// Checks new names and keeps them from others until their volumes are there.
    pub(crate) fn take_names(&self, names: &[String]) -> Result<Names> {
        let taken = |name: &str| {
            CatalogError::new(
                Code::NameTaken,
                format!("there is a volume or template {name} already"),
            )
            .hint("choose another name")
        };
        let mut new = BTreeSet::new();
        for name in names {
            check_name(name)?;
            if !new.insert(name.as_str()) {
                return Err(taken(name));
            }
        }
        let known = self.with(|state| {
            let mut all = state.volumes.values().map(|volume| volume.name.as_str());
            all.find(|name| new.contains(name)).map(str::to_owned)
        });
        if let Some(name) = known {
            return Err(taken(&name));
        }
        let first = names.first().map_or("", String::as_str);
        self.0.locks.name(names).ok_or_else(|| taken(first))
    }

    /// The chain of a layer, leaf first.
    pub(crate) fn chain(&self, leaf: Uuid) -> Result<Vec<(Uuid, Node)>> {
        self.with(|state| {
            let path = state.tree.path(leaf).map_err(|broken| match broken {
                Broken::Missing(layer) => CatalogError::corrupt(
                    ObjectName::Layer(leaf),
                    match state.damaged.get(&layer) {
                        Some(problem) => format!("layer {layer} of its chain: {problem}"),
                        None => format!("layer {layer} of its chain is missing"),
                    },
                ),
                Broken::Cyclic(layer) => CatalogError::corrupt(
                    ObjectName::Layer(leaf),
                    format!("its parents come back to {layer}"),
                ),
            })?;
            Ok(path.into_iter().filter_map(|layer| Some((layer, state.tree.get(layer)?))).collect())
        })
    }

    /// The chain of each segment, leaf first.
    pub(crate) fn chains(&self, tip: &Tip) -> Result<Vec<Vec<(Uuid, Node)>>> {
        tip.layers().iter().map(|layer| self.chain(*layer)).collect()
    }

    /// The tip and size that a source stands for.
    pub(crate) fn source_tip(&self, source: Source) -> Result<(VolumeRecord, Tip, u64)> {
        let record = self.volume(source.volume)?;
        let (tip, size) = match source.snapshot {
            None => (record.current.tip.clone(), record.size),
            Some(id) => {
                let snapshot = find_snapshot(&record, id)?;
                (snapshot.tip.clone(), snapshot.size)
            }
        };
        Ok((record, tip, size))
    }

    /// Refuses what needs the volume at rest: disconnected, closed cleanly, its leaf unread.
    pub(crate) fn at_rest(&self, record: &VolumeRecord, doing: &str) -> Result<()> {
        self.disconnected(record, doing)?;
        if self.needs_recovery(record.uuid) {
            let message = format!(
                "cannot {doing} {}: its last session did not end in a clean close",
                record.name
            );
            return Err(CatalogError::new(Code::NotClean, message).hint(
                "connect it once, which replays its log, and disconnect it; then try again",
            ));
        }
        Ok(())
    }

    pub(crate) fn disconnected(&self, record: &VolumeRecord, doing: &str) -> Result<()> {
        if self.is_connected(record.uuid) {
            let message = format!("cannot {doing} {} while it is connected", record.name);
            return Err(CatalogError::new(Code::VolumeConnected, message)
                .hint("disconnect it first; its guest must be off"));
        }
        Ok(())
    }
}

pub(crate) fn find_snapshot(record: &VolumeRecord, id: Uuid) -> Result<&Snapshot> {
    record.snapshot(id).ok_or_else(|| {
        CatalogError::new(Code::NotFound, format!("{} has no snapshot {id}", record.name))
    })
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(CatalogError::new(Code::BadName, format!("{shown:?} is not a name"))
        .hint("a name is 1 to 63 of A-Z a-z 0-9 . _ -, starting with a letter or digit"))
}

pub(crate) fn refuse_template(record: &VolumeRecord, doing: &str) -> Result<()> {
    if !record.template {
        return Ok(());
    }
    Err(CatalogError::new(
        Code::IsTemplate,
        format!("cannot {doing} {}: it is a template", record.name),
    )
    .hint("deploy it, and change what was deployed"))
}

fn not_found(what: &str) -> CatalogError {
    CatalogError::new(Code::NotFound, format!("there is no volume or template {what}"))
}

fn may_not_sweep(unreadable: &[(ObjectName, String)]) -> CatalogError {
    let (object, problem) = unreadable.first().expect("called with at least one");
    let message = format!(
        "nothing may be deleted while {object} cannot be read, because it may name what would go: {problem}"
    );
    CatalogError::new(Code::RecordUnreadable, message)
        .hint("restore the object from a backup, or look at it by hand; check lists all of them")
}

impl State {
    /// Other volumes than `volume` that stand on `layers`, its own, and on no other volume in between. A
    /// layer that its volume has left, and that is kept for those that stand on it, stands for them.
    fn owners_above(&self, volume: Uuid, layers: &[Uuid]) -> BTreeSet<Uuid> {
        let (mut owners, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<Uuid> =
            layers.iter().flat_map(|layer| self.tree.children(*layer)).collect();
        while let Some(child) = open.pop() {
            // ends also where links lead in a circle
            if !seen.insert(child) {
                continue;
            }
            match self.tree.get(child).and_then(|node| node.owner) {
                None => {}
                Some(owner) if owner == volume => {}
                Some(owner) if self.stands_on(owner, child) => {
                    owners.insert(owner);
                }
                Some(_) => open.extend(self.tree.children(child)),
            }
        }
        owners
    }

    /// Whether a tip of the volume is `layer`, its own, or stands on it.
    fn stands_on(&self, volume: Uuid, layer: Uuid) -> bool {
        let Some(record) = self.volumes.get(&volume) else { return false };
        record.is_tip(layer)
            || record
                .tips()
                .flat_map(|(tip, _)| tip.layers())
                .any(|tip| self.tree.path_so_far(*tip).contains(&layer))
    }

    fn named(&self, volumes: &BTreeSet<Uuid>) -> Vec<Named> {
        let records = volumes.iter().filter_map(|id| self.volumes.get(id));
        let mut all: Vec<Named> = records.map(named).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Every layer that a record names.
    pub(crate) fn named_layers(&self) -> BTreeSet<Uuid> {
        self.volumes.values().flat_map(|volume| volume.layers.iter().copied()).collect()
    }

    /// The size that a record gives to a layer that is part of a tip, and that record's name.
    fn sizes_of_tips(&self) -> BTreeMap<Uuid, (u64, String)> {
        let mut sizes = BTreeMap::new();
        for volume in self.volumes.values() {
            for (tip, size) in volume.tips() {
                let layout = volume.layout_at(size);
                let layers = tip.layers().iter().enumerate();
                sizes.extend(
                    layers.map(|(at, layer)| (*layer, (layout.size_of(at), volume.name.clone()))),
                );
            }
        }
        sizes
    }
}

async fn load_intents(store: &dyn FileStore, state: &mut State) -> Result<Vec<Intent>> {
    let mut intents = Vec::new();
    for info in store.list(Kind::Intent).await? {
        let Some(id) = info.name.id() else { continue };
        let got = store.get(&info.name).await;
        let Some(bytes) = kept_or_noted(info.name, got, state) else { continue };
        match Intent::decode(id, &bytes) {
            Ok(intent) => intents.push(intent),
            Err(error) => state.unreadable.push((info.name, error.message)),
        }
    }
    Ok(intents)
}

/// An object's bytes; one that cannot be read, or is too long to be one of ours, is noted.
fn kept_or_noted(
    name: ObjectName,
    got: datastore::Result<Option<Content>>,
    state: &mut State,
) -> Option<Vec<u8>> {
    match got {
        Ok(None) => None,
        Ok(Some((version, bytes))) => {
            if let ObjectName::Record(id) = name {
                state.versions.insert(id, version);
            }
            Some(bytes)
        }
        // One object that cannot be read must not take the others away.
        Err(error) => {
            tracing::warn!(object = %name, %error, "an object cannot be read");
            state.unreadable.push((name, error.to_string()));
            None
        }
    }
}

/// Looks at many objects with some looks under way at a time; answers come in the order of `names`, so
/// what an opening finds does not depend on which look ends first.
fn at_once<N, T>(
    names: impl Iterator<Item = N>,
    look: impl AsyncFn(N) -> T,
) -> impl Stream<Item = T> {
    let look = Rc::new(look);
    streams::iter(names)
        .map(move |name| {
            let look = Rc::clone(&look);
            async move { look(name).await }
        })
        .buffered(LOOKS)
}

async fn load_records(store: &dyn FileStore, state: &mut State) -> Result<()> {
    let mut sets = Vec::new();
    let names = store.list(Kind::Record).await?.into_iter().map(|info| info.name);
    let mut found = std::pin::pin!(at_once(names, async |name| (name, store.get(&name).await)));
    while let Some((name, got)) = found.next().await {
        let Some(id) = name.id() else { continue };
        let Some(bytes) = kept_or_noted(name, got, state) else { continue };
        match Record::decode(id, &bytes) {
            Ok(Record::Volume(volume)) => drop(state.volumes.insert(id, volume)),
            Ok(Record::Set(set)) => sets.push(set),
            Err(error) => state.unreadable.push((name, error.message)),
        }
    }
    // A set that is still there is newer than its members.
    for member in sets.into_iter().flat_map(|set| set.volumes) {
        let known = state.volumes.get(&member.uuid);
        if known.is_none_or(|known| known.revision < member.revision) {
            state.volumes.insert(member.uuid, member);
        }
    }
    // Two records may not own one layer: whoever came second must not touch it.
    let mut owners: BTreeMap<Uuid, Uuid> = BTreeMap::new();
    for volume in state.volumes.values() {
        for layer in &volume.layers {
            if let Some(other) = owners.insert(*layer, volume.uuid) {
                let problem = format!("it owns layer {layer}, and so does record/{other}.json");
                state.unreadable.push((ObjectName::Record(volume.uuid), problem));
            }
        }
    }
    Ok(())
}

async fn load_sessions(store: &dyn FileStore, state: &mut State) -> Result<()> {
    let volumes: Vec<Uuid> = state.volumes.keys().copied().collect();
    let look = async |volume| (volume, store.get(&ObjectName::Cell(volume)).await);
    let mut found = std::pin::pin!(at_once(volumes.into_iter(), look));
    while let Some((volume, got)) = found.next().await {
        let name = ObjectName::Cell(volume);
        let Some(bytes) = kept_or_noted(name, got, state) else { continue };
        match Cell::decode(volume, &bytes) {
            Ok(Cell::Volume(cell)) => drop(state.sessions.insert(volume, cell)),
            Ok(Cell::Layer(_)) => state.unreadable.push((name, "it is the cell of a layer".into())),
            Err(error) => state.unreadable.push((name, error.message)),
        }
    }
    Ok(())
}

async fn load_layers(store: &dyn FileStore, state: &mut State) -> Result<()> {
    let mut owners: BTreeMap<Uuid, Uuid> = BTreeMap::new();
    let mut fixed: BTreeSet<Uuid> = BTreeSet::new();
    for volume in state.volumes.values() {
        owners.extend(volume.layers.iter().map(|layer| (*layer, volume.uuid)));
        fixed.extend(&volume.fixed_layers);
    }
    let sizes = state.sizes_of_tips();
    // Of those the record may be ahead.
    let rewrites = state.open.values().flat_map(|intent| &intent.rewrites);
    let growing: BTreeSet<Uuid> = rewrites.map(|rewrite| rewrite.layer).collect();
    let layers = store.list(Kind::Layer).await?.into_iter().filter_map(|info| info.name.id());
    let look = async |id| (id, read_node(store, id, fixed.contains(&id)).await);
    let mut found = std::pin::pin!(at_once(layers, look));
    while let Some((id, read)) = found.next().await {
        let known = sizes.get(&id).filter(|_| !growing.contains(&id));
        match read {
            Ok(node) if known.is_some_and(|(size, _)| *size != node.size) => {
                let (size, name) = known.expect("it was looked at");
                let problem =
                    format!("it is a disk of {} bytes; {name} says that it has {size}", node.size);
                state.damaged.insert(id, problem);
            }
            Ok(mut node) => {
                node.owner = owners.get(&id).copied();
                state.tree.insert(id, node);
            }
            // Whatever keeps one layer from being read must not take the others away.
            Err(error) => {
                tracing::warn!(layer = %id, %error, "a layer cannot be read");
                state.damaged.insert(id, error.message);
            }
        }
    }
    Ok(())
}

/// What a layer's own headers say.
pub(crate) async fn read_node(store: &dyn FileStore, id: Uuid, fixed: bool) -> Result<Node> {
    let file = store.open(&ObjectName::Layer(id), Access::Read).await?;
    let image = layer::open_image(&*file, id, fixed).await?;
    let parent = image.parent.as_ref().map(|parent| parent.uuid);
    Ok(Node { parent, size: image.size.bytes(), fixed, owner: None })
}
