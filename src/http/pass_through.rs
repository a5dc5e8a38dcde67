//! Routes that schedule no work on an engine: passed to one ready engine, as they are, and back.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::access;
use super::probes::no_pair;
use super::server::{Server, refuse};
use crate::api::Api;
use crate::api::fields;
use crate::engine::Role;
use crate::error::{EngineAnswer, ProxyError};
use crate::json::Body as Json;
use crate::pool::{Engine, State as EngineState};
use crate::upstream;
use crate::upstream::answer::{Unread, WHOLE_ANSWER};

/// Time for the whole answer; these routes do nothing that takes long.
const LIMIT: Duration = Duration::from_secs(30);

/// An engine's list of models.
#[derive(Deserialize)]
struct Models<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

/// The part of an entry that tells it from others.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// Passes a request to an engine, prefill or decode.
pub(super) async fn pass(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    // Whoever counts for Anthropic's API reads errors in its shape.
    let api = path.starts_with(Api::Messages.path()).then_some(Api::Messages);
    let passed = match forward(&server, &head, body, &path).await {
        Ok((role, response)) if api.is_some() && !response.status().is_success() => {
            let (head, body) = response.into_parts();
            let answer = Box::new(EngineAnswer { status: head.status, headers: head.headers, body });
            Err(ProxyError::Engine { role, answer })
        }
        Ok((_, response)) => Ok(response.map(Body::from)),
        Err(error) => Err(error),
    };
    answer(&server, api, passed)
}

/// One model, from the list: engines have no route for it.
pub(super) async fn model(
    State(server): State<Arc<Server>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let (mut head, body) = request.into_parts();
    head.method = Method::GET;
    let found = match forward(&server, &head, body, "/v1/models").await {
        Ok((_, response)) if !response.status().is_success() => Ok(response.map(Body::from)),
        Ok((role, response)) => match (serde_json::from_slice::<Models<'_>>(response.body()), id) {
            (Ok(models), Ok(Path(id))) => {
                let is_it = |entry: &&&RawValue| serde_json::from_str(entry.get()).is_ok_and(|m: Named<'_>| m.id == id);
                let entry = models.data.iter().find(is_it).map(|entry| Body::from(entry.get().to_owned()));
                entry.map(|body| response.clone().map(|_| body)).ok_or(ProxyError::ModelNotFound)
            }
            (Ok(_), Err(_)) => Err(ProxyError::ModelNotFound),
            // A list that is none is like one that broke off.
            (Err(_), _) => Err(ProxyError::Broken { role }),
        },
        Err(error) => Err(error),
    };
    answer(&server, None, found)
}

/// Counts what a client is told.
fn answer(server: &Server, api: Option<Api>, result: Result<Response, ProxyError>) -> Response {
    match result {
        Ok(response) => {
            server.metrics.request("neutral", response.status().as_u16());
            response
        }
        Err(error) => refuse(server, "neutral", api, error),
    }
}

/// The ready engine whose turn it is.
async fn pick(server: &Server) -> Result<Arc<Engine>, ProxyError> {
    let turn = server.pass_through_turn.fetch_add(1, Ordering::Relaxed);
    let (mut changes, mut probes) = (server.pools(), server.probes());
    loop {
        let pool = changes.borrow_and_update().clone();
        let ready: Vec<&Arc<Engine>> = pool.engines().filter(|e| e.state == EngineState::Ready).collect();
        match ready.get(turn % ready.len().max(1)) {
            Some(engine) => return Ok((*engine).clone()),
            None if probes.may_help(&pool, &mut changes).await => {}
            None => return Err(no_pair(&pool, Instant::now())),
        }
    }
}

/// The answer of one ready engine, read to its end.
async fn forward(
    server: &Server,
    head: &http::request::Parts,
    body: Body,
    path: &str,
) -> Result<(Role, http::Response<Bytes>), ProxyError> {
    server.admit(head)?;
    let mut body = server.read(&head.headers, body).await?;
    if head.method == http::Method::POST {
        // Engines read transfer params wherever a body has them, also where nothing is generated (protocol T8).
        let parsed =
            Json::parse(body).map_err(|error| ProxyError::BadRequest { message: error.to_string(), param: None })?;
        body = fields::hidden::stripped(parsed)?.text().clone();
    }
    let engine = pick(server).await?;
    let role: Role = engine.role();
    let mut url = engine.base.clone();
    url.set_path(path);
    url.set_query(head.uri.query());
    let request = server
        .means
        .upstream
        .client()
        .request(head.method.clone(), url)
        .headers(access::forwarded(&server.settings.keys, &head.headers))
        .body(body);
    let answer = async {
        let response: http::Response<reqwest::Body> = match request.send().await {
            Ok(response) => response.into(),
            Err(error) if error.is_connect() => return Err(ProxyError::Connect { role }),
            Err(_) => return Err(ProxyError::Broken { role }),
        };
        let (head, body) = response.into_parts();
        if head.status.is_redirection() {
            return Err(ProxyError::Redirected { role });
        }
        let body = Limited::new(body, WHOLE_ANSWER).collect().await.map_err(|error| {
            let too_large = error.downcast_ref::<LengthLimitError>().is_some();
            if too_large { Unread::TooLarge } else { Unread::Broken }.error(role)
        })?;
        let body = body.to_bytes();
        let mut response = http::Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = upstream::relayed(head.headers);
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
        Ok((role, response))
    };
    let late = ProxyError::Timeout { role, what: "answer", limit: LIMIT, option: "fixed" };
    tokio::time::timeout(LIMIT, answer).await.unwrap_or(Err(late))
}
