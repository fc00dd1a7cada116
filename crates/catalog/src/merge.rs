//! What becomes of layers of deleted snapshots: dropped where nothing stands on them, merged with
//! the one layer that does, block by block, while the volume is disconnected.
//!
//! ```text
//!   parent (ghost) ◄── child ◄── above        every block is found in parent or child at any moment,
//!   moved blocks ◄──── the rest               so the merge can stop for good at any point (L3)
//!   parent ◄── above                          done: the record names the parent where it named the child
//! ```
//!
//! A merge wants exactly one path through the parent, all of it owned by this volume (invariant 4):
//! clones may be read by others, and branches share what would move.

use datastore::{Access, ObjectName};
use image::merge::{Merge, MergeStep, Side};
use image::{Kind, PAGE, ParentRef, Sector, SectorCount, create};
use io::{ByteCount, ByteRange, Clear, IoBuf, IoErrorKind};
use uuid::Uuid;

use crate::api::{PendingMerge, Settled};
use crate::catalog::Catalog;
use crate::cell::{Cell, LayerState};
use crate::env::Progress;
use crate::error::{CatalogError, Code, Result};
use crate::intent::{Piece, Rewrite};
use crate::layer::{self, Layer, header_pieces};
use crate::locks::Pace;
use crate::record::{VolumeKind, VolumeRecord};
use crate::snapshots::without_layer;
use crate::txn::{Plan, layer_cell};

/// Copies within a merge go in pieces of this many bytes.
const PIECE: u64 = 1 << 20;
/// What must be free to begin: one batch of blocks; each batch frees its own after it moved.
const ROOM: u64 = 16 * (2 << 20);

/// How a merge ended.
enum Ended {
    Done,
    Paused,
}

impl Catalog {
    /// Drops and merges whatever can be on a volume; goes on with merges that were paused or
    /// interrupted. Call it after a disconnect, and after open for each of
    /// [`Catalog::pending_merges`].
    ///
    /// # Errors
    /// `not-found`, `busy`, `no-space` (the merge is paused then), `corrupt`, `record-unreadable`.
    pub async fn settle(&self, volume: Uuid, progress: &dyn Progress) -> Result<Settled> {
        let mut settled =
            Settled { dropped: self.drop_ghosts(volume).await?, ..Settled::default() };
        while let Some(next) = self.next_merge(volume) {
            let (ended, moved) = self.merge(&next, progress).await?;
            settled.moved.0 += moved;
            match ended {
                Ended::Done => settled.dropped.push(next.child),
                Ended::Paused => {
                    settled
                        .notes
                        .push("the merge is paused; it goes on when asked to settle".into());
                    break;
                }
            }
        }
        let record = self.volume(volume)?;
        settled.waiting = record.ghosts().collect();
        if !settled.waiting.is_empty() && self.is_connected(volume) {
            let note = format!("{} is connected: merging waits until it is not", record.name);
            settled.notes.push(note);
        }
        Ok(settled)
    }

    /// Drops layers of deleted snapshots on which nothing stands, one after the other downwards.
    pub(crate) async fn drop_ghosts(&self, volume: Uuid) -> Result<Vec<Uuid>> {
        let mut dropped = Vec::new();
        while self.unused_ghost(volume)?.is_some() {
            let held =
                self.hold_with_origins(volume, "removing unused layers", Pace::Short).await?;
            let Some(ghost) = self.unused_ghost(volume)? else { break };
            let mut record = self.volume(volume)?;
            without_layer(&mut record, ghost);
            let title = format!("remove an unused layer of {}", record.name);
            let plan = Plan { title, puts: vec![record], drops: vec![ghost], ..Plan::default() };
            let begun = self.begin(plan).await?;
            self.commit(begun).await?;
            dropped.push(ghost);
            drop(held);
        }
        Ok(dropped)
    }

