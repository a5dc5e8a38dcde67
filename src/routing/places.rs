//! Which ranks and hosts go together.

use super::{DecodePlace, Selector};
use crate::engine::hosts::Contract;
use crate::engine::{Mode, reach, versions};
use crate::pool::history::PairState;
use crate::pool::pairs::Memory;
use crate::pool::{Engine, Pool, Slot};

impl Selector {
    /// The prefill ranks that have their turns: those below `--route-ranks`, and under the same-rank contract those that some decode
    /// engine has, too. Slots are sorted by rank, so that turns go evenly over what is left.
    pub(super) fn reachable<'a>(&self, pool: &'a Pool, mode: Mode) -> &'a [Slot] {
        let below = |ranks: u32| pool.prefill_slots.partition_point(|slot| slot.rank < ranks);
        let routed = if self.rules.route_ranks == 0 { u32::MAX } else { self.rules.route_ranks };
        let slots = &pool.prefill_slots[..below(routed)];
        if !self.pins(mode, pool.spans, pool.repeats) {
            return slots;
        }
        let decodes = pool.decode_slots.iter().map(|slot| pool.decode[slot.engine].registration.dp_size);
        let ranks = decodes.max().unwrap_or(0);
        &slots[..below(ranks).min(slots.len())]
    }

    /// Where on a decode engine the leg of a prefill rank goes; nowhere if the pair cannot work, or not that rank.
    ///
    /// Hosts that serve have their turns by `round`: how often all decode engines have had theirs.
    pub(super) fn place(
        &self,
        prefill: (&Engine, u32),
        decode: &Engine,
        round: usize,
        mode: Mode,
    ) -> Option<DecodePlace> {
        let (prefill, rank) = prefill;
        if !reach::hosts_agree(prefill.spoken(), decode.spoken(), mode) {
            return None;
        }
        let (prefill, decode) = (&prefill.registration, &decode.registration);
        let repeats = prefill.repeats() || decode.repeats();
        if !self.pins(mode, prefill.spans() || decode.spans(), repeats) {
            return Some(DecodePlace { host: round % decode.doors(), rank: None });
        }
        (rank < decode.dp_size).then(|| DecodePlace { host: decode.door(rank).host, rank: Some(rank) })
    }

    /// Whether decode's legs are pinned to prefill's ranks.
    pub(super) fn pins(&self, mode: Mode, spans: bool, repeats: bool) -> bool {
        let by_contract = match self.rules.contract {
            Contract::Auto => repeats,
            Contract::Leader => false,
            Contract::SameRank => true,
        };
        mode == Mode::Write && spans && by_contract
    }

    /// How a decode engine and a prefill rank stand, where it takes that for an engine of its own and must meet it alone (protocol
    /// P4, H5).
    pub(super) fn rank_state(
        &self,
        memory: &Memory,
        prefill: (&Engine, u32),
        decode: &Engine,
        mode: Mode,
    ) -> PairState {
        let (prefill, rank) = prefill;
        let is_own = mode == Mode::Read && prefill.registration.spans() && self.alone(prefill, decode);
        if is_own { memory.history.rank_state(prefill, decode, rank) } else { PairState::Known }
    }

    /// Whether the pair's first exchange must go alone: not when both are known to be 0.31.0 or newer.
    pub(super) fn alone(&self, prefill: &Engine, decode: &Engine) -> bool {
        self.rules.first_contact && versions::first_contact_gate(prefill.traits, decode.traits)
    }
}
