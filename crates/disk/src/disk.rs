//! The disk itself: its state, how it is opened, and how requests enter it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use futures_util::future::try_join_all;
use image::owner::{BlockState, OwnerMap, Slot};
use image::{BLOCK_SECTORS, BlockIndex, SECTOR, SectorCount};
use io::{
    BlockDevice, BlockFile, ByteCount, ByteOffset, ByteRange, DeviceInfo, Extent, Io, IoError,
    IoErrorKind, Local, LogMemory, Request, Result,
};

use crate::blocks::BlockSet;
use crate::cache::{Lease, SharedCache};
use crate::caller::Caller;
use crate::chain::{Chain, Missing, layer_blocks, read_bitmaps};
use crate::clear::Clearing;
use crate::error::OpenError;
use crate::event::{Event, Ticket, Tickets};
use crate::flush::{Dirty, Flushes};
use crate::log::{LogIdentity, MetaLog};
use crate::replay;
use crate::rules::Rules;
use crate::space::{Place, Space};

/// What is known of the metadata log when a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// The volume was closed: there is nothing to replay.
    Clean,
    /// A process died on this very boot and left its log: it is replayed, or the open fails.
    Replay,
    /// The volume was not closed and the log is gone: a power cut.
    Lost,
}

/// What a chain is opened for.
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    Write {
        /// Memory for the log, at least [`crate::LOG_MIN`] bytes.
        memory: Rc<dyn LogMemory>,
        /// Which connection it belongs to.
        identity: LogIdentity,
        /// What is in it.
        state: LogState,
    },
}

/// What to open.
pub struct OpenChain {
    /// The layers' files, the base first, the leaf last.
    pub files: Vec<Rc<dyn BlockFile>>,
    /// Whether the base is a fixed VHD. Its record says so: the file's bytes are the guest's.
    pub fixed_base: bool,
    /// Space once taken is kept: discards only zero, closing cuts nothing off (rule N2).
    pub keep_space: bool,
    /// What for.
    pub access: Access,
    /// What it shares with other disks to remember what it can read again.
    pub cache: SharedCache,
    /// [`Rules::all`], but in proofs.
    pub rules: Rules,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ReadOnly => f.write_str("ReadOnly"),
            Self::Write { identity, state, .. } => {
                f.debug_struct("Write").field("identity", identity).field("state", state).finish()
            }
        }
    }
}

impl std::fmt::Debug for OpenChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenChain").field("layers", &self.files.len()).finish_non_exhaustive()
    }
}

/// Counters since the disk was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Guest reads.
    pub reads: u64,
    /// Guest writes.
    pub writes: u64,
    /// Guest discards and write-zeroes.
    pub clears: u64,
    /// Guest flushes.
    pub flushes: u64,
    /// Bytes that guest reads asked for.
    pub read_bytes: u64,
    /// Bytes that guest writes brought.
    pub written_bytes: u64,
    /// Reads of layer files made for guest reads, bitmaps included.
    pub file_reads: u64,
    /// Requests that wait for space now.
    pub held: u64,
    /// Blocks that the leaf holds.
    pub leaf_blocks: u64,
    /// Bytes of memory that the owner map and the layers' tables take.
    pub map_bytes: u64,
}

impl Stats {
    /// Both together.
    #[must_use]
    pub(crate) fn plus(self, other: &Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            clears: self.clears + other.clears,
            flushes: self.flushes + other.flushes,
            read_bytes: self.read_bytes + other.read_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            file_reads: self.file_reads + other.file_reads,
            held: self.held + other.held,
            leaf_blocks: self.leaf_blocks + other.leaf_blocks,
            map_bytes: self.map_bytes + other.map_bytes,
        }
    }
}

/// Tables of the owner map that are looked at for one to forget.
const EVICT_STEPS: usize = 64;

/// Told the number of held requests.
type HeldChanged = Box<dyn Fn(u64)>;

/// Whether requests may enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Writes, clears and flushes wait; reads go on.
    Shut,
    /// Nothing enters any more.
    Closed,
}

