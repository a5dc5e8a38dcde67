//! Files of at most 400 lines, functions of at most 70.

use super::{read, sources};

const LONGEST_FILE: usize = 400;
const LONGEST_FUNCTION: usize = 70;

fn all_sources() -> impl Iterator<Item = String> {
    ["src", "tests", "bench/src", "bench/routing/src"].into_iter().flat_map(sources)
}

/// The functions of a formatted source, each with its first line and its length.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let begins = |line: &str| {
        let is_word = |word: &str| word.starts_with("pub") || ["async", "const"].contains(&word);
        line.split_whitespace().find(|word| !is_word(word)) == Some("fn")
    };
    let length = |from: usize| {
        let mut rest = lines[from..].iter();
        // Without a body, or with one on its only line, it ends where it begins.
        let ends = |line: &&str| line.ends_with(';') || line.ends_with('}');
        let closes = |line: &&str| depth(line) == depth(lines[from]) && line.trim() == "}";
        if lines.get(from).is_some_and(ends) { Some(1) } else { rest.position(closes).map(|at| at + 1) }
    };
    let starts = (0..lines.len()).filter(|at| begins(lines[*at]));
    starts.filter_map(|at| Some((at + 1, length(at)?))).collect()
}

#[test]
fn functions_are_found() {
    let text = "fn a() {}\n\npub(super) async fn b(\n    x: u8,\n) {\n    if x {\n    }\n}\n    fn c<T>() -> T;\n// fn d() {\n";
    assert_eq!(functions(text), [(1, 1), (3, 6), (9, 1)]);
}

#[test]
fn files_are_short() {
    let mut long = Vec::new();
    for name in all_sources() {
        let lines = read(&name).lines().count();
        if lines > LONGEST_FILE {
            long.push(format!("{name}: {lines} lines"));
        }
    }
    assert!(long.is_empty(), "more than {LONGEST_FILE} lines: {long:#?}");
}

#[test]
fn functions_are_short() {
    let (mut long, mut seen) = (Vec::new(), 0);
    for name in all_sources() {
        for (line, length) in functions(&read(&name)) {
            seen += 1;
            if length > LONGEST_FUNCTION {
                long.push(format!("{name}:{line}: {length} lines"));
            }
        }
    }
    assert!(seen > 1000, "only {seen} functions found");
    assert!(long.is_empty(), "more than {LONGEST_FUNCTION} lines: {long:#?}");
}
