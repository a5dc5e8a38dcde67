//! What is expected of ranks, and what becomes of that by what they say.

use super::{AT_ONCE, BLOCK, Forecast, Place, Prefixes};

/// Bytes that a token of text has at most.
const TEXT: u64 = 8;
/// An engine that says that it had less than this part of what was expected has lost it.
const LOST: f64 = 0.5;
/// For how many prompts one that disappoints is not believed: the first time, and at most.
const LEAST_DOUBT: u32 = 64;
const MOST_DOUBT: u32 = 65_536;

impl Forecast {
    /// Whether it has come true, by what an engine says of the prompt; none where that tells nothing.
    fn holds(&self, cached: u64, tokens: u64) -> Option<bool> {
        // An image's bytes are many and its tokens few: parts of the one say nothing of the other.
        let is_text = tokens > 0 && self.bytes / tokens <= TEXT;
        is_text.then(|| cached as f64 / tokens as f64 >= self.part * LOST)
    }
}

impl Prefixes {
    /// What a rank is expected to have of a prompt, if anything.
    pub(in crate::routing) fn forecast(&self, blocks: &[u64], place: Place) -> Option<Forecast> {
        let mut had = blocks.len();
        for part in blocks.rchunks(AT_ONCE) {
            let known = self.known();
            let rank = *known.numbers.get(&place)?;
            for hash in part.iter().rev() {
                let holder = known.block(*hash).and_then(|block| block.holders().find(|holder| holder.rank == rank));
                if let Some(holder) = holder.filter(|holder| known.holds(holder)) {
                    let (part, bytes) = (had as f64 / blocks.len() as f64, (blocks.len() * BLOCK) as u64);
                    return Some(Forecast { place, part, met: holder.met, bytes });
                }
                had -= 1;
            }
        }
        None
    }

    /// Of so many tokens a rank turned out to have these.
    pub(in crate::routing) fn learn(&self, forecast: &Forecast, cached: u64, tokens: u64) {
        if forecast.holds(cached, tokens) == Some(false) {
            self.known().of(forecast.place, |rank, _| rank.lost = forecast.met.max(rank.lost));
        }
    }

    /// The same, where the prompt would have gone elsewhere but for that. One that disappoints is not believed for a while, which gets
    /// longer each time: it may keep nothing at all.
    pub(in crate::routing) fn learn_to_trust(&self, forecast: &Forecast, cached: u64, tokens: u64) {
        let Some(holds) = forecast.holds(cached, tokens) else { return };
        self.known().of(forecast.place, |rank, now| {
            // What it said of an older belief is no news.
            if !holds && forecast.met <= rank.lost {
                return;
            }
            rank.untold = 0;
            rank.doubt = if holds { 0 } else { (rank.doubt * 2).clamp(LEAST_DOUBT, MOST_DOUBT) };
            if !holds {
                rank.lost = now.saturating_add(rank.doubt);
            }
        });
    }

    /// A rank has answered without a word of what it had. How often in a row.
    pub(in crate::routing) fn untold(&self, forecast: &Forecast) -> u32 {
        let mut times = 0;
        self.known().of(forecast.place, |rank, _| {
            rank.untold = rank.untold.saturating_add(1);
            times = rank.untold;
        });
        times
    }
}
