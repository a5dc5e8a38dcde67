//! What engines do with one transfer, as far as `docs/protocol.md` tells it: what ends an engine, what loses a block, what wakes
//! a leg, who frees blocks and when. Pure: time is passed in. The facts of each version stand here once more and are never
//! taken from the proxy's own table, so that a wrong row there shows.

mod decode;
mod prefill;
#[cfg(test)]
mod tests;

pub use decode::{Decode, Left, Stage};
pub use prefill::{Blocks, Prefill, Work};

/// Virtual time, and lengths of it, in microseconds.
pub type Micros = u64;

pub const MS: Micros = 1000;
pub const SECOND: Micros = 1000 * MS;

/// What breaks a rule: the rule, and what happened.
pub type Breach = &'static str;

/// A message to a notify port, in the form in which it goes over the wire (protocol K3, K10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The transfer id as text: a release of 0.23.0.
    Text,
    /// A map of type `release`.
    Release,
    /// A map of type `write_done`.
    WriteDone,
    /// A map of type `write_failed`.
    WriteFailed,
}

/// What is known of one version.
#[derive(Debug)]
pub struct Facts {
    /// Three numbers; none for an engine of which only the registration is known.
    pub version: Option<(u16, u16, u16)>,
    /// The forms that prefill understands (protocol K3, K27).
    pub releases: &'static [Form],
    /// The forms that decode understands from us (protocol K10, K27).
    pub wakes: &'static [Form],
    /// Whether a release for a prefill that computes, or was left while it did, is kept; else it ends the engine (protocol K6).
    pub keeps_early: bool,
    /// `defer_timeout`: what prefill holds is freed that long after its end (protocol K1, D1, W1).
    pub timer: Option<Micros>,
    /// Whether READ frees prefill's blocks when they were read (protocol V2).
    pub read_frees: bool,
    /// Whether prefill reports a failed transfer to decode (protocol W15).
    pub reports: bool,
    /// Whether 400 may come after the work (protocol L6).
    pub late_400: bool,
    /// Whether gauges tell of KV that has come and is not admitted (protocol K19).
    pub tells_arrived: bool,
}

const TIMER: Option<Micros> = Some(60 * SECOND);

const OLD: Facts = Facts {
    version: None,
    releases: &[],
    wakes: &[],
    keeps_early: false,
    timer: None,
    read_frees: false,
    reports: false,
    late_400: false,
    tells_arrived: false,
};
const V23: Facts = Facts { releases: &[Form::Text], timer: TIMER, read_frees: true, ..OLD };
const V24: Facts = Facts { releases: &[Form::Release], wakes: &[Form::WriteDone], ..V23 };
const V26: Facts = Facts { late_400: true, ..V24 };
const V28: Facts = Facts { keeps_early: true, ..V26 };
const V32: Facts = Facts { tells_arrived: true, ..V28 };
const V33: Facts = Facts { wakes: &[Form::WriteDone, Form::WriteFailed], reports: true, ..V32 };

/// The versions that take part; the first is the dullest. An engine of unknown version may be any: it understands nothing.
pub static VERSIONS: [Facts; 13] = [
    Facts { version: Some((0, 32, 0)), ..V32 },
    Facts { version: Some((0, 33, 0)), ..V33 },
    Facts { version: Some((0, 31, 0)), ..V28 },
    Facts { version: Some((0, 29, 0)), ..V28 },
    Facts { version: Some((0, 28, 0)), ..V28 },
    Facts { version: Some((0, 27, 1)), ..V26 },
    Facts { version: Some((0, 26, 0)), ..V26 },
    Facts { version: Some((0, 24, 0)), ..V24 },
    Facts { version: Some((0, 23, 0)), ..V23 },
    Facts { version: Some((0, 22, 1)), ..OLD },
    Facts { version: Some((0, 18, 1)), ..OLD },
    Facts { version: None, timer: TIMER, read_frees: true, ..OLD },
    Facts { version: None, late_400: true, tells_arrived: true, timer: TIMER, read_frees: true, ..OLD },
];
