//! The relay on paused time: what the client gets, when, and what the record and the leg say of it.

use std::sync::Arc;
use std::time::Instant as Clock;

use http_body_util::BodyExt;
use tokio_util::task::TaskTracker;

use super::*;
use crate::api::request::Request;
use crate::engine::Mode;
use crate::exchange::drive::{Asked, Means};
use crate::exchange::opening::Opening;
use crate::exchange::tests::Act::{self, Breaks, Ends, Says};
use crate::exchange::tests::played;
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::pool::tests::engine_of;
use crate::pool::{Engine, LegEnd, Pool};
use crate::routing::{Demand, Selector};
use crate::settings::{PickRules, Times, TokenBudget};
use crate::upstream::Upstream;

const FIRST: Duration = Duration::from_millis(2000);
const IDLE: Duration = Duration::from_millis(700);

const A: &str = "data: {\"text\":\"a\"}\n\n";
const B: &str = "data: {\"text\":\"b\"}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const COMMENT: &str = ": keep-alive\n\n";
const PREAMBLE: &str = "event: response.created\ndata: {}\n\n";

/// An answer on its way.
struct Story {
    relay: Relay,
    began: Instant,
    engine: Arc<Engine>,
    leg: LegEnd,
    /// The exchange's own.
    metrics: Arc<Metrics>,
    cut: CancellationToken,
}

