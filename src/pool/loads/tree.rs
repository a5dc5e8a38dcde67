//! Who has least of several.

use std::ops::Range;

/// The least of all places, known at each change. A node has the place below it with the least weight, of equals the one that was picked longest ago.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// By place: weight, and the turn in which it was picked last.
    leaves: Vec<(u64, u64)>,
    /// The root is 1, children of `n` are `2n` and `2n + 1`, places begin at `leaves.len()`.
    nodes: Vec<usize>,
}

impl Tree {
    /// Places with these weights, none of which was ever picked.
    pub(super) fn over(weights: Vec<u64>) -> Tree {
        let leaves: Vec<_> = weights.into_iter().map(|weight| (weight, 0)).collect();
        let count = leaves.len();
        let mut tree = Tree { leaves, nodes: vec![0; 2 * count] };
        for place in 0..count {
            tree.nodes[count + place] = place;
        }
        for node in (1..count).rev() {
            tree.nodes[node] = tree.lighter(tree.nodes[2 * node], tree.nodes[2 * node + 1]);
        }
        tree
    }

    /// Of two places.
    pub(super) fn lighter(&self, one: usize, other: usize) -> usize {
        if self.leaves[other] < self.leaves[one] { other } else { one }
    }

    /// A place has another weight; it was picked in this turn, if it was.
    pub(super) fn set(&mut self, place: usize, weight: u64, turn: Option<u64>) {
        self.leaves[place] = (weight, turn.unwrap_or(self.leaves[place].1));
        let mut node = (place + self.leaves.len()) / 2;
        while node > 0 {
            self.nodes[node] = self.lighter(self.nodes[2 * node], self.nodes[2 * node + 1]);
            node /= 2;
        }
    }

    /// The lightest of some places.
    pub(super) fn lightest(&self, places: Range<usize>) -> Option<usize> {
        let count = self.leaves.len();
        let (mut low, mut high, mut found) = (places.start + count, places.end + count, None);
        let mut look = |node: usize| {
            let place = self.nodes[node];
            found = Some(found.map_or(place, |best| self.lighter(best, place)));
        };
        while low < high {
            if low % 2 == 1 {
                look(low);
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                look(high);
            }
            (low, high) = (low / 2, high / 2);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_least_of_any_places_is_found(
            weights in prop::collection::vec(0..4u64, 1..70),
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0..4u64), 0..40),
            ends in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let count = weights.len();
            let mut tree = Tree::over(weights.clone());
            let mut leaves: Vec<_> = weights.into_iter().map(|weight| (weight, 0)).collect();
            for ((place, weight), turn) in changes.into_iter().zip(1..) {
                let place = place.index(count);
                leaves[place] = (weight, turn);
                tree.set(place, weight, Some(turn));
            }
            let (one, other) = (ends.0.index(count + 1), ends.1.index(count + 1));
            for places in [0..count, one.min(other)..one.max(other)] {
                let found = tree.lightest(places.clone()).map(|place| leaves[place]);
                prop_assert_eq!(found, leaves[places].iter().min().copied());
            }
        }
    }
}
