//! What the engine counts for its telemetry page: where in its life an op is counted, and as what.
//!
//! ```text
//!  taken ---> enqueued ---> dispatched ---> completed, failed
//!    |          |    ^           |
//!    v          v    \-requeued--/          of lanes and sessions, by ops
//!  passed    withdrawn
//! ```
//!
//! An op is counted in its lane and in its session. Most ops of a busy engine are posted and end
//! just as the one before them was: in the same session, lane and rail, after times of the same
//! buckets. Such are added up once for all of them, when one comes that differs, or when counts are
//! to be copied.
//!
//! **Invariants**: those of `laws`.
//! **Deliberately absent**: the page itself (`telemetry`).

use crate::abi::{
    Class, Detail, HISTOGRAM_STEPS, HISTOGRAM_UNIT_NS, Opcode, SQE_SUPERSEDE, Tally,
    TelemetryHeader, bucket_bounds_ns, bucket_of, lane_block,
};
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
    /// What came last, and is not added up yet.
    queued: Begun,
    begun: Begun,
    answers: Answers,
    ended: Ended,
}

/// Ops of one session and lane that were posted one behind the other.
#[derive(Clone, Copy, Debug)]
struct Begun {
    session: u32,
    lane: u32,
    ops: u64,
}

/// Requests that one rail has ended one behind the other, well.
#[derive(Clone, Copy, Debug)]
struct Answers {
    rail: u16,
    requests: u64,
    bytes: u64,
}

/// Ops that ended one behind the other, well and alike.
#[derive(Clone, Copy, Debug)]
struct Ended {
    session: u32,
    lane: u32,
    rail: u16,
    wait: Bucket,
    service: Bucket,
    ops: u64,
    bytes: u64,
}

/// A bucket of a histogram, and the times that fall into it.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    number: u32,
    from_ns: u64,
    width_ns: u64,
}

impl Bucket {
    const NONE: Self = Self { number: 0, from_ns: 0, width_ns: 0 };

    fn of(time_ns: u64) -> Self {
        let number = bucket_of(time_ns);
        let [from_ns, to_ns] = bucket_bounds_ns(number, HISTOGRAM_UNIT_NS, HISTOGRAM_STEPS);
        Self { number, from_ns, width_ns: to_ns - from_ns }
    }

    /// Cheaper than to find the bucket of a time.
    #[inline(always)]
    fn holds(&self, time_ns: u64) -> bool {
        time_ns.wrapping_sub(self.from_ns) < self.width_ns
    }
}

impl Ended {
    const NONE: Self = Self {
        session: 0,
        lane: 0,
        rail: 0,
        wait: Bucket::NONE,
        service: Bucket::NONE,
        ops: 0,
        bytes: 0,
    };

    /// The first of its kind.
    fn like(record: &Record, now_ns: u64) -> Self {
        let [wait_ns, service_ns] = times_ns(record, now_ns);
        Self {
            session: record.session.0,
            lane: lane(record),
            rail: record.rail,
            wait: Bucket::of(wait_ns),
            service: Bucket::of(service_ns),
            ops: 1,
            bytes: record.done_bytes,
        }
    }
}

