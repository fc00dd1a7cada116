//! Volumes of one kind become volumes of another, while they are disconnected.
//!
//! ```text
//!              to thin          to lazy          to fixed
//!   thin       –                reserve          rewrite (no snapshots can stay)
//!   lazy       give back        –                rewrite (no snapshots can stay)
//!   fixed      rewrite, or with snapshots, whose fixed layer stays: give back | relabel     –
//! ```
//!
//! Reserving and giving back change how the one layer that is written takes space, so snapshots and
//! clones never notice. A rewrite makes a new flat layer; the record that names it commits it, and the
//! old layers go after that.

use datastore::{Access, ObjectName};
use image::{BLOCK_BYTES, BLOCK_STRIDE_SECTORS, SECTOR, Sector, create};
use io::{ByteCount, ByteRange, Clear, Durability, Effort, ExtentKind, IoBuf, Request};
use uuid::Uuid;

use crate::api::{Conversion, ConversionWay};
use crate::catalog::{Catalog, refuse_template};
use crate::content::DiskReader;
use crate::env::Progress;
use crate::error::{CatalogError, Code, Named, Result};
use crate::intent::{CutBack, Piece, Rewrite};
use crate::layer::{self, Layer, block_count, header_pieces};
use crate::locks::Pace;
use crate::record::{Current, Origin, VolumeKind, VolumeRecord};
use crate::segments::Tip;
use crate::txn::Plan;
use crate::volumes::{base_layers, cancelled, one};

/// Space is given back in aligned pieces of this many bytes.
const HOLE_LEN: usize = 64 << 10;
const HOLE: u64 = HOLE_LEN as u64;

impl Catalog {
    /// What [`Catalog::convert`] would do.
    ///
    /// # Errors
    /// `not-found`, `is-template`, `unsupported`, or if the datastore fails.
    pub async fn conversion(&self, volume: Uuid, kind: VolumeKind) -> Result<Conversion> {
        let record = self.volume(volume)?;
        refuse_template(&record, "convert")?;
        self.can_hold(kind)?;
        let measured = self.measure_for(&record).await?;
        let used_by = |layers: &[Uuid]| measured.used_by(layers).0;
        let leaves = used_by(record.current.tip.layers());
        let loses = if kind == VolumeKind::Fixed && record.kind != kind {
            record.snapshots.len()
        } else {
            0
        };
        let nothing = Conversion {
            way: ConversionWay::Relabel,
            takes: ByteCount::ZERO,
            frees: ByteCount::ZERO,
            moves: ByteCount::ZERO,
            loses,
        };
        let way = way(&record, kind);
        Ok(match way {
            ConversionWay::Relabel => nothing,
            ConversionWay::Reserve => {
                Conversion { way, takes: ByteCount(record.size.saturating_sub(leaves)), ..nothing }
            }
            // What its blocks do not use is known when it is looked at.
            ConversionWay::GiveBack => {
                let blocks = self.blocks_of(&record).await?.saturating_mul(BLOCK_BYTES);
                Conversion { way, frees: ByteCount(leaves.saturating_sub(blocks)), ..nothing }
            }
            ConversionWay::Rewrite => {
                let chains = self.chains(&record.current.tip)?;
                let layers: Vec<Uuid> = chains.iter().flatten().map(|(uuid, _)| *uuid).collect();
                let stored = used_by(&layers).min(record.size);
                let takes = if kind == VolumeKind::Thin { stored } else { record.size };
                Conversion {
                    way,
                    takes: ByteCount(takes),
                    frees: ByteCount(used_by(&self.unshared(&record))),
                    moves: ByteCount(stored),
                    ..nothing
                }
            }
        })
    }

