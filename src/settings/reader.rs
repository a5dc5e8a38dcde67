//! The layers an option is looked up in, and the mistakes found on the way.

use std::collections::BTreeMap;

use super::conduct::Conduct;
use super::options::{Key, ServeOptions, TABLE};
use super::presumed::Presumed;
use super::values::{Parsed, Refusal};

/// The prefix of the variables that are ours to know.
const PREFIX: &str = "PROXY_";

/// Longest part of a refused value that a message repeats, in characters.
const QUOTED_MAX: usize = 80;

/// Everything wrong with what the user gave; displays as one line each, in the table's order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mistakes(String);

/// Looks options up and remembers what it found.
pub(super) struct Reader<'a> {
    options: &'a ServeOptions,
    variables: BTreeMap<String, String>,
    /// What another program's options come to, each with the name it was given by; as strong as flags, but weaker than ours.
    lent: BTreeMap<Key, (String, String)>,
    /// Another program's own variables, which are not read as ours.
    claimed: BTreeMap<String, String>,
    /// What those come to, with their names; weaker than our variables.
    lent_weakly: BTreeMap<Key, (String, String)>,
    /// Another program's defaults, in place of those of the table.
    defaults: BTreeMap<Key, String>,
    /// The other program's ways.
    conduct: Conduct,
    /// What was said there of engines.
    presumed: Presumed,
    shown: BTreeMap<Key, String>,
    /// What is wrong with an option, or with what several say together.
    mistakes: BTreeMap<Vec<Key>, String>,
    /// What is wrong with another program's options, each line whole.
    foreign: Vec<String>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    /// `claims` says which variables are another program's.
    pub(super) fn new(
        options: &'a ServeOptions,
        environment: impl Iterator<Item = (String, String)>,
        claims: impl Fn(&str) -> bool,
    ) -> Self {
        let known = |name: &str| TABLE.iter().any(|row| row.variable == name);
        let set = environment.filter(|(_, value)| !value.trim().is_empty());
        let (claimed, set): (BTreeMap<_, _>, BTreeMap<_, _>) = set.partition(|(name, _)| claims(name));
        let (variables, others): (BTreeMap<_, _>, BTreeMap<_, _>) = set.into_iter().partition(|(name, _)| known(name));
        let unknown: Vec<String> = others.into_keys().filter(|name| name.starts_with(PREFIX)).collect();
        let mut reader = Self {
            options,
            variables,
            lent: BTreeMap::new(),
            claimed,
            lent_weakly: BTreeMap::new(),
            defaults: BTreeMap::new(),
            conduct: Conduct::NATIVE,
            presumed: Presumed::default(),
            shown: BTreeMap::new(),
            mistakes: BTreeMap::new(),
            foreign: Vec::new(),
            warnings: Vec::new(),
        };
        if !unknown.is_empty() {
            reader.warn(format!("{}: unknown, without effect", unknown.join(", ")));
        }
        reader
    }

    /// Every option with its effective value and the warnings, or all mistakes.
    pub(super) fn finish(self) -> Result<(BTreeMap<Key, String>, Vec<String>), Mistakes> {
        if self.mistakes.is_empty() && self.foreign.is_empty() {
            return Ok((self.shown, self.warnings));
        }
        let names = |keys: &[Key]| keys.iter().map(|key| self.named(*key)).collect::<Vec<_>>().join(" and ");
        let own = self.mistakes.iter().map(|(keys, what)| format!("{}: {what}", names(keys)));
        let mut lines: Vec<String> = Vec::new();
        for line in own.chain(self.foreign.iter().cloned()).map(|line| format!("moriio-proxy: {line}")) {
            // One option of another program may go to several of ours.
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        Err(Mistakes(lines.join("\n")))
    }

    /// Gives an option the value that another program's option comes to; of several the last counts.
    pub(super) fn lend(&mut self, key: Key, text: String, name: &str) {
        self.lent.insert(key, (text, name.to_owned()));
    }

    /// The same for one of its variables.
    pub(super) fn lend_weakly(&mut self, key: Key, text: String, name: &str) {
        self.lent_weakly.insert(key, (text, name.to_owned()));
    }

    /// What is in one of its variables.
    pub(super) fn claimed(&self, name: &str) -> Option<String> {
        self.claimed.get(name).map(|text| text.trim().to_owned())
    }

    /// Gives an option another default.
    pub(super) fn default_to(&mut self, key: Key, text: String) {
        self.defaults.insert(key, text);
    }

    pub(super) fn behave(&mut self, conduct: Conduct) {
        self.conduct = conduct;
    }

    pub(super) fn conduct(&self) -> Conduct {
        self.conduct
    }

    /// What another program's options say of engines.
    pub(super) fn presumed(&mut self) -> &mut Presumed {
        &mut self.presumed
    }

    /// The options that have another default than ours and were not given, with their effective values.
    pub(super) fn changed_defaults(&self) -> String {
        let changed =
            |key: &&Key| !self.is_given(**key) && self.defaults.get(*key).is_some_and(|text| text != key.row().default);
        let value = |key: &Key| self.shown.get(key).map_or("none", String::as_str);
        let line = |key: &Key| format!("{}={}", key.row().name().trim_start_matches('-'), value(key));
        self.defaults.keys().filter(changed).map(line).collect::<Vec<_>>().join(" ")
    }

    /// Notes a mistake in an option of another program.
    pub(super) fn refuse(&mut self, name: &str, what: &str) {
        self.foreign.push(format!("{name}: {what}"));
    }

    fn default(&self, key: Key) -> &str {
        self.defaults.get(&key).map_or(key.row().default, String::as_str)
    }

    /// What the user gave for an option, in the stronger of its two places.
    fn given(&self, key: Key) -> Option<&str> {
        let variable = || self.variables.get(key.row().variable).map(String::as_str);
        let lent = || self.lent.get(&key).map(|(text, _)| text.as_str());
        let weakly = || self.lent_weakly.get(&key).map(|(text, _)| text.as_str());
        self.options.typed(key).or_else(lent).or_else(variable).or_else(weakly).map(str::trim)
    }

    pub(super) fn is_given(&self, key: Key) -> bool {
        self.given(key).is_some()
    }

    /// Whether it was given by a flag, ours or another program's.
    pub(super) fn by_flag(&self, key: Key) -> bool {
        self.options.typed(key).is_some() || self.lent.contains_key(&key)
    }

    /// The name the user gave an option by; its flag if they did not.
    pub(super) fn named(&self, key: Key) -> String {
        let typed = self.options.typed(key).is_some();
        if let Some((_, name)) = self.lent.get(&key).filter(|_| !typed) {
            return name.clone();
        }
        if !typed && self.variables.contains_key(key.row().variable) {
            return key.row().variable.to_owned();
        }
        match self.lent_weakly.get(&key) {
            Some((_, name)) if !typed => name.clone(),
            _ => key.row().name(),
        }
    }

    /// Notes a mistake in what several options say together, unless one of them is a mistake by itself.
    pub(super) fn require(&mut self, holds: bool, keys: &[Key], otherwise: &str) {
        if !holds && !keys.iter().any(|key| self.mistakes.contains_key(&vec![*key])) {
            let values: Vec<&str> = keys.iter().map(|key| self.shown.get(key).map_or("none", String::as_str)).collect();
            self.mistakes.insert(keys.to_vec(), format!("{} {otherwise}", values.join(" and ")));
        }
    }

    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Sets the effective value that is shown, where it is not simply the given one.
    pub(super) fn show(&mut self, key: Key, value: String) {
        self.shown.insert(key, value);
    }

    /// Reads an option; where it is unset and has no default, it is its type's.
    pub(super) fn get<T: Default>(&mut self, key: Key, parse: impl Fn(&str) -> Parsed<T>) -> T {
        self.find(key, parse).unwrap_or_default()
    }

    /// Reads an option that may be unset. A refused one falls back to its default, so that what depends on it is not a
    /// second mistake.
    pub(super) fn find<T>(&mut self, key: Key, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        let parsed = self.given(key).map(|text| parse(text).map_err(|refusal| self.refused(key, text, &refusal)));
        let parsed = parsed.and_then(|parsed| parsed.map_err(|what| self.mistakes.insert(vec![key], what)).ok());
        let (value, shown) = parsed.or_else(|| parse(self.default(key)).ok()).unzip();
        self.show(key, shown.unwrap_or_else(|| String::from("none")));
        value
    }

    /// What is wrong with a value: quoted unless it is a secret.
    fn refused(&self, key: Key, text: &str, refusal: &Refusal) -> String {
        if key.row().is_secret() {
            return refusal.to_string();
        }
        // A Kubernetes service of our name puts such variables into every container of its namespace.
        let link = text.contains("://") && self.named(key) == key.row().variable;
        let hint = if link { " (set by a Kubernetes service link? enableServiceLinks: false)" } else { "" };
        format!("{} {refusal}{hint}", quoted(text))
    }
}

/// A refused value as messages repeat it: on one line, not endless.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(QUOTED_MAX).collect();
    let rest = if short.len() < text.len() { "..." } else { "" };
    format!("{short:?}{rest}")
}
