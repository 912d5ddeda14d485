//! Claim: the engine thread is quiet. While busy it makes no system call and allocates nothing;
//! while idle it costs nothing; and between the two no wake-up is ever lost.
//!
//! The engine runs in a process of its own (this binary, started again), so that its threads can be
//! watched from outside: by strace, and by the scheduler's own account of CPU time.
//! `VERBRING_ROUNDS` and `VERBRING_IDLE_S` set how long; the defaults are a tenth of the full
//! proof.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{BufRead, BufReader, Lines, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use verbring::abi::{Counter, Opcode, Sqe};
use verbring::client::Scope;
use verbring::host::{Config, Engine};
use verbring::{RingOptions, Session};

/// Both cores are needed by each of these: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

const SPIN: &str = "VERBRING_TEST_ENGINE_SPIN_US";
const SOCKET: &str = "VERBRING_TEST_ENGINE_SOCKET";

/// An engine in a process of its own. Killed when dropped.
struct Daemon {
    child: Child,
    socket: PathBuf,
    /// Kept open: the child's test harness speaks up after a minute, and must find a reader.
    _said: Lines<BufReader<ChildStdout>>,
}

impl Daemon {
    fn start(name: &str, spin_us: u32) -> Self {
        let socket = std::env::temp_dir().join(format!("vr-{name}-{}.sock", std::process::id()));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "an_engine", "--nocapture"])
            .env(SPIN, spin_us.to_string())
            .env(SOCKET, &socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let up = said.by_ref().map_while(Result::ok).any(|line| line.contains("listening"));
        assert!(up, "{name}");
        Self { child, socket, _said: said }
    }

    fn session(&self) -> Session {
        Session::connect(&self.socket).unwrap()
    }

    /// The kernel's number of the thread with this name.
    fn thread(&self, name: &str) -> u32 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let named = |path: &PathBuf| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let task = tasks.map(|task| task.unwrap().path()).find(named).unwrap();
        task.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }

    /// CPU time of all threads so far, also of those that are gone.
    fn cpu(&self) -> Duration {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let clock = nix::time::clock_getcpuclockid(pid).unwrap();
        Duration::from(nix::time::clock_gettime(clock).unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

/// Not a claim of its own: the engine, when this binary is started as one.
#[test]
fn an_engine() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let mut config = Config::default();
    config.socket = Some(socket.into());
    config.spin_us = u32::try_from(number(SPIN, 0)).unwrap();
    config.ring_idle_ms = 60_000;
    let engine = Engine::builder().config(config).spawn().unwrap();
    println!("listening");
    let _ = std::io::stdin().read(&mut [0]);
    drop(engine);
}

fn nop(user_data: u64) -> Sqe {
    Sqe { opcode: Opcode::Nop as u8, user_data, ..Sqe::default() }
}

/// Rule 5: NEED_WAKEUP and `bell_at`, each with its full fence, lose no wake-up. Neither side looks
/// for work before it sleeps, so nearly every round puts both to sleep.
#[test]
fn rule_5_no_wake_up_is_lost() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let target = number("VERBRING_ROUNDS", 100_000);
    let daemon = Daemon::start("wake", 0);
    let session = daemon.session();
    let mut options = RingOptions::new(4, 4);
    options.spin = Duration::ZERO;
    let mut ring = session.raw_ring(options).unwrap();
    let sleeps = || session.stats(Scope::Engine).unwrap().as_slice()[Counter::Sleeps as usize];
    let before = sleeps();
    let (mut rounds, mut engine_slept) = (0, 0);
    while ring.sleeps().min(engine_slept) < target {
        for _ in 0..1_000 {
            ring.push(nop(rounds)).unwrap();
            ring.submit();
            let ready = ring.wait(1, Some(Duration::from_secs(60))).unwrap();
            assert_eq!(ready, 1, "a wake-up was lost in round {rounds}");
            assert_eq!(ring.pop().unwrap().unwrap().user_data, rounds);
            rounds += 1;
        }
        engine_slept = sleeps() - before;
    }
    println!("{rounds} rounds: the client slept {}, the engine {engine_slept}", ring.sleeps());
}

