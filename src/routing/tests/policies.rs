//! In which order each policy has its slots.

use super::*;
use crate::metrics::LegStatus;
use crate::settings::{Affinity, Balance, Cache, Policies, Policy};
use crate::upstream::Verdict;

/// Prefill engines of so many ranks each, and decode engines.
fn side_by_side(prefills: u16, ranks: u32, decodes: u16) -> Vec<Arc<Engine>> {
    let engine = |port, role, ranks| with(&engine_of(port, role, ranks, port.into()), Some(NEW), State::Ready);
    let prefill = (1..=prefills).map(|port| engine(port, Role::Prefill, ranks));
    prefill.chain((100..100 + decodes).map(|port| engine(port, Role::Decode, 1))).collect()
}

fn by(policy: Policy) -> Arc<Selector> {
    Selector::new(PickRules { policies: Policies { prefill: policy, decode: policy }, ..PickRules::default() })
}

fn staying(policy: Policy, balance: Balance) -> Arc<Selector> {
    let policies = Policies { prefill: policy, decode: policy };
    Selector::new(PickRules { policies, affinity: Affinity { is_on: true, balance }, ..PickRules::default() })
}

const BALANCE: Balance = Balance { absolute: 64, hundredths: 150 };

fn demand(key: u64) -> Demand<'static> {
    Demand { key, bytes: 1000, ..Demand::default() }
}

fn session(name: u64) -> Demand<'static> {
    Demand { session: Some(name), ..demand(name) }
}

fn slot(picked: &Picked) -> (u64, u32) {
    (picked.prefill.engine.incarnation, picked.rank.unwrap_or(0))
}

fn take(selector: &Arc<Selector>, pool: &Pool, demand: Demand<'_>) -> Picked {
    selector.pick(pool, demand, &[], Instant::now()).expect("a pair")
}

/// How often each prefill slot and each decode engine was picked.
fn counts(picks: impl Iterator<Item = Picked>) -> [BTreeMap<(u64, u32), u64>; 2] {
    let mut counts = [BTreeMap::new(), BTreeMap::new()];
    for picked in picks {
        *counts[0].entry(slot(&picked)).or_default() += 1;
        *counts[1].entry((picked.decode.engine.incarnation, 0)).or_default() += 1;
    }
    counts
}

#[test]
fn chance_is_fair() {
    let (pool, selector) = (pool(&side_by_side(4, 2, 8)), by(Policy::Random));
    for counts in counts((0..8000).map(|key| take(&selector, &pool, demand(key)))) {
        assert_eq!(counts.len(), 8);
        let distance: f64 = counts.values().map(|count| (*count as f64 - 1000.0).powi(2) / 1000.0).sum();
        // Chi-square with seven degrees of freedom: more in one of 10^9 runs.
        assert!(distance < 55.0, "{counts:?}: {distance}");
    }
}

#[test]
fn the_one_with_least_is_picked() {
    let (pool, selector) = (pool(&side_by_side(4, 2, 8)), by(Policy::LeastLoaded));
    // What has ended counts for nothing: of equals the one that waited longest.
    for counts in counts((0..80).map(|key| take(&selector, &pool, demand(key)))) {
        assert!(counts.len() == 8 && counts.values().all(|count| *count == 10), "{counts:?}");
    }
    // One large prompt is as much work as many small ones.
    let large = take(&selector, &pool, Demand { bytes: 14_000, ..demand(0) });
    let mut held: Vec<_> = (0..98).map(|key| take(&selector, &pool, demand(key))).collect();
    let at = |held: &[Picked], wanted| held.iter().filter(|picked| slot(picked) == wanted).count();
    assert_eq!(at(&held, slot(&large)), 0);
    held.push(large);
    let by_decode = counts(held.into_iter()).into_iter().next_back().unwrap();
    assert!(by_decode.values().all(|count| (12..=13).contains(count)), "{by_decode:?}");
    assert!(selector.loads.is_idle());
}