    fn unused_ghost(&self, volume: Uuid) -> Result<Option<Uuid>> {
        let record = self.volume(volume)?;
        Ok(self.with(|state| {
            record.ghosts().find(|ghost| state.tree.children(*ghost).next().is_none())
        }))
    }

    /// A merge that can run now.
    pub(crate) fn next_merge(&self, volume: Uuid) -> Option<PendingMerge> {
        if self.is_connected(volume) || self.needs_recovery(volume) {
            return None;
        }
        let record = self.volume(volume).ok()?;
        self.with(|state| {
            record.ghosts().find_map(|into| {
                let mut children = state.tree.children(into);
                let child = children.next()?;
                let own = |layer: &Uuid| {
                    state.tree.get(*layer).is_some_and(|node| node.owner == Some(volume))
                };
                let possible = children.next().is_none()
                    && state.tree.leaves(into) == 1
                    && state.tree.subtree(into).iter().all(own);
                possible.then_some(PendingMerge { volume, into, child })
            })
        })
    }

    async fn merge(&self, wanted: &PendingMerge, progress: &dyn Progress) -> Result<(Ended, u64)> {
        let record = self.volume(wanted.volume)?;
        let title = format!("a merge in {}", record.name);
        let held = self.hold(&[wanted.volume], &title, Pace::Long).await?;
        self.may_sweep()?;
        let record = self.volume(wanted.volume)?;
        if self.next_merge(wanted.volume).as_ref() != Some(wanted) {
            return Ok((Ended::Paused, 0));
        }
        let subtree = self.with(|state| state.tree.subtree(wanted.into));
        if let Some(reader) = self.locks().reader_of(subtree) {
            return Err(CatalogError::busy(&record.name, &reader));
        }
        self.mark_merging(&record, wanted).await?;
        let child = self.open_own(wanted.child).await?;
        let mut parent = self.open_own(wanted.into).await?;
        if parent.size() < child.size() {
            self.extend(&record, parent, child.image.size).await?;
            parent = self.open_own(wanted.into).await?;
        }
        let reserved = self.reserve_for_leaf(&record, &parent, wanted).await?;
        let needed = if parent.is_fixed() || child.blocks().is_empty() { 0 } else { ROOM };
        self.has_room(needed, &format!("go on with {title}")).await?;
        let (ended, moved) = self.move_blocks(&record, &parent, &child, progress).await?;
        if let Ended::Paused = ended {
            return Ok((ended, moved));
        }
        drop(child);
        drop(parent);
        self.relink(record, wanted, reserved).await?;
        drop(held);
        Ok((Ended::Done, moved))
    }

    /// A parent that becomes the leaf of a volume that reserves gets all its space before the first
    /// block moves (rule L5); whether it has it.
    async fn reserve_for_leaf(
        &self,
        record: &VolumeRecord,
        parent: &Layer,
        merge: &PendingMerge,
    ) -> Result<bool> {
        if record.kind == VolumeKind::Thin || !record.current.tip.contains(merge.child) {
            return Ok(false);
        }
        if !self.store().capabilities().reserve {
            return Ok(true);
        }
        // A fixed one too: a crash while it was lengthened leaves holes.
        let full = ByteRange::new(0, parent.full_len());
        match parent.file().reserve(full).await {
            Ok(()) => Ok(true),
            // The leaf did without its space so far, and can go on so.
            Err(error) if error.kind == IoErrorKind::NoSpace && !record.reserves() => Ok(false),
            Err(error) => {
                Err(CatalogError::from(error)
                    .during(format_args!("a merge in {} waits", record.name)))
            }
        }
    }

    async fn open_own(&self, layer: Uuid) -> Result<Layer> {
        let node = self.with(|state| state.tree.get(layer));
        let fixed = node.is_some_and(|node| node.fixed);
        Layer::open(self.store(), layer, fixed, Access::Write).await
    }

