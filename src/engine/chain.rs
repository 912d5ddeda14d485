//! Wire chains: an op whose one predecessor has just been posted goes behind it at once, by the
//! same rail, as a link of a chain ([`REQUEST_CHAIN`]). The rail keeps the order, and cuts the
//! chain where a link fails; so a chain of ops costs one round trip, not one each.
//!
//! Such an op **rides**: it is posted while what it waits for is not over. It is eligible if it
//! waits for that op alone, and not for its order only; if it goes to the same place; and if each
//! of the two is one request. What rides has its credits like any other, and of what follows one op
//! no more goes at once than a slice; the rest follows while the last of them is under way, if
//! nothing else has been posted behind it. Whatever is not eligible waits for its turn as ever.
//!
//! If its request comes back undone, of a rail that failed or took less, the op waits again: its
//! edge is an ordinary one from then on. What a rail handed back may have taken effect, and counts
//! as posted meanwhile.
//!
//! **Invariants**: the request of an op that rides stands behind the last one of its predecessor,
//! with nothing between; an op that rides is in no lane.

use crate::abi::{CQE_DEP_FAILED, CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Counter, errno};
use crate::edges::Cause;
use crate::fabric::{Fabric, REQUEST_CHAIN, Request};
use crate::ledger::{Aside, Failure, NIL, State, TIE_COUNTED, TIE_HELD, TIE_RAISING, TIE_RIDES};
use crate::ring::Memory;
use crate::sched::credits::Ask;

use super::Engine;
use super::lines::{each_bit, line_of};
use super::rails::Round;
use super::ties::Before;
use super::validate::data_op;
use super::wire::fail;

