//! Rails to peers: which op goes by which of them, and when.
//!
//! Rails that lead to the same place are a set, and its ops wait in one line (`lines`). Whatever is
//! first in a line goes by the rail of the set that will be done with it first: of which the bytes
//! in flight, at the measured rate of its card, take least (`Burden`). How long ops wait in queues
//! is no part of it. So a slow rail gets less, and one that takes nothing costs nobody anything. In
//! one turn several rails are filled, each with one doorbell.
//!
//! **Atomics** go by the lowest rail of a set only: a card excludes no other card.
//!
//! **The slices of an op that notifies** go behind each other as a chain, by one rail, so that its
//! notification is not delivered if a slice before it failed. Where another op came between, the
//! next slice waits until those before it are done. With none under way it may go by any rail.
//!
//! **Deliberately absent**: why a rail takes nothing, and how it is mended (`fabric::qp`).

use crate::abi::{
    CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Class, Detail, SQE_NOTIFY, WAIT_CAP, WAIT_CREDIT,
    WAIT_FABRIC, WAIT_RAIL, WAIT_WINDOW_BYTES, errno,
};
use crate::fabric::{
    DONE_FLUSHED, DONE_MAYBE, DONE_PLACED, Done, Fabric, REQUEST_CHAIN, REQUEST_NOTIFY, Request,
    Stop,
};
use crate::ids::RecordId;
use crate::ledger::{Aside, Failure, NIL, Record, State, TIE_RIDES};
use crate::plant::{Plant, planted};
use crate::ring::Memory;
use crate::sched::credits::Ask;

use super::lines::{Open, SET_MAX, closed, each_bit, is_atomic, lead_of};
use super::tables::{Phase, RegionKind, Slice};
use super::{Engine, STEPS_PER_TURN};

/// Requests given to a rail in one turn, with one doorbell. What one costs is spread over enough of
/// them then; and between two posts completions are reaped and published, so that clients refill
/// what they empty. A device whose driver does the work while it posts would else hold all back.
pub(super) const POST_MAX: usize = 16;

/// Why an op does not go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// No rail of its line has room for it.
    Line(u16),
    /// The windows of the cards that its line goes by are in use.
    Card(u16),
    /// What comes free on its card is for another.
    Kept,
    /// Its uid has as much of class high posted as it may.
    Cap,
    /// It lacks a credit only.
    Credit,
    /// It is this rail's alone, which does not take it.
    Rail(u16, u16),
}

/// What becomes of rails in this turn.
#[derive(Debug)]
pub(super) struct Round {
    /// Lines that take something, a bit each.
    pub(super) open: u64,
    /// Bytes laid, and how many may be before no more is begun with.
    laid: u64,
    most: u64,
}

