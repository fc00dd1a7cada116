//! The paths. Handlers only translate; what they ask for is done on the control thread.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::routing::{delete, get, post, put};
use futures_channel::mpsc;
use futures_util::future::select;
use futures_util::stream::{self as streams, Stream, StreamExt as _};
use model::{
    CloneVolume, Code, ConnectVolume, ConvertVolume, CreateDatastore, CreateSnapshot,
    CreateTemplate, CreateVolume, DeployTemplate, ExportFormat, ExportVolume, ImportVolume,
    ObjectKind, Operation, Problem, PutSchedule, Reference, RunSchedule, UpdateVolume, VolumeKind,
};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::answer::{Asked, Ids, Json, Refused, Wait, ok};
use super::{App, Stop, stopped};
use crate::transfer::stream;

type Answer = Result<Response, Refused>;

pub(super) fn router(app: App) -> Router {
    Router::new()
        .route("/v1/info", get(info))
        .route("/v1/down", post(down))
        .route("/v1/events", get(events))
        .route("/v1/alarms", get(alarms))
        .route("/v1/tasks", get(tasks))
        .route("/v1/tasks/{id}", get(task))
        .route("/v1/tasks/{id}/cancel", post(cancel))
        .route("/v1/tasks/{id}/data", put(upload))
        .route("/v1/datastores", get(datastores).post(create_datastore))
        .route("/v1/datastores/{id}", get(datastore).delete(forget_datastore))
        .route("/v1/datastores/{id}/check", post(check))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/imports", post(import))
        .route("/v1/imports/source", post(import_source))
        .route("/v1/volumes/{id}/export", post(export))
        .route("/v1/volumes/{id}/data", get(download))
        .route("/v1/volumes/{id}", get(volume).patch(update_volume).delete(delete_volume))
        .route("/v1/volumes/{id}/connect", post(connect))
        .route("/v1/volumes/{id}/disconnect", post(disconnect))
        .route("/v1/volumes/{id}/convert", get(conversion).post(convert))
        .route("/v1/volumes/{id}/clone", post(clone))
        .route("/v1/volumes/{id}/schedule", put(put_schedule))
        .route("/v1/volumes/{id}/schedule/run", post(run_schedule))
        .route("/v1/volumes/{id}/schedule/snapshots/{snapshot}", delete(retire_snapshot))
        .route("/v1/volumes/{id}/diff", get(diff))
        .route("/v1/volumes/{id}/snapshots", get(volume_snapshots))
        .route("/v1/volumes/{id}/snapshots/diff", get(diff))
        .route("/v1/volumes/{id}/snapshots/{snapshot}", delete(delete_snapshot))
        .route("/v1/volumes/{id}/snapshots/{snapshot}/revert", post(revert))
        .route("/v1/snapshots", get(snapshots).post(create_snapshot))
        .route("/v1/templates", get(templates).post(create_template))
        .route("/v1/templates/{id}", get(template).delete(delete_template))
        .route("/v1/templates/{id}/deploy", post(deploy))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(app)
}

async fn no_such_path() -> Refused {
    Problem::new(Code::NoSuchPath, "There is nothing at this path.").into()
}

async fn no_such_method() -> Refused {
    Problem::new(Code::MethodNotAllowed, "This path does not take that method.").into()
}

// --- the node ---

async fn info(State(app): State<App>) -> Response {
    ok(&*app.info)
}

/// Disconnects everything, answers, then the process ends.
async fn down(State(app): State<App>) -> Answer {
    let closed = app.ask(|control| async move { control.down().await }).await?;
    app.stop.send_replace(Stop::Down);
    Ok(ok(&json!({ "disconnected": closed })))
}

async fn alarms(State(app): State<App>) -> Response {
    ok(&app.shared.alarms.list())
}

