//! Taking SQEs: look, copy once, judge, open a record, queue.

use crate::abi::{
    Counter, Cqe, Detail, OP_BYTES_MAX, Opcode, RingCounter, SQE_DRAIN, SQE_REVOKE, Sqe, errno,
};
use crate::fabric::Fabric;
use crate::ids::RingId;
use crate::ledger::{Failure, NIL, Op};
use crate::plant::{Plant, planted};
use crate::ring::{EngineEnd, Fault, Memory};

use super::burst::refer;
use super::pages::{BLOCK_PAGES, PagePool};
use super::tables::{Phase, Wind};
use super::ties::{FARTHEST, Plan};
use super::validate::{Judge, data_op, inside};
use super::wire::First;
use super::{Engine, Event, RINGS_PER_TURN, STEPS_PER_TURN};

/// What became of the SQE at the head of a ring.
enum Step {
    /// Taken: look at the next.
    Taken,
    /// Not yet: something it needs is used up.
    Later,
}

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Looks at each polled ring in turn, a bounded number, and takes a bounded number of SQEs.
    pub(super) fn intake(&mut self) -> u32 {
        let mut taken = 0;
        let looks = self.polled.len().min(RINGS_PER_TURN);
        for _ in 0..looks {
            if self.poll_from >= self.polled.len() {
                self.poll_from = 0;
            }
            let Some(&id) = self.polled.get(self.poll_from) else { break };
            match self.intake_ring(id) {
                Ok(count) => taken += count,
                Err(fault) => {
                    self.fault(id, fault);
                    continue;
                }
            }
            self.poll_from += 1;
        }
        self.park_one_idle();
        taken
    }

    /// Puts one ring that has been idle for long to sleep, so that it costs nothing.
    fn park_one_idle(&mut self) {
        if self.polled.is_empty() {
            return;
        }
        let at = usize::try_from(self.turns).unwrap_or(0) % self.polled.len();
        let id = self.polled[at];
        let idle_ns = self.limits.ring_idle_ns;
        let since = self.rings[id as usize].as_ref().map_or(0, |ring| ring.last_active_ns);
        if self.now_ns.saturating_sub(since) > idle_ns {
            self.park(id);
        }
    }

    fn intake_ring(&mut self, id: u32) -> Result<u32, Fault> {
        let now_ns = self.now_ns;
        let Some(ring) = self.rings[id as usize].as_mut() else { return Ok(0) };
        // A client that cannot fence is looked at only when it has rung.
        let waiting = if ring.fenceless && !std::mem::take(&mut ring.rung) {
            ring.end.waiting()
        } else {
            ring.end.look()?
        };
        let waiting = waiting.min(self.limits.intake_budget);
        if waiting > 0 {
            ring.last_active_ns = now_ns;
        }
        ring.search_budget = STEPS_PER_TURN;
        // Whether or not anything follows a CANCEL, its search goes on.
        if ring.search.is_some() && !self.step_cancel(RingId(id)) {
            return Ok(0);
        }
        let mut taken = self.take_run(id, waiting);
        while taken < waiting {
            match self.take_one(id)? {
                Step::Taken => taken += 1,
                Step::Later => break,
            }
        }
        let ring = self.ring(RingId(id));
        ring.blocked = waiting > 0 && taken == 0;
        if taken > 0 {
            ring.end.publish_taken();
        }
        Ok(taken)
    }

    fn take_one(&mut self, id: u32) -> Result<Step, Fault> {
        let Some(ring) = self.rings[id as usize].as_mut() else { return Ok(Step::Later) };
        let session = ring.session;
        let state = &self.sessions[session.0 as usize];
        let owner = &mut self.owners[state.owner as usize];
        // It may have been the one that others wait for; it is again if only bytes are wanting.
        owner.pass_by(id);
        // An unfinished CANCEL holds the ring's intake, so that its search is bounded a turn. A
        // skipped success gives its CQ slot back at once, but its fate entry only at publication.
        if ring.search.is_some() || ring.fates.is_empty() || ring.end.room(1)? == 0 {
            return Ok(Step::Later);
        }
        let judge = Judge {
            regions: &self.regions,
            session,
            ceiling: state.ceiling,
            cq_entries: ring.end.cq_entries(),
        };
        ring.keep_sqes();
        let sqe = Sqe::from_words(ring.copied.entry(0));
        // A bad SQE needs no record, and is refused while there is none, too.
        let mut aside = Op::NOP;
        let op = self.ledger.vacant().unwrap_or(&mut aside);
        if let Err(failure) = judge.parse(&sqe, op) {
            self.refuse(id, &sqe, failure);
            return Ok(Step::Taken);
        }
        let op = *op;
        let mut plan = Plan::NONE;
        let next = (&self.ledger, RingId(id), ring.next_number);
        let planned = ring.ties.plan(&mut plan, next, &sqe).and_then(|()| {
            let detail = Detail::Edges as u16;
            let beyond = Failure { errno: errno::E2BIG, detail, flags: 0 };
            if plan.count() > owner.edges_max { Err(beyond) } else { Ok(()) }
        });
        if let Err(failure) = planned {
            self.refuse(id, &sqe, failure);
            return Ok(Step::Taken);
        }
        // What it needs must be there, else it waits as a copy.
        let slots = if op.opcode == Opcode::Arm { op.bytes } else { 1 };
        let blocks = PagePool::blocks_for(op.pages);
        let fits = self.record_share.allows(state.records, 1)
            && owner.ops < owner.ops_max
            && (blocks == 0 || self.block_share.allows(state.blocks, blocks))
            && (op.flags & SQE_REVOKE == 0 || self.events.len() < self.regions.len())
            && self.edge_share.allows(state.edges, plan.count())
            && plan.count() <= owner.edges_max - owner.edges
            && ring.end.room(slots)? >= slots
            && owner.admits(id, op.asked());
        if !fits {
            return Ok(Step::Later);
        }
        let Some(drains) = self.in_reach(RingId(id), sqe.flags) else { return Ok(Step::Later) };
        if op.pages > 0 {
            let mut op = op;
            op.list = self.pages.take(blocks);
            if let Err(failure) = self.copy_pages(&op) {
                self.pages.give(op.list);
                self.refuse(id, &sqe, failure);
                return Ok(Step::Taken);
            }
            let state = &mut self.sessions[session.0 as usize];
            self.block_share.take(&mut state.blocks, blocks);
            if let Some(vacant) = self.ledger.vacant() {
                *vacant = op;
            }
        }
        self.open(id, slots, &sqe, &plan, drains);
        Ok(Step::Taken)
    }

    /// Opens the record of the op that has been judged and let in, and sends it on its way.
    #[inline]
    fn open(&mut self, id: u32, slots: u32, sqe: &Sqe, plan: &Plan, drains: bool) {
        let Some(ring) = self.rings[id as usize].as_mut() else { return };
        let session = ring.session;
        let Some((slot, record)) = self.ledger.open(session, ring.id, self.now_ns) else {
            unreachable!("the share allowed a record that is not there");
        };
        let state = &mut self.sessions[session.0 as usize];
        self.record_share.take(&mut state.records, 1);
        state.count(Counter::Taken, 1);
        self.owners[state.owner as usize].take(id, 1, record.op.asked());
        self.sequence += 1;
        let Some(fate) = ring.fates.pop() else {
            unreachable!("fewer fate entries than CQ slots");
        };
        let number = ring.next_number;
        ring.next_number += 1;
        ring.copied.pass(1);
        ring.end.take(slots);
        ring.end.fate_accepted(fate, record.id().0, number);
        record.fate = fate;
        record.number = number;
        record.sequence = self.sequence;
        record.checked = self.withdrawn;
        record.edges = sqe.edges;
        let opcode = record.op.opcode;
        ring.ties.took(number, slot);
        ring.ties.link(sqe.flags);
        ring.ties.took_rare(number, opcode, sqe.flags);
        self.deadlines += u32::from(record.op.deadline_us > 0);
        refer(&mut self.regions, record.op.names(), 1);
        ring.ops.push_back(&mut self.ledger, slot);
        if plan.count() > 0 || drains {
            self.count_tied(slot);
            return self.wait(slot, plan, drains);
        }
        if plan.tied {
            self.sessions[session.0 as usize].count(Counter::EdgesOver, 1);
        }
        if let Some(cause) = plan.cause {
            self.count_tied(slot);
            self.fail_at_once(slot, cause);
        } else if data_op(opcode) {
            self.fold_or_queue(slot, plan.tied);
        } else {
            self.start(slot);
            self.let_go();
        }
    }

    /// Whether the SQE at the head of a ring may be taken, as far as those before it go; if so,
    /// whether it is to wait for all of them, as a DRAIN.
    fn in_reach(&mut self, id: RingId, flags: u16) -> Option<bool> {
        let oldest = self.ring(id).ops.head();
        let number = self.ring(id).next_number;
        let near = oldest == NIL || number < self.ledger[oldest].number + FARTHEST;
        if near && flags & SQE_DRAIN == 0 {
            return Some(false);
        }
        // All behind a DRAIN would wait for an earlier one with it, and must, if it is taken back.
        if flags & SQE_DRAIN != 0 && self.under_drain(id) {
            return None;
        }
        match self.first_of(id) {
            First::Unknown => None,
            First::None => Some(false),
            First::Op(first) if number >= self.ledger[first].number + FARTHEST => None,
            First::Op(_) => Some(flags & SQE_DRAIN != 0 && !planted(Plant::DrainPassed)),
        }
    }

    /// True while a DRAIN of this ring is not over.
    pub(super) fn under_drain(&self, id: RingId) -> bool {
        let ring = self.rings[id.0 as usize].as_ref();
        ring.is_some_and(|ring| ring.ties.drains_now(&self.ledger, id).is_some())
    }

    /// Copies and checks the page list of an op.
    fn copy_pages(&mut self, op: &Op) -> Result<(), Failure> {
        let bad = |detail| Failure { errno: errno::EINVAL, detail: detail as u16, flags: 0 };
        let mut block = op.list;
        let mut page = 0;
        while page < op.pages {
            let count = (op.pages - page).min(BLOCK_PAGES);
            let at = op.local_offset + u64::from(page) * size_of::<crate::abi::Page>() as u64;
            let room = &mut self.pages.block(block)[..count as usize];
            if !self.fabric.read_pages(op.local, at, room) {
                return Err(bad(Detail::LocalOffset));
            }
            for place in 0..count {
                let entry = self.pages.page(block, place);
                let far = op.remote_offset.checked_add(entry.remote_offset);
                let far = far.ok_or_else(|| bad(Detail::Page))?;
                match inside(&self.regions, op, entry.local_offset, far) {
                    Ok(()) => {}
                    Err(Detail::Overlap) => return Err(bad(Detail::Overlap)),
                    Err(_) => return Err(bad(Detail::Page)),
                }
            }
            page += count;
            block = self.pages.next(block);
        }
        debug_assert!(u64::from(op.bytes) * u64::from(op.pages) <= u64::from(OP_BYTES_MAX));
        Ok(())
    }

    /// Answers a bad SQE: it is taken, its CQE names the field, and there is no record.
    fn refuse(&mut self, id: u32, sqe: &Sqe, failure: Failure) {
        let Some(ring) = self.rings[id as usize].as_mut() else { return };
        let Some(fate) = ring.fates.pop() else {
            unreachable!("fewer fate entries than CQ slots");
        };
        let number = ring.next_number;
        ring.next_number += 1;
        ring.copied.pass(1);
        ring.end.take(1);
        ring.end.fate_accepted(fate, 0, number);
        ring.ties.refused(number, sqe.flags, failure);
        ring.end.count(RingCounter::Refused, 1);
        let cqe = Cqe {
            user_data: sqe.user_data,
            res: -failure.errno,
            detail: failure.detail,
            flags: failure.flags,
            ..Cqe::default()
        };
        ring.end.push(cqe.to_words());
        ring.end.count(RingCounter::Completed, 1);
        ring.frees.push(fate);
        let session = &mut self.sessions[ring.session.0 as usize];
        session.count(Counter::Taken, 1);
        session.count(Counter::Refused, 1);
        session.count(Counter::Completed, 1);
        self.touch(RingId(id));
    }

    /// Ends a ring that its client broke. Its ops stop where they are; nobody else notices.
    pub(super) fn fault(&mut self, id: u32, fault: Fault) {
        let Some(ring) = self.rings[id as usize].as_mut() else { return };
        // What was taken in the pass that found the fault counts as taken: else an op that is done
        // and has left the fate table would be judged not started.
        ring.end.publish_taken();
        ring.end.fault(fault);
        ring.faulted = true;
        let session = ring.session;
        ring.phase = Phase::Winding { mode: Wind::Cancel, cursor: ring.ops.head(), token: None };
        self.unpoll(id);
        self.winding.push(id);
        self.sessions[session.0 as usize].count(Counter::Faults, 1);
        self.events.push_back(Event::Faulted { ring: RingId(id), fault });
    }
}

/// Orders the posted marks of a batch before the post, whatever the ring memory.
pub(super) fn order_fates<M: Memory>() {
    EngineEnd::<M>::fates_posted();
}
