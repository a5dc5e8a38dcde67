//! What an engine's release needs and understands, in one table cited to `docs/protocol.md`.
//!
//! An unknown release gets the most careful row: ids that embed both addresses, one exchange at first contact, no message
//! to its listeners. A row is exact for final releases; a pre-release counts as the release before it.

use crate::engine::{Dialect, Mode};
use std::fmt::Write as _;

/// A vLLM version. Pre-releases sort below the final release of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineVersion {
    /// 0 in every release so far.
    pub major: u16,
    /// Grows with features.
    pub minor: u16,
    /// Grows with repairs.
    pub patch: u16,
    /// False for `rc`, `dev`, `a` and `b`: what came later in that release may be missing.
    pub is_final: bool,
}

impl EngineVersion {
    /// A final release.
    pub const fn new(major: u16, minor: u16, patch: u16) -> EngineVersion {
        EngineVersion { major, minor, patch, is_final: true }
    }

    /// Reads what `GET /version` says: `0.32.0`, `v0.30.0`, `0.33.0rc1`, `0.11.2.dev12+gabc`, `0.32.0+rocm700`.
    pub fn parse(text: &str) -> Option<EngineVersion> {
        let text = text.trim();
        let public = text.split('+').next()?;
        let public = public.strip_prefix(['v', 'V']).unwrap_or(public);
        let mut rest = public;
        let mut numbers = [0u16; 3];
        for (position, number) in numbers.iter_mut().enumerate() {
            let after_dot = if position == 0 { Some(rest) } else { rest.strip_prefix('.') };
            // `0.33.dev1` has no third number.
            let Some(start) = after_dot.filter(|text| text.starts_with(|c: char| c.is_ascii_digit())) else {
                if position < 2 {
                    return None;
                }
                break;
            };
            let end = start.find(|c: char| !c.is_ascii_digit()).unwrap_or(start.len());
            *number = start[..end].parse().ok()?;
            rest = &start[end..];
        }
        let suffix = rest.trim_start_matches(['.', '-', '_']);
        let is_final = suffix.is_empty() || suffix.starts_with("post");
        let known = is_final || ["rc", "dev", "a", "b", "c"].iter().any(|word| suffix.starts_with(word));
        let [major, minor, patch] = numbers;
        known.then_some(EngineVersion { major, minor, patch, is_final })
    }
}

impl std::fmt::Display for EngineVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.is_final { "" } else { " (pre-release)" };
        write!(f, "{}.{}.{}{mark}", self.major, self.minor, self.patch)
    }
}

/// The wording in which a prefill engine's notify listener understands a release (protocol K3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseForm {
    /// Never send one: an unknown id trips an assertion or ends the listener.
    None,
    /// The transfer id as raw text.
    Text,
    /// A msgpack map with `type`, `transfer_id` and `consumer_tp_size`.
    Map,
}

/// How far a mode can be relied on (protocol V2, V3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Works as released.
    Works,
    /// Works with what the row's advice says.
    Legacy,
    /// Does not work as released.
    Broken,
    /// The release is not known.
    Unknown,
}

impl Support {
    /// The word for the reference's table and the engine list.
    pub fn as_str(self) -> &'static str {
        match self {
            Support::Works => "works",
            Support::Legacy => "legacy",
            Support::Broken => "broken",
            Support::Unknown => "unknown",
        }
    }
}

/// One row: what engines from `since` up to the next row need and understand.
#[derive(Debug, PartialEq, Eq)]
pub struct Traits {
    /// The releases of this row, for logs and the reference.
    pub name: &'static str,
    /// First release of the row; none in the row for unknown releases.
    pub since: Option<EngineVersion>,
    /// The registration wording of these releases (protocol R2, R3).
    pub dialect: Option<Dialect>,
    /// READ as released (protocol V2, V3).
    pub read: Support,
    /// WRITE as released (protocol V2, V3).
    pub write: Support,
    /// What an operator should know, for one line of warning; empty if nothing.
    pub advice: &'static str,
    /// Whether the peer's address may come from the transfer params alone, so that the request id can be plain
    /// (protocol I3, I4). Both engines of a pair must allow it.
    pub plain_id: bool,
    /// Whether several requests that meet an unknown peer at once are mishandled (protocol P4).
    pub first_contact_gate: bool,
    /// Whether a prefill engine in WRITE must work with one decode engine only: it keeps the hosts that a completion goes to
    /// in one place per worker, and requests to two decode engines at a time overwrite it (protocol P5).
    /// [`bound_pairs`] asks.
    pub bound_pairs: bool,
    /// How prefill is told that nobody will fetch a transfer (protocol K3 to K7).
    pub release: ReleaseForm,
    /// Whether a release may come before prefill has finished: it is kept until then. Older engines end when they are told
    /// to free what still runs or was left (an assertion of their scheduler; source of 0.24.0 to 0.32.0).
    pub early_release: bool,
    /// Whether a decode leg's waiting ends with a `write_done` map (protocol K10, K11). It must go to every notify port of
    /// decode's data-parallel rank, one for each tensor-parallel rank: [`crate::engine::Registration::notify_ports`]. It must come once: the engine ends
    /// at a second one for a request that is at work (seen on 0.32.0, the same assertion since 0.18.0).
    pub wake: bool,
    /// Whether decode understands `write_failed` (protocol K10).
    pub write_failed: bool,
    /// Whether a request without transfer params is safe on either role (protocol V4).
    pub plain_requests: bool,
    /// Whether prefill may get a request for one token without transfer params, and so answer for its prompt by itself
    /// (protocol V4, O14).
    pub alone: bool,
    /// Whether its ranks may live on several hosts (protocol H3).
    pub over_hosts: bool,
    /// Whether a decode engine in READ keeps prefixes and reads only what it lacks of a prompt's KV (protocol V5).
    pub reads_missing: bool,
    /// What was run on real engines (`docs/verification.md`); empty where the source was only read.
    pub proved: &'static str,
}

