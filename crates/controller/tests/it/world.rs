//! A controller on a directory of its own with a fake node, and HTTP in both manners: the typed
//! client, and bytes as any program could send them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use controller::client::{Client, Method};
use controller::{ServeOptions, Served, WallClock};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use model::{Problem, Task, TaskState};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake::Fake;

pub(crate) struct World {
    home: TempDir,
    pub(crate) fake: Fake,
    pub(crate) served: Served,
    pub(crate) token: String,
    clock: Arc<dyn WallClock>,
}

/// An answer as bytes on the wire.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) status: u16,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: String,
}

impl Raw {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

pub(crate) fn options(data: &Path) -> ServeOptions {
    let listen = "127.0.0.1:0".parse().expect("an address");
    let clock = controller::host_clock();
    ServeOptions { data: data.to_path_buf(), listen, node: None, clock }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_at(controller::host_clock()).await
    }

    pub(crate) async fn start_at(clock: Arc<dyn WallClock>) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let data = home.path().join("data");
        let fake = Fake::start(&data);
        let options = ServeOptions { clock: Arc::clone(&clock), ..options(&data) };
        let served = controller::serve(options).await.expect("a controller");
        assert!(served.node_ready, "the fake was found");
        let token = std::fs::read_to_string(&served.token_file).expect("the token");
        Self { home, fake, served, token: token.trim().to_owned(), clock }
    }

    /// The same with the datastore `fast`.
    pub(crate) async fn with_datastore() -> Self {
        let world = Self::start().await;
        world.datastore("fast").await;
        world
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    pub(crate) fn client(&self) -> Client {
        self.client_of(&self.token)
    }

    pub(crate) fn client_of(&self, token: &str) -> Client {
        Client::new(&self.served.url, token).expect("a client")
    }

    /// Ends the controller and starts another on the same directory.
    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|| ()).await
    }

    /// The same, with something that happens while no controller runs.
    pub(crate) async fn restart_after(self, meanwhile: impl FnOnce()) -> Self {
        let Self { home, fake, served, token, clock } = self;
        served.close();
        served.finish().await.expect("an end");
        meanwhile();
        let data = home.path().join("data");
        let options = ServeOptions { clock: Arc::clone(&clock), ..options(&data) };
        let served = controller::serve(options).await.expect("again");
        Self { home, fake, served, token, clock }
    }

    pub(crate) async fn datastore(&self, name: &str) -> Value {
        let body = json!({ "name": name, "dir": format!("/fake/{name}") });
        self.done("/api/v1/datastores", &body).await
    }

    pub(crate) async fn volume(&self, name: &str) -> Value {
        self.done("/api/v1/volumes", &volume(name)).await
    }

    /// Posts and waits; the result of the task, which must succeed.
    pub(crate) async fn done(&self, path: &str, body: &Value) -> Value {
        let task: Task = self
            .client()
            .call(Method::POST, &format!("{path}?wait=60"), Some(body))
            .await
            .unwrap_or_else(|problem| panic!("{path} {body}: {problem}"));
        assert_eq!(task.state, TaskState::Success, "{:?}", task.error);
        task.result.unwrap_or(Value::Null)
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Task, Problem> {
        self.client().call(Method::POST, path, Some(body)).await
    }

    /// A request with the administrator's token.
    pub(crate) async fn raw(&self, method: &str, path: &str, body: Option<&Value>) -> Raw {
        let mut request = self.request(method, path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        self.send(request, body.map(Value::to_string).unwrap_or_default()).await
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> hyper::http::request::Builder {
        self.request_of(&self.token, method, path)
    }

    pub(crate) fn request_of(
        &self,
        token: &str,
        method: &str,
        path: &str,
    ) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.served.url.trim_start_matches("http://"))
            .header("authorization", format!("Bearer {token}"))
    }

    pub(crate) async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: impl Into<Bytes>,
    ) -> Raw {
        let (parts, body) = self.open(request, body).await.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Raw {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }

    /// The answer with its body still to come.
    pub(crate) async fn open(
        &self,
        request: hyper::http::request::Builder,
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let address = self.served.url.trim_start_matches("http://");
        let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let request = request.body(Full::new(body.into())).expect("a request");
        sender.send_request(request).await.expect("an answer")
    }
}

pub(crate) fn volume(name: &str) -> Value {
    json!({ "name": name, "datastore": "fast", "size": "1G", "kind": "thin" })
}
