//! Engines as they are on two hosts: each in a process of its own, with a key that both have,
//! joined by TCP; and a load from one to the other that outlives what befalls them.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use verbring::abi::{FABRIC_VERBS, errno};
use verbring::{
    Completion, FetchAdd, Import, Region, Rights, Ring, RingOptions, Secret, Session, Ticket, Write,
};

use super::engine::{PATIENCE, Served};
use super::side::{Place, noise};

/// Bytes of one WRITE, of which the first are new in each, and places that WRITEs go to.
const BYTES: u64 = 4096;
const NEW: usize = 64;
const PLACES: u64 = 32;
/// Where the counter is, and where its old values come to.
const COUNTER: u64 = PLACES * BYTES;
const OLD: u64 = COUNTER + BYTES;
const REGION_BYTES: u64 = OLD + BYTES;
/// Atomics under way at a time.
const ADDS: u64 = 4;

/// A file with a key, which goes with the value.
pub(crate) struct KeyFile(PathBuf);

impl KeyFile {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("verbring-{}-key", std::process::id()));
        let _ = fs::remove_file(&path);
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).expect("it");
        let seed = u64::from(std::process::id());
        let digits: String = noise(32, seed).iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(digits.as_bytes()).expect("written");
        Self(path)
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// An engine that those of other hosts reach at an address.
pub(crate) struct Host {
    pub(crate) served: Served,
    pub(crate) url: String,
}

impl Host {
    /// It takes a peer for lost that is silent for so long; a card for silent after 0.3 s.
    pub(crate) fn start(
        name: &str,
        place: &Place,
        at: &str,
        silence_ms: u32,
        key: &KeyFile,
    ) -> Self {
        Self::with_cards(name, &[place], at, silence_ms, key)
    }

    /// It has several cards.
    pub(crate) fn with_cards(
        name: &str,
        cards: &[&Place],
        at: &str,
        silence_ms: u32,
        key: &KeyFile,
    ) -> Self {
        let silence_ms = silence_ms.to_string();
        let settings = [
            ["--peer-silence-ms", &silence_ms],
            ["--verbs-lease-ms", "500"],
            ["--verbs-timeout", "14"],
            // 7 is without end on Soft-RoCE.
            ["--verbs-retry", "3"],
            ["--log", "warn"],
        ];
        Self::with_settings(name, cards, at, key, &settings)
    }

    /// It has these settings; what they do not name is as it is where nobody sets anything.
    pub(crate) fn with_settings(
        name: &str,
        cards: &[&Place],
        at: &str,
        key: &KeyFile,
        settings: &[[&str; 2]],
    ) -> Self {
        let key = key.0.to_str().expect("a path");
        let own = [["--listen", at], ["--psk-file", key]];
        let all = [&own, settings].concat();
        let served = Served::with_cards(name, cards, "exec", all.as_flattened());
        Self { served, url: format!("verbring://{at}") }
    }

    /// It is the process that was started, and runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.served.child.try_wait().expect("a child").is_none()
    }
}

/// A region of a host's client, exported as "there".
pub(crate) struct Target {
    pub(crate) region: Region,
    pub(crate) secret: Secret,
    _session: Session,
}

impl Target {
    pub(crate) fn at(host: &Host) -> Self {
        let session = host.served.session();
        let region = session.alloc(REGION_BYTES).expect("a region");
        let secret = region.export("there", Rights::ALL).expect("an export");
        Self { region, secret, _session: session }
    }
}

/// Connects and imports anew, as often as it takes; returns how long that was.
pub(crate) fn reach(session: &Session, url: &str, secret: &Secret) -> (Import, Duration) {
    let begun = Instant::now();
    loop {
        let made = session
            .connect_peer_over(url, FABRIC_VERBS)
            .and_then(|peer| peer.import("there", None, secret));
        match made {
            Ok(import) => return (import, begun.elapsed()),
            Err(error) => assert!(begun.elapsed() < PATIENCE, "not reached again: {error}"),
        }
        sleep(Duration::from_millis(50));
    }
}

/// What is under way.
#[derive(Clone, Copy, Debug)]
enum Op {
    Write { place: usize, version: u64 },
    Add,
}

