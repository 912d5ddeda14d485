//! Lines of ops that wait for rails, one for each set of rails that lead to the same place.
//!
//! An op waits in the line of its set until it is posted, whole or slice by slice; which rail takes
//! it is decided then. Within a line the most urgent class goes first, and within a class whoever
//! came first; but what a failed rail has handed back goes before what was never posted. Ops step
//! aside that others are to pass by: those that lack only a credit for their notification, and
//! those that one rail alone may take.
//!
//! **Invariants**: an op is queued in one line, in one set of lanes; the sets of two lines with ops
//! have no rail in common; what a rail's window has taken is what the fabric has of it.

use crate::abi::{Opcode, SQE_NOTIFY};
use crate::fabric::Fabric;
use crate::fabric::{Arrival, Stop};
use crate::ids::RecordId;
use crate::ledger::{Aside, Ledger, Op};
use crate::sched::credits::{Grant, Window};
use crate::sched::lanes::Lanes;

use super::tables::{Region, RegionKind};

/// Most rails: sets of them are a word.
pub(super) const RAILS_MAX: u16 = 64;

/// Most rails of one set.
pub(super) const SET_MAX: usize = 8;

/// Notifications of peers that are heard in one turn.
const ARRIVALS_PER_TURN: usize = 64;

/// What the engine keeps of its rails to peers.
#[derive(Debug)]
pub(super) struct Abroad {
    /// By the lowest rail of their set; the first rail's is never used.
    lines: Box<[Line]>,
    /// By rail.
    ways: Box<[Way]>,
    /// Lines with ops queued, and rails with requests in the fabric, a bit each.
    pub(super) queued: u64,
    pub(super) flying: u64,
    /// Lines that have ops, and have had no rail that works for a while.
    pub(super) cut_off: u64,
    /// Next record to look at for ops whose region is gone.
    pub(super) purge: Option<u32>,
    /// Notifications heard in this turn.
    pub(super) arrived: Vec<Arrival>,
    /// A FLUSH has moved, or an op has ended, in this turn.
    pub(super) moved: bool,
}

/// Ops to one place.
#[derive(Debug)]
struct Line {
    /// The rails that lead there, a bit each.
    set: u64,
    lanes: Lanes,
    /// Ops of which a failed rail has handed something back.
    returned: Lanes,
    /// Ops that lack a credit for their notification.
    starved: Lanes,
    /// Ops that have stepped aside, in all lanes but the first.
    aside: u32,
    /// The rail that took something last, by its place in the set.
    turn: usize,
    /// Since when no rail of it works.
    cut_off_ns: u64,
}

/// A rail.
#[derive(Debug)]
struct Way {
    /// Ops of its line that no other rail may take.
    lanes: Lanes,
    window: Window,
    /// Whose request it took last.
    last: Option<RecordId>,
}

impl Abroad {
    /// The lines of all rails but the first; nothing if there is only that.
    pub(super) fn new<F: Fabric>(fabric: &F, window_bytes: u64) -> Self {
        let rails = fabric.rails();
        assert!(rails <= RAILS_MAX, "more rails than a word has bits");
        let line = |rail| Line {
            set: 1_u64 << rail,
            lanes: Lanes::default(),
            returned: Lanes::default(),
            starved: Lanes::default(),
            aside: 0,
            turn: 0,
            cut_off_ns: 0,
        };
        let way = |rail| Way {
            lanes: Lanes::default(),
            window: Window::new(fabric.depth_of(rail), window_bytes),
            last: None,
        };
        let several = rails > 1;
        let arrivals = if several { ARRIVALS_PER_TURN } else { 0 };
        Self {
            lines: if several { (0..rails).map(line).collect() } else { Box::default() },
            ways: if several { (0..rails).map(way).collect() } else { Box::default() },
            queued: 0,
            flying: 0,
            cut_off: 0,
            purge: None,
            arrived: Vec::with_capacity(arrivals),
            moved: false,
        }
    }

    /// Requests that all rails together hold beside the first one's.
    pub(super) fn depth<F: Fabric>(fabric: &F) -> u32 {
        (1..fabric.rails()).map(|rail| fabric.depth_of(rail)).sum()
    }

