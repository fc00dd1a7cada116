//! `shale volume import` and `shale volume export`.

use controller::client::Method;
use model::{Code, ExportVolume, ImportVolume, Problem, Reference, Task};

use crate::grammar::Waiting;
use crate::session::{Session, segment};

/// Standard input.
const PIPE: &str = "-";

impl Session {
    pub(super) async fn import(
        &self,
        mut body: ImportVolume,
        waiting: &Waiting,
    ) -> Result<(), Problem> {
        const PATH: &str = "/api/v1/imports";
        if body.source != PIPE {
            body.source = absolute(&body.source)?;
            let task = self.change(Method::POST, PATH, Some(&body), waiting).await?;
            return self.made::<model::Volume>(task);
        }
        let task: Task = self.client.call(Method::POST, PATH, Some(&body)).await?;
        let data = format!("/api/v1/tasks/{}/data", task.id);
        let sending = self.client.upload::<Task>(&data, std::io::stdin());
        let (sent, ended) = tokio::join!(sending, self.wait(task, waiting));
        match (sent, ended) {
            (_, Ok(Some(task))) => self.made::<model::Volume>(Some(task)),
            (Ok(task), Ok(None)) => crate::output::row(self.format, &task),
            // what the task says is what happened; that nobody took the rest of the data follows from it
            (_, Err(problem)) | (Err(problem), Ok(None)) => Err(problem),
        }
    }

    pub(super) async fn export(
        &self,
        name: &Reference,
        mut body: ExportVolume,
        waiting: &Waiting,
    ) -> Result<(), Problem> {
        body.to = absolute(&body.to)?;
        let path = format!("/api/v1/volumes/{}/export", segment(name));
        let task = self.change(Method::POST, &path, Some(&body), waiting).await?;
        self.done(task, &format!("volume '{name}' is exported to {}", body.to))
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
