//! A disk that is sent to us, from its first byte to its last: raw, or a VHD whose table stands before
//! its blocks, as every writer has it. Memory is two blocks, whatever comes.
//!
//! ```text
//!   raw, fixed VHD   bytes ─► blocks; the last sector waits for the end: it may be a footer
//!   dynamic VHD      footer | header … BAT ─► blocks in the order in which they stand
//! ```

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use axum::body::Bytes;
use catalog::{CatalogError, Chunk, Code, Incoming, Next, Progress as _, Result};
use futures_channel::mpsc;
use futures_util::StreamExt as _;
use futures_util::future::{Either, select};
use image::{
    BLOCK_SECTORS, Bitmap, BlockIndex, DynamicHeader, Footer, Kind, LayerImage, SECTOR, Sector,
    Sniffed, bat, bit_runs, sniff,
};
use io::{Io, Ring};
use model::ImportFormat;

use super::sources::BLOCK;
use crate::tasks::Progress;

/// Parts of a stream that are under way at once; each is as long as the sender makes it.
pub(crate) const IN_FLIGHT: usize = 4;
/// How long a stream may take to begin.
const BEGINS: Duration = Duration::from_secs(60);
/// How often a silent stream is asked whether it was cancelled.
const LOOK: Duration = Duration::from_millis(200);
/// Most bytes before the first block of a VHD: headers, locators and the table of the largest disk.
const MAX_PREFIX: u64 = 64 << 20;
/// Largest block of a VHD that is read from a stream.
const MAX_BLOCK: u32 = 64 << 11;

/// What goes between a connection and a task. An empty part is the end: a side that merely vanishes has
/// not sent all, and must not be taken for one that has.
pub(crate) type Part = std::result::Result<Bytes, String>;

/// A disk that comes in.
pub(crate) struct Stream {
    ring: Ring,
    parts: mpsc::Receiver<Part>,
    progress: Rc<Progress>,
    format: ImportFormat,
    buffer: VecDeque<Bytes>,
    buffered: usize,
    /// Bytes taken out of the buffer.
    at: u64,
    begun: bool,
    over: bool,
    state: State,
}

enum State {
    Start,
    Flat { block: u32, end: Option<u64> },
    Blocks { image: Box<LayerImage>, left: VecDeque<(Sector, BlockIndex)>, open: Option<Open> },
}

/// A block of a VHD that is being taken.
struct Open {
    block: BlockIndex,
    bits: Vec<u8>,
    /// Sectors that were taken, and that the disk has of the block.
    taken: u32,
    visible: u32,
}

impl Stream {
    pub(crate) fn new(
        ring: &Ring,
        parts: mpsc::Receiver<Part>,
        progress: Rc<Progress>,
        format: ImportFormat,
    ) -> Self {
        Self {
            ring: ring.clone(),
            parts,
            progress,
            format,
            buffer: VecDeque::new(),
            buffered: 0,
            at: 0,
            begun: false,
            over: false,
            state: State::Start,
        }
    }

    /// Waits until `wanted` bytes are there, or the end has come.
    async fn fill(&mut self, wanted: usize) -> Result<()> {
        while self.buffered < wanted && !self.over {
            let Some(part) = self.part().await? else {
                self.over = true;
                return Ok(());
            };
            self.begun = true;
            self.buffered += part.len();
            self.buffer.push_back(part);
        }
        Ok(())
    }

    async fn part(&mut self) -> Result<Option<Bytes>> {
        let until = self.ring.local().now() + BEGINS;
        loop {
            let look = self.ring.local().sleep(LOOK);
            match select(self.parts.next(), std::pin::pin!(look)).await {
                Either::Left((Some(Ok(bytes)), _)) => {
                    return Ok((!bytes.is_empty()).then_some(bytes));
                }
                Either::Left((Some(Err(why)), _)) => {
                    let message = format!("the stream was cut off: {why}");
                    return Err(CatalogError::new(Code::Io, message));
                }
                Either::Left((None, _)) => {
                    let message = "the stream was cut off: its sender has gone";
                    return Err(CatalogError::new(Code::Io, message));
                }
                Either::Right(_) if self.progress.cancelled() => {
                    let message = "it was cancelled; nothing of it is left";
                    return Err(CatalogError::new(Code::Cancelled, message));
                }
                Either::Right(_) if !self.begun && self.ring.local().now() > until => {
                    let message = format!("the stream did not begin within {} s", BEGINS.as_secs());
                    return Err(CatalogError::new(Code::Io, message));
                }
                // what was taken is told, also while the sender is silent
                Either::Right(_) => self.progress.advance(self.at),
            }
        }
    }

