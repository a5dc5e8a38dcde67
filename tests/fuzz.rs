//! Everything that reads bytes of strangers, fed with mutated ones for a while. `MORIIO_FUZZ_SECONDS` (0.4) is the time for each
//! reader, `MORIIO_FUZZ_SEED` repeats a run; a failure names the seed of its round.

mod bodies;
mod events;
pub mod fields;
pub mod mutate;
mod readers;
mod streams;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use mutate::Random;

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `round` with one seed after the other until the time is over, at least 200 times.
fn fuzz(what: &str, mut round: impl FnMut(&mut Random)) {
    let time = variable::<f64>("MORIIO_FUZZ_SECONDS").unwrap_or(0.4).clamp(0.0, 1e6);
    let time = Duration::from_secs_f64(time);
    let only = variable::<u64>("MORIIO_FUZZ_SEED");
    let first = only.unwrap_or_else(|| Random::of_the_moment().next());
    let (began, mut rounds) = (Instant::now(), 0);
    while rounds == 0 || (only.is_none() && (rounds < 200 || began.elapsed() < time)) {
        once(what, first.wrapping_add(rounds), &mut round);
        rounds += 1;
    }
}

/// Runs one round.
fn once(what: &str, seed: u64, round: impl FnOnce(&mut Random)) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| round(&mut Random::new(seed)))) {
        eprintln!("{what}: repeat with MORIIO_FUZZ_SEED={seed}");
        resume_unwind(panic);
    }
}
