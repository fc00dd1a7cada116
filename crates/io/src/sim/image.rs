//! Contents of a simulated file, in pages of 4 KiB: what reads see, what a power cut leaves, and the
//! changes in between.
//!
//! ```text
//!   view     = durable + all landed changes, in order            what reads see
//!   history  : page -> [change, change, ..]  (oldest first)      landed, not yet flushed
//!   durable                                                      survives a cut for sure
//! ```
//!
//! At a cut, each 512-byte sector takes the durable state or that of any change in its history:
//! changes are kept or lost sector by sector, in any order.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::rng::SplitMix64;
use crate::units::ByteCount;

/// Unit of space, in bytes.
pub(super) const PAGE: u64 = 4096;
/// Unit of tearing, in bytes.
pub(super) const SECTOR: u64 = 512;
/// The same as lengths in memory.
const PAGE_LEN: usize = 4096;
const SECTOR_LEN: usize = 512;
/// All eight sectors of a page.
const ALL: u8 = 0xFF;

type Bytes = [u8; PAGE_LEN];

/// Space that is taken: by zeros that nobody wrote (a reservation), or by data.
#[derive(Clone, Debug)]
enum Page {
    Zero,
    Data(Rc<Bytes>),
}

/// What a change leaves in the sectors of its mask.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Data(Rc<Bytes>),
    Zero,
    Hole,
}

/// What a page is, for extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageKind {
    Data,
    Zero,
    Hole,
}

/// Length and pages at one moment. No page is a hole.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pub(super) len: u64,
    pages: BTreeMap<u64, Page>,
}

impl Image {
    pub(super) fn pages_taken(&self) -> u64 {
        self.pages.len() as u64
    }

    pub(super) fn kind(&self, page: u64) -> PageKind {
        match self.pages.get(&page) {
            Some(Page::Data(_)) => PageKind::Data,
            Some(Page::Zero) => PageKind::Zero,
            None => PageKind::Hole,
        }
    }

    /// The first page at or after `page` that takes space.
    pub(super) fn next_taken(&self, page: u64) -> Option<u64> {
        self.pages.range(page..).next().map(|(number, _)| *number)
    }

    pub(super) fn read(&self, at: u64, into: &mut [u8]) {
        for (page, within, part) in pieces(at, into.len()) {
            let to = &mut into[part];
            match self.pages.get(&page) {
                Some(Page::Data(bytes)) => to.copy_from_slice(&bytes[within..within + to.len()]),
                Some(Page::Zero) | None => to.fill(0),
            }
        }
    }

    fn apply(&mut self, page: u64, mask: u8, content: &Content) {
        match content {
            Content::Data(bytes) if mask == ALL => {
                self.pages.insert(page, Page::Data(Rc::clone(bytes)));
            }
            Content::Data(bytes) => self.patch(page, mask, |to, at| {
                to.copy_from_slice(&bytes[at..at + SECTOR_LEN]);
            }),
            Content::Zero if mask == ALL => {
                self.pages.insert(page, Page::Zero);
            }
            Content::Hole if mask == ALL => {
                self.pages.remove(&page);
            }
            Content::Zero | Content::Hole => {
                if self.kind(page) == PageKind::Data {
                    self.patch(page, mask, |to, _| to.fill(0));
                } else if matches!(content, Content::Zero) {
                    self.pages.entry(page).or_insert(Page::Zero);
                }
            }
        }
    }

    fn patch(&mut self, page: u64, mask: u8, change: impl Fn(&mut [u8], usize)) {
        let slot = self.pages.entry(page).or_insert(Page::Zero);
        let mut bytes = match slot {
            Page::Data(bytes) => Rc::clone(bytes),
            Page::Zero => Rc::new([0; PAGE_LEN]),
        };
        *slot = Page::Zero; // lets go of the old bytes, so that make_mut need not copy
        let whole = Rc::make_mut(&mut bytes);
        for sector in (0..8_usize).filter(|s| mask & (1 << s) != 0) {
            let at = sector * SECTOR_LEN;
            change(&mut whole[at..at + SECTOR_LEN], at);
        }
        *slot = Page::Data(bytes);
    }

