//! The system itself: what it is, what it can, what is wrong, who did what, and its end.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use hyper::Method;
use model::{Alarm, Capabilities, NodeInfo, Page, Problem, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::answer::{Answer, Json, Query};
use super::guard::{Administer, May, Read};
use super::page::{Key, Paging, page};
use crate::store::AuditRow;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(info))
        .routes(routes!(capabilities))
        .routes(routes!(alarms))
        .routes(routes!(audit))
        .routes(routes!(down))
        .routes(routes!(openapi))
}

/// What answers.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct System {
    /// The controller's program version.
    pub version: String,
    /// The node; absent while it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeInfo>,
}

/// One change, or one refused attempt.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Grows with every entry.
    pub id: i64,
    /// When.
    pub at: Timestamp,
    /// Whose token; absent: none that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The token's name then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its role then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
}

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.id,
            at: Timestamp::from_unix_ms(row.at),
            token: row.token,
            name: row.name,
            role: row.role,
            method: row.method,
            path: row.path,
            status: row.status,
        }
    }
}

/// Which part of the audit log.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Before {
    /// Entries older than this id; absent: the newest.
    #[serde(default)]
    before: Option<i64>,
    /// At most this many, 1 to 1000; 100 if absent.
    #[serde(default)]
    limit: Option<u32>,
}

/// What answers
#[utoipa::path(get, path = "/api/v1/system", operation_id = "system", tag = "system",
    responses((status = 200, body = System),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn info(_: May<Read>, State(app): State<Arc<App>>) -> Json<System> {
    let node = app.index.read().node.clone();
    Json(System { version: env!("CARGO_PKG_VERSION").into(), node })
}

/// Which operation works on which kind of volume and store
#[utoipa::path(get, path = "/api/v1/capabilities", operation_id = "capabilities", tag = "system",
    responses((status = 200, body = Capabilities),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn capabilities(_: May<Read>) -> Json<Capabilities> {
    Json(Capabilities::all())
}

/// List alarms, the worst first
#[utoipa::path(get, path = "/api/v1/alarms", operation_id = "list_alarms", tag = "system",
    params(Paging),
    responses((status = 200, body = Page<Alarm>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn alarms(
    _: May<Read>,
    State(app): State<Arc<App>>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Alarm>>> {
    let all: Vec<Alarm> = app.index.read().alarms.values().cloned().collect();
    Ok(Json(page(&all, worst_first, &paging)?))
}

fn worst_first(alarm: &Alarm) -> Key<'_> {
    let name = match alarm.severity {
        model::Severity::Critical => "0",
        model::Severity::Warning => "1",
        model::Severity::Info => "2",
    };
    Key { name, number: alarm.since.unix_ms(), id: alarm.id }
}

/// Who did what, newest first
///
/// Needs the role admin.
#[utoipa::path(get, path = "/api/v1/audit", operation_id = "audit", tag = "system",
    params(Before),
    responses((status = 200, body = Vec<AuditEntry>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn audit(
    _: May<Administer>,
    State(app): State<Arc<App>>,
    Query(part): Query<Before>,
) -> Answer<Json<Vec<AuditEntry>>> {
    let limit = part.limit.unwrap_or(100).clamp(1, 1000);
    let rows = app.store.audited(part.before.unwrap_or(i64::MAX), limit).await?;
    Ok(Json(rows.into_iter().map(AuditEntry::from).collect()))
}

/// Stop the node, with every connection to its volumes, and this server
///
/// Needs the role admin.
#[utoipa::path(post, path = "/api/v1/system/down", operation_id = "down", tag = "system",
    responses((status = 202, description = "it is ending"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn down(_: May<Administer>, State(app): State<Arc<App>>) -> Answer<StatusCode> {
    // first, or the supervisor starts it again
    app.stopping.send_replace(true);
    let asked: Result<serde_json::Value, Problem> =
        app.node.call(Method::POST, "/v1/down", None::<&()>).await;
    if let Err(problem) = asked {
        if app.index.read().node.is_some() {
            app.stopping.send_replace(false);
            return Err(problem.into());
        }
        tracing::info!("there is no node to stop: {problem}");
    }
    app.closing.send_replace(true);
    Ok(StatusCode::ACCEPTED)
}

/// This description
#[utoipa::path(get, path = "/api/v1/openapi.json", operation_id = "openapi", tag = "system",
    security(()),
    responses((status = 200, description = "OpenAPI 3.1")))]
async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], super::openapi())
}
