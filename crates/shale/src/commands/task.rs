//! `shale task` and `shale alarm`.

use controller::client::Method;
use futures_util::StreamExt as _;
use model::{Change, Problem, TaskState};

use crate::grammar::{Alarm, Task};
use crate::output;
use crate::session::{Session, segment};
use crate::waiting::outcome;

const ALL: &str = "/api/v1/tasks";

impl Session {
    pub(crate) async fn task(self, command: Task) -> Result<(), Problem> {
        match command {
            Task::List { state } => {
                let filter = state.map(|state| format!("?state={state}")).unwrap_or_default();
                let path = format!("{ALL}{filter}");
                output::list(self.format, &self.client.list::<model::Task>(&path).await?)
            }
            Task::Show { id } => {
                let path = format!("{ALL}/{}", segment(&id));
                output::row(self.format, &self.client.get::<model::Task>(&path).await?)
            }
            Task::Watch { id: Some(id) } => {
                let path = format!("{ALL}/{}", segment(&id));
                let task = self.ended(self.client.get(&path).await?, None).await?;
                output::row(self.format, &task)?;
                if task.state == TaskState::Success { Ok(()) } else { Err(outcome(task)) }
            }
            Task::Watch { id: None } => self.watch_all().await,
            Task::Cancel { id, waiting } => {
                let path = format!("{ALL}/{}/cancel", segment(&id));
                let task: model::Task = self.client.call(Method::POST, &path, None::<&()>).await?;
                let until = waiting.timeout.map(|seconds| {
                    tokio::time::Instant::now() + std::time::Duration::from_secs(seconds)
                });
                let task = if waiting.no_wait { task } else { self.ended(task, until).await? };
                output::row(self.format, &task)
            }
        }
    }

    /// One line for each change of any task, until the server or the user ends it.
    async fn watch_all(&self) -> Result<(), Problem> {
        let mut events = self.client.events(None).await?;
        while let Some(event) = events.next().await {
            if let Change::Task(task) = event.change {
                output::object(self.format, &task, || {
                    let phase = task.phase.as_deref().unwrap_or_default();
                    format!(
                        "{}  {} {}  {} {}%  {phase}\n",
                        task.id, task.operation, task.object.name, task.state, task.percent
                    )
                })?;
            }
        }
        Ok(())
    }

    pub(crate) async fn alarm(self, command: Alarm) -> Result<(), Problem> {
        match command {
            Alarm::List => {
                let alarms = self.client.list::<model::Alarm>("/api/v1/alarms").await?;
                output::list(self.format, &alarms)
            }
        }
    }
}
