//! One file a noun. Every command is made of calls of the public API.

mod datastore;
mod schedule;
mod snapshot;
mod task;
mod template;
mod token;
mod transfer;
mod volume;

use controller::client::Method;
use model::{Estimate, Name, Problem, Task};
use serde::Serialize;
use serde_json::Value;

use crate::grammar::{FullCopies, Try, Waiting};
use crate::output::{self, Row};
use crate::session::Session;

impl Session {
    /// Begins a change and waits for its end, as `waiting` says. `None`: the task was printed, there
    /// is nothing more to say.
    async fn change<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        waiting: &Waiting,
    ) -> Result<Option<Task>, Problem> {
        let task: Task = self.client.call(method, path, body).await?;
        match self.wait(task.clone(), waiting).await? {
            Some(task) => Ok(Some(task)),
            None => output::row(self.format, &task).map(|()| None),
        }
    }

    /// With `--dry-run`: prints what the change would cost. Whether that was all.
    async fn tried<B: Serialize>(
        &self,
        tried: &Try,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<bool, Problem> {
        if tried.dry_run {
            let path = format!("{path}?dry_run=true");
            let estimate: Estimate = self.client.call(method, &path, body).await?;
            self.estimate(&estimate)?;
        }
        Ok(tried.dry_run)
    }

    /// Prints what a task made: one object or several, as the columns of `T`.
    fn made<T: Row + Serialize + serde::de::DeserializeOwned>(
        &self,
        task: Option<Task>,
    ) -> Result<(), Problem> {
        let Some(task) = task else { return Ok(()) };
        let result = task.result.clone().unwrap_or(Value::Null);
        if let Ok(one) = serde_json::from_value::<T>(result.clone()) {
            return output::row(self.format, &one);
        }
        match serde_json::from_value::<Vec<T>>(result) {
            Ok(several) => output::list(self.format, &several),
            // a server of another version: at least its task is known
            Err(_) => output::row(self.format, &task),
        }
    }

    /// Says that something is done that leaves nothing to show.
    fn done(&self, task: Option<Task>, text: &str) -> Result<(), Problem> {
        let Some(task) = task else { return Ok(()) };
        output::object(self.format, &task, || format!("{text}\n"))
    }
}

/// The names of the new volumes.
fn names(copies: &FullCopies) -> Result<Vec<Name>, Problem> {
    let Some(count) = copies.count else { return Ok(copies.names.clone()) };
    let [base] = copies.names.as_slice() else {
        return Err(Problem::new(
            model::Code::BadRequest,
            "--count makes its names from one --name; several were given.",
        ));
    };
    if count == 1 {
        return Ok(vec![base.clone()]);
    }
    (1..=count)
        .map(|n| {
            Name::new(format!("{base}-{n}"))
                .map_err(|e| Problem::new(model::Code::InvalidName, format!("{e}.")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_names() {
        let name = |text: &str| Name::new(text).expect("a name");
        let copies = |names: &[&str], count| FullCopies {
            names: names.iter().copied().map(name).collect(),
            count,
            kind: None,
            datastore: None,
        };
        let made = |names: &[&str], count| {
            super::names(&copies(names, count))
                .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>())
                .map_err(|problem| problem.code)
        };
        assert_eq!(made(&["a", "b"], None), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(made(&["a"], Some(1)), Ok(vec!["a".into()]));
        assert_eq!(made(&["a"], Some(3)), Ok(vec!["a-1".into(), "a-2".into(), "a-3".into()]));
        assert_eq!(made(&["a", "b"], Some(2)), Err(model::Code::BadRequest));
        assert_eq!(made(&["x".repeat(63).as_str()], Some(2)), Err(model::Code::InvalidName));
    }
}
