//! A leg's way through an engine.

use std::future::pending;
use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::Value;
use tokio::sync::oneshot;

use super::answer::{Answer, Holds};
use super::arrival::Arrival;
use super::ask::Ask;
use super::audit;
use super::books::lock;
use super::core::{Blocks, Core, Gauge};
use super::fault::LegFaults;
use super::handshake::{audit_first_contact, meet};
use super::link::Link;
use super::mapped::Mapped;
use super::notice::remote_blocks_message;
use super::notify::complete_early;
use super::params::{Facts, Plan, plan};
use super::peer::{Peer, port};
use super::response::error;
use super::span;
use super::text::{Block, Voice};
use super::transfer::{self, Debt};

/// One leg in the engine's hands.
pub(crate) struct Leg {
    pub(crate) core: Arc<Core>,
    pub(crate) link: Arc<Link>,
    pub(crate) ask: Ask,
    pub(crate) faults: LegFaults,
    /// WRITE decode: its line in the engine's table.
    pub(crate) mapped: Option<Mapped>,
}

impl Leg {
    /// Does what the leg asks for.
    pub(crate) async fn run(self) -> Response<Body> {
        let core = self.core.clone();
        if self.ask.blocks() > core.settings.blocks as usize {
            core.books.count(|counters| counters.rejected += 1);
            return error(StatusCode::BAD_REQUEST, "This model's maximum context length is exceeded.");
        }
        let rank = self.rank();
        core.books.count(|counters| counters.legs_by_rank[rank] += 1);
        let site = core.site_of(rank);
        tokio::select! {
            biased;
            () = site.lost.cancelled() => lost_rank(&core).await,
            answer = self.run_on(rank) => answer,
        }
    }

    /// The rank that was asked for, or whose turn it is among those that the host serves for.
    fn rank(&self) -> usize {
        let settings = &self.core.settings;
        let (host, count) = (self.link.host, settings.header_range() as usize);
        let number = self.ask.rank.unwrap_or_else(|| {
            let mut state = lock(&self.core.state);
            state.unpinned[host] += 1;
            (state.unpinned[host] - 1) % count
        });
        if settings.children_serve { host * count + number } else { number }
    }

    async fn run_on(mut self, rank: usize) -> Response<Body> {
        let core = self.core.clone();
        if core.settings.plain {
            if core.prefill() {
                (self.ask.limit, self.ask.stream) = (1, false);
            }
            let blocks = Blocks::allocate(&core, rank, self.ask.blocks()).await;
            self.fill(&blocks);
            return self.generate(blocks).await;
        }
        let facts = facts(&core, rank);
        audit::leg(&core, &self.ask, facts);
        let plan = match plan(facts, &self.ask) {
            Ok(plan) => plan,
            Err(reason) => match core.die(reason).await {},
        };
        if let Plan::Prefill { peer: Some(peer), .. } | Plan::Decode { peer, .. } = &plan {
            audit_first_contact(&core, peer);
            span::audit(&core, &self.ask, facts, peer);
        }
        core.thawed().await;
        match plan {
            Plan::Plain => self.plain(rank).await,
            Plan::Decode { transfer, peer, .. } if self.ask.recomputes() && core.minor >= 31 => {
                self.recompute(rank, &transfer, &peer).await
            }
            Plan::Prefill { transfer, peer } => self.prefill(rank, &transfer, peer).await,
            Plan::Decode { transfer, peer, notifies, .. } if core.write() => {
                self.write_decode(rank, &transfer, peer, notifies).await
            }
            Plan::Decode { transfer, peer, blocks, .. } => self.read_decode(rank, &transfer, &peer, &blocks).await,
            Plan::Garbage => {
                core.books.violation("READ decode leg without block ids or engine id: its KV is garbage");
                core.books.count(|counters| counters.decode_legs += 1);
                let blocks = Blocks::allocate(&core, rank, self.ask.blocks()).await;
                self.generate(blocks).await
            }
        }
    }

    /// Decode is asked for the prompt's side: since 0.31.0 it computes the whole prompt itself. In WRITE up to 0.32.0 it still
    /// announces blocks, none, and prefill's listener ends of that (run on 0.32.0); otherwise prefill is released.
    async fn recompute(self, rank: usize, name: &str, peer: &Peer) -> Response<Body> {
        let core = self.core.clone();
        core.books.count(|counters| counters.decode_legs += 1);
        let blocks = Blocks::allocate(&core, rank, self.ask.blocks()).await;
        self.fill(&blocks);
        if core.write() && core.minor <= 32 {
            self.ask_for_push(rank, name, peer, &[]);
        } else {
            transfer::release(&core, &self.ask.internal_id(), name, peer);
        }
        self.generate(blocks).await
    }

