//! Tests of the source itself: who may name whom, where `unsafe` may be, what the core must not
//! know, and the shape of files.
//!
//! One crate gets the layering of a workspace by these tables. They read the source as text:
//! comments and strings are blanked first, and where a rule speaks of what is shipped, items for
//! tests alone too. Each rule is also tried on planted offences, so that it is seen to bite.

mod named;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Each module (or a part of it, which then has a row of its own), and whom it may name besides
/// its own top-level module. A module without a row is an offence: give it one.
const LAYERS: &[(&str, &[&str])] = &[
    ("abi", &[]),
    ("ids", &[]),
    ("sync", &[]),
    ("random", &[]),
    ("plant", &[]),
    ("clock", &[]),
    ("shm", &["sync"]),
    ("ring", &["abi", "sync"]),
    ("ring::mapped", &["abi", "sync", "shm"]),
    ("ledger", &["abi", "ids"]),
    ("edges", &["abi", "ids", "ledger"]),
    ("fold", &["abi", "ids", "ledger"]),
    ("sched", &["abi", "ids", "ledger", "plant"]),
    ("fabric", &["abi", "ids"]),
    ("fabric::local", &["abi", "ids", "shm"]),
    ("fabric::pair", &["abi", "ids", "shm"]),
    ("fabric::verbs", &["abi", "ids", "shm"]),
    ("fabric::qp", &["abi", "ids", "shm", "plant"]),
    ("fabric::conformance", &["abi", "ids", "shm", "random"]),
    ("telemetry", &["abi", "ids", "sync", "shm"]),
    (
        "engine",
        &["abi", "ids", "ring", "ledger", "edges", "fold", "sched", "fabric", "telemetry", "plant"],
    ),
    ("client", &["abi", "sync", "ring", "shm", "telemetry", "control::fds"]),
    ("control::fds", &["abi"]),
    ("control::wire", &["abi"]),
    ("gate", &["abi", "clock", "control::fds"]),
    (
        "control",
        &[
            "abi",
            "ids",
            "clock",
            "shm",
            "ring",
            "fabric",
            "engine",
            "telemetry",
            "gate",
            "host",
            "plant",
        ],
    ),
    (
        "host",
        &[
            "abi",
            "ids",
            "clock",
            "shm",
            "ring",
            "sched",
            "fabric",
            "engine",
            "telemetry",
            "control",
            "gate",
            "client",
        ],
    ),
    (
        "sim",
        &[
            "abi",
            "ids",
            "shm",
            "random",
            "plant",
            "ring",
            "fabric",
            "sched",
            "engine",
            "control::peers::joint",
        ],
    ),
    // The command is a crate of its own: of the library it sees what is public.
    ("main", &["cli"]),
    ("cli", &[]),
    ("lib", &[]),
    ("fuzz", &["control", "gate"]),
    ("tidy", &[]),
];

/// Files (or folders) that may hold `unsafe`. A longer list is a change of the design.
const UNSAFE: &[&str] = &[
    "src/shm.rs",
    "src/ring/mapped.rs",
    "src/control/fds.rs",
    // The crate io-uring leaves it to the caller of `push` that buffers live on.
    "src/cli/bench/uring.rs",
    "src/fabric/verbs/bindings.rs",
    "src/fabric/verbs/sys.rs",
    "src/fabric/verbs/device.rs",
    "src/fabric/verbs/provider.rs",
];

/// The core: a function of its arguments, so that it runs the same in production and in tests.
const CORE: &[&str] = &[
    "src/ids.rs",
    "src/ring/",
    "src/ledger.rs",
    "src/ledger/",
    "src/edges.rs",
    "src/edges/",
    "src/fold.rs",
    "src/sched/",
    "src/telemetry/",
    "src/engine/",
    "src/fabric/mod.rs",
    "src/fabric/local.rs",
    "src/fabric/pair.rs",
    "src/fabric/qp/",
];

