//! The three layers an option is looked up in, and the list of mistakes found on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::Effective;
use super::hosts::{self, Host, Origins};
use super::values::{self, Refusal, Secret};
use crate::settings::options::{Key, MASKED, ServeOptions, TABLE};

/// The prefix of the variables that are ours to know.
const PREFIX: &str = "PROXY_";

/// Longest part of a refused value that a message repeats, in characters.
const QUOTED_MAX: usize = 80;

/// One thing wrong with what the user gave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {what}")]
pub struct Mistake {
    /// The flag or variable, or several of them.
    pub name: String,
    /// What is wrong with it.
    pub what: String,
}

/// Everything wrong with what the user gave; displays as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(formatter, "{separator}moriio-proxy: {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Looks options up and remembers what it found.
pub(super) struct Reader<'a> {
    options: &'a ServeOptions,
    variables: BTreeMap<String, String>,
    shown: BTreeMap<Key, String>,
    refused: BTreeSet<Key>,
    mistakes: Vec<Mistake>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(options: &'a ServeOptions, environment: impl Iterator<Item = (String, String)>) -> Self {
        let known = |name: &str| TABLE.iter().any(|row| row.variable == name);
        let set = environment.filter(|(_, value)| !value.trim().is_empty());
        let ours = set.filter(|(name, _)| name.starts_with(PREFIX) || known(name));
        let (variables, unknown): (BTreeMap<_, _>, BTreeMap<_, _>) = ours.partition(|(name, _)| known(name));
        let mut warnings = Vec::new();
        if !unknown.is_empty() {
            let names: Vec<String> = unknown.into_keys().collect();
            warnings.push(format!("{}: unknown, without effect", names.join(", ")));
        }
        Self { options, variables, shown: BTreeMap::new(), refused: BTreeSet::new(), mistakes: Vec::new(), warnings }
    }

    /// Every option with its effective value and the warnings, or all mistakes.
    pub(super) fn finish(self) -> Result<(Effective, Vec<String>), Mistakes> {
        if self.mistakes.is_empty() {
            Ok((self.shown.into_iter().collect(), self.warnings))
        } else {
            Err(Mistakes(self.mistakes))
        }
    }

    /// What the user gave for an option, in the stronger of its two places.
    fn given(&self, key: Key) -> Option<&str> {
        let variable = || self.variables.get(key.row().variable).map(String::as_str);
        self.options.typed(key).or_else(variable).map(str::trim)
    }

    pub(super) fn is_given(&self, key: Key) -> bool {
        self.given(key).is_some()
    }

    /// The name the user gave an option by; its flag if they did not.
    pub(super) fn named(&self, key: Key) -> String {
        let by_variable = self.options.typed(key).is_none() && self.variables.contains_key(key.row().variable);
        if by_variable { key.row().variable.to_owned() } else { key.row().name() }
    }

    /// Notes a mistake in what several options say together, unless one of them is a mistake by itself.
    pub(super) fn require(&mut self, holds: bool, keys: &[Key], otherwise: &str) {
        if holds || keys.iter().any(|key| self.refused.contains(key)) {
            return;
        }
        let names: Vec<String> = keys.iter().map(|key| self.named(*key)).collect();
        let values: Vec<&str> = keys.iter().map(|key| self.shown.get(key).map_or("none", String::as_str)).collect();
        let what = format!("{} {otherwise}", values.join(" and "));
        self.mistakes.push(Mistake { name: names.join(" and "), what });
    }

    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Sets the effective value that is shown, where it is not simply the given one.
    pub(super) fn show(&mut self, key: Key, value: String) {
        self.shown.insert(key, value);
    }

    /// Reads one option; nothing if it is unset or refused. A refused one falls back to its default, so that what
    /// depends on it is not a second mistake.
    fn read<T>(
        &mut self,
        key: Key,
        parse: impl Fn(&str) -> Result<T, Refusal>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        let row = key.row();
        let parsed = self.given(key).map(|text| parse(text).map_err(|refusal| (text.to_owned(), refusal)));
        let value = match parsed {
            Some(Ok(value)) => Some(value),
            Some(Err((text, refusal))) => {
                self.refuse(key, &text, &refusal);
                parse(row.default).ok()
            }
            None if row.default.is_empty() => None,
            None => parse(row.default).map_err(|refusal| self.refuse(key, row.default, &refusal)).ok(),
        };
        self.show(key, value.as_ref().map_or_else(|| String::from("none"), show));
        value
    }

    fn refuse(&mut self, key: Key, text: &str, refusal: &Refusal) {
        let what = if key.row().is_secret() {
            refusal.to_string()
        } else if text.contains("://") && self.named(key) == key.row().variable {
            // A Kubernetes service of our name puts such variables into every container of its namespace.
            format!("{} {refusal} (set by a Kubernetes service link? enableServiceLinks: false)", quoted(text))
        } else {
            format!("{} {refusal}", quoted(text))
        };
        self.refused.insert(key);
        self.mistakes.push(Mistake { name: self.named(key), what });
    }

    pub(super) fn time(&mut self, key: Key) -> Duration {
        self.read(key, values::positive_duration, values::show_duration).unwrap_or_default()
    }

    pub(super) fn time_or_zero(&mut self, key: Key) -> Duration {
        self.read(key, values::duration, values::show_duration).unwrap_or_default()
    }

    /// A number; zero if unset.
    pub(super) fn number<T>(&mut self, key: Key, range: RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + Display + Default + Copy,
    {
        self.read(key, |text| values::number(text, *range.start(), *range.end()), T::to_string).unwrap_or_default()
    }

    pub(super) fn size(&mut self, key: Key) -> usize {
        self.read(key, values::size, values::show_size).unwrap_or_default()
    }

    pub(super) fn switch(&mut self, key: Key) -> bool {
        self.read(key, values::switch, bool::to_string).unwrap_or_default()
    }

    pub(super) fn host(&mut self, key: Key) -> Option<Host> {
        self.read(key, hosts::host, Host::to_string)
    }

    pub(super) fn address(&mut self, key: Key) -> Option<(Host, u16)> {
        self.read(key, hosts::address, hosts::show_address)
    }

    pub(super) fn origins(&mut self, key: Key) -> Origins {
        self.read(key, hosts::origins, Origins::to_string).unwrap_or_default()
    }

    pub(super) fn networks(&mut self, key: Key) -> Vec<IpNet> {
        self.read(key, values::networks, |networks| values::show_networks(networks)).unwrap_or_default()
    }

    pub(super) fn secret(&mut self, key: Key) -> Option<Secret> {
        self.read(key, values::secret, |_| MASKED.to_owned())
    }

    pub(super) fn choice<T: Copy + Default>(&mut self, key: Key, choices: &[(&str, T)]) -> T {
        self.optional_choice(key, choices).unwrap_or_default()
    }

    /// A choice that may be unset.
    pub(super) fn optional_choice<T: Copy>(&mut self, key: Key, choices: &[(&str, T)]) -> Option<T> {
        let parse = |text: &str| Ok((values::choice(text, choices)?, text.to_ascii_lowercase()));
        self.read(key, parse, |(_, name)| name.clone()).map(|(value, _)| value)
    }
}

/// A refused value as a message repeats it: quoted, on one line, not endless.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(QUOTED_MAX).collect();
    let rest = if short.len() < text.len() { "..." } else { "" };
    format!("{short:?}{rest}")
}
