//! An engine that points elsewhere: its fault, told without its address.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode};
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Fault, FaultKind, Mode, Role};
use serde_json::json;

use crate::support::fake::{Fake, answer};
use crate::support::{Answer, Plan, Proxy, client, completion, generate, post, until};

const ELSEWHERE: &str = "http://10.1.2.3:8000/v1/elsewhere";

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_a_failed_leg_and_leaves_no_block_behind() {
    for mode in [Mode::Read, Mode::Write] {
        for role in [Role::Prefill, Role::Decode] {
            let world = Plan::new(mode).start().await;
            let word = if role == Role::Prefill { "prefill" } else { "decode" };
            for status in [301, 307] {
                let engine = if role == Role::Prefill { &world.prefill[0] } else { &world.decode[0] };
                engine.set_fault(Fault::times(FaultKind::Status { status, body: "{}".into() }, 1));
                let answer = post(&world.proxy, "/v1/completions", &completion("redirected", 4, true)).await;
                let told = (answer.status, answer.code(), answer.source());
                assert_eq!(told, (502, "engine_redirected".into(), word), "{mode:?} {word} {status}");
                world.settle().await;
            }
            let legs = format!("moriio_legs_total{{role=\"{word}\"");
            let text = world.proxy.metrics().await;
            let failed = text.lines().find(|line| line.starts_with(&legs) && line.contains("status=\"5xx\""));
            assert!(failed.is_some_and(|line| line.ends_with(" 2")), "{mode:?} {word} {failed:?}");
            generate(&world.proxy, "after that", 4, true).await;
            world.settle().await;
        }
    }
}

/// A redirect on every route but the probes.
fn redirect() -> Response {
    let mut response = Response::new(Body::from("elsewhere"));
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert("location", HeaderValue::from_static(ELSEWHERE));
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_that_an_engine_points_at_reaches_nobody() {
    let proxy = Proxy::start(&[(Key::BreakerFailures, "0")]);
    let decode = Fake::start((Role::Decode, Mode::Read, "0.32.0"), proxy.registration, |_| {
        // Also where it is no redirect.
        let mut response = answer(&json!({"choices": [{"text": "x"}]}));
        response.headers_mut().insert("location", HeaderValue::from_static(ELSEWHERE));
        response
    })
    .await;
    until("decode", || async {
        let (_, body) = proxy.ready().await;
        (body["engines"][0]["state"] == "ready").then_some(()).ok_or_else(|| body.to_string())
    })
    .await;
    let passed = Answer::of(client().get(proxy.url("/v1/models")).send().await.unwrap()).await;
    assert_eq!((passed.status, passed.headers.get("location")), (200, None));
    let prefill = Fake::start((Role::Prefill, Mode::Read, "0.32.0"), proxy.registration, |_| redirect()).await;
    until("a pair", || async {
        let (status, body) = proxy.ready().await;
        (status == 200).then_some(()).ok_or_else(|| body.to_string())
    })
    .await;
    let exchange = post(&proxy, "/v1/completions", &completion("a", 3, false)).await;
    assert_eq!((exchange.status, exchange.code().as_str()), (502, "engine_redirected"));
    let (mut redirected, mut answers) = (0, vec![exchange]);
    for path in ["/v1/models", "/v1/models", "/v1/models/x", "/v1/models/x"] {
        let answer = Answer::of(client().get(proxy.url(path)).send().await.unwrap()).await;
        let told = (answer.status, answer.code(), answer.source().to_owned());
        redirected += usize::from(told == (502, "engine_redirected".into(), "prefill".into()));
        answers.push(answer);
    }
    assert_eq!(redirected, 2, "{answers:?}");
    for answer in &answers {
        assert!(!answer.headers.contains_key("location") && !answer.body.contains("10.1.2.3"), "{answer:?}");
    }
    drop((prefill, decode));
}
