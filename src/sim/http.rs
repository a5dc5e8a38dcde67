//! The engine's HTTP port: connections that can be cut, and the routes.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::ask::{Ask, Refusal};
use super::books::{BODY_KEPT, ReceivedLeg, lock};
use super::core::{Core, Gauge};
use super::early;
use super::fault::FaultKind;
use super::forbidden;
use super::leg::{Leg, reject};
use super::link::Link;
use super::listen::becomes;
use super::messages;
use super::response::{error, json_response};
use super::state::{Load, Pool};
use super::surface::Surface;
use super::text::Prompt;

/// Opens a host's HTTP port and closes it whenever the script says so.
pub(crate) async fn listen(core: Arc<Core>, host: usize) {
    let mut refuse = core.books.refuse.subscribe();
    loop {
        becomes(&mut refuse, false).await;
        let listener = match core.ports.http[host].listen() {
            Ok(listener) => listener,
            Err(error) => match core.die(format!("HTTP port: {error}")).await {},
        };
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => core.spawn_on(host, serve(core.clone(), stream, host)),
                    Err(_) => sleep(Duration::from_millis(100)).await,
                },
                () = becomes(&mut refuse, true) => break,
            }
        }
    }
}

async fn serve(core: Arc<Core>, stream: TcpStream, host: usize) {
    let _ = stream.set_nodelay(true);
    let _open = Gauge::new(&core, host, |load| &mut load.connections);
    let link = Arc::new(Link { host, ..Link::default() });
    let handler = {
        let (core, link) = (core.clone(), link.clone());
        service_fn(move |request| {
            let (core, link) = (core.clone(), link.clone());
            async move { Ok::<_, Infallible>(route(core, link, request).await) }
        })
    };
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), handler);
    let mut refuse = core.books.refuse.subscribe();
    let mut closing = false;
    loop {
        tokio::select! {
            _ = &mut connection => return,
            () = link.cut.notified() => break,
            () = becomes(&mut refuse, true), if !closing => {
                closing = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
        }
    }
    let stream = connection.into_parts().io.into_inner();
    if link.reset.load(Ordering::Relaxed) {
        // Without linger the kernel answers with a reset.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

async fn route(core: Arc<Core>, link: Arc<Link>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_string();
    if !may_ask(&core, &head) {
        return json_response(StatusCode::UNAUTHORIZED, json!({"error": "Unauthorized"}).to_string());
    }
    let earlier = link.requests.fetch_add(1, Ordering::Relaxed);
    let Ok(body) = body.collect().await else {
        return pending().await;
    };
    let body = body.to_bytes();
    if let (&Method::POST, Some(surface)) = (&head.method, Surface::of(&path)) {
        if earlier > 0 && core.books.strike(|kind| *kind == FaultKind::DieUnread).is_some() {
            match link.cut(false).await {}
        }
        return generate(core, link, surface, &head, body).await;
    }
    if let (&Method::POST, Ok(body)) = (&head.method, serde_json::from_slice(&body)) {
        forbidden::hidden(&body, false, &|text| core.books.violation(format!("{path}: {text}")));
    }
    let model = core.settings.model.clone();
    let card = json!({"id": model, "object": "model", "created": 0, "owned_by": "vllm", "root": model});
    match (head.method.as_str(), path.as_str()) {
        ("GET", "/health") => {
            let sick = core.books.strike(|kind| *kind == FaultKind::Unhealthy).is_some();
            let mut response = Response::new(Body::empty());
            *response.status_mut() = if sick { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            response
        }
        ("GET", "/metrics") => Response::new(Body::from(metrics(&core, link.host))),
        ("GET", "/version") => ok(json!({"version": core.settings.release})),
        ("GET", "/v1/models") => ok(json!({"object": "list", "data": [card]})),
        ("POST", "/tokenize") => tokenize(&body),
        ("POST", "/detokenize") => detokenize(&body),
        ("POST", "/v1/messages/count_tokens") => messages::count_tokens(&core, &body),
        _ => json_response(StatusCode::NOT_FOUND, json!({"detail": "Not Found"}).to_string()),
    }
}

/// Whether the key that this engine wants was sent, where it wants one: only as a bearer token, and not by probes.
fn may_ask(core: &Core, head: &http::request::Parts) -> bool {
    let Some(key) = &core.settings.api_key else { return true };
    let guarded = ["/v1", "/inference"].iter().any(|prefix| head.uri.path().starts_with(prefix));
    let sent = head.headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    !guarded || sent.and_then(|sent| sent.strip_prefix("Bearer ")) == Some(key)
}

/// The gauges that tell of a queue, of blocks and of a restart, in a real engine's words: a host that serves for its own ranks
/// tells of these, a master of all.
fn metrics(core: &Core, host: usize) -> String {
    let model = &core.settings.model;
    let (hosts, ranks) = match core.settings.children_serve {
        true => (host..host + 1, core.ranks_of(host)),
        false => (0..core.settings.hosts.len(), 0..core.settings.dp as usize),
    };
    let blocks = u64::from(core.settings.blocks) * ranks.len() as u64;
    let started = core.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let state = lock(&core.state);
    let usage = state.pools[ranks.clone()].iter().map(Pool::used).sum::<u64>() as f64 / blocks as f64;
    let sum = |field: fn(&Load) -> u64| state.loads[hosts.clone()].iter().map(field).sum::<u64>();
    let running = sum(|load| load.running.saturating_sub(load.lost));
    let waiting = sum(|load| load.waiting);
    let parked = state.parked.values().filter(|waiter| ranks.contains(&waiter.rank)).count() as u64;
    let ready = waiting + parked;
    drop(state);
    let tokens: u64 = hosts.map(|host| core.site(host).tokens.load(Ordering::Relaxed)).sum();
    format!(
        "process_start_time_seconds {started:.3}\n\
         vllm:num_requests_running{{engine=\"0\",model_name=\"{model}\"}} {running}.0\n\
         vllm:generation_tokens_total{{engine=\"0\",model_name=\"{model}\"}} {tokens}.0\n\
         vllm:num_requests_waiting{{engine=\"0\",model_name=\"{model}\"}} {ready}.0\n\
         vllm:num_requests_waiting_by_reason{{engine=\"0\",model_name=\"{model}\",reason=\"capacity\"}} {waiting}.0\n\
         vllm:num_requests_waiting_by_reason{{engine=\"0\",model_name=\"{model}\",reason=\"deferred\"}} {parked}.0\n\
         vllm:num_requests_kv_fetch_by_stage{{engine=\"0\",stage=\"completed_waiting\"}} 0.0\n\
         vllm:kv_cache_usage_perc{{engine=\"0\",model_name=\"{model}\"}} {usage:.9}\n\
         vllm:cache_config_info{{engine=\"0\",num_gpu_blocks=\"{blocks}\"}} 1.0\n"
    )
}

fn ok(value: Value) -> Response<Body> {
    json_response(StatusCode::OK, value.to_string())
}

fn tokenize(body: &Bytes) -> Response<Body> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    match body.get("prompt").or_else(|| body.get("messages")) {
        None => error(StatusCode::BAD_REQUEST, "field required: prompt"),
        Some(prompt) => {
            let count = Prompt::of(prompt).tokens;
            let tokens: Vec<usize> = (0..count).collect();
            ok(json!({"count": count, "max_model_len": 1_048_576, "tokens": tokens, "token_strs": null}))
        }
    }
}

fn detokenize(body: &Bytes) -> Response<Body> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    match body.get("tokens") {
        Some(Value::Array(tokens)) => {
            ok(json!({"prompt": tokens.iter().map(Value::to_string).collect::<Vec<_>>().join(" ")}))
        }
        _ => error(StatusCode::BAD_REQUEST, "field required: tokens"),
    }
}

async fn generate(
    core: Arc<Core>,
    link: Arc<Link>,
    surface: Surface,
    head: &http::request::Parts,
    body: Bytes,
) -> Response<Body> {
    let ask = Ask::parse(surface, &head.headers, &body, core.settings.header_range(), core.minor);
    let params = ask.as_ref().ok().and_then(Ask::params).cloned().map_or(Value::Null, Value::Object);
    let faults = core.books.enter(received(head, &body, params, link.host));
    if head.uri.query().is_some() {
        core.books.violation("query string on a leg");
    }
    if let Some(milliseconds) = faults.delay_milliseconds {
        sleep(Duration::from_millis(milliseconds)).await;
    }
    if let Some(reset) = faults.cut {
        match link.cut(reset).await {}
    }
    if faults.hang {
        return pending().await;
    }
    if let Some((status, body)) = &faults.status {
        let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return json_response(status, body.clone());
    }
    let ask = match ask {
        Ok(ask) => ask,
        Err(refusal) => {
            match Ask::rejected(surface, &head.headers, &body, core.minor) {
                Some(ask) => reject(&core, &ask),
                None => core.books.count(|counters| counters.rejected += 1),
            }
            if let Refusal::Rank(message) = &refusal {
                core.books.violation(message.as_str());
            }
            return match refusal {
                Refusal::Body(message) => error(StatusCode::BAD_REQUEST, &message),
                Refusal::Later(message) | Refusal::Rank(message) => {
                    messages::worded(surface, core.minor, error(StatusCode::BAD_REQUEST, &message)).await
                }
            };
        }
    };
    if let (Some((status, _)), false) = (faults.error_event, ask.stream) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return messages::worded(surface, core.minor, error(status, "scripted")).await;
    }
    let (streams, fits) = (ask.stream, ask.blocks() <= core.settings.blocks as usize);
    let minor = core.minor;
    let leg = Leg { core, link, ask, faults, mapped: None };
    // The length is looked at before the head of a stream is written.
    if streams && fits { early::answer(leg) } else { messages::worded(surface, minor, leg.run().await).await }
}

fn received(head: &http::request::Parts, body: &Bytes, transfer_params: Value, host: usize) -> ReceivedLeg {
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    ReceivedLeg {
        sequence: 0,
        path: head.uri.path().to_string(),
        headers: headers.collect(),
        host,
        body_length: body.len(),
        body: String::from_utf8_lossy(&body[..body.len().min(BODY_KEPT)]).into_owned(),
        transfer_params,
    }
}
