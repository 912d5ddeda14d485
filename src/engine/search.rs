//! Finding one op among those of a ring: for CANCEL and WHY, a bounded number of steps a turn.

use crate::abi::{
    CANCEL_BY_NUMBER, CANCEL_BY_RECORD, CQE_RETRYABLE, Counter, Detail, Opcode, errno,
};
use crate::fabric::Fabric;
use crate::ids::{RecordId, RingId};
use crate::ledger::{Failure, Ledger, List, NIL, RING, State};
use crate::ring::Memory;

use super::{Engine, Reply, STEPS_PER_TURN};

/// A search along a ring's ops, oldest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    by: u64,
    target: u64,
    /// The CANCEL that searches (it does not find itself), or `NIL`.
    pub(super) seeker: u32,
    cursor: u32,
}

/// A control-socket CANCEL or WHY under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query {
    pub(super) search: Search,
    pub(super) ring: RingId,
    pub(super) cancel: bool,
    pub(super) token: u64,
    /// SQEs of the ring that were taken when the search began: a later one is not in what it has
    /// seen, though it is in flight.
    pub(super) taken: u64,
}

impl Search {
    pub(super) fn new(by: u64, target: u64, seeker: u32, first: u32) -> Self {
        Self { by, target, seeker, cursor: first }
    }

    /// The SQE number that is looked for, if it is that.
    fn number(&self) -> Option<u64> {
        (self.by == CANCEL_BY_NUMBER).then_some(self.target)
    }

    /// Moves on from an op that leaves the list.
    pub(super) fn pass(&mut self, slot: u32, next: u32) {
        if self.cursor == slot {
            self.cursor = next;
        }
    }

