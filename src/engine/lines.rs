//! Lines of ops that wait for rails, one for each set of rails that lead to the same place.
//!
//! One scheduler has the ops of all lines: classes, users and sessions share all cards together,
//! and a flow whose line takes nothing is parked. Which rail of its line an op's next slice goes by
//! is decided when it goes. Ops step aside from the scheduler that others are to pass by: those
//! that lack only a credit for their notification, those that one rail alone may take, and those
//! of which a failed rail has handed something back. These go before what was never posted.
//!
//! **Windows**: a card's, over all its rails, and a line's, towards its peer. An op counts among
//! those in flight on the card that took its first request, until none is in flight.
//!
//! **Invariants**: an op is queued in the scheduler or in one list of its line; the sets of two
//! lines with ops have no rail in common; what windows have given is what the fabric has.

use crate::abi::{Class, Opcode, SQE_NOTIFY, WAIT_PEER};
use crate::fabric::Fabric;
use crate::fabric::{Arrival, Request, Room, Stop};
use crate::ids::{RecordId, SessionId};
use crate::ledger::{Aside, Ledger, Op, Record};
use crate::sched::credits::{Ask, Grant, Window};
use crate::sched::lanes::Lanes;
use crate::sched::pace::{Pace, REQUEST_BYTES};
use crate::sched::policy::{Bounds, Contract, Mode, Policy};
use crate::sched::{Scheduler, Shape};

use super::rails::POST_MAX;
use super::tables::{Region, RegionKind};

/// Most rails: sets of them are a word.
pub(super) const RAILS_MAX: u16 = 64;

/// Most rails of one set.
pub(super) const SET_MAX: usize = 8;

/// Most cards.
pub(super) const CARDS_MAX: usize = 4;

/// Slices for peers are never smaller, unless they have to be. What the requests cost beside their
/// bytes (`REQUEST_BYTES`) then is an eighth at most, on a slow device too.
const SLICE_MIN: u32 = 8 * REQUEST_BYTES;

/// Notifications of peers that are heard in one turn.
const ARRIVALS_PER_TURN: usize = 64;

/// What the engine keeps of its rails to peers.
#[derive(Debug)]
pub(super) struct Abroad {
    /// Ops of all lines that have not stepped aside.
    pub(super) queue: Scheduler,
    /// By the lowest rail of their set; the first rail's is never used.
    lines: Box<[Line]>,
    /// By rail.
    pub(super) ways: Box<[Way]>,
    pub(super) cards: Box<[Card]>,
    /// Lines with ops that have stepped aside, and rails with requests in the fabric, a bit each.
    pub(super) aside: u64,
    pub(super) flying: u64,
    /// Lines that have ops, and have had no rail that works for a while.
    pub(super) cut_off: u64,
    /// Next record to look at for ops whose region is gone.
    pub(super) purge: Option<u32>,
    /// Who waits for the end of such a look that was begun since: tokens.
    pub(super) clearing: Vec<u64>,
    /// Notifications heard in this turn.
    pub(super) arrived: Vec<Arrival>,
    /// A FLUSH has moved, or an op has ended, in this turn.
    pub(super) moved: bool,
    /// What is laid for rails in this turn, and for which, a bit each.
    pub(super) batch: Box<[Request]>,
    pub(super) laid: u64,
}

/// Ops to one place.
#[derive(Debug)]
struct Line {
    /// The rails that lead there, a bit each.
    set: u64,
    /// Ops of which a failed rail has handed something back.
    returned: Lanes,
    /// Ops that lack a credit for their notification.
    starved: Lanes,
    /// Ops that have stepped aside.
    aside: u32,
    /// Towards its peer, over all its rails.
    window: Window,
    /// The rail that took something last, by its place in the set.
    turn: usize,
    /// Since when no rail of it works.
    cut_off_ns: u64,
}

/// A rail.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) card: u8,
    /// Ops of its line that no other rail may take.
    lanes: Lanes,
    /// Requests in the fabric, and their bytes.
    flying: u32,
    bytes: u64,
    /// Whose request it took last.
    pub(super) last: Option<RecordId>,
    /// What it takes in this turn, and what has been laid for it.
    pub(super) room: Room,
    pub(super) laid: usize,
    /// Whose request it took last before this turn.
    pub(super) before: Option<RecordId>,
}

