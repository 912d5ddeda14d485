//! `verbring demo`: a real file from one process to another and back, through one engine.
//!
//! ```text
//!             +----------------- parent: engine, progress, verdict -----------------+
//!   orders    |  looks, digests                        windows written, figures     |   orders
//!             v                                                                     v
//!          exporter  <--- its region, by WRITE and READ through the engine --->  sender
//! ```
//!
//! The sender fills the exporter's region with one part of the file after another; the exporter
//! digests what it finds there, the sender what it reads back. Three digests that are equal are
//! the success; anything else is a failure, in bounded time whatever becomes of the clients.
//!
//! Between hosts there is no parent: `--offer` is the exporter and `--peer` the sender, each at
//! the engine of its host, and they talk by a mailbox in the region itself
//! ([`afar`](crate::cli::afar)).
//!
//! **Deliberately absent**: files left behind. The socket's directory goes as soon as both clients
//! are attached, so that even kill -9 finds nothing to leave.

mod exporter;
mod offer;
mod outcome;
mod peer;
mod sender;
mod talk;

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use nix::sys::signal::Signal;
use verbring::Engine;
use verbring::host::Config;

use super::afar::FarArgs;
use super::place::Place;
use super::serve::{hold_signals, log_to_stderr};
use super::{Failure, say, say_json};
use outcome::{Outcome, Pass};
use talk::{Ended, Event, Order, Report, Role, Worker};

pub(crate) use outcome::fabric_name;

/// Arguments of `verbring demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The file to send [default: this program].
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Sends the file over and over for so long.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: Option<u32>,
    /// Offers memory to a demo on another host, at the engine that runs here (--socket), and looks
    /// at what comes, until the demo over there has ended, or SIGINT.
    #[arg(long, conflicts_with_all = ["file", "seconds", "peer"])]
    offer: bool,
    /// Sends to a demo that offers memory on another host, whose engine is at this URL, from the
    /// engine that runs here (--socket). Every op must go by queue pairs.
    #[arg(long, value_name = "verbring://HOST:PORT")]
    peer: Option<String>,
    #[command(flatten)]
    far: FarArgs,
    /// Prints one JSON object instead of text; with --offer one, and another one at the end.
    #[arg(long)]
    json: bool,
}

/// Arguments of the hidden subcommand by which the demo starts its clients.
#[derive(Debug, Args)]
pub(crate) struct DemoClient {
    #[arg(value_enum)]
    role: Role,
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    file: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    seconds: u32,
}

impl DemoClient {
    /// Runs one client. How it fails is the parent's to tell.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let result = match (self.role, &self.file) {
            (Role::Exporter, _) => exporter::run(&self.socket),
            (Role::Sender, Some(file)) => sender::run(&self.socket, file, self.seconds),
            (Role::Sender, None) => Err(Failure::Usage("the sender needs a file".to_string())),
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

impl Demo {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match (self.offer, &self.peer, self.far.given()) {
            (true, ..) => offer::run(&self.far, self.json),
            (false, Some(url), _) => self.send_to(url),
            (false, None, Some(name)) => Err(Failure::Usage(format!(
                "{name} is for --offer and --peer: without them the demo has an engine of its own"
            ))),
            (false, None, None) => self.run_here(),
        }
    }

    /// Sends to another host.
    fn send_to(&self, url: &str) -> Result<(), Failure> {
        let source = Source::find(self.file.as_deref())?;
        let bar = self.bar(&source);
        let seconds = self.seconds.unwrap_or(0);
        self.tell(&peer::run(&self.far, url, &source, seconds, bar)?)
    }

    fn tell(&self, outcome: &Outcome) -> Result<(), Failure> {
        if self.json {
            say_json(&outcome.to_json())?;
        } else {
            say(&outcome.to_text())?;
        }
        outcome.pass.mismatch().map_or(Ok(()), |text| Err(Failure::Failed(text)))
    }

