//! Growing a volume while it is disconnected (rule D8).
//!
//! ```text
//!   sparse    headers | BAT | blocks | zero-owned blocks | BAT, where it outgrew its pages | footer
//!   fixed     data | zeros | footer          the old footer becomes zeros after the commit
//! ```
//! Beyond the size of a segment it goes on in new ones, whose files are made beside.
//!
//! All new structures stand behind the old ones, so that until the commit nothing is changed: undoing
//! cuts the file back. After the commit the headers are written from full images in the intent.

use datastore::Access;
use image::{
    BLOCK_SECTORS, BLOCK_STRIDE_SECTORS, Bitmap, LayerImage, PAGE, SECTOR, Sector, SectorCount,
    bat, create,
};
use io::{ByteCount, ByteRange, Clear, IoBuf};
use uuid::Uuid;

use crate::catalog::{Catalog, refuse_template};
use crate::env::Unwatched;
use crate::error::{CatalogError, Code, Result};
use crate::intent::{CutBack, NewLayer, Piece, Rewrite, Scratch};
use crate::layer::{self, Layer, block_count, header_pieces};
use crate::locks::Pace;
use crate::record::VolumeRecord;
use crate::segments::{Layout, MAX_SEGMENTS, Tip};
use crate::txn::Plan;
use crate::volumes::{check_size, mib, one};

impl Catalog {
    /// Grows a volume; its snapshots keep their sizes.
    ///
    /// # Errors
    /// `bad-size` (also for shrinking), `volume-connected`, `not-clean`, `is-template`, `no-space`,
    /// `busy`.
    pub async fn resize(&self, volume: Uuid, size: ByteCount) -> Result<VolumeRecord> {
        check_size(size.0)?;
        let held = self.hold(&[volume], "a resize", Pace::Long).await?;
        let old = self.volume(volume)?;
        refuse_template(&old, "resize")?;
        self.at_rest(&old, "resize")?;
        if size.0 == old.size {
            return Ok(old);
        }
        if size.0 < old.size {
            let message =
                format!("cannot shrink {} from {} to {}", old.name, mib(old.size), mib(size.0));
            return Err(CatalogError::new(Code::BadSize, message)
                .hint("copy its content to a smaller volume from within a guest"));
        }
        let layout = old.layout_at(size.0);
        if layout.count() > MAX_SEGMENTS {
            let message = format!("{} would have {} segments", old.name, layout.count());
            let hint =
                format!("{MAX_SEGMENTS} are the most; copy it to a new volume, then grow that");
            return Err(CatalogError::new(Code::BadSize, message).hint(hint));
        }
        if old.reserves() {
            self.has_room(size.0 - old.size, &format!("grow {}", old.name)).await?;
        }
        let reserve = old.reserves() && self.store().capabilities().reserve;
        let leaf = self.last_leaf(&old).await?;
        let (last, last_size) = (old.current.tip.layers().len() - 1, leaf.size());
        let growth = match layout.size_of(last) {
            grown if grown > last_size => {
                let chain = self.chain(leaf.uuid)?;
                let longest = chain.iter().skip(1).map(|(_, node)| node.size).max().unwrap_or(0);
                Some(Growth::plan(&leaf, grown, longest, reserve)?)
            }
            _ => None,
        };
        let title = format!("grow {} to {}", old.name, mib(size.0));
        let creates = self.more_segments(&old, layout, leaf.is_fixed());
        let mut grown = VolumeRecord { size: size.0, ..old };
        let mut tip = grown.current.tip.layers().to_vec();
        tip.extend(creates.iter().map(|new| new.layer));
        grown.layers.extend(creates.iter().map(|new| new.layer));
        grown.fixed_layers.extend(creates.iter().filter(|new| new.fixed).map(|new| new.layer));
        grown.current.tip = Tip::new(tip);
        let plan = Plan {
            title,
            puts: vec![grown],
            creates: creates.clone(),
            rewrites: growth.iter().map(Growth::rewrite).collect(),
            cut_back: growth.iter().map(Growth::cut_back).collect(),
            ..Plan::default()
        };
        let begun = self.begin(plan).await?;
        let built = async {
            if let Some(growth) = &growth {
                growth.write().await?;
            }
            for new in &creates {
                if new.fixed {
                    self.write_fixed(new, 0, &Unwatched).await?;
                } else {
                    layer::create_sparse(self.store(), new, self.env().now_ms(), reserve).await?;
                }
            }
            Ok(())
        }
        .await;
        // Both undoing and finishing open the file again, as its only holder.
        drop(growth);
        drop(leaf);
        let made = self.conclude(begun, built).await?;
        drop(held);
        one(made)
    }

    /// The leaf of the last segment, the only one that can grow.
    async fn last_leaf(&self, record: &VolumeRecord) -> Result<Layer> {
        let leaf = record.current.tip.layers().last().copied().unwrap_or_default();
        Layer::open(self.store(), leaf, record.is_fixed(leaf), Access::Write).await
    }

