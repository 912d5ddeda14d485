//! The `verbring` command as people and programs meet it.
//!
//! Claimed: settings are layered and refused as documented; `abi` is the frozen table; the daemon
//! drains on a signal and leaves no socket; the demo tells the truth about a real file and fails
//! plainly, in bounded time, whatever becomes of its clients. Tried by running the binary, with
//! its output, exit code and leavings looked at.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sha2::{Digest, Sha256};
use verbring::abi::errno::ESHUTDOWN;
use verbring::{Rights, RingOptions, Session, Write};

/// A directory of one test, gone with the value.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("verbring-cli-{}-{count}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn entries(&self) -> usize {
        std::fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that does not outlive its test.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill(pid(self.0.id()), signal).unwrap();
    }

    /// Waits for the end, and has what was said on standard error.
    fn end(&mut self) -> (std::process::ExitStatus, String) {
        let mut errors = String::new();
        if let Some(mut pipe) = self.0.stderr.take() {
            pipe.read_to_string(&mut errors).unwrap();
        }
        (self.0.wait().unwrap(), errors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap())
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

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn json(text: &str) -> Value {
    assert_eq!(text.lines().count(), 1, "not one object: {text}");
    serde_json::from_str(text).unwrap()
}

/// Looks again and again until it is so; what depends on other processes has no other way.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "waited in vain for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a daemon and waits until it listens.
fn serve(socket: &Path, more: &[&str]) -> (Running, String) {
    let child = verbring()
        .args(["serve", "--socket"])
        .arg(socket)
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let mut line = String::new();
    let stdout = running.0.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    if line.is_empty() {
        let (status, errors) = running.end();
        panic!("the daemon did not start: {status}: {errors}");
    }
    (running, line)
}

fn printed(command: &mut Command) -> Value {
    let (code, out, errors) = output(command.args(["--print-config", "--json"]));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    json(&out)
}

#[test]
fn devices_are_told_on_any_machine() {
    let (code, out, errors) = output(verbring().args(["devices", "--why"]));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(out.contains("local  usable"), "{out}");
    let (code, out, _) = output(verbring().args(["devices", "--json"]));
    assert_eq!(code, Some(0));
    let told: Value = serde_json::from_str(&out).unwrap();
    // Usable, or a line that says what to do: never both, never neither.
    let verbs = &told["fabrics"][1];
    assert_eq!(verbs["name"], "verbs");
    assert_eq!(verbs["usable"], told["chosen"].is_object());
    assert_eq!(verbs["usable"], verbs["obstacle"].is_null());
    let (code, _, errors) = output(verbring().args(["devices", "--device", "no_such_card"]));
    assert_eq!(code, Some(1));
    assert!(errors.contains("what was asked for cannot be used"), "{errors}");
    let (code, _, _) = output(verbring().args(["devices", "--device", "no_such_card:0"]));
    assert_eq!(code, Some(2), "ports count from 1");
}

#[test]
fn abi_is_the_frozen_table() {
    let frozen = include_str!("abi.table");
    let (code, out, errors) = output(verbring().arg("abi"));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(out, frozen);
    let (code, out, _) = output(verbring().args(["abi", "--json"]));
    assert_eq!(code, Some(0));
    let told: BTreeMap<String, u64> = serde_json::from_str(&out).unwrap();
    let expected: BTreeMap<String, u64> = frozen
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, value)| (name.to_string(), value.parse().unwrap()))
        .collect();
    assert_eq!(told, expected);
}

#[test]
fn settings_come_from_default_file_environment_and_flag() {
    let dir = Dir::new();
    let file = dir.file("v.toml", "records = 100\nwindow_ops = 7\nspin_us = 1\n");
    let mut command = verbring();
    command.arg("serve").arg("--config").arg(&file).args(["--spin-us", "3"]);
    command.env("VERBRING_WINDOW_OPS", "8").env("VERBRING_SPIN_US", "2");
    let told = printed(&mut command);
    let row = |key: &str| (told[key]["value"].clone(), told[key]["from"].clone());
    let file = file.display();
    assert_eq!(row("records"), (100.into(), format!("{file}:1").into()));
    assert_eq!(row("window_ops"), (8.into(), "environment VERBRING_WINDOW_OPS".into()));
    assert_eq!(row("spin_us"), (3.into(), "flag --spin-us".into()));
    assert_eq!(row("slice_bytes"), (131_072.into(), "default".into()));
    assert_eq!(row("socket"), (Value::Null, "default".into()));
}

