//! The reference for dependencies, the obvious slow way: told what was pushed into a ring, and how
//! what was pushed has ended so far, it says which op may start, and how each may end.
//!
//! Tests of the engine and the worlds of the simulator compare with it. It knows the contract
//! (docs/abi.md) and nothing of how the engine keeps it: it remembers every SQE of a ring, looks
//! for predecessors anew whenever it is asked, and follows no list.

use std::collections::{BTreeMap, BTreeSet};

use crate::abi::{
    CQE_DEP_FAILED, CQE_MAYBE_DONE, CQE_RETRYABLE, Cqe, Detail, EDGE_ORDER_ONLY, Opcode, SQE_DRAIN,
    SQE_HARDLINK, SQE_LINK, Sqe, errno,
};

/// Why something failed: what is passed on along edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cause {
    /// Above 0.
    pub(crate) errno: i32,
    /// As in the CQE of the op that failed first.
    pub(crate) detail: u16,
}

/// What is known of the end of an SQE.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Open,
    Done,
    /// Of one of these, as far as it was told.
    Failed(Vec<Cause>),
}

/// How an op came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// It was carried out, well or not.
    Ran,
    /// A predecessor had failed.
    Inherited,
    /// It was ended before its predecessors were over, or whatever became of them.
    Early,
    /// It was refused: a field was wrong.
    Refused,
}

#[derive(Clone, Debug)]
struct Node {
    sqe: Sqe,
    end: End,
    /// When it was taken, and when it ended, in the numbers of whoever tells.
    taken: u64,
    ended: u64,
    /// Its place among all that have ended.
    place: usize,
}

/// One ring's SQEs, from its first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    /// Neither over nor an ARM.
    open: BTreeSet<usize>,
    /// DRAINs that are not over: one that is holds nobody.
    drains: BTreeSet<usize>,
    ended: usize,
}

/// The edges that an SQE names: distance, and whether it carries failure. For a JOIN all ten.
pub(crate) fn named(sqe: &Sqe) -> Vec<u16> {
    let mut edges = sqe.edges.to_vec();
    if sqe.opcode == Opcode::Join as u8 {
        for word in sqe.arg {
            edges.extend([0, 16, 32, 48].map(|shift| ((word >> shift) & 0xffff) as u16));
        }
    }
    edges
}

fn is_arm(sqe: &Sqe) -> bool {
    sqe.opcode == Opcode::Arm as u8
}

impl Graph {
    /// Another SQE was pushed: its number, from 0.
    pub(crate) fn push(&mut self, sqe: &Sqe) -> u64 {
        let at = self.nodes.len();
        self.nodes.push(Node { sqe: *sqe, end: End::Open, taken: 0, ended: 0, place: usize::MAX });
        if !is_arm(sqe) {
            self.open.insert(at);
        }
        if sqe.flags & SQE_DRAIN != 0 {
            self.drains.insert(at);
        }
        at as u64
    }

    /// What is wrong with the edges and links of an SQE, if anything is.
    pub(crate) fn fault(&self, number: u64) -> Option<(i32, Detail)> {
        let at = place(number);
        let sqe = &self.nodes[at].sqe;
        let order = SQE_LINK | SQE_HARDLINK | SQE_DRAIN;
        if is_arm(sqe) && sqe.flags & order != 0 {
            return Some((errno::EINVAL, Detail::Flags));
        }
        let wrong = named(sqe).into_iter().any(|edge| {
            let distance = usize::from(edge & !EDGE_ORDER_ONLY);
            edge == EDGE_ORDER_ONLY
                || distance > at
                || distance > 0 && is_arm(&self.nodes[at - distance].sqe)
        });
        wrong.then_some((errno::EINVAL, Detail::Edges))
    }