/// Words that the core must not use: clocks, threads, locks, and collections without an order.
const NOT_IN_CORE_WORDS: &[&str] =
    &["Instant", "SystemTime", "Mutex", "RwLock", "Condvar", "thread", "HashMap", "HashSet"];
/// Paths that the core must not name: the world outside.
const NOT_IN_CORE_PATHS: &[&str] = &["time", "thread", "net", "os", "fs", "env", "io", "process"];

/// Words that mark something unfinished, in comments too. They are put together here, so that
/// this file does not hold them.
const UNFINISHED: &[&str] = &[
    concat!("to", "do!"),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("unimple", "mented!"),
    concat!("d", "bg!"),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "types", "misc"];

const LINES_MAX: usize = 1000;
const COLUMNS_MAX: usize = 100;

/// A file of Rust, and what is left of it for each kind of rule.
struct Source {
    /// From the package's root.
    path: String,
    text: String,
    /// Without comments and the insides of strings; every byte is where it was.
    code: String,
    /// Without tests, too.
    shipped: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = without_comments(text);
        let shipped = without_tests(&code);
        Self { path: path.to_string(), text: text.to_string(), code, shipped }
    }

    /// The path of the module that a file under `src` holds, e.g. `ring::mapped`.
    fn module(&self) -> Vec<&str> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        path.trim_end_matches("/mod").split('/').collect()
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|&place| {
            self.path == place || place.ends_with('/') && self.path.starts_with(place)
        })
    }

    fn offence(&self, at: usize, what: impl std::fmt::Display) -> String {
        let line = 1 + self.text[..at].matches('\n').count();
        format!("{}:{line}: {what}", self.path)
    }
}

/// Blanks comments, and the insides of strings and characters; newlines stay.
fn without_comments(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = at
            + match rest {
                [b'/', b'/', ..] => until(rest, b"\n", 0),
                [b'/', b'*', ..] => block_comment(rest),
                [b'"', ..] => quoted(rest),
                [b'\'', b'\\', ..] | [b'\'', _, b'\'', ..] => quoted(rest),
                _ => {
                    let word = rest.iter().take_while(|byte| is_word(**byte)).count();
                    at += match &rest[..word] {
                        b"r" | b"br" | b"cr" => word + raw_string(&bytes[at + word..]),
                        _ => word.max(1),
                    };
                    continue;
                }
            };
        blank(&mut out[at..end]);
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Bytes up to the end of `mark`, which is looked for from `from` on.
fn until(bytes: &[u8], mark: &[u8], from: usize) -> usize {
    let found = (from..bytes.len()).find(|at| bytes[*at..].starts_with(mark));
    found.map_or(bytes.len(), |at| at + mark.len())
}

fn block_comment(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (1, 2);
    while depth > 0 && at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn quoted(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != bytes[0] {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Bytes of a raw string behind its `r`; 0 if none follows. They hold no code, but stay: their
/// quotes are skipped here, so that they cannot mislead.
fn raw_string(bytes: &[u8]) -> usize {
    let hashes = bytes.iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(hashes) != Some(&b'"') {
        return 0;
    }
    let mark = [b"\"".as_slice(), &bytes[..hashes]].concat();
    until(bytes, &mark, hashes + 1)
}

/// Where items that are for tests alone are marked so, and where the mark ends.
fn test_marks(code: &str) -> impl Iterator<Item = (usize, usize)> {
    let marks = ["#[cfg(test)]", "#[cfg(all(test, "].into_iter();
    let starts = marks.flat_map(|mark| code.match_indices(mark)).map(|(at, _)| at);
    starts.map(|at| (at, at + until(&code.as_bytes()[at..], b"]", 0)))
}

/// Blanks every item that is for tests alone.
fn without_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    for (at, from) in test_marks(code) {
        let mut depth = 0;
        let end = code.bytes().enumerate().skip(from).find(|(_, byte)| {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(byte, b';' | b'}')
        });
        blank(&mut out[at..end.map_or(code.len(), |(end, _)| end + 1)]);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where a word occurs on its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    let outside = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_none_or(|b| !is_word(*b));
    let ends = [word.as_bytes()[0], word.as_bytes()[word.len() - 1]].map(is_word);
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        (!ends[0] || outside(at.checked_sub(1))) && (!ends[1] || outside(Some(at + word.len())))
    })
}

/// Every path that starts with `root::`, without the root; groups in braces are taken apart.
fn paths(code: &str, root: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in words(code, root) {
        if let Some(rest) = code[at + root.len()..].strip_prefix("::") {
            let mut leaves = Vec::new();
            leaves_of(rest, String::new(), &mut leaves);
            found.extend(leaves.into_iter().map(|leaf| (at, leaf)));
        }
    }
    found
}

/// Follows one branch of a path to its leaves; returns what comes after it.
fn leaves_of<'a>(text: &'a str, mut path: String, leaves: &mut Vec<String>) -> &'a str {
    let mut text = text.trim_start();
    if let Some(mut group) = text.strip_prefix('{') {
        loop {
            group = leaves_of(group, path.clone(), leaves);
            // What lies between (as NAME) is passed over.
            let Some(end) = group.find([',', '}']) else { return "" };
            let last = group.as_bytes()[end] == b'}';
            group = group[end + 1..].trim_start();
            if last {
                return group;
            }
        }
    }
    let end = text.bytes().take_while(|byte| is_word(*byte)).count();
    path.push_str(&text[..end]);
    text = &text[end..];
    match text.strip_prefix("::") {
        Some(rest) => leaves_of(rest, path + "::", leaves),
        None => {
            leaves.push(path.trim_end_matches("::").to_string());
            text
        }
    }
}

