//! One operation as a transaction: intent, cells, one commit, the rest. Everything after the commit,
//! and everything that undoes, reads only the intent and the datastore, so that it is the same code
//! while the operation runs and after a crash; each step can be done again.

use std::collections::BTreeSet;

use datastore::{Access, Expected, FileStore, ObjectName, Staged};
use io::{ByteCount, ByteRange, Clear, Durability, Effort, IoBuf, IoErrorKind, Request};
use uuid::Uuid;

use crate::catalog::{Catalog, State, read_node};
use crate::cell::{Cell, LayerCell, LayerState, MAX_OPEN, VolumeCell};
use crate::error::{CatalogError, Code, Result};
use crate::intent::{CellStep, CellValue, Commit, CutBack, Intent, NewLayer, Rewrite};
use crate::layer;
use crate::record::{Record, SetRecord, VolumeRecord};
use crate::tree::{Node, Tree};

/// What an operation is going to change.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The operation in words.
    pub(crate) title: String,
    /// Records as they will be; their revision and operation are set when it begins.
    pub(crate) puts: Vec<VolumeRecord>,
    /// A volume that goes.
    pub(crate) removes: Option<Uuid>,
    pub(crate) creates: Vec<NewLayer>,
    pub(crate) drops: Vec<Uuid>,
    pub(crate) rewrites: Vec<Rewrite>,
    pub(crate) cut_back: Vec<CutBack>,
    pub(crate) void_sessions: Vec<Uuid>,
    /// Volumes that it concerns beyond those whose records change.
    pub(crate) concerns: Vec<Uuid>,
    /// Layers whose cells are settled even if tree and records give them the same value as before:
    /// those that a merge had marked.
    pub(crate) marked: Vec<Uuid>,
}

/// An operation between its intent and its commit.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) intent: Intent,
    pub(crate) puts: Vec<VolumeRecord>,
}

impl Catalog {
    /// Writes the intent. From here on the operation is either committed or undone.
    pub(crate) async fn begin(&self, mut plan: Plan) -> Result<Begun> {
        let uuid = self.env().new_uuid();
        for record in &mut plan.puts {
            record.revision += 1;
            record.operation = uuid;
        }
        let touched = plan.drops.iter().copied().chain(plan.rewrites.iter().map(|r| r.layer));
        if let Some(reader) = self.locks().reader_of(touched) {
            return Err(CatalogError::busy(&plan.title, &reader));
        }
        if !plan.drops.is_empty() {
            self.may_sweep()?;
        }
        let own: u64 = plan.creates.iter().map(|new| layer::own_bytes(new.size)).sum();
        self.has_room(own, &plan.title).await?;
        let commit = match (plan.removes, plan.puts.as_slice()) {
            (Some(volume), _) => Commit::Removed(volume),
            (None, [one]) => Commit::Record(one.uuid),
            (None, [first, ..]) => Commit::Set(first.uuid),
            (None, []) => Commit::Forward,
        };
        let cells = self.with_mut(|state| cell_steps(state, &plan));
        let owners = plan.puts.iter().map(|record| record.uuid).chain(plan.removes);
        let intent = Intent {
            uuid,
            title: plan.title,
            created: self.env().now_ms(),
            volumes: owners.chain(plan.concerns).collect(),
            commit,
            creates: plan.creates,
            drops: plan.drops,
            rewrites: plan.rewrites,
            cut_back: plan.cut_back,
            cells,
            void_sessions: plan.void_sessions,
            drop_cells: plan.removes.into_iter().collect(),
        };
        self.with_mut(|state| state.open.insert(uuid, intent.clone()));
        let begun = Begun { intent, puts: plan.puts };
        let name = ObjectName::Intent(uuid);
        match self.store().put(&name, Expected::Absent, begun.intent.encode()).await {
            Ok(_) => Ok(begun),
            Err(error) => Err(self.abort(begun, error.into()).await),
        }
    }

