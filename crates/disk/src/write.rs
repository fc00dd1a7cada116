//! Guest writes: a place for the block, the data, then the metadata that makes it visible.

use std::rc::Rc;

use futures_util::future::join_all;
use image::owner::{BlockState, Source};
use image::{BLOCK_SECTORS, BlockIndex};
use io::{
    BlockFile, ByteOffset, ByteRange, Durability, IoBuf, IoError, IoErrorKind, Request, Result,
};

use crate::caller::Caller;
use crate::disk::{Gate, Inner, Piece, Writer, file_offset, pieces};
use crate::log::Record;
use crate::space::Place;

/// A request's way into a block of the leaf: its ticket and the place it writes to.
pub(crate) struct Entry {
    _writer: Writer,
    pub(crate) file: Rc<dyn BlockFile>,
    pub(crate) place: Place,
}

/// What came of reserving places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reserved {
    /// There are some.
    Places,
    /// The store has no space for a single one.
    StoreFull,
    /// The file has no range left that a BAT can name.
    FileFull,
}

/// What came of publishing written sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Publish {
    /// They are part of the disk.
    Done,
    /// The log has no room, or too many blocks are changed: a flush makes room for both.
    Full,
    /// The block was forgotten while its data was written.
    Forgotten,
}

impl Inner {
    pub(crate) async fn write(
        self: &Rc<Self>,
        at: ByteOffset,
        from: &IoBuf,
        durability: Durability,
        caller: &Caller,
    ) -> Result<()> {
        self.check_writable()?;
        let (start, len) = self.sectors(ByteRange { start: at, len: from.count() })?;
        {
            let mut stats = self.stats.borrow_mut();
            stats.writes += 1;
            stats.written_bytes += from.count().0;
        }
        let mut parts = pieces(start, len);
        let Some(first) = parts.next() else { return Ok(()) };
        match parts.next() {
            None => self.write_piece(first, from, caller).await?,
            Some(second) => {
                let all = [first, second].into_iter().chain(parts);
                // all of them to their end, also when one fails: a piece that is dropped half-way
                // would leave its ticket, a flush or a refill behind
                let ended = join_all(all.map(|piece| self.write_piece(piece, from, caller))).await;
                ended.into_iter().collect::<Result<Vec<()>>>()?;
            }
        }
        if durability == Durability::Durable {
            self.guest_flush(caller).await?;
        }
        Ok(())
    }

    async fn write_piece(
        self: &Rc<Self>,
        piece: Piece,
        from: &IoBuf,
        caller: &Caller,
    ) -> Result<()> {
        let data = from.slice(piece.at, piece.len as usize * 512);
        if self.is_flat() && self.write_flat(piece.on_disk().start, &data, caller).await? {
            return Ok(());
        }
        loop {
            let entry = self.enter(piece.block, caller).await?;
            if !self.rules.d1_eligible_after_data {
                self.publish(piece, entry.place).await?;
            }
            let at = file_offset(entry.place.data().plus(u64::from(piece.from)));
            let request = Request::Write { at, from: data.clone(), durability: Durability::Cached };
            match entry.file.submit(request).await {
                Ok(()) => {
                    self.flushes.note_data();
                    return self.publish(piece, entry.place).await;
                }
                Err(error) => {
                    // a part of it may have landed
                    self.flushes.note_data();
                    self.expose(piece, entry.place).await?;
                    if error.kind != IoErrorKind::NoSpace {
                        return Err(error);
                    }
                    // a hole inside a block needs space again, and the store is full
                    drop(entry);
                    self.find_space(caller).await?;
                }
            }
        }
    }

    /// Some of a failed write may have landed. In a base layer's new place it would come to light with
    /// the next write to the block, long after the guest was told of the failure and read zeros there:
    /// so the place is made visible now, while the request is under way and anything may be read. Other
    /// layers own single sectors, and what is not owned stays hidden.
    async fn expose(self: &Rc<Self>, piece: Piece, place: Place) -> Result<()> {
        let hidden = {
            let state = self.state.borrow();
            let leaf = state.chain.leaf();
            !leaf.is_differencing() && leaf.table.get(piece.block).is_none()
        };
        if hidden { self.publish(piece, place).await } else { Ok(()) }
    }

    /// Waits for the gate and for a place in the leaf, then takes a ticket. Whatever was waited for
    /// was waited for without one (rule L4).
    pub(crate) async fn enter(
        self: &Rc<Self>,
        block: BlockIndex,
        caller: &Caller,
    ) -> Result<Entry> {
        loop {
            self.pass_gate(caller).await?;
            self.resolve(block).await?;
            if self.gate.get() != Gate::Open {
                continue;
            }
            if let Some(entry) = self.try_enter(block) {
                return Ok(entry);
            }
            self.refill(caller).await?;
        }
    }

    fn try_enter(self: &Rc<Self>, block: BlockIndex) -> Option<Entry> {
        let mut state = self.state.borrow_mut();
        let place = match state.leaf_place(block) {
            Some(place) => place,
            None => {
                let place = state.space.take()?;
                state.assigned.insert(block, place);
                if state.space.is_low() && !self.refilling.get() {
                    let inner = Rc::clone(self);
                    self.refilling.set(true);
                    drop(self.local.spawn(async move { inner.refill_ahead().await }));
                }
                place
            }
        };
        let file = Rc::clone(&state.chain.leaf().file);
        drop(state);
        Some(Entry { _writer: self.writer(), file, place })
    }

