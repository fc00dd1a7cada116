//! The node's HTTP API over its unix socket, blocking, one connection a request.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A node's API.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    socket: PathBuf,
}

#[allow(dead_code, reason = "each test that includes this file uses a part of it")]
impl Api {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// One request with any body; status and JSON of the answer.
    pub(crate) fn raw(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> std::io::Result<(u16, Value)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        // A server that refuses a long body may answer before it has read it.
        let sent = stream.write_all(body);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(_) if !answer.is_empty() => {}
            Err(error) => return Err(sent.err().unwrap_or(error)),
        }
        let cut = answer.windows(4).position(|w| w == b"\r\n\r\n");
        let cut = cut.ok_or_else(|| std::io::Error::other("the answer was cut off"))?;
        let head = String::from_utf8_lossy(&answer[..cut]).into_owned();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other("no status"))?;
        let body = &answer[cut + 4..];
        Ok((status, serde_json::from_slice(body).map_err(std::io::Error::other)?))
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.raw(method, path, &bytes).expect("the node answers")
    }

    /// A list or an object.
    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, &Value::Null);
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// A mutation, run to its end: its result, or the problem.
    pub(crate) fn try_do(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let (status, mut task) = self.call(method, &format!("{path}?wait=120"), body);
        if status != 202 {
            assert!(status >= 400, "{method} {path}: {status} {task}");
            return Err(task);
        }
        match task["state"].as_str() {
            Some("success") => Ok(task["result"].take()),
            Some("failed" | "cancelled") => Err(task["error"].take()),
            other => panic!("{method} {path} is {other:?} after the wait: {task}"),
        }
    }

    pub(crate) fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_do(method, path, body)
            .unwrap_or_else(|problem| panic!("{method} {path}: {problem}"))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        self.done("POST", path, body)
    }

    /// A refused mutation's code.
    pub(crate) fn refused(&self, method: &str, path: &str, body: &Value) -> String {
        match self.try_do(method, path, body) {
            Err(problem) => {
                assert!(
                    problem["detail"].as_str().is_some_and(|d| d.ends_with(['.', '!'])),
                    "{problem}"
                );
                problem["code"].as_str().expect("a code").to_owned()
            }
            Ok(result) => panic!("{method} {path} was done: {result}"),
        }
    }

    pub(crate) fn datastore(&self, name: &str, dir: &Path) -> String {
        id(&self.post("/v1/datastores", &json!({ "name": name, "dir": dir })))
    }

    pub(crate) fn volume(&self, datastore: &str, name: &str, bytes: u64) -> String {
        let body = json!({ "name": name, "datastore": datastore, "size": bytes, "kind": "thin" });
        id(&self.post("/v1/volumes", &body))
    }

    /// Connects for writing over the unix socket; the socket.
    pub(crate) fn connect(&self, volume: &str) -> PathBuf {
        let connection = self.post(&format!("/v1/volumes/{volume}/connect"), &json!({}));
        connection["socket"].as_str().expect("a socket").into()
    }

    pub(crate) fn disconnect(&self, volume: &str) {
        self.post(&format!("/v1/volumes/{volume}/disconnect"), &json!({}));
    }

    /// The data of the server-sent events from `last` on, until `enough` says so.
    pub(crate) fn events(&self, last: Option<u64>, mut enough: impl FnMut(&Value) -> bool) {
        let mut stream = UnixStream::connect(&self.socket).expect("the node listens");
        let last = last.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        write!(stream, "GET /v1/events HTTP/1.1\r\nHost: node\r\n{last}\r\n").expect("sends");
        for line in BufReader::new(stream).lines() {
            let line = line.expect("the stream goes on");
            let Some(data) = line.strip_prefix("data:") else { continue };
            if enough(&serde_json::from_str(data.trim()).expect("events are JSON")) {
                return;
            }
        }
        panic!("the stream ended too early");
    }
}

pub(crate) fn id(object: &Value) -> String {
    object["id"].as_str().unwrap_or_else(|| panic!("no id in {object}")).to_owned()
}
