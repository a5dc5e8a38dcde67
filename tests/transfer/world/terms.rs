//! What the attempt is to be.

use std::time::Duration;

use moriio_proxy::engine::Dialect;
use moriio_proxy::engine::versions::{EngineVersion, ReleaseForm, Traits, traits};
use moriio_proxy::exchange::transfer::{Plan, Releases, Terms};

use super::length;
use crate::transfer::dice::{Dice, Die, Roll};
use crate::transfer::rules::{Facts, MS, Micros, SECOND, VERSIONS};

/// How often each of [`VERSIONS`] takes part.
const WEIGHTS: [u32; 13] = [30, 12, 6, 6, 6, 8, 6, 6, 5, 3, 4, 4, 4];

/// Terms as the proxy makes them of its own table of versions, and what is true of the two engines.
pub fn of(dice: &Dice) -> (Terms, [&'static Facts; 2], [&'static Traits; 2]) {
    let facts = [Die::PrefillVersion, Die::DecodeVersion].map(|die| &VERSIONS[dice.of(die).weighed(&WEIGHTS)]);
    let decode = if dice.of(Die::DecodeVersion).one_of_1000(700) { facts[0] } else { facts[1] };
    let facts = [facts[0], decode];
    let rows = facts.map(row);
    let enabled = !dice.of(Die::KvOff).one_of_1000(50);
    let releases = match (rows[0].release, rows[0].early_release) {
        _ if !enabled => Releases::Never,
        (ReleaseForm::None, _) => Releases::Never,
        (_, false) => Releases::Answered,
        (_, true) => Releases::Always,
    };
    let terms = Terms {
        plan: plan(dice),
        streams: !dice.of(Die::Whole).one_of_1000(300),
        releases,
        wakes: enabled && (rows[1].wake || rows[1].write_failed),
        first_output: seconds(dice, Die::FirstOutput, &[30, 300, 5, 1]),
        orphan: seconds(dice, Die::OrphanLimit, &[30, 300, 5, 1]),
        hand_over: seconds(dice, Die::HandOver, &[20, 5, 1]),
        wake: seconds(dice, Die::Unpark, &[30, 10, 2]),
    };
    (terms, facts, rows)
}

fn plan(dice: &Dice) -> Plan {
    match dice.of(Die::Plan).weighed(&[50, 38, 5]) {
        0 => Plan::Write { serial: dice.of(Die::Serial).one_of_1000(200) },
        1 => Plan::Read,
        _ => Plan::Alone,
    }
}

fn seconds(dice: &Dice, die: Die, of: &[u64]) -> Duration {
    Duration::from_secs(dice.of(die).among(of))
}

/// Limits on the first output, for a client and for nobody, of a pair that is cold or not (protocol P6).
pub fn other_limits(roll: Roll) -> (Duration, Duration) {
    let seconds = |number: u32| Duration::from_secs(roll.again(number).among(&[30, 1800, 300, 5, 1]));
    (seconds(1), seconds(2))
}

/// The proxy's row for an engine that answers with its version.
fn row(facts: &'static Facts) -> &'static Traits {
    let release = facts.version.map(|(major, minor, patch)| EngineVersion::new(major, minor, patch));
    let dialect = match facts.version {
        Some(version) if version < (0, 20, 0) => Dialect::A,
        _ => Dialect::B,
    };
    traits(release, dialect)
}

/// The time that prefill's leg has (protocol O12).
pub fn prefill_limit(dice: &Dice) -> Micros {
    dice.of(Die::PrefillLimit).among(&[60, 300, 10, 1]) * SECOND
}

/// More than an attempt may take: all its limits one after the other (protocol K14, K16, K21).
pub fn bound(terms: &Terms, prefill_limit: Micros) -> Micros {
    let patience = length(terms.first_output).max(600 * SECOND);
    let limits = prefill_limit + length(terms.first_output) + length(terms.orphan) + length(terms.hand_over);
    limits + patience + length(terms.wake) + 2 * 63 * SECOND + 60 * SECOND + 500 * MS
}
