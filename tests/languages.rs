//! Claim: a program in any language can sit at either end. Every ordered pair of Rust, C, C++ and
//! Python meets over one engine: one exports a region, the other reads, writes, adds atomically,
//! swaps, scatters, gathers, is refused, cancels an op that is still queued, and notifies. Each
//! program looks at `res`, `detail` and `flags` of every CQE and at the bytes.
//!
//! Rust's part is `examples/peer.rs`, played by this very binary; C's is `tests/c/peer.c`, compiled
//! here as C11 and as C++17; Python's is `tests/python/peer.py`. Where there are RDMA ports, they
//! meet across two engines as well. A language whose tool is missing is left out with a line that
//! says so, unless `VERBRING_REQUIRE_LANGUAGES` is set.
//!
//! And every language makes graphs: Rust in `tests/graphs.rs`, C in `tests/c/graph.c`, Python in
//! `tests/python/graph.py`; and each the small one of its example.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

#[path = "../examples/peer.rs"]
#[allow(unreachable_pub, reason = "an example, taken as a module")]
mod peer;

#[path = "../examples/graph.rs"]
#[allow(unreachable_pub, dead_code, reason = "an example, taken as a module")]
mod graph;

/// How to start one language's peer.
struct Language {
    name: &'static str,
    command: Vec<PathBuf>,
    /// Arguments go into this variable instead, for a binary whose own arguments are taken.
    by_variable: bool,
}

const C11: &[&str] = &["-std=c11", "-D_GNU_SOURCE"];
const CPP17: &[&str] = &["-std=c++17", "-x", "c++"];

const PART: &str = "VERBRING_PEER_PART";

