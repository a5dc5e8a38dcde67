//! An exchange's account: opened when the request is accepted, closed exactly once, on every path, by being dropped. It counts
//! the request and writes its one log line; the legs' guards count themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;

use crate::api::Api;
use crate::api::side;
use crate::error::ProxyError;
use crate::metrics::Metrics;
use crate::pool::{InFlight, LegEnd};
use crate::queue::Place;
use crate::routing::Picked;

/// How an exchange ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The answer was passed to its end.
    Complete,
    /// The client was told an error instead of decode's answer.
    Error,
    /// Decode's answer broke off after its head had been passed on.
    Cut,
    /// The client left first.
    ClientGone,
}

impl Ended {
    /// The word in the log line.
    pub fn as_str(self) -> &'static str {
        match self {
            Ended::Complete => "complete",
            Ended::Error => "error",
            Ended::Cut => "cut",
            Ended::ClientGone => "client_gone",
        }
    }
}

/// The status that stands in the counter when the client left before there was one.
const CLIENT_GONE: u16 = 499;

/// One client request from accept to account.
#[derive(Debug)]
pub struct Exchange {
    metrics: Arc<Metrics>,
    started: Instant,
    route: &'static str,
    client_id: Option<String>,
    status: u16,
    ended: Ended,
    error: Option<(&'static str, &'static str)>,
    first_byte: Option<Duration>,
    prefill_time: Option<Duration>,
    queue_time: Option<Duration>,
    bytes: u64,
    pair: Option<PairLine>,
    place: Option<Place>,
    /// Whether the client and the log are told the side at fault, as MAD's proxy does.
    names_side: bool,
    /// Which of several answers it is, of a client request that has a record of its own.
    sibling: Option<u32>,
    /// How many of those it is made of.
    siblings: Option<u32>,
    /// Attempts that were made.
    pub attempts: u32,
}

/// What the log line says of the last pair.
#[derive(Debug)]
struct PairLine {
    prefill: String,
    decode: String,
    rank: Option<u32>,
    mode: &'static str,
    transfer_id: String,
    legs: [LegEnd; 2],
}

impl Exchange {
    /// Opens the account of a request on `route`. `client_id` is the client's own request id, already checked.
    pub fn open(metrics: Arc<Metrics>, route: &'static str, client_id: Option<String>) -> Self {
        metrics.open_exchange();
        Exchange {
            metrics,
            started: Instant::now(),
            route,
            client_id,
            status: CLIENT_GONE,
            ended: Ended::ClientGone,
            error: None,
            first_byte: None,
            prefill_time: None,
            queue_time: None,
            bytes: 0,
            pair: None,
            place: None,
            names_side: false,
            sibling: None,
            siblings: None,
            attempts: 0,
        }
    }

    /// Opens the account of one of several answers. It has a line of its own and counts its errors, but is no client request.
    pub(crate) fn sibling(&self, number: u32) -> Self {
        let (metrics, client_id) = (self.metrics.clone(), self.client_id.clone());
        let mut sibling = Exchange::open(metrics, self.route, client_id).naming_side(self.names_side);
        sibling.metrics.close_exchange();
        sibling.sibling = Some(number);
        sibling
    }

    /// It is made of so many, which count their errors.
    pub(crate) fn several(&mut self, siblings: u32) {
        self.siblings = Some(siblings);
    }

    /// One of several answers told an error in the midst of it.
    pub(crate) fn cut_by_sibling(&mut self) {
        self.ended = Ended::Cut;
        self.error = Some(("sibling_failed", "proxy"));
    }

    /// The same account, that tells the side at fault as MAD's proxy does.
    pub(crate) fn naming_side(mut self, names_side: bool) -> Self {
        self.names_side = names_side;
        self
    }

