//! One connection: handshake, then a receiver that turns bytes into requests, a task for each
//! request, and a sender that brings the answers back, in whatever order they come.
//!
//! ```text
//!  socket ─recv─► Inbox ─► Header ─► admit ─► task: device ─► replies ─► sender ─sendmsg─► socket
//!                   └─ payload: what is here is copied, the rest is received into its buffer
//! ```
//! A client that breaks the protocol, stalls in the middle of a message or takes no replies holds
//! up its own connection only: its requests in flight and their bytes are bounded ([`Limits`]), and
//! so is the time of its handshake.
//!
//! [`Limits`]: crate::Limits

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use io::{ByteCount, IoBuf};

use crate::execute;
use crate::handshake::{Handshake, HandshakeError, Session, Step};
use crate::hub::{Export, Hub, Stop};
use crate::lane::{Lane, Permit};
use crate::pool::{copy, footprint, joined};
use crate::request::{Bounds, Breach, Command, Header};
use crate::sender;
use crate::socket::{End, Socket, send_all};
use crate::wire::{EXTENDED_REQUEST_LEN, Errno, Framing};

/// Bytes received ahead. Several requests are taken from one `recv`; of a large payload at most
/// this much is copied.
const INBOX: usize = 32 << 10;

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Request(#[from] Breach),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("the client was gone in the middle of a message")]
    Truncated,
    #[error("the handshake took too long")]
    Slow,
}

/// Serves a connected socket until it is closed.
pub(crate) async fn serve<S: Socket>(hub: Rc<Hub>, socket: S) {
    let socket = Rc::new(socket);
    let member = hub.join(Rc::new(Abort(Rc::clone(&socket))));
    let id = member.id;
    let ended = async {
        let mut inbox = Inbox::new(&hub);
        let Some((session, export)) = shake_hands(&hub, &*socket, &mut inbox).await? else {
            return Ok(());
        };
        tracing::debug!(connection = id, export = session.export, "client connected");
        let lane = Lane::new(&hub, export, session, id);
        let stop = Rc::new(StopLane { lane: Rc::clone(&lane), socket: Rc::clone(&socket) });
        member.serve(&lane.export.name, stop).await;
        let sender = hub.local.spawn(sender::run(Rc::clone(&lane), Rc::clone(&socket)));
        let received = receive(&lane, &*socket, &mut inbox).await;
        lane.received.set(true);
        lane.to_send.wake();
        sender.await;
        received
    }
    .await;
    socket.end(End::Both);
    match ended {
        Ok(()) => tracing::debug!(connection = id, "connection closed"),
        Err(fault @ (Fault::Handshake(_) | Fault::Request(_))) => {
            hub.count(|c| c.protocol_errors += 1);
            tracing::warn!(connection = id, %fault, "connection closed: protocol error");
        }
        Err(fault) => tracing::debug!(connection = id, %fault, "connection ended"),
    }
}

/// Ends a connection that is not serving requests yet.
struct Abort<S>(Rc<S>);

impl<S: Socket> Stop for Abort<S> {
    fn stop(&self) {
        self.0.end(End::Both);
    }
    fn abort(&self) {
        self.0.end(End::Both);
    }
    fn yield_to_successor(&self) -> bool {
        false
    }
}

struct StopLane<S> {
    lane: Rc<Lane>,
    socket: Rc<S>,
}

impl<S: Socket> Stop for StopLane<S> {
    fn stop(&self) {
        self.lane.stopping.set(true);
        self.lane.flight.room.wake();
        self.socket.end(End::Receiving);
    }
    fn abort(&self) {
        self.stop();
        self.socket.end(End::Both);
    }
    fn yield_to_successor(&self) -> bool {
        // its receiver may not know yet: it waits for room, or has requests to read before the end
        let gone = self.lane.received.get() || self.lane.stopping.get() || self.socket.is_gone();
        if gone {
            self.lane.abandon();
            self.abort();
        }
        gone
    }
}

