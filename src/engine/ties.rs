//! What a ring remembers of its SQEs, so that later ones can name them by distance; and what the
//! SQE at its head is tied to.
//!
//! The history has an entry for each of the last 32,768 SQEs: where its record was, that it failed
//! and of what, that it had no record, or that it was an ARM. An entry that names a record is true
//! as long as that record is open and has the SQE's number: so a success, which is nearly every
//! end, writes nothing.
//!
//! An edge that others imply (X behind Y and Z, Y behind Z) is wired all the same: Y may be taken
//! back while it waits, and X is to wait for Z then, too.

use crate::abi::{
    Class, Detail, EDGE_ORDER_ONLY, Opcode, SQE_DRAIN, SQE_HARDLINK, SQE_LINK, Sqe, errno,
};
use crate::edges::Cause;
use crate::ids::RingId;
use crate::ledger::{Failure, Ledger, NIL, State, TIE_LINK, TIE_ORDER};

/// SQEs of a ring whose outcome is remembered.
pub(super) const HISTORY: usize = 1 << 15;

/// An SQE is not taken while one that is so far back is not over.
pub(super) const FARTHEST: u64 = HISTORY as u64 - 1;

/// Edges of a JOIN; any other op has the first two.
pub(super) const EDGES_MAX: u32 = 10;

/// Most that one op waits for: its edges, a link, and a DRAIN.
pub(super) const LIVE_MAX: u32 = EDGES_MAX + 2;

const FAILED: u32 = 1 << 31;
const ARM: u32 = 1 << 30;
const OVER: u32 = 1 << 29;

/// What a ring's later SQEs depend on.
#[derive(Debug)]
pub(super) struct Ties {
    history: Box<[u32; HISTORY]>,
    /// `TIE_LINK` or `TIE_ORDER`: how the next SQE is tied to the last one, if it is.
    link: u8,
    /// The number of the youngest DRAIN, and whether it may still be under way.
    drain: Option<u64>,
    /// DRAINs that wait for all before them.
    pub(super) drains: u32,
    /// Its edges in the pool.
    pub(super) edges: u32,
    /// The first of its ops that may be something else than an ARM; NIL if that is not known.
    pub(super) first: u32,
    /// It is on the list of rings whose DRAINs are to be looked at.
    pub(super) due: bool,
}

/// Where a predecessor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Over(Option<Cause>),
    Live(u32),
    Arm,
}

/// What an SQE is to wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    live: [(u32, bool); LIVE_MAX as usize],
    count: u32,
    /// It has edges, or follows a link or a DRAIN.
    pub(super) tied: bool,
    /// A predecessor is over that failed.
    pub(super) cause: Option<Cause>,
    /// `TIE_*` bits of the record.
    pub(super) ties: u8,
}

impl Plan {
    pub(super) const NONE: Self = Self {
        live: [(NIL, false); LIVE_MAX as usize],
        count: 0,
        tied: false,
        cause: None,
        ties: 0,
    };

    /// Nothing is waited for.
    #[inline]
    fn clear(&mut self) {
        (self.count, self.tied, self.cause, self.ties) = (0, false, None, 0);
    }

    /// Who is waited for, and whether for the order only.
    #[inline]
    pub(super) fn live(&self) -> &[(u32, bool)] {
        &self.live[..self.count as usize]
    }