    /// Undoes an operation that did not commit, and says why it failed.
    pub(crate) async fn abort(&self, begun: Begun, why: CatalogError) -> CatalogError {
        let Begun { intent, .. } = begun;
        let why = why.during(format_args!("cannot {}", intent.title));
        match undo(self.store(), &intent).await {
            Ok(()) => {
                self.with_mut(|state| state.open.remove(&intent.uuid));
                why
            }
            Err(error) => {
                tracing::warn!(operation = %intent.uuid, %error, "undoing waits");
                let hint = "what it made is removed before the next operation on the same volume, or \
                            when the datastore is opened again";
                CatalogError { hint: Some(hint.into()), ..why }
            }
        }
    }

    /// Registers, commits and finishes. Everything that the intent creates is durable by now.
    pub(crate) async fn commit(&self, begun: Begun) -> Result<Vec<VolumeRecord>> {
        let staged = match self.register(&begun).await {
            Ok(()) => self.stage(&begun).await,
            Err(error) => Err(error),
        };
        let begun = match staged {
            Ok(staged) => self.commit_staged(begun, staged).await?,
            Err(error) => return Err(self.abort(begun, error).await),
        };
        Ok(self.finish(begun).await)
    }

    /// Enters the operation into every cell that it changes, before a record relies on it (L1).
    pub(crate) async fn register(&self, begun: &Begun) -> Result<()> {
        for step in &begun.intent.cells {
            enter(self.store(), begun.intent.uuid, step).await?;
        }
        Ok(())
    }

    /// Makes the record that will commit durable, under no name yet; None where a removal commits, or
    /// nothing does.
    pub(crate) async fn stage(&self, begun: &Begun) -> Result<Option<Staged>> {
        match record_of(begun) {
            Some((name, content)) => Ok(Some(self.store().stage(&name, content).await?)),
            None => Ok(None),
        }
    }

    /// The one rename, or removal, that commits.
    pub(crate) async fn commit_staged(
        &self,
        begun: Begun,
        staged: Option<Staged>,
    ) -> Result<Begun> {
        let expected = match &begun.intent.commit {
            Commit::Record(id) => self.with(|state| state.versions.get(id).copied()),
            Commit::Set(_) | Commit::Removed(_) | Commit::Forward => None,
        };
        let expected = expected.map_or(Expected::Absent, Expected::Version);
        let result = match (&begun.intent.commit, staged) {
            (_, Some(staged)) => self.store().commit(staged, expected).await.map(|_| ()),
            (Commit::Removed(id), None) => self.store().remove(&ObjectName::Record(*id)).await,
            (Commit::Record(_) | Commit::Set(_) | Commit::Forward, None) => Ok(()),
        };
        let Err(error) = result else {
            self.take_over(&begun);
            return Ok(begun);
        };
        // A failed put leaves the old or the new record, whole: reading settles which.
        match is_committed(self.store(), &begun.intent).await {
            // seen is not durable: the put may have failed after its rename
            Ok(true) if self.put_again(&begun).await => {
                self.take_over(&begun);
                Ok(begun)
            }
            Ok(false) => Err(self.abort(begun, error.into()).await),
            Ok(true) | Err(_) => Err(CatalogError {
                code: Code::OutcomeUnknown,
                hint: Some("it is settled before the next operation on the same volume".into()),
                ..CatalogError::from(error)
            }
            .during(format_args!("cannot tell whether this was done: {}", begun.intent.title))),
        }
    }

    /// Takes over into memory what was committed.
    fn take_over(&self, begun: &Begun) {
        self.with_mut(|state| apply(state, begun));
        let changed = begun.puts.iter().map(|record| record.uuid);
        self.locks().touch(changed.chain(begun.intent.volumes.iter().copied()));
    }

