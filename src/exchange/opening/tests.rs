//! The grace between an engine's first report and its first output, on paused time.

use std::time::Instant as Clock;

use super::*;
use crate::engine::Role;
use crate::exchange::tests::{Act, played};
use crate::pool::tests::engine_of;

const ROLE: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n";
const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const ERROR: &str = "data: {\"error\":{\"message\":\"no\",\"code\":503}}\n\n";
const COMMENT: &str = ": keep-alive\n\n";
const PREAMBLE: &str = "event: response.created\ndata: {}\n\n";

fn opening(api: Api, acts: &[(u64, Act)]) -> Opening {
    let guard = engine_of(1, Role::Decode, 1, 1).admit(Clock::now()).unwrap();
    Opening::new(played("text/event-stream", acts), guard, api)
}

/// The steps of an answer up to the one that decides, each with the milliseconds after which it came.
async fn check(api: Api, acts: &[(u64, Act)], wanted: &[(u64, &str)]) {
    let (mut opening, began) = (opening(api, acts), Instant::now());
    let mut steps = Vec::new();
    loop {
        let step = opening.step().await;
        let after = u64::try_from(began.elapsed().as_millis()).unwrap();
        let word = match step {
            Step::Ready => "ready",
            Step::Comment => "comment",
            Step::Waiting => "waiting",
            Step::Failed(_) => "failed",
        };
        steps.push((after, word));
        if matches!(step, Step::Ready | Step::Failed(_)) {
            break;
        }
    }
    assert_eq!(steps, wanted, "{acts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_has_reported_gets_a_grace_to_show_a_token() {
    let says = |at, text| (at, Act::Says(text));
    let chat = Api::Chat;
    check(chat, &[says(10, ROLE)], &[(10, "waiting"), (110, "ready")]).await;
    // The grace is the report's: nothing that proves nothing makes it longer.
    check(chat, &[says(10, ROLE), says(60, COMMENT)], &[(10, "waiting"), (60, "comment"), (110, "ready")]).await;
    check(chat, &[says(10, ROLE), says(60, TOKEN)], &[(10, "waiting"), (60, "ready")]).await;
    // What fails within it has computed nothing.
    check(chat, &[says(10, ROLE), says(109, ERROR)], &[(10, "waiting"), (109, "failed")]).await;
    check(chat, &[says(10, ROLE), (109, Act::Breaks)], &[(10, "waiting"), (109, "failed")]).await;
    check(chat, &[says(10, ROLE), (109, Act::Ends)], &[(10, "waiting"), (109, "failed")]).await;
    check(chat, &[says(10, ROLE), says(111, ERROR)], &[(10, "waiting"), (110, "ready")]).await;
}

/// Other limits end these.
#[tokio::test(start_paused = true)]
async fn before_a_report_there_is_no_grace() {
    let day = Duration::from_secs(24 * 3600);
    for (api, text) in [(Api::Completions, COMMENT), (Api::Chat, COMMENT), (Api::Responses, PREAMBLE)] {
        let mut opening = opening(api, &[(10, Act::Says(text))]);
        let first = opening.step().await;
        assert_eq!(matches!(first, Step::Comment), text == COMMENT, "{api:?} {first:?}");
        assert!(tokio::time::timeout(day, opening.step()).await.is_err(), "{api:?}");
        assert!(!opening.is_begun());
    }
}