    /// Marks the parent's cell: whoever meets that keeps off (rule L2).
    async fn mark_merging(&self, record: &VolumeRecord, merge: &PendingMerge) -> Result<()> {
        let (expected, found) = layer_cell(self.store(), merge.into).await?;
        let Some(mut cell) = found else {
            return Err(CatalogError::corrupt(ObjectName::Cell(merge.into), "it is missing")
                .hint("check the datastore; the merge is safe to begin once the cell is back"));
        };
        if cell.leaves != 1 || !cell.ops.is_empty() {
            let what = format_args!("layer {}", merge.into);
            return Err(CatalogError::busy(what, "an operation noted in its cell"));
        }
        let state = LayerState::Merging { volume: record.uuid, generation: record.revision };
        if cell.state == state {
            return Ok(());
        }
        cell.state = state;
        cell.generation += 1;
        let content = Cell::Layer(cell).encode();
        self.store().put(&ObjectName::Cell(merge.into), expected, content).await?;
        Ok(())
    }

    /// Makes the parent as long as its child (rule L5).
    async fn extend(&self, record: &VolumeRecord, parent: Layer, size: SectorCount) -> Result<()> {
        let grown = create::grow(&parent.image, size, parent.end())
            .map_err(|e| CatalogError::new(Code::BadSize, e.to_string()))?;
        let title = format!("lengthen a layer of {}", record.name);
        let plan = Plan { title, concerns: vec![record.uuid], ..Plan::default() };
        if parent.is_fixed() {
            // A fixed file that was lengthened has no footer until its new one is durable: the intent
            // that can write it comes first.
            let growth = self.growth_of_fixed(&parent, &grown.image);
            let (rewrites, cut_back) = (vec![growth.rewrite()], vec![growth.cut_back()]);
            let begun = self.begin(Plan { rewrites, cut_back, ..plan }).await?;
            let built = growth.write().await;
            // Both undoing and finishing open the file again, as its only holder.
            drop(growth);
            drop(parent);
            self.conclude(begun, built).await?;
            return Ok(());
        }
        if grown.bat_moved {
            parent.write_moved_bat(&grown.image).await?;
        }
        let end = parent.end_with(&grown.image);
        let (at, footer) = create::tail_for(&grown.image, end);
        let mut pieces = header_pieces(&grown.image);
        pieces.push(Piece { at: at.bytes(), bytes: footer.clone() });
        let rewrite = Rewrite {
            layer: parent.uuid,
            pieces,
            len: at.bytes() + footer.len() as u64,
            parent: parent.image.parent.as_ref().map(|parent| parent.uuid),
            size: size.bytes(),
        };
        drop(parent);
        let begun = self.begin(Plan { rewrites: vec![rewrite], ..plan }).await?;
        self.commit(begun).await?;
        Ok(())
    }

