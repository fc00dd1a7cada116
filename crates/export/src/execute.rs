//! Runs one command against the device and queues its answer.

use std::rc::Rc;

use futures_util::future::join_all;
use io::{
    BlockDevice, ByteCount, ByteOffset, ByteRange, Clear, Durability, Effort, Extent, IoBuf,
    IoError, IoErrorKind, Request, Result,
};

use crate::context::{Context, Contexts};
use crate::lane::{Lane, Permit};
use crate::reply::{Head, Run, errno, push_run};
use crate::request::{Command, Header, Tag};
use crate::sparse::{self, Part};

/// Most descriptors of one context in a block status reply; a client asks again for the rest.
const MAX_RUNS: usize = 8192;
/// What a block status request counts for: the longest answer.
pub(crate) const STATUS_BYTES: usize = MAX_RUNS * 16 * Context::ALL.len();
/// How much of a device is looked at at a time, so that lists of extents stay bounded and others
/// have their turn.
const WINDOW: u64 = 128 << 20;
/// How much is cleared at a time: a server that closes waits for no more than this.
const CLEAR_STEP: u64 = 1 << 30;

/// What a read has found.
enum Content {
    /// All of it.
    Whole(IoBuf),
    /// In parts, the holes without data.
    Parts(Vec<(Part, Option<IoBuf>)>),
}

/// Answers `header`, whose `command` was found good. `payload` is that of a write.
pub(crate) async fn run(
    lane: Rc<Lane>,
    header: Header,
    command: Command,
    payload: Option<IoBuf>,
    permit: Permit,
) {
    let device = &*lane.export.device;
    let tag = header.tag();
    let ended = match command {
        Command::Read { range, whole } => match read(&lane, range, whole).await {
            Ok(content) => {
                let len = range.len.0;
                lane.hub.count(|c| {
                    c.reads += 1;
                    c.read_bytes += len;
                });
                return answer_read(&lane, tag, range, content, permit);
            }
            Err(error) => Err(error),
        },
        Command::Status { range, contexts, one } => {
            match status(&lane, range, contexts, one).await {
                Ok(told) => return answer_status(&lane, tag, &told, permit),
                Err(error) => Err(error),
            }
        }
        Command::Write(range, durability) => {
            let payload = payload.expect("the receiver brings a write's payload");
            write(device, range, payload, durability).await.map(|()| {
                lane.hub.count(|c| {
                    c.writes += 1;
                    c.write_bytes += range.len.0;
                });
            })
        }
        Command::Clear { range, .. } if range.len.0 == 0 => Ok(()),
        Command::Clear { range, how, effort, durability } => {
            clear(&lane, range, how, effort, durability).await.map(|()| {
                lane.hub.count(|c| {
                    c.clears += 1;
                    c.clear_bytes += range.len.0;
                });
            })
        }
        // There is no cache to fill: layers are read past the page cache. What a first touch of a
        // range costs beside its data is finding out where that stands, and looking at the extents
        // does so: later reads and writes of the range find its maps in memory.
        Command::Cache(range) => look(&lane, range, |_| true).await,
        Command::Flush => {
            device.submit(Request::Flush).await.map(|()| lane.hub.count(|c| c.flushes += 1))
        }
        Command::Disconnect => Ok(()),
    };
    match ended {
        Ok(()) => lane.done(tag, permit),
        Err(error) => {
            let errno = errno(&error, &command);
            tracing::debug!(connection = lane.id, ?command, %error, "a request failed");
            lane.refuse(tag, errno, &error.to_string(), permit);
        }
    }
}

fn answer_read(lane: &Lane, tag: Tag, range: ByteRange, content: Content, permit: Permit) {
    let chunk_len = |range: ByteRange| u32::try_from(range.len.0).expect("at most 32 MiB");
    match content {
        Content::Whole(data) => {
            let head = if !lane.session.framing.has_chunks() {
                Head::Simple { cookie: tag.cookie, error: 0 }
            } else if range.len.0 == 0 {
                Head::None { tag }
            } else {
                Head::Data { tag, at: range.start.0, len: chunk_len(range), last: true }
            };
            lane.answer(head, Some(data), Some(permit));
        }
        Content::Parts(parts) => {
            let mut permit = Some(permit);
            let count = parts.len();
            for (number, (part, data)) in (1..).zip(parts) {
                let (at, len, last) = (part.range.start.0, chunk_len(part.range), number == count);
                let head = match part.is_hole {
                    true => Head::Hole { tag, at, len, last },
                    false => Head::Data { tag, at, len, last },
                };
                lane.answer(head, data, permit.take_if(|_| last));
            }
        }
    }
}

fn answer_status(lane: &Lane, tag: Tag, told: &[(Context, Vec<Run>)], permit: Permit) {
    let mut permit = Some(permit);
    for (number, (context, runs)) in (1..).zip(told) {
        let last = number == told.len();
        let head = Head::status(lane.session.framing, tag, *context, runs, last);
        lane.answer(head, None, permit.take_if(|_| last));
    }
}

async fn read(lane: &Lane, range: ByteRange, whole: bool) -> Result<Content> {
    let device = &*lane.export.device;
    let max = device.info().max_io as usize;
    if !whole && lane.session.framing.has_chunks() && range.len.0 >= sparse::FROM {
        let parts = sparse::parts(device, range).await;
        if parts.iter().any(|part| part.is_hole) {
            return read_parts(lane, range, parts, max).await;
        }
    }
    let into = lane.hub.pool.get(range.len.as_len());
    if into.len() <= max {
        if !into.is_empty() {
            device.submit(Request::Read { at: range.start, into: into.clone() }).await?;
        }
        return Ok(Content::Whole(into));
    }
    let reads =
        pieces(range.start, &into, max).map(|(at, into)| device.submit(Request::Read { at, into }));
    all(reads).await?;
    Ok(Content::Whole(into))
}

