//! A client of refreshes: ops of which some repeat what was asked for just before, kept in flight
//! by the thousand, with and without leave to be folded.
//!
//! Which place each op goes to is drawn once, so that both ways push the same ops. After a slice
//! the engine's counters must account for every one of them: each attempt has one outcome, each hit
//! gave a completion that says so, and only what did not hit moved bytes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use verbring::abi::{CQE_COALESCED, Class, Counter, Cqe, Opcode, SQE_COALESCE, Sqe};
use verbring::client::Scope;
use verbring::{RawRing, RingOptions, Session};

use super::chain_client::is_silent;
use super::cores::pin_to;
use super::shape::{OpKind, Shape, Wish};
use super::slice::now_ns;
use super::talk::{Order, Report, misplaced, next_order, report};
use super::through_engine::{Memory, attach, memory, over};
use crate::cli::Failure;

/// What a client is to be ready for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CoalescePlan {
    pub(super) core: usize,
    pub(super) socket: PathBuf,
    pub(super) loads: Vec<Load>,
}

/// What is asked for over and over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Load {
    /// Its name in rows.
    pub(super) name: String,
    /// READs or WRITEs.
    pub(super) reads: bool,
    pub(super) size_bytes: u64,
    pub(super) pattern: Pattern,
    /// Ops pushed at once.
    pub(super) batch: u32,
    /// Ops in flight at most.
    pub(super) backlog: u32,
}

/// To which places ops go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Pattern {
    /// So many of a hundred go where one of the [`RECENT`] before went, the others to one place
    /// after the other.
    Drawn { duplicates: u32, keys: u32 },
    /// Six to one place and one to another.
    SixAndOne,
}

/// What is to be run in one slice.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Refresh {
    /// Which of the plan's loads.
    pub(super) load: usize,
    /// With leave to be folded.
    pub(super) coalesce: bool,
    pub(super) slice_ns: u64,
}

/// What a slice came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refreshed {
    /// From the first push to the last completion.
    pub(super) elapsed_ns: u64,
    pub(super) ops: u64,
    /// Completions that say that the op was folded.
    pub(super) coalesced: u64,
    /// Ops that moved their bytes themselves.
    pub(super) transfers: u64,
    /// By outcome, in the order of [`OUTCOMES`].
    pub(super) outcomes: [u64; OUTCOMES.len()],
}

/// What can become of an op that may be folded: exactly one of these.
pub(super) const OUTCOMES: [Counter; 6] = [
    Counter::FoldHit,
    Counter::FoldNone,
    Counter::FoldDisabled,
    Counter::FoldEdges,
    Counter::FoldKey,
    Counter::FoldStarted,
];

impl Load {
    /// Places that ops go to.
    fn places(&self) -> u64 {
        match self.pattern {
            Pattern::Drawn { keys, .. } => keys.into(),
            Pattern::SixAndOne => 2,
        }
    }

    /// Sources and destinations, side by side.
    pub(super) fn shape(&self) -> Result<Shape, Failure> {
        let wish = Wish {
            op: if self.reads { OpKind::Read } else { OpKind::Write },
            size_bytes: self.size_bytes,
            pages: 1,
            batch: self.batch.into(),
            depth: self.backlog.into(),
            class: Class::Medium,
            working_set_bytes: Some(2 * self.places() * self.size_bytes),
        };
        Shape::settle(wish).map_err(|error| Failure::Usage(error.to_string()))
    }

    /// The places of ops, one after the other and over again: whole batches of them.
    fn walk(&self) -> Vec<u32> {
        let Pattern::Drawn { duplicates, keys } = self.pattern else {
            return vec![0, 0, 0, 1, 0, 0, 0];
        };
        let mut draws = Draws(0x9e37_79b9_7f4a_7c15);
        let (mut walk, mut fresh): (Vec<u32>, u32) = (Vec::with_capacity(WALK), 0);
        for at in 0..WALK {
            let recent = at.min(RECENT);
            if recent > 0 && draws.below(100) < duplicates as usize {
                walk.push(walk[at - 1 - draws.below(recent)]);
            } else {
                walk.push(fresh % keys);
                fresh += 1;
            }
        }
        walk
    }
}

/// Runs slices until no more is wanted.
pub(super) fn run(plan: &CoalescePlan) -> Result<(), Failure> {
    pin_to(plan.core)?;
    let mut end = End::new(plan)?;
    report(&Report::Ready { skipped: Vec::new() })?;
    while let Some(order) = next_order()? {
        match order {
            Order::Refresh(refresh) if refresh.load < end.plan.loads.len() => {
                report(&Report::Refreshed(end.slice(refresh)?))?;
            }
            other => return Err(misplaced(&other)),
        }
    }
    Ok(())
}

