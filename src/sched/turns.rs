//! Which class goes next.
//!
//! `weighted`: each class has a virtual time, that grows by what it is charged over its weight; the
//! least goes first. All of it is in integers: weights are brought to a common multiple, and times
//! wrap. `strict`: the most urgent class that has work, but for what the others are owed.

use super::{Mode, Policy};

/// Thousandths in a whole.
const WHOLE: i64 = 1_000;

/// The turns of the three classes.
#[derive(Debug)]
pub(super) struct Turns {
    strict: bool,
    /// Classes that had work when last looked at, a bit each.
    work: u8,
    time: [u64; 3],
    /// By how much a byte of each class lets its time grow.
    pace: [u64; 3],
    /// The time of the class charged last, before that.
    served: u64,
    /// Bytes, in thousandths, that each class is owed.
    owed: [i64; 3],
    share: [i64; 3],
    /// What a class owes when it gets work.
    start: [i64; 3],
}

impl Turns {
    pub(super) fn new(policy: &Policy, window_bytes: u64) -> Self {
        let weights = policy.weights.map(|weight| u64::from(weight.max(1)));
        let multiple = weights.into_iter().fold(1, least_common_multiple);
        let share = policy.min_share.map(i64::from);
        // No window that can be set is larger; sums of debts stay far from the end of their range.
        let window = i64::try_from(window_bytes.min(1 << 40)).unwrap_or(1 << 40);
        Self {
            strict: policy.mode == Mode::Strict,
            work: 0,
            time: [0; 3],
            pace: weights.map(|weight| multiple / weight),
            served: 0,
            owed: [0; 3],
            share,
            start: share.map(|share| -window.saturating_mul(share)),
        }
    }

    /// The class in turn among those that have work now.
    #[inline]
    pub(super) fn pick(&mut self, work: u8) -> Option<usize> {
        if work != self.work {
            self.note(work);
        }
        self.choose()
    }

    /// Notes which classes have work: one that comes back has not saved anything up.
    fn note(&mut self, work: u8) {
        let back = work & !self.work;
        self.work = work;
        for class in (0..3).filter(|class| back >> class & 1 == 1) {
            self.owed[class] = self.start[class];
            if before(self.time[class], self.served) {
                self.time[class] = self.served;
            }
        }
    }

    /// The class in turn among those that had work when last looked at.
    #[inline]
    pub(super) fn choose(&self) -> Option<usize> {
        let work = |class: usize| self.work >> class & 1 == 1;
        let mut best = (0..3).find(|&class| work(class))?;
        if self.strict {
            let owed = |class: usize| self.share[class] > 0 && self.owed[class] >= 0;
            return Some((best + 1..3).find(|&class| work(class) && owed(class)).unwrap_or(best));
        }
        for class in best + 1..3 {
            if work(class) && before(self.time[class], self.time[best]) {
                best = class;
            }
        }
        Some(best)
    }

    /// A class was served.
    #[inline]
    pub(super) fn charge(&mut self, class: usize, cost: u32) {
        self.served = self.time[class];
        self.time[class] = self.served.wrapping_add(u64::from(cost) * self.pace[class]);
        if self.strict {
            self.pay(class, i64::from(cost));
        }
    }

    /// What a class pays for being served so much: all but its share of that.
    fn own(&self, class: usize, cost: i64) -> i64 {
        cost * (WHOLE - self.share[class])
    }

    fn pay(&mut self, class: usize, cost: i64) {
        // What a class was served in its own turn is not held against it for long.
        let own = self.own(class, cost);
        let least = self.start[class].min(-own);
        self.owed[class] = (self.owed[class] - own).max(least);
        for other in (0..3).filter(|&other| other != class && self.work >> other & 1 == 1) {
            self.owed[other] = self.owed[other].saturating_add(self.share[other] * cost);
        }
    }

    /// What a class was charged did not happen.
    pub(super) fn refund(&mut self, class: usize, cost: u32) {
        self.time[class] = self.time[class].wrapping_sub(u64::from(cost) * self.pace[class]);
        if self.strict {
            let cost = i64::from(cost);
            self.owed[class] = self.owed[class].saturating_add(self.own(class, cost));
            for other in (0..3).filter(|&other| other != class && self.work >> other & 1 == 1) {
                self.owed[other] -= self.share[other] * cost;
            }
        }
    }
}

/// True if a time is before another; they are never 2^63 apart.
#[inline]
fn before(time: u64, other: u64) -> bool {
    time.wrapping_sub(other) >> 63 == 1
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
