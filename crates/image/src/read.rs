//! Reading: where the content of a range of a disk stands, for one file of any origin and for a
//! whole chain of them. Nothing is read here: the caller fetches the few metadata bytes asked for
//! and gets decisions back.
//!
//! Memory is one piece of the BAT and one bitmap a file, whatever the size of the disk; for a running
//! disk, which looks up at random, the owner map is the better structure.

use crate::{
    BlockIndex, FormatError, Kind, LayerImage, Result, SECTOR, Sector, SectorCount, bat, bit_runs,
};

/// Bytes of the BAT read at once.
const BAT_PIECE: u64 = 64 << 10;

/// Where the content of a range stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<L> {
    /// Zeros, stored nowhere.
    Zero,
    /// In the file `layer`, from this sector of the file on.
    Data {
        /// Which file.
        layer: L,
        /// Sector of the file.
        at: Sector,
    },
    /// In the parent, at the same place of the disk.
    Parent,
}

/// An answer of a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped<L> {
    /// Read these bytes of the file `layer`, supply them, and ask again.
    Read {
        /// Which file.
        layer: L,
        /// Byte offset in it.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// The next `len` sectors from where was asked have this content; never 0.
    Extent {
        /// Length.
        len: SectorCount,
        /// Content.
        content: Content<L>,
    },
}

/// Looks up ranges of one file.
#[derive(Debug)]
pub struct LayerReader {
    image: LayerImage,
    file_len: u64,
    /// Byte offset from the start of the BAT, and the bytes there.
    bat: Option<(u64, Vec<u8>)>,
    /// Where in the file the bitmap stands, and its bytes.
    bitmap: Option<(Sector, Vec<u8>)>,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Bat { from: u64, len: u64 },
    Bitmap { entry: Sector, len: u64 },
}

impl LayerReader {
    /// A reader of an opened file of `file_len` bytes.
    #[must_use]
    pub fn new(image: LayerImage, file_len: u64) -> Self {
        Self { image, file_len, bat: None, bitmap: None, asked: None }
    }

    /// The opened file.
    #[must_use]
    pub fn image(&self) -> &LayerImage {
        &self.image
    }

    /// The content from sector `from` of the disk on, at most `max` sectors of it.
    ///
    /// # Errors
    /// If a block stands outside the file or in its headers.
    ///
    /// # Panics
    /// If the range is empty or does not lie within the disk.
    pub fn map(&mut self, from: Sector, max: SectorCount) -> Result<Mapped<()>> {
        let left = self.image.size.0.saturating_sub(from.0);
        assert!(max.0 > 0 && max.0 <= left, "{from:?}+{max:?} of a disk of {:?}", self.image.size);
        if self.image.kind == Kind::Fixed {
            let content = Content::Data { layer: (), at: from };
            return Ok(Mapped::Extent { len: max, content });
        }
        let absent = match self.image.kind {
            Kind::Differencing => Content::Parent,
            Kind::Fixed | Kind::Dynamic => Content::Zero,
        };
        let (block, within) = self.image.locate(from);
        let in_block = u64::from(self.image.block_sectors.saturating_sub(within)).min(max.0);
        let entry = match self.entry(block) {
            Ok(entry) => entry,
            Err(read) => return Ok(read),
        };
        let Some(entry) = entry else {
            let len = SectorCount(self.absent_from(block, in_block, max.0));
            return Ok(Mapped::Extent { len, content: absent });
        };
        if !self.image.block_fits(entry, self.file_len) {
            return Err(FormatError::corrupt(
                "BAT",
                "an entry",
                format!("{} for {block:?}", entry.0),
                format!(
                    "a block between the headers and the file's end at {} bytes",
                    self.file_len
                ),
            ));
        }
        let bits = match &self.bitmap {
            Some((at, bits)) if *at == entry => bits,
            Some(_) | None => {
                let len = u64::from(self.image.bitmap_sectors()).saturating_mul(SECTOR);
                return Ok(self.ask(Asked::Bitmap { entry, len }));
            }
        };
        let length = u32::try_from(in_block).unwrap_or(u32::MAX);
        let (_, run, set) = bit_runs(bits, within, length).next().unwrap_or((0, length, false));
        let at = self.image.data_at(entry).plus(u64::from(within));
        let content = if set { Content::Data { layer: (), at } } else { absent };
        Ok(Mapped::Extent { len: SectorCount(u64::from(run)), content })
    }

    /// How far nothing stands in the file: `in_block` sectors of an absent block, and the blocks after it
    /// that the BAT at hand tells absent too; at most `max`.
    fn absent_from(&self, block: BlockIndex, in_block: u64, max: u64) -> u64 {
        let (mut len, mut next) = (in_block, block.0.checked_add(1));
        while len < max
            && let Some(block) = next
            && let Some(None) = self.known_entry(BlockIndex(block))
        {
            len = len.saturating_add(u64::from(self.image.block_sectors));
            next = block.checked_add(1);
        }
        len.min(max)
    }

