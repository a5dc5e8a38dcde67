//! The state machine of an attempt against a model of the engines' rules, under virtual time: random order, delay, loss, crash,
//! restart and clients. `MORIIO_TRANSFER_EXCHANGES` (20000) is the number of attempts, `MORIIO_TRANSFER_FIRST` the seed of the
//! first, by chance if unset; a failure names the seed of its own, which `MORIIO_TRANSFER_SEED` repeats.

pub mod coverage;
pub mod dice;
mod judge;
mod rules;
mod shrink;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use coverage::Coverage;
use dice::Dice;
use moriio_proxy::exchange::transfer::Edge;
use rules::Breach;

use crate::fuzz::mutate::Random;

/// The seed of the tests that must see the same each time.
const FIXED: u64 = 0x6d6f_7269_696f;

/// What a run showed: what it came across, and the first seed and the number of attempts that broke each rule.
#[derive(Default)]
struct Run {
    coverage: Coverage,
    broken: BTreeMap<Breach, (u64, u64)>,
}

impl Run {
    fn add(&mut self, other: Run) {
        self.coverage.add(other.coverage);
        for (breach, (seed, count)) in other.broken {
            let (first, all) = self.broken.entry(breach).or_insert((seed, 0));
            (*first, *all) = ((*first).min(seed), *all + count);
        }
    }

    /// Panics with the shortest history of each broken rule.
    fn assert_is_right(&self, first: u64, count: u64) {
        let Some(earliest) = self.broken.values().map(|(seed, _)| seed - first + 1).min() else { return };
        let mut text = format!("found after {earliest} attempts\n");
        for (breach, (seed, broken)) in &self.broken {
            let shortest = shrink::shrink(Dice::roll(*seed), breach);
            text +=
                &format!("\n{breach}\nin {broken} of {count} attempts; repeat with MORIIO_TRANSFER_SEED={seed}\n\n");
            text += &shrink::told(&shortest);
        }
        panic!("rules are broken; each below with its shortest history\n{text}");
    }
}

/// Runs so many attempts on all cores.
fn run(first: u64, count: u64) -> Run {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut whole = Run::default();
    std::thread::scope(|scope| {
        let parts = |thread| scope.spawn(move || part(first, count, thread, threads));
        let threads: Vec<_> = (0..threads).map(parts).collect();
        for thread in threads {
            whole.add(thread.join().unwrap());
        }
    });
    whole
}

/// One thread's share.
fn part(first: u64, count: u64, thread: u64, threads: u64) -> Run {
    let mut run = Run::default();
    for number in (thread..count).step_by(threads as usize) {
        let seed = first.wrapping_add(number);
        if let Some(breach) = shrink::breach(&Dice::roll(seed), &mut run.coverage) {
            run.broken.entry(breach).or_insert((seed, 0)).1 += 1;
        }
    }
    run
}

/// The edges of the four machines that a run of so many attempts goes over.
pub fn edges(count: u64) -> BTreeSet<Edge> {
    run(FIXED, count).coverage.all_edges()
}

#[test]
fn attempts_keep_to_the_rules() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("MORIIO_TRANSFER_SEED");
    let count = seed.map_or(number("MORIIO_TRANSFER_EXCHANGES").unwrap_or(20_000), |_| 1);
    let first = seed.or_else(|| number("MORIIO_TRANSFER_FIRST")).unwrap_or_else(|| Random::of_the_moment().next() >> 1);
    let begun = std::time::Instant::now();
    let run = run(first, count);
    eprintln!("transfer: {count} attempts from seed {first} in {:?}", begun.elapsed());
    run.assert_is_right(first, count);
    if count >= 20_000 {
        assert_eq!(run.coverage.lacks(), [""; 0], "never happened in {count} attempts");
    }
}

#[test]
fn a_seed_repeats_its_history() {
    let told = |seed| shrink::told(&Dice::roll(seed));
    for seed in 0..50 {
        assert_eq!(told(seed), told(seed));
    }
    assert_ne!(told(1), told(2));
}

/// The edges of the drawings in docs/architecture.md.
fn drawn() -> BTreeSet<(usize, String, String)> {
    let text = include_str!("../docs/architecture.md");
    let drawings = text.split("stateDiagram-v2").skip(1).map(|rest| rest.split("```").next().unwrap());
    let edges = drawings.enumerate().flat_map(|(machine, drawing)| {
        let edges = drawing.lines().filter_map(|line| line.trim().split_once(" --> "));
        edges.map(move |(from, to)| (machine, from.to_owned(), to.split(':').next().unwrap().to_owned()))
    });
    edges.filter(|(_, from, _)| from != "[*]").collect()
}

#[test]
fn the_drawings_show_the_ways_that_are_gone() {
    let found = edges(60_000);
    assert!(found == edges(60_000), "a seed repeats its edges");
    let gone = found.into_iter().map(|(machine, from, to)| (machine, from.to_owned(), to.to_owned())).collect();
    let drawn = drawn();
    let (not_gone, not_drawn): (Vec<_>, Vec<_>) =
        (drawn.difference(&gone).collect(), gone.difference(&drawn).collect());
    assert!(not_gone.is_empty() && not_drawn.is_empty(), "drawn, but not gone: {not_gone:?}\nnot drawn: {not_drawn:?}");
}
