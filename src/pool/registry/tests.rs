//! The registry under passed-in time.

mod hosts;
mod returns;

use super::entry::{OLD_PINGS, PROBE_AGAIN};
use super::*;
use crate::engine::{Dialect, KvEndpoint, Role};
use crate::settings::BreakerLimits;

const LIMITS: RegistryLimits = RegistryLimits {
    ttl: Duration::from_secs(15),
    max_engines: 3,
    breaker: BreakerLimits { failures: 5, open: Duration::from_secs(5), open_max: Duration::from_secs(30) },
};

pub(super) fn says(port: u16, role: Role) -> Registration {
    let host = String::from("10.0.0.1");
    let kv = KvEndpoint { host: host.clone(), handshake: port + 1000, notify: port + 2000, text: port.to_string() };
    Registration {
        role,
        http: HttpAddress { host, port },
        kv,
        dp_size: 1,
        tp_size: 1,
        mode: Mode::Read,
        dialect: Dialect::A,
        index: Some(1),
        hosts: None,
    }
}

pub(super) fn registry() -> (Registry, Instant) {
    (Registry::new(LIMITS, Arc::new(Metrics::new())), Instant::now())
}

/// Gives out due probes and answers each.
fn probe(registry: &mut Registry, now: Instant, result: Probe) -> usize {
    let orders = registry.due(now);
    for order in &orders {
        registry.probed(&order.registration.http, order.incarnation, result, now);
    }
    registry.publish();
    orders.len()
}

fn pool(registry: &Registry) -> Arc<Pool> {
    registry.subscribe().borrow().clone()
}

fn only_incarnation(registry: &Registry) -> u64 {
    pool(registry).engines().next().unwrap().incarnation
}

#[test]
fn an_engine_is_probed_before_it_is_used() {
    let (mut registry, now) = registry();
    assert_eq!(registry.hear(says(1, Role::Prefill), None, now), Entered::Added);
    registry.publish();
    assert_eq!((pool(&registry).probing, pool(&registry).prefill_slots.len()), (1, 0));
    assert_eq!(probe(&mut registry, now, Probe::Failed(Failure::Refused)), 1);
    assert_eq!(pool(&registry).prefill[0].state, State::Unhealthy(Failure::Refused));
    let first = only_incarnation(&registry);
    assert_eq!(probe(&mut registry, now, Probe::Alive(None)), 0, "not before its time");
    assert_eq!(probe(&mut registry, now + PROBE_AGAIN, Probe::Alive(None)), 1);
    assert_eq!(pool(&registry).prefill_slots.len(), 1);
    assert_eq!(only_incarnation(&registry), first, "HTTP that opens late is no restart");
}

#[test]
fn an_engine_that_is_not_ready_can_be_asked_sooner() {
    let (mut registry, now) = registry();
    registry.hear(says(1, Role::Prefill), None, now);
    let mut wanted = registry.unready();
    registry.due(now);
    assert_eq!((registry.hasten(&mut wanted).len(), wanted.len()), (0, 1), "its probe is in flight");
    registry.probed(&says(1, Role::Prefill).http, 1, Probe::Failed(Failure::Refused), now);
    assert_eq!((registry.hasten(&mut wanted).len(), wanted.len()), (1, 0));
}

#[test]
fn cases_4_7_8_refresh_restart_and_move() {
    let (mut registry, now) = registry();
    registry.hear(says(1, Role::Prefill), None, now);
    probe(&mut registry, now, Probe::Alive(None));
    let before = pool(&registry);
    assert_eq!(registry.hear(Registration { index: Some(2), ..says(1, Role::Prefill) }, None, now), Entered::Refreshed);
    assert!(registry.publish().is_empty());
    assert!(Arc::ptr_eq(&before, &pool(&registry)), "a ping publishes nothing");

    assert_eq!(registry.hear(says(1, Role::Prefill), None, now), Entered::Restarted, "the index fell back");
    let mut moved = Registration { index: Some(2), ..says(1, Role::Prefill) };
    moved.kv.handshake = 6401;
    assert_eq!(registry.hear(moved, None, now), Entered::Restarted);
    assert_eq!(registry.publish().len(), 2, "two lives have ended");
    assert_eq!((pool(&registry).prefill.len(), pool(&registry).prefill[0].registration.kv.handshake), (1, 6401));

    assert_eq!(registry.hear(says(1, Role::Decode), None, now), Entered::Restarted);
    registry.publish();
    assert_eq!((pool(&registry).prefill.len(), pool(&registry).decode.len()), (0, 1));
}