/// Successors of an op among which one is looked for that may ride.
const LOOKED_AT: usize = 4;

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// The successor of an op that may ride behind it.
    #[inline]
    fn rider(&self, slot: u32) -> Option<u32> {
        let record = &self.ledger[slot];
        let first = record.state == State::Posted
            && record.dependents != NIL
            && record.posted_whole
            && record.in_fabric == 1
            && record.posts == 1
            && record.failure.is_none()
            && record.returned == NIL;
        if !first {
            return None;
        }
        let line = record.line;
        let waiters = self.edges.waiters(record.dependents).take(LOOKED_AT);
        let hard = waiters.filter(|(_, order_only)| !order_only);
        hard.filter_map(|(waiter, _)| self.ledger.find(waiter)).find(|&slot| {
            let record = &self.ledger[slot];
            let most = if line == 0 { self.pace.slice() } else { self.abroad.slice(line) };
            record.state == State::Waiting
                && record.awaits == 1
                && record.failure.is_none()
                && data_op(record.op.opcode)
                && record.op.pages == 0
                && record.op.bytes <= most
                && self.line_of(slot) == line
                && self.spoiled(slot).is_none()
        })
    }

    fn line_of(&self, slot: u32) -> u16 {
        if self.abroad() { line_of(&self.regions, &self.ledger[slot].op) } else { 0 }
    }

    /// An op rides from now on: it is as one that was queued, and is in no lane.
    fn mount(&mut self, slot: u32, line: u16, rail: u16) {
        let record = &mut self.ledger[slot];
        if record.ties & TIE_RAISING != 0 {
            record.ties &= !TIE_RAISING;
            self.raising.remove(&mut self.ledger, slot);
        }
        let record = &mut self.ledger[slot];
        record.state = State::Queued;
        let counted = record.ties & TIE_COUNTED != 0;
        record.ties |= TIE_RIDES | TIE_COUNTED;
        (record.line, record.rail, record.aside) = (line, rail, Aside::No);
        (record.laid, record.aged) = (false, false);
        if !counted {
            self.meter.enqueued_one(&self.ledger[slot]);
        }
    }

    /// Lays what rides behind an op of this host, which was laid last; returns how many requests
    /// there are then.
    #[inline]
    pub(super) fn ride(&mut self, slot: u32, batch: &mut [Request], count: usize) -> usize {
        if self.ledger[slot].dependents == NIL || !self.chains {
            return count;
        }
        self.ride_on(slot, batch, count)
    }

    /// Goes on with a chain whose last link is the last that was posted on this host, in an earlier
    /// turn; returns how many requests that are.
    #[inline]
    pub(super) fn ride_on_here(&mut self, batch: &mut [Request]) -> usize {
        if self.edges.in_use() == 0 || !self.chains {
            return 0;
        }
        match self.last_here.and_then(|id| self.ledger.find(id)) {
            Some(last) => self.ride(last, batch, 0),
            None => 0,
        }
    }

    #[inline(never)]
    fn ride_on(&mut self, mut last: u32, batch: &mut [Request], mut count: usize) -> usize {
        let mut bytes_left = self.pace.slice();
        while let Some(slot) = self.rider(last)
            && let Some(place) = batch.get_mut(count)
        {
            let bytes = self.ledger[slot].op.bytes;
            let internal = self.ledger[slot].origin != 0;
            if bytes > bytes_left || !self.admits_high(slot, bytes) {
                break;
            }
            let Ok(grant) = self.window.take(Ask { bytes, enters: true, internal }) else { break };
            self.lanes.charge_aside(&self.ledger, slot, bytes);
            self.mount(slot, 0, 0);
            self.lay_slice::<false>(slot, place, bytes, grant);
            place.flags |= REQUEST_CHAIN;
            bytes_left -= bytes;
            count += 1;
            last = slot;
        }
        count
    }

    /// Lays what rides behind an op that was laid for a rail last.
    #[inline]
    pub(super) fn ride_abroad(&mut self, slot: u32, rail: u16, round: &mut Round) {
        if self.ledger[slot].dependents != NIL {
            self.ride_abroad_on(slot, rail, round);
        }
    }

    #[inline(never)]
    fn ride_abroad_on(&mut self, mut last: u32, rail: u16, round: &mut Round) {
        let line = self.ledger[last].line;
        let mut bytes_left = self.abroad.slice(line);
        while self.abroad.last(rail) == Some(self.ledger.id(last))
            && let Some(slot) = self.rider(last)
        {
            let bytes = self.ledger[slot].op.bytes;
            if bytes > bytes_left || !self.admits_ride(slot, line, rail) {
                break;
            }
            self.mount(slot, line, rail);
            self.post_abroad(slot, rail, round);
            bytes_left -= bytes;
            last = slot;
        }
    }

    /// Goes on with chains whose last link is the last that its rail took in an earlier turn.
    pub(super) fn ride_on_abroad(&mut self, round: &mut Round) {
        if self.edges.in_use() == 0 {
            return;
        }
        for rail in each_bit(self.abroad.flying) {
            if round.is_full() {
                break;
            }
            let last = self.abroad.last(rail).and_then(|id| self.ledger.find(id));
            if let Some(last) = last
                && self.rider(last).is_some()
            {
                self.abroad.look_at(rail, self.fabric.room(rail), self.fabric.card_of(rail));
                self.ride_abroad(last, rail, round);
            }
        }
    }

    /// An op that rides, or did, has ended in the fabric: what it is told of a predecessor that
    /// failed is said as such.
    pub(super) fn dismount(&mut self, slot: u32) {
        let failure = self.ledger[slot].failure;
        let cause = failure.and_then(|_| self.cause_before(slot));
        let record = &mut self.ledger[slot];
        record.awaits = 0;
        record.ties = 0;
        let Some(failure) = failure else { return };
        // On a rail whose peer is gone all that is posted ends alike.
        let along = failure.flags & CQE_FLUSHED != 0 || failure.errno == errno::EHOSTDOWN;
        let cut = failure.errno == errno::ECANCELED && failure.flags & CQE_FLUSHED != 0;
        if !(cut || along && cause.is_some()) {
            return;
        }
        let maybe = failure.flags & CQE_MAYBE_DONE;
        let again = if maybe == 0 { CQE_RETRYABLE } else { 0 };
        let unknown = Cause { errno: 0, detail: failure.detail };
        let Cause { errno, detail } = cause.unwrap_or(unknown);
        let flags = CQE_DEP_FAILED | maybe | again;
        record.failure = Some(Failure { errno: errno::ECANCELED, detail, flags });
        record.caused_by(errno);
        let session = record.session;
        self.sessions[session.0 as usize].count(Counter::DepFailed, 1);
    }

    /// Why one of those failed whom an op has named.
    fn cause_before(&self, slot: u32) -> Option<Cause> {
        let ring = self.rings[self.ledger[slot].ring.0 as usize].as_ref()?;
        ring.ties.names(&self.ledger, slot).find_map(|(before, order_only)| match before {
            Before::Over(cause) if !order_only => cause,
            _ => None,
        })
    }

    /// The request of an op that rides was handed back. It may have taken effect, so that it counts
    /// as posted; but it goes again only when its predecessor is over.
    #[cold]
    pub(super) fn hold_back(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        record.ties = record.ties & !TIE_RIDES | TIE_HELD;
        if record.awaits == 0 {
            self.let_on(slot, None);
            self.let_go();
        }
    }

    /// Its predecessor is over. [`Engine::let_go`] follows.
    #[cold]
    pub(super) fn let_on(&mut self, slot: u32, cause: Option<Cause>) {
        if let Some(cause) = cause {
            fail(&mut self.ledger[slot], cause);
            return self.end(slot);
        }
        self.ledger[slot].ties = 0;
        self.queue_returned(slot, false);
        if self.spoiled(slot).is_some() {
            self.purge();
        }
    }

    /// The request of an op that rides was not taken: it waits again.
    #[cold]
    pub(super) fn wait_again(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        record.ties &= !TIE_RIDES;
        record.state = State::Waiting;
        (record.cursor, record.posted_whole, record.laid) = (0, false, false);
        record.posts = record.posts.saturating_sub(1);
        record.posted_ns = 0;
        self.deadlines += u32::from(record.op.deadline_us > 0);
        self.meter.requeued(record);
        let (id, fate, number, record) =
            (record.ring, record.fate, record.number, self.ledger.id(slot));
        self.ring(id).end.fate_accepted(fate, record.0, number);
        if self.ledger[slot].awaits == 0 {
            self.release(slot);
            self.let_go();
        }
    }
}
