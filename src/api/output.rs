//! What the parts of an engine's answer prove: whether its leg still waits for KV, whether a token was computed, whether the
//! answer is over. A status line, an SSE comment and the preamble of Responses prove nothing (protocol O1 to O3). Pure: bytes in,
//! facts out, wherever the bytes are cut.

use std::fmt::Write as _;

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use crate::api::Api;

/// The longest part of an unfinished line that is kept until its rest comes: error events are shorter.
const LINE_KEPT: usize = 64 * 1024;

/// How far an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing but comments, or what a server says before its engine has reported.
    Waiting,
    /// The engine has reported, so the leg no longer waits for KV. The report of a failed load looks the same.
    Begun,
    /// First output: a token was computed.
    Output,
    /// The last event of the API has come.
    Ended,
}

/// What tells the events of an API apart.
#[derive(Debug)]
enum Events {
    /// `data:` lines alone, so many before the one that proves a token; the last is `[DONE]`.
    Data { reports: u32 },
    /// Events with names. Any name that is not listed proves a token.
    Named { waiting: &'static [&'static str], reports: &'static [&'static str], last: &'static [&'static str] },
}

/// The rules of one API's streams.
#[derive(Debug)]
struct Rules {
    api: Api,
    events: Events,
    /// For the reference.
    proof: &'static str,
    error: &'static str,
}

/// By API, protocol O3 to O8.
static RULES: [Rules; 5] = [
    Rules {
        api: Api::Completions,
        events: Events::Data { reports: 0 },
        proof: "first `data:`",
        error: "`data:` with `error`",
    },
    // The role comes with the engine's first report, before its finish reason is looked at.
    Rules {
        api: Api::Chat,
        events: Events::Data { reports: 1 },
        proof: "second `data:`, after the role",
        error: "`data:` with `error`",
    },
    Rules {
        api: Api::Responses,
        events: Events::Named {
            waiting: &["response.created", "response.queued", "response.in_progress"],
            reports: &[],
            // Cut by a limit it is `incomplete` from 0.33.0; the others are the API's own.
            last: &["response.completed", "response.incomplete", "response.failed"],
        },
        proof: "any event after the preamble",
        error: "`error`; engines close the connection instead",
    },
    Rules {
        api: Api::Messages,
        events: Events::Named { waiting: &["ping"], reports: &["message_start"], last: &["message_stop"] },
        proof: "any event after `message_start`",
        error: "`error`",
    },
    Rules {
        api: Api::Generate,
        events: Events::Data { reports: 0 },
        proof: "first `data:`",
        error: "`data:` with `error`",
    },
];

fn rules(api: Api) -> &'static Rules {
    // Every API has its row, which a test holds; the first is the strictest in nothing.
    RULES.iter().find(|rules| rules.api == api).unwrap_or(&RULES[0])
}

/// An error that an engine told after its 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventError {
    /// The status that it would have been.
    pub status: StatusCode,
    /// The error as JSON text, in the API's own shape.
    pub body: Bytes,
    /// How far the answer was before: what follows, the end marker above all, proves nothing of the work.
    pub after: Stage,
}

/// What a line's event is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    None,
    Waiting,
    Report,
    Output,
    Last,
    Error,
}

/// Reads one answer part by part.
#[derive(Debug)]
pub struct Scanner {
    /// None for an answer that is no stream of events: its first byte is its outcome.
    rules: Option<&'static Rules>,
    stage: Stage,
    reports: u32,
    name: Name,
    /// What has come of a line whose end has not.
    line: Vec<u8>,
    /// Whether the unfinished line is longer than what is kept of it.
    longer: bool,
    /// Whether the last whole line was blank, or nothing has come.
    blank: bool,
    comments: u32,
    error: Option<EventError>,
}

impl Scanner {
    /// For an answer of `api`; `events` says whether it is a stream of events.
    pub fn new(api: Api, events: bool) -> Self {
        Scanner {
            rules: events.then(|| rules(api)),
            stage: Stage::Waiting,
            reports: 0,
            name: Name::None,
            line: Vec::new(),
            longer: false,
            blank: true,
            comments: 0,
            error: None,
        }
    }

    /// How far the answer is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether it is a stream of events.
    pub fn is_events(&self) -> bool {
        self.rules.is_some()
    }

    /// Comments so far.
    pub fn comments(&self) -> u32 {
        self.comments
    }

    /// Whether a new event may be begun here: one that is written into an unfinished one is lost with it.
    pub fn is_between_events(&self) -> bool {
        self.blank && self.line.is_empty()
    }

    /// The error that came since the last call.
    pub fn take_error(&mut self) -> Option<EventError> {
        self.error.take()
    }

    /// The same, if it came in place of any output.
    pub(crate) fn take_early_error(&mut self) -> Option<EventError> {
        self.error.take_if(|error| error.after < Stage::Output)
    }