    /// The segments that a volume gains as it grows: files of the kind that its last one is.
    fn more_segments(&self, old: &VolumeRecord, layout: Layout, fixed: bool) -> Vec<NewLayer> {
        let from = old.current.tip.layers().len();
        (from..layout.count())
            .map(|at| NewLayer {
                layer: self.env().new_uuid(),
                parent: None,
                size: layout.size_of(at),
                fixed,
                owner: old.uuid,
            })
            .collect()
    }

    /// How a fixed layer that nobody reads directly becomes `image`: zeros and the new footer; the old
    /// footer becomes zeros by the rewrite.
    pub(crate) fn growth_of_fixed<'a>(&self, layer: &'a Layer, image: &LayerImage) -> Growth<'a> {
        Growth {
            layer,
            image: image.clone(),
            moved_to: None,
            zero_owned: Vec::new(),
            end: Sector(image.size.0),
            reserve: self.store().capabilities().reserve,
        }
    }
}

/// How one layer grows.
pub(crate) struct Growth<'a> {
    layer: &'a Layer,
    /// The layer afterwards.
    image: LayerImage,
    /// Where the BAT moves, if it does; zero-owned blocks stand before it.
    moved_to: Option<Sector>,
    /// Ranges that ancestors have and that this layer must own as zero: block, first sector, length,
    /// and the place of the block where it is a new one.
    zero_owned: Vec<(u32, u32, u32, Option<Sector>)>,
    /// Where the footer goes.
    end: Sector,
    reserve: bool,
}

impl<'a> Growth<'a> {
    fn plan(layer: &'a Layer, size: u64, longest: u64, reserve: bool) -> Result<Self> {
        let sectors = SectorCount(size / SECTOR);
        let mut next = layer.end();
        let zero_owned = zero_owned(layer, size.min(longest) / SECTOR, &mut next);
        let mut image = create::grow(&layer.image, sectors, next)
            .map_err(|e| CatalogError::new(Code::BadSize, e.to_string()))?
            .image;
        let mut moved_to = (image.bat_at != layer.image.bat_at).then_some(next);
        if zero_owned.iter().any(|(.., place)| place.is_some()) && moved_to.is_none() {
            // New entries must not stand in the old BAT before the commit: it moves in any case.
            image.bat_at = next;
            image.first_free = next.plus(bat_sectors(&image));
            moved_to = Some(next);
        }
        let mut growth = Self { layer, image, moved_to, zero_owned, end: next, reserve };
        growth.end = match (layer.is_fixed(), reserve) {
            (true, _) => Sector(sectors.0),
            (false, false) => growth.placed_end(),
            (false, true) => growth.placed_end().plus(growth.unplaced() * BLOCK_STRIDE_SECTORS),
        };
        Ok(growth)
    }

    /// The end of all that stands in the file, without a reserve.
    fn placed_end(&self) -> Sector {
        let bat = self.moved_to.map(|at| at.plus(bat_sectors(&self.image)));
        let places = self.zero_owned.iter().filter_map(|(.., place)| *place);
        let blocks = places.map(layer::place_after).max();
        bat.max(blocks).unwrap_or_default().max(self.layer.end())
    }

    /// Blocks of the disk that have no place yet.
    fn unplaced(&self) -> u64 {
        let placed =
            self.layer.blocks().len() + self.zero_owned.iter().filter(|z| z.3.is_some()).count();
        u64::from(block_count(self.image.size.bytes())).saturating_sub(placed as u64)
    }

    /// Writes what can be written before the commit, and flushes it.
    pub(crate) async fn write(&self) -> Result<()> {
        let (old, file) = (self.layer, self.layer.file());
        if old.is_fixed() {
            let (from, to) = (old.size() + SECTOR, self.image.size.bytes());
            if self.reserve {
                file.reserve(ByteRange::new(from, to + SECTOR - from)).await?;
            }
            let zeros = IoBuf::zeroed(1 << 20);
            let mut at = from;
            while at < to {
                let len = usize::try_from(to - at).unwrap_or(zeros.len()).min(zeros.len());
                layer::write(file, at, &zeros.slice(0, len)).await?;
                at += len as u64;
            }
            old.write_at(to, &create::footer_for(&self.image)).await?;
            return old.flush().await;
        }
        if self.reserve {
            let from = file.info().size.0.min(self.end.bytes());
            file.reserve(ByteRange::new(from, self.end.bytes() - from)).await?;
        } else {
            // Drops the old footer; what follows reads as zero.
            old.truncate(old.end().bytes()).await?;
            old.truncate(self.placed_end().bytes()).await?;
        }
        for (block, first, len, place) in &self.zero_owned {
            let entry = place.map(layer::entry_at).or(old.entry(*block));
            let Some(entry) = entry else { continue };
            let mut owned =
                if place.is_some() { Bitmap::empty() } else { old.stored_bitmap(*block).await? };
            let data = old.image.data_at(entry).plus(u64::from(*first)).bytes();
            old.clear(data, u64::from(*len) * SECTOR, Clear::KeepSpace).await?;
            // The zeros are there before they are owned.
            old.flush().await?;
            owned.set_range(*first, *len);
            old.write_bitmap(entry, &owned).await?;
        }
        if let Some(at) = self.moved_to {
            let places =
                self.zero_owned.iter().filter_map(|(block, .., place)| Some((*block, (*place)?)));
            old.write_bat_at(at, &self.image, &places.collect::<Vec<_>>()).await?;
        }
        old.flush().await
    }

