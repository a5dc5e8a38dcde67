use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

fn parse(text: &str) -> Result<Body, BodyError> {
    Body::parse(Bytes::copy_from_slice(text.as_bytes()))
}

fn edited(text: &str, edits: &[Edit]) -> String {
    let segments = parse(text).unwrap().edit(edits);
    let whole = segments.to_vec();
    assert_eq!(segments.len(), whole.len() as u64);
    assert!(segments.parts().iter().all(|part| !part.is_empty()));
    String::from_utf8(whole).unwrap()
}

fn set(key: &'static str, value: &'static str) -> Edit {
    Edit::Set(key, Json::Fixed(value))
}

#[test]
fn edits_leave_other_bytes_alone() {
    let check = |text: &str, edits: &[Edit], want: &str| assert_eq!(edited(text, edits), want, "{text}");
    let remove = Edit::Remove;
    check("{}", &[], "{}");
    check("{}", &[set("a", "1")], r#"{"a":1}"#);
    check(" { } ", &[set("a", "1"), set("b", "2")], r#" { "a":1,"b":2} "#);
    check(r#"{"a":0}"#, &[set("a", "1")], r#"{"a":1}"#);
    check(r#"{"a":0}"#, &[remove("a")], "{}");
    check(r#"{"a":0}"#, &[remove("a"), set("b", "1")], r#"{"b":1}"#);
    check(r#"{ "a" : 0 , "b" : 1 }"#, &[remove("a")], r#"{ "b" : 1 }"#);
    check(r#"{ "a" : 0 , "b" : 1 }"#, &[remove("b")], r#"{ "a" : 0 }"#);
    check(r#"{"a":0,"b":1,"c":2}"#, &[remove("b"), set("d", "4")], r#"{"a":0,"c":2,"d":4}"#);
    check(r#"{"a":0,"b":1,"c":2}"#, &[remove("a"), remove("b")], r#"{"c":2}"#);
    check(r#"{"a":0,"b":1,"c":2}"#, &[remove("b"), remove("c")], r#"{"a":0}"#);
    check(r#"{"a":0,"b":1}"#, &[remove("a"), remove("b")], "{}");
    check(r#"{"t":0.70,"x":1.0e0,"u":"\u00e9"}"#, &[], r#"{"t":0.70,"x":1.0e0,"u":"\u00e9"}"#);
    // Duplicates: all are changed alike.
    check(r#"{"a":0,"b":1,"a":2}"#, &[set("a", "9")], r#"{"a":9,"b":1,"a":9}"#);
    check(r#"{"a":0,"b":1,"\u0061":2}"#, &[remove("a")], r#"{"b":1}"#);
    // A brace behind the last value, and one in a text.
    check(r#"{"a":"}"} "#, &[set("b", "{}")], r#"{"a":"}","b":{}} "#);
}

#[test]
fn of_duplicates_the_last_counts_and_escapes_are_seen_through() {
    let body = parse(r#"{"n":1, "\u006e" : 2 , "m":null,"\ud800":0}"#).unwrap();
    assert_eq!(body.get("n"), Some(&b"2"[..]));
    assert_eq!(body.get("m"), Some(&b"null"[..]));
    assert_eq!(body.get_some("m"), None);
    assert_eq!(body.get("x"), None);
}

#[test]
fn long_values_are_slices_of_the_original() {
    let prompt = "x".repeat(4096);
    let text = Bytes::from(format!(r#"{{"model":"m","prompt":"{prompt}","stream":true}}"#));
    let segments = Body::parse(text.clone()).unwrap().edit(&[set("stream", "false")]);
    let range = text.as_ptr() as usize..text.as_ptr() as usize + text.len();
    let shared: usize =
        segments.parts().iter().filter(|part| range.contains(&(part.as_ptr() as usize))).map(Bytes::len).sum();
    assert!(shared >= prompt.len());
    assert!(segments.parts().len() <= 3);
}

#[test]
fn nested_objects_are_edited_in_place() {
    let body = parse(r#"{"a": 1, "p": {"x": 5 ,"y":[1]} , "b":2}"#).unwrap();
    let inner = body.nested("p").unwrap().unwrap();
    let parts = inner.edit(&[set("x", "1")]);
    let whole = body.edit(&[Edit::Set("p", Json::Parts(parts))]).to_vec();
    assert_eq!(whole, br#"{"a": 1, "p": {"x": 1 ,"y":[1]} , "b":2}"#);
    assert_eq!(body.nested("a").unwrap().unwrap_err(), BodyError::NotAnObject);
    assert!(body.nested("z").is_none());
}

#[test]
fn what_is_no_object_is_refused() {
    for text in ["[]", "1", "\"a\"", "null", " [{}] "] {
        assert_eq!(parse(text).unwrap_err(), BodyError::NotAnObject, "{text}");
    }
    let bad = [
        "",
        "{",
        "{\"a\":1,}",
        "{\"a\":1}x",
        "{\"a\":NaN}",
        "{\"a\":01}",
        "{a:1}",
        "{1:1}",
        "\u{feff}{}",
        "{\"a\":[1,{\"b\":}]}",
        "{\"a\\x\":1}",
    ];
    for text in bad {
        assert!(matches!(parse(text), Err(BodyError::NotJson(_))), "{text}");
    }
    assert!(Body::parse(Bytes::from_static(b"{\"a\":\"\xff\"}")).is_err());
    assert!(Body::parse(Bytes::from_static(b"{\"\xff\":1}")).is_err());
}

#[test]
fn keys_are_limited_and_depth_is_not() {
    let many = |count: usize| {
        let members: Vec<String> = (0..count).map(|i| format!("\"k{i}\":0")).collect();
        format!("{{{}}}", members.join(","))
    };
    assert!(parse(&many(MAX_MEMBERS)).is_ok());
    assert_eq!(parse(&many(MAX_MEMBERS + 1)).unwrap_err(), BodyError::TooManyMembers);
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200_000), "]".repeat(200_000));
    assert!(parse(&deep).is_ok());
    assert!(parse(&deep[..100_000]).is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-d\"\\\\]{0,2}", inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn any_edits() -> impl Strategy<Value = Vec<Edit>> {
    let keys = prop::sample::subsequence(vec!["a", "b", "c", "d", "ab"], 0..5);
    (keys, any::<u8>()).prop_map(|(keys, bits)| {
        let choose = |(i, key)| {
            if bits >> i & 1 == 0 { Edit::Remove(key) } else { set(key, "[1,\"set\"]") }
        };
        keys.into_iter().enumerate().map(choose).collect()
    })
}

proptest! {
    #[test]
    fn an_edit_equals_the_same_edit_of_the_value(
        members in prop::collection::vec(("[a-d\"\\\\]{0,2}", any_json()), 0..8),
        edits in any_edits(),
        spaces in prop::sample::select(vec!["", " ", "\n\t "]),
    ) {
        let texts: Vec<String> = members
            .iter()
            .map(|(key, value)| format!("{spaces}{}{spaces}:{spaces}{value}{spaces}", json!(key)))
            .collect();
        let text = format!("{spaces}{{{spaces}{}}}{spaces}", texts.join(","));
        let mut want: Map<String, Value> = serde_json::from_str(&text).unwrap();
        for edit in &edits {
            match edit {
                Edit::Set(key, _) => { want.insert((*key).to_owned(), json!([1, "set"])); }
                Edit::Remove(key) => { want.remove(*key); }
            }
        }
        let got: Map<String, Value> = serde_json::from_str(&edited(&text, &edits)).unwrap();
        prop_assert_eq!(got, want);
        if edits.is_empty() {
            prop_assert_eq!(edited(&text, &edits), text);
        }
    }

    #[test]
    fn no_input_panics(text in prop::collection::vec(prop::sample::select(&b"{}[]\",:\\u0061a1 \n\xff"[..]), 0..40), edits in any_edits()) {
        if let Ok(body) = Body::parse(Bytes::from(text)) {
            let whole = body.edit(&edits).to_vec();
            prop_assert!(Body::parse(Bytes::from(whole)).is_ok());
        }
    }
}