/// Keeps an engine busy for a while: the SQ is never empty for long.
fn load(ring: &mut verbring::RawRing, lasting: Duration) -> u64 {
    let (begun, mut done, mut pushed) = (Instant::now(), 0, 0);
    while begun.elapsed() < lasting {
        while ring.push(nop(pushed)).is_some() {
            pushed += 1;
        }
        ring.submit();
        while let Some(cqe) = ring.pop().unwrap() {
            assert_eq!(cqe.res, 0);
            done += 1;
        }
    }
    done
}

#[test]
fn a_busy_engine_makes_no_system_call() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("VERBRING_REQUIRE_TOOLS").is_none(), "strace is missing");
        println!("left out: there is no strace");
        return;
    }
    let daemon = Daemon::start("busy", 1_000_000);
    let session = daemon.session();
    let mut ring = session.raw_ring(RingOptions::new(64, 128)).unwrap();
    load(&mut ring, Duration::from_millis(200));
    let thread = daemon.thread("verbring-engine");
    let report = std::env::temp_dir().join(format!("vr-strace-{}", std::process::id()));
    let mut strace = Command::new("strace")
        .arg("-o")
        .arg(&report)
        .args(["-p", &thread.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(strace.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("attached")), "strace did not attach");
    let done = load(&mut ring, Duration::from_secs(1));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(strace.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    strace.wait().unwrap();
    let calls = std::fs::read_to_string(&report).unwrap();
    std::fs::remove_file(&report).unwrap();
    let calls: Vec<&str> = calls.lines().filter(|line| line.contains('(')).collect();
    println!("{done} ops in 1 s, {} system calls", calls.len());
    assert!(done > 0 && calls.is_empty(), "{calls:#?}");
}

/// An idle engine, with a session and a ring that once was busy, sleeps for good.
#[test]
fn an_idle_engine_costs_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seconds = number("VERBRING_IDLE_S", 6);
    let daemon = Daemon::start("idle", 50);
    let session = daemon.session();
    let mut ring = session.raw_ring(RingOptions::new(64, 128)).unwrap();
    load(&mut ring, Duration::from_millis(50));
    // Every answer is out before the clock starts: the last of them was this one.
    session.stats(Scope::Engine).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let before = daemon.cpu();
    std::thread::sleep(Duration::from_secs(seconds));
    let spent = daemon.cpu() - before;
    println!("{seconds} s idle cost {spent:?} of CPU");
    let allowed = Duration::from_millis(100) * u32::try_from(seconds).unwrap() / 60;
    assert!(spent < allowed, "{spent:?} in {seconds} s, {allowed:?} allowed");
}

/// Rule 3: back-pressure is a full SQ and nothing else. A client that leaves its CQ full, with more
/// SQEs pushed, neither keeps the engine awake nor loses them.
#[test]
fn rule_3_a_full_cq_lets_the_engine_sleep_and_loses_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let daemon = Daemon::start("full", 50);
    let session = daemon.session();
    let mut ring = session.raw_ring(RingOptions::new(16, 16)).unwrap();
    let mut pushed = 0;
    while pushed < 32 {
        while ring.push(nop(pushed)).is_some() {
            pushed += 1;
        }
        ring.submit();
    }
    assert_eq!(ring.wait(16, Some(Duration::from_secs(60))).unwrap(), 16);
    std::thread::sleep(Duration::from_millis(500));
    let before = daemon.cpu();
    std::thread::sleep(Duration::from_secs(3));
    let spent = daemon.cpu() - before;
    println!("3 s with a full CQ cost {spent:?} of CPU");
    assert!(spent < Duration::from_millis(300), "{spent:?}");
    for expected in 0..32 {
        assert!(ring.wait(1, Some(Duration::from_secs(60))).unwrap() > 0);
        assert_eq!(ring.pop().unwrap().unwrap().user_data, expected);
    }
}