    async fn move_blocks(
        &self,
        record: &VolumeRecord,
        parent: &Layer,
        child: &Layer,
        progress: &dyn Progress,
    ) -> Result<(Ended, u64)> {
        let corrupt =
            |e: image::FormatError| CatalogError::corrupt(ObjectName::Layer(child.uuid), e);
        let (parent_len, child_len) = (parent.file().info().size.0, child.file().info().size.0);
        let mut merge =
            Merge::new(parent.image.clone(), parent_len, child.image.clone(), child_len)
                .map_err(corrupt)?;
        let side = |side: Side| if side == Side::Parent { parent } else { child };
        let how = if record.reserves() { Clear::KeepSpace } else { Clear::Deallocate };
        progress.phase("merging", child.blocks().len() as u64 * image::BLOCK_BYTES);
        loop {
            match merge.step().map_err(corrupt)? {
                MergeStep::Read { side: which, at, len } => {
                    merge.supply(layer::read(side(which).file(), at, len).await?);
                }
                MergeStep::Reserve(ranges) => {
                    let reserves = self.store().capabilities().reserve;
                    for (at, len) in ranges {
                        let end = at.plus(len.0).bytes();
                        if reserves {
                            let range = ByteRange::new(at.bytes(), len.bytes());
                            parent.file().reserve(range).await?;
                        } else if parent.file().info().size.0 < end {
                            parent.truncate(end).await?;
                        }
                    }
                }
                MergeStep::Zero(ranges) => {
                    for (at, len) in ranges {
                        parent.clear(at.bytes(), len.bytes(), how).await?;
                    }
                }
                MergeStep::Copy(copies) => {
                    for copy in copies {
                        copy_range(child, copy.from, parent, copy.to, copy.len).await?;
                    }
                }
                MergeStep::Write { side: which, pieces } => {
                    for (at, bytes) in pieces {
                        layer::write(side(which).file(), at.bytes(), &IoBuf::copied(&bytes))
                            .await?;
                    }
                }
                MergeStep::Barrier(which) => side(which).flush().await?,
                MergeStep::Free(ranges) => {
                    for (at, len) in ranges {
                        child.punch(at.bytes(), len.bytes()).await?;
                    }
                }
                MergeStep::Moved(so_far) => {
                    progress.advance(so_far.blocks * image::BLOCK_BYTES);
                    if progress.cancelled() {
                        return Ok((Ended::Paused, so_far.bytes));
                    }
                }
                MergeStep::Done(so_far) => return Ok((Ended::Done, so_far.bytes)),
            }
        }
    }

    /// The parent takes the child's place: what stood on the child stands on the parent, and the
    /// record names the parent where it named the child.
    async fn relink(
        &self,
        mut record: VolumeRecord,
        merge: &PendingMerge,
        reserved: bool,
    ) -> Result<()> {
        let (into, child) = (merge.into, merge.child);
        let mut rewrites = Vec::new();
        let above: Vec<Uuid> = self.with(|state| state.tree.children(child).collect());
        for uuid in above {
            let file = self.store().open(&ObjectName::Layer(uuid), Access::Read).await?;
            let mut image = layer::open_image(&*file, uuid, false).await?;
            image.parent = Some(ParentRef::sibling(into));
            rewrites.push(Rewrite {
                layer: uuid,
                pieces: header_pieces(&image),
                len: file.info().size.0,
                parent: Some(into),
                size: image.size.bytes(),
            });
        }
        // The parent's file is a closed one again.
        let parent = self.open_own(into).await?;
        if parent.image.kind != Kind::Fixed {
            let kept = match record.kind {
                VolumeKind::Thin => 0,
                VolumeKind::Fixed | VolumeKind::Lazy => parent.file().info().size.0 / PAGE * PAGE,
            };
            parent.close(parent.end().max(Sector::at_or_after(kept))).await?;
        }
        drop(parent);
        if record.current.tip.contains(child) {
            record.current.tip.replace(child, into);
            let lacking = record.kind != VolumeKind::Thin && !reserved;
            // of several segments only a conversion knows that all of them have their space
            let others = record.current.tip.layers().len() > 1;
            record.current.unreserved = lacking || (others && record.current.unreserved);
        }
        for snapshot in &mut record.snapshots {
            snapshot.tip.replace(child, into);
        }
        without_layer(&mut record, child);
        let plan = Plan {
            title: format!("finish a merge in {}", record.name),
            puts: vec![record],
            drops: vec![child],
            rewrites,
            marked: vec![into],
            ..Plan::default()
        };
        let begun = self.begin(plan).await?;
        self.commit(begun).await?;
        Ok(())
    }
}

async fn copy_range(
    child: &Layer,
    from: Sector,
    parent: &Layer,
    to: Sector,
    len: SectorCount,
) -> Result<()> {
    let mut done = 0;
    while done < len.bytes() {
        let part = PIECE.min(len.bytes() - done);
        let buf = IoBuf::zeroed(ByteCount(part).as_len());
        layer::read_into(child.file(), from.bytes() + done, &buf).await?;
        layer::write(parent.file(), to.bytes() + done, &buf).await?;
        done += part;
    }
    Ok(())
}
