//! Sends replies: whatever is ready when the last send has ended goes out in one.
//!
//! An idle connection's reply is sent at once. Under load replies gather by themselves: those of
//! requests that completed together, and those that came while a send was under way. Nothing ever
//! waits for more to come.

use std::rc::Rc;

use io::IoBuf;

use crate::lane::{Lane, Reply};
use crate::reply::{Head, MAX_HEAD};
use crate::socket::{End, Socket, send_all};

/// Most replies of one send: the client works on the first ones while the next are gathered.
const BATCH: usize = 64;
/// No reply is added to a send of this many bytes: a socket buffer would not take them anyway.
const BATCH_BYTES: usize = 256 << 10;

/// Runs until the receiver has ended and every request is answered.
pub(crate) async fn run<S: Socket>(lane: Rc<Lane>, socket: Rc<S>) {
    let heads = lane.hub.pool.get(BATCH * MAX_HEAD);
    let mut batch: Vec<Reply> = Vec::with_capacity(BATCH);
    let mut parts: Vec<IoBuf> = Vec::with_capacity(2 * BATCH);
    let mut broken = false;
    loop {
        let over = || lane.received.get() && lane.flight.is_empty();
        lane.to_send.until(|| lane.has_replies() || over()).await;
        if !lane.has_replies() {
            return;
        }
        gather(&lane, &heads, &mut batch, &mut parts);
        if !broken {
            lane.hub.count(|c| {
                c.replies += batch.iter().filter(|reply| reply.permit.is_some()).count() as u64;
                c.sends += 1;
            });
            if let Err(error) = send_all(&*socket, &mut parts).await {
                tracing::debug!(connection = lane.id, %error, "the client takes no replies");
                broken = true;
                lane.stopping.set(true);
                lane.flight.room.wake();
                socket.end(End::Both);
            }
        }
        parts.clear();
        batch.clear();
    }
}

/// Moves waiting replies to `batch`, their bytes in order to `parts`. Heads without data between
/// them become one part.
fn gather(lane: &Lane, heads: &IoBuf, batch: &mut Vec<Reply>, parts: &mut Vec<IoBuf>) {
    let (mut from, mut end, mut bytes) = (0, 0, 0);
    let flush = |parts: &mut Vec<IoBuf>, from: usize, end: usize| {
        if from < end {
            parts.push(heads.slice(from, end - from));
        }
    };
    while batch.len() < BATCH && bytes < BATCH_BYTES {
        let Some(mut reply) = lane.next_reply() else { break };
        if let Some(head) = reply.head.bytes(lane.session.framing) {
            heads.write_at(end, head.as_slice());
            end += head.as_slice().len();
        }
        let data = match &reply.head {
            Head::Chunk(chunk) => Some(IoBuf::copied(chunk)),
            Head::Simple { .. } | Head::Data { .. } | Head::Hole { .. } | Head::None { .. } => {
                reply.data.take()
            }
        };
        if let Some(data) = data.filter(|d| !d.is_empty()) {
            bytes += data.len();
            flush(parts, from, end);
            from = end;
            parts.push(data);
        }
        batch.push(reply);
    }
    flush(parts, from, end);
}
