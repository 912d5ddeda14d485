//! One slice of one contestant: ops pushed and popped for some milliseconds, and counted.
//!
//! The loop is the same code for every contestant, made anew for each at compile time, so that
//! nothing of it weighs on one more than on another. The first part of a slice is not counted: in
//! it sleepers wake, caches fill and clocks settle.
//!
//! Time is read around one batch in so many, never around each: a reading costs as much as an op.
//! What is recorded is the time from just before a batch was pushed until its last completion was
//! popped.

use std::time::Duration;

use hdrhistogram::Histogram;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::shape::Shape;
use crate::cli::Failure;

/// The client's end of a contestant.
pub(super) trait Rig {
    /// Pushes `count` ops that carry `tag`, and shows them to the other side.
    fn submit(&mut self, count: u32, tag: u64) -> Result<(), Failure>;

    /// Pops what is there; returns how many that were, and how many of them carried [`TIMED`].
    fn reap(&mut self) -> Result<(u32, u32), Failure>;

    /// Looks whether the other side is still there, after it has been silent for long.
    fn check(&mut self) -> Result<(), Failure>;

    /// True once the other side has gone to sleep, so that it is in nobody's way.
    fn at_rest(&mut self) -> bool;
}

/// The tag of ops that belong to the batch that is being timed.
pub(super) const TIMED: u64 = 1;

/// How long a slice is, and from when on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Span {
    /// On the monotonic clock, which all processes share.
    pub(super) start_ns: u64,
    /// Not counted.
    pub(super) warm_ns: u64,
    /// Counted.
    pub(super) count_ns: u64,
}

/// What a slice came to.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) ops: u64,
    pub(super) elapsed_ns: u64,
    /// The slice's own median, where the ratio is one of latencies; else 0.
    pub(super) p50_ns: u64,
}

/// Runs one slice; latencies of its counted part go into `latencies`.
///
/// `crowded`: several clients share this core, and whoever waits lets the others go on.
#[inline(always)]
pub(super) fn run(
    rig: &mut impl Rig,
    shape: &Shape,
    span: Span,
    crowded: bool,
    latencies: &mut Histogram<u64>,
) -> Result<Counted, Failure> {
    let warm_end = span.start_ns + span.warm_ns;
    let end = warm_end + span.count_ns;
    while now_ns() < span.start_ns {
        std::hint::spin_loop();
    }
    let (batch, depth) = (shape.batch, shape.depth);
    let mut ops = 0;
    let mut in_flight = 0;
    let mut pace = Pace::default();
    // When the batch under time was pushed, and how many of its ops are still out.
    let (mut since, mut timed_left) = (0, 0);
    // From when on ops are counted, and how many there had been.
    let mut counted_from = None;
    let mut silence = Silence::default();
    let until = loop {
        if in_flight + batch <= depth {
            let timed = timed_left == 0 && pace.is_due();
            if timed {
                let now = now_ns();
                pace.tune(now);
                if now >= end {
                    break now;
                }
                if counted_from.is_none() && now >= warm_end {
                    counted_from = Some((now, ops));
                }
                (since, timed_left) = (now, batch);
            }
            rig.submit(batch, if timed { TIMED } else { 0 })?;
            in_flight += batch;
        }
        let (popped, of_timed) = rig.reap()?;
        if popped == 0 {
            silence.look(rig, crowded)?;
            continue;
        }
        silence = Silence::default();
        in_flight -= popped;
        ops += u64::from(popped);
        if of_timed > 0 {
            timed_left -= of_timed;
            if timed_left == 0 && counted_from.is_some() {
                latencies.saturating_record(now_ns() - since);
            }
        }
    };
    let (from, before) = counted_from.unwrap_or((until, ops));
    let counted = Counted { ops: ops - before, elapsed_ns: until - from, ..Counted::default() };
    while in_flight > 0 {
        let (popped, _) = rig.reap()?;
        in_flight -= popped;
        if popped == 0 {
            silence.look(rig, crowded)?;
        } else {
            silence = Silence::default();
        }
    }
    rest(rig);
    Ok(counted)
}

/// Waits until the other side sleeps, so that the next slice is the next contestant's alone. One
/// that is set to look for work for longer than this is left to it.
pub(super) fn rest(rig: &mut impl Rig) {
    let until = now_ns() + REST_MAX_NS;
    while !rig.at_rest() && now_ns() < until {
        std::hint::spin_loop();
    }
}

/// When the next batch is to be timed: about every [`LOOK_EVERY_NS`], by counting batches.
struct Pace {
    every: u32,
    left: u32,
    last_ns: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { every: 1, left: 1, last_ns: 0 }
    }
}

impl Pace {
    #[inline]
    fn is_due(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    fn tune(&mut self, now_ns: u64) {
        let passed = now_ns - self.last_ns;
        if passed < LOOK_EVERY_NS {
            self.every = (self.every * 2).min(1 << 12);
        } else if passed > 2 * LOOK_EVERY_NS {
            self.every = (self.every / 2).max(1);
        }
        self.left = self.every;
        self.last_ns = now_ns;
    }
}

/// Looks in a row that found nothing.
#[derive(Default)]
struct Silence {
    looks: u32,
    since_ns: u64,
}

impl Silence {
    #[inline]
    fn look(&mut self, rig: &mut impl Rig, crowded: bool) -> Result<(), Failure> {
        self.looks = self.looks.wrapping_add(1);
        if crowded && self.looks.is_multiple_of(YIELD_AFTER) {
            let _ = nix::sched::sched_yield();
        }
        if self.looks.is_multiple_of(1 << 16) { self.doubt(rig) } else { Ok(()) }
    }

