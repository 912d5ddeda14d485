//! One measurement: starts the processes, has the contestants take turns, and gathers what came.
//!
//! A round is one slice of each contestant, and each round begins with another one, so that none
//! always runs behind the same neighbour. While one is active, no other side has work.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use hdrhistogram::Histogram;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use verbring::shm::{self, Mapping};

use super::bare;
use super::cores::Cores;
use super::quiet::{Disturbance, Watch};
use super::shape::Shape;
use super::slice::{Counted, Span, histogram, now_ns};
use super::statistics::median;
use super::talk::{Event, Order, Plan, Report, Role, Worker, next_report};
use super::verbs::VerbsPlan;
use super::who::{Carrier, Who};
use crate::cli::Failure;
use crate::cli::place::Place;

/// What is the same for every point of a sweep.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) cores: Cores,
    pub(super) clients: usize,
    /// `name=value` each, for the engine.
    pub(super) settings: Vec<String>,
    /// What carries the engine's ops.
    pub(super) carrier: Carrier,
    /// For a second engine, which has the far side.
    pub(super) far_settings: Option<Vec<String>>,
    /// The bare queue pair, if it is one of the contestants.
    pub(super) verbs: Option<VerbsPlan>,
    pub(super) slice: Duration,
    pub(super) time: Duration,
    pub(super) contestants: Vec<Who>,
    /// Rings that stay idle, in an engine of their own beside a busy one.
    pub(super) idle_rings: u32,
    /// From sleep to completion.
    pub(super) sleep: bool,
}

/// What one contestant's slices came to.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) who: Who,
    pub(super) ops: u64,
    /// Ops a second in each round.
    pub(super) rates: Vec<f64>,
    /// The median latency in each round, if it was told.
    pub(super) medians_ns: Vec<f64>,
    pub(super) latencies: Histogram<u64>,
    /// Why it did not run.
    pub(super) skipped: Option<String>,
}

/// One point of a sweep, measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) tracks: Vec<Track>,
    pub(super) disturbance: Disturbance,
}

/// Measures one shape.
pub(super) fn measure(terms: &Terms, shape: &Shape) -> Result<Measured, Failure> {
    let mut stage = Stage::set(terms, shape)?;
    stage.play(terms)
}

/// The processes of one measurement. They end with the value.
struct Stage {
    engines: Vec<Worker>,
    echo: Option<Worker>,
    clients: Vec<Worker>,
    /// More clients than cores: they displace one another.
    crowded: bool,
    happened: Receiver<Event>,
    tracks: Vec<Track>,
}

impl Stage {
    /// Starts everything and waits until all of it is ready.
    fn set(terms: &Terms, shape: &Shape) -> Result<Self, Failure> {
        let (events, happened) = mpsc::channel();
        let mut engines = Vec::new();
        let mut serve = |settings: &Vec<String>| {
            let place = Place::new("bench")?;
            let mut engine = Worker::start(Role::Engine, &events)?;
            let settings = settings.clone();
            engine.tell(&Order::Serve { socket: place.socket(), settings })?;
            ready(&happened)?;
            engines.push(engine);
            Ok::<_, Failure>(place)
        };
        let place = serve(&terms.settings)?;
        let idle_place = if terms.idle_rings > 0 { Some(serve(&terms.settings)?) } else { None };
        let direct = terms.contestants.contains(&Who::Direct).then(|| {
            let more = std::iter::once("mode=direct".to_string());
            serve(&terms.settings.iter().cloned().chain(more).collect())
        });
        let direct_place = direct.transpose()?;
        let far_place = terms.far_settings.as_ref().map(&mut serve).transpose()?;
        let echoes = terms.contestants.iter().any(|who| who.echoes());
        // Held until the processes have them, too.
        let mut segments = Vec::new();
        let mut echo = None;
        if echoes {
            for _ in 0..terms.clients {
                segments.push(make_segment(shape)?);
            }
            let mut worker = Worker::start(Role::Echo, &events)?;
            let segments = segments.iter().map(inherited).collect();
            let core = terms.cores.engine;
            worker.tell(&Order::Echo { core, segments, shape: shape.clone() })?;
            ready(&happened)?;
            echo = Some(worker);
        }
        let crowded = terms.clients > terms.cores.clients.len() || terms.cores.is_one();
        let mut clients = Vec::new();
        let mut skipped = Vec::new();
        for index in 0..terms.clients {
            let mut worker = Worker::start(Role::Client, &events)?;
            worker.tell(&Order::Prepare(Box::new(Plan {
                contestants: terms.contestants.clone(),
                shape: shape.clone(),
                core: terms.cores.of_client(index),
                other_core: terms.cores.engine,
                crowded,
                socket: place.socket(),
                far: far_place.as_ref().map(Place::socket),
                verbs: terms.verbs.clone(),
                direct: direct_place.as_ref().map(Place::socket),
                segment: segments.get(index).map(inherited),
                idle: idle_place
                    .as_ref()
                    .map(|place| (place.socket(), if index == 0 { terms.idle_rings } else { 0 })),
                sleep: terms.sleep,
            })))?;
            skipped.extend(ready(&happened)?);
            clients.push(worker);
        }
        let tracks = terms.contestants.iter().map(|who| Track {
            who: *who,
            ops: 0,
            rates: Vec::new(),
            medians_ns: Vec::new(),
            latencies: histogram(),
            skipped: skipped.iter().find(|(it, _)| it == who).map(|(_, text)| text.clone()),
        });
        Ok(Self { engines, echo, clients, crowded, happened, tracks: tracks.collect() })
    }

