use bytes::Bytes;

use crate::api::legs::{cached_tokens, may_say_cached_tokens};
use crate::json::Body;

#[test]
fn cached_tokens_are_looked_for_before_a_parse() {
    let check = |text: &str, looked: bool, wanted: Option<u64>| {
        assert_eq!(may_say_cached_tokens(text.as_bytes()), looked, "{text}");
        let object = Body::parse(Bytes::copy_from_slice(text.as_bytes()));
        assert_eq!(object.ok().as_ref().and_then(|object| cached_tokens(object).0), wanted, "{text}");
    };
    for (value, wanted) in [("4", Some(4)), ("0 ", Some(0)), ("null", None), ("-1", None), ("\"4\"", None)] {
        check(&format!(r#"{{"usage": {{"prompt_tokens_details":{{"cached_tokens":{value}}}}}}}"#), true, wanted);
    }
    for text in [r#"{"usage":{"prompt_tokens_details":null}}"#, ""] {
        check(text, false, None);
    }
    check(r#"{"a":{"remote_prefill_cached_tokens":16}}"#, true, None);
    // The params' word counts, whatever the usage says; the prompt's tokens are beside it.
    let told = r#"{"kv_transfer_params":{"remote_prefill_cached_tokens":16},"usage":{"prompt_tokens":64,"prompt_tokens_details":{"cached_tokens":9}}}"#;
    check(told, true, Some(16));
    let object = Body::parse(Bytes::from_static(told.as_bytes())).unwrap();
    assert_eq!(cached_tokens(&object), (Some(16), Some(64)));
}