    /// Takes up to `len` bytes that are there.
    fn take(&mut self, len: usize) -> Vec<u8> {
        let len = len.min(self.buffered);
        let mut taken = Vec::with_capacity(len);
        while taken.len() < len {
            let Some(first) = self.buffer.front_mut() else { break };
            let part = first.split_to(first.len().min(len - taken.len()));
            taken.extend_from_slice(&part);
            if first.is_empty() {
                self.buffer.pop_front();
            }
        }
        self.buffered -= taken.len();
        self.at += taken.len() as u64;
        taken
    }

    /// The next `len` bytes; that the stream ends before is damage.
    async fn exactly(&mut self, len: usize) -> Result<Vec<u8>> {
        self.fill(len).await?;
        let taken = self.take(len);
        if taken.len() == len {
            return Ok(taken);
        }
        Err(damaged(format_args!("it ends after {} bytes, in the middle", self.at)))
    }

    /// Leaves out everything up to byte `to`.
    async fn skip_to(&mut self, to: u64) -> Result<()> {
        while self.at < to {
            let left = usize::try_from(to - self.at).unwrap_or(BLOCK).min(BLOCK);
            self.exactly(left).await?;
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<State> {
        self.fill(image::HEAD).await?;
        let head: Vec<u8> = self.buffer.iter().flatten().copied().take(image::HEAD).collect();
        let flat = State::Flat { block: 0, end: None };
        let known = sniff(&head, &[]);
        match (self.format, &known) {
            (ImportFormat::Raw, _) | (ImportFormat::Auto, Sniffed::Unknown) => Ok(flat),
            (ImportFormat::Auto | ImportFormat::Vhd, Sniffed::Vhd { .. }) => self.blocks().await,
            (ImportFormat::Vhd, _) => Ok(flat),
            (ImportFormat::Auto, Sniffed::Other(what)) => {
                let message = format!("it looks like {what}, not like a disk");
                Err(CatalogError::new(Code::Unsupported, message)
                    .hint("unpack it on its way; say --format raw if it is a raw disk"))
            }
            _ => Err(CatalogError::new(
                Code::Unsupported,
                "this format cannot be read as a stream: its tables may stand behind its data",
            )
            .hint("put the file on the node's host and give its path")),
        }
    }

    /// The headers and the table of a dynamic VHD.
    async fn blocks(&mut self) -> Result<State> {
        let head = self.exactly(Footer::LEN).await?;
        let footer =
            Footer::decode(head.first_chunk().expect("a footer's length")).map_err(damaged)?;
        if footer.kind != Kind::Dynamic {
            let message = "it is a differencing disk and needs its parents";
            return Err(CatalogError::new(Code::Unsupported, message)
                .hint("put all its files on the node's host and import them with --chain"));
        }
        let late = || {
            CatalogError::new(Code::Unsupported, "its table does not stand before its blocks")
                .hint("put the file on the node's host and give its path")
        };
        if footer.data_offset < self.at || footer.data_offset > MAX_PREFIX {
            return Err(late());
        }
        self.skip_to(footer.data_offset).await?;
        let bytes = self.exactly(DynamicHeader::LEN).await?;
        let header = DynamicHeader::decode(bytes.first_chunk().expect("a header's length"))
            .map_err(damaged)?;
        let (size, block_sectors) = (footer.size(), header.block_sectors());
        let entries = size.0.div_ceil(u64::from(block_sectors));
        let table = entries.saturating_mul(bat::ENTRY);
        if entries > u64::from(header.entries) || size.0 == 0 {
            return Err(damaged(format_args!("its table has {} entries", header.entries)));
        }
        if header.table_offset < self.at
            || header.table_offset.saturating_add(table) > MAX_PREFIX
            || block_sectors > MAX_BLOCK
        {
            return Err(late());
        }
        self.skip_to(header.table_offset).await?;
        let table = self.exactly(usize::try_from(table).expect("a bounded table")).await?;
        let mut left: Vec<(Sector, BlockIndex)> = (0..)
            .zip(bat::decode(&table))
            .filter_map(|(block, entry)| Some((entry?, BlockIndex(block))))
            .collect();
        left.sort_unstable();
        let image = Box::new(LayerImage {
            uuid: footer.uuid,
            kind: Kind::Dynamic,
            size,
            block_sectors,
            bat_at: Sector(header.table_offset / SECTOR),
            bat_entries: u32::try_from(entries).unwrap_or(u32::MAX),
            first_free: Sector(0),
            parent: None,
            creator: footer.creator,
            timestamp: footer.timestamp,
            saved_state: footer.saved_state,
            repairs: Vec::new(),
        });
        Ok(State::Blocks { image, left: left.into(), open: None })
    }

    async fn flat(&mut self, block: u32) -> Result<Next> {
        // One sector more than a block: the last one may be a footer.
        self.fill(BLOCK + Footer::LEN + 1).await?;
        let start = u64::from(block) * BLOCK as u64;
        if !self.over {
            let bytes = self.take(BLOCK);
            self.state = State::Flat { block: block + 1, end: None };
            return Ok(whole(block, bytes));
        }
        // The rest, at most a block and a footer, is here.
        let end = match &self.state {
            State::Flat { end: Some(end), .. } => *end,
            State::Start | State::Flat { .. } | State::Blocks { .. } => self.flat_end(start)?,
        };
        self.state = State::Flat { block: block + 1, end: Some(end) };
        if start >= end {
            return Ok(Next::End);
        }
        let left = usize::try_from(end - start).unwrap_or(BLOCK).min(BLOCK);
        let mut bytes = self.take(left);
        bytes.resize(left, 0);
        Ok(whole(block, bytes))
    }

    /// The size of the disk, once all of its stream is here.
    fn flat_end(&mut self, start: u64) -> Result<u64> {
        let rest: Vec<u8> = self.buffer.iter().flatten().copied().collect();
        let total = start + rest.len() as u64;
        let footer = rest.last_chunk().and_then(|last| Footer::decode(last).ok());
        let footer =
            footer.filter(|footer| footer.kind == Kind::Fixed && self.format != ImportFormat::Raw);
        match footer {
            Some(footer) => {
                let (size, data) = (footer.size().bytes(), total - Footer::LEN as u64);
                if size > data || size < start {
                    return Err(damaged(format_args!("its footer says {size} bytes, {data} came")));
                }
                Ok(size)
            }
            None if self.format == ImportFormat::Vhd => {
                Err(damaged("it has no VHD footer at its start or end"))
            }
            None => Ok(total.next_multiple_of(SECTOR)),
        }
    }

    /// A part of a block of a VHD, within one of our blocks.
    async fn block_part(&mut self) -> Result<Next> {
        let State::Blocks { image, left, open } = &mut self.state else {
            return Ok(Next::End);
        };
        let image = (**image).clone();
        let Some(current) = open.take() else {
            let Some((entry, block)) = left.pop_front() else {
                // the footer, and whatever stands after the last block
                while !self.over {
                    let buffered = self.buffered;
                    self.take(buffered);
                    self.fill(1).await?;
                }
                return Ok(Next::End);
            };
            if entry.bytes() < self.at {
                return Err(damaged(format_args!("{block:?} overlaps what stands before it")));
            }
            self.skip_to(entry.bytes()).await?;
            let length = image.bitmap_sectors() as usize * 512;
            let bits = self.exactly(length).await?;
            let open = Some(Open { block, bits, taken: 0, visible: image.sectors_in(block) });
            if let State::Blocks { open: place, .. } = &mut self.state {
                *place = open;
            }
            return Ok(Next::Hole);
        };
        let first =
            u64::from(current.block.0) * u64::from(image.block_sectors) + u64::from(current.taken);
        let within = u32::try_from(first % u64::from(BLOCK_SECTORS)).unwrap_or(0);
        let count = (BLOCK_SECTORS - within).min(current.visible - current.taken);
        let data = self.exactly(count as usize * 512).await?;
        let mut bytes = vec![0; BLOCK];
        let mut owned = Bitmap::empty();
        for (from, len, set) in bit_runs(&current.bits, current.taken, count) {
            if set {
                let source = (from - current.taken) as usize * 512;
                let target = within as usize * 512 + source;
                let length = len as usize * 512;
                bytes[target..target + length].copy_from_slice(&data[source..source + length]);
                owned.set_range(within + (from - current.taken), len);
            }
        }
        let taken = current.taken + count;
        if taken < current.visible
            && let State::Blocks { open, .. } = &mut self.state
        {
            *open = Some(Open { taken, ..current });
        }
        let block = u32::try_from(first / u64::from(BLOCK_SECTORS)).unwrap_or(u32::MAX);
        Ok(Next::Chunk(Chunk { block, bytes, owned }))
    }

    async fn advance(&mut self) -> Result<Next> {
        if matches!(self.state, State::Start) {
            self.state = self.start().await?;
        }
        match &self.state {
            State::Start => Ok(Next::End),
            State::Flat { block, .. } => {
                let block = *block;
                self.flat(block).await
            }
            State::Blocks { .. } => self.block_part().await,
        }
    }
}

fn whole(block: u32, mut bytes: Vec<u8>) -> Next {
    let mut owned = Bitmap::empty();
    let sectors = u32::try_from(bytes.len() / 512).unwrap_or(BLOCK_SECTORS);
    owned.set_range(0, sectors.min(BLOCK_SECTORS));
    bytes.resize(BLOCK, 0);
    Next::Chunk(Chunk { block, bytes, owned })
}

fn damaged(problem: impl std::fmt::Display) -> CatalogError {
    CatalogError::new(Code::Corrupt, format!("the stream: {problem}"))
}

impl Incoming for Stream {
    fn next(&mut self, _layer: usize) -> Io<'_, Result<Next>> {
        Box::pin(self.advance())
    }

    fn done(&self, _layer: usize) -> u64 {
        self.at
    }

    fn size(&self, _layer: usize) -> u64 {
        match &self.state {
            State::Start => 0,
            State::Flat { end, .. } => end.unwrap_or(0),
            State::Blocks { image, .. } => image.size.bytes(),
        }
    }
}

/// An export on its way to whoever asked for it.
pub(crate) struct Sink {
    ring: Ring,
    to: mpsc::Sender<Part>,
    progress: Rc<Progress>,
}

impl catalog::Outgoing for Sink {
    fn put(&mut self, bytes: Vec<u8>) -> Io<'_, Result<()>> {
        Box::pin(self.send(bytes.into()))
    }
}