    /// True if somebody whom it waits for is to rise to its class.
    #[inline]
    pub(super) fn lifts(&self, ledger: &Ledger, class: Class) -> bool {
        self.live().iter().any(|&(slot, _)| ledger[slot].class > class)
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// One edge for each predecessor; it carries failure if any of them does.
    #[inline]
    fn add(&mut self, before: Before, order_only: bool) -> Result<(), Failure> {
        match before {
            Before::Arm => return Err(bad_edges()),
            Before::Over(cause) => {
                self.cause = self.cause.or_else(|| cause.filter(|_| !order_only));
            }
            Before::Live(slot) => {
                for (other, only) in &mut self.live[..self.count as usize] {
                    if *other == slot {
                        *only &= order_only;
                        return Ok(());
                    }
                }
                self.live[self.count as usize] = (slot, order_only);
                self.count += 1;
            }
        }
        Ok(())
    }
}

#[cold]
fn bad_edges() -> Failure {
    Failure { errno: errno::EINVAL, detail: Detail::Edges as u16, flags: 0 }
}

/// `TIE_LINK` or `TIE_ORDER`, by an SQE's flags.
#[inline]
fn link_of(flags: u16) -> u8 {
    if flags & SQE_HARDLINK != 0 {
        TIE_ORDER
    } else if flags & SQE_LINK != 0 {
        TIE_LINK
    } else {
        0
    }
}

/// The edges of a JOIN beside the two that every SQE has.
pub(super) fn join_edges(arg: [u64; 2]) -> impl Iterator<Item = u16> {
    arg.into_iter().flat_map(|word| (0..4).map(move |at| (word >> (16 * at) & 0xffff) as u16))
}

impl Ties {
    pub(super) fn new() -> Self {
        Self {
            // It is too large for a stack.
            history: vec![0; HISTORY].try_into().unwrap_or_else(|_| unreachable!("so many")),
            link: 0,
            drain: None,
            drains: 0,
            edges: 0,
            first: NIL,
            due: false,
        }
    }

    #[inline]
    fn place(number: u64) -> usize {
        // What is left is below the number of entries, whatever the host's word.
        usize::try_from(number % HISTORY as u64).unwrap_or(0)
    }

    /// True if the next SQE is tied to the last, or may be to a DRAIN.
    #[inline]
    pub(super) fn bound(&self) -> bool {
        self.link != 0 || self.drain.is_some()
    }

    /// An SQE was taken, into this record.
    #[inline]
    pub(super) fn took(&mut self, number: u64, slot: u32) {
        self.history[Self::place(number)] = slot;
    }

    /// The SQE that was just taken had these flags. Without it nothing is linked.
    #[inline]
    pub(super) fn link(&mut self, flags: u16) {
        self.link = link_of(flags);
    }

    /// A NOP was taken that ended where it began.
    #[inline]
    pub(super) fn passed(&mut self, number: u64) {
        self.history[Self::place(number)] = OVER;
    }

    /// The rest of what is to be known of an SQE that was taken, and is no plain one.
    pub(super) fn took_rare(&mut self, number: u64, opcode: Opcode, flags: u16) {
        if opcode == Opcode::Arm {
            self.history[Self::place(number)] = ARM;
        }
        if flags & SQE_DRAIN != 0 {
            self.drain = Some(number);
        }
    }

    /// An SQE was refused: whoever depends on it fails.
    pub(super) fn refused(&mut self, number: u64, flags: u16, failure: Failure) {
        self.link = link_of(flags);
        self.failed(number, cause_of(failure));
    }

    /// An op has failed.
    pub(super) fn failed(&mut self, number: u64, Cause { errno, detail }: Cause) {
        let detail = u32::from(detail) & 0xffff;
        self.history[Self::place(number)] = FAILED | u32::from(errno) << 16 | detail;
    }

    /// What became of an SQE.
    #[inline]
    pub(super) fn before(&self, ledger: &Ledger, ring: RingId, number: u64) -> Before {
        let entry = self.history[Self::place(number)];
        if entry & FAILED != 0 {
            let [low, high, errno, _] = entry.to_le_bytes();
            return Before::Over(Some(Cause { errno, detail: u16::from_le_bytes([low, high]) }));
        }
        match entry {
            ARM => return Before::Arm,
            OVER => return Before::Over(None),
            _ => {}
        }
        let record = &ledger[entry];
        let live = record.number == number && record.ring == ring && record.state != State::Free;
        if live { Before::Live(entry) } else { Before::Over(None) }
    }

    /// The edges that an SQE names itself.
    #[inline]
    fn plan_edge(
        &self,
        plan: &mut Plan,
        (ledger, ring, number): (&Ledger, RingId, u64),
        edge: u16,
    ) -> Result<(), Failure> {
        if edge == 0 {
            return Ok(());
        }
        let distance = u64::from(edge & !EDGE_ORDER_ONLY);
        if distance == 0 || distance > number {
            return Err(bad_edges());
        }
        plan.tied = true;
        plan.add(self.before(ledger, ring, number - distance), edge & EDGE_ORDER_ONLY != 0)
    }

