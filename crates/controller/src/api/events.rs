//! `/events`: what changes, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use model::{Event, Problem};
use tokio::sync::broadcast::error::RecvError;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::guard::{May, Read};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(events))
}

/// What changes, as it happens
///
/// With `Last-Event-ID`, from after that event; `resync` says that some are lost: load the lists
/// again.
#[utoipa::path(get, path = "/api/v1/events", operation_id = "events", tag = "system",
    params(("Last-Event-ID" = Option<u64>, Header, description = "the last event that was read")),
    responses((status = 200, body = Event, content_type = "text/event-stream"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn events(
    _: May<Read>,
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    // an id that is no number is one that is not known
    let last = headers
        .get("last-event-id")
        .map(|value| value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(0));
    let hub = app.index.hub().clone();
    let (missed, live) = hub.listen(last);
    let live = stream::unfold(live, move |mut live| {
        let hub = hub.clone();
        async move {
            match live.recv().await {
                Ok(event) => Some((event, live)),
                Err(RecvError::Lagged(_)) => Some((hub.resync_now(), live)),
                Err(RecvError::Closed) => None,
            }
        }
    });
    let mut closing = app.closing.subscribe();
    let closed = async move { closing.wait_for(|closing| *closing).await.map(drop) };
    let all = stream::iter(missed).chain(live).map(|event| Ok(told(&event)));
    Sse::new(all.take_until(Box::pin(closed)))
        .keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}

fn told(event: &Event) -> sse::Event {
    let data = serde_json::to_string(event).unwrap_or_default();
    sse::Event::default().id(event.id.to_string()).event(event.change.name()).data(data)
}
