//! Load on a ring, and after the engine's death the comparison of every verdict with memory.
//!
//! Both sides of every op lie in memfds of ours, which outlive the engine. Each op has a place of
//! its own that is used once, so what lies there tells what became of that op.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use verbring::abi::{CQE_RETRYABLE, Cqe, errno};
use verbring::client::{ControlError, RingError};
use verbring::ring::Verdict;
use verbring::{
    Cancel, CmpSwap, Completion, FetchAdd, Flush, Import, Lease, PagePair, RawRing, Read, Readv,
    Region, Rights, Ring, RingOptions, Session, Ticket, Write, Writev, shm,
};

use super::calls::{self, Ended};
use super::chance::Chance;
use super::ops::{Image, Kind, Landed, NOWHERE, Op, PLACE_BYTES_MAX};

/// What the verdicts of one or many rings were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) rings: u64,
    pub(crate) ops: u64,
    pub(crate) completed: u64,
    pub(crate) not_started: u64,
    pub(crate) indeterminate: u64,
    /// Of one ring.
    pub(crate) indeterminate_max: u64,
    pub(crate) done: u64,
    /// INDETERMINATE ops of which nothing, a part, or all is in memory.
    pub(crate) in_doubt: [u64; 3],
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.rings += other.rings;
        self.ops += other.ops;
        self.completed += other.completed;
        self.not_started += other.not_started;
        self.indeterminate += other.indeterminate;
        self.indeterminate_max = self.indeterminate_max.max(other.indeterminate_max);
        self.done += other.done;
        for (sum, more) in self.in_doubt.iter_mut().zip(other.in_doubt) {
            *sum += more;
        }
    }
}

/// Two regions of one session, each a memfd of ours.
#[derive(Debug)]
pub(crate) struct Ground {
    session: Session,
    near: Region,
    far: Region,
    import: Import,
    /// All of the far region, to be read and written as plain memory.
    far_view: Lease,
    /// Where the next op's place begins.
    next: u64,
    bytes: u64,
    large_percent: u64,
}

impl Ground {
    fn new(session: &Session, chance: &mut Chance, name: &str) -> Result<Self, ControlError> {
        // Enough for some ten milliseconds.
        // Large ops are under way for long: a kill finds them posted.
        let kinds = [(0, 4 << 20), (4, 4 << 20), (40, 16 << 20), (40, 16 << 20), (40, 16 << 20)];
        let (large_percent, bytes) = chance.one_of(&kinds);
        let region = || {
            let memfd = shm::create(c"verbring-kills", bytes, false)?;
            session.region_from_memfd(memfd, bytes)
        };
        let (near, far) = (region()?, region()?);
        let secret = far.export(name, Rights::ALL)?;
        let import = session.import(name, None, &secret)?;
        let far_view = far.lend(0..bytes).unwrap();
        let session = session.clone();
        Ok(Self { session, near, far, import, far_view, next: 0, bytes, large_percent })
    }

    /// Draws the next op; `None` once all places are used.
    fn draw(&mut self, chance: &mut Chance, number: u64) -> Option<Op> {
        if self.next + PLACE_BYTES_MAX > self.bytes {
            return None;
        }
        Some(Op::draw(chance, number, self.next, self.large_percent))
    }

    fn use_place(&mut self, op: &Op) {
        self.next += op.place_bytes();
    }

    fn now(&self, op: &Op, near_view: &Lease) -> Image {
        let Image { mut near, mut far } = op.before();
        near_view.read(op.at, &mut near);
        self.far_view.read(op.at, &mut far);
        Image { near, far }
    }
}

/// How an op ended, as its client learnt it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Success { res: i32 },
    Failure { errno: i32, retryable: bool },
    Judged(Verdict),
}

impl Outcome {
    fn of(cqe: &Cqe) -> Self {
        match cqe.res {
            res @ 0.. => Self::Success { res },
            res => Self::Failure { errno: -res, retryable: cqe.flags & CQE_RETRYABLE != 0 },
        }
    }

    fn of_completion(completion: &Completion) -> Self {
        match &completion.result {
            Ok(bytes) => Self::Success { res: i32::try_from(*bytes).unwrap() },
            Err(error) => Self::Failure { errno: error.errno, retryable: error.retryable },
        }
    }
}

