//! Exports: a volume, or one of its snapshots, read for files that stand elsewhere: flat, or layer by
//! layer. What is read is pinned, and cannot change as long as the reader lives.

use std::collections::BTreeSet;
use std::rc::Rc;

use datastore::Access;
use image::{
    BLOCK_BYTES, BLOCK_SECTORS, Bitmap, FormatError, NewImage, ParentRef, SectorCount, Timestamp,
    bat, create,
};
use io::{BlockFile, ByteCount, Io, IoBuf};
use uuid::Uuid;

use crate::api::Source;
use crate::catalog::Catalog;
use crate::content::DiskReader;
use crate::copy::Chain;
use crate::env::Progress;
use crate::error::{CatalogError, Code, Result};
use crate::layer::{self, Layer, block_count};
use crate::locks::{Pace, Pinned};
use crate::record::VolumeRecord;
use crate::segments::{MAX_SEGMENT, Tip};
use crate::target::{Chunk, SizeKnown, Target, stored_runs};
use crate::tree::Node;
use crate::volumes::cancelled;

/// Sectors that one byte of a bitmap stands for: libvhdi takes them for owned together.
const TOGETHER: u32 = 8;

/// A point in time of a volume, open for reading.
pub struct ReadPoint {
    content: DiskReader,
    _pinned: Pinned,
}

/// What a flat export writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlatFormat {
    /// The bytes of the disk; holes where there are zeros.
    Raw,
    /// A dynamic VHD.
    Dynamic,
    /// A fixed VHD.
    Fixed,
}

/// Where an export goes that is sent from its first byte to its last.
pub trait Outgoing {
    /// Takes what comes next; comes back when there is room for more.
    fn put(&mut self, bytes: Vec<u8>) -> Io<'_, Result<()>>;
}

/// Which layers a folder of VHDs holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branches {
    /// Those that the source stands on.
    Own,
    /// Those of every snapshot, too.
    All,
}

/// A file of a folder of VHDs.
#[derive(Clone, Debug)]
pub struct BranchFile {
    /// Its name: `VOLUME.vhd`, `VOLUME@SNAPSHOT.vhd`, or `LAYER.vhd` where no name is left. Of a volume
    /// of several segments the second one's files end in `.2.vhd`, and so on.
    pub name: String,
    /// Size of its disk.
    pub size: ByteCount,
    /// The disk that it holds.
    layer: Uuid,
    /// The file that it stands on, by its place in the list.
    parent: Option<usize>,
}

/// The layers of a volume, open for reading, parents before children.
pub struct BranchReader {
    files: Vec<BranchFile>,
    _pinned: Pinned,
}