/// Queue wait and service of an op that was posted and ends now.
#[inline(always)]
fn times_ns(record: &Record, now_ns: u64) -> [u64; 2] {
    let posted_ns = record.posted_ns;
    [posted_ns.wrapping_sub(record.taken_ns), now_ns.wrapping_sub(posted_ns)]
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
            queued: Begun { session: 0, lane: 0, ops: 0 },
            begun: Begun { session: 0, lane: 0, ops: 0 },
            answers: Answers { rail: 0, requests: 0, bytes: 0 },
            ended: Ended::NONE,
            tallies,
        }
    }

    pub(super) fn header(&self) -> &TelemetryHeader {
        self.tallies.header()
    }

    /// What was counted, all of it.
    pub(super) fn tallies(&mut self) -> &mut Tallies {
        self.add_queued();
        self.add_begun();
        self.add_answers();
        self.add_ended();
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
    #[inline]
    pub(super) fn enqueued_one(&mut self, record: &Record) {
        let (session, lane) = (record.session.0, lane(record));
        if self.queued.session != session || self.queued.lane != lane {
            self.add_queued();
            self.queued = Begun { session, lane, ops: 0 };
        }
        self.queued.ops += 1;
    }

    #[inline(never)]
    fn add_queued(&mut self) {
        let Begun { session, lane, ops } = self.queued;
        if ops > 0 {
            self.queued.ops = 0;
            self.tallies.add(lane, ENQUEUED, ops);
            self.tallies.add(self.sessions_at + session, ENQUEUED, ops);
        }
    }

    /// The first slice of an op is about to be posted.
    #[inline(always)]
    pub(super) fn dispatched(&mut self, record: &Record) {
        let (session, lane) = (record.session.0, lane(record));
        if self.begun.session != session || self.begun.lane != lane {
            self.add_begun();
            self.begun = Begun { session, lane, ops: 0 };
        }
        self.begun.ops += 1;
    }

    #[inline(never)]
    fn add_begun(&mut self) {
        let Begun { session, lane, ops } = self.begun;
        if ops > 0 {
            self.begun.ops = 0;
            self.tallies.add(lane, DISPATCHED, ops);
            self.tallies.add(self.sessions_at + session, DISPATCHED, ops);
        }
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
        if done.errno != 0 {
            return self.answered_badly(rail, bytes, done);
        }
        if self.answers.rail != rail {
            self.add_answers();
            self.answers.rail = rail;
        }
        self.answers.requests += 1;
        self.answers.bytes += u64::from(bytes);
    }

    #[inline(never)]
    fn add_answers(&mut self) {
        let Answers { rail, requests, bytes } = self.answers;
        if requests > 0 {
            self.answers = Answers { rail, requests: 0, bytes: 0 };
            let words = self.tallies.touch(self.rails_at + u32::from(rail), FIRST_LINE);
            words[COMPLETED] += requests;
            words[BYTES] += bytes;
        }
    }

    #[cold]
    fn answered_badly(&mut self, rail: u16, bytes: u32, done: Done) {
        let block = self.rails_at + u32::from(rail);
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

    /// An op ends that was posted and did not fail; its record is as it was until now.
    #[inline(always)]
    pub(super) fn ended(&mut self, record: &Record, now_ns: u64) {
        let [wait_ns, service_ns] = times_ns(record, now_ns);
        let last = &mut self.ended;
        let alike = last.session == record.session.0
            && last.lane == lane(record)
            && last.rail == record.rail
            && last.wait.holds(wait_ns)
            && last.service.holds(service_ns);
        if alike {
            last.ops += 1;
            last.bytes += record.done_bytes;
        } else {
            self.ended_unlike(record, now_ns);
        }
    }

    #[inline(never)]
    fn ended_unlike(&mut self, record: &Record, now_ns: u64) {
        self.add_ended();
        self.ended = Ended::like(record, now_ns);
    }

    /// [`Meter::ended`] of what failed, or was never posted.
    #[cold]
    pub(super) fn ended_otherwise(&mut self, record: &Record, now_ns: u64) {
        match record.state {
            State::Posted => {
                self.add(Ended::like(record, now_ns), Tally::Failed);
            }
            _ if leaves_queue(record) => {
                self.count(record, Tally::Withdrawn as usize, 1);
                let cancelled = Detail::Cancelled as u16;
                if record.failure.is_some_and(|failure| failure.detail == cancelled) {
                    self.count(record, Tally::Cancelled as usize, 1);
                }
            }
            _ => self.count(record, Tally::Passed as usize, 1),
        }
    }

    fn add_ended(&mut self) {
        let ended = self.ended;
        if ended.ops > 0 {
            self.ended.ops = 0;
            self.ended.bytes = 0;
            self.add(ended, Tally::Completed);
        }
    }

    /// Counts ops as completed or failed, with their bytes and times.
    fn add(&mut self, ended: Ended, how: Tally) {
        let Ended { session, lane, rail, wait, service, ops, bytes } = ended;
        let wait = WAIT_AT + wait.number as usize;
        let service = SERVICE_AT + service.number as usize;
        let lines = lines_of(&[how as usize, BYTES, wait, service]);
        for block in [lane, self.sessions_at + session] {
            let words = self.tallies.touch(block, lines);
            words[how as usize] += ops;
            words[BYTES] += bytes;
            words[wait] += ops;
            words[service] += ops;
        }
        self.tallies.add(self.rails_at + u32::from(rail), service, ops);
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

/// True of an op that is queued; or was, until another one took its place.
fn leaves_queue(record: &Record) -> bool {
    match record.state {
        State::Queued => !matches!(record.op.opcode, Opcode::Nop | Opcode::Join),
        State::Folded => record.op.flags & SQE_SUPERSEDE != 0,
        _ => false,
    }
}

#[inline(always)]
fn lane(record: &Record) -> u32 {
    lane_block(record.op.class, record.origin)
}