    /// From now on these rails lead to one place.
    ///
    /// # Panics
    /// If they do not follow the rule of sets: equal or disjoint, as long as ops use them.
    pub(super) fn join(&mut self, set: u64) {
        assert!(set.count_ones() as usize <= SET_MAX, "more rails than a set may have");
        for (line, lead) in self.lines.iter_mut().zip(0..) {
            if line.set & set != 0 && line.set != set {
                assert!(self.queued >> lead & 1 == 0, "a rail of two sets");
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

    /// Queues an op behind those of its class in its line; false if that is the first rail's,
    /// whose lanes are the engine's.
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
        self.lines[usize::from(line)].lanes.push(ledger, slot);
        self.queued |= 1 << line;
        true
    }

    /// Puts an op back before all others of its class in its line.
    pub(super) fn push_front(&mut self, ledger: &mut Ledger, slot: u32) {
        let record = &mut ledger[slot];
        record.aside = Aside::No;
        let line = record.line;
        self.lines[usize::from(line)].lanes.push_front(ledger, slot);
        self.queued |= 1 << line;
    }

    /// [`Abroad::push_front`] among those of which something was handed back; or behind them.
    pub(super) fn push_returned(&mut self, ledger: &mut Ledger, slot: u32, front: bool) {
        let record = &mut ledger[slot];
        record.aside = Aside::Returned;
        let line = record.line;
        self.queued |= 1 << line;
        let line = &mut self.lines[usize::from(line)];
        line.aside += 1;
        if front {
            line.returned.push_front(ledger, slot);
        } else {
            line.returned.push(ledger, slot);
        }
    }

    /// Takes an op out of its line.
    pub(super) fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        let record = &ledger[slot];
        let (number, rail, aside) = (record.line, record.rail, record.aside);
        let line = &mut self.lines[usize::from(number)];
        line.aside -= u32::from(aside != Aside::No);
        match aside {
            Aside::No => &mut line.lanes,
            Aside::Returned => &mut line.returned,
            Aside::Credit => &mut line.starved,
            Aside::Rail => &mut self.ways[usize::from(rail)].lanes,
        }
        .remove(ledger, slot);
        let line = &self.lines[usize::from(number)];
        if line.aside == 0 && line.lanes.is_empty() {
            self.queued &= !(1 << number);
            self.cut_off &= !(1 << number);
        }
    }

    /// Has an op step aside until there is credit for its notification.
    pub(super) fn starve(&mut self, ledger: &mut Ledger, slot: u32) {
        if ledger[slot].aside == Aside::Credit {
            return;
        }
        self.remove(ledger, slot);
        let record = &mut ledger[slot];
        record.aside = Aside::Credit;
        let number = record.line;
        self.queued |= 1 << number;
        let line = &mut self.lines[usize::from(number)];
        line.aside += 1;
        line.starved.push(ledger, slot);
    }

    /// Has an op step aside until one rail takes it, which alone may.
    pub(super) fn set_aside(&mut self, ledger: &mut Ledger, slot: u32, rail: u16) {
        if ledger[slot].aside == Aside::Rail {
            return;
        }
        self.remove(ledger, slot);
        let record = &mut ledger[slot];
        (record.aside, record.rail) = (Aside::Rail, rail);
        let number = record.line;
        self.queued |= 1 << number;
        self.lines[usize::from(number)].aside += 1;
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

    /// The op of a line to serve next, given what its rails take.
    #[inline]
    pub(super) fn first(&self, ledger: &Ledger, line: u16, open: Open) -> Option<u32> {
        let line = &self.lines[usize::from(line)];
        if line.aside == 0 {
            return line.lanes.first();
        }
        self.first_of_all(ledger, line, open)
    }

    fn first_of_all(&self, ledger: &Ledger, line: &Line, open: Open) -> Option<u32> {
        let Open { takes, credits, .. } = open;
        let starved = if open.credit() { line.starved.first() } else { None };
        let alone = each_bit(line.set & takes).filter_map(|rail| {
            let way = &self.ways[usize::from(rail)];
            let slot = way.lanes.first()?;
            let record = &ledger[slot];
            // Slices of a chain that another op has broken wait for those before them.
            let goes = record.in_fabric == 0 || way.last == Some(record.id());
            let told = record.op.flags & SQE_NOTIFY != 0;
            (goes && (!told || credits >> rail & 1 != 0)).then_some(slot)
        });
        let key = |slot: &u32| {
            let record = &ledger[*slot];
            (record.op.class, record.aside != Aside::Returned, record.sequence)
        };
        let own = [line.returned.first(), starved, line.lanes.first()];
        own.into_iter().flatten().chain(alone).min_by_key(key)
    }

    /// Any op of a line.
    pub(super) fn any(&self, line: u16) -> Option<u32> {
        let line = &self.lines[usize::from(line)];
        let own = [&line.returned, &line.lanes, &line.starved].into_iter();
        let alone = each_bit(line.set).map(|rail| &self.ways[usize::from(rail)].lanes);
        own.chain(alone).find_map(Lanes::first)
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

    pub(super) fn window(&self, rail: u16) -> &Window {
        &self.ways[usize::from(rail)].window
    }

    pub(super) fn take(&mut self, rail: u16, bytes: u32) -> Result<Grant, u16> {
        let grant = self.ways[usize::from(rail)].window.take(bytes)?;
        self.flying |= 1 << rail;
        Ok(grant)
    }

    pub(super) fn give(&mut self, rail: u16, grant: Grant) {
        let window = &mut self.ways[usize::from(rail)].window;
        window.give(grant);
        if window.ops() == 0 {
            self.flying &= !(1 << rail);
        }
    }

    /// Lanes of a line, and of the rail of the same number, with what their ops have stepped
    /// aside for.
    #[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
    pub(super) fn lanes(&self, rail: u16) -> [(&Lanes, Aside); 4] {
        let line = &self.lines[usize::from(rail)];
        [
            (&line.lanes, Aside::No),
            (&line.returned, Aside::Returned),
            (&line.starved, Aside::Credit),
            (&self.ways[usize::from(rail)].lanes, Aside::Rail),
        ]
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
fn lead_of(set: u64) -> u16 {
    u16::try_from(set.trailing_zeros()).unwrap_or(0)
}

/// The line that an op waits in: its import's, by class; an atomic's is where its region has them.
#[inline]
fn line_of(regions: &[Region], op: &Op) -> u16 {
    match regions[op.import as usize].kind {
        RegionKind::Peer { rails, .. } => lead_of(rails[op.class.index()]),
        _ if is_atomic(op) => regions[op.target as usize].home,
        _ => 0,
    }
}