/// Compares every op's outcome with memory. Panics at the first lie.
fn compare(ops: &[Op], ends: &HashMap<u64, Outcome>, now: impl Fn(&Op) -> Image) -> Tally {
    let mut tally = Tally { rings: 1, ops: ops.len() as u64, ..Tally::default() };
    for op in ops {
        let outcome = ends[&op.number];
        let now = now(op);
        let landed = op.landed(&now);
        let lie = || format!("{outcome:?}, but in memory: {landed:?} of {op:?}");
        match outcome {
            Outcome::Success { res } => {
                tally.completed += 1;
                assert!(landed == Landed::Whole && res == op.result(), "{}", lie());
                assert!(!op.skip_success && !op.refused, "{}", lie());
            }
            Outcome::Failure { errno, retryable } => {
                tally.completed += 1;
                assert!(fails_so(op, errno, retryable), "{}", lie());
                assert!(landed == Landed::Nothing || !op.leaves_a_trace(), "{}", lie());
            }
            Outcome::Judged(Verdict::NotStarted) => {
                tally.not_started += 1;
                assert!(landed == Landed::Nothing || !op.leaves_a_trace(), "{}", lie());
            }
            Outcome::Judged(Verdict::Done) => {
                tally.done += 1;
                assert!(landed == Landed::Whole, "{}", lie());
                // Nothing else goes without a CQE.
                assert!(op.skip_success && !op.refused, "{}", lie());
            }
            Outcome::Judged(Verdict::Indeterminate) => {
                tally.indeterminate += 1;
                tally.in_doubt[landed as usize] += 1;
                assert!(!op.refused, "{}", lie());
            }
        }
    }
    tally.indeterminate_max = tally.indeterminate;
    tally
}

/// The failures that the load asks for, all before anything is posted.
fn fails_so(op: &Op, errno: i32, retryable: bool) -> bool {
    match op.kind {
        Kind::Cancel { .. } => [errno::ENOENT, errno::EALREADY].contains(&errno),
        _ if op.refused => errno == errno::EINVAL && !retryable,
        _ => {
            let late = errno == errno::ETIME && op.deadline_us > 0;
            (late || errno == errno::ECANCELED) && retryable
        }
    }
}

/// Loads a ring of whole entries, among them such as skip their success, until its engine is dead
/// and every verdict was found true. Calls `begun` once, with entries just submitted.
pub(crate) fn raw(socket: &Path, seed: u64, begun: &mut dyn FnMut()) -> Ended {
    let mut chance = Chance::new(seed);
    let session = match Session::connect(socket) {
        Ok(session) => session,
        Err(error) => return Ended::connecting(0, &error),
    };
    let options = ring_options(&mut chance);
    let made = Ground::new(&session, &mut chance, &name(seed))
        .and_then(|ground| Ok((session.raw_ring(options)?, ground)));
    let (ring, ground) = match made {
        Ok(made) => made,
        Err(error) => return Ended::asking(0, &error),
    };
    let near_view = ground.near.lend(0..ground.bytes).unwrap();
    let ends = HashMap::new();
    let mut load = RawLoad { ring, ground, near_view, ops: Vec::new(), ends, owed: 0 };
    let over = load.run(&mut chance, begun);
    calls::expect_end(&over);
    let tally = load.judge();
    Ended {
        calls: tally.completed,
        tally: Some(tally),
        gone: matches!(over, RingError::EngineGone),
    }
}

fn ring_options(chance: &mut Chance) -> RingOptions {
    // A CQ that is small beside the SQ holds the engine up: that is for the exception.
    let sq_entries = chance.one_of(&[8, 64, 256, 1_024]);
    let cq_entries = chance.one_of(&[8, 256, 1_024, 1_024]);
    let options = RingOptions::new(sq_entries, cq_entries);
    RingOptions { spin: Duration::from_micros(chance.one_of(&[0, 20, 200])), ..options }
}

fn name(seed: u64) -> String {
    format!("ground-{}-{seed}", std::process::id())
}

