//! Claim: whatever an op waits for, the engine says so, and says how much of it there is.
//!
//! Tried on this host with a live engine: `Session::why` for each state that an op can be in here,
//! and `verbring why`, by record, by number and by `user_data`, for what is open, not taken yet, or
//! over. What rails can wait for is tried over scripted ones (`src/engine/tests/why_rails.rs`).
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use verbring::abi::{
    self, Class, Opcode, STATE_ARMED, STATE_FLUSHING, STATE_POSTED, STATE_QUEUED, STATE_UNTAKEN,
    Sqe,
};
use verbring::client::{OpRef, Why};
use verbring::host::{Config, VerbsUse};
use verbring::sched::Mode;
use verbring::{Engine, Import, RawRing, Region, Rights, RingOptions, Session};

/// An engine of this process, with a socket for the command.
struct Stage {
    engine: Engine,
    dir: PathBuf,
}

impl Stage {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("verbring-why-{}-{count}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let mut config = Config::default();
        config.verbs = VerbsUse::Off;
        change(&mut config);
        let engine = Engine::builder().config(config).socket(dir.join("socket")).spawn().unwrap();
        Self { engine, dir }
    }

    /// What `verbring why` printed, and its exit code.
    fn why(&self, args: &[&str]) -> (Option<i32>, String, String) {
        why(Some(&self.dir.join("socket")), args)
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, told, errors) = self.why(&[args, &["--json"]].concat());
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        serde_json::from_str(&told).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn why(socket: Option<&Path>, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verbring"));
    command.env_remove("VERBRING_SOCKET").arg("why").args(args).stdin(Stdio::null());
    if let Some(socket) = socket {
        command.arg("--socket").arg(socket);
    }
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

struct Client {
    session: Session,
    region: Region,
    import: Import,
    ring: RawRing,
}

const MIB: u32 = 1 << 20;
const HALF: u32 = 8 * MIB;

impl Client {
    fn connect(stage: &Stage, cq_entries: u32) -> Self {
        let session = stage.engine.connect().unwrap();
        let region = session.alloc(2 * u64::from(HALF)).unwrap();
        let name = format!("why {}", session.number());
        let secret = region.export(&name, Rights::ALL).unwrap();
        let import = session.import(&name, None, &secret).unwrap();
        let ring = session.raw_ring(RingOptions::new(16, cq_entries)).unwrap();
        Self { session, region, import, ring }
    }

    fn write(&self, class: Class, bytes: u32) -> Sqe {
        Sqe {
            opcode: Opcode::Write as u8,
            class: class as u8,
            local_region: self.region.id(),
            remote_region: self.import.id(),
            remote_offset: HALF.into(),
            bytes,
            ..Sqe::default()
        }
    }

    fn arm(&self) -> Sqe {
        let local_region = self.region.id();
        Sqe { opcode: Opcode::Arm as u8, local_region, bytes: 1, ..Sqe::default() }
    }

    fn flush(&self) -> Sqe {
        let local_region = self.region.id();
        Sqe { opcode: Opcode::Flush as u8, local_region, ..Sqe::default() }
    }

    fn push(&mut self, sqe: Sqe) -> u64 {
        let number = self.ring.push(sqe).unwrap();
        self.ring.submit();
        number
    }

    fn ask(&self, number: u64) -> Option<Why> {
        match self.session.why(OpRef::number(self.ring.number(), number)) {
            Ok(why) => Some(why),
            Err(error) => {
                assert_eq!(error.refusal().unwrap().errno, abi::errno::ENOENT);
                None
            }
        }
    }

    /// Asks until the op is found in a state.
    fn ask_until(&self, number: u64, state: u16) -> Why {
        let found = std::iter::repeat_with(|| self.ask(number)).flatten();
        found.into_iter().find(|why| why.state == state).unwrap()
    }

    /// Pops so many completions.
    fn pop(&mut self, count: u64) {
        for _ in 0..count {
            self.ring.wait(1, None).unwrap();
            assert!(self.ring.pop().unwrap().unwrap().res >= 0);
        }
    }
}

/// What is said of an op must hold together, whatever is said.
fn sound(why: &Why) {
    let queued = matches!(why.state, STATE_QUEUED | STATE_POSTED);
    assert_eq!(why.state == STATE_UNTAKEN, why.record == 0, "{why:?}");
    assert_eq!(why.state == STATE_POSTED, why.posts > 0, "{why:?}");
    assert!(why.queued.is_none_or(|queued| queued <= why.age), "{why:?}");
    assert!(why.in_fabric <= why.posts && why.bytes_done <= why.bytes, "{why:?}");
    assert!(why.rails.is_empty() && why.rail == 0, "{why:?}");
    if let Some((used, limit)) = why.used {
        assert!(used <= limit && why.wants > 0, "{why:?}");
        assert!(used + why.wants > limit, "it would fit: {why:?}");
    }
    let counted = [abi::WAIT_WINDOW_OPS, abi::WAIT_WINDOW_WRS, abi::WAIT_WINDOW_BYTES];
    let counted = counted.contains(&why.wait);
    assert!(!queued || counted == why.used.is_some(), "{why:?}");
    assert_eq!(why.wait == abi::WAIT_LANE, queued && why.ahead > 0, "{why:?}");
    assert!(why.to_string().ends_with('.') && !why.to_string().contains("unknown"), "{why}");
}

/// Each state that an op of a live engine can be in on this host is seen, by asking again and again
/// while large ops keep it busy.
#[test]
fn every_state_on_this_host_is_told() {
    // One slice at a time, each of them long beside a turn that moves nothing.
    let stage = Stage::new(|config| {
        (config.slice_bytes, config.slice_us, config.window_bytes) =
            (MIB, 0, u64::from(MIB + MIB / 2));
        // The lower class waits for as long as there is anything else.
        config.mode = Mode::Strict;
    });
    let mut client = Client::connect(&stage, 16);
    let must = BTreeSet::from([
        (STATE_QUEUED, abi::WAIT_LANE),
        (STATE_QUEUED, abi::WAIT_CLASS),
        (STATE_POSTED, abi::WAIT_WINDOW_BYTES),
        (STATE_QUEUED, abi::WAIT_WINDOW_BYTES),
        (STATE_FLUSHING, abi::WAIT_EARLIER),
    ]);
    let mut seen = BTreeSet::new();
    for round in 0.. {
        assert!(round < 10_000, "seen only {seen:?}");
        let mut sqes = vec![client.write(Class::Medium, 8 * MIB)];
        for class in [Class::Medium, Class::Low, Class::Medium, Class::Low] {
            sqes.push(client.write(class, MIB));
        }
        sqes.push(client.flush());
        let numbers: Vec<u64> = sqes.into_iter().map(|sqe| client.push(sqe)).collect();
        for number in numbers.iter().copied().cycle().take(36) {
            let Some(why) = client.ask(number) else { continue };
            sound(&why);
            assert_eq!((why.number, why.ring), (number, client.ring.number()));
            seen.insert((why.state, why.wait));
        }
        client.pop(6);
        if must.is_subset(&seen) {
            break;
        }
    }
}

#[test]
fn an_armed_op_and_one_that_is_over_are_told_by_the_command() {
    let stage = Stage::new(|_| {});
    let mut client = Client::connect(&stage, 16);
    let arm = client.arm();
    let number = client.push(Sqe { user_data: 5, ..arm });
    let armed = client.ask_until(number, STATE_ARMED);
    sound(&armed);
    let record = armed.record.to_string();
    let ring = client.ring.number().to_string();
    let (code, told, errors) = stage.why(&[&record]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(told.contains("ARM of 1 notifications, class medium, user_data 0x5"), "{told}");
    assert!(told.contains("It waits for a notification."), "{told}");
    let by_number = stage.json(&["--ring", &ring, "--number", "0"]);
    let by_data = stage.json(&["--ring", &ring, "--user-data", "5"]);
    for json in [&by_number, &by_data] {
        assert_eq!((&json["record"], &json["state"]), (&armed.record.into(), &"armed".into()));
        assert_eq!((&json["wait"], &json["number"]), (&"a notification".into(), &0.into()));
        assert_eq!(json["taken_ns"], armed.taken_ns);
    }
    // Over: from the flight recorder, by record and by user_data.
    client.push(Sqe { user_data: 6, ..client.write(Class::High, 4096) });
    client.ring.wait(1, None).unwrap();
    let cqe = client.ring.pop().unwrap().unwrap();
    let (code, told, _) = stage.why(&[&format!("{:#x}", cqe.record)]);
    assert_eq!(code, Some(0));
    assert!(told.contains("is over since") && told.contains("waited "), "{told}");
    assert!(told.contains("; served in ") && told.contains("4096 bytes"), "{told}");
    let over = stage.json(&["--ring", &ring, "--user-data", "0x6"]);
    assert_eq!((&over["record"], &over["state"]), (&cqe.record.into(), &"over".into()));
    assert!(over["answer"].as_str().unwrap().starts_with("waited "), "{over}");
    // Also without the engine.
    let pid = std::process::id().to_string();
    let (code, told, _) = why(None, &[&cqe.record.to_string(), "--pid", &pid]);
    assert_eq!(code, Some(0));
    assert!(told.contains("is over since"), "{told}");
}

#[test]
fn an_sqe_that_is_not_taken_is_told_by_the_command() {
    let stage = Stage::new(|config| config.quota.ops = 3);
    let mut client = Client::connect(&stage, 2);
    let arm = client.arm();
    for _ in 0..3 {
        client.push(arm);
    }
    let third = std::iter::repeat_with(|| client.ask(2)).flatten().find(|why| {
        sound(why);
        why.wait == abi::WAIT_CQ
    });
    let third = third.unwrap();
    assert_eq!((third.used, third.wants, third.ahead), (Some((2, 2)), 1, 0));
    let ring = client.ring.number().to_string();
    let (code, told, _) = stage.why(&["--ring", &ring, "--number", "2"]);
    assert_eq!(code, Some(0));
    assert!(told.contains("is not taken yet. It waits for room in the CQ"), "{told}");
    assert!(told.contains("2 of 2 are in use, and it wants 1 more"), "{told}");
    let json = stage.json(&["--ring", &ring, "--number", "2"]);
    assert_eq!((&json["state"], &json["record"]), (&"untaken".into(), &0.into()));
    assert_eq!((&json["used"], &json["limit"]), (&2.into(), &2.into()));
    // Another session of this uid may ask, and is held by the quota of both.
    let mut other = Client::connect(&stage, 16);
    let arm = other.arm();
    other.push(arm);
    other.push(arm);
    let held =
        std::iter::repeat_with(|| client.session.why(OpRef::number(other.ring.number(), 1)).ok());
    let held = held.flatten().find(|why| why.wait == abi::WAIT_QUOTA_OPS).unwrap();
    assert_eq!((held.used, held.opcode), (Some((3, 3)), Some(Opcode::Arm)));
    sound(&held);
}

#[test]
fn what_is_not_there_is_refused_in_words() {
    let stage = Stage::new(|_| {});
    let client = Client::connect(&stage, 16);
    let ring = client.ring.number().to_string();
    let cases: [(&[&str], &str); 4] = [
        (&["77"], "record 0x4d is not open, and in none of 1 flight recorders of 1024 ops"),
        (&["--ring", &ring, "--number", "4"], "is over, or was not pushed yet"),
        (&["--ring", &ring, "--user-data", "9"], "with user_data 0x9 is open"),
        (&["--ring", "61", "--number", "0"], "ring 61 is not a live ring of this uid"),
    ];
    for (args, words) in cases {
        let (code, told, errors) = stage.why(args);
        assert_eq!((code, told.as_str()), (Some(1), ""), "{args:?}");
        assert!(errors.contains(words), "{errors}");
    }
    for bad in [&["--number", "1"][..], &[], &["1", "--ring", "x"], &["0"]] {
        assert_eq!(stage.why(bad).0, Some(2), "{bad:?}");
    }
}