    /// Has places reserved, or waits until there may be space.
    async fn refill(self: &Rc<Self>, caller: &Caller) -> Result<()> {
        if self.refilling.get() {
            let changed = self.changed.listen();
            changed.await;
            return Ok(());
        }
        self.refilling.set(true);
        let outcome = self.reserve_batch().await;
        self.refilling.set(false);
        self.changed.notify();
        match outcome? {
            Reserved::Places => Ok(()),
            Reserved::StoreFull => self.find_space(caller).await,
            Reserved::FileFull => match self.reclaim().await? {
                true => Ok(()),
                // no space on the store would help: to hold the request would be to hold it for ever
                false => Err(IoError::new(
                    IoErrorKind::NoSpace,
                    "the layer's file is as long as a VHD can be, 2 TiB, and nothing in it is free: \
                     reconnect the volume, then all that was discarded is free again",
                )),
            },
        }
    }

    /// Waits until there may be space on the store. The caller holds no ticket and resolves again
    /// (rule L4).
    pub(crate) async fn find_space(self: &Rc<Self>, caller: &Caller) -> Result<()> {
        if self.reclaim().await? { Ok(()) } else { self.hold(caller).await }
    }

    /// Makes free what was dropped and is not free yet. That takes a flush (rule D6), and the guest may
    /// send none before the very write ended that waits for the space. False: nothing was dropped.
    async fn reclaim(self: &Rc<Self>) -> Result<bool> {
        // without flushes nothing becomes free: to hold a request then would hide the failure
        self.flushes.check()?;
        let dropped = self.state.borrow().space.has_dropped();
        if !dropped && self.settling.get() == 0 {
            return Ok(false);
        }
        self.flush().await?;
        while self.settling.get() > 0 {
            self.changed.listen().await;
        }
        Ok(true)
    }

    /// Reserves before places run out, so that no request waits for it. Its failure is found by the
    /// request that needs the place.
    async fn refill_ahead(self: Rc<Self>) {
        match self.reserve_batch().await {
            Ok(reserved) => tracing::trace!(?reserved, "reserving ahead"),
            Err(error) => tracing::debug!(%error, "reserving ahead"),
        }
        self.refilling.set(false);
        self.changed.notify();
    }

    async fn reserve_batch(&self) -> Result<Reserved> {
        let (file, batch) = {
            let state = self.state.borrow();
            (Rc::clone(&state.chain.leaf().file), state.space.next_batch())
        };
        let Some(mut batch) = batch else { return Ok(Reserved::FileFull) };
        // A leaf that keeps its space has all of it already: asking a full store for it again fails.
        if self.keep_space.get()
            && let Some(kept) = batch.within(file.info().size)
        {
            self.state.borrow_mut().space.reserved(kept);
            return Ok(Reserved::Places);
        }
        loop {
            match file.reserve(batch.bytes()).await {
                Ok(()) => {
                    self.state.borrow_mut().space.reserved(batch);
                    return Ok(Reserved::Places);
                }
                Err(error) if error.kind == IoErrorKind::NoSpace => {
                    match self.state.borrow_mut().space.smaller(batch) {
                        Some(smaller) => batch = smaller,
                        None => return Ok(Reserved::StoreFull),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes written sectors part of the disk: log record, then map. Returns when it is safe to tell
    /// the guest (rule D2).
    pub(crate) async fn publish(self: &Rc<Self>, piece: Piece, place: Place) -> Result<()> {
        loop {
            match self.try_publish(piece, place) {
                Publish::Done => return Ok(()),
                // write metadata through, then there is room
                Publish::Full => self.flush().await?,
                Publish::Forgotten => self.resolve(piece.block).await?,
            }
        }
    }

    /// Changes nothing unless it is done.
    fn try_publish(&self, piece: Piece, place: Place) -> Publish {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        if state.leaf_place(piece.block) != Some(place) {
            // a discard of the whole block overlapped this write and came after it
            return Publish::Done;
        }
        if state.map.state(piece.block) == BlockState::Unknown {
            return Publish::Forgotten;
        }
        let slot = state.leaf_slot();
        let is_new = state.chain.leaf().table.get(piece.block).is_none();
        let differencing = state.chain.leaf().is_differencing();
        // every sector of a dynamic layer's block is its own from the start: the rest is zero on disk
        let (from, len) = if differencing { (piece.from, piece.len) } else { (0, BLOCK_SECTORS) };
        let owned = state.map.owns(piece.block, slot, from, len);
        if owned && !is_new {
            return Publish::Done;
        }
        if !state.dirty.has_bitmap(piece.block) && state.must_flush() {
            return Publish::Full;
        }
        let map = Record::Map { block: piece.block.0, bitmap: sector32(place) };
        let own = Record::Own { block: piece.block.0, from, len };
        let records = [map, own];
        let records = &records[usize::from(!is_new)..1 + usize::from(differencing)];
        if self.rules.d2_log_before_completion
            && let Some(log) = &mut state.log
            && !log.append(records)
        {
            return Publish::Full;
        }
        if is_new {
            state.assigned.remove(&piece.block);
            state.chain.leaf_mut().table.set(piece.block, place.bitmap());
            state.dirty.table(piece.block);
        }
        state.map.own(piece.block, Source { slot, data: place.data() }, from, len);
        state.dirty.bitmap(piece.block);
        state.make_room(Some(piece.block));
        Publish::Done
    }
}

pub(crate) fn sector32(place: Place) -> u32 {
    u32::try_from(place.bitmap().0).expect("files stay below 2 TiB")
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("place", &self.place).finish_non_exhaustive()
    }
}
