//! The REST API as the model calls it: one call after the other, tasks waited for.

use std::cell::RefCell;

use anyhow::{Context, Result};
use controller::client::{Client, Method};
use model::{Code, Problem, Task, TaskState};
use serde_json::Value;

/// How long one question for a task waits at the server, in seconds.
const WAIT: u32 = 10;

pub(super) struct Rest {
    runtime: tokio::runtime::Runtime,
    client: RefCell<Client>,
}

impl Rest {
    pub(super) fn new(url: &str, token: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = Client::new(url, token).map_err(|p| anyhow::anyhow!("{}", p.detail))?;
        Ok(Self { runtime, client: RefCell::new(client) })
    }

    /// The server has another address now.
    pub(super) fn moved(&self, url: &str, token: &str) -> Result<()> {
        let client = Client::new(url, token).map_err(|p| anyhow::anyhow!("{}", p.detail))?;
        *self.client.borrow_mut() = client;
        Ok(())
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Problem> {
        let client = self.client.borrow().clone();
        self.runtime.block_on(client.get(path))
    }

    /// Every object of a list.
    pub(super) fn list(&self, path: &str) -> Result<Vec<Value>, Problem> {
        let client = self.client.borrow().clone();
        self.runtime.block_on(client.list(path))
    }

    /// A change; its task when it has succeeded.
    pub(super) fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Task, Problem> {
        let task = self.begin(method, path, body)?;
        self.ended(task)
    }

    /// A change; its task as it was accepted.
    pub(super) fn begin(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Task, Problem> {
        let client = self.client.borrow().clone();
        self.runtime.block_on(client.call(method, path, body))
    }

    /// The task when it has succeeded, or why it did not.
    pub(super) fn ended(&self, mut task: Task) -> Result<Task, Problem> {
        while !task.state.is_final() {
            let client = self.client.borrow().clone();
            let path = format!("/api/v1/tasks/{}?wait={WAIT}", task.id);
            task = self.runtime.block_on(client.get(&path))?;
        }
        match task.state {
            TaskState::Success => Ok(task),
            TaskState::Cancelled => {
                Err(task.error.unwrap_or_else(|| Problem::new(Code::Cancelled, "cancelled")))
            }
            _ => Err(task.error.unwrap_or_else(|| Problem::new(Code::Internal, "no reason"))),
        }
    }
}

/// A field of an answer.
pub(super) fn text(value: &Value, field: &str) -> Result<String> {
    let found = value[field].as_str().with_context(|| format!("no {field} in {value}"))?;
    Ok(found.to_owned())
}

/// The same, a number.
pub(super) fn number(value: &Value, field: &str) -> Result<u64> {
    value[field].as_u64().with_context(|| format!("no {field} in {value}"))
}
