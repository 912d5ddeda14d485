//! A client process: the client's end of every contestant, and slices of each on order.
//!
//! One thread holds them all, so that between two slices nothing moves to another core. While one
//! runs, the others are idle: the engine sleeps, the echo process waits for a word, the kernel's
//! polling thread has gone to sleep.

use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use verbring::RawRing;

use super::bare::{self, BareEnd};
use super::burst_client;
use super::chain_client;
use super::coalesce_client;
use super::cores::pin_to;
use super::echo::open_segment;
use super::engine_process::allow_many_files;
use super::shape::Shape;
use super::slice::{self, Counted, Span, histogram};
use super::streams;
use super::talk::{Order, Plan, Report, misplaced, next_order, report};
use super::through_engine::{EngineRig, crowd};
use super::uring::UringRig;
use super::verbs::VerbsRig;
use super::wake::{self, FutexClient};
use super::who::Who;
use crate::cli::Failure;

/// Runs slices until no more is wanted.
pub(super) fn run() -> Result<(), Failure> {
    let Some(order) = next_order()? else { return Ok(()) };
    let plan = match order {
        Order::Prepare(plan) => plan,
        Order::PrepareBursts(plan) => return burst_client::run(&plan),
        Order::PrepareChains(plan) => return chain_client::run(&plan),
        Order::PrepareRefreshes(plan) => return coalesce_client::run(&plan),
        Order::PrepareStreams(plan) => return streams::run(&plan),
        other => return Err(misplaced(&other)),
    };
    pin_to(plan.core)?;
    allow_many_files()?;
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
    /// Of the engine in mode direct.
    direct: Option<EngineRig>,
    /// Of the engine with idle rings, which are kept beside it.
    beside_idle: Option<EngineRig>,
    _idle: Vec<RawRing>,
    bare: Option<BareEnd>,
    uring: Option<UringRig>,
    sqpoll: Option<UringRig>,
    verbs: Option<VerbsRig>,
    /// Contestants that this machine does not let run, and why.
    skipped: Vec<(Who, String)>,
    latencies: Vec<(Who, Histogram<u64>)>,
}

impl Ends {
    fn new(plan: Plan) -> Result<Self, Failure> {
        let has = |who| plan.contestants.contains(&who);
        let engine = match has(Who::Verbring) {
            true => {
                let far = plan.far.as_deref();
                Some(EngineRig::new(&plan.socket, far, &plan.shape, Duration::ZERO)?)
            }
            false => None,
        };
        let rig = |socket: &PathBuf| EngineRig::new(socket, None, &plan.shape, Duration::ZERO);
        let direct = plan.direct.as_ref().map(rig).transpose()?;
        let (beside_idle, idle) = match &plan.idle {
            Some((socket, rings)) => {
                let rig = EngineRig::new(socket, None, &plan.shape, Duration::ZERO)?;
                (Some(rig), crowd(socket, *rings)?)
            }
            None => (None, Vec::new()),
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
        let verbs =
            plan.verbs.as_ref().map(|verbs| VerbsRig::new(verbs, &plan.shape)).transpose()?;
        let latencies = plan.contestants.iter().map(|who| (*who, histogram())).collect();
        Ok(Self {
            engine,
            direct,
            beside_idle,
            _idle: idle,
            bare,
            uring: plain,
            sqpoll,
            verbs,
            skipped,
            latencies,
            plan,
        })
    }

    fn slice(&mut self, slice: u32, who: Who, span: Span) -> Result<Counted, Failure> {
        if self.plan.sleep {
            self.sleep_slice(slice, who, span)
        } else {
            self.busy_slice(slice, who, span)
        }
    }

    fn busy_slice(&mut self, slice: u32, who: Who, span: Span) -> Result<Counted, Failure> {
        let (shape, crowded) = (&self.plan.shape, self.plan.crowded);
        let latencies = find(&mut self.latencies, who)?;
        match who {
            Who::Verbring | Who::Again | Who::Direct | Who::VerbringIdleRings => {
                let rig = match who {
                    Who::VerbringIdleRings => &mut self.beside_idle,
                    Who::Direct => &mut self.direct,
                    _ => &mut self.engine,
                };
                run_engine(present(rig, who)?, shape, span, crowded, latencies)
            }
            Who::Bare | Who::BareMemcpy => {
                let end = present(&mut self.bare, who)?;
                let shape = if who == Who::Bare { shape.bare() } else { shape.clone() };
                let mut rig = end.rig(shape.walk(0, 0));
                let counted = slice::run(&mut rig, &shape, span, crowded, latencies);
                end.dismiss(slice);
                counted
            }
            Who::IoUring => {
                slice::run(present(&mut self.uring, who)?, shape, span, crowded, latencies)
            }
            Who::IoUringSqpoll => {
                slice::run(present(&mut self.sqpoll, who)?, shape, span, crowded, latencies)
            }
            Who::Verbs => {
                slice::run(present(&mut self.verbs, who)?, shape, span, crowded, latencies)
            }
            Who::Futex => Err(absent(who)),
        }
    }

    fn sleep_slice(&mut self, slice: u32, who: Who, span: Span) -> Result<Counted, Failure> {
        let latencies = find(&mut self.latencies, who)?;
        match who {
            Who::Verbring | Who::Again => {
                wake::run(present(&mut self.engine, who)?, span, latencies)
            }
            Who::VerbringIdleRings => {
                wake::run(present(&mut self.beside_idle, who)?, span, latencies)
            }
            Who::Futex => {
                let mut client = FutexClient(present(&mut self.bare, who)?.memory());
                let counted = wake::run(&mut client, span, latencies)?;
                client.dismiss(slice)?;
                Ok(counted)
            }
            Who::Bare
            | Who::BareMemcpy
            | Who::IoUring
            | Who::IoUringSqpoll
            | Who::Verbs
            | Who::Direct => Err(absent(who)),
        }
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

fn find(all: &mut [(Who, Histogram<u64>)], who: Who) -> Result<&mut Histogram<u64>, Failure> {
    let found = all.iter_mut().find(|(it, _)| *it == who);
    found.map(|(_, histogram)| histogram).ok_or_else(|| absent(who))
}

fn present<T>(end: &mut Option<T>, who: Who) -> Result<&mut T, Failure> {
    end.as_mut().ok_or_else(|| absent(who))
}

fn absent(who: Who) -> Failure {
    Failure::Failed(format!("{} was not prepared", who.name()))
}

/// [`slice::run`] for engines, in a function of its own: among the other contestants' loops the
/// compiler runs out of registers and spills some between two slots, which halves what the ring
/// carries; and both engines of a comparison must run the same copy.
#[inline(never)]
fn run_engine(
    rig: &mut EngineRig,
    shape: &Shape,
    span: Span,
    crowded: bool,
    latencies: &mut Histogram<u64>,
) -> Result<Counted, Failure> {
    slice::run(rig, shape, span, crowded, latencies)
}