impl Traits {
    /// How far `mode` can be relied on.
    pub fn support(&self, mode: Mode) -> Support {
        match mode {
            Mode::Read => self.read,
            Mode::Write => self.write,
        }
    }

    /// Whether every engine of this row is of `release` or newer; unknown ones are not. It must be a release that begins a row.
    pub(crate) fn is_since(&self, release: EngineVersion) -> bool {
        debug_assert!(ROWS.iter().any(|row| row.since == Some(release)), "{release} begins no row");
        self.since.is_some_and(|since| since >= release)
    }

    /// The line to warn with when an engine of this row registers for `mode`; none where it works as released.
    pub fn warning(&self, mode: Mode) -> Option<String> {
        let support = self.support(mode);
        (support != Support::Works)
            .then(|| format!("vLLM {}: {mode} is {}: {}", self.name, support.as_str(), self.advice))
    }
}

/// The row for engines of which only the registration is known.
static UNKNOWN: Traits = Traits {
    name: "unknown",
    since: None,
    dialect: None,
    read: Support::Unknown,
    write: Support::Unknown,
    advice: "treated with the most care; 0.24.0 or newer is recommended",
    plain_id: false,
    first_contact_gate: true,
    bound_pairs: true,
    release: ReleaseForm::None,
    early_release: false,
    wake: false,
    write_failed: false,
    plain_requests: false,
    alone: false,
    over_hosts: false,
    reads_missing: false,
    proved: "",
};

/// What the oldest rows share: decode engines of one host each, so that prefill keeps no list of hosts.
static ONE_HOST: Traits = Traits { bound_pairs: false, ..UNKNOWN };

/// Their `wait_for_layer_load` does nothing: texts of 0.26.0 and 0.27.0 differed (`docs/verification.md`).
const NO_BARRIER: &str = "decode may compute before its KV has landed; READ needs 0.28.0 or newer";

/// Oldest first. Releases newer than the last row belong to the last row.
static ROWS: [Traits; 10] = [
    Traits {
        name: "0.14.0 to 0.16.0",
        since: Some(EngineVersion::new(0, 14, 0)),
        dialect: Some(Dialect::A),
        read: Support::Broken,
        write: Support::Broken,
        advice: "the two engines never agree on a transfer's key; upgrade to 0.24.0 or newer",
        ..ONE_HOST
    },
    Traits {
        name: "0.17.0 to 0.17.1",
        since: Some(EngineVersion::new(0, 17, 0)),
        dialect: Some(Dialect::A),
        read: Support::Broken,
        write: Support::Legacy,
        advice: "only completions, only with VLLM_DISABLE_REQUEST_ID_RANDOMIZATION=1, READ needs a scheduler patch",
        ..ONE_HOST
    },
    Traits {
        name: "0.18.0 to 0.19.1",
        since: Some(EngineVersion::new(0, 18, 0)),
        dialect: Some(Dialect::A),
        read: Support::Broken,
        write: Support::Legacy,
        advice: "chunked prefill must be off, and READ never frees prefill's blocks",
        proved: "WRITE on 0.18.1",
        ..ONE_HOST
    },
    Traits {
        name: "0.20.0 to 0.22.1",
        since: Some(EngineVersion::new(0, 20, 0)),
        dialect: Some(Dialect::B),
        read: Support::Broken,
        write: Support::Broken,
        advice: "WRITE decode notifies itself, and READ never frees prefill's blocks; upgrade to 0.24.0 or newer",
        ..ONE_HOST
    },
    Traits {
        name: "0.23.0",
        since: Some(EngineVersion::new(0, 23, 0)),
        dialect: Some(Dialect::B),
        read: Support::Legacy,
        write: Support::Works,
        advice: NO_BARRIER,
        proved: "registers; its connector cannot be run on CPU",
        release: ReleaseForm::Text,
        alone: true,
        ..ONE_HOST
    },
    Traits {
        name: "0.24.0 to 0.27.1",
        since: Some(EngineVersion::new(0, 24, 0)),
        dialect: Some(Dialect::B),
        read: Support::Legacy,
        write: Support::Works,
        advice: NO_BARRIER,
        plain_id: true,
        release: ReleaseForm::Map,
        wake: true,
        alone: true,
        proved: "WRITE on 0.26.0 and 0.27.0; READ there, some texts differ",
        ..ONE_HOST
    },
    Traits {
        name: "0.28.0 to 0.30.0",
        since: Some(EngineVersion::new(0, 28, 0)),
        first_contact_gate: true,
        bound_pairs: true,
        reads_missing: false,
        proved: "READ and WRITE on 0.29.0 and 0.30.0",
        ..SINCE_31
    },
    Traits {
        name: "0.31.0",
        since: Some(EngineVersion::new(0, 31, 0)),
        proved: "READ and WRITE on 0.31.0",
        ..SINCE_31
    },
    Traits {
        name: "0.32.0",
        since: Some(EngineVersion::new(0, 32, 0)),
        proved: "READ, WRITE, release, un-park, restarts, DP 2, several hosts and load on 0.32.0",
        ..SINCE_31
    },
    Traits {
        name: "0.33.0 and newer",
        since: Some(EngineVersion::new(0, 33, 0)),
        write_failed: true,
        plain_requests: true,
        ..SINCE_31
    },
];