    /// Drops what lies beyond `len`.
    fn shorten(&mut self, len: u64) {
        let rest = self.pages.split_off(&len.div_ceil(PAGE));
        drop(rest);
        let (page, within) = (len / PAGE, len % PAGE);
        if within > 0 {
            self.apply(page, mask_of(within, PAGE), &Content::Zero);
        }
        self.len = len;
    }
}

/// One landed, unflushed change of some sectors of a page.
#[derive(Clone, Debug)]
struct Change {
    number: u64,
    mask: u8,
    content: Content,
}

/// How a cut treats the unflushed changes; each is a behaviour of real disks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tearing {
    /// Nothing since the last flush survives.
    LoseAll,
    /// Everything landed survives.
    KeepAll,
    /// Whole changes survive or not.
    ByChange(u64),
    /// Each sector of each change for itself.
    BySector,
}

impl Tearing {
    pub(super) fn draw(rng: &mut SplitMix64) -> Self {
        match rng.below(6) {
            0 => Self::LoseAll,
            1 => Self::KeepAll,
            2 | 3 => Self::ByChange(rng.next_u64()),
            _ => Self::BySector,
        }
    }

    /// Which sectors of a change survive.
    fn kept(self, number: u64, rng: &mut SplitMix64) -> u8 {
        match self {
            Self::LoseAll => 0,
            Self::KeepAll => ALL,
            Self::ByChange(salt) => {
                if SplitMix64::new(salt ^ number.wrapping_mul(0x2545_F491_4F6C_DD1D)).chance(50) {
                    ALL
                } else {
                    0
                }
            }
            Self::BySector => rng.next_u64().to_le_bytes()[0],
        }
    }
}

/// A file's view, its durable state and the way from one to the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Layers {
    pub(super) view: Image,
    durable: Image,
    history: BTreeMap<u64, Vec<Change>>,
    lengths: Vec<(u64, u64)>,
    /// Number of the latest landed change.
    landed: u64,
}

impl Layers {
    pub(super) fn landed(&self) -> u64 {
        self.landed
    }

    fn number(&mut self) -> u64 {
        self.landed += 1;
        self.landed
    }

    fn change(&mut self, number: u64, page: u64, mask: u8, content: Content) {
        self.view.apply(page, mask, &content);
        self.history.entry(page).or_default().push(Change { number, mask, content });
    }

    fn lengthen(&mut self, number: u64, len: u64) {
        if len > self.view.len {
            self.view.len = len;
            self.lengths.push((number, len));
        }
    }

