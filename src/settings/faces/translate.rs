//! What another program's options come to here.

use super::command::CommandLine;
use super::row::{Otherwise, Program, Row, Says, Takes, Verdict};
use crate::settings::reader::{Reader, quoted};

/// What there is to say of options, in one line for each reason.
#[derive(Default)]
struct Notes(Vec<(&'static str, Vec<String>)>);

impl Notes {
    fn add(&mut self, said: &'static str, row: &Row) {
        match self.0.iter_mut().find(|(other, _)| *other == said) {
            Some((_, names)) => names.push(row.name()),
            None => self.0.push((said, vec![row.name()])),
        }
    }
}

impl CommandLine {
    /// Tells a reader what the other program's options and defaults come to.
    pub(super) fn tell(&self, reader: &mut Reader<'_>) {
        let Some(program) = self.program else { return };
        set_defaults(program, reader);
        let mut notes = Notes::default();
        let mut waiting = Vec::new();
        for row in program.rows {
            let Some(uses) = self.foreign.get(row.flag()) else { continue };
            if let Some((value, refusal)) = uses.iter().find_map(|values| row.check(values).err()) {
                reader.refuse(&row.name(), &format!("{} {refusal}", quoted(value)));
                continue;
            }
            let text = uses.last().map(|values| values.join(",")).unwrap_or_default();
            match row.verdict {
                Verdict::Honoured(key) | Verdict::HonouredWhereGiven(key) => reader.lend(key, text, &row.name()),
                Verdict::HonouredIf(wanted, key, _) if wanted.eq_ignore_ascii_case(&text) => {
                    reader.lend(key, text, &row.name());
                }
                Verdict::HonouredIf(wanted, _, Otherwise::Refuse) => {
                    reader.refuse(&row.name(), &format!("{} is not available, only {wanted} is", quoted(&text)));
                }
                Verdict::HonouredIf(_, _, Otherwise::Note(said)) => notes.add(said, row),
                Verdict::Mapped(keys, said) => {
                    for (key, change) in keys {
                        change.apply(&text).into_iter().for_each(|text| reader.lend(*key, text, &row.name()));
                    }
                    said.into_iter().for_each(|said| notes.add(said, row));
                }
                Verdict::Registration(says, _) => {
                    presume(says, &row.name(), uses, reader);
                    waiting.push(row);
                }
                Verdict::Noted(said) => notes.add(said, row),
                Verdict::SilentIf(wanted, otherwise) if wanted != text => match otherwise {
                    Otherwise::Note(said) => notes.add(said, row),
                    Otherwise::Refuse => reader.refuse(&row.name(), &refused(row)),
                },
                Verdict::Inert(masters) if !masters.iter().any(|master| self.foreign.contains_key(master)) => {}
                Verdict::Inert(_) | Verdict::Refused => reader.refuse(&row.name(), &refused(row)),
                Verdict::Silent | Verdict::SilentIf(..) => {}
            }
        }
        // Only when all are read is it known whether engines can register.
        let lacking = |row: &&Row| match row.verdict {
            Verdict::Registration(_, needed) => !needed.is_empty() && !needed.iter().any(|key| reader.is_given(*key)),
            _ => false,
        };
        for row in waiting.iter().filter(|row| lacking(row)).map(|row| row.name()).collect::<Vec<_>>() {
            reader.refuse(&row, "refused without --vllm-discovery-address: engines register here");
        }
        for (said, names) in notes.0 {
            reader.warn(format!("{}: {said}", names.join(", ")));
        }
    }
}

fn refused(row: &Row) -> String {
    let why = row.meaning.replace('`', "");
    if why.is_empty() { String::from("refused") } else { format!("refused: {why}") }
}

/// Keeps what an option says of engines, to be set against what they register.
fn presume(says: Says, name: &str, uses: &[Vec<String>], reader: &mut Reader<'_>) {
    match says {
        Says::Ranks(ranks) => {
            let number = uses.last().and_then(|values| values.first()?.trim().parse().ok());
            reader.presumed().ranks(name.to_owned(), ranks, number.unwrap_or(0));
        }
        Says::Engine(role) => uses.iter().filter_map(|values| values.first()).for_each(|url| {
            reader.presumed().engine(role, url);
        }),
    }
}

/// The other program's defaults, where we have an option that is the same.
fn set_defaults(program: &Program, reader: &mut Reader<'_>) {
    for row in program.rows.iter().filter(|row| !row.default.is_empty() && !matches!(row.takes, Takes::Secret)) {
        match row.verdict {
            Verdict::Honoured(key) => reader.default_to(key, row.default.to_owned()),
            Verdict::Mapped(keys, _) => keys.iter().for_each(|(key, change)| {
                change.apply(row.default).into_iter().for_each(|text| reader.default_to(*key, text));
            }),
            _ => {}
        }
    }
    reader.behave(program.conduct);
    program.habits.iter().for_each(|(key, text)| reader.default_to(*key, (*text).to_owned()));
}
