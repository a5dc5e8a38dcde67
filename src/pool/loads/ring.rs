//! Where keys have their homes: consistent hashing with few points for each slot and several probes for each key (Appleton and O'Reilly,
//! "Multi-probe consistent hashing", 2015). A key's home is the slot with the point that follows one of its probes most closely, so
//! that a slot that joins takes keys from all others alike and moves none between them, and one that leaves gives its keys to all. With
//! one probe it would take hundreds of points to make shares as equal. Points hang on an engine's address and a rank alone: another
//! process has the same homes, and an engine that comes back has its own again.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Probes of a key. These bound the largest share: with more points or probes than this nothing is won that could be measured.
pub const PROBES: usize = 21;
/// Points of a slot. Of one that had a single point the share could be as good as nothing.
const POINTS: u32 = 16;

/// The places of a key's probes, the nearest first. Places come several times where there are few.
pub type Homes = [usize; PROBES];

/// The points of slots, in order.
#[derive(Debug, Default)]
pub(super) struct Ring(Vec<(u64, usize)>);

impl Ring {
    /// The slots in the order of their places, each an engine's address and a rank.
    pub(super) fn of<'a>(slots: impl Iterator<Item = (&'a str, u32)>) -> Ring {
        let point = |slot: (&str, u32), number: u32| {
            let mut hasher = DefaultHasher::new();
            (slot, number).hash(&mut hasher);
            hasher.finish()
        };
        let points =
            slots.zip(0..).flat_map(|(slot, place)| (0..POINTS).map(move |number| (point(slot, number), place)));
        let mut points: Vec<_> = points.collect();
        points.sort_unstable();
        Ring(points)
    }

    /// Where a key belongs. There must be slots.
    pub(super) fn homes(&self, key: u64) -> Homes {
        let mut found = [(u64::MAX, 0); PROBES];
        let mut probe = key;
        for home in &mut found {
            probe = mixed(probe);
            let next = self.0.partition_point(|(point, _)| *point < probe);
            if let Some((point, place)) = self.0.get(next).or(self.0.first()) {
                *home = (point.wrapping_sub(probe), *place);
            }
        }
        found.sort_unstable();
        found.map(|(_, place)| place)
    }
}

/// The next of a sequence that looks like chance (splitmix64).
fn mixed(seed: u64) -> u64 {
    let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 40_000;

    fn ring(engines: impl Iterator<Item = u32>, ranks: u32) -> (Vec<(String, u32)>, Ring) {
        let slots: Vec<_> =
            engines.flat_map(|n| (0..ranks).map(move |rank| (format!("10.0.0.{n}:8000"), rank))).collect();
        let ring = Ring::of(slots.iter().map(|(name, rank)| (name.as_str(), *rank)));
        (slots, ring)
    }

    /// Of eight engines of which one joins or leaves; a key stays where it is unless its slot has left or the one that joined is its.
    #[test]
    fn few_keys_move() {
        for ranks in [1, 8] {
            let ((before, few), (after, many)) = (ring(1..9, ranks), ring(1..10, ranks));
            let mut moved = 0;
            for key in 0..KEYS {
                let (from, to) = (&before[few.homes(key)[0]], &after[many.homes(key)[0]]);
                if from != to {
                    assert_eq!(to.0, "10.0.0.9:8000");
                    moved += 1;
                }
            }
            // The share of the ninth.
            assert!(moved > 0 && moved < KEYS / 8, "{ranks} ranks: {moved} of {KEYS}");
        }
    }

    #[test]
    fn shares_are_nearly_equal() {
        for (engines, ranks) in [(2, 1), (8, 1), (8, 8), (64, 8)] {
            let (slots, ring) = ring(1..engines + 1, ranks);
            let mut shares = vec![0u64; slots.len()];
            (0..KEYS).for_each(|key| shares[ring.homes(key)[0]] += 1);
            let mean = KEYS / shares.len() as u64;
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(*least * 2 > mean && *most < mean * 2, "{engines} x {ranks}: {least} to {most}, mean {mean}");
        }
    }
}
