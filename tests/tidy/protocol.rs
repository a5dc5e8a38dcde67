//! The rules of the wire are numbered, so that a citation finds one rule and always the same.

use crate::tidy::read;

const LONGEST: usize = 300;

#[test]
fn rules_are_numbered_without_gaps() {
    let text = read("docs/protocol.md");
    assert!(text.lines().count() <= LONGEST, "docs/protocol.md has more than {LONGEST} lines");
    let (mut chapters, mut rules) = (String::new(), 0);
    let mut next = 1;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let letter = heading.chars().next().unwrap();
            assert!(heading[1..].starts_with(". ") && !chapters.contains(letter), "a chapter's own letter: {line}");
            chapters.push(letter);
            next = 1;
        } else if let Some(rule) = line.strip_prefix("- **") {
            let (label, _) = rule.split_once(".**").unwrap_or_else(|| panic!("no label: {line}"));
            assert_eq!(label, format!("{}{next}", chapters.chars().last().unwrap()), "labels count up in each chapter");
            next += 1;
            rules += 1;
        }
    }
    assert!(rules > 100, "only {rules} rules");
}

#[test]
fn rules_refer_to_rules_that_are_there() {
    let text = read("docs/protocol.md");
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '.';
    let is_label = |word: &&str| {
        let (letter, number) = word.split_at(1);
        text.contains(&format!("## {letter}. ")) && number.parse::<u32>().is_ok()
    };
    let cited = text.split(word).map(|word| word.trim_matches('.')).filter(|word| word.len() > 1).filter(is_label);
    let cited: Vec<&str> = cited.collect();
    assert!(cited.len() > 200, "only {} labels", cited.len());
    for label in cited {
        assert!(text.contains(&format!("- **{label}.**")), "no rule {label}");
    }
}
