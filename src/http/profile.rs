//! The toy proxy's routes that start and stop the profilers of all engines. They exist in its face, for processes of this host:
//! whoever profiles engines slows everybody down.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use serde_json::{Value, json};

use super::access;
use super::server::{Server, json as answer, refuse};
use crate::api::fields;
use crate::error::ProxyError;
use crate::json::{Body as Json, BodyError};
use crate::pool::Engine;

/// Where clients and engines have them.
pub(super) const PATHS: [&str; 2] = ["/start_profile", "/stop_profile"];

/// Time for an engine's answer: at the stop it writes its traces first.
const LIMIT: Duration = Duration::from_secs(300);

/// Headers of which one shows that a page in a browser asks, or somebody else by way of a proxy on this host.
const FOREIGN: [HeaderName; 5] = [
    header::ORIGIN,
    HeaderName::from_static("sec-fetch-site"),
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    header::VIA,
];

/// Marks a request that a process of this host has made itself.
#[derive(Clone, Copy)]
struct Local;

/// Looks at a request before anything of it is changed.
pub(super) fn mark<B>(request: &mut http::Request<B>, peer: SocketAddr) {
    let is_loopback = || peer.ip().to_canonical().is_loopback();
    if PATHS.contains(&request.uri().path()) && is_loopback() && is_direct(request.headers()) {
        request.extensions_mut().insert(Local);
    }
}

/// Whether no page and no proxy has made a request. A page that has had its own name resolved to this host shows it in `Host`,
/// so that must be an address, or the name that is nobody else's.
fn is_direct(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<http::uri::Authority>().ok());
    let is_ours = |host: &str| {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
    };
    host.is_some_and(|host| is_ours(host.host())) && !FOREIGN.iter().any(|name| headers.contains_key(name))
}

/// Asks every engine once, all at the same time; the answer says what each has answered. For others than processes of this host
/// the route does not exist.
pub(super) async fn all(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    if head.extensions.get::<Local>().is_none() {
        return refuse(&server, "other", None, ProxyError::NotFound);
    }
    match ask(&server, &head, body).await {
        Ok(response) => {
            server.metrics.request("other", response.status().as_u16());
            response
        }
        Err(error) => refuse(&server, "other", None, error),
    }
}

async fn ask(server: &Server, head: &http::request::Parts, body: Body) -> Result<Response, ProxyError> {
    if head.method != Method::POST {
        return Err(ProxyError::MethodNotAllowed);
    }
    server.admit(head)?;
    let body = server.read(&head.headers, body).await?;
    let body = if body.is_empty() { body } else { stripped(body)? };
    let headers = access::forwarded(&server.settings.keys, &head.headers);
    let pool = server.pool();
    let asked = pool.engines().map(|engine| one(server, engine, head.uri.path(), (headers.clone(), body.clone())));
    let told = join_all(asked).await;
    if told.is_empty() {
        return Err(super::probes::no_pair(&pool, std::time::Instant::now()));
    }
    let good = told.iter().all(|engine| engine["status"].as_u64().is_some_and(|status| status < 400));
    let status = if good { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
    tracing::info!(path = head.uri.path(), engines = told.len(), good, "engines were told to profile");
    Ok(answer(status, &json!({"status": if good { "ok" } else { "failed" }, "engines": told})))
}

/// What clients send to be generated from must not reach engines with transfer params, here as elsewhere (protocol T8).
fn stripped(body: Bytes) -> Result<Bytes, ProxyError> {
    let bad = |error: BodyError| ProxyError::BadRequest { message: error.to_string(), param: None };
    Ok(fields::hidden::stripped(Json::parse(body).map_err(bad)?)?.text().clone())
}

/// What one engine says, or why it says nothing.
async fn one(server: &Server, engine: &Engine, path: &str, (headers, body): (HeaderMap, Bytes)) -> Value {
    let mut url = engine.base.clone();
    url.set_path(path);
    let request = server.means.upstream.client().post(url).headers(headers).body(body);
    let mut told = json!({"role": engine.role().as_str(), "address": engine.name});
    match tokio::time::timeout(LIMIT, request.send()).await {
        Ok(Ok(answer)) => told["status"] = answer.status().as_u16().into(),
        Ok(Err(error)) if error.is_connect() => told["error"] = "it could not be reached".into(),
        Ok(Err(_)) => told["error"] = "the connection broke".into(),
        Err(_) => told["error"] = format!("no answer within {}s", LIMIT.as_secs()).into(),
    }
    told
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::{Local, mark};

    #[track_caller]
    fn check(path: &str, peer: &str, headers: &[(&str, &str)], local: bool) {
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).unwrap();
        mark(&mut request, peer.parse().unwrap());
        assert_eq!(request.extensions().get::<Local>().is_some(), local, "{path} {peer} {headers:?}");
    }

    #[test]
    fn only_processes_of_this_host_may_profile() {
        let here = [("host", "127.0.0.1:10001")];
        for path in ["/start_profile", "/stop_profile"] {
            check(path, "127.0.0.1:5", &here, true);
        }
        check("/start_profiles", "127.0.0.1:5", &here, false);
        for (peer, local) in [
            ("127.8.8.8:5", true),
            ("[::1]:5", true),
            ("[::ffff:127.0.0.1]:5", true),
            ("10.0.0.1:5", false),
            ("[::ffff:10.0.0.1]:5", false),
        ] {
            check("/start_profile", peer, &here, local);
        }
        for (host, local) in [
            ("localhost:10001", true),
            ("LOCALHOST", true),
            ("[::1]:10001", true),
            ("0.0.0.0:10001", true),
            ("rebound.example:10001", false),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("", false),
        ] {
            check("/start_profile", "127.0.0.1:5", &[("host", host)], local);
        }
        check("/start_profile", "127.0.0.1:5", &[], false);
        for sign in [
            ("origin", "null"),
            ("origin", "http://127.0.0.1:10001"),
            ("sec-fetch-site", "same-origin"),
            ("x-forwarded-for", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
            ("via", "1.1 front"),
        ] {
            check("/start_profile", "127.0.0.1:5", &[here[0], sign], false);
        }
    }
}
