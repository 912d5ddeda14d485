//! Taking plain ops in bursts: NOPs, and what moves one range.
//!
//! SQEs are copied some at a time, and what those of one burst share is done once for all of them:
//! what its session may still take is looked up, what they take is counted, their regions are held,
//! and they are queued as a whole. A burst in which nothing is tied or may be folded, which is
//! known from the first words of its SQEs, is taken by code that knows nothing of either.
//!
//! Whatever else comes, or is at fault, or wants what is not there, is `Engine::take_one`'s.

use crate::abi::{
    Class, Counter, Cqe, FABRIC_NONE, Opcode, RingCounter, SQE_COALESCE, SQE_HARDLINK, SQE_LINK,
    SQE_SKIP_SUCCESS, Sqe,
};
use crate::edges::Edges;
use crate::fabric::Fabric;
use crate::fold::{Folds, Tried};
use crate::ids::{RecordId, RingId};
use crate::ledger::{Aside, Ledger, NIL};
use crate::ring::{EngineEnd, KEPT, Kept, Memory};
use crate::sched::Run;

use super::Engine;
use super::finish::counter_of;
use super::fold::outranks;
use super::tables::{Region, Ring, Session};
use super::ties::{FARTHEST, Plan, Ties};
use super::validate::{Judge, plain_nop};
use super::wire::wire;

