//! The client of the node's HTTP API on its unix socket.
//!
//! Every call opens a connection of its own: connecting to a unix socket costs microseconds, and a
//! node that was restarted needs no special case.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::Stream;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use model::{Code, Event, NodeInfo, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::sse::Lines;

/// A call that takes longer is given up; long work is a task, never a long call.
const CALL: Duration = Duration::from_secs(60);
/// Between two attempts to reach a node that does not listen yet.
const RETRY: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub(crate) struct NodeClient {
    socket: PathBuf,
    /// How long a call waits for a node that does not listen: one that is being started again.
    /// Nothing was sent yet, so waiting is safe for every request.
    patience: Duration,
}

/// The node's lists come plain or as a page.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Listed<T> {
    Plain(Vec<T>),
    Page { items: Vec<T> },
}

impl NodeClient {
    pub(crate) fn new(socket: PathBuf, patience: Duration) -> Self {
        Self { socket, patience }
    }

    pub(crate) async fn info(&self) -> Result<NodeInfo, Problem> {
        self.call(Method::GET, "/v1/info", None::<&()>).await
    }

    pub(crate) async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Problem> {
        Ok(match self.call(Method::GET, path, None::<&()>).await? {
            Listed::Plain(items) | Listed::Page { items } => items,
        })
    }

    /// One call; its answer or the problem it was refused with.
    pub(crate) async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Problem> {
        let late = |_: tokio::time::error::Elapsed| {
            unavailable(format!("The node did not answer {path} within {} s.", CALL.as_secs()))
        };
        tokio::time::timeout(CALL, async {
            answer(path, self.send(method, path, body, None).await?).await
        })
        .await
        .map_err(late)?
    }

    /// Passes a body on as it comes, as fast as the node takes it.
    pub(crate) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        body: axum::body::Body,
    ) -> Result<T, Problem> {
        let request = Request::builder().method(Method::PUT).uri(path).header(header::HOST, "node");
        let request = request.body(body).map_err(crate::store::internal)?;
        answer(path, self.exchange(request).await?).await
    }

    /// What the node sends at this path, as it comes.
    pub(crate) async fn download(&self, path: &str) -> Result<axum::body::Body, Problem> {
        let response = self.send(Method::GET, path, None::<&()>, None).await?;
        if response.status().is_success() {
            return Ok(axum::body::Body::new(response.into_body()));
        }
        match answer::<serde_json::Value>(path, response).await {
            Ok(_) => Err(unavailable(format!("The node did not answer {path}."))),
            Err(problem) => Err(problem),
        }
    }

    /// The node's events after `last`.
    pub(crate) async fn events(
        &self,
        last: Option<u64>,
    ) -> Result<impl Stream<Item = Event> + Unpin + Send + use<>, Problem> {
        let response = self.send(Method::GET, "/v1/events", None::<&()>, last).await?;
        if !response.status().is_success() {
            return Err(unavailable(format!(
                "The node refused its event stream with status {}.",
                response.status()
            )));
        }
        Ok(Lines::new(response.into_body()).events())
    }

    async fn connect(&self) -> std::io::Result<UnixStream> {
        let until = tokio::time::Instant::now() + self.patience;
        loop {
            match UnixStream::connect(&self.socket).await {
                Err(e) if tokio::time::Instant::now() >= until => return Err(e),
                Err(_) => tokio::time::sleep(RETRY).await,
                Ok(stream) => return Ok(stream),
            }
        }
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        last_event: Option<u64>,
    ) -> Result<Response<Incoming>, Problem> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "node");
        if let Some(last) = last_event {
            request = request.header("last-event-id", last);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(body).map_err(crate::store::internal)?)
            }
            None => Bytes::new(),
        };
        self.exchange(request.body(Full::new(bytes)).map_err(crate::store::internal)?).await
    }

    async fn exchange<B>(&self, request: Request<B>) -> Result<Response<Incoming>, Problem>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = self.connect().await.map_err(|e| {
            unavailable(format!("The node does not listen on {}: {e}.", self.socket.display()))
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(cut_off)?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("a connection to the node ended: {e}");
            }
        });
        sender.send_request(request).await.map_err(cut_off)
    }
}

/// The node's answer, or the problem that it refused with.
async fn answer<T: DeserializeOwned>(
    path: &str,
    response: Response<Incoming>,
) -> Result<T, Problem> {
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(cut_off)?.to_bytes();
    if status.is_success() {
        let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
        return serde_json::from_slice(&bytes).map_err(|e| {
            Problem::new(
                Code::Internal,
                format!("The node's answer to {path} is not understood: {e}."),
            )
            .hint("node and controller may be of different versions: run `shale down`, then `shale serve`")
        });
    }
    Err(serde_json::from_slice::<Problem>(&bytes).unwrap_or_else(|_not_a_problem| {
        Problem::new(Code::Internal, format!("The node answered {path} with status {status}."))
    }))
}

fn unavailable(detail: String) -> Problem {
    Problem::new(Code::NodeUnavailable, detail)
        .hint("`shale serve` or systemd starts it again by itself; see DATA/node.log, or `journalctl -u shale-node`")
}

#[expect(clippy::needless_pass_by_value, reason = "used as a map_err function")]
fn cut_off(e: hyper::Error) -> Problem {
    unavailable(format!("The connection to the node was cut off: {e}."))
}
