//! A client of bursts: pushes all of a burst, low ops first and then high ones, and looks for
//! completions only when the last is pushed.
//!
//! An op's latency is from just before the `submit` that shows it to the engine until the engine
//! has ended it. The first is this process's clock, read before each batch; the second stands in
//! the session's flight recorder, on the same clock. So nobody has to poll meanwhile, and clients
//! that share a core do not measure one another.

use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use verbring::abi::{Class, Sqe};
use verbring::{RawRing, RingOptions, Session};

use super::cores::pin_to;
use super::shape::{OpKind, Shape, Walk, Wish};
use super::slice::{SILENCE_MAX, histogram, now_ns};
use super::talk::{Order, Report, misplaced, next_order, report};
use super::through_engine::{Memory, attach, memory, over};
use crate::cli::Failure;

/// What a client is to be ready for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BurstPlan {
    pub(super) core: usize,
    /// Several clients share a core, and each lets the others go on after every batch.
    pub(super) crowded: bool,
    pub(super) sockets: Vec<PathBuf>,
    /// Batches of a burst, half of them low and half of them high.
    pub(super) batches: u32,
    /// Ops of a batch, shown to the engine together.
    pub(super) batch: u32,
    pub(super) op_bytes: u64,
    /// Bytes of sources and destinations together.
    pub(super) working_set_bytes: u64,
}

impl BurstPlan {
    /// Ops of a burst.
    pub(super) fn ops(&self) -> u32 {
        self.batches * self.batch
    }

    /// What is pushed, for one class.
    pub(super) fn shape(&self, class: Class) -> Result<Shape, Failure> {
        let wish = Wish {
            op: OpKind::Write,
            size_bytes: self.op_bytes,
            pages: 1,
            batch: self.batch.into(),
            depth: self.ops().into(),
            class,
            working_set_bytes: Some(self.working_set_bytes),
        };
        Shape::settle(wish).map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// Latencies, each with how often it was seen, and their exact sum.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Latencies {
    pub(super) sum_ns: u64,
    pub(super) values: Vec<(u64, u64)>,
}

/// What a burst came to; times are of the monotonic clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BurstDone {
    pub(super) first_submit_ns: u64,
    pub(super) last_submit_ns: u64,
    pub(super) last_end_ns: u64,
    /// High, then low.
    pub(super) latencies: [Latencies; 2],
}

/// Runs bursts until no more is wanted.
pub(super) fn run(plan: &BurstPlan) -> Result<(), Failure> {
    pin_to(plan.core)?;
    let ends = plan.sockets.iter().map(|socket| End::new(plan, socket));
    let mut ends = ends.collect::<Result<Vec<_>, _>>()?;
    report(&Report::Ready { skipped: Vec::new() })?;
    while let Some(order) = next_order()? {
        match order {
            Order::Burst { engine, number, start_ns } if engine < ends.len() => {
                report(&Report::Burst(ends[engine].burst(plan, number, start_ns)?))?;
            }
            other => return Err(misplaced(&other)),
        }
    }
    Ok(())
}

/// The client's end at one engine.
struct End {
    session: Session,
    ring: RawRing,
    /// High, then low.
    walks: [Walk; 2],
    _memory: Memory,
    /// When each batch was submitted.
    submitted_ns: Vec<u64>,
}

impl End {
    fn new(plan: &BurstPlan, socket: &std::path::Path) -> Result<Self, Failure> {
        let session = attach(socket)?;
        let recorded = session.recorder().map_or(0, |recorder| recorder.capacity());
        if recorded < plan.ops() {
            let ops = plan.ops();
            let text = format!("recorder_entries is {recorded}, but must be at least {ops}");
            return Err(Failure::Failed(text));
        }
        let entries = plan.ops().next_power_of_two();
        // Twice the burst: polling is held off until all of it is submitted.
        let options =
            RingOptions { spin: Duration::ZERO, ..RingOptions::new(entries, 2 * entries) };
        let ring =
            session.raw_ring(options).map_err(|error| Failure::of("cannot have a ring", &error))?;
        let shapes = [plan.shape(Class::High)?, plan.shape(Class::Low)?];
        let memory = memory(&session, &shapes[0])?;
        let walks = shapes.map(|shape| shape.walk(memory.near.id(), memory.import.id()));
        Ok(Self { session, ring, walks, _memory: memory, submitted_ns: Vec::new() })
    }

