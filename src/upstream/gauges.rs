//! What a decode engine's own gauges say of its queue. Asked only when a leg that waited may have been woken already: to wake a
//! leg that is at work would end its engine.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Limited};
use tokio::sync::Mutex;

use crate::engine::HttpAddress;

/// The most that `/metrics` may say; a real engine says some 150 KB.
const LONGEST: usize = 8 << 20;
/// Time between two looks at one engine.
const PACE: Duration = Duration::from_millis(200);
/// Time for asking.
const LIMIT: Duration = Duration::from_secs(2);

/// An engine's requests by its own word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Queue {
    /// Being computed.
    pub running: f64,
    /// Waiting for their turn.
    pub waiting: f64,
    /// Waiting for something else, such as their KV: every leg that waits for KV is among them.
    pub deferred: f64,
    /// Of those, the ones whose KV has arrived; told by 0.32.0 and newer.
    pub arrived: Option<f64>,
    /// Tokens made since the engine began.
    pub tokens: f64,
}

impl Queue {
    /// Whether no leg can wait for KV, now or by the next step.
    pub fn none_waits(&self) -> bool {
        self.deferred == 0.0 && self.waiting == 0.0
    }
}

/// What an engine's server last said of its queue, and when it was asked.
pub type LastLook = Mutex<Option<(Instant, Option<Queue>)>>;

/// The last looks at an engine, at each of its hosts that serve.
#[derive(Debug, Default)]
pub struct LastLooks(std::sync::Mutex<BTreeMap<usize, Arc<LastLook>>>);

impl LastLooks {
    /// The last look at one host.
    pub fn at(&self, host: usize) -> Arc<LastLook> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(host).or_default().clone()
    }
}

/// The queue of the engine that serves at `address`, at a moment not before `since`; `None` when it does not say. However many
/// legs ask at once, the engine is asked once.
pub async fn queue(client: &reqwest::Client, address: &HttpAddress, last: &LastLook, since: Instant) -> Option<Queue> {
    let mut last = last.lock().await;
    if let Some((asked, queue)) = *last
        && asked >= since
    {
        return queue;
    }
    // However many legs look, an engine that renders a long page is asked at a steady pace.
    if let Some((asked, _)) = *last {
        tokio::time::sleep_until((asked + PACE).into()).await;
    }
    let asked = Instant::now();
    let queue = tokio::time::timeout(LIMIT, ask(client, address)).await.ok().flatten();
    *last = Some((asked, queue));
    queue
}

async fn ask(client: &reqwest::Client, address: &HttpAddress) -> Option<Queue> {
    let sent = client.get(address.url("/metrics")).send();
    let answer: http::Response<reqwest::Body> = sent.await.ok()?.error_for_status().ok()?.into();
    let body = Limited::new(answer.into_body(), LONGEST).collect().await.ok()?.to_bytes();
    read(std::str::from_utf8(&body).ok()?)
}

/// The figures, summed over ranks and models; `None` unless all are there. Their names have stood since 0.23.0 at least.
fn read(metrics: &str) -> Option<Queue> {
    let sum = |name: &str, label: &str| {
        let lines = metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
        let mut numbers = lines
            .filter(|line| line.contains(label))
            .map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .peekable();
        numbers.peek()?;
        numbers.sum::<Option<f64>>()
    };
    let running = sum("vllm:num_requests_running", "")?;
    let waiting = sum("vllm:num_requests_waiting_by_reason", "reason=\"capacity\"")?;
    let deferred = sum("vllm:num_requests_waiting_by_reason", "reason=\"deferred\"")?;
    let arrived = sum("vllm:num_requests_kv_fetch_by_stage", "stage=\"completed_waiting\"");
    let tokens = sum("vllm:generation_tokens_total", "")?;
    Some(Queue { running, waiting, deferred, arrived, tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_are_summed_and_anything_else_is_no_answer() {
        let metrics = "# HELP vllm:num_requests_running Number\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 2.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 1.0\n\
            vllm:num_requests_running_total{engine=\"1\"} 9.0\n\
            vllm:generation_tokens_total{engine=\"0\"} 70.0\n\
            vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 4.0\n\
            vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"deferred\"} 7.0\n";
        assert_eq!(
            read(metrics),
            Some(Queue { running: 3.0, waiting: 4.0, deferred: 7.0, arrived: None, tokens: 70.0 })
        );
        assert_eq!(read(""), None);
        assert_eq!(read("vllm:num_requests_running{} 0.0\n"), None, "one without the others");
        assert_eq!(read(&metrics.replace("4.0", "four")), None);
    }
}
