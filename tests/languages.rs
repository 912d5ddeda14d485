//! Claim: a program in any language can sit at either end. Every ordered pair of Rust, C, C++ and
//! Python meets over one engine: one exports a region, the other reads, writes, adds atomically,
//! swaps, scatters, gathers, is refused, cancels an op that is still queued, and notifies. Each
//! program looks at `res`, `detail` and `flags` of every CQE and at the bytes.
//!
//! Rust's part is `examples/peer.rs`, played by this very binary; C's is `tests/c/peer.c`, compiled
//! here as C11 and as C++17; Python's is `tests/python/peer.py`. A language whose tool is missing
//! is left out with a line that says so, unless `VERBRING_REQUIRE_LANGUAGES` is set.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

#[path = "../examples/peer.rs"]
#[allow(unreachable_pub, reason = "an example, taken as a module")]
mod peer;

/// How to start one language's peer.
struct Language {
    name: &'static str,
    command: Vec<PathBuf>,
    /// Arguments go into this variable instead, for a binary whose own arguments are taken.
    by_variable: bool,
}

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

fn compiled(tool: &str, name: &str, flags: &[&str]) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let status = Command::new(tool)
        .args(flags)
        .args(["-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(root().join("include"))
        .arg(root().join("tests/c/peer.c"))
        .arg("-o")
        .arg(&out)
        .status()
        .unwrap();
    assert!(status.success(), "{tool} could not compile tests/c/peer.c as {name}");
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
    add("c", "gcc", &|| vec![compiled("gcc", "peer-c", &["-std=c11", "-D_GNU_SOURCE"])]);
    add("c++", "g++", &|| vec![compiled("g++", "peer-cpp", &["-std=c++17", "-x", "c++"])]);
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

#[test]
fn every_language_meets_every_other() {
    let directory = std::env::temp_dir().join(format!("verbring-languages-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let socket = directory.join("engine.sock");
    let engine = verbring::Engine::builder().socket(&socket).spawn().unwrap();
    let socket = socket.to_str().unwrap();
    let languages = languages();
    let mut met = 0;
    for exporter in &languages {
        for user in &languages {
            let name = format!("{}-{}", exporter.name, user.name);
            let mut exporting = exporter.start(&[socket, "export", &name]);
            let mut lines = BufReader::new(exporting.stdout.take().unwrap()).lines();
            let secret = lines
                .by_ref()
                .map_while(Result::ok)
                // Rust's test harness writes before it on the same line.
                .find_map(|line| line.split_once("ready ").map(|(_, secret)| secret.to_string()))
                .unwrap_or_else(|| panic!("{name}: the exporter did not come up"));
            let using = user.start(&[socket, "use", &name, secret.trim()]);
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
    engine.shutdown().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}
