//! Another program's options as its page in `docs/` shows them.

use std::fmt::Write;

use super::row::{Program, Row, TITLES};

impl Program {
    /// The table of its options, in Markdown, by what becomes of them; with their variables where it has any.
    #[must_use]
    pub fn reference_table(&self) -> String {
        let variables = self.rows.iter().any(|row| !row.variable.is_empty());
        let (heading, rule) = if variables { ("| Variable ", "|---") } else { ("", "") };
        let mut text = format!("| Option {heading}| Default there | Here | More |\n|---{rule}|---|---|---|\n");
        for (place, title) in TITLES.iter().enumerate() {
            for row in self.rows.iter().filter(|row| row.verdict.title() == place) {
                let variable = if variables { format!("| {} ", code(row.variable)) } else { String::new() };
                let (flags, default) = (spellings(row), code(row.default));
                // Writing to a String cannot fail.
                let _ = writeln!(text, "| {flags} {variable}| {default} | {title} | {} |", row.meaning);
            }
        }
        text
    }
}

fn spellings(row: &Row) -> String {
    if row.flags.is_empty() {
        return code("");
    }
    row.flags.iter().map(|flag| format!("`--{flag}`")).collect::<Vec<_>>().join(", ")
}

fn code(text: &str) -> String {
    if text.is_empty() { String::from("none") } else { format!("`{text}`") }
}
