//! Prefill's leg as the one who drains decode's sees it.

use std::pin::Pin;

use super::Keeper;
use crate::notify::held::Held;
use crate::upstream::LegFailure;

/// Prefill's leg to its end; its seat is inside.
pub type PrefillFuture = Pin<Box<dyn Future<Output = Result<bytes::Bytes, LegFailure>> + Send>>;

/// How far prefill is.
pub enum PrefillLeg {
    /// It may still write, or fail.
    Running(PrefillFuture),
    /// It answered with a success: it writes as soon as decode has announced its blocks.
    Answered,
    /// It turned the work away or was never dispatched: nothing was written, and nothing will be.
    Failed,
    /// It answered 400: most likely it did nothing, but that can also come after its work.
    Rejected,
    /// It ended without saying that it did nothing: it may have written, or be writing at this moment.
    Unclear,
}

/// What a prefill that failed may have done. It is told to stop, unless it has nothing to be told.
pub fn judge(failure: &LegFailure, held: &mut Held) -> PrefillLeg {
    match (failure.may_have_run(), failure.may_have_written()) {
        (true, _) => {
            held.release();
            PrefillLeg::Unclear
        }
        (false, true) => {
            held.nothing_to_tell();
            PrefillLeg::Rejected
        }
        (false, false) => PrefillLeg::Failed,
    }
}

/// A prefill whose exchange is over. Its leg is closed and its blocks are released at once, but where it must not be told before
/// it has finished: there it runs to its end first.
pub fn abandon(keeper: &Keeper, prefill: Option<PrefillFuture>, mut held: Held) {
    held.reclaim();
    if let (Some(prefill), true) = (prefill, held.must_wait()) {
        keeper.tasks.spawn(async move {
            match prefill.await {
                Ok(_) => held.finished(),
                Err(_) => held.let_go(),
            }
        });
    }
}
