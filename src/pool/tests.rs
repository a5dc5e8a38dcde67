//! Slots, guards, and engines for the tests of files below.

use super::*;
use crate::engine::{Dialect, HttpAddress, KvEndpoint};

fn record(port: u16, role: Role, dp_size: u32, state: State, incarnation: u64) -> Arc<Engine> {
    let limits = BreakerLimits { failures: 2, open: Duration::from_secs(5), open_max: Duration::from_secs(5) };
    let http = HttpAddress { host: "10.0.0.1".into(), port };
    let kv = KvEndpoint { host: "10.0.0.1".into(), handshake: port, notify: 61005, text: String::new() };
    let (mode, dialect, index) = (Mode::Read, Dialect::B, None);
    let registration = Registration { role, http, kv, dp_size, tp_size: 1, mode, dialect, index, hosts: None };
    let vitals = Vitals::new(limits, Metrics::new().engine(role, "x"));
    Arc::new(Engine::new(registration, None, state, incarnation, vitals).unwrap())
}

/// A ready engine for the tests of files below.
pub(crate) fn engine_of(port: u16, role: Role, dp_size: u32, incarnation: u64) -> Arc<Engine> {
    record(port, role, dp_size, State::Ready, incarnation)
}

/// The same engine with another release or in another state.
pub(crate) fn with(engine: &Engine, release: Option<EngineVersion>, state: State) -> Arc<Engine> {
    let (registration, vitals) = (engine.registration.clone(), engine.vitals.clone());
    Arc::new(Engine::new(registration, release, state, engine.incarnation, vitals).unwrap())
}

#[test]
fn case_35_slots_go_round_engines_before_ranks() {
    let engines = [
        record(1, Role::Prefill, 2, State::Ready, 1),
        record(2, Role::Prefill, 2, State::Ready, 2),
        record(3, Role::Prefill, 4, State::Unhealthy(Failure::Refused), 3),
        record(4, Role::Decode, 2, State::Ready, 4),
        record(5, Role::Decode, 1, State::Probing, 5),
    ];
    let pool = Pool::new(engines, Some(Mode::Read));
    let slots: Vec<_> = pool.prefill_slots.iter().map(|s| (s.engine, s.rank)).collect();
    assert_eq!(slots, [(0, 0), (1, 0), (0, 1), (1, 1)]);
    assert_eq!((pool.decode_slots, pool.probing), (vec![Slot { engine: 0, rank: 0 }], 1));
}

#[test]
fn a_seat_lowers_the_load_once_on_every_path() {
    let engine = engine_of(1, Role::Decode, 1, 1);
    let now = Instant::now();
    let ended = engine.admit(now).unwrap();
    let dropped = engine.admit(now).unwrap();
    assert_eq!(engine.vitals.in_flight(), 2);
    ended.end(LegStatus::Success, Verdict::Healthy);
    ended.end(LegStatus::Broken, Verdict::Ailing);
    drop(ended);
    drop(dropped);
    assert_eq!(engine.vitals.in_flight(), 0);
    for _ in 0..2 {
        engine.admit(now).unwrap().end(LegStatus::Failed, Verdict::Ailing);
    }
    assert!(engine.admit(now).is_none(), "two failures in a row");
}