/// All that changes, borrowed for moments only, never across an await.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) chain: Chain,
    pub(crate) map: OwnerMap,
    pub(crate) log: Option<MetaLog>,
    pub(crate) space: Space,
    /// Places that blocks of the leaf got, before their first write was published.
    pub(crate) assigned: HashMap<BlockIndex, Place>,
    /// Blocks of a flat leaf that are known to have their space.
    pub(crate) backed: BlockSet,
    pub(crate) dirty: Dirty,
    /// Blocks whose bitmaps a flush has frozen and not brought to the disk.
    pub(crate) flushing: BTreeSet<BlockIndex>,
    /// Blocks that a request is looking up: see [`LookUp`].
    looked_up: HashMap<BlockIndex, usize>,
    /// Room for the map's tables of mixed blocks.
    pub(crate) tables: Lease,
}

pub(crate) struct Inner {
    pub(crate) local: Local,
    pub(crate) rules: Rules,
    /// Of the leaf that is written now: a snapshot's new one may take its space another way.
    pub(crate) keep_space: Cell<bool>,
    pub(crate) read_only: bool,
    pub(crate) state: RefCell<State>,
    pub(crate) gate: Cell<Gate>,
    pub(crate) tickets: Rc<Tickets>,
    /// Requests that may change the leaf, from their ticket to their end.
    pub(crate) writers: Cell<usize>,
    pub(crate) refilling: Cell<bool>,
    /// Dropped places on their way to be free: the flush that makes their drop durable, older requests,
    /// their clearing.
    pub(crate) settling: Cell<usize>,
    /// Requests under way whose callers went away.
    pub(crate) left_behind: Cell<usize>,
    /// `gate`, `writers`, `refilling`, `settling` or `left_behind` changed.
    pub(crate) changed: Event,
    pub(crate) flushes: Flushes,
    pub(crate) space_freed: Event,
    pub(crate) held: Cell<u64>,
    pub(crate) held_changed: RefCell<Option<HeldChanged>>,
    pub(crate) stats: RefCell<Stats>,
}

/// A request is reading what the layers' files say of a block. Until it has, the block is not made
/// unknown: what it read may be older than what others have changed and flushed since, and to find the
/// block known is how it learns of that.
struct LookUp<'a> {
    inner: &'a Inner,
    block: BlockIndex,
}

impl<'a> LookUp<'a> {
    fn begin(inner: &'a Inner, block: BlockIndex) -> Self {
        *inner.state.borrow_mut().looked_up.entry(block).or_default() += 1;
        Self { inner, block }
    }
}

impl Drop for LookUp<'_> {
    fn drop(&mut self) {
        let looked_up = &mut self.inner.state.borrow_mut().looked_up;
        if let Some(requests) = looked_up.get_mut(&self.block) {
            *requests -= 1;
            if *requests == 0 {
                looked_up.remove(&self.block);
            }
        }
    }
}

/// An open chain as a block device. Clones share it.
#[derive(Clone)]
pub struct Disk {
    pub(crate) inner: Rc<Inner>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("gate", &self.inner.gate.get())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// A request that may change the leaf is under way.
pub(crate) struct Writer {
    _ticket: Ticket,
    inner: Rc<Inner>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.inner.writers.set(self.inner.writers.get() - 1);
        if self.inner.writers.get() == 0 {
            self.inner.changed.notify();
        }
    }
}

