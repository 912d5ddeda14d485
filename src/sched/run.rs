//! Ops that come one behind the other, and are queued in one step: what it takes to find their
//! flow, and to note that it has ops, is done once for all of them.

use crate::abi::{Class, WAIT_LANE};
use crate::ledger::{LANE, Ledger, List};

use super::Scheduler;

/// Ops of one session, line and class that are to be queued.
#[derive(Debug)]
pub struct Run {
    ops: List<LANE>,
    class: Class,
}

impl Run {
    /// None.
    pub const EMPTY: Self = Self { ops: List::EMPTY, class: Class::Medium };

    /// As [`Scheduler::push`]; but it is not queued until [`Run::end`]. All that is pushed until
    /// then is a user's and of one session and line; what is of another class ends the run itself.
    #[inline]
    pub fn push(&mut self, queue: &mut Scheduler, ledger: &mut Ledger, slot: u32) {
        let record = &mut ledger[slot];
        record.aged = false;
        record.wait = WAIT_LANE;
        let class = record.class;
        if class != self.class {
            self.end(queue, ledger);
            self.class = class;
        }
        self.ops.push_back(ledger, slot);
    }

    /// Queues what was pushed.
    #[inline]
    pub fn end(&mut self, queue: &mut Scheduler, ledger: &mut Ledger) {
        if !self.ops.is_empty() {
            queue.append(ledger, std::mem::take(&mut self.ops));
        }
    }
}