/// A card, or whatever device carries rails.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) window: Window,
    pub(super) pace: Pace,
    /// The op that its window refused: what comes free is for it.
    pub(super) reserved: Option<(u32, RecordId)>,
    /// Its window has refused something in this turn.
    pub(super) full: bool,
    /// The op that it is reserved for has asked again.
    pub(super) asked: bool,
    /// It had nothing in flight when this turn's posts began, and it is posted to in this turn.
    pub(super) idle: bool,
    pub(super) posted: bool,
    /// Requests that have ended since the pace was told, and their bytes.
    ended: (u32, u64),
}

/// What is in flight by a card and by a rail of it, and the card's rate.
///
/// Its card's counts, since all its rails share one wire; the rail's own does once more, since the
/// way from there to the peer may be slower.
#[derive(Clone, Copy, Debug)]
pub(super) struct Burden {
    /// Bytes; a request counts for some as well.
    bytes: u64,
    /// Measured bytes a second; 0 if it is not known.
    rate: u64,
}

impl Burden {
    /// It will be over earlier. A card of which nothing was measured passes for as fast as the
    /// other: so it is used, and measured.
    pub(super) fn lighter(self, other: Self) -> bool {
        let (mine, theirs) = match (self.rate, other.rate) {
            (0, _) | (_, 0) => (1, 1),
            rates => rates,
        };
        u128::from(self.bytes) * u128::from(theirs) < u128::from(other.bytes) * u128::from(mine)
    }
}

impl Way {
    /// Something of it is in the fabric.
    pub(super) fn flies(&self) -> bool {
        self.flying > 0
    }

    /// Its peer is gone: it takes everything, and ends it at once.
    pub(super) fn dead(&self) -> bool {
        self.room.stop == Some(Stop::Dead)
    }

    pub(super) fn has_credit(&self) -> bool {
        self.room.notifies > 0 || self.dead()
    }
}

impl Abroad {
    /// The lines of all rails but the first; nothing if there is only that.
    pub(super) fn new<F: Fabric>(
        fabric: &F,
        sessions: u32,
        slice_bytes: u32,
        policy: &Policy,
    ) -> Self {
        let rails = fabric.rails();
        assert!(rails <= RAILS_MAX, "more rails than a word has bits");
        let several = rails > 1;
        let direct = policy.mode == Mode::Direct;
        let (card, peer) =
            if direct { (Bounds::NONE, Bounds::NONE) } else { (policy.card, policy.peer) };
        let (reserve_ops, reserve_bytes) =
            if direct { (0, 0) } else { (policy.reserve_ops, policy.reserve_bytes) };
        let line = |rail| Line {
            set: 1_u64 << rail,
            returned: Lanes::default(),
            starved: Lanes::default(),
            aside: 0,
            window: Window::new(peer),
            turn: 0,
            cut_off_ns: 0,
        };
        let way = |rail| Way {
            card: fabric.card_of(rail),
            lanes: Lanes::default(),
            flying: 0,
            bytes: 0,
            last: None,
            room: Room { requests: 0, notifies: 0, stop: None },
            laid: 0,
            before: None,
        };
        let card = |_| Card {
            window: Window::with_reserve(card, reserve_ops, reserve_bytes),
            pace: Pace::new(slice_bytes, policy.slice_ns, SLICE_MIN),
            reserved: None,
            full: false,
            asked: false,
            idle: true,
            posted: false,
            ended: (0, 0),
        };
        let (sessions, peers) = if several { (sessions, rails) } else { (1, 1) };
        let shape = Shape { sessions, peers, window_bytes: policy.card.bytes };
        let arrivals = if several { ARRIVALS_PER_TURN } else { 0 };
        Self {
            queue: Scheduler::new(policy, shape),
            lines: if several { (0..rails).map(line).collect() } else { Box::default() },
            ways: if several { (0..rails).map(way).collect() } else { Box::default() },
            cards: if several { (0..CARDS_MAX).map(card).collect() } else { Box::default() },
            aside: 0,
            flying: 0,
            cut_off: 0,
            purge: None,
            clearing: Vec::with_capacity(usize::from(RAILS_MAX)),
            arrived: Vec::with_capacity(arrivals),
            moved: false,
            batch: vec![Request::NONE; if several { usize::from(rails) * POST_MAX } else { 0 }]
                .into(),
            laid: 0,
        }
    }

