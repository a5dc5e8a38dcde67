//! Picking a pair among this many slots, by each policy.

use std::fmt;
use std::time::Instant;

use divan::Bencher;
use moriio_proxy::routing::{Demand, Selector};
use moriio_proxy::settings::{Affinity, Balance, Cache, PickRules, Policies, Policy};

use super::support::pool;

/// A policy among prefill's slots and decode's together.
struct Case(Policy, u16);

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case(policy, slots) = self;
        write!(f, "{} {slots}", policy.as_str())
    }
}

fn cases() -> impl Iterator<Item = Case> {
    Policy::ALL.into_iter().flat_map(|policy| [2, 16, 128, 512].map(|slots| Case(policy, slots)))
}

/// A pick, and giving its places back.
#[divan::bench(args = cases())]
fn pick(bencher: Bencher, Case(policy, slots): &Case) {
    let pool = pool(*slots);
    let policies = Policies { prefill: *policy, decode: *policy };
    let cache = Cache { hundredths: 30, memory: 1 << 20 };
    let selector = Selector::new(PickRules { policies, cache, ..PickRules::default() });
    let (now, mut key) = (Instant::now(), 0);
    bencher.bench_local(|| {
        key += 1;
        // Ten blocks of a hundred prompts.
        let prefix: [u64; 10] = std::array::from_fn(|number| (key % 100) << 32 | number as u64);
        let demand = Demand { key, bytes: 30_000, prefix: &prefix, ..Demand::default() };
        drop(selector.pick(&pool, demand, &[], now).expect("a pair"));
    });
}

/// The same of a session, one of a thousand.
#[divan::bench(args = [2, 16, 128, 512])]
fn session(bencher: Bencher, slots: u16) {
    let pool = pool(slots);
    let affinity = Affinity { is_on: true, balance: Balance { absolute: 64, hundredths: 150 } };
    let selector = Selector::new(PickRules { affinity, ..PickRules::default() });
    let (now, mut number) = (Instant::now(), 0);
    bencher.bench_local(|| {
        number = (number + 1) % 1000;
        let demand = Demand { session: Some(number), key: number, bytes: 1000, ..Demand::default() };
        drop(selector.pick(&pool, demand, &[], now).expect("a pair"));
    });
}
