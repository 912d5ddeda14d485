//! Rails to peers: a queue, a window and an order for each, so that none holds back another.
//!
//! An op whose import is a peer's waits in the lanes of its rail, apart from those of this host. A
//! rail that takes nothing keeps its ops there, and costs others nothing. Within a rail the most
//! urgent class goes first, and within a class whoever came first. An op that lacks only a credit
//! for its notification steps aside, into lanes of its own: what needs none passes it by.
//!
//! **The slices of an op that notifies** go behind each other as a chain, so that its notification
//! is not delivered if a slice before it failed. Where another op came between, the next slice
//! waits until those before it are done.
//!
//! **Invariants**: an op is queued on one rail, in one set of lanes; what a rail's window has taken
//! is what the fabric has of it.
//! **Deliberately absent**: why a rail takes nothing, and how it is mended (`fabric::qp`).

use crate::abi::{
    CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Counter, Detail, Opcode, SQE_NOTIFY, WAIT_CREDIT,
    WAIT_FABRIC, WAIT_RAIL, errno,
};
use crate::fabric::{
    Arrival, DONE_FLUSHED, DONE_MAYBE, DONE_PLACED, Done, Fabric, REQUEST_CHAIN, REQUEST_NOTIFY,
    Request, Room, Stop,
};
use crate::ids::RecordId;
use crate::ledger::{Failure, Ledger, NIL, Op, Record, State};
use crate::plant::{Plant, planted};
use crate::ring::Memory;
use crate::sched::credits::{Grant, Window};
use crate::sched::lanes::Lanes;

use super::tables::{Phase, Region, RegionKind};
use super::{Engine, STEPS_PER_TURN};

/// Most rails: sets of them are a word.
pub(super) const RAILS_MAX: u16 = 64;

/// Requests given to a rail in one turn, with one doorbell. What one costs is spread over enough of
/// them then; and between two posts completions are reaped and published, so that clients refill
/// what they empty. A device whose driver does the work while it posts would else hold all back.
const POST_MAX: usize = 16;

/// Notifications of peers that are heard in one turn.
const ARRIVALS_PER_TURN: usize = 64;

/// What the engine keeps of its rails to peers.
#[derive(Debug)]
pub(super) struct Abroad {
    /// By rail; the first one's is never used.
    queues: Box<[Queue]>,
    /// Rails with ops queued, and rails with requests in the fabric, a bit each.
    queued: u64,
    flying: u64,
    /// Next record to look at for ops whose region is gone.
    pub(super) purge: Option<u32>,
    /// Notifications heard in this turn.
    pub(super) arrived: Vec<Arrival>,
    /// A FLUSH has moved, or an op has ended, in this turn.
    pub(super) moved: bool,
}

#[derive(Debug)]
struct Queue {
    lanes: Lanes,
    /// Ops that lack a credit for their notification.
    starved: Lanes,
    window: Window,
    /// Whose request the rail took last.
    last: Option<RecordId>,
}

impl Abroad {
    /// The queues of all rails but the first; nothing if there is only that.
    pub(super) fn new<F: Fabric>(fabric: &F, window_bytes: u64) -> Self {
        let rails = fabric.rails();
        assert!(rails <= RAILS_MAX, "more rails than a word has bits");
        let queue = |rail| Queue {
            lanes: Lanes::default(),
            starved: Lanes::default(),
            window: Window::new(fabric.depth_of(rail), window_bytes),
            last: None,
        };
        let queues = if rails > 1 { (0..rails).map(queue).collect() } else { Box::default() };
        let arrivals = if rails > 1 { ARRIVALS_PER_TURN } else { 0 };
        Self {
            queues,
            queued: 0,
            flying: 0,
            purge: None,
            arrived: Vec::with_capacity(arrivals),
            moved: false,
        }
    }

    /// Requests that all rails together hold beside the first one's.
    pub(super) fn depth<F: Fabric>(fabric: &F) -> u32 {
        (1..fabric.rails()).map(|rail| fabric.depth_of(rail)).sum()
    }

