//! From requests to the control thread and back to answers.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::{Code, Problem, Task};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::App;
use crate::control::Control;
use crate::problem::{Outcome, from_gone};
use crate::tasks::{About, Progress};

/// Longest body: a thousand names fit.
const MAX_BODY: usize = 256 << 10;
/// Longest wait in one request; the client may ask again.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// An error as it goes out.
pub(super) struct Refused(pub(super) Problem);

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, "application/problem+json", &self.0)
    }
}

fn json<T: Serialize>(status: StatusCode, kind: &'static str, body: &T) -> Response {
    let bytes = serde_json::to_vec(body).expect("wire types have string keys");
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(super) fn ok<T: Serialize>(body: &T) -> Response {
    json(StatusCode::OK, "application/json", body)
}

/// A JSON body. The media type is not looked at: the socket is no browser's.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refused> {
        let bytes = to_bytes(request.into_body(), MAX_BODY).await.map_err(|_too_large| {
            Problem::new(
                Code::TooLarge,
                format!("The body is cut off or longer than {MAX_BODY} bytes."),
            )
        })?;
        // An empty body asks for all defaults.
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes).map(Self).map_err(|error| {
            Problem::new(Code::BadRequest, format!("The body is not understood: {error}.")).into()
        })
    }
}

/// The identities in a path.
pub(super) struct Ids<const N: usize>(pub(super) [Uuid; N]);

impl<S: Send + Sync, const N: usize> FromRequestParts<S> for Ids<N> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let malformed = || Problem::new(Code::NotFound, "The path does not name objects by UUID.");
        let Path(texts) = Path::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|_rejection| malformed())?;
        let mut ids = [Uuid::nil(); N];
        if texts.len() != N {
            return Err(malformed().into());
        }
        for (id, (_, text)) in ids.iter_mut().zip(&texts) {
            *id = Uuid::parse_str(text).map_err(|_not_uuid| {
                Problem::new(Code::NotFound, format!("'{}' is not a UUID.", text.escape_debug()))
                    .hint("the node knows objects by UUID; the command line and the REST API take names")
            })?;
        }
        Ok(Self(ids))
    }
}

/// The query of a request, checked.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => {
                Err(Problem::new(Code::BadRequest, format!("{}.", rejection.body_text())).into())
            }
        }
    }
}

/// `?wait=SECONDS`.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize)]
pub(super) struct Wait {
    #[serde(default)]
    wait: Option<f64>,
}

impl Wait {
    pub(super) fn limit(self) -> Option<Duration> {
        let seconds = self.wait?;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or_default().min(MAX_WAIT))
    }
}

impl App {
    /// Asks the control thread.
    pub(super) async fn ask<T, F, Fut>(&self, question: F) -> Result<T, Refused>
    where
        F: FnOnce(Rc<Control>) -> Fut + Send + 'static,
        Fut: Future<Output = Outcome<T>> + 'static,
        T: Send + 'static,
    {
        Ok(self.control.call(question).await.map_err(from_gone)??)
    }

    /// Begins a task and answers 202 with it: as it is now, or as it ends within the wait.
    pub(super) async fn begin<A, F, Fut>(
        &self,
        wait: Wait,
        about: A,
        job: F,
    ) -> Result<Response, Refused>
    where
        A: FnOnce(&Control) -> Outcome<About> + Send + 'static,
        F: FnOnce(Rc<Control>, Rc<Progress>) -> Fut + Send + 'static,
        Fut: Future<Output = Outcome<Value>> + 'static,
    {
        let mut task: Task =
            self.ask(move |control| async move { control.begin(about, job) }).await?;
        if let Some(limit) = wait.limit()
            && let Some(now) = self.shared.tasks.wait(task.id, limit).await
        {
            task = now;
        }
        Ok(json(StatusCode::ACCEPTED, "application/json", &task))
    }
}
