//! Two engines joined as on two hosts: by TCP and a key that `verbring key` made, and by the
//! commands that people use for it. Each listens at the address of its own card.
//!
//! `VERBRING_TEST_BINARY` is the command `verbring`.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::engine::{Served, settle};
use super::side::{Place, places};

/// Of the file: taken from the command itself.
const BYTES: usize = 8 << 20;
/// Packets that a file of so many bytes takes at the least: one carries 4 KiB at the most.
const PACKETS: u64 = (BYTES / 4096) as u64;

fn verbring() -> Command {
    let mut command = Command::new(env::var("VERBRING_TEST_BINARY").expect("VERBRING_TEST_BINARY"));
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("VERBRING_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A directory with a file and a key in it, which goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = env::temp_dir().join(format!("verbring-hosts-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        let made = verbring().arg("key").arg(path.join("key")).output().expect("verbring key");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A command whose standard output is read line by line; it dies with the value.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("verbring");
        let lines = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, lines }
    }

    /// The next object that it prints.
    fn told(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// All objects up to its end, which must be a good one.
    fn rest(mut self) -> Vec<Value> {
        let mut text = String::new();
        self.lines.read_to_string(&mut text).expect("text");
        assert!(self.child.wait().expect("its end").success(), "{text}");
        let each = text.lines().map(|line| serde_json::from_str(line).expect("an object"));
        each.collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The two engines, and where the far one is reached.
struct Hosts {
    near: Served,
    far: Served,
    url: String,
    folder: Folder,
}

impl Hosts {
    fn start([first, second]: &[Place; 2]) -> Self {
        let folder = Folder::new();
        let key = folder.path("key");
        let serve = |name, place, at: &str| {
            Served::start(
                name,
                place,
                "exec",
                &["--listen", at, "--psk-file", &key, "--log", "warn"],
            )
        };
        let near = serve("near-host", first, "10.99.0.1:7471");
        let far = serve("far-host", second, "10.99.1.1:7472");
        Self { near, far, url: "verbring://10.99.1.1:7472".to_string(), folder }
    }

    /// A command at the far engine that offers memory, and what it tells.
    fn offer(&self, verb: &str, more: &[&str]) -> (Running, Value) {
        let mut command = verbring();
        command.args([verb, "--offer", "--json", "--socket"]).arg(&self.far.socket).args(more);
        let mut offering = Running::start(&mut command);
        let told = offering.told();
        (offering, told)
    }

    /// A command at the near engine that uses an offer; the secret goes by the environment.
    fn peer(&self, verb: &str, offered: &Value, more: &[&str]) -> Running {
        let secret = offered["secret"].as_str().expect("a secret");
        let mut command = verbring();
        command.args([verb, "--json", "--peer", &self.url, "--socket"]).arg(&self.near.socket);
        Running::start(command.env("VERBRING_SECRET", secret).args(more))
    }
}

fn packets(device: &str) -> u64 {
    let path = format!("/sys/class/infiniband/{device}/ports/1/hw_counters/sent_pkts");
    fs::read_to_string(path).expect("Soft-RoCE's counters").trim().parse().expect("a number")
}

fn digest(path: &str) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum");
    let text = String::from_utf8(output.stdout).expect("hex");
    text.split(' ').next().expect("a digest").to_string()
}

/// Every op by verbs, on rails that lead to a peer.
fn check_carried(told: &Value) -> u64 {
    let carried = told["carried"].as_array().expect("a list");
    assert!(!carried.is_empty(), "{told}");
    let each = carried.iter().map(|share| {
        assert_eq!(share["fabric"], "verbs", "{told}");
        assert!(share["rail"].as_u64().expect("a rail") >= 2, "{told}");
        share["ops"].as_u64().expect("a count")
    });
    each.sum()
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn the_demo_moves_a_file_from_host_to_host_and_back() {
    let places = places();
    places.iter().for_each(|place| settle(&place.device));
    let hosts = Hosts::start(&places);
    let file = hosts.folder.path("file");
    let mut content = fs::read(env::var("VERBRING_TEST_BINARY").expect("a binary")).expect("it");
    content.truncate(BYTES);
    assert_eq!(content.len(), BYTES, "a file of 8 MiB");
    fs::write(&file, &content).expect("written");
    let devices = places.each_ref().map(|place| place.device.as_str());
    let before = devices.map(packets);

    let (offering, offered) = hosts.offer("demo", &[]);
    let mut told = hosts.peer("demo", &offered, &["--file", &file]).rest();
    let told = told.pop().expect("an object");
    for side in ["sha256_sent", "sha256_received", "sha256_read_back"] {
        assert_eq!(told[side], digest(&file), "{side}");
    }
    assert_eq!((&told["fabric"], &told["peer"]), (&"verbs".into(), &hosts.url.clone().into()));
    assert_eq!((&told["bytes"], &told["passes"]), (&BYTES.into(), &1.into()));
    let ops = |name: &str| told[name].as_u64().expect("a count");
    assert_eq!(check_carried(&told), ops("ops") + ops("mailbox_ops"));
    let received = offering.rest().pop().expect("what came");
    assert_eq!((&received["ended"], &received["passes"]), (&"done".into(), &1.into()));
    assert_eq!(received["sha256_received"], told["sha256_sent"]);
    let moved = [0, 1].map(|at| packets(devices[at]) - before[at]);
    assert!(moved.iter().all(|moved| *moved >= PACKETS), "{moved:?} packets");
    eprintln!("8 MiB there and back: {moved:?} packets, {told}");

    // A secret of another offer is none of this one, and the offer goes on.
    let (mut offering, offered) = hosts.offer("demo", &[]);
    let mut wrong = offered.clone();
    wrong["secret"] = "00".repeat(32).into();
    let mut refused = hosts.peer("demo", &wrong, &["--file", &file]);
    assert_eq!(refused.child.wait().expect("its end").code(), Some(1));
    assert!(offering.child.try_wait().expect("a look").is_none(), "the offer ended");
    let told = hosts.peer("demo", &offered, &["--file", &file, "--seconds", "1"]).rest();
    assert_eq!(told[0]["sha256_received"], digest(&file), "{told:?}");
    assert_eq!(offering.rest()[0]["passes"], told[0]["passes"]);
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn the_bench_measures_a_ring_from_host_to_host() {
    let places = places();
    let hosts = Hosts::start(&places);
    let (offering, offered) = hosts.offer("bench", &["--working-set", "1M"]);
    let few = ["--size", "64,4K", "--depth", "1,8", "--seconds", "0.1", "--slice-ms", "2"];
    let rows = hosts.peer("bench", &offered, &few).rest();
    assert_eq!(rows.len(), 8, "two ops, two sizes, two depths");
    for (at, row) in rows.iter().enumerate() {
        eprintln!("{row}");
        let field = |name: &str| row[name].as_u64().expect("a count");
        assert_eq!(row["op"], if at < 4 { "write" } else { "read" });
        assert_eq!((field("depth"), field("size_bytes")), ([1, 8][at % 2], [64, 4096][at / 2 % 2]));
        assert_eq!((&row["fabric"], &row["peer"]), (&"verbs".into(), &hosts.url.clone().into()));
        assert!(field("ops") > 0 && field("p50_ns") > 0, "{row}");
        assert!(row["ops_per_s"].as_f64() > Some(0.0), "{row}");
        let rails = row["rails"].as_array().expect("a list");
        assert!(!rails.is_empty() && rails.iter().all(|rail| rail.as_u64() >= Some(2)), "{row}");
    }
    assert_eq!(offering.rest()[0]["ended"], "done");

    // What does not fit into what is offered is told with what would.
    let (mut offering, offered) = hosts.offer("bench", &["--working-set", "64K"]);
    let mut refused = hosts.peer("bench", &offered, &["--size", "1M", "--op", "write"]);
    assert_eq!(refused.child.wait().expect("its end").code(), Some(1));
    assert!(offering.child.try_wait().expect("a look").is_none(), "the offer ended");
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn bare_queue_pairs_of_two_hosts_are_measured_without_an_engine() {
    let places = places();
    let ports = places.each_ref().map(|Place { device, settings }| {
        format!("{device}:{}:{}", settings.port, settings.gid_index)
    });
    let mut command = verbring();
    command.args(["bench", "--listen", "10.99.1.1:0", "--json", "--devices", &ports[1]]);
    let mut listening = Running::start(&mut command);
    let at = listening.told()["listening"].as_str().expect("an address").to_string();
    let bench = |more: &[&str]| {
        let mut command = verbring();
        command.args(["bench", "--json", "--to", &at, "--devices", &ports[0]]);
        Running::start(command.args(["--seconds", "0.1", "--slice-ms", "2"]).args(more))
    };
    let rows = bench(&["--size", "64", "--depth", "1,8"]).rest();
    assert_eq!(rows.len(), 4, "two ops, two depths");
    for row in rows {
        eprintln!("{row}");
        assert_eq!((&row["who"], &row["peer"]), (&"verbs".into(), &at.clone().into()));
        assert!(row["ops_per_s"].as_f64() > Some(0.0), "{row}");
    }
    let mut large = bench(&["--size", "16M", "--op", "write"]);
    assert_eq!(large.child.wait().expect("its end").code(), Some(2), "no room there");
    // Whoever asks for too much is gone, and the next is served.
    assert_eq!(bench(&["--size", "64", "--depth", "1", "--op", "read"]).rest().len(), 1);
}
