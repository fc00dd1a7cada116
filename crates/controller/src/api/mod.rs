//! The public REST API: one router, from which its OpenAPI description is made.
//!
//! Handlers resolve names to UUIDs on the index, pass changes to the node and answer with a task;
//! every list and every object is served from the index.

mod answer;
mod console;
mod datastores;
mod events;
mod guard;
mod metrics;
mod page;
mod schedules;
mod snapshots;
mod system;
pub use system::{AuditEntry, System};
mod tasks;
mod templates;
mod tokens;
mod transfers;
mod volumes;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use hyper::Method;
use model::{Code, Estimate, Problem, Reference, Task};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::index::{Entity, Index};
use crate::inventory::Inventory;
use crate::node::NodeClient;
use crate::schedule::WallClock;
use crate::store::Store;
use crate::sync::Refresher;
use crate::tokens::Tokens;
use answer::{Accepted, Answer};

/// Longest `?wait=`: proxies and clients give up later than this.
const WAIT_LIMIT: u64 = 300;

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) index: Arc<Index>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) tokens: Tokens,
    pub(crate) store: Store,
    pub(crate) node: NodeClient,
    pub(crate) refresher: Refresher,
    /// What snapshot schedules go by.
    pub(crate) clock: Arc<dyn WallClock>,
    /// Answers by class of status: 1xx to 5xx at 1 to 5.
    pub(crate) requests: [AtomicU64; 6],
    /// True from the moment that this server ends.
    pub(crate) closing: watch::Sender<bool>,
    /// True from the moment that the node is to end too.
    pub(crate) stopping: watch::Sender<bool>,
}

/// How long a change may keep its caller waiting, and whether it is only tried out.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Wait {
    /// Seconds to wait for the task's end, at most 300; absent: do not wait.
    #[serde(default)]
    pub(crate) wait: Option<u64>,
}

/// The same, for calls that take or destroy something.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Change {
    /// Seconds to wait for the task's end, at most 300; absent: do not wait.
    #[serde(default)]
    pub(crate) wait: Option<u64>,
    /// Change nothing; answer with an estimate.
    #[serde(default)]
    pub(crate) dry_run: bool,
}

/// The task, or what a dry run found.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used: handlers answer with one or the other")]
pub(crate) enum Outcome {
    /// The task that was begun.
    Task(Task),
    /// With `dry_run`.
    Estimate(Estimate),
}

impl App {
    /// The object that `reference` means; a miss is looked up on the node once more.
    async fn find<E: Entity>(&self, reference: &Reference) -> Answer<E> {
        if let Ok(found) = self.index.find(reference) {
            return Ok(found);
        }
        self.refresher.refresh().await;
        Ok(self.index.find(reference)?)
    }

    /// An object as the node has it, for what changes without an event: space that guests take. Without a
    /// node, what is known of it.
    async fn now<E: Entity + DeserializeOwned>(&self, kind: &str, known: E) -> Answer<E> {
        let path = format!("/v1/{kind}/{}", known.id());
        match self.node.call(Method::GET, &path, None::<&()>).await {
            Ok(now) => Ok(now),
            Err(problem) if problem.code == Code::NotFound => {
                Err(Problem::not_found(E::KIND, known.name()).into())
            }
            Err(problem) => {
                tracing::debug!("what is known is shown: {problem}");
                Ok(known)
            }
        }
    }

    async fn find_snapshot(
        &self,
        volume: &model::Volume,
        reference: &Reference,
    ) -> Answer<model::Snapshot> {
        if let Ok(found) = self.index.find_snapshot(volume, reference) {
            return Ok(found);
        }
        self.refresher.refresh().await;
        Ok(self.index.find_snapshot(volume, reference)?)
    }

    /// Has the node do something and answers with its task.
    async fn start<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        wait: Option<u64>,
    ) -> Answer<Accepted> {
        let task: Task = self.node.call(method, path, body).await?;
        if task.state.is_final() {
            // so that the caller finds what it made
            if !self.index.task_told(task.id, crate::sync::TOLD).await {
                self.refresher.refresh().await;
            }
            return Ok(Accepted(task));
        }
        let id = task.id;
        self.index.put_new_task(&task);
        let limit = Duration::from_secs(wait.unwrap_or(0).min(WAIT_LIMIT));
        let task = match wait {
            Some(_) => self.index.wait_task(id, limit).await.unwrap_or(task),
            None => task,
        };
        Ok(Accepted(task))
    }
}

/// The routes of the API with their description.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(described())
        .merge(system::routes())
        .merge(datastores::routes())
        .merge(volumes::routes())
        .merge(transfers::routes())
        .merge(snapshots::routes())
        .merge(schedules::routes())
        .merge(templates::routes())
        .merge(tasks::routes())
        .merge(tokens::routes())
        .merge(events::routes())
}

fn described() -> OpenApi {
    let mut api = OpenApi::default();
    api.info.title = "Shale".into();
    api.info.version = env!("CARGO_PKG_VERSION").into();
    api.info.description = Some(
        "Thin, snapshottable, cloneable disks for virtual machines.\n\n\
         Changes answer 202 with a task, or 200 when it ended within `wait` seconds; its state says \
         whether it succeeded. Errors are problem+json with a stable `code`. A POST may carry an \
         `Idempotency-Key`: repeated within a day, it is done once. Objects are named by UUID, by \
         name, or by DATASTORE/NAME (with the slash as %2F in a path)."
            .into(),
    );
    let mut components = utoipa::openapi::Components::default();
    components
        .add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    api.components = Some(components);
    api.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    api
}

/// The API's description, as it is committed in docs/openapi.json.
pub fn openapi() -> String {
    let (_, api) = routes().split_for_parts();
    let mut text = api.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Everything that is served.
pub(crate) fn router(app: Arc<App>) -> Router {
    let (api, _) = routes().split_for_parts();
    api.route("/metrics", get(metrics::metrics))
        .merge(console::routes())
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&app), guard::once))
        .layer(from_fn_with_state(Arc::clone(&app), guard::record))
        .layer(from_fn_with_state(Arc::clone(&app), guard::caller))
        .layer(from_fn(guard::origin))
        .layer(from_fn_with_state(Arc::clone(&app), guard::count))
        .layer(DefaultBodyLimit::max(answer::BODY_LIMIT))
        .with_state(app)
}

/// A reference in a path or query; a text that cannot name anything names nothing.
fn reference(kind: model::ObjectKind, text: &str) -> Result<Reference, Problem> {
    text.parse().map_err(|e: model::NameError| {
        Problem::new(model::Code::NotFound, format!("There is no {kind} '{text}': {e}."))
    })
}
