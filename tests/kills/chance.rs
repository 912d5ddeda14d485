//! Chance that can be had again: a small generator, its seed, and how often to kill.

/// SplitMix64: every seed is good, also those that follow each other.
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is above 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True `percent` times in a hundred.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let at = self.below(choices.len() as u64);
        choices[usize::try_from(at).unwrap()]
    }
}

/// A run of one test: how many kills, and the seed of the first; each next one has the next seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) kills: u64,
    pub(crate) seed: u64,
}

impl Run {
    /// From `VERBRING_KILLS` and `VERBRING_SEED`, else 20 kills and a seed nobody knows yet.
    pub(crate) fn from_environment() -> Self {
        let number = |name| {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, but takes a number")))
        };
        let kills = number("VERBRING_KILLS").unwrap_or(20);
        let seed = number("VERBRING_SEED").unwrap_or_else(|| getrandom::u64().unwrap() >> 16);
        Self { kills, seed }
    }

    /// What each verdict must at least occur over all kills: 100 times in 200.
    pub(crate) fn occurrences_min(self) -> u64 {
        self.kills / 2
    }
}

/// Tells how to have a failed kill again.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) test: &'static str,
    pub(crate) seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { test, seed } = self;
            eprintln!(
                "again: VERBRING_SEED={seed} VERBRING_KILLS=1 cargo test --test kills {test} -- \
                 --nocapture"
            );
        }
    }
}
