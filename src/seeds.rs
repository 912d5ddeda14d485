//! Seeds of random tests: a run is a function of one number, and a failure prints that number.
//!
//! `VERBRING_SEED=n cargo test --lib NAME` runs the one seed. Property tests shrink by themselves;
//! they draw from the same variable, so that another stream is one variable away.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use proptest::test_runner::{Config, RngSeed};

/// A splitmix64: small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is above 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number below `end`, for what is counted in 32 bits.
    pub(crate) fn below32(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(u64::from(end))).unwrap()
    }

    /// An index into something of `length`.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

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
