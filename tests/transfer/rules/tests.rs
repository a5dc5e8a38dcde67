//! The judge's own rules, one by one.

use super::{Blocks, Breach, Decode, Facts, Form, Left, MS, Prefill, SECOND, Stage, VERSIONS, Work};

fn version(minor: u16, patch: u16) -> &'static Facts {
    VERSIONS.iter().find(|facts| facts.version == Some((0, minor, patch))).unwrap()
}

/// A prefill of this version that computes.
fn computing(facts: &'static Facts) -> Prefill {
    let mut prefill = Prefill::new(facts, false);
    prefill.take();
    prefill.begin();
    assert_eq!((prefill.work, prefill.blocks), (Work::Computing, Blocks::Held));
    prefill
}

/// A WRITE decode that waits.
fn waiting(facts: &'static Facts) -> Decode {
    let mut decode = Decode::new(facts, false);
    decode.stage = Stage::Queued;
    assert_eq!(decode.wait(), Stage::Waiting);
    decode
}

/// The rule that a breach names.
fn rule<T>(result: Result<T, Breach>) -> &'static str {
    result.err().map_or("", |breach| breach.split(':').next().unwrap())
}

#[test]
fn a_second_wake_ends_decode() {
    let mut decode = waiting(version(32, 0));
    assert_eq!(decode.hears(Form::WriteDone, true), Ok(Stage::Arrived));
    assert_eq!(rule(decode.hears(Form::WriteDone, true)), "K11");
    decode.stage = Stage::Running;
    assert_eq!(rule(decode.hears(Form::WriteDone, false)), "K11", "prefill's push after our wake ends it, too");
    decode.stage = Stage::Over;
    assert_eq!(decode.hears(Form::WriteDone, true), Ok(Stage::Over), "it is kept for ever, and ends nothing");
}

#[test]
fn a_wake_that_comes_early_is_kept_once() {
    let mut decode = Decode::new(version(32, 0), false);
    decode.stage = Stage::Server;
    assert_eq!(decode.hears(Form::WriteDone, true), Ok(Stage::Server));
    assert_eq!(rule(decode.hears(Form::WriteDone, true)), "K11");
    decode.stage = Stage::Queued;
    assert_eq!(decode.wait(), Stage::Arrived);
}

#[test]
fn a_wake_is_understood_by_version() {
    let understood = |minor, patch| {
        let hears = |form| rule(waiting(version(minor, patch)).hears(form, true)).is_empty();
        [hears(Form::WriteDone), hears(Form::WriteFailed), hears(Form::Release)]
    };
    assert_eq!(understood(18, 1), [false; 3]);
    assert_eq!(understood(23, 0), [false; 3]);
    assert_eq!(understood(24, 0), [true, false, false]);
    assert_eq!(understood(32, 0), [true, false, false]);
    assert_eq!(understood(33, 0), [true, true, false]);
    assert_eq!(waiting(version(33, 0)).hears(Form::WriteFailed, true), Ok(Stage::Over), "it fails");
}

#[test]
fn closing_a_leg_that_waits_loses_its_blocks() {
    let mut decode = waiting(version(32, 0));
    assert_eq!((decode.close(), decode.stage), (Left::Lost, Stage::Lost));
    for stage in [Stage::Server, Stage::Queued, Stage::Arrived, Stage::Running] {
        decode.stage = stage;
        assert_eq!((decode.close(), decode.stage), (Left::Freed, Stage::Over));
    }
}

#[test]
fn closing_a_reader_too_early_leaves_prefills_blocks() {
    let closed = |stage| {
        let mut decode = Decode::new(version(32, 0), true);
        decode.stage = stage;
        decode.close()
    };
    assert_eq!(closed(Stage::Server), Left::Forgotten);
    assert_eq!(closed(Stage::Queued), Left::Releases);
    assert_eq!(closed(Stage::Loading), Left::GoesOn);
    assert_eq!(closed(Stage::Running), Left::Freed);
}

#[test]
fn an_early_release_ends_old_engines() {
    for (facts, rule_broken) in
        [(version(24, 0), "K6"), (version(27, 1), "K6"), (version(28, 0), ""), (version(33, 0), "")]
    {
        let mut prefill = computing(facts);
        assert_eq!(rule(prefill.release(Form::Release, 0)), rule_broken, "{:?}", facts.version);
        let mut prefill = computing(facts);
        prefill.abort(0);
        assert_eq!(rule(prefill.release(Form::Release, 0)), rule_broken, "{:?}", facts.version);
        let mut prefill = computing(facts);
        prefill.end(true, None, 0);
        assert_eq!(prefill.release(Form::Release, 0), Ok(()));
        assert_eq!(prefill.blocks, Blocks::Free);
    }
}

#[test]
fn a_release_is_understood_by_version() {
    let forms = [Form::Text, Form::Release, Form::WriteDone, Form::WriteFailed];
    let understood = |minor, patch| {
        forms.map(|form| {
            let mut prefill = computing(version(minor, patch));
            prefill.end(true, None, 0);
            prefill.release(form, 0).is_ok()
        })
    };
    assert_eq!(understood(18, 1), [false; 4]);
    assert_eq!(understood(22, 1), [false; 4]);
    assert_eq!(understood(23, 0), [true, false, false, false]);
    assert_eq!(understood(24, 0), [false, true, false, false]);
    assert_eq!(understood(33, 0), [false, true, false, false]);
}