    /// `Some(Some(slot))`: found; `Some(None)`: not there; `None`: not yet known.
    fn step(&mut self, ledger: &Ledger, ring: RingId, budget: &mut u32) -> Option<Option<u32>> {
        if self.by == CANCEL_BY_RECORD {
            let slot = ledger.find(RecordId(self.target));
            return Some(slot.filter(|&slot| ledger[slot].ring == ring && slot != self.seeker));
        }
        while *budget > 0 {
            *budget -= 1;
            if self.cursor == NIL {
                return Some(None);
            }
            let slot = self.cursor;
            let record = &ledger[slot];
            let key = if self.by == CANCEL_BY_NUMBER { record.number } else { record.op.user_data };
            if key == self.target && slot != self.seeker {
                return Some(Some(slot));
            }
            self.cursor = List::<RING>::next(ledger, slot);
        }
        None
    }
}

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Goes on with a ring's CANCEL; true once it is answered.
    pub(super) fn step_cancel(&mut self, id: RingId) -> bool {
        let Some(mut search) = self.ring(id).search else { return true };
        let mut budget = self.ring(id).search_budget;
        let found = search.step(&self.ledger, id, &mut budget);
        let ring = self.ring(id);
        ring.search_budget = budget;
        let Some(found) = found else {
            ring.search = Some(search);
            return false;
        };
        ring.search = None;
        let result = found.map_or(Err(errno::ENOENT), |slot| self.cancel(slot).map(|_| ()));
        if let Err(errno) = result {
            let detail = Detail::None as u16;
            self.ledger[search.seeker].failure = Some(Failure { errno, detail, flags: 0 });
        }
        self.finish(search.seeker);
        self.begin_next_cancel(id);
        self.ring(id).search.is_none()
    }

    /// A CANCEL that waited for another one's search has its turn.
    fn begin_next_cancel(&mut self, id: RingId) {
        let Some(ring) = self.rings[id.0 as usize].as_mut() else { return };
        let next = ring.cancels.head();
        if next != NIL && ring.search.is_none() {
            ring.cancels.remove(&mut self.ledger, next);
            self.search_for(next);
        }
    }

    /// Begins a CANCEL; behind another one's search, if there is one.
    pub(super) fn begin_cancel(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        record.state = State::Flushing;
        let id = record.ring;
        let Some(ring) = self.rings[id.0 as usize].as_mut() else { return };
        if ring.search.is_some() {
            ring.cancels.push_back(&mut self.ledger, slot);
        } else {
            self.search_for(slot);
            self.step_cancel(id);
        }
    }

    fn search_for(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        let (id, op) = (record.ring, record.op);
        let first = self.ring(id).ops.head();
        self.ring(id).search = Some(Search::new(op.arg[1], op.arg[0], slot, first));
        // One that has waited may find its ring asleep.
        self.wake(id);
    }

    /// Ends a CANCEL that is not done.
    pub(super) fn end_cancel(&mut self, slot: u32, failure: Failure) {
        let id = self.ledger[slot].ring;
        let Some(ring) = self.rings[id.0 as usize].as_mut() else { return };
        if ring.search.is_some_and(|search| search.seeker == slot) {
            ring.search = None;
        } else {
            ring.cancels.remove(&mut self.ledger, slot);
        }
        self.withdraw(slot, failure);
    }

    /// Goes on with a control-socket CANCEL, before its op may be posted.
    pub(super) fn step_cancel_query(&mut self) {
        self.step_query(true);
    }

    /// Goes on with a control-socket WHY, when all that can go on has done so: what an op waits for
    /// then is so until the next turn.
    pub(super) fn step_why_query(&mut self) {
        self.step_query(false);
    }

    #[inline]
    fn step_query(&mut self, cancel: bool) {
        if let Some(query) = self.query.take_if(|query| query.cancel == cancel) {
            self.go_on_with(query);
        }
    }

    fn go_on_with(&mut self, mut query: Query) {
        let mut budget = STEPS_PER_TURN;
        let Some(found) = query.search.step(&self.ledger, query.ring, &mut budget) else {
            self.query = Some(query);
            return;
        };
        if found.is_none() && self.was_taken_since(&mut query) {
            self.query = Some(query);
            return;
        }
        let token = query.token;
        let reply = match found {
            None => {
                let untaken = query.search.number().filter(|_| !query.cancel);
                match untaken.and_then(|number| self.why_untaken(query.ring, number)) {
                    Some(why) => Reply::Why { token, why },
                    None => Reply::Failed { token, errno: errno::ENOENT, detail: Detail::None },
                }
            }
            Some(slot) if query.cancel => match self.cancel(slot) {
                Ok(record) => Reply::Cancelled { token, record },
                Err(errno) => Reply::Failed { token, errno, detail: Detail::None },
            },
            Some(slot) => Reply::Why { token, why: self.why(slot) },
        };
        self.replies.push_back(reply);
    }

    /// True if a WHY names an SQE that was taken after its search had begun; then it begins anew,
    /// which it can but once.
    fn was_taken_since(&self, query: &mut Query) -> bool {
        let Some(ring) = self.rings.get(query.ring.0 as usize).and_then(Option::as_ref) else {
            return false;
        };
        let since = query.taken..ring.next_number;
        let again = !query.cancel && query.search.number().is_some_and(|it| since.contains(&it));
        if again {
            query.taken = ring.next_number;
            query.search.cursor = ring.ops.head();
        }
        again
    }

    /// Answers WHY for an op that is named by its record alone.
    pub(super) fn find(
        &self,
        record: RecordId,
        owner: Option<u32>,
        token: u64,
    ) -> Reply<F::Memory, M> {
        let seen = |slot: &u32| {
            let session = &self.sessions[self.ledger[*slot].session.0 as usize];
            owner.is_none_or(|owner| owner == session.owner)
        };
        match self.ledger.find(record).filter(seen) {
            Some(slot) => Reply::Why { token, why: self.why(slot) },
            None => Reply::Failed { token, errno: errno::ENOENT, detail: Detail::None },
        }
    }

    /// Takes back an op if nothing of it is posted.
    fn cancel(&mut self, slot: u32) -> Result<RecordId, i32> {
        let record = self.ledger.id(slot);
        let failure = Failure {
            errno: errno::ECANCELED,
            detail: Detail::Cancelled as u16,
            flags: CQE_RETRYABLE,
        };
        if self.ledger[slot].op.opcode == Opcode::Cancel {
            return Err(errno::EALREADY);
        }
        let session = self.ledger[slot].session;
        match self.ledger[slot].state {
            State::Free => return Err(errno::ENOENT),
            State::Posted => return Err(errno::EALREADY),
            State::Folded if !self.folds.waits(&self.ledger, slot) => return Err(errno::EALREADY),
            State::Waiting | State::Queued | State::Armed | State::Flushing | State::Folded => {
                self.withdraw(slot, failure);
            }
        }
        self.sessions[session.0 as usize].count(Counter::Cancelled, 1);
        Ok(record)
    }

    /// Ends an op of which nothing is posted.
    pub(super) fn withdraw(&mut self, slot: u32, failure: Failure) {
        let record = &mut self.ledger[slot];
        record.failure = Some(failure);
        match record.state {
            State::Armed => self.end_arm(slot),
            State::Waiting => {
                self.end_waiting(slot);
                self.let_go();
            }
            State::Flushing => {
                if record.op.opcode == Opcode::Flush {
                    self.flushes.remove(&mut self.ledger, slot);
                }
                self.finish(slot);
            }
            State::Folded => {
                self.unfold(slot);
                self.finish(slot);
            }
            State::Queued | State::Posted | State::Free => {
                self.unqueue(slot);
                self.finish(slot);
            }
        }
    }
}
