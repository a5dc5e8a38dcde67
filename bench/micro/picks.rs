//! Picking a pair among this many slots.

use std::time::Instant;

use divan::Bencher;
use moriio_proxy::routing::Selector;
use moriio_proxy::settings::PickRules;

use super::support::pool;

/// A pick, and giving its places back.
#[divan::bench(args = [2, 512])]
fn pick(bencher: Bencher, slots: u16) {
    let pool = pool(slots);
    let selector = Selector::new(PickRules::default());
    let now = Instant::now();
    bencher.bench(|| drop(selector.pick(&pool, &[], now).expect("a pair")));
}
