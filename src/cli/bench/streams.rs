//! A client of streams: many rings driven by one loop, each with ops of its own class and size,
//! as fast as they end or at random times of their own.
//!
//! One loop and not a process each: on a machine with two cores, processes that share one would
//! measure how they displace one another. Each stream has a session and a ring of its own, so that
//! to the engine they are strangers.
//!
//! A stream that is *closed* submits a batch whenever so many of its ops have ended. One that is
//! *open* submits at times drawn beforehand (a Poisson process), whatever became of the ops
//! before; its latency counts from the time that was drawn, not from when the loop or the ring
//! had room for it. What was to be submitted in the counted time is waited for, however late.

use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use verbring::abi::{Class, Sqe, errno};
use verbring::{RawRing, RingOptions};

use super::burst_client::values;
use super::cores::pin_to;
use super::crew::{Arm, Crew, out_of_turn};
use super::shape::{OpKind, Shape, Walk, Wish};
use super::slice::{SILENCE_MAX, Span, histogram, now_ns};
use super::talk::{Order, Report, misplaced, next_order, report};
use super::through_engine::{Memory, attach, memory, over};
use crate::cli::Failure;

/// What a client is to be ready for: these streams at each engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StreamsPlan {
    pub(super) core: usize,
    pub(super) sockets: Vec<PathBuf>,
    pub(super) parts: Vec<Part>,
}

/// What a stream is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    /// As in the SQE.
    pub(super) class: u8,
    /// Bytes of each WRITE.
    pub(super) op_bytes: u64,
    /// Bytes of sources and destinations together.
    pub(super) working_set_bytes: u64,
    /// Ops in flight at most.
    pub(super) depth: u32,
    /// Microseconds after which an op need not be begun; 0 for never.
    pub(super) deadline_us: u32,
}

/// When a stream submits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Pace {
    /// A batch whenever no more than `depth` are in flight with it.
    Closed { batch: u32, depth: u32 },
    /// At random, so many a second on the average.
    Open { per_s: f64 },
}

/// Who plays, at which engine, and for how long.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Score {
    pub(super) engine: usize,
    /// Which parts, and how.
    pub(super) voices: Vec<(usize, Pace)>,
    pub(super) span: Span,
    pub(super) seed: u64,
}

/// What a stream came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Played {
    pub(super) part: usize,
    /// Ended in the counted time, but for late ones.
    pub(super) ops: u64,
    pub(super) bytes: u64,
    /// Of ops that were due in the counted time: latencies, and how often each was seen.
    pub(super) latencies: Vec<(u64, u64)>,
    /// The same of those that were not begun before their deadline.
    pub(super) late: Vec<(u64, u64)>,
}