    /// Reads the next part. Says whether it has anything but comments and blank lines, which are no sign of work.
    pub fn feed(&mut self, part: &[u8]) -> bool {
        if part.is_empty() {
            return false;
        }
        let Some(rules) = self.rules else {
            self.stage = self.stage.max(Stage::Output);
            return true;
        };
        let mut speaks = false;
        let mut rest = part;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest);
            let piece = &rest[..end.unwrap_or(rest.len())];
            let first = self.line.first().or(piece.first()).copied();
            if self.line.is_empty() && first == Some(b':') {
                self.comments += 1;
            }
            speaks |= !matches!(first, None | Some(b':' | b'\r'));
            match end {
                Some(end) if self.line.is_empty() => {
                    self.read_line(rules, piece);
                    rest = &rest[end + 1..];
                }
                Some(end) => {
                    self.keep(piece);
                    let line = std::mem::take(&mut self.line);
                    self.read_line(rules, &line);
                    (self.longer, self.line) = (false, line);
                    self.line.clear();
                    rest = &rest[end + 1..];
                }
                None => {
                    self.keep(piece);
                    rest = &[];
                }
            }
        }
        speaks
    }

    /// The answer's last byte has come: an unfinished line is taken as it is.
    pub fn finish(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let (Some(rules), false) = (self.rules, line.is_empty()) {
            self.read_line(rules, &line);
        }
        if let (Some(rules), Name::Last) = (self.rules, self.name) {
            self.read_line(rules, b"");
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = LINE_KEPT.saturating_sub(self.line.len());
        self.longer |= piece.len() > room;
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    fn read_line(&mut self, rules: &Rules, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.blank = line.is_empty();
        if line.is_empty() {
            // The end of an event.
            if self.name == Name::Last {
                self.stage = Stage::Ended;
            }
            self.name = Name::None;
            return;
        }
        match (&rules.events, field(line, b"data:"), field(line, b"event:")) {
            (Events::Data { .. }, Some(b"[DONE]"), _) => self.stage = Stage::Ended,
            (Events::Data { reports }, Some(data), _) if !self.is_error(data) => {
                self.reports = self.reports.saturating_add(1);
                self.reached(if self.reports > *reports { Stage::Output } else { Stage::Begun });
            }
            (Events::Named { waiting, reports, last }, _, Some(name)) => {
                let is = |names: &[&str]| names.iter().any(|known| known.as_bytes() == name);
                self.name = match name {
                    b"error" => Name::Error,
                    _ if is(waiting) => Name::Waiting,
                    _ if is(reports) => Name::Report,
                    _ if is(last) => Name::Last,
                    _ => Name::Output,
                };
            }
            (Events::Named { .. }, Some(data), _) => {
                let name = self.name;
                match name {
                    Name::Error => self.tell(named_status(data), data),
                    Name::None if self.is_error(data) => {}
                    Name::Waiting => {}
                    Name::Report => self.reached(Stage::Begun),
                    Name::None | Name::Output | Name::Last => self.reached(Stage::Output),
                }
            }
            _ => {}
        }
    }

    /// Keeps an error; the first one counts.
    fn tell(&mut self, status: Option<StatusCode>, data: &[u8]) {
        let (status, body, after) = (refusing(status), Bytes::copy_from_slice(data), self.stage);
        self.error.get_or_insert(EventError { status, body, after });
    }

    fn reached(&mut self, stage: Stage) {
        self.stage = self.stage.max(stage);
    }

    /// Whether an event's data is an error object, which is then kept. Most data is told from one by its first key.
    fn is_error(&mut self, data: &[u8]) -> bool {
        let inside = data.strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
        if self.longer || !inside.is_some_and(|inside| inside.starts_with(b"\"error\"")) {
            return false;
        }
        let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(data) else {
            return false;
        };
        let error = object.get("error").unwrap_or(&Value::Null);
        if error.is_null() {
            return false;
        }
        let code = error["code"].as_u64().or_else(|| error["code"].as_str()?.parse().ok());
        let status = code.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
        self.tell(status, data);
        true
    }
}

/// Only a refusal can stand for an error, whatever the engine calls it.
fn refusing(status: Option<StatusCode>) -> StatusCode {
    let refuses = |status: &StatusCode| status.is_client_error() || status.is_server_error();
    status.filter(refuses).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The value of a field, without the blanks around it.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    line.strip_prefix(name).map(<[u8]>::trim_ascii)
}

/// Anthropic's types as statuses (protocol O8); up to 0.32.0 every one is `internal_error`.
fn named_status(data: &[u8]) -> Option<StatusCode> {
    let value = serde_json::from_slice::<Value>(data).unwrap_or_default();
    let error = if value["error"].is_object() { &value["error"] } else { &value };
    let status = match error["type"].as_str().unwrap_or_default() {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "overloaded_error" => 503,
        _ => 500,
    };
    StatusCode::from_u16(status).ok()
}

/// A stream's text without its whole comments, each with the blank line behind it.
pub fn without_comments(text: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len());
    // A comment inside an event goes without the blank line that ends the event.
    let (mut after_comment, mut between) = (false, true);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let comment = line.first() == Some(&b':') && line.ends_with(b"\n");
        let blank = matches!(line, b"\n" | b"\r\n");
        if !(comment || (blank && after_comment && between)) {
            kept.extend_from_slice(line);
            between = blank;
        }
        after_comment = comment;
    }
    kept
}

/// The rules as Markdown, for the reference; a test there compares.
pub fn reference_table() -> String {
    let mut table = String::from(
        "| API | Proves nothing, beside comments | No longer waits for KV | First output | Last event | Error event |\n\
         |---|---|---|---|---|---|\n",
    );
    let list = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    for rules in &RULES {
        let (waiting, reports, last) = match &rules.events {
            Events::Data { reports: 0 } => ("–".into(), rules.proof.to_owned(), "`data: [DONE]`".into()),
            Events::Data { .. } => ("–".into(), "first `data:`".into(), "`data: [DONE]`".into()),
            Events::Named { waiting, reports: [], last } => (list(waiting), rules.proof.to_owned(), list(last)),
            Events::Named { waiting, reports, last } => (list(waiting), list(reports), list(last)),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| {} | {waiting} | {reports} | {} | {last} | {} |",
            rules.api.as_str(),
            rules.proof,
            rules.error
        );
    }
    table
}

#[cfg(test)]
mod tests;
