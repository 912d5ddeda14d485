//! Claim: what became of an op is known, also when the engine is dead.
//!
//! A completion that was popped has its entry in the session's flight recorder, which says the same
//! and more; `kill -9` of the engine takes nothing of it away. `verbring ledger` tells it in words:
//! from a live engine, for the sessions of its own uid alone, and from a dead one through a client
//! that lives. Tried with the daemon as a process of its own, which is killed.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::Value;
use verbring::abi::{CANCEL_BY_NUMBER, Class, Cqe, Detail, Opcode, SQE_SKIP_SUCCESS, Sqe, errno};
use verbring::client::{LedgerEntry, Recorder};
use verbring::shm::Mapping;
use verbring::{Import, RawRing, Region, Rights, RingOptions, Session};

/// A daemon in a directory of its own; both are gone with the value.
struct Daemon {
    child: Child,
    dir: PathBuf,
}

impl Daemon {
    fn start(settings: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("verbring-ledger-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let mut command = verbring();
        command
            .args(["serve", "--verbs", "off", "--socket"])
            .arg(dir.join("socket"))
            .args(settings);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening"), "the daemon did not start: {line:?}");
        Self { child, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The command, with none of the settings that this environment may have.
fn verbring() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verbring"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VERBRING_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

fn ledger(args: &[&str]) -> Command {
    let mut command = verbring();
    command.arg("ledger").args(args);
    command
}

/// What it printed, and its exit code.
fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

struct Client {
    session: Session,
    region: Region,
    import: Import,
    ring: RawRing,
}

impl Client {
    fn connect(socket: &Path, name: &str) -> Self {
        let session = Session::connect(socket).unwrap();
        let region = session.alloc(1 << 20).unwrap();
        let secret = region.export(name, Rights::ALL).unwrap();
        let import = session.import(name, None, &secret).unwrap();
        let ring = session.raw_ring(RingOptions::new(64, 128)).unwrap();
        Self { session, region, import, ring }
    }

    fn transfer(&self, opcode: Opcode, bytes: u32) -> Sqe {
        Sqe {
            opcode: opcode as u8,
            local_region: self.region.id(),
            remote_region: self.import.id(),
            remote_offset: 512 << 10,
            bytes,
            ..Sqe::default()
        }
    }

    fn arm(&self, count: u32) -> Sqe {
        let local_region = self.region.id();
        Sqe { opcode: Opcode::Arm as u8, local_region, bytes: count, ..Sqe::default() }
    }

    fn pop(&mut self) -> Cqe {
        self.ring.submit_and_wait(1, None).unwrap();
        self.ring.pop().unwrap().unwrap()
    }

    fn run(&mut self, sqe: Sqe) -> Cqe {
        self.ring.push(sqe).unwrap();
        self.pop()
    }
}

/// An entry says what the completion said.
fn expect_same(entry: &LedgerEntry, cqe: &Cqe) {
    assert_eq!((entry.record, entry.user_data), (cqe.record, cqe.user_data));
    assert_eq!((entry.res, entry.flags, entry.detail), (cqe.res, cqe.flags, cqe.detail));
    let units = |time: Duration| time.as_nanos() / 16;
    if let (Some(queued), Some(service)) = (entry.queued, entry.service()) {
        assert_eq!(units(queued), u128::from(cqe.queued));
        assert_eq!(units(service), u128::from(cqe.service));
    }
}

/// A success, one taken back, one refused, a NOP, and a success without a completion.
fn some_ops(client: &mut Client) -> [Cqe; 3] {
    let write = client.transfer(Opcode::Write, 300_000);
    let write = client.run(Sqe { user_data: 7, class: Class::High as u8, ..write });
    let arm = Sqe { user_data: 8, ..client.arm(3) };
    let number = client.ring.push(arm).unwrap();
    let arg = [number, CANCEL_BY_NUMBER];
    client.ring.push(Sqe { opcode: Opcode::Cancel as u8, user_data: 9, arg, ..Sqe::default() });
    let mut ends = [client.pop(), client.pop()];
    ends.sort_by_key(|cqe| cqe.user_data);
    assert_eq!(client.run(Sqe { opcode: 99, ..Sqe::default() }).record, 0, "refused");
    assert_ne!(client.run(Sqe::default()).record, 0, "a NOP");
    let silent = client.transfer(Opcode::Read, 64);
    client.ring.push(Sqe { user_data: 10, flags: SQE_SKIP_SUCCESS, ..silent }).unwrap();
    client.run(Sqe { opcode: Opcode::Nop as u8, ..Sqe::default() });
    // It has no completion that would say that it is over.
    while !client.session.last_records().iter().any(|entry| entry.user_data == 10) {
        std::thread::yield_now();
    }
    let [arm, cancel] = ends;
    [write, arm, cancel]
}

fn expect_some_ops(found: &[LedgerEntry], cqes: &[Cqe; 3]) {
    let mut seen: Vec<u64> = found.iter().map(|entry| entry.user_data).collect();
    seen.sort_unstable();
    assert_eq!(seen, [7, 8, 9, 10], "no NOP, and nothing refused");
    for cqe in cqes {
        expect_same(found.iter().find(|entry| entry.record == cqe.record).unwrap(), cqe);
    }
    let write = &found[0];
    assert_eq!((write.opcode, write.class), (Some(Opcode::Write), Some(Class::High)));
    assert_eq!((write.bytes, write.posts, write.rail), (300_000, 3, 0), "slices of 128 KiB");
    assert!(write.taken_ns > 0 && write.total >= write.queued.unwrap());
}

#[test]
fn a_killed_engines_records_are_read_by_its_client_and_through_it() {
    let mut daemon = Daemon::start(&[]);
    let mut client = Client::connect(&daemon.socket(), "killed");
    let cqes = some_ops(&mut client);
    // Open when it dies: nothing is said of it.
    client.ring.push(client.arm(1)).unwrap();
    client.ring.submit();
    let before = client.session.last_records();
    daemon.kill();
    let found = client.session.last_records();
    assert_eq!(found, before);
    expect_some_ops(&found, &cqes);
    let [write, arm, _] = &cqes;
    expect_same(&client.session.find_record(write.record).unwrap(), write);
    assert_eq!(client.session.find_record(1), None);
    let recorder = client.session.recorder().unwrap();
    let pid = std::process::id();
    assert_eq!(recorder.pids(), [daemon.child.id(), pid]);
    assert_eq!((recorder.boot_id(), recorder.capacity()), (client.session.boot_id(), 1_024));

    // Other tests of this process have sessions of their own, whose recorders are found as well.
    let through = Recorder::of_process(pid).unwrap();
    let same = |other: &&Recorder| other.boot_id() == recorder.boot_id();
    assert_eq!(through.iter().find(same).unwrap().records(), found);
    let pid = pid.to_string();
    let id = format!("{:#x}", write.record);
    let dead = ["--pid", &pid, "--json"];
    let (code, told, errors) = output(ledger(&[&id]).args(dead));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let stories = lines(&told);
    assert!(stories.iter().all(|story| story["record"] == write.record));
    assert!(stories.iter().any(|story| story["story"] == found[0].to_string()), "{told}");
    let (code, told, _) = output(&mut ledger(&[&arm.record.to_string(), "--pid", &pid]));
    assert_eq!(code, Some(0));
    for words in ["ARM of 3 notifications", "ECANCELED", "(cancelled)", "cause: ECANCELED"] {
        assert!(told.contains(words), "{words:?} is not in {told:?}");
    }
    let (code, told, errors) = output(ledger(&["5"]).args(dead));
    assert_eq!((code, told.as_str()), (Some(1), ""));
    assert!(errors.contains("record 0x5 is in none of"), "{errors}");
    assert!(errors.contains("still open when the engine died"), "{errors}");
}

#[test]
fn a_live_engine_tells_of_ops_that_are_over_and_of_open_ones() {
    let daemon = Daemon::start(&[]);
    let socket = daemon.socket();
    let at = ["--socket", socket.to_str().unwrap()];
    let mut client = Client::connect(&socket, "live");
    let cqes = some_ops(&mut client);
    let (code, told, errors) = output(ledger(&["--last", "20", "--json"]).args(at));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let told = lines(&told);
    assert_eq!(told.len(), 4);
    let write = told.iter().find(|story| story["record"] == cqes[0].record).unwrap();
    assert_eq!((&write["opcode"], &write["class"]), (&"Write".into(), &"high".into()));
    assert_eq!((&write["posts"], &write["res"]), (&3.into(), &300_000.into()));
    assert_eq!((&write["cause"], &write["detail"]), (&0.into(), &Value::Null));
    let ended =
        |story: &Value| story["taken_ns"].as_u64().unwrap() + story["total_ns"].as_u64().unwrap();
    assert!(told.is_sorted_by_key(ended), "oldest first");
    let (_, two, _) = output(ledger(&["--last", "2", "--json"]).args(at));
    assert_eq!(lines(&two), told[2..]);
    let (_, text, _) = output(ledger(&[&cqes[0].record.to_string()]).args(at));
    assert!(text.contains("ago, session 0: record ") && text.contains("300000 bytes"), "{text}");

    // What is open is asked of the engine.
    let arm = client.arm(2);
    let number = client.ring.push(arm).unwrap();
    client.ring.submit();
    let record = std::iter::repeat_with(|| {
        client.session.why(verbring::client::OpRef::number(client.ring.number(), number))
    });
    let record = record.filter_map(Result::ok).next().unwrap().record.to_string();
    let (code, told, _) = output(ledger(&[&record]).args(at));
    assert_eq!(code, Some(0));
    assert!(told.contains("is not over. It is armed for"), "{told}");
    assert!(told.contains("waits for a notification"), "{told}");
    let (_, told, _) = output(ledger(&[&record, "--json"]).args(at));
    assert_eq!(lines(&told)[0]["state"], "armed");
    let (code, _, errors) = output(ledger(&["77"]).args(at));
    assert_eq!(code, Some(1));
    assert!(errors.contains("or it never was") && !errors.contains("died"), "{errors}");
    // A session that is over has no records any more.
    drop(client);
    let mut seen = String::from("-");
    while !seen.is_empty() {
        (_, seen, _) = output(ledger(&["--last", "20"]).args(at));
    }
}

#[test]
fn completions_under_load_have_their_entry() {
    let daemon = Daemon::start(&["--recorder-entries", "256"]);
    let mut client = Client::connect(&daemon.socket(), "load");
    let (mut pushed, mut done) = (0, 0);
    while done < 20_000 {
        while pushed < done + 64 {
            let opcode = if pushed % 2 == 0 { Opcode::Write } else { Opcode::Read };
            let sqe = Sqe { user_data: pushed, ..client.transfer(opcode, 512) };
            client.ring.push(sqe).unwrap();
            pushed += 1;
        }
        client.ring.submit_and_wait(1, None).unwrap();
        let mut last = None;
        while let Some(cqe) = client.ring.pop().unwrap() {
            done += 1;
            last = Some(cqe);
        }
        // At most 64 are in flight, so that 256 places hold it still.
        if let Some(cqe) = last {
            expect_same(&client.session.find_record(cqe.record).unwrap(), &cqe);
        }
    }
    let found = client.session.last_records();
    assert!(found.len() >= 255, "{}", found.len());
    assert!(found.is_sorted_by_key(LedgerEntry::ended_ns), "oldest first");
}

#[test]
fn who_does_not_want_a_recorder_has_none() {
    let daemon = Daemon::start(&[]);
    let socket = daemon.socket();
    let session = Session::connect_unrecorded(&socket).unwrap();
    assert!(session.recorder().is_none() && session.last_records().is_empty());
    assert!(session.recorders().unwrap().is_empty());

    let daemon = Daemon::start(&["--recorder-entries", "0"]);
    let socket = daemon.socket();
    let mut client = Client::connect(&socket, "off");
    let write = client.transfer(Opcode::Write, 64);
    let cqe = client.run(write);
    assert_eq!((cqe.res, client.session.find_record(cqe.record)), (64, None));
    let refusal = client.session.recorders().unwrap_err();
    assert_eq!(refusal.refusal().unwrap().errno, errno::EOPNOTSUPP);
    let (code, _, errors) =
        output(&mut ledger(&["--last", "3", "--socket", socket.to_str().unwrap()]));
    assert_eq!(code, Some(1));
    assert!(errors.contains("keeps no flight recorders"), "{errors}");
}

/// The engine writes to it for as long as the session lives, and must not come to harm by it.
#[test]
fn a_client_cannot_change_its_recorder() {
    let daemon = Daemon::start(&["--recorder-entries", "64"]);
    let mut client = Client::connect(&daemon.socket(), "sealed");
    let bytes = 4096 + 64 * 64;
    let boot_id = client.session.boot_id();
    let own = std::fs::read_dir("/proc/self/fd").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let name = std::fs::read_link(&path).ok()?;
        name.to_str()?.starts_with("/memfd:verbring-recorder").then_some(())?;
        let file = File::options().read(true).write(true).open(path).ok()?;
        let recorder = Recorder::open(file.try_clone().ok()?.into()).ok()?;
        (recorder.boot_id() == boot_id).then_some(file)
    });
    let mut file = own.unwrap();
    assert_eq!(file.metadata().unwrap().len(), bytes);
    assert!(Mapping::shared(file.as_fd(), bytes).is_err(), "mapped for writing");
    assert_eq!(file.write(&[0; 8]).unwrap_err().raw_os_error(), Some(1), "EPERM");
    assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err(), "resized");
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert!(fallocate(&file, hole, 0, 4096).is_err(), "a hole");
    let write = client.transfer(Opcode::Write, 64);
    let cqe = client.run(write);
    expect_same(&client.session.find_record(cqe.record).unwrap(), &cqe);
}

/// 1,024 entries and a header page are 68 KiB.
#[test]
fn a_recorder_is_charged_to_its_uid_and_given_back() {
    let daemon = Daemon::start(&["--quota-region-bytes", "100KiB"]);
    let socket = daemon.socket();
    let first = Session::connect(&socket).unwrap();
    assert!(first.recorder().is_some());
    let second = Session::connect(&socket).unwrap();
    assert!(second.recorder().is_none(), "but it is a session");
    let refused = first.alloc(64 << 10).unwrap_err();
    let refusal = refused.refusal().unwrap();
    assert_eq!((refusal.errno, refusal.detail), (errno::EDQUOT, Detail::Quota));
    drop(first);
    // The engine hears of the end when it hears of it.
    while Session::connect(&socket).unwrap().recorder().is_none() {}
    while second.alloc(64 << 10).is_err() {}
}

/// Root may see all; another uid sees its own. Only root can try that.
#[test]
fn another_uid_sees_nothing() {
    if !nix::unistd::geteuid().is_root() {
        println!("not tried: it takes root to be somebody else");
        return;
    }
    let daemon = Daemon::start(&["--socket-mode", "0666"]);
    let socket = daemon.socket();
    let at = ["--socket", socket.to_str().unwrap()];
    let mut client = Client::connect(&socket, "mine");
    let cqes = some_ops(&mut client);
    let sqe = client.arm(2);
    client.ring.push(sqe).unwrap();
    client.ring.submit();
    // The command itself must be where the other uid can run it. `cp` writes it, not this process:
    // what another test's thread forks meanwhile would hold it open for writing (ETXTBSY).
    let command = daemon.dir.join("verbring");
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_verbring")).arg(&command).status();
    assert!(copied.unwrap().success());
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new(&command);
        command.env_clear().arg("ledger").args(args).args(at).uid(65_534).gid(65_534);
        output(&mut command)
    };
    let (code, told, errors) = as_nobody(&["--last", "20"]);
    assert_eq!((code, told.as_str(), errors.as_str()), (Some(0), "", ""));
    let why = std::iter::repeat_with(|| {
        client.session.why(verbring::client::OpRef::user_data(client.ring.number(), 0))
    });
    let open = why.filter_map(Result::ok).next().unwrap().record;
    for record in [cqes[0].record, open] {
        let (code, told, errors) = as_nobody(&[&record.to_string()]);
        assert_eq!((code, told.as_str()), (Some(1), ""));
        assert!(errors.contains("none of 0 flight recorders"), "{errors}");
        let (code, _, _) = output(ledger(&[&record.to_string()]).args(at));
        assert_eq!(code, Some(0), "root");
    }
}
