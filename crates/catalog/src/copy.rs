//! Copies: linked clones, which share layers, and full copies, which are flat.

use std::rc::Rc;

use datastore::{Access, FileStore, ObjectName};
use image::{
    BLOCK_BYTES, BLOCK_SECTORS, Bitmap, ChainReader, Content, LayerReader, Mapped, SECTOR, Sector,
    SectorCount,
};
use io::{BlockFile, ByteCount, ByteRange, IoBuf};
use uuid::Uuid;

use crate::api::{CopyTarget, DiffExtent, Source};
use crate::catalog::{Catalog, find_snapshot};
use crate::content::DiskReader;
use crate::env::Progress;
use crate::error::{CatalogError, Code, Result};
use crate::intent::NewLayer;
use crate::layer::{self, Layer, block_count};
use crate::locks::Pace;
use crate::record::{Origin, VolumeKind, VolumeRecord};
use crate::segments::Tip;
use crate::tree::Node;
use crate::txn::Plan;
use crate::volumes::{base_layers, one};

/// Most volumes that one operation makes.
const MAX_CLONES: usize = 1000;
/// Longest chain: the owner map tells up to this many layers of a block apart.
pub(crate) const MAX_CHAIN: usize = 250;

impl Catalog {
    /// Makes linked clones of a snapshot or template, all in one operation: all or none exist.
    ///
    /// # Errors
    /// `not-found`, `bad-name`, `name-taken`, `busy`; `bad-request` for a volume without a snapshot.
    pub async fn clone_linked(
        &self,
        source: Source,
        names: Vec<String>,
    ) -> Result<Vec<VolumeRecord>> {
        if names.is_empty() || names.len() > MAX_CLONES {
            let message = format!("1 to {MAX_CLONES} names are wanted, {} were given", names.len());
            return Err(CatalogError::new(Code::BadRequest, message));
        }
        let held = self.hold_with_origins(source.volume, "cloning", Pace::Short).await?;
        let (record, parent, size) = self.source_tip(source)?;
        if source.snapshot.is_none() && !record.template {
            let message =
                format!("cannot link clones to {} as it is now: it still changes", record.name);
            return Err(CatalogError::new(Code::BadRequest, message)
                .hint("take a snapshot and clone that, or make a template of it, or copy it"));
        }
        self.chain_has_room(&record.name, &parent)?;
        let layout = record.layout_at(size);
        let taken = self.take_names(&names)?;
        let origin = Origin { volume: record.uuid, snapshot: source.snapshot, linked: true };
        let count = names.len();
        let puts: Vec<VolumeRecord> = names
            .into_iter()
            .map(|name| self.new_record(name, layout, VolumeKind::Thin, Some(origin.clone())))
            .collect();
        let on_parent =
            |(new, parent): (NewLayer, &Uuid)| NewLayer { parent: Some(*parent), ..new };
        let creates: Vec<NewLayer> = puts
            .iter()
            .flat_map(|clone| base_layers(clone).into_iter().zip(parent.layers()).map(on_parent))
            .collect();
        let title = match (count, puts.first()) {
            (1, Some(clone)) => format!("clone {} to {}", record.name, clone.name),
            _ => format!("clone {} {count} times", record.name),
        };
        let begun =
            self.begin(Plan { title, puts, creates: creates.clone(), ..Plan::default() }).await?;
        let built = self.create_leaves(&creates, false).await;
        let made = self.conclude(begun, built).await?;
        drop((taken, held));
        Ok(made)
    }

    /// Refuses one more layer on a chain that is as long as it may be.
    pub(crate) fn chain_has_room(&self, name: &str, tip: &Tip) -> Result<()> {
        let layers = self.chains(tip)?.iter().map(Vec::len).max().unwrap_or(0);
        if layers < MAX_CHAIN {
            return Ok(());
        }
        let message = format!("the chain of {name} has {layers} layers, the limit");
        Err(CatalogError::new(Code::SnapshotLimit, message)
            .hint("copy it in full, which makes a volume of one layer"))
    }

