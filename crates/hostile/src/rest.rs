//! What a user may say: names and sizes, bodies of requests, and whole requests to a running node and
//! controller.
//!
//! ```text
//!   METHOD TARGET      a line
//!   NAME: VALUE        lines of headers, as many as wanted
//!                      an empty line
//!   BODY               the rest
//! ```

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use export::NbdAddress;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use model::Problem;
use node::{Node, Options};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;

/// Texts that stand for values: what parses prints as what parses to the same.
pub fn texts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    said::<model::Name>(&text);
    said::<model::Reference>(&text);
    said::<model::Size>(&text);
    said::<model::Timestamp>(&text);
    said::<model::TimeOfDay>(&text);
    said::<model::Threshold>(&text);
    said::<model::VolumeKind>(&text);
    said::<model::Role>(&text);
    if let Err(error) = NbdAddress::parse(&text) {
        assert!(error.to_string().contains("is not an address"), "{error}");
    }
}

fn said<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let again = value.to_string().parse().ok();
    assert_eq!(again.as_ref(), Some(&value), "'{value}' of '{text}'");
}

/// Bodies of requests: what is taken is written as what is taken for the same.
pub fn rest_bodies(bytes: &[u8]) {
    taken::<model::CreateDatastore>(bytes);
    taken::<model::UpdateDatastore>(bytes);
    taken::<model::CreateVolume>(bytes);
    taken::<model::UpdateVolume>(bytes);
    taken::<model::ConvertVolume>(bytes);
    taken::<model::ConnectVolume>(bytes);
    taken::<model::CloneVolume>(bytes);
    taken::<model::ImportVolume>(bytes);
    taken::<model::ExportVolume>(bytes);
    taken::<model::CreateSnapshot>(bytes);
    taken::<model::CreateTemplate>(bytes);
    taken::<model::DeployTemplate>(bytes);
    taken::<model::CreateToken>(bytes);
    taken::<model::SetSchedule>(bytes);
    taken::<model::PutSchedule>(bytes);
    taken::<model::RunSchedule>(bytes);
    // what the node answers to the controller
    taken::<Problem>(bytes);
    taken::<model::Event>(bytes);
    taken::<model::Task>(bytes);
    if let Ok(change) = serde_json::from_slice::<model::UpdateDatastore>(bytes)
        && let Ok(policy) = change.applied(model::DatastorePolicy::default())
    {
        assert!(policy.critical <= policy.low);
    }
}

fn taken<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_string(&value).expect("wire types have string keys");
    let again = serde_json::from_str::<T>(&text);
    assert_eq!(again.ok().as_ref(), Some(&value), "{text}");
}

/// A request to the node's socket.
pub fn rest_node(bytes: &[u8]) {
    ask(bytes, Side::Node);
}

/// A request to the public API, by the administrator; the controller passes on what it takes.
pub fn rest_controller(bytes: &[u8]) {
    ask(bytes, Side::Controller);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Node,
    Controller,
}

/// A node and a controller on a directory of their own, without a datastore: they can be asked for
/// anything, and have nothing to do it with.
struct System {
    runtime: Runtime,
    served: controller::Served,
    node: Node,
    token: String,
    /// Connections that are kept, to the node and to the controller.
    node_link: Option<SendRequest<Full<Bytes>>>,
    controller_link: Option<SendRequest<Full<Bytes>>>,
    _dir: TempDir,
}

static SYSTEM: Mutex<Option<System>> = Mutex::new(None);

/// Ends what the targets of REST have started.
pub fn end() {
    let system = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(System { runtime, served, node, node_link, controller_link, .. }) = system else {
        return;
    };
    drop((node_link, controller_link));
    served.close();
    runtime.block_on(served.finish()).expect("the controller ends");
    node.stop();
}

impl System {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let logs = Some(dir.path().join("logs"));
        let options = Options { data: data.clone(), logs, homes: Some(1), owns_process: false };
        let node = Node::start(&options).expect("a node");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let clock = controller::host_clock();
        let options = controller::ServeOptions { data, listen, node: None, clock };
        let served = runtime.block_on(controller::serve(options)).expect("a controller");
        assert!(served.node_ready, "the node answers");
        let token = std::fs::read_to_string(&served.token_file).expect("the token");
        let token = token.trim().to_owned();
        let (node_link, controller_link) = (None, None);
        Self { runtime, served, node, token, node_link, controller_link, _dir: dir }
    }

    fn connect(&self, side: Side) -> SendRequest<Full<Bytes>> {
        self.runtime.block_on(async {
            match side {
                Side::Node => {
                    let stream = UnixStream::connect(self.node.socket()).await.expect("the node");
                    let (link, driver) = handshake(TokioIo::new(stream)).await.expect("HTTP");
                    tokio::spawn(driver);
                    link
                }
                Side::Controller => {
                    let address = self.served.url.trim_start_matches("http://");
                    let stream = TcpStream::connect(address).await.expect("the controller");
                    let (link, driver) = handshake(TokioIo::new(stream)).await.expect("HTTP");
                    tokio::spawn(driver);
                    link
                }
            }
        })
    }
}

