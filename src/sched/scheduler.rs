//! The scheduler: which of the queued ops goes next.
//!
//! Ops wait in flows: what one session has for one line (a peer, or this host) in one lane (a class
//! and an origin). Which flow goes next is the mode's to say; in a flow it is first come, first
//! served. The scheduler knows nothing of windows: whoever asks it for the first op takes credits,
//! and tells it what was posted ([`Scheduler::charge`]), or that the op's flow cannot go on
//! ([`Scheduler::park`]).
//!
//! An op's class, origin, session and line stay the same while it is queued. Everything is
//! allocated in [`Scheduler::new`]; nothing here takes longer with more that is queued, but where
//! it is said.

use crate::abi::{Class, WAIT_LANE, WAIT_NONE};
use crate::ids::SessionId;
use crate::ledger::{LANE, Ledger, List};

use super::fair::Fair;
use super::owners::Owners;
use super::rows::Rows;
use super::tent::Tent;
use super::{Mode, Policy};

/// For how much a scheduler has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sessions: all numbers are below this. At least 1.
    pub sessions: u32,
    /// Lines: all numbers are below this. 1 to 64; 1 for this host's own device.
    pub peers: u16,
    /// Bytes that the device may have in flight.
    pub window_bytes: u64,
}

/// What stands between a queued op and its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Ops of its flow that go before it, counted to [`Place::AHEAD_MAX`].
    pub ahead: u32,
    /// It is the first of its flow.
    pub first: bool,
    /// `WAIT_*`: why it is not the op to serve next; `WAIT_NONE` if it is. Of the first op of a
    /// parked flow, what its record says.
    pub wait: u16,
    /// Flows of its lane that have ops.
    pub flows: u32,
}

impl Place {
    /// Ops ahead are counted no further.
    pub const AHEAD_MAX: u32 = 4_095;
}

#[derive(Debug)]
enum Order {
    /// `Weighted` and `Strict`.
    Fair(Fair),
    /// `Fifo` and `Direct`.
    Plain(Rows),
    Tent(Tent),
}

/// All queued ops of one device.
#[derive(Debug)]
pub struct Scheduler {
    order: Order,
    owners: Owners,
    aging_ns: [u64; 2],
}

impl Scheduler {
    /// Makes a scheduler without ops, to which no session is known yet.
    #[must_use]
    pub fn new(policy: &Policy, shape: Shape) -> Self {
        assert!(shape.sessions > 0 && (1..=64).contains(&shape.peers));
        let ageing = policy.aging_ns != [0; 2];
        let order = match policy.mode {
            Mode::Weighted | Mode::Strict => Order::Fair(Fair::new(policy, shape)),
            Mode::Fifo | Mode::Direct => Order::Plain(Rows::new(1, shape, false)),
            Mode::Tent => Order::Tent(Tent::new(shape, ageing)),
        };
        Self { order, owners: Owners::new(shape.sessions), aging_ns: policy.aging_ns }
    }

    /// Notes whose a session is, and its owner's weight (1 to 64), before any op of it is pushed.
    /// An owner's weight is that which was given last. Looks at all owners.
    ///
    /// # Panics
    /// If the session has queued ops.
    pub fn adopt(&mut self, session: SessionId, owner: u32, weight: u8) {
        let place = self.owners.adopt(session, owner);
        if let Order::Fair(fair) = &mut self.order {
            fair.adopt(session, place, weight, self.owners.is_capped(session));
        }
    }

    /// Queues an op behind those of its flow; its record's `wait` says whether there are any.
    #[inline]
    pub fn push(&mut self, ledger: &mut Ledger, slot: u32) {
        ledger[slot].aged = false;
        let alone = self.insert(ledger, slot);
        ledger[slot].wait = if alone { WAIT_NONE } else { WAIT_LANE };
    }

    #[inline]
    fn insert(&mut self, ledger: &mut Ledger, slot: u32) -> bool {
        match &mut self.order {
            Order::Fair(fair) => fair.push(ledger, slot),
            Order::Plain(rows) => rows.push(ledger, slot, false),
            Order::Tent(tent) => tent.rows.push(ledger, slot, false),
        }
    }

    /// [`Scheduler::push`] of ops of one flow, of which nothing is left to do but to queue them.
    #[inline]
    pub(super) fn append(&mut self, ledger: &mut Ledger, run: List<LANE>) {
        let first = run.head();
        let alone = match &mut self.order {
            Order::Fair(fair) => fair.append(ledger, run),
            Order::Plain(rows) => rows.append(ledger, run),
            Order::Tent(tent) => tent.rows.append(ledger, run),
        };
        if alone {
            ledger[first].wait = WAIT_NONE;
        }
    }

    /// Puts an op back where it was: it is the first of its flow, and its flow is in turn.
    pub fn push_front(&mut self, ledger: &mut Ledger, slot: u32) {
        match &mut self.order {
            Order::Fair(fair) => fair.push_front(ledger, slot),
            Order::Plain(rows) => _ = rows.push(ledger, slot, true),
            Order::Tent(tent) => _ = tent.rows.push(ledger, slot, true),
        }
    }

