//! Layers as files: opening, reading and writing their blocks while no disk runs on them.

use std::rc::Rc;

use datastore::{Access, FileStore, ObjectName};
use image::{
    BLOCK_BYTES, BLOCK_SECTORS, BLOCK_STRIDE_SECTORS, Bitmap, BlockIndex, Kind, LayerImage,
    METADATA_SECTORS, NewImage, Opener, PAGE, ParentRef, SECTOR, Sector, SectorCount, Step,
    Timestamp, Trust, bat, create,
};
use io::{
    BlockFile, ByteCount, ByteOffset, ByteRange, Clear, Durability, Effort, IoBuf, IoErrorKind,
    Request,
};
use uuid::Uuid;

use crate::error::{CatalogError, Result};
use crate::intent::{NewLayer, Piece};

/// Largest single transfer.
const CHUNK: u64 = 1 << 20;

/// Bytes of a metadata page, in memory.
pub(crate) const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE);

/// An open layer file.
pub(crate) struct Layer {
    pub(crate) uuid: Uuid,
    pub(crate) image: LayerImage,
    pub(crate) bat: Vec<Option<Sector>>,
    file: Rc<dyn BlockFile>,
}

/// How a file of ours is opened: as the record says, never as its bytes say.
fn trust(fixed: bool) -> Trust {
    if fixed { Trust::OwnFixed } else { Trust::Own }
}

fn damaged(uuid: Uuid, problem: impl std::fmt::Display) -> CatalogError {
    CatalogError::corrupt(ObjectName::Layer(uuid), problem)
}

pub(crate) async fn read(file: &dyn BlockFile, at: u64, len: u64) -> Result<Vec<u8>> {
    let buf = IoBuf::zeroed(ByteCount(len).as_len());
    read_into(file, at, &buf).await?;
    Ok(buf.to_vec())
}

pub(crate) async fn read_into(file: &dyn BlockFile, at: u64, buf: &IoBuf) -> Result<()> {
    let step = CHUNK.min(u64::from(file.info().max_io));
    let len = buf.count().0;
    let mut done = 0;
    while done < len {
        let part = step.min(len - done);
        let into = buf.slice(ByteCount(done).as_len(), ByteCount(part).as_len());
        file.submit(Request::Read { at: ByteOffset(at + done), into }).await?;
        done += part;
    }
    Ok(())
}

pub(crate) async fn write(file: &dyn BlockFile, at: u64, buf: &IoBuf) -> Result<()> {
    let step = CHUNK.min(u64::from(file.info().max_io));
    let len = buf.count().0;
    let mut done = 0;
    while done < len {
        let part = step.min(len - done);
        let from = buf.slice(ByteCount(done).as_len(), ByteCount(part).as_len());
        let at = ByteOffset(at + done);
        file.submit(Request::Write { at, from, durability: Durability::Cached }).await?;
        done += part;
    }
    Ok(())
}

pub(crate) async fn flush(file: &dyn BlockFile) -> Result<()> {
    Ok(file.submit(Request::Flush).await?)
}

/// Reads the headers of a layer.
pub(crate) async fn open_image(
    file: &dyn BlockFile,
    uuid: Uuid,
    fixed: bool,
) -> Result<LayerImage> {
    let mut opener = Opener::new(file.info().size.0, trust(fixed));
    let image = loop {
        match opener.step().map_err(|e| damaged(uuid, e))? {
            Step::Read { at, len } => {
                let bytes = read(file, at, len).await?;
                opener.supply(&bytes).map_err(|e| damaged(uuid, e))?;
            }
            Step::Done(image) => break image,
        }
    };
    if image.uuid != uuid {
        return Err(damaged(uuid, format_args!("it is layer {} inside", image.uuid)));
    }
    if (image.kind == Kind::Fixed) != fixed {
        return Err(damaged(uuid, format_args!("it is a {:?} disk inside", image.kind)));
    }
    Ok(image)
}