    /// Queues an op behind those of its class on its rail; false if that is the first one, whose
    /// lanes are the engine's.
    #[inline]
    pub(super) fn queue(&mut self, regions: &[Region], ledger: &mut Ledger, slot: u32) -> bool {
        let record = &mut ledger[slot];
        let rail = rail_of(regions, &record.op);
        record.rail = rail;
        record.starved = false;
        if rail == 0 {
            return false;
        }
        self.queues[usize::from(rail)].lanes.push(ledger, slot);
        self.queued |= 1 << rail;
        true
    }

    /// Puts an op back before all others of its class on its rail.
    fn push_front(&mut self, ledger: &mut Ledger, slot: u32) {
        let record = &mut ledger[slot];
        record.starved = false;
        let rail = record.rail;
        self.queues[usize::from(rail)].lanes.push_front(ledger, slot);
        self.queued |= 1 << rail;
    }

    /// Takes an op out of its rail's lanes.
    pub(super) fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        let (rail, starved) = (ledger[slot].rail, ledger[slot].starved);
        let queue = &mut self.queues[usize::from(rail)];
        let lanes = if starved { &mut queue.starved } else { &mut queue.lanes };
        lanes.remove(ledger, slot);
        if queue.lanes.is_empty() && queue.starved.is_empty() {
            self.queued &= !(1 << rail);
        }
    }

    /// Has an op step aside until there is credit for its notification.
    fn starve(&mut self, ledger: &mut Ledger, slot: u32) {
        let queue = &mut self.queues[usize::from(ledger[slot].rail)];
        if !std::mem::replace(&mut ledger[slot].starved, true) {
            queue.lanes.remove(ledger, slot);
            queue.starved.push(ledger, slot);
        }
    }

    /// The op to serve next on a rail; those that wait for credit only if there is some.
    fn first(&self, ledger: &Ledger, rail: u16, credit: bool) -> Option<u32> {
        let queue = &self.queues[usize::from(rail)];
        let starved = if credit { queue.starved.first() } else { None };
        match (starved, queue.lanes.first()) {
            (Some(a), Some(b)) if ledger[a].op.class > ledger[b].op.class => Some(b),
            (Some(a), _) => Some(a),
            (None, b) => b,
        }
    }

    pub(super) fn give(&mut self, rail: u16, grant: Grant) {
        let window = &mut self.queues[usize::from(rail)].window;
        window.give(grant);
        if window.ops() == 0 {
            self.flying &= !(1 << rail);
        }
    }

    #[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
    pub(super) fn window(&self, rail: u16) -> &Window {
        &self.queues[usize::from(rail)].window
    }

    /// Lanes of a rail: those that go in order, and those that wait for credit.
    #[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
    pub(super) fn lanes(&self, rail: u16) -> [&Lanes; 2] {
        let queue = &self.queues[usize::from(rail)];
        [&queue.lanes, &queue.starved]
    }
}

/// The rails of a set, lowest first.
fn each_bit(mut set: u64) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let rail = u16::try_from(set.trailing_zeros()).ok().filter(|_| set != 0)?;
        set &= set - 1;
        Some(rail)
    })
}

/// The rail that an op goes by: its import's, by class; an atomic's is where its region has them.
#[inline]
fn rail_of(regions: &[Region], op: &Op) -> u16 {
    let atomic = matches!(op.opcode, Opcode::FetchAdd | Opcode::CmpSwap);
    match regions[op.import as usize].kind {
        RegionKind::Peer { rails, .. } => rails[op.class.index()],
        _ if atomic => regions[op.target as usize].home,
        _ => 0,
    }
}

