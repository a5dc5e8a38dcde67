//! Which route leads where.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{any, get, post};

use super::server::{Server, refuse};
use super::{pass_through, profile, status, workers};
use crate::api::Api;
use crate::error::ProxyError;

/// What is asked by probes: answered even when there is no place for anything else.
pub const PROBES: [&str; 4] = ["/health", "/liveness", "/ready", "/metrics"];

/// Every route; anything else is a 404 in OpenAI's shape.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let conduct = server.settings.conduct;
    let profiles = match conduct.profiles {
        true => profile::PATHS.into_iter().fold(Router::new(), |routes, path| routes.route(path, any(profile::all))),
        false => Router::new(),
    };
    let lists = match conduct.lists_engines {
        true => Router::new()
            .route("/workers", get(workers::workers))
            .route("/list_workers", get(workers::urls))
            .route("/get_loads", get(workers::loads)),
        false => Router::new(),
    };
    Router::new()
        .merge(lists)
        .merge(profiles)
        .route(Api::Completions.path(), post(completions))
        .route(Api::Chat.path(), post(chat))
        .route(Api::Responses.path(), post(responses))
        .route(Api::Messages.path(), post(messages))
        .route(Api::Generate.path(), post(generate))
        .route("/v1/models", get(pass_through::pass))
        .route("/v1/models/{*id}", get(pass_through::model))
        .route("/tokenize", post(pass_through::pass))
        .route("/detokenize", post(pass_through::pass))
        .route("/v1/messages/count_tokens", post(pass_through::pass))
        .route("/health", get(status::health))
        .route("/liveness", get(status::liveness))
        .route("/ready", get(status::ready))
        .route("/version", get(status::version))
        .route("/metrics", get(status::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(server)
}

/// What the port for `/metrics` serves.
pub(crate) fn metrics(server: Arc<Server>) -> Router {
    Router::new().route("/metrics", get(status::metrics)).fallback(not_found).with_state(server)
}

/// For requests that there is no place for: each is refused, whatever it asks.
pub(crate) fn refusing(server: Arc<Server>) -> Router {
    let refuse = async |State(server): State<Arc<Server>>| refuse(&server, "other", None, ProxyError::NoPlace);
    Router::new().fallback(refuse).with_state(server)
}

async fn completions(State(server): State<Arc<Server>>, request: Request) -> Response {
    server.exchange(Api::Completions, request).await
}

async fn chat(State(server): State<Arc<Server>>, request: Request) -> Response {
    server.exchange(Api::Chat, request).await
}

async fn responses(State(server): State<Arc<Server>>, request: Request) -> Response {
    server.exchange(Api::Responses, request).await
}

async fn messages(State(server): State<Arc<Server>>, request: Request) -> Response {
    server.exchange(Api::Messages, request).await
}

async fn generate(State(server): State<Arc<Server>>, request: Request) -> Response {
    server.exchange(Api::Generate, request).await
}

async fn not_found(State(server): State<Arc<Server>>) -> Response {
    refuse(&server, "other", None, ProxyError::NotFound)
}

async fn method_not_allowed(State(server): State<Arc<Server>>) -> Response {
    refuse(&server, "other", None, ProxyError::MethodNotAllowed)
}