/// Reads what is data of `range` into one buffer, which takes no more than the range was admitted for.
async fn read_parts(
    lane: &Lane,
    range: ByteRange,
    parts: Vec<Part>,
    max: usize,
) -> Result<Content> {
    let device = &*lane.export.device;
    let some = parts.iter().any(|part| !part.is_hole);
    let buffer = some.then(|| lane.hub.pool.get(range.len.as_len()));
    let place = |part: Part| {
        let data = buffer.as_ref().filter(|_| !part.is_hole)?;
        let at = ByteCount(part.range.start.0 - range.start.0).as_len();
        Some(data.slice(at, part.range.len.as_len()))
    };
    let parts: Vec<_> = parts.into_iter().map(|part| (part, place(part))).collect();
    let data = parts.iter().filter_map(|(part, data)| Some((part.range.start, data.as_ref()?)));
    let reads = data
        .flat_map(|(start, data)| pieces(start, data, max))
        .map(|(at, into)| device.submit(Request::Read { at, into }));
    all(reads).await?;
    Ok(Content::Parts(parts))
}

async fn write(
    device: &dyn BlockDevice,
    range: ByteRange,
    from: IoBuf,
    durability: Durability,
) -> Result<()> {
    if from.is_empty() {
        return Ok(());
    }
    let max = device.info().max_io as usize;
    if from.len() <= max {
        return device.submit(Request::Write { at: range.start, from, durability }).await;
    }
    let parts = pieces(range.start, &from, max)
        .map(|(at, from)| device.submit(Request::Write { at, from, durability }));
    all(parts).await
}

/// `buf` in pieces of at most `max` bytes, each with its place in the device.
fn pieces(
    start: ByteOffset,
    buf: &IoBuf,
    max: usize,
) -> impl Iterator<Item = (ByteOffset, IoBuf)> + '_ {
    assert!(max > 0, "a device that takes no bytes");
    (0..buf.len()).step_by(max).map(move |at| {
        let piece = buf.slice(at, max.min(buf.len() - at));
        (ByteOffset(start.0 + at as u64), piece)
    })
}

/// Runs all requests to their end, also after one has failed: a request is answered only when the
/// device is done with all of it.
async fn all<'a>(parts: impl Iterator<Item = io::Io<'a, Result<()>>>) -> Result<()> {
    join_all(parts).await.into_iter().collect()
}

/// Clears step by step. A server that closes does not wait for all of a large disk.
async fn clear(
    lane: &Lane,
    range: ByteRange,
    how: Clear,
    effort: Effort,
    durability: Durability,
) -> Result<()> {
    let device = &*lane.export.device;
    if range.len.0 <= CLEAR_STEP {
        return device.submit(Request::Clear { range, how, effort, durability }).await;
    }
    let end = range.start.0 + range.len.0;
    let mut at = range.start.0;
    while at < end {
        if lane.stopping.get() {
            let what = format!("the export closes; the range from byte {at} on was not cleared");
            return Err(IoError::new(IoErrorKind::Closed, what));
        }
        let range = ByteRange::new(at, CLEAR_STEP.min(end - at));
        let durability = Durability::Cached;
        device.submit(Request::Clear { range, how, effort, durability }).await?;
        at += range.len.0;
    }
    match durability {
        Durability::Cached => Ok(()),
        Durability::Durable => device.submit(Request::Flush).await,
    }
}

/// What `contexts` say of `range`; of each the first run only, but whole, if `one`.
async fn status(
    lane: &Lane,
    range: ByteRange,
    contexts: Contexts,
    one: bool,
) -> Result<Vec<(Context, Vec<Run>)>> {
    let most = if one { 1 } else { MAX_RUNS };
    let mut told: Vec<(Context, Vec<Run>)> = contexts.iter().map(|c| (c, Vec::new())).collect();
    // one run more than wanted shows that the last wanted one is complete
    let open = |runs: &Vec<Run>| runs.len() <= most;
    look(lane, range, |extent| {
        for (context, runs) in &mut told {
            if open(runs) {
                push_run(runs, Run { len: extent.range.len.0, status: context.status(extent) });
            }
        }
        told.iter().any(|(_, runs)| open(runs))
    })
    .await?;
    for (_, runs) in &mut told {
        runs.truncate(most);
    }
    Ok(told)
}

/// Shows the extents of `range` in order, until `see` has seen enough. A connection that stops has
/// seen enough with the first window: every answer may be shorter than what was asked.
async fn look(lane: &Lane, range: ByteRange, mut see: impl FnMut(&Extent) -> bool) -> Result<()> {
    let device = &*lane.export.device;
    let end = range.start.0 + range.len.0;
    let mut at = range.start.0;
    while at < end {
        let before = at;
        for extent in device.extents(ByteRange::new(at, WINDOW.min(end - at))).await? {
            let len = extent.range.len.0.min(end - at);
            if extent.range.start.0 != at || len == 0 {
                break;
            }
            at += len;
            if !see(&Extent { range: ByteRange::new(extent.range.start.0, len), ..extent }) {
                return Ok(());
            }
        }
        if at == before {
            let what = format!("the device named no extent at byte {at}");
            return Err(IoError::new(IoErrorKind::Device, what));
        }
        if lane.stopping.get() {
            return Ok(());
        }
        if at < end {
            // what is known already is told without waiting for anything
            lane.hub.local.yield_now().await;
        }
    }
    Ok(())
}
