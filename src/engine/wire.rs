//! Ops that wait for others: wired before anybody sees them, released exactly once, or ended with
//! the first cause of what failed before them.
//!
//! An op is wired when it is taken: each predecessor that is not over gets an edge in its list, and
//! the op counts them ([`Record::awaits`](crate::ledger::Record::awaits)). It is in no lane until
//! the count is 0; so there is nothing that could release it twice, and no moment in which it could
//! be missed. A DRAIN counts one more for all that is before it in its ring, and is released when
//! it is the first that is left, ARMs aside.
//!
//! What one op's end sets going is a work list ([`Edges`]), of which a turn
//! does a bounded part: a graph may be as deep or as wide as it wants.
//!
//! An op rises to the class of whoever waits for it, and so do those that it waits for itself: by a
//! list, too. What is posted whole has no use for it.

use crate::abi::{
    CQE_DEP_FAILED, CQE_RETRYABLE, Class, Counter, Opcode, SQE_DRAIN, WAIT_EARLIER,
    WAIT_PREDECESSOR, errno,
};
use crate::edges::{Cause, Edges, Settled};
use crate::fabric::Fabric;
use crate::ids::RingId;
use crate::ledger::{
    Aside, Failure, Ledger, List, NIL, RING, State, TIE_COUNTED, TIE_DRAIN, TIE_HELD, TIE_RAISING,
};
use crate::plant::{Plant, planted};
use crate::ring::Memory;

use super::ties::{Before, LIVE_MAX, Plan, cause_of};
use super::{Engine, STEPS_PER_TURN};

/// Edges settled in one turn.
const SETTLED_PER_TURN: u32 = 1_024;

/// The first of a ring's ops that is not an ARM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    None,
    Op(u32),
    /// There are too many ARMs before it to tell in this turn.
    Unknown,
}

/// All ops of a ring up to one rise to a class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lift {
    pub(super) cursor: u32,
    until: u64,
    class: Class,
}

