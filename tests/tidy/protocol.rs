//! The rules of the wire in docs/protocol.md, and that code cites them and nothing that is not in the repository.

use std::collections::HashSet;
use std::fs;

use super::{read, root, sources};

const RULES: &str = "docs/protocol.md";
const MOST_LINES: usize = 324;
const LONGEST_LINE: usize = 210;

/// Texts that code was written from and that are not here.
const ELSEWHERE: [&str; 8] = [
    "protocol-2",
    "design.md",
    "requirements.md",
    "style.md",
    "engineering-notes",
    "launchers.md",
    "speed.md",
    "prior-art",
];
/// Words that cite one of those when a number follows.
const CITES: [&str; 7] = ["protocol ", "Protocol ", "design ", "Design ", "section ", "Case ", "case "];

/// A source as one line of words, so that a citation may run over a line's end.
fn words(text: &str) -> String {
    let lines = text.lines().map(|line| line.trim_start().trim_start_matches(['/', '!', '#']).trim());
    lines.collect::<Vec<_>>().join(" ")
}

/// A letter and a number at the beginning of a text, and what follows.
fn label(text: &str) -> Option<(&str, &str)> {
    let digits = text.strip_prefix(|c: char| c.is_ascii_uppercase())?;
    let rest = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    let end = text.len() - rest.len();
    (rest.len() < digits.len() && !rest.starts_with(|c: char| c.is_alphanumeric())).then(|| (&text[..end], rest))
}

/// Every label that a text cites: `protocol K4`, `protocol K3, K4 and W1`, `protocol K11 to K17`.
fn cited(text: &str) -> Vec<&str> {
    let mut labels = Vec::new();
    for (at, word) in text.match_indices("protocol ").chain(text.match_indices("Protocol ")) {
        let mut next = label(&text[at + word.len()..]);
        while let Some((found, rest)) = next {
            labels.push(found);
            let after = [", ", " and ", " to "].iter().find_map(|between| rest.strip_prefix(between));
            next = after.and_then(label);
        }
    }
    labels
}

/// What a text cites that is not here, with a little of what follows.
fn foreign(text: &str) -> Vec<String> {
    let numbered = |after: &str| {
        let number = after.strip_prefix('C').unwrap_or(after);
        number.starts_with(|c: char| c.is_ascii_digit())
    };
    let requirement = |after: &str| {
        let id = after.as_bytes();
        id.len() > 3 && id[..2].iter().all(u8::is_ascii_uppercase) && id[2] == b'-' && id[3].is_ascii_digit()
    };
    let mut found: Vec<(usize, usize)> = Vec::new();
    for name in ELSEWHERE {
        found.extend(text.match_indices(name).map(|(at, name)| (at, at + name.len())));
    }
    for word in CITES {
        let hits = text.match_indices(word).map(|(at, word)| (at, at + word.len()));
        found.extend(hits.filter(|(_, end)| numbered(&text[*end..])));
    }
    let hits = text.match_indices("requirement ").map(|(at, word)| (at, at + word.len()));
    found.extend(hits.filter(|(_, end)| requirement(&text[*end..])));
    let bare = text.match_indices("(C").map(|(at, word)| (at, at + word.len()));
    found.extend(bare.filter(|(_, end)| text[*end..].starts_with(|c: char| c.is_ascii_digit())));
    found.into_iter().map(|(at, end)| text[at..].chars().take(end - at + 8).collect()).collect()
}

/// The labels, each with the letter of its chapter.
fn rules() -> Vec<(char, String)> {
    let mut chapter = None;
    let mut rules = Vec::new();
    for line in read(RULES).lines() {
        if let Some(title) = line.strip_prefix("## ") {
            chapter = title.chars().next().filter(|_| title[1..].starts_with(". "));
            assert!(chapter.is_some(), "a chapter without a letter: {line}");
        } else if let Some(rule) = line.strip_prefix("- **") {
            let (label, _) = rule.split_once(".** ").unwrap_or_else(|| panic!("no label: {line}"));
            rules.push((chapter.unwrap_or_else(|| panic!("outside of a chapter: {line}")), label.to_owned()));
        }
    }
    assert!(rules.len() > 100, "only {} rules", rules.len());
    rules
}

#[test]
fn citations_are_read() {
    assert_eq!(words("/// ends (protocol\n    /// K4)."), "ends (protocol K4).");
    assert_eq!(
        cited("by protocol K11 to K17, (protocol W3, A5 and R1), protocol buffers, protocol K4a"),
        ["K11", "K17", "W3", "A5", "R1"]
    );
    let old =
        ["(protocol 13.1)", "design C8", "(C24)", "requirement RS-18", "(section 4)", "protocol-2, 1", "// Case 7."];
    for text in old {
        assert_eq!(foreign(text).len(), 1, "{text}: {:?}", foreign(text));
    }
    for text in ["protocol K8", "the protocol of 0.18", "requirement of TLS", "(Chat)", "tests/prior_art", "in case of"]
    {
        assert_eq!(foreign(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn rules_are_few_and_numbered_without_gaps() {
    let text = read(RULES);
    assert!(text.lines().count() <= MOST_LINES, "{RULES} has {} lines", text.lines().count());
    let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > LONGEST_LINE).collect();
    assert!(long.is_empty(), "more than {LONGEST_LINE} characters: {long:#?}");
    let (mut chapter, mut number, mut closed) = (' ', 0, HashSet::new());
    for (letter, label) in rules() {
        if letter != chapter {
            assert!(closed.insert(letter), "two chapters {letter}");
            (chapter, number) = (letter, 0);
        }
        number += 1;
        assert_eq!(label, format!("{letter}{number}"));
    }
}

#[test]
fn comments_cite_what_is_there() {
    let known: HashSet<String> = rules().into_iter().map(|(_, label)| label).collect();
    let mut files: Vec<String> =
        sources("src").into_iter().chain(sources("tests")).filter(|name| name != file!()).collect();
    files.push("README.md".into());
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            files.push(format!("docs/{name}"));
        }
    }
    let (mut wrong, mut count) = (Vec::new(), 0);
    for name in files {
        let text = words(&read(&name));
        let labels = cited(&text);
        count += labels.len();
        let unknown = labels.into_iter().filter(|label| !known.contains(*label));
        wrong.extend(unknown.map(|label| format!("{name}: protocol {label} is no rule")));
        wrong.extend(foreign(&text).into_iter().map(|text| format!("{name}: \"{text}\" is not in the repository")));
    }
    assert!(count > 50, "only {count} citations found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Inside the rules a label stands alone.
#[test]
fn rules_refer_to_rules() {
    let text = read(RULES);
    let known: HashSet<String> = rules().into_iter().map(|(_, label)| label).collect();
    let letters: HashSet<char> = rules().into_iter().map(|(letter, _)| letter).collect();
    let starts = text.char_indices().filter(|(at, c)| {
        letters.contains(c) && !text[..*at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
    });
    let referred: Vec<&str> = starts.filter_map(|(at, _)| label(&text[at..])).map(|(label, _)| label).collect();
    assert!(referred.len() > known.len(), "only {} references", referred.len());
    let unknown: Vec<&&str> = referred.iter().filter(|label| !known.contains(**label)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