impl Language {
    fn start(&self, args: &[&str]) -> Child {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        if self.by_variable {
            command.env(PART, args.join(" "));
        } else {
            command.args(args);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn runs(tool: &str) -> bool {
    let mut command = Command::new(tool);
    let command = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The program that a C source makes; made anew if it or the header has changed.
fn compiled(tool: &str, source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let changed = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    let sources = ["include/verbring.h", source].map(|path| root().join(path));
    if sources.iter().all(|source| changed(source) < changed(&out)) {
        return out;
    }
    let status = Command::new(tool)
        .args(flags)
        .args(["-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(root().join("include"))
        .arg(root().join(source))
        .arg("-o")
        .arg(&out)
        .status()
        .unwrap();
    assert!(status.success(), "{tool} could not compile {source} as {name}");
    out
}

fn languages() -> Vec<Language> {
    let own = std::env::current_exe().unwrap();
    let mut found = vec![Language {
        name: "rust",
        command: vec![own, "--exact".into(), "a_part".into(), "--nocapture".into()],
        by_variable: true,
    }];
    let required = std::env::var_os("VERBRING_REQUIRE_LANGUAGES").is_some();
    let mut add = |name, tool: &str, command: &dyn Fn() -> Vec<PathBuf>| {
        if runs(tool) {
            found.push(Language { name, command: command(), by_variable: false });
        } else {
            assert!(!required, "{tool} is missing, and every language is required");
            println!("{name} is left out: there is no {tool}");
        }
    };
    let peer = "tests/c/peer.c";
    add("c", "gcc", &|| vec![compiled("gcc", peer, "peer-c", C11)]);
    add("c++", "g++", &|| vec![compiled("g++", peer, "peer-cpp", CPP17)]);
    let python = root().join("tests/python/peer.py");
    add("python", "python3", &|| vec!["python3".into(), python.clone()]);
    found
}

/// Not a claim of its own: the Rust peer, when this binary is started as one.
#[test]
fn a_part() {
    let Ok(part) = std::env::var(PART) else { return };
    let args: Vec<&str> = part.split(' ').collect();
    assert_eq!(peer::act(&args), ExitCode::SUCCESS, "{part}");
}

/// Has every language export for every other. Exporters attach to the engine at `home`, users to
/// the one at `from`, with these options besides.
fn meet(languages: &[Language], home: &Path, from: &Path, options: &[&str]) {
    let [home, from] = [home, from].map(|socket| socket.to_str().unwrap());
    let mut met = 0;
    for exporter in languages {
        for user in languages {
            let name = format!("{}-{}", exporter.name, user.name);
            let mut exporting = exporter.start(&[home, "export", &name]);
            let mut lines = BufReader::new(exporting.stdout.take().unwrap()).lines();
            let secret = lines
                .by_ref()
                .map_while(Result::ok)
                // Rust's test harness writes before it on the same line.
                .find_map(|line| line.split_once("ready ").map(|(_, secret)| secret.to_string()))
                .unwrap_or_else(|| panic!("{name}: the exporter did not come up"));
            let using = user.start(&[&[from, "use", &name, secret.trim()], options].concat());
            let output = using.wait_with_output().unwrap();
            if !output.status.success() {
                let _ = exporting.kill();
                panic!("{name}: the user failed");
            }
            lines.for_each(drop);
            assert!(exporting.wait().unwrap().success(), "{name}: the exporter failed");
            met += 1;
        }
    }
    println!("{met} pairs met");
    assert_eq!(met, languages.len() * languages.len());
}

/// A directory for sockets, gone with the value.
struct Sockets(PathBuf);

impl Sockets {
    fn new(name: &str) -> Self {
        let directory = format!("verbring-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(directory);
        std::fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_language_meets_every_other() {
    let sockets = Sockets::new("languages");
    let socket = sockets.0.join("engine.sock");
    let engine = verbring::Engine::builder().socket(&socket).spawn().unwrap();
    meet(&languages(), &socket, &socket, &["--require", "local"]);
    engine.shutdown().unwrap();
}

/// The programs that make graphs: name, tool, command.
fn graph_makers() -> Vec<(&'static str, Vec<PathBuf>)> {
    let required = std::env::var_os("VERBRING_REQUIRE_LANGUAGES").is_some();
    let there = |tool: &str| {
        let there = runs(tool);
        assert!(there || !required, "{tool} is missing, and every language is required");
        there
    };
    let mut found = Vec::new();
    if there("gcc") {
        found.push(("C", vec![compiled("gcc", "tests/c/graph.c", "graph-c", C11)]));
        let example = compiled("gcc", "examples/c/graph.c", "graph-example-c", C11);
        found.push(("the example in C", vec![example]));
    }
    if there("g++") {
        found.push(("C++", vec![compiled("g++", "tests/c/graph.c", "graph-cpp", CPP17)]));
    }
    if there("python3") {
        let script = |path: &str| vec!["python3".into(), root().join(path)];
        found.push(("Python", script("tests/python/graph.py")));
        found.push(("the example in Python", script("examples/python/graph.py")));
    }
    found
}

#[test]
fn every_language_makes_graphs() {
    let sockets = Sockets::new("graphs");
    let socket = sockets.0.join("engine.sock");
    let engine = verbring::Engine::builder().socket(&socket).spawn().unwrap();
    graph::run(&socket).unwrap();
    for (name, command) in graph_makers() {
        let status = Command::new(&command[0]).args(&command[1..]).arg(&socket).status().unwrap();
        assert!(status.success(), "{name}");
    }
    engine.shutdown().unwrap();
}

/// The same with an engine at each of the two ports that `VERBRING_TEST_DEVICE` names, and every
/// byte by queue pairs.
#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn every_language_meets_every_other_across_two_engines() {
    let ports = std::env::var("VERBRING_TEST_DEVICE").expect("rxe0:1:1,rxe1:1:1");
    let sockets = Sockets::new("peers");
    let engines: Vec<_> = ports
        .split(',')
        .enumerate()
        .map(|(at, port)| {
            let (device, gid) = port.rsplit_once(':').expect("DEVICE:PORT:GID");
            let mut config = verbring::host::Config::default();
            config.verbs = verbring::host::VerbsUse::Require;
            config.verbs_device = vec![device.parse().unwrap()];
            config.verbs_gid = vec![gid.parse().unwrap()];
            let socket = sockets.0.join(format!("{at}.sock"));
            let engine = verbring::Engine::builder().config(config).socket(&socket).spawn();
            (engine.unwrap(), socket)
        })
        .collect();
    let [(_, home), (_, from)] = &engines[..] else { panic!("{ports}: two ports") };
    let url = format!("unix:{}", home.display());
    meet(&languages(), home, from, &["--peer", &url, "--require", "verbs"]);
    for (engine, _) in engines {
        engine.shutdown().unwrap();
    }
}

/// A daemon, killed with the value.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The same again as between two hosts: each engine in a process of its own, joined by TCP and a
/// key that both have. `VERBRING_TEST_BINARY` is the command.
#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn every_language_meets_every_other_between_two_hosts() {
    let ports = std::env::var("VERBRING_TEST_DEVICE").expect("rxe0:1:1,rxe1:1:1");
    let binary = std::env::var("VERBRING_TEST_BINARY").expect("the command verbring");
    let ours = || std::env::vars().map(|it| it.0).filter(|name| name.starts_with("VERBRING_"));
    let verbring = || {
        let mut command = Command::new(&binary);
        for name in ours() {
            command.env_remove(name);
        }
        command
    };
    let sockets = Sockets::new("hosts");
    let key = sockets.0.join("key");
    assert!(verbring().arg("key").arg(&key).stdout(Stdio::null()).status().unwrap().success());
    // Each listens at its card's own address.
    let serve = |at: usize, port: &str, listen: &str| {
        let (device, gid) = port.rsplit_once(':').expect("DEVICE:PORT:GID");
        let socket = sockets.0.join(format!("{at}.sock"));
        let mut command = verbring();
        command.args(["serve", "--verbs", "require", "--verbs-device", device, "--verbs-gid", gid]);
        command.args(["--listen", listen, "--log", "warn", "--psk-file"]).arg(&key);
        let mut child =
            command.arg("--socket").arg(&socket).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening"), "the engine did not start: {line:?}");
        (Serving(child), socket)
    };
    let [near, far] = ports.split(',').collect::<Vec<_>>()[..] else { panic!("{ports}: two") };
    let (_near, from) = serve(0, near, "10.99.0.1:7473");
    let (_far, home) = serve(1, far, "10.99.1.1:7474");
    let options = ["--peer", "verbring://10.99.1.1:7474", "--require", "verbs"];
    meet(&languages(), &home, &from, &options);
}