#[test]
fn a_second_release_breaks_a_rule() {
    let mut prefill = computing(version(32, 0));
    prefill.end(true, None, 0);
    assert_eq!(prefill.release(Form::Release, 0), Ok(()));
    assert_eq!(rule(prefill.release(Form::Release, 0)), "K7");
}

#[test]
fn a_release_that_comes_early_is_kept() {
    let mut prefill = computing(version(32, 0));
    prefill.announce(None, 0);
    assert_eq!(prefill.release(Form::Release, 0), Ok(()));
    assert_eq!(prefill.blocks, Blocks::Held);
    assert_eq!(prefill.end(true, Some(MS), SECOND), None, "no write_done follows");
    assert_eq!(prefill.blocks, Blocks::Free);
}

#[test]
fn prefill_pushes_in_either_order_and_frees_its_blocks() {
    let mut prefill = computing(version(32, 0));
    assert_eq!(prefill.announce(Some(MS), 0), None);
    assert_eq!(prefill.end(true, Some(MS), SECOND), Some(SECOND + MS));
    assert!(!prefill.written(SECOND), "not yet");
    assert!(prefill.written(SECOND + MS));
    assert_eq!((prefill.blocks, prefill.may_write(SECOND + MS)), (Blocks::Free, false));

    let mut prefill = computing(version(32, 0));
    assert_eq!(prefill.end(true, Some(MS), 0), None);
    assert!(prefill.may_write(30 * SECOND), "its writes are put off");
    assert_eq!(prefill.announce(Some(MS), 30 * SECOND), Some(30 * SECOND + MS));
}

#[test]
fn a_prefill_that_failed_may_write_until_its_timer() {
    let mut prefill = computing(version(32, 0));
    prefill.end(true, Some(MS), 0);
    assert!(prefill.may_write(59 * SECOND) && !prefill.may_write(60 * SECOND));
    prefill.time_out();
    assert_eq!(prefill.blocks, Blocks::TimedOut);

    let mut prefill = computing(version(22, 1));
    prefill.end(true, Some(MS), 0);
    assert!(prefill.may_write(1000 * SECOND), "without end up to 0.22.1");
}

#[test]
fn a_released_prefill_ends_what_is_under_way_and_no_more() {
    let mut prefill = computing(version(32, 0));
    prefill.end(true, Some(20 * SECOND), 0);
    prefill.announce(Some(20 * SECOND), 0);
    assert_eq!(prefill.release(Form::Release, SECOND), Ok(()));
    assert!(prefill.may_write(2 * SECOND) && !prefill.may_write(3 * SECOND));
    assert!(!prefill.written(20 * SECOND), "no write_done follows");

    let mut prefill = computing(version(32, 0));
    prefill.end(true, Some(MS), 0);
    assert_eq!(prefill.release(Form::Release, 0), Ok(()));
    assert_eq!(prefill.announce(Some(MS), SECOND), None, "a later announcement is ignored");
    assert!(!prefill.may_write(SECOND));
}

#[test]
fn an_aborted_prefill_holds_nothing_and_may_write_what_it_had() {
    let mut prefill = computing(version(32, 0));
    assert!(!prefill.abort(0));
    assert_eq!(prefill.blocks, Blocks::Free);
    assert!(prefill.may_write(SECOND));
    prefill.announce(Some(MS), SECOND);
    assert!(prefill.may_write(2 * SECOND) && !prefill.may_write(3 * SECOND));

    let mut prefill = computing(version(33, 0));
    prefill.announce(None, 0);
    assert!(prefill.abort(0), "from 0.33.0 it reports that");
}

#[test]
fn what_ends_otherwise_holds_nothing() {
    let mut prefill = computing(version(32, 0));
    prefill.end(false, None, 0);
    assert_eq!((prefill.blocks, prefill.may_write(0)), (Blocks::Free, false));
    let mut prefill = Prefill::new(version(32, 0), false);
    prefill.take();
    prefill.refuse();
    assert_eq!((prefill.blocks, prefill.may_write(0)), (Blocks::None, false));
}

#[test]
fn readers_free_blocks_where_the_version_hears_them() {
    for (facts, blocks) in [(version(22, 1), Blocks::Held), (version(23, 0), Blocks::Free)] {
        let mut prefill = Prefill::new(facts, true);
        prefill.take();
        prefill.begin();
        prefill.end(true, None, 0);
        prefill.reader_done(0);
        assert_eq!(prefill.blocks, blocks);
    }
}

#[test]
fn a_crash_loses_what_is_held_and_writes_no_more() {
    let mut prefill = computing(version(32, 0));
    prefill.crash();
    assert_eq!((prefill.blocks, prefill.may_write(0)), (Blocks::Lost, false));
    let mut decode = waiting(version(32, 0));
    decode.crash();
    assert_eq!(decode.hears(Form::WriteDone, true), Ok(Stage::Gone), "a later process has no such request");
}
