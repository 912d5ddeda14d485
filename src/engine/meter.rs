//! What the engine counts for its telemetry page: where in its life an op is counted, and as what.
//!
//! ```text
//!  taken ---> enqueued ---> dispatched ---> completed, failed
//!    |          |    ^           |
//!    v          v    \-requeued--/          of lanes and sessions, by ops
//!  passed    withdrawn
//! ```
//!
//! An op is counted in its lane and in its session. Most ops of a busy engine end just as the one
//! before them did: in the same session, lane and rail, after times of the same buckets. Such are
//! counted once for all of them, when one comes that differs, or when counts are to be shared.
//!
//! **Invariants**: those of `laws`.
//! **Deliberately absent**: the page itself (`telemetry`).

use crate::abi::{Class, Detail, Opcode, Tally, TelemetryHeader, bucket_of, lane_block};
use crate::fabric::{DONE_PLACED, Done, Request};
use crate::ids::SessionId;
use crate::ledger::{Record, State};
use crate::telemetry::{SERVICE_AT, Tallies, WAIT_AT, lines_of};

/// What an engine has counted.
#[derive(Debug)]
pub(super) struct Meter {
    tallies: Tallies,
    /// Blocks of rail 0 and of session 0.
    rails_at: u32,
    sessions_at: u32,
    run: Run,
}

/// Ops that ended one behind the other, well and alike.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// All that must be alike: see [`Run::key`].
    key: u64,
    ops: u32,
    bytes: u64,
}

impl Run {
    /// Session (32 bits), lane and rail, buckets of queue wait and of service (8 bits each).
    #[inline(always)]
    fn key(record: &Record, now_ns: u64) -> u64 {
        let wait = bucket_of(record.posted_ns.saturating_sub(record.taken_ns));
        let service = bucket_of(now_ns.saturating_sub(record.posted_ns));
        let times = u64::from(wait) | u64::from(service) << 8;
        let place = u64::from(lane(record)) << 16 | u64::from(record.rail) << 24;
        times | place | u64::from(record.session.0) << 32
    }
}

const ENQUEUED: usize = Tally::Enqueued as usize;
const DISPATCHED: usize = Tally::Dispatched as usize;
const COMPLETED: usize = Tally::Completed as usize;
const BYTES: usize = Tally::Bytes as usize;
const FIRST_LINE: u64 = lines_of(&[ENQUEUED, DISPATCHED, COMPLETED, BYTES]);

impl Meter {
    pub(super) fn new(rails: u16, sessions: u32) -> Self {
        let tallies = Tallies::new(rails, sessions);
        let header = tallies.header();
        Self {
            rails_at: header.rail_block(0),
            sessions_at: header.session_block(0),
            run: Run { key: 0, ops: 0, bytes: 0 },
            tallies,
        }
    }

    pub(super) fn header(&self) -> &TelemetryHeader {
        self.tallies.header()
    }

    /// What was counted, all of it.
    pub(super) fn tallies(&mut self) -> &mut Tallies {
        self.end_run();
        &mut self.tallies
    }

    /// So many ops of a session were queued, by class: users'.
    #[inline]
    pub(super) fn enqueued(&mut self, session: SessionId, by_class: [u32; 3]) {
        let mut all = 0;
        for class in Class::ALL {
            let ops = u64::from(by_class[class.index()]);
            if ops > 0 {
                self.tallies.add(lane_block(class, 0), ENQUEUED, ops);
                all += ops;
            }
        }
        if all > 0 {
            self.tallies.add(self.sessions_at + session.0, ENQUEUED, all);
        }
    }

    /// One op was queued.
    pub(super) fn enqueued_one(&mut self, record: &Record) {
        self.count(record, ENQUEUED, 1);
    }

    /// The first slice of an op is about to be posted.
    #[inline(always)]
    pub(super) fn dispatched(&mut self, record: &Record) {
        self.tallies.touch(lane(record), FIRST_LINE)[DISPATCHED] += 1;
        let session = self.sessions_at + record.session.0;
        self.tallies.touch(session, FIRST_LINE)[DISPATCHED] += 1;
    }

    /// Nothing of an op was taken: it is queued again.
    #[cold]
    pub(super) fn requeued(&mut self, record: &Record) {
        self.count(record, Tally::Requeued as usize, 1);
    }

    /// A rail handed a request of an op back.
    #[cold]
    pub(super) fn returned(&mut self, record: &Record, rail: u16) {
        self.count(record, Tally::Returned as usize, 1);
        self.tallies.add(self.rails_at + u32::from(rail), Tally::Requeued as usize, 1);
    }

    /// An op was to go on, and lacked something.
    pub(super) fn deferred(&mut self, record: &Record, wait: u16) {
        self.count(record, Tally::Defers as usize, 1);
        self.count(record, Tally::Waits as usize + usize::from(wait & 15), 1);
    }