#[test]
fn silence_alone_is_no_death() {
    let (mut registry, start) = registry();
    registry.hear(says(1, Role::Prefill), None, start);
    probe(&mut registry, start, Probe::Alive(None));
    let later = start + LIMITS.ttl + Duration::from_secs(1);
    assert_eq!(probe(&mut registry, later, Probe::Alive(None)), 1);
    assert_eq!(pool(&registry).prefill_slots.len(), 1);
    let life = only_incarnation(&registry);
    registry.hear(says(1, Role::Prefill), None, later);
    assert_eq!(only_incarnation(&registry), life);
    let end = later + LIMITS.ttl + Duration::from_secs(11);
    assert_eq!(probe(&mut registry, end, Probe::Failed(Failure::NoAnswer)), 1);
    assert_eq!(pool(&registry).prefill.len(), 0);
    registry.hear(says(1, Role::Prefill), None, end);
    registry.publish();
    assert_ne!(only_incarnation(&registry), life);
}

#[test]
fn refused_and_back_is_another_incarnation() {
    let (mut registry, start) = registry();
    registry.hear(says(1, Role::Prefill), None, start);
    probe(&mut registry, start, Probe::Alive(None));
    let life = only_incarnation(&registry);
    let later = start + PROBE_READY;
    assert_eq!(probe(&mut registry, later, Probe::Failed(Failure::Refused)), 1);
    assert_eq!(pool(&registry).prefill_slots.len(), 0);
    let back = later + PROBE_AGAIN;
    assert_eq!(probe(&mut registry, back, Probe::Alive(None)), 1);
    assert_eq!(pool(&registry).prefill_slots.len(), 0, "its ports may be others now");
    let here = Some(([127, 0, 0, 1], 4000).into());
    assert_eq!(registry.hear(says(1, Role::Prefill), here, back), Entered::Refreshed);
    assert_eq!(probe(&mut registry, back + PROBE_AGAIN_MAX, Probe::Alive(None)), 1);
    assert_eq!(pool(&registry).prefill_slots.len(), 1);
    assert_ne!(only_incarnation(&registry), life);
}

#[test]
fn pings_over_the_same_connection_are_the_same_process() {
    let (mut registry, start) = registry();
    let here = Some(([127, 0, 0, 1], 4000).into());
    registry.hear(says(1, Role::Prefill), here, start);
    probe(&mut registry, start, Probe::Alive(None));
    let life = only_incarnation(&registry);
    let refused = start + PROBE_READY;
    assert_eq!(probe(&mut registry, refused, Probe::Failed(Failure::Refused)), 1);
    let back = refused + OLD_PINGS + PROBE_AGAIN_MAX;
    registry.hear(says(1, Role::Prefill), here, back);
    assert_eq!(probe(&mut registry, back, Probe::Alive(None)), 1);
    assert_eq!((pool(&registry).prefill_slots.len(), only_incarnation(&registry)), (1, life));
}

