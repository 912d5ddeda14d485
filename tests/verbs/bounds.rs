//! What an urgent op waits while another process floods the same peer: no longer than the bound
//! that `verbring qos --bound --peer` prints.
//!
//! Two hosts, and two clients of the near one, each a process. One writes 1 MiB at a time, class
//! low, as many at once as its ring takes: 16 windows of the card by default. The other one writes
//! 4 KiB, class high, one at a time, with pauses. Both have their data looked at.
//!
//! The bound is of the wait from intake until the card begins with an op. Held to it is more: all
//! the time from before an op is pushed until its client has its end. The rate in the bound is what
//! the card moves at that very time: the command measures it beside the ops. In mode fifo, which
//! has no bound, the same flood costs more than the bound of mode weighted: it is a flood.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use serde_json::Value;
use verbring::abi::{Class, FABRIC_VERBS};
use verbring::{Import, Region, Rights, Ring, RingOptions, Session, Write};

use super::engine::{PATIENCE, settle};
use super::hosts::{Host, KeyFile, reach};
use super::side::{noise, places};

/// An engine as it is by default.
const DEFAULTS: &[[&str; 2]] = &[["--log", "warn"]];
/// One with room for four times as much, in slices of an eighth.
const WIDE: &[[&str; 2]] = &[
    ["--slice-bytes", "16KiB"],
    ["--slice-us", "0"],
    ["--verbs-window-bytes", "8MiB"],
    ["--log", "warn"],
];
/// Bytes of one op of the flood, and places that its ops go to: all are under way at once.
const LOW: u64 = 1 << 20;
const LOWS: u64 = 32;
/// A word of the version stands so often in each of them.
const STAMP: u64 = 64 << 10;
/// Bytes of an urgent op, and places of those, behind the others.
const HIGH: u64 = 4096;
const HIGHS: u64 = 64;
const HIGH_AT: u64 = LOW * LOWS;
const REGION_BYTES: u64 = HIGH_AT + HIGH * HIGHS;
/// Urgent ops of a slice, at the least.
const OPS: usize = 100;
/// For the machine's sake, what is held to the bound is the median of slices, each with a rate of
/// its own.
const SLICES: usize = 3;

/// For so long a rate is measured.
const SECONDS: &str = "10";

/// What the flood is told: its engine's socket, the peer's URL, and the secret.
const FLOOD: &str = "VERBRING_TEST_FLOOD";

/// Puts its version into an op of the flood.
fn stamp(place: u64, version: u64, mut write: impl FnMut(u64, [u8; 8])) {
    for at in (0..LOW).step_by(usize::try_from(STAMP).expect("small")) {
        write(at, (place << 48 | version << 16 | at >> 16).to_le_bytes());
    }
}

fn background() -> Vec<u8> {
    noise(usize::try_from(LOW).expect("small"), 6)
}

/// The flood, in a process of its own: it says when it is at its height, goes on until its input
/// ends, and says what it wrote last to each place.
#[test]
#[ignore = "played by `an_urgent_op_waits_no_longer_than_is_printed`"]
fn one_flood() {
    let Ok(told) = std::env::var(FLOOD) else { return };
    let told: Vec<_> = told.split(' ').collect();
    let [socket, url, secret] = told[..] else { panic!("{told:?}") };
    let session = Session::connect(socket).expect("a session");
    let (import, _) = reach(&session, url, &secret.parse().expect("a secret"));
    let region = session.alloc(LOW * LOWS).expect("a region");
    let entries = u32::try_from(LOWS).expect("small");
    let mut ring = session.ring(RingOptions::new(entries, 2 * entries)).expect("a ring");
    let noise = background();
    for place in 0..LOWS {
        region.lend(place * LOW..(place + 1) * LOW).expect("free").write(0, &noise);
    }
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        ended.store(true, Ordering::Relaxed);
    });
    let (mut version, mut done, mut last) = (0, 0, vec![0; usize::try_from(LOWS).expect("small")]);
    let mut busy = 0;
    while !over.load(Ordering::Relaxed) || busy > 0 {
        for place in 0..LOWS {
            let Ok(mut lease) = region.lend(place * LOW..(place + 1) * LOW) else { continue };
            if over.load(Ordering::Relaxed) {
                break;
            }
            version += 1;
            stamp(place, version, |at, word| lease.write(at, &word));
            last[usize::try_from(place).expect("small")] = version;
            let op = Write::new(lease, import.at(place * LOW)).class(Class::Low);
            ring.push(op).expect("room");
            busy += 1;
        }
        ring.submit_and_wait(1, Some(PATIENCE)).expect("a wait");
        while let Some(ended) = ring.reap().expect("a sound ring") {
            assert_eq!((&ended.result, ended.fabric), (&Ok(1 << 20), FABRIC_VERBS), "{ended:?}");
            (busy, done) = (busy - 1, done + 1);
            if done == LOWS {
                println!("flooding");
                std::io::stdout().flush().expect("a reader");
            }
        }
    }
    println!("flooded {done} {last:?}");
}

