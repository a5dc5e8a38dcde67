//! How engines are chosen.

use super::options::Key;
use super::reader::Reader;
use super::values::{Parsed, Refusal, choice, number, size, size_or_zero, switch};

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
    /// Prefill: the one that has the longest beginning of the prompt, unless to wait for it would take longer than to compute that.
    /// Decode, and where none has enough of it: as [`Policy::LeastLoaded`].
    CacheAware,
}

impl Policy {
    /// Each, in the order in which the option shows them.
    pub const ALL: [Policy; 6] = [
        Policy::RoundRobin,
        Policy::Random,
        Policy::PowerOfTwo,
        Policy::LeastLoaded,
        Policy::ConsistentHash,
        Policy::CacheAware,
    ];

    /// The name of the option's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::RoundRobin => "round_robin",
            Policy::Random => "random",
            Policy::PowerOfTwo => "power_of_two",
            Policy::LeastLoaded => "least_loaded",
            Policy::ConsistentHash => "consistent_hash",
            Policy::CacheAware => "cache_aware",
        }
    }
}

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
        let named = Policy::ALL.map(|policy| (policy.as_str(), policy));
        let both = reader.get(Key::Policy, choice(&named));
        let mut of = |key| {
            let policy = reader.find(key, choice(&named)).unwrap_or(both);
            reader.show(key, policy.as_str().to_owned());
            policy
        };
        Policies { prefill: of(Key::PrefillPolicy), decode: of(Key::DecodePolicy) }
    }
}

/// What `cache_aware` knows, and when it goes by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cache {
    /// The part of a prompt that an engine must have, in hundredths (`--cache-threshold`).
    pub hundredths: u64,
    /// Bytes of memory for what engines have computed (`--prefix-memory`).
    pub memory: u64,
}

impl Cache {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Cache { hundredths: reader.get(Key::CacheThreshold, part), memory: reader.get(Key::PrefixMemory, size) }
    }
}

/// A part of a whole, whose first two decimals count.
fn part(text: &str) -> Parsed<u64> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=1.0).contains(number));
    let number = number.ok_or_else(|| Refusal::Number("0".into(), "1".into()))?;
    // In range, so that nothing is cut off.
    Ok(((number * 100.0).round() as u64, number.to_string()))
}

/// Which requests decode serves without prefill, where its release can (`--decode-alone-below`, `--decode-alone-missing`). By default none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeAlone {
    /// Those with fewer bytes than this.
    pub below: u64,
    /// Those of which it lacks fewer bytes than this.
    pub missing: u64,
}

impl DecodeAlone {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let mut of = |key| reader.get(key, size_or_zero);
        DecodeAlone { below: of(Key::DecodeAloneBelow), missing: of(Key::DecodeAloneMissing) }
    }

    /// Whether there are any.
    pub fn is_on(&self) -> bool {
        self.below + self.missing > 0
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
