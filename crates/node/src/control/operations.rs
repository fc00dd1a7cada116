//! Operations on volumes, snapshots and templates: what the catalog does, told to those who listen.

use std::rc::Rc;

use catalog::{ConversionWay, CopyTarget, Deploy, LeafSpace, NewVolume, Source, VolumeRecord};
use io::ByteCount;
use model::{
    Change, CloneVolume, Code, ConvertVolume, CreateSnapshot, CreateTemplate, CreateVolume,
    DeployTemplate, Estimate, Extent, ObjectKind, ObjectRef, Operation, Problem, Reference, Size,
    SnapshotDiff, UpdateVolume, VolumeKind,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::stores::{Opened, Store, to_value};
use super::view::catalog_kind;
use super::{Control, catalog_problem};
use crate::problem::Outcome;
use crate::tasks::{About, Progress};

/// Names in one request: more is a mistake, or an attack.
const MAX_NAMES: usize = 1000;

impl Control {
    pub(super) fn find_template(&self, id: Uuid) -> Outcome<(Rc<Store>, VolumeRecord)> {
        match self.find_if(id) {
            Some((store, record)) if record.template => Ok((store, record)),
            _ => Err(Problem::not_found(ObjectKind::Template, id)),
        }
    }

    pub(crate) fn about_new_volume(&self, request: &CreateVolume) -> Outcome<About> {
        let store = self.store(self.resolve_store(&request.datastore)?)?;
        model::support(
            Operation::VolumeCreate,
            request.kind,
            false,
            model::StoreFeatures {
                reserve: store.opened()?.handle.capabilities().reserve,
                ..model::StoreFeatures::default()
            },
        )
        .map_err(|reason| {
            Problem::new(
                Code::Unsupported,
                format!("{} cannot be created on {}: {reason}.", request.name, store.name()),
            )
        })?;
        let name = request.name.to_string();
        let object = ObjectRef { kind: ObjectKind::Volume, id: Uuid::nil(), name };
        Ok(About::new(Operation::VolumeCreate, object))
    }

    pub(crate) async fn create_volume(
        self: Rc<Self>,
        request: CreateVolume,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let store = self.store(self.resolve_store(&request.datastore)?)?;
        let catalog = store.catalog()?;
        progress.running("creating");
        let new = NewVolume {
            name: request.name.to_string(),
            size: ByteCount(request.size.bytes()),
            kind: catalog_kind(request.kind),
        };
        let record = catalog.create_volume(new, &*progress).await.map_err(catalog_problem)?;
        self.tell_volume(record.uuid).await;
        to_value(&self.volume_view(&store, &record).await)
    }

    /// Renames, resizes, or both; the name first, because it cannot fail half-way.
    pub(crate) async fn update_volume(
        self: Rc<Self>,
        id: Uuid,
        request: UpdateVolume,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, record) = self.find(id)?;
        let catalog = store.catalog()?;
        let _working = self.work_on(&[id], progress.id())?;
        let new_name = request.name.filter(|name| name.as_str() != record.name);
        let new_size = request.size.filter(|size| size.bytes() != record.size);
        if new_size.is_some() && self.home_of(id).is_some() {
            return Err(connected(&record, "resized"));
        }
        if let Some(name) = new_name {
            catalog.rename(id, name.as_str()).await.map_err(catalog_problem)?;
        }
        if let Some(size) = new_size {
            catalog.resize(id, ByteCount(size.bytes())).await.map_err(catalog_problem)?;
        }
        self.tell_volume(id).await;
        to_value(&self.show_volume(id).await?)
    }

    /// What [`Self::convert_volume`] would do, for a dry run.
    pub(crate) async fn conversion(&self, id: Uuid, kind: VolumeKind) -> Outcome<Estimate> {
        let (store, record) = self.find(id)?;
        let catalog = store.catalog()?;
        let plan = match catalog.conversion(id, catalog_kind(kind)).await {
            Ok(plan) => plan,
            Err(error) => {
                let summary = format!("volume '{}' cannot become {kind}", record.name);
                let refused = Some(catalog_problem(error));
                return Ok(Estimate { summary, refused, ..Estimate::default() });
            }
        };
        let how = match plan.way {
            ConversionWay::Relabel => "its space is as that kind has it already",
            ConversionWay::Reserve => "the space that it lacks is reserved",
            ConversionWay::GiveBack => "space that holds no data is given back",
            ConversionWay::Rewrite => "its content is written anew",
        };
        let snapshots = match (plan.loses, record.snapshots.len()) {
            (0, 0) => String::new(),
            (0, kept) => format!("; its {kept} snapshots are kept"),
            (lost, _) => format!("; its {lost} snapshots are lost"),
        };
        let refused = if self.home_of(id).is_some() {
            Some(connected(&record, "converted"))
        } else {
            let free = catalog.store_usage().await.map_err(catalog_problem)?.free;
            (plan.takes > free).then(|| {
                Problem::new(
                    Code::NoSpace,
                    format!(
                        "Datastore '{}' has {} free; this takes {}.",
                        store.name(),
                        Size::from_bytes(free.0).human(),
                        Size::from_bytes(plan.takes.0).human()
                    ),
                )
                .hint("free space on the datastore, or keep the volume thin")
            })
        };
        Ok(Estimate {
            summary: format!("makes volume '{}' {kind}: {how}{snapshots}", record.name),
            takes: Size::from_bytes(plan.takes.0),
            frees: Size::from_bytes(plan.frees.0),
            moves: Size::from_bytes(plan.moves.0),
            seconds: None,
            refused,
        })
    }

    /// Makes a volume one of another kind.
    pub(crate) async fn convert_volume(
        self: Rc<Self>,
        id: Uuid,
        request: ConvertVolume,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, record) = self.find(id)?;
        let catalog = store.catalog()?;
        let _working = self.work_on(&[id], progress.id())?;
        if self.home_of(id).is_some() {
            return Err(connected(&record, "converted"));
        }
        progress.running("converting");
        let kind = catalog_kind(request.kind);
        let lose = request.lose_snapshots;
        let stood_on = catalog.origins(id);
        catalog.convert(id, kind, lose, &*progress).await.map_err(catalog_problem)?;
        self.tell_volume(id).await;
        self.tell_origins(&stood_on).await;
        self.space_freed(store.id());
        self.tell_store(store.id()).await;
        to_value(&self.show_volume(id).await?)
    }

    /// Deletes a volume or a template.
    pub(crate) async fn delete_volume(
        self: Rc<Self>,
        id: Uuid,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, record) = self.find(id)?;
        let working = self.work_on(&[id], progress.id())?;
        if let Some(link) = self.link_of_volume(id) {
            if link.is_live() {
                return Err(connected(&record, "deleted"));
            }
            // What is left of a stopped connection goes with its volume.
            let left = link.entry().id();
            self.drop_link(left).await?;
        }
        let catalog = store.catalog()?;
        let (stood_on, above) = (catalog.origins(id), catalog.left_above(id));
        let deleted = catalog.delete_volume(id).await.map_err(catalog_problem);
        drop(working);
        if catalog.dependents(id).is_empty() {
            // layers that they had left on it are gone
            self.tell_volumes(&above).await;
        }
        deleted?;
        self.tell_removed(super::reference(&record));
        self.tell_origins(&stood_on).await;
        self.space_freed(store.id());
        self.tell_store(store.id()).await;
        Ok(Value::Null)
    }

    pub(super) fn source(
        &self,
        id: Uuid,
        snapshot: Option<&Reference>,
    ) -> Outcome<(Rc<Store>, VolumeRecord, Source)> {
        let (store, record) = self.find(id)?;
        let snapshot = snapshot.map(|wanted| find_snapshot(&record, wanted)).transpose()?;
        Ok((store, record, Source { volume: id, snapshot }))
    }

    pub(crate) async fn clone_volume(
        self: Rc<Self>,
        id: Uuid,
        request: CloneVolume,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, record, source) = self.source(id, request.snapshot.as_ref())?;
        let catalog = store.catalog()?;
        let names = checked_names(&request.names)?;
        if let Some(elsewhere) = &request.datastore
            && self.resolve_store(elsewhere)? != store.id()
        {
            return Err(Problem::new(
                Code::Unsupported,
                format!("{} cannot be cloned to another datastore.", record.name),
            )
            .hint("clone it beside itself"));
        }
        if request.linked {
            if request.kind.is_some_and(|kind| kind != VolumeKind::Thin) {
                return Err(Problem::new(Code::BadRequest, "A linked clone is always thin.")
                    .hint("leave the kind out, or make a full copy"));
            }
            progress.running("cloning");
            let made = catalog.clone_linked(source, names).await.map_err(catalog_problem)?;
            return self.made(&store, made).await;
        }
        let kind = request.kind.map(catalog_kind);
        let mut made: Vec<VolumeRecord> = Vec::new();
        for name in names {
            let target = CopyTarget { name, kind, template: false };
            match catalog.copy_full(source, target, &*progress).await {
                Ok(copy) => made.push(copy),
                Err(error) => {
                    // All or none.
                    for copy in made {
                        if let Err(error) = catalog.delete_volume(copy.uuid).await {
                            tracing::warn!(copy = %copy.uuid, %error, "a copy is left over");
                        }
                    }
                    return Err(catalog_problem(error));
                }
            }
        }
        self.made(&store, made).await
    }

    /// Tells and returns new volumes.
    async fn made(&self, store: &Rc<Store>, made: Vec<VolumeRecord>) -> Outcome<Value> {
        let mut views = Vec::new();
        for record in made {
            let view = self.volume_view(store, &record).await;
            self.shared.events.tell(Change::Volume(view.clone()));
            views.push(view);
        }
        self.tell_store(store.id()).await;
        to_value(&views)
    }

    // --- snapshots ---

    pub(crate) fn about_snapshot(&self, request: &CreateSnapshot) -> Outcome<About> {
        let first = request.volumes.first().ok_or_else(|| {
            Problem::new(Code::BadRequest, "A snapshot needs at least one volume.")
        })?;
        self.about(Operation::SnapshotCreate, self.resolve(first)?)
    }

    /// All volumes at one point in time. The result says how long guests waited.
    pub(crate) async fn create_snapshot(
        self: Rc<Self>,
        request: CreateSnapshot,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let mut volumes = Vec::new();
        for reference in &request.volumes {
            let id = self.resolve(reference)?;
            if volumes.contains(&id) {
                return Err(Problem::new(
                    Code::BadRequest,
                    format!("Volume {reference} is named twice."),
                ));
            }
            volumes.push(id);
        }
        let (store, record) = match volumes.first() {
            Some(first) => self.find(*first)?,
            None => return Err(Problem::new(Code::BadRequest, "Name at least one volume.")),
        };
        for other in &volumes {
            let (elsewhere, other) = self.find(*other)?;
            if elsewhere.id() != store.id() {
                return Err(Problem::new(
                    Code::Unsupported,
                    format!(
                        "{} and {} are on different datastores ({} and {}): they cannot be in one snapshot.",
                        record.name, other.name, store.name(), elsewhere.name()
                    ),
                )
                .hint("take one snapshot per datastore"));
            }
        }
        let opened = store.opened()?;
        let _working = self.work_on(&volumes, progress.id())?;
        progress.running("snapshotting");
        let space = if request.unreserved { LeafSpace::AsItGrows } else { LeafSpace::AsTheKind };
        let name = request.name.as_str();
        let made = opened.catalog.snapshot_create(&volumes, name, space).await;
        self.snapshots_made(&opened, &volumes, made).await
    }

    /// Tells and returns new snapshots, and lets the guests go on if they could not be made.
    pub(super) async fn snapshots_made(
        &self,
        opened: &Opened,
        volumes: &[Uuid],
        made: catalog::Result<catalog::SnapshotSet>,
    ) -> Outcome<Value> {
        opened.homes.reopen(volumes).await;
        let pause = volumes.iter().filter_map(|id| opened.homes.take_pause(*id)).max();
        let made = made.map_err(catalog_problem)?;
        let ids: Vec<Uuid> = made.members.iter().map(|(_, snapshot)| snapshot.uuid).collect();
        let mut views = Vec::new();
        for volume in volumes {
            let Some((store, record)) = self.find_if(*volume) else { continue };
            self.snapshots_of(&store, &record, &mut views).await?;
        }
        self.tell_volumes(volumes).await;
        views.retain(|view| ids.contains(&view.id));
        for view in &views {
            self.shared.events.tell(Change::Snapshot(view.clone()));
        }
        let pause_ms = pause.map(|pause| pause.as_secs_f64() * 1000.0);
        Ok(json!({ "set": made.uuid, "snapshots": views, "pauseMs": pause_ms }))
    }

    pub(crate) fn about_one_snapshot(
        &self,
        operation: Operation,
        volume: Uuid,
        snapshot: Uuid,
    ) -> Outcome<About> {
        let (_, record) = self.find(volume)?;
        let snapshot = record
            .snapshot(snapshot)
            .ok_or_else(|| Problem::not_found(ObjectKind::Snapshot, snapshot))?;
        Ok(About::new(operation, snapshot_reference(snapshot)))
    }

    /// Merges a snapshot away; while the volume is connected only its name goes, the merge waits.
    pub(crate) async fn delete_snapshot(
        self: Rc<Self>,
        volume: Uuid,
        snapshot: Uuid,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, record) = self.find(volume)?;
        let object = record
            .snapshot(snapshot)
            .map(snapshot_reference)
            .ok_or_else(|| Problem::not_found(ObjectKind::Snapshot, snapshot))?;
        let _working = self.work_on(&[volume], progress.id())?;
        progress.running("merging");
        let settled = store
            .catalog()?
            .snapshot_delete(volume, snapshot, &*progress)
            .await
            .map_err(catalog_problem)?;
        self.tell_removed(object);
        self.tell_volume(volume).await;
        self.space_freed(store.id());
        Ok(settled_value(&settled))
    }

    pub(crate) async fn revert(
        self: Rc<Self>,
        volume: Uuid,
        snapshot: Uuid,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, record) = self.find(volume)?;
        let _working = self.work_on(&[volume], progress.id())?;
        if self.home_of(volume).is_some() {
            return Err(connected(&record, "reverted"));
        }
        progress.running("reverting");
        store.catalog()?.snapshot_revert(volume, snapshot).await.map_err(catalog_problem)?;
        self.tell_volume(volume).await;
        self.space_freed(store.id());
        to_value(&self.show_volume(volume).await?)
    }

    pub(crate) async fn diff(
        &self,
        volume: Uuid,
        from: Option<Uuid>,
        to: Option<Uuid>,
    ) -> Outcome<SnapshotDiff> {
        let (store, _) = self.find(volume)?;
        let extents =
            store.catalog()?.snapshot_diff(volume, from, to).await.map_err(catalog_problem)?;
        let bytes = extents.iter().fold(0_u64, |sum, e| sum.saturating_add(e.range.len.0));
        let extents = extents
            .into_iter()
            .map(|e| Extent { offset: e.range.start.0, length: e.range.len.0, zero: e.zero })
            .collect();
        Ok(SnapshotDiff { from, to, extents, bytes: Size::from_bytes(bytes) })
    }

    // --- templates ---

    /// As [`Control::about`], of a volume that may be named.
    pub(crate) fn about_reference(
        &self,
        operation: Operation,
        wanted: &Reference,
    ) -> Outcome<About> {
        self.about(operation, self.resolve(wanted)?)
    }

    pub(crate) async fn create_template(
        self: Rc<Self>,
        request: CreateTemplate,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let id = self.resolve(&request.from)?;
        let (store, record, source) = self.source(id, request.snapshot.as_ref())?;
        let whole = source.snapshot.is_none();
        let _working = if whole { Some(self.work_on(&[id], progress.id())?) } else { None };
        if whole && self.link_of_volume(id).is_some() {
            return Err(connected(&record, "made a template"));
        }
        progress.running("freezing");
        let made = store
            .catalog()?
            .template_create(source, request.name.as_str(), &*progress)
            .await
            .map_err(catalog_problem)?;
        if whole {
            self.tell_removed(super::reference(&record));
        }
        self.tell_volume(made.uuid).await;
        to_value(&self.template_view(&store, &made).await)
    }

    pub(crate) fn about_template(&self, operation: Operation, id: Uuid) -> Outcome<About> {
        let (_, record) = self.find_template(id)?;
        Ok(About::new(operation, super::reference(&record)))
    }

    pub(crate) async fn deploy(
        self: Rc<Self>,
        id: Uuid,
        request: DeployTemplate,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, record) = self.find_template(id)?;
        let names = checked_names(&request.names)?;
        if let Some(elsewhere) = &request.datastore
            && self.resolve_store(elsewhere)? != store.id()
        {
            return Err(Problem::new(
                Code::Unsupported,
                format!("{} cannot be deployed to another datastore.", record.name),
            )
            .hint("deploy it beside itself"));
        }
        let how = if request.linked {
            Deploy::Linked
        } else {
            Deploy::Full(request.kind.map(catalog_kind))
        };
        progress.running("deploying");
        let made = store
            .catalog()?
            .template_deploy(id, names, how, &*progress)
            .await
            .map_err(catalog_problem)?;
        self.made(&store, made).await
    }
}