async fn events(
    State(app): State<App>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<Sent, Infallible>>> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let listener = app.shared.events.listen(last);
    let news = streams::unfold(listener, |mut listener| async move {
        let news = listener.next().await?;
        Some((streams::iter(news), listener))
    });
    let sent = news.flatten().map(|event| {
        let data = serde_json::to_string(&*event).expect("wire types have string keys");
        Ok(Sent::default().id(event.id.to_string()).event(event.change.name()).data(data))
    });
    // A stream that never ends must not keep the node from stopping.
    let sent = sent.take_until(Box::pin(stopped(app.stop.clone())));
    Sse::new(sent).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}

// --- tasks ---

async fn tasks(State(app): State<App>) -> Response {
    ok(&app.shared.tasks.list())
}

async fn task(State(app): State<App>, Ids([id]): Ids<1>, Asked(wait): Asked<Wait>) -> Answer {
    let task = match wait.limit() {
        Some(limit) => app.shared.tasks.wait(id, limit).await,
        None => app.shared.tasks.get(id),
    };
    Ok(ok(&task.ok_or_else(|| Problem::not_found(ObjectKind::Task, id))?))
}

async fn cancel(State(app): State<App>, Ids([id]): Ids<1>) -> Answer {
    let task = app.shared.tasks.cancel(id);
    Ok(ok(&task.ok_or_else(|| Problem::not_found(ObjectKind::Task, id))?))
}

// --- datastores ---

async fn datastores(State(app): State<App>) -> Answer {
    Ok(ok(&app.ask(|control| async move { Ok(control.list_stores().await) }).await?))
}

async fn datastore(State(app): State<App>, Ids([id]): Ids<1>) -> Answer {
    Ok(ok(&app.ask(move |control| async move { control.show_store(id).await }).await?))
}

async fn create_datastore(
    State(app): State<App>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<CreateDatastore>,
) -> Answer {
    let about = request.clone();
    app.begin(
        wait,
        move |control| control.about_new_store(&about),
        move |control, _| control.create_store(request),
    )
    .await
}

async fn forget_datastore(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about_store(Operation::DatastoreDelete, id),
        move |control, _| control.forget_store(id),
    )
    .await
}

async fn check(State(app): State<App>, Ids([id]): Ids<1>, Asked(wait): Asked<Wait>) -> Answer {
    app.begin(
        wait,
        move |control| control.about_store(Operation::DatastoreCheck, id),
        move |control, progress| control.check_store(id, progress),
    )
    .await
}

// --- volumes ---

async fn volumes(State(app): State<App>, Asked(which): Asked<Which>) -> Answer {
    let list = app.ask(move |control| async move {
        Ok(if which.connected {
            control.list_connected().await
        } else {
            control.list_volumes().await
        })
    });
    Ok(ok(&list.await?))
}

async fn volume(State(app): State<App>, Ids([id]): Ids<1>) -> Answer {
    Ok(ok(&app.ask(move |control| async move { control.show_volume(id).await }).await?))
}

async fn create_volume(
    State(app): State<App>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<CreateVolume>,
) -> Answer {
    let about = request.clone();
    app.begin(
        wait,
        move |control| control.about_new_volume(&about),
        move |control, progress| control.create_volume(request, progress),
    )
    .await
}

async fn update_volume(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<UpdateVolume>,
) -> Answer {
    let operation =
        if request.size.is_some() { Operation::VolumeResize } else { Operation::VolumeRename };
    app.begin(
        wait,
        move |control| control.about(operation, id),
        move |control, progress| control.update_volume(id, request, progress),
    )
    .await
}

/// The kind that a volume is to become.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Become {
    kind: VolumeKind,
}

async fn conversion(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(Become { kind }): Asked<Become>,
) -> Answer {
    Ok(ok(&app.ask(move |control| async move { control.conversion(id, kind).await }).await?))
}

async fn convert(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<ConvertVolume>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about(Operation::VolumeConvert, id),
        move |control, progress| control.convert_volume(id, request, progress),
    )
    .await
}

