//! Bonds as a picker sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::*;
use crate::engine::Role;
use crate::engine::versions::EngineVersion;
use crate::pool::State;
use crate::pool::reason::{Failure, Reason};
use crate::pool::tests::{engine_of, with};
use crate::settings::Caps;

mod alone;
mod policies;

const OLD: EngineVersion = EngineVersion::new(0, 29, 0);
const TWO: Caps = Caps { prefill: 2, decode: 2 };
const NEW: EngineVersion = EngineVersion::new(0, 32, 0);

fn engines(releases: &[EngineVersion], decodes: u16) -> Vec<Arc<Engine>> {
    let prefill = (1..)
        .zip(releases)
        .map(|(port, release)| with(&engine_of(port, Role::Prefill, 1, port.into()), Some(*release), State::Ready));
    let decode =
        (100..100 + decodes).map(|port| with(&engine_of(port, Role::Decode, 1, port.into()), Some(NEW), State::Ready));
    prefill.chain(decode).collect()
}

fn pool(engines: &[Arc<Engine>]) -> Pool {
    Pool::new(engines.to_vec(), Some(Mode::Write))
}

fn selector() -> Arc<Selector> {
    Selector::new(PickRules::default())
}

fn pick(selector: &Arc<Selector>, pool: &Pool) -> Result<Picked, NoPick> {
    selector.pick(pool, Demand::default(), &[], Instant::now())
}

/// The decode engines that each prefill engine is paired with in so many exchanges, one after the other.
fn partners(selector: &Arc<Selector>, pool: &Pool, exchanges: usize) -> BTreeMap<u64, BTreeSet<u64>> {
    let mut partners: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for _ in 0..exchanges {
        let picked = pick(selector, pool).unwrap();
        partners.entry(picked.prefill.engine.incarnation).or_default().insert(picked.decode.engine.incarnation);
    }
    partners
}

#[test]
fn each_prefill_engine_has_one_decode_engine_and_each_decode_engine_has_work() {
    let (pool, selector) = (pool(&engines(&[OLD; 3], 2)), selector());
    let partners = partners(&selector, &pool, 60);
    assert!(partners.len() == 3 && partners.values().all(|decodes| decodes.len() == 1), "{partners:?}");
    let used: BTreeSet<_> = partners.into_values().flatten().collect();
    assert_eq!(used.len(), 2);
    assert_eq!(selector.pairs.bound(&pool).len(), 3);
}

#[test]
fn prefill_decides_and_only_in_write() {
    let (mixed, selector) = (engines(&[OLD, NEW], 3), selector());
    let partners_of = partners(&selector, &pool(&mixed), 60);
    assert_eq!((partners_of[&1].len(), partners_of[&2].len()), (1, 3));
    assert_eq!(selector.pairs.bound(&pool(&mixed)).len(), 1);
    let reading = Pool::new(mixed, Some(Mode::Read));
    assert!(partners(&selector, &reading, 60).values().all(|decodes| decodes.len() == 3));
}

#[test]
fn a_bond_outlives_what_is_in_flight() {
    let (mut all, selector) = (engines(&[OLD], 2), selector());
    let picked = pick(&selector, &pool(&all)).unwrap();
    let first = picked.decode.engine.incarnation;
    let at = all.iter().position(|engine| engine.incarnation == first).unwrap();
    all[at] = with(&all[at], Some(NEW), State::Unhealthy(Failure::Status(503)));
    assert_eq!(pick(&selector, &pool(&all)).unwrap_err(), NoPick::Busy, "it may be paired anew when it is idle");
    // Prefill is done; the KV may be on its way until decode's first byte.
    let Picked { prefill, decode, mut meeting, .. } = picked;
    drop((prefill, decode));
    assert_eq!(pick(&selector, &pool(&all)).unwrap_err(), NoPick::Busy);
    meeting.prove();
    let second = pick(&selector, &pool(&all)).unwrap().decode.engine.incarnation;
    assert_ne!(second, first);
    // Back again, it is no reason to change.
    all[at] = with(&all[at], Some(NEW), State::Ready);
    assert_eq!(partners(&selector, &pool(&all), 6)[&1], BTreeSet::from([second]));
}

#[test]
fn a_bond_ends_with_its_decode_engine() {
    let (mut all, selector) = (engines(&[OLD], 2), selector());
    let held = pick(&selector, &pool(&all)).unwrap();
    all.retain(|engine| engine.incarnation != held.decode.engine.incarnation);
    let next = pick(&selector, &pool(&all)).unwrap();
    assert_ne!(next.decode.engine.incarnation, held.decode.engine.incarnation, "it has left");
    // Back on its old ports it is another life, which this prefill engine must not meet.
    let replaced = held.decode.engine.clone();
    all.retain(|engine| engine.role() == Role::Prefill);
    all.push(with(&engine_of(replaced.registration.http.port, Role::Decode, 1, 500), Some(NEW), State::Ready));
    assert_eq!(pick(&selector, &pool(&all)).unwrap_err(), NoPick::Nobody);
}

