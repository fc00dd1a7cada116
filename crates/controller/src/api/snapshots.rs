//! `/snapshots` and `/volumes/{volume}/snapshots`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::Method;
use model::{
    Code, CreateSnapshot, Datastore, Page, Problem, Snapshot, SnapshotDiff, SnapshotTree, Task,
    Volume,
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Json, Path, Query};
use super::guard::{May, Operate, Read};
use super::page::{Key, Paging, page};
use super::{App, Change, Outcome, reference};
use crate::estimate;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(list_of))
        .routes(routes!(tree))
        .routes(routes!(diff))
        .routes(routes!(show, delete))
        .routes(routes!(revert))
}

/// Which snapshots.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct OfVolume {
    /// Only those of this volume: name or UUID.
    #[serde(default)]
    volume: Option<String>,
}

/// Two points in time.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Between {
    /// The earlier snapshot; absent: an empty disk.
    #[serde(default)]
    from: Option<String>,
    /// The later snapshot; absent: the current state.
    #[serde(default)]
    to: Option<String>,
}

fn key(snapshot: &Snapshot) -> Key<'_> {
    let (name, number) = (snapshot.volume_name.as_str(), snapshot.created.unix_ms());
    Key { name, number, id: snapshot.id }
}

/// List snapshots of all volumes
#[utoipa::path(get, path = "/api/v1/snapshots", operation_id = "list_snapshots",
    tag = "snapshots", params(Paging, OfVolume),
    responses((status = 200, body = Page<Snapshot>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Query(paging): Query<Paging>,
    Query(filter): Query<OfVolume>,
) -> Answer<Json<Page<Snapshot>>> {
    let of = match &filter.volume {
        Some(volume) => Some(app.volume(volume).await?.id),
        None => None,
    };
    let known = app.index.read();
    let wanted = known.snapshots.values().filter(|s| of.is_none_or(|of| of == s.volume));
    Ok(Json(page(wanted, key, &paging)?))
}

/// Snapshot volumes at one point in time, all or none
///
/// Needs the role operator.
#[utoipa::path(post, path = "/api/v1/snapshots", operation_id = "create_snapshot",
    tag = "snapshots", params(Change), request_body = CreateSnapshot,
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Query(change): Query<Change>,
    Json(mut request): Json<CreateSnapshot>,
) -> Answer<Response> {
    if request.volumes.is_empty() {
        let problem = Problem::new(Code::BadRequest, "A snapshot needs at least one volume.");
        return Err(problem.hint("name them in `volumes` (--volume)").into());
    }
    let mut volumes = Vec::new();
    for volume in &mut request.volumes {
        let found: Volume = app.find(volume).await?;
        *volume = found.id.into();
        volumes.push(found);
    }
    if let Some(first) = volumes.first().filter(|_| change.dry_run) {
        let on: Datastore = app.find(&first.datastore.into()).await?;
        let known = app.index.read();
        return Ok(estimate::answer(estimate::create_snapshot(&request, &volumes, &on, &known)));
    }
    let path = "/v1/snapshots";
    Ok(app.start(Method::POST, path, Some(&request), change.wait).await?.into_response())
}

