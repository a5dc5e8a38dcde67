//! What decode serves alone.

use super::*;
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

#[test]
fn what_decode_has_is_not_computed_by_prefill() {
    let (pool, selector) = (pool(&of(&[NEWEST, NEWEST])), Selector::new(rules(0, 4096)));
    let prefix: Vec<u64> = (1..=20u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let whole = demand(20 * 2048, &prefix);
    let first = selector.pick_any(&pool, whole, &[], Instant::now()).unwrap();
    let Pick::Pair(first) = first else { panic!("nobody has it") };
    let home = first.decode.engine.incarnation;
    // It stays there, also when it is longer by less than what may be missing.
    for bytes in [20 * 2048, 20 * 2048 + 4095] {
        let again = alone(&selector, &pool, demand(bytes, &prefix)).unwrap();
        assert_eq!((again.decode.engine.incarnation, again.short), (home, Short::Missing));
        assert!(again.forecast.is_some());
    }
    assert!(alone(&selector, &pool, demand(20 * 2048 + 4096, &prefix)).is_none());
    // What failed is not expected any more. Both have met it by now.
    let Ok(Pick::Pair(other)) = selector.pick_any(&pool, demand(99_999, &prefix[..2]), &[], Instant::now()) else {
        panic!()
    };
    selector.forget(&prefix[..2], other.expected);
}

/// An engine that has lost what it was to have says so, and is not believed for a while, longer each time.
#[test]
fn one_that_disappoints_is_not_believed_for_a_while() {
    let (pool, selector) = (pool(&of(&[NEWEST])), Selector::new(rules(0, 4096)));
    let prefix: Vec<u64> = (1..=20u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let whole = demand(20 * 2048, &prefix);
    assert!(alone(&selector, &pool, whole).is_none());
    for doubt in [64, 128, 256] {
        let said = alone(&selector, &pool, whole).expect("believed");
        selector.learn_decode(&said.forecast.unwrap(), 10, 10_000);
        let others = (0..).take_while(|_| alone(&selector, &pool, whole).is_none()).count();
        assert!((doubt..=doubt + 1).contains(&others), "{others} of {doubt}");
    }
    // Once it was right that is forgotten.
    let said = alone(&selector, &pool, whole).expect("believed");
    selector.learn_decode(&said.forecast.unwrap(), 9_000, 10_000);
    let said = alone(&selector, &pool, whole).expect("believed");
    selector.learn_decode(&said.forecast.unwrap(), 10, 10_000);
    let others = (0..).take_while(|_| alone(&selector, &pool, whole).is_none()).count();
    assert!((64..=65).contains(&others), "{others}");
}

/// One that has much more to do than the others gets no more for what it has.
#[test]
fn a_crowd_with_one_beginning_spreads() {
    let (pool, selector) = (pool(&of(&[NEWEST, NEWEST])), Selector::new(rules(0, 4096)));
    let prefix: Vec<u64> = (1..=20u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    drop(selector.pick_any(&pool, demand(20 * 2048, &prefix), &[], Instant::now()).unwrap());
    let picks: Vec<_> =
        (0..20).map(|_| selector.pick_any(&pool, demand(20 * 2048, &prefix), &[], Instant::now()).unwrap()).collect();
    let mut lives: BTreeMap<u64, usize> = BTreeMap::new();
    for pick in &picks {
        let engine = match pick {
            Pick::Pair(pair) => &pair.decode.engine,
            Pick::Alone(alone) => &alone.decode.engine,
        };
        *lives.entry(engine.incarnation).or_default() += 1;
    }
    assert!(lives.len() == 2 && lives.values().all(|count| *count >= 6), "{lives:?}");
}

#[test]
fn nobody_knows_which_of_several_ranks_has_it() {
    let mut engines = of(&[]);
    engines.push(with(&engine_of(100, Role::Decode, 2, 100), Some(NEWEST), State::Ready));
    let (pool, selector) = (pool(&engines), Selector::new(rules(0, 4096)));
    for _ in 0..3 {
        assert!(alone(&selector, &pool, demand(2048, &[7])).is_none());
    }
}
