//! `verbring bench`: the engine's ring beside its limits, measured so that it can be believed.
//!
//! ```text
//!            parent: one slice of each contestant after the other, statistics, rows
//!               |  orders and reports, between slices only                |
//!               v                                                        v
//!            client(s) -- a ring through the production engine -----> engine
//!               |-------- a bare ring, with and without memcpy -----> echo
//!               |-------- io_uring NOPs ----------------------------> the kernel
//!               \-------- work requests on a bare queue pair -------> a card
//! ```
//!
//! On a machine that is never still, two figures taken minutes apart say little about each other.
//! So all contestants are there at once, on the same two cores, and take turns in slices of about
//! ten milliseconds; what is told is the median of the slices, how far they spread, and the ratio
//! of neighbours with its 95 % interval. `--baseline self` shows how well that resolves.
//!
//! `--peer` measures a ring through an engine that runs already, to memory that `--offer` has at
//! the engine of another host: one contestant, in this process, as its completions say by which
//! rails. `--to` measures a bare queue pair to a bench of another host that does `--listen`.

mod bare;
mod between;
mod burst;
mod burst_client;
mod chain;
mod chain_client;
mod charts;
mod client;
mod coalesce;
mod coalesce_client;
mod conductor;
mod cores;
mod crew;
mod echo;
mod engine_process;
mod far;
mod graph;
mod mix;
mod model;
mod plot;
mod ports;
mod qos;
mod quiet;
mod round;
mod rows;
mod shape;
mod slice;
mod statistics;
mod streams;
mod sweep;
mod talk;
mod through_engine;
mod uring;
mod verbs;
mod wake;
mod who;
mod window;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use verbring::abi::Class;

use super::afar::FarArgs;
use super::{Failure, class_name, complain, say, say_json};
use conductor::Terms;
use cores::Cores;
use ports::Port;
use shape::{OpKind, Shape, Wish};
use sweep::{Sweep, read_bytes};
use talk::{Report, Role};
use verbs::VerbsPlan;
use who::{Baseline, Carrier, Who};

/// Arguments of `verbring bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    round: Option<Round>,
    /// What to do over and over [default: nop; write over queue pairs; both write and read with
    /// --peer or --to].
    #[arg(long, value_enum)]
    op: Option<OpKind>,
    /// Bytes of an op (of a page for writev): a number, a list 64,4K, a range 64..1M or 64..1M*4.
    /// [default: 4K; with --peer or --to 64,4K,64K,1M]
    #[arg(long, visible_alias = "bytes")]
    size: Option<Sweep>,
    /// Pages of a writev.
    #[arg(long, default_value = "8")]
    pages: u64,
    /// Ops pushed at once; a list or a range, too.
    #[arg(long, default_value = "1")]
    batch: Sweep,
    /// Ops in flight at most; as many as a batch (the default) is lock step [with --peer
    /// or --to: 1,64].
    #[arg(long)]
    depth: Option<Sweep>,
    /// Client processes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: u32,
    /// Class of the ops: high, medium or low.
    #[arg(long, default_value = "medium", value_parser = read_class)]
    class: Class,
    /// Bytes of sources and destinations together [default: those of one op: hot]; with --offer,
    /// of what is offered, which they must fit in [default: 16M].
    #[arg(long, value_name = "BYTES", value_parser = read_bytes)]
    working_set: Option<u64>,
    /// Seconds of slices for each point; there are 200 slices at least, or 10 with --peer or --to.
    #[arg(long, default_value = "3", value_parser = read_seconds)]
    seconds: Duration,
    /// Milliseconds of a slice, of which the first fifth is not counted; with --peer or --to at
    /// least so many, and up to a second if few ops fit into that.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    slice_ms: u32,
    /// Cores: the engine's, then the clients' [default: all that are allowed, in order].
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    pin: Vec<usize>,
    /// What carries the ops: copies within one engine, or queue pairs to a second one.
    #[arg(long, value_enum, default_value = "local")]
    fabric: Carrier,
    /// Ports of cards for queue pairs, near and far, or one for both [default: the best two].
    #[arg(long, value_delimiter = ',', value_name = "DEVICE:PORT:GID")]
    devices: Vec<Port>,
    /// What to run beside it, in alternating slices.
    #[arg(long, value_enum, value_delimiter = ',')]
    baseline: Vec<Baseline>,
    /// A setting of the engine, as in `verbring serve`: spin_us=0. May be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// From sleep to completion: one op at a time, with both sides asleep before and between.
    #[arg(long)]
    sleep: bool,
    /// Runs beside it the same ops through an engine that also has so many idle rings.
    #[arg(long, value_name = "RINGS", default_value_t = 0, value_parser = idle_rings())]
    idle_rings: u32,
    /// Offers memory to a bench on another host, at the engine that runs here (--socket), until the
    /// bench over there has ended, or SIGINT.
    #[arg(
        long,
        conflicts_with_all = FAR_HAS_NO,
        conflicts_with_all = ["peer", "size", "op", "plot"]
    )]
    offer: bool,
    /// Measures a ring through the engine that runs here (--socket), to what a bench offers on
    /// another host, whose engine is at this URL.
    #[arg(long, value_name = "verbring://HOST:PORT", conflicts_with_all = FAR_HAS_NO)]
    peer: Option<String>,
    #[command(flatten)]
    far: FarArgs,
    /// Lets a bench on another host measure its way to a card of this one (--devices, or the
    /// best), without an engine, until SIGINT: for a quick look, since no key guards it.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with_all = RAW_HAS_NO,
        conflicts_with_all = ["to", "size", "op", "depth", "batch", "working_set", "plot"])]
    listen: Option<SocketAddr>,
    /// Measures work requests on a bare queue pair to the card of a bench --listen there.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with_all = RAW_HAS_NO)]
    to: Option<SocketAddr>,
    /// Draws the rows into an SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Prints one JSON object a row instead of a table.
    #[arg(long)]
    json: bool,
}

