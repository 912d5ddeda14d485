//! Seeds of random tests: a run is a function of one number, and a failure prints that number.
//!
//! `VERBRING_SEED=n cargo test --lib NAME` runs the one seed. Property tests shrink by themselves;
//! they draw from the same variable, so that another stream is one variable away.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use proptest::test_runner::{Config, RngSeed};

pub(crate) use crate::random::Random;

/// Runs a test once for each of `count` seeds, or for the one in `VERBRING_SEED`.
pub(crate) fn each_seed(count: u64, run: impl Fn(u64)) {
    let only = chosen();
    for seed in only.map_or(1..count + 1, |seed| seed..seed + 1) {
        let _replay = Replay(seed);
        run(seed);
    }
}

/// The configuration of a property test: the same stream every time, unless one is chosen.
pub(crate) fn property(cases: u32) -> Config {
    let rng_seed = RngSeed::Fixed(chosen().unwrap_or(1));
    Config { cases, rng_seed, failure_persistence: None, ..Config::default() }
}

fn chosen() -> Option<u64> {
    let text = std::env::var("VERBRING_SEED").ok()?;
    Some(text.parse().expect("VERBRING_SEED is a number"))
}

/// Prints how to run a seed again, if the test ends by a panic.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("engine");
            eprintln!("replay: VERBRING_SEED={} cargo test --lib {name} -- --exact", self.0);
        }
    }
}