    /// Makes the volume one of `kind`. Where the target cannot keep snapshots, as
    /// [`Catalog::conversion`] tells, they are deleted with `lose_snapshots`, else it is refused.
    ///
    /// # Errors
    /// `not-found`, `is-template`, `volume-connected`, `not-clean`, `unsupported`, `no-space`, `busy`,
    /// `cancelled` (it is as it was), `has-dependents` for snapshots that would be lost, and for clones
    /// of those.
    pub async fn convert(
        &self,
        volume: Uuid,
        kind: VolumeKind,
        lose_snapshots: bool,
        progress: &dyn Progress,
    ) -> Result<VolumeRecord> {
        let held = self.hold_with_origins(volume, "a conversion", Pace::Long).await?;
        let record = self.volume(volume)?;
        self.at_rest(&record, "convert")?;
        let plan = self.conversion(volume, kind).await?;
        if record.kind == kind && plan.way == ConversionWay::Relabel {
            return Ok(record);
        }
        let title = format!("convert {} to {}", record.name, kind.name());
        if plan.loses > 0 {
            self.may_lose_snapshots(&record, &plan, lose_snapshots)?;
        }
        self.has_room(plan.takes.0, &title).await?;
        let old_layers = record.layers.clone();
        let converted = match plan.way {
            ConversionWay::Relabel => {
                let put = of_kind(record, kind);
                let begun = self.begin(Plan { title, puts: vec![put], ..Plan::default() }).await?;
                one(self.commit(begun).await?)?
            }
            ConversionWay::Reserve => self.reserve_leaves(record, kind, title).await?,
            ConversionWay::GiveBack => self.give_back_leaves(record, kind, title, progress).await?,
            ConversionWay::Rewrite => self.rewrite(record, kind, title, progress).await?,
        };
        let origins = self.origins_of(&old_layers, volume);
        drop(held);
        if plan.way == ConversionWay::Rewrite {
            self.drop_unused([volume].into_iter().chain(origins).collect()).await;
        }
        self.volume(converted.uuid)
    }

    fn may_lose_snapshots(
        &self,
        record: &VolumeRecord,
        plan: &Conversion,
        agreed: bool,
    ) -> Result<()> {
        if !agreed {
            let message = format!(
                "{} has {} snapshots, and a fixed volume made of it can keep none of them",
                record.name, plan.loses
            );
            let related =
                record.snapshots.iter().map(|s| Named { uuid: s.uuid, name: s.name.clone() });
            return Err(CatalogError::new(Code::HasDependents, message)
                .hint(
                    "say that they may be lost (--lose-snapshots), or copy the volume as a fixed one \
                     beside it, or make it lazy, which keeps them",
                )
                .related(related.collect()));
        }
        let dependents = self.dependents(record.uuid);
        if dependents.is_empty() {
            return Ok(());
        }
        let message = format!("snapshots of {} that would be lost have linked clones", record.name);
        Err(CatalogError::new(Code::HasDependents, message)
            .hint("delete the linked clones first, or convert them to volumes of their own")
            .related(dependents))
    }

    /// The leaves that are not fixed files, which have their space anyway, open for writing.
    async fn sparse_leaves(&self, record: &VolumeRecord) -> Result<Vec<Layer>> {
        let mut leaves = Vec::new();
        for layer in record.current.tip.layers() {
            if !record.is_fixed(*layer) {
                leaves.push(Layer::open(self.store(), *layer, false, Access::Write).await?);
            }
        }
        Ok(leaves)
    }

