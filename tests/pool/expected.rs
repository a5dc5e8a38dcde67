//! `/ready` that waits for more than a pair.

use moriio_proxy::settings::options::Key;
use moriio_proxy::sim::{Mode, Role};
use serde_json::json;

use crate::support::Plan;

#[tokio::test(flavor = "multi_thread")]
async fn ready_waits_for_the_expected_engines() {
    let expecting = [(Key::ExpectPrefill, "2"), (Key::ExpectDecode, "1")];
    let ttl = Plan::new(Mode::Write).with(Key::EngineTtl, "1s");
    let plan = expecting.into_iter().fold(ttl, |plan, (key, value)| plan.with(key, value));
    let settings = |registration| Plan::new(Mode::Write).settings(Role::Prefill, registration);
    let mut world = plan.start().await;
    let (status, body) = world.proxy.ready().await;
    assert_eq!((status, &body["status"]), (503, &json!("waiting for the expected engines")));
    assert_eq!(body["expected"], json!({"prefill": 2, "decode": 1}));
    world.join(settings(world.proxy.registration)).await;
    world.until_ready(3).await;
    let (status, body) = world.proxy.ready().await;
    assert_eq!((status, &body["status"]), (200, &json!("ready")));
    // It follows the pool in both directions, unlike /health.
    world.prefill.pop();
    crate::support::until("one prefill engine again", || async {
        let (status, body) = world.proxy.ready().await;
        (status == 503).then_some(()).ok_or_else(|| body.to_string())
    })
    .await;
}

/// Of an engine over several hosts only the first registers, for all its ranks.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_counts_for_the_hosts_that_it_fills() {
    for (ranks, status) in [("4", 503), ("2", 200), ("3", 200), ("0", 503)] {
        let mut plan = Plan::new(Mode::Read).with(Key::ExpectPrefill, "2").with(Key::ExpectDecode, "2");
        plan = plan.with(Key::RanksPerHost, ranks);
        plan.dp = 4;
        let world = plan.start().await;
        assert_eq!(world.proxy.ready().await.0, status, "{ranks}");
    }
}
