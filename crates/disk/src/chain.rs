//! The layers of an open chain: their tables, their checks when opened, and where each stands.
//!
//! The leaf's table is held whole, for it changes. A parent's is read in pages when a block is looked at
//! the first time; what is held of it is which blocks any parent has, and how its pages read when they
//! were checked. So a chain costs a disk hardly more memory than a single layer does.

use std::rc::Rc;

use futures_util::future::try_join_all;
use image::owner::{LayerBlock, Slot, Source};
use image::{
    BLOCK_SECTORS, Bitmap, BlockIndex, Kind, LayerImage, Opener, PAGE, Sector, Step, Trust, bat,
};
use io::{BlockFile, ByteOffset, IoBuf, IoError, IoErrorKind, Request};
use uuid::Uuid;

use crate::blocks::BlockSet;
use crate::cache::{PageBytes, PageKey, Pages, SharedCache};
use crate::error::OpenError;
use crate::space::Place;
use crate::table::{ENTRIES, Summary, Table};

/// One layer of an open chain. The leaf's `table` is its whole table.
pub(crate) struct Layer<T = Table> {
    pub(crate) file: Rc<dyn BlockFile>,
    pub(crate) image: LayerImage,
    pub(crate) table: T,
}

impl<T: std::fmt::Debug> std::fmt::Debug for Layer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer")
            .field("uuid", &self.image.uuid)
            .field("kind", &self.image.kind)
            .finish_non_exhaustive()
    }
}

/// The most layers of a chain: a block may have sectors of each.
pub(crate) const MAX_LAYERS: usize = 254;

/// Longest piece of a BAT that is read at once.
const TABLE_PIECE: u64 = 1 << 20;

impl Layer {
    /// Reads and checks a layer of our own making, the leaf to be. Its places are in the order of the
    /// file.
    pub(crate) async fn open(
        file: Rc<dyn BlockFile>,
        depth: usize,
        trust: Trust,
    ) -> Result<(Self, Vec<Place>), OpenError> {
        let image = read_image(&*file, depth, trust).await?;
        let mut table = Table::default();
        let places = read_table(&*file, &image, |_, entries| {
            entries.iter().for_each(|(block, bitmap)| table.set(*block, *bitmap));
        })
        .await?;
        Ok((Self { file, image, table }, places))
    }
}

impl<T> Layer<T> {
    pub(crate) fn is_differencing(&self) -> bool {
        self.image.kind == Kind::Differencing
    }
}

impl Layer<Summary> {
    /// Reads and checks a layer that others stand on; `below` gets the blocks that it has.
    async fn open_parent(
        file: Rc<dyn BlockFile>,
        depth: usize,
        trust: Trust,
        below: &mut BlockSet,
    ) -> Result<Self, OpenError> {
        let image = read_image(&*file, depth, trust).await?;
        let mut table = Summary::new(image.bat_entries);
        read_table(&*file, &image, |(number, page), entries| {
            table.note(number, page);
            entries.iter().for_each(|(block, _)| below.insert(*block));
        })
        .await?;
        Ok(Self { file, image, table })
    }

    /// Reads a page of the table, which must be what it was when it was checked.
    async fn read_page(&self, number: u32) -> Result<PageBytes, IoError> {
        let at = self.image.bat_at.bytes() + u64::from(number) * PAGE;
        let len = usize::try_from(PAGE).expect("a page");
        let during = "reading the block table of a parent layer";
        let bytes = read_bytes(&*self.file, at, len).await.map_err(|e| e.during(during))?;
        if !self.table.matches(number, &bytes) {
            let layer = self.image.uuid;
            return Err(IoError::new(
                IoErrorKind::Corrupt,
                format!(
                    "layer {layer}: page {number} of its block table is not what it was when the \
                     volume was connected: the store returned wrong bytes, or something else \
                     changed the file; reconnect the volume, which checks the layer"
                ),
            ));
        }
        Ok(bytes.into())
    }
}

