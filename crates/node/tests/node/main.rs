//! A whole node in this process, on a directory of its own, driven as the controller drives it: HTTP on
//! its unix socket, NBD on the sockets that it names.

mod api;
mod connect;
mod http;
mod nbd;
mod restart;
mod snapshots;

use std::path::PathBuf;

use node::{Node, Options};
use tempfile::TempDir;

use crate::api::Api;

/// A node and its directories.
struct Host {
    dir: TempDir,
    node: Option<Node>,
    api: Api,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (node, api) = start(&dir);
        std::fs::create_dir(dir.path().join("store")).expect("a directory for the datastore");
        Self { dir, node: Some(node), api }
    }

    /// A node with one datastore; the datastore's id.
    fn with_store() -> (Self, String) {
        let host = Self::new();
        let store = host.api.datastore("fast", &host.store());
        (host, store)
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn logs(&self) -> PathBuf {
        logs(&self.dir)
    }

    /// A planned end, and what `between` does while no node runs; then a new node.
    fn restart(&mut self, between: impl FnOnce(&Self)) {
        self.node.take().expect("it runs").stop();
        between(self);
        let (node, api) = start(&self.dir);
        (self.node, self.api) = (Some(node), api);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            node.stop();
        }
    }
}

/// On a tmpfs where there is one, and never where a real node keeps its logs.
fn logs(dir: &TempDir) -> PathBuf {
    dir.path().join("logs")
}

fn options(dir: &TempDir) -> Options {
    Options { logs: Some(logs(dir)), owns_process: false, ..Options::new(dir.path().join("data")) }
}

fn start(dir: &TempDir) -> (Node, Api) {
    let node = Node::start(&options(dir)).expect("the node starts");
    let api = Api::new(node.socket());
    // Lists wait until what was here before is recovered.
    api.get("/v1/volumes");
    (node, api)
}