#[test]
fn the_printed_configuration_is_a_file_that_gives_it_again() {
    let dir = Dir::new();
    let mut command = verbring();
    command.args(["serve", "--print-config", "--pin=0", "--quota-class-ceiling", "medium"]);
    let (code, text, _) = output(command.args(["--socket", "/tmp/x.sock"]));
    assert_eq!(code, Some(0));
    assert!(text.contains("pin = 0 ") && text.contains("# flag --pin"), "{text}");
    let file = dir.file("again.toml", &text);
    let told = printed(verbring().arg("serve").arg("--config").arg(file));
    assert_eq!(told["pin"]["value"], 0);
    assert_eq!(told["quota.class_ceiling"]["value"], "medium");
    assert_eq!(told["socket"]["value"], "/tmp/x.sock");
}

/// What single uids may have of their own goes the same ways, and PROBE says what is in force.
#[test]
fn a_uid_has_its_own_contract_and_is_told_so() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    let uid = nix::unistd::geteuid().as_raw();
    let text = format!("[quota]\nops = 77\n[uid.{uid}]\nrings = 5\nclass_ceiling = \"low\"\n");
    let file = dir.file("uid.toml", &text);
    let file = file.to_str().unwrap();
    let set = format!("uid.{uid}.weight=4");
    let other = format!("uid.{}.weight=3", uid + 1);
    let told = printed(verbring().args(["serve", "--config", file, "--set", &set]));
    assert_eq!(told[format!("uid.{uid}.weight")]["from"], format!("flag --set uid.{uid}.weight"));
    assert_eq!(told[format!("uid.{uid}.rings")]["from"], format!("{file}:4"));
    let asked = |more: &[&str]| {
        let (mut daemon, _) = serve(&socket, more);
        let ask = |json| output(verbring().arg("probe").args(json).arg("--socket").arg(&socket)).1;
        let (text, told) = (ask(&[][..]), json(&ask(&["--json"])));
        daemon.signal(Signal::SIGTERM);
        daemon.end();
        (text, told)
    };
    let (text, told) = asked(&["--config", file, "--set", &set]);
    assert!(text.contains(&format!("contract                       uid {uid}\n")), "{text}");
    assert_eq!(told["contract"], format!("uid.{uid}"));
    assert_eq!((told["uid"].as_u64(), told["weight"].as_u64()), (Some(uid.into()), Some(4)));
    assert_eq!((told["ops_max"].as_u64(), told["rings_max"].as_u64()), (Some(77), Some(5)));
    assert_eq!(told["class_ceiling"], "low");
    let (text, told) = asked(&["--set", &other, "--quota-weight", "2"]);
    assert!(
        text.contains("contract                       quota, the default for all uids\n"),
        "{text}"
    );
    assert_eq!((told["contract"].as_str(), told["weight"].as_u64()), (Some("quota"), Some(2)));
    let (code, _, errors) = output(verbring().args(["serve", "--set", "uid.x.weight=4"]));
    assert_eq!(code, Some(2));
    assert!(errors.contains("flag --set uid.x.weight=4: uid is \"x\", but must be"), "{errors}");
}