impl std::fmt::Debug for ReadPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadPoint").field("size", &self.content.size()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for BranchReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BranchReader").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens a snapshot, a template, or a disconnected volume for reading.
    ///
    /// # Errors
    /// `not-found`, `volume-connected`, `not-clean`, `busy`, `corrupt`.
    pub async fn read_point(&self, source: Source) -> Result<ReadPoint> {
        let held = self.hold(&[source.volume], "the start of an export", Pace::Short).await?;
        let (record, tip, size) = self.exportable(source)?;
        let chains = self.chains(&tip)?;
        let layers = chains.iter().flatten().map(|(layer, _)| *layer);
        let pinned = self.pin_for_export(&record, layers);
        drop(held);
        let content = DiskReader::open(self.store(), record.layout_at(size), &chains).await?;
        Ok(ReadPoint { content, _pinned: pinned })
    }

    /// Opens the layers below a source, or those of all snapshots, too.
    ///
    /// # Errors
    /// As [`Catalog::read_point`].
    pub async fn read_branches(&self, source: Source, which: Branches) -> Result<BranchReader> {
        let held = self.hold(&[source.volume], "the start of an export", Pace::Short).await?;
        let (record, tip, _) = self.exportable(source)?;
        let mut tips: Vec<Tip> = match which {
            Branches::Own => Vec::new(),
            Branches::All => record.snapshots.iter().map(|s| s.tip.clone()).collect(),
        };
        tips.push(tip.clone());
        let mut layers: Vec<(Uuid, Node)> = Vec::new();
        for chain in tips.iter().map(|tip| self.chains(tip)).collect::<Result<Vec<_>>>()?.concat() {
            for (layer, node) in chain.into_iter().rev() {
                if !layers.iter().any(|(known, _)| *known == layer) {
                    layers.push((layer, node));
                }
            }
        }
        let place = |wanted: Uuid| layers.iter().position(|(layer, _)| *layer == wanted);
        let files = layers
            .iter()
            .map(|(layer, node)| BranchFile {
                name: file_name(&record, &tip, *layer),
                size: ByteCount(node.size),
                layer: *layer,
                parent: node.parent.and_then(place),
            })
            .collect();
        let pinned = self.pin_for_export(&record, layers.iter().map(|(layer, _)| *layer));
        drop(held);
        Ok(BranchReader { files, _pinned: pinned })
    }

    fn exportable(&self, source: Source) -> Result<(VolumeRecord, Tip, u64)> {
        let (record, tip, size) = self.source_tip(source)?;
        if source.snapshot.is_none() {
            self.at_rest(&record, "export").map_err(|error| match error.code {
                Code::VolumeConnected => error.hint(format!(
                    "take a snapshot and export that: shale snapshot create NAME --volume {}",
                    record.name
                )),
                _ => error,
            })?;
        }
        Ok((record, tip, size))
    }

    fn pin_for_export(&self, record: &VolumeRecord, layers: impl Iterator<Item = Uuid>) -> Pinned {
        let layers: BTreeSet<Uuid> = layers.collect();
        let layers: Vec<Uuid> = layers.into_iter().collect();
        self.locks().pin(&layers, &format!("an export of {}", record.name))
    }

    /// Writes one file of a folder of VHDs. What a layer owns is rounded out to 4 KiB, as not every
    /// reader tells single sectors apart.
    ///
    /// # Errors
    /// `cancelled`, `no-space`, `corrupt`.
    pub async fn write_branch(
        &self,
        reader: &BranchReader,
        index: usize,
        to: Rc<dyn BlockFile>,
        progress: &dyn Progress,
        before: u64,
    ) -> Result<()> {
        let branch = &reader.files[index];
        let size = branch.size.0;
        let nodes = self.chain(branch.layer)?;
        let mut view = Chain::open(self.store(), &nodes).await?;
        let fixed = nodes.first().is_some_and(|(_, node)| node.fixed);
        let own = Layer::open(self.store(), branch.layer, fixed, Access::Read).await?;
        let now = Timestamp::from_unix(self.env().now_ms() / 1000);
        let sectors = SectorCount::whole_in(size);
        let plan = match branch.parent.map(|at| &reader.files[at]) {
            Some(parent) => {
                let parent = ParentRef::beside(parent.layer, &parent.name);
                create::differencing(branch.layer, sectors, now, &parent)
            }
            None => create::dynamic(branch.layer, sectors, now),
        };
        let mut target = begin(to, plan).await?;
        let on_parent = branch.parent.is_some();
        for block in own.blocks() {
            if progress.cancelled() {
                return Err(cancelled());
            }
            let owned = rounded(&own.owned(block).await?, own.visible(block));
            let content = view.block(block, size).await?;
            progress.advance(before + ((u64::from(block) + 1) * BLOCK_BYTES).min(size));
            let mut piece = match content {
                Some(bytes) => Chunk::whole(block, bytes),
                None if on_parent => Chunk::whole(block, vec![0; visible_len(block, size)]),
                None => continue,
            };
            if on_parent {
                keep_only(&mut piece, &owned);
            }
            target.put(&piece).await?;
        }
        target.close_as_begun().await
    }
}