/// Every path from the crate's root that a file names, also those reached by `super`.
fn crate_paths(source: &Source) -> Vec<(usize, String)> {
    let mut found = paths(&source.shipped, "crate");
    let depth = source.module().len();
    let up = "super::".repeat(depth);
    for (at, _) in source.shipped.match_indices(&up) {
        let before = &source.shipped[..at];
        let rest = &source.shipped[at + up.len()..];
        if before.ends_with("super::") || rest.starts_with("super::") {
            continue;
        }
        let mut leaves = Vec::new();
        leaves_of(rest, String::new(), &mut leaves);
        // In a module inside the file, `super` is the file: only modules' names are meant here.
        leaves.retain(|leaf| row(leaf).is_some());
        found.extend(leaves.into_iter().map(|leaf| (at, leaf)));
    }
    found
}

fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The row for a module: the one that names it most exactly.
fn row(module: &str) -> Option<&'static [&'static str]> {
    let rows = LAYERS.iter().filter(|(name, _)| is_within(module, name));
    rows.max_by_key(|(name, _)| name.len()).map(|(_, allowed)| *allowed)
}

fn layering(source: &Source) -> Vec<String> {
    let module = source.module();
    let Some(allowed) = row(&module.join("::")) else {
        return vec![source.offence(0, "this module has no row in LAYERS")];
    };
    let mut offences = Vec::new();
    for (at, path) in crate_paths(source) {
        if is_within(&path, module[0]) || allowed.iter().any(|&name| is_within(&path, name)) {
            continue;
        }
        let what = if row(&path).is_some() { "may not know" } else { "goes round by the root to" };
        offences.push(source.offence(at, format!("{} {what} {path}", module.join("::"))));
    }
    offences
}

fn where_unsafe_is(source: &Source) -> Vec<String> {
    let permit = "#![expect(unsafe_code, reason = \"";
    if !source.is_in(UNSAFE) {
        let found = ["unsafe", "unsafe_code"].into_iter().flat_map(|it| words(&source.code, it));
        return found.map(|at| source.offence(at, "unsafe is not permitted here")).collect();
    }
    let mut lines = source.text.lines().skip_while(|line| line.starts_with("//!"));
    let permitted =
        lines.find(|line| !line.is_empty()).is_some_and(|line| line.starts_with(permit));
    if permitted { vec![] } else { vec![source.offence(0, format!("must start by {permit}"))] }
}