#[test]
fn an_engine_that_was_out_of_reach_is_the_same() {
    let here = Some(([127, 0, 0, 1], 4000).into());
    for (back_from, same) in [(here, true), (Some(([127, 0, 0, 1], 4001).into()), false), (None, false)] {
        let (mut registry, start) = registry();
        registry.hear(says(1, Role::Prefill), here, start);
        probe(&mut registry, start, Probe::Alive(None));
        let life = only_incarnation(&registry);
        let gone = start + LIMITS.ttl + Duration::from_secs(1);
        registry.due(gone);
        registry.probed(&says(1, Role::Prefill).http, life, Probe::Failed(Failure::NoAnswer), gone);
        assert!(registry.publish().is_empty(), "what it knew may still hold");
        assert_eq!(registry.hear(says(1, Role::Prefill), back_from, gone), Entered::Added);
        assert_eq!(registry.publish(), if same { vec![] } else { vec![life] });
        assert_eq!(only_incarnation(&registry) == life, same);
    }
}

#[test]
fn a_late_health_answer_does_not_stop_a_ready_engine() {
    let (mut registry, start) = registry();
    registry.hear(says(1, Role::Prefill), None, start);
    probe(&mut registry, start, Probe::Alive(None));
    assert_eq!(probe(&mut registry, start + PROBE_READY, Probe::Failed(Failure::NoAnswer)), 1);
    assert_eq!(pool(&registry).prefill_slots.len(), 1);
    assert_eq!(probe(&mut registry, start + PROBE_READY * 2, Probe::Failed(Failure::Status(503))), 1);
    assert_eq!(pool(&registry).prefill_slots.len(), 0);
}

#[test]
fn cases_9_22_one_mode_until_its_last_engine_leaves() {
    let (mut registry, start) = registry();
    registry.hear(says(1, Role::Prefill), None, start);
    registry.hear(Registration { mode: Mode::Write, ..says(2, Role::Decode) }, None, start);
    probe(&mut registry, start, Probe::Alive(None));
    assert_eq!((pool(&registry).mode, pool(&registry).decode[0].state), (Some(Mode::Read), State::OtherMode));
    let later = start + LIMITS.ttl + Duration::from_secs(1);
    registry.hear(Registration { mode: Mode::Write, ..says(2, Role::Decode) }, None, later);
    let orders = registry.due(later);
    for order in orders {
        let alive = order.registration.role == Role::Decode;
        let result = if alive { Probe::Alive(None) } else { Probe::Failed(Failure::Refused) };
        registry.probed(&order.registration.http, order.incarnation, result, later);
    }
    registry.publish();
    assert_eq!((pool(&registry).mode, pool(&registry).decode[0].state), (Some(Mode::Write), State::Ready));
}

#[test]
fn the_number_of_engines_is_bounded() {
    let (mut registry, now) = registry();
    for port in 1..=3 {
        assert_eq!(registry.hear(says(port, Role::Prefill), None, now), Entered::Added);
    }
    assert_eq!(registry.hear(says(4, Role::Prefill), None, now), Entered::Full);
    assert_eq!(registry.hear(says(3, Role::Prefill), None, now), Entered::Refreshed);
}

#[test]
fn a_refused_leg_asks_for_a_probe() {
    let (mut registry, now) = registry();
    registry.hear(says(1, Role::Prefill), None, now);
    probe(&mut registry, now, Probe::Alive(None));
    assert!(registry.due(now).is_empty());
    let guard = pool(&registry).prefill[0].admit(now).unwrap();
    guard.end(crate::metrics::LegStatus::Connect, crate::upstream::Verdict::Refusing);
    drop(guard);
    assert_eq!(registry.due(now).len(), 1);
}

fn peer(port: u16) -> Option<SocketAddr> {
    Some(([127, 0, 0, 1], port).into())
}

/// Another process at the same address.
fn other(port: u16) -> Registration {
    let mut says = Registration { index: None, ..says(port, Role::Prefill) };
    (says.kv.handshake, says.kv.notify, says.kv.text) = (7301, 7501, "other".into());
    says
}

fn dialect_b(port: u16) -> Registration {
    Registration { index: None, ..says(port, Role::Prefill) }
}

