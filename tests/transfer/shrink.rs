//! A failing attempt made as simple as it can be, and told so that it can be read.

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use moriio_proxy::exchange::transfer::{Action, Event};

use super::coverage::Coverage;
use super::dice::{Dice, Die, QUESTIONS};
use super::rules::{Breach, Micros};
use super::world::{Line, Outcome, World, micros, zero};

const PANIC: Breach = "the machine panicked";

/// What is wrong with the attempt of these dice.
pub fn breach(dice: &Dice, coverage: &mut Coverage) -> Option<Breach> {
    match catch_unwind(AssertUnwindSafe(|| World::new(dice, coverage, false).run().breach)) {
        Ok(breach) => breach,
        Err(_) => Some(PANIC),
    }
}

/// Puts zeros for one die after the other, as long as the same rule is broken.
pub fn shrink(mut dice: Dice, wanted: Breach) -> Dice {
    let mut coverage = Coverage::default();
    for size in [16, 4, 1, 1] {
        for first in (0..QUESTIONS).step_by(size) {
            let mut duller = dice.clone();
            duller.0[first..QUESTIONS.min(first + size)].fill(0);
            if breach(&duller, &mut coverage) == Some(wanted) {
                dice = duller;
            }
        }
    }
    dice
}

/// The history of these dice, a line for each thing that happened.
pub fn told(dice: &Dice) -> String {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut coverage = Coverage::default();
        World::new(dice, &mut coverage, true).run()
    }));
    let Ok(outcome) = outcome else { return PANIC.to_owned() };
    let mut text = head(dice, &outcome);
    let shown = shown(&outcome.history);
    for (index, (at, line)) in outcome.history.iter().enumerate() {
        if !shown[index] {
            if shown[index - 1] {
                text += "                   ... looks and looks\n";
            }
            continue;
        }
        let seconds = *at as f64 / 1e6;
        let _ = match line {
            Line::World(what) => writeln!(text, "{seconds:12.6} s         ({what})"),
            Line::Event(Event::Written(role, at)) => {
                let at = micros(zero(), *at) as f64 / 1e6;
                writeln!(text, "{seconds:12.6} s  Written({role:?}, at {at:.6} s)")
            }
            Line::Event(event) => writeln!(text, "{seconds:12.6} s  {event:?}"),
            Line::Action(action) => writeln!(text, "                   -> {action:?}"),
        };
    }
    let _ = writeln!(text, "broken: {}", outcome.breach.unwrap_or("nothing"));
    text
}

/// Of many looks in a row the first and the last few tell enough.
fn shown(history: &[(Micros, Line)]) -> Vec<bool> {
    const FEW: usize = 6;
    let is_look = |line: &Line| matches!(line, Line::Event(Event::Due | Event::Seen(_)) | Line::Action(Action::Look));
    let looks: Vec<bool> = history.iter().map(|(_, line)| is_look(line)).collect();
    let near = |index: usize| {
        let from = index.saturating_sub(FEW);
        let to = history.len().min(index + FEW + 1);
        looks[from..=index].iter().any(|look| !look) || looks[index..to].iter().any(|look| !look)
    };
    (0..history.len()).map(|index| near(index) || index + FEW >= history.len()).collect()
}

fn head(dice: &Dice, outcome: &Outcome) -> String {
    let rolled: Vec<String> =
        Die::ALL.iter().filter(|die| dice.0[**die as usize] != 0).map(|die| format!("{die:?}")).collect();
    let versions =
        outcome.versions.map(|version| version.map_or("unknown".to_owned(), |(a, b, c)| format!("{a}.{b}.{c}")));
    format!(
        "{:?}\nprefill {}, decode {}; left to chance: {}\n",
        outcome.terms,
        versions[0],
        versions[1],
        rolled.join(" ")
    )
}
