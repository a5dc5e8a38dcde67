//! How long the engines of an attempt may take, which is longer as long as their pair has not answered (protocol O12, P6).

use crate::settings::Times;
use crate::upstream::Limit;

/// The limits that hang on whether a pair is cold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// On prefill's whole answer.
    pub(super) prefill: Limit,
    /// On decode's first output, from prefill's answer.
    pub(super) first_output: Limit,
    /// The same where nobody waits for it any more: a first report is enough.
    pub(super) orphan: Limit,
}

impl Patience {
    /// Those of an attempt whose answer streams or comes in one piece.
    pub(super) fn of(times: &Times, streams: bool, is_cold: bool) -> Self {
        let or_cold = |limit: Limit| if is_cold { limit.cold(times.cold) } else { limit };
        let first_byte = or_cold(Limit::new(times.first_byte, "first output", "--first-byte-timeout"));
        Patience {
            prefill: or_cold(Limit::new(times.prefill, "answer", "--prefill-timeout")),
            first_output: match streams {
                true => first_byte,
                false => or_cold(Limit::new(times.answer, "answer", "--answer-timeout")),
            },
            orphan: first_byte,
        }
    }
}
