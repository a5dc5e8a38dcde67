//! Pages in browsers: what the proxy says to those of allowed origins (`--cors-allow-origin`).

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::error::ERROR_SOURCE;
use crate::settings::Origins;
use crate::upstream::REQUEST_ID;

/// How long a browser may remember that it was allowed.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Lets pages of these origins call every route. With none, nothing changes.
pub(crate) fn allow(router: Router, origins: &Origins) -> Router {
    let origins = match origins {
        Origins::None => return router,
        Origins::Any => AllowOrigin::any(),
        Origins::Listed(origins) => AllowOrigin::list(origins.iter().cloned()),
    };
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, ERROR_SOURCE, header::RETRY_AFTER])
        .max_age(REMEMBERED);
    router.layer(from_fn(between)).layer(layer)
}

/// Who may call is the proxy's to say, once. Engines are not told of the page: one that trusts any origin (up to 0.31) would
/// answer for the proxy, and one that trusts none (since 0.32) has no say. What they say to browsers all the same is dropped.
async fn between(mut request: Request, next: Next) -> Response {
    request.headers_mut().remove(header::ORIGIN);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let theirs = |name: &&HeaderName| name.as_str().starts_with("access-control-");
    let names: Vec<HeaderName> = headers.keys().filter(theirs).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    if headers.contains_key(header::VARY) {
        let is_origin = |value: &&HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"origin");
        let kept: Vec<HeaderValue> = headers.get_all(header::VARY).iter().filter(|v| !is_origin(v)).cloned().collect();
        headers.remove(header::VARY);
        for value in kept {
            headers.append(header::VARY, value);
        }
    }
    response
}
