//! `shale volume import` and `shale volume export`.

use controller::client::Method;
use model::{Code, ExportVolume, ImportVolume, Problem, Reference, Task};

use crate::grammar::{Try, Waiting};
use crate::session::{Session, segment};

/// Standard input, or standard output.
const PIPE: &str = "-";

impl Session {
    pub(super) async fn import(
        &self,
        mut body: ImportVolume,
        tried: &Try,
        waiting: &Waiting,
    ) -> Result<(), Problem> {
        const PATH: &str = "/api/v1/imports";
        if body.source != PIPE {
            body.source = absolute(&body.source)?;
        }
        if self.tried(tried, Method::POST, PATH, Some(&body)).await? {
            return Ok(());
        }
        if body.source != PIPE {
            let task = self.change(Method::POST, PATH, Some(&body), waiting).await?;
            return self.made::<model::Volume>(task);
        }
        let task: Task = self.client.call(Method::POST, PATH, Some(&body)).await?;
        let data = format!("/api/v1/tasks/{}/data", task.id);
        let mut sending = std::pin::pin!(self.client.upload::<Task>(&data, std::io::stdin()));
        let mut ending = std::pin::pin!(self.wait(task, waiting));
        // What the task says is what happened: when it has ended, nobody takes the rest of the data.
        let (sent, ended) = tokio::select! {
            sent = &mut sending => (Some(sent), ending.await),
            ended = &mut ending => (None, ended),
        };
        match ended? {
            Some(task) => self.made::<model::Volume>(Some(task)),
            None => {
                let sent = match sent {
                    Some(sent) => sent?,
                    None => sending.await?,
                };
                crate::output::row(self.format, &sent)
            }
        }
    }

    pub(super) async fn export(
        &self,
        name: &Reference,
        mut body: ExportVolume,
        waiting: &Waiting,
    ) -> Result<(), Problem> {
        if body.to == PIPE {
            return self.stream(name, &body).await;
        }
        body.to = absolute(&body.to)?;
        let path = format!("/api/v1/volumes/{}/export", segment(name));
        let task = self.change(Method::POST, &path, Some(&body), waiting).await?;
        self.done(task, &format!("volume '{name}' is exported to {}", body.to))
    }
}

impl Session {
    async fn stream(&self, name: &Reference, body: &ExportVolume) -> Result<(), Problem> {
        if body.with_snapshots {
            return Err(Problem::new(Code::BadRequest, "A stream holds one disk, not a folder."));
        }
        let mut path = format!("/api/v1/volumes/{}/data?format={}", segment(name), body.format);
        if let Some(snapshot) = &body.snapshot {
            path += &format!("&snapshot={}", segment(snapshot));
        }
        self.client.download(&path, std::io::stdout().lock()).await
    }
}

/// A path as the node's host has it: relative ones start where this command was called.
fn absolute(path: &str) -> Result<String, Problem> {
    if path.contains("://") {
        return Ok(path.to_owned());
    }
    let bad = |why: &str| Problem::new(Code::BadRequest, format!("'{path}' is no path: {why}."));
    let absolute = std::path::absolute(path).map_err(|error| bad(&error.to_string()))?;
    absolute.into_os_string().into_string().map_err(|_not_text| bad("it is not in UTF-8"))
}