impl Round {
    /// The turn has given enough.
    pub(super) fn is_full(&self) -> bool {
        self.laid >= self.most
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
            self.ledger[slot].aside = Aside::No;
            self.lanes.push(&mut self.ledger, slot);
        }
    }

    /// The number of this turn, as far as records keep it.
    #[inline]
    fn this_turn(&self) -> u32 {
        (self.turns & 0xffff_ffff) as u32
    }

    /// Puts an op back before all others that are queued with it.
    pub(super) fn requeue(&mut self, slot: u32) {
        if self.abroad() && self.ledger[slot].line != 0 {
            self.abroad.push_front(&mut self.ledger, slot);
        } else if self.ledger[slot].aside == Aside::No {
            self.lanes.push_front(&mut self.ledger, slot);
        } else {
            self.admitted.push_front(&mut self.ledger, slot);
        }
    }

    /// Posts what rails take of what is queued for them; returns the number of requests.
    pub(super) fn schedule_abroad(&mut self) -> u32 {
        let chains = self.abroad.flying != 0 && self.edges.in_use() > 0;
        if self.abroad.queued() == 0 && !chains {
            return 0;
        }
        let mut ends = STEPS_PER_TURN;
        let mut round = self.begin_round(&mut ends);
        if chains {
            self.ride_on_abroad(&mut round);
            // Whoever waits has as much again: chains that are fed without end hold nobody back.
            round.laid = 0;
        }
        let (ops, bytes) = self.abroad.left();
        self.abroad.queue.begin(ops, bytes);
        let mut steps = 2 * STEPS_PER_TURN;
        while steps > 0 && ends > 0 && self.abroad.queued() & round.open != 0 {
            if round.is_full() {
                self.keep_reserved(&round);
                break;
            }
            steps -= 1;
            let Some(slot) = self.first_abroad(&round) else { break };
            if self.ledger[slot].checked != self.withdrawn && self.divert(slot) {
                continue;
            }
            if let Some(failure) = self.spoiled(slot) {
                ends -= 1;
                self.ledger[slot].failure = Some(failure);
                self.settle_head(slot);
                continue;
            }
            match self.choose(slot) {
                Ok(rail) => {
                    self.post_abroad(slot, rail, &mut round);
                    self.ride_abroad(slot, rail, &mut round);
                }
                Err(hold) => match self.internal_by(slot, hold) {
                    Some((own, rail)) => self.post_abroad(own, rail, &mut round),
                    None => self.hold(slot, hold, &mut round),
                },
            }
        }
        self.end_round()
    }

    /// Looks what each line with ops takes, and brings those back into turn that take something.
    fn begin_round(&mut self, ends: &mut u32) -> Round {
        let most = self.limits.turn_bytes.max(self.abroad.in_a_millisecond());
        let mut round = Round { open: 0, laid: 0, most };
        for card in &mut self.abroad.cards {
            (card.full, card.posted) = (false, false);
            card.idle = card.window.wrs() == 0;
            if card.idle {
                card.pace.rests();
            }
            // Whoever has not asked again since does not want it any more, or cannot go.
            card.reserved = card.reserved.take_if(|_| std::mem::take(&mut card.asked));
        }
        for line in each_bit(self.abroad.queued()) {
            let (mut works, mut over) = (false, true);
            for rail in each_bit(self.abroad.set(line)) {
                let room = self.fabric.room(rail);
                let way = &mut self.abroad.ways[usize::from(rail)];
                (way.room, way.laid, way.before) = (room, 0, way.last);
                if !way.flies() {
                    way.card = self.fabric.card_of(rail);
                }
                over &= way.dead();
                works |= !closed(room.stop) && !way.dead();
            }
            let cut_off_ns = self.abroad.cut_off_for(line, works || over, self.now_ns);
            if cut_off_ns > self.limits.cut_off_ns {
                self.give_up_line(line, ends);
                continue;
            }
            if self.openings(line).takes != 0 {
                round.open |= 1 << line;
                if self.abroad.queue.parked() >> line & 1 != 0 {
                    self.abroad.queue.unpark(line);
                }
            }
        }
        round
    }

    /// Rails of a line that take one more in this turn.
    fn openings(&self, line: u16) -> Open {
        let set = self.abroad.set(line);
        let ways = || each_bit(set).map(|rail| (rail, &self.abroad.ways[usize::from(rail)]));
        let over = ways().all(|(_, way)| way.dead());
        let mut open = Open::default();
        for (rail, way) in ways() {
            let full = self.abroad.cards[usize::from(way.card)].full && !way.dead();
            if (way.room.requests > 0 || way.dead()) && way.laid < POST_MAX && !full {
                open.takes |= 1 << rail;
                open.credits |= u64::from(way.has_credit()) << rail;
                open.shunned |= u64::from(way.dead() && !over) << rail;
            }
        }
        open
    }

    /// The op to serve next. Of a class, what has stepped aside goes first.
    fn first_abroad(&mut self, round: &Round) -> Option<u32> {
        let aside = self.abroad.aside & round.open;
        if aside == 0 {
            return self.abroad.queue.first(&self.ledger);
        }
        let mut heads = [None; 3];
        for line in each_bit(aside) {
            let open = self.openings(line);
            for (class, head) in Class::ALL.into_iter().zip(&mut heads) {
                let found = self.abroad.first_aside(&self.ledger, line, open, Some(class));
                let key = |slot: &u32| {
                    let record = &self.ledger[*slot];
                    (record.aside != Aside::Returned, record.sequence)
                };
                *head = [*head, found].into_iter().flatten().min_by_key(key);
            }
        }
        let elsewhere =
            (0..).zip(heads).fold(0, |bits, (at, head)| bits | u8::from(head.is_some()) << at);
        let class = self.abroad.queue.class(&self.ledger, elsewhere)?;
        heads[class.index()].or_else(|| self.abroad.queue.first_of(&self.ledger, class))
    }

    /// A card's window has no room for a user's op: the engine's own work may have.
    fn internal_by(&mut self, slot: u32, hold: Hold) -> Option<(u32, u16)> {
        if !matches!(hold, Hold::Card(_)) {
            return None;
        }
        let own = self.internal_beside(slot, &self.abroad.queue)?;
        self.choose(own).ok().map(|rail| (own, rail))
    }

    /// An op cannot go: others are let by that can.
    fn hold(&mut self, slot: u32, hold: Hold, round: &mut Round) {
        let line = self.ledger[slot].line;
        if matches!(hold, Hold::Cap | Hold::Credit | Hold::Rail(..)) {
            // It could not use what is kept for it.
            self.abroad.unreserve(slot);
        }
        match hold {
            Hold::Cap => {
                self.note_wait(slot, WAIT_CAP);
                let record = &self.ledger[slot];
                let (bytes, aside) = (self.next_slice(record).bytes, record.aside);
                // What has stepped aside is not the scheduler's to pass over.
                if aside != Aside::No || !self.cap_high(slot, bytes) {
                    round.open &= !(1 << line);
                }
            }
            Hold::Credit => {
                self.note_wait(slot, WAIT_CREDIT);
                self.abroad.starve(&mut self.ledger, slot);
            }
            Hold::Rail(rail, wait) => {
                self.note_wait(slot, wait);
                self.abroad.set_aside(&mut self.ledger, slot, rail);
            }
            Hold::Kept => {
                self.note_wait(slot, WAIT_WINDOW_BYTES);
                if self.ledger[slot].aside == Aside::No {
                    self.abroad.queue.park(&self.ledger, slot);
                } else {
                    round.open &= !(1 << line);
                }
            }
            Hold::Line(wait) | Hold::Card(wait) => {
                self.note_wait(slot, wait);
                if let Hold::Card(_) = hold {
                    self.reserve(slot);
                    self.look_again(round);
                } else {
                    round.open &= !(1 << line);
                }
                // With nobody to let by it stays where it is, and is first again.
                let others = self.abroad.queued() & round.open != 0;
                if others && self.ledger[slot].aside == Aside::No {
                    self.abroad.queue.park(&self.ledger, slot);
                }
            }
        }
    }

    /// A card's window has refused an op: nobody takes more of it in this turn, and what comes free
    /// later is kept for the op.
    fn reserve(&mut self, slot: u32) {
        let id = self.ledger.id(slot);
        for rail in each_bit(self.abroad.set(self.ledger[slot].line)) {
            let card = self.abroad.card(rail);
            card.full = true;
            let (kept_for, _) = card.reserved.get_or_insert((slot, id));
            card.asked |= *kept_for == slot;
        }
    }

    /// The turn has given enough: whoever was not come to may ask in the next one for what is kept
    /// for it.
    fn keep_reserved(&mut self, round: &Round) {
        for card in &mut self.abroad.cards {
            let waits = |&(slot, id): &(u32, RecordId)| {
                self.ledger.find(id) == Some(slot) && round.open >> self.ledger[slot].line & 1 != 0
            };
            card.asked |= card.reserved.as_ref().is_some_and(waits);
        }
    }

    /// Which lines still take something.
    fn look_again(&self, round: &mut Round) {
        for line in each_bit(round.open) {
            if self.openings(line).takes == 0 {
                round.open &= !(1 << line);
            }
        }
    }

    /// Gives each rail what was laid for it, with one doorbell each.
    fn end_round(&mut self) -> u32 {
        let mut posted = 0;
        let mut laid = std::mem::take(&mut self.abroad.laid);
        let batch = std::mem::take(&mut self.abroad.batch);
        while laid != 0 {
            let rail = laid.trailing_zeros() as usize;
            laid &= laid - 1;
            let way = &self.abroad.ways[rail];
            let (count, before) = (way.laid, way.before);
            let part = &batch[rail * POST_MAX..][..count];
            let taken = self.ring_doorbell(part);
            let youngest = part[..taken as usize].last();
            let last = youngest.map(|youngest| self.ledger.id(self.posts.slot(youngest.ticket)));
            self.abroad.ways[rail].last = last.or(before);
            posted += taken;
        }
        self.abroad.batch = batch;
        posted
    }

    /// The rail that an op's next slice goes by.
    fn choose(&mut self, slot: u32) -> Result<u16, Hold> {
        let record = &self.ledger[slot];
        let next = self.next_slice(record);
        if !self.admits_high(slot, next.bytes) {
            return Err(Hold::Cap);
        }
        if record.returned == NIL && !self.posts.spare() {
            return Err(Hold::Card(WAIT_FABRIC));
        }
        let line = record.line;
        let (enters, internal) = (record.in_fabric == 0, record.origin != 0);
        let ask = Ask { bytes: next.bytes, enters, internal };
        // Slices of it are under way, by one rail.
        let chained = next.told && record.in_fabric > 0;
        let set = self.abroad.set(line);
        let its_own = if is_atomic(&record.op) {
            Some(lead_of(set))
        } else if chained {
            Some(record.rail)
        } else {
            None
        };
        // More of what was laid in this turn goes the same way, so that what a device does not take
        // is taken back in order.
        let again = record.laid_turn == self.this_turn() && record.returned == NIL;
        let Some(rail) = its_own.or_else(|| again.then_some(record.rail)) else {
            return self.choose_any(slot, &next, ask);
        };
        let way = &self.abroad.ways[usize::from(rail)];
        let open = self.openings(line);
        let broken = chained && self.abroad.last(rail) != Some(record.id());
        let hold = if open.takes >> rail & 1 == 0 {
            Hold::Line(WAIT_RAIL)
        } else if broken {
            return Err(Hold::Rail(rail, WAIT_FABRIC));
        } else if next.notifies && !way.has_credit() {
            Hold::Credit
        } else if let Err(wait) = self.abroad.peer_admits(line, ask) {
            Hold::Line(wait)
        } else if let Err(hold) = self.admitted_by(slot, way.card, ask) {
            hold
        } else {
            return Ok(rail);
        };
        Err(match (its_own, hold) {
            (Some(rail), Hold::Line(wait)) if set.count_ones() > 1 => Hold::Rail(rail, wait),
            (Some(rail), Hold::Credit) if set.count_ones() > 1 => Hold::Rail(rail, WAIT_CREDIT),
            (_, hold) => hold,
        })
    }

    /// Of the rails that may take it, the one that will be done with it first, by what is in flight
    /// and how fast that goes; in turn among equals.
    fn choose_any(&mut self, slot: u32, next: &Next, ask: Ask) -> Result<u16, Hold> {
        let line = self.ledger[slot].line;
        self.abroad.peer_admits(line, ask).map_err(Hold::Line)?;
        let open = self.openings(line);
        let (mut rails, mut len) = ([0; SET_MAX], 0);
        for rail in each_bit(self.abroad.set(line)) {
            rails[len] = rail;
            len += 1;
        }
        let from = self.abroad.turn(line);
        let (mut best, mut poor, mut refused) = (None, false, None);
        for step in 1..=len {
            let at = (from + step) % len;
            let rail = rails[at];
            if (open.takes & !open.shunned) >> rail & 1 == 0 {
                continue;
            }
            let way = &self.abroad.ways[usize::from(rail)];
            if next.notifies && !way.has_credit() {
                poor = true;
                continue;
            }
            if let Err(hold) = self.admitted_by(slot, way.card, ask) {
                refused = Some(hold);
                continue;
            }
            let burden = self.abroad.burden(rail, next.bytes);
            if best.is_none_or(|(_, least)| burden.lighter(least)) {
                best = Some((at, burden));
            }
        }
        let Some((at, _)) = best else {
            return Err(match refused {
                Some(hold) => hold,
                None if poor => Hold::Credit,
                None => Hold::Line(WAIT_RAIL),
            });
        };
        self.abroad.set_turn(line, at);
        Ok(rails[at])
    }

    /// Whether a card's window has room for an op, and keeps it for nobody else.
    fn admitted_by(&self, slot: u32, card: u8, ask: Ask) -> Result<(), Hold> {
        let card = &self.abroad.cards[usize::from(card)];
        let kept =
            |other: u32| other != slot && self.ledger[other].class <= self.ledger[slot].class;
        if card.reserved.is_some_and(|(other, _)| kept(other)) {
            return Err(Hold::Kept);
        }
        card.window.admits(ask).map_err(Hold::Card)
    }

    /// Lays the next slice of an op for its rail.
    pub(super) fn post_abroad(&mut self, slot: u32, rail: u16, round: &mut Round) {
        let record = &mut self.ledger[slot];
        let id = record.id();
        let chained = record.state == State::Posted && self.abroad.last(rail) == Some(id);
        record.rail = rail;
        let again = record.returned != NIL;
        let rides = record.ties & TIE_RIDES != 0;
        let class_only = record.aside != Aside::No || rides;
        let next = self.next_slice(&self.ledger[slot]);
        let record = &mut self.ledger[slot];
        let (enters, internal) = (record.in_fabric == 0, record.origin != 0);
        let ask = Ask { bytes: next.bytes, enters, internal };
        let Some(grant) = self.abroad.take(record, rail, ask) else {
            unreachable!("a window that admits takes");
        };
        if class_only {
            self.abroad.queue.charge_aside(&self.ledger, slot, next.bytes);
        } else {
            self.abroad.queue.charge(&self.ledger, slot, next.bytes);
        }
        let place = usize::from(rail) * POST_MAX + self.abroad.ways[usize::from(rail)].laid;
        let mut request = Request::NONE;
        if again {
            self.lay_again(slot, &mut request, grant);
        } else {
            self.ledger[slot].laid_turn = self.this_turn();
            self.lay_slice::<true>(slot, &mut request, next.bytes, grant);
        }
        request.rail = rail;
        if rides || next.told && chained {
            request.flags |= REQUEST_CHAIN;
        }
        if next.notifies {
            request.flags |= REQUEST_NOTIFY;
        }
        request.immediate = self.ledger[slot].op.immediate;
        self.abroad.batch[place] = request;
        self.abroad.set_last(rail, Some(id));
        self.abroad.laid |= 1 << rail;
        round.laid += u64::from(next.bytes);
        let way = &mut self.abroad.ways[usize::from(rail)];
        way.laid += 1;
        way.room.requests = way.room.requests.saturating_sub(1);
        way.room.notifies = way.room.notifies.saturating_sub(u32::from(next.notifies));
        let card = self.abroad.card(rail);
        card.reserved = card.reserved.filter(|(other, _)| *other != slot);
        card.posted = true;
        let line = self.ledger[slot].line;
        if self.openings(line).takes == 0 {
            round.open &= !(1 << line);
        }
    }

    /// True if an op may go behind another that a rail has taken just before.
    pub(super) fn admits_ride(&self, slot: u32, line: u16, rail: u16) -> bool {
        let record = &self.ledger[slot];
        let op = &record.op;
        let way = &self.abroad.ways[usize::from(rail)];
        let ask = Ask { bytes: op.bytes, enters: true, internal: record.origin != 0 };
        let told =
            op.flags & SQE_NOTIFY != 0 && self.regions[op.target as usize].kind != RegionKind::Own;
        self.openings(line).takes >> rail & 1 != 0
            && !way.dead()
            && (!told || way.has_credit())
            && (!is_atomic(op) || rail == lead_of(self.abroad.set(line)))
            && self.posts.spare()
            && self.admits_high(slot, op.bytes)
            && self.abroad.peer_admits(line, ask).is_ok()
            && self.admitted_by(slot, way.card, ask).is_ok()
    }

    /// What an op posts next: what was handed back, or the slice after its last.
    fn next_slice(&self, record: &Record) -> Next {
        let op = &record.op;
        let (page, cursor, bytes) = if record.returned == NIL {
            let bytes = (op.bytes - record.cursor).min(self.abroad.slice(record.line));
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
        let record = &self.ledger[slot];
        self.held[1] = Some(record.class);
        if record.wait != wait {
            self.defer(slot, wait);
        }
    }

    /// Has ops looked through for those whose region is gone: a rail that takes nothing would not
    /// find them, and those that wait for others may wait for who waits for them: for a REVOKE.
    pub(super) fn purge(&mut self) {
        let mut rings = self.rings.iter().flatten();
        let waits = self.edges.in_use() > 0 || rings.any(|ring| ring.ties.drains > 0);
        if waits || self.abroad.queued() != 0 {
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
            let waits = record.state == State::Waiting && record.op.target != NIL;
            if !(queued || waits) || record.checked == self.withdrawn {
                continue;
            }
            if waits {
                if let Some(failure) = self.gone(slot) {
                    self.withdraw(slot, failure);
                }
                continue;
            }
            if let Some(failure) = self.spoiled(slot) {
                self.ledger[slot].failure = Some(failure);
                self.settle_head(slot);
            } else {
                self.divert(slot);
            }
        }
        // What was withdrawn meanwhile has set it back to the start.
        if self.abroad.purge == Some(from) {
            self.abroad.purge = (end < self.ledger.capacity()).then_some(end);
        }
        if self.abroad.purge.is_none() {
            self.end_clear();
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
            || each_bit(abroad.queued()).any(|line| self.line_busy(line))
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
        let queued = self.abroad.queue.queued() >> line & 1 != 0;
        let aside = || self.abroad.first_aside(&self.ledger, line, open, None).is_some();
        open.any() && (queued || aside())
    }

    /// True if a ring that is wound up has more to do than to wait for ops.
    fn winds(&self, id: u32) -> bool {
        self.rings[id as usize].as_ref().is_none_or(|ring| {
            let seen = matches!(ring.phase, Phase::Winding { cursor: NIL, .. });
            !seen || ring.ops.is_empty()
        })
    }
}
