//! Random histories of a pool against a simple model of it: registry, selector, guards and breakers under passed-in time.
//! `MORIIO_MODEL_SEQUENCES` (100) is the number of histories; a failure names the seed of its own.

mod history;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use history::History;

#[test]
fn histories_agree_with_the_model() {
    let count = std::env::var("MORIIO_MODEL_SEQUENCES").ok().and_then(|text| text.parse().ok());
    let only = std::env::var("MORIIO_MODEL_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let first = only.unwrap_or_else(|| crate::fuzz::mutate::Random::of_the_moment().next());
    let count = if only.is_some() { 1 } else { count.unwrap_or(100) };
    let (mut picks, mut alone) = (0, 0);
    for number in 0..count {
        let seed = first.wrapping_add(number);
        match catch_unwind(AssertUnwindSafe(|| History::new(seed).run(120))) {
            Ok((some, of_decode)) => {
                picks += some;
                alone += of_decode;
            }
            Err(panic) => {
                eprintln!("model: repeat with MORIIO_MODEL_SEED={seed}");
                resume_unwind(panic);
            }
        }
    }
    // One that is repeated may have had no occasion.
    assert!(
        only.is_some() || (picks > count && alone > count / 8),
        "the histories picked hardly anything: {picks}, {alone} of decode alone"
    );
}
