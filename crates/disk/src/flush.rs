//! Flush: the one way by which metadata reaches the disk.
//!
//! ```text
//!   freeze a copy of what is eligible, switch the log to its other half
//!   data barrier          every write that completed before is durable
//!   bitmaps, barrier      a bit is never durable before its data (D1), nor after its BAT entry (D9)
//!   BAT pages, barrier
//!   empty the frozen half of the log; clear dropped places, then let them be used again (D6)
//! ```
//!
//! One flush runs at a time; whoever asks while one runs shares the next. Overwritten data needs the
//! first barrier only, and a flush after nothing was written none.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use image::{Bitmap, BlockIndex, PAGE, Sector};
use io::{BlockFile, Clear, Durability, Effort, IoBuf, IoError, IoErrorKind, Request, Result};

use crate::caller::Caller;
use crate::disk::{Inner, State, file_offset};
use crate::event::Event;
use crate::log::Frozen;
use crate::space::{Dropped, Place};
use crate::table;

/// Metadata pages written, and dropped places cleared, at a time.
const IN_FLIGHT: usize = 32;

/// Metadata of the leaf that the disk does not have yet.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    bitmaps: BTreeSet<BlockIndex>,
    pages: BTreeSet<u32>,
}

impl Dirty {
    /// The block's bitmap changed.
    pub(crate) fn bitmap(&mut self, block: BlockIndex) {
        self.bitmaps.insert(block);
    }

    pub(crate) fn has_bitmap(&self, block: BlockIndex) -> bool {
        self.bitmaps.contains(&block)
    }

    /// How many blocks' bitmaps changed.
    pub(crate) fn bitmaps(&self) -> usize {
        self.bitmaps.len()
    }

    /// The block's BAT entry changed.
    pub(crate) fn table(&mut self, block: BlockIndex) {
        self.pages.insert(block.0 / table::ENTRIES);
    }

    fn is_empty(&self) -> bool {
        self.bitmaps.is_empty() && self.pages.is_empty()
    }
}

/// Which flush runs, and which are over.
#[derive(Debug)]
pub(crate) struct Flushes {
    /// Data reached the leaf since the last flush froze its metadata. Set when a write has ended, not
    /// when it begins: the barrier of a flush that runs meanwhile may not cover it. Set from the
    /// start: a process that died here may have left writes that it acknowledged.
    unflushed: Cell<bool>,
    started: Cell<u64>,
    done: Cell<u64>,
    running: Cell<bool>,
    poisoned: Cell<bool>,
    ended: Event,
}

impl Default for Flushes {
    fn default() -> Self {
        Self {
            unflushed: Cell::new(true),
            started: Cell::new(0),
            done: Cell::new(0),
            running: Cell::new(false),
            poisoned: Cell::new(false),
            ended: Event::default(),
        }
    }
}

impl Flushes {
    /// Fails once a flush has failed (rule D7).
    pub(crate) fn check(&self) -> Result<()> {
        if self.poisoned.get() {
            return Err(IoError::new(
                IoErrorKind::Poisoned,
                "an earlier flush failed: reconnect the volume, and check what was written since",
            ));
        }
        Ok(())
    }

    /// A write or a clear of the leaf's data has ended; its caller does not know yet.
    pub(crate) fn note_data(&self) {
        self.unflushed.set(true);
    }
}

/// The metadata of one moment, on its way to the disk.
struct FrozenMeta {
    file: Rc<dyn BlockFile>,
    /// The blocks whose bitmaps these are.
    blocks: BTreeSet<BlockIndex>,
    /// Place and bitmap; None where all bits are set.
    bitmaps: Vec<(Place, Option<Box<Bitmap>>)>,
    /// Sector and bytes of BAT pages.
    pages: Vec<(Sector, Vec<u8>)>,
    log: Option<Frozen>,
    dropped: Vec<Dropped>,
}

impl Inner {
    /// A flush that the guest asked for.
    pub(crate) async fn guest_flush(self: &Rc<Self>, caller: &Caller) -> Result<()> {
        self.stats.borrow_mut().flushes += 1;
        self.pass_gate(caller).await?;
        self.flush().await
    }

