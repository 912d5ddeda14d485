//! Who goes next within a class: surplus round robin over origins, their owners, the owners'
//! sessions, and their peers.
//!
//! The children of a node that have something to serve stand in a ring, whose first is served until
//! its balance is used up; then it gets a quantum and goes to the end. The quantum of a ring is the
//! largest cost that was charged in it since it had nothing, so one quantum always suffices. What
//! is parked, or capped, is not in its ring, but keeps its balance; what has no ops forgets it.
//!
//! **Invariants**: a node is in its parent's ring if and only if something under it can be served;
//! a balance in a ring is above 0 and at most a quantum times its weight.

use crate::ledger::NIL;

use super::flows::{Extent, LANES};
use super::solo::Solo;

/// Where a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It has no ops.
    Out,
    /// It has, but they cannot be served.
    Kept,
    /// In its parent's ring.
    Ring,
}

/// Half a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Node {
    next: u32,
    previous: u32,
    parent: u32,
    /// The first of its ring, or [`NIL`].
    first: u32,
    /// Of its ring, in bytes.
    quantum: u32,
    /// Bytes it may still go.
    balance: i64,
    /// Its quanta in its parent's ring.
    weight: u8,
    place: Place,
    /// Children that are [`Place::Kept`], and [`HELD`].
    kept: u16,
}

const _: () = assert!(size_of::<Node>() == 32);

/// The node is parked, or capped. It has fewer children than that.
const HELD: u16 = 1 << 15;

impl Node {
    #[inline]
    fn is_held(&self) -> bool {
        self.kept & HELD != 0
    }

    fn set_held(&mut self, held: bool) {
        self.kept = self.kept & !HELD | if held { HELD } else { 0 };
    }
}

/// The trees of all three classes.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Box<[Node]>,
    sessions: u32,
    /// The node of flow 0; those below are inner nodes.
    leaves: u32,
    /// The least quantum.
    /// Flows of one lane.
    flows_of_lane: u32,
    floor: u32,
    /// Classes that have something to serve, a bit each.
    ready: u8,
    /// By class: its one flow, while the tree of that class is not in use.
    solo: [Solo; CLASSES as usize],
    /// By class: the nodes from its origin down to the flow in turn, each the first of its ring,
    /// as found last.
    path: [Path; CLASSES as usize],
    /// Owners that are capped.
    capped: u32,
}

/// The first of its class's ring, the first of that one's, and so on; with one line there are
/// three.
type Path = [u32; 4];

/// No path is known.
const NO_PATH: Path = [NIL; 4];

/// Nodes of classes, one each, then those of lanes.
const CLASSES: u32 = 3;
const OWNERS: u32 = CLASSES + LANES;

impl Tree {
    pub(super) fn new(Extent { sessions, lines, .. }: Extent, floor: u32) -> Self {
        let blank = Node {
            next: NIL,
            previous: NIL,
            parent: NIL,
            first: NIL,
            quantum: floor,
            balance: 0,
            weight: 1,
            place: Place::Out,
            kept: 0,
        };
        assert!(sessions < u32::from(HELD), "more sessions than a node can count");
        let (owners, sessions_from) = (OWNERS, OWNERS + LANES * sessions);
        let inner = if lines == 1 { sessions_from } else { sessions_from + LANES * sessions };
        let count = inner + LANES * sessions * lines;
        let parent = |node: u32| match node {
            0..CLASSES => NIL,
            CLASSES..OWNERS => (node - CLASSES) / 2,
            _ if node < sessions_from => CLASSES + (node - owners) / sessions,
            // Until it is adopted, a session is its own owner's.
            _ if node < sessions_from + LANES * sessions => node - LANES * sessions,
            _ => sessions_from + (node - inner) / lines,
        };
        let nodes = (0..count).map(|node| Node { parent: parent(node), ..blank }).collect();
        let solo = [Solo::NONE; CLASSES as usize];
        Self {
            nodes,
            sessions,
            leaves: inner,
            flows_of_lane: sessions * lines,
            floor,
            ready: 0,
            solo,
            path: [NO_PATH; 3],
            capped: 0,
        }
    }

