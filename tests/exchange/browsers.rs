//! What browsers are told, and by whom.

use http::{HeaderMap, HeaderValue, Method};
use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Mode, Role};
use serde_json::json;

use crate::support::fake::{Fake, answer};
use crate::support::{Answer, Plan, Proxy, client, completion, until};

const PAGE: &str = "https://chat.example";

fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

async fn preflight(proxy: &Proxy, path: &str, origin: &str) -> Answer {
    let asked = client().request(Method::OPTIONS, proxy.url(path)).header("origin", origin);
    let asked = asked.header("access-control-request-method", "POST");
    let asked = asked.header("access-control-request-headers", "authorization,content-type,x-stainless-os");
    Answer::of(asked.send().await.unwrap()).await
}

async fn ask(proxy: &Proxy, origin: &str, body: &serde_json::Value) -> Answer {
    let sent = client().post(proxy.url("/v1/completions")).header("origin", origin).header("x-request-id", "mine");
    Answer::of(sent.body(body.to_string()).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_allowed_origins_may_call() {
    let origins = "http://localhost:3000, https://Chat.Example";
    let world = Plan::new(Mode::Read).with(Key::CorsAllowOrigin, origins).start().await;
    for path in ["/v1/completions", "/v1/models", "/v1/models/x", "/health", "/nowhere"] {
        let answer = preflight(&world.proxy, path, PAGE).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{path}");
        assert_eq!(all(&answer.headers, "access-control-allow-origin"), [PAGE], "{path}");
        let headers = answer.header("access-control-allow-headers");
        assert_eq!(headers, "authorization,content-type,x-stainless-os");
        assert!(answer.header("access-control-allow-methods").contains("POST"));
        let other = preflight(&world.proxy, path, "https://other.example").await;
        assert!(!other.headers.contains_key("access-control-allow-origin"), "{path}");
    }
    assert_eq!(world.total(|c| c.legs), 0);
    let mut bad = completion("a", 3, false);
    bad["n"] = json!(99);
    for (body, status) in [(completion("a", 3, false), 200), (completion("a", 3, true), 200), (bad, 400)] {
        let answer = ask(&world.proxy, PAGE, &body).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.whole);
        assert_eq!(all(&answer.headers, "access-control-allow-origin"), [PAGE]);
        let exposed = answer.header("access-control-expose-headers");
        assert!(exposed.contains("x-request-id") && exposed.contains("x-moriio-error-source"), "{exposed}");
        assert!(answer.header("vary").contains("origin"));
        let other = ask(&world.proxy, "https://chat.example.evil", &body).await;
        assert_eq!(other.status, status, "the browser, not the proxy, keeps it from the page");
        assert!(!other.headers.contains_key("access-control-allow-origin"));
    }
    let missing = client().get(world.proxy.url("/nowhere")).header("origin", PAGE).send().await.unwrap();
    assert_eq!((missing.status().as_u16(), all(missing.headers(), "access-control-allow-origin")), (404, vec![PAGE]));
    let leg = world.prefill[0].legs().pop().unwrap();
    assert!(!leg.headers.iter().any(|(name, _)| name == "origin"), "{leg:?}");
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_page_may_call_or_none_is_spoken_to() {
    let world = Plan::new(Mode::Write).with(Key::CorsAllowOrigin, "*").start().await;
    assert_eq!(preflight(&world.proxy, "/v1/completions", PAGE).await.header("access-control-allow-origin"), "*");
    let answer = ask(&world.proxy, PAGE, &completion("a", 3, true)).await;
    assert_eq!((answer.status, all(&answer.headers, "access-control-allow-origin")), (200, vec!["*"]));
    world.settle().await;
    let world = Plan::new(Mode::Write).start().await;
    let refused = preflight(&world.proxy, "/v1/completions", PAGE).await;
    assert_eq!((refused.status, refused.code().as_str()), (405, "method_not_allowed"));
    let answer = ask(&world.proxy, PAGE, &completion("a", 3, true)).await;
    assert_eq!(answer.status, 200);
    for answer in [refused, answer] {
        let said = |name: &http::HeaderName| name == "vary" || name.as_str().starts_with("access-control");
        assert!(!answer.headers.keys().any(said), "{:?}", answer.headers);
    }
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_engines_say_to_browsers_is_not_said_twice() {
    for (origins, wanted) in [("https://chat.example", vec![PAGE]), ("https://other.example", vec![])] {
        let proxy = Proxy::start(&[(Key::CorsAllowOrigin, origins)]);
        // As engines up to 0.31 answer, and more.
        let engine = Fake::start((Role::Decode, Mode::Read, "0.31.0"), proxy.registration, |_| {
            let mut response = answer(&json!({"object": "list", "data": []}));
            let theirs = [("access-control-allow-origin", "*"), ("access-control-allow-credentials", "true")];
            for (name, value) in theirs.into_iter().chain([("vary", "Origin"), ("vary", "accept")]) {
                response.headers_mut().append(name, HeaderValue::from_static(value));
            }
            response
        })
        .await;
        until("an engine", || async {
            let (_, body) = proxy.ready().await;
            (body["engines"][0]["state"] == "ready").then_some(()).ok_or_else(|| body.to_string())
        })
        .await;
        let got = client().get(proxy.url("/v1/models")).header("origin", PAGE).send().await.unwrap();
        assert_eq!(got.status(), 200);
        assert_eq!(all(got.headers(), "access-control-allow-origin"), wanted);
        assert!(!got.headers().contains_key("access-control-allow-credentials"));
        let vary = all(got.headers(), "vary").join(", ").to_ascii_lowercase();
        let named = vary.split(',').filter(|name| name.trim() == "origin").count();
        assert!(named == 1 && vary.contains("accept"), "{vary}");
        assert!(!engine.legs()[0].headers.contains_key("origin"));
    }
}
