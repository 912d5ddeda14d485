//! A class with a single flow: the tree that it would have, in four numbers.
//!
//! Mostly one ring is at work. Then all rings of its class's tree hold one node each, and nothing
//! depends on their balances until a second flow comes. So the tree is not touched: what the flow
//! is charged adds up here, and the tree is brought to where it would have got when it is needed.

use crate::ledger::NIL;

/// The one flow of a class, if there is just one and its tree is not in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Solo {
    /// [`NIL`] for none.
    flow: u32,
    /// Of all rings: the largest cost so far.
    quantum: u32,
    /// Charged since `balance` was noted.
    spent: u64,
    /// By weight 1 and by the owner's: the balances of then. None if they are fresh.
    balance: Option<[u64; 2]>,
}

impl Solo {
    pub(super) const NONE: Self = Self { flow: NIL, quantum: 0, spent: 0, balance: None };

    #[inline]
    pub(super) fn new(flow: u32, floor: u32) -> Self {
        Self { flow, quantum: floor, spent: 0, balance: None }
    }

    /// The flow, or [`NIL`].
    #[inline]
    pub(super) fn flow(&self) -> u32 {
        self.flow
    }

    #[inline]
    pub(super) fn quantum(&self) -> u32 {
        self.quantum
    }

    /// Adds a cost to what was spent; false if it is the largest so far.
    #[inline]
    pub(super) fn charge(&mut self, cost: u32) -> bool {
        self.spent += u64::from(cost);
        cost <= self.quantum
    }

    /// Takes back what was just charged, and charges it as the largest so far.
    pub(super) fn raise(&mut self, cost: u32, weight: u8) {
        self.spent -= u64::from(cost);
        self.balance = Some([self.balance(1), self.balance(weight)]);
        (self.quantum, self.spent) = (cost, u64::from(cost));
    }

    /// The balance of a node with this weight, which is 1 or the owner's.
    ///
    /// Each time it is used up it gets a quantum times the weight, which always brings it above 0
    /// again: so it is what is left of a division.
    pub(super) fn balance(&self, weight: u8) -> u64 {
        let most = u64::from(self.quantum) * u64::from(weight);
        let noted = self.balance.map_or(most, |balance| balance[usize::from(weight != 1)]);
        // Above 0, and no more than `most` below that.
        let ahead = (noted + most - self.spent % most - 1) % most;
        ahead + 1
    }
}