impl Disk {
    /// Opens a chain: checks its layers and links, replays or discards the log, and makes what was
    /// replayed durable before anything else.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed then, except that an interrupted replay may be repeated.
    pub async fn open(local: Local, open: OpenChain) -> std::result::Result<Self, OpenError> {
        let (chain, taken) = Chain::open(open.files, open.fixed_base, open.cache.clone()).await?;
        let leaf = chain.leaf();
        let leaf_uuid = leaf.image.uuid;
        let blocks = u32::try_from(leaf.image.size.blocks()).expect("a VHD has 32-bit blocks");
        let space = Space::new(&leaf.image, &taken);
        let read_only = matches!(open.access, Access::ReadOnly);
        let inner = Rc::new(Inner {
            local,
            rules: open.rules,
            keep_space: Cell::new(open.keep_space),
            read_only,
            state: RefCell::new(State {
                chain,
                map: OwnerMap::new(blocks),
                log: None,
                space,
                assigned: HashMap::new(),
                backed: BlockSet::default(),
                dirty: Dirty::default(),
                flushing: BTreeSet::new(),
                looked_up: HashMap::new(),
                tables: Lease::new(open.cache),
            }),
            gate: Cell::new(Gate::Open),
            tickets: Rc::default(),
            writers: Cell::new(0),
            refilling: Cell::new(false),
            settling: Cell::new(0),
            left_behind: Cell::new(0),
            changed: Event::default(),
            flushes: Flushes::default(),
            space_freed: Event::default(),
            held: Cell::new(0),
            held_changed: RefCell::new(None),
            stats: RefCell::default(),
        });
        if let Access::Write { memory, identity, state } = open.access {
            match state {
                // a gap may hold what a failed clearing or an interrupted merge left there
                LogState::Clean => replay::clear_unowned(&inner).await?,
                LogState::Replay => {
                    let exact = inner.rules.d4_exact_log_match;
                    let records = MetaLog::read(&*memory, identity, leaf_uuid, exact)?;
                    replay::apply(&inner, &records).await?;
                    // what the log dropped may be cleared and cut off only once its drop is durable:
                    // a second crash in between must find a BAT that names what is there (D6)
                    inner.flush().await?;
                    replay::clear_unowned(&inner).await?;
                }
                LogState::Lost if inner.rules.d5_zero_unowned => {
                    replay::clear_unowned(&inner).await?;
                }
                LogState::Lost => {}
            }
            let log = MetaLog::create(memory, identity, leaf_uuid)?;
            inner.state.borrow_mut().log = Some(log);
        }
        Ok(Self { inner })
    }

    /// Counters since the disk was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.inner.state.borrow();
        Stats {
            held: self.inner.held.get(),
            leaf_blocks: u64::from(state.chain.leaf().table.allocated()),
            map_bytes: (state.map.memory() + state.chain.memory()) as u64,
            ..*self.inner.stats.borrow()
        }
    }

    /// Calls `told` with the number of held requests whenever it changes: an alarm's source.
    pub fn on_held(&self, told: impl Fn(u64) + 'static) {
        *self.inner.held_changed.borrow_mut() = Some(Box::new(told));
    }

    /// Space may be there again: held requests try once more.
    pub fn space_freed(&self) {
        self.inner.space_freed.notify();
    }
}

impl Inner {
    pub(crate) fn size(&self) -> ByteCount {
        ByteCount(self.state.borrow().chain.leaf().image.size.bytes())
    }

    /// Waits while the gate is shut. A request whose caller went away begins nothing any more.
    pub(crate) async fn pass_gate(&self, caller: &Caller) -> Result<()> {
        loop {
            match self.gate.get() {
                _ if caller.is_gone() => return Err(closed()),
                Gate::Open => return Ok(()),
                Gate::Closed => return Err(closed()),
                Gate::Shut => self.changed.listen().await,
            }
        }
    }

    /// A ticket for a request that may change the leaf. The gate must be open, and nothing may have
    /// been awaited since it was looked at.
    pub(crate) fn writer(self: &Rc<Self>) -> Writer {
        assert_eq!(self.gate.get(), Gate::Open, "a writer entered past the gate");
        self.writers.set(self.writers.get() + 1);
        Writer { _ticket: self.tickets.take(), inner: Rc::clone(self) }
    }

