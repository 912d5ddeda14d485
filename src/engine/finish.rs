//! The end of an op: notification, final CQE, references, record; then publication.

use crate::abi::{
    CQE_MORE, CQE_NOTIFY, CQE_TIME_UNIT_NS, Class, Counter, Cqe, FABRIC_NONE, RingCounter,
    SQE_NOTIFY, SQE_SKIP_SUCCESS,
};
use crate::fabric::Fabric;
use crate::fold::FOLDS;
use crate::ids::{RecordId, RingId, SessionId};
use crate::ledger::{List, NIL, Outcome, RING, Record, State};
use crate::plant::{Plant, planted};
use crate::ring::{Bell, EngineEnd, Memory};

use super::Engine;
use super::record::{keep_record, outcome};
use super::tables::Phase;

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Ends an op that is on no lane or list but its ring's: the one way out for every op.
    pub(super) fn finish(&mut self, slot: u32) {
        self.finish_among_others(slot);
        self.let_go();
    }

    /// [`Engine::finish`] for one of many: what they held goes back with [`Engine::let_go`].
    #[inline]
    pub(super) fn finish_among_others(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        if record.op.flags & (SQE_NOTIFY | FOLDS) != 0 {
            self.tell_others(slot);
        }
        let record = &self.ledger[slot];
        let outcome = outcome(record, &self.fabric);
        self.write_final(slot, outcome, record.id());
        self.leave(slot);
    }

    /// An op ends that its target's owner is to hear of, or others that are folded into it.
    #[inline(never)]
    fn tell_others(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        if record.op.flags & SQE_NOTIFY != 0 && record.failure.is_none() && self.notifies(slot) {
            let (target, immediate) = (record.op.target, record.op.immediate);
            self.notify(target, immediate);
        }
        let record = &self.ledger[slot];
        if record.op.flags & FOLDS == 0 {
            return;
        }
        if record.group == NIL {
            self.folds.forget(&mut self.ledger, slot);
        } else {
            self.end_with(slot);
        }
    }

    /// Leaves what is known of an op in its session's flight recorder, and writes its final CQE, or
    /// drops that if it was asked for. Whoever pops it finds the entry. `told` is the record that
    /// it names: the op's own, or that of the one it was folded into.
    #[inline(always)]
    pub(super) fn write_final(&mut self, slot: u32, outcome: Outcome, told: RecordId) {
        let record = &self.ledger[slot];
        if let Some(recorder) = &mut self.recorders[record.session.0 as usize] {
            keep_record(recorder, record, outcome, self.now_ns);
        }
        let Some(ring) = self.rings[record.ring.0 as usize].as_mut() else { return };
        let failed = record.failure.is_some();
        if ring.faulted {
            // No CQE. What is done is DONE; what failed stays as it is in the fate table.
            if failed {
                return;
            }
        } else if failed || record.op.flags & SQE_SKIP_SUCCESS == 0 {
            let times = 1 + u32::from(one_of_some(Plant::CqeTwice, record));
            for _ in u32::from(one_of_some(Plant::CqeLost, record))..times {
                ring.end.push(final_cqe(record, outcome, told, self.now_ns).to_words());
            }
            ring.end.count(RingCounter::Completed, 1);
        } else {
            ring.end.forgo(1);
            ring.end.count(RingCounter::Skipped, 1);
        }
        ring.frees.push(record.fate);
        if !ring.dirty {
            ring.dirty = true;
            self.dirty.push(record.ring.0);
        }
    }

    /// Closes an op's record. What it held goes back with [`Engine::let_go`], together with what
    /// the ops just before it held, if that is alike.
    #[inline]
    pub(super) fn leave(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        let well = record.state == State::Posted && record.failure.is_none();
        let mut asked = record.op.asked();
        if well && record.dependents == NIL {
            self.meter.ended(record, self.now_ns);
        } else {
            // What is asked for once is charged once.
            asked = if record.state == State::Folded { 0 } else { asked };
            self.leave_otherwise(slot, well);
        }
        self.unlink(slot);
        self.ledger.close(slot);
        // The record keeps what it held until it is opened again.
        let record = &self.ledger[slot];
        let (op, leavers) = (&record.op, &self.leavers);
        let alike = leavers.session == record.session
            && leavers.class == op.class
            && leavers.names == op.names();
        if !alike {
            let next = Leavers {
                session: record.session,
                class: op.class,
                names: op.names(),
                ..Leavers::NONE
            };
            self.let_go();
            self.leavers = next;
        }
        let record = &self.ledger[slot];
        self.leavers.count += 1;
        self.leavers.bytes += record.done_bytes;
        self.leavers.asked += asked;
        self.leavers.failed += u32::from(record.failure.is_some());
        if record.op.list != NIL {
            let blocks = self.pages.give(record.op.list);
            let state = &mut self.sessions[record.session.0 as usize];
            self.block_share.give(&mut state.blocks, blocks);
        }
    }

    /// Counts an op that leaves and has not just moved its bytes, or that others wait for, and
    /// tells those. `well` if it was posted and did not fail.
    #[inline(never)]
    fn leave_otherwise(&mut self, slot: u32, well: bool) {
        let record = &self.ledger[slot];
        if well {
            self.meter.ended(record, self.now_ns);
        } else {
            self.meter.ended_otherwise(record, self.now_ns);
        }
        if record.dependents != NIL || record.failure.is_some() {
            self.tell_dependents(slot);
        }
    }

    /// Gives back what the ops that left since the last time held: records, quota, regions.
    pub(super) fn let_go(&mut self) {
        let Leavers { session, class, names, count, failed, bytes, asked } = self.leavers;
        if count == 0 {
            return;
        }
        self.leavers.count = 0;
        self.leavers.failed = 0;
        self.leavers.bytes = 0;
        self.leavers.asked = 0;
        let state = &mut self.sessions[session.0 as usize];
        self.record_share.give(&mut state.records, count);
        state.count(Counter::Completed, u64::from(count));
        state.count(Counter::Bytes, bytes);
        state.count(Counter::Failed, u64::from(failed));
        state.count(counter_of(class), u64::from(count));
        let ops = if planted(Plant::OwnerKept) { 0 } else { count };
        let asked = if planted(Plant::BytesKept) { 0 } else { asked };
        self.owners[state.owner as usize].give(ops, asked);
        for (index, remote) in names.into_iter().zip([false, false, true]) {
            // Not there: NIL, which is beyond all places.
            let Some(region) = self.regions.get_mut(index as usize) else { continue };
            if remote {
                region.remote_refs -= count
            } else {
                region.refs -= count
            }
            if region.awaited {
                self.region_rested(index);
            }
        }
    }

    /// Takes an op off its ring's list, moving any search that stands at it.
    #[inline]
    fn unlink(&mut self, slot: u32) {
        let id = self.ledger[slot].ring;
        let next = List::<RING>::next(&self.ledger, slot);
        if let Some(query) = self.query.as_mut() {
            query.search.pass(slot, next);
        }
        let Some(ring) = self.rings[id.0 as usize].as_mut() else { return };
        if let Some(search) = ring.search.as_mut() {
            search.pass(slot, next);
        }
        if let Phase::Winding { cursor, .. } = &mut ring.phase
            && *cursor == slot
        {
            *cursor = next;
        }
        if ring.ties.first == slot {
            ring.ties.first = next;
        }
        if let Some(lift) = ring.lift.as_mut()
            && lift.cursor == slot
        {
            lift.cursor = next;
        }
        ring.ops.remove(&mut self.ledger, slot);
        if ring.ties.drains > 0 {
            self.look_at_drains(id);
        }
    }

    /// Tells a region's owner: through its oldest ARM, or merged until the next.
    pub(super) fn notify(&mut self, target: u32, immediate: u32) {
        let region = &mut self.regions[target as usize];
        region.pending = region.pending.saturating_add(1);
        region.pending_immediate = immediate;
        let owner = region.session;
        self.sessions[owner.0 as usize].count(Counter::Notified, 1);
        self.deliver_pending(target);
    }

    /// Hands what is merged to the oldest ARM. While that belongs to a broken ring, which gets no
    /// more CQEs, it stays merged; the ARM is about to be taken back, and the next one is served.
    fn deliver_pending(&mut self, local: u32) {
        let region = &self.regions[local as usize];
        let (arm, count, immediate) =
            (region.arms.head(), region.pending, region.pending_immediate);
        if count == 0 || arm == NIL {
            return;
        }
        let id = self.ledger[arm].ring;
        if self.ring(id).faulted {
            return;
        }
        self.regions[local as usize].pending = 0;
        self.deliver(arm, immediate, count);
    }

    /// Writes one NOTIFY CQE of an ARM; its last one ends it.
    fn deliver(&mut self, slot: u32, immediate: u32, count: u32) {
        let id = self.ledger.id(slot);
        let record = &mut self.ledger[slot];
        record.cursor += 1;
        let last = record.cursor == record.op.bytes;
        let (ring, fate, local) = (record.ring, record.fate, record.op.local);
        let delivered = i32::try_from(record.cursor).unwrap_or(i32::MAX);
        let cqe = Cqe {
            user_data: record.op.user_data,
            record: id.0,
            res: i32::try_from(count).unwrap_or(i32::MAX),
            flags: if last { CQE_NOTIFY } else { CQE_NOTIFY | CQE_MORE },
            detail: u16::from(FABRIC_NONE) << 8,
            queued: immediate,
            service: 0,
        };
        let entry = self.ring(ring);
        entry.end.push(cqe.to_words());
        if last {
            entry.end.count(RingCounter::Completed, 1);
            entry.frees.push(fate);
            self.disarm(slot, local);
            let record = &self.ledger[slot];
            if let Some(recorder) = &mut self.recorders[record.session.0 as usize] {
                let outcome = Outcome { res: delivered, flags: 0, detail: cqe.detail };
                keep_record(recorder, record, outcome, self.now_ns);
            }
            self.leave(slot);
            self.let_go();
        }
        self.touch(ring);
    }

    /// Takes an ARM off its region.
    pub(super) fn disarm(&mut self, slot: u32, local: u32) {
        let mut arms = self.regions[local as usize].arms;
        arms.remove(&mut self.ledger, slot);
        self.regions[local as usize].arms = arms;
    }

    /// Puts an ARM on its region, and hands it what came before it.
    pub(super) fn begin_arm(&mut self, slot: u32) {
        self.ledger[slot].state = State::Armed;
        let local = self.ledger[slot].op.local;
        let mut arms = self.regions[local as usize].arms;
        arms.push_back(&mut self.ledger, slot);
        self.regions[local as usize].arms = arms;
        self.deliver_pending(local);
    }

    /// Ends an ARM before its time: its unused slots go back, one carries the failure.
    pub(super) fn end_arm(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        let (ring, local) = (record.ring, record.op.local);
        let unused = record.op.bytes - record.cursor;
        let entry = self.ring(ring);
        if !entry.faulted {
            entry.end.forgo(unused - 1);
        }
        self.disarm(slot, local);
        self.finish(slot);
        self.deliver_pending(local);
    }

    /// Publishes what this turn wrote: one release a ring, then its fate entries are free.
    ///
    /// Bells that were asked for while the turn before published are found now: by now its stores
    /// have left the core, and one fence serves all rings.
    pub(super) fn publish(&mut self) {
        self.look_at_bells();
        while let Some(id) = self.dirty.pop() {
            let Some(ring) = self.rings[id as usize].as_mut() else { continue };
            ring.dirty = false;
            let bell = if ring.faulted { Bell::Silent } else { ring.end.publish_first() };
            for place in ring.frees.drain(..) {
                ring.end.fate_freed(place);
                ring.fates.push(place);
            }
            match bell {
                Bell::Silent => {}
                Bell::Unsure => self.unsure.push(id),
                Bell::Due => self.ring_bell(id),
            }
        }
    }

    fn look_at_bells(&mut self) {
        if self.unsure.is_empty() {
            return;
        }
        EngineEnd::<M>::order_bells();
        while let Some(id) = self.unsure.pop() {
            let Some(ring) = self.rings[id as usize].as_mut() else { continue };
            if !ring.faulted && ring.end.bell_due() {
                self.ring_bell(id);
            }
        }
    }

    fn ring_bell(&mut self, id: u32) {
        self.bells.push(id);
        let session = self.ring(RingId(id)).session;
        self.sessions[session.0 as usize].count(Counter::BellsRung, 1);
    }

    /// Gives a ring's last CQEs out before it leaves.
    pub(super) fn publish_now(&mut self, id: RingId) {
        if self.rings[id.0 as usize].as_ref().is_some_and(|ring| ring.dirty) {
            self.publish();
        }
    }
}

