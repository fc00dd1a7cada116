//! Guest reads, and what a range of the disk consists of.

use std::rc::Rc;

use futures_util::future::join_all;
use image::owner::{Place as Found, Run};
use io::{BlockFile, ByteOffset, ByteRange, Extent, ExtentKind, IoBuf, Request, Result};

use crate::disk::{Gate, Inner, Piece, closed, file_offset, pieces};

/// At most this many blocks are looked at for one answer about extents.
const EXTENT_BLOCKS: usize = 4096;
/// No block is begun that could make the answer longer than this and what one block may add.
const EXTENTS: usize = 4096;

impl Inner {
    pub(crate) async fn read(self: &Rc<Self>, at: ByteOffset, into: &IoBuf) -> Result<()> {
        let (start, len) = self.sectors(ByteRange { start: at, len: into.count() })?;
        if self.gate.get() == Gate::Closed {
            return Err(closed());
        }
        {
            let mut stats = self.stats.borrow_mut();
            stats.reads += 1;
            stats.read_bytes += into.count().0;
        }
        let mut parts = pieces(start, len);
        let Some(first) = parts.next() else { return Ok(()) };
        match parts.next() {
            None => self.read_piece(first, into).await,
            Some(second) => {
                let all = [first, second].into_iter().chain(parts);
                // all to their end, whatever one says: the buffer may be a guest's own memory, which
                // nothing may be read into once the request is answered
                join_all(all.map(|piece| self.read_piece(piece, into))).await.into_iter().collect()
            }
        }
    }

    async fn read_piece(&self, piece: Piece, into: &IoBuf) -> Result<()> {
        self.resolve(piece.block).await?;
        // from here to the last submission nothing is awaited: what is resolved is what is read, and
        // the ticket keeps it from being reused
        let _ticket = self.tickets.take();
        let end = piece.from + piece.len;
        let slice = |run: &Run| {
            let at = piece.at + (run.from - piece.from) as usize * 512;
            into.slice(at, run.len as usize * 512)
        };
        let mut reads: Vec<(Rc<dyn BlockFile>, Request)> = Vec::new();
        {
            let state = self.state.borrow();
            let mut from = piece.from;
            while let Some(run) = state.map.run_at(piece.block, from, end) {
                match run.place {
                    Found::Zero => slice(&run).fill(0),
                    Found::Data { slot, at } => {
                        let file = state.chain.file(slot);
                        let request = Request::Read { at: file_offset(at), into: slice(&run) };
                        reads.push((Rc::clone(file), request));
                    }
                }
                from = run.from + run.len;
            }
            assert_eq!(from, end, "{:?} was forgotten while it was read", piece.block);
        }
        self.stats.borrow_mut().file_reads += reads.len() as u64;
        if reads.len() == 1
            && let Some((file, request)) = reads.pop()
        {
            return file.submit(request).await;
        }
        let reads =
            reads.into_iter().map(|(file, request)| async move { file.submit(request).await });
        join_all(reads).await.into_iter().collect()
    }

    pub(crate) async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        let (start, len) = self.sectors(range)?;
        let mut extents: Vec<Extent> = Vec::new();
        for piece in pieces(start, len).take(EXTENT_BLOCKS) {
            if extents.len() >= EXTENTS {
                break;
            }
            self.resolve(piece.block).await?;
            let state = self.state.borrow();
            let layers = state.chain.depth();
            let (mut from, end) = (piece.from, piece.from + piece.len);
            while let Some(run) = state.map.run_at(piece.block, from, end) {
                let (kind, depth) = match run.place {
                    Found::Zero => (ExtentKind::Hole, 0),
                    Found::Data { slot, .. } => (ExtentKind::Data, layers - usize::from(slot.0)),
                };
                let within = piece.at as u64 + u64::from(run.from - piece.from) * 512;
                let next = Extent {
                    range: ByteRange::new(range.start.0 + within, u64::from(run.len) * 512),
                    kind,
                    depth: u32::try_from(depth).expect("a chain is far shorter"),
                };
                if !extents.last_mut().is_some_and(|last| last.absorbs(&next)) {
                    extents.push(next);
                }
                from = run.from + run.len;
            }
            assert_eq!(from, end, "{:?} was forgotten while it was looked at", piece.block);
        }
        Ok(extents)
    }
}