#[test]
fn a_failed_probe_is_the_state_it_makes() {
    for (failure, while_ready) in [
        (Failure::Unresolved, false),
        (Failure::Refused, true),
        (Failure::NoRoute, true),
        (Failure::NoAnswer, false),
        (Failure::Status(503), true),
        (Failure::KvRefused(6301), true),
        (Failure::KvUnresolved, false),
    ] {
        let (mut registry, now) = registry();
        registry.hear(says(1, Role::Prefill), None, now);
        probe(&mut registry, now, Probe::Failed(failure));
        assert_eq!(pool(&registry).prefill[0].state, State::Unhealthy(failure), "never ready");
        probe(&mut registry, now + PROBE_AGAIN, Probe::Failed(Failure::Status(500)));
        assert_eq!(pool(&registry).prefill[0].state, State::Unhealthy(Failure::Status(500)), "the last one counts");
        registry.hear(says(1, Role::Prefill), None, now + PROBE_READY);
        probe(&mut registry, now + PROBE_READY, Probe::Alive(None));
        assert_eq!(pool(&registry).prefill[0].state, State::Ready);
        registry.hear(says(1, Role::Prefill), None, now + PROBE_READY * 2);
        probe(&mut registry, now + PROBE_READY * 2, Probe::Failed(failure));
        assert_eq!(pool(&registry).prefill[0].state != State::Ready, while_ready, "{failure:?}");
    }
}

#[test]
fn two_processes_at_one_address_do_not_restart_each_other() {
    let (mut registry, start) = registry();
    assert_eq!(registry.hear(dialect_b(1), peer(4000), start), Entered::Added);
    probe(&mut registry, start, Probe::Alive(None));
    let life = only_incarnation(&registry);
    let mut now = start;
    for round in 0..50 {
        now += Duration::from_millis(1500);
        assert_eq!(registry.hear(other(1), peer(5000), now), Entered::Claimed, "{round}");
        let orders = registry.due(now);
        assert!(round > 0 || orders[0].contested, "asked at once, KV ports first");
        for order in orders {
            registry.probed(&order.registration.http, order.incarnation, Probe::Alive(None), now);
        }
        now += Duration::from_millis(1500);
        assert_eq!(registry.hear(dialect_b(1), peer(4000), now), Entered::Refreshed);
        assert!(registry.publish().is_empty(), "nobody's life has ended");
    }
    let engine = pool(&registry).prefill[0].clone();
    assert_eq!((engine.incarnation, engine.state), (life, State::Ready));
    let claims: Vec<_> = engine.claimed_by.iter().map(|claim| (Some(claim.peer), claim.kv.handshake)).collect();
    assert_eq!(claims, [(peer(5000), 7301)]);

    // The one that was there stops pinging; two of its intervals later the other has the address, whoever answers there.
    assert_eq!(registry.hear(other(1), peer(5000), now + Duration::from_secs(5)), Entered::Claimed);
    assert_eq!(registry.hear(other(1), peer(5000), now + Duration::from_secs(7)), Entered::Restarted);
    assert_eq!(registry.publish(), [life]);
    let engine = pool(&registry).prefill[0].clone();
    assert_eq!((engine.registration.kv.handshake, engine.claimed_by.len()), (7301, 0));
}

#[test]
fn a_claim_that_ends_is_forgotten() {
    let (mut registry, start) = registry();
    registry.hear(dialect_b(1), peer(4000), start);
    let mut now = start;
    for _ in 0..3 {
        now += Duration::from_secs(1);
        registry.hear(other(1), peer(5000), now);
        registry.hear(dialect_b(1), peer(4000), now);
    }
    probe(&mut registry, now, Probe::Alive(None));
    assert_eq!(pool(&registry).prefill[0].claimed_by.len(), 1);
    now += LIMITS.ttl + Duration::from_secs(1);
    registry.hear(dialect_b(1), peer(4000), now);
    let orders = registry.due(now);
    assert!(orders.iter().all(|order| !order.contested));
    registry.publish();
    assert!(pool(&registry).prefill[0].claimed_by.is_empty());
}