async fn shake_hands<S: Socket>(
    hub: &Rc<Hub>,
    socket: &S,
    inbox: &mut Inbox,
) -> Result<Option<(Session, Rc<Export>)>, Fault> {
    let time = hub.local.sleep(hub.limits.handshake);
    let talk = pin!(negotiate(hub, socket, inbox));
    match select(talk, time).await {
        Either::Left((done, _)) => done,
        Either::Right(((), _)) => Err(Fault::Slow),
    }
}

/// None: the client ended the handshake in good order.
async fn negotiate<S: Socket>(
    hub: &Rc<Hub>,
    socket: &S,
    inbox: &mut Inbox,
) -> Result<Option<(Session, Rc<Export>)>, Fault> {
    let mut out = Vec::new();
    let mut handshake = Handshake::start(&mut out);
    loop {
        if !out.is_empty() {
            send_all(socket, &mut [IoBuf::copied(&out)]).await?;
            out.clear();
        }
        match handshake.advance(&inbox.peek(), &**hub, &mut out)? {
            Step::More => {
                if !inbox.receive(socket).await? {
                    return if inbox.len() == 0 { Ok(None) } else { Err(Fault::Truncated) };
                }
            }
            Step::Handled { used } => inbox.skip(used),
            Step::Start { used, session } => {
                inbox.skip(used);
                // looked up again only in name: nothing else ran since `advance` found it
                let export = hub.export(&session.export);
                send_all(socket, &mut [IoBuf::copied(&out)]).await?;
                return Ok(export.map(|export| (session, export)));
            }
            Step::End => {
                send_all(socket, &mut [IoBuf::copied(&out)]).await?;
                return Ok(None);
            }
        }
    }
}

/// Takes requests until the client disconnects, the stream ends or the connection stops.
async fn receive<S: Socket>(lane: &Rc<Lane>, socket: &S, inbox: &mut Inbox) -> Result<(), Fault> {
    loop {
        let framing = lane.session.framing;
        while let Some(header) = inbox.header(framing) {
            let header = header?;
            if lane.stopping.get() {
                return Ok(());
            }
            inbox.skip(framing.request_len());
            if !take(lane, socket, inbox, header).await? {
                return Ok(());
            }
        }
        if !inbox.receive(socket).await? {
            let whole = inbox.len() == 0 || lane.stopping.get();
            return if whole { Ok(()) } else { Err(Fault::Truncated) };
        }
        if lane.stopping.get() {
            return Ok(());
        }
    }
}

/// Takes one request with its payload and starts it; false when there will be no more.
async fn take<S: Socket>(
    lane: &Rc<Lane>,
    socket: &S,
    inbox: &mut Inbox,
    header: Header,
) -> Result<bool, Fault> {
    let device = lane.export.device.info();
    let bounds = Bounds {
        size: device.size,
        block: device.logical_block,
        read_only: lane.export.read_only || device.read_only,
    };
    let query = inbox.take(socket, header.query()).await?;
    let command = header.command(&lane.session, bounds, &query);
    let bytes = match command {
        Ok(Command::Disconnect) => return Ok(false),
        Ok(Command::Read { range, .. } | Command::Write(range, _)) => footprint(range.len.as_len()),
        Ok(Command::Status { .. }) => execute::STATUS_BYTES,
        Ok(Command::Clear { .. } | Command::Cache(_) | Command::Flush) | Err(_) => 0,
    };
    let Some(permit) = lane.admit(bytes).await else { return Ok(false) };
    match command {
        Ok(command) => {
            let payload = match command {
                Command::Write(range, _) => {
                    let payload = lane.hub.pool.get(range.len.as_len());
                    inbox.fill(socket, &payload).await?;
                    Some(payload)
                }
                Command::Read { .. }
                | Command::Clear { .. }
                | Command::Cache(_)
                | Command::Flush
                | Command::Status { .. }
                | Command::Disconnect => None,
            };
            start(lane, header, command, payload, permit);
        }
        Err(errno) => {
            let rest = header.payload() - query.len() as u64;
            inbox.discard(socket, ByteCount(rest).as_len()).await?;
            lane.refuse(header.tag(), errno, refusal(errno), permit);
        }
    }
    Ok(true)
}

