//! Winding rings up: released, left by their client, drained at shutdown, or broken.

use crate::abi::{CQE_RETRYABLE, Detail, Opcode, errno};
use crate::fabric::Fabric;
use crate::ids::RingId;
use crate::ledger::{Failure, List, NIL, RING, State};
use crate::ring::Memory;

use super::tables::{Phase, Wind};
use super::{Engine, Reply, STEPS_PER_TURN};

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Begins to wind up a ring. A ring that is winding already (broken, or draining) goes on under
    /// the new mode and token; an earlier command's token is answered with it.
    pub(super) fn begin_wind(&mut self, id: RingId, mode: Wind, token: u64) {
        let Some(ring) = self.rings.get_mut(id.0 as usize).and_then(Option::as_mut) else {
            self.replies.push_back(Reply::Failed {
                token,
                errno: errno::ENOENT,
                detail: Detail::Ring,
            });
            return;
        };
        ring.end.close();
        let cursor = ring.ops.head();
        let earlier =
            std::mem::replace(&mut ring.phase, Phase::Winding { mode, cursor, token: Some(token) });
        if let Phase::Winding { token: Some(earlier), .. } = earlier {
            self.replies.push_back(Reply::Done { token: earlier });
        }
        self.unpoll(id.0);
        if !self.winding.contains(&id.0) {
            self.winding.push(id.0);
        }
    }

    /// Goes on with every ring that is being wound up, and every region that is taken back.
    pub(super) fn wind(&mut self) {
        let mut budget = STEPS_PER_TURN;
        self.take_back_arms(&mut budget);
        let mut at = 0;
        while let Some(&id) = self.winding.get(at) {
            if self.wind_ring(RingId(id), &mut budget) {
                self.winding.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// Ends the ARMs of regions that are taken back.
    fn take_back_arms(&mut self, budget: &mut u32) {
        while let Some(&index) = self.disarming.last() {
            let region = &self.regions[index as usize];
            let arm = region.arms.head();
            // Its last ARM may have ended otherwise, and its place may be in use again.
            if arm == NIL || region.removing.is_none() {
                self.disarming.pop();
                continue;
            }
            if *budget == 0 {
                return;
            }
            *budget -= 1;
            let detail = Detail::Released as u16;
            self.withdraw(arm, Failure { errno: errno::ECANCELED, detail, flags: 0 });
        }
    }

    /// True once nothing of the ring is under way, and its memory has been handed back.
    fn wind_ring(&mut self, id: RingId, budget: &mut u32) -> bool {
        while *budget > 0 {
            let Phase::Winding { mode, cursor, .. } = self.ring(id).phase else { return true };
            if cursor == NIL {
                break;
            }
            *budget -= 1;
            let next = List::<RING>::next(&self.ledger, cursor);
            if let Phase::Winding { cursor, .. } = &mut self.ring(id).phase {
                *cursor = next;
            }
            self.wind_op(id, cursor, mode);
        }
        let ring = self.ring(id);
        let Phase::Winding { cursor: NIL, token, .. } = ring.phase else { return false };
        if !ring.ops.is_empty() || ring.ties.edges > 0 {
            return false;
        }
        let Some(token) = token else { return true };
        self.publish_now(id);
        let Some(ring) = self.rings[id.0 as usize].take() else { return true };
        self.bells.retain(|&bell| bell != id.0);
        self.drains.retain(|&drain| drain != id.0);
        self.lifts.retain(|&lift| lift != id.0);
        self.replies.push_back(Reply::RingGone { token, ring });
        true
    }

    fn wind_op(&mut self, id: RingId, slot: u32, mode: Wind) {
        let faulted = self.ring(id).faulted;
        let (errno, detail) = if faulted {
            (errno::ECANCELED, Detail::Faulted)
        } else {
            (errno::ESHUTDOWN, Detail::Closing)
        };
        let record = &self.ledger[slot];
        let failure = Failure { errno, detail: detail as u16, flags: CQE_RETRYABLE };
        match record.state {
            State::Armed => self.withdraw(slot, Failure { flags: 0, ..failure }),
            State::Flushing if record.op.opcode == Opcode::Cancel => {
                self.end_cancel(slot, failure);
            }
            State::Queued | State::Waiting if mode == Wind::Cancel => self.withdraw(slot, failure),
            // Once it is released, there would be nobody to end it.
            State::Waiting if matches!(record.op.opcode, Opcode::Arm | Opcode::Cancel) => {
                let flags = if record.op.opcode == Opcode::Arm { 0 } else { failure.flags };
                self.withdraw(slot, Failure { flags, ..failure });
            }
            State::Folded if mode == Wind::Cancel && self.folds.waits(&self.ledger, slot) => {
                self.withdraw(slot, failure);
            }
            State::Posted if mode == Wind::Cancel && !record.posted_whole => {
                // Part of it may have landed: no RETRYABLE unless repeating is harmless, and a
                // range half written is not for us to judge. The rest is not posted.
                let record = &mut self.ledger[slot];
                let flags = crate::abi::CQE_MAYBE_DONE;
                record.failure.get_or_insert(Failure { flags, ..failure });
                record.posted_whole = true;
                self.unqueue(slot);
                self.settle(slot);
            }
            _ => {}
        }
    }
}