/// What the newest rows share.
const SINCE_31: Traits = Traits {
    name: "",
    since: None,
    dialect: Some(Dialect::B),
    read: Support::Works,
    write: Support::Works,
    advice: "",
    plain_id: true,
    first_contact_gate: false,
    bound_pairs: false,
    release: ReleaseForm::Map,
    early_release: true,
    wake: true,
    write_failed: false,
    plain_requests: false,
    alone: true,
    over_hosts: true,
    reads_missing: true,
    proved: "",
};

/// The row for an engine. A release that cannot have sent this wording (a patched build, an answer from something else
/// on that port) counts as unknown.
pub fn traits(release: Option<EngineVersion>, dialect: Dialect) -> &'static Traits {
    let row = release.and_then(|release| ROWS.iter().rev().find(|row| row.since.is_some_and(|since| since <= release)));
    row.filter(|row| row.dialect == Some(dialect)).unwrap_or(&UNKNOWN)
}

/// Whether a pair's request id may be plain and so keep both addresses to itself (protocol I4).
pub(crate) fn plain_id(prefill: &Traits, decode: &Traits) -> bool {
    prefill.plain_id && decode.plain_id
}

/// Whether a pair's first exchange must go alone until its first byte (protocol P4).
pub(crate) fn first_contact_gate(prefill: &Traits, decode: &Traits) -> bool {
    prefill.first_contact_gate || decode.first_contact_gate
}

/// Whether a prefill engine in WRITE must work with one decode engine only. An unknown release may be one of those that
/// need it: bound too widely, decode engines idle; bound too little, requests wait for ever and their blocks are lost. But
/// the fault came with 0.28.0, so that whoever speaks dialect A (up to 0.19.1) cannot have it.
pub fn bound_pairs(prefill: &Traits, dialect: Dialect) -> bool {
    prefill.bound_pairs && dialect == Dialect::B
}

/// The table as Markdown, for the reference; a test there compares.
pub fn reference_table() -> String {
    let mut table = String::from(
        "| vLLM | READ | WRITE | Request id | First contact | WRITE pairs | Release | Un-park | `write_failed` | Plain requests | Prefill alone | Over hosts | READ of a prefix | Run on real engines |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in ROWS.iter().chain([&UNKNOWN]) {
        let yes = |flag: bool| if flag { "yes" } else { "no" };
        let release = match (row.release, row.early_release) {
            (ReleaseForm::None, _) => "no",
            (ReleaseForm::Text, _) => "text, once prefill has answered",
            (ReleaseForm::Map, false) => "map, once prefill has answered",
            (ReleaseForm::Map, true) => "map",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {release} | {} | {} | {} | {} | {} | {} | {} |",
            row.name,
            row.read.as_str(),
            row.write.as_str(),
            if row.plain_id { "plain" } else { "with both addresses" },
            if row.first_contact_gate { "alone" } else { "free" },
            if row.bound_pairs { "bound" } else { "free" },
            yes(row.wake),
            yes(row.write_failed),
            yes(row.plain_requests),
            yes(row.alone),
            yes(row.over_hosts),
            if row.reads_missing { "what is missing" } else { "all of it" },
            if row.proved.is_empty() { "read from source" } else { row.proved },
        );
    }
    table
}

#[cfg(test)]
mod tests;