#[test]
fn of_two_the_lighter_is_picked() {
    let (two, selector) = (pool(&side_by_side(2, 1, 2)), by(Policy::PowerOfTwo));
    let heavy = take(&selector, &two, demand(0));
    for key in 0..50 {
        let picked = take(&selector, &two, demand(key));
        assert!(slot(&picked) != slot(&heavy) && picked.decode.engine.incarnation != heavy.decode.engine.incarnation);
    }
    // Of many the loads stay close together, where chance alone would leave them apart by tens.
    let (many, selector) = (pool(&side_by_side(5, 2, 10)), by(Policy::PowerOfTwo));
    let held: Vec<_> = (0..2000).map(|key| take(&selector, &many, demand(key))).collect();
    for counts in counts(held.into_iter()) {
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(counts.len() == 10 && most - least <= 12, "{counts:?}");
    }
}

#[test]
fn a_key_has_a_home_and_a_hot_one_spills() {
    let (pool, selector) = (pool(&side_by_side(4, 2, 4)), by(Policy::ConsistentHash));
    let homes: BTreeSet<_> = (0..64).map(|key| slot(&take(&selector, &pool, demand(key)))).collect();
    assert_eq!(homes.len(), 8, "keys spread");
    let home = slot(&take(&selector, &pool, demand(7)));
    for _ in 0..10 {
        let picked = take(&selector, &pool, demand(7));
        assert_eq!((slot(&picked), picked.choices[0].why), (home, Why::Hit));
    }
    // One key alone: its slot never has more than four, or a quarter more than the mean.
    let mut held: Vec<Picked> = Vec::new();
    for number in 1..=400usize {
        held.push(take(&selector, &pool, demand(7)));
        let here = held.iter().filter(|picked| slot(picked) == home).count();
        assert!(here <= 4.max((number * 5).div_ceil(8 * 4)), "{here} of {number}");
    }
    let spilled = held.iter().filter(|picked| picked.choices[0].why == Why::Spill).count();
    assert!(spilled > 200 && counts(held.into_iter())[0].len() == 8, "{spilled}");
    assert_eq!(slot(&take(&selector, &pool, demand(7))), home, "and it comes back");
}

/// Other engines come and go: whoever is not theirs stays.
#[test]
fn a_home_does_not_move_for_others() {
    let selector = by(Policy::ConsistentHash);
    let all = side_by_side(5, 2, 2);
    let homes = |pool: &Pool| -> Vec<_> { (0..500).map(|key| slot(&take(&selector, pool, demand(key)))).collect() };
    let before = homes(&pool(&all));
    let fewer: Vec<_> = all.iter().filter(|engine| engine.incarnation != 3).cloned().collect();
    for (before, after) in before.iter().zip(homes(&pool(&fewer))) {
        assert!(*before == after || before.0 == 3);
    }
    // Back as a new life it has what it had.
    let again = with(&engine_of(3, Role::Prefill, 2, 33), Some(NEW), State::Ready);
    for (before, after) in before.iter().zip(homes(&pool(&[fewer, vec![again]].concat()))) {
        assert!(*before == after || (before.0 == 3 && after == (33, before.1)));
    }
}

/// Whatever the policy likes best, an engine that cannot be used is not picked, and nobody who can is left out.
#[test]
fn no_policy_picks_what_cannot_be_used() {
    for policy in Policy::ALL {
        let (pool, selector) = (pool(&side_by_side(4, 8, 3)), by(policy));
        for engine in [&pool.prefill[1], &pool.prefill[2], &pool.decode[0]] {
            // Two failures open its circuit.
            for _ in 0..2 {
                engine.admit(Instant::now()).unwrap().end(LegStatus::Failed, Verdict::Ailing);
            }
        }
        let [prefill, decode] = counts((0..400).map(|key| take(&selector, &pool, demand(key))));
        let engines: BTreeSet<_> = prefill.keys().map(|(life, _)| *life).collect();
        assert_eq!(engines, BTreeSet::from([1, 4]), "{policy:?}");
        assert_eq!(decode.keys().map(|(life, _)| *life).collect::<Vec<_>>(), [101, 102], "{policy:?}");
        assert!(selector.loads.is_idle());
    }
}