/// Reads `len` bytes at `at`.
pub(crate) async fn read_bytes(
    file: &dyn BlockFile,
    at: u64,
    len: usize,
) -> Result<Vec<u8>, IoError> {
    let into = IoBuf::zeroed(len);
    file.submit(Request::Read { at: ByteOffset(at), into: into.clone() }).await?;
    Ok(into.to_vec())
}

async fn read_image(
    file: &dyn BlockFile,
    depth: usize,
    trust: Trust,
) -> Result<LayerImage, OpenError> {
    let format = |source| OpenError::Format { layer: depth, source };
    let mut opener = Opener::new(file.info().size.0, trust);
    loop {
        match opener.step().map_err(format)? {
            Step::Read { at, len } => {
                let len = usize::try_from(len).expect("an opener asks for pages");
                let bytes = read_bytes(file, at, len).await?;
                opener.supply(&bytes).map_err(format)?;
            }
            Step::Done(image) => return Ok(image),
        }
    }
}

/// Checks a layer's table and hands out its pages that hold an entry: number and bytes, and the entries.
/// Returns the places, in order.
async fn read_table(
    file: &dyn BlockFile,
    image: &LayerImage,
    mut page_of: impl FnMut((u32, &[u8]), &[(BlockIndex, Sector)]),
) -> Result<Vec<Place>, OpenError> {
    if image.kind == Kind::Fixed {
        return Ok(Vec::new());
    }
    let file_len = file.info().size.0;
    let bad = |block: BlockIndex, sector: Sector, why| OpenError::Table {
        layer: image.uuid,
        block: block.0,
        sector: sector.0,
        why,
    };
    // as many as there are blocks at most: four bytes a place, and four for its block
    let mut places: Vec<(u32, BlockIndex)> = Vec::new();
    let mut entries = Vec::with_capacity(ENTRIES as usize);
    let len = u64::from(image.bat_entries) * bat::ENTRY;
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(TABLE_PIECE);
        // whole pages: a BAT of ours is padded to them
        let padded = usize::try_from(piece.next_multiple_of(PAGE)).expect("a piece");
        let bytes = read_bytes(file, image.bat_at.bytes() + at, padded).await?;
        let page_len = usize::try_from(PAGE).expect("a page");
        for page in bytes.chunks(page_len) {
            let number = u32::try_from(at / PAGE).expect("a BAT has 32-bit indexes");
            let blocks = number * ENTRIES..image.bat_entries;
            entries.clear();
            for (block, entry) in blocks.map(BlockIndex).zip(bat::decode(page)) {
                let Some(bitmap) = entry else { continue };
                let place = Place::at_bitmap(bitmap)
                    .ok_or_else(|| bad(block, bitmap, "which is not on a page boundary"))?;
                if !image.block_fits(bitmap, file_len) {
                    let why = "inside the headers or beyond the end of the file";
                    return Err(bad(block, bitmap, why));
                }
                places.push((place.page(), block));
                entries.push((block, bitmap));
            }
            if !entries.is_empty() {
                page_of((number, page), &entries);
            }
            at += PAGE;
        }
    }
    places.sort_unstable();
    if let Some(at) = Place::overlap(places.iter().map(|(page, _)| Place::at_page(*page))) {
        let (page, block) = places[at];
        let why = "where another block stands already";
        return Err(bad(block, Place::at_page(page).bitmap(), why));
    }
    Ok(places.into_iter().map(|(page, _)| Place::at_page(page)).collect())
}

/// All layers of a chain. A layer's slot is its place in the chain, the base first, the leaf last.
#[derive(Debug)]
pub(crate) struct Chain {
    parents: Vec<Rc<Layer<Summary>>>,
    leaf: Layer,
    /// Blocks of which any sparse parent holds something.
    below: BlockSet,
    pages: Pages,
}

/// A page of a parent's table that must be read before a block can be looked up.
#[derive(Debug)]
pub(crate) struct Missing {
    key: PageKey,
    parent: Rc<Layer<Summary>>,
}

