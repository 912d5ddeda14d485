//! Folded ops: who is folded at intake, who goes on in whose place, and how they end.
//!
//! A folded op has a record, a promised CQ slot, a fate entry and references like any other, and
//! is in no queue. It may be taken back alone, by CANCEL or its own deadline, as long as nothing
//! of its survivor is posted. If the survivor is taken back in one of these ways, another op of
//! its group takes its place in the queue; if it ends otherwise, the others end as it does.
//!
//! **The fate table**: the effect of the survivor is that of those which COALESCE folded into it,
//! so that their entries say posted before anything of it is. A superseded op's own value is never
//! moved: its entry says accepted to the end.

use crate::abi::{CQE_COALESCED, Counter, Detail, SQE_COALESCE, SQE_SUPERSEDE};
use crate::fabric::Fabric;
use crate::fold::{End, Tried};
use crate::ledger::{Aside, LANE, Ledger, List, NIL, Outcome, State};
use crate::plant::{Plant, planted};
use crate::ring::Memory;

use super::record::outcome;
use super::{Engine, STEPS_PER_TURN};

/// True if an op is more urgent than another, which it was folded into.
#[inline]
pub(super) fn outranks(ledger: &Ledger, slot: u32, survivor: u32) -> bool {
    ledger[slot].class < ledger[survivor].class
}

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Sends an op that was just taken on its way: into queued work of the same effect, if it asks
    /// for that, or to its queue. One that is tied to others of its ring goes by itself.
    pub(super) fn fold_or_queue(&mut self, slot: u32, tied: bool) {
        let record = &self.ledger[slot];
        let (flags, session) = (record.op.flags, record.session);
        if flags & SQE_COALESCE != 0 {
            let tried = self.folds.take_in(&mut self.ledger, slot, tied);
            self.sessions[session.0 as usize].count(tried.counter(), 1);
            if let Tried::Into(survivor) = tried {
                self.discharge(slot);
                if outranks(&self.ledger, slot, survivor) {
                    self.raise_survivor(slot);
                }
                return;
            }
        } else if flags & SQE_SUPERSEDE != 0
            && let Some(older) = self.folds.take_over(&mut self.ledger, slot, tied)
        {
            return self.supersede(older, slot);
        }
        self.meter.enqueued_one(&self.ledger[slot]);
        self.enqueue(slot);
    }

    /// Counts an attempt to fold an op that waits for others, or fails with them.
    pub(super) fn count_tied(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        let session = record.session;
        if record.op.flags & SQE_COALESCE != 0 {
            let tried = self.folds.take_in(&mut self.ledger, slot, true);
            self.sessions[session.0 as usize].count(tried.counter(), 1);
        }
    }

    /// A newer value takes the place of an older one in its queue, so that whoever always has a
    /// newer one is served no later than if it had none.
    fn supersede(&mut self, older: u32, slot: u32) {
        if outranks(&self.ledger, slot, older) {
            self.raise(older, self.ledger[slot].class);
        }
        self.discharge(older);
        self.meter.enqueued_one(&self.ledger[slot]);
        self.take_place(older, slot);
        self.folds.replace(&mut self.ledger, older, slot);
        let session = self.ledger[slot].session;
        self.sessions[session.0 as usize].count(Counter::Superseded, 1);
    }

    /// The survivor of a folded op becomes as urgent as that.
    #[cold]
    pub(super) fn raise_survivor(&mut self, slot: u32) {
        if let Some(survivor) = self.folds.survivor(&self.ledger, slot) {
            self.raise(survivor, self.ledger[slot].class);
        }
    }

    /// What a folded op asks for is another's to ask for.
    fn discharge(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        let owner = self.sessions[record.session.0 as usize].owner;
        self.owners[owner as usize].give(0, record.op.asked());
    }

    /// Puts an op where a queued one is, which leaves its queue.
    fn take_place(&mut self, old: u32, new: u32) {
        let record = &mut self.ledger[old];
        let (line, rail, aside, aged) = (record.line, record.rail, record.aside, record.aged);
        let (wait, sequence, class) = (record.wait, record.sequence, record.class);
        let checked = record.checked;
        let whole = std::mem::take(&mut record.whole);
        let record = &mut self.ledger[new];
        (record.line, record.rail, record.aside, record.aged) = (line, rail, aside, aged);
        (record.wait, record.whole, record.laid) = (wait, whole, false);
        record.class = class;
        // It stands in a line that may be its import's no more.
        record.checked = checked.min(record.checked);
        // Where the oldest goes first it is as old as what it stands for. A FLUSH between the two
        // has that one to wait for, which ends no earlier.
        record.sequence = sequence.min(record.sequence);
        if self.abroad() && line != 0 {
            self.abroad.replace(&mut self.ledger, old, new);
        } else if aside == Aside::No {
            self.lanes.replace(&mut self.ledger, old, new);
        } else {
            self.admitted.replace(&mut self.ledger, old, new);
        }
    }

    /// A survivor is taken out of its queue: if it is to end alone, another op of its group takes
    /// its place there. False if not.
    #[cold]
    pub(super) fn hand_on(&mut self, slot: u32) -> bool {
        let record = &self.ledger[slot];
        let alone = [Detail::Cancelled as u16, Detail::Deadline as u16];
        let alone = record.failure.is_some_and(|failure| alone.contains(&failure.detail));
        if record.state != State::Queued || !alone {
            return false;
        }
        let late = record.op.deadline_us > 0;
        let Some(heir) = self.folds.hand_on(&mut self.ledger, slot) else { return false };
        self.deadlines -= u32::from(late);
        self.take_place(slot, heir);
        let record = &self.ledger[heir];
        let owner = self.sessions[record.session.0 as usize].owner;
        self.owners[owner as usize].charge(record.op.asked());
        if record.op.flags & SQE_COALESCE != 0 {
            self.meter.enqueued_one(record);
        }
        true
    }

    /// Takes a folded op out of its group, to end alone.
    pub(super) fn unfold(&mut self, slot: u32) {
        self.folds.leave(&mut self.ledger, slot);
        self.unfolded(slot);
    }

    fn unfolded(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        record.waited(self.now_ns, None);
        self.deadlines -= u32::from(record.op.deadline_us > 0);
    }

    /// The first part of an op is about to be posted: what is folded into it is, from now on; but
    /// for what is late, which ends.
    #[cold]
    pub(super) fn mark_folded(&mut self, survivor: u32) {
        if self.ledger[survivor].op.flags & SQE_COALESCE == 0 {
            return;
        }
        let mut slot = self.folds.first(&self.ledger, survivor);
        while slot != NIL {
            let next = List::<LANE>::next(&self.ledger, slot);
            let record = &self.ledger[slot];
            if let Some(failure) = self.overdue(slot) {
                self.withdraw(slot, failure);
            } else if let Some(ring) = &self.rings[record.ring.0 as usize]
                && !planted(Plant::FoldedUnmarked)
            {
                ring.end.fate_posted(record.fate, record.number);
            }
            slot = next;
        }
        self.folds.mark(&self.ledger, survivor, true);
    }

    /// Nothing of an op was posted after all.
    pub(super) fn unmark_folded(&mut self, survivor: u32) {
        if self.ledger[survivor].op.flags & SQE_COALESCE == 0 {
            return;
        }
        let mut slot = self.folds.first(&self.ledger, survivor);
        while slot != NIL {
            let record = &self.ledger[slot];
            if let Some(ring) = &self.rings[record.ring.0 as usize] {
                ring.end.fate_accepted(record.fate, record.id().0, record.number);
            }
            slot = List::<LANE>::next(&self.ledger, slot);
        }
        self.folds.mark(&self.ledger, survivor, false);
    }

    /// An op that others may be folded into ends: those that are will end as it does.
    pub(super) fn end_with(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        let end = End {
            outcome: outcome(record, &self.fabric),
            failure: record.failure,
            record: record.id(),
            posted_ns: record.posted_ns,
            rail: record.rail,
        };
        self.folds.ends(&mut self.ledger, slot, end);
    }

    /// Ends ops whose survivor is over, a bounded number a turn.
    #[cold]
    pub(super) fn part(&mut self) {
        for _ in 0..STEPS_PER_TURN {
            let Some((slot, end)) = self.folds.part(&mut self.ledger) else { break };
            self.end_folded(slot, end);
        }
        self.let_go();
    }

    fn end_folded(&mut self, slot: u32, end: End) {
        let record = &mut self.ledger[slot];
        record.failure = end.failure;
        record.posted_ns = end.posted_ns;
        record.rail = end.rail;
        self.unfolded(slot);
        let outcome = Outcome { flags: end.outcome.flags | CQE_COALESCED, ..end.outcome };
        self.write_final(slot, outcome, end.record);
        self.leave(slot);
    }
}
