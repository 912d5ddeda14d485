//! From lanes to the fabric, and back: credits, slices, posts, completions.

use crate::abi::{
    CQE_RETRYABLE, Detail, Opcode, SQE_NO_MERGE, SQE_NOTIFY, WAIT_CAP, WAIT_FABRIC, WAIT_RAIL,
    WAIT_WINDOW_BYTES, errno,
};
use crate::fabric::{DONE_RETURNED, Done, Fabric, REQUEST_APART, Request, Verb};
use crate::ledger::{Aside, Failure, NIL, Op, Record, State, TIE_RIDES};
use crate::plant::{Plant, planted};
use crate::ring::Memory;
use crate::sched::credits::{Ask, Grant};
use crate::sched::{Mode, Policy, Scheduler};

use super::intake::order_fates;
use super::pages::{BLOCK_PAGES, PagePool};
use super::rails::note_failure;
use super::tables::{Closed, RegionKind, Slice};
use super::tent::release_whole;
use super::validate::current;
use super::{Engine, STEPS_PER_TURN, SWEEP_EVERY_NS};

/// Flows looked at for ops that have aged, in one turn.
const FLOWS_AGED: u32 = 64;

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Collects completions: they give credits back and end ops.
    #[inline(never)]
    pub(super) fn reap(&mut self) -> u32 {
        if self.window.wrs() == 0 && !self.abroad() {
            return 0;
        }
        let mut done = std::mem::take(&mut self.done);
        self.fabric.poll(self.now_ns, &mut done);
        if self.abroad() { self.bring_home::<true>(done) } else { self.bring_home::<false>(done) }
    }

    /// [`Engine::reap`] once more, of the rails to peers alone: nothing is copied in it.
    pub(super) fn reap_abroad(&mut self, clock: impl FnOnce() -> u64) -> u32 {
        let mut done = std::mem::take(&mut self.done);
        self.fabric.poll_rails(self.now_ns, &mut done);
        if !done.is_empty() {
            self.abroad.done_at_once(self.now_ns);
            self.now_ns = self.now_ns.max(clock());
        }
        self.bring_home::<true>(done)
    }

    /// Ends what completed; returns how many requests that were.
    #[inline]
    fn bring_home<const ABROAD: bool>(&mut self, mut done: Vec<Done>) -> u32 {
        let reaped = u32::try_from(done.len()).unwrap_or(u32::MAX);
        let (mut near, mut near_bytes) = (0, 0);
        for completion in &done {
            if ABROAD && completion.flags & DONE_RETURNED != 0 {
                self.bring_back(*completion);
                continue;
            }
            // A completion for a post that is not open is stale: it moves nothing.
            let Some(Closed { slot, bytes, rail, grant }) = self.posts.close(completion.ticket)
            else {
                continue;
            };
            self.meter.answered(rail, bytes, *completion);
            self.gave_high(slot, bytes);
            let record = &mut self.ledger[slot];
            record.in_fabric -= 1;
            if ABROAD && rail != 0 {
                self.abroad.give(record, rail, grant);
                self.abroad.ended(rail, bytes);
            } else {
                let leaves = record.in_fabric == 0 && !record.whole;
                self.window.give(grant, leaves, record.origin != 0);
                if record.whole && record.in_fabric == 0 && record.posted_whole {
                    release_whole(&mut self.window, record);
                }
                self.ahead.pop();
                near += 1;
                near_bytes += u64::from(bytes);
            }
            record.repeated(completion.attempts);
            if completion.errno == 0 {
                record.done_bytes += u64::from(bytes);
            } else {
                note_failure(record, bytes, *completion);
            }
            if record.in_fabric == 0 {
                if record.posted_whole || record.failure.is_some() {
                    self.end(slot);
                } else if ABROAD {
                    self.abroad.rejoin(&mut self.ledger, slot);
                }
            }
        }
        self.let_go();
        if ABROAD && reaped > near {
            self.abroad.pace(self.now_ns);
        }
        self.pace.ended(near, near_bytes, self.window.wrs() > 0, self.now_ns);
        done.clear();
        self.done = done;
        reaped
    }

    /// Ends an op that has nothing left in the fabric: all of it is done, or it failed and the
    /// rest is not to be posted.
    pub(super) fn settle(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        if record.in_fabric == 0 && (record.posted_whole || record.failure.is_some()) {
            self.end(slot);
            self.let_go();
        }
    }

    /// [`Engine::settle`], for an op that is known to be at its end. [`Engine::let_go`] follows.
    #[inline]
    pub(super) fn end(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        if !record.posted_whole || record.returned != NIL || record.ties != 0 {
            self.let_loose(slot);
        }
        self.finish_among_others(slot);
    }

    /// Takes an op that ends out of whatever it is still in.
    #[cold]
    fn let_loose(&mut self, slot: u32) {
        if !self.ledger[slot].posted_whole {
            self.unqueue(slot);
        }
        if self.ledger[slot].returned != NIL {
            self.let_go_returned(slot);
        }
        if self.ledger[slot].ties != 0 {
            self.dismount(slot);
        }
    }

    /// Takes an op out of its lane.
    pub(super) fn unqueue(&mut self, slot: u32) {
        self.leaves_queue(slot);
        if self.ledger[slot].group != NIL && self.hand_on(slot) {
            return;
        }
        if self.abroad() && self.ledger[slot].line != 0 {
            self.leave_lane::<true>(slot);
        } else {
            self.leave_lane::<false>(slot);
        }
    }

    #[inline]
    pub(super) fn leave_lane<const ABROAD: bool>(&mut self, slot: u32) {
        let record = &self.ledger[slot];
        let in_lane = record.aside == Aside::No;
        self.deadlines -= u32::from(record.op.deadline_us > 0);
        if record.ties & TIE_RIDES != 0 {
            return;
        }
        if ABROAD {
            self.abroad.remove(&mut self.ledger, slot);
        } else if in_lane {
            self.lanes.remove(&mut self.ledger, slot);
        } else {
            self.admitted.remove(&mut self.ledger, slot);
            if self.ledger[slot].in_fabric == 0 {
                release_whole(&mut self.window, &mut self.ledger[slot]);
            }
        }
    }

    /// Posts what the window lets in, in turn; returns the number of requests. Only the window ends
    /// the loop: whoever is in turn then learns what it waits for, and comes first again.
    #[inline(never)]
    pub(super) fn schedule(&mut self) -> u32 {
        if self.whole_ops() {
            self.admit_whole();
        }
        let mut batch = std::mem::take(&mut self.batch);
        let mut count = self.ride_on_here(&mut batch);
        let mut ends = STEPS_PER_TURN;
        while let Some(slot) = self.first() {
            if let Some(failure) = self.spoiled(slot) {
                if ends == 0 {
                    break;
                }
                ends -= 1;
                self.ledger[slot].failure = Some(failure);
                self.settle_head(slot);
                continue;
            }
            let Some(place) = batch.get_mut(count) else { break };
            let Err(wait) = self.post_slice(slot, place) else {
                count = self.ride(slot, &mut batch, count + 1);
                continue;
            };
            let held = self.held;
            self.defer(slot, wait);
            let capped = wait == WAIT_CAP && !self.whole_ops();
            if capped && self.cap_high(slot, self.next_bytes(slot)) {
                // It holds nobody back.
                self.held = held;
                continue;
            }
            let own = self.internal_beside(slot, &self.lanes);
            match own.or_else(|| self.beside(slot, wait)) {
                Some(other) if self.post_slice(other, place).is_ok() => count += 1,
                _ => break,
            }
        }
        let posted = if count == 0 { 0 } else { self.ring_doorbell(&batch[..count]) };
        if let Some(youngest) = batch[..posted as usize].last() {
            self.last_here = Some(self.ledger.id(self.posts.slot(youngest.ticket)));
        }
        self.batch = batch;
        posted
    }

    /// An op at the head of its lane that must not be posted (any further): late, or its target is
    /// gone. Parts in the fabric are waited for.
    pub(super) fn settle_head(&mut self, slot: u32) {
        if self.ledger[slot].in_fabric == 0 {
            self.settle(slot);
        } else {
            self.unqueue(slot);
            self.ledger[slot].posted_whole = true;
        }
    }

    /// Why an op must not be posted any further.
    #[inline(always)]
    pub(super) fn spoiled(&self, slot: u32) -> Option<Failure> {
        let record = &self.ledger[slot];
        if record.failure.is_some() {
            return record.failure;
        }
        if record.checked != self.withdrawn
            && let Some(failure) = self.gone(slot)
        {
            return Some(failure);
        }
        if record.op.deadline_us > 0 { self.late(slot) } else { None }
    }

    /// What an op writes to or reads from was withdrawn.
    pub(super) fn gone(&self, slot: u32) -> Option<Failure> {
        let detail = Detail::Revoked as u16;
        let gone = !self.still_there(&self.ledger[slot].op);
        gone.then_some(Failure { errno: errno::ESTALE, detail, flags: 0 })
    }

    /// True if what an op writes to or reads from has not been withdrawn since it was taken.
    fn still_there(&self, op: &Op) -> bool {
        let target = self.regions[op.target as usize].id;
        target.is_some_and(|target| current(&self.regions, target, op.epoch))
    }

    /// A deadline that passed before anything was posted.
    fn late(&self, slot: u32) -> Option<Failure> {
        let waits = match self.ledger[slot].state {
            State::Queued | State::Waiting => true,
            State::Folded => self.folds.waits(&self.ledger, slot),
            _ => false,
        };
        if waits { self.overdue(slot) } else { None }
    }

    /// A deadline that has passed.
    pub(super) fn overdue(&self, slot: u32) -> Option<Failure> {
        let record = &self.ledger[slot];
        let deadline_us = u64::from(record.op.deadline_us);
        let late = deadline_us > 0 && self.now_ns >= record.taken_ns + deadline_us * 1_000;
        let detail = Detail::Deadline as u16;
        late.then_some(Failure { errno: errno::ETIME, detail, flags: CQE_RETRYABLE })
    }

    /// The op to serve next.
    #[inline]
    fn first(&mut self) -> Option<u32> {
        if self.whole_ops() {
            return Some(self.admitted.head()).filter(|&slot| slot != NIL);
        }
        self.lanes.first(&self.ledger)
    }

    /// Bytes of the next slice of an op that stays on this host.
    #[inline]
    fn next_bytes(&self, slot: u32) -> u32 {
        let record = &self.ledger[slot];
        (record.op.bytes - record.cursor).min(self.pace.slice())
    }

    /// Adds the next slice of an op to the batch, or says which credit is wanting.
    #[inline]
    fn post_slice(&mut self, slot: u32, place: &mut Request) -> Result<(), u16> {
        let bytes = self.next_bytes(slot);
        if !self.admits_high(slot, bytes) {
            return Err(WAIT_CAP);
        }
        let record = &self.ledger[slot];
        let (enters, internal) = (record.in_fabric == 0, record.origin != 0);
        if self.whole_ops() {
            let grant = self.window.take(self.ask_within(slot))?;
            self.lay_slice::<false>(slot, place, bytes, grant);
            return Ok(());
        }
        let grant = self.window.take(Ask { bytes, enters, internal })?;
        self.lanes.charge(&self.ledger, slot, bytes);
        self.lay_slice::<false>(slot, place, bytes, grant);
        Ok(())
    }

    /// The engine's own work, that may use what is kept of a window for it, where a user's op,
    /// which is in turn, has no room.
    pub(super) fn internal_beside(&self, slot: u32, queue: &Scheduler) -> Option<u32> {
        let Policy { reserve_ops, reserve_bytes, .. } = self.limits.policy;
        if (reserve_ops == 0 && reserve_bytes == 0) || self.ledger[slot].origin != 0 {
            return None;
        }
        let own = queue.internal(&self.ledger)?;
        self.spoiled(own).is_none().then_some(own)
    }

    /// What may go though the first in turn has no room, because it is not put off by it: by the
    /// time that enough has ended for the first, there will be room for both.
    #[cold]
    fn beside(&mut self, slot: u32, wait: u16) -> Option<u32> {
        if wait != WAIT_WINDOW_BYTES || self.limits.policy.mode != Mode::Weighted {
            return None;
        }
        let bytes = |record: &Record, most: u32| (record.op.bytes - record.cursor).min(most);
        let slice = self.pace.slice();
        let first = bytes(&self.ledger[slot], slice);
        let room = self.ahead.room(self.window.bounds().bytes, first);
        let other = self.lanes.beside(&self.ledger, slot, room, slice)?;
        self.spoiled(other).is_none().then_some(other)
    }

    /// Makes the request of an op's next slice, for which there is credit.
    #[inline(always)]
    pub(super) fn lay_slice<const ABROAD: bool>(
        &mut self,
        slot: u32,
        place: &mut Request,
        bytes: u32,
        grant: Grant,
    ) {
        self.took_high(slot, bytes);
        let record = &mut self.ledger[slot];
        let op = &record.op;
        let rail = if ABROAD { record.rail } else { 0 };
        if !ABROAD {
            self.ahead.push(bytes);
        }
        let slice = Slice { bytes, cursor: record.cursor, page: record.page, rail };
        let Some(ticket) = self.posts.open::<ABROAD>(slot, slice, grant) else {
            unreachable!("more credits than posts");
        };
        let offsets = if op.pages == 0 {
            (op.local_offset, op.remote_offset)
        } else {
            page_offsets(&self.pages, op, record.block, record.page)
        };
        *place = request(op, ticket, offsets, slice);
        record.cursor += bytes;
        record.in_fabric += 1;
        record.posts = record.posts.saturating_add(1);
        let begins = record.state == State::Queued;
        if begins {
            record.state = State::Posted;
            record.starts(self.now_ns, self.held[usize::from(ABROAD)]);
            self.meter.dispatched(record);
            if let Some(ring) = &self.rings[record.ring.0 as usize]
                && !planted(Plant::PostBeforeEntry)
            {
                ring.end.fate_posted(record.fate, record.number);
            }
        }
        record.wait = WAIT_FABRIC;
        let whole = record.cursor >= record.op.bytes && record.op.pages == 0;
        if begins && record.group != NIL {
            self.mark_folded(slot);
        }
        if whole || self.advance(slot) {
            let record = &mut self.ledger[slot];
            record.posted_whole = true;
            if ABROAD {
                record.laid = true;
            }
            self.leave_lane::<ABROAD>(slot);
        }
    }

    /// Moves an op's cursor past a page that is posted whole; true if nothing is left to post.
    fn advance(&mut self, slot: u32) -> bool {
        let record = &mut self.ledger[slot];
        if record.cursor < record.op.bytes {
            return false;
        }
        if record.page + 1 >= record.op.pages {
            return true;
        }
        record.page += 1;
        record.cursor = 0;
        if record.page.is_multiple_of(BLOCK_PAGES) {
            record.block = self.pages.next(record.block);
        }
        false
    }

    /// Gives a batch to the fabric. What it does not take goes back to where it was.
    pub(super) fn ring_doorbell(&mut self, batch: &[Request]) -> u32 {
        // Every entry of this batch is marked posted before any of it can take effect.
        order_fates::<M>();
        let taken = self.fabric.post(batch);
        self.meter.posted(batch, taken);
        for request in batch[taken..].iter().rev() {
            self.take_back(request);
        }
        self.tell_started(&batch[..taken]);
        u32::try_from(taken).unwrap_or(u32::MAX)
    }

    /// Undoes [`Engine::post_slice`] for the youngest request of an op.
    fn take_back(&mut self, request: &Request) {
        if request.rail != 0 && self.posts.is_again(request.ticket) {
            return self.put_back_returned(request.ticket);
        }
        let Some(Closed { slot, bytes, grant, .. }) = self.posts.close(request.ticket) else {
            return;
        };
        self.gave_high(slot, bytes);
        let record = &mut self.ledger[slot];
        record.in_fabric -= 1;
        if request.rail != 0 {
            self.abroad.give(record, request.rail, grant);
        } else {
            let leaves = record.in_fabric == 0 && !record.whole;
            self.window.give(grant, leaves, record.origin != 0);
            self.ahead.take_back();
        }
        if record.ties & TIE_RIDES != 0 {
            return self.wait_again(slot);
        }
        record.laid = false;
        record.posts = record.posts.saturating_sub(1);
        let whole = std::mem::take(&mut record.posted_whole);
        if whole {
            self.deadlines += u32::from(record.op.deadline_us > 0);
            self.requeue(slot);
        } else if record.page > 0 && record.cursor == 0 {
            // The request ended a page: step back into it.
            record.page -= 1;
            record.cursor = record.op.bytes;
            let (list, page) = (record.op.list, record.page);
            let block = self.block_of(list, page);
            self.ledger[slot].block = block;
        }
        let record = &mut self.ledger[slot];
        record.cursor -= bytes;
        record.wait = if request.rail == 0 { WAIT_FABRIC } else { WAIT_RAIL };
        if record.in_fabric == 0 && record.done_bytes == 0 && record.page == 0 && record.cursor == 0
        {
            record.state = State::Queued;
            record.posted_ns = 0;
            self.meter.requeued(record);
            let (id, fate, number, record) =
                (record.ring, record.fate, record.number, self.ledger.id(slot));
            self.ring(id).end.fate_accepted(fate, record.0, number);
            self.unmark_folded(slot);
        }
        let queued = self.ledger[slot].aside == Aside::No;
        if request.rail == 0 && queued {
            self.lanes.refund(&self.ledger, slot, bytes);
        } else if request.rail != 0 {
            if queued {
                self.abroad.queue.refund(&self.ledger, slot, bytes);
            }
            self.abroad.rejoin(&mut self.ledger, slot);
        }
    }

    /// The block of a page list that holds a page.
    pub(super) fn block_of(&self, list: u32, page: u32) -> u32 {
        let mut block = list;
        for _ in 0..page / BLOCK_PAGES {
            block = self.pages.next(block);
        }
        block
    }

    /// Looks for queued ops whose deadline has passed behind a head that is not.
    pub(super) fn sweep_deadlines(&mut self) {
        if self.deadlines == 0 {
            return;
        }
        // An engine that only waits for rails must come to an end, and sleep, between two passes.
        if self.sweep_from == 0 && self.abroad() {
            if self.now_ns < self.swept_ns + SWEEP_EVERY_NS {
                return;
            }
            self.swept_ns = self.now_ns;
        }
        for _ in 0..STEPS_PER_TURN.min(self.ledger.capacity()) {
            let slot = self.sweep_from;
            self.sweep_from = (slot + 1) % self.ledger.capacity();
            if let Some(failure) = self.late(slot) {
                self.withdraw(slot, failure);
            }
        }
    }

    /// Has ops that waited for long count as high, of a bounded number of flows.
    #[inline]
    pub(super) fn age(&mut self) {
        if self.limits.policy.aging_ns != [0; 2] {
            self.lanes.age(&mut self.ledger, self.now_ns, FLOWS_AGED);
            self.abroad.queue.age(&mut self.ledger, self.now_ns, FLOWS_AGED);
        }
    }

    /// True if an op tells the owner of its target when it is done.
    pub(super) fn notifies(&self, slot: u32) -> bool {
        let op = &self.ledger[slot].op;
        // A peer is told by the fabric.
        op.flags & SQE_NOTIFY != 0
            && op.target != NIL
            && self.regions[op.target as usize].kind == RegionKind::Own
    }
}

/// The request of a slice of an op, whose range begins at these offsets.
#[inline]
pub(super) fn request(op: &Op, ticket: u64, (near, far): (u64, u64), slice: Slice) -> Request {
    Request {
        ticket,
        verb: match op.opcode {
            Opcode::Read | Opcode::Readv => Verb::Read,
            Opcode::FetchAdd => Verb::FetchAdd,
            Opcode::CmpSwap => Verb::CmpSwap,
            _ => Verb::Write,
        },
        local: op.local,
        remote: op.target,
        local_offset: near + u64::from(slice.cursor),
        remote_offset: far + u64::from(slice.cursor),
        bytes: slice.bytes,
        arg: op.arg,
        rail: 0,
        flags: if op.flags & SQE_NO_MERGE != 0 { REQUEST_APART } else { 0 },
        immediate: 0,
        attempts: 0,
    }
}

/// Where a page of an op begins, at both sides; `block` is the one that holds it.
pub(super) fn page_offsets(pages: &PagePool, op: &Op, block: u32, page: u32) -> (u64, u64) {
    let page = pages.page(block, page % BLOCK_PAGES);
    (page.local_offset, op.remote_offset + page.remote_offset)
}
