//! Claim: what goes through an engine can be looked at without asking it, by those who run it and
//! by nobody else, also when it is dead; and nobody can change what it counts.
//!
//! Tried with the daemon as a process of its own, whose telemetry page is compared with the
//! counters that it gives when it is asked.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FallocateFlags, fallocate};
use verbring::abi::{Counter, FEATURE_TELEMETRY, Tally};
use verbring::client::{Look, Scope, Stats, Tallies, Telemetry, TelemetryError};
use verbring::shm::{self, Mapping};
use verbring::{Engine, Region, Rights, Ring, RingOptions, Session};

/// A daemon in a directory of its own; both are gone with the value.
struct Daemon {
    child: Child,
    dir: PathBuf,
}

impl Daemon {
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("verbring-telemetry-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_verbring"));
        command.args(["serve", "--verbs", "off", "--socket"]).arg(dir.join("socket"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening"), "the daemon did not start: {line:?}");
        Self { child, dir }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A session that writes to itself.
struct Client {
    session: Session,
    region: Region,
    ring: Ring,
}

impl Client {
    fn of(session: Session) -> Self {
        let region = session.alloc(1 << 20).unwrap();
        let ring = session.ring(RingOptions::default()).unwrap();
        Self { session, region, ring }
    }

    fn write(&mut self, name: &str, ops: u64, bytes: u64) {
        let secret = self.region.export(name, Rights::WRITE).unwrap();
        let import = self.session.import(name, None, &secret).unwrap();
        for _ in 0..ops {
            let lease = self.region.lend(0..bytes).unwrap();
            self.ring.push(verbring::Write::new(lease, import.at(1 << 19))).unwrap();
            self.ring.submit_and_wait(1, None).unwrap();
            self.ring.reap().unwrap().unwrap().result.unwrap();
        }
    }
}

/// Looks until what is asked for is there: the page is a moment behind.
fn look_for(telemetry: &Telemetry, there: impl Fn(&Look) -> bool) -> Look {
    loop {
        let look = telemetry.look();
        if there(&look) {
            return look;
        }
        std::thread::yield_now();
    }
}

fn ended(of: &Tallies) -> u64 {
    [Tally::Completed, Tally::Failed, Tally::Withdrawn, Tally::Passed]
        .into_iter()
        .map(|tally| of.of(tally))
        .sum()
}

/// What the page says of a session, and what STATS says of it.
fn expect_same(tallies: &Tallies, stats: &Stats) {
    assert_eq!(ended(tallies) + stats[Counter::Refused], stats[Counter::Completed]);
    assert_eq!(tallies.of(Tally::Bytes), stats[Counter::Bytes]);
    assert_eq!(tallies.of(Tally::Defers), stats[Counter::Defers]);
    assert_eq!((tallies.of(Tally::Queued), tallies.of(Tally::InFlight)), (0, 0));
    let timed = tallies.of(Tally::Completed) + tallies.of(Tally::Failed);
    assert_eq!((tallies.wait.count(), tallies.service.count()), (timed, timed));
}

fn sum(all: &[&Tallies], tally: Tally) -> u64 {
    all.iter().map(|one| one.of(tally)).sum()
}

#[test]
fn the_page_tells_what_the_engine_tells_and_outlives_it() {
    let mut daemon = Daemon::start();
    let socket = daemon.dir.join("socket");
    let mut one = Client::of(Session::connect(&socket).unwrap());
    let mut other = Client::of(Session::connect(&socket).unwrap());
    assert!(one.session.probe().unwrap().features & FEATURE_TELEMETRY != 0);
    let telemetry = one.session.telemetry().unwrap();
    assert_eq!(telemetry.engine_pid(), daemon.child.id());
    assert_eq!(telemetry.boot_id(), one.session.boot_id());
    one.write("one", 40, 4096);
    other.write("other", 60, 64);

    let of = |look: &Look, session: &Session| {
        let (_, own) = look.sessions.iter().find(|(number, _)| *number == session.number())?;
        Some(own.clone())
    };
    let completed = |look: &Look, session: &Session| {
        of(look, session).map_or(0, |own| own.of(Tally::Completed))
    };
    // Each block is read by itself: the others must have come as far.
    let look = look_for(&telemetry, |look| {
        let lanes = sum(&look.lanes.iter().collect::<Vec<_>>(), Tally::Completed);
        completed(look, &one.session) == 40
            && completed(look, &other.session) == 60
            && (lanes, look.rails[0].of(Tally::Completed)) == (100, 100)
    });
    for client in [&one, &other] {
        let stats = client.session.stats(Scope::Session).unwrap();
        expect_same(&of(&look, &client.session).unwrap(), &stats);
    }
    let lanes: Vec<&Tallies> = look.lanes.iter().collect();
    let sessions: Vec<&Tallies> =
        look.sessions.iter().map(|(_, own)| own).chain([&look.gone]).collect();
    for tally in [Tally::Enqueued, Tally::Dispatched, Tally::Completed, Tally::Bytes] {
        assert_eq!(sum(&lanes, tally), sum(&sessions, tally), "{tally:?}");
    }
    assert_eq!(look.rails[0].of(Tally::Bytes), 40 * 4096 + 60 * 64);
    assert!(look.lanes[2].service.at_thousandths(500).unwrap() > 0, "medium, users'");

    // A session that ends leaves its counts with those that are gone.
    drop(other);
    let gone = look_for(&telemetry, |look| look.gone.of(Tally::Completed) == 60).gone;
    assert_eq!(gone.of(Tally::Bytes), 60 * 64);
    daemon.kill();
    assert!(one.session.over());
    assert_eq!(telemetry.look().gone, gone);
}

#[test]
fn nobody_but_the_engine_can_change_the_page() {
    let engine = Engine::builder().spawn().unwrap();
    let mut client = Client::of(engine.connect().unwrap());
    let telemetry = client.session.telemetry().unwrap();
    // The engine is in this process: its own descriptor is there to be found.
    let mut file = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .find_map(|entry| {
            let path = entry.unwrap().path();
            let name = std::fs::read_link(&path).ok()?;
            name.to_str()?.starts_with("/memfd:verbring-telemetry").then_some(())?;
            let file = File::options().read(true).write(true).open(path).ok()?;
            let page = Telemetry::open(file.try_clone().ok()?.into()).ok()?;
            (page.boot_id() == client.session.boot_id()).then_some(file)
        })
        .unwrap();
    let bytes = file.metadata().unwrap().len();
    assert!(Mapping::shared(file.as_fd(), bytes).is_err(), "mapped for writing");
    assert_eq!(file.write(&[0; 8]).unwrap_err().raw_os_error(), Some(1), "EPERM");
    assert!(file.set_len(0).is_err() && file.set_len(1 << 30).is_err(), "resized");
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert!(fallocate(&file, hole, 0, 4096).is_err(), "a hole");
    client.write("still", 5, 64);
    look_for(&telemetry, |look| look.rails[0].of(Tally::Completed) == 5);
}

/// A header that cannot be is named, and what it says is not followed.
#[test]
fn what_is_no_telemetry_page_is_not_opened() {
    use verbring::abi::TelemetryHeader;
    use zerocopy::IntoBytes;

    type Change = fn(&mut TelemetryHeader);
    let changes: [(&str, Change); 12] = [
        ("magic", |header| header.magic += 1),
        ("abi_version", |header| header.abi_version = 2),
        ("header_bytes", |header| header.header_bytes = 64),
        ("header_bytes", |header| header.header_bytes += 8),
        ("counters", |header| header.counters = 31),
        ("buckets", |header| header.buckets = u32::MAX),
        ("block_stride", |header| header.block_stride = 4032),
        ("block_stride", |header| header.block_stride += 8),
        ("unit_ns", |header| header.unit_ns = 0),
        ("steps", |header| header.steps = 6),
        ("lanes", |header| header.lanes = 5),
        ("sessions", |header| header.sessions += 1),
    ];
    for (field, change) in changes {
        let mut header = TelemetryHeader::lay_out(1, 2);
        let bytes = header.bytes();
        change(&mut header);
        let fd = shm::create(c"verbring-test", bytes, false).unwrap();
        Mapping::shared(fd.as_fd(), bytes).unwrap().write(0, header.as_bytes());
        match Telemetry::open(fd) {
            Err(TelemetryError::Header { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}
