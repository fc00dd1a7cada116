//! How datastores, volumes, snapshots and templates look on the wire.

use std::collections::BTreeSet;
use std::rc::Rc;

use catalog::{Catalog, Measured, VolumeRecord};
use model::{
    Connection, Datastore, DatastoreKind, DatastoreState, Name, Origin, Protocol, Size, Snapshot,
    Space, StoreFeatures, Template, Timestamp, Volume, VolumeKind, VolumeState,
};
use uuid::Uuid;

use super::Control;
use super::link::Link;
use super::stores::Store;
use crate::connections::Phase;
use crate::problem::Outcome;

pub(super) fn wire_kind(kind: catalog::VolumeKind) -> VolumeKind {
    match kind {
        catalog::VolumeKind::Fixed => VolumeKind::Fixed,
        catalog::VolumeKind::Lazy => VolumeKind::Lazy,
        catalog::VolumeKind::Thin => VolumeKind::Thin,
    }
}

pub(super) fn catalog_kind(kind: VolumeKind) -> catalog::VolumeKind {
    match kind {
        VolumeKind::Fixed => catalog::VolumeKind::Fixed,
        VolumeKind::Lazy => catalog::VolumeKind::Lazy,
        VolumeKind::Thin => catalog::VolumeKind::Thin,
    }
}

/// A stored name. The catalog has the same rules, so this only fails for a record that another
/// program wrote; it is shown all the same.
fn wire_name(text: &str) -> Name {
    Name::new(text).unwrap_or_else(|_invalid| {
        Name::new("invalid-name").expect("a constant that keeps the rules of names")
    })
}

