//! What a rail has failed to do and handed back: it goes by another rail of the set, before what
//! was never posted; and what becomes of a line when no rail is left.
//!
//! A post that is handed back keeps its place, as one of a list that its op has. The op is in its
//! line again, and is posted whole only when the list is empty.

use crate::abi::{CQE_FLUSHED, CQE_RETRYABLE, Detail, WAIT_RAIL, errno};
use crate::fabric::{Done, Fabric, Request};
use crate::ledger::{Aside, Failure, NIL, State, TIE_RIDES};
use crate::ring::Memory;
use crate::sched::credits::Grant;

use super::Engine;
use super::schedule::{page_offsets, request};

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// A request is handed back undone.
    #[cold]
    pub(super) fn bring_back(&mut self, done: Done) {
        let Some((place, slot, slice, grant)) = self.posts.hand_back(done.ticket) else { return };
        self.gave_high(slot, slice.bytes);
        let record = &mut self.ledger[slot];
        self.meter.returned(record, slice.rail);
        record.in_fabric -= 1;
        self.abroad.give(record, slice.rail, grant);
        if self.abroad.last(slice.rail) == Some(record.id()) {
            // What follows is not to depend on it.
            self.abroad.set_last(slice.rail, None);
        }
        if record.failure.is_some() {
            self.posts.let_go(place);
            self.settle(slot);
            return;
        }
        let post = self.posts.returned_mut(place);
        (post.attempts, post.next) = (done.attempts, NIL);
        if record.returned == NIL {
            record.returned = place;
        } else {
            self.posts.returned_mut(record.returned_last).next = place;
        }
        record.returned_last = place;
        record.wait = WAIT_RAIL;
        if record.ties & TIE_RIDES != 0 {
            return self.hold_back(slot);
        }
        self.queue_returned(slot, false);
        if self.spoiled(slot).is_some() {
            // It is not to wait for a rail, behind others that do. What else is heard of it now is
            // heard first: its notification may have been sent.
            self.purge();
        }
    }

    /// Has an op of which something was handed back wait among those.
    pub(super) fn queue_returned(&mut self, slot: u32, front: bool) {
        let record = &mut self.ledger[slot];
        if std::mem::take(&mut record.posted_whole) {
            self.deadlines += u32::from(record.op.deadline_us > 0);
        } else if record.aside == Aside::Returned {
            return;
        } else {
            self.abroad.remove(&mut self.ledger, slot);
        }
        self.follow_import(slot);
        self.abroad.push_returned(&mut self.ledger, slot, front);
    }

    /// Makes the request of what was handed back first, for which there is credit.
    pub(super) fn lay_again(&mut self, slot: u32, into: &mut Request, grant: Grant) {
        let record = &mut self.ledger[slot];
        let (place, rail) = (record.returned, record.rail);
        let post = self.posts.returned(place);
        let (slice, attempts, next) = (post.slice, post.attempts, post.next);
        let op = record.op;
        record.returned = next;
        record.in_fabric += 1;
        self.took_high(slot, slice.bytes);
        let ticket = self.posts.again(place, rail, grant);
        let offsets = if op.pages == 0 {
            (op.local_offset, op.remote_offset)
        } else {
            page_offsets(&self.pages, &op, self.block_of(op.list, slice.page), slice.page)
        };
        *into = Request { attempts, ..request(&op, ticket, offsets, slice) };
        let record = &mut self.ledger[slot];
        if next != NIL {
            return;
        }
        if record.laid {
            record.posted_whole = true;
            self.leave_lane::<true>(slot);
        } else {
            self.abroad.remove(&mut self.ledger, slot);
            self.abroad.push_front(&mut self.ledger, slot);
        }
    }

    /// A rail did not take what was to be posted again: it is the first of its op once more.
    #[cold]
    pub(super) fn put_back_returned(&mut self, ticket: u64) {
        let Some((place, slot, slice, grant)) = self.posts.hand_back(ticket) else { return };
        self.gave_high(slot, slice.bytes);
        let record = &mut self.ledger[slot];
        debug_assert!(record.state == State::Posted);
        record.in_fabric -= 1;
        self.abroad.give(record, slice.rail, grant);
        self.posts.returned_mut(place).next = record.returned;
        if record.returned == NIL {
            record.returned_last = place;
        }
        record.returned = place;
        self.queue_returned(slot, true);
    }

    /// An op ends: what was handed back of it is not to be done any more.
    #[cold]
    pub(super) fn let_go_returned(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        let mut place = std::mem::replace(&mut record.returned, NIL);
        while place != NIL {
            place = self.posts.let_go(place);
        }
    }

    /// No rail of a line has worked for long: what waits in it ends, a bounded number a turn.
    #[cold]
    pub(super) fn give_up_line(&mut self, line: u16, ends: &mut u32) {
        while *ends > 0
            && let Some(slot) = self.abroad.any(line)
        {
            *ends -= 1;
            // Nothing of it took effect that may not be repeated. What a rail still has of it is
            // heard first, and may say otherwise.
            let under_way = self.ledger[slot].in_fabric > 0;
            let flags = if under_way { CQE_FLUSHED | CQE_RETRYABLE } else { CQE_RETRYABLE };
            let detail = Detail::Peer as u16;
            let failure = Failure { errno: errno::EHOSTDOWN, detail, flags };
            self.ledger[slot].failure.get_or_insert(failure);
            self.settle_head(slot);
        }
    }
}