    pub(crate) fn rewrite(&self) -> Rewrite {
        let (at, footer) = if self.layer.is_fixed() {
            (Sector(self.image.size.0), create::footer_for(&self.image).to_vec())
        } else {
            create::tail_for(&self.image, self.end)
        };
        let len = at.bytes() + footer.len() as u64;
        let mut pieces = header_pieces(&self.image);
        if self.layer.is_fixed() {
            pieces.push(Piece { at: self.layer.size(), bytes: vec![0; footer.len()] });
        }
        pieces.push(Piece { at: at.bytes(), bytes: footer });
        Rewrite {
            layer: self.layer.uuid,
            pieces,
            len,
            parent: self.image.parent.as_ref().map(|parent| parent.uuid),
            size: self.image.size.bytes(),
        }
    }

    pub(crate) fn cut_back(&self) -> CutBack {
        let layer = self.layer;
        let (end, len) = (layer.end().bytes(), layer.file().info().size.0);
        if layer.is_fixed() {
            return CutBack { layer: layer.uuid, len, scratch: None };
        }
        if !self.reserve {
            return CutBack { layer: layer.uuid, len: end.min(len), scratch: None };
        }
        // Within a reserve the space stays, and must be zero again.
        let used = self.placed_end().bytes().min(len).saturating_sub(end);
        let scratch = (used > 0).then_some(Scratch { at: end, len: used });
        CutBack { layer: layer.uuid, len, scratch }
    }
}

/// The ranges from the layer's end to sector `to` that must be owned as zero, block by block; new
/// blocks take their places from `next` on.
fn zero_owned(layer: &Layer, to: u64, next: &mut Sector) -> Vec<(u32, u32, u32, Option<Sector>)> {
    let mut ranges = Vec::new();
    if layer.image.parent.is_none() {
        return ranges;
    }
    let per_block = u64::from(BLOCK_SECTORS);
    let mut at = layer.image.size.0;
    while at < to {
        let len = (per_block - at % per_block).min(to - at);
        let block = u32::try_from(at / per_block).unwrap_or(u32::MAX);
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let place = layer.entry(block).is_none().then_some(*next);
        if place.is_some() {
            *next = layer::place_after(*next);
        }
        ranges.push((block, narrow(at % per_block), narrow(len), place));
        at += len;
    }
    ranges
}

fn bat_sectors(image: &LayerImage) -> u64 {
    (u64::from(image.bat_entries) * bat::ENTRY).next_multiple_of(PAGE) / SECTOR
}

impl Layer {
    /// Where the file ends once it is `image`: for a layer whose BAT may have moved.
    pub(crate) fn end_with(&self, image: &LayerImage) -> Sector {
        let bat_end = image.bat_at.plus(bat_sectors(image)).page_up();
        self.end().max(bat_end)
    }

    /// Writes the BAT at its new place behind everything, and flushes it.
    pub(crate) async fn write_moved_bat(&self, image: &LayerImage) -> Result<()> {
        self.truncate(self.end().bytes()).await?;
        self.write_bat_at(image.bat_at, image, &[]).await?;
        self.flush().await
    }

    /// Writes a whole BAT for `image`: the entries there are, and those of new blocks.
    async fn write_bat_at(
        &self,
        at: Sector,
        image: &LayerImage,
        new: &[(u32, Sector)],
    ) -> Result<()> {
        let mut entries = self.bat.clone();
        entries.resize(image.bat_entries as usize, None);
        for (block, place) in new {
            if let Some(entry) = entries.get_mut(*block as usize) {
                *entry = Some(layer::entry_at(*place));
            }
        }
        let mut bytes: Vec<u8> = entries.iter().flat_map(|e| bat::encode_entry(*e)).collect();
        bytes.resize(ByteCount(bat_sectors(image) * SECTOR).as_len(), 0xff);
        self.write_at(at.bytes(), &bytes).await
    }

    /// A block's bitmap as it is stored, also beyond the disk's end.
    async fn stored_bitmap(&self, block: u32) -> Result<Bitmap> {
        let Some(entry) = self.entry(block) else { return Ok(Bitmap::empty()) };
        let bytes = layer::read(self.file(), entry.bytes(), SECTOR).await?;
        let bits: &[u8; 512] = bytes.as_slice().try_into().expect("a sector was read");
        Ok(Bitmap::from_bytes(bits))
    }
}
