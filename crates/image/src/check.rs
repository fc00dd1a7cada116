//! Checking a whole file: what is wrong with its structures, without changing anything.

use crate::{
    BlockIndex, FormatError, Kind, LayerImage, Opener, PAGE, Repair, Result, SECTOR, Sector, Step,
    Trust, bat,
};

/// Bytes of the BAT read at once.
const BAT_PIECE: u64 = 64 << 10;
/// Findings that are kept; the others are counted. A file of nothing but damage stays readable.
const KEPT: usize = 1000;

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// The headers cannot be read at all.
    #[error("the file cannot be opened: {0}")]
    Unreadable(FormatError),
    /// It was put right on opening.
    #[error("put right on opening: {0:?}")]
    Repaired(Repair),
    /// A block outside the file, or in its headers.
    #[error("{block:?} is said to stand at {at:?}, which is outside the file or in its headers")]
    BlockOutside {
        /// Which block.
        block: BlockIndex,
        /// Its BAT entry.
        at: Sector,
    },
    /// Two blocks share bytes of the file.
    #[error("{first:?} and {second:?} share bytes of the file at {at:?}")]
    BlocksOverlap {
        /// The one that starts earlier.
        first: BlockIndex,
        /// The one that starts later.
        second: BlockIndex,
        /// Where the later one starts.
        at: Sector,
    },
    /// A block's data does not start on a page, where our files have it.
    #[error("the data of {block:?} does not start on a 4 KiB boundary ({at:?})")]
    BlockUnaligned {
        /// Which block.
        block: BlockIndex,
        /// Its BAT entry.
        at: Sector,
    },
    /// The BAT of a file of ours is not padded with ones, so the disk could not grow into its page.
    #[error("the BAT is not padded with ones")]
    BatPadding,
    /// A dynamic layer of ours has a block whose bitmap is not all ones: other tools would read what
    /// stands on disk there, we would read zeros.
    #[error("the bitmap of {block:?} is not all ones in a dynamic layer")]
    BitmapNotFull {
        /// Which block.
        block: BlockIndex,
    },
    /// A differencing layer has a block without a single sector of its own: only space is lost.
    #[error("{block:?} is allocated and holds nothing")]
    BlockEmpty {
        /// Which block.
        block: BlockIndex,
    },
}

impl Finding {
    /// Whether content is, or may be, wrong or lost. The others are normal after a crash, or cost
    /// only space or speed.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Unreadable(_)
            | Self::BlockOutside { .. }
            | Self::BlocksOverlap { .. }
            | Self::BitmapNotFull { .. } => true,
            Self::Repaired(_)
            | Self::BlockUnaligned { .. }
            | Self::BatPadding
            | Self::BlockEmpty { .. } => false,
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Report {
    /// The opened file, if it could be opened.
    pub image: Option<LayerImage>,
    /// What is wrong, in the order found; at most 1000.
    pub findings: Vec<Finding>,
    /// Findings that were not kept.
    pub more: u64,
    /// Blocks allocated.
    pub allocated: u64,
    /// The first sector after everything that the file's structures name, without the footer.
    pub end: Sector,
}

/// What the checker needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckStep {
    /// Read `len` bytes at byte `at` and supply them.
    Read {
        /// Byte offset.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// The check is over.
    Done(Report),
}

/// Checks a file without doing I/O itself.
#[derive(Debug)]
pub struct Checker {
    file_len: u64,
    trust: Trust,
    report: Report,
    phase: Phase,
    asked: Option<(u64, u64)>,
    supplied: Option<Vec<u8>>,
    /// Allocated blocks as (BAT entry, block), both as the file stores them: eight bytes each.
    blocks: Vec<(u32, u32)>,
}

#[derive(Debug)]
enum Phase {
    Opening(Box<Opener>),
    /// Bytes of the BAT that were read.
    Bat {
        read: u64,
    },
    /// Bitmaps that were read.
    Bitmaps {
        next: usize,
    },
    Over,
}

impl Checker {
    /// Starts to check a file of `file_len` bytes.
    #[must_use]
    pub fn new(file_len: u64, trust: Trust) -> Self {
        Self {
            file_len,
            trust,
            report: Report::default(),
            phase: Phase::Opening(Box::new(Opener::new(file_len, trust))),
            asked: None,
            supplied: None,
            blocks: Vec::new(),
        }
    }

    /// What to do next.
    pub fn step(&mut self) -> CheckStep {
        loop {
            if let (Some((at, len)), None) = (self.asked, &self.supplied) {
                return CheckStep::Read { at, len };
            }
            self.asked = None;
            let supplied = self.supplied.take();
            match &mut self.phase {
                Phase::Opening(opener) => {
                    let fed = supplied.map_or(Ok(()), |bytes| opener.supply(&bytes));
                    match fed.and_then(|()| opener.step()) {
                        Ok(Step::Read { at, len }) => self.asked = Some((at, len)),
                        Ok(Step::Done(image)) => self.opened(image),
                        Err(error) => {
                            self.find(Finding::Unreadable(error));
                            self.phase = Phase::Over;
                        }
                    }
                }
                Phase::Bat { read } => {
                    let read = *read;
                    self.bat(read, supplied);
                }
                Phase::Bitmaps { next } => {
                    let next = *next;
                    self.bitmap(next, supplied);
                }
                Phase::Over => return CheckStep::Done(std::mem::take(&mut self.report)),
            }
        }
    }

