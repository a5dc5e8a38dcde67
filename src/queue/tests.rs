//! The line under many hands: nobody is forgotten, and no place is given twice.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;

use super::*;

fn queue(in_flight: usize, line: usize) -> Arc<Queue> {
    let rules = Admission { in_flight, line, time: Duration::from_secs(60), is_capped: true };
    Queue::new(rules, Arc::new(Metrics::new()))
}

/// Waits until it may look, as a request does.
async fn looked(ticket: &mut Ticket) {
    while !ticket.may_look() {
        ticket.join().expect("room in the line");
        ticket.called().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everybody_is_served_and_no_place_is_given_twice() {
    const PLACES: usize = 3;
    let (queue, busy, served) = (queue(PLACES, 1000), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let all = (0..500u64).map(|number| {
        let (queue, busy, served) = (queue.clone(), busy.clone(), served.clone());
        tokio::spawn(async move {
            let mut ticket = queue.ticket((number % 3) as i64, (!number.is_multiple_of(4)).then_some(number % 7));
            if number % 5 == 0 {
                // A client that leaves, at once or while it waits.
                let _ = tokio::time::timeout(Duration::from_micros(number), looked(&mut ticket)).await;
                return;
            }
            looked(&mut ticket).await;
            if number % 6 == 1 {
                // Something else is in its way for a while.
                ticket.step_aside();
                tokio::task::yield_now().await;
                looked(&mut ticket).await;
            }
            let place = ticket.served().expect("its first pair");
            assert!(busy.fetch_add(1, Ordering::SeqCst) < PLACES);
            tokio::time::sleep(Duration::from_micros(number % 11 * 20)).await;
            busy.fetch_sub(1, Ordering::SeqCst);
            drop(place);
            served.fetch_add(1, Ordering::SeqCst);
        })
    });
    let all = tokio::time::timeout(Duration::from_secs(60), join_all(all)).await.expect("nobody is forgotten");
    assert!(all.into_iter().all(|one| one.is_ok()));
    assert_eq!(served.load(Ordering::SeqCst), 400);
    let state = queue.state();
    assert_eq!((state.in_flight, state.waiting.len()), (0, 0));
    assert_eq!((queue.metrics.queued.get(), state.rounds.len()), (0, 0));
}

#[test]
fn whoever_goes_back_has_its_turn_again() {
    let queue = queue(1, 10);
    let mut first = queue.ticket(0, None);
    assert!(first.may_look());
    let place = first.served().unwrap();
    let mut tickets: Vec<Ticket> = (0..3).map(|_| queue.ticket(0, None)).collect();
    for ticket in &mut tickets {
        assert!(!ticket.may_look());
        ticket.join().unwrap();
    }
    // An engine turned it away: it gives its place back, and is before all that came since.
    drop(place);
    first.comes_back();
    assert!(first.may_look());
    let turn = |ticket: &Ticket| ticket.turn.unwrap();
    assert!(turn(&first) < turn(&tickets[0]) && !tickets[0].may_look());
    drop(first);
    assert!(tickets[0].may_look());
    // One that presses more comes first; what it needs is not held by who has to wait for it.
    let mut urgent = queue.ticket(-1, None);
    assert!(!urgent.may_look());
    urgent.join().unwrap();
    assert!(!tickets[0].may_look() && urgent.may_look());
}

/// Who comes to the front is called, whatever those before it wait for.
#[tokio::test]
async fn whoever_joins_in_front_is_called() {
    let queue = queue(1, 10);
    let mut first = queue.ticket(0, None);
    assert!(first.may_look());
    first.join().unwrap();
    let mut urgent = queue.ticket(-1, None);
    urgent.join().unwrap();
    tokio::time::timeout(Duration::from_secs(10), urgent.called()).await.expect("a call");
    drop((first, urgent));
    // Alone, too: nobody else would.
    let mut alone = queue.ticket(0, None);
    alone.join().unwrap();
    tokio::time::timeout(Duration::from_secs(10), alone.called()).await.expect("a call");
    // Those that leave unserved leave their session's round, too.
    let names: Vec<Ticket> = (0..20)
        .map(|_| {
            let mut ticket = queue.ticket(0, Some(7));
            ticket.join().unwrap_or(());
            ticket
        })
        .collect();
    drop(names);
    assert!(queue.state().rounds.is_empty());
}

#[test]
fn the_line_has_an_end() {
    let queue = queue(1, 2);
    let mut tickets: Vec<Ticket> = (0..4).map(|_| queue.ticket(0, None)).collect();
    assert!(tickets[0].may_look());
    let place = tickets[0].served();
    assert!(place.is_some() && queue.admit().is_ok());
    for ticket in &mut tickets[1..3] {
        assert!(!ticket.may_look() && ticket.join().is_ok());
    }
    assert!(matches!(tickets[3].join(), Err(ProxyError::Overloaded { retry_after: 1 })));
    assert!(queue.admit().is_err());
    // Who leaves makes room.
    tickets.remove(1);
    assert!(tickets[2].join().is_ok());
}

/// Who is served meanwhile before all of them does not make a priority's own rounds unfair.
#[test]
fn rounds_are_a_prioritys_own() {
    let queue = queue(1, 100);
    let join = |priority, session| {
        let mut ticket = queue.ticket(priority, Some(session));
        ticket.join().unwrap();
        ticket
    };
    let mut agent: Vec<Ticket> = (0..5).map(|_| join(10, 1)).collect();
    for number in 0..20 {
        let mut urgent = join(0, 100 + number % 2);
        assert!(urgent.may_look());
        drop(urgent.served());
    }
    let mut other = join(10, 2);
    assert!(agent[0].may_look());
    drop(agent.remove(0).served());
    assert!(!agent[0].may_look() && other.may_look(), "its first is before the other's second");
    drop(other.served());
    // Priorities that nobody has any more are forgotten.
    for priority in 0..5000 {
        let mut ticket = queue.ticket(-priority, Some(priority as u64));
        ticket.join().unwrap();
        assert!(ticket.may_look());
        drop(ticket.served());
    }
    let kept = {
        let state = queue.state();
        state.served.len().max(state.rounds.len())
    };
    assert!(kept <= ROUNDS_KEPT + 20, "{kept}");
    drop(agent);
    let state = queue.state();
    assert_eq!((state.served.len(), state.rounds.len()), (0, 0));
}
