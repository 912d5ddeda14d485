//! Edges: which ops wait for which others, in a bounded pool.
//!
//! An edge lies in the list of the op that is waited for. When that op is over, its whole list is
//! appended to the work list in one step, and who waited is told from there, one edge at a time:
//! however wide or deep a graph is, nobody recurses, and a turn does as much of it as it wants.
//!
//! A list is a ring of nodes, known by its last one, so that it is appended without a walk. The
//! outcome of the op that is over is written into the first node of its list, and holds until the
//! next list begins.
//!
//! **Invariants**: a node is free, in one op's list, or in the work list. An edge names who waits
//! by its record id: if that op ended meanwhile, whoever takes the edge finds nobody.
//! **Deliberately absent**: rings, what an op is, why it failed. **Tests**: against lists.
//!
//! A pool that is given back in the order of intake, as in the design that this follows
//! (hw-native-sys/simpler, pull request 1263), stops at the first op that is slow, for everybody.
//! So a node goes back as soon as its edge is settled, in whatever order that is.

use crate::ids::{RecordId, RingId};
use crate::ledger::NIL;

/// The first cause of a failure, as it travels along edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Positive errno.
    pub errno: u8,
    /// A `Detail` number.
    pub detail: u16,
}

/// An edge whose predecessor is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Who waits.
    pub waiter: RecordId,
    /// The ring of both.
    pub ring: RingId,
    /// The predecessor failed, and the edge carries that.
    pub cause: Option<Cause>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    waiter: RecordId,
    ring: RingId,
    next: u32,
    order_only: bool,
    /// Of the first node of a list in the work list: how its predecessor ended.
    verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug)]
enum Verdict {
    Done,
    Failed(Cause),
}

/// All edges of an engine, and the work list.
#[derive(Debug)]
pub struct Edges {
    nodes: Box<[Node]>,
    free: u32,
    in_use: u32,
    /// Most that were in use at once.
    peak: u32,
    /// The work list.
    head: u32,
    tail: u32,
    /// How the predecessor of those at the head ended.
    verdict: Verdict,
}