    /// Requests that all rails together hold beside the first one's.
    pub(super) fn depth<F: Fabric>(fabric: &F) -> u32 {
        (1..fabric.rails()).map(|rail| fabric.depth_of(rail)).sum()
    }

    /// A session has come.
    pub(super) fn adopt(&mut self, session: SessionId, owner: u32, contract: &Contract) {
        if !self.lines.is_empty() {
            self.queue.adopt(session, owner, contract.weight);
        }
    }

    /// Lines with ops queued, a bit each.
    #[inline]
    pub(super) fn queued(&self) -> u64 {
        self.queue.queued() | self.aside
    }

    /// From now on these rails lead to one place.
    ///
    /// # Panics
    /// If they do not follow the rule of sets: equal or disjoint, as long as ops use them.
    pub(super) fn join(&mut self, set: u64) {
        assert!(set.count_ones() as usize <= SET_MAX, "more rails than a set may have");
        let queued = self.queued();
        for (line, lead) in self.lines.iter_mut().zip(0..) {
            if line.set & set != 0 && line.set != set {
                assert!(queued >> lead & 1 == 0, "a rail of two sets");
                line.set = 1 << lead;
            }
        }
        self.lines[usize::from(lead_of(set))].set = set;
    }

    /// The rails of a line.
    #[inline]
    pub(super) fn set(&self, line: u16) -> u64 {
        self.lines[usize::from(line)].set
    }

    /// Queues an op behind those of its flow; false if its line is the first rail's, whose queue
    /// is the engine's.
    #[inline]
    pub(super) fn queue(&mut self, regions: &[Region], ledger: &mut Ledger, slot: u32) -> bool {
        let record = &mut ledger[slot];
        let line = line_of(regions, &record.op);
        record.line = line;
        record.rail = line;
        record.aside = Aside::No;
        if line == 0 {
            return false;
        }
        record.laid = false;
        self.queue.push(ledger, slot);
        true
    }

    /// Puts an op back before all others of its flow.
    pub(super) fn push_front(&mut self, ledger: &mut Ledger, slot: u32) {
        ledger[slot].aside = Aside::No;
        self.queue.push_front(ledger, slot);
    }

    /// Has an op wait among those of which something was handed back: first, or last.
    pub(super) fn push_returned(&mut self, ledger: &mut Ledger, slot: u32, front: bool) {
        let line = self.step_aside(ledger, slot, Aside::Returned);
        if front {
            line.returned.push_front(ledger, slot);
        } else {
            line.returned.push(ledger, slot);
        }
    }

    fn step_aside(&mut self, ledger: &mut Ledger, slot: u32, aside: Aside) -> &mut Line {
        let record = &mut ledger[slot];
        record.aside = aside;
        self.aside |= 1 << record.line;
        let line = &mut self.lines[usize::from(record.line)];
        line.aside += 1;
        line
    }

    /// Puts an op where a queued one waits, which waits no more. Line, rail, the class that they
    /// are scheduled as and what they have stepped aside for are the same of both.
    pub(super) fn replace(&mut self, ledger: &mut Ledger, slot: u32, by: u32) {
        let record = &ledger[slot];
        let line = &mut self.lines[usize::from(record.line)];
        match record.aside {
            Aside::No => self.queue.replace(ledger, slot, by),
            Aside::Returned => line.returned.replace(ledger, slot, by),
            Aside::Credit => line.starved.replace(ledger, slot, by),
            Aside::Rail => self.ways[usize::from(record.rail)].lanes.replace(ledger, slot, by),
        }
    }

    /// Looks what a rail takes, of which nothing was laid in this turn.
    pub(super) fn look_at(&mut self, rail: u16, room: Room, card: u8) {
        let way = &mut self.ways[usize::from(rail)];
        (way.room, way.laid, way.before) = (room, 0, way.last);
        if !way.flies() {
            way.card = card;
        }
    }

    /// A waiting op is of this class from now on, wherever it waits.
    pub(super) fn raise(&mut self, ledger: &mut Ledger, slot: u32, class: Class) {
        let record = &ledger[slot];
        let line = &mut self.lines[usize::from(record.line)];
        let lanes = match record.aside {
            Aside::No => {
                self.queue.remove(ledger, slot);
                ledger[slot].class = class;
                return self.queue.push(ledger, slot);
            }
            Aside::Returned => &mut line.returned,
            Aside::Credit => &mut line.starved,
            Aside::Rail => &mut self.ways[usize::from(record.rail)].lanes,
        };
        lanes.remove(ledger, slot);
        ledger[slot].rise(class);
        lanes.push(ledger, slot);
    }

