//! Rails to peers: which op goes by which of them, and when.
//!
//! Rails that lead to the same place are a set, and its ops wait in one line (`lines`). Whatever is
//! first in a line goes by the rail of the set that has most room, so that a slow rail gets less
//! and one that takes nothing costs nobody anything. In one turn several rails are filled, each
//! with one doorbell.
//!
//! **Atomics** go by the lowest rail of a set only: a card excludes no other card.
//!
//! **The slices of an op that notifies** go behind each other as a chain, by one rail, so that its
//! notification is not delivered if a slice before it failed. Where another op came between, the
//! next slice waits until those before it are done. With none under way it may go by any rail.
//!
//! **Deliberately absent**: why a rail takes nothing, and how it is mended (`fabric::qp`).

use crate::abi::{
    CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Counter, Detail, SQE_NOTIFY, WAIT_CREDIT,
    WAIT_FABRIC, WAIT_RAIL, errno,
};
use crate::fabric::{
    DONE_FLUSHED, DONE_MAYBE, DONE_PLACED, Done, Fabric, REQUEST_CHAIN, REQUEST_NOTIFY, Request,
    Room, Stop,
};
use crate::ids::RecordId;
use crate::ledger::{Aside, Failure, NIL, Record, State};
use crate::plant::{Plant, planted};
use crate::ring::Memory;

use super::lines::{Abroad, Open, SET_MAX, closed, each_bit, is_atomic};
use super::tables::{Phase, RegionKind, Slice};
use super::{Engine, STEPS_PER_TURN};

/// Requests given to a rail in one turn, with one doorbell. What one costs is spread over enough of
/// them then; and between two posts completions are reaped and published, so that clients refill
/// what they empty. A device whose driver does the work while it posts would else hold all back.
const POST_MAX: usize = 16;

/// Places for what one turn gives to the rails of one set.
pub(super) const BATCH_MAX: usize = POST_MAX * SET_MAX;

/// The rails of a set, as they are while a turn fills them.
#[derive(Debug)]
struct Fan {
    ways: [Way; SET_MAX],
    len: usize,
    /// The op that a slice was laid of last, and for which rail: more of it goes the same way in
    /// this turn, so that what a device does not take is taken back in order.
    current: Option<(u32, usize)>,
}

/// A rail that is filled.
#[derive(Clone, Copy, Debug)]
struct Way {
    rail: u16,
    room: Room,
    /// Requests laid for it.
    count: usize,
    /// Its window refused one: those behind it are not to pass.
    full: bool,
    /// Whose request it took last, before this turn.
    last: Option<RecordId>,
}

/// Why an op does not go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// No rail has room for it, nor for any other.
    Full(u16),
    /// It lacks a credit only.
    Credit,
    /// It is this rail's alone, which does not take it.
    Rail(u16, u16),
}

impl Way {
    const NONE: Self = Self {
        rail: 0,
        room: Room { requests: 0, notifies: 0, stop: None },
        count: 0,
        full: false,
        last: None,
    };

    /// Its peer is gone: it takes everything, and ends it at once.
    fn dead(&self) -> bool {
        self.room.stop == Some(Stop::Dead)
    }

    fn takes(&self) -> bool {
        (self.room.requests > 0 || self.dead()) && self.count < POST_MAX && !self.full
    }

    fn has_credit(&self) -> bool {
        self.room.notifies > 0 || self.dead()
    }
}

impl Fan {
    fn new<F: Fabric>(fabric: &F, abroad: &Abroad, line: u16) -> Self {
        let mut fan = Self { ways: [Way::NONE; SET_MAX], len: 0, current: None };
        for rail in each_bit(abroad.set(line)) {
            let (room, last) = (fabric.room(rail), abroad.last(rail));
            fan.ways[fan.len] = Way { rail, room, last, ..Way::NONE };
            fan.len += 1;
        }
        fan
    }

    fn ways(&self) -> &[Way] {
        &self.ways[..self.len]
    }

    /// No rail is left that may ever work.
    fn over(&self) -> bool {
        self.ways().iter().all(Way::dead)
    }

    /// True if any rail works, or all are over.
    fn works(&self) -> bool {
        self.over() || self.ways().iter().any(|way| !closed(way.room.stop) && !way.dead())
    }

    /// Rails that take one more.
    fn open(&self) -> Open {
        let (mut open, over) = (Open::default(), self.over());
        for way in self.ways().iter().filter(|way| way.takes()) {
            open.takes |= 1 << way.rail;
            open.credits |= u64::from(way.has_credit()) << way.rail;
            open.shunned |= u64::from(way.dead() && !over) << way.rail;
        }
        open
    }
}

