//! What can be to come.

use moriio_proxy::engine::Role;
use moriio_proxy::exchange::transfer::{Acknowledged, Event, Notice};
use moriio_proxy::upstream::gauges::Queue;

use crate::transfer::rules::Form;

/// What is to happen at a time.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// A connection to an engine is there, or not. Decode's legs are numbered.
    Connects(Role, u32),
    /// The last byte of the request is handed over.
    Whole(Role, u32),
    /// The proxy hears this of a leg.
    Tell(Role, u32, Event),
    Prefill(PrefillStep),
    Decode(DecodeStep),
    Crash(Role),
    Restart(Role),
    /// Something to be told whatever the legs do.
    Acknowledged(Notice, Acknowledged),
    Gauges,
    Seen(Option<Queue>),
    ClientLeaves,
    Overdue,
    /// Prefill's own limit on time.
    PrefillLimit,
}

/// What goes on in the prefill engine.
#[derive(Clone, Copy, Debug)]
pub enum PrefillStep {
    Served,
    Begins,
    Breaks,
    Ends,
    Announced,
    Pushed,
    Notices,
    TimesOut,
    Released,
    ReaderDone,
}

/// What goes on in the decode engine.
#[derive(Clone, Copy, Debug)]
pub enum DecodeStep {
    Served,
    Room,
    Loaded,
    Hears {
        form: Form,
        ours: bool,
    },
    Admitted,
    FirstToken,
    Answer,
    Breaks,
    /// It sees that its connection is closed: by us or by an accident.
    Notices {
        ours: bool,
    },
}