fn core_is_pure(source: &Source) -> Vec<String> {
    if !source.is_in(CORE) {
        return vec![];
    }
    let mut offences = Vec::new();
    for word in NOT_IN_CORE_WORDS {
        let found = words(&source.shipped, word);
        offences.extend(found.map(|at| source.offence(at, format!("the core names {word}"))));
    }
    for root in ["std", "core", "nix", "libc"] {
        for (at, path) in paths(&source.shipped, root) {
            let foreign = root == "nix" || root == "libc";
            if foreign || NOT_IN_CORE_PATHS.iter().any(|&name| is_within(&path, name)) {
                offences.push(source.offence(at, format!("the core names {root}::{path}")));
            }
        }
    }
    offences
}

fn shape(source: &Source) -> Vec<String> {
    let mut offences = Vec::new();
    if !source.text.starts_with("//!") {
        offences.push(source.offence(0, "does not start by saying what it is (//!)"));
    }
    let lines = source.text.lines().count();
    if lines > LINES_MAX {
        offences.push(source.offence(0, format!("{lines} lines, more than {LINES_MAX}")));
    }
    let mut at = 0;
    for line in source.text.split_inclusive('\n') {
        if line.trim_end().chars().count() > COLUMNS_MAX {
            offences.push(source.offence(at, format!("longer than {COLUMNS_MAX} columns")));
        }
        if !line.is_ascii() {
            offences.push(source.offence(at, "not ASCII"));
        }
        at += line.len();
    }
    for word in UNFINISHED {
        let found = words(&source.text, word);
        offences.extend(found.map(|at| source.offence(at, format!("holds {word}"))));
    }
    offences
}

fn names(source: &Source) -> Vec<String> {
    let mut offences = Vec::new();
    for name in EMPTY_NAMES {
        if source.path.split(['/', '.']).any(|part| part == *name) {
            offences.push(source.offence(0, format!("{name} says nothing")));
        }
        let declared = words(&source.code, name)
            .filter(|at| source.code[..*at].trim_end().ends_with("mod"))
            .map(|at| source.offence(at, format!("{name} says nothing")));
        offences.extend(declared);
    }
    offences
}

/// Reads every Rust file under a folder of the package.
fn read(folder: &str, sources: &mut Vec<Source>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return };
    for entry in entries {
        let entry = entry.expect("a readable folder");
        let path = format!("{folder}/{}", entry.file_name().to_str().expect("UTF-8"));
        if entry.file_type().expect("a type").is_dir() {
            read(&path, sources);
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(entry.path()).expect("a readable file");
            sources.push(Source::new(&path, &text));
        }
    }
}

/// The library and the command, without files that hold tests alone.
fn package() -> Vec<Source> {
    let mut sources = Vec::new();
    read("src", &mut sources);
    let mut tests = BTreeSet::new();
    for source in &sources {
        for (_, end) in test_marks(&source.code) {
            let item = source.code[end..].trim_start();
            let item = item.trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
            let Some(name) = item.strip_prefix("mod ").and_then(|rest| rest.split_once(';')) else {
                continue;
            };
            let module = source.module().join("/");
            let parent = if module == "lib" { String::new() } else { module + "/" };
            tests.insert(format!("src/{parent}{}.rs", name.0));
            tests.insert(format!("src/{parent}{}/", name.0));
        }
    }
    let tests: Vec<_> = tests.iter().map(String::as_str).collect();
    sources.retain(|source| !source.is_in(&tests));
    let found = |path: &str| sources.iter().any(|source| source.path == path);
    assert!(found("src/lib.rs") && found("src/ring/mod.rs") && !found("src/tidy.rs"));
    sources
}

/// All Rust of the package.
fn everything() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in ["src", "tests", "benches", "examples"] {
        read(folder, &mut sources);
    }
    assert!(sources.iter().any(|source| source.path == "src/tidy.rs"));
    sources
}