/// What one place of the target may hold.
#[derive(Clone, Debug, Default)]
struct Held {
    busy: bool,
    /// What was written last for certain.
    written: u64,
    /// Since then, what may have been.
    perhaps: Vec<u64>,
}

/// How ops have ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// WRITEs and ADDs that were done.
    pub(crate) writes: u64,
    pub(crate) adds: u64,
    /// WRITEs that failed.
    pub(crate) failed_writes: u64,
    /// ADDs that may have been done, and that were not.
    pub(crate) unknown_adds: u64,
    pub(crate) refused_adds: u64,
}

impl Tally {
    pub(crate) fn failed(&self) -> u64 {
        self.failed_writes + self.unknown_adds + self.refused_adds
    }
}

/// WRITEs of ever new bytes and ADDs to a counter, from a client of one host.
pub(crate) struct Load {
    ring: Ring,
    near: Region,
    under_way: VecDeque<(Ticket, Op)>,
    held: Vec<Held>,
    adding: u64,
    version: u64,
    /// Since the target was last a new one.
    pub(crate) tally: Tally,
    /// WRITEs that were done, by rail, since somebody began to look.
    by_rail: [u64; 64],
    /// How ops have failed, ever, and how many so.
    pub(crate) failures: BTreeMap<String, u64>,
}

fn content(place: usize, version: u64) -> Vec<u8> {
    noise(NEW, (place as u64) << 32 | version << 1)
}

impl Load {
    pub(crate) fn new(session: &Session) -> Self {
        Self {
            ring: session.ring(RingOptions::new(64, 128)).expect("a ring"),
            near: session.alloc(REGION_BYTES).expect("a region"),
            under_way: VecDeque::new(),
            held: vec![Held::default(); usize::try_from(PLACES).expect("small")],
            adding: 0,
            version: 0,
            tally: Tally::default(),
            by_rail: [0; 64],
            failures: BTreeMap::new(),
        }
    }

    /// The target is another one, in which nothing was written.
    pub(crate) fn begin_anew(&mut self) {
        assert!(self.under_way.is_empty(), "{:?}", self.under_way);
        self.held.fill(Held::default());
        self.tally = Tally::default();
    }

    /// Pushes as much as there is room for.
    pub(crate) fn push(&mut self, import: &Import) {
        for (place, at) in (0..PLACES).enumerate() {
            if self.held[place].busy {
                continue;
            }
            let mut lease = self.near.lend(at * BYTES..(at + 1) * BYTES).expect("free");
            let version = self.version + 1;
            lease.write(0, &content(place, version));
            let Ok(ticket) = self.ring.push(Write::new(lease, import.at(at * BYTES))) else {
                break;
            };
            self.version = version;
            self.held[place].busy = true;
            self.under_way.push_back((ticket, Op::Write { place, version }));
        }
        while self.adding < ADDS {
            let free = (0..ADDS).find_map(|at| self.near.lend(OLD + 8 * at..OLD + 8 * at + 8).ok());
            let Some(lease) = free else { break };
            let op = FetchAdd::new(lease, import.at(COUNTER), 1).expect("a word");
            let Ok(ticket) = self.ring.push(op) else { break };
            self.adding += 1;
            self.under_way.push_back((ticket, Op::Add));
        }
        self.ring.submit();
    }

    /// Takes what has ended; waits a moment if nothing has.
    pub(crate) fn take(&mut self) {
        self.ring.submit_and_wait(1, Some(Duration::from_millis(50))).expect("a wait");
        while let Some(done) = self.ring.reap().expect("a sound ring") {
            self.ended(&done);
        }
    }

