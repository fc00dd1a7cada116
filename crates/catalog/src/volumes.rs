//! Volumes: create, rename, delete.

use std::collections::BTreeSet;

use io::{ByteRange, IoBuf};
use uuid::Uuid;

use crate::api::NewVolume;
use crate::catalog::{Catalog, check_name};
use crate::env::Progress;
use crate::error::{CatalogError, Code, Result};
use crate::intent::NewLayer;
use crate::layer;
use crate::locks::Pace;
use crate::record::{Current, MAX_SIZE, Origin, SIZE_UNIT, VolumeKind, VolumeRecord, is_size};
use crate::segments::{Layout, Tip};
use crate::txn::Plan;

/// Zeros are written in pieces of this many bytes.
const ZEROS: usize = 1 << 20;

impl Catalog {
    /// Makes a volume. A fixed one is written whole, which takes its time.
    ///
    /// # Errors
    /// `bad-name`, `name-taken`, `bad-size`, `no-space`, `unsupported` (lazy where the store cannot
    /// reserve), `cancelled`.
    pub async fn create_volume(
        &self,
        new: NewVolume,
        progress: &dyn Progress,
    ) -> Result<VolumeRecord> {
        check_size(new.size.0)?;
        self.can_hold(new.kind)?;
        let names = self.take_names(std::slice::from_ref(&new.name))?;
        let title = format!("create {}", new.name);
        let needed = match new.kind {
            VolumeKind::Thin => 0,
            VolumeKind::Fixed | VolumeKind::Lazy => new.size.0,
        };
        self.has_room(needed, &title).await?;
        let layout = self.new_layout(new.size.0);
        let record = self.new_record(new.name, layout, new.kind, None);
        let layers = base_layers(&record);
        let creates = layers.clone();
        let begun =
            self.begin(Plan { title, puts: vec![record], creates, ..Plan::default() }).await?;
        let built = async {
            if new.kind == VolumeKind::Fixed {
                progress.phase("zeroing", new.size.0);
            }
            for (at, layer) in layers.iter().enumerate() {
                match new.kind {
                    VolumeKind::Fixed => {
                        self.write_fixed(layer, layout.start_of(at), progress).await?;
                    }
                    VolumeKind::Lazy | VolumeKind::Thin => {
                        let (now, reserve) = (self.env().now_ms(), new.kind == VolumeKind::Lazy);
                        layer::create_sparse(self.store(), layer, now, reserve).await?;
                    }
                }
            }
            Ok(())
        }
        .await;
        let made = self.conclude(begun, built).await?;
        drop(names);
        one(made)
    }

    /// Makes the names of new files durable and commits; undoes if the files could not be built.
    pub(crate) async fn conclude(
        &self,
        begun: crate::txn::Begun,
        built: Result<()>,
    ) -> Result<Vec<VolumeRecord>> {
        let durable = match built {
            Ok(()) => self.store().sync_names().await.map_err(CatalogError::from),
            Err(error) => Err(error),
        };
        match durable {
            Ok(()) => self.commit(begun).await,
            Err(error) => Err(self.abort(begun, error).await),
        }
    }

    /// Makes a fixed layer whole; `before` counts what was written of others.
    pub(crate) async fn write_fixed(
        &self,
        new: &NewLayer,
        before: u64,
        progress: &dyn Progress,
    ) -> Result<()> {
        let plan = layer::plan_new(new, self.env().now_ms())?;
        let file = layer::make_file(self.store(), new.layer).await?;
        if self.store().capabilities().reserve {
            file.reserve(ByteRange::new(0, plan.len)).await?;
        }
        let zeros = IoBuf::zeroed(ZEROS);
        let mut at = 0;
        while at < new.size {
            if progress.cancelled() {
                return Err(cancelled());
            }
            let len = usize::try_from(new.size - at).unwrap_or(ZEROS).min(ZEROS);
            layer::write(&*file, at, &zeros.slice(0, len)).await?;
            at += len as u64;
            progress.advance(before + at);
        }
        for (at, bytes) in &plan.pieces {
            layer::write(&*file, at.bytes(), &IoBuf::copied(bytes)).await?;
        }
        layer::flush(&*file).await
    }

