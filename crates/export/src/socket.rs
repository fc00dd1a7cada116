//! The byte stream under a connection: a socket of the ring, or a pipe in memory in tests.

use std::future::Future;
use std::io::Result;

use io::IoBuf;

/// Which direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing more is received; a `recv` that waits returns 0.
    Receiving,
    /// Both directions: a `recv` or `send` that waits returns.
    Both,
}

/// A connected byte stream. At most one `recv` and one `send` wait at a time.
pub trait Socket: 'static {
    /// Receives at least one byte into the front of `into`; 0 is the end of the stream.
    fn recv(&self, into: &IoBuf) -> impl Future<Output = Result<usize>>;

    /// Sends some of `parts` in order; says how many bytes.
    fn send(&self, parts: &[IoBuf]) -> impl Future<Output = Result<usize>>;

    /// Whether the peer will send nothing more than what waits to be received.
    fn is_gone(&self) -> bool;

    /// Ends a direction at once, for both sides.
    fn end(&self, what: End);
}

/// Sends all of `parts`.
pub(crate) async fn send_all<S: Socket>(socket: &S, parts: &mut [IoBuf]) -> Result<()> {
    let mut first = 0;
    while let Some(rest) = parts.get_mut(first..).filter(|rest| !rest.is_empty()) {
        let mut sent = socket.send(rest).await?;
        for part in rest {
            if sent < part.len() {
                *part = part.slice(sent, part.len() - sent);
                break;
            }
            sent -= part.len();
            first += 1;
        }
    }
    Ok(())
}