impl Missing {
    pub(crate) async fn read(self) -> Result<(PageKey, PageBytes), IoError> {
        let bytes = self.parent.read_page(self.key.1).await?;
        Ok((self.key, bytes))
    }
}

/// What one layer holds of a block, and what must be read to know it whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    source: Source,
    /// Where the bitmap stands, if its bits decide.
    bitmap: Option<Sector>,
    visible: u32,
}

impl Chain {
    /// Reads and checks these layers, the base first. Also returns the leaf's places, in order.
    pub(crate) async fn open(
        mut files: Vec<Rc<dyn BlockFile>>,
        fixed_base: bool,
        cache: SharedCache,
    ) -> Result<(Self, Vec<Place>), OpenError> {
        let trust = |depth| if depth == 0 && fixed_base { Trust::OwnFixed } else { Trust::Own };
        if files.len() > MAX_LAYERS {
            return Err(OpenError::TooLong(files.len()));
        }
        let leaf = files.pop().ok_or(OpenError::Empty)?;
        let depth = files.len();
        let mut below = BlockSet::default();
        let mut parents = Vec::with_capacity(depth);
        for (depth, file) in files.into_iter().enumerate() {
            let layer = Layer::open_parent(file, depth, trust(depth), &mut below).await?;
            parents.push(Rc::new(layer));
        }
        let (leaf, places) = Layer::open(leaf, depth, trust(depth)).await?;
        let chain = Self { parents, leaf, below, pages: Pages::new(cache) };
        chain.check_links()?;
        Ok((chain, places))
    }

    fn slot(at: usize) -> Slot {
        Slot(u16::try_from(at).expect("a chain is far shorter"))
    }

    pub(crate) fn leaf_slot(&self) -> Slot {
        Self::slot(self.parents.len())
    }

    pub(crate) fn leaf(&self) -> &Layer {
        &self.leaf
    }

    pub(crate) fn leaf_mut(&mut self) -> &mut Layer {
        &mut self.leaf
    }

    /// How many layers there are.
    pub(crate) fn depth(&self) -> usize {
        self.parents.len() + 1
    }

    pub(crate) fn file(&self, slot: Slot) -> &Rc<dyn BlockFile> {
        self.parents.get(usize::from(slot.0)).map_or(&self.leaf.file, |parent| &parent.file)
    }

    /// Makes `leaf` the leaf. The old one must be on disk as it stands in memory.
    pub(crate) fn push(&mut self, leaf: Layer) {
        let Layer { file, image, table } = std::mem::replace(&mut self.leaf, leaf);
        table.entries().for_each(|(block, _)| self.below.insert(block));
        let table = Summary::of(&table, image.bat_entries);
        self.parents.push(Rc::new(Layer { file, image, table }));
    }

    /// Checks that each layer's parent is the one below it.
    fn check_links(&self) -> Result<(), OpenError> {
        let mut below: Option<Uuid> = None;
        for image in self.parents.iter().map(|p| &p.image).chain([&self.leaf.image]) {
            let parent = image.parent.as_ref().map(|p| p.uuid);
            if parent != below {
                let uuid = image.uuid;
                return Err(OpenError::Parent { layer: uuid, found: parent, expected: below });
            }
            below = Some(image.uuid);
        }
        Ok(())
    }

    /// Whether a layer below the leaf holds anything of the block.
    pub(crate) fn is_below(&self, block: BlockIndex) -> bool {
        self.below.contains(block) || self.parents.iter().any(|p| p.image.kind == Kind::Fixed)
    }

    /// Bytes of memory that is held of the layers' tables.
    pub(crate) fn memory(&self) -> usize {
        let sums: usize = self.parents.iter().map(|parent| parent.table.memory()).sum();
        self.leaf.table.memory() + self.below.memory() + self.pages.memory() + sums
    }

    /// Keeps pages that were read for as long as there is room.
    pub(crate) fn keep(&mut self, pages: Vec<(PageKey, PageBytes)>) {
        for (key, bytes) in pages {
            self.pages.keep(key, bytes);
        }
    }

