//! The routes that start and stop the profilers of all engines.

use moriio_proxy::sim::{Mode, Role};
use serde_json::{Value, json};

use super::{MAD, TOY, client, started, stop};
use crate::support::fake::{Fake, answer};
use crate::support::until;

#[tokio::test(flavor = "multi_thread")]
async fn every_engine_is_told_once() {
    let mut proxy = started(TOY, "");
    let about = |role| (role, Mode::Write, "0.32.0");
    let prefill = Fake::start(about(Role::Prefill), proxy.registration, |_| answer(&json!({}))).await;
    let decode = Fake::start(about(Role::Decode), proxy.registration, |leg| {
        let mut answer = answer(&json!({}));
        let refuses = leg.path == "/stop_profile";
        *answer.status_mut() = if refuses { http::StatusCode::CONFLICT } else { http::StatusCode::OK };
        answer
    })
    .await;
    until("both engines", || async {
        let said = client().get(proxy.url("/health")).send().await.unwrap().text().await.unwrap();
        let said: Value = serde_json::from_str(&said).unwrap();
        let both = said["prefill_instances"] == 1 && said["decode_instances"] == 1;
        both.then_some(()).ok_or_else(|| said.to_string())
    })
    .await;
    let tell = async |path: &str, header: (&str, &str)| {
        let request = client().post(proxy.url(path)).header(header.0, header.1);
        let body = json!({"prompt": "p", "kv_transfer_params": {"do_remote_decode": true}});
        let answer = request.body(body.to_string()).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap())
    };
    let plain = ("accept", "*/*");
    let (status, told) = tell("/start_profile", plain).await;
    assert_eq!((status, &told["status"]), (200, &json!("ok")), "{told}");
    let engine = |at: usize, role: &str, fake: &Fake, status: u16| {
        let wanted = json!({"role": role, "address": fake.http.to_string(), "status": status});
        assert_eq!(told["engines"][at], wanted);
    };
    engine(0, "prefill", &prefill, 200);
    engine(1, "decode", &decode, 200);
    let (status, told) = tell("/stop_profile", plain).await;
    assert_eq!((status, &told["status"]), (502, &json!("failed")), "{told}");
    assert_eq!(told["engines"][1]["status"], 409);
    // Pages in browsers and proxies on this host ask for others.
    for foreign in [("origin", "http://localhost"), ("x-forwarded-for", "10.0.0.1"), ("host", "rebound.example")] {
        assert_eq!(tell("/start_profile", foreign).await.0, 404, "{foreign:?}");
    }
    let read = client().get(proxy.url("/start_profile")).send().await.unwrap();
    assert_eq!(read.status(), 405);
    for fake in [&prefill, &decode] {
        let legs = fake.legs();
        let paths: Vec<&str> = legs.iter().map(|leg| leg.path.as_str()).collect();
        assert_eq!(paths, ["/start_profile", "/stop_profile"]);
        assert_eq!(legs[0].body, json!({"prompt": "p"}));
    }
    let log = stop(&mut proxy);
    assert_eq!(log.matches("engines were told to profile").count(), 2, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_the_toys_alone_and_need_engines() {
    for (file, wanted) in [(TOY, 503), (MAD, 404)] {
        let mut proxy = started(file, "");
        let answer = client().post(proxy.url("/start_profile")).send().await.unwrap();
        assert_eq!(answer.status(), wanted, "{file}");
        stop(&mut proxy);
    }
}
