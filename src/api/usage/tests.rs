mod prefill;

use super::*;

fn check(api: Api, text: &str, cached: Option<u64>, wanted: Option<&str>) {
    let text = Bytes::copy_from_slice(text.as_bytes());
    assert_eq!(corrected(api, &text, cached).as_deref(), wanted.map(str::as_bytes), "{api:?} {cached:?}");
}

#[test]
fn openai_s_details_have_what_prefill_had() {
    for api in [Api::Completions, Api::Chat, Api::Generate] {
        let of = |details: &str| {
            format!(r#"{{"id":"a", "usage": {{"prompt_tokens": 9,{details}"total_tokens":10}},"z":"é"}}"#)
        };
        let before = of(r#""prompt_tokens_details":{"cached_tokens":8,"multimodal_tokens":{"image":1}},"#);
        let after = of(r#""prompt_tokens_details":{"cached_tokens":4,"multimodal_tokens":{"image":1}},"#);
        check(api, &before, Some(4), Some(&after));
        let unknown = of(r#""prompt_tokens_details":{"multimodal_tokens":{"image":1}},"#);
        check(api, &before, None, Some(&unknown));
        let before = of(r#""prompt_tokens_details":null,"#);
        check(api, &before, Some(0), Some(&of(r#""prompt_tokens_details":{"cached_tokens":0},"#)));
        check(api, &before, None, None);
        let added = r#"{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":7}}}"#;
        check(api, r#"{"usage":{"prompt_tokens":9}}"#, Some(7), Some(added));
        for without in
            [r#"{"usage":null}"#, r#"{"choices":[{"text":"\"usage\":{}"}]}"#, "[DONE]", "{", "[1]", r#"{"usage":7}"#]
        {
            check(api, without, Some(7), None);
        }
    }
}

#[test]
fn responses_have_it_whole_and_in_their_last_event() {
    let usage =
        |cached: u64| format!(r#"{{"input_tokens":9,"input_tokens_details":{{"cached_tokens":{cached},"x":[8]}}}}"#);
    let whole = |cached| format!(r#"{{"object":"response","usage":{}}}"#, usage(cached));
    let event = |cached| format!(r#"{{"type":"response.completed","response":{{"usage":{},"z":1}}}}"#, usage(cached));
    for (before, after, unknown) in [(whole(8), whole(4), whole(0)), (event(8), event(4), event(0))] {
        check(Api::Responses, &before, Some(4), Some(&after));
        check(Api::Responses, &before, None, Some(&unknown));
    }
    check(Api::Responses, r#"{"type":"response.created","response":{"usage":null}}"#, Some(4), None);
}

#[test]
fn what_was_cached_is_no_input_of_messages() {
    let of = |input: u64, cached: &str| format!(r#"{{"input_tokens":{input},"output_tokens":3{cached}}}"#);
    for form in ["{\"usage\":@}", "{\"type\":\"message_start\",\"message\":{\"usage\":@}}"] {
        let form = |usage: String| form.replace('@', &usage);
        let read = r#","cache_read_input_tokens":"#;
        check(Api::Messages, &form(of(9, "")), Some(4), Some(&form(of(5, &format!("{read}4")))));
        check(Api::Messages, &form(of(1, &format!("{read}8"))), Some(4), Some(&form(of(5, &format!("{read}4")))));
        check(Api::Messages, &form(of(1, &format!("{read}8"))), None, Some(&form(of(9, ""))));
        check(Api::Messages, &form(of(9, "")), None, None);
        // Nobody has cached more than there is.
        check(Api::Messages, &form(of(9, "")), Some(20), Some(&form(of(0, &format!("{read}9")))));
    }
}

#[test]
fn what_engines_tell_is_heard_wherever_it_stands() {
    let of = |api, text: &str| told(api, &Bytes::copy_from_slice(text.as_bytes()));
    let details = r#""prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":4}"#;
    assert_eq!(of(Api::Chat, &format!("{{\"usage\":{{{details}}}}}")), Some((4, 9)));
    let details = r#""input_tokens":9,"input_tokens_details":{"cached_tokens":4}"#;
    for form in ["{\"usage\":@}", "{\"response\":{\"usage\":@}}"] {
        assert_eq!(of(Api::Responses, &form.replace('@', &format!("{{{details}}}"))), Some((4, 9)), "{form}");
    }
    for form in ["{\"usage\":@}", "{\"message\":{\"usage\":@}}"] {
        let read = r#"{"input_tokens":5,"cache_read_input_tokens":4}"#;
        assert_eq!(of(Api::Messages, &form.replace('@', read)), Some((4, 9)), "{form}");
        assert_eq!(of(Api::Messages, &form.replace('@', r#"{"input_tokens":5}"#)), None, "{form}");
    }
    assert_eq!(of(Api::Chat, r#"{"usage":{"prompt_tokens":9,"prompt_tokens_details":null}}"#), None);
}

#[test]
fn a_usage_is_no_text_and_no_null() {
    for (text, found) in [
        (r#"{"usage": {"a":1}}"#, true),
        ("{\"usage\"\n:\t{}}", true),
        (r#"{"usage":null}"#, false),
        (r#"{"text":"\"usage\":{}"}"#, false),
        (r#"{"usage":null,"response":{"usage":{}}}"#, true),
        (r#"{"usage""#, false),
    ] {
        assert_eq!(is_in(text.as_bytes()), found, "{text}");
    }
}