    /// What an SQE waits for, and whether a failure of that is its own.
    pub(crate) fn predecessors(&self, number: u64) -> BTreeMap<u64, bool> {
        let at = place(number);
        let sqe = &self.nodes[at].sqe;
        let mut found = BTreeMap::new();
        let mut wait = |of: usize, carries: bool| {
            *found.entry(of as u64).or_insert(false) |= carries;
        };
        for edge in named(sqe) {
            let distance = usize::from(edge & !EDGE_ORDER_ONLY);
            if distance > 0 && distance <= at {
                wait(at - distance, edge & EDGE_ORDER_ONLY == 0);
            }
        }
        if at > 0 {
            match self.nodes[at - 1].sqe.flags & (SQE_LINK | SQE_HARDLINK) {
                0 => {}
                SQE_LINK => wait(at - 1, true),
                _ => wait(at - 1, false),
            }
        }
        if sqe.flags & SQE_DRAIN != 0 {
            self.open.range(..at).for_each(|&earlier| wait(earlier, false));
        }
        self.drains.range(..at).for_each(|&drain| wait(drain, false));
        found
    }

    /// Those of its predecessors that are not over.
    pub(crate) fn waits_for(&self, number: u64) -> Vec<u64> {
        let all = self.predecessors(number);
        all.into_keys().filter(|&of| self.nodes[place(of)].end == End::Open).collect()
    }

    /// True once it has ended.
    pub(crate) fn is_over(&self, number: u64) -> bool {
        self.nodes[place(number)].end != End::Open
    }

    /// Of what it failed, if it did: one of these, as far as it was told.
    fn failure(&self, number: u64) -> Option<&[Cause]> {
        match &self.nodes[place(number)].end {
            End::Failed(causes) => Some(causes),
            _ => None,
        }
    }

    /// Whose failure is its own, in the order in which they are named so: by edges, then by a link.
    fn carriers(&self, number: u64) -> Vec<u64> {
        let at = place(number);
        let carrying = named(&self.nodes[at].sqe).into_iter();
        let carrying = carrying.filter(|edge| *edge != 0 && edge & EDGE_ORDER_ONLY == 0);
        let mut found: Vec<u64> = carrying
            .map(u64::from)
            .filter(|distance| *distance <= number)
            .map(|distance| number - distance)
            .collect();
        let links = |before: &Node| before.sqe.flags & (SQE_LINK | SQE_HARDLINK) == SQE_LINK;
        if at > 0 && links(&self.nodes[at - 1]) {
            found.push(number - 1);
        }
        found
    }

    /// What an op inherits once all its predecessors are over: nothing, or one of these causes.
    /// Of those that had failed before it was taken, the one counts that it names first; without
    /// any, the one that failed first. Where something failed in the very turn in which it was
    /// taken, it may have been taken before or after that.
    pub(crate) fn inherits(&self, number: u64) -> Vec<Cause> {
        let taken = self.nodes[place(number)].taken;
        let failed: Vec<u64> = self.carriers(number);
        let failed: Vec<&Node> = failed
            .into_iter()
            .filter(|of| self.failure(*of).is_some())
            .map(|of| &self.nodes[place(of)])
            .collect();
        let ends = |of: &&&Node| of.ended <= taken;
        let surely = failed.iter().filter(|of| of.ended < taken).map(|of| of.place + 1).max();
        let perhaps = failed.iter().filter(ends).map(|of| of.place + 1);
        let perhaps = perhaps.filter(|after| Some(*after) > surely);
        let mut causes = BTreeSet::new();
        for moment in perhaps.chain([surely.unwrap_or(0)]) {
            let before = failed.iter().find(|of| of.place < moment);
            let first = before.or_else(|| failed.iter().min_by_key(|of| of.place));
            if let Some(Node { end: End::Failed(of), .. }) = first {
                causes.extend(of);
            }
        }
        causes.into_iter().collect()
    }

    /// A predecessor of this op failed, and it was carried out all the same.
    pub(crate) fn passed_a_failure(&self, number: u64) -> bool {
        self.predecessors(number).into_keys().any(|of| self.failure(of).is_some())
    }

    /// It was taken: whatever ended up to now did so before.
    #[cfg(test)]
    pub(crate) fn take(&mut self, number: u64, now: u64) {
        self.nodes[place(number)].taken = now;
    }

    /// A success of which there is no CQE.
    ///
    /// # Errors
    /// What cannot be, in words.
    pub(crate) fn skip(&mut self, number: u64, now: u64) -> Result<(), String> {
        self.may_have_run(number, "skipped")?;
        self.close(number, End::Done, now);
        Ok(())
    }

