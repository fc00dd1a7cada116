//! Answers and extractors that speak problem+json whatever goes wrong.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::{Code, Problem, Task};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest request body.
pub(crate) const BODY_LIMIT: usize = 1 << 20;

/// A problem as the answer of a handler.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Problem);

pub(crate) type Answer<T> = Result<T, Refusal>;

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON body, both ways.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(Refusal(body_problem(&rejection))),
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

fn body_problem(rejection: &JsonRejection) -> Problem {
    match rejection.status() {
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            Problem::new(Code::UnsupportedMediaType, "The body of this request must be JSON.")
                .hint("send the header `Content-Type: application/json`")
        }
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => {
            let text = rejection.body_text();
            let reason = text.split_once(": ").map_or(text.as_str(), |(_, reason)| reason);
            Problem::new(
                Code::BadRequest,
                format!("The body is not what this call takes: {reason}."),
            )
            .hint("see /api/v1/openapi.json")
        }
    }
}

pub(crate) fn too_large() -> Problem {
    Problem::new(Code::TooLarge, format!("The body is larger than {BODY_LIMIT} bytes."))
}

/// The query of a request.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query.map(|axum::extract::Query(value)| Self(value)).map_err(|e: QueryRejection| {
            let problem = Problem::new(
                Code::BadRequest,
                format!("The query is not what this call takes: {}.", e.body_text()),
            );
            Refusal(problem.hint("see /api/v1/openapi.json"))
        })
    }
}

/// The variable parts of a path.
#[derive(Debug)]
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Self(value)).map_err(|e: PathRejection| {
            Refusal(Problem::new(
                Code::BadRequest,
                format!("The path does not name an object: {}.", e.body_text()),
            ))
        })
    }
}

/// A task: 202 while it works, 200 when it has ended; `Location` either way.
#[derive(Debug)]
pub(crate) struct Accepted(pub(crate) Task);

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let status = if self.0.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
        let location = format!("/api/v1/tasks/{}", self.0.id);
        (status, [(header::LOCATION, location)], axum::Json(self.0)).into_response()
    }
}

pub(crate) async fn no_such_path(request: Request) -> Refusal {
    Refusal(
        Problem::new(Code::NoSuchPath, format!("There is nothing at {}.", request.uri().path()))
            .hint("the API is described at /api/v1/openapi.json"),
    )
}

pub(crate) async fn method_not_allowed(request: Request) -> Refusal {
    Refusal(
        Problem::new(
            Code::MethodNotAllowed,
            format!("{} does not take {}.", request.uri().path(), request.method()),
        )
        .hint("the API is described at /api/v1/openapi.json"),
    )
}
