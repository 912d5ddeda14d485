//! Taking SQEs: look, copy once, judge, open a record, queue.

use crate::abi::{
    Class, Counter, Cqe, Detail, FABRIC_NONE, OP_BYTES_MAX, Opcode, RingCounter, SQE_COALESCE,
    SQE_DRAIN, SQE_REVOKE, SQE_SKIP_SUCCESS, Sqe, errno,
};
use crate::fabric::Fabric;
use crate::fold::Tried;
use crate::ids::{RecordId, RingId};
use crate::ledger::{Aside, Failure, NIL, Op};
use crate::plant::{Plant, planted};
use crate::ring::{EngineEnd, Fault, KEPT, Memory};

use super::finish::counter_of;
use super::fold::outranks;
use super::pages::{BLOCK_PAGES, PagePool};
use super::tables::{Phase, Region, Ring, Session, Wind};
use super::ties::{FARTHEST, Plan};
use super::validate::{Judge, data_op, inside, plain_nop};
use super::wire::{First, wire};
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

    /// Takes the plain ops at the head of a ring: NOPs, and what moves one range. Returns how many.
    /// Whatever else comes, or is at fault, or wants what is not there, is [`Engine::take_one`]'s.
    ///
    /// A NOP is done where it begins. It has a record and a CQE, but no entry in the fate table:
    /// should the engine die before its CQE is seen, it reads as done, and so it is.
    #[inline(never)]
    fn take_run(&mut self, id: u32, waiting: u32) -> u32 {
        let mut nops = Nops::default();
        let mut taken = 0;
        // A client's head that cannot be is found again by whoever looks next.
        while taken < waiting {
            let (passed, more) = self.take_burst(id, waiting - taken, &mut nops);
            taken += passed;
            if !more {
                break;
            }
        }
        if nops.count > 0
            && let Some(ring) = self.rings[id as usize].as_mut()
        {
            nops.add_up(&mut ring.end, &mut self.sessions[ring.session.0 as usize]);
            self.meter.passed(ring.session, nops.by_class);
            self.touch(RingId(id));
        }
        taken
    }

    /// Takes the plain ops among the SQEs that were copied in one go; returns how many, and whether
    /// the next burst may hold more of them.
    #[inline(always)]
    #[expect(clippy::too_many_lines, reason = "what is borrowed apart cannot be handed on")]
    fn take_burst(&mut self, id: u32, waiting: u32, nops: &mut Nops) -> (u32, bool) {
        let Some(ring) = self.rings[id as usize].as_mut() else { return (0, false) };
        ring.keep_sqes();
        let Ring { end, copied, routes, fates, ops, session, search, next_number, ties, .. } =
            &mut **ring;
        let session = *session;
        let state = &mut self.sessions[session.0 as usize];
        let owner = &mut self.owners[state.owner as usize];
        let ceiling = state.ceiling;
        let records = self.record_share.left(state.records).min(owner.ops_max - owner.ops);
        let oldest = ops.head();
        let far = oldest != NIL
            && *next_number + u64::from(KEPT) >= self.ledger[oldest].number + FARTHEST;
        if records == 0 || search.is_some() || fates.is_empty() || far {
            return (0, false);
        }
        let want = copied.count().min(waiting).min(records);
        let count = end.take_many(want).unwrap_or(0);
        let cq_entries = end.cq_entries();
        let abroad = self.fabric.rails() > 1;
        let (mut sequence, mut number) = (self.sequence, *next_number);
        let (bytes, mut queued, mut passed) = (owner.left(id), [0; 3], 0);
        let mut bytes_left = bytes;
        let mut bound = Bound::default();
        let edges_left =
            self.edge_share.left(state.edges).min(owner.edges_max.saturating_sub(owner.edges));
        let mut rises = None;
        while passed < count {
            let words = copied.entry(passed);
            let sqe = &Sqe::from_words(words);
            if sqe.opcode == Opcode::Nop as u8 {
                if ties.bound() || !plain_nop(&words, ceiling) {
                    break;
                }
                let Some(record) = self.ledger.pass_through() else { break };
                nops.pass(end, sqe, record, ceiling);
                ties.passed(number);
            } else {
                let judge = Judge { regions: &self.regions, session, ceiling, cq_entries };
                let Some(op) = self.ledger.vacant() else { break };
                if !judge.plain_transfer(sqe, op, routes, self.withdrawn) {
                    break;
                }
                let Some(rest) = bytes_left.checked_sub(op.bytes.into()) else { break };
                let class = op.class;
                let (mut plan, mut tied) = (None, false);
                if ties.bound() || sqe.edges != [0; 2] {
                    let Ok(told) = ties.plan(&self.ledger, RingId(id), number, sqe) else { break };
                    let short = bound.edges + told.count() > edges_left;
                    if short || told.cause.is_some() || told.lifts(&self.ledger, class) {
                        break;
                    }
                    tied = told.tied;
                    if told.count() > 0 {
                        plan = Some(told);
                    } else if told.tied {
                        bound.over += 1;
                    }
                }
                let Some(fate) = fates.pop() else { break };
                let Some((slot, record)) = self.ledger.open(session, RingId(id), self.now_ns)
                else {
                    unreachable!("there is a vacant record");
                };
                bytes_left = rest;
                sequence += 1;
                record.fate = fate;
                record.number = number;
                record.sequence = sequence;
                record.checked = self.withdrawn;
                end.fate_accepted(fate, record.id().0, number);
                let (named, late) = (record.op.names(), record.op.deadline_us > 0);
                let folds = record.op.flags & SQE_COALESCE != 0;
                let asked = u64::from(record.op.bytes);
                self.deadlines += u32::from(late);
                ops.push_back(&mut self.ledger, slot);
                ties.took(number, slot, sqe.flags);
                refer(&mut self.regions, named);
                if let Some(plan) = &plan {
                    self.ledger[slot].edges = sqe.edges;
                    wire(&mut self.ledger, &mut self.edges, slot, RingId(id), plan);
                    bound.edges += plan.count();
                    bound.waiters += 1;
                    if folds {
                        state.count(self.folds.tied().counter(), 1);
                    }
                    number += 1;
                    passed += 1;
                    continue;
                }
                let tried = folds.then(|| self.folds.take_in(&mut self.ledger, slot, tied));
                if let Some(tried) = tried {
                    state.count(tried.counter(), 1);
                }
                if let Some(Tried::Into(survivor)) = tried {
                    bytes_left += asked;
                    rises = outranks(&self.ledger, slot, survivor).then_some(slot);
                    number += 1;
                    passed += 1;
                    if rises.is_some() {
                        break;
                    }
                    continue;
                }
                queued[class.index()] += 1;
                if !(abroad && self.abroad.queue(&self.regions, &mut self.ledger, slot)) {
                    self.ledger[slot].aside = Aside::No;
                    self.lanes.push(&mut self.ledger, slot);
                }
            }
            number += 1;
            passed += 1;
        }
        end.put_back(count - passed);
        copied.pass(passed);
        let opened = u32::try_from(sequence - self.sequence).unwrap_or(0);
        self.sequence = sequence;
        *next_number = number;
        state.count(Counter::Taken, u64::from(passed));
        self.meter.enqueued(session, queued);
        self.record_share.take(&mut state.records, opened);
        if bound.waiters > 0 || bound.over > 0 {
            ties.edges += bound.edges;
            self.edge_share.take(&mut state.edges, bound.edges);
            owner.edges += bound.edges;
            state.count(Counter::EdgesLive, bound.waiters);
            state.count(Counter::EdgesOver, bound.over);
        }
        owner.take(id, opened, bytes - bytes_left);
        if let Some(slot) = rises {
            self.raise_survivor(slot);
            return (passed, true);
        }
        (passed, passed == count && count > 0)
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
        let plan = match ring.ties.plan(&self.ledger, RingId(id), ring.next_number, &sqe) {
            Ok(plan) if plan.count() > owner.edges_max => {
                let detail = Detail::Edges as u16;
                self.refuse(id, &sqe, Failure { errno: errno::E2BIG, detail, flags: 0 });
                return Ok(Step::Taken);
            }
            Ok(plan) => plan,
            Err(failure) => {
                self.refuse(id, &sqe, failure);
                return Ok(Step::Taken);
            }
        };
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
        ring.ties.took(number, slot, sqe.flags);
        ring.ties.took_rare(number, opcode, sqe.flags);
        self.deadlines += u32::from(record.op.deadline_us > 0);
        refer(&mut self.regions, record.op.names());
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

/// The ops of a burst that have edges.
#[derive(Debug, Default)]
struct Bound {
    edges: u32,
    waiters: u64,
    over: u64,
}

/// The NOPs of one pass over a ring.
#[derive(Debug, Default)]
struct Nops {
    count: u32,
    skipped: u32,
    by_class: [u64; 3],
}

impl Nops {
    /// Answers one.
    #[inline(always)]
    fn pass<M: Memory>(
        &mut self,
        end: &mut EngineEnd<M>,
        sqe: &Sqe,
        record: RecordId,
        ceiling: Class,
    ) {
        let class = Class::from_byte(sqe.class).unwrap_or_default().max(ceiling);
        self.count += 1;
        self.by_class[class.index()] += 1;
        if sqe.flags & SQE_SKIP_SUCCESS != 0 {
            end.forgo(1);
            self.skipped += 1;
            return;
        }
        let detail = u16::from(FABRIC_NONE) << 8;
        let cqe = Cqe { user_data: sqe.user_data, record: record.0, detail, ..Cqe::default() };
        end.push(cqe.to_words());
    }

    fn add_up<M: Memory>(&self, end: &mut EngineEnd<M>, session: &mut Session) {
        end.count(RingCounter::Completed, self.count - self.skipped);
        end.count(RingCounter::Skipped, self.skipped);
        session.count(Counter::Completed, u64::from(self.count));
        for class in Class::ALL {
            session.count(counter_of(class), self.by_class[class.index()]);
        }
    }
}

/// Holds the regions an op names until [`Engine::leave`].
#[inline]
fn refer(regions: &mut [Region], [local, import, target]: [u32; 3]) {
    for (index, remote) in [(local, false), (import, false), (target, true)] {
        // Not there: NIL, which is beyond all places.
        let Some(region) = regions.get_mut(index as usize) else { continue };
        if remote { region.remote_refs += 1 } else { region.refs += 1 }
    }
}