pub(super) fn settled_value(settled: &catalog::Settled) -> Value {
    json!({
        "moved": settled.moved.0,
        "dropped": settled.dropped.len(),
        "waiting": settled.waiting.len(),
        "notes": settled.notes,
    })
}

fn connected(record: &VolumeRecord, done: &str) -> Problem {
    Problem::new(
        Code::Connected,
        format!("Volume {} is connected: it cannot be {done} now.", record.name),
    )
    .hint(format!("shut its guest down, then: shale volume disconnect {}", record.name))
}

fn checked_names(names: &[model::Name]) -> Outcome<Vec<String>> {
    if names.is_empty() || names.len() > MAX_NAMES {
        return Err(Problem::new(
            Code::BadRequest,
            format!("{} names were given; give 1 to {MAX_NAMES}.", names.len()),
        ));
    }
    Ok(names.iter().map(ToString::to_string).collect())
}

fn snapshot_reference(snapshot: &catalog::Snapshot) -> ObjectRef {
    ObjectRef { kind: ObjectKind::Snapshot, id: snapshot.uuid, name: snapshot.name.clone() }
}

/// The snapshot that a caller means, by UUID or name.
pub(super) fn find_snapshot(record: &VolumeRecord, wanted: &Reference) -> Outcome<Uuid> {
    let found = match wanted {
        Reference::Id(id) => record.snapshots.iter().find(|snapshot| snapshot.uuid == *id),
        Reference::Name(name) | Reference::Qualified { name, .. } => {
            record.snapshots.iter().find(|snapshot| snapshot.name == name.as_str())
        }
    };
    found
        .map(|snapshot| snapshot.uuid)
        .ok_or_else(|| Problem::not_found(ObjectKind::Snapshot, wanted))
}