    /// Commits once more, durably this time: a sync that failed may say nothing when repeated, a new
    /// rename and its sync do.
    async fn put_again(&self, begun: &Begun) -> bool {
        if let Some((name, content)) = record_of(begun) {
            return self.store().put(&name, Expected::Any, content).await.is_ok();
        }
        match begun.intent.commit {
            Commit::Removed(_) => self.store().sync_names().await.is_ok(),
            Commit::Record(_) | Commit::Set(_) | Commit::Forward => true,
        }
    }

    /// What remains after the commit. A failure here costs nothing but a later retry.
    pub(crate) async fn finish(&self, begun: Begun) -> Vec<VolumeRecord> {
        let intent = &begun.intent;
        match finish(self.store(), intent).await {
            Ok(()) => {
                let refreshed = self.refresh_versions(&intent.volumes).await;
                if refreshed.is_ok() {
                    self.with_mut(|state| state.open.remove(&intent.uuid));
                }
            }
            Err(error) => {
                tracing::warn!(operation = %intent.uuid, %error, "finishing waits");
            }
        }
        begun.puts
    }

    async fn refresh_versions(&self, volumes: &[Uuid]) -> Result<()> {
        for volume in volumes {
            let version = self.store().get(&ObjectName::Record(*volume)).await?.map(|(v, _)| v);
            self.with_mut(|state| match version {
                Some(version) => drop(state.versions.insert(*volume, version)),
                None => drop(state.versions.remove(volume)),
            });
        }
        Ok(())
    }

    /// Settles operations that were left open on `volumes`, which the caller holds.
    pub(crate) async fn settle_left_open(&self, volumes: &[Uuid]) -> Result<()> {
        let left: Vec<Intent> = self.with(|state| {
            let touches = |intent: &&Intent| intent.volumes.iter().any(|v| volumes.contains(v));
            state.open.values().filter(touches).cloned().collect()
        });
        for intent in left {
            self.may_sweep()?;
            let named = self.with(State::named_layers);
            let committed = recover(self.store(), &intent, &named).await.map_err(|error| {
                error.during(format_args!("this was interrupted and waits: {}", intent.title))
            })?;
            self.reload(&intent, committed).await?;
        }
        Ok(())
    }

    async fn reload(&self, intent: &Intent, committed: bool) -> Result<()> {
        let mut puts = Vec::new();
        for volume in &intent.volumes {
            if let Some((_, bytes)) = self.store().get(&ObjectName::Record(*volume)).await?
                && let Record::Volume(record) = Record::decode(*volume, &bytes)?
            {
                puts.push(record);
            }
        }
        let begun = Begun { intent: intent.clone(), puts };
        self.refresh_versions(&intent.volumes).await?;
        if committed {
            self.take_over(&begun);
        }
        self.with_mut(|state| state.open.remove(&intent.uuid));
        self.read_again(intent.rewrites.iter().map(|rewrite| rewrite.layer)).await;
        Ok(())
    }

    /// Layers whose headers were not whole when the datastore was opened are whole now.
    async fn read_again(&self, layers: impl Iterator<Item = Uuid>) {
        for layer in layers {
            let owner = self.with(|state| {
                let damaged = state.damaged.contains_key(&layer);
                let owner = state.volumes.values().find(|volume| volume.layers.contains(&layer));
                owner.filter(|_| damaged).map(|owner| (owner.uuid, owner.is_fixed(layer)))
            });
            let Some((owner, fixed)) = owner else { continue };
            let read = read_node(self.store(), layer, fixed).await;
            self.with_mut(|state| match read {
                Ok(node) => {
                    state.damaged.remove(&layer);
                    state.tree.insert(layer, Node { owner: Some(owner), ..node });
                }
                Err(error) => drop(state.damaged.insert(layer, error.message)),
            });
        }
    }
}

