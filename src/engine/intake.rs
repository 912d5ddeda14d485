//! Taking SQEs: look, copy once, judge, open a record, queue.

use crate::abi::{Cqe, Detail, OP_BYTES_MAX, Opcode, RingCounter, SQE_REVOKE, Sqe, errno};
use crate::fabric::Fabric;
use crate::ids::RingId;
use crate::ledger::{Failure, NIL, Op, State};
use crate::ring::{EngineEnd, Fault, Memory};

use super::pages::{BLOCK_PAGES, PagePool};
use super::search::Search;
use super::tables::{Phase, Wind};
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
        let mut taken = 0;
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
        let ring = self.ring(RingId(id));
        // An unfinished CANCEL holds the ring's intake, so that its search is bounded a turn. A
        // skipped success gives its CQ slot back at once, but its fate entry only at publication.
        if ring.search.is_some() || ring.fates.is_empty() || ring.end.room(1)? == 0 {
            return Ok(Step::Later);
        }
        let words = match ring.held.take() {
            Some(words) => words,
            None => ring.end.peek(0),
        };
        let (session, cq_entries) = (ring.session, ring.end.cq_entries());
        let sqe = Sqe::from_words(words);
        match self.parse(session, cq_entries, &sqe) {
            Err(failure) => {
                self.refuse(id, &sqe, failure);
                Ok(Step::Taken)
            }
            Ok(op) => self.admit(id, words, op),
        }
    }

    /// Takes a good SQE if all it needs is there; else keeps its copy for later.
    fn admit(&mut self, id: u32, words: [u64; 8], mut op: Op) -> Result<Step, Fault> {
        let slots = if op.opcode == Opcode::Arm { op.bytes } else { 1 };
        let blocks = PagePool::blocks_for(op.pages);
        let session = self.ring(RingId(id)).session;
        let state = &self.sessions[session.0 as usize];
        let owner = &self.owners[state.owner as usize];
        let fits = self.record_share.allows(state.records, 1)
            && owner.ops < owner.ops_max
            && (blocks == 0 || self.block_share.allows(state.blocks, blocks))
            && (op.flags & SQE_REVOKE == 0 || self.events.len() < self.regions.len());
        if !fits || self.ring(RingId(id)).end.room(slots)? < slots {
            self.ring(RingId(id)).held = Some(words);
            return Ok(Step::Later);
        }
        if op.pages > 0 {
            op.list = self.pages.take(blocks);
            if let Err(failure) = self.copy_pages(&mut op) {
                self.pages.give(op.list);
                self.refuse(id, &Sqe::from_words(words), failure);
                return Ok(Step::Taken);
            }
            let state = &mut self.sessions[session.0 as usize];
            self.block_share.take(&mut state.blocks, blocks);
        }
        self.open(id, slots, op);
        Ok(Step::Taken)
    }

    /// Opens the record of an op that has been admitted, and sends it on its way.
    fn open(&mut self, id: u32, slots: u32, op: Op) {
        let ring_id = RingId(id);
        let session = self.ring(ring_id).session;
        let Some(slot) = self.ledger.open(session, ring_id, op, self.now_ns) else {
            unreachable!("the share allowed a record that is not there");
        };
        let state = &mut self.sessions[session.0 as usize];
        self.record_share.take(&mut state.records, 1);
        state.count(crate::abi::Counter::Taken, 1);
        let owner = state.owner;
        self.owners[owner as usize].ops += 1;
        self.sequence += 1;
        let sequence = self.sequence;
        let record = self.ledger.id(slot);
        let Some(ring) = self.rings[id as usize].as_mut() else { return };
        let Some(fate) = ring.fates.pop() else {
            unreachable!("fewer fate entries than CQ slots");
        };
        let number = ring.next_number;
        ring.next_number += 1;
        ring.end.take(slots);
        ring.end.fate_accepted(fate, record.0, number);
        let entry = &mut self.ledger[slot];
        entry.fate = fate;
        entry.number = number;
        entry.sequence = sequence;
        ring.ops.push_back(&mut self.ledger, slot);
        self.refer(&op);
        match op.opcode {
            Opcode::Nop => self.finish(slot),
            Opcode::Cancel => self.begin_cancel(slot),
            Opcode::Flush => self.begin_flush(slot),
            Opcode::Arm => self.begin_arm(slot),
            _ => {
                self.deadlines += u32::from(op.deadline_us > 0);
                self.lanes.push(&mut self.ledger, slot);
            }
        }
    }

    /// Holds an op's regions until [`Engine::unrefer`].
    fn refer(&mut self, op: &Op) {
        for (index, remote) in [(op.local, false), (op.import, false), (op.target, true)] {
            if index != NIL {
                let region = &mut self.regions[index as usize];
                if remote { region.remote_refs += 1 } else { region.refs += 1 }
            }
        }
    }

    /// Copies and checks the page list of an op.
    fn copy_pages(&mut self, op: &mut Op) -> Result<(), Failure> {
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
                match self.inside(op, entry.local_offset, far) {
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
        ring.end.take(1);
        ring.end.fate_accepted(fate, 0, number);
        ring.end.count(RingCounter::Refused);
        let cqe = Cqe {
            user_data: sqe.user_data,
            res: -failure.errno,
            detail: failure.detail,
            flags: failure.flags,
            ..Cqe::default()
        };
        ring.end.push(cqe.to_words());
        ring.end.count(RingCounter::Completed);
        ring.frees.push(fate);
        let session = &mut self.sessions[ring.session.0 as usize];
        session.count(crate::abi::Counter::Taken, 1);
        session.count(crate::abi::Counter::Refused, 1);
        session.count(crate::abi::Counter::Completed, 1);
        self.touch(RingId(id));
    }

    fn begin_cancel(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        record.state = State::Flushing;
        let (id, op) = (record.ring, record.op);
        let first = self.ring(id).ops.head();
        let search = Search::new(op.arg[1], op.arg[0], slot, first);
        self.ring(id).search = Some(search);
        self.step_cancel(id);
    }

    /// Ends a ring that its client broke. Its ops stop where they are; nobody else notices.
    pub(super) fn fault(&mut self, id: u32, fault: Fault) {
        let Some(ring) = self.rings[id as usize].as_mut() else { return };
        // What was taken in the pass that found the fault counts as taken: else an op that is done
        // and has left the fate table would be judged not started.
        ring.end.publish_taken();
        ring.end.fault(fault);
        ring.held = None;
        ring.search = None;
        ring.faulted = true;
        let session = ring.session;
        ring.phase = Phase::Winding { mode: Wind::Cancel, cursor: ring.ops.head(), token: None };
        self.unpoll(id);
        self.winding.push(id);
        self.sessions[session.0 as usize].count(crate::abi::Counter::Faults, 1);
        self.events.push_back(Event::Faulted { ring: RingId(id), fault });
    }
}

/// Orders the posted marks of a batch before the post, whatever the ring memory.
pub(super) fn order_fates<M: Memory>() {
    EngineEnd::<M>::fates_posted();
}
