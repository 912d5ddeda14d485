//! Lanes without flows: in each a row of ops for every line, and the oldest head goes first.
//!
//! What is parked holds its row. So does an op of class high whose owner is capped: where there are
//! no flows, those behind it wait with it.

use crate::abi::{Class, WAIT_CAP, WAIT_LANE, WAIT_NONE, WAIT_TURN};
use crate::ledger::{LANE, Ledger, List, NIL};

use super::flows::{Extent, Flows, LANES, lane_of};
use super::owners::Owners;
use super::scheduler::{Place, Shape};

/// One lane, or six.
#[derive(Debug)]
pub(super) struct Rows {
    lanes: u32,
    lines: u32,
    pub(super) flows: Flows,
    /// By lane: lines with ops, a bit each.
    queued: [u64; LANES as usize],
    /// By lane: lines that are parked.
    parked: [u64; LANES as usize],
}

impl Rows {
    pub(super) fn new(lanes: u32, shape: Shape, ageing: bool) -> Self {
        let lines = u32::from(shape.peers);
        let extent = Extent { lanes, sessions: 1, lines };
        let flows = Flows::new(extent, ageing);
        Self { lanes, lines, flows, queued: [0; 6], parked: [0; 6] }
    }

    /// The row of an op: its flow, lane, and the bit of its line.
    #[inline]
    fn row(&self, ledger: &Ledger, slot: u32) -> (u32, usize, u64) {
        let record = &ledger[slot];
        let lane = if self.lanes == 1 { 0 } else { lane_of(record) };
        let line = if self.lines == 1 { 0 } else { u32::from(record.line) };
        (lane * self.lines + line, lane as usize, 1 << line)
    }

    #[inline]
    pub(super) fn push(&mut self, ledger: &mut Ledger, slot: u32, front: bool) -> bool {
        let (flow, lane, bit) = self.row(ledger, slot);
        self.queued[lane] |= bit;
        self.flows.push(ledger, slot, flow, front)
    }

    #[inline]
    pub(super) fn append(&mut self, ledger: &mut Ledger, run: List<LANE>) -> bool {
        let (flow, lane, bit) = self.row(ledger, run.head());
        self.queued[lane] |= bit;
        self.flows.append(ledger, run, flow)
    }

    #[inline]
    pub(super) fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        let (flow, lane, bit) = self.row(ledger, slot);
        if self.flows.remove(ledger, slot, flow) {
            self.queued[lane] &= !bit;
            self.parked[lane] &= !bit;
        }
    }

    /// True if a lane has nothing, parked or not.
    #[inline]
    pub(super) fn is_idle(&self, lane: usize) -> bool {
        self.queued[lane] == 0
    }

    /// The op of a lane to serve next.
    #[inline]
    pub(super) fn first(&self, ledger: &Ledger, owners: &Owners, lane: usize) -> Option<u32> {
        let mut rows = self.queued[lane] & !self.parked[lane];
        let mut best = None;
        while rows != 0 {
            let line = rows.trailing_zeros();
            rows &= rows - 1;
            let flow = u32::try_from(lane).unwrap_or(0) * self.lines + line;
            let slot = self.flows.head(ledger, flow);
            debug_assert!(slot != NIL);
            if is_capped(ledger, owners, slot) {
                continue;
            }
            let sequence = ledger[slot].sequence;
            if best.is_none_or(|(least, _)| sequence < least) {
                best = Some((sequence, slot));
            }
        }
        best.map(|(_, slot)| slot)
    }

    pub(super) fn park(&mut self, ledger: &Ledger, slot: u32) {
        let (_, lane, bit) = self.row(ledger, slot);
        self.parked[lane] |= bit;
    }

    pub(super) fn unpark(&mut self, line: u16) {
        for parked in &mut self.parked {
            *parked &= !(1 << line);
        }
    }

    pub(super) fn parked(&self) -> u64 {
        self.parked.iter().fold(0, |all, parked| all | parked)
    }

    pub(super) fn place(&self, ledger: &Ledger, owners: &Owners, slot: u32, most: u32) -> Place {
        let (_, lane, bit) = self.row(ledger, slot);
        let ahead = self.flows.ahead(ledger, slot, most);
        let wait = if ahead > 0 {
            WAIT_LANE
        } else if self.parked[lane] & bit != 0 {
            ledger[slot].wait
        } else if is_capped(ledger, owners, slot) {
            WAIT_CAP
        } else if self.first(ledger, owners, lane) != Some(slot) {
            WAIT_TURN
        } else {
            WAIT_NONE
        };
        Place { ahead, first: ahead == 0, wait, flows: self.flows.in_lane(&ledger[slot]) }
    }
}

#[inline]
fn is_capped(ledger: &Ledger, owners: &Owners, slot: u32) -> bool {
    let record = &ledger[slot];
    record.class == Class::High && owners.is_capped(record.session)
}