impl Sink {
    pub(crate) fn new(ring: &Ring, to: mpsc::Sender<Part>, progress: Rc<Progress>) -> Self {
        Self { ring: ring.clone(), to, progress }
    }

    /// Says that this was all.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.send(Bytes::new()).await
    }

    /// Waits for room, also for a reader that is silent, and ends with a cancel.
    async fn send(&mut self, bytes: Bytes) -> Result<()> {
        loop {
            let room = {
                let look = self.ring.local().sleep(LOOK);
                let room = std::future::poll_fn(|cx| self.to.poll_ready(cx));
                match select(room, std::pin::pin!(look)).await {
                    Either::Left((ready, _)) => Some(ready.is_ok()),
                    Either::Right(_) => None,
                }
            };
            match room {
                Some(true) if self.to.start_send(Ok(bytes.clone())).is_ok() => return Ok(()),
                Some(_) => {
                    let message = "whoever asked for it takes no more of it";
                    return Err(CatalogError::new(Code::Io, message));
                }
                None if self.progress.cancelled() => {
                    let message = "it was cancelled; what was sent is not whole";
                    return Err(CatalogError::new(Code::Cancelled, message));
                }
                None => {}
            }
        }
    }
}

/// Takes the parts of an export; one that vanishes ends in an error.
pub(crate) fn received(
    parts: impl futures_util::Stream<Item = Part> + Unpin + Send + 'static,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    futures_util::stream::unfold(Some(parts), |parts| async move {
        let mut parts = parts?;
        match parts.next().await {
            Some(Ok(bytes)) if bytes.is_empty() => None,
            Some(Ok(bytes)) => Some((Ok(bytes), Some(parts))),
            Some(Err(why)) => Some((Err(std::io::Error::other(why)), None)),
            None => Some((Err(std::io::Error::other("the export failed")), None)),
        }
    })
}

/// Hands a sender's parts over, as fast as they are taken.
pub(crate) async fn pump<E: std::fmt::Display>(
    mut body: impl futures_util::Stream<Item = std::result::Result<Bytes, E>> + Unpin,
    mut to: mpsc::Sender<Part>,
) {
    loop {
        let part = match body.next().await {
            Some(Ok(part)) if part.is_empty() => continue,
            Some(part) => part.map_err(|error| error.to_string()),
            None => Ok(Bytes::new()),
        };
        let last = part.as_ref().map_or(true, Bytes::is_empty);
        let ready = std::future::poll_fn(|cx| to.poll_ready(cx)).await;
        // nobody takes it any more: the import has ended, and its task says why
        if ready.is_err() || to.start_send(part).is_err() || last {
            return;
        }
    }
}