    pub(crate) fn new_record(
        &self,
        name: String,
        layout: Layout,
        kind: VolumeKind,
        origin: Option<Origin>,
    ) -> VolumeRecord {
        let layers: Vec<Uuid> = (0..layout.count()).map(|_| self.env().new_uuid()).collect();
        let linked = origin.as_ref().is_some_and(|origin| origin.linked);
        let fixed = kind == VolumeKind::Fixed && !linked;
        VolumeRecord {
            uuid: self.env().new_uuid(),
            name,
            revision: 0,
            operation: Uuid::nil(),
            size: layout.size,
            kind,
            created: self.env().now_ms(),
            template: false,
            origin,
            snapshots: Vec::new(),
            current: Current { tip: Tip::new(layers.clone()), parent: None, unreserved: false },
            fixed_layers: if fixed { layers.clone() } else { Vec::new() },
            layers,
            segment: layout.segment,
            schedule: None,
        }
    }

    /// How a new volume divides.
    pub(crate) fn new_layout(&self, size: u64) -> Layout {
        Layout { size, segment: self.env().segment_bytes() }
    }

    pub(crate) fn can_hold(&self, kind: VolumeKind) -> Result<()> {
        let capabilities = self.store().capabilities();
        if kind == VolumeKind::Lazy && !capabilities.reserve {
            let message = format!(
                "{} cannot reserve space, which lazy volumes need",
                capabilities.file_system
            );
            return Err(CatalogError::new(Code::Unsupported, message)
                .hint("use a thin or a fixed volume, or another datastore"));
        }
        Ok(())
    }

