//! A decode engine, as far as one leg goes.

use super::{Breach, Facts, Form};

/// Where the leg is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The engine has not got the whole request.
    Absent,
    /// Its server has it, its scheduler does not know of it.
    Server,
    /// Queued for room (K19: `capacity`).
    Queued,
    /// READ: it loads, synchronously (protocol D2).
    Loading,
    /// WRITE: `WAITING_FOR_REMOTE_KVS` (K19: `deferred`).
    Waiting,
    /// The same, and its KV has come.
    Arrived,
    /// At work.
    Running,
    /// It is over, and its blocks are free.
    Over,
    /// It is over, and its blocks are lost for good (protocol K8).
    Lost,
    /// The process that had it is gone.
    Gone,
}

/// What a closed connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing that matters: its blocks are free.
    Freed,
    /// READ: it releases prefill's blocks (protocol D9).
    Releases,
    /// READ: it goes on to its end, and releases then.
    GoesOn,
    /// READ: it was forgotten without a word to prefill (protocol D9).
    Forgotten,
    /// WRITE: its blocks are lost for good (protocol K8).
    Lost,
}

/// A decode engine, as far as one leg goes.
#[derive(Debug)]
pub struct Decode {
    pub facts: &'static Facts,
    pub read: bool,
    pub stage: Stage,
    /// A message that came before the leg waits, which is kept for it (protocol K10).
    kept: Option<Form>,
}

impl Decode {
    pub fn new(facts: &'static Facts, read: bool) -> Decode {
        Decode { facts, read, stage: Stage::Absent, kept: None }
    }

    /// WRITE: it has room, and waits for its KV. Says what a message that came before does now: [`Stage::Arrived`], or
    /// [`Stage::Over`] where it fails.
    pub fn wait(&mut self) -> Stage {
        self.stage = match self.kept.take() {
            None => Stage::Waiting,
            Some(Form::WriteFailed) => Stage::Over,
            Some(_) => Stage::Arrived,
        };
        self.stage
    }

    /// A message that ends its waiting: prefill's, or `ours` (protocol K9 to K11, K27). Says where the leg is now.
    pub fn hears(&mut self, form: Form, ours: bool) -> Result<Stage, Breach> {
        if ours && !self.facts.wakes.contains(&form) {
            return Err("K27: decode was told in a form that its version does not know: it is deaf");
        }
        match (self.stage, form) {
            (Stage::Absent | Stage::Server | Stage::Queued, _) if self.kept.is_some() => {
                return Err("K11: decode was told twice: it ends");
            }
            (Stage::Absent | Stage::Server | Stage::Queued, _) => self.kept = Some(form),
            (Stage::Waiting, Form::WriteFailed) => self.stage = Stage::Over,
            (Stage::Waiting, _) => self.stage = Stage::Arrived,
            (Stage::Arrived | Stage::Running, Form::WriteFailed) if !ours => {}
            (Stage::Arrived | Stage::Running | Stage::Loading, _) => {
                return Err("K11: decode was told of a leg that does not wait any more: it ends");
            }
            // Kept for ever by an engine that has no such request.
            (Stage::Over | Stage::Lost | Stage::Gone, _) => {}
        }
        Ok(self.stage)
    }

    /// Its connection was closed (protocol L3, K8, D9).
    pub fn close(&mut self) -> Left {
        let (stage, left) = match (self.stage, self.read) {
            (Stage::Absent | Stage::Server, true) => (Stage::Over, Left::Forgotten),
            (Stage::Queued, true) => (Stage::Over, Left::Releases),
            (Stage::Loading, _) => (Stage::Loading, Left::GoesOn),
            (Stage::Waiting, _) => (Stage::Lost, Left::Lost),
            (Stage::Lost, _) => (Stage::Lost, Left::Freed),
            (Stage::Gone, _) => (Stage::Gone, Left::Freed),
            _ => (Stage::Over, Left::Freed),
        };
        self.stage = stage;
        left
    }

    /// The process ends.
    pub fn crash(&mut self) {
        if self.stage != Stage::Absent {
            self.stage = Stage::Gone;
        }
    }

    /// Whether it reads prefill's blocks, or will.
    pub fn may_read(&self) -> bool {
        self.read && matches!(self.stage, Stage::Server | Stage::Queued | Stage::Loading)
    }
}
