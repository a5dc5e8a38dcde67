//! The scan against serde_json: the same texts are taken, and the same places found in them.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::json::{Body, MAX_MEMBERS};

fn check(text: &[u8]) -> Option<usize> {
    let found = members(text, MAX_MEMBERS);
    let wanted = Body::parse_by_serde(Bytes::copy_from_slice(text)).ok().map(|body| (body.members, body.close));
    assert_eq!(found, wanted, "{}", String::from_utf8_lossy(text));
    // The object at a key is the one that a parse of its own finds.
    let text = Bytes::copy_from_slice(text);
    let nested = Body::parse(text.clone()).map(|body| body.nested("k").and_then(Result::ok));
    let parts = |body: &Body| (body.text.clone(), body.members.clone(), body.keys, body.close);
    let parts = |body: Result<Option<Body>, _>| body.map(|body| body.as_ref().map(parts));
    assert_eq!(parts(Body::inner(text.clone(), "k")), parts(nested), "{}", String::from_utf8_lossy(&text));
    found.map(|(members, _)| members.len())
}

#[test]
fn an_object_is_found_in_the_pass_over_what_it_is_in() {
    let found = |text: &str| {
        check(text.as_bytes());
        inner(text.as_bytes(), b"k", MAX_MEMBERS)
            .map(|found| found.map(|(start, (_, close))| text[start..=close].to_owned()))
    };
    let sure = |text: &str| Some(Some(text.to_owned()));
    assert_eq!(found(r#"{"a":[{"k":{}}],"k": {"k":{"b":1},"c":"}"} ,"z":2}"#), sure(r#"{"k":{"b":1},"c":"}"}"#));
    assert_eq!(found(r#"{"k":{"b":1},"k":{"b":2}}"#), sure(r#"{"b":2}"#));
    for without in [r#"{"k":{"b":1},"k":null}"#, r#"{"k":[{}]}"#, r#"{"kk":{},"K":{}}"#, "{}"] {
        assert_eq!(found(without), Some(None), "{without}");
    }
    for unsure in
        [r#"{"\u006b":{"b":1}}"#, r#"{"k":{"b":1},"\u006b":null}"#, r#"{"k":{}"#, r#"{"k":{}}}"#, r#"{"k":{a}}"#]
    {
        assert_eq!(found(unsure), None, "{unsure}");
    }
    let many = format!("{{\"k\":{{{}}}}}", vec!["\"b\":1"; MAX_MEMBERS + 1].join(","));
    assert_eq!(found(&many), None);
}

#[test]
fn what_serde_json_takes_is_taken_and_nothing_else() {
    let values = concat!(
        "0~-0~00~01~-~+1~1.~.5~1.5~1e5~1E+05~1e~1e+~1.e5~-1.0e-0~1e999~0x1~true~false~null~tru~nulll~True~NaN~Infinity~",
        "\"\"~\"a~a~'a'~[]~[ ]~[1]~[1,]~[,1]~[1 2]~[1}~{]~[[]]~[[[1],[]],2]~[~]~{}~{ }~{\"a\":1,}~{\"a\"}~{\"a\":}~{a:1}~{1:1}~",
        "{\"a\" : [ 1 , {\"b\":null} ] }~{\"a\":1 \"b\":2}~~ ~\u{b}1~\u{a0}1~\u{feff}1~//1",
    );
    for value in values.split('~') {
        for text in [format!("{{\"k\":{value}}}"), format!(" {{ \"k\" : {value} , \"l\\n\":1}} \n"), value.to_owned()] {
            check(text.as_bytes());
        }
    }
    for escape in [
        "n",
        "\"",
        "\\",
        "/",
        "b",
        "f",
        "r",
        "t",
        "u00e9",
        "uD800",
        "ud83d\\ude00",
        "u00g0",
        "u00",
        "x",
        "a",
        "0",
        "'",
        "\n",
    ] {
        for before in 0..40 {
            check(format!("{{\"{}\\{escape}\":\"{}\\{escape}x\"}}", "k".repeat(before), "v".repeat(before)).as_bytes());
        }
    }
    for text in ["{}x", "{} {}", "{}}", "{\"a\":1", "{\"a\":1}\0", "{\"a\":1,\"a\":2}"] {
        check(text.as_bytes());
    }
    let of = |count: usize| format!("{{{}}}", vec!["\"k\":1"; count].join(","));
    assert_eq!(check(of(MAX_MEMBERS).as_bytes()), Some(MAX_MEMBERS));
    assert_eq!(members(of(MAX_MEMBERS + 1).as_bytes(), MAX_MEMBERS), None);
    let deep = format!("{{\"k\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(check(deep.as_bytes()), Some(1));
}

#[test]
fn lists_of_whole_numbers_are_judged_alike() {
    for list in [
        "1,2,3",
        "0,1",
        "1,0",
        "01,2",
        "1,02",
        "00",
        "1,2,",
        ",1",
        "1,,2",
        "1, 2, 3",
        "1,  2",
        "1 ,2",
        "1,\n2",
        "1,-2,3",
        "-1,2",
        "1,2.5,3",
        "1,2e3",
        "1,\"a\",2",
        "1,[2,3],4",
        "[1,2],[3]",
        "1,{\"a\":[1,2]},3",
        "1,2 3",
        "1,2}",
        "1,x",
        "12",
        "1,",
        "0,",
        "0, ",
    ] {
        for text in [format!("{{\"k\":[{list}]}}"), format!("{{\"k\":[ {list} ],\"l\":1}}"), format!("{{\"k\":[{list}")]
        {
            check(text.as_bytes());
        }
    }
}

#[test]
fn every_byte_is_judged_wherever_it_stands_in_a_string() {
    for length in [0, 7, 8, 9, 31, 32, 33, 70, 100] {
        for at in 0..=length {
            let mut text = format!("{{\"k\":\"{}", "x".repeat(length)).into_bytes();
            text.insert(6 + at, b'?');
            text.extend_from_slice(b"\",\"l\":[1]}");
            for byte in [0, 1, 0x1f, b' ', b'"', b'\\', b'n', 0x7f, 0x80, 0xa0, 0xc3, 0xed, 0xff] {
                text[6 + at] = byte;
                check(&text);
            }
        }
    }
}

#[test]
fn every_byte_is_judged_wherever_it_stands_in_a_long_string() {
    for length in [LONG - 1, LONG + 8, LONG + PIECE, LONG + 2 * PIECE + 40] {
        let edges = [0, LONG, LONG + PIECE, LONG + 2 * PIECE, length];
        let near = edges.iter().flat_map(|edge| edge.saturating_sub(70)..=edge + 70);
        for at in near.filter(|at| *at <= length) {
            let mut text = format!("{{\"k\":\"{}", "x".repeat(length)).into_bytes();
            text.insert(6 + at, b'?');
            text.extend_from_slice(b"\",\"l\":[1]}");
            for byte in [0, 0x1f, b' ', b'"', b'\\', 0x7f, 0x80, 0xff] {
                text[6 + at] = byte;
                check(&text);
            }
        }
    }
}

/// Pieces of JSON and of what is nearly JSON.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "{", "}", "[", "]", ",", ":", "\"", "\\", "\"a\":", "\"b\": ", "1", "-2.5e3", "0", "true", "null", " ", "\n",
        "{}", "[]",
    ];
    prop_oneof![
        6 => prop::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        2 => "[ -~]{0,70}".prop_map(|text| format!("{text:?}").into_bytes()),
        1 => "\\PC{0,40}".prop_map(|text| serde_json::to_vec(&text).unwrap()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

/// Any JSON.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "\\PC{0,80}".prop_map(Into::into),
        (0..3 * PIECE, "\\PC{0,9}").prop_map(|(long, text)| format!("{}{text}", "x".repeat(long)).into()),
        "[\"\\\\\n\u{1f}a-c]{0,60}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::vec(("\\PC{0,12}", inner), 0..5)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn pieces_are_judged_alike(pieces in prop::collection::vec(piece(), 0..12)) {
        check(&[b"{\"k\":", &pieces.concat()[..], b"}"].concat());
        check(&pieces.concat());
    }

    #[test]
    fn numbers_are_judged_alike(list in "[0-3, .e\\[\\]-]{0,24}") {
        check(format!("{{\"k\":[{list}]}}").as_bytes());
    }

    #[test]
    fn mutated_objects_are_judged_alike(
        value in value(), pretty in any::<bool>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let object = serde_json::json!({"model": "m", "messages": value, "n": 1});
        let write = if pretty { serde_json::to_vec_pretty } else { serde_json::to_vec };
        let mut text = write(&object).unwrap();
        prop_assert_eq!(check(&text), Some(3));
        let at = at.index(text.len());
        text[at] = byte;
        check(&text);
        if cut {
            text.truncate(at);
        } else {
            text.remove(at);
        }
        check(&text);
    }
}