impl ReadPoint {
    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.content.size()
    }

    /// The first block of 2 MiB from `block` on of which anything is stored; what is left out is zero.
    ///
    /// # Errors
    /// `corrupt`, or if the datastore fails.
    pub async fn next_stored(&mut self, block: u32) -> Result<Option<u32>> {
        self.content.next_stored(block).await
    }

    /// The content of a block, as much as the disk has of it; None where it is all zero.
    ///
    /// # Errors
    /// `corrupt`, or if the datastore fails.
    pub async fn block(&mut self, block: u32) -> Result<Option<Vec<u8>>> {
        let content = self.content.block(block).await?;
        Ok(content.filter(|bytes| bytes.iter().any(|byte| *byte != 0)))
    }

    /// Writes all of it into a new, empty file, and makes that durable.
    ///
    /// # Errors
    /// `cancelled`, `no-space`, `corrupt`.
    pub async fn write(
        &mut self,
        to: Rc<dyn BlockFile>,
        format: FlatFormat,
        uuid: Uuid,
        now_ms: u64,
        progress: &dyn Progress,
    ) -> Result<()> {
        let size = SectorCount::whole_in(self.size());
        let now = Timestamp::from_unix(now_ms / 1000);
        progress.phase("exporting", self.size());
        let plan = match format {
            FlatFormat::Raw => {
                self.write_raw(&*to, progress).await?;
                return layer::flush(&*to).await;
            }
            FlatFormat::Fixed => {
                let plan = create::fixed(uuid, size, now).map_err(bad_size)?;
                self.write_raw(&*to, progress).await?;
                for (at, footer) in &plan.pieces {
                    layer::write(&*to, at.bytes(), &IoBuf::copied(footer)).await?;
                }
                return layer::flush(&*to).await;
            }
            FlatFormat::Dynamic => create::dynamic(uuid, size, now),
        };
        let mut target = begin(to, plan).await?;
        let mut next = self.next_stored(0).await?;
        while let Some(block) = next {
            if progress.cancelled() {
                return Err(cancelled());
            }
            if let Some(bytes) = self.block(block).await? {
                target.put(&Chunk::whole(block, bytes)).await?;
            }
            progress.advance(((u64::from(block) + 1) * BLOCK_BYTES).min(self.size()));
            next = self.next_stored(block + 1).await?;
        }
        target.close_as_begun().await
    }

    /// Sends all of it. A dynamic VHD has its table first, so it holds every block that is stored.
    ///
    /// # Errors
    /// `cancelled`, `corrupt`, `unsupported` for a format that cannot be sent, and whatever `to` fails
    /// with.
    pub async fn send(
        &mut self,
        to: &mut dyn Outgoing,
        format: FlatFormat,
        uuid: Uuid,
        now_ms: u64,
        progress: &dyn Progress,
    ) -> Result<()> {
        let size = SectorCount::whole_in(self.size());
        let now = Timestamp::from_unix(now_ms / 1000);
        progress.phase("exporting", self.size());
        let plan = match format {
            FlatFormat::Raw => None,
            FlatFormat::Fixed => Some(create::fixed(uuid, size, now).map_err(bad_size)?),
            FlatFormat::Dynamic => Some(create::dynamic(uuid, size, now).map_err(bad_size)?),
        };
        let sparse = plan.as_ref().filter(|_| format == FlatFormat::Dynamic);
        let blocks = match sparse {
            Some(plan) => Blocks::Stored(self.send_table(to, plan).await?),
            None => Blocks::All(block_count(self.size())),
        };
        for block in blocks.iter() {
            if progress.cancelled() {
                return Err(cancelled());
            }
            let bytes = self.content.block(block).await?.unwrap_or_default();
            let (mut sent, len) = match sparse {
                Some(_) => (layer::bitmap_page(&Bitmap::full()).to_vec(), BLOCK_BYTES),
                None => (Vec::new(), visible_len(block, self.size()) as u64),
            };
            let len = sent.len() + ByteCount(len).as_len();
            sent.extend(bytes);
            sent.resize(len, 0);
            to.put(sent).await?;
            progress.advance(((u64::from(block) + 1) * BLOCK_BYTES).min(self.size()));
        }
        match plan {
            Some(plan) => to.put(create::footer_for(&plan.image).to_vec()).await,
            None => Ok(()),
        }
    }

    /// Sends what stands before the blocks; which blocks will follow.
    async fn send_table(&mut self, to: &mut dyn Outgoing, plan: &NewImage) -> Result<Vec<u32>> {
        let mut stored = Vec::new();
        let mut table = vec![0xff; ByteCount(plan.len - plan.image.bat_at.bytes()).as_len()];
        let mut next = plan.image.first_free.page_up();
        let mut found = self.next_stored(0).await?;
        while let Some(block) = found {
            let entry = bat::encode_entry(Some(layer::entry_at(next)));
            table[block as usize * entry.len()..][..entry.len()].copy_from_slice(&entry);
            next = layer::place_after(next);
            stored.push(block);
            found = self.next_stored(block + 1).await?;
        }
        for (at, bytes) in &plan.pieces {
            let is_table = *at == plan.image.bat_at;
            to.put(if is_table { std::mem::take(&mut table) } else { bytes.clone() }).await?;
        }
        Ok(stored)
    }

    async fn write_raw(&mut self, to: &dyn BlockFile, progress: &dyn Progress) -> Result<()> {
        to.truncate(ByteCount(self.size())).await?;
        let mut next = self.next_stored(0).await?;
        while let Some(block) = next {
            if progress.cancelled() {
                return Err(cancelled());
            }
            let start = u64::from(block) * BLOCK_BYTES;
            let bytes = self.block(block).await?.unwrap_or_default();
            for run in stored_runs(&bytes) {
                layer::write(to, start + run.start as u64, &IoBuf::copied(&bytes[run])).await?;
            }
            progress.advance((start + BLOCK_BYTES).min(self.size()));
            next = self.next_stored(block + 1).await?;
        }
        Ok(())
    }
}

