//! What a pick comes to.

use super::order::Choice;
use super::prefixes::{Forecast, Meeting as Expected};
use crate::engine::Mode;
use crate::pool::InFlight;
use crate::pool::pairs::Meeting;

/// A pair with its two places taken.
#[derive(Debug)]
pub struct Picked {
    /// The prefill engine's place.
    pub prefill: InFlight,
    /// The decode engine's place.
    pub decode: InFlight,
    /// Prefill's rank, when it has more than one.
    pub rank: Option<u32>,
    /// Where decode's leg goes.
    pub place: DecodePlace,
    /// Who moves the KV cache.
    pub mode: Mode,
    /// The pair's meeting; its end is told by dropping it.
    pub meeting: Meeting,
    /// Who chose prefill's slot and decode's engine, and why.
    pub choices: [Choice; 2],
    /// What prefill is expected to have of the prompt.
    pub forecast: Option<Forecast>,
    /// That it is to compute the rest.
    pub expected: Option<Expected>,
}

/// Where on a decode engine a leg goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodePlace {
    /// Which of its hosts takes it, 0 where its first serves all.
    pub host: usize,
    /// The rank that it is pinned to, by the same-rank contract only; else its engine balances its own.
    pub rank: Option<u32>,
}

/// Why there is no pair; of several reasons the last of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoPick {
    /// One side has no usable engine, or every pair is stale.
    Nobody,
    /// Nothing but a first contact is in the way (protocol P4).
    FirstContact,
    /// Usable engines exist; one that would do is at its limit, or bound to another until that has ended.
    Busy,
}

/// Who serves a request.
#[derive(Debug)]
pub enum Pick {
    /// Prefill and decode.
    Pair(Box<Picked>),
    /// Decode alone.
    Alone(Box<Alone>),
}

/// Why decode serves a request alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// It is short (`--decode-alone-below`).
    Request,
    /// Little of it is missing (`--decode-alone-missing`).
    Missing,
}

impl Short {
    /// The value of the label `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Short::Request => "short",
            Short::Missing => "warm",
        }
    }
}

/// A decode engine with its place taken.
#[derive(Debug)]
pub struct Alone {
    /// Its place.
    pub decode: InFlight,
    /// Where on it the request goes.
    pub place: DecodePlace,
    /// Who chose it, and why.
    pub choice: Choice,
    /// Why it is alone.
    pub short: Short,
    /// What it is expected to have of the prompt.
    pub forecast: Option<Forecast>,
}
