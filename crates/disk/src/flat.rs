//! A fixed leaf: every sector of the disk stands at its own offset, so that there is no metadata to
//! write, to log or to repair. What remains is the gate, and the space of holes.
//!
//! Holes are there where a fixed volume was made thin. Their space is reserved before it is written, a
//! block at a time: a write into a hole would take what the store keeps for records.

use std::rc::Rc;

use image::{Kind, SECTOR};
use io::{
    BlockFile, ByteOffset, ByteRange, Clear, Durability, IoBuf, IoErrorKind, Request, Result,
};

use crate::caller::Caller;
use crate::clear::Clearing;
use crate::disk::{Inner, Piece, Writer, pieces, sectors_in_block};

impl Inner {
    /// Whether the leaf is a fixed layer.
    pub(crate) fn is_flat(&self) -> bool {
        self.state.borrow().chain.leaf().image.kind == Kind::Fixed
    }

    /// The leaf's file and a ticket for it, once the gate is open. The leaf that was flat before the
    /// gate may be another behind it: None then.
    async fn enter_flat(
        self: &Rc<Self>,
        caller: &Caller,
    ) -> Result<Option<(Writer, Rc<dyn BlockFile>)>> {
        self.pass_gate(caller).await?;
        if !self.is_flat() {
            return Ok(None);
        }
        let file = Rc::clone(&self.state.borrow().chain.leaf().file);
        Ok(Some((self.writer(), file)))
    }

    /// Sees to it that the blocks of `range` have their space in the leaf's file.
    async fn back(self: &Rc<Self>, range: ByteRange, caller: &Caller) -> Result<()> {
        // one that keeps its space never had holes
        if self.keep_space.get() {
            return Ok(());
        }
        for piece in pieces(range.start.0 / SECTOR, range.len.0 / SECTOR) {
            loop {
                let (file, known, size) = {
                    let state = self.state.borrow();
                    let leaf = state.chain.leaf();
                    let known =
                        leaf.image.kind != Kind::Fixed || state.backed.contains(piece.block);
                    (Rc::clone(&leaf.file), known, leaf.image.size)
                };
                if known {
                    break;
                }
                let whole = Piece { from: 0, len: sectors_in_block(size, piece.block), ..piece };
                match file.reserve(whole.on_disk()).await {
                    Ok(()) => self.state.borrow_mut().backed.insert(piece.block),
                    Err(error) if error.kind == IoErrorKind::NoSpace => {
                        self.find_space(caller).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Writes to a flat leaf. False: the leaf is another by now.
    pub(crate) async fn write_flat(
        self: &Rc<Self>,
        at: ByteOffset,
        from: &IoBuf,
        caller: &Caller,
    ) -> Result<bool> {
        loop {
            self.back(ByteRange { start: at, len: from.count() }, caller).await?;
            let Some((writer, file)) = self.enter_flat(caller).await? else { return Ok(false) };
            let durability = Durability::Cached;
            let written = file.submit(Request::Write { at, from: from.clone(), durability }).await;
            self.flushes.note_data();
            match written {
                // a discard made a hole of it again
                Err(error) if error.kind == IoErrorKind::NoSpace => {
                    drop(writer);
                    self.find_space(caller).await?;
                }
                ended => return ended.map(|()| true),
            }
        }
    }

    /// The same for a clear.
    pub(crate) async fn clear_flat(
        self: &Rc<Self>,
        range: ByteRange,
        clearing: Clearing,
        caller: &Caller,
    ) -> Result<bool> {
        loop {
            if clearing.how == Clear::KeepSpace {
                self.back(range, caller).await?;
            }
            let Some((writer, file)) = self.enter_flat(caller).await? else { return Ok(false) };
            if clearing.how == Clear::Deallocate {
                let mut state = self.state.borrow_mut();
                for piece in pieces(range.start.0 / SECTOR, range.len.0 / SECTOR) {
                    state.backed.remove(piece.block);
                }
            }
            let Clearing { how, effort } = clearing;
            let durability = Durability::Cached;
            let cleared = file.submit(Request::Clear { range, how, effort, durability }).await;
            self.flushes.note_data();
            match cleared {
                Err(error) if error.kind == IoErrorKind::NoSpace => {
                    drop(writer);
                    self.find_space(caller).await?;
                }
                ended => return ended.map(|()| true),
            }
        }
    }
}