/// The flood as its parent has it; it dies with the value.
struct Flood {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Flood {
    fn start(near: &Host, far: &Host, secret: &verbring::Secret) -> Self {
        let told = format!("{} {} {}", near.served.socket.display(), far.url, secret.to_hex());
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--ignored", "--exact", "--nocapture", "bounds::one_flood"])
            .env(FLOOD, told)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a flood");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut flood = Self { child, lines };
        flood.wait_for("flooding");
        flood
    }

    /// The rest of the first line that has this in it.
    fn wait_for(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).expect("text") > 0, "no {word}");
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_string();
            }
        }
    }

    /// Stops it, and compares what has arrived; returns how many ops that were.
    fn end(mut self, target: &Region) -> u64 {
        drop(self.child.stdin.take());
        let told = self.wait_for("flooded");
        let (done, last) = told.split_once(' ').expect("two parts");
        let last: Vec<u64> = serde_json::from_str(last).expect("a list");
        for (place, version) in (0..LOWS).zip(last) {
            let mut expected = background();
            stamp(place, version, |at, word| {
                let at = usize::try_from(at).expect("small");
                expected[at..at + 8].copy_from_slice(&word);
            });
            let mut found = vec![0; expected.len()];
            target.lend(place * LOW..(place + 1) * LOW).expect("free").read(0, &mut found);
            assert!(found == expected, "place {place} does not hold version {version}");
        }
        while self.lines.read_line(&mut String::new()).expect("text") > 0 {}
        assert!(self.child.wait().expect("waited for").success());
        done.parse().expect("a count")
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The urgent ops.
struct Urgent<'t> {
    ring: Ring,
    near: Region,
    import: &'t Import,
    target: &'t Region,
    count: u64,
}

impl<'t> Urgent<'t> {
    fn new(session: &Session, import: &'t Import, target: &'t Region) -> Self {
        let ring = session.ring(RingOptions::new(8, 8)).expect("a ring");
        let near = session.alloc(HIGH).expect("a region");
        Self { ring, near, import, target, count: 0 }
    }

    /// One op, after a pause; returns how long it took.
    fn one(&mut self) -> Took {
        self.count += 1;
        let pause = noise(2, self.count).iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        sleep(Duration::from_micros(pause % 4_000));
        let content = noise(usize::try_from(HIGH).expect("small"), self.count << 1);
        let at = HIGH_AT + self.count % HIGHS * HIGH;
        let mut lease = self.near.lend(0..HIGH).expect("free");
        lease.write(0, &content);
        let op = Write::new(lease, self.import.at(at)).class(Class::High);
        let begun = Instant::now();
        self.ring.push(op).expect("room");
        self.ring.submit_and_wait(1, Some(PATIENCE)).expect("a wait");
        let done = self.ring.reap().expect("a sound ring").expect("an end in time");
        let client = begun.elapsed();
        assert_eq!((&done.result, done.fabric), (&Ok(4096), FABRIC_VERBS), "{done:?}");
        let mut found = vec![0; content.len()];
        self.target.lend(at..at + HIGH).expect("free").read(0, &mut found);
        assert!(found == content, "op {} is not there", self.count);
        Took { engine: done.queued + done.service, client }
    }