#[test]
fn bad_settings_are_refused_with_all_it_takes_to_mend_them() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    for (text, expected) in [
        ("windowops = 8\n", "x.toml:1: unknown key windowops; the nearest known one is window_ops"),
        (
            "\n[quota]\nring = 8\n",
            "x.toml:3: unknown key quota.ring; the nearest known one is \
            quota.rings",
        ),
        ("window_ops = 0\n", "x.toml:1: window_ops is 0, but must be 1 to 4096"),
        (
            "window_ops = \"8\"\n",
            "x.toml:1: window_ops is the string \"8\", but must be a whole \
            number, 1 to 4096",
        ),
        ("window_ops = \n", "x.toml:1: "),
    ] {
        let file = dir.file("x.toml", text);
        let mut command = verbring();
        command.arg("serve").arg("--socket").arg(&socket).arg("--config").arg(&file);
        let (code, out, errors) = output(&mut command);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{text}");
        assert!(errors.contains(expected), "{errors}");
        assert!(!socket.exists());
    }
    let (code, _, errors) = output(verbring().args(["serve", "--records=63"]));
    assert_eq!(code, Some(2));
    assert!(errors.contains("flag --records: records is 63, but must be 64 to 16777216"));
    let (code, _, errors) = output(verbring().args(["serve", "--config", "/nowhere/x.toml"]));
    assert_eq!(code, Some(2));
    assert!(errors.contains("cannot read /nowhere/x.toml: No such file"), "{errors}");
    let (code, _, errors) = output(verbring().arg("serve"));
    assert_eq!(code, Some(2));
    assert!(errors.contains("nowhere to listen"), "{errors}");
    let (code, _, errors) =
        output(verbring().args(["serve", "--log", "a=b=c", "--socket"]).arg(&socket));
    assert_eq!(code, Some(2), "{errors}");
    let mut misspelt = verbring();
    misspelt.env("VERBRING_RECORD", "64").args(["serve", "--print-config"]);
    let (code, _, errors) = output(&mut misspelt);
    assert_eq!(code, Some(0));
    assert!(
        errors.contains(
            "VERBRING_RECORD is no setting and is ignored; did you mean \
        VERBRING_RECORDS?"
        ),
        "{errors}"
    );
}

#[test]
fn a_daemon_is_asked_and_ends_without_a_trace() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut daemon, line) = serve(&socket, &["--window-ops", "9"]);
        assert_eq!(line, format!("listening on {}\n", socket.display()));

        let (code, out, _) = output(verbring().args(["stat", "--json", "--socket"]).arg(&socket));
        assert_eq!(code, Some(0));
        let stat = json(&out);
        assert_eq!((&stat["sessions"], &stat["rings"]), (&1.into(), &0.into()));
        assert_eq!(stat["records"], 16_384);
        let (code, out, _) = output(verbring().args(["stat", "--socket"]).arg(&socket));
        assert_eq!(code, Some(0));
        assert!(out.lines().any(|line| line.starts_with("sessions ")), "{out}");

        let (code, out, _) = output(verbring().args(["probe", "--json", "--socket"]).arg(&socket));
        assert_eq!(code, Some(0));
        let probe = json(&out);
        assert_eq!(probe["window_ops"], 9);
        assert_eq!(probe["pid"], daemon.0.id());
        let opcodes = probe["opcodes"].as_array().unwrap();
        assert!(opcodes.contains(&"WRITE".into()) && !opcodes.contains(&"RUN".into()));
        let (_, out, _) = output(verbring().args(["probe", "--socket"]).arg(&socket));
        assert!(out.lines().any(|line| line.starts_with("opcodes ") && line.contains(" WRITE ")));

        daemon.signal(signal);
        let (status, errors) = daemon.end();
        assert_eq!(status.code(), Some(0), "{errors}");
        assert!(errors.contains("draining"), "{errors}");
        assert!(!socket.exists());
    }
}

/// Two signals wait for a daemon that stands still: the first starts the drain, the second ends
/// the process in its midst.
#[test]
fn a_second_signal_ends_at_once() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    let (mut daemon, _) = serve(&socket, &[]);
    for signal in [Signal::SIGSTOP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGCONT] {
        daemon.signal(signal);
    }
    let (status, errors) = daemon.end();
    // The lower number is taken first.
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32), "{errors}");
    assert!(errors.contains("draining"), "{errors}");
}