/// The record whose put commits, where one does.
fn record_of(begun: &Begun) -> Option<(ObjectName, Vec<u8>)> {
    // One that contradicts itself would be refused by whoever reads it: it must not be committed.
    let problem = begun.puts.iter().find_map(VolumeRecord::problem);
    assert!(problem.is_none(), "{}: {problem:?}", begun.intent.title);
    match (&begun.intent.commit, begun.puts.first()) {
        (Commit::Record(id), Some(record)) => {
            Some((ObjectName::Record(*id), Record::Volume(record.clone()).encode()))
        }
        (Commit::Set(_), _) => {
            let set = SetRecord { uuid: begun.intent.uuid, volumes: begun.puts.clone() };
            Some((ObjectName::Record(set.uuid), Record::Set(set).encode()))
        }
        (Commit::Record(_) | Commit::Removed(_) | Commit::Forward, _) => None,
    }
}

fn apply(state: &mut State, begun: &Begun) {
    let intent = &begun.intent;
    for new in &intent.creates {
        state.tree.insert(new.layer, node_of(new));
    }
    for rewrite in &intent.rewrites {
        if let Some(node) = state.tree.get(rewrite.layer) {
            let node = Node { parent: rewrite.parent, size: rewrite.size, ..node };
            state.tree.insert(rewrite.layer, node);
        }
    }
    for layer in &intent.drops {
        state.tree.remove(*layer);
    }
    for record in &begun.puts {
        for layer in &record.layers {
            state.tree.set_owner(*layer, Some(record.uuid));
        }
        state.volumes.insert(record.uuid, record.clone());
    }
    for volume in &intent.drop_cells {
        state.volumes.remove(volume);
        state.versions.remove(volume);
        state.sessions.remove(volume);
    }
    for volume in &intent.void_sessions {
        if let Some(cell) = state.sessions.get_mut(volume) {
            *cell = voided(cell);
        }
    }
}

fn voided(cell: &VolumeCell) -> VolumeCell {
    VolumeCell { generation: cell.generation + 1, ..VolumeCell::new(cell.volume) }
}

fn node_of(new: &NewLayer) -> Node {
    Node { parent: new.parent, size: new.size, fixed: new.fixed, owner: Some(new.owner) }
}

/// The cells that `plan` changes, before and after.
fn cell_steps(state: &mut State, plan: &Plan) -> Vec<CellStep> {
    let created = plan.creates.iter().map(|new| new.layer);
    let rewritten = plan.rewrites.iter().map(|rewrite| rewrite.layer);
    let mut changed: BTreeSet<Uuid> = plan.drops.iter().copied().chain(rewritten).collect();
    for record in &plan.puts {
        changed.extend(record.current.tip.layers());
        let old = state.volumes.get(&record.uuid);
        changed.extend(old.iter().flat_map(|old| old.current.tip.layers()));
        // a layer that was a tip and is none any more, or the other way round
        let differs =
            |layer: &&Uuid| old.is_some_and(|o| o.is_tip(**layer) != record.is_tip(**layer));
        changed.extend(record.layers.iter().filter(differs));
    }
    changed.extend(created);
    for record in &plan.puts {
        // layers that are adopted
        let orphan = |layer: &&Uuid| state.tree.get(**layer).is_some_and(|n| n.owner.is_none());
        changed.extend(record.layers.iter().filter(orphan));
    }
    let paths = |tree: &Tree| -> Vec<Uuid> {
        changed.iter().flat_map(|layer| tree.path_so_far(*layer)).collect()
    };
    let old: Vec<(Uuid, Option<Node>)> =
        changed.iter().map(|layer| (*layer, state.tree.get(*layer))).collect();
    let mut affected: BTreeSet<Uuid> = paths(&state.tree).into_iter().collect();
    let before = |state: &State, layer| cell_value(state, &[], layer);
    let mut befores: std::collections::BTreeMap<Uuid, Option<CellValue>> =
        affected.iter().map(|layer| (*layer, before(state, *layer))).collect();

    for new in &plan.creates {
        state.tree.insert(new.layer, node_of(new));
    }
    for rewrite in &plan.rewrites {
        if let Some(node) = state.tree.get(rewrite.layer) {
            state.tree.insert(rewrite.layer, Node { parent: rewrite.parent, ..node });
        }
    }
    for layer in &plan.drops {
        state.tree.remove(*layer);
    }
    for record in &plan.puts {
        for layer in &record.layers {
            if state.tree.get(*layer).is_some_and(|node| node.owner.is_none()) {
                state.tree.set_owner(*layer, Some(record.uuid));
            }
        }
    }
    affected.extend(paths(&state.tree));
    let mut steps = Vec::new();
    let mut added = Vec::new();
    for layer in affected {
        let after = cell_value(state, &plan.puts, layer);
        match befores.remove(&layer) {
            Some(before) => steps.push(CellStep { layer, before, after }),
            None => added.push((layer, after)),
        }
    }
    for (layer, node) in old {
        match node {
            Some(node) => state.tree.insert(layer, node),
            None => state.tree.remove(layer),
        }
    }
    for (layer, after) in added {
        steps.push(CellStep { layer, before: cell_value(state, &[], layer), after });
    }
    steps.retain(|step| step.before != step.after || plan.marked.contains(&step.layer));
    steps
}