fn ask(bytes: &[u8], side: Side) {
    let Some(mut request) = request(bytes) else { return };
    // a finding is told by the panic; the next one finds the system as it is
    let mut guard = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner);
    let system = guard.get_or_insert_with(System::start);
    if side == Side::Controller {
        let host = system.served.url.trim_start_matches("http://").to_owned();
        let given = |name: &str, value: String| {
            let value = header::HeaderValue::from_str(&value).expect("visible characters");
            (header::HeaderName::from_bytes(name.as_bytes()).expect("a name"), value)
        };
        let headers = request.headers_mut();
        for (name, value) in [
            given("host", host),
            given("authorization", format!("Bearer {}", system.token)),
            given("content-type", "application/json".into()),
        ] {
            headers.entry(name).or_insert(value);
        }
    }
    let about = format!("{} {}", request.method(), request.uri());
    let head = *request.method() == Method::HEAD;
    let kept = match side {
        Side::Node => system.node_link.take(),
        Side::Controller => system.controller_link.take(),
    };
    let kept = kept.filter(|link| !link.is_closed());
    let mut link = kept.unwrap_or_else(|| system.connect(side));
    let answer = system.runtime.block_on(async {
        link.ready().await?;
        let response = link.send_request(request).await?;
        let (parts, body) = response.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).cloned();
        if kind.as_ref().is_some_and(|kind| kind == "text/event-stream") {
            // it never ends: the connection goes with it
            return Ok((parts.status, kind, None));
        }
        Ok::<_, hyper::Error>((parts.status, kind, Some(body.collect().await?.to_bytes())))
    });
    let (status, kind, body) = answer.unwrap_or_else(|error| panic!("{about}: no answer: {error}"));
    assert!(status.as_u16() < 500, "{about}: {status}, {body:?}");
    let Some(body) = body else { return };
    if status.as_u16() >= 400 && !head {
        let problem = serde_json::from_slice::<Problem>(&body);
        let problem = problem.unwrap_or_else(|error| panic!("{about}: {error}: {body:?}"));
        assert_eq!(problem.status, status.as_u16(), "{about}");
        assert_eq!(
            kind.as_ref().map(header::HeaderValue::as_bytes),
            Some(&b"application/problem+json"[..])
        );
    }
    match side {
        Side::Node => system.node_link = Some(link),
        Side::Controller => system.controller_link = Some(link),
    }
}

/// The request, if it is one that HTTP can carry and that stays within the system.
fn request(bytes: &[u8]) -> Option<Request<Full<Bytes>>> {
    let cut = bytes.windows(2).position(|two| two == b"\n\n");
    let (head, body) = cut.map_or((bytes, &[][..]), |at| (&bytes[..at], &bytes[at + 2..]));
    let mut lines = std::str::from_utf8(head).ok()?.lines();
    let (method, target) = lines.next()?.split_once(' ')?;
    if !target.starts_with('/') {
        return None;
    }
    let mut builder = Request::builder().method(method).uri(target);
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        // what frames the message is hyper's to say
        let framing = ["content-length", "transfer-encoding", "connection", "upgrade", "expect"];
        if framing.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return None;
        }
        builder = builder.header(name, value);
    }
    let request = builder.body(Full::new(Bytes::copy_from_slice(body))).ok()?;
    // CONNECT changes what the connection is
    let stays = *request.method() != Method::CONNECT && !reaches_out(&request);
    stays.then_some(request)
}

/// What would touch files of the machine, or end or lock out the system: a fuzzer may not.
fn reaches_out<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    // a name may hold an escaped slash; anything else that is escaped may be one of the words below
    let escaped = path.replace("%2F", "").contains('%');
    let says = |word| path.split('/').any(|part| part == word);
    let creates = *request.method() == Method::POST && path.ends_with("/datastores");
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    let named = ["imports", "export", "down", "tokens"].into_iter().any(says);
    !reads && (escaped || creates || named)
}