    /// A request that nobody paired. What it does to a real engine depends much on the release.
    async fn plain(self, rank: usize) -> Response<Body> {
        let core = self.core.clone();
        core.books.count(|counters| counters.plain += 1);
        if core.prefill() && core.minor >= 23 && self.ask.is_for_one() {
            let blocks = Blocks::allocate(&core, rank, self.ask.blocks()).await;
            self.fill(&blocks);
            return self.generate(blocks).await;
        }
        if core.settings.serves_alone && !core.prefill() && core.minor >= 33 {
            return self.serve_alone(rank).await;
        }
        core.books.violation("unpaired generation request");
        match (core.prefill(), core.write(), core.minor) {
            (false, true, ..=23) => match core.die("plain request on a WRITE decode engine").await {},
            (false, true, 24..=31) => return pending().await,
            (true, true, ..=27) if self.ask.limit > 1 => {
                match core.die("plain request on a WRITE prefill engine").await {}
            }
            _ => {}
        }
        let blocks = Blocks::allocate(&core, rank, self.ask.blocks()).await;
        self.fill(&blocks);
        self.generate(blocks).await
    }

    async fn read_decode(self, rank: usize, transfer: &str, peer: &Peer, remote: &[u32]) -> Response<Body> {
        let core = self.core.clone();
        core.books.count(|counters| counters.decode_legs += 1);
        let (request, peer) = (self.internal_id(), peer.clone());
        let debt = Debt { core: core.clone(), site: core.site_of(rank), request, transfer: transfer.into(), peer };
        let blocks = Blocks::allocate(&core, rank, self.ask.blocks()).await;
        meet(&core, &debt.peer).await;
        core.thawed().await;
        // A load is one with the forward step: a client that leaves does not stop it, and the release follows it.
        let (loading, transfer, remote) = (core.clone(), transfer.to_owned(), remote.to_vec());
        let (prompt_blocks, prompt) = (self.ask.prompt.blocks(), self.ask.prompt.digest);
        let fails = self.faults.load_fails;
        let (loaded, outcome) = oneshot::channel();
        core.spawn_on(core.host_of(rank), async move {
            let local = (rank, &blocks.ids[..prompt_blocks]);
            let result = match fails {
                true => Err("scripted: the load failed".into()),
                false => transfer::pull(&loading, &transfer, &debt.peer, &remote, local, prompt).await,
            };
            drop(debt);
            let _ = loaded.send(result.map(|_| blocks));
        });
        let blocks = match outcome.await.unwrap_or_else(|_| Err("load lost".into())) {
            Ok(blocks) => blocks,
            Err(reason) => {
                core.books.count(|counters| counters.failed += 1);
                return error(StatusCode::INTERNAL_SERVER_ERROR, &reason);
            }
        };
        self.generate(blocks).await
    }

    async fn write_decode(mut self, rank: usize, transfer: &str, peer: Peer, notifies: bool) -> Response<Body> {
        let core = self.core.clone();
        core.books.count(|counters| counters.decode_legs += 1);
        let blocks = Blocks::allocate(&core, rank, self.ask.blocks()).await;
        let prompt_blocks = blocks.ids[..self.ask.prompt.blocks()].to_vec();
        // Seen on 0.18.1, 0.30.0 and 0.31.0, not on 0.32.0: a prompt of one token is never answered.
        if core.minor < 32 && self.ask.prompt.tokens <= 1 {
            return pending().await;
        }
        let (arrival, woken) = Arrival::park(&core, transfer, blocks, self.ask.prompt, &peer);
        if notifies {
            self.ask_for_push(rank, transfer, &peer, &prompt_blocks);
        }
        complete_early(&core, transfer);
        let outcome = woken.await.unwrap_or_else(|_| Err("parked request lost".into()));
        let (blocks, mapped, complete) = arrival.wake();
        self.mapped = mapped;
        core.thawed().await;
        let outcome = if self.faults.load_fails { Err("scripted: the load failed".into()) } else { outcome };
        if let Err(reason) = outcome {
            core.books.count(|counters| counters.failed += 1);
            return error(StatusCode::INTERNAL_SERVER_ERROR, &reason);
        }
        if !complete {
            core.books.count(|counters| counters.woken_empty += 1);
        }
        self.generate(blocks).await
    }

