//! Safe points: the gate that a snapshot closes over all disks of a VM, the switch to a new leaf, and
//! the end of a disk.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use image::{BLOCK_STRIDE_SECTORS, Kind, LayerImage, PAGE, Sector, Trust, create};
use io::{
    BlockFile, ByteCount, Clear, Durability, Effort, IoBuf, IoError, IoErrorKind, Request, Result,
};
use uuid::Uuid;

use crate::chain::Layer;
use crate::disk::{Disk, Gate, Inner, file_offset};
use crate::error::OpenError;
use crate::space::{Place, Space};

/// How long a gate may take to be shut. A guest gives up on a disk that stands still for longer.
pub const GATE_LIMIT: Duration = Duration::from_secs(30);

/// A layer that was read and checked, ready to become the leaf.
#[derive(Debug)]
pub struct NewLeaf {
    layer: Layer,
}

impl NewLeaf {
    /// The layer.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.layer.image.uuid
    }

    /// Whether the file was made with the space of all its blocks; any other ends behind its headers.
    fn has_its_space(&self) -> bool {
        let image = &self.layer.image;
        let all = image.size.blocks() * BLOCK_STRIDE_SECTORS;
        self.layer.file.info().size.0 >= image.first_free.page_up().plus(all).bytes()
    }
}

impl Disk {
    /// Brings most dirty metadata to the disk, so that the gate is shut only shortly afterwards.
    ///
    /// # Errors
    /// As a flush.
    pub async fn prepare(&self) -> Result<()> {
        self.inner.flush().await
    }

    /// Reads a new, empty differencing layer on the present leaf.
    ///
    /// # Errors
    /// If it is not empty, or not a child of the present leaf.
    pub async fn open_leaf(
        &self,
        file: Rc<dyn BlockFile>,
    ) -> std::result::Result<NewLeaf, OpenError> {
        let depth = self.inner.state.borrow().chain.depth();
        let (layer, _) = Layer::open(file, depth, Trust::Own).await?;
        let expected = self.inner.state.borrow().chain.leaf().image.uuid;
        let found = layer.image.parent.as_ref().map(|p| p.uuid);
        if found != Some(expected) {
            let uuid = layer.image.uuid;
            return Err(OpenError::Parent { layer: uuid, found, expected: Some(expected) });
        }
        if let Some((block, sector)) = layer.table.entries().next() {
            let (layer, block, sector) = (layer.image.uuid, block.0, sector.0);
            let why = "but a new leaf is empty";
            return Err(OpenError::Table { layer, block, sector, why });
        }
        Ok(NewLeaf { layer })
    }

    /// Shuts the gate: waits until no write is under way, and makes all that was written durable.
    /// Writes, clears and flushes that come later wait; reads go on. Whoever gates several disks holds
    /// the guests of all of them for as long as the slowest takes: so it takes [`GATE_LIMIT`] at most.
    ///
    /// # Errors
    /// `Busy` if the gate is shut already or the store is too slow, or those of a flush; what this call
    /// shut is open again then.
    pub async fn gate(&self) -> Result<()> {
        let inner = &self.inner;
        inner.shut()?;
        let quiet = pin!(async {
            inner.drained().await;
            // it runs to its end also when it is not waited for any more
            let inner = Rc::clone(inner);
            let flush = self.inner.local.spawn(async move { inner.flush().await });
            flush.await
        });
        let outcome = match select(quiet, inner.local.sleep(GATE_LIMIT)).await {
            Either::Left((flushed, _)) => flushed,
            Either::Right(((), _)) => Err(IoError::new(
                IoErrorKind::Busy,
                format!(
                    "what the guest writes was not on the store after {} s: it does not answer, or \
                     very slowly",
                    GATE_LIMIT.as_secs()
                ),
            )),
        };
        if outcome.is_err() {
            self.ungate();
        }
        outcome
    }

    /// Opens the gate again.
    pub fn ungate(&self) {
        if self.inner.gate.get() == Gate::Shut {
            self.inner.gate.set(Gate::Open);
            self.inner.changed.notify();
        }
    }

    /// Makes `leaf` the leaf. The gate must be shut, and what names the new leaf must be committed.
    /// The layer below gets its closing footer in the background. A disk that was closed meanwhile needs
    /// no new leaf.
    ///
    /// # Panics
    /// If the gate is open.
    pub fn switch(&self, leaf: NewLeaf) {
        let inner = &self.inner;
        if inner.gate.get() == Gate::Closed {
            return;
        }
        assert_eq!(inner.gate.get(), Gate::Shut, "the leaf changes behind a shut gate only");
        let mut guard = inner.state.borrow_mut();
        let state = &mut *guard;
        let space = Space::new(&leaf.layer.image, &[]);
        let mut old_space = std::mem::replace(&mut state.space, space);
        let assigned: Vec<Place> = state.assigned.drain().map(|(_, place)| place).collect();
        let old = state.chain.leaf();
        let closing = (Rc::clone(&old.file), old.image.clone(), end_of(old));
        let kept = inner.keep_space.replace(leaf.has_its_space());
        if let Some(log) = &mut state.log {
            log.bind(leaf.layer.image.uuid);
        }
        let blocks = u32::try_from(leaf.layer.image.size.blocks()).expect("32-bit blocks");
        state.map.grow(blocks);
        state.chain.push(leaf.layer);
        state.backed.clear();
        drop(guard);
        let mut stale = old_space.give_back(closing.2);
        stale.extend(assigned.into_iter().filter(|p| p.start() < closing.2));
        inner.settling.set(inner.settling.get() + 1);
        let bound = inner.tickets.next();
        let inner = Rc::clone(inner);
        drop(self.inner.local.spawn(async move {
            let (file, image, end) = closing;
            // a read may still be on its way to what is cut off
            inner.tickets.wait_below(bound).await;
            // without it the layer reads as one that was not closed, which is no harm
            if let Err(error) = finish(&*file, &image, end, &stale, kept).await {
                tracing::warn!(%error, layer = %image.uuid, "closing a frozen layer");
            }
            inner.settling.set(inner.settling.get() - 1);
            inner.changed.notify();
        }));
    }