    /// Keeps the exchange's place among those that may be in flight until its end, that of its stream included.
    pub(crate) fn occupy(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Its place is given back before it looks for another pair.
    pub(crate) fn vacate(&mut self) {
        self.place = None;
    }

    /// It was in the line for so long, if it was.
    pub(crate) fn waited(&mut self, time: Option<Duration>) {
        self.queue_time = time;
    }

    /// An attempt with this pair begins.
    pub fn attempt(&mut self, picked: &Picked, transfer_id: &str) {
        self.attempts += 1;
        let legs = [picked.prefill.leg_end(), picked.decode.leg_end()];
        let (prefill, decode) = (picked.prefill.engine.name.clone(), picked.decode.engine.name.clone());
        let (rank, mode, transfer_id) = (picked.rank, picked.mode.as_str(), transfer_id.to_owned());
        self.pair = Some(PairLine { prefill, decode, rank, mode, transfer_id, legs });
    }

    /// An attempt begins that decode serves alone: there is no transfer.
    pub fn attempt_alone(&mut self, decode: &InFlight) {
        self.attempts += 1;
        let (name, legs) = (decode.engine.name.clone(), [LegEnd::default(), decode.leg_end()]);
        let (prefill, transfer_id) = Default::default();
        self.pair = Some(PairLine { prefill, decode: name, rank: None, mode: "decode alone", transfer_id, legs });
    }

    /// Prefill serves the attempt alone: there is no transfer.
    pub fn alone(&mut self) {
        if let Some(pair) = &mut self.pair {
            pair.mode = "prefill alone";
            // A decode leg that was sent before that was known stays in the line.
            if pair.legs[1].word().is_none() {
                pair.decode.clear();
                pair.transfer_id.clear();
            }
        }
    }

    /// READ: another decode engine took the hand-over.
    pub(crate) fn another_decode(&mut self, name: &str, end: LegEnd) {
        if let Some(pair) = &mut self.pair {
            name.clone_into(&mut pair.decode);
            pair.legs[1] = end;
        }
    }

    /// Prefill has answered.
    pub(crate) fn prefill_done(&mut self) {
        self.prefill_time = Some(self.started.elapsed());
    }

    /// Decode's head goes to the client.
    pub fn committed(&mut self, status: u16) {
        self.status = status;
    }

    /// A part of the answer goes to the client.
    pub(crate) fn relayed(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// It was edited on its way.
    pub(crate) fn grows(&mut self, bytes: i64) {
        self.bytes = self.bytes.saturating_add_signed(bytes);
    }

    /// The answer has shown that its engine is at work.
    pub fn first_output(&mut self) {
        if self.first_byte.is_none() {
            let after = self.started.elapsed();
            self.first_byte = Some(after);
            if self.sibling.is_none() {
                self.metrics.first_byte.observe(after.as_secs_f64());
            }
        }
    }

    /// The answer is complete, unless something went wrong on the way.
    pub fn complete(&mut self) {
        if self.error.is_none() {
            self.ended = Ended::Complete;
        }
    }

    /// The client is told `error`, in place of an answer or at the end of a broken one.
    pub fn failed(&mut self, error: &ProxyError) {
        let committed = self.status != CLIENT_GONE;
        self.ended = if committed { Ended::Cut } else { Ended::Error };
        if !committed {
            self.status = error.status().as_u16();
        }
        if self.names_side {
            let (side, tx) = (side::word(error.source()), self.transfer_id().unwrap_or("-"));
            // A client's words are in some errors, and a line of the log must stay one.
            tracing::error!("FAIL_SOURCE={side} tx={tx} {:?}", error.to_string());
        }
        self.error = Some((error.code(), error.source().as_str()));
        if self.siblings.is_none() || matches!(error, ProxyError::Unlike) {
            self.metrics.error(error.code(), error.source().as_str());
        }
    }
}

impl Exchange {
    fn transfer_id(&self) -> Option<&str> {
        self.pair.as_ref().map(|pair| pair.transfer_id.as_str()).filter(|id| !id.is_empty())
    }

    /// The answer that tells the client an error.
    pub(crate) fn answer(&self, error: ProxyError, api: Api) -> Response<Bytes> {
        let source = error.source();
        let response = error.into_response_for(Some(api));
        if self.names_side { side::told(response, source, self.transfer_id()) } else { response }
    }

    /// The event that tells the client an error after a part of the answer.
    pub(crate) fn event(&self, error: &ProxyError, api: Api) -> String {
        let event = error.event(api);
        if self.names_side { side::in_event(&event, error.source(), self.transfer_id()) } else { event }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.sibling.is_none() {
            self.metrics.request(self.route, self.status);
            self.metrics.ended(self.ended.as_str());
            self.metrics.relayed_bytes.inc_by(self.bytes);
            self.metrics.close_exchange();
        }
        let milliseconds = |time: Option<Duration>| time.map(|t| (t.as_secs_f64() * 1e4).round() / 10.0);
        let pair = self.pair.as_ref();
        tracing::info!(
            target: "exchange",
            route = self.route,
            status = self.status,
            ended = self.ended.as_str(),
            error = self.error.map(|(code, _)| code),
            source = self.error.map(|(_, source)| source),
            prefill = pair.map(|p| p.prefill.as_str()).filter(|name| !name.is_empty()),
            decode = pair.map(|p| p.decode.as_str()).filter(|name| !name.is_empty()),
            rank = pair.and_then(|p| p.rank),
            prefill_leg = pair.and_then(|p| p.legs[0].word()),
            decode_leg = pair.and_then(|p| p.legs[1].word()),
            mode = pair.map(|p| p.mode),
            transfer_id = self.transfer_id(),
            client_id = self.client_id.as_deref(),
            sibling = self.sibling,
            siblings = self.siblings,
            // Those of several answers are in the lines of each.
            attempts = self.siblings.is_none().then_some(self.attempts),
            queued_ms = milliseconds(self.queue_time),
            prefill_ms = milliseconds(self.prefill_time),
            first_byte_ms = milliseconds(self.first_byte),
            total_ms = milliseconds(Some(self.started.elapsed())),
            bytes = self.bytes,
        );
    }
}
