//! A real file from one engine to another and back, in every language: each of Rust, C and Python
//! holds memory at one engine, and each of them fills it through the other.
//!
//! `VERBRING_TEST_BINARY` is the command `verbring`, `VERBRING_TEST_COPIES` how to start the
//! example `copy` in each language: `rust=/path;c=/path;python=/usr/bin/python3 /path`.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::side::{Place, places};

/// Of the file: taken from the command itself.
const BYTES: usize = 8 << 20;

/// An engine in a process of its own, which ends with this.
struct Serve {
    process: Child,
    socket: PathBuf,
}

impl Serve {
    fn on(place: &Place, directory: &Path, name: &str) -> Self {
        let binary = env::var("VERBRING_TEST_BINARY").expect("VERBRING_TEST_BINARY");
        let socket = directory.join(format!("{name}.sock"));
        let device = format!("{}:{}", place.device, place.settings.port);
        let mut process = Command::new(binary)
            .args(["serve", "--json", "--verbs", "require", "--verbs-device", &device])
            .args(["--verbs-gid", &place.settings.gid_index.to_string(), "--socket"])
            .arg(&socket)
            // They are this test's, and no settings.
            .env_remove("VERBRING_TEST_BINARY")
            .env_remove("VERBRING_TEST_COPIES")
            .stdout(Stdio::piped())
            .spawn()
            .expect("verbring serve");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("a line once it listens");
        assert!(socket.exists(), "it does not listen: {line}");
        Self { process, socket }
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How to start the example in one language.
fn languages() -> Vec<(String, Vec<String>)> {
    let text = env::var("VERBRING_TEST_COPIES").expect("VERBRING_TEST_COPIES");
    let each = text.split(';').map(|entry| {
        let (name, command) = entry.split_once('=').expect("NAME=COMMAND");
        (name.to_string(), command.split(' ').map(str::to_string).collect())
    });
    each.collect()
}

fn start(command: &[String], args: &[&str]) -> Child {
    Command::new(&command[0])
        .args(&command[1..])
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .expect("an example")
}

fn packets(device: &str) -> u64 {
    let path = format!("/sys/class/infiniband/{device}/ports/1/hw_counters/sent_pkts");
    fs::read_to_string(path).expect("Soft-RoCE's counters").trim().parse().expect("a number")
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn every_language_moves_a_file_both_ways_between_two_engines() {
    let [first, second] = places();
    let directory = env::temp_dir().join(format!("verbring-files-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let path = |name: &str| directory.join(name).to_str().expect("a path").to_string();
    let (file, out, back) = (path("file"), path("out"), path("back"));
    let mut content = fs::read(env::var("VERBRING_TEST_BINARY").expect("a binary")).expect("it");
    content.truncate(BYTES);
    assert_eq!(content.len(), BYTES, "a file of 8 MiB");
    fs::write(&file, &content).expect("written");
    let ours = Serve::on(&first, &directory, "first");
    let theirs = Serve::on(&second, &directory, "second");
    let socket = |serve: &Serve| serve.socket.to_str().expect("a path").to_string();
    let (ours, theirs) = (socket(&ours), socket(&theirs));
    let url = format!("unix:{theirs}");
    let languages = languages();
    assert_eq!(languages.len(), 3, "Rust, C and Python");
    for (at, (sender, send)) in languages.iter().enumerate() {
        // Each sends once and holds once, to and from another language.
        let (holder, hold) = &languages[(at + 1) % languages.len()];
        let before = [packets(&first.device), packets(&second.device)];
        let name = format!("{sender}-to-{holder}");
        let mut holding = start(hold, &[&theirs, "hold", &name, &BYTES.to_string(), &out]);
        let mut lines = BufReader::new(holding.stdout.take().expect("its output")).lines();
        let ready = lines.next().expect("a line").expect("text");
        let secret = ready.strip_prefix("ready ").expect("the secret").to_string();
        let args = ["send", &name, &secret, &file, &back, "--peer", &url, "--fabric", "2"];
        let mut sending = start(send, &[&[ours.as_str()], &args[..]].concat());
        assert!(sending.wait().expect("its end").success(), "{name}: the sender failed");
        assert!(holding.wait().expect("its end").success(), "{name}: the holder failed");
        for (what, copy) in [("what came back", &back), ("what was held", &out)] {
            assert_eq!(digest(copy), digest(&file), "{name}: {what}");
        }
        let moved = [packets(&first.device), packets(&second.device)]
            .iter()
            .zip(before)
            .map(|(after, before)| after - before)
            .collect::<Vec<_>>();
        // A packet carries at most 4 KiB; each way the whole file went.
        let least = (BYTES / 4096) as u64;
        assert!(moved.iter().all(|&moved| moved >= least), "{name}: {moved:?} packets");
        eprintln!("{name}: 8 MiB there and back, {moved:?} packets, sha256 {}", digest(&file));
    }
    fs::remove_dir_all(&directory).expect("removed");
}

fn digest(path: &str) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum");
    let text = String::from_utf8(output.stdout).expect("hex");
    text.split(' ').next().expect("a digest").to_string()
}