/// What the cell of `layer` must say, by tree and records; None where there is no such layer.
pub(crate) fn cell_value(state: &State, puts: &[VolumeRecord], layer: Uuid) -> Option<CellValue> {
    let node = state.tree.get(layer)?;
    let owner = node.owner.and_then(|owner| {
        puts.iter().find(|record| record.uuid == owner).or_else(|| state.volumes.get(&owner))
    })?;
    let leaves = state.tree.leaves(layer);
    let foreign = || {
        let above = state.tree.subtree(layer);
        above.iter().any(|l| state.tree.get(*l).is_some_and(|n| n.owner != node.owner))
    };
    let live = owner.current.tip.contains(layer) && !owner.template;
    let doomed = !owner.is_tip(layer) && leaves == 1 && foreign();
    let state = match (live, doomed) {
        (true, _) => LayerState::Live,
        (false, true) => LayerState::Doomed,
        (false, false) => LayerState::Frozen,
    };
    Some(CellValue { state, leaves })
}

/// Whether the operation is committed, by what is on the datastore.
pub(crate) async fn is_committed(store: &dyn FileStore, intent: &Intent) -> Result<bool> {
    match intent.commit {
        Commit::Record(id) => carries(store, id, intent.uuid).await,
        Commit::Set(first) => {
            let set = store.get(&ObjectName::Record(intent.uuid)).await?;
            Ok(set.is_some() || carries(store, first, intent.uuid).await?)
        }
        Commit::Removed(id) => Ok(store.get(&ObjectName::Record(id)).await?.is_none()),
        Commit::Forward => Ok(true),
    }
}

async fn carries(store: &dyn FileStore, record: Uuid, operation: Uuid) -> Result<bool> {
    let Some((_, bytes)) = store.get(&ObjectName::Record(record)).await? else { return Ok(false) };
    match Record::decode(record, &bytes)? {
        Record::Volume(volume) => Ok(volume.operation == operation),
        Record::Set(_) => Ok(false),
    }
}

/// Finishes or undoes, whichever follows from the commit; says which. `named` are the layers that
/// records name now.
pub(crate) async fn recover(
    store: &dyn FileStore,
    intent: &Intent,
    named: &BTreeSet<Uuid>,
) -> Result<bool> {
    let committed = is_committed(store, intent).await?;
    if let Some(layer) = garbage_of(intent, committed).find(|layer| named.contains(layer)) {
        let problem =
            format!("it would remove layer {layer}, which a record names: it is out of date");
        return Err(CatalogError::corrupt(ObjectName::Intent(intent.uuid), problem).hint(
            "nothing was changed; if every volume is as it should be, remove that file while no node \
             uses the datastore",
        ));
    }
    if committed {
        // What is seen may still be in the cache only, and what follows cannot be taken back.
        store.sync_names().await?;
        finish(store, intent).await?;
    } else {
        undo(store, intent).await?;
    }
    Ok(committed)
}