fn obey(rule: fn(&Source) -> Vec<String>, sources: &[Source]) {
    let offences: Vec<_> = sources.iter().flat_map(rule).collect();
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

/// Tries a rule on a planted file; says how many offences it found.
fn planted(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
    rule(&Source::new(path, text)).len()
}

#[test]
fn modules_name_only_whom_they_may() {
    obey(layering, &package());
}

#[test]
fn unsafe_is_where_it_is_permitted() {
    obey(where_unsafe_is, &package());
}

#[test]
fn the_core_knows_no_clock_thread_lock_or_file() {
    obey(core_is_pure, &package());
}

#[test]
fn files_have_the_shape_agreed_on() {
    obey(shape, &everything());
}

#[test]
fn module_names_say_something() {
    obey(names, &everything());
}

#[test]
fn planted_layering_is_found() {
    let tried = |path: &str, text: &str| planted(layering, path, text);
    assert_eq!(tried("src/abi/sqe.rs", "use crate::abi::Cqe; use super::Page;"), 0);
    assert_eq!(tried("src/abi/sqe.rs", "use crate::ring;"), 1);
    assert_eq!(tried("src/abi/sqe.rs", "use super::super::ring::Heap;"), 1);
    assert_eq!(tried("src/abi/mod.rs", "use super::ring::Heap;"), 1);
    assert_eq!(tried("src/ring/mod.rs", "use crate::{\n    abi,\n    ids::{RingId, X}, sync};"), 2);
    assert_eq!(tried("src/ring/mod.rs", "use crate::{abi as a, engine as b};"), 1);
    assert_eq!(tried("src/ring/mapped.rs", "fn f() -> crate::shm::Mapping {}"), 0);
    assert_eq!(tried("src/ring/memory.rs", "fn f() -> crate::shm::Mapping {}"), 1);
    assert_eq!(tried("src/client/wire.rs", "use crate::control::fds::Message;"), 0);
    assert_eq!(tried("src/client/wire.rs", "use crate::control::{fds, server};"), 1);
    assert_eq!(tried("src/client/wire.rs", "use crate::control;"), 1);
    assert_eq!(tried("src/client/wire.rs", "use crate::Engine;"), 1);
    assert_eq!(tried("src/abi/sqe.rs", "// use crate::ring;\nconst A: &str = \"crate::ring\";"), 0);
    assert_eq!(tried("src/abi/sqe.rs", "#[cfg(test)]\nmod tests { use crate::ring::Heap; }"), 0);
    assert_eq!(tried("src/abi/sqe.rs", "#[cfg(test)]\nmod t { }\nuse crate::ring::Heap;"), 1);
    assert_eq!(tried("src/novel.rs", ""), 1);
}

#[test]
fn planted_unsafe_is_found() {
    let tried = |path: &str, text: &str| planted(where_unsafe_is, path, text);
    assert_eq!(tried("src/engine/mod.rs", "//! An unsafe word.\nfn f() { \"unsafe\"; }"), 0);
    assert_eq!(tried("src/engine/mod.rs", "//! A.\nfn f() { unsafe { g() } }"), 1);
    assert_eq!(tried("src/engine/mod.rs", "#![allow(unsafe_code, reason = \"a\")]"), 1);
    assert_eq!(tried("src/shm.rs", "//! A.\n//! B.\n\nuse std::io;\nunsafe fn f() {}"), 1);
    let permitted = "//! A.\n#![expect(unsafe_code, reason = \"why\")]\nunsafe fn f() {}";
    assert_eq!(tried("src/shm.rs", permitted), 0);
    assert_eq!(tried("src/fabric/verbs/sys.rs", permitted), 0);
    assert_eq!(tried("src/shm/more.rs", permitted), 2);
}

#[test]
fn planted_impurity_is_found() {
    let tried = |path: &str, text: &str| planted(core_is_pure, path, text);
    for bad in [
        "use std::time::Duration;",
        "use std::{mem, time};",
        "fn f(at: Instant) {}",
        "use std::sync::{Arc, Mutex};",
        "fn f(x: &RwLock<u8>) {}",
        "use std::collections::HashMap;",
        "fn f(x: HashSet<u8>) {}",
        "fn f() { thread::yield_now(); }",
        "use std::net::TcpStream;",
        "use std::os::fd::OwnedFd;",
        "fn f() { std::fs::read(a); }",
        "fn f() { std::env::args(); }",
        "use nix::unistd::getpid;",
    ] {
        assert_ne!(tried("src/engine/turn.rs", bad), 0, "{bad}");
        assert_ne!(tried("src/ledger.rs", bad), 0, "{bad}");
        assert_eq!(tried("src/host/mod.rs", bad), 0, "{bad}");
        assert_eq!(
            tried("src/ids.rs", &format!("#[cfg(test)]\nmod tests {{ {bad} }}")),
            0,
            "{bad}"
        );
        assert_eq!(tried("src/ids.rs", &format!("// {bad}\n/* {bad} */")), 0, "{bad}");
    }
    assert_eq!(tried("src/sched/lanes.rs", "fn f(threads: u8) { std::mem::take(a); }"), 0);
}

#[test]
fn planted_shapes_are_found() {
    let tried = |text: &str| planted(shape, "src/a.rs", text);
    assert_eq!(tried("//! A.\n"), 0);
    assert_eq!(tried("use std::io;\n"), 1);
    assert_eq!(tried(&format!("//!{}\n", " a".repeat(48))), 0);
    assert_eq!(tried(&format!("//!{}\n", " a".repeat(49))), 1);
    assert_eq!(tried(&format!("//!{}", "\n".repeat(1000))), 0);
    assert_eq!(tried(&format!("//!{}", "\n".repeat(1001))), 1);
    assert_eq!(tried("//! A\u{2014}B.\n"), 1);
    for word in UNFINISHED {
        assert_eq!(tried(&format!("//! A.\nfn f() {{ {word} }}")), 1, "{word}");
    }
    assert_eq!(tried("//! A.\n// mkstemp needs X\u{58}XXXX.\n"), 0, "a word inside a word");
    assert_eq!(planted(names, "src/ring/utils.rs", ""), 1);
    assert_eq!(planted(names, "src/helpers/mod.rs", ""), 1);
    assert_eq!(planted(names, "src/ring/mod.rs", "pub mod types;\nmod misc {}"), 2);
    assert_eq!(planted(names, "src/ring/mod.rs", "mod memory; use types::A;"), 0);
}

#[test]
fn code_is_told_from_comments_and_strings() {
    for (text, code) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        ("\"a \\\" // b\" c", "            c"),
        ("'\"' a '\\'' b 'c' d", "    a      b     d"),
        ("fn f<'a>(x: &'a u8) {}", "fn f<'a>(x: &'a u8) {}"),
        ("b\"//\" c", "b     c"),
        ("r#\"a\"b\"# // c", "r#\"a\"b\"#     "),
        ("r#type a", "r#type a"),
        ("\"a\n// b\" c", "  \n      c"),
    ] {
        assert_eq!(without_comments(text), code, "{text}");
    }
}

#[test]
fn tests_are_told_from_what_is_shipped() {
    for (code, shipped) in [
        ("a #[cfg(test)] mod b { { c } d } e", "a e"),
        ("#[cfg(test)] mod b; c", "c"),
        ("#[cfg(all(test, not(a)))] mod b; c", "c"),
        ("#[cfg(test)] #[x(y)] fn b(c: [u8; 2]) { d } e", "e"),
        ("#[cfg(not(test))] fn a() {}", "#[cfg(not(test))] fn a() {}"),
        ("#[cfg(test)] mod a {", ""),
    ] {
        let left = without_tests(code);
        assert_eq!(left.len(), code.len(), "{code}");
        assert_eq!(left.split_whitespace().collect::<Vec<_>>().join(" "), shipped, "{code}");
    }
}
