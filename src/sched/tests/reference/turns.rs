//! Turns of classes, with virtual times that cannot wrap, over the product of all weights.

use crate::sched::{Mode, Policy, Shape};

pub(super) struct Turns {
    strict: bool,
    weights: [i128; 3],
    share: [i128; 3],
    window: i128,
    work: [bool; 3],
    time: [i128; 3],
    served: i128,
    owed: [i128; 3],
}

impl Turns {
    pub(super) fn new(policy: &Policy, shape: Shape) -> Self {
        Self {
            strict: policy.mode == Mode::Strict,
            weights: policy.weights.map(i128::from),
            share: policy.min_share.map(i128::from),
            window: shape.window_bytes.into(),
            work: [false; 3],
            time: [0; 3],
            served: 0,
            owed: [0; 3],
        }
    }

    pub(super) fn class(&mut self, work: [bool; 3]) -> Option<usize> {
        for (class, has) in work.into_iter().enumerate() {
            if has && !self.work[class] {
                self.time[class] = self.time[class].max(self.served);
                self.owed[class] = -self.window * self.share[class];
            }
        }
        self.work = work;
        self.in_turn()
    }

    pub(super) fn in_turn(&self) -> Option<usize> {
        let working = || (0..3).filter(|&class| self.work[class]);
        if self.strict {
            let owed = |&class: &usize| self.share[class] > 0 && self.owed[class] >= 0;
            let first = working().next();
            return working().skip(1).find(owed).or(first);
        }
        working().min_by_key(|&class| (self.time[class], class))
    }

    fn per_byte(&self, class: usize) -> i128 {
        self.weights.iter().product::<i128>() / self.weights[class]
    }

    pub(super) fn charge(&mut self, class: usize, cost: i64) {
        let cost = i128::from(cost);
        self.served = self.time[class];
        self.time[class] += cost * self.per_byte(class);
        let least = (-self.window * self.share[class]).min(-cost * (1000 - self.share[class]));
        self.owed[class] = (self.owed[class] - cost * (1000 - self.share[class])).max(least);
        for other in (0..3).filter(|&other| other != class) {
            if self.work[other] {
                self.owed[other] += cost * self.share[other];
            }
        }
    }

    pub(super) fn refund(&mut self, class: usize, cost: i64) {
        let cost = i128::from(cost);
        self.time[class] -= cost * self.per_byte(class);
        self.owed[class] += cost * (1000 - self.share[class]);
        for other in (0..3).filter(|&other| other != class) {
            if self.work[other] {
                self.owed[other] -= cost * self.share[other];
            }
        }
    }
}