impl Layer {
    /// Opens the file of a layer of ours.
    pub(crate) async fn open(
        store: &dyn FileStore,
        uuid: Uuid,
        fixed: bool,
        access: Access,
    ) -> Result<Self> {
        let file = store.open(&ObjectName::Layer(uuid), access).await?;
        let image = open_image(&*file, uuid, fixed).await?;
        let mut table = Vec::new();
        if !fixed {
            let at = image.bat_at.bytes();
            let bytes = read(&*file, at, image.bat_bytes()).await?;
            table.extend(bat::decode(&bytes).take(image.bat_entries as usize));
            let len = file.info().size.0;
            let misplaced = table
                .iter()
                .flatten()
                .find(|entry| !image.block_fits(**entry, len) || !image.is_aligned(**entry));
            if let Some(entry) = misplaced {
                return Err(damaged(uuid, format_args!("a block stands at {entry:?}")));
            }
        }
        Ok(Self { uuid, image, bat: table, file })
    }

    pub(crate) fn file(&self) -> &dyn BlockFile {
        &*self.file
    }

    pub(crate) fn size(&self) -> u64 {
        self.image.size.bytes()
    }

    pub(crate) fn is_fixed(&self) -> bool {
        self.image.kind == Kind::Fixed
    }

    /// Sectors of the disk within `block`; 0 beyond its end.
    pub(crate) fn visible(&self, block: u32) -> u32 {
        self.image.sectors_in(BlockIndex(block)).min(BLOCK_SECTORS)
    }

    pub(crate) fn entry(&self, block: u32) -> Option<Sector> {
        self.bat.get(block as usize).copied().flatten()
    }

    /// The sectors of `block` that the layer owns, within its size.
    pub(crate) async fn owned(&self, block: u32) -> Result<Bitmap> {
        let visible = self.visible(block);
        let mut owned = match (self.image.kind, self.entry(block)) {
            (Kind::Fixed, _) | (Kind::Dynamic, Some(_)) => Bitmap::full(),
            (Kind::Dynamic | Kind::Differencing, None) => Bitmap::empty(),
            (Kind::Differencing, Some(entry)) => {
                let bytes = read(self.file(), entry.bytes(), SECTOR).await?;
                let bits: &[u8; 512] = bytes.as_slice().try_into().expect("a sector was read");
                Bitmap::from_bytes(bits)
            }
        };
        owned.clear_range(visible, BLOCK_SECTORS - visible);
        Ok(owned)
    }

    /// Blocks that the layer holds something of.
    pub(crate) fn blocks(&self) -> Vec<u32> {
        if self.is_fixed() {
            return (0..block_count(self.size())).collect();
        }
        (0u32..).zip(&self.bat).filter(|(_, entry)| entry.is_some()).map(|(at, _)| at).collect()
    }

    /// Length of the file once every block has its place.
    pub(crate) fn full_len(&self) -> u64 {
        if self.is_fixed() { self.size() } else { full_len(&self.image) }
    }

    /// The first place for another block: after headers, BAT and every block.
    pub(crate) fn end(&self) -> Sector {
        let stride_end = |entry: &Sector| self.image.data_at(*entry).plus(u64::from(BLOCK_SECTORS));
        let blocks = self.bat.iter().flatten().map(stride_end).max();
        blocks.unwrap_or_default().max(self.image.first_free).page_up()
    }

    pub(crate) async fn truncate(&self, len: u64) -> Result<()> {
        Ok(self.file.truncate(ByteCount(len)).await?)
    }

    pub(crate) async fn write_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        write(self.file(), at, &IoBuf::copied(bytes)).await
    }

    pub(crate) async fn flush(&self) -> Result<()> {
        flush(self.file()).await
    }

    /// Gives back the space of a range, which then reads as zero.
    pub(crate) async fn punch(&self, at: u64, len: u64) -> Result<()> {
        self.clear(at, len, Clear::Deallocate).await
    }

    /// Makes a range read as zero.
    pub(crate) async fn clear(&self, at: u64, len: u64, how: Clear) -> Result<()> {
        let range = ByteRange::new(at, len);
        let (effort, durability) = (Effort::Any, Durability::Cached);
        Ok(self.file.submit(Request::Clear { range, how, effort, durability }).await?)
    }

    /// Writes a block's bitmap; its page holds nothing else.
    pub(crate) async fn write_bitmap(&self, entry: Sector, bits: &Bitmap) -> Result<()> {
        let page = bitmap_page(bits);
        self.write_at(page_of(entry), &page).await
    }

    /// Puts the footer at the end, so that other tools see a closed file.
    pub(crate) async fn close(&self, end: Sector) -> Result<()> {
        let (at, footer) = create::tail_for(&self.image, end);
        self.truncate(at.bytes()).await?;
        self.write_at(at.bytes(), &footer).await?;
        self.flush().await
    }
}

