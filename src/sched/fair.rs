//! `weighted` and `strict`: turns of classes, and within a class a fair tree of flows.

use crate::abi::{Class, WAIT_CAP, WAIT_CLASS, WAIT_LANE, WAIT_NONE, WAIT_TURN};
use crate::ids::SessionId;
use crate::ledger::{LANE, Ledger, List, NIL};

use super::Policy;
use super::flows::{Extent, Flows, LANES, class_of, high_of};
use super::owners::Owners;
use super::scheduler::{Place, Shape};
use super::tree::Tree;
use super::turns::Turns;

/// The schedulers that have classes and flows.
#[derive(Debug)]
pub(super) struct Fair {
    turns: Turns,
    tree: Tree,
    pub(super) flows: Flows,
    lines: u32,
    /// A request costs at least so many bytes.
    floor: u32,
    /// By line: the first and the last flow parked for it.
    parked: Box<[[u32; 2]]>,
    parked_lines: u64,
    /// The op that was found to be the first of its class last, while it is queued; its class and
    /// flow are known without a look at its record, which is often far away.
    found: Found,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    slot: u32,
    class: usize,
    flow: u32,
}

/// Nothing was found.
const NOTHING: Found = Found { slot: NIL, class: 0, flow: NIL };

impl Fair {
    pub(super) fn new(policy: &Policy, shape: Shape) -> Self {
        let (sessions, lines) = (shape.sessions, u32::from(shape.peers));
        let extent = Extent { lanes: LANES, sessions, lines };
        let floor = policy.floor_bytes.max(1);
        Self {
            turns: Turns::new(policy, shape.window_bytes),
            tree: Tree::new(extent, least_quantum(floor, shape.window_bytes)),
            flows: Flows::new(extent, policy.aging_ns != [0; 2]),
            lines,
            floor,
            parked: vec![[NIL; 2]; lines as usize].into(),
            parked_lines: 0,
            found: NOTHING,
        }
    }

    pub(super) fn adopt(&mut self, session: SessionId, owner: u32, weight: u8, capped: bool) {
        self.tree.adopt(session.0, owner, weight);
        self.cap(owner, capped);
    }

    #[inline]
    pub(super) fn push(&mut self, ledger: &mut Ledger, slot: u32) -> bool {
        let flow = self.flows.of(&ledger[slot]);
        let idle = self.flows.push(ledger, slot, flow, false);
        if idle {
            self.tree.enter(class_of(&ledger[slot]), flow);
        }
        idle
    }

    #[inline]
    pub(super) fn append(&mut self, ledger: &mut Ledger, run: List<LANE>) -> bool {
        let first = run.head();
        let flow = self.flows.of(&ledger[first]);
        let idle = self.flows.append(ledger, run, flow);
        if idle {
            self.tree.enter(class_of(&ledger[first]), flow);
        }
        idle
    }

    pub(super) fn push_front(&mut self, ledger: &mut Ledger, slot: u32) {
        let flow = self.flows.of(&ledger[slot]);
        self.flows.push(ledger, slot, flow, true);
        self.tree.enter_first(class_of(&ledger[slot]), flow);
    }

    pub(super) fn replace(&mut self, ledger: &mut Ledger, slot: u32, by: u32) {
        if self.found.slot == slot {
            self.found.slot = NIL;
        }
        self.flows.replace(ledger, slot, by);
    }

    /// The class and flow of a queued op.
    #[inline]
    fn find(&self, ledger: &Ledger, slot: u32) -> (usize, u32) {
        if self.found.slot == slot {
            return (self.found.class, self.found.flow);
        }
        (class_of(&ledger[slot]), self.flows.of(&ledger[slot]))
    }