    /// Takes the bytes that were asked for.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn supply(&mut self, bytes: &[u8]) -> Result<()> {
        let (at, wanted) = self.asked.unwrap_or_default();
        if bytes.len() as u64 != wanted {
            return Err(FormatError::ShortRead { at, wanted, got: bytes.len() as u64 });
        }
        self.supplied = Some(bytes.to_vec());
        Ok(())
    }

    fn opened(&mut self, image: LayerImage) {
        for repair in &image.repairs {
            self.find(Finding::Repaired(repair.clone()));
        }
        self.report.end = image.first_free;
        self.phase = if image.kind == Kind::Fixed { Phase::Over } else { Phase::Bat { read: 0 } };
        self.report.image = Some(image);
    }

    fn bat(&mut self, read: u64, supplied: Option<Vec<u8>>) {
        let Some(image) = self.report.image.clone() else { return };
        let table = if self.trust == Trust::Own {
            crate::create::bat_pages_bytes(&image)
        } else {
            image.bat_bytes()
        };
        let mut read = read;
        if let Some(bytes) = supplied {
            let mut padded = true;
            for (entry, index) in bat::decode(&bytes).zip(read / bat::ENTRY..) {
                let block = BlockIndex(u32::try_from(index).unwrap_or(u32::MAX));
                if block.0 >= image.bat_entries {
                    padded &= entry.is_none();
                } else if let Some(at) = entry {
                    self.block(&image, block, at);
                }
            }
            if !padded && self.trust == Trust::Own {
                self.find(Finding::BatPadding);
            }
            read = read.saturating_add(bytes.len() as u64);
        }
        let left = table.saturating_sub(read);
        if left > 0 {
            self.phase = Phase::Bat { read };
            let at = image.bat_at.bytes().saturating_add(read);
            self.asked = Some((at, left.min(BAT_PIECE)));
            return;
        }
        self.overlaps(&image);
        self.phase = Phase::Bitmaps { next: 0 };
    }

    fn block(&mut self, image: &LayerImage, block: BlockIndex, at: Sector) {
        self.report.allocated = self.report.allocated.saturating_add(1);
        if !image.block_fits(at, self.file_len) {
            return self.find(Finding::BlockOutside { block, at });
        }
        if self.trust == Trust::Own && !image.is_aligned(at) {
            self.find(Finding::BlockUnaligned { block, at });
        }
        let end = image.data_at(at).plus(u64::from(image.block_sectors));
        self.report.end = self.report.end.max(end);
        self.blocks.push((u32::try_from(at.0).unwrap_or(u32::MAX), block.0));
    }

    fn overlaps(&mut self, image: &LayerImage) {
        self.blocks.sort_unstable();
        let length =
            u64::from(image.bitmap_sectors()).saturating_add(u64::from(image.block_sectors));
        let mut found = Vec::new();
        let mut more = 0u64;
        for (left, right) in self.blocks.iter().zip(self.blocks.iter().skip(1)) {
            if u64::from(right.0.saturating_sub(left.0)) < length {
                if found.len() < KEPT {
                    found.push(Finding::BlocksOverlap {
                        first: BlockIndex(left.1),
                        second: BlockIndex(right.1),
                        at: Sector(u64::from(right.0)),
                    });
                } else {
                    more = more.saturating_add(1);
                }
            }
        }
        found.into_iter().for_each(|finding| self.find(finding));
        self.report.more = self.report.more.saturating_add(more);
    }

    /// Bitmaps are looked at in files of ours only: in others every content of them is right.
    fn bitmap(&mut self, next: usize, supplied: Option<Vec<u8>>) {
        let kind = self.report.image.as_ref().map(|image| image.kind);
        let mut next = next;
        if let (Some(bits), Some((_, block))) = (supplied, self.blocks.get(next)) {
            let block = BlockIndex(*block);
            if kind == Some(Kind::Dynamic) && bits.iter().any(|byte| *byte != 0xff) {
                self.find(Finding::BitmapNotFull { block });
            }
            if kind == Some(Kind::Differencing) && bits.iter().all(|byte| *byte == 0) {
                self.find(Finding::BlockEmpty { block });
            }
            next = next.saturating_add(1);
        }
        match self.blocks.get(next) {
            Some((entry, _)) if self.trust == Trust::Own => {
                self.phase = Phase::Bitmaps { next };
                self.asked = Some((Sector(u64::from(*entry)).bytes(), SECTOR));
            }
            Some(_) | None => self.phase = Phase::Over,
        }
    }

    fn find(&mut self, finding: Finding) {
        if self.report.findings.len() < KEPT {
            self.report.findings.push(finding);
        } else {
            self.report.more = self.report.more.saturating_add(1);
        }
    }
}

const _: () = assert!(BAT_PIECE.is_multiple_of(PAGE));