/// What an op posts next.
#[derive(Clone, Copy, Debug)]
struct Next {
    bytes: u32,
    /// The op notifies its target's owner, at a peer.
    told: bool,
    /// This very slice does.
    notifies: bool,
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
        let flags = if done.flags & DONE_FLUSHED != 0 { CQE_FLUSHED } else { 0 };
        record.fails_again(Failure { errno: done.errno, detail: 0, flags });
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
        if self.abroad() && self.ledger[slot].line != 0 {
            self.abroad.push_front(&mut self.ledger, slot);
        } else {
            self.lanes.push_front(&mut self.ledger, slot);
        }
    }

    /// Posts what the rails of each line take, most urgent first; returns the number of requests.
    pub(super) fn schedule_abroad(&mut self) -> u32 {
        let mut posted = 0;
        let mut ends = STEPS_PER_TURN;
        for line in each_bit(self.abroad.queued) {
            posted += self.schedule_line(line, &mut ends);
        }
        posted
    }

    fn schedule_line(&mut self, line: u16, ends: &mut u32) -> u32 {
        let mut fan = Fan::new(&self.fabric, &self.abroad, line);
        let cut_off_ns = self.abroad.cut_off_for(line, fan.works(), self.now_ns);
        if cut_off_ns > self.limits.cut_off_ns {
            self.give_up_line(line, ends);
            return 0;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let mut steps = STEPS_PER_TURN;
        loop {
            let first = self.abroad.first(&self.ledger, line, fan.open());
            let Some(slot) = first.filter(|_| steps > 0) else { break };
            if let Some(failure) = self.spoiled(slot) {
                if *ends == 0 {
                    break;
                }
                *ends -= 1;
                self.ledger[slot].failure = Some(failure);
                self.settle_head(slot);
                continue;
            }
            match self.choose(slot, &mut fan) {
                Ok(at) => {
                    let place = &mut batch[at * POST_MAX + fan.ways[at].count];
                    self.post_abroad(slot, place, &mut fan, at);
                    continue;
                }
                Err(Hold::Full(wait)) => {
                    self.note_wait(slot, wait);
                    break;
                }
                Err(Hold::Credit) => {
                    self.note_wait(slot, WAIT_CREDIT);
                    self.abroad.starve(&mut self.ledger, slot);
                }
                Err(Hold::Rail(rail, wait)) => {
                    self.note_wait(slot, wait);
                    self.abroad.set_aside(&mut self.ledger, slot, rail);
                }
            }
            steps -= 1;
        }
        let mut posted = 0;
        for (way, part) in fan.ways().iter().zip(batch.chunks(POST_MAX)) {
            posted += self.post_batch(way, &part[..way.count]);
        }
        self.batch = batch;
        posted
    }

    /// Gives a rail what was laid for it, with one doorbell.
    fn post_batch(&mut self, way: &Way, batch: &[Request]) -> u32 {
        if batch.is_empty() {
            return 0;
        }
        let taken = self.ring_doorbell(batch);
        let youngest = batch[..taken as usize].last();
        let last = youngest.map(|youngest| self.ledger.id(self.posts.slot(youngest.ticket)));
        self.abroad.set_last(way.rail, last.or(way.last));
        taken
    }

    /// The rail that an op's next slice goes by, as its place in the set.
    fn choose(&mut self, slot: u32, fan: &mut Fan) -> Result<usize, Hold> {
        let record = &self.ledger[slot];
        let next = self.next_slice(record);
        if record.returned == NIL && !self.posts.spare() {
            return Err(Hold::Full(WAIT_FABRIC));
        }
        // Slices of it are under way, by one rail.
        let chained = next.told && record.in_fabric > 0;
        let its_own = if is_atomic(&record.op) {
            Some(0)
        } else if chained {
            fan.ways().iter().position(|way| way.rail == record.rail)
        } else {
            None
        };
        let current = fan.current.filter(|(other, _)| *other == slot && record.returned == NIL);
        let Some(at) = its_own.or_else(|| current.map(|(_, at)| at)) else {
            return self.choose_any(slot, fan, &next);
        };
        let way = &fan.ways[at];
        let broken = chained && self.abroad.last(way.rail) != Some(record.id());
        let wait = if !way.takes() {
            WAIT_RAIL
        } else if broken {
            WAIT_FABRIC
        } else if next.notifies && !way.has_credit() {
            WAIT_CREDIT
        } else if let Err(wait) = self.abroad.window(way.rail).admits(next.bytes) {
            fan.ways[at].full = true;
            wait
        } else {
            return Ok(at);
        };
        Err(match its_own {
            Some(at) if fan.len > 1 => Hold::Rail(fan.ways[at].rail, wait),
            _ if wait == WAIT_CREDIT => Hold::Credit,
            _ => Hold::Full(wait),
        })
    }

    /// Of the rails that may take it, the one with the most room; in turn among equals.
    fn choose_any(&mut self, slot: u32, fan: &Fan, next: &Next) -> Result<usize, Hold> {
        let line = self.ledger[slot].line;
        let from = self.abroad.turn(line);
        let (mut best, mut poor, mut refused) = (None, false, None);
        let over = fan.over();
        for step in 1..=fan.len {
            let at = (from + step) % fan.len;
            let way = &fan.ways[at];
            if !way.takes() || way.dead() && !over {
                continue;
            }
            if next.notifies && !way.has_credit() {
                poor = true;
                continue;
            }
            if let Err(wait) = self.abroad.window(way.rail).admits(next.bytes) {
                refused = Some(wait);
                continue;
            }
            let more = |other: usize| way.room.requests > fan.ways[other].room.requests;
            if best.is_none_or(more) {
                best = Some(at);
            }
        }
        let Some(at) = best else {
            return Err(match refused {
                None if poor => Hold::Credit,
                wait => Hold::Full(wait.unwrap_or(WAIT_RAIL)),
            });
        };
        self.abroad.set_turn(line, at);
        Ok(at)
    }

    /// Adds the next slice of an op to its rail's batch.
    fn post_abroad(&mut self, slot: u32, place: &mut Request, fan: &mut Fan, at: usize) {
        let way = &mut fan.ways[at];
        let rail = way.rail;
        let record = &mut self.ledger[slot];
        let id = record.id();
        let chained = record.state == State::Posted && self.abroad.last(rail) == Some(id);
        record.rail = rail;
        let again = record.returned != NIL;
        let next = self.next_slice(&self.ledger[slot]);
        let Ok(grant) = self.abroad.take(rail, next.bytes) else {
            unreachable!("a window that admits takes");
        };
        if again {
            self.lay_again(slot, place, grant);
        } else {
            fan.current = Some((slot, at));
            self.lay_slice::<true>(slot, place, next.bytes, grant);
        }
        place.rail = rail;
        place.flags = 0;
        if next.told && chained {
            place.flags |= REQUEST_CHAIN;
        }
        if next.notifies {
            place.flags |= REQUEST_NOTIFY;
        }
        place.immediate = self.ledger[slot].op.immediate;
        self.abroad.set_last(rail, Some(id));
        let room = &mut way.room;
        room.requests = room.requests.saturating_sub(1);
        room.notifies = room.notifies.saturating_sub(u32::from(next.notifies));
        way.count += 1;
    }

    /// What an op posts next: what was handed back, or the slice after its last.
    fn next_slice(&self, record: &Record) -> Next {
        let op = &record.op;
        let (page, cursor, bytes) = if record.returned == NIL {
            let bytes = (op.bytes - record.cursor).min(self.limits.slice_bytes);
            (record.page, record.cursor, bytes)
        } else {
            let Slice { page, cursor, bytes, .. } = self.posts.returned(record.returned).slice;
            (page, cursor, bytes)
        };
        // An own region's owner is told by the engine, as of any op that stays on this host.
        let told =
            op.flags & SQE_NOTIFY != 0 && self.regions[op.target as usize].kind != RegionKind::Own;
        let ends = cursor + bytes == op.bytes && page + 1 >= op.pages;
        Next { bytes, told, notifies: told && ends }
    }

    /// Notes what an op waits for; it counts as deferred when that changes.
    fn note_wait(&mut self, slot: u32, wait: u16) {
        let record = &mut self.ledger[slot];
        if record.wait != wait {
            record.lacks(wait);
            self.meter.deferred(record, wait);
            self.sessions[record.session.0 as usize].count(Counter::Defers, 1);
        }
    }

    /// What an op that is queued in a line waits for.
    pub(super) fn wait_abroad(&self, slot: u32, ahead: u32, behind: u16) -> u16 {
        let record = &self.ledger[slot];
        let alone = is_atomic(&record.op) || record.aside == Aside::Rail;
        let set = self.abroad.set(record.line);
        let set = match record.aside {
            Aside::Rail => 1 << record.rail,
            _ if alone => set & set.wrapping_neg(),
            _ => set,
        };
        let takes = each_bit(set).any(|rail| {
            let room = self.fabric.room(rail);
            room.requests > 0 || room.stop == Some(Stop::Dead)
        });
        let open = Open { takes: set, ..Open::default() };
        match record.wait {
            _ if !takes => WAIT_RAIL,
            _ if record.aside == Aside::Credit => WAIT_CREDIT,
            wait if ahead == 0
                && self.abroad.first(&self.ledger, record.line, open) == Some(slot) =>
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
                && record.line != 0;
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
            || each_bit(abroad.flying).any(|rail| !closed(self.fabric.room(rail).stop))
            || each_bit(abroad.queued).any(|line| self.line_busy(line))
    }

    /// True if an op of a line may be taken, by a rail that works or by one whose peer is gone.
    fn line_busy(&self, line: u16) -> bool {
        let (mut open, mut over) = (Open::default(), true);
        for rail in each_bit(self.abroad.set(line)) {
            let room = self.fabric.room(rail);
            let dead = room.stop == Some(Stop::Dead);
            over &= dead;
            if !closed(room.stop) {
                open.takes |= 1 << rail;
                open.credits |= u64::from(room.notifies > 0 || dead) << rail;
                open.shunned |= u64::from(dead) << rail;
            }
        }
        if over {
            open.shunned = 0;
        }
        // What one rail alone may take, and one that is over ends, has been ended in this turn.
        open.any() && self.abroad.first(&self.ledger, line, open).is_some()
    }

    /// True if a ring that is wound up has more to do than to wait for ops.
    fn winds(&self, id: u32) -> bool {
        self.rings[id as usize].as_ref().is_none_or(|ring| {
            let seen = matches!(ring.phase, Phase::Winding { cursor: NIL, .. });
            !seen || ring.ops.is_empty()
        })
    }
}