    /// Waits until space may be there again. The caller holds no ticket and resolves again (rule L4).
    /// A request whose caller went away is not held.
    pub(crate) async fn hold(&self, caller: &Caller) -> Result<()> {
        self.set_held(self.held.get() + 1);
        let freed = self.space_freed.listen();
        let closed_first = {
            let closing = async {
                while self.gate.get() != Gate::Closed && !caller.is_gone() {
                    self.changed.listen().await;
                }
            };
            let (freed, closing) = (std::pin::pin!(freed), std::pin::pin!(closing));
            matches!(
                futures_util::future::select(freed, closing).await,
                futures_util::future::Either::Right(_)
            )
        };
        self.set_held(self.held.get() - 1);
        if closed_first { Err(closed()) } else { Ok(()) }
    }

    fn set_held(&self, held: u64) {
        self.held.set(held);
        if let Some(told) = &*self.held_changed.borrow() {
            told(held);
        }
    }

    /// Makes a block known: reads its entries and bitmaps down the chain, the first time or when it was
    /// forgotten since. It stays known until the caller awaits something.
    pub(crate) async fn resolve(&self, block: BlockIndex) -> Result<()> {
        if self.state.borrow().map.state(block) != BlockState::Unknown {
            return Ok(());
        }
        self.look_up(block).await
    }

    async fn look_up(&self, block: BlockIndex) -> Result<()> {
        let _until_known = LookUp::begin(self, block);
        let mut pages = Vec::new();
        let holdings = loop {
            let found = {
                let clip = self.rules.d8_grown_range_is_zero;
                self.state.borrow_mut().chain.holdings(block, clip, &pages)
            };
            match found {
                Ok(holdings) => break holdings,
                // once, or again when a snapshot meanwhile made a parent of the leaf
                Err(missing) => {
                    self.stats.borrow_mut().file_reads += missing.len() as u64;
                    pages.extend(try_join_all(missing.into_iter().map(Missing::read)).await?);
                }
            }
        };
        let holdings: Vec<_> = {
            let mut state = self.state.borrow_mut();
            state.chain.keep(pages);
            holdings.into_iter().map(|h| (Rc::clone(state.chain.file(h.slot())), h)).collect()
        };
        let bitmaps = read_bitmaps(&holdings).await?;
        self.stats.borrow_mut().file_reads += bitmaps.iter().flatten().count() as u64;
        let holdings: Vec<_> = holdings.into_iter().map(|(_, h)| h).collect();
        let mut state = self.state.borrow_mut();
        // another request may have been faster, and may have changed the block since
        if state.map.state(block) == BlockState::Unknown {
            state.map.resolve(block, layer_blocks(&holdings, &bitmaps));
            state.make_room(Some(block));
        }
        Ok(())
    }

    /// Checks a request's range against the device and gives it in sectors.
    pub(crate) fn sectors(&self, range: ByteRange) -> Result<(u64, u64)> {
        if !range.is_within(self.size()) {
            return Err(IoError::new(
                IoErrorKind::OutOfRange,
                format!("request {range:?} beyond the end of the disk ({:?})", self.size()),
            ));
        }
        if !range.start.0.is_multiple_of(SECTOR) || !range.len.0.is_multiple_of(SECTOR) {
            return Err(IoError::new(
                IoErrorKind::Misaligned,
                format!("request {range:?} is not in whole sectors of 512 bytes"),
            ));
        }
        Ok((range.start.0 / SECTOR, range.len.0 / SECTOR))
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(IoError::new(IoErrorKind::ReadOnly, "the disk is open for reading only"));
        }
        Ok(())
    }
}

impl State {
    pub(crate) fn leaf_slot(&self) -> Slot {
        self.chain.leaf_slot()
    }

    /// Forgets mixed blocks until the others have room: such that the layers' files say all of, and not
    /// `block`, which its caller is about to use.
    pub(crate) fn make_room(&mut self, block: Option<BlockIndex>) {
        let Self { map, tables, dirty, flushing, looked_up, .. } = self;
        let pinned = |other| {
            Some(other) == block
                || dirty.has_bitmap(other)
                || flushing.contains(&other)
                || looked_up.contains_key(&other)
        };
        while !tables.covers(map.mixed()) {
            // where nearly all are pinned the search is given up: a flush comes before they are too many
            if !map.evict(EVICT_STEPS, pinned) {
                break;
            }
        }
        tables.shrink(map.mixed());
    }