    /// Takes the space that the leaves lack: all of it, so that no later write can fail for want of it.
    async fn reserve_leaves(
        &self,
        record: VolumeRecord,
        kind: VolumeKind,
        title: String,
    ) -> Result<VolumeRecord> {
        let leaves = self.sparse_leaves(&record).await?;
        let full_end = |leaf: &Layer| {
            let unplaced = u64::from(block_count(leaf.size())) - leaf.blocks().len() as u64;
            leaf.end().plus(unplaced * BLOCK_STRIDE_SECTORS)
        };
        let as_before =
            |leaf: &Layer| CutBack { layer: leaf.uuid, len: leaf.end().bytes(), scratch: None };
        let plan = Plan {
            title,
            puts: vec![of_kind(record, kind)],
            rewrites: leaves.iter().map(|leaf| footer_at(leaf, full_end(leaf))).collect(),
            cut_back: leaves.iter().map(as_before).collect(),
            ..Plan::default()
        };
        let begun = self.begin(plan).await?;
        let built = async {
            for leaf in &leaves {
                // The old footer goes: places for blocks are zero until they are taken.
                leaf.truncate(leaf.end().bytes()).await?;
                let full = ByteRange::new(0, full_end(leaf).bytes() + SECTOR);
                leaf.file().reserve(full).await?;
                leaf.flush().await?;
            }
            Ok(())
        }
        .await;
        // Both undoing and finishing open the files again, as their only holder.
        drop(leaves);
        one(self.conclude(begun, built).await?)
    }

    /// Gives back what the leaves keep beyond their data, and the zeros of fixed layers below them.
    async fn give_back_leaves(
        &self,
        record: VolumeRecord,
        kind: VolumeKind,
        title: String,
        progress: &dyn Progress,
    ) -> Result<VolumeRecord> {
        let leaves = self.sparse_leaves(&record).await?;
        // One that clones read is left alone: they could not open it meanwhile.
        let unshared = self.unshared(&record);
        let mut fixed = record.fixed_layers.clone();
        fixed.retain(|layer| unshared.contains(layer));
        let rewrites = leaves.iter().map(|leaf| footer_at(leaf, leaf.end())).collect();
        drop(leaves);
        let plan = Plan { title, puts: vec![of_kind(record, kind)], rewrites, ..Plan::default() };
        let begun = self.begin(plan).await?;
        let made = one(self.commit(begun).await?)?;
        // It is thin now. That space comes back too changes no byte that anybody reads, and may stop
        // anywhere.
        let punched = async {
            for leaf in made.current.tip.layers() {
                self.punch_unwritten(*leaf).await?;
            }
            for layer in fixed {
                self.punch_zeros(layer, progress).await?;
            }
            Ok::<(), CatalogError>(())
        };
        if let Err(error) = punched.await {
            tracing::warn!(volume = %made.name, %error, "some space is not given back yet");
        }
        Ok(made)
    }

    /// Gives back space of blocks that was kept and never written.
    async fn punch_unwritten(&self, layer: Uuid) -> Result<()> {
        let leaf = Layer::open(self.store(), layer, false, Access::Write).await?;
        for entry in leaf.bat.iter().flatten() {
            let mut at = leaf.image.data_at(*entry).bytes();
            let end = at + BLOCK_BYTES;
            while at < end {
                let extents = leaf.file().extents(ByteRange::new(at, end - at)).await?;
                for extent in &extents {
                    if extent.kind != ExtentKind::Data {
                        leaf.punch(extent.range.start.0, extent.range.len.0).await?;
                    }
                    at = at.max(extent.range.start.0 + extent.range.len.0);
                }
                if extents.is_empty() {
                    break;
                }
            }
        }
        leaf.flush().await
    }

    /// Gives back the space of zeros in a fixed layer. Whoever reads it meanwhile reads the same.
    async fn punch_zeros(&self, layer: Uuid, progress: &dyn Progress) -> Result<()> {
        let file = self.store().open(&ObjectName::Layer(layer), Access::Write).await?;
        let size = layer::open_image(&*file, layer, true).await?.size.bytes();
        let buf = IoBuf::zeroed(ByteCount(BLOCK_BYTES).as_len());
        progress.phase("giving back space", size);
        let mut at = 0;
        while at < size {
            if progress.cancelled() {
                return Err(cancelled());
            }
            let len = BLOCK_BYTES.min(size - at);
            let part = buf.slice(0, ByteCount(len).as_len());
            layer::read_into(&*file, at, &part).await?;
            let bytes = part.to_vec();
            let pieces = bytes.chunks(HOLE_LEN).zip((at..).step_by(HOLE_LEN));
            for (piece, start) in pieces {
                if piece.len() as u64 == HOLE && piece.iter().all(|byte| *byte == 0) {
                    let range = ByteRange::new(start, HOLE);
                    let (how, effort) = (Clear::Deallocate, Effort::Any);
                    let durability = Durability::Cached;
                    file.submit(Request::Clear { range, how, effort, durability }).await?;
                }
            }
            at += len;
            progress.advance(at);
        }
        layer::flush(&*file).await
    }

