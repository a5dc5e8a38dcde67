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
fn a_host_that_refuses_ends_a_life_and_one_that_ails_does_not() {
    const RELEASE: Probe = Probe::Alive(Some(EngineVersion::new(0, 32, 0)));
    for (lost, ends) in [
        (Lost::KvRefused(6301), true),
        (Lost::Refused(8000), true),
        (Lost::Status(500), false),
        (Lost::Status(503), false),
    ] {
        let (mut registry, start) = registry();
        registry.hear(wide(), None, start);
        probe(&mut registry, start, RELEASE);
        let before = pool(&registry).prefill[0].clone();
        assert_eq!(before.state, State::Ready);
        let failure = Failure::Host(1, lost);
        let told = if ends { Probe::HostGone(failure) } else { Probe::Failed(failure) };
        probe(&mut registry, start + Duration::from_secs(10), told);
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

#[test]
fn a_lost_host_is_not_forgotten_while_the_first_is_silent() {
    const RELEASE: Probe = Probe::Alive(Some(EngineVersion::new(0, 32, 0)));
    let peer = || Some("10.0.0.1:4000".parse().unwrap());
    for is_silent in [false, true] {
        let (mut registry, start) = registry();
        let at = |seconds| start + Duration::from_secs(seconds);
        registry.hear(wide(), peer(), start);
        probe(&mut registry, start, RELEASE);
        let life = only_incarnation(&registry);
        registry.hear(wide(), peer(), at(9));
        probe(&mut registry, at(10), Probe::HostGone(Failure::Host(1, Lost::KvRefused(6301))));
        if is_silent {
            probe(&mut registry, at(40), Probe::Failed(Failure::NoAnswer));
            assert!(pool(&registry).prefill.is_empty());
        }
        registry.hear(wide(), peer(), at(50));
        probe(&mut registry, at(50), RELEASE);
        assert_eq!(pool(&registry).prefill[0].state, State::Ready);
        assert_ne!(only_incarnation(&registry), life, "first host silent: {is_silent}");
    }
}

#[test]
fn a_host_counts_as_out_of_reach_the_second_time() {
    let (mut registry, start) = registry();
    registry.hear(wide(), None, start);
    probe(&mut registry, start, Probe::Alive(Some(EngineVersion::new(0, 32, 0))));
    let (life, far) = (only_incarnation(&registry), Failure::Host(1, Lost::KvUnreachable(6301)));
    for (seconds, state) in [(10, State::Ready), (12, State::Unhealthy(far))] {
        probe(&mut registry, start + Duration::from_secs(seconds), Probe::Failed(far));
        assert_eq!(pool(&registry).prefill[0].state, state);
    }
    probe(&mut registry, start + Duration::from_secs(20), Probe::Alive(None));
    assert_eq!((pool(&registry).prefill[0].state, only_incarnation(&registry)), (State::Ready, life));
    // And whatever else is the matter, a refusal is remembered.
    probe(&mut registry, start + Duration::from_secs(30), Probe::HostGone(Failure::Status(503)));
    probe(&mut registry, start + Duration::from_secs(40), Probe::Alive(None));
    assert_ne!(only_incarnation(&registry), life);
}

/// Looks at a host one after the other, with something else between.
#[test]
fn only_two_looks_in_a_row_find_a_host_out_of_reach() {
    let (mut registry, start) = registry();
    registry.hear(wide(), None, start);
    probe(&mut registry, start, Probe::Alive(Some(EngineVersion::new(0, 32, 0))));
    let far = Failure::Host(1, Lost::KvUnreachable(6301));
    for (seconds, failure) in [(10, far), (12, Failure::Host(1, Lost::NoAnswer)), (15, far)] {
        assert_eq!(probe(&mut registry, start + Duration::from_secs(seconds), Probe::Failed(failure)), 1);
        assert_eq!(pool(&registry).prefill[0].state, State::Ready, "{failure}");
    }
}

/// Its host is gone and it does not ping either, while its first host answers.
#[test]
fn a_silent_engine_without_a_host_is_probed_at_the_usual_pace() {
    let (mut registry, start) = registry();
    let at = |milliseconds| start + LIMITS.ttl + Duration::from_millis(milliseconds);
    registry.hear(wide(), None, start);
    probe(&mut registry, start, Probe::Alive(Some(EngineVersion::new(0, 32, 0))));
    let gone = Probe::HostGone(Failure::Host(1, Lost::KvRefused(6301)));
    let probes: usize = (1..=20).map(|look| probe(&mut registry, at(200 * look), gone)).sum();
    // At once, after 0.5, 1 and 2 s; four seconds have passed.
    assert_eq!(probes, 4);
    // Its end is noticed all the same.
    probe(&mut registry, at(20_000), Probe::Failed(Failure::Refused));
    assert!(pool(&registry).prefill.is_empty());
}

/// What it can do hangs on its release, for which a moment's silence is no answer.
#[test]
fn a_release_that_was_not_told_is_soon_asked_for_again() {
    let (mut registry, start) = registry();
    registry.hear(wide(), None, start);
    assert_eq!(probe(&mut registry, start, Probe::Alive(None)), 1);
    assert_eq!(pool(&registry).prefill[0].state.as_str(), "misfit");
    assert_eq!(probe(&mut registry, start + PROBE_AGAIN, Probe::Alive(Some(EngineVersion::new(0, 32, 0)))), 1);
    assert_eq!(pool(&registry).prefill[0].state, State::Ready);
}