    /// A final CQE. CQEs must be told in the order in which they were published; what was skipped,
    /// before.
    ///
    /// # Errors
    /// What cannot be, in words.
    pub(crate) fn end(&mut self, number: u64, cqe: &Cqe, now: u64) -> Result<Course, String> {
        if self.is_over(number) {
            return Err(format!("SQE {number} ended twice: {cqe:?}"));
        }
        let cause = Cause { errno: -cqe.res, detail: cqe.detail };
        let refused = cqe.record == 0;
        let (course, end) = if refused {
            let fault = self.fault(number);
            let edges = cqe.detail == Detail::Edges as u16 && cqe.res == -errno::EINVAL;
            if edges && fault.is_none() {
                return Err(format!("the edges of SQE {number} are right: {cqe:?}"));
            }
            (Course::Refused, End::Failed(vec![cause]))
        } else if let Some(fault) = self.fault(number) {
            return Err(format!("SQE {number} was to be refused with {fault:?}: {cqe:?}"));
        } else if cqe.flags & CQE_DEP_FAILED != 0 {
            (Course::Inherited, End::Failed(self.inherit(number, cqe)?))
        } else if is_early(cqe) {
            (Course::Early, End::Failed(vec![cause]))
        } else {
            self.may_have_run(number, &format!("{cqe:?}"))?;
            let end = if cqe.res < 0 { End::Failed(vec![cause]) } else { End::Done };
            (Course::Ran, end)
        };
        self.close(number, end, now);
        Ok(course)
    }

    /// It failed with the rail that it had been posted to behind its predecessor.
    pub(crate) fn fail(&mut self, number: u64, cqe: &Cqe, now: u64) {
        let cause = Cause { errno: -cqe.res, detail: cqe.detail };
        self.close(number, End::Failed(vec![cause]), now);
    }

    /// The record of an op that inherited a failure names this errno as its cause.
    ///
    /// # Errors
    /// It cannot be that, in words.
    #[cfg(test)]
    pub(crate) fn recorded(&mut self, number: u64, errno: i32) -> Result<(), String> {
        let End::Failed(causes) = &mut self.nodes[place(number)].end else {
            return Err(format!("SQE {number} has not failed"));
        };
        let told: Vec<_> = causes.iter().copied().filter(|cause| cause.errno == errno).collect();
        if told.is_empty() {
            return Err(format!("SQE {number} failed of one of {causes:?}, and records {errno}"));
        }
        *causes = told;
        Ok(())
    }

    /// An op that was carried out had no predecessor under way, and none that failed.
    fn may_have_run(&self, number: u64, what: &str) -> Result<(), String> {
        let open = self.waits_for(number);
        if !open.is_empty() {
            return Err(format!("SQE {number} ran before {open:?} were over: {what}"));
        }
        let inherits = self.inherits(number);
        if !inherits.is_empty() {
            return Err(format!("SQE {number} ran, and inherits {inherits:?}: {what}"));
        }
        Ok(())
    }

    fn inherit(&self, number: u64, cqe: &Cqe) -> Result<Vec<Cause>, String> {
        let open = self.waits_for(number);
        if !open.is_empty() {
            return Err(format!("SQE {number} inherits before {open:?} are over: {cqe:?}"));
        }
        // One that had been posted behind its predecessor may have taken effect.
        let flags = [CQE_RETRYABLE, CQE_MAYBE_DONE].map(|flag| CQE_DEP_FAILED | flag);
        if cqe.res != -errno::ECANCELED || !flags.contains(&cqe.flags) {
            return Err(format!("SQE {number} inherits, and says {cqe:?}"));
        }
        let causes = self.inherits(number);
        let told = causes.iter().copied().filter(|cause| cause.detail == cqe.detail);
        let told: Vec<_> = told.collect();
        if told.is_empty() {
            return Err(format!("SQE {number} inherits one of {causes:?}, and says {cqe:?}"));
        }
        Ok(told)
    }

    fn close(&mut self, number: u64, end: End, now: u64) {
        let node = &mut self.nodes[place(number)];
        (node.end, node.ended, node.place) = (end, now, self.ended);
        self.ended += 1;
        self.open.remove(&place(number));
        self.drains.remove(&place(number));
    }
}

