//! What the demonstration is printed on. A closed stdout loses lines and harms nobody.

use std::io::{IsTerminal, Write, stdout};

use serde_json::{Map, Value};

/// Columns that a line of transfer params may take.
const WIDTH: usize = 104;
/// Characters of a text that are shown before it is shortened.
const TEXT_SHOWN: usize = 28;
/// Elements of a list that are shown before it is shortened.
const ELEMENTS_SHOWN: usize = 4;

/// Stdout, in colour only where somebody looks at a terminal and has not asked for none.
pub(super) struct Paper {
    colour: bool,
}

impl Paper {
    pub(super) fn new() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let plain = set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb");
        Paper { colour: stdout().is_terminal() && !plain }
    }

    pub(super) fn line(&self, text: &str) {
        let _ = writeln!(stdout(), "{text}");
    }

    /// A part of a line, seen at once.
    pub(super) fn bit(&self, text: &str) {
        let mut out = stdout();
        let _ = write!(out, "{text}");
        let _ = out.flush();
    }

    pub(super) fn title(&self, text: &str) {
        self.line(&format!("\n{}", self.bold(&format!("== {text}"))));
    }

    /// A labelled line; labels stand in one column.
    pub(super) fn fact(&self, label: &str, text: &str) {
        self.line(&format!("  {} {text}", self.dim(&format!("{label:<9}"))));
    }

    /// The result of a check; says how many failed, which is none or one.
    pub(super) fn check(&self, what: &str, problem: Option<String>) -> usize {
        match problem {
            None => {
                self.fact("checked", &format!("{} {what}", self.paint("32", "ok")));
                0
            }
            Some(problem) => {
                self.fact("checked", &format!("{} {what}: {problem}", self.paint("1;31", "WRONG")));
                1
            }
        }
    }

    /// An object's keys and values, as many on a line as fit.
    pub(super) fn object(&self, object: &Map<String, Value>) {
        let mut line = String::new();
        for (key, value) in object {
            let pair = format!("{key}: {}", brief(value));
            if !line.is_empty() && line.chars().count() + pair.chars().count() > WIDTH {
                self.line(&format!("      {line}"));
                line.clear();
            }
            line.push_str(if line.is_empty() { "" } else { ",  " });
            line.push_str(&pair);
        }
        self.line(&format!("      {line}"));
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    /// The client's text.
    pub(super) fn voice(&self, text: &str) -> String {
        self.paint("36", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Both ends of a long text.
pub(super) fn shortened(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= TEXT_SHOWN {
        return text.to_owned();
    }
    let begin: String = characters.iter().take(TEXT_SHOWN - 9).collect();
    let end: String = characters.iter().skip(characters.len() - 6).collect();
    format!("{begin}...{end}")
}

/// A value on one line, without most of what is long.
fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", shortened(text)),
        Value::Array(items) => {
            let mut shown: Vec<String> = items.iter().take(ELEMENTS_SHOWN).map(brief).collect();
            if let more @ 1.. = items.len().saturating_sub(ELEMENTS_SHOWN) {
                shown.push(format!("{more} more"));
            }
            format!("[{}]", shown.join(", "))
        }
        other => shortened(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{brief, shortened};

    #[test]
    fn long_things_are_shortened_and_short_ones_are_not() {
        assert_eq!(shortened("tx-1"), "tx-1");
        assert_eq!(shortened("tx-0123456789abcdef0123456789abcdef"), "tx-0123456789abcdef...abcdef");
        assert_eq!(brief(&json!([1, 2, 3])), "[1, 2, 3]");
        assert_eq!(brief(&json!([1, 2, 3, 4, 5, 6])), "[1, 2, 3, 4, 2 more]");
        assert_eq!(brief(&json!(null)), "null");
        assert_eq!(brief(&json!("é".repeat(40))).chars().count(), 30);
    }
}
