//! The content of a whole disk, over its segments: a point in time that is read block by block, and a
//! new disk that is written.

use datastore::FileStore;
use image::BLOCK_BYTES;
use uuid::Uuid;

use crate::catalog::Catalog;
use crate::copy::Chain;
use crate::env::Progress;
use crate::error::Result;
use crate::intent::NewLayer;
use crate::layer;
use crate::record::VolumeKind;
use crate::segments::Layout;
use crate::target::{Chunk, SizeKnown, Target};
use crate::tree::Node;
use crate::volumes::cancelled;

/// A point in time, open for reading.
pub(crate) struct DiskReader {
    layout: Layout,
    segments: Vec<Chain>,
}

impl DiskReader {
    /// Opens the chain of each segment.
    pub(crate) async fn open(
        store: &dyn FileStore,
        layout: Layout,
        chains: &[Vec<(Uuid, Node)>],
    ) -> Result<Self> {
        let mut segments = Vec::with_capacity(chains.len());
        for chain in chains {
            segments.push(Chain::open(store, chain).await?);
        }
        Ok(Self { layout, segments })
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.layout.size
    }

    /// A block's content, as much as the disk has of it; None where all of it is zero without a stored
    /// byte.
    pub(crate) async fn block(&mut self, block: u32) -> Result<Option<Vec<u8>>> {
        let (at, within) = self.layout.locate(block);
        let size = self.layout.size_of(at);
        self.segments.get_mut(at).expect("a block of the disk").block(within, size).await
    }

    /// The first block from `block` on of which anything is stored.
    pub(crate) async fn next_stored(&mut self, block: u32) -> Result<Option<u32>> {
        let (mut at, mut within) = self.layout.locate(block);
        while let Some(chain) = self.segments.get_mut(at) {
            if let Some(found) = chain.next_stored(within, self.layout.size_of(at)).await? {
                return Ok(Some(self.layout.block_of(at, found)));
            }
            (at, within) = (at + 1, 0);
        }
        Ok(None)
    }
}

/// A new disk that is being written.
pub(crate) struct DiskWriter {
    layout: Layout,
    segments: Vec<Target>,
}

impl DiskWriter {
    /// Takes a block, or a part of one.
    pub(crate) async fn put(&mut self, mut chunk: Chunk) -> Result<()> {
        let (at, within) = self.layout.locate(chunk.block);
        chunk.block = within;
        // Passed over, it would be lost without a word: whoever brings foreign blocks checks them.
        self.segments.get_mut(at).expect("a block of the disk").put(&chunk).await
    }

    /// Writes the zeros that nothing brought, and completes every file, `layers`, as it was begun but
    /// for a size that became known.
    pub(crate) async fn close(
        self,
        layers: &[NewLayer],
        now_ms: u64,
        progress: &dyn Progress,
    ) -> Result<()> {
        for (mut target, new) in self.segments.into_iter().zip(layers) {
            for block in target.unfilled(new.size) {
                if progress.cancelled() {
                    return Err(cancelled());
                }
                target.skip(block).await?;
            }
            target.close(layer::plan_new(new, now_ms)?).await?;
        }
        Ok(())
    }
}

impl Catalog {
    /// Starts to fill the files of new layers, one for each segment; a volume that is not thin has its
    /// space at once.
    pub(crate) async fn begin_disk(
        &self,
        layers: &[NewLayer],
        layout: Layout,
        kind: VolumeKind,
        known: SizeKnown,
    ) -> Result<DiskWriter> {
        let reserve = kind != VolumeKind::Thin && self.store().capabilities().reserve;
        let mut segments = Vec::with_capacity(layers.len());
        for new in layers {
            let plan = layer::plan_new(new, self.env().now_ms())?;
            let file = layer::make_file(self.store(), new.layer).await?;
            segments.push(Target::over(file, plan, known, reserve).await?);
        }
        Ok(DiskWriter { layout, segments })
    }

    /// Makes the files of `layers`, bases of a volume that divides as `layout` says, with all that
    /// `from` holds.
    pub(crate) async fn fill(
        &self,
        layers: &[NewLayer],
        layout: Layout,
        mut from: DiskReader,
        kind: VolumeKind,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut to = self.begin_disk(layers, layout, kind, SizeKnown::Now).await?;
        progress.phase("copying", layout.size);
        let mut next = from.next_stored(0).await?;
        while let Some(block) = next {
            if progress.cancelled() {
                return Err(cancelled());
            }
            if let Some(bytes) = from.block(block).await? {
                to.put(Chunk::whole(block, bytes)).await?;
            }
            progress.advance(((u64::from(block) + 1) * BLOCK_BYTES).min(layout.size));
            next = from.next_stored(block + 1).await?;
        }
        to.close(layers, self.env().now_ms(), progress).await
    }
}
