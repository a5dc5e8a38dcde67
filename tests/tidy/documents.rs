//! What documents say of code and of each other.

use std::process::Command;

use super::{read, root};

/// The lines of a chapter, from its heading to the next.
fn chapter<'a>(text: &'a str, heading: &str) -> Vec<&'a str> {
    let from = text.lines().skip_while(|line| *line != heading);
    from.skip(1).take_while(|line| !line.starts_with("## ")).collect()
}

/// What stands between backquotes, with what follows each.
fn quoted(text: &str) -> Vec<(&str, &str)> {
    let parts: Vec<&str> = text.split('`').collect();
    parts.chunks(2).filter_map(|pair| Some((*pair.get(1)?, *pair.first()?))).collect()
}

/// A function that a sentence names, with the file that stands behind it in brackets.
fn named_functions(text: &str) -> Vec<(String, String)> {
    let quoted = quoted(text);
    let pairs = quoted.windows(2).filter(|pair| pair[1].1.trim() == "(" && pair[1].0.ends_with(".rs"));
    pairs.map(|pair| (pair[0].0.to_owned(), pair[1].0.to_owned())).collect()
}

#[test]
fn functions_are_read() {
    let text = "`Drive::run` (`exchange/drive.rs`) and `x` of `y.rs`, `terms`\n(`a.rs`)";
    let owned = |pair: (&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
    assert_eq!(named_functions(text), [("Drive::run", "exchange/drive.rs"), ("terms", "a.rs")].map(owned));
}

/// The story of one request: every function that it names is where it says, and a stranger can read it at once.
#[test]
fn the_story_of_a_request_is_true() {
    let text = read("docs/architecture.md");
    let story = chapter(&text, "## One request whose client leaves");
    assert!((20..=60).contains(&story.len()), "{} lines", story.len());
    let named = named_functions(&story.join(" "));
    assert!(named.len() > 25, "{named:?}");
    for (function, file) in named {
        let name = function.rsplit("::").next().unwrap();
        let source = read(format!("src/{file}"));
        let is_there = [format!("fn {name}("), format!("fn {name}<")].iter().any(|text| source.contains(text));
        assert!(is_there, "{function} is not in {file}");
    }
}

/// The options that the README shows stand in the reference with the same default.
#[test]
fn the_readme_shows_options_as_they_are() {
    let (readme, reference) = (read("README.md"), read("docs/reference.md"));
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let options = |text: Vec<&str>| {
        let rows = text.into_iter().filter(|line| line.starts_with("| `--")).map(cells);
        rows.collect::<Vec<_>>()
    };
    let shown = options(chapter(&readme, "## The options people set"));
    assert_eq!(shown.len(), 14);
    let all = options(reference.lines().collect());
    for row in shown {
        let known = all.iter().any(|option| option.len() > 4 && option[1] == row[1] && option[3] == row[2]);
        assert!(known, "{row:?} is not in the reference");
    }
    assert!(readme.lines().count() <= 200);
}

/// Every launcher of the table has its replay, and every replay stands there.
#[test]
fn launchers_have_replays() {
    let readme = read("README.md");
    let rows = chapter(&readme, "## In place of what launchers start");
    let mut named: Vec<&str> =
        rows.iter().filter_map(|row| row.split("`launchers::").nth(1)?.split('`').next()).collect();
    named.sort();
    let mut replays = Vec::new();
    for file in ["python", "routers"] {
        let source = read(format!("tests/launchers/{file}.rs"));
        let tests =
            source.split("#[tokio::test(").skip(1).filter_map(|test| test.split("async fn ").nth(1)?.split('(').next());
        replays.extend(tests.map(|name| format!("{file}::{name}")));
    }
    replays.sort();
    assert_eq!(named, replays);
}

/// The mistakes of tests/defects can be put back, and each has its row.
#[test]
fn mistakes_can_be_put_back() {
    let verification = read("docs/verification.md");
    let rows = chapter(&verification, "## Mistakes put back");
    let mut named: Vec<&str> = rows.iter().filter_map(|row| row.strip_prefix("| `")?.split('`').next()).collect();
    named.sort();
    let patches = std::fs::read_dir(root().join("tests/defects")).unwrap().map(|entry| entry.unwrap().path());
    let mut patches: Vec<_> = patches.filter(|path| path.extension().is_some_and(|kind| kind == "patch")).collect();
    patches.sort();
    let names: Vec<_> = patches.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, named);
    for patch in &patches {
        let check = Command::new("git").args(["apply", "--check"]).arg(patch).current_dir(root()).status().unwrap();
        assert!(check.success(), "{} does not apply", patch.display());
    }
}