#[test]
fn a_session_stays_where_it_is() {
    for policy in Policy::ALL {
        let (pool, selector) = (pool(&side_by_side(4, 2, 3)), staying(policy, BALANCE));
        let names = 0..10;
        let homes: Vec<_> = names.clone().map(|name| slot(&take(&selector, &pool, session(name)))).collect();
        assert!(homes.iter().collect::<BTreeSet<_>>().len() > 1, "{policy:?}: {homes:?}");
        for turn in 0..10 {
            for (name, home) in names.clone().zip(&homes) {
                // Others come in between.
                take(&selector, &pool, demand(turn));
                let picked = take(&selector, &pool, session(name));
                assert_eq!(slot(&picked), *home, "{policy:?}");
                assert_eq!((picked.choices[0].by(), picked.choices[0].why), ("session", Why::Hit));
            }
        }
    }
}

/// In READ a decode engine of 0.31.0 or newer has the prefixes of its sessions; in WRITE and before nothing is won by staying.
#[test]
fn a_session_stays_with_decode_where_that_helps() {
    for (mode, release, stays) in [
        (Mode::Read, EngineVersion::new(0, 31, 0), true),
        (Mode::Read, EngineVersion::new(0, 30, 0), false),
        (Mode::Write, EngineVersion::new(0, 31, 0), false),
    ] {
        let engines = side_by_side(1, 1, 4);
        let engines = engines.iter().map(|engine| with(engine, Some(release), State::Ready));
        let (pool, selector) = (Pool::new(engines, Some(mode)), staying(Policy::RoundRobin, BALANCE));
        let decodes: BTreeSet<_> =
            (0..8).map(|_| take(&selector, &pool, session(1)).decode.engine.incarnation).collect();
        assert_eq!(decodes.len(), if stays { 1 } else { 4 }, "{mode} {release}");
    }
}

#[test]
fn a_session_moves_as_a_whole() {
    for policy in Policy::ALL {
        let balance = Balance { absolute: 4, hundredths: 150 };
        let (all, selector) = (side_by_side(3, 1, 1), staying(policy, balance));
        let home = slot(&take(&selector, &pool(&all), session(1)));
        // Five more than the others are too many.
        let held: Vec<_> = (0..5).map(|_| take(&selector, &pool(&all), session(1))).collect();
        assert!(held.iter().all(|picked| slot(picked) == home), "{policy:?}");
        let moved = take(&selector, &pool(&all), session(1));
        assert!(slot(&moved) != home && moved.choices[0].why == Why::Spill, "{policy:?}");
        let there = slot(&moved);
        drop((held, moved));
        assert_eq!(slot(&take(&selector, &pool(&all), session(1))), there, "{policy:?}: it does not go back");
        // Its engine leaves.
        let rest: Vec<_> = all.iter().filter(|engine| engine.incarnation != there.0).cloned().collect();
        let picked = take(&selector, &pool(&rest), session(1));
        let choice = picked.choices[0];
        assert_eq!((choice.by(), choice.why.as_str()), ("session", "fallback"), "{policy:?}");
        let next = slot(&picked);
        assert_eq!(slot(&take(&selector, &pool(&all), session(1))), next, "{policy:?}");
    }
}

#[test]
fn affinity_can_be_off() {
    let (pool, selector) = (pool(&side_by_side(4, 1, 1)), by(Policy::RoundRobin));
    let slots: Vec<_> = (0..4).map(|_| slot(&take(&selector, &pool, session(1))).0).collect();
    assert_eq!(slots, [1, 2, 3, 4]);
}

/// By what prompts begin with, without sessions.
fn by_cache() -> Arc<Selector> {
    let policies = Policies { prefill: Policy::CacheAware, decode: Policy::CacheAware };
    let affinity = Affinity { is_on: false, balance: BALANCE };
    let cache = Cache { hundredths: 30, memory: 64 << 20 };
    Selector::new(PickRules { policies, affinity, cache, ..PickRules::default() })
}

