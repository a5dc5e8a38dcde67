//! The settings: flags over variables over defaults, every unit and limit, all mistakes reported together.
//!
//! Pure: `main` hands over what was typed and the environment. The options stand in [`crate::settings::options::TABLE`];
//! what each part is told of them, as types, in `parts`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::settings::options::{Key, ServeOptions};

mod admission;
mod conduct;
pub mod faces;
mod hosts;
pub mod options;
mod parts;
mod policies;
mod presumed;
mod reader;
mod spans;
mod values;

pub use admission::{Admission, Caps};
pub use conduct::{Announces, Conduct};
pub use hosts::{Endpoint, Host, Origins};
pub use parts::{
    BreakerLimits, DoorLimits, Expected, Keys, Listen, Log, LogFormat, Parts, PickRules, Preferred, RegistryLimits,
    ServerSettings, Times, TokenBudget,
};
pub use policies::{Affinity, Balance, Cache, DecodeAlone, KeyPlace, Policies, Policy, SessionKeys};
pub use presumed::Presumed;
pub use reader::Mistakes;
pub use spans::Spans;
pub use values::Secret;

use faces::CommandLine;
use reader::Reader;
use values::{choice, number, switch};

/// Engines forget a transfer nobody fetched after this time, so a hand-over must end before it.
const ENGINE_REAP: Duration = Duration::from_secs(60);

/// Everything the proxy was told, typed and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the parts are told.
    pub parts: Parts,
    /// What is logged and how.
    pub log: Log,
    /// Threads that serve clients, at least 1 (`--workers`).
    pub workers: usize,
    /// The program that it stands in for, with the defaults that it changes and nobody has set.
    pub face: Option<(&'static str, String)>,
    /// Every option with its effective value, secrets masked.
    effective: BTreeMap<Key, String>,
}

impl Config {
    /// Reads every option: flags over variables (an empty one counts as unset) over defaults.
    ///
    /// Returns the configuration and warnings for the user.
    ///
    /// # Errors
    /// All mistakes at once, each naming the flag or variable it was found in.
    pub fn resolve(
        options: &ServeOptions,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<String>), Mistakes> {
        Self::resolve_line(&CommandLine::from(options.clone()), environment)
    }

    /// The same for a command line that may be another program's.
    ///
    /// # Errors
    /// All mistakes at once, each naming the flag or variable it was found in.
    pub fn resolve_line(
        line: &CommandLine,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<String>), Mistakes> {
        let mut reader = Reader::new(&line.own, environment, |name| line.claims(name));
        faces::translate(line, &mut reader);
        let (mut parts, log) = (Parts::read(&mut reader), Log::read(&mut reader));
        (parts.spans.local, parts.spans.repeated) =
            parts.presumed.ranks_of_repeated_hosts(parts.server.expected.ranks_per_host);
        let workers = reader.get(Key::Workers, number(1, 512));
        compare(&mut reader, &parts);
        accept_foreign(&mut reader);
        let face = line.program().map(|program| (program.name, reader.changed_defaults()));
        let (effective, warnings) = reader.finish()?;
        Ok((Self { parts, log, workers, face, effective }, warnings))
    }

    /// Every option by its name with its effective value, secrets masked: what `check` and the start-up log print.
    #[must_use]
    pub fn describe(&self) -> Vec<(String, String)> {
        let name = |key: &Key| key.row().name().trim_start_matches('-').to_owned();
        self.effective.iter().map(|(key, value)| (name(key), value.clone())).collect()
    }

    /// A short name for this configuration: equal for equal effective values in every build; secrets have no part.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        // FNV-1a: the standard library's hasher promises no stable result.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for (key, value) in self.effective.iter().filter(|(key, _)| !key.row().is_secret()) {
            for byte in format!("{}={value}\n", key.row().name()).bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        format!("{hash:016x}")
    }
}

/// What options must say together.
fn compare(reader: &mut Reader<'_>, parts: &Parts) {
    let (registry, times) = (&parts.registry, &parts.times);
    reader.require(registry.ttl >= Duration::from_secs(1), &[Key::EngineTtl], "must be at least 1s");
    let longer = "the first must be longer, it includes the second";
    reader.require(times.prefill > times.connect, &[Key::PrefillTimeout, Key::ConnectTimeout], longer);
    reader.require(times.first_byte > times.connect, &[Key::FirstByteTimeout, Key::ConnectTimeout], longer);
    reader.require(times.answer > times.connect, &[Key::AnswerTimeout, Key::ConnectTimeout], longer);
    let reap = "must be under 60s, when engines drop the blocks";
    reader.require(times.hand_over < ENGINE_REAP, &[Key::HandOverLimit], reap);
    if reader.conduct() == Conduct::NATIVE {
        let alone = "has no effect without the other";
        let given = |reader: &Reader<'_>, key| reader.is_given(key);
        let holds = !given(reader, Key::MetricsHost) || given(reader, Key::MetricsPort);
        reader.require(holds, &[Key::MetricsHost, Key::MetricsPort], alone);
        let expects = given(reader, Key::ExpectPrefill) || given(reader, Key::ExpectDecode);
        let holds = !given(reader, Key::RanksPerHost) || expects;
        reader.require(holds, &[Key::RanksPerHost, Key::ExpectPrefill], alone);
    }
    let (rises, keys) = (registry.breaker.open <= registry.breaker.open_max, [Key::BreakerOpen, Key::BreakerOpenMax]);
    reader.require(rises, &keys, "the first must not be longer than the second");
}

/// Options that change nothing here, but must be right.
fn accept_foreign(reader: &mut Reader<'_>) {
    reader.find(Key::VllmPdDisaggregation, switch);
    reader.find(Key::KvConnector, choice(&[("moriio", ())]));
}

#[cfg(test)]
mod tests;