    fn ended(&mut self, done: &Completion) {
        let at = self.under_way.iter().position(|(ticket, _)| *ticket == done.ticket);
        let (_, op) = self.under_way.remove(at.expect("an op of ours, once")).expect("it is there");
        match &done.result {
            Ok(_) => assert_eq!(done.fabric, FABRIC_VERBS, "{done:?}"),
            Err(error) => {
                let documented = [errno::EHOSTDOWN, errno::ESTALE, errno::ETIMEDOUT, errno::EIO];
                assert!(documented.contains(&error.errno), "{error:?}");
                // One of them is said of each that ends by its peer or on the wire.
                let flags = u8::from(error.maybe_done) + u8::from(error.retryable);
                assert!(flags == 1 || error.errno == errno::ESTALE, "{error:?}");
            }
        }
        if let Err(error) = &done.result {
            let kind = if matches!(op, Op::Add) { "ADD" } else { "WRITE" };
            *self.failures.entry(format!("{kind}: {error}")).or_default() += 1;
        }
        match op {
            Op::Write { place, version } => {
                let held = &mut self.held[place];
                held.busy = false;
                if let Err(error) = &done.result {
                    assert!(!error.maybe_done, "a WRITE may be repeated: {error:?}");
                    held.perhaps.push(version);
                    self.tally.failed_writes += 1;
                } else {
                    (held.written, held.perhaps) = (version, Vec::new());
                    self.tally.writes += 1;
                    self.by_rail[usize::from(done.rail)] += 1;
                }
            }
            Op::Add => {
                self.adding -= 1;
                match &done.result {
                    Ok(_) => self.tally.adds += 1,
                    Err(error) if error.maybe_done => self.tally.unknown_adds += 1,
                    Err(_) => self.tally.refused_adds += 1,
                }
            }
        }
    }

    /// Runs until so many more WRITEs are done, or one op fails.
    pub(crate) fn run_writes(&mut self, import: &Import, writes: u64) {
        let (until, failed) = (self.tally.writes + writes, self.tally.failed());
        let begun = Instant::now();
        while self.tally.writes < until && self.tally.failed() == failed {
            self.push(import);
            self.take();
            assert!(begun.elapsed() < PATIENCE, "it stands still: {:?}", self.under_way);
        }
    }

    /// Runs for so long, or until an op fails.
    pub(crate) fn run_for(&mut self, import: &Import, span: Duration) {
        let (begun, failed) = (Instant::now(), self.tally.failed());
        while begun.elapsed() < span && self.tally.failed() == failed {
            self.push(import);
            self.take();
        }
    }

    /// Runs for so long, whatever fails.
    pub(crate) fn keep_on(&mut self, import: &Import, span: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < span {
            self.push(import);
            self.take();
        }
    }

    /// Looks at rails from now on, and runs until so many were used; returns how long that was.
    pub(crate) fn run_until_rails(&mut self, import: &Import, rails: usize) -> Duration {
        self.by_rail.fill(0);
        let begun = Instant::now();
        while self.rails_used() < rails {
            self.push(import);
            self.take();
            assert!(begun.elapsed() < PATIENCE, "not {rails} rails in time");
        }
        begun.elapsed()
    }

    /// Rails by which WRITEs went since they were looked at.
    pub(crate) fn rails_used(&self) -> usize {
        self.by_rail.iter().filter(|writes| **writes > 0).count()
    }

    /// Waits for the end of all; returns how long that was.
    pub(crate) fn drain(&mut self, within: Duration) -> Duration {
        let begun = Instant::now();
        while !self.under_way.is_empty() {
            self.take();
            assert!(begun.elapsed() < within, "it hangs: {:?}", self.under_way);
        }
        begun.elapsed()
    }

    /// What arrived is what was said to have; nothing is under way.
    pub(crate) fn compare(&self, target: &Region) {
        for (place, (at, held)) in (0..PLACES).zip(&self.held).enumerate() {
            let mut found = vec![0; NEW];
            target.lend(at * BYTES..(at + 1) * BYTES).expect("free").read(0, &mut found);
            let mut versions = held.perhaps.iter().chain([&held.written]);
            let holds = |version: &u64| match version {
                0 => found == [0; NEW],
                _ => found == content(place, *version),
            };
            assert!(versions.any(holds), "place {place} does not hold any of {held:?}");
        }
        let counter = target.lend(COUNTER..COUNTER + 8).expect("free").u64(0);
        let known = self.tally.adds..=self.tally.adds + self.tally.unknown_adds;
        assert!(known.contains(&counter), "{counter} was counted, {known:?} were told");
    }
}
