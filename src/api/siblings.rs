//! Requests for several answers: `n`, and lists of prompts. One transfer holds one prompt and one answer (protocol F6), so each answer
//! is a sibling with a pair of its own, and what they say is one answer again: as an undivided engine would have numbered and summed
//! it. Pure; every byte that is not renumbered passes as it came.

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::api::Api;
use crate::api::fields::values::whole_number;
use crate::error::ProxyError;
use crate::json::{Body, Edit, Json, Segments};

/// What is a sibling's own.
#[derive(Clone, Debug)]
pub struct Sibling {
    /// Its place among all answers.
    pub index: u32,
    /// Its prompt, where the client sent several.
    prompt: Option<Bytes>,
    /// Its seed, where the client sent one: engines count up from it.
    seed: Option<i64>,
}

/// The shape of what is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Siblings.
    pub count: u32,
    /// Of each prompt.
    pub choices: u32,
}

impl Sibling {
    /// Its own prompt, where the client sent several.
    pub fn prompt(&self) -> Option<&[u8]> {
        self.prompt.as_deref()
    }

    /// What becomes of a field that siblings have of their own.
    pub(super) fn edit(&self, name: &'static str, is_sent: bool) -> Option<Edit> {
        match name {
            "n" => is_sent.then_some(Edit::Remove("n")),
            "prompt" => self.prompt.clone().map(|prompt| Edit::Set(name, Json::Parts(Segments::from(prompt)))),
            _ => self.seed.map(|seed| Edit::Set("seed", Json::Text(seed.to_string()))),
        }
    }
}

/// The siblings of a request, in order; none where it asks for one answer.
///
/// # Errors
/// A 400 that names the field where they are more than `most`, or their number is none.
pub(super) fn of(api: Api, body: &Body, most: u32) -> Result<Option<(Shape, Vec<Sibling>)>, ProxyError> {
    if !matches!(api, Api::Completions | Api::Chat) {
        return Ok(None);
    }
    let wrong = || ProxyError::field("n", "n must be a positive integer");
    let choices = match body.get_some("n") {
        Some(text) => whole_number(text).filter(|number| *number > 0).ok_or_else(wrong)?,
        None => 1,
    };
    let prompts = if api == Api::Completions { prompts(body) } else { Vec::new() };
    let count = choices.saturating_mul(prompts.len().max(1) as u64);
    if count == 1 {
        return Ok(None);
    }
    let (Ok(count), Ok(choices)) = (u32::try_from(count), u32::try_from(choices)) else {
        return Err(too_many("n", count, most));
    };
    if count > most {
        return Err(too_many(if choices > 1 { "n" } else { "prompt" }, count.into(), most));
    }
    let seed = body.get_some("seed").and_then(|text| serde_json::from_slice::<i64>(text).ok());
    let sibling = |index: u32| Sibling {
        index,
        prompt: prompts.get((index / choices) as usize).cloned(),
        seed: seed.filter(|_| choices > 1).and_then(|seed| seed.checked_add(i64::from(index % choices))),
    };
    Ok(Some((Shape { count, choices }, (0..count).map(sibling).collect())))
}

fn too_many(param: &str, count: u64, most: u32) -> ProxyError {
    let message = match most {
        0 | 1 => format!("{param} asks for {count} answers: a pair of engines makes one a request (--max-siblings)"),
        _ => format!("{param} asks for {count} answers, more than {most} (--max-siblings)"),
    };
    ProxyError::field(param, message)
}

/// The prompts of a list of several, as slices of the body; none where there is one. A list of numbers is one prompt, and is not scanned.
fn prompts(body: &Body) -> Vec<Bytes> {
    let Some(text) = body.get_some("prompt") else { return Vec::new() };
    let inside = text.strip_prefix(b"[").map(<[u8]>::trim_ascii_start);
    if !matches!(inside.and_then(<[u8]>::first), Some(b'"' | b'[' | b'{')) {
        return Vec::new();
    }
    let Ok(list) = serde_json::from_slice::<Vec<&RawValue>>(text) else { return Vec::new() };
    let slice = |value: &&RawValue| body.text().slice_ref(value.get().as_bytes());
    if list.len() > 1 { list.iter().map(slice).collect() } else { Vec::new() }
}

/// Why answers cannot be made one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an answer of several has not the shape of its API")]
pub struct Unlike;

/// Whole answers, in order, as one.
pub fn merged(answers: &[Bytes], shape: Shape) -> Result<Bytes, Unlike> {
    let mut choices: Vec<u8> = Vec::with_capacity(answers.iter().map(Bytes::len).sum());
    let mut usages = Vec::with_capacity(answers.len());
    let mut first = None;
    for (answer, index) in answers.iter().zip(0..) {
        let body = Body::parse(answer.clone()).map_err(|_| Unlike)?;
        let choice = renumbered(&body, index)?.ok_or(Unlike)?;
        choices.push(if choices.is_empty() { b'[' } else { b',' });
        choice.parts().iter().for_each(|part| choices.extend_from_slice(part));
        usages.push((index, usage(&body)));
        first.get_or_insert(body);
    }
    choices.push(b']');
    let first = first.ok_or(Unlike)?;
    let mut edits = vec![Edit::Set("choices", Json::Parts(Segments::from(Bytes::from(choices))))];
    edits.extend(summed(&usages, shape).map(|usage| Edit::Set("usage", Json::Text(usage))));
    Ok(first.edit(&edits).to_vec().into())
}