    fn ask_for_push(&self, rank: usize, transfer: &str, peer: &Peer, blocks: &[u32]) {
        let core = &self.core;
        let message = remote_blocks_message(core, &self.internal_id(), transfer, blocks, rank, peer);
        // These releases took their own address out of the request id instead of prefill's.
        let own = (20..=22).contains(&core.minor);
        let base = if own { core.ports.notify_base() } else { peer.notify };
        let ranks = if core.minor <= 32 { core.settings.tp } else { peer.tp };
        let own_host = core.settings.host.to_string();
        let (host, local) = if own { (own_host.as_str(), peer.dp_rank) } else { peer.place(peer.dp_rank) };
        for tp in 0..ranks {
            core.notify(host, port(base, local + tp), message.clone());
        }
    }

    /// The engine's own name for the request, which only old releases let out.
    fn internal_id(&self) -> String {
        self.ask.internal_id()
    }

    /// Computes the prompt's KV into its blocks.
    pub(super) fn fill(&self, blocks: &Blocks) {
        let mut state = lock(&self.core.state);
        for (index, id) in blocks.ids.iter().take(self.ask.prompt.blocks()).enumerate() {
            if let Some(memory) = state.pools[blocks.rank].block_mut(*id) {
                *memory = self.ask.prompt.block(index);
            }
        }
    }

    pub(super) fn voice(&self, blocks: &Blocks) -> Voice {
        // What was loaded has no logits.
        if !self.core.prefill() && self.core.minor <= 30 && self.ask.has_prompt_side() {
            return self.ask.prompt.voice(std::iter::empty());
        }
        let state = lock(&self.core.state);
        let content: Vec<Block> =
            blocks.ids[..self.ask.prompt.blocks()].iter().map(|id| state.pools[blocks.rank].read(*id)).collect();
        self.ask.prompt.voice(content.iter())
    }

    /// Generates from whatever KV the blocks hold, which the cache has from now on.
    async fn generate(self, blocks: Blocks) -> Response<Body> {
        let rank = blocks.rank;
        let hashes = self.hashes(rank);
        lock(&self.core.state).pools[rank].cache.keep(&hashes);
        let running = Gauge::new(&self.core, self.core.host_of(rank), |load| &mut load.running);
        let voice = self.voice(&blocks);
        self.answer(rank, voice, Value::Null, Some(blocks), running).give().await
    }

    pub(super) fn answer(
        self,
        rank: usize,
        voice: Voice,
        transfer_params: Value,
        blocks: Option<Blocks>,
        running: Gauge,
    ) -> Answer {
        let cached = self.told_cached();
        let holds =
            Holds { core: self.core.clone(), blocks, completed: false, running: Some(running), mapped: self.mapped };
        let site = self.core.site_of(rank);
        Answer {
            core: self.core,
            link: self.link,
            ask: self.ask,
            site,
            faults: self.faults,
            voice,
            transfer_params,
            cached,
            holds,
            prefix: String::new(),
        }
    }

    /// What decode tells its client: what it is told of prefill's cache, else all that it loads.
    fn told_cached(&self) -> usize {
        let Some(params) = self.ask.params().filter(|_| !self.core.prefill()) else { return 0 };
        let told = params.get("remote_prefill_cached_tokens").filter(|_| self.core.minor >= 31);
        told.and_then(Value::as_u64).map_or(self.ask.prompt.tokens, |told| told as usize)
    }
}

fn facts(core: &Core, rank: usize) -> Facts {
    let (minor, tp, mode) = (core.minor, core.settings.tp, core.settings.mode);
    Facts { prefill: core.prefill(), mode, minor, tp, rank, local_dp: core.settings.local_dp() }
}

/// What a leg comes to whose rank is on a host that is no more.
async fn lost_rank(core: &Core) -> Response<Body> {
    if core.settings.lost_ranks_hang {
        return pending().await;
    }
    core.books.count(|counters| counters.failed += 1);
    error(StatusCode::INTERNAL_SERVER_ERROR, "EngineCore encountered an issue.")
}

/// Counts a 400. Decode then tells prefill that nobody will come for its blocks, if it can make out who that is.
pub(crate) fn reject(core: &Core, ask: &Ask) {
    core.books.count(|counters| counters.rejected += 1);
    let since = if core.write() { 24 } else { 21 };
    if core.prefill() || core.minor < since {
        return;
    }
    if let Ok(Plan::Decode { transfer, peer, .. }) = plan(facts(core, 0), ask) {
        transfer::release(core, &ask.internal_id(), &transfer, &peer);
    }
}
