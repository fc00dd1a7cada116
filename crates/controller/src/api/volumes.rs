//! `/volumes`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::Method;
use model::{
    CloneVolume, Code, ConnectVolume, ConvertVolume, CreateVolume, Datastore, Estimate, ObjectKind,
    Operation, Page, Problem, Size, Task, UpdateVolume, Volume,
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Accepted, Answer, Json, Path, Query};
use super::guard::{May, Operate, Read};
use super::page::{Key, Paging, page};
use super::{App, Change, Outcome, Wait, reference};
use crate::estimate;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, update, delete))
        .routes(routes!(convert))
        .routes(routes!(connect))
        .routes(routes!(disconnect))
        .routes(routes!(clone))
}

/// Which connections are closed.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Closing {
    /// Only the connection of this snapshot: name or UUID; absent: all connections of the volume.
    #[serde(default)]
    pub(crate) snapshot: Option<String>,
}

/// Which volumes.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct OnDatastore {
    /// Only those on this datastore: name or UUID.
    #[serde(default)]
    pub(crate) datastore: Option<String>,
}

/// List volumes
#[utoipa::path(get, path = "/api/v1/volumes", operation_id = "list_volumes", tag = "volumes",
    params(Paging, OnDatastore),
    responses((status = 200, body = Page<Volume>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Query(paging): Query<Paging>,
    Query(filter): Query<OnDatastore>,
) -> Answer<Json<Page<Volume>>> {
    let on = app.filter(&filter).await?;
    let known = app.index.read();
    let wanted = known.volumes.values().filter(|v| on.is_none_or(|on| on == v.datastore));
    Ok(Json(page(wanted, |v| Key::named(v.name.as_str(), v.id), &paging)?))
}

/// Make a volume
///
/// Needs the role operator.
#[utoipa::path(post, path = "/api/v1/volumes", operation_id = "create_volume", tag = "volumes",
    params(Change), request_body = CreateVolume,
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Query(change): Query<Change>,
    Json(mut request): Json<CreateVolume>,
) -> Answer<Response> {
    let datastore: Datastore = app.find(&request.datastore).await?;
    request.datastore = datastore.id.into();
    if change.dry_run {
        return Ok(estimate::answer(estimate::create_volume(&request, &datastore)));
    }
    app.may_promise(&datastore, request.size).await?;
    Ok(app.start(Method::POST, "/v1/volumes", Some(&request), change.wait).await?.into_response())
}

