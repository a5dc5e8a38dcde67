//! The state machine of an attempt, by event.

use std::time::{Duration, Instant};

use divan::Bencher;
use divan::counter::ItemsCount;
use moriio_proxy::engine::Role;
use moriio_proxy::exchange::transfer::{Answer, Event, Plan, Releases, Terms, Transfer};

const WRITE: [Event; 7] = [
    Event::Start,
    Event::Started(Role::Prefill),
    Event::Started(Role::Decode),
    Event::Answered(Answer::Params),
    Event::Head,
    Event::Report,
    Event::Output,
];
const READ: [Event; 7] = [
    Event::Start,
    Event::Started(Role::Prefill),
    Event::Answered(Answer::Params),
    Event::Started(Role::Decode),
    Event::Head,
    Event::Report,
    Event::Output,
];

fn attempt(bencher: Bencher, plan: Plan, events: &[Event]) {
    let time = Duration::from_secs(60);
    let terms = Terms {
        plan,
        streams: true,
        releases: Releases::Always,
        wakes: true,
        first_output: time,
        orphan: time,
        hand_over: time,
        wake: time,
    };
    let now = Instant::now();
    bencher.counter(ItemsCount::new(events.len())).bench(|| {
        let (mut transfer, mut actions) = (Transfer::new(terms), Vec::new());
        for event in events {
            transfer.on(*event, now, &mut actions);
        }
        assert!(transfer.is_over());
        actions
    });
}

#[divan::bench]
fn write_attempt_of_seven_events(bencher: Bencher) {
    attempt(bencher, Plan::Write { serial: false }, &WRITE);
}

#[divan::bench]
fn read_attempt_of_seven_events(bencher: Bencher) {
    attempt(bencher, Plan::Read, &READ);
}