/// List the snapshots of a volume
#[utoipa::path(get, path = "/api/v1/volumes/{volume}/snapshots",
    operation_id = "list_volume_snapshots", tag = "snapshots",
    params(Paging, ("volume" = String, Path, description = "name or UUID")),
    responses((status = 200, body = Page<Snapshot>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list_of(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Snapshot>>> {
    let volume = app.volume(&volume).await?;
    Ok(Json(page(&app.snapshots_of(volume.id), key, &paging)?))
}

/// Show the snapshots of a volume as a tree
#[utoipa::path(get, path = "/api/v1/volumes/{volume}/tree", operation_id = "snapshot_tree",
    tag = "snapshots", params(("volume" = String, Path, description = "name or UUID")),
    responses((status = 200, body = SnapshotTree),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn tree(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
) -> Answer<Json<SnapshotTree>> {
    let volume = app.volume(&volume).await?;
    let snapshots = app.snapshots_of(volume.id);
    Ok(Json(SnapshotTree::build(volume.id, volume.name, volume.current_snapshot, snapshots)))
}

/// What differs between two points in time of a volume
#[utoipa::path(get, path = "/api/v1/volumes/{volume}/diff", operation_id = "diff_snapshots",
    tag = "snapshots", params(Between, ("volume" = String, Path, description = "name or UUID")),
    responses((status = 200, body = SnapshotDiff),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn diff(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(between): Query<Between>,
) -> Answer<Json<SnapshotDiff>> {
    let volume = app.volume(&volume).await?;
    let mut query = Vec::new();
    for (name, point) in [("from", &between.from), ("to", &between.to)] {
        if let Some(text) = point {
            let point = reference(model::ObjectKind::Snapshot, text)?;
            query.push(format!("{name}={}", app.find_snapshot(&volume, &point).await?.id));
        }
    }
    let path = format!("/v1/volumes/{}/diff?{}", volume.id, query.join("&"));
    Ok(Json(app.node.call(Method::GET, &path, None::<&()>).await?))
}

/// Show a snapshot
#[utoipa::path(get, path = "/api/v1/volumes/{volume}/snapshots/{snapshot}",
    operation_id = "show_snapshot", tag = "snapshots",
    params(("volume" = String, Path, description = "name or UUID"),
        ("snapshot" = String, Path, description = "name or UUID")),
    responses((status = 200, body = Snapshot),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn show(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Path((volume, snapshot)): Path<(String, String)>,
) -> Answer<Json<Snapshot>> {
    Ok(Json(app.snapshot(&volume, &snapshot).await?))
}

/// Delete a snapshot; what later states need of it is kept
///
/// Needs the role operator.
#[utoipa::path(delete, path = "/api/v1/volumes/{volume}/snapshots/{snapshot}",
    operation_id = "delete_snapshot", tag = "snapshots",
    params(Change, ("volume" = String, Path, description = "name or UUID"),
        ("snapshot" = String, Path, description = "name or UUID")),
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn delete(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path((volume, snapshot)): Path<(String, String)>,
    Query(change): Query<Change>,
) -> Answer<Response> {
    let found = app.snapshot(&volume, &snapshot).await?;
    if change.dry_run {
        return Ok(estimate::answer(estimate::delete_snapshot(&found, &app.index.read())));
    }
    let path = format!("/v1/volumes/{}/snapshots/{}", found.volume, found.id);
    Ok(app.start(Method::DELETE, &path, None::<&()>, change.wait).await?.into_response())
}

/// Bring a volume back to a snapshot; what was written since is lost
///
/// Needs the role operator.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/snapshots/{snapshot}/revert",
    operation_id = "revert_snapshot", tag = "snapshots",
    params(Change, ("volume" = String, Path, description = "name or UUID"),
        ("snapshot" = String, Path, description = "name or UUID")),
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn revert(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path((volume, snapshot)): Path<(String, String)>,
    Query(change): Query<Change>,
) -> Answer<Response> {
    let found = app.snapshot(&volume, &snapshot).await?;
    if change.dry_run {
        return Ok(estimate::answer(estimate::revert(&found, &app.index.read())));
    }
    let path = format!("/v1/volumes/{}/snapshots/{}/revert", found.volume, found.id);
    Ok(app.start(Method::POST, &path, None::<&()>, change.wait).await?.into_response())
}

impl App {
    fn snapshots_of(&self, volume: model::Uuid) -> Vec<Snapshot> {
        let known = self.index.read();
        known.snapshots.values().filter(|s| s.volume == volume).cloned().collect()
    }

    async fn snapshot(&self, volume: &str, snapshot: &str) -> Answer<Snapshot> {
        let volume = self.volume(volume).await?;
        self.find_snapshot(&volume, &reference(model::ObjectKind::Snapshot, snapshot)?).await
    }
}