/// The layers that finishing, or undoing, removes.
fn garbage_of(intent: &Intent, committed: bool) -> impl Iterator<Item = Uuid> + '_ {
    let (drops, creates) =
        if committed { (&intent.drops[..], &[][..]) } else { (&[][..], &intent.creates[..]) };
    drops.iter().copied().chain(creates.iter().map(|new| new.layer))
}

async fn finish(store: &dyn FileStore, intent: &Intent) -> Result<()> {
    if let Commit::Set(_) = intent.commit {
        roll_forward(store, intent.uuid).await?;
    }
    for rewrite in &intent.rewrites {
        write_headers(store, rewrite).await?;
    }
    for volume in &intent.void_sessions {
        let (expected, cell) = session(store, *volume).await?;
        if cell.log.is_some() || cell.lost {
            let content = Cell::Volume(voided(&cell)).encode();
            store.put(&ObjectName::Cell(*volume), expected, content).await?;
        }
    }
    for layer in &intent.drops {
        layer::remove_if_there(store, &ObjectName::Layer(*layer)).await?;
    }
    for step in &intent.cells {
        settle(store, intent.uuid, step.layer, step.after).await?;
    }
    for volume in &intent.drop_cells {
        layer::remove_if_there(store, &ObjectName::Cell(*volume)).await?;
    }
    if let Commit::Set(_) = intent.commit {
        layer::remove_if_there(store, &ObjectName::Record(intent.uuid)).await?;
    }
    layer::remove_if_there(store, &ObjectName::Intent(intent.uuid)).await
}

async fn undo(store: &dyn FileStore, intent: &Intent) -> Result<()> {
    for cut in &intent.cut_back {
        let file = store.open(&ObjectName::Layer(cut.layer), Access::Write).await?;
        if let Some(scratch) = cut.scratch {
            let range = ByteRange::new(scratch.at, scratch.len);
            let (how, durability) = (Clear::KeepSpace, Durability::Cached);
            let effort = Effort::Any;
            file.submit(Request::Clear { range, how, effort, durability }).await?;
        }
        file.truncate(ByteCount(cut.len)).await?;
        layer::flush(&*file).await?;
    }
    for new in &intent.creates {
        layer::remove_if_there(store, &ObjectName::Layer(new.layer)).await?;
    }
    for step in &intent.cells {
        settle(store, intent.uuid, step.layer, step.before).await?;
    }
    layer::remove_if_there(store, &ObjectName::Intent(intent.uuid)).await
}

/// Writes the members of a set into their own records, where they are not there yet.
async fn roll_forward(store: &dyn FileStore, set: Uuid) -> Result<()> {
    let Some((_, bytes)) = store.get(&ObjectName::Record(set)).await? else { return Ok(()) };
    let Record::Set(set) = Record::decode(set, &bytes)? else {
        return Err(CatalogError::corrupt(ObjectName::Record(set), "it is no set"));
    };
    for volume in set.volumes {
        let name = ObjectName::Record(volume.uuid);
        let (expected, behind) = match store.get(&name).await? {
            None => (Expected::Absent, true),
            Some((version, bytes)) => {
                let behind = match Record::decode(volume.uuid, &bytes)? {
                    Record::Volume(found) => found.revision < volume.revision,
                    Record::Set(_) => false,
                };
                (Expected::Version(version), behind)
            }
        };
        if behind {
            store.put(&name, expected, Record::Volume(volume).encode()).await?;
        }
    }
    Ok(())
}