    /// Makes a full, flat copy; holes stay holes. The source must not be written meanwhile: a
    /// snapshot, a template, or a disconnected volume, which cannot be connected until it is done.
    ///
    /// # Errors
    /// `not-found`, `bad-name`, `name-taken`, `no-space`, `volume-connected`, `not-clean`, `busy`,
    /// `cancelled` (nothing of it is left then).
    pub async fn copy_full(
        &self,
        source: Source,
        target: CopyTarget,
        progress: &dyn Progress,
    ) -> Result<VolumeRecord> {
        let held = self.hold(&[source.volume], "the start of a copy", Pace::Short).await?;
        let (record, tip, size) = self.source_tip(source)?;
        if source.snapshot.is_none() {
            self.at_rest(&record, "copy")?;
        }
        let chains = self.chains(&tip)?;
        let layers: Vec<Uuid> = chains.iter().flatten().map(|(uuid, _)| *uuid).collect();
        let pinned =
            self.locks().pin(&layers, &format!("a copy of {} to {}", record.name, target.name));
        drop(held);

        let kind = target.kind.unwrap_or(record.kind);
        self.can_hold(kind)?;
        let names = self.take_names(std::slice::from_ref(&target.name))?;
        let stored = self.measure_layers(layers.iter().copied()).await?.used_by(&layers).0;
        let title = format!("copy {} to {}", record.name, target.name);
        let needed = match kind {
            VolumeKind::Thin => stored.min(size),
            VolumeKind::Fixed | VolumeKind::Lazy => size,
        };
        self.has_room(needed, &title).await?;
        let origin = Origin { volume: record.uuid, snapshot: source.snapshot, linked: false };
        let from = DiskReader::open(self.store(), record.layout_at(size), &chains).await?;
        let layout = self.new_layout(size);
        let mut new = self.new_record(target.name, layout, kind, Some(origin));
        new.template = target.template;
        let layers = base_layers(&new);
        let creates = layers.clone();
        let begun = self.begin(Plan { title, puts: vec![new], creates, ..Plan::default() }).await?;
        let built = self.fill(&layers, layout, from, kind, progress).await;
        let made = self.conclude(begun, built).await?;
        drop((names, pinned));
        one(made)
    }

    /// Where two points in time of a volume differ. `from` None: the empty disk. `to` None: what the
    /// volume is now.
    ///
    /// # Errors
    /// `not-found`, `corrupt`; for what the volume is now also `volume-connected` and `not-clean`.
    pub async fn snapshot_diff(
        &self,
        volume: Uuid,
        from: Option<Uuid>,
        to: Option<Uuid>,
    ) -> Result<Vec<DiffExtent>> {
        let held = self.hold(&[volume], "the start of a comparison", Pace::Short).await?;
        let (record, tip, size) = self.source_tip(Source { volume, snapshot: to })?;
        if to.is_none() {
            self.at_rest(&record, "compare")?;
        }
        let earlier = match from {
            Some(id) => self.chains(&find_snapshot(&record, id)?.tip)?,
            None => Vec::new(),
        };
        let later = self.chains(&tip)?;
        let both: Vec<Uuid> =
            later.iter().chain(&earlier).flatten().map(|(uuid, _)| *uuid).collect();
        let pinned = self.locks().pin(&both, &format!("a comparison of {}", record.name));
        drop(held);

        let mut extents: Vec<DiffExtent> = Vec::new();
        let layout = record.layout_at(size);
        for (at, later) in later.iter().enumerate() {
            let earlier = earlier.get(at).map_or(&[][..], Vec::as_slice);
            let segment = (layout.start_of(at) / SECTOR, layout.size_of(at));
            self.diff_segment(segment, earlier, later, &mut extents).await?;
        }
        drop(pinned);
        Ok(extents)
    }

    /// The same of one segment: where it starts in the disk, in sectors, and its size in bytes.
    async fn diff_segment(
        &self,
        (first_sector, size): (u64, u64),
        earlier: &[(Uuid, Node)],
        later: &[(Uuid, Node)],
        extents: &mut Vec<DiffExtent>,
    ) -> Result<()> {
        let only = |a: &[(Uuid, Node)], b: &[(Uuid, Node)]| -> Vec<(Uuid, Node)> {
            a.iter().filter(|(uuid, _)| b.iter().all(|(other, _)| other != uuid)).copied().collect()
        };
        let mut differing = Vec::new();
        for (uuid, node) in only(later, earlier).into_iter().chain(only(earlier, later)) {
            differing.push(Layer::open(self.store(), uuid, node.fixed, Access::Read).await?);
        }
        let mut blocks: Vec<u32> = differing.iter().flat_map(Layer::blocks).collect();
        blocks.sort_unstable();
        blocks.dedup();
        let mut chain = Chain::open(self.store(), later).await?;
        for block in blocks.into_iter().filter(|block| *block < block_count(size)) {
            let mut changed = Bitmap::empty();
            for layer in &differing {
                changed.union(&layer.owned(block).await?);
            }
            let start = u64::from(block) * u64::from(BLOCK_SECTORS);
            for (first, len, set) in changed.runs().collect::<Vec<_>>() {
                if set {
                    let from = start + u64::from(first);
                    let end = (from + u64::from(len)).min(size / SECTOR);
                    chain.describe(from, end, first_sector, extents).await?;
                }
            }
        }
        Ok(())
    }
}