    /// Refuses early what cannot have the space it needs (invariant 9).
    pub(crate) async fn has_room(&self, bytes: u64, doing: &str) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let free = self.store().free().await?.0;
        if bytes > free {
            let message =
                format!("cannot {doing}: {} are needed and {} are free", mib(bytes), mib(free));
            return Err(CatalogError::new(Code::NoSpace, message)
                .hint("free space on the datastore or enlarge it; or use a thin volume"));
        }
        Ok(())
    }

    /// Gives a volume or template another name; also while it is connected.
    ///
    /// # Errors
    /// `not-found`, `bad-name`, `name-taken`, `busy`.
    pub async fn rename(&self, volume: Uuid, name: &str) -> Result<VolumeRecord> {
        check_name(name)?;
        let held = self.hold(&[volume], "a rename", Pace::Short).await?;
        let old = self.volume(volume)?;
        if old.name == name {
            return Ok(old);
        }
        let names = self.take_names(&[name.to_owned()])?;
        let title = format!("rename {} to {name}", old.name);
        let renamed = VolumeRecord { name: name.to_owned(), ..old };
        let begun = self.begin(Plan { title, puts: vec![renamed], ..Plan::default() }).await?;
        let made = self.commit(begun).await?;
        drop((names, held));
        one(made)
    }

    /// Deletes a volume or template with all its snapshots.
    ///
    /// # Errors
    /// `has-dependents` naming its linked clones, `volume-connected`, `busy`, `record-unreadable`.
    pub async fn delete_volume(&self, volume: Uuid) -> Result<()> {
        // what others left standing on it, which nobody uses, is not in its way
        if self.dependents(volume).is_empty() {
            self.drop_unused(self.left_above(volume)).await;
        }
        let held = self.hold_with_origins(volume, "a deletion", Pace::Short).await?;
        let record = self.volume(volume)?;
        self.disconnected(&record, "delete")?;
        let dependents = self.dependents(volume);
        if !dependents.is_empty() {
            let names: Vec<&str> = dependents.iter().take(8).map(|d| d.name.as_str()).collect();
            let more = dependents.len().saturating_sub(names.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message = format!(
                "cannot delete {}: {}{more} {} linked to it",
                record.name,
                names.join(", "),
                if dependents.len() == 1 { "is" } else { "are" },
            );
            return Err(CatalogError::new(Code::HasDependents, message)
                .hint("delete the linked clones first")
                .related(dependents));
        }
        if let Some(owner) = self.left_above(volume).first() {
            let owner = self.volume(*owner).map_or_else(|_| owner.to_string(), |owner| owner.name);
            let message = format!("an unused layer of {owner} still stands on {}", record.name);
            return Err(CatalogError::new(Code::Busy, message).hint("try again later"));
        }
        // Leaves first: what is left after a crash in between is whole chains.
        let mut drops = record.layers.clone();
        let depth = |layer: &Uuid| self.with(|state| state.tree.path_so_far(*layer).len());
        drops.sort_by_cached_key(|layer| std::cmp::Reverse(depth(layer)));
        let origin_layers = self.origins_of(&record.layers, volume);
        let title = format!("delete {}", record.name);
        let plan = Plan { title, removes: Some(volume), drops, ..Plan::default() };
        let begun = self.begin(plan).await?;
        self.commit(begun).await?;
        drop(held);
        self.drop_unused(origin_layers).await;
        Ok(())
    }

    /// Volumes and templates that `volume` stands on.
    #[must_use]
    pub fn origins(&self, volume: Uuid) -> Vec<Uuid> {
        let layers = self.with(|state| state.volumes.get(&volume).map(|v| v.layers.clone()));
        self.origins_of(&layers.unwrap_or_default(), volume)
    }

    /// Other volumes of which layers stand on the volume's.
    #[must_use]
    pub fn left_above(&self, volume: Uuid) -> Vec<Uuid> {
        let owners: BTreeSet<Uuid> = self.with(|state| {
            let layers = state.volumes.get(&volume).map_or(&[][..], |record| &record.layers);
            let above = layers.iter().flat_map(|layer| state.tree.subtree(*layer));
            above.filter_map(|layer| state.tree.get(layer)?.owner).collect()
        });
        owners.into_iter().filter(|owner| *owner != volume).collect()
    }

    /// Drops the layers of all volumes that nothing stands on any more: a process that died may have left
    /// some. Call it after open.
    pub async fn drop_all_unused(&self) {
        let ghostly = self.with(|state| {
            let some = state.volumes.values().filter(|record| record.ghosts().next().is_some());
            some.map(|record| record.uuid).collect()
        });
        self.drop_unused(ghostly).await;
    }

    /// Layers of these volumes that nothing stands on any more go now; nothing of that is the failure of
    /// what was done before.
    pub(crate) async fn drop_unused(&self, volumes: Vec<Uuid>) {
        // one volume's may have stood on another's
        let mut again = true;
        while std::mem::take(&mut again) {
            for volume in &volumes {
                match self.drop_ghosts(*volume).await {
                    Ok(dropped) => again |= !dropped.is_empty(),
                    Err(error) => {
                        tracing::warn!(%volume, %error, "unused layers stay for now");
                    }
                }
            }
        }
    }

    /// Volumes other than `volume` whose layers `layers` stand on.
    pub(crate) fn origins_of(&self, layers: &[Uuid], volume: Uuid) -> Vec<Uuid> {
        let mut owners: Vec<Uuid> = self.with(|state| {
            let below = layers.iter().flat_map(|layer| state.tree.path_so_far(*layer));
            below.filter_map(|layer| state.tree.get(layer)?.owner).collect()
        });
        owners.sort_unstable();
        owners.dedup();
        owners.retain(|owner| *owner != volume);
        owners
    }
}

/// The first layers of a new volume that stand on nothing, one for each segment.
pub(crate) fn base_layers(record: &VolumeRecord) -> Vec<NewLayer> {
    let layout = record.layout();
    let layers = record.current.tip.layers().iter().enumerate();
    layers
        .map(|(at, layer)| NewLayer {
            layer: *layer,
            parent: None,
            size: layout.size_of(at),
            fixed: record.is_fixed(*layer),
            owner: record.uuid,
        })
        .collect()
}

pub(crate) fn check_size(size: u64) -> Result<()> {
    if is_size(size) {
        return Ok(());
    }
    let message = format!("{size} bytes is not a size that a volume can have");
    let limits = format!("sizes are multiples of {SIZE_UNIT} bytes, up to {} TiB", MAX_SIZE >> 40);
    Err(CatalogError::new(Code::BadSize, message).hint(limits))
}

pub(crate) fn cancelled() -> CatalogError {
    CatalogError::new(Code::Cancelled, "it was cancelled; nothing of it is left")
}

pub(crate) fn one(mut made: Vec<VolumeRecord>) -> Result<VolumeRecord> {
    Ok(made.pop().expect("an operation with one record gives it back"))
}

/// Bytes for people.
pub(crate) fn mib(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes.div_ceil(1024)),
        _ => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}
