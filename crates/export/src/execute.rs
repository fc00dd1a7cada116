//! Runs one command against the device and queues its answer.

use std::rc::Rc;

use futures_util::future::join_all;
use io::{
    BlockDevice, ByteOffset, ByteRange, Durability, IoBuf, IoError, IoErrorKind, Request, Result,
};

use crate::lane::{Head, Lane, Permit, Reply};
use crate::reply::{self, Run, push_run};
use crate::request::{Command, Header};

/// Most descriptors of one block status reply; a client asks again for the rest.
pub(crate) const MAX_RUNS: usize = 8192;
/// How much of a device is asked for its extents at a time, so that their list stays bounded.
const WINDOW: u64 = 128 << 20;

/// Answers `header`, whose `command` was found good. `payload` is that of a write.
pub(crate) async fn run(
    lane: Rc<Lane>,
    header: Header,
    command: Command,
    payload: Option<IoBuf>,
    permit: Permit,
) {
    let device = &*lane.export.device;
    let cookie = header.cookie;
    let mut writing = true;
    let ended = match command {
        Command::Read(range) => {
            writing = false;
            match read(&lane, range).await {
                Ok(data) => {
                    let len = range.len.0;
                    lane.hub.count(|c| {
                        c.reads += 1;
                        c.read_bytes += len;
                    });
                    let head = read_head(&lane, cookie, range);
                    return lane.answer(Reply { head, data: Some(data), _permit: permit });
                }
                Err(error) => Err(error),
            }
        }
        Command::Status { range, one } => {
            writing = false;
            match status(device, range, one).await {
                Ok(runs) => {
                    let head = Head::Chunk(reply::status_chunk(cookie, &runs));
                    return lane.answer(Reply { head, data: None, _permit: permit });
                }
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
        Command::Clear(range, _, _) if range.len.0 == 0 => Ok(()),
        Command::Clear(range, how, durability) => {
            device.submit(Request::Clear { range, how, durability }).await.map(|()| {
                lane.hub.count(|c| {
                    c.clears += 1;
                    c.clear_bytes += range.len.0;
                });
            })
        }
        Command::Flush => {
            device.submit(Request::Flush).await.map(|()| lane.hub.count(|c| c.flushes += 1))
        }
        Command::Disconnect => Ok(()),
    };
    match ended {
        Ok(()) => lane.done(cookie, permit),
        Err(error) => {
            let errno = reply::errno(&error, writing);
            tracing::debug!(connection = lane.id, ?command, %error, "a request failed");
            lane.refuse(&header, errno, &error.to_string(), permit);
        }
    }
}

fn read_head(lane: &Lane, cookie: u64, range: ByteRange) -> Head {
    if !lane.session.structured {
        return Head::Simple { cookie, error: 0 };
    }
    if range.len.0 == 0 {
        return Head::Chunk(reply::none_chunk(cookie));
    }
    let len = u32::try_from(range.len.0).expect("a read is at most 32 MiB");
    Head::Data { cookie, offset: range.start.0, len }
}

async fn read(lane: &Lane, range: ByteRange) -> Result<IoBuf> {
    let into = lane.hub.pool.get(range.len.as_len());
    let device = &*lane.export.device;
    let max = device.info().max_io as usize;
    if into.len() <= max {
        if !into.is_empty() {
            device.submit(Request::Read { at: range.start, into: into.clone() }).await?;
        }
        return Ok(into);
    }
    let parts =
        pieces(range.start, &into, max).map(|(at, into)| device.submit(Request::Read { at, into }));
    all(parts).await?;
    Ok(into)
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

/// The states of `range`; the first only, but whole, if `one`.
pub(crate) async fn status(
    device: &dyn BlockDevice,
    range: ByteRange,
    one: bool,
) -> Result<Vec<Run>> {
    let end = range.start.0 + range.len.0;
    let most = if one { 1 } else { MAX_RUNS };
    let mut at = range.start.0;
    let mut runs = Vec::new();
    // one run more than wanted shows that the last wanted one is complete
    while at < end && runs.len() <= most {
        let window = ByteRange::new(at, WINDOW.min(end - at));
        let before = at;
        for extent in device.extents(window).await? {
            let len = extent.range.len.0.min(end - at);
            if extent.range.start.0 != at || len == 0 || runs.len() > most {
                break;
            }
            push_run(&mut runs, io::Extent { range: ByteRange::new(at, len), ..extent });
            at += len;
        }
        if at == before {
            let what = format!("the device named no extent at byte {at}");
            return Err(IoError::new(IoErrorKind::Device, what));
        }
    }
    runs.truncate(most);
    Ok(runs)
}
