//! What is known of prompts takes the memory that it may (`--prefix-memory`), whoever has them.

use std::time::Instant;

use moriio_proxy::routing::{Demand, Selector};
use moriio_proxy::settings::{Cache, PickRules, Policies, Policy};
use stats_alloc::Region;

use crate::ALLOCATOR;
use crate::picks::pool;

const MEMORY: u64 = 1 << 20;

/// As many prompts as pass: of one rank each, or the same ones of all ranks in turn.
fn filled(prompts: u64) -> f64 {
    let _alone = crate::alone();
    let pool = pool(8);
    let policies = Policies { prefill: Policy::CacheAware, decode: Policy::RoundRobin };
    let cache = Cache { hundredths: 100, memory: MEMORY };
    let region = Region::new(ALLOCATOR);
    let selector = Selector::new(PickRules { policies, cache, ..PickRules::default() });
    for number in 0..2000u64 {
        let name = number % prompts;
        // Never enough of it is known to matter, so that ranks take turns by what they have to do.
        let block = |at: u64| (name << 32 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut prefix: Vec<u64> = (0..100).map(block).collect();
        prefix.push(block(1_000_000 + number));
        let demand = Demand { bytes: 200_000, prefix: &prefix, ..Demand::default() };
        selector.pick(&pool, demand, &[], Instant::now()).expect("a pair").meeting.prove();
    }
    let change = region.change();
    (change.bytes_allocated - change.bytes_deallocated) as f64 / MEMORY as f64
}

#[test]
fn what_is_known_of_prompts_takes_no_more_than_it_may() {
    for prompts in [2000, 20] {
        let part = filled(prompts);
        println!("{prompts} prompts: {part:.2} of the memory");
        assert!((0.4..=1.05).contains(&part), "{prompts} prompts take {part:.2} of the memory that there is");
    }
}
