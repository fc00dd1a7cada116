//! A fixed leaf: every sector of the disk stands at its own offset, so that there is no metadata to
//! write, to log or to repair. What remains is the gate, and the space of holes.

use std::rc::Rc;

use image::Kind;
use io::{BlockFile, ByteOffset, ByteRange, Durability, IoBuf, IoErrorKind, Request, Result};

use crate::caller::Caller;
use crate::clear::Clearing;
use crate::disk::{Inner, Writer};

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

    /// Writes to a flat leaf. False: the leaf is another by now.
    pub(crate) async fn write_flat(
        self: &Rc<Self>,
        at: ByteOffset,
        from: &IoBuf,
        caller: &Caller,
    ) -> Result<bool> {
        loop {
            let Some((writer, file)) = self.enter_flat(caller).await? else { return Ok(false) };
            let durability = Durability::Cached;
            match file.submit(Request::Write { at, from: from.clone(), durability }).await {
                // a layer that was made thin has holes
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
            let Some((writer, file)) = self.enter_flat(caller).await? else { return Ok(false) };
            let Clearing { how, effort } = clearing;
            let durability = Durability::Cached;
            match file.submit(Request::Clear { range, how, effort, durability }).await {
                Err(error) if error.kind == IoErrorKind::NoSpace => {
                    drop(writer);
                    self.find_space(caller).await?;
                }
                ended => return ended.map(|()| true),
            }
        }
    }
}