/// The client's end.
struct End {
    plan: CoalescePlan,
    session: Session,
    ring: RawRing,
    walks: Vec<Vec<u32>>,
    memory: Memory,
    /// Where destinations begin.
    half_bytes: u64,
}

impl End {
    fn new(plan: &CoalescePlan) -> Result<Self, Failure> {
        let session = attach(&plan.socket)?;
        let shapes = plan.loads.iter().map(Load::shape).collect::<Result<Vec<_>, _>>()?;
        let none = || Failure::Failed("nothing to refresh".to_string());
        let largest = shapes.iter().max_by_key(|shape| shape.memory_bytes()).ok_or_else(none)?;
        let entries = shapes.iter().map(Shape::entries).max().unwrap_or(64);
        let ring = session
            .raw_ring(RingOptions::new(entries, entries))
            .map_err(|error| Failure::of("cannot have a ring", &error))?;
        let memory = memory(&session, largest)?;
        let walks = plan.loads.iter().map(Load::walk).collect();
        let half_bytes = largest.first_destination();
        Ok(Self { plan: plan.clone(), session, ring, walks, memory, half_bytes })
    }

    fn slice(&mut self, refresh: Refresh) -> Result<Refreshed, Failure> {
        let load = &self.plan.loads[refresh.load];
        let walk = &self.walks[refresh.load];
        let opcode = if load.reads { Opcode::Read } else { Opcode::Write };
        let size = load.size_bytes;
        let bare = Sqe {
            opcode: opcode as u8,
            flags: if refresh.coalesce { SQE_COALESCE } else { 0 },
            local_region: self.memory.near.id(),
            remote_region: self.memory.import.id(),
            bytes: u32::try_from(size).unwrap_or(u32::MAX),
            ..Sqe::default()
        };
        let half_bytes = self.half_bytes;
        let sqe = |place: u32| {
            let offset = u64::from(place) * size;
            let user_data = place.into();
            let remote_offset = half_bytes + offset;
            Sqe { user_data, local_offset: offset, remote_offset, ..bare }
        };
        let before = counters(&self.session)?;
        let start_ns = now_ns();
        let until_ns = start_ns + refresh.slice_ns;
        let mut seen = Seen { result: size, ..Seen::default() };
        // A batch waits until there is room for all of it; the last ones go without a successor.
        let (batch, backlog) = (load.batch as usize, u64::from(load.backlog));
        let (mut at, mut pushed, mut heard_ns) = (0, 0_u64, None);
        let mut open = true;
        while open || seen.popped < pushed {
            if open && pushed + batch as u64 - seen.popped <= backlog {
                let places = walk.iter().cycle().skip(at).take(batch);
                pushed += u64::from(self.ring.push_all(places.map(|place| sqe(*place))));
                self.ring.submit();
                at = (at + batch) % walk.len();
                // Reading the clock is no part of what is measured: once for many ops.
                open = !pushed.is_multiple_of(LOOK_EVERY) || now_ns() < until_ns;
            }
            if self.ring.pop_all(|cqe| seen.note(&cqe)).map_err(over)? > 0 {
                heard_ns = None;
            } else if is_silent(&mut heard_ns) {
                let text = format!("{} ops did not complete", pushed - seen.popped);
                return Err(Failure::Failed(text));
            }
        }
        let elapsed_ns = now_ns() - start_ns;
        if let Some(cqe) = seen.wrong {
            let detail = verbring::abi::Detail::from_number(cqe.detail);
            return Err(Failure::Failed(format!("an op answered {} ({detail:?})", cqe.res)));
        }
        let after = counters(&self.session)?;
        let more: [u64; COUNTERS] = std::array::from_fn(|at| after[at] - before[at]);
        let [bytes, outcomes @ ..] = more;
        let refreshed = Refreshed {
            elapsed_ns,
            ops: pushed,
            coalesced: seen.coalesced,
            transfers: bytes / size.max(1),
            outcomes,
        };
        refreshed.check(refresh.coalesce)?;
        Ok(refreshed)
    }
}

/// What completions said.
#[derive(Default)]
struct Seen {
    result: u64,
    popped: u64,
    coalesced: u64,
    wrong: Option<Cqe>,
}

