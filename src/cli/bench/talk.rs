//! How a bench's parent and its processes talk: one JSON object a line over their standard input
//! and output, between slices only.
//!
//! A process ends when its input does, and is killed by the kernel when the parent dies, so that
//! none spins on after it.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::burst_client::{BurstDone, BurstPlan};
use super::chain_client::{ChainPlan, Weave, Woven};
use super::coalesce_client::{CoalescePlan, Refresh, Refreshed};
use super::shape::Shape;
use super::slice::{Counted, Span};
use super::streams::{Played, Score, StreamsPlan};
use super::verbs::VerbsPlan;
use super::who::Who;
use crate::cli::{Failure, say};

/// What the parent tells a process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// To an engine: listen with these settings, each `name=value`.
    Serve { socket: PathBuf, settings: Vec<String> },
    /// To the echo process: be the far end of these rings.
    Echo { core: usize, segments: Vec<PathBuf>, shape: Shape },
    /// To the echo process: spin until the clients say that this slice is over.
    Go { slice: u32, who: Who },
    /// To a client: make ready.
    Prepare(Box<Plan>),
    /// To a client: run one slice.
    Slice { slice: u32, who: Who, span: Span },
    /// To a client: tell the latencies.
    Finish,
    /// To a client of bursts: make ready.
    PrepareBursts(BurstPlan),
    /// To a client of bursts: one burst through the engine with this index.
    Burst { engine: usize, number: u32, start_ns: u64 },
    /// To a client of graphs: make ready.
    PrepareChains(ChainPlan),
    /// To a client of graphs: run one over and over for a slice.
    Weave(Weave),
    /// To a client of refreshes: make ready.
    PrepareRefreshes(CoalescePlan),
    /// To a client of refreshes: keep some in flight for a slice.
    Refresh(Refresh),
    /// To a client of streams: make ready.
    PrepareStreams(StreamsPlan),
    /// To a client of streams: play for a while.
    Play(Score),
}

/// What a client is to be ready for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) contestants: Vec<Who>,
    pub(super) shape: Shape,
    /// Where this client runs, and where the other side does.
    pub(super) core: usize,
    pub(super) other_core: usize,
    /// More clients than cores.
    pub(super) crowded: bool,
    pub(super) socket: PathBuf,
    /// The engine that has the far side, if it is not the same.
    pub(super) far: Option<PathBuf>,
    /// The bare queue pair.
    pub(super) verbs: Option<VerbsPlan>,
    /// The bare ring.
    pub(super) segment: Option<PathBuf>,
    /// The engine in mode direct.
    pub(super) direct: Option<PathBuf>,
    /// The engine with idle rings beside, and how many this client is to make.
    pub(super) idle: Option<(PathBuf, u32)>,
    /// From sleep to completion.
    pub(super) sleep: bool,
}

/// What a process tells the parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// Prepared, but for those contestants that this machine does not let run, with the reason.
    Ready { skipped: Vec<(Who, String)> },
    /// A slice.
    Counted(Counted),
    /// For each contestant, latencies and how often each was seen.
    Latencies(Vec<(Who, Vec<(u64, u64)>)>),
    /// A burst.
    Burst(BurstDone),
    /// What a slice of a graph came to.
    Woven(Woven),
    /// What a slice of refreshes came to.
    Refreshed(Refreshed),
    /// What each stream came to.
    Played(Vec<Played>),
    /// It did not work.
    Failed { text: String },
}

/// Which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Engine,
    Echo,
    Client,
}

impl Role {
    /// The name of its hidden subcommand's mode, and of it in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Echo => "echo",
            Self::Client => "client",
        }
    }
}

/// What happens while the parent waits.
#[derive(Debug)]
pub(super) enum Event {
    Report(Role, Report),
    /// A process wrote what is no report.
    Garbled(Role, String),
    /// A process closed its standard output, most likely by ending.
    Gone(Role),
}

/// A process of the bench. It ends with the value.
#[derive(Debug)]
pub(super) struct Worker {
    role: Role,
    child: Child,
    orders: Option<ChildStdin>,
}

impl Worker {
    /// Starts this program again in a role.
    pub(super) fn start(role: Role, events: &Sender<Event>) -> Result<Self, Failure> {
        // Through /proc it is the program that runs, even if its file was replaced meanwhile.
        let mut child = Command::new("/proc/self/exe")
            .arg0(format!("verbring-bench-{}", role.name()))
            .args(["bench-worker", role.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::of(format!("cannot start the {}", role.name()), &error))?;
        let orders = child.stdin.take();
        let reports = child.stdout.take();
        let worker = Self { role, child, orders };
        if let Some(reports) = reports {
            let events = events.clone();
            thread::Builder::new()
                .name(role.name().to_string())
                .spawn(move || read_reports(role, BufReader::new(reports), &events))
                .map_err(|error| Failure::of("cannot start a thread", &error))?;
        }
        Ok(worker)
    }

    pub(super) fn tell(&mut self, order: &Order) -> Result<(), Failure> {
        let line = to_line(order)?;
        let Some(orders) = &mut self.orders else { return Ok(()) };
        match orders.write_all(line.as_bytes()) {
            // Its end is on the way as an event, which knows more.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Failure::of(format!("cannot reach the {}", self.role.name()), &error))
            }
            _ => Ok(()),
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the next report; anything else is the end.
pub(super) fn next_report(happened: &Receiver<Event>) -> Result<Report, Failure> {
    let silence = |_| Failure::Failed(format!("no report for {} s", SILENCE_MAX.as_secs()));
    match happened.recv_timeout(SILENCE_MAX).map_err(silence)? {
        Event::Report(role, Report::Failed { text }) => {
            Err(Failure::Failed(format!("the {}: {text}", role.name())))
        }
        Event::Report(_, report) => Ok(report),
        Event::Garbled(role, line) => {
            Err(Failure::Failed(format!("the {} said {line:?}", role.name())))
        }
        Event::Gone(role) => Err(Failure::Failed(format!("the {} ended early", role.name()))),
    }
}

/// Passes a process's reports on until it closes its output. A parent that is gone ends this, too.
fn read_reports(role: Role, reports: impl BufRead, events: &Sender<Event>) {
    for line in reports.lines() {
        let Ok(line) = line else { break };
        let event = match serde_json::from_str(&line) {
            Ok(report) => Event::Report(role, report),
            Err(_) => Event::Garbled(role, line),
        };
        if events.send(event).is_err() {
            return;
        }
    }
    let _ = events.send(Event::Gone(role));
}

/// A process's side: what it needs before it does anything else.
pub(super) fn bind_to_parent() -> Result<(), Failure> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| Failure::of("cannot have a signal when the parent dies", &error))
}

/// A process's side: tells the parent.
pub(super) fn report(report: &Report) -> Result<(), Failure> {
    say(&to_line(report)?)
}

/// A process's side: waits for the next order; `None` once the parent wants nothing more.
pub(super) fn next_order() -> Result<Option<Order>, Failure> {
    let mut line = String::new();
    let count = io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::of("cannot read orders", &error))?;
    if count == 0 {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).map_err(|error| Failure::of("bad order", &error))
}

/// An order that has no place where it came.
pub(super) fn misplaced(order: &Order) -> Failure {
    Failure::Failed(format!("an order out of place: {order:?}"))
}

fn to_line(message: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(message)
        .map(|text| text + "\n")
        .map_err(|error| Failure::of("cannot write a message", &error))
}

/// Nothing in a bench takes so long, unless something hangs.
const SILENCE_MAX: Duration = Duration::from_secs(60);