async fn delete_volume(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about(Operation::VolumeDelete, id),
        move |control, progress| control.delete_volume(id, progress),
    )
    .await
}

async fn connect(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<ConnectVolume>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about(Operation::VolumeConnect, id),
        move |control, progress| control.connect(id, request, progress),
    )
    .await
}

/// Which connections a disconnect ends.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disconnect {
    /// Only the connection of this snapshot; absent: all of the volume.
    #[serde(default)]
    snapshot: Option<Reference>,
}

async fn disconnect(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<Disconnect>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about(Operation::VolumeDisconnect, id),
        move |control, progress| control.disconnect(id, request.snapshot, progress),
    )
    .await
}

async fn clone(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<CloneVolume>,
) -> Answer {
    let operation = if request.linked { Operation::VolumeClone } else { Operation::VolumeCopy };
    app.begin(
        wait,
        move |control| control.about(operation, id),
        move |control, progress| control.clone_volume(id, request, progress),
    )
    .await
}

async fn import(
    State(app): State<App>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<ImportVolume>,
) -> Answer {
    let about = request.clone();
    app.begin(
        wait,
        move |control| control.about_import(&about),
        move |control, progress| control.import_volume(request, progress),
    )
    .await
}

async fn import_source(State(app): State<App>, Json(request): Json<ImportVolume>) -> Answer {
    let found = app.ask(move |control| async move { control.import_source(request).await });
    Ok(ok(&found.await?))
}

async fn export(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<ExportVolume>,
) -> Answer {
    let about = request.clone();
    app.begin(
        wait,
        move |control| control.about_export(id, &about),
        move |control, progress| control.export_volume(id, request, progress),
    )
    .await
}

/// What is streamed.
#[derive(Debug, Default, Deserialize)]
struct Streamed {
    #[serde(default)]
    format: ExportFormat,
    #[serde(default)]
    snapshot: Option<Uuid>,
}

/// A volume as a stream. Its task is begun here too; an error after the first byte cuts the stream off.
async fn download(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(asked): Asked<Streamed>,
) -> Answer {
    let (to, mut parts) = mpsc::channel(stream::IN_FLIGHT);
    let (format, snapshot) = (asked.format, asked.snapshot.map(Reference::from));
    let task = app.ask(move |control| async move {
        control.begin(
            |control| control.about_stream(id, format),
            move |control, progress| control.stream_volume(id, (format, snapshot), to, progress),
        )
    });
    let task = task.await?;
    let first = parts.next().await;
    if !matches!(first, Some(Ok(_))) {
        let ended = app.shared.tasks.wait(task.id, Duration::MAX).await;
        if let Some(problem) = ended.and_then(|task| task.error) {
            return Err(problem.into());
        }
    }
    let parts = stream::received(streams::iter(first).chain(parts));
    let mut response = Response::new(Body::from_stream(parts));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// The data of an import that waits for it. The answer comes when all of it was taken, or when nobody
/// takes it any more.
async fn upload(State(app): State<App>, Ids([id]): Ids<1>, request: Request) -> Answer {
    let to = app.ask(move |control| async move { control.upload(id) }).await?;
    let pump = stream::pump(request.into_body().into_data_stream(), to);
    let ended = app.shared.tasks.wait(id, Duration::MAX);
    // An import that has ended early takes nothing any more, also from a sender that is silent.
    select(std::pin::pin!(pump), std::pin::pin!(ended)).await;
    let task = app.shared.tasks.get(id);
    let task = task.ok_or_else(|| Problem::not_found(ObjectKind::Task, id))?;
    match task.error {
        Some(problem) => Err(problem.into()),
        None => Ok(ok(&task)),
    }
}

// --- snapshots ---

/// Of which volume.
/// Which volumes.
#[derive(Deserialize)]
struct Which {
    /// Only those that are connected.
    #[serde(default)]
    connected: bool,
}

#[derive(Debug, Default, Deserialize)]
struct OfVolume {
    #[serde(default)]
    volume: Option<Uuid>,
}

async fn snapshots(State(app): State<App>, Asked(of): Asked<OfVolume>) -> Answer {
    let list = app.ask(move |control| async move { control.list_snapshots(of.volume).await });
    Ok(ok(&list.await?))
}

async fn volume_snapshots(State(app): State<App>, Ids([id]): Ids<1>) -> Answer {
    Ok(ok(&app.ask(move |control| async move { control.list_snapshots(Some(id)).await }).await?))
}

async fn create_snapshot(
    State(app): State<App>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<CreateSnapshot>,
) -> Answer {
    let about = request.clone();
    app.begin(
        wait,
        move |control| control.about_snapshot(&about),
        move |control, progress| control.create_snapshot(request, progress),
    )
    .await
}

async fn delete_snapshot(
    State(app): State<App>,
    Ids([id, snapshot]): Ids<2>,
    Asked(wait): Asked<Wait>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about_one_snapshot(Operation::SnapshotDelete, id, snapshot),
        move |control, progress| control.delete_snapshot(id, snapshot, progress),
    )
    .await
}

