//! `/datastores`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::Method;
use model::{CreateDatastore, Datastore, ObjectKind, Page, Problem, Task, UpdateDatastore};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Accepted, Answer, Json, Path, Query};
use super::guard::{ManageStorage, May, Read};
use super::page::{Key, Paging, page};
use super::{App, Change, Outcome, Wait, reference};
use crate::estimate;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, update, delete))
        .routes(routes!(check))
}

/// List datastores
#[utoipa::path(get, path = "/api/v1/datastores", operation_id = "list_datastores",
    tag = "datastores", params(Paging),
    responses((status = 200, body = Page<Datastore>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Datastore>>> {
    let all: Vec<Datastore> = app.index.read().datastores.values().cloned().collect();
    Ok(Json(page(&all, |d| Key::named(d.name.as_str(), d.id), &paging)?))
}

/// Make a datastore in a directory, or adopt the one that is there
///
/// Needs the role storage-admin.
#[utoipa::path(post, path = "/api/v1/datastores", operation_id = "create_datastore",
    tag = "datastores", params(Wait), request_body = CreateDatastore,
    responses((status = 202, body = Task), (status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create(
    _: May<ManageStorage>,
    State(app): State<Arc<App>>,
    Query(wait): Query<Wait>,
    Json(request): Json<CreateDatastore>,
) -> Answer<Accepted> {
    app.start(Method::POST, "/v1/datastores", Some(&request), wait.wait).await
}

/// Show a datastore
#[utoipa::path(get, path = "/api/v1/datastores/{datastore}", operation_id = "show_datastore",
    tag = "datastores", params(("datastore" = String, Path, description = "name or UUID")),
    responses((status = 200, body = Datastore),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn show(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Path(datastore): Path<String>,
) -> Answer<Json<Datastore>> {
    let known: Datastore = app.find(&reference(ObjectKind::Datastore, &datastore)?).await?;
    // one that the node does not have is shown as missing
    let mut found = app.now("datastores", known.clone()).await.unwrap_or(known);
    found.policy = crate::policy::of(&app.inventory, found.id);
    Ok(Json(found))
}

/// Change when a datastore is an alarm, and what it refuses
///
/// Needs the role storage-admin.
#[utoipa::path(patch, path = "/api/v1/datastores/{datastore}", operation_id = "update_datastore",
    tag = "datastores", params(("datastore" = String, Path, description = "name or UUID")),
    request_body = UpdateDatastore,
    responses((status = 200, body = Datastore),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn update(
    _: May<ManageStorage>,
    State(app): State<Arc<App>>,
    Path(datastore): Path<String>,
    Json(request): Json<UpdateDatastore>,
) -> Answer<Json<Datastore>> {
    let found: Datastore = app.find(&reference(ObjectKind::Datastore, &datastore)?).await?;
    crate::policy::change(&app.inventory, found.id, request).await?;
    app.refresher.refresh().await;
    Ok(Json(app.find(&found.id.into()).await?))
}

/// Remove a datastore that holds no volumes
///
/// One that the node does not have is only forgotten. Needs the role storage-admin.
#[utoipa::path(delete, path = "/api/v1/datastores/{datastore}", operation_id = "delete_datastore",
    tag = "datastores", params(Change, ("datastore" = String, Path, description = "name or UUID")),
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = 204, description = "forgotten"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn delete(
    _: May<ManageStorage>,
    State(app): State<Arc<App>>,
    Path(datastore): Path<String>,
    Query(change): Query<Change>,
) -> Answer<Response> {
    let found: Datastore = app.find(&reference(ObjectKind::Datastore, &datastore)?).await?;
    if change.dry_run {
        return Ok(estimate::answer(estimate::delete_datastore(&found)));
    }
    let listed: Vec<Datastore> = app.node.list("/v1/datastores").await?;
    if !listed.iter().any(|d| d.id == found.id) {
        crate::sync::forget(&app.inventory, found.id).await?;
        app.refresher.refresh().await;
        return Ok(axum::http::StatusCode::NO_CONTENT.into_response());
    }
    let path = format!("/v1/datastores/{}", found.id);
    Ok(app.start(Method::DELETE, &path, None::<&()>, change.wait).await?.into_response())
}

/// Check every object of a datastore
///
/// The task's result is a report. Needs the role storage-admin.
#[utoipa::path(post, path = "/api/v1/datastores/{datastore}/check",
    operation_id = "check_datastore", tag = "datastores",
    params(Wait, ("datastore" = String, Path, description = "name or UUID")),
    responses((status = 202, body = Task), (status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn check(
    _: May<ManageStorage>,
    State(app): State<Arc<App>>,
    Path(datastore): Path<String>,
    Query(wait): Query<Wait>,
) -> Answer<Accepted> {
    let found: Datastore = app.find(&reference(ObjectKind::Datastore, &datastore)?).await?;
    let path = format!("/v1/datastores/{}/check", found.id);
    app.start(Method::POST, &path, None::<&()>, wait.wait).await
}