impl Seen {
    #[inline]
    fn note(&mut self, cqe: &Cqe) {
        self.popped += 1;
        self.coalesced += u64::from(cqe.flags & CQE_COALESCED != 0);
        if u64::try_from(cqe.res) != Ok(self.result) {
            self.wrong = Some(*cqe);
        }
    }
}

impl Refreshed {
    /// Every op is accounted for, and by one outcome alone.
    fn check(&self, coalesce: bool) -> Result<(), Failure> {
        let attempts: u64 = self.outcomes.iter().sum();
        let asked = if coalesce { self.ops } else { 0 };
        let hits = self.outcomes[0];
        let rules = [
            ("outcomes", attempts, "attempts", asked),
            ("CQEs with COALESCED", self.coalesced, "hits", hits),
            ("transfers and hits", self.transfers + hits, "ops", self.ops),
        ];
        for (what, count, of, expected) in rules {
            if count != expected {
                let text = format!("{count} {what}, but {expected} {of}");
                return Err(Failure::Failed(text));
            }
        }
        Ok(())
    }
}

/// Bytes moved, then attempts by outcome.
fn counters(session: &Session) -> Result<[u64; COUNTERS], Failure> {
    let stats = session
        .stats(Scope::Session)
        .map_err(|error| Failure::of("cannot ask for the counters", &error))?;
    Ok(std::array::from_fn(|at| match at.checked_sub(1) {
        None => stats[Counter::Bytes],
        Some(outcome) => stats[OUTCOMES[outcome]],
    }))
}

/// Numbers that look random and are the same in every run (xorshift).
struct Draws(u64);

impl Draws {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 16) % end as u64).unwrap_or(0)
    }
}

const COUNTERS: usize = 1 + OUTCOMES.len();

/// Ops before a place comes round again: far more than are in flight, in whole batches.
const WALK: usize = 65_536;

/// A duplicate repeats one of so many before it, which are still queued if twice as many are in
/// flight, and whose bytes are not all in a cache any more.
const RECENT: usize = 1_024;

/// The clock is read once in so many ops.
const LOOK_EVERY: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn load(duplicates: u32, keys: u32) -> Load {
        Load {
            name: String::new(),
            reads: false,
            size_bytes: 4_096,
            pattern: Pattern::Drawn { duplicates, keys },
            batch: 32,
            backlog: 1_024,
        }
    }

    #[test]
    fn duplicates_are_as_many_as_was_said_and_repeat_what_is_near() {
        for (duplicates, expected) in [(0, 0.0), (10, 0.1), (50, 0.5), (90, 0.9)] {
            let walk = load(duplicates, 10_000).walk();
            let repeats = (0..walk.len())
                .filter(|at| walk[at.saturating_sub(RECENT)..*at].contains(&walk[*at]))
                .count();
            let share = f64::from(u32::try_from(repeats).unwrap()) / 65_536.0;
            assert!((share - expected).abs() < 0.01, "{share} of {expected}");
            assert!(walk.iter().all(|place| *place < 10_000));
        }
        assert!(load(0, 1).walk().iter().all(|place| *place == 0));
    }

    #[test]
    fn six_refreshes_of_one_key_stand_beside_one_of_another() {
        let load = Load { pattern: Pattern::SixAndOne, ..load(0, 1) };
        let walk = load.walk();
        assert_eq!((walk.len(), walk.iter().filter(|place| **place == 0).count()), (7, 6));
        assert_eq!(load.shape().unwrap().memory_bytes(), 4 * 4_096);
    }

    #[test]
    fn what_is_not_accounted_for_is_found() {
        let sound = Refreshed {
            elapsed_ns: 1,
            ops: 10,
            coalesced: 4,
            transfers: 6,
            outcomes: [4, 3, 0, 1, 1, 1],
        };
        assert!(sound.check(true).is_ok());
        let told = |wrong: Refreshed| match wrong.check(true) {
            Err(Failure::Failed(text)) => text,
            other => panic!("{other:?}"),
        };
        let lost = Refreshed { outcomes: [4, 3, 0, 1, 1, 0], ..sound };
        assert_eq!(told(lost), "9 outcomes, but 10 attempts");
        let unsaid = Refreshed { coalesced: 3, ..sound };
        assert_eq!(told(unsaid), "3 CQEs with COALESCED, but 4 hits");
        let twice = Refreshed { transfers: 7, ..sound };
        assert_eq!(told(twice), "11 transfers and hits, but 10 ops");
        assert!(sound.check(false).is_err(), "nothing was asked for");
    }
}