    /// Runs all rounds.
    fn play(&mut self, terms: &Terms) -> Result<Measured, Failure> {
        let running: Vec<usize> =
            (0..self.tracks.len()).filter(|at| self.tracks[*at].skipped.is_none()).collect();
        let rounds = rounds(terms, running.len());
        let watch = Watch::start(self.pids(), self.crowded)?;
        let mut slice = 0;
        for round in 0..rounds {
            for turn in 0..running.len() {
                let at = running[(turn + round) % running.len()];
                slice += 1;
                let counted = self.slice(terms, slice, self.tracks[at].who)?;
                let track = &mut self.tracks[at];
                track.ops += counted.iter().map(|it| it.ops).sum::<u64>();
                track.rates.push(counted.iter().map(rate).sum());
                if terms.sleep {
                    let medians = counted.iter().map(|it| float(it.p50_ns)).collect::<Vec<_>>();
                    track.medians_ns.push(median(&medians));
                }
            }
        }
        let disturbance = watch.end(u64::from(slice))?;
        for client in &mut self.clients {
            client.tell(&Order::Finish)?;
        }
        for _ in 0..self.clients.len() {
            let Report::Latencies(all) = next_report(&self.happened)? else {
                return Err(out_of_turn());
            };
            for (who, values) in all {
                let Some(track) = self.tracks.iter_mut().find(|it| it.who == who) else { continue };
                for (value, count) in values {
                    track.latencies.saturating_record_n(value, count);
                }
            }
        }
        Ok(Measured { tracks: std::mem::take(&mut self.tracks), disturbance })
    }

    /// Runs one slice of one contestant on all clients at once.
    fn slice(&mut self, terms: &Terms, slice: u32, who: Who) -> Result<Vec<Counted>, Failure> {
        if who.echoes()
            && let Some(echo) = &mut self.echo
        {
            echo.tell(&Order::Go { slice, who })?;
        }
        let whole_ns = u64::try_from(terms.slice.as_nanos()).unwrap_or(u64::MAX);
        let warm_ns = whole_ns / WARM_PART;
        let head_start_ns = if self.clients.len() > 1 { HEAD_START_NS } else { 0 };
        let start_ns = now_ns() + head_start_ns;
        let span = Span { start_ns, warm_ns, count_ns: whole_ns - warm_ns };
        for client in &mut self.clients {
            client.tell(&Order::Slice { slice, who, span })?;
        }
        let mut all = Vec::new();
        for _ in 0..self.clients.len() {
            let Report::Counted(counted) = next_report(&self.happened)? else {
                return Err(out_of_turn());
            };
            all.push(counted);
        }
        Ok(all)
    }

    fn pids(&self) -> Vec<u32> {
        self.engines.iter().chain(&self.echo).chain(&self.clients).map(Worker::pid).collect()
    }
}

/// As many rounds as the time allows, and no fewer than make enough slices.
fn rounds(terms: &Terms, contestants: usize) -> usize {
    let least = SLICES_MIN.div_ceil(contestants.max(1));
    let slices = terms.time.as_secs_f64() / terms.slice.as_secs_f64();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bounded count")]
    let slices = slices as usize;
    least.max(slices / contestants.max(1))
}

pub(super) fn rate(counted: &Counted) -> f64 {
    let elapsed_ns = float(counted.elapsed_ns);
    if elapsed_ns == 0.0 { 0.0 } else { float(counted.ops) * 1e9 / elapsed_ns }
}

#[expect(clippy::cast_precision_loss, reason = "a slice has far less than 2^52 of anything")]
fn float(count: u64) -> f64 {
    count as f64
}

fn ready(happened: &Receiver<Event>) -> Result<Vec<(Who, String)>, Failure> {
    match next_report(happened)? {
        Report::Ready { skipped } => Ok(skipped),
        _ => Err(out_of_turn()),
    }
}

fn out_of_turn() -> Failure {
    Failure::Failed("a process reported out of turn".to_string())
}

/// Makes a bare ring in memory that the processes started from now on inherit.
fn make_segment(shape: &Shape) -> Result<OwnedFd, Failure> {
    let failed = |error| Failure::of("cannot have memory for a bare ring", &error);
    let bytes = bare::segment_bytes(shape);
    let fd = shm::create(c"verbring-bench-ring", bytes, false).map_err(failed)?;
    let mapping = Mapping::shared(fd.as_fd(), bytes).map_err(failed)?;
    bare::make(Arc::new(mapping), shape)?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))
        .map_err(|error| Failure::of("cannot let a bare ring be inherited", &error))?;
    Ok(fd)
}

/// Where a process that has inherited it finds it.
fn inherited(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// One part in so many of a slice is not counted.
pub(super) const WARM_PART: u64 = 5;

/// With several clients, all begin at once, this long after they are told.
const HEAD_START_NS: u64 = 300_000;

/// Fewer slices say too little.
const SLICES_MIN: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_fill_the_time_and_make_enough_slices() {
        let rounds = |seconds, contestants| {
            let terms = Terms {
                cores: Cores { engine: 0, clients: vec![1] },
                clients: 1,
                settings: Vec::new(),
                carrier: Carrier::Local,
                far_settings: None,
                verbs: None,
                slice: Duration::from_millis(10),
                time: Duration::from_secs_f64(seconds),
                contestants: Vec::new(),
                idle_rings: 0,
                sleep: false,
            };
            rounds(&terms, contestants)
        };
        assert_eq!((rounds(6.0, 1), rounds(6.0, 2), rounds(6.0, 3)), (600, 300, 200));
        assert_eq!((rounds(0.1, 1), rounds(0.1, 2), rounds(0.1, 3)), (200, 100, 67));
    }

    #[test]
    fn a_rate_is_ops_a_second() {
        let counted = Counted { ops: 50, elapsed_ns: 1_000_000, ..Counted::default() };
        assert_eq!((rate(&counted), rate(&Counted::default())), (50_000.0, 0.0));
    }
}