    /// Ops until it is over, but at least so many; returns the 99th percentile of what the client
    /// saw.
    fn run(&mut self, when: &str, ops: usize, mut over: impl FnMut() -> bool) -> Duration {
        let mut took = Vec::new();
        while took.len() < ops || !over() {
            took.push(self.one());
        }
        let engine = Spread::of(took.iter().map(|took| took.engine).collect());
        let client = Spread::of(took.iter().map(|took| took.client).collect());
        println!("{when}: {} urgent ops, from intake to their end {engine}", took.len());
        println!("    as the client saw it {client}");
        client.p99
    }
}

struct Spread {
    p50: Duration,
    p99: Duration,
    max: Duration,
}

impl Spread {
    fn of(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let at = |percent: usize| took[(took.len() * percent).div_ceil(100) - 1];
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.1?}, p99 {:.1?}, max {:.1?}", self.p50, self.p99, self.max)
    }
}

/// How long an op took.
struct Took {
    /// From intake to its end.
    engine: Duration,
    /// From before it was pushed until it was reaped.
    client: Duration,
}

/// `verbring qos --bound`, as a user would ask: it measures for 20 s.
fn ask(near: &Host, far: &Host) -> Child {
    Command::new(env!("CARGO_BIN_EXE_verbring"))
        .args(["qos", "--bound", "--json", "--seconds", SECONDS, "--peer", &far.url, "--socket"])
        .arg(&near.served.socket)
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| !name.starts_with("VERBRING_")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("verbring qos")
}

/// The bound of class high in mode weighted, and the rate that it was made with.
fn answer(asked: Child) -> (Duration, u64) {
    let output = asked.wait_with_output().expect("its end");
    assert!(output.status.success(), "{:?}", output.status);
    let text = String::from_utf8(output.stdout).expect("text");
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object"));
    let row = rows.into_iter().find(|row| row["mode"] == "weighted" && row["class"] == "high");
    let row = row.expect("a row of it");
    let number = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("no {name}: {row}"));
    assert_eq!((number("cards"), number("rails")), (1, 1), "{row}");
    (Duration::from_nanos(number("worst_wait_ns")), number("rate_bytes_per_s"))
}

/// How the 99th percentile is to the bound, in thousandths of that: the median of slices.
fn of_the_bound(mode: &str, engine: &[[&str; 2]], slices: usize, ops: usize) -> u128 {
    let [first, second] = places();
    let key = KeyFile::new();
    let settings = [engine, &[["--mode", mode]]].concat();
    let host = |name, place, at| Host::with_settings(name, &[place], at, &key, &settings);
    let near = host("near", &first, "127.0.0.1:7500");
    let far = host("far", &second, "127.0.0.1:7501");
    let there = far.served.session();
    let target = there.alloc(REGION_BYTES).expect("a region");
    let secret = target.export("there", Rights::ALL).expect("an export");
    let session = near.served.session();
    let (import, _) = reach(&session, &far.url, &secret);
    let mut urgent = Urgent::new(&session, &import, &target);
    urgent.run(&format!("{mode}, without a flood"), OPS, || true);
    let flood = Flood::start(&near, &far, &secret);
    let mut ratios: Vec<u128> = (0..slices)
        .map(|_| {
            let mut asked = ask(&near, &far);
            let over = || asked.try_wait().expect("a child").is_some();
            let took = urgent.run(&format!("{mode}, beside a flood"), ops, over);
            let (bound, rate) = answer(asked);
            println!("    bound of mode weighted {bound:.1?}, at {rate} bytes/s");
            took.as_nanos() * 1_000 / bound.as_nanos()
        })
        .collect();
    ratios.sort_unstable();
    let ops = flood.end(&target);
    println!("{mode}: p99 at {ratios:?} thousandths of the bound; {ops} ops of the flood");
    drop(urgent);
    drop((import, session, target, there, near, far));
    for place in [&first, &second] {
        settle(&place.device);
    }
    ratios[slices / 2]
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn an_urgent_op_waits_no_longer_than_is_printed() {
    // It takes minutes, and what loads libibverbs makes no difference to it.
    if cfg!(feature = "ibverbs") {
        return;
    }
    for engine in [DEFAULTS, WIDE] {
        println!("{engine:?}");
        let weighted = of_the_bound("weighted", engine, SLICES, OPS);
        assert!(weighted <= 1_000, "{weighted} thousandths of the bound");
        let fifo = of_the_bound("fifo", engine, 1, 5);
        assert!(fifo > 1_000, "it is no flood: {fifo} thousandths of the bound");
    }
}