    /// Whether so many blocks are changed that they must be flushed before another one is.
    pub(crate) fn must_flush(&self) -> bool {
        self.chain.leaf().is_differencing() && self.dirty.bitmaps() >= self.tables.changed()
    }

    /// Where the leaf keeps the block: published, or assigned and not yet written.
    pub(crate) fn leaf_place(&self, block: BlockIndex) -> Option<Place> {
        let published = self.chain.leaf().table.get(block);
        published.and_then(Place::at_bitmap).or_else(|| self.assigned.get(&block).copied())
    }
}

/// A part of a request that lies in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) block: BlockIndex,
    /// First sector within the block.
    pub(crate) from: u32,
    /// Number of sectors.
    pub(crate) len: u32,
    /// Offset of the piece within the request, in bytes.
    pub(crate) at: usize,
}

impl Piece {
    /// Its bytes on the disk.
    pub(crate) fn on_disk(self) -> ByteRange {
        let start = u64::from(self.block.0) * u64::from(BLOCK_SECTORS) + u64::from(self.from);
        ByteRange::new(start * SECTOR, u64::from(self.len) * SECTOR)
    }
}

/// Splits sectors at block boundaries.
pub(crate) fn pieces(start: u64, len: u64) -> impl Iterator<Item = Piece> {
    let per_block = u64::from(BLOCK_SECTORS);
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = len.checked_sub(done).filter(|left| *left > 0)?;
        let sector = start + done;
        let from = sector % per_block;
        let count = left.min(per_block - from);
        let piece = Piece {
            block: BlockIndex(u32::try_from(sector / per_block).expect("checked against the size")),
            from: u32::try_from(from).expect("within a block"),
            len: u32::try_from(count).expect("within a block"),
            at: usize::try_from(done * SECTOR).expect("requests fit memory"),
        };
        done += count;
        Some(piece)
    })
}

/// Sectors of `block` that the disk has: fewer than a block at its end.
pub(crate) fn sectors_in_block(size: SectorCount, block: BlockIndex) -> u32 {
    let start = u64::from(block.0) * u64::from(BLOCK_SECTORS);
    let left = size.0.saturating_sub(start).min(u64::from(BLOCK_SECTORS));
    u32::try_from(left).expect("at most a block")
}

pub(crate) fn closed() -> IoError {
    IoError::new(IoErrorKind::Closed, "the disk was closed")
}

impl BlockDevice for Disk {
    fn info(&self) -> DeviceInfo {
        let leaf = {
            let state = self.inner.state.borrow();
            state.chain.leaf().file.info()
        };
        DeviceInfo {
            size: self.inner.size(),
            logical_block: u32::try_from(SECTOR).expect("512"),
            physical_block: leaf.physical_block.max(4096),
            memory_align: leaf.memory_align,
            max_io: 32 << 20,
            clear_granularity: leaf.clear_granularity.max(4096),
            read_only: self.inner.read_only,
        }
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        let inner = Rc::clone(&self.inner);
        match request {
            Request::Read { at, into } => Box::pin(async move {
                inner.follow().await;
                inner.read(at, &into).await
            }),
            Request::Write { at, from, durability } => {
                Box::pin(self.attended(move |caller| async move {
                    inner.write(at, &from, durability, &caller).await
                }))
            }
            Request::Clear { range, how, effort, durability } => {
                Box::pin(self.attended(move |caller| async move {
                    inner.clear(range, Clearing { how, effort }, durability, &caller).await
                }))
            }
            Request::Flush => Box::pin(
                self.attended(move |caller| async move { inner.guest_flush(&caller).await }),
            ),
        }
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        let inner = Rc::clone(&self.inner);
        Box::pin(async move {
            inner.follow().await;
            inner.extents(range).await
        })
    }
}

/// The byte offset of a sector of a file.
pub(crate) fn file_offset(sector: image::Sector) -> ByteOffset {
    ByteOffset(sector.bytes())
}