/// In the first word of an SQE: its edges, and the flags that tie it to others or have it folded.
const TIED: u64 = 0xffff_ffff << 32 | ((SQE_LINK | SQE_HARDLINK) as u64) << 16 | COALESCE;
/// In the same word: the flag to be folded.
const COALESCE: u64 = (SQE_COALESCE as u64) << 16;

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Takes the plain ops at the head of a ring; returns how many.
    ///
    /// A NOP is done where it begins. It has a record and a CQE, but no entry in the fate table:
    /// should the engine die before its CQE is seen, it reads as done, and so it is.
    #[inline(never)]
    pub(super) fn take_run(&mut self, id: u32, waiting: u32) -> u32 {
        let mut nops = Nops::default();
        let mut taken = 0;
        // A client's head that cannot be is found again by whoever looks next.
        while taken < waiting {
            let Some(ring) = self.rings[id as usize].as_mut() else { break };
            ring.keep_sqes();
            let (passed, more) = if ring.ties.bound() || ring.kept_bits & TIED != 0 {
                self.take_tied(id, waiting - taken, &mut nops)
            } else {
                self.take_burst::<false>(id, waiting - taken, &mut nops)
            };
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

    /// [`Engine::take_burst`] of SQEs some of which may have edges or be folded.
    #[inline(never)]
    fn take_tied(&mut self, id: u32, waiting: u32, nops: &mut Nops) -> (u32, bool) {
        self.take_burst::<true>(id, waiting, nops)
    }

    /// What the next burst of a ring may take; `None` if nothing.
    #[inline(always)]
    fn room_of(&self, id: u32) -> Option<Room> {
        let ring = self.rings[id as usize].as_ref()?;
        let state = &self.sessions[ring.session.0 as usize];
        let owner = &self.owners[state.owner as usize];
        let oldest = ring.ops.head();
        let far = oldest != NIL
            && ring.next_number + u64::from(KEPT) >= self.ledger[oldest].number + FARTHEST;
        let records = self.record_share.left(state.records).min(owner.ops_max - owner.ops);
        if records == 0 || ring.search.is_some() || ring.fates.is_empty() || far {
            return None;
        }
        let edges = owner.edges_max.saturating_sub(owner.edges);
        let edges = self.edge_share.left(state.edges).min(edges);
        Some(Room { records, bytes: owner.left(id), edges })
    }

    /// Takes the plain ops among the SQEs that were copied in one go; returns how many, and whether
    /// the next burst may hold more of them. Only with `BOUND` some may be tied, or be folded.
    #[expect(clippy::too_many_lines, reason = "one loop; what is split off costs every op a call")]
    #[inline(always)]
    fn take_burst<const BOUND: bool>(
        &mut self,
        id: u32,
        waiting: u32,
        nops: &mut Nops,
    ) -> (u32, bool) {
        let Some(room) = self.room_of(id) else { return (0, false) };
        let Some(ring) = self.rings[id as usize].as_mut() else { return (0, false) };
        let Ring { end, copied, kept_bits, routes, fates, ops, session, next_number, ties, .. } =
            &mut **ring;
        let session = *session;
        let state = &mut self.sessions[session.0 as usize];
        let ceiling = state.ceiling;
        let count = copied.count().min(waiting).min(room.records);
        let count = end.take_many(count).unwrap_or(0);
        let cq_entries = end.cq_entries();
        let abroad = self.fabric.rails() > 1;
        let (mut number, mut sequence) = (*next_number, self.sequence);
        let mut took = Took::new(&room);
        let ahead = if BOUND && *kept_bits & COALESCE != 0 {
            Ahead::of(&self.folds, &self.ledger, RingId(id), copied, count)
        } else {
            Ahead::NONE
        };
        while took.passed < count && (!BOUND || took.bound.rises.is_none()) {
            let words = copied.entry(took.passed);
            let sqe = &Sqe::from_words(words);
            if sqe.opcode == Opcode::Nop as u8 {
                if BOUND && ties.bound() || !plain_nop(&words, ceiling) {
                    break;
                }
                let Some(record) = self.ledger.pass_through() else { break };
                nops.pass(end, sqe, record, ceiling);
                ties.passed(number);
            } else {
                let judge = Judge { regions: &self.regions, session, ceiling, cq_entries };
                let Some(op) = self.ledger.vacant() else { break };
                let judged = judge.plain_transfer(sqe, op, routes, self.withdrawn);
                let Some(names) = judged else { break };
                let Some(rest) = took.bytes_left.checked_sub(op.bytes.into()) else { break };
                let (class, late) = (op.class, op.deadline_us > 0);
                if BOUND && !took.bound.plan(&self.ledger, ties, (RingId(id), number), sqe, class) {
                    break;
                }
                let Some(fate) = fates.pop() else { break };
                let Some((slot, record)) = self.ledger.open(session, RingId(id), self.now_ns)
                else {
                    unreachable!("there is a vacant record");
                };
                sequence += 1;
                record.fate = fate;
                record.number = number;
                record.sequence = sequence;
                record.checked = self.withdrawn;
                end.fate_accepted(fate, record.id().0, number);
                took.held.hold(&mut self.regions, names);
                ops.push_back(&mut self.ledger, slot);
                ties.took(number, slot);
                took.late += u32::from(late);
                let sent = if BOUND {
                    ties.link(sqe.flags);
                    let (id, bucket) = (RingId(id), ahead.buckets[took.passed as usize]);
                    let Self { ledger, edges, folds, .. } = self;
                    let binder = Binder { ledger, edges, folds, state };
                    took.bound.send(binder, id, slot, sqe, bucket)
                } else {
                    Sent::Queued
                };
                // What is asked for once is charged once.
                if sent != Sent::Folded {
                    took.bytes_left = rest;
                }
                if sent == Sent::Queued {
                    took.queued[class.index()] += 1;
                    if !(abroad && self.abroad.queue(&self.regions, &mut self.ledger, slot)) {
                        self.ledger[slot].aside = Aside::No;
                        took.run.push(&mut self.lanes, &mut self.ledger, slot);
                    }
                }
            }
            number += 1;
            took.passed += 1;
        }
        end.put_back(count - took.passed);
        copied.pass(took.passed);
        *next_number = number;
        let opened = u32::try_from(sequence - self.sequence).unwrap_or(0);
        self.sequence = sequence;
        self.book::<BOUND>(id, &room, opened, &mut took);
        (took.passed, count > 0 && (took.passed == count || BOUND && took.bound.rises.is_some()))
    }

    /// Queues what a burst has taken, and counts it.
    #[inline(always)]
    fn book<const BOUND: bool>(&mut self, id: u32, room: &Room, opened: u32, took: &mut Took) {
        took.run.end(&mut self.lanes, &mut self.ledger);
        took.held.end(&mut self.regions);
        let Some(ring) = self.rings[id as usize].as_mut() else { return };
        let session = ring.session;
        let state = &mut self.sessions[session.0 as usize];
        let owner = &mut self.owners[state.owner as usize];
        self.deadlines += took.late;
        self.meter.enqueued(session, took.queued);
        self.record_share.take(&mut state.records, opened);
        state.count(Counter::Taken, u64::from(took.passed));
        owner.take(id, opened, room.bytes - took.bytes_left);
        if BOUND {
            let bound = &took.bound;
            ring.ties.edges += bound.edges;
            owner.edges += bound.edges;
            self.edge_share.take(&mut state.edges, bound.edges);
            state.count(Counter::EdgesLive, bound.waiters);
            state.count(Counter::EdgesOver, bound.over);
            if let Some(slot) = bound.rises {
                self.raise_survivor(slot);
            }
        }
    }
}

/// What a burst may take.
#[derive(Debug)]
struct Room {
    records: u32,
    bytes: u64,
    edges: u32,
}

/// What a burst has taken.
#[derive(Debug)]
struct Took {
    passed: u32,
    bytes_left: u64,
    /// Ops with a deadline.
    late: u32,
    queued: [u32; 3],
    run: Run,
    held: Held,
    bound: Bound,
}

impl Took {
    #[inline(always)]
    fn new(room: &Room) -> Self {
        Self {
            passed: 0,
            bytes_left: room.bytes,
            late: 0,
            queued: [0; 3],
            run: Run::EMPTY,
            held: Held::NONE,
            bound: Bound::new(room.edges),
        }
    }
}

/// Where an op of a burst was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// To its queue, where it is not yet.
    Queued,
    /// To wait for others.
    Waiting,
    /// Into another one.
    Folded,
}