/// The only choice of an answer or a chunk, with this index; none where there is no choice.
fn renumbered(body: &Body, index: u32) -> Result<Option<Segments>, Unlike> {
    let choices = body.get_some("choices").ok_or(Unlike)?;
    let list: Vec<&RawValue> = serde_json::from_slice(choices).map_err(|_| Unlike)?;
    match list[..] {
        [] => Ok(None),
        [choice] => {
            let choice = Body::parse(body.text().slice_ref(choice.get().as_bytes())).map_err(|_| Unlike)?;
            Ok(Some(choice.edit(&[Edit::Set("index", Json::Text(index.to_string()))])))
        }
        _ => Err(Unlike),
    }
}

fn usage(body: &Body) -> Option<Map<String, Value>> {
    serde_json::from_slice(body.get_some("usage")?).ok()
}

/// The usage of all: what was made is summed, a prompt counts once however many choices it has.
fn summed(usages: &[(u32, Option<Map<String, Value>>)], shape: Shape) -> Option<String> {
    let mut sum: Option<Map<String, Value>> = None;
    for (index, usage) in usages {
        let usage = usage.as_ref()?;
        match &mut sum {
            None => sum = Some(usage.clone()),
            Some(sum) => add(sum, usage, index % shape.choices == 0),
        }
    }
    let mut sum = sum?;
    let of = |sum: &Map<String, Value>, name: &str| sum.get(name).and_then(Value::as_u64).unwrap_or(0);
    if sum.contains_key("total_tokens") {
        let total = of(&sum, "prompt_tokens") + of(&sum, "completion_tokens");
        sum.insert("total_tokens".into(), total.into());
    }
    serde_json::to_string(&sum).ok()
}

/// Adds numbers, and those of objects inside. What concerns the prompt only where it is another.
fn add(sum: &mut Map<String, Value>, more: &Map<String, Value>, is_another: bool) {
    for (name, value) in more {
        if name.starts_with("prompt") && !is_another {
            continue;
        }
        match (sum.get_mut(name), value) {
            (Some(Value::Object(sum)), Value::Object(more)) => add(sum, more, true),
            (Some(sum), Value::Number(_)) => {
                if let (Some(one), Some(other)) = (sum.as_u64(), value.as_u64()) {
                    *sum = Value::from(one.saturating_add(other));
                }
            }
            (Some(_), _) => {}
            (None, _) => drop(sum.insert(name.clone(), value.clone())),
        }
    }
}

/// Streams of siblings on their way to one.
#[derive(Debug)]
pub struct Streams {
    shape: Shape,
    /// What the first event said of itself: all have it.
    head: Option<[Option<Bytes>; 2]>,
    /// The event with the usage of a whole stream, of the first that told it, and what each said.
    totals: Option<Body>,
    usages: Vec<(u32, Option<Map<String, Value>>)>,
}

/// What becomes of one event's data.
#[derive(Debug, PartialEq, Eq)]
pub enum Becomes {
    /// It passes so.
    Data(Bytes),
    /// It is part of what is told at the end.
    Kept,
    /// The sibling is at its end.
    Done,
    /// The sibling tells an error, which is the answer's.
    Error,
}

/// The members that all events of one answer share.
const HEAD: [&str; 2] = ["id", "created"];

impl Streams {
    /// Nothing has come.
    pub fn new(shape: Shape) -> Streams {
        Streams { shape, head: None, totals: None, usages: Vec::new() }
    }

    /// Takes the data of one event of a sibling.
    pub fn event(&mut self, index: u32, data: &Bytes) -> Result<Becomes, Unlike> {
        if data.trim_ascii() == b"[DONE]" {
            return Ok(Becomes::Done);
        }
        let body = Body::parse(data.clone()).map_err(|_| Unlike)?;
        if body.get_some("choices").is_none() && body.get_some("error").is_some() {
            return Ok(Becomes::Error);
        }
        let Some(choice) = renumbered(&body, index)? else {
            self.usages.push((index, usage(&body)));
            self.totals.get_or_insert(body);
            return Ok(Becomes::Kept);
        };
        let choices = [&b"["[..], &choice.to_vec(), b"]"].concat();
        let mut edits = self.same_head(&body);
        edits.push(Edit::Set("choices", Json::Parts(Segments::from(Bytes::from(choices)))));
        Ok(Becomes::Data(body.edit(&edits).to_vec().into()))
    }

    /// The id and the time of the first event, for any other.
    fn same_head(&mut self, body: &Body) -> Vec<Edit> {
        let of = |name| body.get(name).map(|text| body.text().slice_ref(text));
        let own = HEAD.map(of);
        let head = self.head.get_or_insert_with(|| own.clone());
        let differing = HEAD.into_iter().zip(head.iter().zip(&own)).filter(|(_, (one, other))| one != other);
        let set = |(name, (text, _)): (&'static str, (&Option<Bytes>, _))| {
            text.clone().map(|text| Edit::Set(name, Json::Parts(Segments::from(text))))
        };
        differing.filter_map(set).collect()
    }

    /// The data of the event that tells the usage of all, once all are at their ends; none where nobody told any.
    pub fn totals(&mut self) -> Option<Bytes> {
        let totals = self.totals.take()?;
        self.usages.sort_by_key(|(index, _)| *index);
        let usage = summed(&self.usages, self.shape)?;
        let mut edits = self.same_head(&totals);
        edits.push(Edit::Set("usage", Json::Text(usage)));
        Some(totals.edit(&edits).to_vec().into())
    }
}

#[cfg(test)]
mod tests;