/// Wires an op that was just opened.
#[inline]
pub(super) fn wire(ledger: &mut Ledger, edges: &mut Edges, slot: u32, ring: RingId, plan: &Plan) {
    let record = &mut ledger[slot];
    record.state = State::Waiting;
    record.awaits = plan.count();
    record.ties = plan.ties;
    let id = record.id();
    for &(before, order_only) in plan.live() {
        edges.add(&mut ledger[before].dependents, id, ring, order_only);
    }
}

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// The first op of a ring that is not over, ARMs aside.
    pub(super) fn first_of(&mut self, id: RingId) -> First {
        let Some(ring) = self.rings[id.0 as usize].as_mut() else { return First::None };
        let mut at = if ring.ties.first == NIL { ring.ops.head() } else { ring.ties.first };
        for _ in 0..STEPS_PER_TURN {
            if at == NIL {
                ring.ties.first = NIL;
                return First::None;
            }
            if self.ledger[at].op.opcode != Opcode::Arm {
                ring.ties.first = at;
                return First::Op(at);
            }
            at = List::<RING>::next(&self.ledger, at);
        }
        ring.ties.first = at;
        First::Unknown
    }

    /// Has an op that was just opened wait for what its plan says; `drains` if it is a DRAIN with
    /// something before it. What it waits for rises to its class.
    pub(super) fn wait(&mut self, slot: u32, plan: &Plan, drains: bool) {
        let record = &self.ledger[slot];
        let (ring, class) = (record.ring, record.class);
        wire(&mut self.ledger, &mut self.edges, slot, ring, plan);
        let record = &mut self.ledger[slot];
        if let Some(cause) = plan.cause {
            fail(record, cause);
        }
        if drains {
            record.awaits += 1;
            record.ties |= TIE_DRAIN;
            self.ring(ring).ties.drains += 1;
            self.look_at_drains(ring);
            self.lift(ring, slot, class);
        }
        self.count_edges(ring, plan.count());
        for &(before, _) in plan.live() {
            self.raise(before, class);
        }
    }

    /// Ends an op that was just opened, since a predecessor had failed before.
    #[cold]
    pub(super) fn fail_at_once(&mut self, slot: u32, cause: Cause) {
        let record = &mut self.ledger[slot];
        record.state = State::Waiting;
        fail(record, cause);
        self.end_waiting(slot);
        self.let_go();
    }

    /// A ring has so many more edges in the pool.
    #[inline]
    pub(super) fn count_edges(&mut self, ring: RingId, count: u32) {
        let ring = self.ring(ring);
        ring.ties.edges += count;
        let session = ring.session.0 as usize;
        let session = &mut self.sessions[session];
        self.edge_share.take(&mut session.edges, count);
        self.owners[session.owner as usize].edges += count;
        session.count(Counter::EdgesLive, 1);
    }

    /// The op has ended: its successors hear of it, in this turn or a later one.
    #[inline]
    pub(super) fn tell_dependents(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        let (id, number, opcode) = (record.ring, record.number, record.op.opcode);
        let cause = record
            .failure
            .map(|failure| Cause { errno: record.first_cause(failure), ..cause_of(failure) });
        let list = std::mem::replace(&mut record.dependents, NIL);
        if list != NIL {
            self.edges.settle(list, cause);
        }
        if let Some(cause) = cause
            && opcode != Opcode::Arm
        {
            self.ring(id).ties.failed(number, cause);
        }
    }

    /// Tells those who wait for what is over, a bounded number a turn.
    #[inline]
    pub(super) fn step_ties(&mut self) {
        if self.ties_busy() {
            self.settle_ties();
        }
    }

    /// True if a further turn may release somebody.
    #[inline]
    pub(super) fn ties_busy(&self) -> bool {
        !self.edges.is_settled()
            || !self.drains.is_empty()
            || !self.raising.is_empty()
            || !self.lifts.is_empty()
    }

    #[inline(never)]
    fn settle_ties(&mut self) {
        let mut budget = SETTLED_PER_TURN;
        loop {
            // Neighbours are mostly of one ring, and given back for the price of one.
            let (mut of, mut count) = (None, 0);
            while budget > 0
                && let Some(settled) = self.edges.take()
            {
                budget -= 1;
                if of != Some(settled.ring) {
                    self.give_edges(of, count);
                    (of, count) = (Some(settled.ring), 0);
                }
                count += 1;
                self.settle_edge(settled);
            }
            self.give_edges(of, count);
            if !self.step_drains() || budget == 0 {
                break;
            }
        }
        self.let_go();
        self.step_raising();
    }

    /// So many edges of a ring are back in the pool.
    #[inline]
    fn give_edges(&mut self, of: Option<RingId>, count: u32) {
        let Some(of) = of else { return };
        let ring = self.ring(of);
        ring.ties.edges -= count;
        let session = ring.session.0 as usize;
        let session = &mut self.sessions[session];
        self.edge_share.give(&mut session.edges, count);
        self.owners[session.owner as usize].edges -= count;
    }

    #[inline]
    fn settle_edge(&mut self, Settled { waiter, cause, .. }: Settled) {
        // It may have been cancelled meanwhile.
        let Some(slot) = self.ledger.find(waiter) else { return };
        let record = &mut self.ledger[slot];
        // What rides hears of it from its rail.
        if let Some(cause) = cause
            && record.state == State::Waiting
            && !planted(Plant::FailureForgotten)
        {
            fail(record, cause);
        }
        record.awaits = if planted(Plant::ReleasedEarly) { 0 } else { record.awaits - 1 };
        if record.awaits > 0 {
            return;
        }
        if record.state == State::Waiting {
            self.release(slot);
        } else if record.ties & TIE_HELD != 0 {
            self.let_on(slot, cause);
        }
    }

    /// Nothing is waited for any more. [`Engine::let_go`] follows.
    #[inline]
    pub(super) fn release(&mut self, slot: u32) {
        if self.ledger[slot].failure.is_some() {
            return self.end_waiting(slot);
        }
        let record = &mut self.ledger[slot];
        record.state = State::Queued;
        record.released(if record.op.flags & SQE_DRAIN != 0 {
            WAIT_EARLIER
        } else {
            WAIT_PREDECESSOR
        });
        let counted = self.untie(slot) & TIE_COUNTED != 0;
        if counted {
            self.enqueue(slot);
        } else {
            self.start(slot);
        }
    }

    /// An op waits no more: it leaves the lists that are about waiting. Returns its ties.
    #[inline]
    fn untie(&mut self, slot: u32) -> u8 {
        let ties = std::mem::take(&mut self.ledger[slot].ties);
        if ties & TIE_RAISING != 0 {
            self.raising.remove(&mut self.ledger, slot);
        }
        ties
    }

    /// Ends an op that waits: it failed with its predecessors, or was taken back.
    /// [`Engine::let_go`] follows.
    #[cold]
    pub(super) fn end_waiting(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        record.awaits = 0;
        let (id, drains, op) = (record.ring, record.ties & TIE_DRAIN != 0, record.op);
        let dep_failed = record.failure.is_some_and(|failure| failure.flags & CQE_DEP_FAILED != 0);
        if self.untie(slot) & TIE_COUNTED != 0 {
            // It was to be posted once, and counts as queued.
            self.ledger[slot].state = State::Queued;
        }
        self.deadlines -= u32::from(op.deadline_us > 0);
        let ring = self.ring(id);
        ring.ties.drains -= u32::from(drains);
        if op.opcode == Opcode::Arm && !ring.faulted {
            ring.end.forgo(op.bytes - 1);
        }
        let session = ring.session;
        self.sessions[session.0 as usize].count(Counter::DepFailed, dep_failed.into());
        self.finish_among_others(slot);
    }

    /// Sends an op on its way that waits for nothing.
    #[inline]
    pub(super) fn start(&mut self, slot: u32) {
        match self.ledger[slot].op.opcode {
            Opcode::Nop | Opcode::Join => self.finish_among_others(slot),
            Opcode::Cancel => self.begin_cancel(slot),
            Opcode::Flush => self.begin_flush(slot),
            Opcode::Arm => self.begin_arm(slot),
            _ => {
                self.meter.enqueued_one(&self.ledger[slot]);
                self.enqueue(slot);
            }
        }
    }

    /// A DRAIN of this ring may be the first of its ops now.
    #[inline]
    pub(super) fn look_at_drains(&mut self, id: RingId) {
        let ring = self.ring(id);
        if ring.ties.drains > 0 && !std::mem::replace(&mut ring.ties.due, true) {
            self.drains.push(id.0);
        }
    }

    /// Looks whether DRAINs are the first of their rings; false if nothing came of it.
    fn step_drains(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..self.drains.len() {
            let Some(id) = self.drains.pop() else { break };
            let first = self.first_of(RingId(id));
            if first == First::Unknown {
                self.drains.push(id);
                break;
            }
            let Some(ring) = self.rings[id as usize].as_mut() else { continue };
            ring.ties.due = false;
            let First::Op(slot) = first else { continue };
            let record = &mut self.ledger[slot];
            if record.ties & TIE_DRAIN == 0 {
                continue;
            }
            record.ties &= !TIE_DRAIN;
            record.awaits -= 1;
            ring.ties.drains -= 1;
            moved = true;
            // What is wired to it is told by its edges.
            if record.awaits == 0 {
                self.release(slot);
            }
        }
        moved
    }

    /// An op is waited for by another of this class: it goes as if it were of that class itself.
    #[inline]
    pub(super) fn raise(&mut self, slot: u32, class: Class) {
        if self.ledger[slot].class > class {
            self.raise_now(slot, class);
        }
    }

    #[cold]
    fn raise_now(&mut self, slot: u32, class: Class) {
        let record = &mut self.ledger[slot];
        match record.state {
            State::Waiting => {
                record.class = class;
                if record.ties & TIE_RAISING == 0 {
                    record.ties |= TIE_RAISING;
                    self.raising.push_back(&mut self.ledger, slot);
                }
            }
            State::Queued | State::Posted if !record.posted_whole => {
                if record.line != 0 && self.fabric.rails() > 1 {
                    self.abroad.raise(&mut self.ledger, slot, class);
                } else if record.aside == Aside::No {
                    self.lanes.remove(&mut self.ledger, slot);
                    self.ledger[slot].class = class;
                    self.lanes.push(&mut self.ledger, slot);
                } else {
                    // It was let in as a whole, and goes next.
                    record.rise(class);
                }
            }
            State::Folded => {
                record.class = class;
                self.raise_survivor(slot);
            }
            _ => record.rise(class),
        }
    }

    /// All that is before a DRAIN rises with it.
    fn lift(&mut self, id: RingId, slot: u32, class: Class) {
        if class == Class::Low {
            return;
        }
        let until = self.ledger[slot].number;
        let ring = self.ring(id);
        let cursor = ring.ops.head();
        let new = ring.lift.is_none();
        let before = ring.lift.unwrap_or(Lift { cursor, until, class });
        let (class, until) = (class.min(before.class), until.max(before.until));
        ring.lift = Some(Lift { cursor, until, class });
        if new {
            self.lifts.push(id.0);
        }
    }

    /// Goes on with classes that rise, by a bounded number of ops.
    fn step_raising(&mut self) {
        let mut budget = STEPS_PER_TURN;
        while budget > 0 && !self.raising.is_empty() {
            budget -= 1;
            let slot = self.raising.head();
            self.raising.remove(&mut self.ledger, slot);
            let record = &mut self.ledger[slot];
            record.ties &= !TIE_RAISING;
            let (id, class, drains) = (record.ring, record.class, record.ties & TIE_DRAIN != 0);
            if drains {
                self.lift(id, slot, class);
            }
            let (mut found, mut count) = ([NIL; LIVE_MAX as usize], 0);
            if let Some(ring) = self.rings[id.0 as usize].as_ref() {
                for (before, _) in ring.ties.names(&self.ledger, slot) {
                    if let Before::Live(before) = before {
                        found[count] = before;
                        count += 1;
                    }
                }
                if let Some(drain) = ring.ties.drain_before(&self.ledger, id, slot) {
                    found[count] = drain;
                    count += 1;
                }
            }
            found[..count].iter().for_each(|&before| self.raise(before, class));
        }
        while budget > 0
            && let Some(&id) = self.lifts.last()
        {
            budget -= 1;
            self.step_lift(RingId(id));
        }
    }

    /// Raises the next op of a ring that is before a DRAIN.
    fn step_lift(&mut self, id: RingId) {
        let ring = self.rings[id.0 as usize].as_mut();
        let lift = ring.and_then(|ring| ring.lift.take());
        let ledger = &self.ledger;
        let lift =
            lift.filter(|lift| lift.cursor != NIL && ledger[lift.cursor].number < lift.until);
        let Some(lift) = lift else {
            self.lifts.pop();
            return;
        };
        let cursor = List::<RING>::next(&self.ledger, lift.cursor);
        self.ring(id).lift = Some(Lift { cursor, ..lift });
        self.raise(lift.cursor, lift.class);
    }
}

/// An op is to fail with a predecessor, once all others are over. The first cause is kept.
#[cold]
pub(super) fn fail(record: &mut crate::ledger::Record, cause: Cause) {
    if record.failure.is_none() {
        let flags = CQE_DEP_FAILED | CQE_RETRYABLE;
        record.failure = Some(Failure { errno: errno::ECANCELED, detail: cause.detail, flags });
        record.caused_by(cause.errno);
    }
}
