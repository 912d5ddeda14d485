//! A scheduler with a ledger of its own, and ops made for it.

use crate::abi::Class;
use crate::ids::{RingId, SessionId};
use crate::ledger::{Ledger, Op};
use crate::sched::{Policy, Scheduler, Shape};

/// What an op is, as far as a scheduler cares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) class: Class,
    pub(super) origin: u8,
    pub(super) session: u32,
    pub(super) line: u16,
    pub(super) bytes: u32,
}

impl Want {
    /// A user's op of session 0 that stays on this host.
    pub(super) fn of(class: Class, bytes: u32) -> Self {
        Self { class, origin: 0, session: 0, line: 0, bytes }
    }
}

/// A scheduler and its ops.
pub(super) struct Stock {
    pub(super) ledger: Ledger,
    pub(super) scheduler: Scheduler,
    sequence: u64,
}

impl Stock {
    pub(super) fn new(policy: &Policy, shape: Shape, records: u32) -> Self {
        let mut scheduler = Scheduler::new(policy, shape);
        for session in 0..shape.sessions {
            scheduler.adopt(SessionId(session), session, 1);
        }
        Self { ledger: Ledger::new(0, records), scheduler, sequence: 0 }
    }

    /// Opens a record at `now_ns`, and queues it.
    pub(super) fn push(&mut self, want: Want, now_ns: u64) -> u32 {
        let slot = self.open(want, now_ns);
        self.scheduler.push(&mut self.ledger, slot);
        slot
    }

    /// [`Stock::push`], of an op that nobody asks for.
    pub(super) fn add(&mut self, want: Want, now_ns: u64) {
        self.push(want, now_ns);
    }

    /// Opens a record of an op that is not queued.
    pub(super) fn open(&mut self, want: Want, now_ns: u64) -> u32 {
        let op = Op { class: want.class, bytes: want.bytes, ..Op::NOP };
        *self.ledger.vacant().unwrap() = op;
        let session = SessionId(want.session);
        let (slot, record) = self.ledger.open(session, RingId(0), now_ns).unwrap();
        (record.origin, record.line, record.sequence) = (want.origin, want.line, self.sequence);
        self.sequence += 1;
        slot
    }

    /// Serves an op whole: it is charged, and gone.
    pub(super) fn serve(&mut self, slot: u32) {
        let bytes = self.ledger[slot].op.bytes;
        self.scheduler.charge(&self.ledger, slot, bytes);
        self.drop(slot);
    }

    /// Takes an op out, and closes its record.
    pub(super) fn drop(&mut self, slot: u32) {
        self.scheduler.remove(&mut self.ledger, slot);
        self.ledger.close(slot);
    }

    /// The class of the op to serve next, which is served whole.
    pub(super) fn next(&mut self) -> Option<Class> {
        let slot = self.scheduler.first(&self.ledger)?;
        let class = self.ledger[slot].op.class;
        self.serve(slot);
        Some(class)
    }
}
