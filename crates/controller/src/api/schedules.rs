//! `/schedules` and `/volumes/{volume}/schedule`: snapshots by the clock.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::Method;
use model::{
    Code, Page, Problem, PutSchedule, ScheduleStatus, SetSchedule, Task, Timestamp, Volume,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Accepted, Answer, Json, Path, Query};
use super::guard::{May, Operate, Read};
use super::page::{Key, Paging, page};
use super::{App, Change, Outcome, Wait};
use crate::{estimate, schedule};

/// How many of the next runs are told.
const RUNS: usize = 5;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, set, clear))
}

/// List the snapshot schedules of all volumes
#[utoipa::path(get, path = "/api/v1/schedules", operation_id = "list_schedules",
    tag = "snapshots", params(Paging),
    responses((status = 200, body = Page<ScheduleStatus>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<ScheduleStatus>>> {
    let scheduled: Vec<Volume> = {
        let known = app.index.read();
        known.volumes.values().filter(|v| v.schedule.is_some()).cloned().collect()
    };
    let all: Vec<_> = scheduled.iter().filter_map(|volume| app.schedule_of(volume)).collect();
    Ok(Json(page(&all, |s| Key::named(s.volume_name.as_str(), s.volume), &paging)?))
}

/// Show the snapshot schedule of a volume
#[utoipa::path(get, path = "/api/v1/volumes/{volume}/schedule", operation_id = "show_schedule",
    tag = "snapshots", params(("volume" = String, Path, description = "name or UUID")),
    responses((status = 200, body = ScheduleStatus),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn show(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
) -> Answer<Json<ScheduleStatus>> {
    let volume = app.volume(&volume).await?;
    let status = app.schedule_of(&volume).ok_or_else(|| {
        Problem::new(Code::NotFound, format!("Volume '{}' has no snapshot schedule.", volume.name))
            .hint(format!("shale snapshot schedule set --volume {} --daily 7", volume.name))
    })?;
    Ok(Json(status))
}

/// Give a volume a snapshot schedule, in place of the one it has
///
/// Snapshots that rules of the old one made stay; those of rules that go on are kept by the new numbers.
/// Needs the role operator.
#[utoipa::path(put, path = "/api/v1/volumes/{volume}/schedule", operation_id = "set_schedule",
    tag = "snapshots", params(Change, ("volume" = String, Path, description = "name or UUID")),
    request_body = SetSchedule,
    responses((status = 202, body = Task), (status = 200, body = Outcome),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn set(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(change): Query<Change>,
    Json(request): Json<SetSchedule>,
) -> Answer<Response> {
    let found = app.volume(&volume).await?;
    if change.dry_run {
        let (now, zone) = (app.clock.now(), app.clock.zone());
        let runs = schedule::upcoming(&schedule::planned(&request, now), now, &zone, RUNS);
        let known = app.index.read();
        return Ok(estimate::answer(estimate::schedule(&found, &request, &runs, &known)));
    }
    if let Some(refusal) = request.refusal() {
        return Err(refusal.into());
    }
    let body = PutSchedule { schedule: Some(request), since: app.clock.now() };
    let path = format!("/v1/volumes/{}/schedule", found.id);
    Ok(app.start(Method::PUT, &path, Some(&body), change.wait).await?.into_response())
}

/// Take a volume's snapshot schedule away; its snapshots stay
///
/// Needs the role operator.
#[utoipa::path(delete, path = "/api/v1/volumes/{volume}/schedule", operation_id = "clear_schedule",
    tag = "snapshots", params(Wait, ("volume" = String, Path, description = "name or UUID")),
    responses((status = 202, body = Task), (status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn clear(
    _: May<Operate>,
    State(app): State<Arc<App>>,
    Path(volume): Path<String>,
    Query(wait): Query<Wait>,
) -> Answer<Accepted> {
    let found = app.volume(&volume).await?;
    let body = PutSchedule { schedule: None, since: app.clock.now() };
    let path = format!("/v1/volumes/{}/schedule", found.id);
    app.start(Method::PUT, &path, Some(&body), wait.wait).await
}

impl App {
    fn schedule_of(&self, volume: &Volume) -> Option<ScheduleStatus> {
        let schedule = volume.schedule.clone()?;
        let next = schedule::upcoming(&schedule, self.clock.now(), &self.clock.zone(), RUNS);
        let known = self.index.read();
        let kept = schedule::made_for(&known.snapshots, volume.id).len();
        Some(ScheduleStatus {
            volume: volume.id,
            volume_name: volume.name.clone(),
            datastore_name: volume.datastore_name.clone(),
            schedule,
            next,
            kept: u32::try_from(kept).unwrap_or(u32::MAX),
            trouble: schedule::trouble_of(&known, volume.id),
        })
    }

    /// When the schedule of `volume` makes its next snapshot.
    pub(super) fn next_snapshot(&self, volume: &Volume) -> Option<Timestamp> {
        let schedule = volume.schedule.as_ref()?;
        let next = schedule::upcoming(schedule, self.clock.now(), &self.clock.zone(), 1);
        next.first().map(|run| run.at)
    }
}
