use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Admission, Caller, Hold, PATIENCE, Places, QUIET, RESERVED, SILENT};
use crate::metrics::Metrics;

fn places(limit: usize) -> Places {
    Places::new(limit, Arc::new(Metrics::new()))
}

/// A connection that has been served and is idle.
fn idle(places: &Places, now: Instant) -> Arc<Caller> {
    let caller = places.open(now);
    assert_eq!(places.request(&caller, false, now), Admission::Serve);
    places.answered(&caller, now);
    caller
}

fn busy(places: &Places, now: Instant) -> Arc<Caller> {
    let caller = places.open(now);
    assert_eq!(places.request(&caller, false, now), Admission::Serve);
    caller
}

#[test]
fn the_one_that_has_been_idle_longest_gives_way() {
    let (places, now) = (places(3), Instant::now());
    let [first, second, third] = [0, 1, 2].map(|_| idle(&places, now));
    // The first is served once more, so the second has been idle longest.
    places.heard(&first);
    assert_eq!(places.request(&first, false, now), Admission::Serve);
    places.answered(&first, now);
    let newcomer = places.open(now);
    assert_eq!(newcomer.hold(), Hold::Reserved);
    assert_eq!(places.request(&newcomer, true, now), Admission::Once, "a probe costs nobody a place");
    let newcomer = busy(&places, now);
    assert_eq!(
        [&first, &second, &third, &newcomer].map(|c| c.hold()),
        [Hold::Place, Hold::Nothing, Hold::Place, Hold::Place]
    );
    assert_eq!(places.metrics.places_in_use.get(), 3);
    for caller in [&first, &second, &third, &newcomer] {
        places.close(caller);
    }
    assert_eq!(places.metrics.places_in_use.get(), 0);
}

#[test]
fn who_has_a_request_keeps_the_place() {
    let (places, now) = (places(2), Instant::now());
    let (running, begun) = (busy(&places, now), idle(&places, now));
    // Half a head is a request, too.
    places.heard(&begun);
    let newcomer = places.open(now);
    assert_eq!(places.request(&newcomer, false, now), Admission::Refuse);
    assert_eq!([&running, &begun].map(|c| c.hold()), [Hold::Place, Hold::Place]);
    places.close(&running);
    assert_eq!(places.request(&newcomer, false, now), Admission::Serve, "a place that is free by now is taken");
}

#[test]
fn a_request_that_comes_after_all_is_told_so() {
    let (places, now) = (places(1), Instant::now());
    let ousted = idle(&places, now);
    let newcomer = busy(&places, now);
    assert_eq!(ousted.hold(), Hold::Nothing);
    assert_eq!(places.request(&ousted, false, now), Admission::Refuse);
    assert_eq!(places.request(&ousted, true, now), Admission::Once);
    places.answered(&newcomer, now);
    assert_eq!(places.request(&ousted, false, now), Admission::Serve);
    assert_eq!((ousted.hold(), newcomer.hold()), (Hold::Place, Hold::Nothing));
}

#[test]
fn who_has_just_come_is_given_time_to_speak() {
    let (places, now) = (places(1), Instant::now());
    let silent = places.open(now);
    let newcomer = places.open(now);
    assert_eq!(places.request(&newcomer, false, now + SILENT / 2), Admission::Refuse);
    assert_eq!(places.request(&newcomer, false, now + SILENT), Admission::Serve);
    assert_eq!(silent.hold(), Hold::Nothing);
}

#[test]
fn reserved_places_do_not_run_out() {
    let (places, now) = (places(1), Instant::now());
    let _running = busy(&places, now);
    let waiting: Vec<_> = (0..RESERVED).map(|_| places.open(now)).collect();
    assert_eq!(places.make_room(now), Some(PATIENCE));
    let later = now + PATIENCE;
    // One that has asked by now is left alone; the next in line has to go.
    assert_eq!(places.request(&waiting[0], true, later), Admission::Once);
    assert!(places.make_room(later).is_some());
    assert!(!places.books().waiting.values().any(|(_, caller)| Arc::ptr_eq(caller, &waiting[1])));
    assert_eq!(places.books().waiting.len(), RESERVED - 2);
    places.close(&waiting[1]);
    assert_eq!(places.make_room(later), None);
}

#[test]
fn a_shortage_is_over_once_there_has_been_room_for_a_while() {
    let (places, now) = (places(10), Instant::now());
    let callers: Vec<_> = (0..10).map(|_| busy(&places, now)).collect();
    assert!(!places.is_short());
    places.close(&places.open(now));
    assert_eq!((places.is_short(), places.metrics.places_full.get()), (true, 1));
    places.settle(now + QUIET);
    assert!(places.is_short(), "every place is still taken");
    places.answered(&callers[0], now);
    places.settle(now + QUIET - Duration::from_millis(1));
    assert!(places.is_short(), "too soon");
    places.settle(now + QUIET);
    assert_eq!((places.is_short(), places.metrics.places_full.get()), (false, 0));
}

#[test]
fn without_descriptors_an_idle_connection_gives_its_own_back() {
    let (places, now) = (places(10), Instant::now());
    let (kept, running) = (idle(&places, now), busy(&places, now));
    places.press(true, now);
    assert_eq!((kept.hold(), running.hold()), (Hold::Nothing, Hold::Place));
    assert_eq!(places.metrics.places_in_use.get(), 1);
    let newcomer = places.open(now);
    assert_eq!(newcomer.hold(), Hold::Reserved, "there are places, but nothing to serve them with");
    assert_eq!(places.request(&newcomer, false, now), Admission::Refuse);
    places.settle(now + QUIET);
    assert!(places.is_short());
    places.press(false, now);
    places.settle(now + QUIET);
    assert!(!places.is_short());
    assert_eq!(places.open(now).hold(), Hold::Place);
}
