//! How values are spread, in little memory: counts by powers of two, each split in 256.

use serde_json::{Value, json};

const BITS: u32 = 8;

/// Nanoseconds, each known to half a percent.
pub(crate) struct Spread {
    counts: Vec<u64>,
    total: u64,
    longest: u64,
}

impl Spread {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; 64 << BITS], total: 0, longest: 0 }
    }

    /// Adds a value that was seen so often.
    pub(crate) fn add(&mut self, value: u64, times: u64) {
        let shift = (64 - value.leading_zeros()).saturating_sub(BITS + 1);
        let place = ((shift as usize) << BITS) + (value >> shift) as usize;
        if let Some(count) = self.counts.get_mut(place) {
            *count += times;
        }
        self.total += times;
        self.longest = self.longest.max(value);
    }

    /// The value that this share of all values does not exceed.
    fn at(&self, share: f64) -> u64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (place, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return Self::value(place).min(self.longest);
            }
        }
        self.longest
    }

    fn value(place: usize) -> u64 {
        let shift = (place >> BITS).saturating_sub(1);
        let shift = if place < 2 << BITS { 0 } else { shift };
        ((place - (shift << BITS)) as u64) << shift
    }

    /// Microseconds.
    pub(crate) fn report(&self) -> Value {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        json!({
            "count": self.total, "p50": micros(self.at(0.5)), "p99": micros(self.at(0.99)),
            "p999": micros(self.at(0.999)), "longest": micros(self.longest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn shares_are_near_the_truth() {
        let mut spread = Spread::new();
        for value in 1..=100_000 {
            spread.add(value * 10, 1);
        }
        for (share, truth) in [(0.5, 500_000.0), (0.99, 990_000.0), (0.001, 1000.0), (1.0, 1_000_000.0)] {
            let found = spread.at(share) as f64;
            assert!((found / truth - 1.0).abs() < 0.006, "{share}: {found}, not {truth}");
        }
        assert_eq!(spread.report()["longest"], 1000.0);
    }
}
