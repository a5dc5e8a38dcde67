//! One leg over HTTP: which headers go along, how the body is sent, what a failure means for the engine and for a retry.

pub mod answer;
pub mod connection;
pub mod failure;
mod framing;
pub mod gauges;
mod head;
mod headers;
mod idle;
pub mod sending;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::idle::{Home, Idle};
use self::sending::Sending;
use crate::engine::{HttpAddress, Role};
use crate::json::Segments;

pub use failure::{LegFailure, Limit, Repeat, Verdict};
pub(crate) use headers::{RANK, REQUEST_ID, encoded, forwarded, relayed};

/// What ends the head of a request.
const HEAD_END: Bytes = Bytes::from_static(b"\r\n");
/// How often connections are looked at that rest.
const SWEEP: Duration = Duration::from_secs(1);

/// Where a leg goes.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The engine's address.
    pub address: &'a HttpAddress,
    /// Its life: a connection is used again only within one.
    pub incarnation: u64,
    /// Which of its hosts, 0 where its first serves all: connections rest apart for each.
    pub host: usize,
    /// What it is.
    pub role: Role,
}

/// What a leg asks for.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Where on the engine.
    pub path: &'a str,
    /// The request id.
    pub id: &'a str,
    /// The rank that the engine is asked to use.
    pub rank: Option<u32>,
    /// The client's headers, encoded.
    pub headers: Bytes,
    /// The body.
    pub body: Segments,
}

/// What all legs share: connections that rest.
#[derive(Clone, Debug)]
pub struct Upstream(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: reqwest::Client,
    connect_limit: Duration,
    idle: Arc<Idle>,
}

impl Upstream {
    /// Without a total time limit: every phase has its own. Connections rest apart for each of the workers.
    ///
    /// # Errors
    /// When the TLS-free client cannot be built, which only a defect can cause.
    pub fn new(connect_limit: Duration, workers: usize) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .connect_timeout(connect_limit)
            .pool_idle_timeout(idle::REST)
            .tcp_nodelay(true)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()?;
        Ok(Upstream(Arc::new(Shared { client, connect_limit, idle: Arc::new(Idle::new(workers)) })))
    }

    /// A client for requests that are no legs.
    pub fn client(&self) -> &reqwest::Client {
        &self.0.client
    }

    /// Begins to send a leg.
    #[must_use]
    pub fn send(&self, to: &Destination<'_>, ask: Ask<'_>) -> Sending {
        let head = headers::head(to.address, ask.path, ask.id, ask.rank, ask.body.len());
        let mut parts = Vec::with_capacity(ask.body.parts().len() + 3);
        parts.extend([head, ask.headers, HEAD_END].into_iter().filter(|part| !part.is_empty()));
        parts.extend(ask.body);
        let home = Home { idle: self.0.idle.clone(), place: (to.incarnation, to.host) };
        Sending::new(home, to.address, to.role, self.0.connect_limit, parts)
    }

    /// Closes connections that have rested long enough, for ever. Does nothing while none rests.
    pub async fn sweep(self) {
        loop {
            self.0.idle.rests().await;
            while self.0.idle.sweep(Instant::now()) {
                tokio::time::sleep(SWEEP).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
