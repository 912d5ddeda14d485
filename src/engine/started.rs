//! Why an op waited, kept when it goes on; and the event that tells that it does.
//!
//! An op that finds no credit knows what it lacks. One that never came to be first knows only that
//! it waited: others of its flow, which it saw when it was queued; or, if there was none, whoever
//! the engine stopped at in its last turn, since everything else waits behind that one.
//!
//! The event `started executing`, of target `verbring::op`, is there for each op whose first part
//! the fabric has taken. With nobody to listen it costs a doorbell one load and a branch.

use tracing::Level;

use crate::abi::{Class, Counter, WAIT_NONE, wait_name};
use crate::fabric::{Fabric, Request};
use crate::ledger::State;
use crate::ring::Memory;

use super::Engine;

/// The target of events about single ops.
const TARGET: &str = "verbring::op";

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Notes that an op which is first cannot go on, and what it lacks: it holds others back.
    #[cold]
    pub(super) fn defer(&mut self, slot: u32, wait: u16) {
        let record = &mut self.ledger[slot];
        record.lacks(wait);
        self.held[usize::from(record.line != 0)] = Some(record.class);
        self.meter.deferred(record, wait);
        self.sessions[record.session.0 as usize].count(Counter::Defers, 1);
    }

    /// Notes what an op waited for that leaves its lane with nothing posted.
    pub(super) fn leaves_queue(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        if record.state == State::Queued {
            record.waited(self.now_ns, self.held[usize::from(record.line != 0)]);
        }
    }

    /// Tells whoever listens which ops have begun with these requests, all that one doorbell gave.
    #[inline]
    pub(super) fn tell_started(&self, taken: &[Request]) {
        if tracing::enabled!(target: TARGET, Level::TRACE) {
            self.tell_each(taken);
        }
    }

    #[cold]
    fn tell_each(&self, taken: &[Request]) {
        let slot_of = |request: &Request| self.posts.slot(request.ticket);
        for (at, request) in taken.iter().enumerate() {
            let slot = slot_of(request);
            let again = request.rail != 0 && self.posts.is_again(request.ticket);
            if again || taken[..at].iter().any(|before| slot_of(before) == slot) {
                continue;
            }
            // It has begun with these if it has no others.
            let here = taken[at..].iter().filter(|other| slot_of(other) == slot).count();
            if here == usize::from(self.ledger[slot].posts) {
                self.tell_one(slot);
            }
        }
    }

    fn tell_one(&self, slot: u32) {
        let record = &self.ledger[slot];
        let queued_ns = record.posted_ns.saturating_sub(record.taken_ns);
        // Its next part may have found no credit by now.
        let wait = if queued_ns == 0 { WAIT_NONE } else { record.reason() };
        tracing::event!(
            target: TARGET,
            Level::TRACE,
            record = record.id().0,
            session = record.session.0,
            ring = record.ring.0,
            class = class_name(record.op.class),
            origin = record.origin,
            queued_ns,
            defers = record.defers,
            wait = wait_name(wait),
            "started executing"
        );
    }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::High => "high",
        Class::Medium => "medium",
        Class::Low => "low",
    }
}
