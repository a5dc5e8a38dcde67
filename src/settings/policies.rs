//! How engines are chosen.

use super::options::Key;
use super::reader::Reader;
use super::values::{Parsed, Refusal, choice, number, switch};

/// How the engine of one role is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Slots have their turns.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// The one of two that has less to do.
    PowerOfTwo,
    /// The one that has least to do, of equals the one that was picked longest ago.
    LeastLoaded,
    /// The one that a session, a user or a client hashes to, unless it has much more to do than others.
    ConsistentHash,
}

impl Policy {
    /// The name of the option's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::RoundRobin => "round_robin",
            Policy::Random => "random",
            Policy::PowerOfTwo => "power_of_two",
            Policy::LeastLoaded => "least_loaded",
            Policy::ConsistentHash => "consistent_hash",
        }
    }
}

const POLICIES: [(&str, Option<Policy>); 6] = [
    ("round_robin", Some(Policy::RoundRobin)),
    ("random", Some(Policy::Random)),
    ("power_of_two", Some(Policy::PowerOfTwo)),
    ("least_loaded", Some(Policy::LeastLoaded)),
    ("consistent_hash", Some(Policy::ConsistentHash)),
    // Of vllm-router, accepted so that its command lines start.
    ("cache_aware", None),
];

/// The policies of both roles (`--prefill-policy` and `--decode-policy`, else `--policy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// Of prefill engines' ranks.
    pub prefill: Policy,
    /// Of decode engines.
    pub decode: Policy,
}

impl Policies {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let mut lacking = Vec::new();
        let mut read = |key, otherwise: Policy| {
            let policy = match reader.find(key, choice(&POLICIES)) {
                Some(Some(policy)) => policy,
                Some(None) => {
                    lacking.push(reader.named(key));
                    Policy::RoundRobin
                }
                None => otherwise,
            };
            reader.show(key, policy.as_str().to_owned());
            policy
        };
        let both = read(Key::Policy, Policy::RoundRobin);
        let policies = Policies { prefill: read(Key::PrefillPolicy, both), decode: read(Key::DecodePolicy, both) };
        if !lacking.is_empty() {
            reader.warn(format!("{}: not available, round_robin is used", lacking.join(", ")));
        }
        policies
    }
}

/// How much more than the others an engine may have to do and keep its sessions: both limits must be passed before one moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Legs above the mean of the others (`--balance-abs-threshold`).
    pub absolute: u64,
    /// Times that mean, in hundredths (`--balance-rel-threshold`).
    pub hundredths: u64,
}

/// Whether sessions stay with their engines (`--session-affinity`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// Whether they do.
    pub is_on: bool,
    /// Until then.
    pub balance: Balance,
}

impl Affinity {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Affinity {
            is_on: reader.get(Key::SessionAffinity, switch),
            balance: Balance {
                absolute: reader.get(Key::BalanceAbsThreshold, number(0, 1_000_000)),
                hundredths: reader.get(Key::BalanceRelThreshold, hundredths),
            },
        }
    }
}

/// A number of at least 1, whose first two decimals count.
fn hundredths(text: &str) -> Parsed<u64> {
    let number = text.parse::<f64>().ok().filter(|number| (1.0..=1_000_000.0).contains(number));
    let number = number.ok_or_else(|| Refusal::Number("1".into(), "1000000".into()))?;
    // In range, so that nothing is cut off.
    Ok(((number * 100.0).round() as u64, number.to_string()))
}

/// Where a request says to whom it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// In a header of this name, `-` for `_`, whatever the case.
    Header(String),
    /// In a text of the body.
    Body(String),
}

/// Places by which sessions are known, and further ones that `consistent_hash` hashes, each in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionKeys {
    /// What names a session (`--session-keys`).
    pub sessions: Vec<KeyPlace>,
    /// What may be hashed when there is no session (`--hash-keys`).
    pub others: Vec<KeyPlace>,
}

impl SessionKeys {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        SessionKeys { sessions: reader.get(Key::SessionKeys, places), others: reader.get(Key::HashKeys, places) }
    }
}

/// Headers, and members of the body as `body.NAME`; `none` is an empty list.
fn places(text: &str) -> Parsed<Vec<KeyPlace>> {
    if text.eq_ignore_ascii_case("none") {
        return Ok((Vec::new(), String::from("none")));
    }
    let is_name = |name: &str| {
        (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let place = |text: &str| match text.split_once('.') {
        Some((body, name)) => (body.eq_ignore_ascii_case("body") && is_name(name)).then(|| KeyPlace::Body(name.into())),
        None => is_name(text).then(|| KeyPlace::Header(text.to_ascii_lowercase().replace('_', "-"))),
    };
    let places: Option<Vec<_>> = text.split(',').map(|text| place(text.trim())).collect();
    let places = places.ok_or(Refusal::KeyPlaces)?;
    let shown = places.iter().map(|place| match place {
        KeyPlace::Header(name) => name.clone(),
        KeyPlace::Body(name) => format!("body.{name}"),
    });
    let shown = shown.collect::<Vec<_>>().join(",");
    Ok((places, shown))
}
