//! The bench's engine: the production engine with its usual settings, in a process of its own.

use verbring::Engine;

use super::talk::{Order, Report, misplaced, next_order, report};
use crate::cli::Failure;
use crate::cli::serve::log_to_stderr;
use crate::cli::settings::{Environment, Flags, Settings};

/// Serves until no more is wanted.
pub(super) fn run() -> Result<(), Failure> {
    let Some(order) = next_order()? else { return Ok(()) };
    let Order::Serve { socket, settings } = order else { return Err(misplaced(&order)) };
    log_to_stderr(None, "warn")?;
    allow_many_files()?;
    let settings = settings_for(&settings)?;
    let engine = Engine::builder()
        .config(settings.config().clone())
        .socket(socket)
        .spawn()
        .map_err(|error| Failure::of("cannot start an engine", &error))?;
    report(&Report::Ready { skipped: Vec::new() })?;
    while next_order()?.is_some() {}
    engine.shutdown().map_err(|error| Failure::of("the engine did not end cleanly", &error))
}

/// The engine's settings: the defaults, laid over by `name=value` pairs.
/// The environment has no say, so that a line in a report gives the same engine again.
pub(super) fn settings_for(pairs: &[String]) -> Result<Settings, Failure> {
    Ok(Settings::layered(None, &Environment::new(), &Flags::from_pairs(pairs)?)?)
}

/// Rings by the thousand need descriptors by the thousand.
pub(super) fn allow_many_files() -> Result<(), Failure> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .map_err(|error| Failure::of("cannot raise the limit of open files", &error))
}