#[test]
fn counters_are_watched_until_the_engine_ends() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    let (mut daemon, _) = serve(&socket, &[]);
    let mut watch = verbring();
    watch.args(["stat", "--json", "--watch=0.01", "--socket"]).arg(&socket);
    let child = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut watch = Running(child);
    let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    // The engine writes the page a little later than it lets a session in.
    let mut looks = 0;
    while looks < 3 {
        let look = json(&lines.next().unwrap().unwrap());
        assert_eq!(look["lanes"].as_array().unwrap().len(), 6);
        let own = look["sessions"].as_array().unwrap().len();
        assert!(own <= 1 && own >= usize::from(looks > 0), "its own: {look}");
        looks += own;
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.end().0.success());
    let (status, errors) = watch.end();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("the engine is gone"), "{errors}");
}

/// Without a card there is nothing to tell, and that is told: why, and what to do.
#[test]
fn an_engine_without_peers_says_so() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    let (mut daemon, _) = serve(&socket, &["--verbs", "off"]);
    let (code, out, errors) = output(verbring().args(["peers", "--socket"]).arg(&socket));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(out.starts_with("no peers: verbs is not in use here"), "{out}");
    assert!(out.contains("verbring devices --why"), "{out}");
    let (code, out, _) = output(verbring().args(["peers", "--json", "--socket"]).arg(&socket));
    assert_eq!(code, Some(0));
    let told = json(&out);
    assert_eq!((&told["verbs"], &told["peers"]), (&false.into(), &Value::Array(Vec::new())));

    let mut watch = verbring();
    watch.args(["peers", "--json", "--watch=0.01", "--socket"]).arg(&socket);
    let child = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut watch = Running(child);
    let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    assert_eq!(json(&lines.next().unwrap().unwrap())["seconds"], Value::Null);
    assert!(json(&lines.next().unwrap().unwrap())["seconds"].as_f64().unwrap() > 0.0);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.end().0.success());
    let (status, errors) = watch.end();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("the engine is gone"), "{errors}");
}

/// What is known of other engines is for whoever runs this one. Only root can try that.
#[test]
fn another_uid_is_told_nothing_of_peers() {
    if !nix::unistd::geteuid().is_root() {
        println!("not tried: it takes root to be somebody else");
        return;
    }
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    let _daemon = serve(&socket, &["--verbs", "off", "--socket-mode", "0666"]);
    // The command itself must be where the other uid can run it. `cp` writes it, not this process:
    // what another test's thread forks meanwhile would hold it open for writing (ETXTBSY).
    let command = dir.0.join("verbring");
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_verbring")).arg(&command).status();
    assert!(copied.unwrap().success());
    let mut command = Command::new(&command);
    command.env_clear().args(["peers", "--socket"]).arg(&socket).uid(65_534).gid(65_534);
    let (code, out, errors) = output(&mut command);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains("is for uid 0 and root: ask as one of them"), "{errors}");
}

#[test]
fn a_second_engine_takes_a_dead_ones_socket_and_no_live_ones() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    let (mut killed, _) = serve(&socket, &[]);
    killed.signal(Signal::SIGKILL);
    assert_eq!(killed.end().0.signal(), Some(9));
    assert!(socket.exists());

    let (mut daemon, _) = serve(&socket, &[]);
    let (code, out, errors) = output(verbring().args(["serve", "--socket"]).arg(&socket));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains(&socket.display().to_string()), "{errors}");
    let (code, ..) = output(verbring().args(["stat", "--socket"]).arg(&socket));
    assert_eq!(code, Some(0), "the first must still serve");

    let plain = dir.file("plain", "mine");
    let (code, ..) = output(verbring().args(["serve", "--socket"]).arg(&plain));
    assert_eq!(code, Some(1));
    assert_eq!(std::fs::read(&plain).unwrap(), b"mine", "a file that is no socket stays");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.end().0.success());
}

