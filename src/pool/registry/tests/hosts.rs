//! Engines over several hosts.

use super::*;
use crate::engine::hosts::{Host, Hosts};
use crate::engine::versions::EngineVersion;
use crate::pool::reason::{Lost, Reason};

/// An engine of two hosts, one rank each.
fn wide() -> Registration {
    let host = |number: u8| Host { address: format!("10.0.0.{number}"), http: None };
    let hosts = Hosts::new(vec![host(1), host(2)], 1).map(Arc::new);
    Registration { dp_size: 2, hosts, dialect: Dialect::B, index: None, ..says(1, Role::Prefill) }
}

#[test]
fn a_host_that_refuses_ends_a_life_and_one_out_of_reach_does_not() {
    const RELEASE: Probe = Probe::Alive(Some(EngineVersion::new(0, 32, 0)));
    for (lost, ends) in [
        (Lost::KvRefused(6301), true),
        (Lost::Refused(8000), true),
        (Lost::KvUnreachable(6301), false),
        (Lost::Status(503), false),
    ] {
        let (mut registry, start) = registry();
        registry.hear(wide(), None, start);
        probe(&mut registry, start, RELEASE);
        let before = pool(&registry).prefill[0].clone();
        assert_eq!(before.state, State::Ready);
        let failure = Failure::Host(1, lost);
        probe(&mut registry, start + Duration::from_secs(10), Probe::Failed(failure));
        let engine = pool(&registry).prefill[0].clone();
        assert_eq!((engine.state, engine.incarnation), (State::Unhealthy(failure), before.incarnation));
        let reason = engine.reason(start).unwrap();
        assert_eq!((reason, reason.as_str()), (Reason::Failed(failure), "host_lost"));
        assert_eq!(engine.explain(reason), format!("host 10.0.0.2: {lost}"));
        probe(&mut registry, start + Duration::from_secs(20), RELEASE);
        let after = pool(&registry).prefill[0].clone();
        assert_eq!((after.state, after.incarnation != before.incarnation), (State::Ready, ends), "{lost}");
    }
}

#[test]
fn a_late_answer_of_a_host_proves_nothing() {
    let (mut registry, start) = registry();
    registry.hear(wide(), None, start);
    probe(&mut registry, start, Probe::Alive(Some(EngineVersion::new(0, 32, 0))));
    for lost in [Lost::NoAnswer, Lost::Unresolved] {
        probe(&mut registry, start + Duration::from_secs(60), Probe::Failed(Failure::Host(1, lost)));
        assert_eq!(pool(&registry).prefill[0].state, State::Ready, "{lost}");
    }
}

#[test]
fn what_was_listed_must_fit_and_so_must_the_version() {
    let (mut registry, start) = registry();
    registry.hear(Registration { dp_size: 4, ..wide() }, None, start);
    probe(&mut registry, start, Probe::Alive(Some(EngineVersion::new(0, 27, 1))));
    let engine = pool(&registry).prefill[0].clone();
    assert_eq!((engine.state.as_str(), pool(&registry).has_pair()), ("misfit", false));
    registry.hear(wide(), None, start);
    probe(&mut registry, start, Probe::Alive(Some(EngineVersion::new(0, 27, 1))));
    let engine = pool(&registry).prefill[0].clone();
    assert_eq!(
        engine.reason(start).map(|reason| engine.explain(reason)).unwrap(),
        "its vLLM version cannot span hosts: 0.28.0 or newer does"
    );
    assert!(pool(&registry).prefill_slots.is_empty());
}
