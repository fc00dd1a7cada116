//! The embedded console: one page, one script, one style sheet, built into the program.
//!
//! They hold no data and need no token; the script asks for one and uses the public API. The
//! policy allows nothing from elsewhere and no inline script.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::App;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/",
            get(|| async {
                page("text/html; charset=utf-8", include_str!("../../console/index.html"))
            }),
        )
        .route(
            "/console.js",
            get(|| async {
                page("text/javascript; charset=utf-8", include_str!("../../console/console.js"))
            }),
        )
        .route(
            "/console.css",
            get(|| async {
                page("text/css; charset=utf-8", include_str!("../../console/console.css"))
            }),
        )
}

fn page(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