/// How an answer ends for its client.
enum Close {
    /// As it should.
    Well,
    /// With an error event that says this.
    Event(&'static str),
    /// The connection is broken off; the record has this code.
    BrokenOff(&'static str),
}

fn means(pool: Pool) -> Arc<Means> {
    let metrics = Arc::new(Metrics::new());
    let limits = Times {
        connect: FIRST,
        prefill: FIRST,
        first_byte: FIRST,
        answer: FIRST,
        idle: IDLE,
        cold: FIRST,
        hand_over: FIRST,
        wake: FIRST,
    };
    Arc::new(Means {
        upstream: Upstream::new(FIRST, 1).unwrap(),
        selector: Selector::new(PickRules { allow_stale: true, ..PickRules::default() }),
        pool: tokio::sync::watch::channel(Arc::new(pool)).1,
        notifier: Notifier::start(false, metrics.clone()).unwrap(),
        metrics,
        background: TaskTracker::new(),
        limits,
        serial_write: false,
        tells_cached: false,
        waits_for_room: false,
        cut: CancellationToken::new(),
    })
}

impl Story {
    /// Decode's head came `late` milliseconds after prefill was done.
    fn told(api: Api, events: bool, late: u64, acts: &[(u64, Act)]) -> Story {
        let engine = engine_of(2, Role::Decode, 1, 2);
        let means = means(Pool::new([engine_of(1, Role::Prefill, 1, 1), engine.clone()], Some(Mode::Read)));
        let text = Bytes::from_static(b"{\"prompt\":\"x\",\"stream\":true}");
        let request = Request::parse(Api::Completions, text, TokenBudget::MinusOne).unwrap();
        let asked = Arc::new(Asked { request, headers: Bytes::new(), demand: Demand::default(), prefix: [].into() });
        let picked = means.selector.pick(&means.pool.borrow(), Demand::default(), &[], Clock::now()).unwrap();
        let leg = picked.decode.leg_end();
        let content_type = if events { "text/event-stream" } else { "application/json" };
        let drive = Drive::relaying(&means, &asked, picked, |mut guard| {
            guard.dispatch();
            Opening::new(played(content_type, acts), guard, api)
        });
        let (status, headers) = (http::StatusCode::OK, http::HeaderMap::new());
        let head = Head { role: Role::Decode, status, headers, is_events: events };
        let began = Instant::now();
        let from = began - Duration::from_millis(late);
        let limits =
            RelayLimits { first_byte: Limit::new(FIRST, "first output", "--first-byte-timeout"), from, idle: IDLE };
        let (metrics, cut) = (Arc::new(Metrics::new()), CancellationToken::new());
        let mut exchange = Exchange::open(metrics.clone(), api.as_str(), None);
        exchange.committed(200);
        let relay = Relay::new(drive, &head, exchange, limits, (api, cut.clone()));
        Story { relay, began, engine, leg, metrics, cut }
    }

    fn stream(acts: &[(u64, Act)]) -> Story {
        Story::told(Api::Completions, true, 0, acts)
    }

    /// What the client gets next, and when.
    async fn next(&mut self) -> (u64, Option<Result<String, BrokenOff>>) {
        let part = self.relay.frame().await;
        let text = |frame: Frame<Bytes>| String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
        (u64::try_from(self.began.elapsed().as_millis()).unwrap(), part.map(|part| part.map(text)))
    }

    /// The client gets these parts at these milliseconds.
    async fn passes(&mut self, parts: &[(u64, &str)]) {
        for (at, wanted) in parts {
            let (after, part) = self.next().await;
            assert_eq!((after, part.unwrap().unwrap().as_str()), (*at, *wanted));
        }
    }

    /// The answer ends at this millisecond, and everything agrees on how.
    async fn closes(mut self, at: u64, how: Close, leg: &str) {
        let (after, last) = self.next().await;
        let (ended, code) = match (how, last) {
            (Close::Well, None) => ("complete", ""),
            (Close::Event(what), Some(Ok(text))) => {
                assert!(text.ends_with("}\n\n") && !text.contains("[DONE]"), "{text}");
                assert!(text.contains(what), "{text}");
                assert!(self.next().await.1.is_none(), "nothing comes after the error event");
                ("cut", "")
            }
            (Close::BrokenOff(code), Some(Err(BrokenOff))) => ("cut", code),
            (_, last) => panic!("{last:?} after {after} ms"),
        };
        assert_eq!(after, at);
        assert_eq!(self.leg.word(), Some(leg));
        drop(self.relay);
        let metrics = self.metrics.render();
        assert!(metrics.contains(&format!("moriio_exchanges_total{{ended=\"{ended}\"}} 1\n")), "{metrics}");
        assert_eq!(metrics.contains("moriio_errors_total{"), ended == "cut", "{metrics}");
        assert!(code.is_empty() || metrics.contains(&format!("code=\"{code}\"")), "{metrics}");
        assert_eq!((self.metrics.exchanges_open(), self.engine.vitals.in_flight()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_stream_at_its_limit() {
    let mut story = Story::stream(&[(1, Says(A)), (700, Says(B)), (1399, Says(A))]);
    story.passes(&[(1, A), (700, B), (1399, A)]).await;
    story.closes(2099, Close::Event("decode engine: no byte within 0.7s (--stream-idle-timeout)"), "timeout").await;
    // What the engine left unfinished is closed, so that the error is an event of its own.
    let mut story = Story::stream(&[(1, Says(A)), (2, Says("data: {\"te"))]);
    story.passes(&[(1, A), (2, "data: {\"te")]).await;
    story.closes(702, Close::Event("\n\ndata: {\"error\":"), "timeout").await;
}

#[tokio::test(start_paused = true)]
async fn comments_move_no_clock() {
    let comments = (1..10).map(|n| (100 * n, Says(COMMENT)));
    let mut story = Story::stream(&[(1, Says(A))].into_iter().chain(comments.clone()).collect::<Vec<_>>());
    story.passes(&[(1, A)]).await;
    for n in 1..=7 {
        story.passes(&[(100 * n, COMMENT)]).await;
    }
    story.closes(701, Close::Event("--stream-idle-timeout"), "timeout").await;
    // A part that says something begins the time anew, whatever came before it.
    let mut story = Story::stream(&[(1, Says(A)), (400, Says(COMMENT)), (600, Says(B)), (1000, Says(COMMENT))]);
    story.passes(&[(1, A), (400, COMMENT), (600, B), (1000, COMMENT)]).await;
    story.closes(1300, Close::Event("--stream-idle-timeout"), "timeout").await;
}

#[tokio::test(start_paused = true)]
async fn the_first_output_has_a_limit_from_prefills_end() {
    let late = |limit| (limit, Close::Event("--first-byte-timeout"), "timeout");
    let comments = [(500, Says(COMMENT)), (1000, Says(COMMENT)), (1900, Says(COMMENT))];
    for api in [Api::Completions, Api::Chat, Api::Responses, Api::Messages, Api::Generate] {
        let (at, how, leg) = late(2000);
        Story::told(api, true, 0, &[]).closes(at, how, leg).await;
        let (at, how, leg) = late(500);
        Story::told(api, true, 1500, &[]).closes(at, how, leg).await;
        let (at, how, leg) = late(2000);
        let mut story = Story::told(api, true, 0, &comments);
        story.passes(&[(500, COMMENT), (1000, COMMENT), (1900, COMMENT)]).await;
        story.closes(at, how, leg).await;
    }
    // A preamble passes and proves nothing.
    let mut story = Story::told(Api::Responses, true, 0, &[(900, Says(PREAMBLE))]);
    story.passes(&[(900, PREAMBLE)]).await;
    let (at, how, leg) = late(2000);
    story.closes(at, how, leg).await;
    // From the first output on it is the other limit, which may end later.
    let mut story = Story::stream(&[(1999, Says(A))]);
    story.passes(&[(1999, A)]).await;
    story.closes(2699, Close::Event("--stream-idle-timeout"), "timeout").await;
}

#[tokio::test(start_paused = true)]
async fn time_in_which_the_client_asks_for_nothing_counts_for_none() {
    let away = Duration::from_secs(60);
    // The engine has sent all long ago.
    let mut story = Story::stream(&[(1, Says(A)), (2, Says(B)), (3, Says(DONE)), (4, Ends)]);
    tokio::time::sleep(away).await;
    story.passes(&[(60_000, &[A, B, DONE].concat())]).await;
    tokio::time::sleep(away).await;
    story.closes(120_000, Close::Well, "2xx").await;
    // It is silent: what it was waited for before counts, the client's absence does not.
    let mut story = Story::stream(&[(1, Says(A)), (401, Says(COMMENT))]);
    story.passes(&[(1, A), (401, COMMENT)]).await;
    tokio::time::sleep(away).await;
    story.closes(60_701, Close::Event("--stream-idle-timeout"), "timeout").await;
}

/// The limit on the first output goes on while the client asks for nothing; what is there when it asks is passed.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_away_before_the_first_output_gets_what_is_there() {
    let away = Duration::from_secs(60);
    let story = Story::stream(&[]);
    tokio::time::sleep(away).await;
    story.closes(60_000, Close::Event("--first-byte-timeout"), "timeout").await;
    let mut story = Story::stream(&[(100, Says(A))]);
    tokio::time::sleep(away).await;
    story.passes(&[(60_000, A)]).await;
    story.closes(60_700, Close::Event("--stream-idle-timeout"), "timeout").await;
}

#[tokio::test(start_paused = true)]
async fn the_engine_has_a_second_after_its_end_marker() {
    for (rest, at) in [(None, 1001), (Some(Ends), 501), (Some(Breaks), 501)] {
        let acts: Vec<_> = [(1, Says(DONE))].into_iter().chain(rest.map(|act| (501, act))).collect();
        let mut story = Story::stream(&acts);
        story.passes(&[(1, DONE)]).await;
        story.closes(at, Close::Well, "2xx").await;
    }
    // In two parts, and with a comment after it.
    let mut story = Story::stream(&[(1, Says("data: [DO")), (100, Says("NE]\n\n")), (600, Says(COMMENT))]);
    story.passes(&[(1, "data: [DO"), (100, "NE]\n\n"), (600, COMMENT)]).await;
    story.closes(1100, Close::Well, "2xx").await;
    // Without it the answer is not whole, however it ends.
    for act in [Ends, Breaks] {
        let mut story = Story::stream(&[(1, Says(A)), (300, act)]);
        story.passes(&[(1, A)]).await;
        story.closes(300, Close::Event("engine_connection_broken"), "broken").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_after_the_end_marker_has_the_whole_answer() {
    for (acts, ended, leg) in
        [(vec![(1, Says(DONE))], "complete", "2xx"), (vec![(1, Says(A))], "client_gone", "cancelled")]
    {
        let mut story = Story::stream(&acts);
        story.next().await;
        drop(story.relay);
        assert_eq!(story.leg.word(), Some(leg));
        assert!(story.metrics.render().contains(&format!("moriio_exchanges_total{{ended=\"{ended}\"}} 1\n")));
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_come_is_passed_on_in_one_part() {
    let mut story = Story::stream(&[(1, Says(A)), (1, Says(B)), (1, Says(A)), (2, Says(B)), (3, Says(A))]);
    story.passes(&[(1, &[A, B, A].concat()), (2, B), (3, A)]).await;
    story.closes(703, Close::Event("--stream-idle-timeout"), "timeout").await;
    // The end comes with it.
    let mut story = Story::stream(&[(1, Says(A)), (1, Says(B)), (1, Says(DONE)), (1, Ends)]);
    story.passes(&[(1, &[A, B, DONE].concat())]).await;
    story.closes(1, Close::Well, "2xx").await;
    // An error event does not.
    let mut story = Story::stream(&[(1, Says(A)), (1, Says(B)), (1, Breaks)]);
    story.passes(&[(1, &[A, B].concat())]).await;
    story.closes(1, Close::Event("data: {\"error\":"), "broken").await;
}

#[tokio::test(start_paused = true)]
async fn the_cut_ends_what_is_waited_for() {
    let cut_at = |story: &Story, at: u64| {
        let cut = story.cut.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(at)).await;
            cut.cancel();
        });
    };
    let mut story = Story::stream(&[(1, Says(A))]);
    cut_at(&story, 300);
    story.passes(&[(1, A)]).await;
    story.closes(300, Close::Event("\"stopping\""), "cancelled").await;
    let story = Story::stream(&[]);
    cut_at(&story, 300);
    story.closes(300, Close::Event("\"stopping\""), "cancelled").await;
    let mut story = Story::told(Api::Completions, false, 0, &[(1, Says("{\"choices\":"))]);
    cut_at(&story, 300);
    story.passes(&[(1, "{\"choices\":")]).await;
    story.closes(300, Close::BrokenOff("stopping"), "cancelled").await;
    // What is there is passed all the same.
    let mut story = Story::stream(&[(1, Says(A)), (2, Says(DONE)), (3, Ends)]);
    tokio::time::sleep(Duration::from_millis(10)).await;
    story.cut.cancel();
    story.passes(&[(10, &[A, DONE].concat())]).await;
    story.closes(10, Close::Well, "2xx").await;
}

/// An answer in one piece has the same limits; it cannot tell its client of an error but by breaking off.
#[tokio::test(start_paused = true)]
async fn an_answer_in_one_piece_is_broken_off() {
    let piece = |acts: &[(u64, Act)]| Story::told(Api::Completions, false, 0, acts);
    piece(&[]).closes(2000, Close::BrokenOff("engine_timeout"), "timeout").await;
    let mut story = piece(&[(1, Says("{\"choices\":"))]);
    story.passes(&[(1, "{\"choices\":")]).await;
    story.closes(701, Close::BrokenOff("engine_timeout"), "timeout").await;
    let mut story = piece(&[(1, Says("{\"choices\":")), (300, Breaks)]);
    story.passes(&[(1, "{\"choices\":")]).await;
    story.closes(300, Close::BrokenOff("engine_connection_broken"), "broken").await;
    let mut story = piece(&[(1, Says("{\"choices\":")), (300, Says("[]}")), (600, Ends)]);
    story.passes(&[(1, "{\"choices\":"), (300, "[]}")]).await;
    story.closes(600, Close::Well, "2xx").await;
}