    /// Takes an op out, wherever it stands.
    ///
    /// # Panics
    /// If it is not queued, and that shows.
    #[inline]
    pub fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        match &mut self.order {
            Order::Fair(fair) => fair.remove(ledger, slot),
            Order::Plain(rows) => rows.remove(ledger, slot),
            Order::Tent(tent) => tent.remove(ledger, slot),
        }
    }

    /// Puts an op where a queued one is, which is queued no more. Session, line, origin, class and
    /// whether they have aged are the same of both.
    pub fn replace(&mut self, ledger: &mut Ledger, slot: u32, by: u32) {
        match &mut self.order {
            Order::Fair(fair) => fair.replace(ledger, slot, by),
            Order::Plain(rows) => rows.flows.replace(ledger, slot, by),
            Order::Tent(tent) => tent.rows.flows.replace(ledger, slot, by),
        }
    }

    /// True if nothing is queued, parked or not.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queued() == 0
    }

    /// Begins a pass, with so much left of the device's window. Only [`Mode::Tent`] needs to know,
    /// and serves nothing without.
    #[inline]
    pub fn begin(&mut self, ops_left: u32, bytes_left: u64) {
        if let Order::Tent(tent) = &mut self.order {
            tent.begin(ops_left, bytes_left);
        }
    }

    /// The class in turn, among those that have an op here that can go, and those in `elsewhere`: a
    /// bit for each class of which the caller keeps ops that stepped aside. Where classes have no
    /// turns, what stepped aside was in turn before, and goes first.
    #[inline]
    pub fn class(&mut self, ledger: &Ledger, elsewhere: u8) -> Option<Class> {
        let slot = match &mut self.order {
            Order::Fair(fair) => return fair.class(elsewhere),
            _ if elsewhere != 0 => {
                return Class::ALL.get(elsewhere.trailing_zeros() as usize).copied();
            }
            Order::Plain(rows) => rows.first(ledger, &self.owners, 0),
            Order::Tent(tent) => tent.first(ledger, &self.owners),
        };
        slot.map(|slot| class_of(ledger, slot))
    }

    /// The op of a class to serve next, if there is one that can go. It stays the same until
    /// something is pushed, charged, removed, parked, unparked, capped or uncapped.
    ///
    /// Where classes have no turns: the op to serve next, if it is of that class.
    #[inline]
    pub fn first_of(&mut self, ledger: &Ledger, class: Class) -> Option<u32> {
        let slot = match &mut self.order {
            Order::Fair(fair) => return fair.first_of(ledger, class),
            Order::Plain(rows) => rows.first(ledger, &self.owners, 0),
            Order::Tent(tent) => tent.first(ledger, &self.owners),
        };
        slot.filter(|&slot| class_of(ledger, slot) == class)
    }

    /// The op to serve next: [`Scheduler::first_of`] the [`Scheduler::class`] in turn.
    #[inline]
    pub fn first(&mut self, ledger: &Ledger) -> Option<u32> {
        match &mut self.order {
            Order::Fair(fair) => fair.class(0).and_then(|class| fair.first_of(ledger, class)),
            Order::Plain(rows) => rows.first(ledger, &self.owners, 0),
            Order::Tent(tent) => tent.first(ledger, &self.owners),
        }
    }

    /// So many bytes of a queued op were posted. In [`Mode::Tent`] that is the whole op.
    #[inline]
    pub fn charge(&mut self, ledger: &Ledger, slot: u32, bytes: u32) {
        match &mut self.order {
            Order::Fair(fair) => fair.charge(ledger, slot, bytes),
            Order::Plain(_) => {}
            Order::Tent(tent) => tent.charge(ledger, slot, bytes),
        }
    }

    /// As [`Scheduler::charge`], of an op that has stepped aside: its class is charged, and nobody
    /// else.
    #[inline]
    pub fn charge_aside(&mut self, ledger: &Ledger, slot: u32, bytes: u32) {
        if let Order::Fair(fair) = &mut self.order {
            fair.charge_aside(ledger, slot, bytes);
        }
    }

    /// The fabric refused what was charged; if the op left the scheduler meanwhile, it is back.
    pub fn refund(&mut self, ledger: &Ledger, slot: u32, bytes: u32) {
        match &mut self.order {
            Order::Fair(fair) => fair.refund(ledger, slot, bytes),
            Order::Plain(_) => {}
            Order::Tent(tent) => tent.refund(ledger, slot, bytes),
        }
    }

    /// The first op, `slot`, is blocked on the device's window: the op to serve next of another
    /// class, whose next slice has at most `room_bytes`. Nobody passes where classes have no turns.
    #[must_use]
    pub fn beside(
        &self,
        ledger: &Ledger,
        slot: u32,
        room_bytes: u64,
        slice_bytes: u32,
    ) -> Option<u32> {
        match &self.order {
            Order::Fair(fair) => fair.beside(ledger, slot, room_bytes, slice_bytes),
            Order::Plain(_) | Order::Tent(_) => None,
        }
    }

    /// The op to serve next among the engine's own, of the most urgent class that has such: for
    /// when users have all of the window that is theirs. None where there are no flows.
    #[must_use]
    pub fn internal(&self, ledger: &Ledger) -> Option<u32> {
        match &self.order {
            Order::Fair(fair) => fair.internal(ledger),
            Order::Plain(_) | Order::Tent(_) => None,
        }
    }

    /// The flow of a queued op cannot go on: it leaves the turn and keeps its balance, until
    /// [`Scheduler::unpark`], or until it has no ops.
    pub fn park(&mut self, ledger: &Ledger, slot: u32) {
        match &mut self.order {
            Order::Fair(fair) => fair.park(ledger, slot),
            Order::Plain(rows) => rows.park(ledger, slot),
            Order::Tent(tent) => tent.rows.park(ledger, slot),
        }
    }

    /// All flows parked for a line come back, each at the end. Takes a step for each.
    pub fn unpark(&mut self, line: u16) {
        match &mut self.order {
            Order::Fair(fair) => fair.unpark(line),
            Order::Plain(rows) => rows.unpark(line),
            Order::Tent(tent) => tent.rows.unpark(line),
        }
    }

    /// Lines with parked flows, a bit each.
    #[inline]
    #[must_use]
    pub fn parked(&self) -> u64 {
        match &self.order {
            Order::Fair(fair) => fair.parked(),
            Order::Plain(rows) => rows.parked(),
            Order::Tent(tent) => tent.rows.parked(),
        }
    }

    /// An owner may post nothing more of class high until [`Scheduler::uncap`]. Where there are no
    /// flows, those behind such an op wait with it. Looks at all owners.
    pub fn cap(&mut self, owner: u32) {
        self.set_cap(owner, true);
    }

    /// Ends [`Scheduler::cap`].
    pub fn uncap(&mut self, owner: u32) {
        self.set_cap(owner, false);
    }

    fn set_cap(&mut self, owner: u32, capped: bool) {
        if let Some(place) = self.owners.cap(owner, capped)
            && let Order::Fair(fair) = &mut self.order
        {
            fair.cap(place, capped);
        }
    }

    /// A queued op of a line, parked or not. Looks at a word for 64 sessions.
    #[must_use]
    pub fn any(&self, line: u16) -> Option<u32> {
        match &self.order {
            Order::Fair(fair) => fair.flows.any(line),
            Order::Plain(rows) => rows.flows.any(line),
            Order::Tent(tent) => tent.rows.flows.any(line),
        }
    }

    /// Lines with queued ops, parked or not, a bit each.
    #[inline]
    #[must_use]
    pub fn queued(&self) -> u64 {
        match &self.order {
            Order::Fair(fair) => fair.flows.queued(),
            Order::Plain(rows) => rows.flows.queued(),
            Order::Tent(tent) => tent.rows.flows.queued(),
        }
    }

    /// The first op of each list of queued ops: all of them, if one walks on from there.
    #[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
    pub(crate) fn heads(&self) -> impl Iterator<Item = u32> {
        match &self.order {
            Order::Fair(fair) => fair.flows.heads(),
            Order::Plain(rows) => rows.flows.heads(),
            Order::Tent(tent) => tent.rows.flows.heads(),
        }
    }

    /// What stands between a queued op and its turn. Counts ops.
    #[must_use]
    pub fn place(&self, ledger: &Ledger, slot: u32) -> Place {
        let most = Place::AHEAD_MAX;
        match &self.order {
            Order::Fair(fair) => fair.place(ledger, &self.owners, slot, most),
            Order::Plain(rows) => rows.place(ledger, &self.owners, slot, most),
            Order::Tent(tent) => tent.place(ledger, &self.owners, slot, most),
        }
    }

    /// Has the oldest ops of class medium and low that have waited for long count as high from now
    /// on, in the order of intake among those of their flow; looks at `budget` flows, and goes on
    /// there the next time. Their records' class stays. Those of a capped owner do not age.
    pub fn age(&mut self, ledger: &mut Ledger, now_ns: u64, mut budget: u32) {
        let when = (now_ns, self.aging_ns);
        if self.aging_ns == [0; 2] {
            return;
        }
        loop {
            let flows = match &mut self.order {
                Order::Fair(fair) => &mut fair.flows,
                Order::Plain(_) => return,
                Order::Tent(tent) => &mut tent.rows.flows,
            };
            let Some(slot) = flows.old(ledger, when, &mut budget) else { return };
            if self.owners.is_capped(ledger[slot].session) {
                flows.pass_by();
                continue;
            }
            self.remove(ledger, slot);
            ledger[slot].aged = true;
            self.insert(ledger, slot);
        }
    }
}

/// The class that an op is scheduled as.
fn class_of(ledger: &Ledger, slot: u32) -> Class {
    if ledger[slot].aged { Class::High } else { ledger[slot].class }
}