/// What takes engines or processes of the bench's own.
const FAR_HAS_NO: [&str; 8] =
    ["clients", "pin", "fabric", "devices", "baseline", "set", "sleep", "idle_rings"];

/// What takes an engine.
const RAW_HAS_NO: [&str; 12] = [
    "clients",
    "pin",
    "fabric",
    "baseline",
    "set",
    "sleep",
    "idle_rings",
    "offer",
    "peer",
    "socket",
    "secret",
    "uid",
];

/// Rounds that compare engines with different settings, instead of a ring with its limits.
#[derive(Debug, Subcommand)]
enum Round {
    /// Bursts of low ops and then of high ones, polled for only afterwards: latency by mode.
    Burst(burst::BurstArgs),
    /// Ops that wait for others: chains, fans and random graphs, and what an edge costs.
    Chain(chain::ChainArgs),
    /// Ops that repeat others, with and without leave to fold them.
    Coalesce(coalesce::CoalesceArgs),
    /// High ops at random times beside low ops that saturate: latency of high, what is left to low.
    Mix(mix::MixArgs),
    /// Tenants with promises beside tenants with appetite: attainment, fairness, leakage.
    Qos(qos::QosArgs),
    /// Throughput and latency of high over sizes of the window, and where the knee is.
    Window(window::WindowArgs),
}

/// Arguments of the hidden subcommand by which the bench starts its processes.
#[derive(Debug, Args)]
pub(crate) struct BenchWorker {
    #[arg(value_enum)]
    role: Role,
}

impl BenchWorker {
    /// Runs one process of the bench. How it fails is the parent's to tell.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        talk::bind_to_parent()?;
        let result = match self.role {
            Role::Engine => engine_process::run(),
            Role::Echo => echo::run(),
            Role::Client => client::run(),
        };
        match result {
            Err(Failure::Failed(text)) => {
                talk::report(&Report::Failed { text })?;
                Err(Failure::Quiet)
            }
            other => other,
        }
    }
}

