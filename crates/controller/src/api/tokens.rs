//! `/tokens`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use model::{CreateToken, CreatedToken, ObjectKind, Page, Problem, Token};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, Json, Path, Query};
use super::guard::{Administer, May};
use super::page::{Key, Paging, page};
use super::{App, reference};
use crate::hub::now;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(revoke))
}

/// List tokens, without their secrets
///
/// Needs the role admin.
#[utoipa::path(get, path = "/api/v1/tokens", operation_id = "list_tokens", tag = "tokens",
    params(Paging),
    responses((status = 200, body = Page<Token>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn list(
    _: May<Administer>,
    State(app): State<Arc<App>>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Token>>> {
    Ok(Json(page(&app.tokens.list(), |t| Key::named(t.name.as_str(), t.id), &paging)?))
}

/// Make a token; its secret is shown this once
///
/// Needs the role admin.
#[utoipa::path(post, path = "/api/v1/tokens", operation_id = "create_token", tag = "tokens",
    request_body = CreateToken,
    responses((status = 201, body = CreatedToken),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn create(
    _: May<Administer>,
    State(app): State<Arc<App>>,
    Json(request): Json<CreateToken>,
) -> Answer<(StatusCode, Json<CreatedToken>)> {
    Ok((StatusCode::CREATED, Json(app.tokens.create(request, now()).await?)))
}

/// Revoke a token; it stops working at once
///
/// Needs the role admin.
#[utoipa::path(delete, path = "/api/v1/tokens/{token}", operation_id = "revoke_token",
    tag = "tokens", params(("token" = String, Path, description = "name or UUID")),
    responses((status = 204),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
async fn revoke(
    _: May<Administer>,
    State(app): State<Arc<App>>,
    Path(token): Path<String>,
) -> Answer<StatusCode> {
    app.tokens.revoke(&reference(ObjectKind::Token, &token)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
