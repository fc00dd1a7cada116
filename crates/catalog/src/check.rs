//! Looking after a catalog: the check that users run, the audit that tests run, and making a volume
//! of an orphaned chain. The first two change nothing (rule R4).

use std::collections::{BTreeMap, BTreeSet};

use datastore::{Access, Kind, ObjectName};
use image::Trust;
use image::check::{CheckStep, Checker};
use uuid::Uuid;

use crate::api::{CheckReport, Finding, Severity, named};
use crate::catalog::{Catalog, read_node};
use crate::cell::{Cell, LayerState};
use crate::error::{CatalogError, Code, Result};
use crate::intent::Intent;
use crate::layer;
use crate::locks::Pace;
use crate::record::{Current, Record, VolumeKind, VolumeRecord};
use crate::segments::{Layout, MAX_SEGMENT};
use crate::tree::Broken;
use crate::txn::{Plan, cell_value};
use crate::volumes::one;

fn finding(
    severity: Severity,
    code: &'static str,
    object: ObjectName,
    message: impl Into<String>,
) -> Finding {
    Finding { severity, code, object: object.to_string(), message: message.into() }
}

impl Catalog {
    /// Looks at every object of the datastore: records, layers and their links, cells, what nobody
    /// names, and the inside of every layer that no disk is writing.
    ///
    /// # Errors
    /// If the datastore fails.
    pub async fn check(&self) -> Result<CheckReport> {
        let records = self.store().list(Kind::Record).await?;
        let cells = self.store().list(Kind::Cell).await?;
        let memories = self.store().list(Kind::Memory).await?;
        let layers: BTreeSet<Uuid> =
            self.store().list(Kind::Layer).await?.iter().filter_map(|i| i.name.id()).collect();
        let mut findings = self.unreadable_findings();
        for info in &records {
            let Some(id) = info.name.id() else { continue };
            let known = self.with(|state| {
                state.volumes.contains_key(&id)
                    || state.open.contains_key(&id)
                    || state.unreadable.iter().any(|(name, _)| *name == info.name)
            });
            if !known {
                findings.push(finding(
                    Severity::Warning,
                    "unknown-record",
                    info.name,
                    "it was written beside this node; open the datastore again to take it in",
                ));
            }
        }
        findings.extend(self.link_findings(&layers));
        for info in &cells {
            let Some(id) = info.name.id() else { continue };
            let has_owner = layers.contains(&id) || self.with(|s| s.volumes.contains_key(&id));
            if !has_owner {
                let message = "it belongs to no layer and no volume; it takes a little space";
                findings.push(finding(Severity::Note, "orphan-cell", info.name, message));
            }
        }
        findings.extend(memories.iter().map(|info| {
            let message = "no record names this memory image; it takes space";
            finding(Severity::Note, "orphan-memory", info.name, message)
        }));
        for layer in &layers {
            findings.extend(self.layer_findings(*layer).await?);
        }
        findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.object.cmp(&b.object)));
        let volumes = self.with(|state| state.volumes.len());
        Ok(CheckReport { findings, layers: layers.len(), volumes })
    }

    fn unreadable_findings(&self) -> Vec<Finding> {
        self.with(|state| {
            let unreadable = state.unreadable.iter().map(|(object, problem)| {
                let code = match object.kind() {
                    Kind::Intent => "unreadable-intent",
                    Kind::Cell => "unreadable-cell",
                    Kind::Identity | Kind::Layer | Kind::Record | Kind::Memory => {
                        "unreadable-record"
                    }
                };
                let message = format!(
                    "{problem}. Until it can be read, nothing is deleted on this datastore"
                );
                finding(Severity::Error, code, *object, message)
            });
            let waiting = state.open.values().map(|intent| {
                let message =
                    format!("{}: it is running, or waits to be finished or undone", intent.title);
                finding(Severity::Note, "open-intent", ObjectName::Intent(intent.uuid), message)
            });
            let damaged = state.damaged.iter().map(|(layer, problem)| {
                finding(
                    Severity::Error,
                    "damaged-layer",
                    ObjectName::Layer(*layer),
                    problem.clone(),
                )
            });
            unreadable.chain(waiting).chain(damaged).collect()
        })
    }

    /// Records against layers, and layers against their parents.
    fn link_findings(&self, present: &BTreeSet<Uuid>) -> Vec<Finding> {
        self.with(|state| {
            let mut findings = Vec::new();
            let making: BTreeSet<Uuid> = state
                .open
                .values()
                .flat_map(|i| i.creates.iter().map(|new| new.layer).chain(i.drops.iter().copied()))
                .collect();
            let mut owned: BTreeMap<Uuid, &VolumeRecord> = BTreeMap::new();
            for volume in state.volumes.values() {
                owned.extend(volume.layers.iter().map(|layer| (*layer, volume)));
            }
            for (layer, volume) in &owned {
                if !present.contains(layer) {
                    let message = format!(
                        "{} cannot be read whole: this layer of it is missing; restore it from a backup",
                        volume.name
                    );
                    let name = ObjectName::Layer(*layer);
                    findings.push(finding(Severity::Error, "missing-layer", name, message));
                }
            }
            for layer in present {
                let name = ObjectName::Layer(*layer);
                if !owned.contains_key(layer) && !making.contains(layer) {
                    let message = "no record names this layer; it takes space. Adopt it as a volume, or \
                                   remove it once you are sure that nobody needs it";
                    findings.push(finding(Severity::Note, "orphan-layer", name, message));
                }
                // One finding where the link is broken, not one for each layer above.
                let Some(node) = state.tree.get(*layer) else { continue };
                match (node.parent, state.tree.path(*layer)) {
                    (Some(parent), Err(Broken::Missing(gone))) if parent == gone => {
                        let message = format!("its parent {gone} is missing or damaged");
                        findings.push(finding(Severity::Error, "missing-parent", name, message));
                    }
                    (_, Err(Broken::Cyclic(back))) if back == *layer => {
                        let message = "its parents come back to itself: it cannot be read";
                        findings.push(finding(Severity::Error, "cyclic-parents", name, message));
                    }
                    (_, Ok(_) | Err(_)) => {}
                }
            }
            findings
        })
    }

    /// The inside of one layer, unless a disk is writing it.
    async fn layer_findings(&self, layer: Uuid) -> Result<Vec<Finding>> {
        let node = self.with(|state| state.tree.get(layer));
        let owner = node.and_then(|node| node.owner);
        let Some(node) = node else { return Ok(Vec::new()) };
        if owner.is_some_and(|owner| self.is_connected(owner) || self.running_on(owner).is_some()) {
            return Ok(Vec::new());
        }
        let name = ObjectName::Layer(layer);
        let file = match self.store().open(&name, Access::Read).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::IoErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let trust = if node.fixed { Trust::OwnFixed } else { Trust::Own };
        let mut checker = Checker::new(file.info().size.0, trust);
        loop {
            match checker.step() {
                CheckStep::Read { at, len } => {
                    let bytes = layer::read(&*file, at, len).await?;
                    checker.supply(&bytes).map_err(|e| CatalogError::corrupt(name, e))?;
                }
                CheckStep::Done(report) => {
                    let bad = report.findings.iter().filter(|found| found.is_damage());
                    let message = |found| format!("{found}; restore the layer from a backup");
                    return Ok(bad
                        .map(|f| finding(Severity::Error, "damaged-layer", name, message(f)))
                        .collect());
                }
            }
        }
    }

    /// Every rule of the catalog, against what is on the datastore: what is broken, in sentences.
    /// Nothing may be running.
    ///
    /// # Errors
    /// If the datastore fails.
    pub async fn audit(&self) -> Result<Vec<String>> {
        let mut broken = Vec::new();
        let mut intents: BTreeMap<Uuid, Intent> = BTreeMap::new();
        for info in self.store().list(Kind::Intent).await? {
            let Some(id) = info.name.id() else { continue };
            match self.store().get(&info.name).await?.map(|(_, bytes)| Intent::decode(id, &bytes)) {
                Some(Ok(intent)) => drop(intents.insert(id, intent)),
                Some(Err(error)) => broken.push(error.message),
                None => {}
            }
        }
        let in_work: BTreeSet<Uuid> = intents
            .values()
            .flat_map(|i| i.creates.iter().map(|new| new.layer).chain(i.drops.iter().copied()))
            .collect();
        let records = self.audit_records(&intents, &mut broken).await?;
        let mut owned = BTreeSet::new();
        for record in records.values() {
            for layer in &record.layers {
                if !owned.insert(*layer) {
                    broken.push(format!("layer {layer} has two owners, one is {}", record.name));
                }
                self.audit_layer(record, *layer, &mut broken).await?;
            }
            for (tip, _) in record.tips() {
                if let Err(error) = self.chains(tip) {
                    broken.push(format!("{}: {error}", record.name));
                }
            }
        }
        for info in self.store().list(Kind::Layer).await? {
            let Some(id) = info.name.id() else { continue };
            if !owned.contains(&id) && !in_work.contains(&id) {
                broken.push(format!("layer {id} is named by no record and no intent"));
            }
        }
        self.audit_cells(&records, &owned, intents.is_empty(), &mut broken).await?;
        Ok(broken)
    }

    async fn audit_records(
        &self,
        intents: &BTreeMap<Uuid, Intent>,
        broken: &mut Vec<String>,
    ) -> Result<BTreeMap<Uuid, VolumeRecord>> {
        let mut records = BTreeMap::new();
        let mut names = BTreeSet::new();
        for info in self.store().list(Kind::Record).await? {
            let Some(id) = info.name.id() else { continue };
            let Some((version, bytes)) = self.store().get(&info.name).await? else { continue };
            match Record::decode(id, &bytes) {
                Ok(Record::Volume(volume)) => {
                    if !names.insert(volume.name.clone()) {
                        broken.push(format!("two volumes have the name {}", volume.name));
                    }
                    let (same, known) = self.with(|state| {
                        let same = state.volumes.get(&id) == Some(&volume);
                        (same, state.versions.get(&id) == Some(&version))
                    });
                    if !same || !known {
                        broken.push(format!(
                            "the index does not have {} as it is stored",
                            volume.name
                        ));
                    }
                    records.insert(id, volume);
                }
                Ok(Record::Set(_)) if intents.contains_key(&id) => {}
                Ok(Record::Set(_)) => broken.push(format!("set {id} was left behind")),
                Err(error) => broken.push(error.message),
            }
        }
        let indexed = self.with(|state| state.volumes.len());
        if indexed != records.len() {
            broken.push(format!("the index has {indexed} volumes, {} are stored", records.len()));
        }
        Ok(records)
    }

    async fn audit_layer(
        &self,
        record: &VolumeRecord,
        layer: Uuid,
        broken: &mut Vec<String>,
    ) -> Result<()> {
        let fixed = record.is_fixed(layer);
        let found = match read_node(self.store(), layer, fixed).await {
            Ok(found) => found,
            Err(error) => {
                broken.push(format!("{}: {error}", record.name));
                return Ok(());
            }
        };
        let Some(node) = self.with(|state| state.tree.get(layer)) else {
            broken.push(format!("layer {layer} of {} is not in the index", record.name));
            return Ok(());
        };
        if (node.parent, node.size, node.fixed) != (found.parent, found.size, found.fixed) {
            broken.push(format!(
                "layer {layer} of {} is {found:?}, indexed as {node:?}",
                record.name
            ));
        }
        if node.owner != Some(record.uuid) {
            broken.push(format!("layer {layer} of {} is indexed as another's", record.name));
        }
        let size = record.tips().find_map(|(tip, size)| {
            let at = tip.layers().iter().position(|own| *own == layer)?;
            Some(record.layout_at(size).size_of(at))
        });
        if size.is_some_and(|size| size != found.size) {
            broken.push(format!("layer {layer} of {} has {} bytes", record.name, found.size));
        }
        Ok(())
    }

    /// Whether the sums that are kept are those of the files; a sentence for each that is not. For
    /// tests, while nothing changes.
    ///
    /// # Errors
    /// If the datastore fails.
    pub async fn audit_accounts(&self) -> Result<Vec<String>> {
        let kept = self.store_usage().await?;
        let measured = self.measure().await?;
        let (mut used, mut provisioned) = (0, 0);
        for record in self.volumes() {
            used += measured.used_by(&record.layers).0;
            provisioned += record.size;
        }
        let same = (kept.used.0, kept.provisioned.0) == (used, provisioned);
        let sentence = format!("{kept:?} is kept, {used} bytes of {provisioned} are used");
        Ok(if same { Vec::new() } else { vec![sentence] })
    }

    async fn audit_cells(
        &self,
        records: &BTreeMap<Uuid, VolumeRecord>,
        owned: &BTreeSet<Uuid>,
        at_rest: bool,
        broken: &mut Vec<String>,
    ) -> Result<()> {
        let mut without = owned.clone();
        for info in self.store().list(Kind::Cell).await? {
            let Some(id) = info.name.id() else { continue };
            without.remove(&id);
            let Some((_, bytes)) = self.store().get(&info.name).await? else { continue };
            let cell = match Cell::decode(id, &bytes) {
                Ok(Cell::Layer(cell)) => cell,
                Ok(Cell::Volume(_)) if records.contains_key(&id) => continue,
                Ok(Cell::Volume(_)) if !at_rest => continue,
                Ok(Cell::Volume(_)) => {
                    broken.push(format!("{} is of no volume", info.name));
                    continue;
                }
                Err(error) => {
                    broken.push(error.message);
                    continue;
                }
            };
            let Some(value) = self.with(|state| cell_value(state, &[], id)) else {
                if at_rest {
                    broken.push(format!("{} is of no layer", info.name));
                }
                continue;
            };
            if !at_rest {
                // Entered before the record, so never fewer than there are.
                if cell.leaves < value.leaves {
                    broken
                        .push(format!("{} counts {} of {}", info.name, cell.leaves, value.leaves));
                }
                continue;
            }
            let merging = matches!(cell.state, LayerState::Merging { .. });
            let ghost = records.values().any(|r| r.ghosts().any(|ghost| ghost == id));
            let state_fits = cell.state == value.state || (merging && ghost);
            if cell.leaves != value.leaves || !state_fits || !cell.ops.is_empty() {
                broken.push(format!("{} says {cell:?}, the tree says {value:?}", info.name));
            }
        }
        broken.extend(without.iter().map(|layer| format!("layer {layer} has no cell")));
        Ok(())
    }

    /// Makes a volume of an orphaned chain: of `leaf` and every layer below it that nobody owns.
    ///
    /// # Errors
    /// `not-found`, `corrupt` for a broken chain, `bad-name`, `name-taken`; `has-dependents` for a
    /// layer that is owned, or on which others stand.
    pub async fn adopt(&self, leaf: Uuid, name: &str) -> Result<VolumeRecord> {
        let names = self.take_names(&[name.to_owned()])?;
        self.may_sweep()?;
        let Some(node) = self.with(|state| state.tree.get(leaf)) else {
            let message = format!("there is no readable layer {leaf}");
            return Err(CatalogError::new(Code::NotFound, message));
        };
        let chain = self.chain(leaf)?;
        let owners: Vec<Uuid> = chain.iter().filter_map(|(_, node)| node.owner).collect();
        let held = self.hold(&owners, "an adoption", Pace::Short).await?;
        let (owner, above) = self.with(|state| {
            let owner =
                state.tree.get(leaf).and_then(|n| n.owner).and_then(|o| state.volumes.get(&o));
            (owner.map(named), state.tree.children(leaf).next())
        });
        if let Some(owner) = owner {
            let message = format!("layer {leaf} belongs to {}", owner.name);
            return Err(CatalogError::new(Code::HasDependents, message).related(vec![owner]));
        }
        if let Some(above) = above {
            let message = format!("layer {above} stands on layer {leaf}: it may not be written");
            return Err(CatalogError::new(Code::HasDependents, message).hint("adopt that one"));
        }
        let layout = Layout { size: node.size, segment: MAX_SEGMENT };
        let mut record = self.new_record(name.to_owned(), layout, VolumeKind::Thin, None);
        record.current = Current { tip: leaf.into(), parent: None, unreserved: false };
        record.layers =
            chain.iter().filter(|(_, n)| n.owner.is_none()).map(|(uuid, _)| *uuid).collect();
        let title = format!("adopt layer {leaf} as {name}");
        // Whatever the cells of the chain say, an orphan may not have been counted in them.
        let marked = chain.iter().map(|(uuid, _)| *uuid).collect();
        let plan = Plan { title, puts: vec![record], marked, ..Plan::default() };
        let begun = self.begin(plan).await?;
        let made = self.commit(begun).await?;
        drop((names, held));
        one(made)
    }
}