    /// Puts a session, which has no ops, under an owner.
    pub(super) fn adopt(&mut self, session: u32, owner: u32, weight: u8) {
        for lane in 0..LANES {
            self.unfold(lane as usize / 2);
            let above = OWNERS + lane * self.sessions + owner;
            let node = OWNERS + (LANES + lane) * self.sessions + session;
            assert!(self.at(node).place == Place::Out, "adopted a session that has ops");
            self.at_mut(node).parent = above;
            self.at_mut(above).weight = weight.max(1);
        }
    }

    #[inline]
    fn at(&self, node: u32) -> &Node {
        &self.nodes[node as usize]
    }

    #[inline]
    fn at_mut(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[node as usize]
    }

    /// Classes that have something to serve, a bit each.
    #[inline]
    pub(super) fn ready(&self) -> u8 {
        self.ready
    }

    /// The flow of a class to serve next.
    #[inline]
    pub(super) fn first(&mut self, class: usize) -> Option<u32> {
        if self.ready >> class & 1 == 0 {
            return None;
        }
        if self.solo[class].flow() != NIL {
            return Some(self.solo[class].flow());
        }
        if self.path[class][0] == NIL {
            self.path[class] = self.descend(class);
        }
        Some(self.path[class][3] - self.leaves)
    }

    /// [`Tree::first`], without taking note of it.
    pub(super) fn look(&self, class: usize) -> Option<u32> {
        match self.solo[class].flow() {
            _ if self.ready >> class & 1 == 0 => None,
            NIL => Some(self.descend(class)[3] - self.leaves),
            flow => Some(flow),
        }
    }

    /// The flow of a class to serve next among those of the engine's own work.
    pub(super) fn look_internal(&self, class: u32) -> Option<u32> {
        let lane = 2 * class + 1;
        let flow = self.solo[class as usize].flow();
        if self.ready >> class & 1 == 0 {
            return None;
        }
        if flow != NIL {
            return Some(flow).filter(|flow| flow / self.flows_of_lane == lane);
        }
        let owner = self.at(CLASSES + lane).first;
        if owner == NIL {
            return None;
        }
        let session = self.at(owner).first;
        let leaf = if session < self.leaves { self.at(session).first } else { session };
        Some(leaf - self.leaves)
    }

    /// The path to the flow in turn. Its last node is the flow's; the one before is that, too, if
    /// there is one line.
    #[inline]
    fn descend(&self, class: usize) -> Path {
        let origin = self.nodes[class].first;
        let owner = self.at(origin).first;
        let session = self.at(owner).first;
        let flow = if session < self.leaves { self.at(session).first } else { session };
        [origin, owner, session, flow]
    }

    /// True if a flow is that to serve next of its class.
    pub(super) fn is_first(&self, class: usize, flow: u32) -> bool {
        if self.solo[class].flow() != NIL {
            return self.solo[class].flow() == flow;
        }
        let mut node = self.leaves + flow;
        while self.at(node).parent != NIL {
            let parent = self.at(node).parent;
            if self.at(parent).first != node {
                return false;
            }
            node = parent;
        }
        true
    }

    /// True if a class has no flows, and may have one without its tree.
    #[inline]
    fn is_vacant(&self, class: usize) -> bool {
        self.solo[class].flow() == NIL
            && self.nodes[class].place == Place::Out
            && (class > 0 || self.capped == 0)
    }

    /// A flow of a class got its first op.
    #[inline]
    pub(super) fn enter(&mut self, class: usize, flow: u32) {
        if self.is_vacant(class) {
            self.solo[class] = Solo::new(flow, self.floor);
            self.ready |= 1 << class;
            return;
        }
        self.unfold(class);
        self.settle(self.leaves + flow, true, false);
    }

    /// A flow, whose first op is back, is in turn again.
    pub(super) fn enter_first(&mut self, class: usize, flow: u32) {
        if self.solo[class].flow() == flow || self.is_vacant(class) {
            return self.enter_alone(class, flow);
        }
        self.unfold(class);
        self.path[class] = NO_PATH;
        let mut node = self.leaves + flow;
        self.settle(node, true, true);
        while node >= CLASSES && self.at(node).place == Place::Ring {
            let parent = self.at(node).parent;
            if self.at(parent).first != node {
                self.unlink(node, parent);
                self.link(node, parent, true);
            }
            node = parent;
        }
    }

    fn enter_alone(&mut self, class: usize, flow: u32) {
        if self.solo[class].flow() == NIL {
            self.enter(class, flow);
        }
    }

