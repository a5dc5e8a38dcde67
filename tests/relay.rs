//! Decode's answer on its way: streams that stall, break or end, and clients that leave.

mod drain;
mod leave;
mod stream;

use moriio_proxy::sim::Mode;
use serde_json::json;

use crate::support::fake::{Fake, FakeLeg};
use crate::support::{Plan, World};

/// A READ world with a simulated prefill and a made-up decode that answers `reply`.
async fn with_fake_decode(
    reply: impl Fn(&FakeLeg) -> axum::response::Response + Send + Sync + 'static,
) -> (World, Fake) {
    let mut plan = Plan::new(Mode::Read).engines(1, 0);
    // Nobody fetches what this prefill computes.
    plan.adjust = |settings| settings.defer_timeout = std::time::Duration::from_millis(200);
    let world = plan.start().await;
    let about = (moriio_proxy::sim::Role::Decode, Mode::Read, "0.32.0");
    let fake = Fake::start(about, world.proxy.registration, reply).await;
    world.until_ready(2).await;
    (world, fake)
}

/// The last event of a stream that went wrong: an error with this code, and no end marker.
fn error_event(answer: &crate::support::Answer) -> serde_json::Value {
    assert!(answer.whole, "the response itself ends properly: {}", answer.body);
    assert!(!answer.body.contains("[DONE]"), "{}", answer.body);
    let last = answer.events().pop().expect("an event");
    assert_ne!(last["error"], json!(null), "{}", answer.body);
    last["error"].clone()
}
