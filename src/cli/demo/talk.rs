//! How the demo's parent and its two clients talk: one JSON object a line over the clients'
//! standard input and output.
//!
//! Only the parent knows both clients; they meet nowhere but in the engine. Paths travel as
//! arguments, which may be any bytes; the export's secret travels here, where no other process can
//! read it.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::outcome::Sent;
use crate::cli::{Failure, say};

/// What the parent tells a client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// To the sender: where to send to.
    Send { name: String, secret: String },
    /// To the exporter: this many bytes were placed from the region's start; `last` of the file.
    Look { bytes: u64, last: bool },
    /// To the sender: the exporter has looked; the region may be written again.
    Seen,
}

/// What a client tells the parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The exporter's region is on offer.
    Exported { name: String, secret: String },
    /// The sender has taken up the export.
    Attached,
    /// So many more bytes went there or came back.
    Moved { bytes: u64 },
    /// All ops that fill the region with the next part of the file have succeeded.
    Written { bytes: u64, last: bool },
    /// The exporter has looked; after the last part, the digest of the whole file.
    Seen { sha256: Option<String> },
    /// The whole file was sent and read back once.
    Pass { bytes: u64, sha256_sent: String, sha256_read_back: String, so_far: Sent },
    /// All passes are done.
    Done,
    /// It did not work.
    Failed { text: String },
}

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Exporter,
    Sender,
}

impl Role {
    /// The name of its hidden subcommand's mode, and of it in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exporter => "exporter",
            Self::Sender => "sender",
        }
    }
}

/// What happens while the parent waits.
#[derive(Debug)]
pub(super) enum Event {
    Report(Role, Report),
    /// A client wrote what is no report.
    Garbled(Role, String),
    /// A client closed its standard output, most likely by ending.
    Gone(Role),
    Interrupted,
}

/// A client process. It ends with the value.
#[derive(Debug)]
pub(super) struct Worker {
    role: Role,
    child: Child,
    orders: Option<ChildStdin>,
}

impl Worker {
    /// Starts this program again as a client of the engine at `socket`.
    pub(super) fn start(
        role: Role,
        socket: &Path,
        arguments: &[OsString],
        events: Sender<Event>,
    ) -> Result<Self, Failure> {
        // Through /proc it is the program that runs, even if its file was replaced meanwhile.
        let mut child = Command::new("/proc/self/exe")
            .arg0(format!("verbring-demo-{}", role.name()))
            .args(["demo-client", role.name(), "--socket"])
            .arg(socket)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::of(format!("cannot start the {}", role.name()), &error))?;
        let orders = child.stdin.take();
        let reports = child.stdout.take();
        let worker = Self { role, child, orders };
        if let Some(reports) = reports {
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

    /// Tells the client, by the end of its input, that nothing more is wanted of it.
    pub(super) fn dismiss(&mut self) {
        self.orders = None;
    }

    /// Ends the client if it has not ended by itself, and says how it ended. Its own exit status
    /// stands if it was already on its way out.
    pub(super) fn end(&mut self) -> Ended {
        match self.child.kill().and_then(|()| self.child.wait()) {
            Ok(status) if status.success() => Ended::Well,
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Ended::Code(code),
                (None, Some(signal)) => Ended::Signal(signal),
                (None, None) => Ended::Unknown,
            },
            Err(_) => Ended::Unknown,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// How a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    Code(i32),
    Signal(i32),
    Unknown,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Well => write!(f, "exit code 0"),
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => write!(f, "how is not known"),
        }
    }
}

/// Passes a client's reports on until it closes its output. A parent that is gone ends this, too.
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

/// A client's side: tells the parent.
pub(super) fn report(report: &Report) -> Result<(), Failure> {
    say(&to_line(report)?)
}

/// A client's side: waits for the next order; `None` once the parent wants nothing more or is gone.
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

fn to_line(message: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(message)
        .map(|text| text + "\n")
        .map_err(|error| Failure::of("cannot write a message", &error))
}
