//! The way of who computes a prompt: its turn, what the prefix cache has of it, and what it tells.

use std::time::Duration;

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::books::lock;
use super::chain;
use super::core::{Blocks, Gauge};
use super::handshake::meet;
use super::held;
use super::leg::Leg;
use super::mapped::Mapped;
use super::peer::Peer;
use super::response::{error, json_response};
use super::state::Stage;
use super::turn::Turn;

impl Leg {
    /// The first token has ended the text: the answer is whole, and there are no transfer params in it.
    fn ended_at_once(&self) -> Response<Body> {
        let id = self.ask.internal_id();
        let usage = json!({"input_tokens": self.ask.prompt.tokens, "output_tokens": 1});
        let message = json!({
            "id": id, "type": "message", "role": "assistant", "content": [], "model": self.core.settings.model,
            "stop_reason": "end_turn", "stop_sequence": null, "usage": usage,
        });
        json_response(StatusCode::OK, message.to_string())
    }

    pub(super) async fn prefill(self, rank: usize, transfer: &str, peer: Option<Peer>) -> Response<Body> {
        let core = self.core.clone();
        core.books.count(|counters| counters.prefill_legs += 1);
        let hashes = self.hashes(rank);
        let turn = self.turn(rank).await;
        let idle = Instant::now();
        let blocks = Blocks::allocate(&core, rank, self.ask.blocks()).await;
        let _mapped = Mapped::enter(&core, transfer, Stage::Computing);
        let running = Gauge::new(&core, core.host_of(rank), |load| &mut load.running);
        let cached = self.look_up(rank, &hashes);
        self.compute(rank, turn, idle, cached, &hashes).await;
        if self.faults.ends_at_once && !self.ask.guards_its_token() {
            return self.ended_at_once();
        }
        self.fill(&blocks);
        let voice = self.voice(&blocks);
        if let Some(peer) = peer.as_ref().filter(|_| core.write()) {
            meet(&core, peer).await;
        }
        let mut ids = blocks.into_ids();
        let spare = ids.split_off(self.ask.prompt.blocks());
        let transfer_params = self.transfer_params(rank, transfer, &ids, cached);
        drop(Blocks::of(&core, rank, spare));
        held::hold(&core, transfer, rank, ids, peer, self.ask.prompt.digest);
        if self.ask.forces_one_tool() {
            // The work is done; then the converter finds that one token is no JSON.
            let status = if core.minor >= 28 { StatusCode::BAD_REQUEST } else { StatusCode::INTERNAL_SERVER_ERROR };
            return error(status, "Invalid JSON in tool arguments");
        }
        if let Some(status) = self.faults.status_after_work {
            // By then a push that is due has begun.
            sleep(Duration::from_millis(300)).await;
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return error(status, "scripted, after the work");
        }
        let mut answer = self.answer(rank, voice, transfer_params, None, running);
        answer.cached = cached;
        answer.give().await
    }

    /// Decode does all of the work itself.
    pub(super) async fn serve_alone(self, rank: usize) -> Response<Body> {
        let core = self.core.clone();
        let hashes = self.hashes(rank);
        let turn = self.turn(rank).await;
        let idle = Instant::now();
        let blocks = Blocks::allocate(&core, rank, self.ask.blocks()).await;
        let running = Gauge::new(&core, core.host_of(rank), |load| &mut load.running);
        let cached = self.look_up(rank, &hashes);
        self.compute(rank, turn, idle, cached, &hashes).await;
        self.fill(&blocks);
        let voice = self.voice(&blocks);
        let mut answer = self.answer(rank, voice, Value::Null, Some(blocks), running);
        answer.cached = cached;
        answer.give().await
    }

    /// The prompt's blocks as the cache knows them; none without a cache.
    pub(super) fn hashes(&self, rank: usize) -> Vec<u64> {
        let is_on = lock(&self.core.state).pools[rank].cache.is_on();
        if is_on { chain::hashes(&self.ask, self.core.minor, &self.core.settings.model) } else { Vec::new() }
    }

    /// Waits until the rank computes this prompt and no other; without a rate it computes all at once.
    async fn turn(&self, rank: usize) -> Option<Turn> {
        let core = &self.core;
        if core.settings.prefill_rate == 0 {
            return None;
        }
        let desk = &core.desks[rank];
        if let Some(turn) = desk.free() {
            return Some(turn);
        }
        let _waiting = Gauge::new(core, core.host_of(rank), |load| &mut load.waiting);
        Some(desk.turn().await)
    }

    /// How much of the prompt is cached now that its computing begins. Logprobs of the prompt need all of it computed.
    fn look_up(&self, rank: usize, hashes: &[u64]) -> usize {
        let tokens = self.ask.prompt.tokens;
        let cached = match self.ask.recomputes() {
            true => 0,
            false => lock(&self.core.state).pools[rank].cache.hit(hashes, tokens),
        };
        self.core.books.count(|counters| {
            counters.prompt_tokens += tokens as u64;
            counters.cached_tokens += cached as u64;
        });
        cached
    }

    /// Takes the time that the prompt takes, then caches its blocks. What is left before is not cached.
    async fn compute(&self, rank: usize, turn: Option<Turn>, idle: Instant, cached: usize, hashes: &[u64]) {
        let settings = &self.core.settings;
        let mut turn = turn;
        match &mut turn {
            Some(turn) => {
                let tokens = self.ask.prompt.tokens.saturating_sub(cached) as u64;
                let time = Duration::from_nanos(tokens.saturating_mul(1_000_000_000) / settings.prefill_rate.max(1));
                turn.work(idle, settings.prefill_delay.saturating_add(time)).await;
            }
            None if settings.prefill_delay.is_zero() => {}
            None => sleep(settings.prefill_delay).await,
        }
        // Before the turn ends: the next prompt may begin with the same.
        lock(&self.core.state).pools[rank].cache.keep(hashes);
    }

    /// What prefill tells of its blocks, by release.
    fn transfer_params(&self, rank: usize, transfer: &str, ids: &[u32], cached: usize) -> Value {
        let core = &self.core;
        if self.faults.null_params {
            return Value::Null;
        }
        let (handshake, notify) = (core.ports.handshake_base(), core.ports.notify_base());
        let host = core.settings.hosts[core.host_of(rank)].to_string();
        let mut params = json!({
            "do_remote_prefill": true, "do_remote_decode": false,
            "remote_block_ids": if core.minor >= 30 { json!([ids]) } else { json!(ids) },
            "remote_engine_id": format!("{host}:{handshake}"),
            "tp_size": core.settings.tp,
        });
        if core.minor <= 19 {
            params["remote_host"] = json!(host);
            params["remote_port"] = json!(handshake.to_string());
        } else {
            params["transfer_id"] = json!(transfer);
        }
        if core.minor >= 24 {
            params["remote_host"] = json!(host);
            params["remote_handshake_port"] = json!(handshake.to_string());
            params["remote_notify_port"] = json!(notify.to_string());
            params["remote_dp_size"] = json!(core.settings.dp);
        }
        if core.minor >= 28 {
            params["remote_dp_rank"] = json!(rank);
            params["remote_dp_rank_override"] = json!(true);
            params["remote_dp_size_local"] = json!(core.settings.local_dp());
        }
        if core.minor >= 31 {
            params["remote_prefill_cached_tokens"] = json!(cached);
        }
        if self.faults.no_block_ids {
            params["remote_block_ids"] = Value::Null;
        }
        params
    }
}
