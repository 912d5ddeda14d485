//! A client process: the client's end of every contestant, and slices of each on order.
//!
//! One thread holds them all, so that between two slices nothing moves to another core. While one
//! runs, the others are idle: the engine sleeps, the echo process waits for a word, the kernel's
//! polling thread has gone to sleep.

use std::time::Duration;

use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};

use super::bare::{self, BareEnd};
use super::cores::pin_to;
use super::echo::open_segment;
use super::slice::{self, Counted, Span, histogram};
use super::talk::{Order, Plan, Report, misplaced, next_order, report};
use super::through_engine::EngineRig;
use super::uring::UringRig;
use super::who::Who;
use crate::cli::Failure;

/// Runs slices until no more is wanted.
pub(super) fn run() -> Result<(), Failure> {
    let Some(order) = next_order()? else { return Ok(()) };
    let Order::Prepare(plan) = order else { return Err(misplaced(&order)) };
    pin_to(plan.core)?;
    let mut ends = Ends::new(*plan)?;
    report(&Report::Ready { skipped: std::mem::take(&mut ends.skipped) })?;
    while let Some(order) = next_order()? {
        match order {
            Order::Slice { slice, who, span } => {
                let counted = ends.slice(slice, who, span)?;
                report(&Report::Counted(counted))?;
            }
            Order::Finish => report(&Report::Latencies(ends.latencies()))?,
            other => return Err(misplaced(&other)),
        }
    }
    Ok(())
}

/// The client's ends of all contestants.
struct Ends {
    plan: Plan,
    engine: Option<EngineRig>,
    bare: Option<BareEnd>,
    uring: Option<UringRig>,
    sqpoll: Option<UringRig>,
    /// Contestants that this machine does not let run, and why.
    skipped: Vec<(Who, String)>,
    latencies: Vec<(Who, Histogram<u64>)>,
}

impl Ends {
    fn new(plan: Plan) -> Result<Self, Failure> {
        let has = |who| plan.contestants.contains(&who);
        let engine = match has(Who::Verbring) {
            true => Some(EngineRig::new(&plan.socket, &plan.shape, Duration::ZERO)?),
            false => None,
        };
        let bare = match &plan.segment {
            Some(segment) => {
                let mapping = open_segment(segment, bare::segment_bytes(&plan.shape))?;
                Some(BareEnd::new(bare::open(mapping)?))
            }
            None => None,
        };
        let mut skipped = Vec::new();
        let mut uring = |who, sqpoll| {
            if !has(who) {
                return None;
            }
            let made = UringRig::new(&plan.shape, sqpoll);
            made.map_err(|error| skipped.push((who, error.to_string()))).ok()
        };
        let plain = uring(Who::IoUring, None);
        let sqpoll = uring(Who::IoUringSqpoll, Some(plan.other_core));
        let latencies = plan.contestants.iter().map(|who| (*who, histogram())).collect();
        Ok(Self { engine, bare, uring: plain, sqpoll, skipped, latencies, plan })
    }

    fn slice(&mut self, slice: u32, who: Who, span: Span) -> Result<Counted, Failure> {
        let before = displaced();
        let (shape, crowded) = (&self.plan.shape, self.plan.crowded);
        let Some((_, latencies)) = self.latencies.iter_mut().find(|(it, _)| *it == who) else {
            return Err(absent(who));
        };
        let counted = match who {
            Who::Verbring | Who::Again => {
                let rig = self.engine.as_mut().ok_or_else(|| absent(who))?;
                slice::run(rig, shape, span, crowded, latencies)
            }
            Who::Bare | Who::BareMemcpy => {
                let end = self.bare.as_mut().ok_or_else(|| absent(who))?;
                let shape = if who == Who::Bare { shape.bare() } else { shape.clone() };
                let counted =
                    slice::run(&mut end.rig(shape.walk(0, 0)), &shape, span, crowded, latencies);
                end.dismiss(slice);
                counted
            }
            Who::IoUring => {
                let rig = self.uring.as_mut().ok_or_else(|| absent(who))?;
                slice::run(rig, shape, span, crowded, latencies)
            }
            Who::IoUringSqpoll => {
                let rig = self.sqpoll.as_mut().ok_or_else(|| absent(who))?;
                slice::run(rig, shape, span, crowded, latencies)
            }
            Who::VerbringIdleRings | Who::Futex => Err(absent(who)),
        }?;
        Ok(Counted { displaced: displaced() - before, ..counted })
    }

    /// All latencies so far, each with how often it was seen.
    fn latencies(&self) -> Vec<(Who, Vec<(u64, u64)>)> {
        let values = |histogram: &Histogram<u64>| {
            histogram
                .iter_recorded()
                .map(|it| (it.value_iterated_to(), it.count_at_value()))
                .collect()
        };
        self.latencies.iter().map(|(who, histogram)| (*who, values(histogram))).collect()
    }
}

fn absent(who: Who) -> Failure {
    Failure::Failed(format!("{} was not prepared", who.name()))
}

/// How often this thread was taken off its core against its will.
fn displaced() -> u64 {
    getrusage(UsageWho::RUSAGE_THREAD)
        .map_or(0, |usage| u64::try_from(usage.involuntary_context_switches()).unwrap_or(0))
}