    /// Takes the bytes that were asked for.
    ///
    /// # Errors
    /// If there are fewer.
    ///
    /// # Panics
    /// If nothing was asked for.
    pub fn supply(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(asked) = self.asked.take() else {
            unreachable!("bytes were supplied to a reader that had asked for none")
        };
        let (at, wanted) = self.place(asked);
        if bytes.len() as u64 != wanted {
            return Err(FormatError::ShortRead { at, wanted, got: bytes.len() as u64 });
        }
        match asked {
            Asked::Bat { from, .. } => self.bat = Some((from, bytes.to_vec())),
            Asked::Bitmap { entry, .. } => self.bitmap = Some((entry, bytes.to_vec())),
        }
        Ok(())
    }

    /// The BAT entry of a block, or what to read for it.
    fn entry(&mut self, block: BlockIndex) -> std::result::Result<Option<Sector>, Mapped<()>> {
        if let Some(entry) = self.known_entry(block) {
            return Ok(entry);
        }
        let offset = bat::offset_of(block);
        let from = offset & !BAT_PIECE.saturating_sub(1);
        let len = self.image.bat_bytes().saturating_sub(from).min(BAT_PIECE);
        Err(self.ask(Asked::Bat { from, len }))
    }

    /// The BAT entry of a block, where it is at hand.
    fn known_entry(&self, block: BlockIndex) -> Option<Option<Sector>> {
        let (from, bytes) = self.bat.as_ref()?;
        let at = bat::offset_of(block).checked_sub(*from)?;
        let rest = bytes.get(usize::try_from(at).ok()?..)?;
        Some(bat::decode_entry(*rest.first_chunk::<4>()?))
    }

    fn ask(&mut self, asked: Asked) -> Mapped<()> {
        self.asked = Some(asked);
        let (at, len) = self.place(asked);
        Mapped::Read { layer: (), at, len }
    }

    fn place(&self, asked: Asked) -> (u64, u64) {
        match asked {
            Asked::Bat { from, len } => (self.image.bat_at.bytes().saturating_add(from), len),
            Asked::Bitmap { entry, len } => (entry.bytes(), len),
        }
    }
}

/// Looks up ranges of a disk made of several files, the leaf first.
#[derive(Debug)]
pub struct ChainReader {
    layers: Vec<LayerReader>,
}

impl ChainReader {
    /// A reader of a chain, the leaf first.
    ///
    /// # Errors
    /// If the files are no chain: each but the last must be a differencing disk on the next, and the
    /// last must not be one.
    pub fn new(leaf_first: Vec<LayerReader>) -> Result<Self> {
        let parents = leaf_first.iter().skip(1).map(Some).chain([None]);
        for (child, parent) in leaf_first.iter().zip(parents) {
            let named = child.image.parent.as_ref();
            let fits = match (named, parent) {
                (None, None) => true,
                // a raw parent has no identity to compare
                (Some(named), Some(parent)) => named.is_raw() || named.uuid == parent.image.uuid,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !fits {
                return Err(FormatError::Unsupported(format!(
                    "the chain is broken: disk {} has {}, and {} follows it",
                    child.image.uuid,
                    named.map_or("no parent".to_owned(), |p| format!("the parent {}", p.uuid)),
                    parent.map_or("nothing".to_owned(), |p| format!("disk {}", p.image.uuid)),
                )));
            }
        }
        if leaf_first.is_empty() {
            return Err(FormatError::Unsupported("the chain has no layer".to_owned()));
        }
        Ok(Self { layers: leaf_first })
    }

    /// Size of the disk: that of its leaf.
    #[must_use]
    pub fn size(&self) -> SectorCount {
        self.layers.first().map_or(SectorCount(0), |leaf| leaf.image.size)
    }

    /// The content from sector `from` of the disk on, at most `max` sectors of it; never
    /// [`Content::Parent`]. Layers count from 0, the leaf.
    ///
    /// # Errors
    /// If a layer is damaged.
    ///
    /// # Panics
    /// If the range is empty or does not lie within the disk.
    pub fn map(&mut self, from: Sector, max: SectorCount) -> Result<Mapped<usize>> {
        let mut max = max;
        for (layer, reader) in self.layers.iter_mut().enumerate() {
            // A parent shorter than its child has nothing there: zeros.
            let left = SectorCount(reader.image.size.0.saturating_sub(from.0));
            if left.0 == 0 && layer > 0 {
                break;
            }
            if layer > 0 {
                max = max.min(left);
            }
            match reader.map(from, max)? {
                Mapped::Read { at, len, .. } => return Ok(Mapped::Read { layer, at, len }),
                Mapped::Extent { len, content } => match content {
                    Content::Zero => return Ok(Mapped::Extent { len, content: Content::Zero }),
                    Content::Data { at, .. } => {
                        let content = Content::Data { layer, at };
                        return Ok(Mapped::Extent { len, content });
                    }
                    Content::Parent => max = max.min(len),
                },
            }
        }
        Ok(Mapped::Extent { len: max, content: Content::Zero })
    }

    /// Takes the bytes that were asked for of `layer`.
    ///
    /// # Errors
    /// If there are fewer.
    ///
    /// # Panics
    /// If nothing was asked for of that layer.
    pub fn supply(&mut self, layer: usize, bytes: &[u8]) -> Result<()> {
        match self.layers.get_mut(layer) {
            Some(reader) => reader.supply(bytes),
            None => unreachable!("layer {layer} of a chain of {}", self.layers.len()),
        }
    }
}
