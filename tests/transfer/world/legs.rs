//! Both legs as the proxy has them: connections, requests on their way, what is heard.

use moriio_proxy::engine::Role;
use moriio_proxy::exchange::transfer::{Event, Plan};
use moriio_proxy::upstream::failure::Kind;

use super::{DecodeStep, Leg, Line, Next, PrefillStep, World, failed};
use crate::transfer::dice::Die;
use crate::transfer::rules::{MS, Micros, SECOND};

/// How a connection comes about.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Open,
    Refused,
    None,
    /// A reused connection that is dead: the request goes nowhere.
    Dead,
    /// A reused connection that breaks at once because the engine ends with the request (protocol L2).
    Ends,
}

const WAYS: [Way; 5] = [Way::Open, Way::Refused, Way::None, Way::Dead, Way::Ends];

impl World<'_> {
    /// The dice of a leg.
    fn way(&self, role: Role, number: u32) -> Way {
        let die = match (role, number) {
            (Role::Prefill, _) => Die::PrefillConnects,
            (Role::Decode, 0) => Die::DecodeConnects,
            (Role::Decode, _) => Die::AnotherConnects,
        };
        WAYS[self.dice.of(die).again(number).weighed(&[860, 50, 40, 35, 15])]
    }

    pub(super) fn send(&mut self, role: Role) {
        let number = self.legs[role as usize].number;
        self.legs[role as usize] = Leg { live: true, number, last: self.now, ..Leg::default() };
        let die = if role == Role::Prefill { Die::PrefillConnecting } else { Die::DecodeConnecting };
        let roll = self.dice.of(die).again(number);
        let time = match self.way(role, number) {
            Way::Open if roll.one_of_1000(60) => roll.again(1).spread(50 * MS, 30 * SECOND),
            Way::Open | Way::Refused => roll.again(1).spread(100, 50 * MS),
            Way::None => roll.again(1).spread(10 * MS, 10 * SECOND),
            Way::Dead | Way::Ends => 50,
        };
        self.after(time, Next::Connects(role, number));
        if role == Role::Prefill {
            self.after(self.prefill_limit, Next::PrefillLimit);
        }
    }

    fn is_live(&self, role: Role, number: u32) -> bool {
        self.legs[role as usize].live && self.legs[role as usize].number == number
    }

    /// Whether the driver still has the leg, be it unseen.
    fn is_open(&self, role: Role, number: u32) -> bool {
        let seen_out = role == Role::Prefill && self.judge.sees_out();
        self.is_live(role, number) || seen_out
    }

    pub(super) fn connects(&mut self, role: Role, number: u32) {
        if !self.is_open(role, number) {
            return;
        }
        let way = self.way(role, number);
        match way {
            Way::None => return self.hear(role, number, failed(role, Kind::NoConnection)),
            _ if way == Way::Refused || !self.up[role as usize] => {
                return self.hear(role, number, failed(role, Kind::ConnectionRefused));
            }
            _ => {}
        }
        self.legs[role as usize].started = true;
        let (writing, breaks) = match role {
            Role::Prefill => (Die::PrefillWriting, Die::PrefillBodyBreaks),
            Role::Decode => (Die::DecodeWriting, Die::DecodeBodyBreaks),
        };
        let writing = self.dice.of(writing);
        let time = match way {
            Way::Open if writing.one_of_1000(100) => writing.again(1).spread(MS, 5 * SECOND),
            _ => writing.again(1).spread(20, MS),
        };
        let breaks = self.dice.of(breaks);
        if way == Way::Open && breaks.one_of_1000(15) {
            self.after(
                breaks.again(1).below(time as u32) as Micros,
                Next::Tell(role, number, failed(role, Kind::Broken)),
            );
        }
        self.after(time, Next::Whole(role, number));
        // Last: it may be revoked or closed at once.
        self.give(Event::Started(role));
    }

    /// The last byte is handed over; from here on nothing is revoked.
    pub(super) fn whole(&mut self, role: Role, number: u32) {
        if !self.is_open(role, number) {
            return;
        }
        let way = self.way(role, number);
        let leg = &mut self.legs[role as usize];
        leg.written = Some(self.now);
        if way == Way::Dead {
            let time = self.wire();
            self.after(time, Next::Tell(role, number, failed(role, Kind::Stale)));
        }
        if way == Way::Dead || !self.up[role as usize] {
            return;
        }
        match role {
            Role::Prefill => self.prefill_takes(),
            Role::Decode => self.decode_takes(),
        }
        if way == Way::Ends {
            // It may have done all that is quick.
            let time = self.dice.of(Die::Latency).again(7).between(50, 30 * MS);
            self.after(time, Next::Crash(role));
        }
    }

    /// Something of a leg is to be heard, in order.
    pub(super) fn tell(&mut self, role: Role, event: Event) {
        let wire = self.wire();
        let leg = &mut self.legs[role as usize];
        let at = (self.now + wire).max(leg.last + 1);
        leg.last = at;
        let number = leg.number;
        self.at(at, Next::Tell(role, number, event));
    }

    pub(super) fn hear(&mut self, role: Role, number: u32, event: Event) {
        if !self.is_live(role, number) {
            return;
        }
        let is_late = match event {
            Event::Full => !self.judge.may_be_full(),
            Event::Comment => self.judge.had_output(),
            _ => false,
        };
        if is_late {
            return;
        }
        if role == Role::Decode && event != Event::Full && self.judge.is_held() {
            // Nothing more is read until prefill's answer decides (protocol O13).
            return self.after(90 * MS, Next::Tell(role, number, event));
        }
        if matches!(event, Event::Failed(..) | Event::Answered(_)) {
            self.legs[role as usize].live = false;
        }
        // An accident cuts off what was still on its way.
        self.give(event);
    }

    pub(super) fn revoke(&mut self, role: Role) {
        let leg = &mut self.legs[role as usize];
        let answer = match leg.written {
            Some(at) => Event::Written(role, self.zero + std::time::Duration::from_micros(at)),
            None => {
                leg.live = false;
                Event::Revoked(role)
            }
        };
        self.answers.push(answer);
    }

    /// The driver closes a connection: its engine sees it a little later.
    pub(super) fn close(&mut self, role: Role) {
        let leg = &mut self.legs[role as usize];
        leg.live = false;
        if leg.written.is_none() {
            return;
        }
        let time = self.wire();
        match role {
            Role::Prefill => self.after(time, Next::Prefill(PrefillStep::Notices)),
            Role::Decode => self.after(time, Next::Decode(DecodeStep::Notices { ours: true })),
        }
    }

    /// Prefill's own limit, also on a leg that is seen out.
    pub(super) fn prefill_limit(&mut self) {
        if !self.is_open(Role::Prefill, 0) {
            return;
        }
        if self.legs[0].written.is_some() {
            let time = self.wire();
            self.after(time, Next::Prefill(PrefillStep::Notices));
        }
        self.hear(Role::Prefill, 0, failed(Role::Prefill, Kind::Timeout));
    }

    pub(super) fn another(&mut self) {
        let more = self.others_left > 0;
        if more {
            self.others_left -= 1;
            self.legs[1].number += 1;
            self.up[1] = true;
        }
        self.answers.push(Event::Another(more));
    }

    /// A process ends, with all that it has.
    pub(super) fn crash(&mut self, role: Role) {
        let index = role as usize;
        if !std::mem::replace(&mut self.up[index], false) {
            return;
        }
        let writes = !self.prefill.read && self.prefill.writes(self.now);
        match role {
            Role::Prefill => self.prefill.crash(),
            Role::Decode => self.decode.crash(),
        }
        self.note(Line::World(if role == Role::Prefill { "prefill's process ends" } else { "decode's process ends" }));
        let leg = self.legs[index];
        if leg.live && leg.started {
            let is_soon = leg.written.is_some_and(|at| self.now < at + 50 * MS);
            let is_stale = is_soon && self.way(role, leg.number) == Way::Ends;
            self.tell(role, failed(role, if is_stale { Kind::Stale } else { Kind::Broken }));
        }
        let restarts = if role == Role::Prefill { Die::PrefillRestarts } else { Die::DecodeRestarts };
        let restarts = self.dice.of(restarts);
        if restarts.one_of_1000(500) {
            self.after(restarts.again(1).spread(100 * MS, 60 * SECOND), Next::Restart(role));
        }
        if role == Role::Decode && writes && self.dice.of(Die::W14).one_of_1000(300) {
            self.after(MS, Next::Crash(Role::Prefill));
        }
    }

    /// WRITE or READ; alone there is only one leg.
    pub(super) fn is_write(&self) -> bool {
        matches!(self.terms.plan, Plan::Write { .. })
    }
}
