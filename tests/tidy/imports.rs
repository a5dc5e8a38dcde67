//! Which file may import from which: a folder only from folders below it in `lib.rs`, and no two files in a circle.

use std::collections::{BTreeMap, BTreeSet};

use crate::tidy::{code, is_test, read, sources};

/// The folders in the order of `lib.rs`, files beside it among them.
pub(super) fn folders() -> Vec<String> {
    let text = read("src/lib.rs");
    let folders: Vec<String> =
        text.lines().filter_map(|line| Some(line.split_once("mod ")?.1.strip_suffix(';')?.to_owned())).collect();
    assert!(folders.len() > 10, "{folders:?}");
    folders
}

/// A file's module, as its path from the crate's root.
fn module(file: &str) -> String {
    file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::")
}

fn folder(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

/// What each file of the library says outside its tests, by module.
fn library() -> BTreeMap<String, String> {
    let files =
        sources("src").into_iter().filter(|name| !is_test(name) && name != "src/main.rs" && name != "src/lib.rs");
    let text = |name: &str| code(&read(name)).into_iter().map(|(_, line)| line).collect::<Vec<_>>().join("\n");
    files.map(|name| (module(&name), text(&name))).collect()
}

/// Where a word stands that is not the end of a longer word or path.
fn words<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let inside = |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
    text.match_indices(word).filter(|(at, _)| !inside(&text[..*at])).map(|(at, _)| &text[at..]).collect()
}

/// Reads one path, or a tree of them in braces, and returns what follows it.
fn tree<'a>(text: &'a str, so_far: &str, found: &mut Vec<String>) -> &'a str {
    if let Some(group) = text.strip_prefix('{') {
        let mut rest = group.trim_start();
        while !rest.is_empty() && !rest.starts_with('}') {
            rest = tree(rest, so_far, found).trim_start_matches(|c: char| c != ',' && c != '}');
            rest = rest.trim_start_matches(',').trim_start();
        }
        return rest.strip_prefix('}').unwrap_or(rest);
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let path = if so_far.is_empty() { word.to_owned() } else { format!("{so_far}::{word}") };
    if let Some(after) = rest.strip_prefix("::") {
        return tree(after, &path, found);
    }
    found.push(path);
    rest
}

/// The paths into this crate that a module's text names, from the crate's root.
fn imports(module: &str, text: &str, children: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (word, base) in [("crate::", ""), ("self::", module)] {
        words(text, word).into_iter().for_each(|at| {
            tree(&at[word.len()..], base, &mut found);
        });
    }
    for at in words(text, "super::") {
        let (mut base, mut rest) = (module, at);
        while let Some(after) = rest.strip_prefix("super::") {
            base = base.rsplit_once("::").map_or("", |(parent, _)| parent);
            rest = after;
        }
        tree(rest, base, &mut found);
    }
    for child in children {
        let name = child.rsplit("::").next().unwrap_or(child);
        if !words(text, &format!("{name}::")).is_empty() {
            found.push((*child).to_owned());
        }
    }
    found
}

/// For each module the others whose items it names: the longest part of a path that is a module.
fn graph(library: &BTreeMap<String, String>) -> BTreeMap<&str, BTreeSet<&str>> {
    let owner = |path: &str| {
        let mut path = path;
        loop {
            if let Some((module, _)) = library.get_key_value(path) {
                return Some(module.as_str());
            }
            path = path.rsplit_once("::")?.0;
        }
    };
    let edges = |module: &str, text: &str| {
        let below = format!("{module}::");
        let is_child = |name: &&str| name.strip_prefix(below.as_str()).is_some_and(|rest| !rest.contains("::"));
        let children: Vec<&str> = library.keys().map(String::as_str).filter(is_child).collect();
        let named = imports(module, text, &children);
        named.iter().filter_map(|path| owner(path)).filter(|other| *other != module).collect()
    };
    library.iter().map(|(module, text)| (module.as_str(), edges(module, text))).collect()
}

/// Whether one leads to the other.
fn leads(graph: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    let (mut open, mut seen) = (vec![from], BTreeSet::new());
    while let Some(module) = open.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            open.extend(graph.get(module).into_iter().flatten());
        }
    }
    false
}

#[test]
fn paths_are_found() {
    let text = "use super::{Reject, gate::{self, Gate}};\nuse crate::{pool, engine::Role};\nlet x = link::open(crate::json::Body);\nuse super::super::b;";
    let mut found = imports("a::socket::guard", text, &["a::socket::guard::link"]);
    found.sort();
    let gate = ["a::socket::Reject", "a::socket::gate::Gate", "a::socket::gate::self"];
    let wanted = ["a::b", gate[0], gate[1], gate[2], "a::socket::guard::link", "engine::Role", "json::Body", "pool"];
    assert_eq!(found, wanted);
}

#[test]
fn imports_point_downward() {
    let (library, folders) = (library(), folders());
    let place = |name: &str| folders.iter().position(|folder| folder == name);
    let (mut wrong, mut seen) = (BTreeSet::new(), 0);
    for (module, others) in graph(&library) {
        let own = folder(module);
        let here = place(own).unwrap_or_else(|| panic!("{module} is not in lib.rs"));
        for other in others.into_iter().map(folder).filter(|other| *other != own) {
            seen += 1;
            // Simulated engines stand for strangers: nothing of them is used but by the demonstration.
            let is_downward = place(other).is_some_and(|there| there > here) && (other != "sim" || own == "demo");
            if !is_downward {
                wrong.insert(format!("{module} -> {other}"));
            }
        }
    }
    assert!(seen > 50, "only {seen} imports found");
    assert!(wrong.is_empty(), "against the order of lib.rs: {wrong:#?}");
}

#[test]
fn files_import_in_no_circle() {
    let library = library();
    let mut graph = graph(&library);
    // Circles through other folders are against their order, which has its own test.
    for (module, others) in &mut graph {
        others.retain(|other| folder(other) == folder(module));
    }
    let edges: Vec<_> = graph.iter().flat_map(|(from, others)| others.iter().map(move |to| (*from, *to))).collect();
    assert!(edges.len() > 100, "only {} imports found", edges.len());
    let circles: Vec<_> = edges.into_iter().filter(|(from, to)| leads(&graph, to, from)).collect();
    assert!(circles.is_empty(), "imports in a circle: {circles:#?}");
}
