//! From work completions back to entries, and from entries to requests that end.
//!
//! A reliable connection completes in order. So a completion speaks for all before it: what was
//! posted unsignalled and has not failed by then succeeded, since failures always complete. Only
//! of work that may never have been posted nothing is known.

use super::Rails;
use super::message::Message;
use super::provider::{Provider, Wc, WcKind, WcStatus, WrId};
use super::rail::{RailState, Role, Stage};
use super::status::{Fault, judge};
use crate::abi::errno;
use crate::fabric::Arrival;
use crate::plant::{Plant, planted};

impl<P: Provider> Rails<P> {
    /// Brings a completion to what it belongs to; one that belongs to nothing moves nothing.
    pub(super) fn complete(&mut self, wc: &Wc) {
        let id = WrId(wc.wr_id);
        let known = usize::from(id.rail()) < self.rails.len();
        match wc.kind {
            _ if !known => self.counts.stale += 1,
            WcKind::Receive => self.receive(id, wc),
            WcKind::Work => self.work(id, wc.status),
        }
    }

    fn work(&mut self, id: WrId, status: WcStatus) {
        let number = id.rail();
        let rail = &mut self.rails[usize::from(number)];
        let stamp = rail.stamps.get(usize::from(id.slot())).copied().unwrap_or_default();
        let current = stamp.generation == id.generation() || planted(Plant::StaleHonoured);
        let Some(at) = rail.works.position(id.slot()).filter(|_| current) else {
            self.counts.stale += 1;
            let burnt = stamp.burnt == id.generation() && stamp.burnt != 0;
            if burnt {
                // The device has more in its queue than it said: only a reset tells how much.
                self.counts.ghosts += 1;
                self.degrade(number);
            }
            return;
        };
        self.counts.released += u64::from(at.wrapping_sub(rail.works.head()));
        match status {
            WcStatus::Success => self.counts.completed += 1,
            WcStatus::Flushed => self.counts.drained += 1,
            _ => self.counts.failed += 1,
        }
        while rail.works.head() != at {
            let before = rail.works[rail.works.head()];
            let certain = status == WcStatus::Success || !before.signaled && !before.doubt;
            let status = if certain { WcStatus::Success } else { WcStatus::Flushed };
            if !certain {
                self.counts.released -= 1;
                self.counts.drained += 1;
            }
            rail.resolve(status);
        }
        rail.resolve(status);
        let (card, tried) = (rail.card, rail.state == RailState::Trial && rail.works.is_empty());
        if status != WcStatus::Success {
            if tried {
                // However a probe fails, the path does not work.
                self.counts.probes_failed += 1;
                self.rails[usize::from(number)].trust.path_failed = true;
            }
            self.suspect_path(number, at, status);
            self.degrade(number);
        } else {
            self.cards[usize::from(card)].worked();
            if tried {
                self.trusted(number);
            }
        }
        self.attend(number);
        self.settle(number);
    }

    /// Reports requests at the head of a rail's table that have ended. On a rail in doubt, those
    /// that failed wait, and all behind them, until no device can touch their buffers.
    pub(super) fn settle(&mut self, number: u16) {
        let rail = &mut self.rails[usize::from(number)];
        let certain = matches!(rail.state, RailState::Ready | RailState::Dead)
            || planted(Plant::CqeBeforeQuiet);
        while !rail.taken.is_empty() {
            let head = rail.taken.head();
            let taken = &rail.taken[head];
            if !taken.over() || taken.failure.is_some() && !certain {
                break;
            }
            self.finished.push_back(taken.done());
            if rail.next == head {
                rail.next = head.wrapping_add(1);
            }
            rail.taken.pop_front();
            self.live -= 1;
        }
    }

    fn receive(&mut self, id: WrId, wc: &Wc) {
        let number = id.rail();
        let rail = &mut self.rails[usize::from(number)];
        let open = !matches!(rail.state, RailState::Absent | RailState::Dead);
        if id.slot() != WrId::RECEIVE || id.generation() != rail.epoch || !open {
            self.counts.stale += 1;
            return;
        }
        if wc.status != WcStatus::Success {
            self.wind_down(number);
            return;
        }
        let whole = wc.bytes == super::provider::MESSAGE_BYTES;
        let message = Message::from_words(wc.message).filter(|_| whole);
        let Some(message) = message else {
            self.counts.violations += 1;
            rail.credits.recycle();
            self.attend(number);
            return;
        };
        if !rail.credits.grant(message.credits) {
            self.counts.violations += 1;
        }
        match message.notification {
            Some((region, immediate)) => {
                rail.credits.keep();
                let arrival = Arrival { rail: number, region, immediate };
                self.arrivals.push_back((arrival, rail.epoch));
            }
            None => rail.credits.recycle(),
        }
        self.attend(number);
    }
}

impl super::rail::Rail {
    /// Ends the oldest posted work.
    pub(super) fn resolve(&mut self, status: WcStatus) {
        let silent = status == WcStatus::Flushed && std::mem::take(&mut self.silent);
        let status = if silent { WcStatus::ResponseTimeout } else { status };
        let work = self.works[self.works.head()];
        self.works.pop_front();
        match work.role {
            Role::Data | Role::Notify => {
                for at in work.requests() {
                    let taken = &mut self.taken[at];
                    let held = taken.in_flight > 0 && self.used > 0 && self.data_posted > 0;
                    assert!(held, "gave back more than was taken");
                    taken.in_flight -= 1;
                    taken.works -= 1;
                    self.used -= u32::from(!planted(Plant::DepthKept));
                    self.data_posted -= 1;
                    if status != WcStatus::Success {
                        let (fault, code) = judge(status);
                        let invalid = fault == Fault::Refused && code == errno::EINVAL;
                        if fault != Fault::Path && !invalid {
                            self.offender.get_or_insert(taken.request.remote);
                        }
                        match work.count {
                            1 => taken.fail(judge(status), work.role == Role::Data),
                            _ => taken.fail_together(judge(status)),
                        }
                    }
                }
            }
            Role::Credit => self.credits.message_posted = false,
            Role::Marker => self.marker_posted = false,
        }
    }

    /// Everything that is still posted ended, nobody knows how.
    pub(super) fn abandon(&mut self) {
        while !self.works.is_empty() {
            self.resolve(WcStatus::Flushed);
        }
    }

    /// Lays a request out anew, to be posted from its start.
    pub(super) fn rewind(&mut self, at: u32, works: u32) {
        let taken = &mut self.taken[at];
        taken.cursor = 0;
        taken.stage = Stage::Data;
        taken.works = works;
        taken.failure = None;
        taken.data_failed = false;
        taken.split = false;
        taken.attempts += 1;
    }
}