    /// Writes the volume's content into a new flat layer; its old layers go, but for those that clones
    /// stand on.
    async fn rewrite(
        &self,
        record: VolumeRecord,
        kind: VolumeKind,
        title: String,
        progress: &dyn Progress,
    ) -> Result<VolumeRecord> {
        let layout = record.layout();
        let chains = self.chains(&record.current.tip)?;
        let drops = self.unshared(&record);
        let new: Vec<Uuid> = chains.iter().map(|_| self.env().new_uuid()).collect();
        let mut put = of_kind(record, kind);
        put.snapshots.clear();
        put.current = Current { tip: Tip::new(new.clone()), parent: None, unreserved: false };
        put.layers.retain(|layer| !drops.contains(layer));
        put.fixed_layers.retain(|layer| !drops.contains(layer));
        put.layers.extend(&new);
        if kind == VolumeKind::Fixed {
            if !put.fixed_layers.is_empty() {
                let message = format!("clones of {} still stand on its old fixed layer", put.name);
                return Err(CatalogError::new(Code::HasDependents, message)
                    .hint("delete them first, or convert them to volumes of their own")
                    .related(self.dependents(put.uuid)));
            }
            put.fixed_layers = new;
        }
        put.origin = put.origin.map(|origin| Origin { linked: false, ..origin });
        let bases = base_layers(&put);
        let from = DiskReader::open(self.store(), layout, &chains).await?;
        let creates = bases.clone();
        let plan = Plan { title, puts: vec![put], creates, drops, ..Plan::default() };
        let begun = self.begin(plan).await?;
        let built = self.fill(&bases, layout, from, kind, progress).await;
        one(self.conclude(begun, built).await?)
    }

    /// The volume's own layers that nobody else stands on, leaves first.
    fn unshared(&self, record: &VolumeRecord) -> Vec<Uuid> {
        self.with(|state| {
            let own = |layer: &Uuid| {
                state.tree.get(*layer).is_some_and(|node| node.owner == Some(record.uuid))
            };
            let mut layers: Vec<Uuid> = record
                .layers
                .iter()
                .copied()
                .filter(|layer| state.tree.subtree(*layer).iter().all(own))
                .collect();
            layers.sort_by_cached_key(|layer| {
                std::cmp::Reverse(state.tree.path_so_far(*layer).len())
            });
            layers
        })
    }

    async fn blocks_of(&self, record: &VolumeRecord) -> Result<u64> {
        let mut blocks = 0;
        for layer in record.current.tip.layers() {
            if !record.is_fixed(*layer) {
                let leaf = Layer::open(self.store(), *layer, false, Access::Read).await?;
                blocks += leaf.blocks().len() as u64;
            }
        }
        Ok(blocks)
    }
}

/// How `record` becomes a volume of `kind`.
fn way(record: &VolumeRecord, kind: VolumeKind) -> ConversionWay {
    // of several segments, as they grew and merged, some may be fixed files and others not
    let is_fixed = |layer: &Uuid| record.is_fixed(*layer);
    let leaves = record.current.tip.layers();
    let (some_fixed, all_fixed) = (leaves.iter().any(is_fixed), leaves.iter().all(is_fixed));
    let lacks_space = record.kind == VolumeKind::Thin || record.current.unreserved;
    match (record.kind, kind) {
        (VolumeKind::Fixed, VolumeKind::Fixed) if all_fixed => ConversionWay::Relabel,
        (VolumeKind::Fixed, VolumeKind::Fixed) if lacks_space => ConversionWay::Reserve,
        (VolumeKind::Fixed, VolumeKind::Fixed) => ConversionWay::Relabel,
        (_, _) if some_fixed => ConversionWay::Rewrite,
        (VolumeKind::Thin | VolumeKind::Lazy, VolumeKind::Fixed) => ConversionWay::Rewrite,
        (_, VolumeKind::Lazy) if lacks_space => ConversionWay::Reserve,
        (_, VolumeKind::Lazy) => ConversionWay::Relabel,
        (VolumeKind::Thin, VolumeKind::Thin) => ConversionWay::Relabel,
        (VolumeKind::Fixed | VolumeKind::Lazy, VolumeKind::Thin) => ConversionWay::GiveBack,
    }
}