    /// Makes every completed write durable.
    pub(crate) async fn flush(self: &Rc<Self>) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let flushes = &self.flushes;
        // the one that runs may have begun before our writes ended
        let wanted = flushes.started.get() + 1;
        loop {
            flushes.check()?;
            if flushes.done.get() >= wanted {
                return Ok(());
            }
            if flushes.running.get() {
                let ended = flushes.ended.listen();
                ended.await;
                continue;
            }
            flushes.running.set(true);
            let number = flushes.started.get() + 1;
            flushes.started.set(number);
            let outcome = self.flush_once().await;
            flushes.running.set(false);
            if outcome.is_ok() {
                flushes.done.set(number);
            } else {
                flushes.unflushed.set(true);
                flushes.poisoned.set(self.rules.d7_poison);
                // nothing becomes free any more: who is held for want of space is told
                self.space_freed.notify();
            }
            flushes.ended.notify();
            outcome?;
        }
    }

    async fn flush_once(self: &Rc<Self>) -> Result<()> {
        let (frozen, file) = {
            let mut guard = self.state.borrow_mut();
            let state = &mut *guard;
            (state.freeze(), Rc::clone(&state.chain.leaf().file))
        };
        // nothing was changed since the last barrier: the disk has it all
        if !self.flushes.unflushed.replace(false) && frozen.is_none() {
            return Ok(());
        }
        let Some(frozen) = frozen else { return file.submit(Request::Flush).await };
        // from here on: whoever looks for space must know that some is to come
        self.settling.set(self.settling.get() + frozen.dropped.len());
        if let Err(error) = self.write_through(&frozen).await {
            self.settling.set(self.settling.get() - frozen.dropped.len());
            self.changed.notify();
            return Err(error);
        }
        {
            let mut guard = self.state.borrow_mut();
            let state = &mut *guard;
            // after a failure they stay: nothing but the map has their bits then
            for block in &frozen.blocks {
                state.flushing.remove(block);
            }
            state.make_room(None);
            if let (Some(half), Some(log)) = (&frozen.log, &mut state.log) {
                log.trim(half);
            }
        }
        if !frozen.dropped.is_empty() {
            // one task for all of them: a discard of the whole disk drops every block it has
            let (inner, file) = (Rc::clone(self), frozen.file);
            drop(self.local.spawn(async move {
                iter(frozen.dropped)
                    .for_each_concurrent(IN_FLIGHT, |dropped| inner.settle(&*file, dropped))
                    .await;
            }));
        }
        Ok(())
    }

    /// The barrier behind the data, then what was frozen, in its order.
    async fn write_through(&self, frozen: &FrozenMeta) -> Result<()> {
        frozen.file.submit(Request::Flush).await?;
        if self.rules.d9_bitmap_before_bat {
            write_bitmaps(frozen).await?;
            write_pages(frozen).await
        } else {
            write_pages(frozen).await?;
            write_bitmaps(frozen).await
        }
    }

    /// Clears a dropped place once nobody can be using it, and lets it be used again.
    async fn settle(&self, file: &dyn BlockFile, dropped: Dropped) {
        self.tickets.wait_below(dropped.bound).await;
        let range = dropped.place.bytes();
        let (how, effort, durability) = (Clear::Deallocate, Effort::Any, Durability::Cached);
        let request = Request::Clear { range, how, effort, durability };
        match file.submit(request).await {
            Ok(()) => {
                let mut state = self.state.borrow_mut();
                // a snapshot may have made another layer the leaf
                if std::ptr::addr_eq(Rc::as_ptr(&state.chain.leaf().file), std::ptr::from_ref(file))
                {
                    state.space.freed(dropped.place);
                }
                drop(state);
                self.space_freed.notify();
            }
            // the place is not zero: it stays unused until the volume is opened again
            Err(error) => tracing::warn!(%error, "clearing a dropped block"),
        }
        self.settling.set(self.settling.get() - 1);
        self.changed.notify();
    }
}

impl State {
    fn freeze(&mut self) -> Option<FrozenMeta> {
        if self.dirty.is_empty() {
            return None;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let slot = self.leaf_slot();
        let leaf = self.chain.leaf();
        let differencing = leaf.is_differencing();
        self.flushing.extend(&dirty.bitmaps);
        let bitmaps = dirty
            .bitmaps
            .iter()
            .filter_map(|block| {
                let place = leaf.table.get(*block).and_then(Place::at_bitmap)?;
                let bitmap = differencing.then(|| self.map.bitmap_of(*block, slot));
                Some((place, bitmap.filter(|bits| !bits.is_full()).map(Box::new)))
            })
            .collect();
        let pages = dirty
            .pages
            .into_iter()
            .map(|page| {
                let at = leaf.image.bat_at.plus(u64::from(page) * PAGE / 512);
                (at, leaf.table.page_bytes(page))
            })
            .collect();
        let file = Rc::clone(&leaf.file);
        let log = self.log.as_mut().map(crate::log::MetaLog::freeze);
        let blocks = dirty.bitmaps;
        Some(FrozenMeta { file, blocks, bitmaps, pages, log, dropped: self.space.take_dropped() })
    }
}

async fn write_bitmaps(frozen: &FrozenMeta) -> Result<()> {
    if frozen.bitmaps.is_empty() {
        return Ok(());
    }
    write_all(
        &*frozen.file,
        frozen.bitmaps.iter().map(|(place, bitmap)| {
            let page = IoBuf::zeroed(usize::try_from(PAGE).expect("a page"));
            let bits = bitmap.as_ref().map_or([0xFF; 512], |b| *b.as_bytes());
            page.write_at(page.len() - bits.len(), &bits);
            (place.start(), page)
        }),
    )
    .await?;
    frozen.file.submit(Request::Flush).await
}

async fn write_pages(frozen: &FrozenMeta) -> Result<()> {
    if frozen.pages.is_empty() {
        return Ok(());
    }
    write_all(&*frozen.file, frozen.pages.iter().map(|(at, bytes)| (*at, IoBuf::copied(bytes))))
        .await?;
    frozen.file.submit(Request::Flush).await
}

/// Writes pages, a bounded number at a time.
async fn write_all(
    file: &dyn BlockFile,
    pages: impl Iterator<Item = (Sector, IoBuf)>,
) -> Result<()> {
    iter(pages.map(|(at, from)| {
        Ok(file.submit(Request::Write {
            at: file_offset(at),
            from,
            durability: Durability::Cached,
        }))
    }))
    .try_buffer_unordered(IN_FLIGHT)
    .try_for_each(|()| std::future::ready(Ok(())))
    .await
    .map_err(|error: IoError| error.during("writing metadata of the leaf"))
}

impl std::fmt::Debug for FrozenMeta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenMeta")
            .field("bitmaps", &self.bitmaps.len())
            .field("pages", &self.pages.len())
            .finish_non_exhaustive()
    }
}