/// The blocks that are sent.
enum Blocks {
    All(u32),
    Stored(Vec<u32>),
}

impl Blocks {
    fn iter(&self) -> impl Iterator<Item = u32> {
        let (all, stored) = match self {
            Self::All(count) => (0..*count, &[][..]),
            Self::Stored(blocks) => (0..0, blocks.as_slice()),
        };
        all.chain(stored.iter().copied())
    }
}

impl BranchReader {
    /// The files, parents before children.
    #[must_use]
    pub fn files(&self) -> &[BranchFile] {
        &self.files
    }
}

async fn begin(to: Rc<dyn BlockFile>, plan: image::Result<NewImage>) -> Result<Target> {
    Target::over(to, plan.map_err(bad_size)?, SizeKnown::Now, false).await
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn bad_size(error: FormatError) -> CatalogError {
    CatalogError::new(Code::BadSize, error.to_string()).hint(format!(
        "one VHD holds up to {} GiB; export it as raw or qcow2, or as a folder of VHDs (--with-snapshots)",
        MAX_SEGMENT >> 30
    ))
}

fn file_name(record: &VolumeRecord, tip: &Tip, layer: Uuid) -> String {
    let place = |tip: &Tip| tip.layers().iter().position(|own| *own == layer);
    let part = |at: usize| if at == 0 { String::new() } else { format!(".{}", at + 1) };
    if let Some(at) = place(tip) {
        return format!("{}{}.vhd", record.name, part(at));
    }
    let named = record.snapshots.iter().find_map(|s| Some((&s.name, place(&s.tip)?)));
    match named {
        Some((snapshot, at)) => format!("{}@{snapshot}{}.vhd", record.name, part(at)),
        None => format!("{layer}.vhd"),
    }
}

fn visible_len(block: u32, size: u64) -> usize {
    ByteCount(BLOCK_BYTES.min(size - u64::from(block) * BLOCK_BYTES)).as_len()
}

/// `owned` with every group of sectors whole that it touches, within the disk.
fn rounded(owned: &Bitmap, visible: u32) -> Bitmap {
    let mut whole = Bitmap::empty();
    for (first, len, set) in owned.runs() {
        if set {
            let from = first / TOGETHER * TOGETHER;
            let end = (first + len).next_multiple_of(TOGETHER).min(visible.min(BLOCK_SECTORS));
            whole.set_range(from, end.saturating_sub(from));
        }
    }
    whole
}

/// Takes everything out of a piece that is not `owned`.
fn keep_only(piece: &mut Chunk, owned: &Bitmap) {
    for (first, len, set) in owned.runs() {
        if !set {
            let from = first as usize * 512;
            piece.bytes[from..from + len as usize * 512].fill(0);
        }
    }
    piece.owned = owned.clone();
}
