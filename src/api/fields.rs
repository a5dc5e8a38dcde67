//! What becomes of each field of a request, in one table by API: what prefill's leg gets, what decode's leg gets, and what is
//! refused, by the engines' releases where that matters. Parsing and the legs follow the table; the reference prints it.
//!
//! Both legs must render the same prompt, and decode must never get what ends an engine (protocol F1, F5). A field without a row
//! passes to both legs as it came.

pub(crate) mod hidden;
pub(crate) mod row;
mod table;
pub(crate) mod values;

use std::fmt::Write as _;
use std::sync::LazyLock;

use crate::api::Api;
use crate::api::fields::row::{Field, Findings};
use crate::engine::Mode;
use crate::engine::versions::Traits;
use crate::error::ProxyError;
use crate::json::Body;

/// The rows of each API, in the order of [`Api::ALL`]: every request asks for them three times.
static BY_API: LazyLock<[Vec<&'static Field>; Api::ALL.len()]> =
    LazyLock::new(|| Api::ALL.map(|api| table::ROWS.iter().filter(|field| field.apis.contains(&api)).collect()));

/// The rows of an API.
pub fn of(api: Api) -> impl Iterator<Item = &'static Field> {
    BY_API[api as usize].iter().copied()
}

/// Reads a request by the table.
///
/// # Errors
/// The first field that no engine may get so.
pub fn check(api: Api, body: &Body, sampling: Option<&Body>) -> Result<Findings, ProxyError> {
    let mut findings = Findings::default();
    for field in of(api) {
        if let Some(home) = field.home(body, sampling) {
            values::judge(field, home, &mut findings)?;
        }
    }
    Ok(findings)
}

/// Whether a pair can serve an API at all.
///
/// # Errors
/// The first thing that the engines are too old for.
pub fn fits(api: Api, prefill: &Traits, decode: &Traits, mode: Mode, prefill_ranks: u32) -> Result<(), ProxyError> {
    for need in table::API_NEEDS.iter().filter(|need| need.api == api) {
        let applies = need.ranks.is_none_or(|its| its == mode && prefill_ranks > 1);
        if applies && !(prefill.is_since(need.since) && decode.is_since(need.since)) {
            return Err(ProxyError::EngineTooOld { what: need.what, since: need.since });
        }
    }
    Ok(())
}

/// The table as Markdown, for the reference; a test there compares.
pub fn reference_table() -> String {
    let mut table =
        String::from("| API | Field | Prefill's leg | Decode's leg | Refused | Why |\n|---|---|---|---|---|---|\n");
    let names = |apis: &[Api]| match apis.len() == Api::ALL.len() {
        true => "all".to_owned(),
        false => apis.iter().map(|api| api.as_str()).collect::<Vec<_>>().join(", "),
    };
    for need in table::API_NEEDS {
        let (api, what, since) = (need.api.as_str(), need.what, need.since);
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| {api} | | | | {what} before {since}: 501 | protocol F11 |");
    }
    for field in table::ROWS {
        let (apis, param, why) = (names(field.apis), field.param(), field.why);
        let (prefill, decode, refused) = (field.prefill.words(), field.decode.words(), field.refuse.words());
        let _ = writeln!(table, "| {apis} | `{param}` | {prefill} | {decode} | {refused} | {why} |");
    }
    let hidden = hidden::places().join("`, `");
    let _ = writeln!(
        table,
        "| all, `/tokenize` and its like | `{hidden}` | removed | removed | | they name hosts to dial |"
    );
    table
}

#[cfg(test)]
mod tests;
