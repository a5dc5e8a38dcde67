//! What decode serves alone.

use super::*;
use crate::engine::hosts::{Host, Hosts};
use crate::routing::{Alone, Pick, Short};
use crate::settings::{Balance, DecodeAlone, Policies, Policy};

const NEWEST: EngineVersion = EngineVersion::new(0, 33, 0);

/// A prefill engine, and decode engines of these releases.
fn of(releases: &[EngineVersion]) -> Vec<Arc<Engine>> {
    let decode = (100..).zip(releases);
    let decode = decode
        .map(|(port, release)| with(&engine_of(port, Role::Decode, 1, port.into()), Some(*release), State::Ready));
    let prefill = with(&engine_of(1, Role::Prefill, 1, 1), Some(NEWEST), State::Ready);
    std::iter::once(prefill).chain(decode).collect()
}

fn rules(below: u64, missing: u64) -> PickRules {
    let mut rules = PickRules { decode_alone: DecodeAlone { below, missing }, ..PickRules::default() };
    (rules.cache.memory, rules.affinity.balance) = (1 << 20, Balance { absolute: 4, hundredths: 150 });
    rules
}

fn demand(bytes: u64, prefix: &[u64]) -> Demand<'_> {
    Demand { bytes, prefix, may_skip_prefill: true, ..Demand::default() }
}

/// Who serves it alone, if anybody does.
fn alone(selector: &Arc<Selector>, pool: &Pool, demand: Demand<'_>) -> Option<Alone> {
    match selector.pick_any(pool, demand, &[], Instant::now()) {
        Ok(Pick::Alone(alone)) => Some(*alone),
        Ok(Pick::Pair(_)) => None,
        Err(error) => panic!("{error:?}"),
    }
}

/// Has it served by whoever is picked, after which decode has the prompt.
fn served(selector: &Arc<Selector>, pool: &Pool, demand: Demand<'_>) -> (bool, u64) {
    let (alone, decode) = match selector.pick_any(pool, demand, &[], Instant::now()).unwrap() {
        Pick::Alone(alone) => (true, alone.decode.engine.clone()),
        Pick::Pair(pair) => (false, pair.decode.engine.clone()),
    };
    selector.decode_has(&decode, demand.prefix);
    (alone, decode.incarnation)
}

fn lives(count: usize, pick: impl Fn() -> Option<Alone>) -> BTreeMap<u64, usize> {
    let mut lives = BTreeMap::new();
    for _ in 0..count {
        *lives.entry(pick().expect("alone").decode.engine.incarnation).or_default() += 1;
    }
    lives
}

#[test]
fn only_what_is_short_and_only_who_can() {
    for policy in Policy::ALL {
        let pool = pool(&of(&[NEWEST, NEW, NEWEST]));
        let policies = Policies { prefill: policy, decode: policy };
        let selector = Selector::new(PickRules { policies, ..rules(1000, 0) });
        let found = lives(64, || alone(&selector, &pool, demand(999, &[])));
        assert!(found.keys().all(|life| [100, 102].contains(life)), "{policy:?}: {found:?}");
        if policy == Policy::RoundRobin {
            // The turn of the one that cannot is the next one's.
            assert_eq!(found.values().sum::<usize>(), 64);
            assert!(found.len() == 2 && found.values().all(|count| *count >= 21), "{found:?}");
        }
        assert!(alone(&selector, &pool, demand(1000, &[])).is_none());
        assert!(alone(&selector, &pool, Demand { may_skip_prefill: false, ..demand(1, &[]) }).is_none());
        let refused = selector.pick_any(&pool, demand(1, &[]), &[100, 102], Instant::now());
        assert!(matches!(refused, Ok(Pick::Pair(_))));
        drop(refused);
        // No work is left behind.
        let side = pool.side(Role::Decode, 1, &selector.loads);
        assert_eq!(side.legs(), 0);
    }
}

/// The turns of pairs go on as if there were no others.
#[test]
fn it_takes_no_turn_of_a_pair() {
    let mut engines = of(&[NEWEST]);
    engines.push(with(&engine_of(2, Role::Prefill, 1, 2), Some(NEWEST), State::Ready));
    let (pool, selector) = (pool(&engines), Selector::new(rules(1000, 0)));
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let Ok(Pick::Pair(pair)) = selector.pick_any(&pool, demand(5000, &[]), &[], Instant::now()) else { panic!() };
        seen.insert(pair.prefill.engine.incarnation);
        drop(alone(&selector, &pool, demand(1, &[])).unwrap());
    }
    assert_eq!(seen, BTreeSet::from([1, 2]));
}

#[test]
fn without_room_or_without_prefill_it_goes_as_all_do() {
    let selector = Selector::new(PickRules { caps: Caps { prefill: 0, decode: 1 }, ..rules(1000, 0) });
    let one = pool(&of(&[NEWEST]));
    let held = alone(&selector, &one, demand(1, &[])).unwrap();
    assert_eq!(selector.pick_any(&one, demand(1, &[]), &[], Instant::now()).err(), Some(NoPick::Busy));
    drop(held);
    drop(alone(&selector, &one, demand(1, &[])).unwrap());
    let none = pool(&of(&[NEWEST])[1..]);
    assert_eq!(selector.pick_any(&none, demand(1, &[]), &[], Instant::now()).err(), Some(NoPick::Nobody));
    // A prefill engine without room is in nobody's way.
    let selector = Selector::new(PickRules { caps: Caps { prefill: 1, decode: 0 }, ..rules(1000, 0) });
    let _held = selector.pick(&one, demand(5000, &[]), &[], Instant::now()).unwrap();
    drop(alone(&selector, &one, demand(1, &[])).unwrap());
}

