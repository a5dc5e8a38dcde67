//! What the house promises of itself: lengths, the direction of imports, no panics in the code, and documents that say
//! what the code says.

mod documents;
mod imports;
mod lengths;
mod protocol;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use moriio_proxy::api::fields;
use moriio_proxy::engine::Role;
use moriio_proxy::engine::versions;
use moriio_proxy::error::ProxyError;
use moriio_proxy::metrics::Metrics;
use moriio_proxy::settings::faces::Face;
use moriio_proxy::settings::options;

/// Calls that end a task or the process.
const PANICS: [&str; 7] = [".unwrap()", ".unwrap_err()", ".expect(", "panic!(", "todo!(", "unimplemented!(", "dbg!("];

/// Calls that do so when stdout or stderr is closed.
const PRINTS: [&str; 4] = ["print!(", "println!(", "eprint!(", "eprintln!("];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Rust file below a folder, by its path from the root. Finding none is a failure.
fn sources(folder: &str) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    let mut names: Vec<String> =
        found.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    assert!(names.len() > 3, "only {names:?} below {folder}");
    names
}

fn is_test(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.contains("/tests/")
}

/// The lines of a source that are neither comments nor items for tests, with their numbers.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = text.lines().zip(1..);
    let mut code = Vec::new();
    while let Some((line, number)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            // Formatted code closes an item at the depth at which it began.
            let depth = line.len() - line.trim_start().len();
            let ends = |line: &str| line.len() > depth && line[depth..].starts_with('}');
            let one_line = |line: &str| line.trim_end().ends_with(';') && !line[depth..].starts_with(' ');
            let _ = lines.find(|(line, _)| ends(line) || one_line(line));
        } else if !line.trim_start().starts_with("//") {
            code.push((number, line));
        }
    }
    code
}

#[test]
fn items_for_tests_are_left_out() {
    let text =
        "one();\n#[cfg(test)]\nmod tests {\n    x.unwrap();\n}\ntwo();\n#[cfg(test)]\nmod tests;\n// no\nthree();";
    let kept: Vec<&str> = code(text).into_iter().map(|(_, line)| line).collect();
    assert_eq!(kept, ["one();", "two();", "three();"]);
}