impl Edges {
    /// Makes a pool of so many edges; everything is allocated here.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        let blank = |at: u32| Node {
            waiter: RecordId(0),
            ring: RingId(0),
            next: if at + 1 < capacity { at + 1 } else { NIL },
            order_only: false,
            verdict: None,
        };
        Self {
            nodes: (0..capacity).map(blank).collect(),
            free: if capacity > 0 { 0 } else { NIL },
            in_use: 0,
            peak: 0,
            head: NIL,
            tail: NIL,
            verdict: Verdict::Done,
        }
    }

    /// Edges in use: of ops that wait, or in the work list.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Most edges that were ever in use at once.
    #[must_use]
    pub fn peak(&self) -> u32 {
        self.peak
    }

    /// Adds an edge to the list of the op that is waited for.
    ///
    /// # Panics
    /// If the pool is used up: whoever adds has asked before.
    #[inline]
    pub fn add(&mut self, list: &mut u32, waiter: RecordId, ring: RingId, order_only: bool) {
        let at = self.free;
        let Some(node) = self.nodes.get_mut(at as usize) else {
            unreachable!("more edges than the pool has");
        };
        self.free = node.next;
        *node = Node { waiter, ring, next: at, order_only, verdict: None };
        self.in_use += 1;
        self.peak = self.peak.max(self.in_use);
        if *list != NIL {
            let last = &mut self.nodes[*list as usize];
            let first = std::mem::replace(&mut last.next, at);
            self.nodes[at as usize].next = first;
        }
        *list = at;
    }

    /// The op whose list this is, which is not empty, is over: everybody on it is to be told.
    #[inline]
    pub fn settle(&mut self, list: u32, cause: Option<Cause>) {
        let first = std::mem::replace(&mut self.nodes[list as usize].next, NIL);
        self.nodes[first as usize].verdict = Some(cause.map_or(Verdict::Done, Verdict::Failed));
        if self.head == NIL {
            self.head = first;
        } else {
            self.nodes[self.tail as usize].next = first;
        }
        self.tail = list;
    }

    /// True if nobody is to be told of anything.
    #[inline]
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.head == NIL
    }

    /// Takes the next edge whose predecessor is over, and gives it back to the pool.
    #[inline]
    pub fn take(&mut self) -> Option<Settled> {
        let at = self.head;
        let node = self.nodes.get_mut(at as usize)?;
        let Node { waiter, ring, next, order_only, verdict } = *node;
        node.next = self.free;
        self.free = at;
        self.in_use -= 1;
        self.head = next;
        self.verdict = verdict.unwrap_or(self.verdict);
        let cause = match self.verdict {
            Verdict::Failed(cause) if !order_only => Some(cause),
            _ => None,
        };
        Some(Settled { waiter, ring, cause })
    }

    /// Who waits for the op whose list this is, and whether for its order only.
    pub fn waiters(&self, list: u32) -> impl Iterator<Item = (RecordId, bool)> + '_ {
        let first = self.nodes.get(list as usize).map(|last| last.next);
        let after = move |at: &u32| (*at != list).then(|| self.nodes[*at as usize].next);
        std::iter::successors(first, after)
            .map(|at| (self.nodes[at as usize].waiter, self.nodes[at as usize].order_only))
    }

    /// Edges of the work list: their ring, and who waits.
    #[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
    pub(crate) fn settled(&self) -> impl Iterator<Item = (RingId, RecordId)> + '_ {
        let some = |at: u32| (at != NIL).then_some(at);
        std::iter::successors(some(self.head), move |&at| some(self.nodes[at as usize].next))
            .map(|at| (self.nodes[at as usize].ring, self.nodes[at as usize].waiter))
    }
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::seeds::property;

    proptest! {
        #![proptest_config(property(300))]

        /// The model: of each op a list of (who waits, order only), and one queue of those told.
        #[test]
        fn each_edge_is_told_once_in_order_with_its_own_outcome(
            steps in proptest::collection::vec((0..4u8, 0..6usize, any::<bool>()), 1..300),
        ) {
            const CAPACITY: u32 = 16;
            const DETAILS: [u16; 6] = [0, 1, 2, 3, 4, 5];
            let mut edges = Edges::new(CAPACITY);
            let mut lists = [NIL; 6];
            let mut model: [Vec<(RecordId, bool)>; 6] = Default::default();
            let mut told: VecDeque<Settled> = VecDeque::new();
            let (mut count, mut peak) = (0, 0);
            for (id, (what, op, flag)) in (1..).zip(steps) {
                match what {
                    0 | 1 if count < CAPACITY => {
                        let waiter = RecordId(id);
                        edges.add(&mut lists[op], waiter, RingId(7), flag);
                        model[op].push((waiter, flag));
                        count += 1;
                        peak = count.max(peak);
                    }
                    2 if lists[op] != NIL => {
                        let cause = flag.then_some(Cause { errno: 5, detail: DETAILS[op] });
                        edges.settle(std::mem::replace(&mut lists[op], NIL), cause);
                        told.extend(model[op].drain(..).map(|(waiter, order_only)| Settled {
                            waiter,
                            ring: RingId(7),
                            cause: cause.filter(|_| !order_only),
                        }));
                    }
                    _ => {
                        let next = edges.take();
                        count -= u32::from(next.is_some());
                        prop_assert_eq!(next, told.pop_front());
                    }
                }
                prop_assert_eq!(edges.is_settled(), told.is_empty());
                prop_assert_eq!((edges.in_use(), edges.peak()), (count, peak));
                for (list, waiters) in lists.iter().zip(&model) {
                    let listed: Vec<_> = edges.waiters(*list).collect();
                    prop_assert_eq!(&listed, waiters);
                }
            }
        }
    }
}