#[test]
fn a_new_process_takes_over_when_the_old_ports_refuse() {
    let (mut registry, start) = registry();
    registry.hear(dialect_b(1), peer(4000), start);
    probe(&mut registry, start, Probe::Alive(None));
    let life = only_incarnation(&registry);
    let now = start + Duration::from_secs(1);
    assert_eq!(registry.hear(other(1), peer(5000), now), Entered::Claimed);
    assert_eq!(probe(&mut registry, now, Probe::Failed(Failure::KvRefused(1001))), 1);
    let engine = pool(&registry).prefill[0].clone();
    assert_ne!(engine.incarnation, life);
    assert_eq!((engine.registration.kv.handshake, engine.state), (7301, State::Probing));
    assert_eq!(registry.hear(other(1), peer(5000), now), Entered::Refreshed);
    // A last word of the old process changes nothing and is not told as a second engine.
    assert_eq!(registry.hear(dialect_b(1), peer(4000), now), Entered::Claimed);
    assert_eq!(registry.hear(other(1), peer(5000), now + Duration::from_secs(3)), Entered::Refreshed);
    probe(&mut registry, now + Duration::from_secs(3), Probe::Alive(None));
    let engine = pool(&registry).prefill[0].clone();
    assert_eq!((engine.registration.kv.handshake, engine.claimed_by.len()), (7301, 0));
}

#[test]
fn two_that_boot_at_one_address_change_places_once_at_most() {
    let (mut registry, start) = registry();
    registry.hear(dialect_b(1), peer(4000), start);
    probe(&mut registry, start, Probe::Failed(Failure::Refused));
    let (mut now, mut lives) = (start, std::collections::HashSet::new());
    for _ in 0..50 {
        now += Duration::from_millis(500);
        registry.hear(other(1), peer(5000), now);
        registry.hear(dialect_b(1), peer(4000), now);
        for order in registry.due(now) {
            let failure = if order.contested { Failure::KvRefused(6301) } else { Failure::Refused };
            registry.probed(&order.registration.http, order.incarnation, Probe::Failed(failure), now);
        }
        registry.publish();
        lives.insert(only_incarnation(&registry));
    }
    assert!(lives.len() <= 2, "{lives:?}");
}

#[test]
fn one_socket_may_change_what_it_says() {
    let (mut registry, now) = registry();
    registry.hear(dialect_b(1), peer(4000), now);
    assert_eq!(registry.hear(other(1), peer(4000), now), Entered::Restarted);
    assert_eq!(registry.hear(dialect_b(1), peer(4000), now), Entered::Restarted);
}

#[test]
fn equal_pings_from_several_sockets_are_one_engine() {
    let (mut registry, start) = registry();
    registry.hear(dialect_b(1), peer(4000), start);
    probe(&mut registry, start, Probe::Alive(None));
    let life = only_incarnation(&registry);
    let mut now = start;
    let mut round = |registry: &mut Registry, result: Probe| {
        now += Duration::from_millis(1500);
        for port in 4000..4008 {
            assert_eq!(registry.hear(dialect_b(1), peer(port), now), Entered::Refreshed);
        }
        let orders = registry.due(now);
        for order in orders {
            registry.probed(&order.registration.http, order.incarnation, result, now);
        }
        registry.publish();
    };
    for _ in 0..10 {
        round(&mut registry, Probe::Alive(None));
    }
    // Its HTTP server is started anew, and another of its sockets is the next that is heard.
    for _ in 0..10 {
        round(&mut registry, Probe::Failed(Failure::Refused));
    }
    assert_eq!(pool(&registry).prefill[0].state, State::Unhealthy(Failure::Refused));
    for _ in 0..10 {
        round(&mut registry, Probe::Alive(None));
    }
    let engine = pool(&registry).prefill[0].clone();
    assert_eq!((engine.incarnation, engine.state, engine.claimed_by.len()), (life, State::Ready, 0));
}
