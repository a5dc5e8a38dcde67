//! What the state machine of an attempt is told of its pair.

use super::Means;
use super::patience::Patience;
use crate::api::request::Request;
use crate::engine::Mode;
use crate::engine::versions::ReleaseForm;
use crate::exchange::transfer::{Plan, Releases, Terms};
use crate::routing::Picked;

impl Means {
    /// What it has to know where one engine serves a request, of which nothing is owed to anybody.
    pub(super) fn terms_alone(&self, request: &Request, patience: &Patience) -> Terms {
        Terms {
            plan: Plan::Alone,
            streams: request.stream,
            releases: Releases::Never,
            wakes: false,
            first_output: patience.first_output.time,
            orphan: patience.orphan.time,
            hand_over: self.limits.hand_over,
            wake: self.limits.wake,
        }
    }

    /// What the machine has to know of a pair.
    pub(super) fn terms(&self, picked: &Picked, request: &Request, patience: &Patience) -> Terms {
        let (prefill, decode) = (picked.prefill.engine.traits, picked.decode.engine.traits);
        Terms {
            plan: match picked.mode {
                _ if request.alone.is_some() => Plan::Alone,
                Mode::Write => Plan::Write { serial: self.serial_write },
                Mode::Read => Plan::Read,
            },
            streams: request.stream,
            releases: match prefill.release {
                _ if !self.notifier.is_on() => Releases::Never,
                ReleaseForm::None => Releases::Never,
                ReleaseForm::Text | ReleaseForm::Map if prefill.early_release => Releases::Always,
                ReleaseForm::Text | ReleaseForm::Map => Releases::Answered,
            },
            wakes: self.notifier.is_on() && (decode.wake || decode.write_failed),
            first_output: patience.first_output.time,
            orphan: patience.orphan.time,
            hand_over: self.limits.hand_over,
            wake: self.limits.wake,
        }
    }
}
