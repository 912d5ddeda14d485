//! What an engine's process holds, by its own counters and by what the kernel says of it.

use std::fs;
use std::time::Instant;

use verbring::Session;
use verbring::abi::Counter;
use verbring::client::Scope;

use super::part::PATIENCE;

/// What must return to where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) ops_in_flight: u64,
    sessions: u64,
    rings: u64,
    regions: u64,
    region_bytes: u64,
    descriptors: u64,
    /// Maps of shared memory in the process, and their bytes.
    shared_maps: u64,
    shared_bytes: u64,
    /// Threads that make memory or close descriptors.
    helper_threads: u64,
}

/// What returns to about where it was: it depends on the allocator's mood.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    pub(crate) maps: u64,
    pub(crate) resident_kib: u64,
}

impl Footprint {
    pub(crate) fn take(engine: u32, observer: &Session) -> Self {
        let stats = observer.stats(Scope::Engine).unwrap();
        let (shared_maps, shared_bytes) = shared_memory(engine);
        Self {
            ops_in_flight: stats[Counter::InFlight],
            sessions: stats[Counter::Sessions],
            rings: stats[Counter::Rings],
            regions: stats[Counter::Regions],
            region_bytes: stats[Counter::RegionBytes],
            descriptors: stats[Counter::Descriptors],
            shared_maps,
            shared_bytes,
            helper_threads: helper_threads(engine),
        }
    }

    /// Waits until the footprint is as wanted.
    pub(crate) fn await_such(
        engine: u32,
        observer: &Session,
        wanted: impl Fn(&Self) -> bool,
        what: &str,
    ) -> Self {
        let start = Instant::now();
        loop {
            let now = Self::take(engine, observer);
            if wanted(&now) {
                return now;
            }
            assert!(start.elapsed() < PATIENCE, "{what}, but it is still {now:#?}");
        }
    }

    /// True if nothing is being made or closed.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.helper_threads == 0
    }
}

impl Weight {
    pub(crate) fn take(engine: u32) -> Self {
        let maps = read(engine, "maps").lines().count() as u64;
        let status = read(engine, "status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident_kib = resident.trim().trim_end_matches(" kB").parse().unwrap();
        Self { maps, resident_kib }
    }
}

fn read(engine: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{engine}/{file}")).unwrap()
}

/// Counts maps of memfds, and their bytes.
fn shared_memory(engine: u32) -> (u64, u64) {
    let (mut count, mut bytes) = (0, 0);
    for line in read(engine, "maps").lines().filter(|line| line.contains("/memfd:")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        count += 1;
        bytes += address(end) - address(start);
    }
    (count, bytes)
}

fn helper_threads(engine: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{engine}/task")).unwrap();
    // A thread may end while its name is read.
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let helper = |name: &String| ["verbring-job", "verbring-close"].contains(&name.trim());
    names.filter(helper).count() as u64
}
