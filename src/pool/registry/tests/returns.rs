//! Engines that refused connections and are back: whether that is another process, and when that is known.

use super::*;

/// An engine that was ready and refuses connections; what follows is told by seconds after that.
fn refused() -> (Registry, impl Fn(u64) -> Instant, u64) {
    let (mut registry, start) = registry();
    registry.hear(dialect_b(1), peer(4000), start);
    probe(&mut registry, start, Probe::Alive(None));
    let (life, refused) = (only_incarnation(&registry), start + PROBE_READY);
    assert_eq!(probe(&mut registry, refused, Probe::Failed(Failure::Refused)), 1);
    (registry, move |seconds| refused + Duration::from_secs(seconds), life)
}

/// Asks the engine at once, as a request that finds no pair has it done.
fn hasten(registry: &mut Registry, now: Instant, result: Probe) -> Option<u64> {
    for order in registry.hasten(&mut registry.unready()) {
        registry.probed(&order.registration.http, order.incarnation, result, now);
    }
    registry.publish();
    let engine = pool(registry).prefill[0].clone();
    (engine.state == State::Ready).then_some(engine.incarnation)
}

const REFUSED: Probe = Probe::Failed(Failure::Refused);

#[test]
fn another_process_serves_once_it_answers_if_it_has_pinged_before() {
    let (mut registry, at, life) = refused();
    // Engines ping long before they serve (protocol R6).
    for second in [5, 8] {
        assert_eq!(registry.hear(dialect_b(1), peer(5000), at(second)), Entered::Refreshed);
        assert_eq!(hasten(&mut registry, at(second), REFUSED), None);
    }
    let now = hasten(&mut registry, at(8), Probe::Alive(None));
    assert!(now.is_some_and(|now| now != life), "{now:?}");
}

#[test]
fn another_process_that_was_refused_too_is_no_more_the_same_for_it() {
    let (mut registry, at, life) = refused();
    for second in [5, 8] {
        registry.hear(dialect_b(1), peer(5000), at(second));
        assert_eq!(hasten(&mut registry, at(second), REFUSED), None);
    }
    registry.hear(dialect_b(1), peer(5000), at(11));
    let now = hasten(&mut registry, at(11), Probe::Alive(None));
    assert!(now.is_some_and(|now| now != life), "its peers remember the other: {now:?}");
}

#[test]
fn a_process_that_pinged_while_it_refused_may_have_ended_since() {
    for (back_from, same) in [(4000, true), (5000, false)] {
        let (mut registry, at, life) = refused();
        registry.hear(dialect_b(1), peer(4000), at(5));
        assert_eq!(hasten(&mut registry, at(6), REFUSED), None);
        assert_eq!(hasten(&mut registry, at(7), Probe::Alive(None)), None, "whose answer it is tells the next ping");
        registry.hear(dialect_b(1), peer(back_from), at(8));
        assert_eq!(probe(&mut registry, at(8), Probe::Alive(None)), 1, "asked at once");
        assert_eq!((pool(&registry).prefill_slots.len(), only_incarnation(&registry) == life), (1, same));
    }
}

#[test]
fn a_socket_more_of_a_process_that_pings_is_no_other_process() {
    let (mut registry, at, life) = refused();
    for port in [4000, 5000] {
        registry.hear(dialect_b(1), peer(port), at(5));
    }
    assert_eq!(hasten(&mut registry, at(6), REFUSED), None);
    assert_eq!(hasten(&mut registry, at(6), Probe::Alive(None)), None);
    for port in [5000, 4000] {
        registry.hear(dialect_b(1), peer(port), at(8));
    }
    assert_eq!(hasten(&mut registry, at(8), Probe::Alive(None)), Some(life));
}

/// An engine that is ready, and ends without a word at second 1; what follows is told by seconds after its last sign of life.
fn ended_unnoticed() -> (Registry, impl Fn(u64) -> Instant, u64) {
    let (mut registry, start) = registry();
    registry.hear(dialect_b(1), peer(4000), start);
    probe(&mut registry, start, Probe::Alive(None));
    let life = only_incarnation(&registry);
    (registry, move |seconds| start + Duration::from_secs(seconds), life)
}

#[test]
fn a_process_that_was_heard_before_the_first_refusal_is_another_all_the_same() {
    let (mut registry, at, life) = ended_unnoticed();
    for second in [4, 7] {
        assert_eq!(registry.hear(dialect_b(1), peer(5000), at(second)), Entered::Refreshed);
    }
    assert_eq!(probe(&mut registry, at(10), REFUSED), 1, "the first that is seen");
    registry.hear(dialect_b(1), peer(5000), at(12));
    let now = hasten(&mut registry, at(12), Probe::Alive(None));
    assert!(now.is_some_and(|now| now != life), "its peers remember the other: {now:?}");
}

#[test]
fn a_process_that_was_heard_before_the_first_refusal_does_not_return_as_the_other() {
    let (mut registry, at, life) = ended_unnoticed();
    registry.hear(dialect_b(1), peer(5000), at(4));
    for second in [10, 20] {
        assert_eq!(probe(&mut registry, at(second), REFUSED), 1);
    }
    assert_eq!(pool(&registry).prefill.len(), 0, "silent for too long");
    assert_eq!(registry.hear(dialect_b(1), peer(5000), at(22)), Entered::Added);
    assert_eq!(registry.publish(), [life], "its peers remember the other");
}

#[test]
fn a_socket_that_was_first_heard_before_a_refusal_waits_for_those_of_before() {
    for (lives, socket) in [(true, 4000), (false, 5000)] {
        let (mut registry, at, life) = ended_unnoticed();
        // One more API server speaks for the first time, or it is another process.
        registry.hear(dialect_b(1), peer(4000), at(5));
        registry.hear(dialect_b(1), peer(5000), at(6));
        assert_eq!(probe(&mut registry, at(10), REFUSED), 1);
        registry.hear(dialect_b(1), peer(5000), at(12));
        assert_eq!(hasten(&mut registry, at(12), Probe::Alive(None)), None, "the known one may speak yet");
        registry.hear(dialect_b(1), peer(socket), at(16));
        assert_eq!(probe(&mut registry, at(16), Probe::Alive(None)), 1, "asked at once");
        assert_eq!((pool(&registry).prefill_slots.len(), only_incarnation(&registry) == life), (1, lives));
    }
}

#[test]
fn in_a_large_pool_ready_engines_are_asked_in_turn() {
    let limits = RegistryLimits { max_engines: 300, ..LIMITS };
    let (mut registry, start) = (Registry::new(limits, Arc::new(Metrics::new())), Instant::now());
    let asked_after = |registry: &mut Registry, engines: u16| {
        for port in 1..=engines {
            registry.hear(says(port, Role::Prefill), None, start);
        }
        registry.due(start + Duration::from_secs(600)).iter().for_each(|order| {
            registry.probed(&order.registration.http, order.incarnation, Probe::Alive(None), start);
        });
        registry.next_due().map(|due| due.duration_since(start).as_secs())
    };
    assert_eq!(asked_after(&mut registry, 3), Some(10));
    // By then they are silent, which is looked at sooner.
    assert_eq!(asked_after(&mut registry, 300), Some(15));
    for port in 1..=300 {
        registry.hear(says(port, Role::Prefill), None, start + Duration::from_secs(20));
    }
    assert_eq!(registry.next_due().map(|due| due.duration_since(start).as_secs()), Some(30));
}