/// Ops that left one behind the other and held the like: one session's, of one class, on the same
/// regions. Most ops of a busy engine are of this kind, and go back for the price of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leavers {
    session: SessionId,
    class: Class,
    names: [u32; 3],
    count: u32,
    failed: u32,
    bytes: u64,
    /// Bytes that they asked for; `bytes` are those that were moved.
    asked: u64,
}

impl Leavers {
    pub(super) const NONE: Self = Self {
        session: SessionId(NIL),
        class: Class::Medium,
        names: [NIL; 3],
        count: 0,
        failed: 0,
        bytes: 0,
        asked: 0,
    };
}

/// True for a part of all ops, if a fault is planted that strikes ops.
#[inline(always)]
fn one_of_some(plant: Plant, record: &Record) -> bool {
    planted(plant) && record.number % 16 == 3
}

/// The counter of a class's ops.
#[inline]
pub(super) fn counter_of(class: Class) -> Counter {
    match class {
        Class::High => Counter::OpsHigh,
        Class::Medium => Counter::OpsMedium,
        Class::Low => Counter::OpsLow,
    }
}

#[inline]
fn final_cqe(record: &Record, outcome: Outcome, told: RecordId, now_ns: u64) -> Cqe {
    let units = |from: u64, to: u64| {
        u32::try_from(to.saturating_sub(from) / CQE_TIME_UNIT_NS).unwrap_or(u32::MAX)
    };
    let moved = record.posted_ns > 0;
    let begun = if moved { record.posted_ns } else { now_ns };
    let Outcome { res, flags, detail } = outcome;
    Cqe {
        user_data: record.op.user_data,
        record: told.0,
        res,
        flags,
        detail,
        queued: units(record.taken_ns, begun),
        service: units(begun, now_ns),
    }
}
