//! The typed client of the public API, as the command line uses it.

use futures_util::Stream;
use http_body_util::{BodyExt, Full};
pub use hyper::Method;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use model::{Code, Event, Page, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::sse::Lines;

/// How much of a stream is read at once.
const PART: usize = 256 << 10;

/// Where the API is and who calls.
#[derive(Clone)]
pub struct Client {
    authority: String,
    token: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the server at `url`, `http://HOST:PORT`.
    pub fn new(url: &str, token: &str) -> Result<Self, Problem> {
        let bad = |why: &str| {
            Problem::new(
                Code::BadRequest,
                format!("'{url}' is not the address of a server: {why}."),
            )
            .hint("use http://127.0.0.1:7070, or the address that `shale serve` printed")
        };
        let uri: Uri =
            url.parse().map_err(|e: hyper::http::uri::InvalidUri| bad(&e.to_string()))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad("it does not start with http://"));
        }
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self { authority: format!("{}:{port}", authority.host()), token: token.to_owned() })
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// Every object of a list, page by page.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Problem> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let join = if path.contains('?') { '&' } else { '?' };
            let page: Page<T> = self.get(&format!("{path}{join}limit=1000{cursor}")).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(all),
            }
        }
    }

    /// One call; its answer or the problem it was refused with.
    pub async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Problem> {
        let (status, body) = self.send(method, path, body, None).await?;
        self.answer(path, status, body).await
    }

    /// Sends what `from` reads, as fast as the server takes it; its answer.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        from: impl std::io::Read + Send + 'static,
    ) -> Result<T, Problem> {
        let (parts, body) = tokio::sync::mpsc::channel(2);
        // a thread of its own: a pipe has no other way to be waited for
        std::thread::spawn(move || read_into(from, &parts));
        let body = futures_util::stream::unfold(body, |mut body| async move {
            Some((body.recv().await?, body))
        });
        let request = self
            .request(Method::PUT, path)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(http_body_util::StreamBody::new(Box::pin(body)))
            .map_err(|e| unmade(&e))?;
        let (status, body) = self.exchange(request).await?;
        self.answer(path, status, body).await
    }

    /// Writes what the server sends at this path, all of it or an error.
    pub async fn download(&self, path: &str, mut to: impl std::io::Write) -> Result<(), Problem> {
        let (status, mut body) = self.send(Method::GET, path, None::<&()>, None).await?;
        if !status.is_success() {
            let bytes = body.collect().await.map_err(|e| self.lost(&e))?.to_bytes();
            return Err(refused(status, &bytes));
        }
        let unwritten = |e: std::io::Error| {
            Problem::new(Code::IoError, format!("The output cannot be written: {e}."))
        };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_cut_off| {
                Problem::new(
                    Code::IoError,
                    "The stream was cut off: what was written is not whole.",
                )
                .hint("its task says why: shale task list")
            })?;
            if let Ok(data) = frame.into_data() {
                to.write_all(&data).map_err(unwritten)?;
            }
        }
        to.flush().map_err(unwritten)
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        path: &str,
        status: StatusCode,
        body: hyper::body::Incoming,
    ) -> Result<T, Problem> {
        let bytes = body.collect().await.map_err(|e| self.lost(&e))?.to_bytes();
        if status.is_success() {
            let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
            return serde_json::from_slice(&bytes).map_err(|e| {
                Problem::new(
                    Code::Internal,
                    format!("The answer to {path} is not understood: {e}."),
                )
                .hint("server and command line may be of different versions")
            });
        }
        Err(refused(status, &bytes))
    }

    /// What changes, from now on.
    pub async fn events(
        &self,
        last: Option<u64>,
    ) -> Result<impl Stream<Item = Event> + Unpin + Send + use<>, Problem> {
        let (status, body) = self.send(Method::GET, "/api/v1/events", None::<&()>, last).await?;
        if status.is_success() {
            return Ok(Lines::new(body).events());
        }
        let bytes = body.collect().await.map_err(|e| self.lost(&e))?.to_bytes();
        Err(refused(status, &bytes))
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        last_event: Option<u64>,
    ) -> Result<(StatusCode, hyper::body::Incoming), Problem> {
        let mut request = self.request(method, path);
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
        self.exchange(request.body(Full::new(bytes)).map_err(|e| unmade(&e))?).await
    }

    fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
    }

    async fn exchange<B>(
        &self,
        request: Request<B>,
    ) -> Result<(StatusCode, hyper::body::Incoming), Problem>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = TcpStream::connect(&self.authority).await.map_err(|e| self.lost(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.lost(&e))?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("the connection ended: {e}");
            }
        });
        let response = sender.send_request(request).await.map_err(|e| self.lost(&e))?;
        Ok((response.status(), response.into_body()))
    }

    fn lost(&self, e: &dyn std::error::Error) -> Problem {
        Problem::new(
            Code::ServerUnavailable,
            format!("No answer from http://{}: {e}.", self.authority),
        )
        .hint("is `shale serve` running there?")
    }
}

type Frame = Result<hyper::body::Frame<Bytes>, std::io::Error>;

/// Reads to the end. An error is passed on, so that the other side does not take it for the end.
fn read_into(mut from: impl std::io::Read, parts: &tokio::sync::mpsc::Sender<Frame>) {
    let mut buffer = vec![0; PART];
    loop {
        let part = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => Ok(hyper::body::Frame::data(Bytes::copy_from_slice(&buffer[..len]))),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => Err(e),
        };
        let failed = part.is_err();
        if parts.blocking_send(part).is_err() || failed {
            return;
        }
    }
}

fn unmade(e: &hyper::http::Error) -> Problem {
    Problem::new(Code::BadRequest, format!("The request cannot be made: {e}."))
}

fn refused(status: StatusCode, bytes: &[u8]) -> Problem {
    serde_json::from_slice(bytes).unwrap_or_else(|_not_a_problem| {
        let mut problem =
            Problem::new(Code::Unknown, format!("The server answered with status {status}."));
        problem.status = status.as_u16();
        problem
    })
}
