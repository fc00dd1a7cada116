//! What every request passes before its handler, outermost first:
//!
//! ```text
//!   count     for /metrics
//!   origin    Host and Origin must be this server: a web page elsewhere must not reach us through
//!             a name that it made resolve to 127.0.0.1
//!   caller    the bearer token (under /api/v1 and /metrics)
//!   record    the audit log: every change, and every refused attempt
//!   once      Idempotency-Key: the same POST twice is done once
//! ```
//! What a caller may do is asked by the handler itself: see `May`.

use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use model::{Code, Permission, Problem};
use sha2::{Digest, Sha256};

use super::App;
use super::answer::{BODY_LIMIT, Refusal, too_large};
use crate::hub::now;
use crate::store::{Answer, AuditRow, Claim};
use crate::tokens::Caller;

/// Served to anyone: static text without data.
const OPEN: [&str; 4] = ["/", "/console.js", "/console.css", "/api/v1/openapi.json"];
const KEY: &str = "idempotency-key";

pub(crate) async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let class = usize::from(response.status().as_u16() / 100).min(app.requests.len() - 1);
    app.requests[class].fetch_add(1, Ordering::Relaxed);
    response
}

/// Refuses requests that were not made for this server.
pub(crate) async fn origin(request: Request, next: Next) -> Response {
    match check_origin(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => Refusal(problem).into_response(),
    }
}

fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |what: String| {
        Problem::new(Code::ForeignOrigin, what)
            .hint("use http://127.0.0.1:PORT, http://localhost:PORT or an SSH tunnel to it")
    };
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if !is_loopback(host) {
        return Err(refused(format!("The Host header '{host}' is not an address of this server.")));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let ours = format!("http://{host}");
        if origin.as_bytes() != ours.as_bytes() {
            return Err(refused("The request comes from a page of another origin.".into()));
        }
    }
    Ok(())
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(host, _)| host),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Finds out who calls.
pub(crate) async fn caller(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    if OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let known = match bearer {
        Some(bearer) => app.tokens.check(bearer),
        None => Err(Problem::new(Code::Unauthenticated, "This request carries no token.")
            .hint("send `Authorization: Bearer TOKEN`; the local one is in DATA/admin.token")),
    };
    match known {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => {
            let row = row(&request, None, StatusCode::UNAUTHORIZED);
            write_down(&app, row).await;
            Refusal(problem).into_response()
        }
    }
}

/// Writes changes and refused attempts to the audit log.
pub(crate) async fn record(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().cloned();
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let mut entry = row(&request, caller.as_ref(), StatusCode::OK);
    let response = next.run(request).await;
    if changes || response.status() == StatusCode::FORBIDDEN {
        entry.status = response.status().as_u16();
        write_down(&app, entry).await;
    }
    response
}

fn row(request: &Request, caller: Option<&Caller>, status: StatusCode) -> AuditRow {
    AuditRow {
        id: 0,
        at: now().unix_ms(),
        token: caller.map(|c| c.token.to_string()),
        name: caller.map(|c| c.name.to_string()),
        role: caller.map(|c| c.role.to_string()),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        status: status.as_u16(),
    }
}

async fn write_down(app: &App, row: AuditRow) {
    tracing::info!(
        target: "audit",
        who = row.name.as_deref().unwrap_or("-"),
        method = row.method,
        path = row.path,
        status = row.status
    );
    if let Err(problem) = app.store.audit(row).await {
        tracing::error!("the audit log cannot be written: {problem}");
    }
}

/// Runs a POST with an Idempotency-Key once and gives its answer again to a repetition.
pub(crate) async fn once(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().cloned();
    let key = request.headers().get(KEY).cloned();
    let (Some(caller), Some(key), &Method::POST) = (caller, key, request.method()) else {
        return next.run(request).await;
    };
    match run_once(&app, &caller, &key, request, next).await {
        Ok(response) => response,
        Err(problem) => Refusal(problem).into_response(),
    }
}

