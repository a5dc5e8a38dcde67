//! What is known of prompts, what is taken back, and what is forgotten.

use super::*;

const SOME: u64 = 1 << 20;

fn blocks(prompt: u64, count: u64) -> Vec<u64> {
    (0..count).map(|number| (prompt << 32 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

#[test]
fn the_longest_beginning_is_found() {
    let prefixes = Prefixes::new(SOME);
    let all = blocks(1, 300);
    assert_eq!(prefixes.longest(&all, 4), Longest::default());
    assert_eq!(prefixes.meet(&all[..100], (7, 0)).1, None);
    prefixes.meet(&all[..200], (8, 1));
    let found = prefixes.longest(&all, 4);
    assert_eq!((found.blocks, found.holders[..2].to_vec(), found.bytes()), (200, vec![Some((8, 1)), None], 200 * 2048));
    let found = prefixes.longest(&all[..90], 4);
    assert_eq!((found.blocks, found.holders[..3].to_vec()), (90, vec![Some((8, 1)), Some((7, 0)), None]));
    let forecast = prefixes.meet(&all, (7, 0)).1.unwrap();
    assert_eq!((forecast.place, (forecast.part * 300.0).round()), ((7, 0), 100.0));
    assert_eq!(prefixes.longest(&[], 4), Longest::default());
}

#[test]
fn memory_is_bounded_and_the_oldest_go() {
    let prefixes = Prefixes::new(SOME);
    let most = SOME as usize / ENTRY;
    for prompt in 0..100 {
        prefixes.meet(&blocks(prompt, 1000), (prompt % 3, 0));
        // One that is met now and then.
        if prompt % 5 == 0 {
            prefixes.meet(&blocks(1000, 10), (9, 0));
        }
    }
    assert!((most / 4..=most).contains(&prefixes.len()), "{} of {most}", prefixes.len());
    assert_eq!(prefixes.longest(&blocks(99, 1000), 4).blocks, 1000);
    assert_eq!((prefixes.longest(&blocks(1000, 10), 4).blocks, prefixes.longest(&blocks(0, 1000), 4).blocks), (10, 0));
}

/// What an engine has lost shows by one prompt, and whatever it met before that is forgotten with it.
#[test]
fn what_an_engine_has_lost_is_unlearned() {
    let prefixes = Prefixes::new(SOME);
    let place = (7, 0);
    for prompt in 1..=4 {
        prefixes.meet(&blocks(prompt, 10), place);
    }
    prefixes.meet(&blocks(1, 10), (8, 0));
    // It had most of what was expected: nothing is wrong.
    let forecast = prefixes.meet(&blocks(4, 12), place).1.unwrap();
    prefixes.learn(&forecast, 3600, 6000);
    assert_eq!(prefixes.longest(&blocks(2, 10), 4).blocks, 10);
    // Of the third it has nothing left.
    let forecast = prefixes.meet(&blocks(3, 10), place).1.unwrap();
    // Were it an image, nothing would be known.
    prefixes.learn(&forecast, 0, 100);
    assert_eq!(prefixes.longest(&blocks(2, 10), 4).blocks, 10);
    prefixes.learn(&forecast, 0, 5000);
    let holders = |prompt| prefixes.longest(&blocks(prompt, 10), 4).holders[0];
    assert_eq!([1, 2, 3, 4].map(holders), [Some((8, 0)), None, Some(place), Some(place)]);
}

/// A system prompt that many have: each new conversation goes where it is, but not all to the one that had it first.
#[test]
fn new_conversations_do_not_crowd() {
    let prefixes = Prefixes::new(SOME);
    let of = |own: u64, count: u64| [blocks(1, 40), blocks(own, count)].concat();
    for own in 100..104 {
        prefixes.meet(&of(own, 60), (1, 0));
    }
    // Four have begun there: as many as there are of one rank, more than there are to be of four.
    assert_eq!(prefixes.longest(&of(104, 5), 1).holders[0], Some((1, 0)));
    assert_eq!(prefixes.longest(&of(104, 5), 4).holders[0], None);
    // Its own conversation goes on there.
    let grown = [of(100, 60), blocks(200, 5)].concat();
    assert_eq!(prefixes.longest(&grown, 4).holders[0], Some((1, 0)));
    // Once others have it, too, it is a matter of where the fewest have begun.
    for (rank, count) in [(2, 3), (3, 1), (4, 2)] {
        for number in 0..count {
            prefixes.meet(&of(1000 * rank + number, 60), (rank, 0));
        }
    }
    let found = prefixes.longest(&of(300, 5), 4);
    assert_eq!((found.blocks, &found.holders[..4]), (40, &[3, 4, 2, 1].map(|rank| Some((rank, 0)))[..]));
}

/// An engine that turned a prompt away has nothing of it, and nothing else is forgotten for that.
#[test]
fn what_did_not_come_to_pass_is_taken_back() {
    let prefixes = Prefixes::new(SOME);
    let (one, other) = (blocks(1, 300), blocks(2, 10));
    prefixes.meet(&other, (7, 0));
    prefixes.meet(&one[..100], (8, 0));
    let (meeting, forecast) = prefixes.meet(&one, (7, 0));
    assert_eq!(forecast, None);
    prefixes.unmeet(&one, meeting);
    let found = prefixes.longest(&one, 4);
    assert_eq!((found.blocks, found.holders[0], found.holders[1]), (100, Some((8, 0)), None));
    assert_eq!(prefixes.meet(&one, (7, 0)).1, None);
    assert_eq!(prefixes.longest(&other, 4).holders[0], Some((7, 0)));
}

/// However often engines were restarted: what has begun lately is told by the slots that there are.
#[test]
fn lives_that_have_ended_soon_do_not_count() {
    let prefixes = Prefixes::new(SOME);
    for number in 0..2000 {
        prefixes.longest(&blocks(number, 2), 4);
        prefixes.meet(&blocks(number, 2), (number / 10, 0));
    }
    assert!(prefixes.known().begun <= 4 * LATELY + 1);
}