#[test]
fn the_code_does_not_panic() {
    let mut wrong = Vec::new();
    for name in ["src", "bench/src", "bench/routing/src"].into_iter().flat_map(sources).filter(|name| !is_test(name)) {
        for (number, line) in code(&read(&name)) {
            if PANICS.iter().chain(&PRINTS).any(|call| calls(line, call)) {
                wrong.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether a line has this call, and not one whose name only ends so.
fn calls(line: &str, call: &str) -> bool {
    let begins = |at: usize| call.starts_with('.') || !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    line.match_indices(call).any(|(at, _)| begins(at))
}

/// Compares what stands in the reference between two markers with what should stand there.
fn compare(marker: &str, wanted: &str) {
    compare_page("docs/reference.md", marker, wanted);
}

fn compare_page(page: &str, marker: &str, wanted: &str) {
    let text = read(page);
    let (begin, end) = (format!("<!-- {marker} -->"), format!("<!-- /{marker} -->"));
    let section = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
    let found = section.unwrap_or_else(|| panic!("{page} has no {begin} ... {end}")).0.trim();
    assert!(wanted.lines().count() > 3, "the wanted table is empty: {wanted}");
    assert!(
        found == wanted.trim(),
        "{page} differs from the code; between {begin} and {end} it should say:\n\n{wanted}"
    );
}

#[test]
fn the_reference_has_the_options() {
    compare("options", &options::reference_table());
}

#[test]
fn the_page_of_vllm_router_has_its_options() {
    let program = Face::VllmRouter.program().unwrap();
    compare_page("docs/vllm-router.md", program.name, &program.reference_table());
}

#[test]
fn the_page_of_the_python_proxies_has_their_options() {
    for face in [Face::Toy, Face::Mad] {
        let program = face.program().unwrap();
        compare_page("docs/python-proxies.md", program.name, &program.reference_table());
    }
}

#[test]
fn the_reference_has_the_fields() {
    compare("fields", &fields::reference_table());
}

#[test]
fn the_reference_has_what_proves_output() {
    compare("output", &moriio_proxy::api::output::reference_table());
}

#[test]
fn the_reference_has_the_releases() {
    compare("releases", &versions::reference_table());
}

#[test]
fn the_reference_has_the_errors() {
    let mut table = String::from("| Status | `code` | Source | Message, as an example |\n|---|---|---|---|\n");
    for error in ProxyError::catalogue() {
        let (status, code, source) = (error.status().as_u16(), error.code(), error.source().as_str());
        writeln!(table, "| {status} | `{code}` | {source} | {error} |").unwrap();
    }
    compare("errors", &table);
}

/// All metrics as they are rendered; a family without a sample would not be.
fn every_family() -> String {
    let metrics = Metrics::new();
    let _ = metrics.engine(Role::Prefill, "engine");
    metrics.engines(Role::Prefill, "ready", 1);
    metrics.unusable(Role::Prefill, "engine", "connection_refused", true);
    metrics.request("chat", 200);
    metrics.ended("complete");
    metrics.error("no_pair", "proxy");
    metrics.registration("added");
    metrics.guard_reject("size");
    metrics.kv_message("release", "sent");
    metrics.orphan_ended("written");
    metrics.attempt("connect");
    metrics.decision(Role::Prefill, "round_robin", "hit");
    metrics.decode_alone("short");
    metrics.place_missing("refused");
    let text = metrics.render();
    let registered = read("src/metrics.rs").matches("r.register(").count();
    assert!(registered > 10);
    assert_eq!(text.matches("# HELP ").count(), registered, "a family has no sample here");
    text
}

#[test]
fn the_reference_has_the_metrics() {
    let text = every_family();
    let mut types = BTreeMap::new();
    let mut table = String::from("| Metric | Type | Meaning |\n|---|---|---|\n");
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        types.insert(name, kind);
    }
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').unwrap();
        let kind = types[name];
        let suffix = if kind == "counter" { "_total" } else { "" };
        writeln!(table, "| `{name}{suffix}` | {kind} | {} |", help.trim_end_matches('.')).unwrap();
    }
    compare("metrics", &table);
}

#[test]
fn the_map_has_every_file() {
    let page = read("docs/architecture.md");
    let section = page.split_once("<!-- files -->").and_then(|(_, rest)| rest.split_once("<!-- /files -->"));
    let map = section.expect("docs/architecture.md has no <!-- files --> ... <!-- /files -->").0;
    let named: Vec<&str> = map.split('`').skip(1).step_by(2).filter(|word| word.ends_with(".rs")).collect();
    let files: Vec<String> = sources("src").into_iter().filter(|name| !is_test(name)).collect();
    let missing: Vec<&String> = files.iter().filter(|file| !named.contains(&file.trim_start_matches("src/"))).collect();
    let gone: Vec<&&str> = named.iter().filter(|name| !files.contains(&format!("src/{name}"))).collect();
    assert!(missing.is_empty() && gone.is_empty(), "missing in the map: {missing:#?}; gone: {gone:#?}");
    let mut order: Vec<&str> = named.iter().filter_map(|name| name.trim_end_matches(".rs").split('/').next()).collect();
    order.dedup();
    let last = ["main", "lib"].map(String::from);
    assert_eq!(order, [imports::folders().as_slice(), &last].concat(), "the map follows the order of lib.rs");
}

#[test]
fn readme_is_short_and_its_links_lead_somewhere() {
    const LONGEST_README: usize = 200;
    let readme = read("README.md");
    assert!(readme.lines().count() <= LONGEST_README, "README.md has more than {LONGEST_README} lines");
    let links: Vec<&str> =
        readme.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(to, _)| to).collect();
    assert!(links.len() > 5, "{links:?}");
    let dead: Vec<&&str> = links.iter().filter(|to| !to.contains("://") && !root().join(to).exists()).collect();
    assert!(dead.is_empty(), "{dead:?}");
}
