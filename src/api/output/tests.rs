use super::*;

const CHAT: &str = "data: {\"id\":\"a\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const TEXT: &str = "data: {\"id\":\"a\",\"choices\":[{\"text\":\"x\"}]}\n\n";
const ERROR: &str = "data: {\"error\": {\"message\":\"no\",\"type\":\"x\",\"param\":null,\"code\":503}}\n\n";
const CREATED: &str = "event: response.created\ndata: {\"type\":\"response.created\"}\n\n";
const PROGRESS: &str = "event: response.in_progress\ndata: {\"type\":\"response.in_progress\"}\n\n";

/// What a text comes to, the same wherever it is cut.
fn check(api: Api, text: &str, stage: Stage, error: Option<u16>) {
    for size in 1..=text.len().max(1) {
        let mut scanner = Scanner::new(api, true);
        for part in text.as_bytes().chunks(size) {
            scanner.feed(part);
        }
        let told = scanner.take_error();
        let got = (scanner.stage(), told.map(|error| error.status.as_u16()));
        assert_eq!(got, (stage, error), "{api:?} in parts of {size}: {text}");
    }
}

#[test]
fn what_proves_what() {
    use Stage::{Begun, Ended, Output, Waiting};
    let comment = ": keep-alive\n\n";
    for api in Api::ALL {
        check(api, "", Waiting, None);
        check(api, comment, Waiting, None);
        check(api, ":\n\n\r\n: data: {}\n", Waiting, None);
    }
    for api in [Api::Completions, Api::Generate] {
        check(api, TEXT, Output, None);
        check(api, &format!("{comment}{TEXT}{comment}"), Output, None);
        check(api, &format!("{TEXT}data: [DONE]\n\n"), Ended, None);
        check(api, &format!("{TEXT}data:  [DONE] no\n\n"), Output, None);
        check(api, ERROR, Waiting, Some(503));
        check(api, &ERROR.replace("{\"error\": ", "{ \"error\":"), Waiting, Some(503));
        check(api, &ERROR.replace("503", "\"404\""), Waiting, Some(404));
        check(api, &ERROR.replace("503", "200"), Waiting, Some(500));
        check(api, &ERROR.replace("503", "null"), Waiting, Some(500));
        check(api, "data: {\"error\": null, \"choices\": []}\n\n", Output, None);
        check(api, &format!("{TEXT}{ERROR}data: [DONE]\n\n"), Ended, Some(503));
    }
    check(Api::Chat, CHAT, Begun, None);
    check(Api::Chat, &format!("{CHAT}{CHAT}"), Output, None);
    check(Api::Chat, &format!("{CHAT}{ERROR}"), Begun, Some(503));
    check(Api::Chat, "data: {\"id\":1}\r\n\r\ndata: [DONE]\r\n\r\n", Ended, None);
    check(Api::Responses, &format!("{CREATED}{PROGRESS}"), Waiting, None);
    check(Api::Responses, &format!("{CREATED}event: response.output_item.added\ndata: {{}}\n\n"), Output, None);
    for last in ["completed", "incomplete", "failed"] {
        let event = format!("{CREATED}event: response.{last}\ndata: {{\"a\":1}}\n");
        check(Api::Responses, &event, Output, None);
        check(Api::Responses, &format!("{event}\n"), Ended, None);
    }
    check(Api::Responses, "event: error\ndata: {\"type\":\"error\",\"code\":\"x\"}\n\n", Waiting, Some(500));
    check(Api::Responses, ERROR, Waiting, Some(503));
    let start = "event: message_start\ndata: {\"type\":\"message_start\"}\n\n";
    check(Api::Messages, start, Begun, None);
    check(Api::Messages, &format!("{start}event: content_block_start\ndata: {{}}\n\n"), Output, None);
    check(Api::Messages, "event: message_stop\ndata: {}\n\n", Ended, None);
    let error =
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"m\"}}\n\n";
    check(Api::Messages, &format!("{start}{error}"), Begun, Some(503));
    check(Api::Messages, &error.replace("overloaded_error", "internal_error"), Waiting, Some(500));
}

#[test]
fn an_answer_in_one_piece_is_output_from_its_first_byte() {
    let mut scanner = Scanner::new(Api::Chat, false);
    assert!(!scanner.feed(b""));
    assert_eq!(scanner.stage(), Stage::Waiting);
    assert!(scanner.feed(b": "));
    assert_eq!(scanner.stage(), Stage::Output);
}

#[test]
fn comments_are_no_sign_of_work() {
    let mut scanner = Scanner::new(Api::Completions, true);
    for (part, speaks) in [
        (&b": keep-alive\n\n"[..], false),
        (b": keep", false),
        (b"-alive\n", false),
        (b"\r\n", false),
        (b": a\n\ndata: {}", true),
        (b" \n\n", true),
        (b"\n: a\n", false),
    ] {
        assert_eq!(scanner.feed(part), speaks, "{}", String::from_utf8_lossy(part));
    }
    assert_eq!(scanner.comments(), 4);
}

#[test]
fn an_unfinished_last_line_counts_at_the_end() {
    let mut scanner = Scanner::new(Api::Completions, true);
    scanner.feed(b"data: {}\n\ndata: [DONE]");
    assert_eq!(scanner.stage(), Stage::Output);
    scanner.finish();
    assert_eq!(scanner.stage(), Stage::Ended);
    let mut scanner = Scanner::new(Api::Messages, true);
    scanner.feed(b"event: message_stop\ndata: {}");
    scanner.finish();
    assert_eq!(scanner.stage(), Stage::Ended);
}

#[test]
fn events_begin_after_blank_lines() {
    let mut scanner = Scanner::new(Api::Completions, true);
    for (part, between) in
        [("", true), ("data: {}", false), ("\n", false), ("\n", true), (": a\n", false), ("\r\n", true), ("x", false)]
    {
        scanner.feed(part.as_bytes());
        assert_eq!(scanner.is_between_events(), between, "{part:?}");
    }
}

#[test]
fn a_long_line_is_not_kept_whole() {
    let mut scanner = Scanner::new(Api::Completions, true);
    scanner.feed(b"data: {\"error\": \"");
    for _ in 0..100 {
        scanner.feed(&[b'x'; 4096]);
    }
    assert!(scanner.line.capacity() <= 4 * LINE_KEPT);
    scanner.feed(b"\"}\n\n");
    assert_eq!((scanner.stage(), scanner.take_error()), (Stage::Output, None));
}

#[test]
fn comments_are_cut_out_whole() {
    for (text, want) in [
        (": a\n\ndata: {}\n\n", "data: {}\n\n"),
        ("data: {}\n\n: a\r\n\r\ndata: 2\n\n", "data: {}\n\ndata: 2\n\n"),
        ("data: {}\n\n: unfinished", "data: {}\n\n: unfinished"),
        (": a\n: b\n\n", ""),
        ("event: x\n: a\n\ndata: 1\n\n", "event: x\n\ndata: 1\n\n"),
    ] {
        assert_eq!(without_comments(text.as_bytes()), want.as_bytes());
    }
}

#[test]
fn every_api_has_its_row() {
    for api in Api::ALL {
        assert_eq!(rules(api).api, api);
        assert!(reference_table().contains(&format!("| {} |", api.as_str())));
    }
}