/// The record with its new kind, its space as the kind says.
fn of_kind(record: VolumeRecord, kind: VolumeKind) -> VolumeRecord {
    let current = Current { unreserved: false, ..record.current };
    VolumeRecord { kind, current, ..record }
}

/// The footer of `layer` at `end`, where the file then ends; nothing else of it changes.
fn footer_at(layer: &Layer, end: Sector) -> Rewrite {
    let (at, footer) = create::tail_for(&layer.image, end);
    let len = at.bytes() + footer.len() as u64;
    let mut pieces = header_pieces(&layer.image);
    pieces.push(Piece { at: at.bytes(), bytes: footer });
    Rewrite {
        layer: layer.uuid,
        len,
        pieces,
        parent: layer.image.parent.as_ref().map(|parent| parent.uuid),
        size: layer.size(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segments::MAX_SEGMENT;

    fn record(kind: VolumeKind, fixed_leaf: bool, unreserved: bool) -> VolumeRecord {
        let layer = Uuid::from_u128(1);
        VolumeRecord {
            uuid: Uuid::nil(),
            name: "v".into(),
            revision: 0,
            operation: Uuid::nil(),
            size: 512,
            kind,
            created: 0,
            template: false,
            origin: None,
            snapshots: Vec::new(),
            current: Current { tip: layer.into(), parent: None, unreserved },
            layers: vec![layer],
            fixed_layers: fixed_leaf.then_some(layer).into_iter().collect(),
            segment: MAX_SEGMENT,
            schedule: None,
        }
    }

    #[test]
    fn every_pair_of_kinds_has_its_way() {
        use ConversionWay::{GiveBack, Relabel, Reserve, Rewrite};
        use VolumeKind::{Fixed, Lazy, Thin};
        let table = [
            // from, its leaf is a fixed file, it does without its space, to, how
            (Thin, false, false, Thin, Relabel),
            (Thin, false, false, Lazy, Reserve),
            (Thin, false, false, Fixed, Rewrite),
            (Lazy, false, false, Thin, GiveBack),
            (Lazy, false, false, Lazy, Relabel),
            (Lazy, false, true, Lazy, Reserve),
            (Lazy, false, true, Thin, GiveBack),
            (Lazy, false, false, Fixed, Rewrite),
            (Fixed, true, false, Thin, Rewrite),
            (Fixed, true, false, Lazy, Rewrite),
            (Fixed, true, false, Fixed, Relabel),
            // a fixed volume was made thin, and its last snapshot then merged into its fixed layer
            (Thin, true, false, Thin, Rewrite),
            (Thin, true, false, Lazy, Rewrite),
            (Thin, true, false, Fixed, Rewrite),
            (Fixed, false, false, Thin, GiveBack),
            (Fixed, false, false, Lazy, Relabel),
            (Fixed, false, true, Lazy, Reserve),
            (Fixed, false, true, Fixed, Reserve),
            (Fixed, false, false, Fixed, Relabel),
        ];
        for (from, fixed_leaf, unreserved, to, expected) in table {
            let found = way(&record(from, fixed_leaf, unreserved), to);
            assert_eq!(found, expected, "{from:?} {fixed_leaf} {unreserved} to {to:?}");
        }
    }
}
