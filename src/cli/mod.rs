//! The `verbring` command: a user of the library like any other.
//!
//! It is part of the binary, not of the library, so that the compiler holds it to the public API.
//! Every subcommand speaks plain English to people and, with `--json`, one object to programs;
//! results go to standard output, all else to standard error. Exit codes: 0 for success, 1 for
//! failure, 2 for a command line or setting that cannot be used.

mod afar;
mod bench;
mod carried;
mod demo;
mod devices;
mod failover;
mod key;
mod ledger;
mod peers;
mod place;
mod probe;
mod qos;
mod serve;
mod settings;
mod sim;
mod stat;
mod watch;
mod way;
mod why;

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use verbring::abi::Class;

use bench::{Bench, BenchWorker};
use demo::{Demo, DemoClient};
use devices::Devices;
use key::MakeKey;
use ledger::Ledger;
use peers::Peers;
use probe::ProbeEngine;
use qos::Qos;
use serve::Serve;
use settings::BadSetting;
use sim::Sim;
use stat::Stat;
use why::AskWhy;

/// Runs the command line and reports how that ended.
pub(crate) fn run() -> ExitCode {
    let result = match CommandLine::try_parse() {
        Ok(line) => line.command.run(),
        Err(error) => {
            // Help and version are errors to the parser, too; it knows the stream for each.
            let printed = error.print();
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return if printed.is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Quiet) => ExitCode::FAILURE,
        Err(Failure::Failed(text)) => {
            complain(&text);
            ExitCode::FAILURE
        }
        Err(Failure::Usage(text)) => {
            complain(&text);
            ExitCode::from(2)
        }
    }
}

/// io_uring for RDMA: 64-byte entries in a shared-memory ring, scheduled by an engine.
#[derive(Debug, Parser)]
#[command(name = "verbring", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs an engine that listens on a socket, until SIGTERM or SIGINT drains it.
    Serve(Box<Serve>),
    /// Makes a key file, with which engines of several hosts let each other in.
    Key(MakeKey),
    /// Sends a real file from one process or host to another and back, and tells how that went.
    Demo(Box<Demo>),
    /// Measures the engine's ring beside its limits, in alternating slices.
    Bench(Box<Bench>),
    /// Prints an engine's counters.
    Stat(Stat),
    /// Prints the other engines that one knows: state, rails, rates, last error.
    Peers(Peers),
    /// Prints what became of ops: of a live engine, or of a dead one through a client.
    Ledger(Ledger),
    /// Prints what one op waits for, or why it waited.
    Why(AskWhy),
    /// Prints what an engine serves, and how much of it this user may have.
    Probe(ProbeEngine),
    /// Prints the longest that an op can wait.
    Qos(Qos),
    /// Prints what could move bytes on this machine, what would, and why.
    Devices(Devices),
    /// Runs engines, peers and clients in virtual time, with faults drawn from seeds.
    Sim(Sim),
    /// Prints every offset, size and constant of the ABI.
    Abi {
        /// Prints one JSON object instead of lines.
        #[arg(long)]
        json: bool,
    },
    #[command(hide = true)]
    DemoClient(DemoClient),
    #[command(hide = true)]
    BenchWorker(BenchWorker),
}

impl Verb {
    fn run(self) -> Result<(), Failure> {
        match self {
            Self::Serve(serve) => serve.run(),
            Self::Key(key) => key.run(),
            Self::Demo(demo) => demo.run(),
            Self::Stat(stat) => stat.run(),
            Self::Peers(peers) => peers.run(),
            Self::Ledger(ledger) => ledger.run(),
            Self::Why(why) => why.run(),
            Self::Probe(probe) => probe.run(),
            Self::Qos(qos) => qos.run(),
            Self::Devices(devices) => devices.run(),
            Self::Sim(sim) => sim.run(),
            Self::Abi { json } => print_abi(json),
            Self::DemoClient(client) => client.run(),
            Self::Bench(bench) => bench.run(),
            Self::BenchWorker(worker) => worker.run(),
        }
    }
}

/// Why a command ends with a code other than 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or a setting cannot be used.
    Usage(String),
    /// It did not work.
    Failed(String),
    /// It did not work, and that has been told; or nobody reads standard output any more.
    Quiet,
}

impl Failure {
    /// An error that ended an attempt, with its causes.
    pub(crate) fn of(attempt: impl fmt::Display, error: &dyn std::error::Error) -> Self {
        Self::Failed(format!("{attempt}: {}", with_causes(error)))
    }
}

impl From<BadSetting> for Failure {
    fn from(error: BadSetting) -> Self {
        Self::Usage(with_causes(&error))
    }
}

/// An error and what caused it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors repeat their cause in their own text.
        if !text.ends_with(&more) {
            text += ": ";
            text += &more;
        }
        cause = error.source();
    }
    text
}

/// Writes a result to standard output at once.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::Quiet),
        Err(error) => Err(Failure::of("cannot write to standard output", &error)),
    }
}

/// Writes a JSON value as one line to standard output.
pub(crate) fn say_json(value: &serde_json::Value) -> Result<(), Failure> {
    say(&format!("{value}\n"))
}

/// Tells a person; a standard error that is gone cannot be told about.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "verbring: {text}");
}

/// A class by its one name.
pub(crate) fn class_name(class: Class) -> &'static str {
    match class {
        Class::High => "high",
        Class::Medium => "medium",
        Class::Low => "low",
    }
}

/// A count with a comma between each three digits.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn print_abi(json: bool) -> Result<(), Failure> {
    let table = verbring::abi::table();
    if json {
        let rows = table.into_iter().map(|(name, value)| (name, value.into()));
        return say_json(&serde_json::Value::Object(rows.collect()));
    }
    let lines: Vec<String> =
        table.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
    say(&lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        let given = [0, 999, 1_000, 123_456, 1_234_567];
        let expected = ["0", "999", "1,000", "123,456", "1,234,567"];
        assert_eq!(given.map(grouped), expected);
    }
}