/// A block's metadata page: zeros, then the bitmap as its last sector.
pub(crate) fn bitmap_page(bits: &Bitmap) -> [u8; PAGE_LEN] {
    let mut page = [0; PAGE_LEN];
    let (_, last) = page.split_at_mut(PAGE_LEN - bits.as_bytes().len());
    last.copy_from_slice(bits.as_bytes());
    page
}

/// The metadata page of the block with this BAT entry, in bytes.
pub(crate) fn page_of(entry: Sector) -> u64 {
    entry.0.saturating_sub(METADATA_SECTORS - 1) * SECTOR
}

/// The BAT entry of a block placed at `place`, a page boundary.
pub(crate) fn entry_at(place: Sector) -> Sector {
    place.plus(METADATA_SECTORS - 1)
}

/// The place after a block placed at `place`.
pub(crate) fn place_after(place: Sector) -> Sector {
    place.plus(BLOCK_STRIDE_SECTORS)
}

/// Blocks of a disk of `size` bytes.
pub(crate) fn block_count(size: u64) -> u32 {
    u32::try_from(size.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX)
}

/// Longest that the file of a sparse layer becomes.
pub(crate) fn full_len(image: &LayerImage) -> u64 {
    let blocks = image.size.blocks() * BLOCK_STRIDE_SECTORS;
    image.first_free.page_up().plus(blocks).bytes()
}

/// What a new layer takes at once, without any data: headers, two locators, BAT, footer.
pub(crate) fn own_bytes(size: u64) -> u64 {
    4 * PAGE + (u64::from(block_count(size)) * bat::ENTRY).next_multiple_of(PAGE)
}

/// What to write for a new layer.
pub(crate) fn plan_new(new: &NewLayer, now_ms: u64) -> Result<NewImage> {
    let (size, now) = (SectorCount::whole_in(new.size), Timestamp::from_unix(now_ms / 1000));
    match (new.parent, new.fixed) {
        (Some(parent), _) => {
            create::differencing(new.layer, size, now, &ParentRef::sibling(parent))
        }
        (None, true) => create::fixed(new.layer, size, now),
        (None, false) => create::dynamic(new.layer, size, now),
    }
    .map_err(|e| CatalogError::new(crate::Code::BadSize, e.to_string()))
}

/// Makes the file of a new sparse layer, whole and flushed, with all its space reserved if asked.
/// Its name is durable after `sync_names`.
pub(crate) async fn create_sparse(
    store: &dyn FileStore,
    new: &NewLayer,
    now_ms: u64,
    reserve: bool,
) -> Result<()> {
    let plan = plan_new(new, now_ms)?;
    let file = make_file(store, new.layer).await?;
    let mut end = plan.image.first_free;
    if reserve {
        end = Sector::at_or_after(full_len(&plan.image));
        file.reserve(ByteRange::new(0, end.bytes())).await?;
    }
    for (at, bytes) in &plan.pieces {
        write(&*file, at.bytes(), &IoBuf::copied(bytes)).await?;
    }
    let (at, footer) = create::tail_for(&plan.image, end);
    write(&*file, at.bytes(), &IoBuf::copied(&footer)).await?;
    flush(&*file).await
}

/// Creates the file of a layer that the intent at hand names; one of that name is its own garbage.
pub(crate) async fn make_file(store: &dyn FileStore, layer: Uuid) -> Result<Rc<dyn BlockFile>> {
    Ok(store.create(&ObjectName::Layer(layer)).await?)
}

/// Removes an object; that it is gone already is fine.
pub(crate) async fn remove_if_there(store: &dyn FileStore, name: &ObjectName) -> Result<()> {
    match store.remove(name).await {
        Err(error) if error.kind() != IoErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The headers of `image`, as pieces of an intent.
pub(crate) fn header_pieces(image: &LayerImage) -> Vec<Piece> {
    let pieces = create::headers_for(image).into_iter();
    pieces.map(|(at, bytes)| Piece { at: at.bytes(), bytes }).collect()
}