fn start(
    lane: &Rc<Lane>,
    header: Header,
    command: Command,
    payload: Option<IoBuf>,
    permit: Permit,
) {
    let task = execute::run(Rc::clone(lane), header, command, payload, permit);
    lane.started(lane.hub.local.spawn(task));
}

fn refusal(errno: Errno) -> &'static str {
    match errno {
        Errno::Perm => "the export is read-only",
        Errno::NoSpace => "the request ends past the end of the export",
        Errno::Overflow => "the read is too long for one chunk",
        Errno::Invalid | Errno::Io | Errno::NotSupported | Errno::Shutdown => {
            "unknown command or flag, or a range that is misaligned, too long or past the end"
        }
    }
}

/// Received bytes that are not understood yet.
struct Inbox {
    buf: IoBuf,
    start: usize,
    end: usize,
}

impl Inbox {
    fn new(hub: &Hub) -> Self {
        const { assert!(INBOX >= Handshake::longest_message()) };
        Self { buf: hub.pool.get(INBOX), start: 0, end: 0 }
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    /// A copy of what is here, for the handshake.
    fn peek(&self) -> Vec<u8> {
        self.buf.slice(self.start, self.len()).to_vec()
    }

    fn skip(&mut self, len: usize) {
        assert!(len <= self.len(), "skipping {len} of {} received bytes", self.len());
        self.start += len;
    }

    /// The request header at the front, if it is all here.
    fn header(&self, framing: Framing) -> Option<Result<Header, Breach>> {
        let len = framing.request_len();
        (self.len() >= len).then(|| {
            let mut bytes = [0; EXTENDED_REQUEST_LEN];
            let bytes = &mut bytes[..len];
            self.buf.read_at(self.start, bytes);
            Header::decode(bytes, framing)
        })
    }

    /// The next `len` bytes, few enough to be here at once.
    async fn take<S: Socket>(&mut self, socket: &S, len: usize) -> Result<Vec<u8>, Fault> {
        while self.len() < len {
            if !self.receive(socket).await? {
                return Err(Fault::Truncated);
            }
        }
        let taken = self.buf.slice(self.start, len).to_vec();
        self.start += len;
        Ok(taken)
    }

    /// Receives more behind what is here; false at the end of the stream.
    async fn receive<S: Socket>(&mut self, socket: &S) -> std::io::Result<bool> {
        if self.start > 0 {
            let rest = self.peek();
            self.buf.write_at(0, &rest);
            (self.start, self.end) = (0, rest.len());
        }
        let got = socket.recv(&self.buf.slice(self.end, INBOX - self.end)).await?;
        self.end += got;
        Ok(got > 0)
    }

    /// Fills `payload` from what is here and from the socket.
    async fn fill<S: Socket>(&mut self, socket: &S, payload: &IoBuf) -> Result<(), Fault> {
        let here = self.len().min(payload.len());
        copy(&self.buf.slice(self.start, here), &payload.slice(0, here));
        self.start += here;
        let mut done = here;
        while done < payload.len() {
            // past the payload's end the next requests begin: they come along into the inbox
            let rest = payload.slice(done, payload.len() - done);
            let got = socket.recv(&joined(&rest, &self.buf)).await?;
            if got == 0 {
                return Err(Fault::Truncated);
            }
            done += got.min(rest.len());
            (self.start, self.end) = (0, got.saturating_sub(rest.len()));
        }
        Ok(())
    }

    /// Throws `len` bytes of a refused write away.
    async fn discard<S: Socket>(&mut self, socket: &S, len: usize) -> Result<(), Fault> {
        let mut left = len;
        loop {
            let here = self.len().min(left);
            self.start += here;
            left -= here;
            if left == 0 {
                return Ok(());
            }
            if !self.receive(socket).await? {
                return Err(Fault::Truncated);
            }
        }
    }
}
