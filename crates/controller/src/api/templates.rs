//! `/templates`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::Method;
use model::{
    Code, CreateTemplate, Datastore, DeployTemplate, Name, ObjectKind, Page, Problem, Size, Task,
    Template, Volume,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Accepted, Answer, Json, Path, Query};
use super::guard::{May, Operate, Read};
use super::page::{Key, Paging, page};
use super::volumes::OnDatastore;
use super::{App, Change, Outcome, Wait, reference};
use crate::estimate;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, delete))
        .routes(routes!(deploy))
}

/// At least one new name, and none twice.
/// What so many copies of `size` promise.
pub(super) fn times(size: Size, count: usize) -> Size {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    Size::from_bytes(size.bytes().saturating_mul(count))
}

pub(super) fn some_names(names: &[Name]) -> Result<(), Problem> {
    let problem = match names {
        [] => Problem::new(Code::BadRequest, "The request names no new volume."),
        names => match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            Some((_, twice)) => {
                Problem::new(Code::BadRequest, format!("The name '{twice}' is given twice."))
            }
            None => return Ok(()),
        },
    };
    Err(problem.hint("give each new volume its own name in `names`"))
}

/// List templates
#[utoipa::path(get, path = "/api/v1/templates", operation_id = "list_templates",
    tag = "templates", params(Paging, OnDatastore),
    responses((status = 200, body = Page<Template>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Query(paging): Query<Paging>,
    Query(filter): Query<OnDatastore>,
) -> Answer<Json<Page<Template>>> {
    let on = app.filter(&filter).await?;
    let known = app.index.read();
    let wanted = known.templates.values().filter(|t| on.is_none_or(|on| on == t.datastore));
    Ok(Json(page(wanted, |t| Key::named(t.name.as_str(), t.id), &paging)?))
}

/// Make a template of a volume, or of one of its snapshots
///
/// Needs the role operator.
#[utoipa::path(post, path = "/api/v1/templates", operation_id = "create_template",
    tag = "templates", params(Wait), request_body = CreateTemplate,
    responses((status = 202, body = Task), (status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Query(wait): Query<Wait>,
    Json(mut request): Json<CreateTemplate>,
) -> Answer<Accepted> {
    let volume: Volume = app.find(&request.from).await?;
    request.from = volume.id.into();
    if let Some(snapshot) = &request.snapshot {
        request.snapshot = Some(app.find_snapshot(&volume, snapshot).await?.id.into());
    }
    app.start(Method::POST, "/v1/templates", Some(&request), wait.wait).await
}

/// Show a template
#[utoipa::path(get, path = "/api/v1/templates/{template}", operation_id = "show_template",
    tag = "templates", params(("template" = String, Path, description = "name or UUID")),
    responses((status = 200, body = Template),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn show(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Path(template): Path<String>,
) -> Answer<Json<Template>> {
    Ok(Json(app.find(&reference(ObjectKind::Template, &template)?).await?))
}

/// Delete a template
///
/// Refused while linked clones depend on it. Needs the role operator.
#[utoipa::path(delete, path = "/api/v1/templates/{template}", operation_id = "delete_template",
    tag = "templates", params(Change, ("template" = String, Path, description = "name or UUID")),
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn delete(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(template): Path<String>,
    Query(change): Query<Change>,
) -> Answer<Response> {
    let found: Template = app.find(&reference(ObjectKind::Template, &template)?).await?;
    if change.dry_run {
        return Ok(estimate::answer(estimate::delete_template(&found, &app.index.read())));
    }
    let path = format!("/v1/templates/{}", found.id);
    Ok(app.start(Method::DELETE, &path, None::<&()>, change.wait).await?.into_response())
}

/// Make volumes from a template, all or none
///
/// Needs the role operator.
#[utoipa::path(post, path = "/api/v1/templates/{template}/deploy",
    operation_id = "deploy_template", tag = "templates",
    params(Change, ("template" = String, Path, description = "name or UUID")),
    request_body = DeployTemplate,
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn deploy(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(template): Path<String>,
    Query(change): Query<Change>,
    Json(mut request): Json<DeployTemplate>,
) -> Answer<Response> {
    some_names(&request.names)?;
    let found: Template = app.find(&reference(ObjectKind::Template, &template)?).await?;
    let mut target: Datastore = app.find(&found.datastore.into()).await?;
    if let Some(datastore) = &request.datastore {
        target = app.find(datastore).await?;
        request.datastore = Some(target.id.into());
    }
    if change.dry_run {
        let kind = request.kind.unwrap_or(found.kind);
        let one = estimate::Source { name: &found.name, size: found.size, used: found.used, kind };
        let count = request.names.len();
        return Ok(estimate::answer(estimate::copies(
            &one,
            count,
            request.linked,
            &target,
            &app.index.read(),
        )));
    }
    app.may_promise(&target, times(found.size, request.names.len())).await?;
    let path = format!("/v1/templates/{}/deploy", found.id);
    Ok(app.start(Method::POST, &path, Some(&request), change.wait).await?.into_response())
}