    /// Ends the disk: waits for what is under way, makes everything durable, gives back what was
    /// reserved ahead and writes the closing footer. Held requests and later ones fail as `Closed`.
    ///
    /// # Errors
    /// As a flush, and `Closed` if the disk was ended before. It is closed in any case; after an error
    /// the volume was not closed cleanly and its log is still needed.
    pub async fn close(&self) -> Result<()> {
        let inner = &self.inner;
        if inner.gate.get() == Gate::Closed {
            return Err(crate::disk::closed());
        }
        let outcome = self.close_open().await;
        inner.gate.set(Gate::Closed);
        inner.changed.notify();
        inner.tickets.wait_below(inner.tickets.next()).await;
        outcome
    }

    async fn close_open(&self) -> Result<()> {
        let inner = &self.inner;
        if inner.read_only {
            return Ok(());
        }
        while inner.gate.get() == Gate::Shut {
            inner.changed.listen().await;
        }
        inner.shut()?;
        inner.drained().await;
        inner.flush().await?;
        while inner.settling.get() > 0 {
            inner.changed.listen().await;
        }
        let (file, image, end, stale) = {
            let mut guard = inner.state.borrow_mut();
            let state = &mut *guard;
            let leaf = state.chain.leaf();
            let (file, image, end) = (Rc::clone(&leaf.file), leaf.image.clone(), end_of(leaf));
            let mut stale = state.space.give_back(end);
            stale.extend(state.assigned.drain().map(|(_, p)| p).filter(|p| p.start() < end));
            (file, image, end, stale)
        };
        finish(&*file, &image, end, &stale, inner.keep_space.get()).await
    }

    /// Ends the disk as it is, without writing anything: what a dying process would leave behind.
    /// For a volume that must not be touched any more.
    pub fn abandon(&self) {
        self.inner.gate.set(Gate::Closed);
        self.inner.changed.notify();
    }
}

impl Inner {
    fn shut(&self) -> Result<()> {
        match self.gate.get() {
            Gate::Open => {
                self.gate.set(Gate::Shut);
                Ok(())
            }
            Gate::Shut => Err(IoError::new(IoErrorKind::Busy, "the disk's gate is shut already")),
            Gate::Closed => Err(crate::disk::closed()),
        }
    }

    /// Waits until nothing that changes the leaf is under way.
    async fn drained(&self) {
        while self.writers.get() > 0 || self.refilling.get() {
            self.changed.listen().await;
        }
    }
}

/// Where a layer's file ends: after its last block and its headers.
fn end_of(layer: &Layer) -> Sector {
    let last = layer.table.entries().filter_map(|(_, at)| Place::at_bitmap(at)).max();
    last.map_or(layer.image.first_free, |p| p.end().max(layer.image.first_free))
}

/// Leaves a layer's file as a clean one: nothing in places that no block has, no reserved rest, and a
/// footer at the end.
async fn finish(
    file: &dyn BlockFile,
    image: &LayerImage,
    end: Sector,
    stale: &[Place],
    keep_space: bool,
) -> Result<()> {
    // its footer is where it always was
    if image.kind == Kind::Fixed {
        return file.submit(Request::Flush).await;
    }
    let how = if keep_space { Clear::KeepSpace } else { Clear::Deallocate };
    for place in stale {
        let range = place.bytes();
        let (effort, durability) = (Effort::Any, Durability::Cached);
        file.submit(Request::Clear { range, how, effort, durability }).await?;
    }
    // the footer of a file that keeps its space stands after all of it
    let kept = if keep_space { file.info().size.0 / PAGE * PAGE } else { 0 };
    let (at, footer) = create::tail_for(image, end.max(Sector::at_or_after(kept)));
    file.truncate(ByteCount(at.bytes())).await?;
    let from = IoBuf::copied(&footer);
    let write = Request::Write { at: file_offset(at), from, durability: Durability::Cached };
    match file.submit(write).await {
        // a full store: the footer's copy at the start serves us, and the volume can be closed (N1)
        Err(error) if error.kind == IoErrorKind::NoSpace => {
            tracing::debug!(%error, layer = %image.uuid, "no closing footer");
        }
        other => other?,
    }
    file.submit(Request::Flush).await
}