    #[inline]
    pub(super) fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        let (class, flow) = self.find(ledger, slot);
        if self.found.slot == slot {
            self.found.slot = NIL;
        }
        if self.flows.remove(ledger, slot, flow) {
            if self.tree.is_held(flow) {
                self.unlist(flow);
            }
            self.tree.leave(class, flow);
        }
    }

    #[inline]
    pub(super) fn class(&mut self, elsewhere: u8) -> Option<Class> {
        self.turns.pick(self.tree.ready() | elsewhere).map(|class| Class::ALL[class])
    }

    #[inline]
    pub(super) fn first_of(&mut self, ledger: &Ledger, class: Class) -> Option<u32> {
        let class = class.index();
        let flow = self.tree.first(class)?;
        let slot = self.flows.head(ledger, flow);
        self.found = Found { slot, class, flow };
        Some(slot)
    }

    #[inline]
    fn cost(&self, bytes: u32) -> u32 {
        bytes.max(self.floor)
    }

    #[inline]
    pub(super) fn charge(&mut self, ledger: &Ledger, slot: u32, bytes: u32) {
        let cost = self.cost(bytes);
        let (class, flow) = self.find(ledger, slot);
        self.turns.charge(class, cost);
        self.tree.charge(class, flow, cost);
    }

    #[inline]
    pub(super) fn charge_aside(&mut self, ledger: &Ledger, slot: u32, bytes: u32) {
        self.turns.charge(class_of(&ledger[slot]), self.cost(bytes));
    }

    pub(super) fn refund(&mut self, ledger: &Ledger, slot: u32, bytes: u32) {
        let cost = self.cost(bytes);
        self.turns.refund(class_of(&ledger[slot]), cost);
        self.tree.refund(class_of(&ledger[slot]), self.flows.of(&ledger[slot]), cost);
    }

    pub(super) fn internal(&self, ledger: &Ledger) -> Option<u32> {
        let flow = (0..3).find_map(|class| self.tree.look_internal(class))?;
        Some(self.flows.head(ledger, flow))
    }

    pub(super) fn beside(
        &self,
        ledger: &Ledger,
        slot: u32,
        room_bytes: u64,
        slice_bytes: u32,
    ) -> Option<u32> {
        let blocked = class_of(&ledger[slot]);
        let others = (0..3).filter(|&class| class != blocked);
        let fits = |slot: &u32| {
            let record = &ledger[*slot];
            let rest = record.op.bytes.saturating_sub(record.cursor);
            u64::from(rest.min(slice_bytes)) <= room_bytes
        };
        others
            .filter_map(|class| self.tree.look(class))
            .map(|flow| self.flows.head(ledger, flow))
            .find(fits)
    }

    pub(super) fn park(&mut self, ledger: &Ledger, slot: u32) {
        let flow = self.flows.of(&ledger[slot]);
        if self.tree.is_held(flow) {
            return;
        }
        self.tree.hold(class_of(&ledger[slot]), flow, true);
        let line = self.line(flow);
        let last = self.parked[line][1];
        let (next, previous) = self.tree.links(flow);
        (*next, *previous) = (NIL, last);
        self.parked[line][1] = flow;
        if last == NIL {
            self.parked[line][0] = flow;
            self.parked_lines |= 1 << line;
        } else {
            *self.tree.links(last).0 = flow;
        }
    }

    fn line(&self, flow: u32) -> usize {
        (flow % self.lines) as usize
    }

    /// Takes a flow off the list of those parked for its line.
    fn unlist(&mut self, flow: u32) {
        let line = self.line(flow);
        let (next, previous) = self.tree.links(flow);
        let (next, previous) = (std::mem::replace(next, NIL), std::mem::replace(previous, NIL));
        match previous {
            NIL => self.parked[line][0] = next,
            _ => *self.tree.links(previous).0 = next,
        }
        match next {
            NIL => self.parked[line][1] = previous,
            _ => *self.tree.links(next).1 = previous,
        }
        self.parked_lines &= !(u64::from(self.parked[line][0] == NIL) << line);
    }

    pub(super) fn unpark(&mut self, line: u16) {
        while let Some(&[flow, _]) = self.parked.get(usize::from(line))
            && flow != NIL
        {
            self.unlist(flow);
            self.tree.hold(self.flows.class(flow), flow, false);
        }
    }

    pub(super) fn parked(&self) -> u64 {
        self.parked_lines
    }

    pub(super) fn cap(&mut self, owner: u32, capped: bool) {
        self.tree.cap(owner, capped);
    }

    pub(super) fn place(&self, ledger: &Ledger, owners: &Owners, slot: u32, most: u32) -> Place {
        let record = &ledger[slot];
        let flow = self.flows.of(record);
        let ahead = self.flows.ahead(ledger, slot, most);
        let first = ahead == 0;
        let class = self.turns.choose();
        let wait = if !first {
            WAIT_LANE
        } else if self.tree.is_held(flow) {
            record.wait
        } else if high_of(record).is_some_and(|session| owners.is_capped(session)) {
            WAIT_CAP
        } else if !self.tree.is_first(class_of(record), flow) {
            WAIT_TURN
        } else if class.is_some_and(|class| class != class_of(record)) {
            WAIT_CLASS
        } else {
            WAIT_NONE
        };
        Place { ahead, first, wait, flows: self.flows.in_lane(record) }
    }
}

/// The least quantum of a ring: an eighth of the window, but no more than this. What is served lies
/// side by side in memory, flow by flow; a turn of one small op each would fetch every record alone
/// (`bench burst` moves 5 to 8 % less with it). What it costs is delay: a flow waits for so much of
/// each other one, which beside the window itself is little.
const QUANTUM_BYTES: u64 = 64 << 10;

fn least_quantum(floor: u32, window_bytes: u64) -> u32 {
    let eighth = u32::try_from(QUANTUM_BYTES.min(window_bytes / 8)).unwrap_or(floor);
    eighth.max(floor)
}