impl Part {
    fn shape(&self) -> Result<Shape, Failure> {
        let wish = Wish {
            op: OpKind::Write,
            size_bytes: self.op_bytes,
            pages: 1,
            batch: 1,
            depth: self.depth.into(),
            class: Class::from_byte(self.class).unwrap_or_default(),
            working_set_bytes: Some(self.working_set_bytes.max(2 * self.op_bytes)),
        };
        Shape::settle(wish).map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// The parent's side: engines, and one client with its streams at each.
pub(super) struct Stage {
    crew: Crew,
    warm_ns: u64,
    count_ns: u64,
    played: u64,
}

impl Stage {
    /// `slice`: how long a play is, of which the first fifth is not counted.
    pub(super) fn set(
        arms: &[Arm],
        core: usize,
        parts: &[Part],
        slice: Duration,
    ) -> Result<Self, Failure> {
        for part in parts {
            part.shape()?;
        }
        let crew = Crew::start(arms, 1, |_, sockets| {
            Order::PrepareStreams(StreamsPlan { core, sockets, parts: parts.to_vec() })
        })?;
        let slice_ns = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
        let warm_ns = slice_ns / WARM_PART;
        Ok(Self { crew, warm_ns, count_ns: slice_ns - warm_ns, played: 0 })
    }

    /// Has streams play at an engine; tells of them in their order.
    pub(super) fn play(
        &mut self,
        engine: usize,
        voices: &[(usize, Pace)],
    ) -> Result<Vec<Played>, Failure> {
        self.played += 1;
        let span = Span { start_ns: now_ns(), warm_ns: self.warm_ns, count_ns: self.count_ns };
        let score = Score { engine, voices: voices.to_vec(), span, seed: self.played };
        match self.crew.play(&Order::Play(score))?.pop() {
            Some(Report::Played(all)) => Ok(all),
            Some(other) => Err(out_of_turn(&other)),
            None => Ok(Vec::new()),
        }
    }

    /// Seconds that are counted of a play.
    pub(super) fn counted_s(&self) -> f64 {
        Duration::from_nanos(self.count_ns).as_secs_f64()
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.crew.pids()
    }

    pub(super) fn plays(&self) -> u64 {
        self.played
    }
}

/// Plays until no more is wanted.
pub(super) fn run(plan: &StreamsPlan) -> Result<(), Failure> {
    pin_to(plan.core)?;
    let mut engines = Vec::new();
    for socket in &plan.sockets {
        let ends = plan.parts.iter().map(|part| End::new(part, socket));
        engines.push(ends.collect::<Result<Vec<_>, _>>()?);
    }
    report(&Report::Ready { skipped: Vec::new() })?;
    while let Some(order) = next_order()? {
        match order {
            Order::Play(score) if score.engine < engines.len() => {
                report(&Report::Played(play(&mut engines[score.engine], &score)?))?;
            }
            other => return Err(misplaced(&other)),
        }
    }
    Ok(())
}

/// A stream's end at one engine.
struct End {
    ring: RawRing,
    walk: Walk,
    depth: u32,
    result: i32,
    deadline_us: u32,
    _memory: Memory,
}

impl End {
    fn new(part: &Part, socket: &std::path::Path) -> Result<Self, Failure> {
        let session = attach(socket)?;
        let shape = part.shape()?;
        let options = RingOptions::new(shape.entries(), shape.entries());
        let ring =
            session.raw_ring(options).map_err(|error| Failure::of("cannot have a ring", &error))?;
        let memory = memory(&session, &shape)?;
        Ok(Self {
            ring,
            walk: shape.walk(memory.near.id(), memory.import.id()),
            depth: part.depth,
            result: i32::try_from(part.op_bytes).unwrap_or(i32::MAX),
            deadline_us: part.deadline_us,
            _memory: memory,
        })
    }

    fn push(&mut self, due_ns: u64) {
        let mut sqe = Sqe::from_words(self.walk.next(due_ns));
        sqe.arg[0] |= u64::from(self.deadline_us);
        let pushed = self.ring.push(sqe);
        debug_assert!(pushed.is_some(), "as many SQ slots as ops in flight");
    }
}

fn play(ends: &mut [End], score: &Score) -> Result<Vec<Played>, Failure> {
    let from_ns = score.span.start_ns + score.span.warm_ns;
    let until_ns = from_ns + score.span.count_ns;
    let mut ends: Vec<Option<&mut End>> = ends.iter_mut().map(Some).collect();
    let mut voices = Vec::new();
    for (part, pace) in &score.voices {
        let end = ends.get_mut(*part).and_then(Option::take);
        let end = end.ok_or_else(|| Failure::Failed(format!("no part {part}, or twice")))?;
        voices.push(Voice::new(*part, *pace, end, score));
    }
    let mut heard_ns = now_ns();
    loop {
        let now = now_ns();
        let mut busy = now < until_ns;
        for voice in &mut voices {
            voice.submit(now, until_ns);
            if voice.reap(from_ns, until_ns)? {
                heard_ns = now;
            }
            busy |= voice.is_busy(until_ns);
        }
        if !busy {
            break;
        }
        let idle = voices.iter().all(|voice| voice.in_flight == 0);
        if idle {
            heard_ns = now;
        } else if now.saturating_sub(heard_ns) > SILENCE_NS {
            return Err(Failure::Failed("no completion came for 10 s".to_string()));
        }
    }
    rest(&voices);
    Ok(voices.into_iter().map(Voice::played).collect())
}

/// Waits until the engine sleeps, so that the next play is the next engine's alone.
fn rest(voices: &[Voice<'_>]) {
    let until = now_ns() + REST_MAX_NS;
    let asleep = || voices.iter().all(|voice| voice.end.ring.engine_sleeps());
    while !asleep() && now_ns() < until {
        std::hint::spin_loop();
    }
}

struct Voice<'a> {
    part: usize,
    pace: Pace,
    end: &'a mut End,
    in_flight: u32,
    /// When the next op of an open stream is due.
    next_ns: u64,
    draws: Draws,
    ops: u64,
    latencies: Histogram<u64>,
    late: Histogram<u64>,
}

impl<'a> Voice<'a> {
    fn new(part: usize, pace: Pace, end: &'a mut End, score: &Score) -> Self {
        let mut draws = Draws::new(score.seed << 8 | part as u64);
        let next_ns = match pace {
            Pace::Closed { .. } => u64::MAX,
            Pace::Open { per_s } => score.span.start_ns + draws.gap_ns(per_s),
        };
        Self {
            part,
            pace,
            end,
            in_flight: 0,
            next_ns,
            draws,
            ops: 0,
            latencies: histogram(),
            late: histogram(),
        }
    }

    /// Submits what is due and has room.
    #[inline]
    fn submit(&mut self, now_ns: u64, until_ns: u64) {
        let mut pushed = 0;
        match self.pace {
            Pace::Closed { batch, depth } => {
                let depth = depth.min(self.end.depth);
                while now_ns < until_ns && self.in_flight + pushed + batch <= depth {
                    (0..batch).for_each(|_| self.end.push(now_ns));
                    pushed += batch;
                }
            }
            Pace::Open { per_s } => {
                let due = now_ns.min(until_ns - 1);
                while self.next_ns <= due && self.in_flight + pushed < self.end.depth {
                    self.end.push(self.next_ns);
                    pushed += 1;
                    self.next_ns += self.draws.gap_ns(per_s);
                }
            }
        }
        if pushed > 0 {
            self.in_flight += pushed;
            self.end.ring.submit();
        }
    }

    /// Takes what has ended; true if there was something.
    #[inline]
    fn reap(&mut self, from_ns: u64, until_ns: u64) -> Result<bool, Failure> {
        if self.in_flight == 0 {
            return Ok(false);
        }
        let (mut seen_ns, mut wrong) = (None, None);
        let result = self.end.result;
        let (latencies, late, ops) = (&mut self.latencies, &mut self.late, &mut self.ops);
        let popped = self.end.ring.pop_all(|cqe| {
            let now = *seen_ns.get_or_insert_with(now_ns);
            let due = cqe.user_data >= from_ns;
            let latency_ns = now.saturating_sub(cqe.user_data);
            if cqe.res == result {
                *ops += u64::from((from_ns..until_ns).contains(&now));
                if due {
                    latencies.saturating_record(latency_ns);
                }
            } else if cqe.res == -errno::ETIME {
                if due {
                    late.saturating_record(latency_ns);
                }
            } else {
                wrong = Some(cqe.res);
            }
        });
        let popped = popped.map_err(over)?;
        self.in_flight -= popped;
        match wrong {
            Some(res) => Err(Failure::Failed(format!("an op answered {res}"))),
            None => Ok(popped > 0),
        }
    }

    /// True while something is in flight, or was due before the end.
    fn is_busy(&self, until_ns: u64) -> bool {
        self.in_flight > 0 || self.next_ns < until_ns
    }

    fn played(self) -> Played {
        Played {
            part: self.part,
            ops: self.ops,
            bytes: self.ops * u64::from(self.end.result.unsigned_abs()),
            latencies: values(&self.latencies),
            late: values(&self.late),
        }
    }
}

/// Times that look random and are the same in every run with the same seed (xorshift).
struct Draws(u64);

impl Draws {
    fn new(seed: u64) -> Self {
        let mut draws = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            draws.next();
        }
        draws
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// To the next event of a Poisson process, nanoseconds.
    fn gap_ns(&mut self, per_s: f64) -> u64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits of them")]
        let part = ((self.next() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        super::round::whole(-part.ln() * 1e9 / per_s)
    }
}

/// One part in so many of a play is not counted.
const WARM_PART: u64 = 5;
/// An engine that looks for work for longer than this is left to it.
const REST_MAX_NS: u64 = 20_000_000;
const SILENCE_NS: u64 = SILENCE_MAX.as_secs() * 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Gaps of a Poisson process have the mean that was asked for, and as much deviation.
    #[test]
    fn gaps_are_exponential() {
        for seed in 0..4 {
            let mut draws = Draws::new(seed);
            let gaps: Vec<f64> =
                (0..100_000).map(|_| super::super::round::float(draws.gap_ns(1e6))).collect();
            let mean = gaps.iter().sum::<f64>() / 1e5;
            let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 1e5).sqrt();
            assert!((mean / 1e3 - 1.0).abs() < 0.02, "{mean}");
            assert!((deviation / 1e3 - 1.0).abs() < 0.03, "{deviation}");
        }
        assert_ne!(Draws::new(1).next(), Draws::new(2).next());
    }

    #[test]
    fn what_cannot_be_is_named() {
        let part =
            Part { class: 1, op_bytes: 4_096, working_set_bytes: 0, depth: 64, deadline_us: 0 };
        assert_eq!(part.shape().unwrap().working_set_bytes, 8_192);
        let Err(Failure::Usage(text)) = (Part { depth: 1 << 20, ..part }).shape() else {
            panic!("taken")
        };
        assert!(text.starts_with("--depth is 1048576, but must be"), "{text}");
    }
}