/// Lets the engine go on for some microseconds.
fn dwell(chance: &mut Chance) {
    let until = Instant::now() + Duration::from_nanos(chance.below(50_000));
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

struct RawLoad {
    ring: RawRing,
    ground: Ground,
    near_view: Lease,
    ops: Vec<Op>,
    ends: HashMap<u64, Outcome>,
    /// Ops whose CQE must come.
    owed: u64,
}

impl RawLoad {
    fn run(&mut self, chance: &mut Chance, begun: &mut dyn FnMut()) -> RingError {
        let mut warm_after = chance.below(400);
        loop {
            let warm = self.ends.len() as u64 > warm_after;
            // What has begun is a full SQ, all at once.
            let count = if warm { u64::MAX } else { 1 + chance.below(128) };
            let more = self.push(chance, count);
            if warm {
                warm_after = u64::MAX;
                match chance.below(10) {
                    0..6 => self.await_posted(),
                    // Until the engine is at it; if it is dead, the next call tells.
                    6..9 => {
                        let _ = self.ring.wait(1, Some(Duration::from_millis(1)));
                        dwell(chance);
                    }
                    _ => dwell(chance),
                }
                begun();
            }
            if let Err(over) = self.pop() {
                return over;
            }
            // At the end of the ground this wait is for the end of the engine.
            let waits = !more || (self.owed > 0 && chance.percent(10));
            if waits && let Err(over) = self.ring.wait(1, None) {
                return over;
            }
        }
    }

    /// Looks until an op is posted, whose end would be in doubt; or for some time.
    fn await_posted(&mut self) {
        let end = self.ring.pushed();
        for look in 0..10_000 {
            let number = end.saturating_sub(1 + look % 64);
            if self.ring.verdict(number) == Verdict::Indeterminate {
                break;
            }
        }
    }

    /// Pushes up to so many ops; false once there is no place for any more.
    fn push(&mut self, chance: &mut Chance, count: u64) -> bool {
        for _ in 0..count {
            if self.ring.room() == 0 {
                break;
            }
            let number = self.ring.pushed();
            let Some(op) = self.ground.draw(chance, number) else { return false };
            let Image { near, far } = op.before();
            self.near_view.write(op.at, &near);
            self.ground.far_view.write(op.at, &far);
            let region = self.ground.near.id();
            assert_eq!(self.ring.push(op.sqe(region, self.ground.import.id())), Some(number));
            self.ground.use_place(&op);
            self.owed += u64::from(!op.skip_success);
            self.ops.push(op);
        }
        self.ring.submit();
        true
    }

    fn pop(&mut self) -> Result<(), RingError> {
        while let Some(cqe) = self.ring.pop()? {
            let number = cqe.user_data;
            let op = self.ops.get(usize::try_from(number).unwrap()).expect("a CQE for no op");
            self.owed -= u64::from(!op.skip_success);
            let twice = self.ends.insert(number, Outcome::of(&cqe));
            assert_eq!(twice, None, "a second CQE for {op:?}");
        }
        Ok(())
    }

    fn judge(&mut self) -> Tally {
        calls::await_death(&self.ground.session);
        let over = calls::until_error(|| self.pop());
        assert!(matches!(over, RingError::EngineGone), "{over}");
        for op in &self.ops {
            let judge = || Outcome::Judged(self.ring.verdict(op.number));
            self.ends.entry(op.number).or_insert_with(judge);
        }
        let tally = compare(&self.ops, &self.ends, |op| self.ground.now(op, &self.near_view));
        calls::expect_all_dead(&self.ground.session, &self.ground.far, &self.ground.import);
        calls::expect_ring_dead(&mut self.ring);
        tally
    }
}

/// Loads a ring of typed ops until it is over, as [`raw`] does.
pub(crate) fn typed(socket: &Path, seed: u64, begun: &mut dyn FnMut()) -> Ended {
    let mut chance = Chance::new(seed);
    let session = match Session::connect(socket) {
        Ok(session) => session,
        Err(error) => return Ended::connecting(0, &error),
    };
    let options = ring_options(&mut chance);
    let made = Ground::new(&session, &mut chance, &name(seed))
        .and_then(|ground| Ok((session.ring(options)?, ground)));
    let (ring, ground) = match made {
        Ok(made) => made,
        Err(error) => return Ended::asking(0, &error),
    };
    let (ops, tickets, ends) = (Vec::new(), Vec::new(), HashMap::new());
    let mut load = TypedLoad { ring, ground, ops, tickets, ends };
    let over = load.run(&mut chance, begun);
    calls::expect_end(&over);
    let tally = load.judge();
    Ended {
        calls: tally.completed,
        tally: Some(tally),
        gone: matches!(over, RingError::EngineGone),
    }
}

struct TypedLoad {
    ring: Ring,
    ground: Ground,
    ops: Vec<Op>,
    tickets: Vec<Ticket>,
    ends: HashMap<u64, Outcome>,
}

impl TypedLoad {
    fn run(&mut self, chance: &mut Chance, begun: &mut dyn FnMut()) -> RingError {
        let mut warm_after = chance.below(400);
        loop {
            let warm = self.ends.len() as u64 > warm_after;
            // What has begun is a full SQ, all at once.
            let count = if warm { u64::MAX } else { 1 + chance.below(64) };
            let more = self.push(chance, count);
            if warm {
                warm_after = u64::MAX;
                if chance.percent(80) {
                    // Until the engine is at it; if it is dead, the next call tells.
                    let _ = self.ring.wait(1, Some(Duration::from_millis(1)));
                }
                dwell(chance);
                begun();
            }
            if let Err(over) = self.reap() {
                return over;
            }
            let waits = !more || (self.ring.in_flight() > 0 && chance.percent(10));
            if waits && let Err(over) = self.ring.wait(1, None) {
                return over;
            }
        }
    }

    /// Pushes up to so many ops; false once there is no place for any more.
    fn push(&mut self, chance: &mut Chance, count: u64) -> bool {
        for _ in 0..count {
            let Some(op) = self.ground.draw(chance, self.ops.len() as u64) else { return false };
            // An op that holds a lease is never skipped.
            let op = Op { skip_success: false, ..op };
            let Some(ticket) = self.push_one(&op) else { break };
            assert_eq!(ticket.number(), op.number);
            self.ground.use_place(&op);
            self.ops.push(op);
            self.tickets.push(ticket);
        }
        self.ring.submit();
        true
    }

    /// Pushes one op; `None` if the ring is full.
    fn push_one(&mut self, op: &Op) -> Option<Ticket> {
        let Ground { near: region, import, far_view, .. } = &mut self.ground;
        let Image { near, far } = op.before();
        let mut lease = region.lend(op.at..op.at + near.len() as u64).unwrap();
        lease.write(0, &near);
        far_view.write(op.at, &far);
        let remote = import.at(if op.refused { NOWHERE } else { op.at });
        let deadline = Duration::from_micros(op.deadline_us.into());
        // A deadline of 0 would be one of a microsecond here.
        macro_rules! push {
            ($built:expr) => {{
                let built = $built.class(op.class);
                let built = if op.deadline_us > 0 { built.deadline(deadline) } else { built };
                self.ring.push(built).ok()
            }};
        }
        let pages = || -> Vec<PagePair> {
            let pair = |page: verbring::abi::Page| PagePair {
                local: page.local_offset - op.at,
                remote: page.remote_offset,
            };
            op.page_list().into_iter().map(pair).collect()
        };
        let [first, second] = op.arg();
        match op.kind {
            Kind::Write => push!(Write::new(lease, remote)),
            Kind::Read => push!(Read::new(lease, remote)),
            Kind::Writev { .. } => {
                push!(Writev::new(lease, 0, &pages(), op.bytes, remote).unwrap())
            }
            Kind::Readv { .. } => push!(Readv::new(lease, 0, &pages(), op.bytes, remote).unwrap()),
            Kind::FetchAdd => push!(FetchAdd::new(lease, remote, first).unwrap()),
            Kind::CmpSwap => push!(CmpSwap::new(lease, remote, first, second).unwrap()),
            Kind::Cancel { target } => {
                let target = self.tickets[usize::try_from(target).unwrap()];
                self.ring.push(Cancel::new(target)).ok()
            }
            Kind::Flush => self.ring.push(Flush::region(region)).ok(),
        }
    }

    fn reap(&mut self) -> Result<(), RingError> {
        while let Some(completion) = self.ring.reap()? {
            let number = completion.ticket.number();
            let twice = self.ends.insert(number, Outcome::of_completion(&completion));
            assert_eq!(twice, None, "a second completion for op {number}");
        }
        Ok(())
    }

    fn judge(mut self) -> Tally {
        calls::await_death(&self.ground.session);
        let lost = self.ring.verdicts().expect("the engine is gone");
        let over = calls::until_error(|| self.reap());
        assert!(matches!(over, RingError::EngineGone), "{over}");
        for lost in &lost {
            let number = lost.ticket.number();
            assert_eq!(self.ring.verdict(&lost.ticket), Some(lost.verdict));
            let twice = self.ends.insert(number, Outcome::Judged(lost.verdict));
            assert_eq!(twice, None, "op {number} has completed and is lost");
        }
        // With the leases the places are free to be looked at.
        drop(lost);
        let near_view = self.ground.near.lend(0..self.ground.bytes).unwrap();
        let tally = compare(&self.ops, &self.ends, |op| self.ground.now(op, &near_view));
        calls::expect_all_dead(&self.ground.session, &self.ground.far, &self.ground.import);
        tally
    }
}