/// Writes full images of headers; a torn one becomes whole.
async fn write_headers(store: &dyn FileStore, rewrite: &Rewrite) -> Result<()> {
    let name = ObjectName::Layer(rewrite.layer);
    let file = match store.open(&name, Access::Write).await {
        // It went after it was rewritten: a later step of the same operation was done already.
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    file.truncate(ByteCount(rewrite.len)).await?;
    // Headers stand in layers that are not fixed, whose footer is a copy of the one in front.
    let has_headers = rewrite.pieces.iter().any(|piece| piece.at == 0);
    for piece in &rewrite.pieces {
        let is_tail = piece.at + piece.bytes.len() as u64 == rewrite.len;
        match layer::write(&*file, piece.at, &IoBuf::copied(&piece.bytes)).await {
            // A full store: it reads as a file that was not closed, which is no harm, and what is
            // committed must not wait for space.
            Err(error) if error.code == Code::NoSpace && is_tail && has_headers => {
                tracing::debug!(%error, layer = %rewrite.layer, "no closing footer");
            }
            written => written?,
        }
    }
    layer::flush(&*file).await
}

/// The session cell of a volume, and what a put must expect.
pub(crate) async fn session(store: &dyn FileStore, volume: Uuid) -> Result<(Expected, VolumeCell)> {
    match store.get(&ObjectName::Cell(volume)).await? {
        None => Ok((Expected::Absent, VolumeCell::new(volume))),
        Some((version, bytes)) => match Cell::decode(volume, &bytes)? {
            Cell::Volume(cell) => Ok((Expected::Version(version), cell)),
            Cell::Layer(_) => {
                Err(CatalogError::corrupt(ObjectName::Cell(volume), "it is the cell of a layer"))
            }
        },
    }
}

/// A layer's cell as it is, and what a put must expect. One that cannot be read counts as none: what
/// it must say follows from the tree.
pub(crate) async fn layer_cell(
    store: &dyn FileStore,
    layer: Uuid,
) -> Result<(Expected, Option<LayerCell>)> {
    match store.get(&ObjectName::Cell(layer)).await? {
        None => Ok((Expected::Absent, None)),
        Some((version, bytes)) => match Cell::decode(layer, &bytes) {
            Ok(Cell::Layer(cell)) => Ok((Expected::Version(version), Some(cell))),
            Ok(Cell::Volume(_)) | Err(_) => Ok((Expected::Version(version), None)),
        },
    }
}

async fn enter(store: &dyn FileStore, operation: Uuid, step: &CellStep) -> Result<()> {
    let Some(after) = step.after else { return Ok(()) };
    let (expected, found) = layer_cell(store, step.layer).await?;
    let cell = match (step.before, found) {
        (None, _) => value_cell(step.layer, 1, after),
        (Some(before), found) => {
            let mut cell = found.unwrap_or_else(|| value_cell(step.layer, 0, before));
            cell.generation += 1;
            cell.leaves = before.leaves.max(after.leaves);
            if !cell.ops.contains(&operation) {
                cell.ops.push(operation);
            }
            if cell.ops.len() > MAX_OPEN {
                let what = format_args!("layer {}", step.layer);
                return Err(CatalogError::busy(what, "more than it can note"));
            }
            cell
        }
    };
    store.put(&ObjectName::Cell(step.layer), expected, Cell::Layer(cell).encode()).await?;
    Ok(())
}

/// Gives a layer's cell its value, without the operation; removes it where there is none to be.
pub(crate) async fn settle(
    store: &dyn FileStore,
    operation: Uuid,
    layer: Uuid,
    value: Option<CellValue>,
) -> Result<()> {
    let name = ObjectName::Cell(layer);
    let Some(value) = value else { return layer::remove_if_there(store, &name).await };
    let (expected, found) = layer_cell(store, layer).await?;
    let generation = found.as_ref().map_or(0, |cell| cell.generation);
    let mut cell = value_cell(layer, generation, value);
    if let Some(found) = found {
        cell.ops = found.ops.iter().copied().filter(|op| *op != operation).collect();
        if cell == found {
            return Ok(());
        }
    }
    cell.generation += 1;
    store.put(&name, expected, Cell::Layer(cell).encode()).await?;
    Ok(())
}

fn value_cell(layer: Uuid, generation: u64, value: CellValue) -> LayerCell {
    LayerCell { layer, state: value.state, generation, leaves: value.leaves, ops: Vec::new() }
}
