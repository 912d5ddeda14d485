//! Atomics and notifications take effect at most once, and as often as their ends say: a success
//! took effect, a failure did not, and one that is marked as maybe done is counted both ways.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::hold;
use crate::sim::ground::Ground;

/// How many were tried, and how they ended.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::sim) struct Tally {
    pub(in crate::sim) tried: u64,
    good: u64,
    maybe: u64,
    bad: u64,
    /// Took effect, and it was forgotten where they did.
    lost: u64,
}

impl Tally {
    pub(in crate::sim) fn end(&mut self, good: bool, maybe: bool) {
        match (good, maybe) {
            (true, _) => self.good += 1,
            (_, true) => self.maybe += 1,
            _ => self.bad += 1,
        }
    }

    /// Whoever counts them has died, after so many: no more are sure to be counted, of those under
    /// way neither.
    pub(in crate::sim) fn forget(&mut self, counted: u64) {
        let most = self.tried - self.maybe - self.bad;
        self.lost = most.saturating_sub(counted);
    }

    fn agrees(&self, count: u64) -> bool {
        let least = self.good.saturating_sub(self.lost);
        (least..=self.good + self.maybe).contains(&count)
    }
}

/// Notifications by their immediates, each of which is one op's alone.
#[derive(Debug, Default)]
pub(in crate::sim) struct Heard {
    heard: BTreeSet<u32>,
    /// Those of ops that failed without effect.
    failed: BTreeSet<u32>,
}

impl Heard {
    /// The owner heard one; where several were merged, that is the last of them.
    pub(in crate::sim) fn hear(&mut self, immediate: u32) {
        hold!(Effects, self.heard.insert(immediate), "notification {immediate:#x} was heard twice");
        let failed = self.failed.contains(&immediate);
        hold!(Effects, !failed, "notification {immediate:#x} was heard of an op that had failed");
    }

    /// Its op ended without effect.
    pub(in crate::sim) fn fail(&mut self, immediate: u32) {
        let heard = self.heard.contains(&immediate);
        hold!(Effects, !heard, "the op of notification {immediate:#x} failed, and it was heard");
        self.failed.insert(immediate);
    }
}

/// A counter holds what the adds that took effect made of it.
pub(in crate::sim) fn adds(ground: &Ground) {
    let value = ground.memory().word64(ground.counter()).load(Ordering::Acquire);
    let told = &ground.adds;
    hold!(Effects, told.agrees(value), "the counter is {value} after {told:?}");
    let last = ground.olds.last();
    let beyond = last.is_some_and(|old| *old >= value);
    hold!(Effects, !beyond, "an add was given {last:?}, the counter is {value}");
}

/// A region's owner heard the notifications that were sent.
pub(in crate::sim) fn notices(ground: &Ground, heard: u64) {
    let told = &ground.notices;
    hold!(Effects, told.agrees(heard), "heard {heard} notifications of {told:?}");
}
