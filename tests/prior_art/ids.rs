//! What goes along with a leg: ids, credentials, connections.

use std::collections::HashSet;

use moriio_proxy::sim::{Engine, Fault, FaultKind, Mode, ReceivedLeg};

use super::refusal;
use crate::support::{Plan, client, completion, generate, post};

fn all(leg: &ReceivedLeg, name: &str) -> Vec<String> {
    let found = leg.headers.iter().filter(|(key, _)| key == name);
    found.map(|(_, value)| value.clone()).collect()
}

fn transfer_id(leg: &ReceivedLeg) -> String {
    leg.transfer_params["transfer_id"].as_str().unwrap_or_default().to_owned()
}

fn last(engine: &Engine) -> ReceivedLeg {
    engine.legs().pop().expect("a leg")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_set_and_not_added() {
    for mode in [Mode::Read, Mode::Write] {
        let world = Plan::new(mode).start().await;
        let sent = client().post(world.proxy.url("/v1/completions"));
        let sent = sent.header("X-Request-Id", "client-1").header("x-request-id", "client-2");
        let answer = sent.body(completion("x", 3, false).to_string()).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["x-request-id"].as_bytes()), (200, &b"client-1"[..]));
        let ids = [last(&world.prefill[0]), last(&world.decode[0])].map(|leg| all(&leg, "x-request-id"));
        assert_eq!((ids[0].len(), &ids[0]), (1, &ids[1]), "one, and the same on both legs");
        assert!(!ids[0][0].contains("client"), "{ids:?}");
        world.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credential_is_made_up() {
    let world = Plan::new(Mode::Write).start().await;
    for (credential, sent) in [(None, vec![]), (Some("Bearer theirs"), vec!["Bearer theirs".to_owned()])] {
        let mut request = client().post(world.proxy.url("/v1/completions"));
        if let Some(credential) = credential {
            request = request.header("authorization", credential);
        }
        let answer = request.body(completion("x", 3, false).to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        for engine in world.engines() {
            assert_eq!(all(&last(engine), "authorization"), sent);
        }
    }
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_has_ids_of_its_own() {
    let world = Plan::new(Mode::Read).engines(2, 1).start().await;
    for prefill in &world.prefill {
        prefill.set_fault(Fault::times(refusal(503), 1));
    }
    generate(&world.proxy, "third time lucky", 3, false).await;
    let legs: Vec<ReceivedLeg> = world.prefill.iter().flat_map(Engine::legs).collect();
    assert_eq!(legs.len(), 3);
    let transfers: HashSet<String> = legs.iter().map(transfer_id).collect();
    let requests: HashSet<String> = legs.iter().flat_map(|leg| all(leg, "x-request-id")).collect();
    assert_eq!((transfers.len(), requests.len()), (3, 3));
    world.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept() {
    const CROWD: usize = 100;
    let world = Plan::new(Mode::Read).start().await;
    // Long enough for all to be there at once.
    world.decode[0].set_fault(Fault::times(FaultKind::Delay { milliseconds: 500 }, CROWD as u32));
    let body = completion("in a crowd", 3, false);
    let crowd = (0..CROWD).map(|_| post(&world.proxy, "/v1/completions", &body));
    for answer in futures::future::join_all(crowd).await {
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let kept = world.decode[0].counters().connections;
    assert!(kept >= CROWD as u64 / 2, "{kept} connections of {CROWD} are kept");
    world.settle().await;
}
