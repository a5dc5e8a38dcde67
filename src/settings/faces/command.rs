//! Another program's command line, made from its table.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::row::{Program, Row, TITLES, Takes};
use crate::settings::options::{self, ServeOptions, TABLE};

/// What another program's command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Serve clients and engines.
    Serve,
    /// Print what the options come to.
    Check,
}

impl Asked {
    /// The subcommands that it may be said by.
    pub(super) const NAMES: [&'static str; 2] = ["serve", "check"];
}

/// The options of `serve` in whatever face they were typed, none of them read yet.
#[derive(Clone)]
pub struct CommandLine {
    /// Our own.
    pub(crate) own: ServeOptions,
    pub(super) program: Option<&'static Program>,
    /// The other program's, by their first spelling: the values of each use.
    pub(super) foreign: BTreeMap<&'static str, Vec<Vec<String>>>,
}

impl From<ServeOptions> for CommandLine {
    fn from(own: ServeOptions) -> Self {
        CommandLine { own, program: None, foreign: BTreeMap::new() }
    }
}

// By hand: the other program's options have secrets among them.
impl fmt::Debug for CommandLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CommandLine").field("own", &self.own).field("foreign", &self.foreign.keys()).finish()
    }
}

impl CommandLine {
    /// Whether a variable is the program's own, whatever it would mean to us.
    pub(crate) fn claims(&self, name: &str) -> bool {
        self.program.is_some_and(|program| program.rows.iter().any(|row| row.variable == name))
    }

    /// The program whose options they are, if not ours.
    #[must_use]
    pub fn program(&self) -> Option<&'static Program> {
        self.program
    }
}

impl Row {
    /// The first spelling, by which the option is kept.
    pub(super) fn flag(&self) -> &'static str {
        self.flags.first().copied().unwrap_or_default()
    }

    fn argument(&self) -> Arg {
        let bracket = |what, text: &str| if text.is_empty() { String::new() } else { format!("[{what}: {text}]") };
        let (default, variable) = (bracket("default", self.default), bracket("env", self.variable));
        let parts = [self.meaning.replace('`', ""), default, variable];
        let help = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        let argument = Arg::new(self.flag()).long(self.flag()).visible_aliases(self.flags.get(1..).unwrap_or_default());
        let argument = argument.help(help).help_heading(TITLES[self.verdict.title()]);
        let (name, values) = match self.takes {
            Takes::Nothing => return argument.action(ArgAction::SetTrue),
            Takes::List => ("VALUE", 0..=usize::MAX),
            Takes::UrlAndPort => ("URL", 1..=2),
            Takes::Whole | Takes::Within(..) | Takes::Number => ("NUMBER", 1..=1),
            Takes::Url => ("URL", 1..=1),
            Takes::Text | Takes::Secret | Takes::OneOf(_) => ("VALUE", 1..=1),
        };
        argument.value_name(name).num_args(values).action(ArgAction::Append).allow_negative_numbers(true)
    }

    fn typed(&self, matches: &ArgMatches) -> Option<Vec<Vec<String>>> {
        if matches!(self.takes, Takes::Nothing) {
            return matches.get_flag(self.flag()).then(|| vec![vec![String::from("true")]]);
        }
        let uses = matches.get_occurrences::<String>(self.flag())?;
        Some(uses.map(|values| values.cloned().collect()).collect())
    }
}

impl Program {
    /// The options of ours that can be given beside the other program's: those with a name of their own.
    fn beside(&self) -> impl Iterator<Item = &'static options::Row> {
        let taken: Vec<&str> = self.rows.iter().flat_map(|row| row.flags).copied().collect();
        TABLE.iter().filter(move |row| !row.flag.is_empty() && !taken.contains(&row.flag))
    }

    fn flagged(&self) -> impl Iterator<Item = &'static Row> {
        self.rows.iter().filter(|row| !row.flags.is_empty())
    }

    fn arguments(&self) -> Vec<Arg> {
        let mut rows: Vec<&Row> = self.flagged().collect();
        rows.sort_by_key(|row| row.verdict.title());
        rows.into_iter().map(Row::argument).chain(self.beside().map(options::Row::argument)).collect()
    }

    fn command(&self) -> Command {
        let command = Command::new("moriio-proxy").bin_name(self.name).version(env!("CARGO_PKG_VERSION"));
        let command = command.about(self.about).args_conflicts_with_subcommands(true).args_override_self(true);
        let subcommand = |name, about: &'static str| Command::new(name).about(about).args(self.arguments());
        let [serve, check] = Asked::NAMES;
        command
            .args(self.arguments())
            .subcommand(subcommand(serve, "Serve clients and engines (the default)"))
            .subcommand(subcommand(check, "Validate the configuration, print what it comes to, and exit"))
    }

    /// Reads the whole command line, the program's name the first of it.
    ///
    /// # Errors
    /// Help and version, or what is no command line of this program.
    pub fn parse(
        &'static self,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<(Asked, CommandLine), clap::Error> {
        let matches = self.command().try_get_matches_from(arguments)?;
        let (asked, matches) = match matches.subcommand() {
            Some((name, matches)) if name == Asked::NAMES[1] => (Asked::Check, matches),
            Some((_, matches)) => (Asked::Serve, matches),
            None => (Asked::Serve, &matches),
        };
        let mut own = ServeOptions::default();
        own.take(matches, self.beside());
        let foreign = self.flagged().filter_map(|row| Some((row.flag(), row.typed(matches)?))).collect();
        Ok((asked, CommandLine { own, program: Some(self), foreign }))
    }
}
