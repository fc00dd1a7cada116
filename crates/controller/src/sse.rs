//! Reading server-sent events: bytes in, events out. Used for the node's stream and by the client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use hyper::body::{Body, Incoming};
use model::Event;

/// An event longer than this is not one of ours.
const LONGEST: usize = 8 << 20;

/// The data fields of an event stream.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    parser: Parser,
}

/// Collects bytes and gives out the `data` of whole events.
#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
}

impl Parser {
    /// The data of the next whole event; comments and keep-alives have none and are left out.
    fn next(&mut self) -> Option<String> {
        loop {
            let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
            let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let data: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix("data:"))
                .map(|data| data.strip_prefix(' ').unwrap_or(data))
                .collect();
            if !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
    }
}

impl Lines {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, parser: Parser::default() }
    }

    /// The events; one that this version does not understand is left out.
    pub(crate) fn events(self) -> impl Stream<Item = Event> + Unpin + Send {
        futures_util::StreamExt::filter_map(self, |data| {
            std::future::ready(match serde_json::from_str(&data) {
                Ok(event) => Some(event),
                Err(e) => {
                    tracing::warn!("an event is not understood: {e}");
                    None
                }
            })
        })
    }
}

impl Stream for Lines {
    type Item = String;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<String>> {
        loop {
            if let Some(data) = self.parser.next() {
                return Poll::Ready(Some(data));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        // a peer may end lines with CR LF
                        self.parser.buffer.extend(bytes.iter().filter(|byte| **byte != b'\r'));
                    }
                    if self.parser.buffer.len() > LONGEST {
                        return Poll::Ready(None);
                    }
                }
                Some(Err(_)) | None => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Parser;

    #[test]
    fn events_come_whole_whatever_the_pieces() {
        let text = b": hello\n\nid: 1\nevent: task\ndata: {\"a\":\ndata: 1}\n\ndata:x\n\ndata: cut";
        for piece in 1..text.len() {
            let mut parser = Parser::default();
            let mut seen = Vec::new();
            for bytes in text.chunks(piece) {
                parser.buffer.extend(bytes);
                seen.extend(std::iter::from_fn(|| parser.next()));
            }
            assert_eq!(seen, ["{\"a\":\n1}", "x"], "in pieces of {piece}");
        }
    }
}
