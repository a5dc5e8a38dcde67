//! The pool as requests see it: engines that come, go, come back, fall silent, fall ill or change their mind.

mod bound;
mod changes;
mod claims;
mod cold;
mod expected;
mod liveness;
mod reasons;

use std::net::SocketAddr;

use serde_json::Value;
use tokio::sync::watch;

use crate::support::fake::ping;
use crate::support::{Proxy, until};

/// Pings and nothing else, from a socket of its own; dropping it ends it.
struct Pinger {
    task: tokio::task::JoinHandle<()>,
}

impl Pinger {
    fn start(says: &Value, registration: SocketAddr) -> Pinger {
        let says = watch::Sender::new(says.clone());
        Pinger { task: tokio::spawn(ping(says.subscribe(), registration)) }
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

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
