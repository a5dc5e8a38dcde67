//! Routes that schedule no work on an engine: passed to one ready engine, as they are, and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;

use super::{Server, refuse};
use crate::body::Body as Json;
use crate::engine::Role;
use crate::error::ProxyError;
use crate::fields;
use crate::pool::{Engine, State as EngineState};
use crate::upstream;

/// Time for the whole answer; these routes do nothing that takes long.
const LIMIT: Duration = Duration::from_secs(30);

/// Passes a request to an engine, prefill or decode.
pub(super) async fn pass(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    match forward(&server, &head, body).await {
        Ok(response) => {
            server.metrics.request("neutral", response.status().as_u16());
            response
        }
        Err(error) => refuse(&server, "neutral", error),
    }
}

async fn forward(server: &Server, head: &http::request::Parts, body: Body) -> Result<Response, ProxyError> {
    server.admit(head)?;
    let mut body = server.read(&head.headers, body).await?;
    if head.method == http::Method::POST {
        // Engines read transfer params wherever a body has them, also where nothing is generated (design C18).
        let parsed =
            Json::parse(body).map_err(|error| ProxyError::BadRequest { message: error.to_string(), param: None })?;
        body = fields::hidden::stripped(parsed)?.text().clone();
    }
    let pool = server.pool();
    let ready: Vec<&Arc<Engine>> = pool.engines().filter(|e| e.state == EngineState::Ready).collect();
    let turn = server.neutral_turn.fetch_add(1, Ordering::Relaxed);
    let Some(engine) = ready.get(turn % ready.len().max(1)) else {
        return Err(super::no_pair(&pool, std::time::Instant::now()));
    };
    let role: Role = engine.role();
    let mut url = engine.base.clone();
    url.set_path(head.uri.path());
    url.set_query(head.uri.query());
    let request = server
        .dispatcher
        .upstream
        .client()
        .request(head.method.clone(), url)
        .headers(upstream::forwarded(&head.headers, server.settings.engine_key.as_ref()))
        .body(body);
    let answer = async {
        let response: http::Response<reqwest::Body> = match request.send().await {
            Ok(response) => response.into(),
            Err(error) if error.is_connect() => return Err(ProxyError::Connect { role }),
            Err(_) => return Err(ProxyError::Broken { role }),
        };
        let (head, body) = response.into_parts();
        let body = upstream::answer::whole(body).await.map_err(|why| why.error(role))?;
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = head.status;
        *response.headers_mut() = upstream::relayed(head.headers);
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
        Ok(response)
    };
    let late = ProxyError::Timeout { role, what: "answer", limit: LIMIT, option: "fixed" };
    tokio::time::timeout(LIMIT, answer).await.unwrap_or(Err(late))
}