    /// What the SQE with this number, the next to be taken, is to wait for, or why that cannot be.
    /// It is written in place: handed on by value it costs more than to find out.
    #[inline]
    pub(super) fn plan(
        &mut self,
        plan: &mut Plan,
        next: (&Ledger, RingId, u64),
        sqe: &Sqe,
    ) -> Result<(), Failure> {
        plan.clear();
        self.plan_all(plan, next, sqe)?;
        if self.drain.is_some_and(|drain| !self.is_live(next.0, next.1, drain)) {
            self.drain = None;
        }
        Ok(())
    }

    #[inline]
    fn plan_all(
        &self,
        plan: &mut Plan,
        next: (&Ledger, RingId, u64),
        sqe: &Sqe,
    ) -> Result<(), Failure> {
        let (ledger, ring, number) = next;
        for edge in sqe.edges {
            self.plan_edge(plan, next, edge)?;
        }
        if sqe.opcode == Opcode::Join as u8 {
            for edge in join_edges(sqe.arg) {
                self.plan_edge(plan, next, edge)?;
            }
        }
        if self.link != 0 {
            plan.tied = true;
            plan.ties = self.link;
            plan.add(self.before(ledger, ring, number - 1), self.link == TIE_ORDER)?;
        }
        if let Some(drain) = self.drain
            && let Before::Live(slot) = self.before(ledger, ring, drain)
        {
            plan.tied = true;
            plan.add(Before::Live(slot), true)?;
        }
        Ok(())
    }

    fn is_live(&self, ledger: &Ledger, ring: RingId, number: u64) -> bool {
        matches!(self.before(ledger, ring, number), Before::Live(_))
    }

    /// The number of the DRAIN that is not over. There is one at most.
    pub(super) fn drains_now(&self, ledger: &Ledger, ring: RingId) -> Option<u64> {
        self.drain.filter(|&drain| self.is_live(ledger, ring, drain))
    }

    /// The DRAIN that an op which waits may wait for beside.
    pub(super) fn drain_before(&self, ledger: &Ledger, ring: RingId, slot: u32) -> Option<u32> {
        let number = self.drain.filter(|&drain| drain < ledger[slot].number)?;
        match self.before(ledger, ring, number) {
            Before::Live(drain) => Some(drain),
            _ => None,
        }
    }

    /// Edges that an SQE, the next of its ring, would have.
    pub(super) fn would_wait(&self, ledger: &Ledger, ring: RingId, number: u64, sqe: &Sqe) -> u32 {
        let mut plan = Plan::NONE;
        let named = self.plan_all(&mut plan, (ledger, ring, number), sqe);
        if named.is_ok() { plan.count() } else { 0 }
    }

    /// Whom an op that waits has named, by itself or by a link, and whether for the order only.
    pub(super) fn names<'a>(
        &'a self,
        ledger: &'a Ledger,
        slot: u32,
    ) -> impl Iterator<Item = (Before, bool)> + 'a {
        let record = &ledger[slot];
        let joined = (record.op.opcode == Opcode::Join).then(|| join_edges(record.op.arg));
        let named = record.edges.into_iter().chain(joined.into_iter().flatten());
        let edges = named
            .filter(|edge| *edge != 0)
            .map(|edge| (u64::from(edge & !EDGE_ORDER_ONLY), edge & EDGE_ORDER_ONLY != 0));
        let linked = record.ties & (TIE_LINK | TIE_ORDER) != 0;
        let link = linked.then_some((1, record.ties & TIE_ORDER != 0));
        edges.chain(link).map(move |(distance, order_only)| {
            (self.before(ledger, record.ring, record.number - distance), order_only)
        })
    }
}

/// A failure as dependents hear of it.
pub(super) fn cause_of(failure: Failure) -> Cause {
    Cause { errno: u8::try_from(failure.errno).unwrap_or(u8::MAX), detail: failure.detail }
}
