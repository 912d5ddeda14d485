//! What an op waits for, as its builder collects it.
//!
//! Edges name ops by their numbers here, and by distances once the op has its own number, when it
//! is pushed. Two fit in an entry; for more, the ring pushes JOINs before the op, each of which
//! takes up to ten and leaves one, until those that remain fit.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::error::{PushError, PushReason, RingError};
use super::ops::Join;
use super::ring::{Ring, Ticket, helper_name};
use crate::abi::{EDGE_ORDER_ONLY, Opcode, SQE_SKIP_SUCCESS, Sqe};

/// The earlier ops that an op waits for. One or two cost no allocation.
#[expect(unnameable_types, reason = "part of a sealed trait")]
#[derive(Debug, Default)]
pub struct Edges {
    few: [Edge; Sqe::EDGES],
    count: usize,
    /// All of them, once they are more than a few.
    many: Vec<Edge>,
    /// The ring of all ops named so far, and one that is not the first one's.
    rings: [Option<u32>; 2],
}

/// An op's number in its ring, and whether its failure stays its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) number: u64,
    pub(super) order_only: bool,
}

impl Edge {
    /// As the entry with this number has it. Too far back is for [`Edges::check`] to find.
    pub(super) fn word(self, own_number: u64) -> u16 {
        let back = u16::try_from(own_number - self.number).unwrap_or(Sqe::EDGE_BACK_MAX);
        if self.order_only { back | EDGE_ORDER_ONLY } else { back }
    }
}

impl Edges {
    pub(super) fn add(&mut self, op: Ticket, order_only: bool) {
        let edge = Edge { number: op.number(), order_only };
        match self.rings {
            [None, _] => self.rings[0] = Some(op.ring()),
            [Some(first), None] if first != op.ring() => self.rings[1] = Some(op.ring()),
            _ => {}
        }
        if self.count == self.few.len() && self.many.is_empty() {
            self.many.extend(self.few);
        }
        match self.few.get_mut(self.count) {
            Some(place) => *place = edge,
            None => self.many.push(edge),
        }
        self.count += 1;
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn all(&self) -> &[Edge] {
        if self.many.is_empty() { &self.few[..self.count] } else { &self.many }
    }

    /// How many JOINs it takes to leave no more than `limit`.
    pub(super) fn joins(&self, limit: usize) -> usize {
        self.count.saturating_sub(limit).div_ceil(Sqe::JOIN_EDGES - 1)
    }

    /// Judges whether the op with this number in this ring can wait for all of these; `pushed` is
    /// the number of the next SQE.
    pub(super) fn check(&self, ring: u32, pushed: u64, own_number: u64) -> Result<(), PushReason> {
        if let Some(other) = self.rings.into_iter().flatten().find(|named| *named != ring) {
            return Err(PushReason::OtherRing { ring: other });
        }
        for edge in self.all() {
            if edge.number >= pushed {
                return Err(PushReason::Unpushed { number: edge.number });
            }
            let back = own_number - edge.number;
            if back > u64::from(Sqe::EDGE_BACK_MAX) {
                return Err(PushReason::TooFar { back });
            }
        }
        Ok(())
    }
}

impl Ring {
    /// Pushes a [`Join`] of ops: it completes once all of them are over, with 0, or fails if one of
    /// them did. Of more than ten, JOINs of JOINs make one: see [`Ring::push`].
    ///
    /// # Errors
    /// As [`Ring::push`].
    #[expect(clippy::result_large_err, reason = "what was not pushed is given back")]
    pub fn join<T: Borrow<Ticket>>(
        &mut self,
        earlier: impl IntoIterator<Item = T>,
    ) -> Result<Ticket, PushError<Join>> {
        self.push(Join::of(earlier))
    }

    /// Judges whether an op with room for so many edges can be pushed with all of these.
    #[cold]
    pub(super) fn may_wait(&mut self, edges: &Edges, limit: usize) -> Result<(), PushReason> {
        let joins = edges.joins(limit) as u64;
        let pushed = self.raw.pushed();
        edges.check(self.raw.number(), pushed, pushed + joins)?;
        let (needs, entries) = (joins + 1, self.raw.sq_entries());
        match u32::try_from(needs) {
            Ok(needs) if needs <= entries => {
                if self.raw.has_room(needs) {
                    Ok(())
                } else {
                    Err(PushReason::Full)
                }
            }
            _ => Err(PushReason::TooMany { needs, entries }),
        }
    }

    /// Puts edges into an entry that is pushed next, and JOINs before it if they are too many.
    #[cold]
    pub(super) fn wired(&mut self, sqe: Sqe, edges: Edges) -> Sqe {
        let limit = sqe.edges_max();
        if edges.all().len() <= limit {
            return self.with_edges(sqe, edges.all().iter().copied());
        }
        let mut open: VecDeque<Edge> = edges.many.into();
        while open.len() > limit {
            // No more than is needed: the last JOIN leaves just as many as there is room for.
            let taken = (open.len() - limit + 1).min(Sqe::JOIN_EDGES);
            let number = self.raw.pushed();
            let join = Sqe {
                opcode: Opcode::Join as u8,
                class: sqe.class,
                flags: SQE_SKIP_SUCCESS,
                user_data: helper_name(number),
                ..Sqe::default()
            };
            let join = self.with_edges(join, open.drain(..taken));
            let pushed = self.raw.push(join);
            debug_assert_eq!(pushed, Some(number), "room for it was seen");
            open.push_back(Edge { number, order_only: false });
            self.helped = true;
        }
        self.with_edges(sqe, open.into_iter())
    }

    fn with_edges(&self, sqe: Sqe, edges: impl Iterator<Item = Edge>) -> Sqe {
        let number = self.raw.pushed();
        edges.fold(sqe, |sqe, edge| {
            let Some(sqe) = sqe.with_edge(edge.word(number)) else {
                unreachable!("edges were counted, and are of earlier ops");
            };
            sqe
        })
    }

    /// [`Ring::wait`] where some of the CQEs may not be a caller's: each is looked at.
    pub(super) fn wait_for_callers(
        &mut self,
        want: usize,
        within: Option<Duration>,
    ) -> Result<usize, RingError> {
        let want = want.min(self.raw.cq_entries() as usize);
        let until = within.and_then(|within| Instant::now().checked_add(within));
        loop {
            self.keep_completions();
            let kept = self.popped.len();
            if kept >= want {
                return Ok(kept);
            }
            let lack = want - kept;
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            match self.raw.wait(u32::try_from(lack).unwrap_or(u32::MAX), left) {
                Ok(ready) if ready as usize >= lack => {}
                Ok(_) => {
                    self.keep_completions();
                    return Ok(self.popped.len());
                }
                Err(_) if kept > 0 => return Ok(kept),
                Err(over) => return Err(over),
            }
        }
    }
}

#[cfg(test)]
mod tests;