    /// Lands a write. Offset and length are whole sectors.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> u64 {
        let number = self.number();
        for (page, within, part) in pieces(at, bytes.len()) {
            let mut whole = [0; PAGE_LEN];
            let from = &bytes[part];
            whole[within..within + from.len()].copy_from_slice(from);
            let mask = mask_of(within as u64, (within + from.len()) as u64);
            self.change(number, page, mask, Content::Data(Rc::new(whole)));
        }
        self.lengthen(number, at + bytes.len() as u64);
        number
    }

    /// Lands a clear of whole sectors: whole pages lose their space when `holes` is set.
    pub(super) fn clear(&mut self, at: u64, len: u64, holes: bool) -> u64 {
        let number = self.number();
        let end = at + len;
        for page in self.pages_known(at / PAGE, end.div_ceil(PAGE), !holes) {
            let (from, to) = ((page * PAGE).max(at), ((page + 1) * PAGE).min(end));
            let mask = mask_of(from - page * PAGE, to - page * PAGE);
            let content = if holes { Content::Hole } else { Content::Zero };
            self.change(number, page, mask, content);
        }
        number
    }

    /// Lands a reservation: holes in the range become space that reads as zero.
    pub(super) fn reserve(&mut self, at: u64, len: u64) -> u64 {
        let number = self.number();
        for page in at / PAGE..(at + len).div_ceil(PAGE) {
            if self.view.kind(page) == PageKind::Hole {
                self.change(number, page, ALL, Content::Zero);
            }
        }
        self.lengthen(number, at + len);
        number
    }

    pub(super) fn truncate(&mut self, len: u64) -> u64 {
        let number = self.number();
        if len < self.view.len {
            for page in self.pages_known(len / PAGE, u64::MAX / PAGE, false) {
                let from = len.saturating_sub(page * PAGE).min(PAGE);
                self.change(number, page, mask_of(from, PAGE), Content::Hole);
            }
        }
        self.view.len = len;
        self.lengths.push((number, len));
        number
    }

    /// Pages from `from` up to `to` that any state of the file may hold; with `all`, simply all.
    fn pages_known(&self, from: u64, to: u64, all: bool) -> Vec<u64> {
        if all {
            return (from..to).collect();
        }
        let mut pages: Vec<u64> = self.view.pages.range(from..to).map(|(p, _)| *p).collect();
        pages.extend(self.durable.pages.range(from..to).map(|(p, _)| *p));
        pages.extend(self.history.range(from..to).map(|(p, _)| *p));
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// A finished flush: changes up to `upto` are durable.
    pub(super) fn flushed(&mut self, upto: u64) {
        // First: a cut-off takes what stood there, not what was written there after it.
        self.settle_length(upto);
        let durable = &mut self.durable;
        self.history.retain(|page, changes| {
            changes.retain(|change| {
                let covered = change.number <= upto;
                if covered {
                    durable.apply(*page, change.mask, &change.content);
                }
                !covered
            });
            !changes.is_empty()
        });
    }

    fn settle_length(&mut self, upto: u64) {
        let covered = self.lengths.partition_point(|(number, _)| *number <= upto);
        for (_, len) in self.lengths.drain(..covered) {
            if len < self.durable.len {
                self.durable.shorten(len);
            }
            self.durable.len = len;
        }
    }

    /// Makes one change durable at once (FUA), and with it the length that it needs. Older changes
    /// of the same sectors can no longer surface.
    pub(super) fn made_durable(&mut self, number: u64, at: u64, len: u64) {
        for page in at / PAGE..(at + len).div_ceil(PAGE) {
            let Some(changes) = self.history.get_mut(&page) else { continue };
            let Some(position) = changes.iter().position(|c| c.number == number) else { continue };
            let change = changes.remove(position);
            for older in &mut changes[..position] {
                older.mask &= !change.mask;
            }
            changes.retain(|c| c.mask != 0);
            if changes.is_empty() {
                self.history.remove(&page);
            }
            self.durable.apply(page, change.mask, &change.content);
        }
        self.settle_length(number);
    }

    /// A failed flush: what it covered may never become durable, whatever later flushes say.
    pub(super) fn flush_failed(&mut self, upto: u64, rng: &mut SplitMix64) {
        self.history.retain(|_, changes| {
            changes.retain(|c| c.number > upto || rng.chance(50));
            !changes.is_empty()
        });
    }

    /// What a power cut leaves.
    pub(super) fn cut(&mut self, tearing: Tearing, rng: &mut SplitMix64) {
        for (page, changes) in std::mem::take(&mut self.history) {
            for change in changes {
                let mask = change.mask & tearing.kept(change.number, rng);
                if mask != 0 {
                    self.durable.apply(page, mask, &change.content);
                }
            }
        }
        let choice = match tearing {
            Tearing::LoseAll => None,
            Tearing::KeepAll => self.lengths.last(),
            Tearing::ByChange(_) | Tearing::BySector => {
                let pick = rng.below(self.lengths.len() as u64 + 1);
                usize::try_from(pick).ok().and_then(|pick| self.lengths.get(pick))
            }
        };
        let len = choice.map_or(self.durable.len, |(_, len)| *len);
        self.durable.shorten(len);
        self.lengths.clear();
        self.view = self.durable.clone();
    }
}

/// The pages that `len` bytes from `at` touch: (page, offset within it, range within the bytes).
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let (page, within) = ((at + done as u64) / PAGE, (at + done as u64) % PAGE);
            let start = done;
            let part = (PAGE - within).min((len - done) as u64);
            done += ByteCount(part).as_len();
            (page, ByteCount(within).as_len(), start..done)
        })
    })
}

/// The sectors of a page from byte `from` up to `to`; a sector that is touched in part counts.
fn mask_of(from: u64, to: u64) -> u8 {
    let (first, last) = (from / SECTOR, to.div_ceil(SECTOR));
    (first..last).fold(0, |mask, sector| mask | (1 << sector))
}