    /// Brings the tree of a class to where it would be if its one flow had used it.
    #[inline]
    fn unfold(&mut self, class: usize) {
        if self.solo[class].flow() != NIL {
            self.unfold_one(class);
        }
    }

    fn unfold_one(&mut self, class: usize) {
        let solo = std::mem::replace(&mut self.solo[class], Solo::NONE);
        let mut node = self.leaves + solo.flow();
        self.settle(node, true, false);
        while self.at(node).parent != NIL {
            let at = self.at_mut(node);
            at.balance = solo.balance(at.weight).cast_signed();
            node = at.parent;
            self.at_mut(node).quantum = solo.quantum();
        }
    }

    /// A flow of a class lost its last op.
    #[inline]
    pub(super) fn leave(&mut self, class: usize, flow: u32) {
        if self.solo[class].flow() == flow {
            self.solo[class] = Solo::NONE;
            self.ready &= !(1 << class);
            return;
        }
        let leaf = self.leaves + flow;
        if self.path[class][3] == leaf {
            self.path[class] = NO_PATH;
        }
        self.at_mut(leaf).set_held(false);
        self.settle(leaf, false, false);
    }

    /// A flow that has ops leaves the turn, or comes back.
    pub(super) fn hold(&mut self, class: usize, flow: u32, held: bool) {
        self.unfold(class);
        self.path[class] = NO_PATH;
        let leaf = self.leaves + flow;
        self.at_mut(leaf).set_held(held);
        self.settle(leaf, true, false);
    }

    /// True if a flow has left the turn.
    pub(super) fn is_held(&self, flow: u32) -> bool {
        self.at(self.leaves + flow).is_held()
    }

    /// All that an owner has of class high leaves the turn, or comes back.
    pub(super) fn cap(&mut self, owner: u32, capped: bool) {
        self.unfold(0);
        self.path[0] = NO_PATH;
        let was = self.at(OWNERS + owner).is_held();
        self.capped = self.capped + u32::from(capped) - u32::from(was);
        for lane in 0..2 {
            let node = OWNERS + lane * self.sessions + owner;
            self.at_mut(node).set_held(capped);
            self.settle(node, false, false);
        }
    }

    /// Links of a flow that is held, for a list of such.
    pub(super) fn links(&mut self, flow: u32) -> (&mut u32, &mut u32) {
        let node = &mut self.nodes[(self.leaves + flow) as usize];
        debug_assert!(node.is_held());
        (&mut node.next, &mut node.previous)
    }

    /// Brings a node to where it belongs, and then those above it; `has_ops` of a leaf.
    #[inline]
    fn settle(&mut self, mut node: u32, mut has_ops: bool, front: bool) {
        loop {
            let at = self.at(node);
            let can_go = if node < self.leaves { at.first != NIL } else { has_ops };
            has_ops = can_go || at.kept & !HELD > 0;
            let (from, parent) = (at.place, at.parent);
            let to = match has_ops {
                false => Place::Out,
                true if can_go && !at.is_held() => Place::Ring,
                true => Place::Kept,
            };
            if parent == NIL {
                self.ready = self.ready & !(1 << node) | u8::from(can_go) << node;
            }
            if to == Place::Out {
                let floor = self.floor;
                self.at_mut(node).quantum = floor;
            }
            if parent == NIL || from == to {
                self.at_mut(node).place = to;
                return;
            }
            self.change(node, parent, (from, to), front);
            node = parent;
        }
    }

    #[inline]
    fn change(&mut self, node: u32, parent: u32, (from, to): (Place, Place), front: bool) {
        match from {
            Place::Out => {
                let quantum = self.at(parent).quantum;
                let node = self.at_mut(node);
                node.balance = i64::from(quantum) * i64::from(node.weight);
            }
            Place::Kept => self.at_mut(parent).kept -= 1,
            Place::Ring => self.unlink(node, parent),
        }
        match to {
            Place::Out => {}
            Place::Kept => self.at_mut(parent).kept += 1,
            Place::Ring => self.link(node, parent, front),
        }
        self.at_mut(node).place = to;
    }

