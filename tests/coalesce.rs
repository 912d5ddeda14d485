//! Claim: work that is queued several times is done once, through a real engine, for real clients;
//! each op has its own completion, every attempt is counted by what came of it, and it may be
//! switched off.
//!
//! What a client publishes at once the engine takes in one look, so that no test depends on who is
//! faster: ops of one effect are queued together before the first of them is posted.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use verbring::abi::{
    CQE_COALESCED, CQE_NOTIFY, Counter, Cqe, Opcode, SQE_COALESCE, SQE_NOTIFY, SQE_SUPERSEDE, Sqe,
};
use verbring::client::{Scope, Stats};
use verbring::{Import, RawRing, Region, Rights, RingOptions, Session};

const OUTCOMES: [Counter; 6] = [
    Counter::FoldHit,
    Counter::FoldNone,
    Counter::FoldDisabled,
    Counter::FoldEdges,
    Counter::FoldKey,
    Counter::FoldStarted,
];

/// A daemon in a directory of its own; both are gone with the value.
struct Daemon {
    child: Child,
    dir: PathBuf,
}

impl Daemon {
    fn start(name: &str, flags: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!("verbring-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_verbring"));
        command.args(["serve", "--verbs", "off", "--socket"]).arg(dir.join("socket")).args(flags);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening"), "the daemon did not start: {line:?}");
        Self { child, dir }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A session that writes from its region to that of another.
struct Client {
    session: Session,
    near: Region,
    far: Import,
    ring: RawRing,
    target: Region,
    ears: RawRing,
}

impl Client {
    fn of(daemon: &Daemon) -> Self {
        let connect = || Session::connect(daemon.dir.join("socket")).unwrap();
        let (session, other) = (connect(), connect());
        let (near, target) = (session.alloc(64 << 10).unwrap(), other.alloc(64 << 10).unwrap());
        let secret = target.export("target", Rights::ALL).unwrap();
        let far = session.import("target", None, &secret).unwrap();
        let raw = |session: &Session| session.raw_ring(RingOptions::default()).unwrap();
        let (ring, ears) = (raw(&session), raw(&other));
        Self { session, near, far, ring, target, ears }
    }

    fn op(&self, opcode: Opcode, flags: u16, offset: u64) -> Sqe {
        Sqe {
            opcode: opcode as u8,
            flags,
            local_region: self.near.id(),
            remote_region: self.far.id(),
            local_offset: offset,
            remote_offset: offset,
            bytes: 64,
            ..Sqe::default()
        }
    }

    /// Publishes ops at once; their CQEs, by place.
    fn run(&mut self, sqes: &[Sqe]) -> Vec<Cqe> {
        for (place, sqe) in (0..).zip(sqes) {
            self.ring.push(Sqe { user_data: place, ..*sqe }).unwrap();
        }
        self.ring.submit();
        let mut cqes = BTreeMap::new();
        while cqes.len() < sqes.len() {
            self.ring.wait(1, None).unwrap();
            while let Some(cqe) = self.ring.pop().unwrap() {
                assert!(cqes.insert(cqe.user_data, cqe).is_none(), "a second CQE: {cqe:?}");
            }
        }
        cqes.into_values().collect()
    }

    fn stats(&self) -> Stats {
        self.session.stats(Scope::Session).unwrap()
    }

    fn outcomes(&self) -> [u64; 6] {
        let stats = self.stats();
        OUTCOMES.map(|outcome| stats[outcome])
    }
}

fn folded(cqes: &[Cqe]) -> Vec<bool> {
    cqes.iter().map(|cqe| cqe.flags & CQE_COALESCED != 0).collect()
}

/// W22: a refresh that six ask for, and one of something else.
#[test]
fn w22_six_refreshes_are_one_transfer_and_six_completions() {
    let daemon = Daemon::start("coalesce", &[]);
    let mut client = Client::of(&daemon);
    let mut moved = 0;
    for (opcode, flags) in [
        (Opcode::Write, 0),
        (Opcode::Write, SQE_NOTIFY),
        (Opcode::Read, 0),
        (Opcode::Read, SQE_NOTIFY),
    ] {
        let before = client.outcomes();
        let same = client.op(opcode, SQE_COALESCE | flags, 0);
        let other = client.op(opcode, SQE_COALESCE | flags, 128);
        let cqes = client.run(&[same, same, other, same, same, same, same]);
        assert!(cqes.iter().all(|cqe| cqe.res == 64));
        assert_eq!(folded(&cqes), [false, true, false, true, true, true, true]);
        for cqe in [1, 3, 4, 5, 6].map(|place| cqes[place]) {
            assert_eq!(cqe.record, cqes[0].record);
        }
        assert_ne!(cqes[2].record, cqes[0].record);
        let after = client.outcomes();
        let hits = after[0] - before[0];
        assert!(hits > 0, "nothing was folded");
        assert_eq!((hits, after[1] - before[1]), (5, 2));
        moved += 2 * 64;
        assert_eq!(client.stats()[Counter::Bytes], moved, "one transfer for six");
    }
    assert_eq!(client.outcomes().iter().sum::<u64>(), 28, "every attempt is counted once");
    // Of six that notify the owner hears once.
    let arm = Sqe {
        opcode: Opcode::Arm as u8,
        local_region: client.target.id(),
        bytes: 16,
        ..Sqe::default()
    };
    client.ears.push(arm).unwrap();
    client.ears.submit();
    client.ears.wait(1, None).unwrap();
    let told = client.ears.pop().unwrap().unwrap();
    assert!(told.flags & CQE_NOTIFY != 0);
    assert_eq!(told.res, 4);
}

#[test]
fn the_last_of_several_values_is_written_and_all_are_told() {
    let daemon = Daemon::start("supersede", &[]);
    let mut client = Client::of(&daemon);
    let values: Vec<Sqe> = (0..10)
        .map(|at| {
            client.near.lend(at * 64..(at + 1) * 64).unwrap().fill(u8::try_from(at + 1).unwrap());
            let sqe = client.op(Opcode::Write, SQE_SUPERSEDE, at * 64);
            Sqe { remote_offset: 4096, ..sqe }
        })
        .collect();
    let cqes = client.run(&values);
    assert!(cqes.iter().all(|cqe| (cqe.res, cqe.record) == (64, cqes[9].record)));
    assert_eq!(folded(&cqes), [[true; 9].as_slice(), &[false]].concat());
    let mut slot = [0; 64];
    client.target.lend(4096..4160).unwrap().read(0, &mut slot);
    assert_eq!(slot, [10; 64]);
    assert_eq!(client.stats()[Counter::Superseded], 9);
    assert_eq!(client.stats()[Counter::Bytes], 64);
}

#[test]
fn a_setting_switches_folding_off_and_the_counters_say_so() {
    let daemon = Daemon::start("uncoalesced", &["--coalesce", "false"]);
    let mut client = Client::of(&daemon);
    let same = client.op(Opcode::Write, SQE_COALESCE, 0);
    let cqes = client.run(&[same; 6]);
    assert_eq!(folded(&cqes), [false; 6]);
    assert_eq!(client.outcomes(), [0, 0, 6, 0, 0, 0]);
    assert_eq!(client.stats()[Counter::Bytes], 6 * 64);
}