    /// A rail took the first requests of a batch, which are all for it.
    #[inline]
    pub(super) fn posted(&mut self, batch: &[Request], taken: usize) {
        if let Some(first) = batch.first() {
            let block = self.rails_at + u32::from(first.rail);
            self.tallies.add(block, DISPATCHED, taken as u64);
        }
    }

    /// A rail has ended a request of so many bytes.
    #[inline(always)]
    pub(super) fn answered(&mut self, rail: u16, bytes: u32, done: Done) {
        let block = self.rails_at + u32::from(rail);
        if done.errno == 0 {
            let words = self.tallies.touch(block, FIRST_LINE);
            words[COMPLETED] += 1;
            words[BYTES] += u64::from(bytes);
        } else {
            self.answered_badly(block, bytes, done);
        }
    }

    #[cold]
    fn answered_badly(&mut self, block: u32, bytes: u32, done: Done) {
        self.tallies.add(block, Tally::Failed as usize, 1);
        let placed = done.flags & DONE_PLACED != 0;
        self.tallies.add(block, BYTES, if placed { bytes.into() } else { 0 });
    }

    /// So many ops of a session ended where they began, by class.
    pub(super) fn passed(&mut self, session: SessionId, by_class: [u64; 3]) {
        for class in Class::ALL {
            let ops = by_class[class.index()];
            if ops > 0 {
                self.tallies.add(lane_block(class, 0), Tally::Passed as usize, ops);
                self.tallies.add(self.sessions_at + session.0, Tally::Passed as usize, ops);
            }
        }
    }

    /// An op ends; its record is as it was until now.
    #[inline(always)]
    pub(super) fn ended(&mut self, record: &Record, now_ns: u64) {
        if record.state != State::Posted || record.failure.is_some() {
            return self.ended_otherwise(record, now_ns);
        }
        let key = Run::key(record, now_ns);
        if key != self.run.key {
            self.end_run();
            self.run.key = key;
        }
        self.run.ops += 1;
        self.run.bytes += record.done_bytes;
    }

    /// [`Meter::ended`] of what failed, or was never posted.
    #[cold]
    fn ended_otherwise(&mut self, record: &Record, now_ns: u64) {
        match record.state {
            State::Posted => {
                let run = Run { key: Run::key(record, now_ns), ops: 1, bytes: record.done_bytes };
                self.add(run, Tally::Failed);
            }
            State::Queued if record.op.opcode != Opcode::Nop => {
                self.count(record, Tally::Withdrawn as usize, 1);
                let cancelled = Detail::Cancelled as u16;
                if record.failure.is_some_and(|failure| failure.detail == cancelled) {
                    self.count(record, Tally::Cancelled as usize, 1);
                }
            }
            _ => self.count(record, Tally::Passed as usize, 1),
        }
    }

    /// What ended alike is counted.
    #[inline]
    fn end_run(&mut self) {
        let run = self.run;
        if run.ops > 0 {
            self.run.ops = 0;
            self.run.bytes = 0;
            self.add(run, Tally::Completed);
        }
    }

    /// Counts a run's ops as completed or failed, with their bytes and times.
    fn add(&mut self, run: Run, ended: Tally) {
        let [wait, service, lane, rail, ..] = run.key.to_le_bytes();
        let session = self.sessions_at + (run.key >> 32) as u32;
        let rail = self.rails_at + u32::from(rail);
        let (wait, service) = (WAIT_AT + usize::from(wait), SERVICE_AT + usize::from(service));
        let ops = u64::from(run.ops);
        let lines = lines_of(&[ended as usize, BYTES, wait, service]);
        for block in [u32::from(lane), session] {
            let words = self.tallies.touch(block, lines);
            words[ended as usize] += ops;
            words[BYTES] += run.bytes;
            words[wait] += ops;
            words[service] += ops;
        }
        self.tallies.add(rail, service, ops);
    }

    #[inline]
    fn count(&mut self, record: &Record, word: usize, by: u64) {
        self.tallies.add(lane(record), word, by);
        self.tallies.add(self.sessions_at + record.session.0, word, by);
    }

    pub(super) fn begin_session(&mut self, session: SessionId) {
        self.tallies().begin_session(session.0);
    }

    pub(super) fn end_session(&mut self, session: SessionId) {
        self.tallies().end_session(session.0);
    }

    /// Copies counts to the page, if it is time to.
    #[inline]
    pub(super) fn publish(&mut self, now_ns: u64) {
        if self.tallies.due(now_ns) {
            self.tallies().publish(now_ns);
        }
    }
}

#[inline(always)]
fn lane(record: &Record) -> u32 {
    lane_block(record.op.class, record.origin)
}