fn size(bytes: io::ByteCount) -> Size {
    Size::from_bytes(bytes.0)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Control {
    pub(crate) async fn list_stores(&self) -> Vec<Datastore> {
        let mut views = Vec::new();
        for store in self.all_stores() {
            views.push(self.store_view(&store).await);
        }
        views.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        views
    }

    pub(crate) async fn show_store(&self, id: Uuid) -> Outcome<Datastore> {
        let store = self.store(id)?;
        Ok(self.store_view(&store).await)
    }

    pub(super) async fn store_view(&self, store: &Store) -> Datastore {
        let mut view = Datastore {
            id: store.id(),
            name: wire_name(store.name()),
            kind: DatastoreKind::Dir,
            path: store.entry.dir.display().to_string(),
            file_system: String::new(),
            state: DatastoreState::Normal,
            state_reason: None,
            space: Space::default(),
            volumes: 0,
            templates: 0,
            snapshots: 0,
            features: StoreFeatures::default(),
            // the operator's: the controller knows it
            policy: model::DatastorePolicy::default(),
            created: Timestamp::default(),
        };
        let opened = match store.opened() {
            Ok(opened) => opened,
            Err(problem) => {
                view.state = DatastoreState::Abnormal;
                view.state_reason = Some(problem.detail);
                return view;
            }
        };
        let able = opened.handle.capabilities();
        view.file_system.clone_from(&able.file_system);
        view.features = StoreFeatures {
            reserve: able.reserve,
            punch_hole: able.punch_hole,
            shared: able.shared,
        };
        view.created = Timestamp::from_unix_ms(opened.handle.identity().created);
        let counts = opened.catalog.counts();
        view.volumes = counts.volumes as u64;
        view.templates = counts.templates as u64;
        view.snapshots = counts.snapshots as u64;
        match opened.catalog.store_usage().await {
            Ok(usage) => {
                view.space = Space {
                    total: size(usage.total),
                    free: size(usage.free),
                    provisioned: size(usage.provisioned),
                    reserved: size(usage.reserved),
                    used: Size::from_bytes(usage.used.0.saturating_add(usage.other.0)),
                    reclaimable: None,
                };
            }
            Err(error) => {
                view.state = DatastoreState::Abnormal;
                view.state_reason = Some(error.to_string());
            }
        }
        view
    }

    /// Those that guests use: what they take changes without an operation.
    pub(crate) async fn list_connected(&self) -> Vec<Volume> {
        let connected: BTreeSet<Uuid> =
            self.links.borrow().values().map(|link| link.entry().volume).collect();
        let mut views = Vec::new();
        for id in connected {
            // One that was deleted meanwhile is in no list.
            if let Ok(view) = self.show_volume(id).await {
                views.push(view);
            }
        }
        views
    }

    pub(crate) async fn list_volumes(&self) -> Vec<Volume> {
        let mut views = Vec::new();
        for store in self.all_stores() {
            let Ok(catalog) = store.catalog() else { continue };
            // Measured after: a volume that is made meanwhile comes with the next list, with its space.
            let records = catalog.volumes();
            let measured = measure(&store).await;
            for record in records.iter().filter(|record| !record.template) {
                views.push(self.volume_view_by(&store, record, measured.as_ref()));
            }
        }
        views
    }

    pub(crate) async fn show_volume(&self, id: Uuid) -> Outcome<Volume> {
        let (store, record) = self.find(id)?;
        Ok(self.volume_view(&store, &record).await)
    }

    pub(super) async fn volume_view(&self, store: &Store, record: &VolumeRecord) -> Volume {
        let measured = measure_for(store, record).await;
        self.volume_view_by(store, record, measured.as_ref())
    }

    fn volume_view_by(
        &self,
        store: &Store,
        record: &VolumeRecord,
        measured: Option<&Measured>,
    ) -> Volume {
        let space = volume_space(store, record, measured);
        let origin = record.origin.as_ref().filter(|origin| origin.linked).map(|origin| Origin {
            id: origin.volume,
            name: self.find_if(origin.volume).map(|(_, source)| wire_name(&source.name)),
            snapshot: origin.snapshot,
        });
        // Of one that was deleted meanwhile nothing is known any more.
        let chain_length =
            store.catalog().ok().and_then(|c| c.chain_length(record.uuid).ok()).unwrap_or(0);
        Volume {
            id: record.uuid,
            name: wire_name(&record.name),
            datastore: store.id(),
            datastore_name: wire_name(store.name()),
            kind: wire_kind(record.kind),
            size: Size::from_bytes(record.size),
            space,
            state: self.volume_state(record.uuid),
            snapshots: count(record.snapshots.len()),
            waiting_merges: count(record.ghosts().count()),
            current_snapshot: record.current.parent,
            chain_length: count(chain_length),
            origin,
            schedule: record.schedule.as_ref().map(super::schedules::wire),
            next_snapshot: None,
            connections: self.connections_of(record.uuid),
            task: self.task_on(record.uuid),
            revision: record.revision,
            created: Timestamp::from_unix_ms(record.created),
        }
    }

    fn volume_state(&self, id: Uuid) -> VolumeState {
        let links = self.links.borrow();
        let mut of_volume = links.values().filter(|link| link.entry().volume == id).peekable();
        if of_volume.peek().is_none() {
            return VolumeState::Disconnected;
        }
        if of_volume.any(|link| matches!(link.entry().phase, Phase::Stopped { .. })) {
            return VolumeState::Abnormal;
        }
        if self.held.borrow().contains(&id) { VolumeState::Held } else { VolumeState::Connected }
    }

    pub(super) fn connections_of(&self, volume: Uuid) -> Vec<Connection> {
        let links = self.links.borrow();
        links
            .values()
            .filter(|link| {
                let entry = link.entry();
                entry.volume == volume && entry.phase == Phase::Open
            })
            .map(|link| self.connection_view(link))
            .collect()
    }

    pub(super) fn connection_view(&self, link: &Link) -> Connection {
        let entry = link.entry();
        let name = entry.export.clone().unwrap_or_else(|| {
            let found = self.find_if(entry.volume);
            found.map_or_else(|| entry.volume.to_string(), |(_, record)| record.name)
        });
        let socket = entry.socket.as_ref().map(|path| path.display().to_string());
        let uri = match (entry.protocol, &socket, entry.tcp_port) {
            (Protocol::VhostUser, _, _) => None,
            (Protocol::Nbd, Some(path), _) => {
                Some(format!("nbd+unix:///{name}?socket={}", percent_encoded(path)))
            }
            (Protocol::Nbd, None, port) => {
                Some(format!("nbd://127.0.0.1:{}/{name}", port.unwrap_or_default()))
            }
        };
        Connection {
            volume: entry.volume,
            snapshot: entry.snapshot,
            protocol: entry.protocol,
            uri,
            socket,
            read_only: entry.read_only,
        }
    }

    pub(crate) async fn list_snapshots(&self, volume: Option<Uuid>) -> Outcome<Vec<Snapshot>> {
        let mut views = Vec::new();
        if let Some(id) = volume {
            let (store, record) = self.find(id)?;
            self.snapshots_of(&store, &record, &mut views).await?;
            return Ok(views);
        }
        for store in self.all_stores() {
            let Ok(catalog) = store.catalog() else { continue };
            let with_snapshots: Vec<VolumeRecord> =
                catalog.volumes().into_iter().filter(|r| !r.snapshots.is_empty()).collect();
            if with_snapshots.is_empty() {
                continue;
            }
            let measured = catalog.measure().await.map_err(super::catalog_problem)?;
            for record in with_snapshots {
                match snapshots_by(&catalog, &record, &measured, &mut views) {
                    // deleted while the files were looked at
                    Err(problem) if problem.code == model::Code::NotFound => {}
                    listed => listed?,
                }
            }
        }
        Ok(views)
    }

    pub(super) async fn snapshots_of(
        &self,
        store: &Rc<Store>,
        record: &VolumeRecord,
        views: &mut Vec<Snapshot>,
    ) -> Outcome<()> {
        if record.snapshots.is_empty() {
            return Ok(());
        }
        let catalog = store.catalog()?;
        let measured = catalog.measure_for(record).await.map_err(super::catalog_problem)?;
        snapshots_by(&catalog, record, &measured, views)
    }

    pub(crate) async fn list_templates(&self) -> Vec<Template> {
        let mut views = Vec::new();
        for store in self.all_stores() {
            let Ok(catalog) = store.catalog() else { continue };
            let records = catalog.volumes();
            let templates: Vec<_> = records.iter().filter(|record| record.template).collect();
            if templates.is_empty() {
                continue;
            }
            let measured = measure(&store).await;
            views.extend(
                templates
                    .into_iter()
                    .map(|record| template_view_by(&store, record, measured.as_ref())),
            );
        }
        views
    }

    pub(crate) async fn show_template(&self, id: Uuid) -> Outcome<Template> {
        let (store, record) = self.find_template(id)?;
        Ok(self.template_view(&store, &record).await)
    }

    pub(super) async fn template_view(&self, store: &Store, record: &VolumeRecord) -> Template {
        template_view_by(store, record, measure_for(store, record).await.as_ref())
    }
}

fn template_view_by(store: &Store, record: &VolumeRecord, measured: Option<&Measured>) -> Template {
    let clones = store.catalog().map_or(0, |catalog| catalog.dependents(record.uuid).len());
    Template {
        id: record.uuid,
        name: wire_name(&record.name),
        datastore: store.id(),
        datastore_name: wire_name(store.name()),
        kind: wire_kind(record.kind),
        size: Size::from_bytes(record.size),
        used: volume_space(store, record, measured).used,
        clones: count(clones),
        created: Timestamp::from_unix_ms(record.created),
    }
}

fn snapshots_by(
    catalog: &Catalog,
    record: &VolumeRecord,
    measured: &Measured,
    views: &mut Vec<Snapshot>,
) -> Outcome<()> {
    let tree = catalog.snapshot_tree_by(record.uuid, measured);
    // Deleted during the measurement: it has no snapshots any more.
    let tree = match tree {
        Err(error) if error.code == catalog::Code::NotFound => return Ok(()),
        tree => tree.map_err(super::catalog_problem)?,
    };
    for node in tree {
        let cost = catalog.snapshot_delete_cost_by(record.uuid, node.snapshot.uuid, measured);
        views.push(Snapshot {
            id: node.snapshot.uuid,
            name: wire_name(&node.snapshot.name),
            volume: record.uuid,
            volume_name: wire_name(&record.name),
            parent: node.snapshot.parent,
            size: Size::from_bytes(node.snapshot.size),
            used: size(node.used),
            merge_bytes: cost.ok().map(size),
            set: node.snapshot.set,
            scheduled: node.snapshot.scheduled.as_ref().map(super::schedules::wire_made_for),
            clones: count(node.clones),
            created: Timestamp::from_unix_ms(node.snapshot.created),
        });
    }
    Ok(())
}

/// One look at what the layers of a datastore take. None: they cannot be looked at.
async fn measure(store: &Store) -> Option<Measured> {
    or_unknown(store, store.catalog().ok()?.measure().await)
}

/// The same, of the layers of one volume.
async fn measure_for(store: &Store, record: &VolumeRecord) -> Option<Measured> {
    or_unknown(store, store.catalog().ok()?.measure_for(record).await)
}

fn or_unknown(store: &Store, measured: catalog::Result<Measured>) -> Option<Measured> {
    measured.inspect_err(|error| tracing::debug!(store = %store.id(), %error, "no usage")).ok()
}

/// Of one that was deleted meanwhile, or cannot be looked at, the size is what is known.
fn volume_space(store: &Store, record: &VolumeRecord, measured: Option<&Measured>) -> Space {
    let Ok(catalog) = store.catalog() else { return Space::default() };
    match measured.and_then(|measured| catalog.usage_by(record.uuid, measured).ok()) {
        Some(usage) => Space {
            total: Size::from_bytes(0),
            free: Size::from_bytes(0),
            provisioned: size(usage.provisioned),
            reserved: size(usage.reserved),
            used: size(usage.used),
            reclaimable: usage.reclaimable.map(size),
        },
        None => Space { provisioned: Size::from_bytes(record.size), ..Space::default() },
    }
}

/// What may not stand in the query of a URI as it is.
fn percent_encoded(path: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a String");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::percent_encoded;

    #[test]
    fn paths_in_uris() {
        assert_eq!(percent_encoded("/run/a-b.sock"), "/run/a-b.sock");
        assert_eq!(percent_encoded("/a b?&#"), "/a%20b%3F%26%23");
    }
}
