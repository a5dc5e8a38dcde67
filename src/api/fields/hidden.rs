//! Transfer params where nobody looks for them. Engines take them from the free arguments of a request too, and they name
//! hosts to dial: a client's never pass, wherever they stand (protocol T8).

use crate::error::ProxyError;
use crate::json::{Body, BodyError, Edit, Json, Segments};

use super::row::SAMPLING;

/// The key of transfer params.
pub(crate) const PARAMS: &str = "kv_transfer_params";

/// Objects of free arguments, at the top level and inside [`SAMPLING`].
const ARGUMENTS: [&str; 2] = ["vllm_xargs", "extra_args"];

/// Every place that is looked at, for the reference.
pub(super) fn places() -> Vec<String> {
    let mut places = vec![PARAMS.to_owned()];
    places.extend(ARGUMENTS.iter().map(|key| format!("{key}.{PARAMS}")));
    places.push(format!("{SAMPLING}.{PARAMS}"));
    places.extend(ARGUMENTS.iter().map(|key| format!("{SAMPLING}.{key}.{PARAMS}")));
    places
}

/// The body without transfer params, wherever a client has put them; untouched where there are none.
///
/// Of an object of arguments that is given twice the last one counts, for engines too, and stands in both places afterwards.
///
/// # Errors
/// When an object of arguments has more members than are searched.
pub(crate) fn stripped(body: Body) -> Result<Body, ProxyError> {
    let Some(clean) = clean(&body, &[SAMPLING, ARGUMENTS[0], ARGUMENTS[1]], "")? else {
        return Ok(body);
    };
    // Only a request with something to hide is copied.
    Body::parse(clean.to_vec().into()).map_err(|_| ProxyError::Internal)
}

/// The object without transfer params in it or in the objects named by `inside`; `None` where there are none.
fn clean(body: &Body, inside: &[&'static str], prefix: &str) -> Result<Option<Segments>, ProxyError> {
    let mut edits = Vec::new();
    if body.get(PARAMS).is_some() {
        edits.push(Edit::Remove(PARAMS));
    }
    for key in inside {
        let deeper: &[&'static str] = if *key == SAMPLING { &ARGUMENTS } else { &[] };
        let inner = match body.nested(key) {
            None | Some(Err(BodyError::NotAnObject)) => continue,
            Some(Ok(inner)) => inner,
            Some(Err(error)) => {
                let param = format!("{prefix}{key}");
                return Err(ProxyError::field(&param, format!("{param}: {error}")));
            }
        };
        match clean(&inner, deeper, &format!("{prefix}{key}."))? {
            Some(clean) => edits.push(Edit::Set(key, Json::Parts(clean))),
            None if body.count(key) > 1 => edits.push(Edit::Set(key, Json::Parts(inner.text().clone().into()))),
            None => {}
        }
    }
    Ok((!edits.is_empty()).then(|| body.edit(&edits)))
}
