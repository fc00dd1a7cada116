//! `/imports`, `/volumes/{volume}/export` and the data that goes with them.
//!
//! A path is read or written with the rights of the node's user, and an address is called from the
//! node's host: both need the role storage-admin. A stream brings its own bytes: an operator may send
//! it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::Method;
use model::{
    Datastore, ExportFormat, ExportVolume, ImportSource, ImportVolume, ObjectKind, Problem, Task,
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Accepted, Answer, Json, Path, Query};
use super::guard::{ManageStorage, May, Operate, Who};
use super::{App, Change, Outcome, Wait, reference, tasks};
use crate::estimate;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(import))
        .routes(routes!(export))
        .routes(routes!(download))
        .routes(routes!(upload))
}

/// Make a volume of a disk that stands elsewhere
///
/// All of it or nothing. Needs the role storage-admin for a path or an address, and operator for a
/// stream, whose data is then sent to the task.
#[utoipa::path(post, path = "/api/v1/imports", operation_id = "import_volume", tag = "volumes",
    params(Change), request_body = ImportVolume,
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn import(
    _: May<Operate>,
    who: Who,
    State(app): State<Arc<App>>,
    Query(change): Query<Change>,
    Json(mut request): Json<ImportVolume>,
) -> Answer<Response> {
    let stream = request.source == "-";
    if !stream {
        who.may::<ManageStorage>()?;
    }
    let datastore: Datastore = app.find(&request.datastore).await?;
    request.datastore = datastore.id.into();
    // what is promised by it, only the source tells
    let limited = datastore.policy.overcommit_limit != model::Threshold::NONE;
    let mut source: Option<ImportSource> = None;
    if !stream && (change.dry_run || limited) {
        let path = "/v1/imports/source";
        source = Some(app.node.call(Method::POST, path, Some(&request)).await?);
    }
    if change.dry_run {
        let known = app.index.read();
        let told = estimate::import(&request, source.as_ref(), &datastore, &known);
        return Ok(estimate::answer(told));
    }
    if let Some(source) = source {
        app.may_promise(&datastore, source.size).await?;
    }
    let path = "/v1/imports";
    Ok(app.start(Method::POST, path, Some(&request), change.wait).await?.into_response())
}

/// Write a volume, or a snapshot of it, into files on the node's host
///
/// Under temporary names until all of it is durable. Needs the role storage-admin.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/export", operation_id = "export_volume",
    tag = "volumes", params(Wait, ("volume" = String, Path, description = "name or UUID")),
    request_body = ExportVolume,
    responses((status = 202, body = Task), (status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn export(
    _: May<ManageStorage>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(wait): Query<Wait>,
    Json(mut request): Json<ExportVolume>,
) -> Answer<Accepted> {
    let found = app.volume(&volume).await?;
    if let Some(snapshot) = &request.snapshot {
        request.snapshot = Some(app.find_snapshot(&found, snapshot).await?.id.into());
    }
    let path = format!("/v1/volumes/{}/export", found.id);
    app.start(Method::POST, &path, Some(&request), wait.wait).await
}

/// What is streamed.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Streamed {
    /// `vhd` (the default), `vhd-fixed` or `raw`.
    #[serde(default)]
    #[param(inline)]
    format: ExportFormat,
    /// Of this snapshot; absent: of the current state, while it is disconnected.
    #[serde(default)]
    snapshot: Option<String>,
}

/// Read a volume, or a snapshot of it, as a stream
///
/// An error after the first byte cuts it off; its task says why. Needs the role operator.
#[utoipa::path(get, path = "/api/v1/volumes/{volume}/data", operation_id = "read_volume",
    tag = "volumes", params(Streamed, ("volume" = String, Path, description = "name or UUID")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn download(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(asked): Query<Streamed>,
) -> Answer<Response> {
    let found = app.volume(&volume).await?;
    let mut path = format!("/v1/volumes/{}/data?format={}", found.id, asked.format);
    if let Some(snapshot) = &asked.snapshot {
        let snapshot = reference(ObjectKind::Snapshot, snapshot)?;
        path += &format!("&snapshot={}", app.find_snapshot(&found, &snapshot).await?.id);
    }
    let mut response = Response::new(app.node.download(&path).await?);
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Send the data that a task waits for
///
/// The answer comes when all of it was taken. Needs the role operator.
#[utoipa::path(put, path = "/api/v1/tasks/{task}/data", operation_id = "send_data", tag = "tasks",
    params(("task" = String, Path, description = "UUID")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn upload(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(task): Path<String>,
    request: Request,
) -> Answer<Json<Task>> {
    let id = tasks::id_of(&task)?;
    let body: Body = request.into_body();
    Ok(Json(app.node.upload(&format!("/v1/tasks/{id}/data"), body).await?))
}