#[test]
fn nobody_there_is_said_plainly() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    for verb in ["stat", "probe", "peers"] {
        let (code, out, errors) = output(verbring().args([verb, "--socket"]).arg(&socket));
        assert_eq!((code, out.as_str()), (Some(1), ""));
        assert!(errors.contains("no engine at") && errors.contains("No such file"), "{errors}");
    }
}

#[test]
fn a_key_is_made_once_and_told_to_nobody() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new();
    let file = dir.0.join("key");
    let (code, out, errors) = output(verbring().arg("key").arg(&file));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let key = std::fs::read_to_string(&file).unwrap();
    let digits = key.trim_end();
    assert!(digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{key}");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(out.contains("--psk-file FILE") && out.contains("every host"), "{out}");
    assert!(!out.contains(digits), "the key is in the file alone");
    // A second one would lock out whoever has the first.
    let (code, out, errors) = output(verbring().args(["key", "--json"]).arg(&file));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    let named = format!("FILE is {}, which exists and stays as it is: give", file.display());
    assert!(errors.contains(&named), "{errors}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), key);
    let (code, _, errors) = output(verbring().arg("key").arg(dir.0.join("no/where")));
    assert!(code == Some(1) && errors.contains("cannot make a key"), "{errors}");
    let (code, out, errors) = output(verbring().args(["key", "--json"]).arg(dir.0.join("other")));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(json(&out)["key_file"], dir.0.join("other").to_str().unwrap());

    let socket = dir.0.join("socket");
    let with_key = ["--listen", "127.0.0.1:0", "--psk-file", file.to_str().unwrap(), "--json"];
    let (daemon, line) = serve(&socket, &with_key);
    assert!(json(&line)["listen"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    drop(daemon);
}

#[test]
fn what_cannot_be_between_hosts_is_refused_before_anything_starts() {
    let url = "verbring://127.0.0.1:1";
    let digits = "ab".repeat(32);
    let own = "is for --offer and --peer: without them";
    for (arguments, expected) in [
        (vec!["--offer"], "--socket is missing: give the path"),
        (vec!["--peer", url], "--socket is missing: give the path"),
        (vec!["--socket", "/s"], own),
        (vec!["--secret", &digits], own),
        (vec!["--uid", "7"], own),
        (vec!["--offer", "--peer", url], "cannot be used with"),
        (vec!["--offer", "--socket", "/s", "--secret", &digits], "--secret is for --peer"),
        (vec!["--offer", "--socket", "/s", "--uid", "7"], "--uid is for --peer"),
        (vec!["--peer", url, "--socket", "/s"], "--secret is missing: give what --offer printed"),
        (vec!["--peer", url, "--socket", "/s", "--secret", "beef"], "--secret has 4 characters"),
        (vec!["--peer", url, "--socket", "/s", "--secret", "-"], "from standard input, has 0"),
    ] {
        for verb in ["demo", "bench"] {
            let (code, out, errors) = output(verbring().arg(verb).args(&arguments));
            assert_eq!((code, out.as_str()), (Some(2), ""), "{verb} {arguments:?}: {errors}");
            assert!(errors.contains(expected), "{verb} {arguments:?}: {errors}");
        }
    }
    for (arguments, expected) in [
        (vec!["--peer", url, "--op", "nop"], "--op is nop, but must be one that moves bytes"),
        (vec!["--peer", url, "--fabric", "verbs"], "cannot be used with"),
        (vec!["--offer", "--size", "64"], "cannot be used with"),
        (vec!["--offer", "--working-set", "5"], "--working-set is 5, but must be a multiple of"),
        (vec!["--offer", "--working-set", "5G"], "up to 4294967296 with --offer"),
    ] {
        let (code, out, errors) = output(verbring().arg("bench").args(&arguments));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
    let (code, _, errors) = output(verbring().args(["demo", "--offer", "--file", "/f"]));
    assert!(code == Some(2) && errors.contains("cannot be used with"), "{errors}");
}

#[test]
fn an_engine_without_a_card_says_that_it_reaches_no_other_host() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    let path = socket.to_str().unwrap();
    let digits = dir.file("secret", "ab".repeat(32));
    let ends = [vec!["--offer"], vec!["--peer", "verbring://127.0.0.1:1", "--secret", "-"]];
    let run = |verb: &str, end: &[&str]| {
        let secret = std::fs::File::open(&digits).unwrap();
        output(verbring().arg(verb).args(end).args(["--socket", path]).stdin(secret))
    };
    for (verb, end) in
        ["demo", "bench"].into_iter().flat_map(|verb| ends.iter().map(move |end| (verb, end)))
    {
        let (code, _, errors) = run(verb, end);
        assert_eq!(code, Some(1), "{errors}");
        assert!(errors.contains("no engine at") && errors.contains(path), "{errors}");
    }
    let (daemon, _) = serve(&socket, &["--verbs", "off"]);
    for (verb, end) in
        ["demo", "bench"].into_iter().flat_map(|verb| ends.iter().map(move |end| (verb, end)))
    {
        let (code, _, errors) = run(verb, end);
        assert_eq!(code, Some(1), "{errors}");
        let named = format!("--socket is {path}, whose engine does not use verbs");
        assert!(errors.contains(&named) && errors.contains("--verbs require"), "{errors}");
        // By the environment, which other users of a machine do not see.
        let (code, _, errors) =
            output(verbring().arg(verb).args(&end[..end.len().min(2)]).envs([
                ("VERBRING_SOCKET", path.to_string()),
                ("VERBRING_SECRET", "cd".repeat(32)),
            ]));
        assert!(code == Some(1) && errors.contains(&named), "{errors}");
    }
    drop(daemon);
}

/// Every op that was submitted ends with exactly one completion, although SIGTERM comes while most
/// of them are queued: those already posted succeed, the rest is told that the engine is closing.
#[test]
fn sigterm_drains() {
    let dir = Dir::new();
    let socket = dir.0.join("socket");
    let (mut daemon, _) = serve(&socket, &[]);
    let session = Session::connect(&socket).unwrap();
    const OPS: u64 = 64;
    const BYTES: u64 = 1 << 20;
    let near = session.alloc(OPS * BYTES).unwrap();
    let far = session.alloc(OPS * BYTES).unwrap();
    let secret = far.export("drain", Rights::ALL).unwrap();
    let import = session.import("drain", None, &secret).unwrap();
    let mut ring = session.ring(RingOptions::new(64, 64)).unwrap();
    for at in 0..OPS {
        let mut lease = near.lend(at * BYTES..(at + 1) * BYTES).unwrap();
        lease.fill(u8::try_from(at).unwrap() + 1);
        ring.push(Write::new(lease, import.at(at * BYTES))).unwrap();
    }
    ring.submit();
    ring.wait(1, None).unwrap();
    daemon.signal(Signal::SIGTERM);
    let mut succeeded = 0;
    for _ in 0..OPS {
        ring.wait(1, None).unwrap();
        let completion = ring.reap().unwrap().expect("one is ready");
        let at = completion.ticket.number();
        match completion.result {
            Ok(bytes) => {
                assert_eq!(u64::from(bytes), BYTES);
                let mut last = [0];
                let there = far.lend(at * BYTES..(at + 1) * BYTES).unwrap();
                there.read(BYTES - 1, &mut last);
                assert_eq!(u64::from(last[0]), at + 1);
                succeeded += 1;
            }
            Err(error) => assert_eq!(error.errno, ESHUTDOWN, "{error}"),
        }
    }
    assert!(succeeded >= 1);
    assert_eq!(ring.in_flight(), 0);
    let (status, errors) = daemon.end();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert!(!socket.exists());
}

/// Bytes in no pattern that a wrong offset would leave unchanged.
fn content(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs a demo whose temporary files go to a directory of their own, which must end up empty.
fn demo(arguments: &[&std::ffi::OsStr]) -> (Option<i32>, String, String) {
    let temporary = Dir::new();
    let outcome = output(verbring().arg("demo").args(arguments).env("TMPDIR", &temporary.0));
    assert_eq!(temporary.entries(), 0, "something is left behind");
    outcome
}

fn check_demo(told: &Value, expected: &[u8]) {
    assert_eq!(told["bytes"], expected.len());
    for side in ["sha256_sent", "sha256_received", "sha256_read_back"] {
        assert_eq!(told[side], sha256(expected), "{side}");
    }
    assert_eq!(told["fabric"], "local");
    assert_eq!(
        told["carried"],
        serde_json::json!([{ "fabric": "local", "rail": 0, "ops": told["ops"] }])
    );
    assert_eq!((&told["peer"], &told["mailbox_ops"]), (&Value::Null, &Value::Null));
    let record = |key: &str| {
        let text = told[key].as_str().unwrap();
        u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap()
    };
    assert!(record("first_record") != 0 && record("last_record") != 0);
    assert_ne!(record("first_record"), record("last_record"));
    let classes = told["classes"].as_array().unwrap();
    let names: Vec<_> = classes.iter().map(|class| class["class"].as_str().unwrap()).collect();
    assert_eq!(names, ["high", "medium", "low"]);
    let mut ops = 0;
    for class in classes {
        assert!(class["ops"].as_u64().unwrap() >= 2, "{class}");
        assert!(class["p50_ns"].as_u64().unwrap() > 0, "{class}");
        assert!(class["p99_ns"].as_u64() >= class["p50_ns"].as_u64(), "{class}");
        ops += class["ops"].as_u64().unwrap();
    }
    assert_eq!(told["ops"], ops);
    assert!(told["probe"]["ops"].as_u64().unwrap() >= 2, "{told}");
}

#[test]
fn demo_moves_files_of_all_sizes() {
    let dir = Dir::new();
    // Nothing; less than one byte a class; not a whole chunk; one window and its neighbours; more.
    for bytes in [0, 1, 2, 100_000, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, 20_000_003] {
        let content = content(bytes);
        let file = dir.file("file", &content);
        let (code, out, errors) = demo(&["--json".as_ref(), "--file".as_ref(), file.as_ref()]);
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{bytes} bytes");
        check_demo(&json(&out), &content);
    }
}

#[test]
fn demo_sends_its_own_program_by_default() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_verbring")).unwrap();
    let (code, out, errors) = demo(&["--json".as_ref()]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    check_demo(&json(&out), &program);
    let (code, out, errors) = demo(&[]);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "no bar without a terminal");
    assert!(out.contains(&sha256(&program)) && out.contains("fabric local"), "{out}");
}

#[test]
fn demo_repeats_for_some_seconds() {
    let dir = Dir::new();
    let file = dir.file("file", content(3 << 20));
    let arguments = ["--json".as_ref(), "--seconds=1".as_ref(), "--file".as_ref(), file.as_ref()];
    let (code, out, _) = demo(&arguments);
    assert_eq!(code, Some(0));
    let told = json(&out);
    let passes = told["passes"].as_u64().unwrap();
    assert!(passes > 1, "{told}");
    assert_eq!(told["bytes"], passes * (3 << 20));
    assert_eq!(
        told["bytes_moved"].as_u64().unwrap() - 64 * told["probe"]["ops"].as_u64().unwrap(),
        2 * passes * (3 << 20)
    );
}

#[test]
fn demo_refuses_what_it_cannot_send() {
    let dir = Dir::new();
    let missing = dir.0.join("missing");
    let (code, out, errors) = demo(&["--json".as_ref(), "--file".as_ref(), missing.as_ref()]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains("missing: No such file"), "{errors}");
    let (code, out, errors) = demo(&["--file".as_ref(), dir.0.as_ref()]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains("no regular file"), "{errors}");
    let (code, ..) = demo(&["--seconds".as_ref(), "0".as_ref()]);
    assert_eq!(code, Some(2));
}

/// A demo that runs until it is stopped, with both clients attached.
struct LongDemo {
    parent: Running,
    exporter: Pid,
    sender: Pid,
    temporary: Dir,
    _files: Dir,
}

impl LongDemo {
    fn start() -> Self {
        let (temporary, files) = (Dir::new(), Dir::new());
        let file = files.file("file", content(1 << 20));
        let mut command = verbring();
        command.args(["demo", "--json", "--seconds=3600", "--file"]).arg(file);
        command.env("TMPDIR", &temporary.0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let parent = Running(command.spawn().unwrap());
        let id = parent.0.id();
        let exporter = until("the exporter", || child_named(id, "verbring-demo-exporter"));
        let sender = until("the sender", || child_named(id, "verbring-demo-sender"));
        // The directory was there before the clients were.
        until("both clients to attach", || (temporary.entries() == 0).then_some(()));
        Self { parent, exporter, sender, temporary, _files: files }
    }

    /// The parent ends by itself, says why, and takes all with it.
    fn must_fail(mut self, expected: &str) {
        let (status, errors) = self.parent.end();
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(errors.contains(expected), "{errors}");
        for client in [self.exporter, self.sender] {
            assert!(kill(client, None).is_err(), "a client is left");
        }
        assert_eq!(self.temporary.entries(), 0);
    }
}

/// A child of process `parent` by its argument 0.
fn child_named(parent: u32, name: &str) -> Option<Pid> {
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let entry = entry.ok()?;
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the command in parentheses: state, then parent.
        let its_parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let is_it =
            its_parent == parent && arguments.split(|byte| *byte == 0).next()? == name.as_bytes();
        is_it.then(|| Pid::from_raw(number))
    })
}

#[test]
fn demo_fails_soon_if_a_client_is_killed() {
    let demo = LongDemo::start();
    kill(demo.sender, Signal::SIGKILL).unwrap();
    demo.must_fail("the sender ended early: signal 9");
    let demo = LongDemo::start();
    kill(demo.exporter, Signal::SIGKILL).unwrap();
    // The sender may notice first, by an op on a region that is gone.
    demo.must_fail("the ");
}

/// Somebody reaches into the exporter's memory while the file lies there: the digests differ, and
/// the demo says so.
#[test]
fn demo_fails_if_a_byte_is_wrong() {
    let mut demo = LongDemo::start();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", demo.exporter)).unwrap();
    let region = maps.lines().find(|line| line.contains("rw-s") && line.contains("memfd")).unwrap();
    let start = u64::from_str_radix(region.split('-').next().unwrap(), 16).unwrap();
    let memory = format!("/proc/{}/mem", demo.exporter);
    let memory = std::fs::OpenOptions::new().write(true).open(memory).unwrap();
    for byte in (0..=u8::MAX).cycle() {
        // Ends with the process.
        if memory.write_at(&[byte], start + 1_000).is_err() {
            break;
        }
        if demo.parent.0.try_wait().unwrap().is_some() {
            break;
        }
    }
    let mut told = String::new();
    demo.parent.0.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    let told = json(&told);
    let sides = ["sha256_sent", "sha256_received", "sha256_read_back"].map(|side| &told[side]);
    assert!(sides[1] != sides[0] || sides[2] != sides[0], "{told}");
    demo.must_fail("is not what was sent");
}

#[test]
fn demo_ends_on_a_signal() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let demo = LongDemo::start();
        demo.parent.signal(signal);
        demo.must_fail("interrupted");
    }
}

/// Not even kill -9 of the parent, and the engine with it, leaves a file or a process.
#[test]
fn demo_clients_do_not_outlive_their_parent() {
    let mut demo = LongDemo::start();
    demo.parent.signal(Signal::SIGKILL);
    assert_eq!(demo.parent.0.wait().unwrap().signal(), Some(9));
    for (client, name) in [(demo.exporter, "exporter"), (demo.sender, "sender")] {
        // Whoever adopts it may be slow to take its exit status: a zombie has no memory.
        until(name, || {
            let path = format!("/proc/{client}/statm");
            let pages = std::fs::read_to_string(path).unwrap_or_default();
            (pages.is_empty() || pages.starts_with("0 ")).then_some(())
        });
    }
    assert_eq!(demo.temporary.entries(), 0);
}
