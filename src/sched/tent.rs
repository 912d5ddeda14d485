//! The order of Mooncake's TENT (pull request 2655, July 2026), as it was: for comparison.
//!
//! A pass begins with what is left of the window. It goes round the classes, from the one after the
//! class served last; a class visited gets an eighth of the budget times its weight, up to the
//! whole, in each of its lanes, and is served whole ops until none fits the rest of the budget or
//! the lane's deficit. Rounds end when nothing was taken and no lack of deficit stood in the way.
//!
//! What is wrong in it stays: the quantum follows what is left of the window, so weights do not
//! bite for small ops, and a large op never finds room while smaller ones of others do.

use crate::abi::{Class, WAIT_CLASS, WAIT_NONE};
use crate::ledger::{Ledger, Op};

use super::flows::{LANES, lane_of};
use super::owners::Owners;
use super::rows::Rows;
use super::scheduler::{Place, Shape};

const WEIGHTS: [u64; 3] = [4, 2, 1];

/// Where a pass stands.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    under_way: bool,
    budget_bytes: u64,
    ops_left: u32,
    bytes_left: u64,
    /// The class at which this round began, and visits made in it.
    start: usize,
    visits: usize,
    /// The class that is being visited has got its quantum.
    filled: bool,
    /// In this round: something was taken; something lacked deficit.
    taken: bool,
    lacked: bool,
}

/// The six lanes and the state of the pass.
#[derive(Debug)]
pub(super) struct Tent {
    pub(super) rows: Rows,
    deficit: [u64; LANES as usize],
    /// By class: the origin to look at first.
    next_origin: [usize; 3],
    next_class: usize,
    pass: Pass,
}

impl Tent {
    pub(super) fn new(shape: Shape, ageing: bool) -> Self {
        Self {
            rows: Rows::new(LANES, shape, ageing),
            deficit: [0; LANES as usize],
            next_origin: [0; 3],
            next_class: 0,
            pass: Pass::default(),
        }
    }

    pub(super) fn begin(&mut self, ops_left: u32, bytes_left: u64) {
        self.pass = Pass {
            under_way: true,
            budget_bytes: bytes_left,
            ops_left,
            bytes_left,
            start: self.next_class,
            ..Pass::default()
        };
    }

    /// Goes on to the next op that the pass takes, or to its end.
    pub(super) fn first(&mut self, ledger: &Ledger, owners: &Owners) -> Option<u32> {
        while self.pass.under_way && self.pass.ops_left > 0 && self.pass.bytes_left > 0 {
            if self.pass.visits == 3 {
                if !self.pass.taken && !self.pass.lacked {
                    break;
                }
                let start = self.next_class;
                let Pass { budget_bytes, ops_left, bytes_left, .. } = self.pass;
                self.begin(ops_left, bytes_left);
                (self.pass.budget_bytes, self.pass.start) = (budget_bytes, start);
            }
            let class = (self.pass.start + self.pass.visits) % 3;
            if !self.pass.filled {
                self.fill(ledger, owners, class);
            }
            if let Some(slot) = self.look(ledger, owners, class) {
                return Some(slot);
            }
            self.pass.visits += 1;
            self.pass.filled = false;
        }
        self.pass.under_way = false;
        None
    }

    fn fill(&mut self, ledger: &Ledger, owners: &Owners, class: usize) {
        self.pass.filled = true;
        let budget = self.pass.budget_bytes;
        let quantum = budget.div_ceil(8).max(1).saturating_mul(WEIGHTS[class]);
        for lane in [2 * class, 2 * class + 1] {
            let deficit = &mut self.deficit[lane];
            if self.rows.is_idle(lane) {
                *deficit = 0;
            } else if self.rows.first(ledger, owners, lane).is_some() {
                *deficit = deficit.saturating_add(quantum).min(budget);
            }
        }
    }

    /// The op of a class that fits, of the origin whose turn it is or else of the other.
    fn look(&mut self, ledger: &Ledger, owners: &Owners, class: usize) -> Option<u32> {
        let next = self.next_origin[class];
        for lane in [2 * class + next, 2 * class + 1 - next] {
            let Some(slot) = self.rows.first(ledger, owners, lane) else { continue };
            let bytes = whole(&ledger[slot].op);
            if bytes > self.pass.bytes_left {
                continue;
            }
            if bytes > self.deficit[lane] {
                self.pass.lacked = true;
                continue;
            }
            return Some(slot);
        }
        None
    }

    /// An op was taken.
    pub(super) fn charge(&mut self, ledger: &Ledger, slot: u32, bytes: u32) {
        let lane = lane_of(&ledger[slot]) as usize;
        let bytes = u64::from(bytes);
        self.deficit[lane] = self.deficit[lane].saturating_sub(bytes);
        self.pass.bytes_left = self.pass.bytes_left.saturating_sub(bytes);
        self.pass.ops_left = self.pass.ops_left.saturating_sub(1);
        self.pass.taken = true;
        self.next_origin[lane / 2] = 1 - lane % 2;
        self.next_class = (lane / 2 + 1) % 3;
    }

    /// An op that was taken goes back.
    pub(super) fn refund(&mut self, ledger: &Ledger, slot: u32, bytes: u32) {
        let bytes = u64::from(bytes);
        let deficit = &mut self.deficit[lane_of(&ledger[slot]) as usize];
        *deficit = deficit.saturating_add(bytes);
        self.pass.bytes_left = self.pass.bytes_left.saturating_add(bytes);
        self.pass.ops_left = self.pass.ops_left.saturating_add(1);
    }

    pub(super) fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        let lane = lane_of(&ledger[slot]) as usize;
        self.rows.remove(ledger, slot);
        if self.rows.is_idle(lane) {
            self.deficit[lane] = 0;
        }
    }

    pub(super) fn place(&self, ledger: &Ledger, owners: &Owners, slot: u32, most: u32) -> Place {
        let place = self.rows.place(ledger, owners, slot, most);
        let class = Class::ALL[lane_of(&ledger[slot]) as usize / 2];
        let turn = (self.pass.start + self.pass.visits) % 3;
        let other = self.pass.under_way && turn != class.index();
        let wait = if place.wait == WAIT_NONE && other { WAIT_CLASS } else { place.wait };
        Place { wait, ..place }
    }
}

/// Bytes of an op, all its pages.
fn whole(op: &Op) -> u64 {
    u64::from(op.bytes) * u64::from(op.pages.max(1))
}