/// So many hashes.
fn blocks(count: u64) -> Vec<u64> {
    (1..=count).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

#[test]
fn what_decode_has_is_not_computed_by_prefill() {
    let (pool, selector) = (pool(&of(&[NEWEST, NEWEST])), Selector::new(rules(0, 4096)));
    let prefix = blocks(20);
    let whole = demand(20 * 2048, &prefix);
    // As long as the first is on its way, nobody has it.
    let held: Vec<_> = (0..3).map(|_| selector.pick_any(&pool, whole, &[], Instant::now()).unwrap()).collect();
    assert!(held.iter().all(|pick| matches!(pick, Pick::Pair(_))));
    drop(held);
    let (alone_first, home) = served(&selector, &pool, whole);
    assert!(!alone_first);
    // It stays there, also when it is longer by less than what may be missing.
    for bytes in [20 * 2048, 20 * 2048 + 4095] {
        let again = alone(&selector, &pool, demand(bytes, &prefix)).unwrap();
        assert_eq!((again.decode.engine.incarnation, again.short), (home, Short::Missing));
        assert!(again.forecast.is_some());
    }
    assert!(alone(&selector, &pool, demand(20 * 2048 + 4096, &prefix)).is_none());
    assert!(alone(&selector, &pool, demand(20 * 2048, &[1, 2, 3])).is_none(), "another prompt");
}

/// An engine that has lost what it was to have says so, and is not believed for a while, longer each time.
#[test]
fn one_that_disappoints_is_not_believed_for_a_while() {
    let (pool, selector) = (pool(&of(&[NEWEST])), Selector::new(rules(0, 4096)));
    let prefix = blocks(20);
    let whole = demand(20 * 2048, &prefix);
    assert!(!served(&selector, &pool, whole).0);
    let not_believed = || (0..).take_while(|_| !served(&selector, &pool, whole).0).count();
    for doubt in [64, 128, 256] {
        // Those that are on their way when it says so have nothing new to say.
        let said: Vec<_> = (0..5).map(|_| alone(&selector, &pool, whole).expect("believed")).collect();
        for said in said {
            selector.learn_decode(&said.forecast.unwrap(), Some((10, 10_000)));
        }
        let others = not_believed();
        assert!((doubt..=doubt + 1).contains(&others), "{others} of {doubt}");
    }
    // Once it was right that is forgotten.
    let said = alone(&selector, &pool, whole).expect("believed");
    selector.learn_decode(&said.forecast.unwrap(), Some((9_000, 10_000)));
    let said = alone(&selector, &pool, whole).expect("believed");
    selector.learn_decode(&said.forecast.unwrap(), Some((10, 10_000)));
    let others = not_believed();
    assert!((64..=65).contains(&others), "{others}");
}

/// One that has much more to do than the others gets no more for what it has.
#[test]
fn a_crowd_with_one_beginning_spreads() {
    let (pool, selector) = (pool(&of(&[NEWEST, NEWEST])), Selector::new(rules(0, 4096)));
    let prefix = blocks(20);
    let (_, home) = served(&selector, &pool, demand(20 * 2048, &prefix));
    let mut picks = Vec::new();
    let mut alone = 0;
    for _ in 0..20 {
        picks.push(selector.pick_any(&pool, demand(20 * 2048, &prefix), &[], Instant::now()).unwrap());
        if let Some(Pick::Alone(last)) = picks.last() {
            assert_eq!(last.decode.engine.incarnation, home);
            alone += 1;
        }
    }
    assert!((4..=10).contains(&alone), "{alone} of 20");
}

/// Every host that serves has its turns.
#[test]
fn doors_have_their_turns() {
    let mut engines = of(&[]);
    for port in [100, 101] {
        let engine = engine_of(port, Role::Decode, 4, port.into());
        let mut says = engine.registration.clone();
        let host = |name: &str| Host { address: name.into(), http: name.parse().ok() };
        says.hosts = Hosts::new(vec![host("10.0.0.1:80"), host("10.0.0.2:80")], 2).map(Arc::new);
        let (life, vitals) = (engine.incarnation, engine.vitals.clone());
        engines.push(Arc::new(Engine::new(says, Some(NEWEST), State::Ready, life, vitals).unwrap()));
    }
    let (pool, selector) = (pool(&engines), Selector::new(rules(1000, 0)));
    let mut doors = BTreeSet::new();
    for _ in 0..4 {
        let alone = alone(&selector, &pool, demand(1, &[])).unwrap();
        doors.insert((alone.decode.engine.incarnation, alone.place.host));
    }
    assert_eq!(doors, BTreeSet::from([(100, 0), (100, 1), (101, 0), (101, 1)]));
}

#[test]
fn nobody_knows_which_of_several_ranks_has_it() {
    let mut engines = of(&[]);
    engines.push(with(&engine_of(100, Role::Decode, 2, 100), Some(NEWEST), State::Ready));
    let (pool, selector) = (pool(&engines), Selector::new(rules(0, 4096)));
    for _ in 0..3 {
        assert!(!served(&selector, &pool, demand(2048, &[7])).0);
    }
}
