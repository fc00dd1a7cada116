//! The layers of an open chain: their tables, their checks when opened, and where each stands.

use std::collections::BTreeSet;
use std::rc::Rc;

use futures_util::future::try_join_all;
use image::owner::{LayerBlock, Slot, Source};
use image::{
    BLOCK_SECTORS, Bitmap, BlockIndex, Kind, LayerImage, Opener, PAGE, Sector, Step, Trust, bat,
};
use io::{BlockFile, ByteOffset, IoBuf, Request};
use uuid::Uuid;

use crate::error::OpenError;
use crate::space::Place;
use crate::table::Table;

/// One layer of an open chain.
pub(crate) struct Layer {
    pub(crate) file: Rc<dyn BlockFile>,
    pub(crate) image: LayerImage,
    pub(crate) table: Table,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer")
            .field("uuid", &self.image.uuid)
            .field("kind", &self.image.kind)
            .field("allocated", &self.table.allocated())
            .finish_non_exhaustive()
    }
}

/// Longest piece of a BAT that is read at once.
const TABLE_PIECE: u64 = 1 << 20;

impl Layer {
    /// Reads and checks a layer of our own making. `places` is filled with the places in use.
    pub(crate) async fn open(
        file: Rc<dyn BlockFile>,
        depth: usize,
        trust: Trust,
        places: &mut BTreeSet<Place>,
    ) -> Result<Self, OpenError> {
        let image = read_image(&*file, depth, trust).await?;
        let table = if image.kind == Kind::Fixed {
            Table::default()
        } else {
            read_table(&*file, &image, places).await?
        };
        Ok(Self { file, image, table })
    }

    pub(crate) fn is_differencing(&self) -> bool {
        self.image.kind == Kind::Differencing
    }
}

/// Reads `len` bytes at `at`.
pub(crate) async fn read_bytes(
    file: &dyn BlockFile,
    at: u64,
    len: usize,
) -> Result<Vec<u8>, io::IoError> {
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

async fn read_table(
    file: &dyn BlockFile,
    image: &LayerImage,
    places: &mut BTreeSet<Place>,
) -> Result<Table, OpenError> {
    let file_len = file.info().size.0;
    let mut table = Table::default();
    let len = u64::from(image.bat_entries) * bat::ENTRY;
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(TABLE_PIECE);
        // whole pages: a BAT of ours is padded to them
        let padded = usize::try_from(piece.next_multiple_of(PAGE)).expect("a piece");
        let bytes = read_bytes(file, image.bat_at.bytes() + at, padded).await?;
        let first = u32::try_from(at / bat::ENTRY).expect("a BAT has 32-bit indexes");
        let count = usize::try_from(piece / bat::ENTRY).expect("a piece");
        for (block, entry) in (first..).zip(bat::decode(&bytes).take(count)) {
            let Some(bitmap) = entry else { continue };
            let bad = |why| OpenError::Table { layer: image.uuid, block, sector: bitmap.0, why };
            let place =
                Place::at_bitmap(bitmap).ok_or_else(|| bad("which is not on a page boundary"))?;
            if !image.block_fits(bitmap, file_len) {
                return Err(bad("inside the headers or beyond the end of the file"));
            }
            if place.overlaps(places) {
                return Err(bad("where another block stands already"));
            }
            places.insert(place);
            table.set(BlockIndex(block), bitmap);
        }
        at += piece;
    }
    Ok(table)
}

/// All layers of a chain; the index of a layer is its slot, the base first, the leaf last.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) layers: Vec<Layer>,
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
    pub(crate) fn slot(at: usize) -> Slot {
        Slot(u16::try_from(at).expect("a chain is far shorter"))
    }

    pub(crate) fn leaf_slot(&self) -> Slot {
        Self::slot(self.layers.len() - 1)
    }

    pub(crate) fn leaf(&self) -> &Layer {
        self.layers.last().expect("a chain has a layer")
    }

    pub(crate) fn leaf_mut(&mut self) -> &mut Layer {
        self.layers.last_mut().expect("a chain has a layer")
    }

    /// Checks that each layer's parent is the one below it.
    pub(crate) fn check_links(&self) -> Result<(), OpenError> {
        let mut below: Option<Uuid> = None;
        for layer in &self.layers {
            let parent = layer.image.parent.as_ref().map(|p| p.uuid);
            if parent != below {
                let uuid = layer.image.uuid;
                return Err(OpenError::Parent { layer: uuid, found: parent, expected: below });
            }
            below = Some(layer.image.uuid);
        }
        Ok(())
    }

    /// Whether a layer below the leaf holds anything of the block.
    pub(crate) fn is_below(&self, block: BlockIndex) -> bool {
        let ancestors = self.layers.len() - 1;
        self.layers[..ancestors]
            .iter()
            .any(|l| l.image.kind == Kind::Fixed || l.table.get(block).is_some())
    }

    /// What the layers hold of a block, the topmost first. `clip`: an ancestor is seen only as far as
    /// every layer above it reaches (rule D8).
    pub(crate) fn holdings(&self, block: BlockIndex, clip: bool) -> Vec<Holding> {
        let start = u64::from(block.0) * u64::from(BLOCK_SECTORS);
        let mut reach = u64::MAX;
        let mut holdings = Vec::new();
        for (at, layer) in self.layers.iter().enumerate().rev() {
            reach = if clip { reach.min(layer.image.size.0) } else { layer.image.size.0 };
            let visible = reach.saturating_sub(start).min(u64::from(BLOCK_SECTORS));
            let visible = u32::try_from(visible).expect("a block's sectors");
            if visible == 0 {
                continue;
            }
            let (data, bitmap) = match layer.image.kind {
                Kind::Fixed => (Sector(start), None),
                Kind::Dynamic | Kind::Differencing => match layer.table.get(block) {
                    None => continue,
                    Some(bitmap) => (bitmap.plus(1), layer.is_differencing().then_some(bitmap)),
                },
            };
            holdings.push(Holding {
                source: Source { slot: Self::slot(at), data },
                bitmap,
                visible,
            });
        }
        holdings
    }
}

/// Reads the bitmaps that decide, in one batch.
pub(crate) async fn read_bitmaps(
    files: &[(Rc<dyn BlockFile>, Holding)],
) -> Result<Vec<Option<Bitmap>>, io::IoError> {
    try_join_all(files.iter().map(|(file, holding)| async move {
        match holding.bitmap {
            None => Ok(None),
            Some(at) => read_bitmap(&**file, at).await.map(Some),
        }
    }))
    .await
}

/// Reads the bitmap at sector `at`, by its whole page.
pub(crate) async fn read_bitmap(file: &dyn BlockFile, at: Sector) -> Result<Bitmap, io::IoError> {
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
    pub(crate) fn slot(&self) -> usize {
        usize::from(self.source.slot.0)
    }

    pub(crate) fn needs_bitmap(&self) -> bool {
        self.bitmap.is_some()
    }
}