/// Show a volume
#[utoipa::path(get, path = "/api/v1/volumes/{volume}", operation_id = "show_volume",
    tag = "volumes", params(("volume" = String, Path, description = "name or UUID")),
    responses((status = 200, body = Volume),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn show(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
) -> Answer<Json<Volume>> {
    let known = app.volume(&volume).await?;
    let changing = !known.connections.is_empty() || known.task.is_some();
    let mut found = if changing { app.now("volumes", known).await? } else { known };
    found.next_snapshot = app.next_snapshot(&found);
    Ok(Json(found))
}

/// Rename a volume or make it larger
///
/// Needs the role operator.
#[utoipa::path(patch, path = "/api/v1/volumes/{volume}", operation_id = "update_volume",
    tag = "volumes", params(Change, ("volume" = String, Path, description = "name or UUID")),
    request_body = UpdateVolume,
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn update(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(change): Query<Change>,
    Json(request): Json<UpdateVolume>,
) -> Answer<Response> {
    if request.name.is_none() && request.size.is_none() {
        let problem = Problem::new(Code::BadRequest, "The request changes nothing.");
        return Err(problem.hint("give a new name, a new size, or both").into());
    }
    let found = app.volume(&volume).await?;
    if change.dry_run {
        let on: Datastore = app.find(&found.datastore.into()).await?;
        return Ok(estimate::answer(estimate::resize(&found, request.size, &on)));
    }
    if let Some(size) = request.size.filter(|size| *size > found.size) {
        let on: Datastore = app.find(&found.datastore.into()).await?;
        let more = size.bytes().saturating_sub(found.size.bytes());
        app.may_promise(&on, Size::from_bytes(more)).await?;
    }
    let path = format!("/v1/volumes/{}", found.id);
    Ok(app.start(Method::PATCH, &path, Some(&request), change.wait).await?.into_response())
}

/// Delete a volume and its snapshots
///
/// Refused while it is connected or others depend on it. Needs the role operator.
#[utoipa::path(delete, path = "/api/v1/volumes/{volume}", operation_id = "delete_volume",
    tag = "volumes", params(Change, ("volume" = String, Path, description = "name or UUID")),
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn delete(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(change): Query<Change>,
) -> Answer<Response> {
    let found = app.volume(&volume).await?;
    if change.dry_run {
        return Ok(estimate::answer(estimate::delete_volume(&found, &app.index.read())));
    }
    let path = format!("/v1/volumes/{}", found.id);
    Ok(app.start(Method::DELETE, &path, None::<&()>, change.wait).await?.into_response())
}

/// Make a volume one of another kind
///
/// Its snapshots stay where the kind can keep them; a dry run tells. Refused while it is connected.
/// Needs the role operator.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/convert", operation_id = "convert_volume",
    tag = "volumes", params(Change, ("volume" = String, Path, description = "name or UUID")),
    request_body = ConvertVolume,
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn convert(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(change): Query<Change>,
    Json(request): Json<ConvertVolume>,
) -> Answer<Response> {
    let found = app.volume(&volume).await?;
    let path = format!("/v1/volumes/{}/convert", found.id);
    if change.dry_run {
        let path = format!("{path}?kind={}", request.kind);
        let mut told: Estimate = app.node.call(Method::GET, &path, None::<&()>).await?;
        told.seconds = estimate::seconds(&app.index.read(), Operation::VolumeConvert, told.moves);
        return Ok(estimate::answer(told));
    }
    Ok(app.start(Method::POST, &path, Some(&request), change.wait).await?.into_response())
}

/// Open a way to a volume
///
/// The task's result is the connection. Needs the role operator.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/connect", operation_id = "connect_volume",
    tag = "volumes", params(Wait, ("volume" = String, Path, description = "name or UUID")),
    request_body = ConnectVolume,
    responses((status = 202, body = Task), (status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn connect(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(wait): Query<Wait>,
    Json(mut request): Json<ConnectVolume>,
) -> Answer<Accepted> {
    let found = app.volume(&volume).await?;
    if let Some(snapshot) = &request.snapshot {
        if !request.read_only {
            let problem =
                Problem::new(Code::BadRequest, "A snapshot is shown read-only: it never changes.");
            return Err(problem
                .hint("add read_only (--read-only), or clone the snapshot to write to it")
                .into());
        }
        request.snapshot = Some(app.find_snapshot(&found, snapshot).await?.id.into());
    }
    let path = format!("/v1/volumes/{}/connect", found.id);
    app.start(Method::POST, &path, Some(&request), wait.wait).await
}

/// Close the ways to a volume, or the one to a snapshot of it
///
/// Needs the role operator.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/disconnect",
    operation_id = "disconnect_volume", tag = "volumes",
    params(Wait, Closing, ("volume" = String, Path, description = "name or UUID")),
    responses((status = 202, body = Task), (status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn disconnect(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(closing): Query<Closing>,
    Query(wait): Query<Wait>,
) -> Answer<Accepted> {
    let found = app.volume(&volume).await?;
    let snapshot = match &closing.snapshot {
        Some(wanted) => Some(
            app.find_snapshot(&found, &reference(model::ObjectKind::Snapshot, wanted)?).await?.id,
        ),
        None => None,
    };
    let path = format!("/v1/volumes/{}/disconnect", found.id);
    let body = serde_json::json!({ "snapshot": snapshot });
    app.start(Method::POST, &path, Some(&body), wait.wait).await
}

/// Make linked clones or full copies, all or none
///
/// Needs the role operator.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/clone", operation_id = "clone_volume",
    tag = "volumes", params(Change, ("volume" = String, Path, description = "name or UUID")),
    request_body = CloneVolume,
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn clone(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(change): Query<Change>,
    Json(mut request): Json<CloneVolume>,
) -> Answer<Response> {
    super::templates::some_names(&request.names)?;
    let found = app.volume(&volume).await?;
    if let Some(snapshot) = &request.snapshot {
        request.snapshot = Some(app.find_snapshot(&found, snapshot).await?.id.into());
    }
    let mut target: Datastore = app.find(&found.datastore.into()).await?;
    if let Some(datastore) = &request.datastore {
        target = app.find(datastore).await?;
        request.datastore = Some(target.id.into());
    }
    if change.dry_run {
        let kind = request.kind.unwrap_or(found.kind);
        let one =
            estimate::Source { name: &found.name, size: found.size, used: found.space.used, kind };
        let count = request.names.len();
        return Ok(estimate::answer(estimate::copies(
            &one,
            count,
            request.linked,
            &target,
            &app.index.read(),
        )));
    }
    app.may_promise(&target, super::templates::times(found.size, request.names.len())).await?;
    let path = format!("/v1/volumes/{}/clone", found.id);
    Ok(app.start(Method::POST, &path, Some(&request), change.wait).await?.into_response())
}

impl App {
    pub(super) async fn volume(&self, text: &str) -> Answer<Volume> {
        self.find(&reference(ObjectKind::Volume, text)?).await
    }

    pub(super) async fn filter(&self, filter: &OnDatastore) -> Answer<Option<model::Uuid>> {
        match &filter.datastore {
            Some(text) => {
                let found: Datastore = self.find(&reference(ObjectKind::Datastore, text)?).await?;
                Ok(Some(found.id))
            }
            None => Ok(None),
        }
    }
}
