//! Nothing starts before what it waits for is over; a failure ends what depends on it, and nothing
//! else. Every client's ring is compared with the reference of `engine::graph`: CQEs as they are
//! published, and the fate table, which shows what was started.

use std::collections::BTreeSet;

use super::hold;
use crate::abi::{
    CQE_MORE, Cqe, FATE_ACCEPTED, FATE_POSTED, FATE_SHIFT, Opcode, SQE_DRAIN, SQE_SKIP_SUCCESS, Sqe,
};
use crate::engine::graph::{Course, Graph};
use crate::ring::{Heap, Memory as _, Word};
use crate::sim::counts::{Count, Counts};
use std::sync::atomic::Ordering;

/// What is known of the ops of one ring.
#[derive(Debug, Default)]
pub(in crate::sim) struct Edges {
    graph: Graph,
    sqes: Vec<Sqe>,
    /// Taken, not an ARM, and not over.
    open: BTreeSet<u64>,
    waited: BTreeSet<u64>,
    taken: u64,
    /// CQEs that were published and are yet to be heard.
    coming: BTreeSet<u64>,
}

impl Edges {
    /// Another SQE was pushed.
    pub(in crate::sim) fn push(&mut self, sqe: &Sqe) {
        self.graph.push(sqe);
        self.sqes.push(*sqe);
    }

    /// The SQE that was pushed last ties the next one to itself.
    pub(in crate::sim) fn links(&self) -> bool {
        use crate::abi::{SQE_HARDLINK, SQE_LINK};
        self.sqes.last().is_some_and(|sqe| sqe.flags & (SQE_LINK | SQE_HARDLINK) != 0)
    }

    /// These CQEs were published, and will be heard in turn.
    pub(in crate::sim) fn expect(&mut self, cqes: &[Cqe]) {
        let last = cqes.iter().filter(|cqe| cqe.flags & CQE_MORE == 0);
        self.coming = last.filter_map(|cqe| self.number(cqe.user_data)).collect();
    }

    /// The next CQE that was published.
    pub(in crate::sim) fn hear(&mut self, cqe: &Cqe, ring: &Heap, counts: &mut Counts) {
        let Some(number) = self.number(cqe.user_data) else { return };
        self.skip(number, ring, counts);
        if cqe.flags & CQE_MORE != 0 {
            let open = self.graph.waits_for(number);
            hold!(Edges, open.is_empty(), "an ARM tells before {open:?} are over: {cqe:?}");
            return;
        }
        let over = self.graph.is_over(number);
        hold!(OneCqe, !over, "a second CQE, or one of a success that was skipped: {cqe:?}");
        match self.graph.end(number, cqe, 0) {
            // Its rail failed under it, before its predecessor's end was known.
            Err(_) if cqe.res < 0 && self.may_ride(number) => self.graph.fail(number, cqe, 0),
            Err(why) => hold!(Edges, false, "{why}; {:?}", self.sqe(number)),
            Ok(Course::Inherited) => counts.add(Count::DepFailed),
            Ok(Course::Ran) => self.ran(number, counts),
            Ok(Course::Early) if self.waited.contains(&number) => counts.add(Count::WaitEnded),
            Ok(Course::Refused) if self.graph.fault(number).is_some() => {
                counts.add(Count::EdgesRefused);
            }
            Ok(_) => {}
        }
        self.open.remove(&number);
        self.waited.remove(&number);
        self.coming.remove(&number);
    }

    fn ran(&self, number: u64, counts: &mut Counts) {
        let waited = self.waited.contains(&number);
        let drains = self.sqe(number).flags & SQE_DRAIN != 0;
        counts.many(Count::Released, u64::from(waited));
        counts.many(Count::DrainReleased, u64::from(waited && drains));
        counts.many(Count::OrderPassed, u64::from(self.graph.passed_a_failure(number)));
    }

    /// Of what this one waits for, what was skipped and is over by its fate.
    fn skip(&mut self, number: u64, ring: &Heap, counts: &mut Counts) {
        if self.graph.is_over(number) {
            return;
        }
        for before in self.graph.waits_for(number) {
            let skips = self.sqe(before).flags & SQE_SKIP_SUCCESS != 0;
            let ends = self.coming.contains(&before);
            let taken = before < taken(ring);
            if !skips || ends || !taken || fate(ring, before).is_some() {
                continue;
            }
            self.skip(before, ring, counts);
            // Who was taken back is told of in front of what it would have waited for.
            let rest = self.graph.waits_for(before);
            if !rest.is_empty() && rest.iter().all(|number| self.coming.contains(number)) {
                continue;
            }
            if let Err(why) = self.graph.skip(before, 0) {
                let first =
                    self.graph.waits_for(before).first().map(|&first| (first, self.sqe(first)));
                let fate = first.and_then(|(first, _)| fate(ring, first));
                hold!(Edges, false, "{why}; {:?}; {first:?} {fate:?}", self.sqe(before));
            }
            self.ran(before, counts);
            self.open.remove(&before);
        }
    }

    /// After a turn: what is shown as posted had nothing left to wait for.
    pub(in crate::sim) fn look(&mut self, ring: &Heap, counts: &mut Counts) {
        let taken = taken(ring);
        for number in self.taken..taken.min(self.sqes.len() as u64) {
            if self.sqe(number).opcode != Opcode::Arm as u8 && !self.graph.is_over(number) {
                self.open.insert(number);
            }
        }
        self.taken = taken;
        for number in self.open.iter().copied().collect::<Vec<_>>() {
            self.skip(number, ring, counts);
            if self.graph.waits_for(number).is_empty() {
                continue;
            }
            let posted = fate(ring, number) == Some(FATE_POSTED) && !self.may_ride(number);
            let of = || self.graph.waits_for(number);
            hold!(Edges, !posted, "SQE {number} was started before {:?} were over", of());
            if self.waited.insert(number) {
                counts.add(Count::Waited);
            }
        }
    }

    /// It waits for one op alone, whose failure is its own, and both move bytes: it may be posted
    /// behind that one, on a rail that keeps them in order.
    fn may_ride(&self, number: u64) -> bool {
        let moves = |number: u64| {
            let moving = [Opcode::Write, Opcode::Read, Opcode::FetchAdd].map(|it| it as u8);
            moving.contains(&self.sqe(number).opcode)
        };
        let carries = self.graph.predecessors(number);
        match self.graph.waits_for(number)[..] {
            [before] => carries[&before] && moves(before) && moves(number),
            _ => false,
        }
    }

    fn sqe(&self, number: u64) -> &Sqe {
        &self.sqes[usize::try_from(number).unwrap_or(usize::MAX)]
    }

    /// The youngest op with this `user_data`.
    fn number(&self, user_data: u64) -> Option<u64> {
        let at = self.sqes.iter().rposition(|sqe| sqe.user_data == user_data)?;
        Some(at as u64)
    }
}

/// SQEs that were taken from a ring.
fn taken(ring: &Heap) -> u64 {
    let taken = ring.word(Word::SqHead).load(Ordering::Acquire);
    u64::from(taken.wrapping_sub(ring.first_index()))
}

/// What a ring's fate table says of an op, if it has an entry.
fn fate(ring: &Heap, number: u64) -> Option<u64> {
    let words = (0..ring.cq_entries()).map(|place| ring.fate(place)[1].load(Ordering::Acquire));
    let mut stages = words
        .filter(|word| word >> FATE_SHIFT == number)
        .map(|word| word & ((1 << FATE_SHIFT) - 1))
        .filter(|stage| [FATE_ACCEPTED, FATE_POSTED].contains(stage));
    stages.next()
}