    /// Takes an op out of wherever it waits.
    pub(super) fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        let record = &ledger[slot];
        let (number, rail, aside) = (record.line, record.rail, record.aside);
        let line = &mut self.lines[usize::from(number)];
        match aside {
            Aside::No => self.queue.remove(ledger, slot),
            Aside::Returned => line.returned.remove(ledger, slot),
            Aside::Credit => line.starved.remove(ledger, slot),
            Aside::Rail => self.ways[usize::from(rail)].lanes.remove(ledger, slot),
        }
        if aside != Aside::No {
            line.aside -= 1;
            if line.aside == 0 {
                self.aside &= !(1 << number);
            }
        }
        if self.queued() >> number & 1 == 0 {
            self.cut_off &= !(1 << number);
        }
    }

    /// Has an op step aside until there is credit for its notification.
    pub(super) fn starve(&mut self, ledger: &mut Ledger, slot: u32) {
        if ledger[slot].aside == Aside::Credit {
            return;
        }
        self.remove(ledger, slot);
        self.step_aside(ledger, slot, Aside::Credit).starved.push(ledger, slot);
    }

    /// Has an op step aside until one rail takes it, which alone may.
    pub(super) fn set_aside(&mut self, ledger: &mut Ledger, slot: u32, rail: u16) {
        if ledger[slot].aside == Aside::Rail {
            return;
        }
        self.remove(ledger, slot);
        ledger[slot].rail = rail;
        self.step_aside(ledger, slot, Aside::Rail);
        self.ways[usize::from(rail)].lanes.push(ledger, slot);
    }

    /// With none of it under way any rail may go on with an op that was one rail's alone.
    #[inline]
    pub(super) fn rejoin(&mut self, ledger: &mut Ledger, slot: u32) {
        let record = &ledger[slot];
        if record.aside == Aside::Rail && record.in_fabric == 0 && !is_atomic(&record.op) {
            self.remove(ledger, slot);
            self.push_front(ledger, slot);
        }
    }

    /// The op of a line to serve next among those that have stepped aside, given what its rails
    /// take; with `class` only among those of that class.
    pub(super) fn first_aside(
        &self,
        ledger: &Ledger,
        line: u16,
        open: Open,
        class: Option<Class>,
    ) -> Option<u32> {
        let line = &self.lines[usize::from(line)];
        if line.aside == 0 {
            return None;
        }
        let Open { takes, credits, .. } = open;
        let head = |lanes: &Lanes| class.map_or_else(|| lanes.first(), |class| lanes.head(class));
        let returned = if open.any() { head(&line.returned) } else { None };
        let starved = if open.credit() { head(&line.starved) } else { None };
        let alone = each_bit(line.set & takes).filter_map(|rail| {
            let way = &self.ways[usize::from(rail)];
            let slot = head(&way.lanes)?;
            let record = &ledger[slot];
            // Slices of a chain that another op has broken wait for those before them.
            let goes = record.in_fabric == 0 || way.last == Some(record.id());
            let told = record.op.flags & SQE_NOTIFY != 0;
            (goes && (!told || credits >> rail & 1 != 0)).then_some(slot)
        });
        let key = |slot: &u32| {
            let record = &ledger[*slot];
            (record.class, record.aside != Aside::Returned, record.sequence)
        };
        [returned, starved].into_iter().flatten().chain(alone).min_by_key(key)
    }

    /// Any op of a line.
    pub(super) fn any(&self, line: u16) -> Option<u32> {
        let aside = &self.lines[usize::from(line)];
        let own = [&aside.returned, &aside.starved].into_iter();
        let alone = each_bit(aside.set).map(|rail| &self.ways[usize::from(rail)].lanes);
        own.chain(alone).find_map(Lanes::first).or_else(|| self.queue.any(line))
    }

    /// Notes whether a line has a rail that works; how long it has had none, ns.
    pub(super) fn cut_off_for(&mut self, line: u16, works: bool, now_ns: u64) -> u64 {
        let bit = 1 << line;
        let since_ns = &mut self.lines[usize::from(line)].cut_off_ns;
        if works {
            self.cut_off &= !bit;
            return 0;
        }
        if self.cut_off & bit == 0 {
            self.cut_off |= bit;
            *since_ns = now_ns;
        }
        now_ns - *since_ns
    }

    /// The place in a set of the rail that took something last.
    pub(super) fn turn(&self, line: u16) -> usize {
        self.lines[usize::from(line)].turn
    }

    pub(super) fn set_turn(&mut self, line: u16, turn: usize) {
        self.lines[usize::from(line)].turn = turn;
    }

    /// Whose request a rail took last.
    pub(super) fn last(&self, rail: u16) -> Option<RecordId> {
        self.ways[usize::from(rail)].last
    }

    pub(super) fn set_last(&mut self, rail: u16, last: Option<RecordId>) {
        self.ways[usize::from(rail)].last = last;
    }

    /// The card of a rail.
    pub(super) fn card(&mut self, rail: u16) -> &mut Card {
        &mut self.cards[usize::from(self.ways[usize::from(rail)].card)]
    }

    /// Bytes of the next slice of an op of a line: what the slowest of its cards is to have.
    pub(super) fn slice(&self, line: u16) -> u32 {
        let cards = each_bit(self.set(line)).map(|rail| self.ways[usize::from(rail)].card);
        cards.map(|card| self.cards[usize::from(card)].pace.slice()).min().unwrap_or(u32::MAX)
    }

    /// Ops and bytes that a pass over the queue may bring into flight. With nothing in flight what
    /// is larger than the window goes alone.
    pub(super) fn left(&self) -> (u32, u64) {
        if self.flying == 0 {
            return (u32::MAX, u64::MAX);
        }
        let left = self.cards.iter().map(|card| card.window.left());
        left.max_by_key(|left| left.1).unwrap_or_default()
    }

    /// Whether a line's window would.
    pub(super) fn peer_admits(&self, line: u16, ask: Ask) -> Result<(), u16> {
        self.lines[usize::from(line)].window.admits(ask).map_err(|_| WAIT_PEER)
    }

    /// Takes the credits of a request that was found admissible.
    pub(super) fn take(&mut self, record: &mut Record, rail: u16, ask: Ask) -> Option<Grant> {
        let way = &mut self.ways[usize::from(rail)];
        let grant = self.cards[usize::from(way.card)].window.take(ask).ok()?;
        way.flying += 1;
        way.bytes += u64::from(ask.bytes);
        self.flying |= 1 << rail;
        self.lines[usize::from(record.line)].window.share(ask);
        if ask.enters {
            record.entered = way.card;
        }
        Some(grant)
    }

    /// Gives them back; `record` no longer counts the request among those in the fabric.
    pub(super) fn give(&mut self, record: &Record, rail: u16, grant: Grant) {
        let (leaves, internal) = (record.in_fabric == 0, record.origin != 0);
        self.lines[usize::from(record.line)].window.unshare(&grant, leaves);
        let way = &mut self.ways[usize::from(rail)];
        way.flying -= 1;
        way.bytes -= u64::from(grant.bytes());
        if way.flying == 0 {
            self.flying &= !(1 << rail);
        }
        let here = record.entered == way.card;
        self.cards[usize::from(way.card)].window.give(grant, leaves && here, internal);
        if leaves && !here {
            self.cards[usize::from(record.entered)].window.leave(internal);
        }
    }

    /// What a request of so many bytes would have to wait for, if it went by this rail.
    pub(super) fn burden(&self, rail: u16, bytes: u32) -> Burden {
        let way = &self.ways[usize::from(rail)];
        let Card { window, pace, .. } = &self.cards[usize::from(way.card)];
        let requests = u64::from(window.wrs()) + u64::from(way.flying);
        let bytes = window.bytes() + way.bytes + u64::from(bytes);
        // What was measured once may be long over: a card that has nothing to do is tried again.
        let rate = if window.wrs() == 0 { 0 } else { pace.rate() };
        Burden { bytes: bytes + requests * u64::from(REQUEST_BYTES), rate }
    }

    /// Something that went by a rail has ended. [`Abroad::pace`] follows.
    pub(super) fn ended(&mut self, rail: u16, bytes: u32) {
        let (requests, sum) = &mut self.card(rail).ended;
        (*requests, *sum) = (*requests + 1, *sum + u64::from(bytes));
    }

    /// For the measured rates of cards: so much has ended by now.
    pub(super) fn pace(&mut self, now_ns: u64) {
        for card in &mut self.cards {
            let (requests, bytes) = std::mem::take(&mut card.ended);
            if requests > 0 {
                card.pace.ended(requests, bytes, card.window.wrs() > 0, now_ns);
            }
        }
    }

    /// For the same: something was done by the time that a post returned, of what was posted at
    /// `now_ns` or before. Only of a card that alone was posted to is it known how long it took.
    pub(super) fn done_at_once(&mut self, now_ns: u64) {
        let mut posted = self.cards.iter_mut().filter(|card| card.posted);
        if let (Some(card), None) = (posted.next(), posted.next())
            && card.idle
        {
            card.pace.began(now_ns);
        }
    }

    /// Bytes that the slowest card of those with a known rate moves in a millisecond; 0 if none is
    /// known.
    pub(super) fn in_a_millisecond(&self) -> u64 {
        let rates = self.cards.iter().map(|card| card.pace.rate()).filter(|rate| *rate > 0);
        rates.min().unwrap_or(0) / 1_000
    }

    /// Nothing is kept for an op any more.
    pub(super) fn unreserve(&mut self, slot: u32) {
        for card in &mut self.cards {
            card.reserved = card.reserved.filter(|(other, _)| *other != slot);
        }
    }

    /// Lists of a line, and of the rail of the same number, with what their ops have stepped
    /// aside for.
    #[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
    pub(super) fn lanes(&self, rail: u16) -> [(&Lanes, Aside); 3] {
        let line = &self.lines[usize::from(rail)];
        [
            (&line.returned, Aside::Returned),
            (&line.starved, Aside::Credit),
            (&self.ways[usize::from(rail)].lanes, Aside::Rail),
        ]
    }

    /// The card of a rail, to be looked at.
    pub(super) fn card_of(&self, rail: u16) -> &Card {
        &self.cards[usize::from(self.ways[usize::from(rail)].card)]
    }

    /// Requests of a rail in the fabric.
    pub(super) fn flying_on(&self, rail: u16) -> u32 {
        self.ways[usize::from(rail)].flying
    }

    /// The window of a line.
    pub(super) fn peer_window(&self, line: u16) -> &Window {
        &self.lines[usize::from(line)].window
    }
}

