//! The stage of every attack: an engine, a neighbour at work, and the measure of what is left.
//!
//! One attack at a time: descriptors, mappings and threads are counted for the whole process.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use verbring::abi::Counter;
use verbring::client::Scope;
use verbring::host::Config;
use verbring::{Engine, Session};

use super::neighbour::Neighbour;
use super::raw::Wire;
use super::tally::Tally;

/// Longest wait for anything that must come. It is a failure's end, and measures nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Ops that the neighbour must complete beside every attack.
const NEIGHBOUR_OPS: u64 = 100_000;

/// Engine, control, watcher; with a key one more, the gate's.
const ENGINE_THREADS: usize = 3;

static TURN: Mutex<()> = Mutex::new(());

/// One attack's surroundings.
#[derive(Debug)]
pub(crate) struct Stage {
    name: &'static str,
    pub(crate) tally: Tally,
    pub(crate) socket: PathBuf,
    pub(crate) neighbour: Neighbour,
    observer: Session,
    engine: Engine,
    before: Leavings,
    bare: Leavings,
    /// What the neighbour had done when the attack began.
    start: Cell<Option<u64>>,
    _turn: MutexGuard<'static, ()>,
}

/// What an attacker may leave behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leavings {
    descriptors: usize,
    mapped_bytes: u64,
    threads: usize,
    helpers: usize,
    counters: [u64; 5],
}

/// Counters of the engine that must return to where they were.
const COUNTERS: [Counter; 5] =
    [Counter::Sessions, Counter::Rings, Counter::Regions, Counter::RegionBytes, Counter::InFlight];

impl Stage {
    /// Sets the stage with an engine's default settings.
    pub(crate) fn set(name: &'static str) -> Self {
        Self::with(name, |_| {})
    }

    /// Sets the stage with settings changed.
    pub(crate) fn with(name: &'static str, change: impl FnOnce(&mut Config)) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = format!("verbring-hostile-{}-{count}", std::process::id());
        let socket = std::env::temp_dir().join(file);
        let mut config = Config::default();
        config.socket = Some(socket.clone());
        change(&mut config);
        let bare = Leavings::of_process();
        let threads = ENGINE_THREADS + usize::from(config.psk_file.is_some());
        let engine = Engine::builder().config(config).spawn().unwrap();
        let observer = Session::connect(&socket).unwrap();
        let neighbour = Neighbour::start(socket.clone());
        until("the setting up is over", || {
            let now = Leavings::of_process();
            (now.threads, now.helpers) == (threads, 0)
        });
        // Counters are read last: by then the setting up has nothing under way but the neighbour's
        // ops, and those come and go.
        let before = Leavings::of(&observer).resting();
        let (tally, start) = (Tally::default(), Cell::new(None));
        Self { name, tally, socket, neighbour, observer, engine, before, bare, start, _turn: turn }
    }

    /// True until the neighbour has done its ops beside the attack. The attack begins with the
    /// first call.
    pub(crate) fn goes_on(&self) -> bool {
        self.neighbour.look();
        let verified = self.neighbour.verified();
        let start = self.start.get().unwrap_or(verified);
        self.start.set(Some(start));
        verified - start < NEIGHBOUR_OPS
    }

    /// Where engines of other hosts come in.
    pub(crate) fn listening(&self) -> std::net::SocketAddr {
        self.engine.listening().unwrap()
    }

    /// Connects, and says nothing yet. Waits for a session's place to be free: those that have
    /// just ended may not have been cleared away.
    pub(crate) fn connect(&self) -> Wire {
        let config = self.engine.config();
        let own = config.quota_of(nix::unistd::geteuid().as_raw());
        let places = u64::from(own.sessions.min(config.sessions_max));
        until("a session may come", || self.counter(Counter::Sessions) < places);
        Wire::connect(&self.socket)
    }

    /// Opens a session of which every message is made by hand.
    pub(crate) fn wire(&self) -> Wire {
        let mut wire = self.connect();
        wire.hello().done();
        wire
    }

    /// Opens a well-behaved session.
    pub(crate) fn session(&self) -> Session {
        Session::connect(&self.socket).unwrap()
    }

    /// Reads a counter of the engine. The answer comes from a turn that began after the question.
    pub(crate) fn counter(&self, counter: Counter) -> u64 {
        self.observer.stats(Scope::Engine).unwrap()[counter]
    }

    /// Waits until the engine has made `turns` more turns in answer to questions.
    pub(crate) fn turns(&self, turns: u32) {
        for _ in 0..turns {
            self.counter(Counter::Turns);
        }
    }

    /// Ends the attack: the neighbour is undisturbed, and nothing is left behind.
    pub(crate) fn finish(self) {
        while self.goes_on() {
            std::thread::yield_now();
        }
        self.neighbour.rest();
        let verified = self.neighbour.verified() - self.start.get().unwrap();
        self.before.await_again(|| Leavings::of(&self.observer));
        self.neighbour.leave();
        drop(self.observer);
        self.engine.shutdown().unwrap();
        self.bare.await_again(Leavings::of_process);
        assert!(!self.socket.exists(), "the engine left its socket");
        self.tally.print(self.name, verified);
    }
}

impl Leavings {
    fn of_process() -> Self {
        let threads = threads();
        let helper = |name: &&String| ["verbring-job", "verbring-aside"].contains(&name.as_str());
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            mapped_bytes: mapped_bytes_named(""),
            helpers: threads.iter().filter(helper).count(),
            threads: threads.len(),
            counters: [0; 5],
        }
    }

    fn of(observer: &Session) -> Self {
        let stats = observer.stats(Scope::Engine).unwrap();
        Self { counters: COUNTERS.map(|counter| stats[counter]), ..Self::of_process() }
    }

    /// Waits until everything is as it was.
    fn await_again(&self, look: impl Fn() -> Self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = look();
            if now == *self {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {now:?}, before: {self:?}");
            std::thread::yield_now();
        }
    }

    /// With the neighbour's ops gone.
    fn resting(mut self) -> Self {
        self.counters[4] = 0;
        self
    }
}

/// Names of the engine's threads.
fn threads() -> Vec<String> {
    let mut names = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        // A thread may end between the two calls.
        let comm = task.and_then(|task| std::fs::read_to_string(task.path().join("comm")));
        let name = comm.unwrap_or_default().trim_end().to_string();
        if name.starts_with("verbring-") {
            names.push(name);
        }
    }
    names
}

/// Bytes of this process's mappings of memfds whose name starts so.
pub(crate) fn mapped_bytes_named(name: &str) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let name = format!(" /memfd:{name}");
    let bytes = |line: &str| {
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        u64::from_str_radix(end, 16).unwrap() - u64::from_str_radix(start, 16).unwrap()
    };
    maps.lines().filter(|line| line.contains(&name)).map(bytes).sum()
}

/// Looks until something is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        std::thread::yield_now();
    }
}