async fn revert(
    State(app): State<App>,
    Ids([id, snapshot]): Ids<2>,
    Asked(wait): Asked<Wait>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about_one_snapshot(Operation::SnapshotRevert, id, snapshot),
        move |control, progress| control.revert(id, snapshot, progress),
    )
    .await
}

async fn put_schedule(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<PutSchedule>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about(Operation::SnapshotSchedule, id),
        move |control, progress| control.put_schedule(id, request, progress),
    )
    .await
}

async fn run_schedule(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<RunSchedule>,
) -> Answer {
    app.begin(
        wait,
        move |control| Ok(control.about(Operation::SnapshotCreate, id)?.scheduled()),
        move |control, progress| control.run_schedule(id, request, progress),
    )
    .await
}

/// Deletes a snapshot for the schedule that made it.
async fn retire_snapshot(
    State(app): State<App>,
    Ids([id, snapshot]): Ids<2>,
    Asked(wait): Asked<Wait>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about_retired(id, snapshot),
        move |control, progress| control.retire_snapshot(id, snapshot, progress),
    )
    .await
}

/// The two points in time.
#[derive(Debug, Default, Deserialize)]
struct Between {
    #[serde(default)]
    from: Option<Uuid>,
    #[serde(default)]
    to: Option<Uuid>,
}

async fn diff(State(app): State<App>, Ids([id]): Ids<1>, Asked(of): Asked<Between>) -> Answer {
    Ok(ok(&app.ask(move |control| async move { control.diff(id, of.from, of.to).await }).await?))
}

// --- templates ---

async fn templates(State(app): State<App>) -> Answer {
    Ok(ok(&app.ask(|control| async move { Ok(control.list_templates().await) }).await?))
}

async fn template(State(app): State<App>, Ids([id]): Ids<1>) -> Answer {
    Ok(ok(&app.ask(move |control| async move { control.show_template(id).await }).await?))
}

async fn create_template(
    State(app): State<App>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<CreateTemplate>,
) -> Answer {
    let from = request.from.clone();
    app.begin(
        wait,
        move |control| control.about_reference(Operation::TemplateCreate, &from),
        move |control, progress| control.create_template(request, progress),
    )
    .await
}

async fn delete_template(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about_template(Operation::TemplateDelete, id),
        move |control, progress| control.delete_volume(id, progress),
    )
    .await
}

async fn deploy(
    State(app): State<App>,
    Ids([id]): Ids<1>,
    Asked(wait): Asked<Wait>,
    Json(request): Json<DeployTemplate>,
) -> Answer {
    app.begin(
        wait,
        move |control| control.about_template(Operation::TemplateDeploy, id),
        move |control, progress| control.deploy(id, request, progress),
    )
    .await
}
