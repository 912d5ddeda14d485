//! WHY for an SQE that is not taken yet: whether the engine knows of it, and what intake waits for.
//!
//! An SQE is taken in order, and only when all that it needs is there; what its ring's first one
//! lacks holds those behind it as well. The client may have published it without ringing the bell
//! of a ring that sleeps: then nobody looks.
//!
//! **Invariants**: nothing of the client's cursors is kept, so that whoever looks next judges them;
//! no slot is copied that intake has not seen.

use crate::abi::{
    Class, Opcode, SQE_DRAIN, SQE_REVOKE, STATE_UNTAKEN, Sqe, WAIT_BELL, WAIT_CLOSED, WAIT_CQ,
    WAIT_DISTANCE, WAIT_EARLIER, WAIT_EDGES, WAIT_INTAKE, WAIT_NONE, WAIT_PAGES, WAIT_QUOTA_BYTES,
    WAIT_QUOTA_EDGES, WAIT_QUOTA_OPS, WAIT_RECORDS, WAIT_REVOKED, WAIT_SEARCH,
};
use crate::fabric::Fabric;
use crate::ids::{RecordId, RingId};
use crate::ledger::NIL;
use crate::ring::Memory;

use super::pages::PagePool;
use super::tables::{Phase, Ring, Share};
use super::ties::FARTHEST;
use super::why::Lack;
use super::{Engine, Why};

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Says what an SQE waits for that is published, and not taken.
    pub(super) fn why_untaken(&mut self, id: RingId, number: u64) -> Option<Why> {
        let ring = self.rings.get_mut(id.0 as usize)?.as_mut()?;
        let ahead = u32::try_from(number.checked_sub(ring.next_number)?).ok()?;
        if ahead >= ring.end.offered() {
            return None;
        }
        ring.keep_sqes();
        let session = ring.session;
        let sqe = (ahead < ring.copied.count()).then(|| Sqe::from_words(ring.copied.entry(ahead)));
        let (wait, lack) = self.holds_intake(id, ahead);
        Some(Why {
            record: RecordId(0),
            number,
            user_data: sqe.map_or(0, |sqe| sqe.user_data),
            age_ns: 0,
            queued_ns: 0,
            bytes: sqe.map_or(0, |sqe| u64::from(sqe.bytes)),
            bytes_done: 0,
            ahead,
            defers: 0,
            opcode: sqe.and_then(|sqe| Opcode::from_byte(sqe.opcode)),
            class: sqe.and_then(|sqe| Class::from_byte(sqe.class)),
            state: STATE_UNTAKEN,
            wait,
            taken_ns: 0,
            used: lack.used,
            limit: lack.limit,
            wants: lack.wants,
            rails: 0,
            rail_states: 0,
            ring: id,
            session,
            flows: 0,
            posts: 0,
            in_fabric: 0,
            rail: 0,
            origin: 0,
            mode: self.mode(),
        })
    }

    /// What keeps the SQEs of a ring from being taken, and how much there is of that.
    fn holds_intake(&self, id: RingId, ahead: u32) -> (u16, Lack) {
        let plain = |wait| (wait, Lack::default());
        let Some(ring) = self.rings[id.0 as usize].as_ref() else { return plain(WAIT_CLOSED) };
        if ring.faulted || ring.phase != Phase::Live {
            return plain(WAIT_CLOSED);
        }
        let unseen = ahead >= ring.end.waiting();
        if unseen && !ring.blocked && (!ring.polled || ring.fenceless && !ring.rung) {
            return plain(WAIT_BELL);
        }
        if ring.search.is_some() {
            return plain(WAIT_SEARCH);
        }
        let first = (ring.copied.count() > 0).then(|| Sqe::from_words(ring.copied.entry(0)));
        let first = first.unwrap_or_default();
        let slots = if first.opcode == Opcode::Arm as u8 { first.bytes.max(1) } else { 1 };
        let free = ring.end.free_slots();
        if free < slots || ring.fates.is_empty() {
            let entries = ring.end.cq_entries();
            return (WAIT_CQ, Lack::of(entries - free, entries, slots));
        }
        let state = &self.sessions[ring.session.0 as usize];
        let owner = &self.owners[state.owner as usize];
        if let Some(lack) = shares(&self.record_share, state.records, 1) {
            return (WAIT_RECORDS, lack);
        }
        if owner.ops >= owner.ops_max {
            return (WAIT_QUOTA_OPS, Lack::of(owner.ops, owner.ops_max, 1_u32));
        }
        let asked = asked_of(&first);
        if asked > owner.left(ring.id.0) && owner.bytes > 0 {
            return (WAIT_QUOTA_BYTES, Lack::of(owner.bytes, owner.bytes_max, asked));
        }
        if let Some(lack) = shares(&self.block_share, state.blocks, blocks_of(&first)) {
            return (WAIT_PAGES, lack);
        }
        let flush = first.opcode == Opcode::Flush as u8;
        if flush && first.flags & SQE_REVOKE != 0 && self.events.len() >= self.regions.len() {
            return plain(WAIT_REVOKED);
        }
        if let Some(why) = self.lacks_edges(ring, &first) {
            return why;
        }
        plain(if ahead > 0 { WAIT_INTAKE } else { WAIT_NONE })
    }

    /// What an SQE, the next of its ring, lacks so that it can wait for others.
    fn lacks_edges(&self, ring: &Ring<M>, sqe: &Sqe) -> Option<(u16, Lack)> {
        let oldest = ring.ops.head();
        let number = ring.next_number;
        let first = if ring.ties.first == NIL { oldest } else { ring.ties.first };
        if first != NIL && self.ledger[first].op.opcode != Opcode::Arm {
            let back = number - self.ledger[first].number;
            if back >= FARTHEST {
                return Some((WAIT_DISTANCE, Lack::of(back, FARTHEST, self.ledger[first].number)));
            }
        }
        if sqe.flags & SQE_DRAIN != 0
            && let Some(drain) = ring.ties.drains_now(&self.ledger, ring.id)
        {
            return Some((WAIT_EARLIER, Lack::of(1_u32, 1_u32, drain)));
        }
        let wants = ring.ties.would_wait(&self.ledger, ring.id, number, sqe);
        let state = &self.sessions[ring.session.0 as usize];
        let owner = &self.owners[state.owner as usize];
        if wants > owner.edges_max.saturating_sub(owner.edges) {
            return Some((WAIT_QUOTA_EDGES, Lack::of(owner.edges, owner.edges_max, wants)));
        }
        shares(&self.edge_share, state.edges, wants).map(|lack| (WAIT_EDGES, lack))
    }
}

/// What a session lacks of a pool that it wants so much of.
fn shares(share: &Share, used: u32, want: u32) -> Option<Lack> {
    let lacks = want > 0 && !share.allows(used, want);
    lacks.then(|| Lack::of(used, used + share.left(used), want))
}

/// Bytes that an SQE asks for.
fn asked_of(sqe: &Sqe) -> u64 {
    match Opcode::from_byte(sqe.opcode) {
        Some(Opcode::Read | Opcode::Write) => sqe.bytes.into(),
        Some(Opcode::Readv | Opcode::Writev) => u64::from(sqe.bytes) * (sqe.arg[0] >> 32),
        Some(Opcode::FetchAdd | Opcode::CmpSwap) => 8,
        _ => 0,
    }
}

/// Page list blocks that an SQE takes.
fn blocks_of(sqe: &Sqe) -> u32 {
    match Opcode::from_byte(sqe.opcode) {
        Some(Opcode::Readv | Opcode::Writev) => {
            PagePool::blocks_for(u32::try_from(sqe.arg[0] >> 32).unwrap_or(0))
        }
        _ => 0,
    }
}