    /// What the layers hold of a block, the topmost first; or which pages of their tables must be read
    /// to know it, beside `read`. `clip`: an ancestor is seen only as far as every layer above it
    /// reaches (rule D8).
    pub(crate) fn holdings(
        &mut self,
        block: BlockIndex,
        clip: bool,
        read: &[(PageKey, PageBytes)],
    ) -> Result<Vec<Holding>, Vec<Missing>> {
        let start = u64::from(block.0) * u64::from(BLOCK_SECTORS);
        let mut reach = u64::MAX;
        let (mut holdings, mut missing) = (Vec::new(), Vec::new());
        let mut hold = |slot, image: &LayerImage, entry: Option<Sector>| {
            reach = if clip { reach.min(image.size.0) } else { image.size.0 };
            let visible = reach.saturating_sub(start).min(u64::from(BLOCK_SECTORS));
            let visible = u32::try_from(visible).expect("a block's sectors");
            let (data, bitmap) = match (image.kind, entry) {
                (Kind::Fixed, _) => (Sector(start), None),
                (Kind::Dynamic, Some(bitmap)) => (bitmap.plus(1), None),
                (Kind::Differencing, Some(bitmap)) => (bitmap.plus(1), Some(bitmap)),
                (Kind::Dynamic | Kind::Differencing, None) => return,
            };
            if visible > 0 {
                holdings.push(Holding { source: Source { slot, data }, bitmap, visible });
            }
        };
        hold(self.leaf_slot(), &self.leaf.image, self.leaf.table.get(block));
        let below = self.below.contains(block);
        for (at, parent) in self.parents.iter().enumerate().rev() {
            let key = (Self::slot(at), block.0 / ENTRIES);
            let entry = if !below || !parent.table.has(key.1) {
                None
            } else if let Some((_, page)) = read.iter().find(|(read, _)| *read == key) {
                entry_of(page, block)
            } else if let Some(page) = self.pages.get(key) {
                entry_of(page, block)
            } else {
                missing.push(Missing { key, parent: Rc::clone(parent) });
                continue;
            };
            hold(key.0, &parent.image, entry);
        }
        if missing.is_empty() { Ok(holdings) } else { Err(missing) }
    }
}

/// The block's entry on its page of a table.
fn entry_of(page: &[u8], block: BlockIndex) -> Option<Sector> {
    let (entries, _) = page.as_chunks::<4>();
    entries.get((block.0 % ENTRIES) as usize).and_then(|entry| bat::decode_entry(*entry))
}

/// Reads the bitmaps that decide, in one batch.
pub(crate) async fn read_bitmaps(
    files: &[(Rc<dyn BlockFile>, Holding)],
) -> Result<Vec<Option<Bitmap>>, IoError> {
    try_join_all(files.iter().map(|(file, holding)| async move {
        match holding.bitmap {
            None => Ok(None),
            Some(at) => read_bitmap(&**file, at).await.map(Some),
        }
    }))
    .await
}

/// Reads the bitmap at sector `at`, by its whole page.
pub(crate) async fn read_bitmap(file: &dyn BlockFile, at: Sector) -> Result<Bitmap, IoError> {
    let page = usize::try_from(PAGE).expect("a page");
    let bytes = read_bytes(file, at.plus(1).bytes() - PAGE, page).await?;
    let bits: &[u8; 512] = bytes[page - 512..].try_into().expect("the last sector of a page");
    Ok(Bitmap::from_bytes(bits))
}

/// The holdings with their bitmaps, as the owner map takes them.
pub(crate) fn layer_blocks<'a>(
    holdings: &'a [Holding],
    bitmaps: &'a [Option<Bitmap>],
) -> impl Iterator<Item = LayerBlock<'a>> {
    holdings.iter().zip(bitmaps).map(|(holding, bitmap)| LayerBlock {
        source: holding.source,
        owned: bitmap.as_ref(),
        visible: holding.visible,
    })
}

impl Holding {
    pub(crate) fn slot(&self) -> Slot {
        self.source.slot
    }
}
