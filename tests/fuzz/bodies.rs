//! Splicing a body against editing its parsed form.

use bytes::Bytes;
use moriio_proxy::json::{Body, BodyError, Edit, Json};
use serde_json::{Map, Value};

use super::fuzz;
use super::mutate::Random;
use super::readers::request;

const KEYS: [&str; 6] = ["max_tokens", "n", "stream", "stream_options", "request_id", "prompt"];

fn edits(random: &mut Random) -> Vec<Edit> {
    let chosen: Vec<&'static str> = KEYS.into_iter().filter(|_| random.one_in(2)).collect();
    let mut edits = Vec::new();
    for key in chosen {
        edits.push(match random.below(3) {
            0 => Edit::Remove(key),
            1 => Edit::Set(key, Json::Fixed("[1]")),
            _ => Edit::Set(key, Json::Text(format!("\"{}\"", "long ".repeat(random.below(300))))),
        });
    }
    edits
}

/// The same edits on a parsed object.
fn edit_value(object: &mut Map<String, Value>, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Remove(key) => drop(object.shift_remove(*key)),
            Edit::Set(key, value) => {
                let text = match value {
                    Json::Fixed(text) => text,
                    Json::Text(text) => text.as_str(),
                    Json::Parts(_) => unreachable!("not made here"),
                };
                object.insert((*key).to_owned(), serde_json::from_str(text).unwrap());
            }
        }
    }
}

#[test]
fn splicing_is_editing() {
    fuzz("Body::edit", |random| {
        let (_, text) = request(random);
        let edits = edits(random);
        let value = serde_json::from_slice::<Value>(&text);
        let body = match Body::parse(Bytes::from(text.clone())) {
            Ok(body) => body,
            Err(BodyError::TooManyMembers) => return,
            Err(BodyError::NotAnObject) => return assert!(!matches!(value, Ok(Value::Object(_)))),
            Err(BodyError::NotJson(_)) => return assert!(value.is_err(), "{}", String::from_utf8_lossy(&text)),
        };
        let spliced = body.edit(&edits);
        assert_eq!(spliced.len(), spliced.to_vec().len() as u64);
        assert!(spliced.parts().iter().all(|part| !part.is_empty()));
        assert_eq!(body.edit(&[]).to_vec(), text, "no edit, no change");
        // What only the raw reader takes (numbers out of range, lone surrogates) has no parsed form to compare with.
        if let Ok(Value::Object(mut object)) = value {
            edit_value(&mut object, &edits);
            let spliced: Value = serde_json::from_slice(&spliced.to_vec()).expect("an edited body is JSON");
            assert_eq!(spliced, Value::Object(object), "{} {edits:?}", String::from_utf8_lossy(&text));
        }
    });
}