/// The ops of a burst that have edges, or are folded.
#[derive(Debug)]
struct Bound {
    edges_left: u32,
    edges: u32,
    waiters: u64,
    over: u64,
    /// What the op at hand waits for, if it is bound.
    plan: Plan,
    is_bound: bool,
    /// An op that was folded into one of a lower class, which is to rise. It ends the burst.
    rises: Option<u32>,
}

/// Where the ops of a burst are looked for that are to be folded.
#[derive(Debug)]
struct Ahead {
    buckets: [u32; KEPT as usize],
}

impl Ahead {
    const NONE: Self = Self { buckets: [NIL; KEPT as usize] };

    /// Looks at all the places at once, so that their lines travel together: one after the other
    /// they cost each op as much as all the rest of its intake.
    #[inline(never)]
    fn of(folds: &Folds, ledger: &Ledger, ring: RingId, copied: &Kept<8>, count: u32) -> Self {
        let mut ahead = Self::NONE;
        for (at, bucket) in (0..count).zip(&mut ahead.buckets) {
            let words = copied.entry(at);
            if words[0] & COALESCE != 0 {
                *bucket = folds.bucket_of_sqe(ring, &Sqe::from_words(words));
            }
        }
        folds.fetch(ledger, &ahead.buckets);
        ahead
    }
}

/// What tying an op to others takes of the engine.
struct Binder<'a> {
    ledger: &'a mut Ledger,
    edges: &'a mut Edges,
    folds: &'a mut Folds,
    state: &'a mut Session,
}

impl Bound {
    #[inline(always)]
    fn new(edges_left: u32) -> Self {
        let (edges, waiters, over, rises) = (0, 0, 0, None);
        Self { edges_left, edges, waiters, over, plan: Plan::NONE, is_bound: false, rises }
    }

    /// Looks what an op of this class waits for; false if it is not for a burst to take.
    #[inline(always)]
    fn plan(
        &mut self,
        ledger: &Ledger,
        ties: &mut Ties,
        (ring, number): (RingId, u64),
        sqe: &Sqe,
        class: Class,
    ) -> bool {
        self.is_bound = ties.bound() || sqe.edges != [0; 2];
        if !self.is_bound {
            return true;
        }
        let plan = &mut self.plan;
        ties.plan(plan, (ledger, ring, number), sqe).is_ok()
            && self.edges + plan.count() <= self.edges_left
            && plan.cause.is_none()
            && !plan.lifts(ledger, class)
    }

    /// Wires an op that was just opened, or has it folded.
    #[inline(always)]
    fn send(&mut self, to: Binder<'_>, ring: RingId, slot: u32, sqe: &Sqe, bucket: u32) -> Sent {
        let Binder { ledger, edges, folds, state } = to;
        let coalesce = sqe.flags & SQE_COALESCE != 0;
        let plan = &self.plan;
        if self.is_bound && plan.count() > 0 {
            ledger[slot].edges = sqe.edges;
            wire(ledger, edges, slot, ring, plan);
            self.edges += plan.count();
            self.waiters += 1;
            if coalesce {
                state.count(folds.tied().counter(), 1);
            }
            return Sent::Waiting;
        }
        let tied = self.is_bound && plan.tied;
        self.over += u64::from(tied);
        if !coalesce {
            return Sent::Queued;
        }
        let tried = folds.take_in_at(ledger, slot, tied, bucket);
        state.count(tried.counter(), 1);
        let Tried::Into(survivor) = tried else { return Sent::Queued };
        self.rises = outranks(ledger, slot, survivor).then_some(slot);
        Sent::Folded
    }
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

/// Regions that ops of a burst name, which are mostly the same: held for all of them at once.
#[derive(Debug)]
struct Held {
    names: [u32; 3],
    count: u32,
}

impl Held {
    const NONE: Self = Self { names: [NIL; 3], count: 0 };

    #[inline(always)]
    fn hold(&mut self, regions: &mut [Region], names: [u32; 3]) {
        if names != self.names {
            self.end(regions);
            *self = Self { names, count: 0 };
        }
        self.count += 1;
    }

    fn end(&mut self, regions: &mut [Region]) {
        refer(regions, self.names, self.count);
    }
}

/// Holds the regions that so many ops name until [`Engine::leave`].
#[inline]
pub(super) fn refer(regions: &mut [Region], names: [u32; 3], count: u32) {
    for (index, remote) in names.into_iter().zip([false, false, true]) {
        // Not there: NIL, which is beyond all places.
        let Some(region) = regions.get_mut(index as usize) else { continue };
        if remote { region.remote_refs += count } else { region.refs += count }
    }
}