#[test]
fn who_comes_later_gets_its_share_and_who_is_left_out_says_so() {
    let (all, selector, now) = (engines(&[OLD, OLD], 3), selector(), Instant::now());
    let early: Vec<_> = all.iter().filter(|engine| engine.incarnation <= 100).cloned().collect();
    selector.pairs.arrange(&pool(&early), now);
    let of =
        |pool: &Pool| selector.pairs.bound(pool).iter().map(|(_, decode)| decode.incarnation).collect::<BTreeSet<_>>();
    assert_eq!(of(&pool(&early)), BTreeSet::from([100]));
    let busy = [pick(&selector, &pool(&early)).unwrap(), pick(&selector, &pool(&early)).unwrap()];
    let whole = pool(&all);
    selector.pairs.arrange(&whole, now);
    assert_eq!(of(&whole), BTreeSet::from([100]), "both are at work");
    assert_eq!(selector.pairs.reason(&whole, &whole.decode[1], now), Some(Reason::Unbound));
    drop(busy);
    selector.pairs.arrange(&whole, now);
    assert_eq!(of(&whole), BTreeSet::from([100, 101]));
    let reasons: Vec<_> = whole.decode.iter().map(|decode| selector.pairs.reason(&whole, decode, now)).collect();
    assert_eq!(reasons, [None, None, Some(Reason::Unbound)]);
}

#[test]
fn one_decode_engine_is_as_if_nobody_were_bound() {
    let (mut all, selector) = (engines(&[OLD, OLD], 1), selector());
    assert_eq!(partners(&selector, &pool(&all), 6).len(), 2);
    all[2] = with(&all[2], Some(NEW), State::Unhealthy(Failure::Refused));
    assert_eq!(pick(&selector, &pool(&all)).unwrap_err(), NoPick::Nobody);
}

#[test]
fn what_stands_in_the_way_is_told_apart() {
    let rules = PickRules { caps: TWO, first_contact: true, ..PickRules::default() };
    let (all, selector) = (engines(&[OLD], 2), Selector::new(rules));
    let one = Pool::new(all[..2].to_vec(), Some(Mode::Read));
    let first = pick(&selector, &one).unwrap();
    assert_eq!(pick(&selector, &one).unwrap_err(), NoPick::FirstContact);
    // With another decode engine the next exchange has somewhere to go; then prefill is at its limit.
    let both = Pool::new(all, Some(Mode::Read));
    let second = pick(&selector, &both).unwrap();
    assert_eq!(pick(&selector, &both).unwrap_err(), NoPick::Busy);
    drop((first.prefill, second.prefill));
    assert_eq!(pick(&selector, &both).unwrap_err(), NoPick::FirstContact);
    let mut meeting = first.meeting;
    meeting.prove();
    assert!(pick(&selector, &both).is_ok());
}

#[test]
fn who_has_refused_is_asked_again_only_where_there_is_nobody_else() {
    let (pool, selector) = (pool(&engines(&[NEW; 3], 2)), selector());
    let pick = |refused: &[u64]| selector.pick(&pool, Demand::default(), refused, Instant::now()).unwrap();
    for _ in 0..6 {
        let picked = pick(&[1, 3, 101]);
        assert_eq!((picked.prefill.engine.incarnation, picked.decode.engine.incarnation), (2, 100));
    }
    let asked: BTreeSet<_> = (0..6).map(|_| pick(&[1, 2, 3]).prefill.engine.incarnation).collect();
    assert_eq!(asked, BTreeSet::from([1, 2, 3]), "all have refused");
    let asked: BTreeSet<_> = (0..6).map(|_| pick(&[100, 101]).decode.engine.incarnation).collect();
    assert_eq!(asked, BTreeSet::from([100, 101]), "all have refused");
}

#[test]
fn for_one_with_no_room_is_waited_rather_than_asking_again() {
    let pool = pool(&engines(&[NEW; 2], 3));
    let selector = Selector::new(PickRules { caps: TWO, ..PickRules::default() });
    let held = selector.pick(&pool, Demand::default(), &[1], Instant::now()).unwrap();
    let more = selector.pick(&pool, Demand::default(), &[1], Instant::now()).unwrap();
    assert_eq!(selector.pick(&pool, Demand::default(), &[1], Instant::now()).err(), Some(NoPick::Busy));
    drop((held, more));
    assert_eq!(selector.pick(&pool, Demand::default(), &[1], Instant::now()).unwrap().prefill.engine.incarnation, 2);
}
