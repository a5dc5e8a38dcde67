//! What a run has come across: a simulation that never gets there proves nothing.

use std::collections::BTreeSet;

use moriio_proxy::exchange::transfer::{Acknowledged, Action, Answer, Cause, Edge, Event, Left, Notice, Orphan};
use moriio_proxy::upstream::failure::Repeat;

/// What happened in a run.
#[derive(Debug, Default)]
pub struct Coverage {
    events: u64,
    actions: u64,
    edges: Vec<Edge>,
}

impl Coverage {
    pub fn event(&mut self, event: &Event) {
        self.events |= 1 << place_of_event(event);
    }

    pub fn action(&mut self, action: &Action) {
        self.actions |= 1 << place_of_action(action);
    }

    pub fn edges(&mut self, edges: impl Iterator<Item = Edge>) {
        for edge in edges {
            if !self.edges.contains(&edge) {
                self.edges.push(edge);
            }
        }
    }

    pub fn add(&mut self, other: Coverage) {
        self.events |= other.events;
        self.actions |= other.actions;
        self.edges.extend(other.edges);
    }

    pub fn all_edges(&self) -> BTreeSet<Edge> {
        self.edges.iter().copied().collect()
    }

    /// What never happened.
    pub fn lacks(&self) -> Vec<&'static str> {
        let lacks = |seen: u64, names: &[&'static str]| {
            let names = names.iter().enumerate().filter(|(place, _)| seen & 1 << place == 0);
            names.map(|(_, name)| *name).collect::<Vec<_>>()
        };
        [lacks(self.events, &EVENTS), lacks(self.actions, &ACTIONS)].concat()
    }
}

const EVENTS: [&str; 25] = [
    "Start",
    "Started",
    "Revoked",
    "Written",
    "Params",
    "Nothing",
    "Message",
    "Failed prefill",
    "Failed decode",
    "Head",
    "Comment",
    "Full",
    "Report",
    "Output",
    "Overdue",
    "ClientGone",
    "release Yes",
    "release Closed",
    "release No",
    "wake Yes",
    "wake Closed",
    "wake No",
    "Seen",
    "Another",
    "Due",
];

fn place_of_event(event: &Event) -> usize {
    use moriio_proxy::engine::Role;
    match event {
        Event::Start => 0,
        Event::Started(_) => 1,
        Event::Revoked(_) => 2,
        Event::Written(..) => 3,
        Event::Answered(Answer::Params) => 4,
        Event::Answered(Answer::Nothing) => 5,
        Event::Answered(Answer::Message) => 6,
        Event::Failed(Role::Prefill, _) => 7,
        Event::Failed(Role::Decode, _) => 8,
        Event::Head => 9,
        Event::Comment => 10,
        Event::Full => 11,
        Event::Report => 12,
        Event::Output => 13,
        Event::Overdue => 14,
        Event::ClientGone => 15,
        Event::Acknowledged(message, how) => {
            let first = if *message == Notice::Release { 16 } else { 19 };
            first
                + [Acknowledged::Yes, Acknowledged::Closed, Acknowledged::No]
                    .iter()
                    .position(|one| one == how)
                    .unwrap_or(0)
        }
        Event::Seen(_) => 22,
        Event::Another(_) => 23,
        Event::Due => 24,
    }
}

const ACTIONS: [&str; 32] = [
    "Send",
    "Revoke",
    "Close prefill",
    "Close decode",
    "SeeOut",
    "Commit",
    "CommitMessage",
    "Fail(first output)",
    "Fail(hand-over)",
    "Fail(no blocks)",
    "Release",
    "Leave(no message)",
    "Leave(too early)",
    "Leave(rejected)",
    "Leave(reader)",
    "Wake",
    "Look",
    "Another",
    "Met",
    "NotMet",
    "Over",
    "written",
    "refused",
    "broken",
    "closed",
    "ended",
    "unparked",
    "expired",
    "Leg(never)",
    "Leg(once)",
    "Leg(safe)",
    "CannotWake",
];

fn place_of_action(action: &Action) -> usize {
    use moriio_proxy::engine::Role;
    match action {
        Action::Send(_) => 0,
        Action::Revoke(_) => 1,
        Action::Close(Role::Prefill) => 2,
        Action::Close(Role::Decode) => 3,
        Action::SeeOut => 4,
        Action::Commit => 5,
        Action::CommitMessage => 6,
        Action::Fail(Cause::Leg(_), Repeat::Never) => 28,
        Action::Fail(Cause::Leg(_), Repeat::Once) => 29,
        Action::Fail(Cause::Leg(_), Repeat::Safe) => 30,
        Action::Fail(Cause::FirstOutput, _) => 7,
        Action::Fail(Cause::HandOver, _) => 8,
        Action::Fail(Cause::NoBlocks, _) => 9,
        Action::Release => 10,
        Action::Leave(Left::NoMessage) => 11,
        Action::Leave(Left::TooEarly) => 12,
        Action::Leave(Left::Rejected) => 13,
        Action::Leave(Left::Reader) => 14,
        Action::Wake => 15,
        Action::Look => 16,
        Action::Another => 17,
        Action::Met => 18,
        Action::NotMet => 19,
        Action::CannotWake => 31,
        Action::Over(None) => 20,
        Action::Over(Some(Orphan::Written)) => 21,
        Action::Over(Some(Orphan::Refused)) => 22,
        Action::Over(Some(Orphan::Broken)) => 23,
        Action::Over(Some(Orphan::Closed)) => 24,
        Action::Over(Some(Orphan::Ended)) => 25,
        Action::Over(Some(Orphan::Woken)) => 26,
        Action::Over(Some(Orphan::Expired)) => 27,
    }
}
