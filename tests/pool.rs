//! The pool as requests see it: engines that come, go, come back, fall silent, fall ill or change their mind.

mod changes;
mod liveness;

use serde_json::Value;

use crate::support::{Proxy, until};

/// What `/ready` says of the engine at `address`, or null.
async fn engine(proxy: &Proxy, address: &str) -> Value {
    let (_, body) = proxy.ready().await;
    let engines = body["engines"].as_array().unwrap();
    engines.iter().find(|e| e["address"] == address).cloned().unwrap_or_default()
}

/// Waits until `/ready` says this of the engine at `address`.
async fn until_engine(proxy: &Proxy, address: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(what, || async {
        let seen = engine(proxy, address).await;
        if is(&seen) { Ok(seen) } else { Err(seen.to_string()) }
    })
    .await
}

fn is_ready(engine: &Value) -> bool {
    engine["state"] == "ready" && engine["circuit"] == "closed"
}