    /// From one process of this host to another, through an engine of their own.
    fn run_here(&self) -> Result<(), Failure> {
        let source = Source::find(self.file.as_deref())?;
        // Before any thread, since all inherit it.
        let signals = hold_signals(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])?;
        log_to_stderr(None, "warn")?;
        let (events, happened) = mpsc::channel();
        let interrupt = events.clone();
        thread::Builder::new()
            .name("signals".to_string())
            .spawn(move || {
                if signals.wait().is_ok() {
                    let _ = interrupt.send(Event::Interrupted);
                }
            })
            .map_err(|error| Failure::of("cannot start a thread", &error))?;

        let place = Place::new("demo")?;
        let mut config = Config::default();
        config.socket = Some(place.socket());
        let engine = Engine::builder()
            .config(config)
            .spawn()
            .map_err(|error| Failure::of("cannot start an engine", &error))?;
        let outcome = self.conduct(&source, place, &events, &happened);
        let ended = engine.shutdown();
        let outcome = outcome?;
        ended.map_err(|error| Failure::of("the engine did not end cleanly", &error))?;
        self.tell(&outcome)
    }

    /// Brings both clients together and hears them to the end.
    fn conduct(
        &self,
        source: &Source,
        place: Place,
        events: &Sender<Event>,
        happened: &Receiver<Event>,
    ) -> Result<Outcome, Failure> {
        let socket = place.socket();
        let exporter = Worker::start(Role::Exporter, &socket, &[], events.clone())?;
        let mut file = OsString::from("--file=");
        file.push(&source.path);
        let seconds = OsString::from(format!("--seconds={}", self.seconds.unwrap_or(0)));
        let sender = Worker::start(Role::Sender, &socket, &[file, seconds], events.clone())?;
        let mut run = Run {
            exporter,
            sender,
            place: Some(place),
            bar: self.bar(source),
            label: source.label.clone(),
            received: None,
            outcome: None,
        };
        let matched = loop {
            match run.handle(next(happened)?)? {
                Heard::More => {}
                Heard::Mismatch => break false,
                Heard::Done => break true,
            }
        };
        if matched {
            run.see_off(happened)?;
        }
        run.outcome.take().ok_or_else(|| Failure::Failed("the sender sent nothing".to_string()))
    }

    /// A bar where a person can see it, and no bar elsewhere.
    fn bar(&self, source: &Source) -> ProgressBar {
        let seen = !self.json && std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        if !seen {
            return ProgressBar::hidden();
        }
        let (bar, template) = match self.seconds {
            None => (
                ProgressBar::new(2 * source.bytes),
                "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}",
            ),
            Some(_) => (ProgressBar::no_length(), "{spinner} {bytes}, {bytes_per_sec}"),
        };
        let bar = bar.with_finish(ProgressFinish::AndClear);
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

/// The parent's side of a run.
struct Run {
    exporter: Worker,
    sender: Worker,
    /// Until both clients are attached.
    place: Option<Place>,
    bar: ProgressBar,
    /// What to call the file.
    label: String,
    /// The exporter's digest of the pass under way.
    received: Option<String>,
    /// Of all passes so far.
    outcome: Option<Outcome>,
}

/// What an event meant for the run.
enum Heard {
    More,
    Mismatch,
    Done,
}

impl Run {
    fn handle(&mut self, event: Event) -> Result<Heard, Failure> {
        match event {
            Event::Report(Role::Exporter, Report::Exported { name, secret }) => {
                self.sender.tell(&Order::Send { name, secret })?;
            }
            Event::Report(Role::Sender, Report::Attached) => self.place = None,
            Event::Report(Role::Sender, Report::Moved { bytes }) => self.bar.inc(bytes),
            Event::Report(Role::Sender, Report::Written { bytes, last }) => {
                self.exporter.tell(&Order::Look { bytes, last })?;
            }
            Event::Report(Role::Exporter, Report::Seen { sha256 }) => {
                self.received = sha256;
                self.sender.tell(&Order::Seen)?;
            }
            Event::Report(
                Role::Sender,
                Report::Pass { bytes, sha256_sent, sha256_read_back, so_far },
            ) => {
                let sha256_received = self.received.take().unwrap_or_default();
                let pass = Pass { bytes, sha256_sent, sha256_received, sha256_read_back };
                let matches = pass.mismatch().is_none();
                let (passes, total) = self.outcome.take().map_or((0, 0), |o| (o.passes, o.bytes));
                let file = self.label.clone();
                let (passes, bytes) = (passes + 1, total + bytes);
                let sent = so_far;
                self.outcome = Some(Outcome { file, peer: None, pass, passes, bytes, sent });
                if !matches {
                    return Ok(Heard::Mismatch);
                }
            }
            Event::Report(Role::Sender, Report::Done) => return Ok(Heard::Done),
            Event::Report(role, Report::Failed { text }) => {
                return Err(Failure::Failed(format!("the {}: {text}", role.name())));
            }
            Event::Report(role, _) => {
                let name = role.name();
                return Err(Failure::Failed(format!("the {name} said what is not for it to say")));
            }
            Event::Garbled(role, line) => {
                return Err(Failure::Failed(format!("the {} said {line:?}", role.name())));
            }
            Event::Gone(role) => {
                let how = self.worker(role).end();
                return Err(Failure::Failed(format!("the {} ended early: {how}", role.name())));
            }
            Event::Interrupted => return Err(Failure::Failed("interrupted".to_string())),
        }
        Ok(Heard::More)
    }

    /// Lets both clients end by themselves, which they must do in order.
    fn see_off(&mut self, happened: &Receiver<Event>) -> Result<(), Failure> {
        self.exporter.dismiss();
        self.sender.dismiss();
        let mut gone = 0;
        while gone < 2 {
            match next(happened)? {
                Event::Gone(role) => {
                    gone += 1;
                    let how = self.worker(role).end();
                    if how != Ended::Well {
                        let name = role.name();
                        return Err(Failure::Failed(format!("the {name} ended badly: {how}")));
                    }
                }
                other => {
                    self.handle(other)?;
                }
            }
        }
        Ok(())
    }

    fn worker(&mut self, role: Role) -> &mut Worker {
        match role {
            Role::Exporter => &mut self.exporter,
            Role::Sender => &mut self.sender,
        }
    }
}

/// Waits for the next event; silence is a failure, too.
fn next(happened: &Receiver<Event>) -> Result<Event, Failure> {
    happened
        .recv_timeout(SILENCE_MAX)
        .map_err(|_| Failure::Failed(format!("nothing happened for {} s", SILENCE_MAX.as_secs())))
}

/// The file to send.
struct Source {
    path: PathBuf,
    /// What to call it.
    label: String,
    bytes: u64,
}

impl Source {
    /// Finds the file and looks whether it can be sent, before anything is started.
    fn find(file: Option<&Path>) -> Result<Self, Failure> {
        // By this name a client finds itself, too, whatever became of the file meanwhile.
        let path = file.map_or_else(|| PathBuf::from("/proc/self/exe"), Path::to_owned);
        let label = match file {
            Some(path) => path.display().to_string(),
            None => std::env::current_exe()
                .map_or_else(|_| "this program".to_string(), |path| path.display().to_string()),
        };
        let unreadable = |error| Failure::of(format!("cannot send {label}"), &error);
        let metadata = std::fs::metadata(&path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(Failure::Failed(format!("cannot send {label}: it is no regular file")));
        }
        File::open(&path).map_err(unreadable)?;
        Ok(Self { path, label, bytes: metadata.len() })
    }
}

/// A digest in hexadecimal.
fn digest_text(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Under this name the exporter offers its region.
const EXPORT_NAME: &str = "verbring demo";

/// Bytes of the exporter's region: so much of the file is there at once.
const WINDOW_BYTES: u64 = 8 << 20;

/// Nothing in a demo takes so long, unless something hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);
