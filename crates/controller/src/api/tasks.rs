//! `/tasks`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use hyper::Method;
use model::{ObjectKind, Page, Problem, Reference, Task, TaskState, Uuid};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Accepted, Answer, Json, Path, Query};
use super::guard::{May, Operate, Read};
use super::page::{Key, Paging, page};
use super::{App, WAIT_LIMIT, Wait, reference};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(cancel))
}

/// Which tasks.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct InState {
    /// Only those in this state.
    #[serde(default)]
    #[param(inline)]
    state: Option<TaskState>,
}

/// List tasks, newest first
#[utoipa::path(get, path = "/api/v1/tasks", operation_id = "list_tasks", tag = "tasks",
    params(Paging, InState),
    responses((status = 200, body = Page<Task>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Query(paging): Query<Paging>,
    Query(filter): Query<InState>,
) -> Answer<Json<Page<Task>>> {
    let all: Vec<Task> = {
        let known = app.index.read();
        let wanted = known.tasks.values().filter(|t| filter.state.is_none_or(|s| s == t.state));
        wanted.cloned().collect()
    };
    Ok(Json(page(&all, newest_first, &paging)?))
}

fn newest_first(task: &Task) -> Key<'_> {
    Key { name: "", number: u64::MAX - task.created.unix_ms(), id: task.id }
}

/// Show a task
///
/// With `wait`, when it has ended or the time is over.
#[utoipa::path(get, path = "/api/v1/tasks/{task}", operation_id = "show_task", tag = "tasks",
    params(Wait, ("task" = String, Path, description = "UUID")),
    responses((status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn show(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Path(task): Path<String>,
    Query(wait): Query<Wait>,
) -> Answer<Json<Task>> {
    let id = id_of(&task)?;
    let limit = Duration::from_secs(wait.wait.unwrap_or(0).min(WAIT_LIMIT));
    let found = app.index.wait_task(id, limit).await;
    Ok(Json(found.ok_or_else(|| Problem::not_found(ObjectKind::Task, &task))?))
}

/// Ask a task to end early
///
/// Needs the role operator.
#[utoipa::path(post, path = "/api/v1/tasks/{task}/cancel", operation_id = "cancel_task",
    tag = "tasks", params(Wait, ("task" = String, Path, description = "UUID")),
    responses((status = 202, body = Task), (status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn cancel(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(task): Path<String>,
    Query(wait): Query<Wait>,
) -> Answer<Accepted> {
    let id = id_of(&task)?;
    let known = app.index.read().tasks.get(&id).cloned();
    let known = known.ok_or_else(|| Problem::not_found(ObjectKind::Task, &task))?;
    if known.state.is_final() {
        return Ok(Accepted(known));
    }
    app.start(Method::POST, &format!("/v1/tasks/{id}/cancel"), None::<&()>, wait.wait).await
}

pub(super) fn id_of(text: &str) -> Result<Uuid, Problem> {
    match reference(ObjectKind::Task, text)? {
        Reference::Id(id) => Ok(id),
        Reference::Name(_) | Reference::Qualified { .. } => {
            Err(Problem::not_found(ObjectKind::Task, text))
        }
    }
}
