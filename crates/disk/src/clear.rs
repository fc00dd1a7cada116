//! Guest discards and write-zeroes: whole blocks are given back, ranges inside blocks are cleared in
//! place, and what an ancestor would show through stays the leaf's own, as zero.

use std::rc::Rc;

use futures_util::future::join_all;
use image::owner::{BlockState, Place as Found};
use io::{ByteRange, Clear, Durability, Effort, IoErrorKind, Request, Result};

use crate::caller::Caller;
use crate::disk::{Gate, Inner, Piece, pieces, sectors_in_block};
use crate::log::Record;
use crate::space::Dropped;

/// How a guest wants a range cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clearing {
    pub(crate) how: Clear,
    /// Dropping a block never writes; where a range is cleared in place, the leaf's file knows.
    pub(crate) effort: Effort,
}

/// What became of a part of a clear, or what is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It reads as zero already, or does now.
    Done,
    /// The log has no room for the removal.
    LogFull,
    /// The leaf's place for the block is to be cleared, and owned.
    InPlace,
}

impl Inner {
    pub(crate) async fn clear(
        self: &Rc<Self>,
        range: ByteRange,
        mut clearing: Clearing,
        durability: Durability,
        caller: &Caller,
    ) -> Result<()> {
        self.check_writable()?;
        if self.keep_space.get() {
            clearing.how = Clear::KeepSpace;
        }
        let (start, len) = self.sectors(range)?;
        self.stats.borrow_mut().clears += 1;
        // a clear may span the whole disk: a bounded number of blocks at a time
        let mut parts = pieces(start, len);
        loop {
            let batch: Vec<Piece> = parts.by_ref().take(64).collect();
            if batch.is_empty() {
                break;
            }
            // all of them to their end, also when one fails: see `write`
            let cleared = batch.into_iter().map(|piece| self.clear_piece(piece, clearing, caller));
            join_all(cleared).await.into_iter().collect::<Result<Vec<()>>>()?;
            // a batch of nothing but holes awaits nothing, and the other disks' requests want to run
            self.local.yield_now().await;
        }
        if durability == Durability::Durable {
            self.guest_flush(caller).await?;
        }
        Ok(())
    }

    async fn clear_piece(
        self: &Rc<Self>,
        piece: Piece,
        clearing: Clearing,
        caller: &Caller,
    ) -> Result<()> {
        if self.is_flat() && self.clear_flat(piece.on_disk(), clearing, caller).await? {
            return Ok(());
        }
        loop {
            self.pass_gate(caller).await?;
            self.resolve(piece.block).await?;
            if self.gate.get() != Gate::Open {
                continue;
            }
            match self.clear_at_once(piece, clearing.how) {
                Step::Done => return Ok(()),
                Step::LogFull => self.flush().await?,
                Step::InPlace => {
                    if self.clear_in_place(piece, clearing, caller).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What can be done without I/O: nothing, or dropping a block that nothing lies below.
    fn clear_at_once(&self, piece: Piece, how: Clear) -> Step {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let block = piece.block;
        assert!(state.map.state(block) != BlockState::Unknown, "{block:?} was forgotten");
        let run = state.map.run_at(block, piece.from, piece.from + piece.len);
        let reads_zero = run.is_some_and(|r| r.place == Found::Zero && r.len == piece.len);
        let Some(place) = state.leaf_place(block) else {
            return if reads_zero { Step::Done } else { Step::InPlace };
        };
        let whole =
            piece.from == 0 && piece.len == sectors_in_block(state.chain.leaf().image.size, block);
        if !whole || how != Clear::Deallocate || state.chain.is_below(block) {
            return Step::InPlace;
        }
        if state.chain.leaf().table.get(block).is_none() {
            // only assigned, to a write that is under way or to one that failed together with the log:
            // what it left there would be the block's content with the next write to another sector
            return Step::InPlace;
        }
        if self.rules.d3_log_removals
            && let Some(log) = &mut state.log
            && !log.append(&[Record::Unmap { block: block.0 }])
        {
            return Step::LogFull;
        }
        state.chain.leaf_mut().table.remove(block);
        state.map.set_zero(block);
        state.dirty.table(block);
        if self.rules.d6_reuse_after_durable {
            state.space.drop_place(Dropped { place, bound: self.tickets.next() });
        } else {
            state.space.freed(place);
        }
        // whoever is held for want of space makes it free
        if self.held.get() > 0 {
            self.space_freed.notify();
        }
        debug_assert_eq!(state.map.state(block), BlockState::Zero);
        Step::Done
    }

    /// Clears a range of the leaf's place. False: there was no space, and there may be now.
    async fn clear_in_place(
        self: &Rc<Self>,
        piece: Piece,
        clearing: Clearing,
        caller: &Caller,
    ) -> Result<bool> {
        let entry = self.enter(piece.block, caller).await?;
        let start = entry.place.data().plus(u64::from(piece.from)).bytes();
        let range = ByteRange::new(start, u64::from(piece.len) * 512);
        let Clearing { how, effort } = clearing;
        let request = Request::Clear { range, how, effort, durability: Durability::Cached };
        match entry.file.submit(request).await {
            Ok(()) => {
                self.flushes.note_data();
                self.publish(piece, entry.place).await.map(|()| true)
            }
            Err(error) if error.kind == IoErrorKind::NoSpace => {
                drop(entry);
                self.find_space(caller).await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
