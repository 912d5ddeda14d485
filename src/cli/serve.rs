//! `verbring serve`: one engine as a daemon.
//!
//! SIGTERM or SIGINT drains the engine; a second one ends the process at once, in the way the
//! system ends any process. To that end the signals are blocked in every thread while the engine
//! serves, taken by the main thread, and unblocked again in it for the time of draining.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use tracing_subscriber::EnvFilter;
use verbring::Engine;
use verbring::host::Config;

use super::settings::{Flags, Settings, unknown_variables};
use super::{Failure, complain, say, say_json};

/// Arguments of `verbring serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// A TOML file of settings; VERBRING_* variables cover it, flags cover both.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prints the settings in force, each with where it came from, and ends.
    #[arg(long)]
    print_config: bool,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// What to log to standard error, as in RUST_LOG [default: RUST_LOG, or info].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    #[command(flatten)]
    flags: Flags,
}

impl Serve {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let named = |(name, text): (OsString, _)| Some((name.into_string().ok()?, text));
        let environment = std::env::vars_os().filter_map(named).collect();
        let settings = Settings::layered(self.config.as_deref(), &environment, &self.flags)?;
        for (name, nearest) in unknown_variables(&environment) {
            complain(&format!("{name} is no setting and is ignored; did you mean {nearest}?"));
        }
        if self.print_config {
            return match self.json {
                true => say_json(&settings.to_json()),
                false => say(&settings.to_toml()),
            };
        }
        log_to_stderr(self.log.as_deref(), "info")?;
        self.serve(settings.config())
    }

    fn serve(&self, config: &Config) -> Result<(), Failure> {
        let Some(socket) = &config.socket else {
            let ways = "--socket PATH, VERBRING_SOCKET, or socket in a --config file";
            return Err(Failure::Usage(format!("nowhere to listen: give {ways}")));
        };
        // Before the engine's threads, which inherit it.
        let signals = hold_signals(&[Signal::SIGTERM, Signal::SIGINT])?;
        let engine = Engine::builder()
            .config(config.clone())
            .spawn()
            .map_err(|error| Failure::of("cannot serve", &error))?;
        let told = if self.json {
            say_json(&serde_json::json!({
                "listening": socket.display().to_string(),
                "listen": engine.listening().map(|address| address.to_string()),
                "engine": config.engine,
                "verbs": engine.verbs().map(ToString::to_string),
                "cards": engine.cards().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "pid": std::process::id(),
            }))
        } else {
            let host = engine.listening().map(|at| format!(", and for other hosts on {at}"));
            say(&format!("listening on {}{}\n", socket.display(), host.unwrap_or_default()))
        };
        match told {
            // Whoever started the daemon need not stay to read.
            Ok(()) | Err(Failure::Quiet) => {}
            Err(failure) => return Err(failure),
        }
        if wait_for_signal(&signals, &engine).map_err(|error| Failure::of("cannot wait", &error))? {
            let bound_ms = config.drain_ms;
            complain(&format!("draining for at most {bound_ms} ms; a second signal ends at once"));
        }
        signals.thread_unblock().map_err(|error| Failure::of("cannot unblock", &error))?;
        engine.shutdown().map_err(|error| Failure::of("not a clean end", &error))
    }
}

/// Blocks signals in this thread and those it will start, for `SigSet::wait` to take.
pub(crate) fn hold_signals(signals: &[Signal]) -> Result<SigSet, Failure> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block().map_err(|error| Failure::of("cannot block signals", &error))?;
    Ok(set)
}

/// Waits for one of the signals, which are held; false if the engine has ended by itself.
fn wait_for_signal(signals: &SigSet, engine: &Engine) -> Result<bool, Errno> {
    let held = SignalFd::new(signals)?;
    while !engine.gone() {
        let mut watched = [PollFd::new(held.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::from(LOOK_EVERY_MS)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return held.read_signal().map(|_| true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// An engine that has ended by itself is noticed within this time.
const LOOK_EVERY_MS: u16 = 1_000;

/// Starts logging to standard error: by the filter given, else by RUST_LOG, else by `default`.
pub(crate) fn log_to_stderr(filter: Option<&str>, default: &str) -> Result<(), Failure> {
    let from_environment = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let text = filter.or(from_environment.as_deref()).unwrap_or(default);
    let filter = EnvFilter::try_new(text)
        .map_err(|error| Failure::Usage(format!("log filter {text:?}: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
