//! What another program's options come to here.

use super::command::CommandLine;
use super::row::{Otherwise, Program, Row, Says, Takes, Verdict};
use crate::settings::options::Key;
use crate::settings::reader::{Reader, quoted};

/// What there is to say of options, in one line for each reason.
#[derive(Default)]
struct Notes(Vec<(&'static str, Vec<String>)>);

impl Notes {
    fn add(&mut self, said: &'static str, name: &str) {
        match self.0.iter_mut().find(|(other, _)| *other == said) {
            Some((_, names)) => names.push(name.to_owned()),
            None => self.0.push((said, vec![name.to_owned()])),
        }
    }
}

/// What was given for an option, and how.
struct Given {
    name: String,
    uses: Vec<Vec<String>>,
    by_flag: bool,
}

impl Given {
    /// The value that counts.
    fn text(&self) -> String {
        self.uses.last().map(|values| values.join(",")).unwrap_or_default()
    }

    fn lend(&self, key: Key, text: String, reader: &mut Reader<'_>) {
        match self.by_flag {
            true => reader.lend(key, text, &self.name),
            false => reader.lend_weakly(key, text, &self.name),
        }
    }
}

impl CommandLine {
    fn given(&self, row: &Row, reader: &Reader<'_>) -> Option<Given> {
        if let Some(uses) = self.foreign.get(row.flag()) {
            return Some(Given { name: row.name(), uses: uses.clone(), by_flag: true });
        }
        let values = row.in_variable(reader.claimed(row.variable)?)?;
        Some(Given { name: row.variable.to_owned(), uses: vec![values], by_flag: false })
    }

    /// Tells a reader what the other program's options and defaults come to.
    pub(super) fn tell(&self, reader: &mut Reader<'_>) {
        let Some(program) = self.program else { return };
        set_defaults(program, reader);
        let mut notes = Notes::default();
        let mut waiting = Vec::new();
        for row in program.rows {
            let Some(given) = self.given(row, reader) else { continue };
            if let Some((value, refusal)) = given.uses.iter().find_map(|values| row.check(values).err()) {
                reader.refuse(&given.name, &format!("{} {refusal}", quoted(value)));
                continue;
            }
            let (name, text) = (given.name.as_str(), given.text());
            match row.verdict {
                Verdict::Honoured(key) | Verdict::HonouredWhereGiven(key) => given.lend(key, text, reader),
                Verdict::HonouredIf(wanted, key, _) if wanted.eq_ignore_ascii_case(&text) => {
                    given.lend(key, text, reader);
                }
                Verdict::HonouredIf(wanted, _, Otherwise::Refuse) => {
                    reader.refuse(name, &format!("{} is not available, only {wanted} is", quoted(&text)));
                }
                Verdict::HonouredIf(_, _, Otherwise::Note(said)) => notes.add(said, name),
                Verdict::HonouredAs(names, key, otherwise) => {
                    match names.iter().find(|(theirs, _)| theirs.eq_ignore_ascii_case(&text)) {
                        Some((_, ours)) => given.lend(key, (*ours).to_owned(), reader),
                        None => match otherwise {
                            Otherwise::Note(said) => notes.add(said, name),
                            Otherwise::Refuse => reader.refuse(name, &format!("{} is not available", quoted(&text))),
                        },
                    }
                }
                Verdict::Mapped(keys, said) => {
                    for (key, change) in keys {
                        change.apply(&text).into_iter().for_each(|text| given.lend(*key, text, reader));
                    }
                    said.into_iter().for_each(|said| notes.add(said, name));
                }
                Verdict::Registration(says, _) => {
                    presume(says, &given, reader);
                    waiting.push(row);
                }
                Verdict::Noted(said) => notes.add(said, name),
                Verdict::SilentIf(wanted, otherwise) if wanted != text => match otherwise {
                    Otherwise::Note(said) => notes.add(said, name),
                    Otherwise::Refuse => reader.refuse(name, &refused(row)),
                },
                Verdict::Inert(masters) if !masters.iter().any(|master| self.foreign.contains_key(master)) => {}
                Verdict::Inert(_) | Verdict::Refused => reader.refuse(name, &refused(row)),
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
fn presume(says: Says, given: &Given, reader: &mut Reader<'_>) {
    match says {
        Says::Ranks(ranks) => {
            let number = given.uses.last().and_then(|values| values.first()?.trim().parse().ok());
            reader.presumed().ranks(given.name.clone(), ranks, number.unwrap_or(0));
        }
        Says::Engine(role) => given.uses.iter().filter_map(|values| values.first()).for_each(|url| {
            reader.presumed().engine(role, url);
        }),
    }
}

/// The other program's defaults, where we have an option that is the same.
fn set_defaults(program: &Program, reader: &mut Reader<'_>) {
    for row in program.rows.iter().filter(|row| !row.default.is_empty() && !matches!(row.takes, Takes::Secret)) {
        match row.verdict {
            Verdict::Honoured(key) | Verdict::HonouredAs(_, key, _) => reader.default_to(key, row.default.to_owned()),
            Verdict::Mapped(keys, _) => keys.iter().for_each(|(key, change)| {
                change.apply(row.default).into_iter().for_each(|text| reader.default_to(*key, text));
            }),
            _ => {}
        }
    }
    reader.behave(program.conduct);
    program.habits.iter().for_each(|(key, text)| reader.default_to(*key, (*text).to_owned()));
}
