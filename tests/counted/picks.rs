//! A pick allocates what its two legs are told by, and nothing more, whatever the policy and however many slots there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moriio_proxy::engine::versions::EngineVersion;
use moriio_proxy::engine::{Dialect, HttpAddress, KvEndpoint, Mode, Registration, Role};
use moriio_proxy::metrics::Metrics;
use moriio_proxy::pool::{Engine, Pool, State, Vitals};
use moriio_proxy::routing::{Demand, Selector};
use moriio_proxy::settings::{Affinity, Balance, BreakerLimits, Cache, PickRules, Policies, Policy};
use stats_alloc::Region;

use crate::ALLOCATOR;

/// Engines of eight prefill ranks each, and as many decode engines.
pub fn pool(engines: u16) -> Pool {
    let (metrics, limits) = (
        Metrics::new(),
        BreakerLimits { failures: 5, open: Duration::from_secs(5), open_max: Duration::from_secs(30) },
    );
    let engine = |number: u16| {
        let role = if number < engines { Role::Prefill } else { Role::Decode };
        let host = String::from("10.0.0.1");
        let registration = Registration {
            role,
            http: HttpAddress { host: host.clone(), port: 1000 + number },
            kv: KvEndpoint { host, handshake: 3000 + number, notify: 61005, text: String::new() },
            dp_size: 8,
            tp_size: 1,
            mode: Mode::Write,
            dialect: Dialect::B,
            index: None,
            hosts: None,
        };
        let vitals = Vitals::new(limits, metrics.engine(role, &number.to_string()));
        let version = Some(EngineVersion::new(0, 32, 0));
        Arc::new(Engine::new(registration, version, State::Ready, number.into(), vitals).expect("an engine"))
    };
    Pool::new((0..2 * engines).map(engine), Some(Mode::Write))
}

#[test]
fn a_pick_allocates_for_its_legs_alone() {
    let _alone = crate::alone();
    for policy in Policy::ALL {
        for engines in [1, 8, 32] {
            let balance = Balance { absolute: 64, hundredths: 150 };
            let rules = PickRules {
                policies: Policies { prefill: policy, decode: policy },
                affinity: Affinity { is_on: true, balance },
                cache: Cache { hundredths: 30, memory: 1 << 20 },
                ..PickRules::default()
            };
            let (pool, selector) = (pool(engines), Selector::new(rules));
            let pick = |number: u64| {
                let session = Some(number % 7).filter(|name| *name > 2);
                // Two blocks of a hundred prompts.
                let prefix = [number % 100, number % 100 + 1000];
                let demand = Demand { session, key: number, bytes: 1000, prefix: &prefix, ..Demand::default() };
                selector.pick(&pool, demand, &[], Instant::now()).expect("a pair").meeting.prove();
            };
            // Every pair has met, and what is remembered has room.
            (0..2000 * u64::from(engines)).for_each(pick);
            let region = Region::new(ALLOCATOR);
            (0..1000).for_each(pick);
            assert_eq!(region.change().allocations, 2 * 1000, "{policy:?} with {engines} engines a side");
        }
    }
}