async fn run_once(
    app: &App,
    caller: &Caller,
    key: &HeaderValue,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if request.uri().path() == "/api/v1/tokens" {
        return Err(Problem::new(
            Code::BadRequest,
            "Idempotency-Key is not taken here: the answer holds a secret, which is not kept.",
        ));
    }
    let key = key
        .to_str()
        .ok()
        .filter(|key| (1..=128).contains(&key.len()))
        .ok_or_else(|| {
            Problem::new(Code::BadRequest, "An Idempotency-Key is 1 to 128 visible characters.")
        })?
        .to_owned();
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, BODY_LIMIT).await.map_err(|_too_long_or_cut_off| too_large())?;
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let mut hash = Sha256::new();
    hash.update(target.as_bytes());
    hash.update([0]);
    hash.update(&bytes);
    let hash = hash.finalize().to_vec();
    let token = caller.token.to_string();
    match app.store.claim(token.clone(), key.clone(), hash, now().unix_ms()).await? {
        Claim::Again(answer) => return Ok(replay(answer)),
        Claim::Running => {
            return Err(Problem::new(
                Code::Busy,
                "The request with this Idempotency-Key is still being worked on.",
            )
            .hint("repeat it in a moment"));
        }
        Claim::Mismatch => {
            return Err(Problem::new(
                Code::IdempotencyMismatch,
                "This Idempotency-Key was used for another request.",
            )
            .hint("use a new key for each request"));
        }
        Claim::Run => {}
    }
    // in a task of its own: a client that hangs up must not leave the key claimed
    let store = app.store.clone();
    let run = tokio::spawn(async move {
        let response = next.run(Request::from_parts(parts, Body::from(bytes))).await;
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
        let text = |name| {
            parts.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).map(str::to_owned)
        };
        // a failure of ours may pass: the key stays free for another attempt
        let answer = (!parts.status.is_server_error()).then(|| Answer {
            status: parts.status.as_u16(),
            location: text(header::LOCATION),
            content_type: text(header::CONTENT_TYPE),
            body: bytes.to_vec(),
        });
        if let Err(problem) = store.settle(token, key, answer).await {
            tracing::error!("an answer is not kept for its Idempotency-Key: {problem}");
        }
        Response::from_parts(parts, Body::from(bytes))
    });
    run.await.map_err(crate::store::internal)
}

fn replay(answer: Answer) -> Response {
    let mut response = Response::new(Body::from(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    for (name, value) in
        [(header::LOCATION, answer.location), (header::CONTENT_TYPE, answer.content_type)]
    {
        if let Some(value) = value.and_then(|v| HeaderValue::from_str(&v).ok()) {
            headers.insert(name, value);
        }
    }
    headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}

/// What a handler needs of its caller; the first argument of every handler.
#[derive(Debug)]
pub(crate) struct May<P>(PhantomData<P>);

/// A permission as a type.
pub(crate) trait Needs {
    const PERMISSION: Permission;
}

macro_rules! needs {
    ($($name:ident),+) => {$(
        #[derive(Debug)]
        pub(crate) struct $name;
        impl Needs for $name {
            const PERMISSION: Permission = Permission::$name;
        }
    )+};
}
needs!(Read, Operate, ManageStorage, Administer);

impl<P: Needs, S: Send + Sync> FromRequestParts<S> for May<P> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let who = Who::from_request_parts(parts, state).await?;
        who.may::<P>()?;
        Ok(Self(PhantomData))
    }
}

/// Who calls, where what it needs follows from what it asks for.
#[derive(Debug)]
pub(crate) struct Who(Caller);

impl Who {
    /// Refuses a caller that lacks the permission.
    pub(crate) fn may<P: Needs>(&self) -> Result<(), Refusal> {
        let Self(caller) = self;
        if caller.role.allows(P::PERMISSION) {
            return Ok(());
        }
        let least = P::PERMISSION.least();
        Err(Refusal(
            Problem::new(
                Code::Denied,
                format!(
                    "Token '{}' has the role {}; this needs {least}.",
                    caller.name, caller.role
                ),
            )
            .hint(format!("use a token of the role {least} or higher")),
        ))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.map(Self).ok_or_else(|| {
            Problem::new(Code::Unauthenticated, "This request carries no token.").into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_server_is_an_origin() {
        let headers = |host: Option<&str>, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_str(value).expect("a header"));
                }
            }
            check_origin(&headers).map_err(|problem| problem.code)
        };
        let foreign = Err(Code::ForeignOrigin);
        for host in ["127.0.0.1:7070", "localhost:7070", "LOCALHOST", "[::1]:7070", "127.9.9.9"] {
            assert_eq!(headers(Some(host), None), Ok(()), "{host}");
            assert_eq!(headers(Some(host), Some(&format!("http://{host}"))), Ok(()), "{host}");
        }
        for host in ["", "evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "[::2]:1", "["] {
            assert_eq!(headers(Some(host), None), foreign, "{host}");
        }
        assert_eq!(headers(None, None), foreign);
        for origin in ["null", "http://evil.example", "http://127.0.0.1:81", "https://127.0.0.1:80"]
        {
            assert_eq!(headers(Some("127.0.0.1:80"), Some(origin)), foreign, "{origin}");
        }
    }
}