/// A chain open for reading, leaf first.
pub(crate) struct Chain {
    files: Vec<Rc<dyn BlockFile>>,
    reader: ChainReader,
    buffer: IoBuf,
}

impl Chain {
    pub(crate) async fn open(store: &dyn FileStore, layers: &[(Uuid, Node)]) -> Result<Self> {
        let (mut files, mut readers) = (Vec::new(), Vec::new());
        for (uuid, node) in layers {
            let file = store.open(&ObjectName::Layer(*uuid), Access::Read).await?;
            let image = layer::open_image(&*file, *uuid, node.fixed).await?;
            if image.size.bytes() != node.size {
                let problem = "its size changed since the datastore was opened";
                return Err(CatalogError::corrupt(ObjectName::Layer(*uuid), problem));
            }
            readers.push(LayerReader::new(image, file.info().size.0));
            files.push(file);
        }
        let reader = ChainReader::new(readers).map_err(|e| damaged(&e))?;
        let buffer = IoBuf::zeroed(ByteCount(BLOCK_BYTES).as_len());
        Ok(Self { files, reader, buffer })
    }

    /// The next run from `from`, at most to `end`, in sectors: its length, and where it is stored.
    async fn map(&mut self, from: u64, end: u64) -> Result<(u64, Option<(usize, u64)>)> {
        loop {
            match self.reader.map(Sector(from), SectorCount(end - from)).map_err(|e| damaged(&e))? {
                Mapped::Read { layer, at, len } => {
                    let bytes = layer::read(&*self.files[layer], at, len).await?;
                    self.reader.supply(layer, &bytes).map_err(|e| damaged(&e))?;
                }
                Mapped::Extent { len, content } => {
                    let place = match content {
                        Content::Data { layer, at } => Some((layer, at.bytes())),
                        Content::Zero | Content::Parent => None,
                    };
                    return Ok((len.0, place));
                }
            }
        }
    }

    /// The content of a block, as much as the disk has of it; None where all of it is zero without a stored byte.
    pub(crate) async fn block(&mut self, block: u32, size: u64) -> Result<Option<Vec<u8>>> {
        let start = u64::from(block) * u64::from(BLOCK_SECTORS);
        let end = (start + u64::from(BLOCK_SECTORS)).min(size / SECTOR);
        let (mut at, mut any) = (start, false);
        while at < end {
            let (len, place) = self.map(at, end).await?;
            if let Some((layer, from)) = place {
                if !any {
                    self.buffer.fill(0);
                    any = true;
                }
                let offset = ByteCount((at - start) * SECTOR).as_len();
                let into = self.buffer.slice(offset, ByteCount(len * SECTOR).as_len());
                layer::read_into(&*self.files[layer], from, &into).await?;
            }
            at += len;
        }
        let len = ByteCount((end - start) * SECTOR).as_len();
        Ok(any.then(|| self.buffer.slice(0, len).to_vec()))
    }

    /// The first block from `block` on of which anything is stored; a fixed layer stores all of it.
    pub(crate) async fn next_stored(&mut self, block: u32, size: u64) -> Result<Option<u32>> {
        let (mut at, end) = (u64::from(block) * u64::from(BLOCK_SECTORS), size / SECTOR);
        while at < end {
            let (len, place) = self.map(at, end).await?;
            if place.is_some() {
                return Ok(u32::try_from(at / u64::from(BLOCK_SECTORS)).ok());
            }
            at += len;
        }
        Ok(None)
    }

    /// Appends the sectors `from..end` of this segment, whose first is `base` in the disk, to `extents`,
    /// told apart by whether they are stored.
    async fn describe(
        &mut self,
        from: u64,
        end: u64,
        base: u64,
        extents: &mut Vec<DiffExtent>,
    ) -> Result<()> {
        let mut at = from;
        while at < end {
            let (len, place) = self.map(at, end).await?;
            let next = DiffExtent {
                range: ByteRange::new((base + at) * SECTOR, len * SECTOR),
                zero: place.is_none(),
            };
            match extents.last_mut() {
                Some(last)
                    if last.zero == next.zero && last.range.end() == Some(next.range.start) =>
                {
                    last.range.len.0 += next.range.len.0;
                }
                Some(_) | None => extents.push(next),
            }
            at += len;
        }
        Ok(())
    }
}

fn damaged(error: &image::FormatError) -> CatalogError {
    CatalogError::new(Code::Corrupt, format!("the chain cannot be read: {error}"))
}