    fn burst(
        &mut self,
        plan: &BurstPlan,
        number: u32,
        start_ns: u64,
    ) -> Result<BurstDone, Failure> {
        while now_ns() < start_ns {
            step_aside(plan);
        }
        self.submitted_ns.clear();
        let base = u64::from(number) << 32;
        for batch in 0..plan.batches {
            let walk = &mut self.walks[usize::from(batch < plan.batches / 2)];
            let first = base + u64::from(batch * plan.batch);
            self.submitted_ns.push(now_ns());
            let sqes = (0..plan.batch).map(|op| Sqe::from_words(walk.next(first + u64::from(op))));
            if self.ring.push_all(sqes) != plan.batch {
                return Err(Failure::Failed("the SQ has no room for a burst".to_string()));
            }
            self.ring.submit();
            step_aside(plan);
        }
        let last_submit_ns = now_ns();
        self.collect(plan)?;
        self.read_back(plan, base, last_submit_ns)
    }

    /// Waits for all of a burst, and takes its completions.
    fn collect(&mut self, plan: &BurstPlan) -> Result<(), Failure> {
        let (mut left, mut wrong) = (plan.ops(), None);
        let expected = i64::try_from(plan.op_bytes).unwrap_or(i64::MAX);
        while left > 0 {
            if self.ring.wait(left, Some(SILENCE_MAX)).map_err(over)? == 0 {
                let text = format!("{left} ops of a burst did not complete");
                return Err(Failure::Failed(text));
            }
            left -= self
                .ring
                .pop_all(|cqe| {
                    if i64::from(cqe.res) != expected {
                        wrong = Some(cqe.res);
                    }
                })
                .map_err(over)?;
        }
        match wrong {
            Some(res) => Err(Failure::Failed(format!("an op answered {res}"))),
            None => Ok(()),
        }
    }

    /// What the flight recorder says of a burst.
    fn read_back(
        &self,
        plan: &BurstPlan,
        base: u64,
        last_submit_ns: u64,
    ) -> Result<BurstDone, Failure> {
        let mut all: [(u64, Histogram<u64>); 2] = [(0, histogram()), (0, histogram())];
        let (mut seen, mut last_end_ns) = (0, 0);
        for entry in self.session.last_records() {
            let index = entry.user_data.wrapping_sub(base);
            if index >= plan.ops().into() {
                continue;
            }
            let batch = usize::try_from(index / u64::from(plan.batch)).unwrap_or(usize::MAX);
            let high = entry.class == Some(Class::High);
            let latency_ns = entry.ended_ns().saturating_sub(self.submitted_ns[batch]);
            let (sum, histogram) = &mut all[usize::from(!high)];
            *sum += latency_ns;
            histogram.saturating_record(latency_ns);
            last_end_ns = last_end_ns.max(entry.ended_ns());
            seen += 1;
        }
        if seen != plan.ops() {
            let ops = plan.ops();
            let text = format!("the flight recorder tells of {seen} ops of a burst of {ops}");
            return Err(Failure::Failed(text));
        }
        Ok(BurstDone {
            first_submit_ns: self.submitted_ns.first().copied().unwrap_or_default(),
            last_submit_ns,
            last_end_ns,
            latencies: all.map(|(sum_ns, it)| Latencies { sum_ns, values: values(&it) }),
        })
    }
}

/// What a histogram holds.
pub(super) fn values(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value())).collect()
}

/// As if each client had a core of its own: they go on batch by batch.
fn step_aside(plan: &BurstPlan) {
    if plan.crowded {
        let _ = nix::sched::sched_yield();
    } else {
        std::hint::spin_loop();
    }
}