    /// Puts a node at the end of its parent's ring, or at the front.
    #[inline]
    fn link(&mut self, node: u32, parent: u32, front: bool) {
        let first = self.at(parent).first;
        if first == NIL {
            (self.at_mut(node).next, self.at_mut(node).previous) = (node, node);
            self.at_mut(parent).first = node;
            return;
        }
        let last = self.at(first).previous;
        (self.at_mut(node).next, self.at_mut(node).previous) = (first, last);
        self.at_mut(last).next = node;
        self.at_mut(first).previous = node;
        if front {
            self.at_mut(parent).first = node;
        }
    }

    #[inline]
    fn unlink(&mut self, node: u32, parent: u32) {
        let Node { next, previous, .. } = *self.at(node);
        self.at_mut(previous).next = next;
        self.at_mut(next).previous = previous;
        if self.at(parent).first == node {
            self.at_mut(parent).first = if next == node { NIL } else { next };
        }
    }

    /// A flow was served.
    #[inline]
    pub(super) fn charge(&mut self, class: usize, flow: u32, cost: u32) {
        if self.solo[class].flow() == flow {
            if !self.solo[class].charge(cost) {
                self.raise(class, cost);
            }
            return;
        }
        let path = self.path[class];
        if path[3] == self.leaves + flow {
            return self.charge_first(class, path, cost);
        }
        let mut node = self.leaves + flow;
        self.path[class] = NO_PATH;
        while self.at(node).parent != NIL {
            let parent = self.at(node).parent;
            if self.spend(node, parent, cost) && self.at(node).place == Place::Ring {
                self.rotate(node, parent);
            }
            node = parent;
        }
    }

    /// [`Tree::charge`], of the flow in turn. Whom to charge is known from when it was found: the
    /// way to the next one does not lead over this one's record.
    #[inline]
    fn charge_first(&mut self, class: usize, path: Path, cost: u32) {
        let root = class_node(class);
        let [origin, owner, session, flow] = path;
        let mut moved = false;
        if flow != session {
            moved |= self.charge_one(flow, session, cost);
        }
        moved |= self.charge_one(session, owner, cost);
        moved |= self.charge_one(owner, origin, cost);
        moved |= self.charge_one(origin, root, cost);
        if moved {
            self.path[class] = NO_PATH;
        }
    }

    /// Charges the first of a ring; true if another is first now.
    #[inline]
    fn charge_one(&mut self, node: u32, parent: u32, cost: u32) -> bool {
        let spent = self.spend(node, parent, cost);
        let next = self.at(node).next;
        if spent && next != node {
            self.at_mut(parent).first = next;
        }
        spent && next != node
    }

    /// Lowers a balance; true if it is used up, and got a quantum.
    #[inline]
    fn spend(&mut self, node: u32, parent: u32, cost: u32) -> bool {
        let above = self.at_mut(parent);
        if cost > above.quantum {
            above.quantum = cost;
        }
        let quantum = i64::from(above.quantum);
        let at = self.at_mut(node);
        at.balance -= i64::from(cost);
        let spent = at.balance <= 0;
        if spent {
            at.balance += quantum * i64::from(at.weight);
        }
        spent
    }

    /// The one flow of a class was charged more than ever.
    #[cold]
    fn raise(&mut self, class: usize, cost: u32) {
        let mut node = self.leaves + self.solo[class].flow();
        while node >= OWNERS + LANES * self.sessions {
            node = self.at(node).parent;
        }
        let weight = self.at(node).weight;
        self.solo[class].raise(cost, weight);
    }

    /// Brings a node of a ring to its end.
    #[inline]
    fn rotate(&mut self, node: u32, parent: u32) {
        let next = self.at(node).next;
        if self.at(parent).first == node {
            self.at_mut(parent).first = next;
        } else {
            self.unlink(node, parent);
            self.link(node, parent, false);
        }
    }

    /// What a flow was charged did not happen. What has no ops left has forgotten it.
    pub(super) fn refund(&mut self, class: usize, flow: u32, cost: u32) {
        self.unfold(class);
        let mut node = self.leaves + flow;
        while self.at(node).parent != NIL {
            let parent = self.at(node).parent;
            let quantum = i64::from(self.at(parent).quantum);
            let at = self.at_mut(node);
            let most = quantum * i64::from(at.weight);
            if at.place != Place::Out {
                at.balance = at.balance.max(most.min(at.balance + i64::from(cost)));
            }
            node = parent;
        }
    }
}

/// The node of a class.
#[inline]
fn class_node(class: usize) -> u32 {
    match class {
        0 => 0,
        1 => 1,
        _ => 2,
    }
}
