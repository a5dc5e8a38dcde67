//! What a row of another program's options can say, and how its values are read.

use crate::engine::Role;
use crate::settings::conduct::Conduct;
use crate::settings::options::Key;
use crate::settings::presumed::{Ranks, address};
use crate::settings::values::{Refusal, choice, number};

/// Another program that this one stands in for.
#[derive(Debug)]
pub struct Program {
    /// The name that it is started by.
    pub name: &'static str,
    /// What `--help` begins with.
    pub(super) about: &'static str,
    /// Every option of it.
    pub(super) rows: &'static [Row],
    /// What it does by itself, where we have an option for that and it has none.
    pub(super) habits: &'static [(Key, &'static str)],
    /// What it does by itself, where we have none.
    pub(super) conduct: Conduct,
}

/// One option of another program.
#[derive(Debug)]
pub struct Row {
    /// Its spellings without dashes; the first names it. None where there is only a variable.
    pub(super) flags: &'static [&'static str],
    /// Its environment variable, which is weaker than any flag and than variables of ours; empty when it has none.
    pub(super) variable: &'static str,
    /// The values it takes.
    pub(super) takes: Takes,
    /// Its default there; empty when it has none.
    pub(super) default: &'static str,
    /// What becomes of it here.
    pub(super) verdict: Verdict,
    /// More of that, for `--help` and the page.
    pub(super) meaning: &'static str,
}

/// The values of an option. Repeated, the last counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Takes {
    /// None: it is a flag. In a variable it is a switch.
    Nothing,
    Text,
    /// Text that is never printed.
    Secret,
    /// A whole number that goes nowhere.
    Whole,
    /// A whole number that we can serve, from the first to the second.
    Within(u64, u64),
    /// A number that may have a fraction.
    Number,
    OneOf(&'static [&'static str]),
    /// Any number of values.
    List,
    Url,
    /// A URL, and a port or `none` after it.
    UrlAndPort,
}

/// What switches a flag on by its variable.
const SWITCHED_ON: [&str; 5] = ["1", "true", "yes", "on", "debug"];

/// What becomes of an option.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// The value goes to this option as it stands, its default too.
    Honoured(Key),
    /// The same where it is given; its default counts for nothing.
    HonouredWhereGiven(Key),
    /// With this value it goes there.
    HonouredIf(&'static str, Key, Otherwise),
    /// With one of these values it goes there by our name for it.
    HonouredAs(&'static [(&'static str, &'static str)], Key, Otherwise),
    /// It goes to these options, changed, its default too; what is said of it, if anything.
    Mapped(&'static [(Key, Change)], Option<&'static str>),
    /// Engines say it themselves when they register, and what they say is set against this. For that one of these options must be
    /// there, if there are any.
    Registration(Says, &'static [Key]),
    Silent,
    /// With this value nothing is said.
    SilentIf(&'static str, Otherwise),
    /// Has an effect only beside one of these options, which are refused: then it is too.
    Inert(&'static [&'static str]),
    Noted(&'static str),
    Refused,
}

/// What an option says of engines.
#[derive(Clone, Copy, Debug)]
pub(super) enum Says {
    Ranks(Ranks),
    Engine(Role),
}

/// What becomes of the other values of an option.
#[derive(Clone, Copy, Debug)]
pub(super) enum Otherwise {
    Note(&'static str),
    Refuse,
}

/// How a value becomes one of ours.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Same,
    Seconds,
    /// Half of so many seconds where they are fewer than ten; nothing otherwise.
    HalfOfFew,
    /// One less, at most the number here.
    OneLess(u64),
    /// The first name becomes the second.
    Renamed(&'static str, &'static str),
    /// This, whatever was given.
    Always(&'static str),
}

impl Row {
    /// The name in messages.
    pub(super) fn name(&self) -> String {
        self.flags.first().map_or_else(|| self.variable.to_owned(), |flag| format!("--{flag}"))
    }

    /// What its variable gives, as if it had been typed; a switch that is off gives nothing.
    pub(super) fn in_variable(&self, text: String) -> Option<Vec<String>> {
        let is_on = || SWITCHED_ON.iter().any(|word| word.eq_ignore_ascii_case(&text));
        (!matches!(self.takes, Takes::Nothing) || is_on()).then(|| vec![text])
    }

    /// What is wrong with one use of the option, and in which value.
    pub(super) fn check<'a>(&self, values: &'a [String]) -> Result<(), (&'a str, Refusal)> {
        let (first, second) = (values.first().map_or("", String::as_str), values.get(1));
        let refusal = match self.takes {
            Takes::Nothing | Takes::Text | Takes::Secret | Takes::List => None,
            Takes::Whole => first.trim().parse::<i64>().err().map(|_| Refusal::Whole),
            Takes::Number => first.trim().parse::<f64>().err().map(|_| Refusal::Decimal),
            Takes::Within(low, high) => number(low, high)(first).err(),
            Takes::OneOf(names) => {
                let choices: Vec<(&'static str, &'static str)> = names.iter().map(|name| (*name, *name)).collect();
                choice(&choices)(first).err()
            }
            Takes::Url | Takes::UrlAndPort => {
                if address(first).is_none() {
                    return Err((first, Refusal::Url));
                }
                let wrong = |port: &&String| *port != "none" && port.parse::<u16>().is_err();
                return second.filter(wrong).map_or(Ok(()), |port| Err((port, Refusal::PortOrNone)));
            }
        };
        refusal.map_or(Ok(()), |refusal| Err((first, refusal)))
    }
}

impl Change {
    /// What a checked value becomes, if it becomes anything.
    pub(super) fn apply(self, text: &str) -> Option<String> {
        let whole = || text.parse::<u64>().ok();
        match self {
            Change::Same => Some(text.to_owned()),
            Change::Seconds => Some(format!("{text}s")),
            Change::HalfOfFew => whole().filter(|seconds| *seconds < 10).map(|seconds| format!("{}ms", seconds * 500)),
            Change::OneLess(most) => whole().map(|number| number.saturating_sub(1).min(most).to_string()),
            Change::Renamed(from, to) => {
                Some(if text.eq_ignore_ascii_case(from) { to.to_owned() } else { text.to_owned() })
            }
            Change::Always(value) => Some(value.to_owned()),
        }
    }
}

/// The headings of `--help` and the page, in their order.
pub(super) const TITLES: [&str; 6] = [
    "Honoured",
    "Mapped to options of moriio-proxy",
    "Taken, but what engines register decides",
    "Taken in silence, without effect",
    "Taken with a note, without effect",
    "Refused",
];

impl Verdict {
    /// Its place in [`TITLES`].
    pub(super) fn title(self) -> usize {
        match self {
            Verdict::Honoured(_)
            | Verdict::HonouredWhereGiven(_)
            | Verdict::HonouredIf(..)
            | Verdict::HonouredAs(..) => 0,
            Verdict::Mapped(..) => 1,
            Verdict::Registration(..) => 2,
            Verdict::Silent | Verdict::Inert(_) | Verdict::SilentIf(_, Otherwise::Note(_)) => 3,
            Verdict::Noted(_) => 4,
            Verdict::Refused | Verdict::SilentIf(_, Otherwise::Refuse) => 5,
        }
    }
}
