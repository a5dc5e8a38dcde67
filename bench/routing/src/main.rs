//! How the proxy's policies do against engines with prefix caches: the policies' own code, simulated engines and virtual time.
//! Writes a table and a picture; README.md says what they show.

mod engine;
mod picture;
mod run;
mod workload;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use clap::Parser;
use moriio_proxy::settings::Policy;

use run::{Outcome, Subject, run};
use workload::Workload;

/// Tokens that an engine's cache holds, unless a subject has it otherwise.
const CAPACITY: usize = 600_000;

/// Simulates the policies.
#[derive(Parser)]
struct Options {
    /// Seeds, from 1
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// Seconds in which sessions begin
    #[arg(long, default_value_t = 600.0)]
    seconds: f64,
    /// Where the table and the picture go
    #[arg(long, default_value = "bench/routing")]
    out: PathBuf,
}

/// The subjects with their names.
fn subjects() -> Vec<(&'static str, Subject)> {
    let subject = |policy, sessions| Subject { policy, sessions, learns: true, tokens: CAPACITY };
    let cache = subject(Policy::CacheAware, false);
    vec![
        ("round_robin", subject(Policy::RoundRobin, false)),
        ("random", subject(Policy::Random, false)),
        ("power_of_two", subject(Policy::PowerOfTwo, false)),
        ("least_loaded", subject(Policy::LeastLoaded, false)),
        ("consistent_hash by tenant", subject(Policy::ConsistentHash, false)),
        ("consistent_hash", subject(Policy::ConsistentHash, true)),
        ("round_robin, sessions stay", subject(Policy::RoundRobin, true)),
        ("least_loaded, sessions stay", subject(Policy::LeastLoaded, true)),
        ("cache_aware", cache),
        ("cache_aware, sessions stay", subject(Policy::CacheAware, true)),
        ("cache_aware, caches of half the size", Subject { tokens: CAPACITY / 2, ..cache }),
        ("the same, answers not believed", Subject { tokens: CAPACITY / 2, learns: false, ..cache }),
        (
            "round_robin, caches of half the size",
            Subject { tokens: CAPACITY / 2, ..subject(Policy::RoundRobin, false) },
        ),
    ]
}

/// The median of some figures, and the least and the most.
fn spread(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_unstable_by(f64::total_cmp);
    let (first, last) = (figures.first().copied().unwrap_or(0.0), figures.last().copied().unwrap_or(0.0));
    [figures.get(figures.len() / 2).copied().unwrap_or(0.0), first, last]
}

/// What is drawn of one subject.
pub struct Bar {
    name: &'static str,
    hit: [f64; 3],
    p50: [f64; 3],
    p99: [f64; 3],
    imbalance: [f64; 3],
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let mut text = format!(
        "Medians of seeds 1 to {}, with the least and the most. Times are seconds from arrival to the first token; nothing waits in the proxy \
         here, so that dispatch is arrival.\n",
        options.seeds
    );
    let mut pictures = Vec::new();
    for workload in Workload::ALL {
        let name = workload.name();
        // Writing to a String cannot fail.
        let _ =
            write!(text, "\n### {name}\n\n| Policy | Cached | p50 | p99 | Most of the mean |\n|---|---|---|---|---|\n");
        let mut bars = Vec::new();
        for (name, subject) in subjects() {
            let outcomes: Vec<Outcome> =
                (1..=options.seeds).map(|seed| run(subject, workload, seed, options.seconds)).collect();
            let of = |figure: &dyn Fn(&Outcome) -> f64| spread(outcomes.iter().map(figure).collect());
            let bar = Bar {
                name,
                hit: of(&|outcome| outcome.hit * 100.0),
                p50: of(&|outcome| outcome.percentile(50)),
                p99: of(&|outcome| outcome.percentile(99)),
                imbalance: of(&|outcome| outcome.imbalance),
            };
            let shown = |[median, least, most]: [f64; 3], digits: usize| {
                format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
            };
            let (hit, p50, p99) = (shown(bar.hit, 1), shown(bar.p50, 3), shown(bar.p99, 2));
            let line = format!("| {name} | {hit} % | {p50} | {p99} | {} |\n", shown(bar.imbalance, 2));
            // Whoever waits sees how far it is.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
            text += &line;
            bars.push(bar);
        }
        pictures.push((name, bars));
    }
    fs::write(options.out.join("results.md"), text)?;
    fs::write(options.out.join("results.svg"), picture::of(&pictures))
}