    #[cold]
    fn doubt(&mut self, rig: &mut impl Rig) -> Result<(), Failure> {
        rig.check()?;
        let now = now_ns();
        if self.since_ns == 0 {
            self.since_ns = now;
        }
        if now - self.since_ns > u64::try_from(SILENCE_MAX.as_nanos()).unwrap_or(u64::MAX) {
            let seconds = SILENCE_MAX.as_secs();
            return Err(Failure::Failed(format!("no completion came for {seconds} s")));
        }
        Ok(())
    }
}

/// Monotonic nanoseconds, the same in all processes.
#[inline]
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
    })
}

/// A histogram for latencies.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("bounds that are sound")
}

/// Two readings of the clock in so long cost one per cent or so.
const LOOK_EVERY_NS: u64 = 4_000;

/// The kernel's polling thread counts in ticks of up to 10 ms.
const REST_MAX_NS: u64 = 30_000_000;

/// With more clients than cores, whoever looks in vain so often lets another one run.
const YIELD_AFTER: u32 = 16;

/// No op takes so long, unless something hangs.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Latencies above a minute count as a minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

#[cfg(test)]
mod tests {
    use verbring::abi::Class;

    use super::*;
    use crate::cli::bench::shape::{OpKind, Wish};

    /// Answers a part of what is out with each look, and keeps account.
    #[derive(Default)]
    struct Fake {
        out: Vec<u64>,
        submitted: u64,
        out_max: usize,
        /// Ops that went out while others still were.
        overlapped: bool,
        naps: u32,
        /// Answers with no more from here on.
        mute: bool,
        checks: u32,
    }

    impl Rig for Fake {
        fn submit(&mut self, count: u32, tag: u64) -> Result<(), Failure> {
            self.overlapped |= !self.out.is_empty();
            self.out.extend((0..count).map(|_| tag));
            self.submitted += u64::from(count);
            self.out_max = self.out_max.max(self.out.len());
            Ok(())
        }

        fn reap(&mut self) -> Result<(u32, u32), Failure> {
            let popped = if self.mute { 0 } else { self.out.len().min(3) };
            let timed = self.out.drain(..popped).filter(|tag| *tag == TIMED).count();
            Ok((u32::try_from(popped).unwrap(), u32::try_from(timed).unwrap()))
        }

        fn check(&mut self) -> Result<(), Failure> {
            self.checks += 1;
            if self.checks > 2 { Err(Failure::Failed("gone".to_string())) } else { Ok(()) }
        }

        fn at_rest(&mut self) -> bool {
            self.naps += 1;
            self.naps == 5
        }
    }

    fn shape(batch: u64, depth: u64) -> Shape {
        let wish = Wish {
            op: OpKind::Nop,
            size_bytes: 0,
            pages: 1,
            batch,
            depth,
            class: Class::Medium,
            working_set_bytes: None,
        };
        Shape::settle(wish).unwrap()
    }

    /// A slice in which the thread came to run.
    fn ran(batch: u64, depth: u64) -> (Fake, Counted, Histogram<u64>) {
        loop {
            let mut latencies = histogram();
            let mut fake = Fake::default();
            let span = Span { start_ns: now_ns(), warm_ns: 50_000_000, count_ns: 50_000_000 };
            let shape = shape(batch, depth);
            let counted = run(&mut fake, &shape, span, false, &mut latencies).unwrap();
            if counted.ops > 0 {
                return (fake, counted, latencies);
            }
        }
    }

    #[test]
    fn lock_step_waits_for_a_whole_batch() {
        let (fake, counted, _) = ran(8, 8);
        assert_eq!((fake.out_max, fake.overlapped, fake.out.len()), (8, false, 0));
        assert!(counted.ops > 0 && counted.ops.is_multiple_of(8));
    }

    #[test]
    fn a_pipeline_is_filled_and_never_beyond_its_depth() {
        let (fake, counted, latencies) = ran(8, 21);
        assert_eq!((fake.out_max, fake.overlapped, fake.out.len()), (21, true, 0), "13 + 8");
        assert!(counted.ops > 0 && !latencies.is_empty());
    }

    #[test]
    fn what_comes_while_warming_up_is_not_counted() {
        let (fake, counted, latencies) = ran(1, 1);
        assert!(0 < counted.ops && counted.ops < fake.submitted);
        assert!(counted.elapsed_ns > 0, "{counted:?}");
        // Timing some batches is enough.
        assert!(latencies.len() < counted.ops, "{} of {counted:?}", latencies.len());
    }

    #[test]
    fn the_other_side_comes_to_rest_before_the_next_slice() {
        assert_eq!(ran(1, 1).0.naps, 5);
    }

    #[test]
    fn silence_is_looked_into() {
        let mut fake = Fake { mute: true, ..Fake::default() };
        let mut latencies = histogram();
        let span = Span { start_ns: now_ns(), warm_ns: 0, count_ns: 3_600_000_000_000 };
        let ended = run(&mut fake, &shape(1, 1), span, true, &mut latencies);
        assert!(matches!(ended, Err(Failure::Failed(text)) if text == "gone"));
        assert_eq!(fake.checks, 3);
    }
}
