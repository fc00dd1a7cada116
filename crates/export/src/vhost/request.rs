//! One request of a guest: from its descriptors to what the device is asked, and what came of it.

use std::rc::Rc;

use futures_util::future::join_all;
use io::{BlockDevice, ByteOffset, Durability, Effort, IoBuf, IoError, RawIov, Request};

use super::blk::{self, Asked, Status};
use super::chain::Descriptors;
use super::memory::GuestMemory;
use super::ring::Shared;

/// Pieces of a request at most. What is longer is not followed.
const MAX_PIECES: usize = 1024;
/// What a request's descriptors describe.
pub(super) struct Buffers {
    /// What the guest wrote, its header left out.
    pub(super) out: IoBuf,
    /// What the guest gets, the status left out.
    pub(super) into: IoBuf,
    pub(super) status: IoBuf,
    pub(super) asked: Asked,
}

/// What is done for a request.
pub(super) enum Work {
    Device(Request),
    Several(Vec<Request>),
    Done(Status),
}

impl Work {
    /// Does it, to its end.
    pub(super) async fn run(self, device: &dyn BlockDevice) -> Status {
        match self {
            Self::Done(status) => status,
            Self::Device(request) => status_of(device.submit(request).await),
            Self::Several(requests) => {
                let all = requests.into_iter().map(|request| device.submit(request));
                status_of(join_all(all).await.into_iter().collect())
            }
        }
    }
}

/// Follows a request's descriptors. None: they lead nowhere, or have no place for a status.
pub(super) fn understand(
    memory: &Rc<GuestMemory>,
    descriptors: Descriptors<'_>,
) -> Option<Buffers> {
    let (mut out, mut into): (Vec<RawIov>, Vec<RawIov>) = (Vec::new(), Vec::new());
    for descriptor in descriptors {
        let len = descriptor.len() as usize;
        let pieces = if descriptor.is_write_only() { &mut into } else { &mut out };
        if !memory.pieces(descriptor.addr().0, len, pieces) || out.len() + into.len() > MAX_PIECES {
            return None;
        }
    }
    let (out, into) = (memory.buffer(&out), memory.buffer(&into));
    let data = into.len().checked_sub(1)?;
    let status = into.slice(data, 1);
    let into = into.slice(0, data);
    let asked = match out.len().checked_sub(blk::HEADER_LEN) {
        Some(_) => {
            let mut header = [0; blk::HEADER_LEN];
            out.read_at(0, &mut header);
            blk::asked(&header)
        }
        None => Asked::Unknown,
    };
    let header = out.len().min(blk::HEADER_LEN);
    let out = out.slice(header, out.len() - header);
    Some(Buffers { out, into, status, asked })
}

/// What a request asks for, with what the connection's front end and guest have chosen.
pub(super) fn work(shared: &Shared, buffers: &Buffers) -> Work {
    let Buffers { out, into, asked, .. } = buffers;
    let longest = shared.device.info().max_io as usize;
    let durability = match shared.write_through.get() {
        true => Durability::Durable,
        false => Durability::Cached,
    };
    let changes = matches!(asked, Asked::Write(_) | Asked::Clear { .. });
    let too_long = out.len().max(into.len()) > blk::MOST_DATA;
    if (changes && shared.read_only) || too_long {
        return Work::Done(Status::Error);
    }
    match *asked {
        Asked::Read(_) if into.is_empty() => Work::Done(Status::Ok),
        Asked::Write(_) if out.is_empty() => Work::Done(Status::Ok),
        Asked::Read(at) => split_by(longest, at, into, |at, into| Request::Read { at, into }),
        Asked::Write(at) => {
            split_by(longest, at, out, |at, from| Request::Write { at, from, durability })
        }
        Asked::Flush => Work::Device(Request::Flush),
        Asked::Clear { zeroes } => {
            if out.len() > blk::RANGES_LEN {
                return Work::Done(Status::Error);
            }
            match blk::ranges(&out.to_vec(), zeroes) {
                Ok(ranges) => {
                    let some = ranges.into_iter().filter(|(range, _)| range.len.0 > 0);
                    let clear = |(range, how)| Request::Clear {
                        range,
                        how,
                        effort: Effort::Any,
                        durability,
                    };
                    Work::Several(some.map(clear).collect())
                }
                Err(status) => Work::Done(status),
            }
        }
        Asked::Identify => {
            let mut id = [0; blk::ID_LEN];
            let text = shared.serial.as_bytes();
            let len = text.len().min(id.len());
            id[..len].copy_from_slice(&text[..len]);
            into.write_at(0, &id[..into.len().min(id.len())]);
            Work::Done(Status::Ok)
        }
        Asked::Unknown => Work::Done(Status::Unsupported),
    }
}

/// One request, or several where the device does not take so much at once.
fn split_by(
    longest: usize,
    at: ByteOffset,
    buffer: &IoBuf,
    request: impl Fn(ByteOffset, IoBuf) -> Request,
) -> Work {
    if buffer.len() <= longest {
        return Work::Device(request(at, buffer.clone()));
    }
    let piece = |from: usize| {
        let at = ByteOffset(at.0.saturating_add(from as u64));
        request(at, buffer.slice(from, longest.min(buffer.len() - from)))
    };
    Work::Several((0..buffer.len()).step_by(longest).map(piece).collect())
}

fn status_of(result: Result<(), IoError>) -> Status {
    match result {
        Ok(()) => Status::Ok,
        Err(error) => {
            tracing::debug!(%error, "a request failed");
            Status::Error
        }
    }
}
