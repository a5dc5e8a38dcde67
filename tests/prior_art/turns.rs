//! Whose turn it is: every slot's share, and simultaneous requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use moriio_proxy::engine::{Dialect, HttpAddress, KvEndpoint, Mode, Registration, Role};
use moriio_proxy::metrics::Metrics;
use moriio_proxy::pool::{Engine, Pool, State, Vitals};
use moriio_proxy::routing::{Demand, Selector};
use moriio_proxy::settings::{BreakerLimits, PickRules};
use moriio_proxy::sim::{self, Settings};

use crate::support::{Plan, generate, until};

fn engine(metrics: &Metrics, port: u16, role: Role, dp_size: u32) -> Arc<Engine> {
    let host = String::from("10.0.0.1");
    let registration = Registration {
        role,
        http: HttpAddress { host: host.clone(), port },
        kv: KvEndpoint { host, handshake: port, notify: port + 1000, text: String::new() },
        dp_size,
        tp_size: 1,
        mode: Mode::Read,
        dialect: Dialect::B,
        index: None,
        hosts: None,
    };
    let limits = BreakerLimits { failures: 0, open: Duration::ZERO, open_max: Duration::ZERO };
    let vitals = Vitals::new(limits, metrics.engine(role, &port.to_string()));
    Arc::new(Engine::new(registration, None, State::Ready, u64::from(port), vitals).unwrap())
}

/// A pool of prefill engines with these numbers of ranks and so many decode engines.
fn pool(ranks: &[u32], decodes: u16) -> Pool {
    let metrics = Metrics::new();
    let prefill = (100..).zip(ranks).map(|(port, ranks)| engine(&metrics, port, Role::Prefill, *ranks));
    let decode = (200..200 + decodes).map(|port| engine(&metrics, port, Role::Decode, 1));
    Pool::new(prefill.chain(decode).collect::<Vec<_>>(), Some(Mode::Read))
}

fn selector() -> Arc<Selector> {
    Selector::new(PickRules { allow_stale: true, ..PickRules::default() })
}

#[test]
fn every_slot_gets_its_share() {
    for (ranks, decodes) in [(&[8, 8][..], 1), (&[8, 8], 2), (&[8, 8], 3), (&[1, 2, 8], 4), (&[4, 4, 4, 4], 16)] {
        let (pool, selector) = (pool(ranks, decodes), selector());
        let slots = ranks.iter().sum::<u32>() as usize;
        let rounds = 3 * usize::from(decodes);
        let (mut by_slot, mut by_decode) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..slots * rounds {
            let picked = selector.pick(&pool, Demand::default(), &[], Instant::now()).unwrap();
            let (prefill, decode) = (picked.prefill.engine.incarnation, picked.decode.engine.incarnation);
            *by_slot.entry((prefill, picked.rank)).or_insert(0) += 1;
            *by_decode.entry(decode).or_insert(0) += 1;
        }
        assert_eq!(by_slot.len(), slots, "{ranks:?}");
        assert!(by_slot.values().all(|count| *count == rounds), "{ranks:?} {decodes}: {by_slot:?}");
        assert!(by_decode.values().all(|count| *count == 3 * slots), "{ranks:?} {decodes}: {by_decode:?}");
    }
}

#[test]
fn simultaneous_requests_take_different_pairs() {
    const CROWD: u16 = 8;
    let pool = pool(&[1; CROWD as usize], CROWD);
    let selector = selector();
    let barrier = Barrier::new(usize::from(CROWD));
    for _ in 0..100 {
        let pick = || {
            barrier.wait();
            let picked = selector.pick(&pool, Demand::default(), &[], Instant::now()).unwrap();
            // Held until all have picked, as legs in flight are.
            barrier.wait();
            (picked.prefill.engine.incarnation, picked.decode.engine.incarnation)
        };
        let pairs: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let picks: Vec<_> = (0..CROWD).map(|_| scope.spawn(pick)).collect();
            picks.into_iter().map(|pick| pick.join().unwrap()).collect()
        });
        let prefills: BTreeSet<u64> = pairs.iter().map(|pair| pair.0).collect();
        let decodes: BTreeSet<u64> = pairs.iter().map(|pair| pair.1).collect();
        assert_eq!((prefills.len(), decodes.len()), (8, 8), "{pairs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_lie_within_each_engines_own_range() {
    let plan = Plan::new(sim::Mode::Read);
    let own = |proxy: std::net::SocketAddr, dp| Settings { dp, ..plan.settings(sim::Role::Prefill, proxy) };
    let mut world = Plan::new(sim::Mode::Read).engines(0, 2).start().await;
    let sizes = [1, 2, 4];
    for dp in sizes {
        // Neighbouring ports may be taken by connections of other tests, for a moment.
        let engine = until("free ports side by side", || async {
            let settings = own(world.proxy.registration, dp);
            sim::Engine::start(settings).await.map_err(|error| error.to_string())
        });
        world.prefill.push(engine.await);
        world.until_ready(2 + world.prefill.len()).await;
    }
    for _ in 0..14 {
        generate(&world.proxy, "a rank of its own", 3, false).await;
    }
    for (engine, dp) in world.prefill.iter().zip(sizes) {
        let legs = engine.legs();
        let ranks = legs.iter().map(|leg| leg.header("x-data-parallel-rank").map(str::to_owned));
        let mut count = BTreeMap::new();
        for rank in ranks {
            *count.entry(rank).or_insert(0) += 1;
        }
        let want: BTreeMap<Option<String>, i32> = match dp {
            1 => [(None, 2)].into(),
            _ => (0..dp).map(|rank| (Some(rank.to_string()), 2)).collect(),
        };
        assert_eq!(count, want, "engine of {dp} ranks");
    }
    for leg in world.decode.iter().flat_map(sim::Engine::legs) {
        assert_eq!(leg.header("x-data-parallel-rank"), None);
    }
    world.settle().await;
}
