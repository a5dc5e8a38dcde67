//! Another program's options as its page in `docs/` shows them.

use std::fmt::Write;

use super::row::{Program, Row, TITLES};

impl Program {
    /// The table of its options, in Markdown, by what becomes of them.
    #[must_use]
    pub fn reference_table(&self) -> String {
        let mut text = String::from("| Option | Default there | Here | More |\n|---|---|---|---|\n");
        for (place, title) in TITLES.iter().enumerate() {
            for row in self.rows.iter().filter(|row| row.verdict.title() == place) {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "| {} | {} | {} | {} |", spellings(row), default(row), title, row.meaning);
            }
        }
        text
    }
}

fn spellings(row: &Row) -> String {
    row.flags.iter().map(|flag| format!("`--{flag}`")).collect::<Vec<_>>().join(", ")
}

fn default(row: &Row) -> String {
    if row.default.is_empty() { String::from("none") } else { format!("`{}`", row.default) }
}