/// The blocks of a prompt whose first ones it has in common with all of the same family.
fn prompt(family: u64, common: u64, own: u64, count: u64) -> Vec<u64> {
    let block =
        |number: u64| if number < common { family << 32 | number } else { (family + 1000 + own) << 32 | number };
    (0..count).map(|number| block(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

fn blocks(prefix: &[u64]) -> Demand<'_> {
    Demand { bytes: prefix.len() as u64 * 2048, prefix, ..Demand::default() }
}

#[test]
fn a_prompt_goes_where_most_of_it_is() {
    let (pool, selector) = (pool(&side_by_side(4, 2, 2)), by_cache());
    let ask = |prefix: &[u64]| {
        let picked = take(&selector, &pool, blocks(prefix));
        (slot(&picked), picked.choices[0].why)
    };
    // Growing prompts of eight agents, one after the other.
    let mut homes = BTreeMap::new();
    for turn in 1..6 {
        for agent in 0..8 {
            let (there, why) = ask(&prompt(agent, 100, 0, turn * 20));
            let home = *homes.entry(agent).or_insert(there);
            assert_eq!((there, why), (home, if turn == 1 { Why::Fallback } else { Why::Hit }), "{agent} {turn}");
        }
    }
    assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 8, "{homes:?}");
    // The longest of two: a part of it is elsewhere, too.
    let (there, _) = ask(&prompt(0, 60, 7, 90));
    assert_eq!(there, homes[&0]);
    // Less than three tenths are no reason.
    assert_eq!(ask(&prompt(1, 20, 9, 70)).1, Why::Fallback);
    assert_eq!(ask(&prompt(1, 22, 10, 70)), (homes[&1], Why::Hit));
    // Without a prompt of some length it goes by load.
    assert_eq!(ask(&[]).1, Why::Fallback);
    assert!(selector.loads.is_idle());
}

/// To wait behind more than what is saved would be slower than to compute it again.
#[test]
fn a_prompt_does_not_wait_for_its_cache_for_too_long() {
    let (pool, selector) = (pool(&side_by_side(4, 1, 1)), by_cache());
    let system = prompt(1, 10, 0, 10);
    let home = slot(&take(&selector, &pool, blocks(&system)));
    // Sessions that have a system prompt in common, all at once.
    let prompts: Vec<_> = (0..40).map(|own| prompt(1, 10, own, 30)).collect();
    let held: Vec<_> = prompts.iter().map(|prefix| take(&selector, &pool, blocks(prefix))).collect();
    assert_eq!(slot(&held[0]), home);
    let spills = held.iter().filter(|picked| picked.choices[0].why == Why::Spill).count();
    assert!(spills > 0, "not all to the one that had it first");
    let [prefill, _] = counts(held.into_iter());
    let (least, most) = (prefill.values().min().unwrap(), prefill.values().max().unwrap());
    assert!(prefill.len() == 4 && most - least <= 6, "{prefill:?}");
    // Many that have it by then: the one with the least to do.
    let picked = take(&selector, &pool, blocks(&system));
    let again = take(&selector, &pool, blocks(&system));
    assert!(slot(&picked) != slot(&again) && again.choices[0].why == Why::Hit);
}

/// What an engine says of its cache is believed: what it has lost is looked for elsewhere, or nowhere.
#[test]
fn a_cache_that_was_lost_is_forgotten() {
    let (pool, selector) = (pool(&side_by_side(2, 1, 1)), by_cache());
    let (one, other) = (prompt(1, 50, 0, 50), prompt(2, 50, 0, 50));
    let home = slot(&take(&selector, &pool, blocks(&one)));
    let elsewhere = take(&selector, &pool, blocks(&other));
    assert_ne!(slot(&elsewhere), home);
    drop(elsewhere);
    let again = take(&selector, &pool, blocks(&one));
    assert_eq!(again.choices[0].why, Why::Hit);
    let forecast = again.forecast.expect("it should have all of it");
    selector.learn(&forecast, 900, 1000);
    drop(again);
    assert_eq!(take(&selector, &pool, blocks(&one)).choices[0].why, Why::Hit, "nine tenths are well");
    let again = take(&selector, &pool, blocks(&other));
    selector.learn(&again.forecast.unwrap(), 0, 1000);
    // It has just computed that, but whatever it had before is gone.
    drop(again);
    assert_eq!(take(&selector, &pool, blocks(&other)).choices[0].why, Why::Hit);
}