/// Rails of a line that take something, a bit each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Open {
    /// All that do. One that is over does, to end at once what no other rail may take.
    pub(super) takes: u64,
    /// Of these, those that have credit.
    pub(super) credits: u64,
    /// Those that what any rail may take does not go by: they are over, and others are not.
    pub(super) shunned: u64,
}

impl Open {
    /// What any rail may take has one to go by.
    pub(super) fn any(self) -> bool {
        self.takes & !self.shunned != 0
    }

    /// And there is credit for it.
    fn credit(self) -> bool {
        self.credits & !self.shunned != 0
    }
}

/// True if a rail neither takes anything nor is about to.
pub(super) fn closed(stop: Option<Stop>) -> bool {
    use Stop::{Connecting, Degraded, Paused, Rebuilding};
    matches!(stop, Some(Connecting | Degraded | Rebuilding | Paused))
}

/// True if it is an atomic, which is carried out in one place only.
pub(super) fn is_atomic(op: &Op) -> bool {
    matches!(op.opcode, Opcode::FetchAdd | Opcode::CmpSwap)
}

/// The set of all rails to peers, if there are so many rails.
pub(super) fn rails_below(count: u16) -> u64 {
    u64::MAX.checked_shl(count.into()).map_or(u64::MAX, |above| !above) & !1
}

/// The rails of a set, lowest first.
pub(super) fn each_bit(mut set: u64) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let rail = u16::try_from(set.trailing_zeros()).ok().filter(|_| set != 0)?;
        set &= set - 1;
        Some(rail)
    })
}

/// The line of a set: its lowest rail.
pub(super) fn lead_of(set: u64) -> u16 {
    u16::try_from(set.trailing_zeros()).unwrap_or(0)
}

/// The line that an op waits in: its import's, by class; an atomic's is where its region has them.
#[inline]
pub(super) fn line_of(regions: &[Region], op: &Op) -> u16 {
    match regions[op.import as usize].kind {
        RegionKind::Peer { rails, .. } => lead_of(rails[op.class.index()]),
        _ if is_atomic(op) => regions[op.target as usize].home,
        _ => 0,
    }
}