/// Ends that may come while an op still waits for others: it was taken back, was late, or what it
/// needs was withdrawn.
fn is_early(cqe: &Cqe) -> bool {
    let early = [
        (errno::ECANCELED, Detail::Cancelled),
        (errno::ECANCELED, Detail::Released),
        (errno::ETIME, Detail::Deadline),
        (errno::ESTALE, Detail::Revoked),
        (errno::ESHUTDOWN, Detail::Closing),
    ];
    early.iter().any(|(errno, detail)| (-cqe.res, cqe.detail) == (*errno, *detail as u16))
}

#[expect(clippy::cast_possible_truncation, reason = "rings of tests have few SQEs")]
fn place(number: u64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nop(flags: u16, edges: [u16; 2]) -> Sqe {
        Sqe { flags, edges, ..Sqe::default() }
    }

    fn done() -> Cqe {
        Cqe { record: 1, ..Cqe::default() }
    }

    fn failed(errno: i32) -> Cqe {
        Cqe { res: -errno, ..done() }
    }

    #[test]
    fn predecessors_are_those_of_edges_links_and_drains() {
        let mut graph = Graph::default();
        let order = EDGE_ORDER_ONLY;
        for sqe in [
            nop(SQE_LINK, [0, 0]),
            nop(SQE_HARDLINK | SQE_LINK, [0, 0]),
            nop(0, [2 | order, 2]),
            nop(SQE_DRAIN, [3, 0]),
            nop(0, [2 | order, 0]),
        ] {
            graph.push(&sqe);
        }
        let all = (0..5).map(|number| graph.predecessors(number).into_iter().collect::<Vec<_>>());
        let all: Vec<_> = all.collect();
        let drain = vec![(0, true), (1, false), (2, false)];
        let expected = [
            vec![],
            vec![(0, true)],
            vec![(0, true), (1, false)],
            drain,
            vec![(2, false), (3, false)],
        ];
        assert_eq!(all, expected);
        assert_eq!(graph.waits_for(3), [0, 1, 2]);
    }

    #[test]
    fn a_join_has_ten_edges_and_wrong_ones_are_found() {
        let mut graph = Graph::default();
        (0..12).for_each(|_| {
            graph.push(&nop(0, [0, 0]));
        });
        let arg = [0x0006_0005_0004_0003, 0x000a_0009_0008_8007];
        let join = Sqe { opcode: Opcode::Join as u8, arg, ..nop(0, [1, 2]) };
        let number = graph.push(&join);
        let found = graph.predecessors(number);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [
                (2, true),
                (3, true),
                (4, true),
                (5, false),
                (6, true),
                (7, true),
                (8, true),
                (9, true),
                (10, true),
                (11, true),
            ]
        );
        assert_eq!(graph.fault(number), None);
        let edges = Some((errno::EINVAL, Detail::Edges));
        for (sqe, fault) in [
            (nop(0, [14, 0]), edges),
            (nop(0, [0, EDGE_ORDER_ONLY]), edges),
            (nop(0, [15, 0]), None),
            (Sqe { opcode: Opcode::Arm as u8, ..nop(0, [1, 0]) }, None),
            (nop(0, [1, 0]), edges),
            (
                Sqe { opcode: Opcode::Arm as u8, ..nop(SQE_LINK, [0, 0]) },
                Some((errno::EINVAL, Detail::Flags)),
            ),
        ] {
            let number = graph.push(&sqe);
            assert_eq!(graph.fault(number), fault, "{sqe:?}");
        }
    }

    /// SQE 3 names 2 for the order only, then 0 and 1, and 2 by the link.
    #[test]
    fn of_several_failures_the_first_named_or_the_first_in_time_is_inherited() {
        let cause = |detail| Cause { errno: 5, detail };
        // What fails in turn 1 and in turn 3, in order; when SQE 3 was taken; what it inherits.
        type Case = (&'static [u16], &'static [u16], u64, &'static [u16]);
        let cases: [Case; 12] = [
            (&[2, 1, 0], &[], 2, &[0]),
            (&[2, 1], &[], 2, &[1]),
            (&[2, 1], &[0], 2, &[1]),
            (&[2], &[1, 0], 2, &[2]),
            (&[], &[2, 1, 0], 2, &[2]),
            (&[], &[1, 0, 2], 2, &[1]),
            (&[2, 1, 0], &[], 0, &[2]),
            (&[2], &[0, 1], 4, &[0]),
            // It was taken in the same turn.
            (&[2, 1, 0], &[], 1, &[0, 1, 2]),
            (&[1, 0, 2], &[], 1, &[0, 1]),
            (&[2], &[1, 0], 3, &[0, 1, 2]),
            (&[1], &[2, 0], 3, &[0, 1]),
        ];
        for (early, late, taken, inherits) in cases {
            let mut graph = Graph::default();
            graph.push(&nop(0, [0, 0]));
            graph.push(&nop(0, [0, 0]));
            graph.push(&nop(SQE_LINK, [0, 0]));
            let arg = [0x0002_0003, 0];
            let edges = [1 | EDGE_ORDER_ONLY, 0];
            graph.push(&Sqe { opcode: Opcode::Join as u8, arg, ..nop(0, edges) });
            graph.take(3, taken);
            for (turn, failing) in [(1, early), (3, late)] {
                for &number in failing {
                    let cqe = Cqe { detail: number, ..failed(5) };
                    graph.end(number.into(), &cqe, turn).unwrap();
                }
            }
            let expected: Vec<_> = inherits.iter().copied().map(cause).collect();
            assert_eq!(graph.inherits(3), expected, "{early:?} {late:?} taken in {taken}");
        }
    }

    /// Two causes with one detail are told apart by the record.
    #[test]
    fn a_record_tells_which_cause_it_was() {
        let mut graph = Graph::default();
        for edges in [[0, 0], [0, 0], [2, 1], [1, 0]] {
            graph.push(&nop(0, edges));
        }
        graph.end(1, &failed(5), 1).unwrap();
        graph.end(0, &failed(6), 1).unwrap();
        graph.take(2, 1);
        let flags = CQE_DEP_FAILED | CQE_RETRYABLE;
        graph.end(2, &Cqe { flags, ..failed(errno::ECANCELED) }, 2).unwrap();
        assert_eq!(graph.inherits(3).len(), 2, "either");
        assert!(graph.recorded(2, 7).is_err());
        graph.recorded(2, 6).unwrap();
        assert_eq!(graph.inherits(3), [Cause { errno: 6, detail: 0 }]);
        assert!(graph.recorded(3, 6).is_err(), "it is not over");
    }

    #[test]
    fn what_cannot_be_is_told() {
        let fresh = || {
            let mut graph = Graph::default();
            for sqe in [nop(0, [0, 0]), nop(0, [0, 0]), nop(0, [1, 2]), nop(0, [1 | 1 << 15, 0])] {
                graph.push(&sqe);
            }
            graph
        };
        let inherited = |detail: u16| Cqe {
            flags: CQE_DEP_FAILED | CQE_RETRYABLE,
            detail,
            ..failed(errno::ECANCELED)
        };
        let mut graph = fresh();
        assert!(graph.end(2, &done(), 1).is_err(), "before its predecessors");
        assert!(graph.end(2, &inherited(0), 1).is_err(), "before its predecessors");
        graph.end(1, &Cqe { detail: 7, ..failed(5) }, 1).unwrap();
        assert!(graph.end(2, &inherited(7), 1).is_err(), "before all its predecessors");
        graph.end(0, &Cqe { detail: 8, ..failed(5) }, 1).unwrap();
        assert!(graph.end(2, &done(), 2).is_err(), "a failure is passed over");
        assert!(graph.end(2, &inherited(8), 2).is_err(), "not the first cause");
        assert_eq!(graph.end(2, &inherited(7), 2), Ok(Course::Inherited));
        assert!(graph.end(2, &inherited(7), 2).is_err(), "twice");
        assert!(graph.end(3, &inherited(7), 2).is_err(), "along an edge that carries nothing");
        assert_eq!(graph.end(3, &done(), 2), Ok(Course::Ran));
        assert!(graph.passed_a_failure(3));
        // Taken back while it waits.
        let back = Cqe { detail: Detail::Cancelled as u16, ..failed(errno::ECANCELED) };
        assert_eq!(fresh().end(2, &back, 1), Ok(Course::Early));
        let refused = Cqe { record: 0, detail: Detail::Edges as u16, ..failed(errno::EINVAL) };
        assert!(fresh().end(2, &refused, 1).is_err(), "nothing is wrong with it");
    }
}