impl Bench {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match &self.round {
            Some(Round::Burst(burst)) => burst.run(),
            Some(Round::Chain(chain)) => chain.run(),
            Some(Round::Coalesce(coalesce)) => coalesce.run(),
            Some(Round::Mix(mix)) => mix.run(),
            Some(Round::Qos(qos)) => qos.run(),
            Some(Round::Window(window)) => window.run(),
            None => self.run_alone(),
        }
    }

    fn run_alone(&self) -> Result<(), Failure> {
        if let Some(at) = self.listen {
            let [port, _] = ports::settle(&self.devices)?;
            return between::listen(at, &port, self.json);
        }
        if let Some(to) = self.to {
            let shapes = self.shapes_afar("over queue pairs")?;
            let [port, _] = ports::settle(&self.devices)?;
            let rows = between::measure(to, &port, &shapes, self.time(), self.json)?;
            return self.plot(&rows);
        }
        match (self.offer, &self.peer, self.far.given()) {
            (true, ..) => far::offer(&self.far, self.working_set, self.json),
            (false, Some(url), _) => {
                let shapes = self.shapes_afar("to the peer")?;
                self.plot(&far::measure(&self.far, url, &shapes, self.time(), self.json)?)
            }
            (false, None, Some(name)) => Err(Failure::Usage(format!(
                "{name} is for --offer and --peer: without them the bench has engines of its own"
            ))),
            (false, None, None) => self.run_slices(),
        }
    }

    fn time(&self) -> far::Time {
        let slice = Duration::from_millis(self.slice_ms.into());
        far::Time { slice, whole: self.seconds }
    }

    /// Every point between here and another host.
    fn shapes_afar(&self, there: &str) -> Result<Vec<Shape>, Failure> {
        let ops = self.op.map_or_else(|| vec![OpKind::Write, OpKind::Read], |op| vec![op]);
        if ops.contains(&OpKind::Nop) {
            let text = format!("--op is nop, but must be one that moves bytes {there}");
            return Err(Failure::Usage(text));
        }
        let size = self.size.clone().unwrap_or_else(|| Sweep(far::SIZES.to_vec()));
        let depth = self.depth.clone().unwrap_or_else(|| Sweep(far::DEPTHS.to_vec()));
        let shapes = ops.into_iter().map(|op| self.shapes_of(op, &size, Some(&depth)));
        shapes.collect::<Result<Vec<_>, _>>().map(|shapes| shapes.concat())
    }

    fn plot(&self, rows: &[rows::Row]) -> Result<(), Failure> {
        self.plot.as_deref().map_or(Ok(()), |file| plot::draw(file, rows))
    }

    fn run_slices(&self) -> Result<(), Failure> {
        let shapes = self.shapes()?;
        let terms = self.terms()?;
        if !self.json {
            say(&rows::head())?;
        }
        let mut all = Vec::new();
        for shape in &shapes {
            let measured = conductor::measure(&terms, shape)?;
            let rows = rows::rows(&measured, shape, &terms);
            for row in &rows {
                if self.json {
                    let value = serde_json::to_value(row)
                        .map_err(|error| Failure::of("cannot write a row", &error))?;
                    say_json(&value)?;
                } else {
                    say(&row.line())?;
                }
                if let Some(reason) = &row.skipped {
                    complain(&format!("{} is left out: {reason}", row.who.name()));
                }
            }
            for complaint in measured.disturbance.complaints() {
                complain(&format!("the machine is not quiet: {complaint}"));
            }
            all.extend(rows);
        }
        self.plot(&all)
    }

    /// Every combination of the swept parameters, checked before anything is started.
    fn shapes(&self) -> Result<Vec<Shape>, Failure> {
        let size = self.size.clone().unwrap_or_else(|| Sweep(vec![SIZE_BYTES]));
        self.shapes_of(self.op(), &size, self.depth.as_ref())
    }

    fn shapes_of(
        &self,
        op: OpKind,
        size: &Sweep,
        depth: Option<&Sweep>,
    ) -> Result<Vec<Shape>, Failure> {
        let mut shapes: Vec<Shape> = Vec::new();
        for &size_bytes in &size.0 {
            for &batch in &self.batch.0 {
                let lock_step = Sweep(vec![batch]);
                for &depth in &depth.unwrap_or(&lock_step).0 {
                    let shape = Shape::settle(Wish {
                        op,
                        size_bytes,
                        pages: self.pages,
                        batch,
                        depth,
                        class: self.class,
                        working_set_bytes: self.working_set,
                    });
                    let shape = shape.map_err(|error| Failure::Usage(error.to_string()))?;
                    if self.sleep && shape.depth != 1 {
                        let depth = shape.depth;
                        let text = format!("--depth is {depth}, but must be 1 with --sleep");
                        return Err(Failure::Usage(text));
                    }
                    // A NOP has no size to sweep over.
                    if !shapes.contains(&shape) {
                        shapes.push(shape);
                    }
                }
            }
        }
        Ok(shapes)
    }

    /// True if queue pairs have a part in it.
    fn uses_verbs(&self) -> bool {
        self.fabric == Carrier::Verbs || self.baseline.contains(&Baseline::Verbs)
    }

    fn op(&self) -> OpKind {
        let default = if self.uses_verbs() { OpKind::Write } else { OpKind::Nop };
        self.op.unwrap_or(default)
    }

    /// Settles the ports between which queue pairs are to be, if there are to be any.
    fn ports(&self) -> Result<Option<[Port; 2]>, Failure> {
        let refuse = |text: &str| Err(Failure::Usage(text.to_string()));
        if !self.uses_verbs() {
            if !self.devices.is_empty() {
                return refuse("--devices is for --fabric verbs and --baseline verbs");
            }
            return Ok(None);
        }
        if self.op() == OpKind::Nop {
            return refuse("--op is nop, but must be one that moves bytes over queue pairs");
        }
        if self.fabric == Carrier::Verbs && self.idle_rings > 0 {
            return refuse("--idle-rings is for --fabric local");
        }
        ports::settle(&self.devices).map(Some)
    }

    fn terms(&self) -> Result<Terms, Failure> {
        let ports = self.ports()?;
        let cores = Cores::choose(&self.pin, &cores::allowed()?)?;
        let mut settings = vec![format!("pin={}", cores.engine)];
        let far_port = match (&ports, self.fabric) {
            (Some([near, far]), Carrier::Verbs) => {
                settings.extend(near.settings());
                Some(far)
            }
            _ => {
                settings.push("verbs=off".to_string());
                None
            }
        };
        if self.idle_rings > 0 {
            // Both engines alike: what differs is the rings that there are.
            let rings = self.idle_rings + RINGS_SPARE;
            let more = [("rings_max", rings), ("quota.rings", rings)];
            settings.extend(more.map(|(name, value)| format!("{name}={value}")));
            settings.push("quota.control_per_s=1000000".to_string());
        }
        settings.extend(self.set.iter().cloned());
        let far_settings = far_port.map(|far| {
            let pin = format!("pin={}", cores.engine);
            let own = std::iter::once(pin).chain(far.settings());
            own.chain(self.set.iter().cloned()).collect()
        });
        let config = engine_process::settings_for(&settings)?.config().clone();
        let spin_us = config.spin_us;
        let mut contestants = vec![Who::Verbring];
        if self.idle_rings > 0 {
            contestants.push(Who::VerbringIdleRings);
        }
        for who in self.baseline.iter().map(|baseline| baseline.who()) {
            let (sleeps, runs) = (matches!(who, Who::Futex | Who::Again), who != Who::Futex);
            if !(if self.sleep { sleeps } else { runs }) {
                let limit = if self.sleep { "futex or self with" } else { "anything else without" };
                let text = format!("--baseline is {}, but must be {limit} --sleep", who.name());
                return Err(Failure::Usage(text));
            }
            if !contestants.contains(&who) {
                contestants.push(who);
            }
        }
        if contestants.contains(&Who::Direct) && self.fabric == Carrier::Verbs {
            let text = "--baseline is direct, but must be anything else with --fabric verbs";
            return Err(Failure::Usage(text.to_string()));
        }
        let verbs = ports
            .filter(|_| contestants.contains(&Who::Verbs))
            .map(|ports| VerbsPlan::new(ports, &config, self.class as u8));
        if contestants.len() > 1 && spin_us > SPIN_US_MAX {
            complain(&format!(
                "spin_us is {spin_us}: the engine will look for work in the others' slices, too; \
                 up to {SPIN_US_MAX} it is at rest by then"
            ));
        }
        Ok(Terms {
            cores,
            clients: usize::try_from(self.clients).unwrap_or(1),
            settings,
            carrier: self.fabric,
            far_settings,
            verbs,
            slice: Duration::from_millis(self.slice_ms.into()),
            time: self.seconds,
            contestants,
            idle_rings: self.idle_rings,
            sleep: self.sleep,
        })
    }
}

/// Of an op, unless another size is asked for.
const SIZE_BYTES: u64 = 4096;

/// An engine that spins for longer is not waited for between slices.
const SPIN_US_MAX: u32 = 30_000;

/// Rings besides the idle ones: the clients' own.
const RINGS_SPARE: u32 = 128;

/// As many as an engine's quotas allow for with room to spare.
fn idle_rings() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=10_000)
}

fn read_class(text: &str) -> Result<Class, String> {
    let named = Class::ALL.into_iter().find(|class| text == class_name(*class));
    named.ok_or_else(|| "must be high, medium or low".to_string())
}

fn read_seconds(text: &str) -> Result<Duration, String> {
    let limit = || "must be a number of seconds from 0.1 to 3600".to_string();
    let seconds: f64 = text.parse().map_err(|_| limit())?;
    if (0.1..=3_600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(limit())
    }
}