/// A request failed: its op does, and the first failure is what is told of it.
#[cold]
pub(super) fn note_failure(record: &mut Record, bytes: u32, done: Done) {
    if done.flags & DONE_PLACED != 0 {
        record.done_bytes += u64::from(bytes);
    }
    let maybe = done.flags & DONE_MAYBE != 0 && !planted(Plant::FalselyRetryable);
    if let Some(failure) = record.failure.as_mut() {
        // Behind a slice that was refused no other takes effect: the chain sees to that. Where the
        // card does not say what became of the first, those behind it may have landed, too.
        let unknown = failure.flags & CQE_FLUSHED != 0 || failure.errno == errno::EIO;
        if maybe && unknown {
            failure.flags = failure.flags & !CQE_RETRYABLE | CQE_MAYBE_DONE;
        }
        return;
    }
    let mut flags = if maybe { CQE_MAYBE_DONE } else { 0 };
    if done.flags & DONE_FLUSHED != 0 {
        // What may be repeated without harm is not marked as maybe done.
        flags |= if maybe { CQE_FLUSHED } else { CQE_FLUSHED | CQE_RETRYABLE };
    }
    let detail = match done.errno {
        errno::EHOSTDOWN => Detail::Peer,
        _ if record.rail != 0 => Detail::Wire,
        _ => Detail::None,
    };
    record.failure = Some(Failure { errno: done.errno, detail: detail as u16, flags });
}

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// True if there may be rails to peers.
    #[inline]
    pub(super) fn abroad(&self) -> bool {
        self.fabric.rails() > 1
    }

    /// Queues an op where it belongs.
    pub(super) fn enqueue(&mut self, slot: u32) {
        if !(self.abroad() && self.abroad.queue(&self.regions, &mut self.ledger, slot)) {
            self.lanes.push(&mut self.ledger, slot);
        }
    }

    /// Puts an op back before all others that are queued with it.
    pub(super) fn requeue(&mut self, slot: u32) {
        if self.abroad() && self.ledger[slot].rail != 0 {
            self.abroad.push_front(&mut self.ledger, slot);
        } else {
            self.lanes.push_front(&mut self.ledger, slot);
        }
    }

    /// Posts what each rail takes, most urgent first; returns the number of requests.
    pub(super) fn schedule_abroad(&mut self) -> u32 {
        let mut posted = 0;
        let mut ends = STEPS_PER_TURN;
        for rail in each_bit(self.abroad.queued) {
            posted += self.schedule_rail(rail, &mut ends);
        }
        posted
    }

    fn schedule_rail(&mut self, rail: u16, ends: &mut u32) -> u32 {
        let mut batch = std::mem::take(&mut self.batch);
        let mut room = self.fabric.room(rail);
        if room.stop == Some(Stop::Dead) {
            // It takes everything, and ends it at once.
            (room.requests, room.notifies) = (u32::MAX, u32::MAX);
        }
        let mut last = self.abroad.queues[usize::from(rail)].last;
        let most = batch.len().min(POST_MAX);
        let mut count = 0;
        while let Some(slot) = self.abroad.first(&self.ledger, rail, room.notifies > 0) {
            if let Some(failure) = self.spoiled(slot) {
                if *ends == 0 {
                    break;
                }
                *ends -= 1;
                self.ledger[slot].failure = Some(failure);
                self.settle_head(slot);
                continue;
            }
            let Some(place) = batch[..most].get_mut(count) else { break };
            match self.post_abroad(slot, place, &mut room, last) {
                Ok(()) => {}
                Err(WAIT_CREDIT) => {
                    self.note_wait(slot, WAIT_CREDIT);
                    self.abroad.starve(&mut self.ledger, slot);
                    continue;
                }
                Err(wait) => {
                    self.note_wait(slot, wait);
                    break;
                }
            }
            last = Some(self.ledger.id(slot));
            count += 1;
        }
        let mut taken = 0;
        if count > 0 {
            taken = self.ring_doorbell(&batch[..count]);
            if let Some(youngest) = batch[..taken as usize].last() {
                let slot = self.posts.slot(youngest.ticket);
                self.abroad.queues[usize::from(rail)].last = Some(self.ledger.id(slot));
            }
        }
        self.batch = batch;
        taken
    }

    /// Adds the next slice of an op to its rail's batch, or says what it waits for.
    fn post_abroad(
        &mut self,
        slot: u32,
        place: &mut Request,
        room: &mut Room,
        last: Option<RecordId>,
    ) -> Result<(), u16> {
        if room.requests == 0 {
            return Err(WAIT_RAIL);
        }
        let record = &self.ledger[slot];
        let op = &record.op;
        let bytes = (op.bytes - record.cursor).min(self.limits.slice_bytes);
        let mut flags = 0;
        // An own region's owner is told by the engine, as of any op that stays on this host.
        let told =
            op.flags & SQE_NOTIFY != 0 && self.regions[op.target as usize].kind != RegionKind::Own;
        if told {
            let ends = record.cursor + bytes == op.bytes && record.page + 1 >= op.pages;
            if ends && room.notifies == 0 {
                return Err(WAIT_CREDIT);
            }
            if record.state == State::Posted && last == Some(record.id()) {
                flags |= REQUEST_CHAIN;
            } else if record.in_fabric > 0 {
                return Err(WAIT_FABRIC);
            }
            flags |= if ends { REQUEST_NOTIFY } else { 0 };
        }
        let rail = record.rail;
        let grant = self.abroad.queues[usize::from(rail)].window.take(bytes)?;
        self.abroad.flying |= 1 << rail;
        room.requests -= 1;
        room.notifies -= u32::from(flags & REQUEST_NOTIFY != 0);
        self.lay_slice::<true>(slot, place, bytes, grant);
        place.rail = rail;
        place.flags = flags;
        place.immediate = self.ledger[slot].op.immediate;
        Ok(())
    }

    /// Notes what an op waits for; it counts as deferred when that changes.
    fn note_wait(&mut self, slot: u32, wait: u16) {
        let record = &mut self.ledger[slot];
        if record.wait != wait {
            record.wait = wait;
            record.defers = record.defers.saturating_add(1);
            self.sessions[record.session.0 as usize].count(Counter::Defers, 1);
        }
    }

    /// What an op that is queued on a rail waits for.
    pub(super) fn wait_abroad(&self, slot: u32, ahead: u32, behind: u16) -> u16 {
        let record = &self.ledger[slot];
        let room = self.fabric.room(record.rail);
        let takes = room.requests > 0 || room.stop == Some(Stop::Dead);
        match record.wait {
            _ if !takes => WAIT_RAIL,
            _ if record.starved => WAIT_CREDIT,
            wait if ahead == 0
                && self.abroad.first(&self.ledger, record.rail, false) == Some(slot) =>
            {
                wait
            }
            _ => behind,
        }
    }

    /// Has queued ops looked through for those whose region is gone: a rail that takes nothing
    /// would not find them.
    pub(super) fn purge(&mut self) {
        if self.abroad.queued != 0 {
            self.abroad.purge = Some(0);
        }
    }

    /// Goes on looking, a bounded number of records a turn.
    pub(super) fn step_purge(&mut self) {
        let Some(from) = self.abroad.purge else { return };
        let end = self.ledger.capacity().min(from.saturating_add(STEPS_PER_TURN));
        for slot in from..end {
            let record = &self.ledger[slot];
            let queued = matches!(record.state, State::Queued | State::Posted)
                && !record.posted_whole
                && record.rail != 0;
            if !queued || record.checked == self.withdrawn {
                continue;
            }
            if let Some(failure) = self.spoiled(slot) {
                self.ledger[slot].failure = Some(failure);
                self.settle_head(slot);
            }
        }
        // What was withdrawn meanwhile has set it back to the start.
        if self.abroad.purge == Some(from) {
            self.abroad.purge = (end < self.ledger.capacity()).then_some(end);
        }
    }

    /// True if a further turn may move something, though nothing came in: as
    /// [`Engine::busy`](super::Engine), but what only waits for a rail is none of it.
    pub(super) fn busy_abroad(&self) -> bool {
        let abroad = &self.abroad;
        // Who was told of arrivals owes their receives; a sweep that was begun is ended.
        abroad.moved
            || !abroad.arrived.is_empty()
            || abroad.purge.is_some()
            || (self.deadlines > 0 && self.sweep_from != 0)
            || self.winding.iter().any(|&id| self.winds(id))
            || each_bit(abroad.queued | abroad.flying).any(|rail| self.rail_busy(rail))
    }

    fn rail_busy(&self, rail: u16) -> bool {
        let room = self.fabric.room(rail);
        if let Some(Stop::Connecting | Stop::Degraded | Stop::Rebuilding) = room.stop {
            return false;
        }
        let credit = room.notifies > 0 || room.stop == Some(Stop::Dead);
        self.abroad.flying >> rail & 1 != 0
            || self.abroad.first(&self.ledger, rail, credit).is_some()
    }

    /// True if a ring that is wound up has more to do than to wait for ops.
    fn winds(&self, id: u32) -> bool {
        self.rings[id as usize].as_ref().is_none_or(|ring| {
            let seen = matches!(ring.phase, Phase::Winding { cursor: NIL, .. });
            !seen || ring.ops.is_empty()
        })
    }
}
