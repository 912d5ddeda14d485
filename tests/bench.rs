//! `verbring bench` as people and programs meet it.
//!
//! Claimed: every op and every baseline runs and gives a row that holds together; what cannot be
//! is refused with the field, the value and the limit; a machine without io_uring loses that row
//! and nothing else; a process that dies ends the whole, in plain words; nothing is left behind,
//! not even by kill -9. Nothing here asserts a speed.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Each of these keeps every core busy: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A directory of one test, gone with the value.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("verbring-bench-{}-{count}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
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

fn bench(dir: &Dir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verbring"));
    command.arg("bench").env("TMPDIR", &dir.0).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs a bench of a fifth of a second with slices of a millisecond.
fn output(more: &[&str]) -> (Option<i32>, String, String) {
    output_of(&[&["--seconds", "0.2", "--slice-ms", "1"], more].concat())
}

fn output_of(flags: &[&str]) -> (Option<i32>, String, String) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Dir::new();
    let mut command = bench(&dir);
    command.args(flags);
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert_eq!(dir.entries(), 0, "left behind");
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// How long a bench is run. Where something else keeps the processors, its processes may come to
/// nothing in a short one: then a longer one must do.
const SECONDS: [&str; 3] = ["0.2", "2", "10"];

/// True if every row that was not left out has ops.
fn came_to_run(out: &str) -> bool {
    let rows = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.into_iter().all(|row| !row["skipped"].is_null() || row["ops"].as_f64() > Some(0.0))
}

/// The rows of a run that succeeds.
fn rows(more: &[&str]) -> Vec<Value> {
    let run =
        |seconds| output_of(&[&["--json", "--seconds", seconds, "--slice-ms", "1"], more].concat());
    let mut outputs = SECONDS
        .into_iter()
        .map(run)
        .skip_while(|(code, out, _)| *code == Some(0) && !came_to_run(out));
    rows_of(more, outputs.next().expect("no process came to run in ten seconds"))
}

fn rows_of(flags: &[&str], output: (Option<i32>, String, String)) -> Vec<Value> {
    let (code, out, errors) = output;
    assert_eq!(code, Some(0), "{flags:?}: {errors}");
    let known = |line: &&str| !line.contains("is not quiet") && !line.contains("is left out");
    assert_eq!(errors.lines().find(known), None, "{errors}");
    let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for row in &rows {
        if row["skipped"].is_null() {
            check(row);
        }
    }
    rows
}

/// What holds for every row, however fast the machine is.
fn check(row: &Value) {
    let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("no {name}: {row}"));
    assert!(["pipelined", "lock-step", "sleep"].contains(&row["bench"].as_str().unwrap()), "{row}");
    assert!(number("ops") > 0.0 && number("runs") >= 20.0, "{row}");
    // Beside others a process may get no processor at all in most slices of a millisecond.
    assert!(number("ops_per_s") > 0.0 || row["quiet"] == false, "{row}");
    assert!(number("p50_ns") > 0.0 && number("p50_ns") <= number("p99_ns"), "{row}");
    assert!(number("p99_ns") <= number("p999_ns") && number("spread") >= 0.0, "{row}");
    let op_bytes = number("size_bytes") * number("pages");
    let rate = number("ops_per_s") * op_bytes;
    assert!((number("bytes_per_s") - rate).abs() <= rate * 1e-9, "{row}");
    assert!(number("working_set_bytes") >= 2.0 * op_bytes, "{row}");
    assert!(number("batch") <= number("depth"), "{row}");
    let quiet = row["disturbed_by"].as_array().unwrap().is_empty();
    assert_eq!(row["quiet"], quiet, "{row}");
    if row["who"] == "verbring" {
        assert!(row["ratio"].is_null(), "{row}");
    } else {
        assert!(number("ratio_low") <= number("ratio"), "{row}");
        assert!(number("ratio") <= number("ratio_high"), "{row}");
        let of = if row["bench"] == "sleep" { "p50_ns" } else { "ops_per_s" };
        assert_eq!(row["ratio_of"], of, "{row}");
    }
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["who"].as_str().unwrap()).collect()
}

#[test]
fn every_op_runs_beside_the_bare_ring_with_and_without_memcpy() {
    for (op, size) in [("nop", 0), ("write", 256), ("read", 256), ("fetch-add", 8), ("writev", 256)]
    {
        let flags = ["--op", op, "--size", "256", "--pages", "3", "--batch", "4", "--depth", "8"];
        let rows = rows(&[&flags[..], &["--baseline", "bare,memcpy"]].concat());
        assert_eq!(names(&rows), ["verbring", "bare", "bare_memcpy"]);
        for row in &rows {
            assert_eq!((&row["batch"], &row["depth"]), (&4.into(), &8.into()));
            assert_eq!(row["bench"], "pipelined");
            let bare = row["who"] == "bare";
            assert_eq!(row["op"], if bare { "nop" } else { op });
            assert_eq!(row["size_bytes"], if bare { 0 } else { size });
            let pages = if op == "writev" && !bare { 3 } else { 1 };
            assert_eq!(row["pages"], pages);
            assert_eq!(row["working_set_bytes"], if bare { 0 } else { 2 * size * pages });
        }
    }
}

#[test]
fn io_uring_runs_or_is_left_out_with_a_reason() {
    let rows = rows(&["--batch", "8", "--baseline", "io_uring,sqpoll"]);
    assert_eq!(names(&rows), ["verbring", "io_uring", "io_uring_sqpoll"]);
    for row in &rows {
        assert_eq!((&row["bench"], &row["op"]), (&"lock-step".into(), &"nop".into()));
        assert!(row["skipped"].is_null() || row["ops"] == 0, "{row}");
    }
}

/// strace answers in the kernel's stead, as a sandbox would that forbids io_uring.
#[test]
fn a_machine_that_forbids_io_uring_loses_its_rows_alone() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("VERBRING_REQUIRE_TOOLS").is_none(), "strace is missing");
        println!("left out: there is no strace");
        return;
    }
    let dir = Dir::new();
    let run = |seconds: &str| {
        let Output { status, stdout, stderr } = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup"])
            .args(["-e", "inject=io_uring_setup:error=EPERM", env!("CARGO_BIN_EXE_verbring")])
            .args(["bench", "--json", "--seconds", seconds, "--slice-ms", "1"])
            .args(["--baseline", "io_uring,bare,sqpoll"])
            .env("TMPDIR", &dir.0)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let errors = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(0), "{errors}");
        (String::from_utf8(stdout).unwrap(), errors)
    };
    let mut outputs = SECONDS.into_iter().map(run).skip_while(|(out, _)| !came_to_run(out));
    let (out, errors) = outputs.next().expect("no process came to run in ten seconds");
    let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(names(&rows), ["verbring", "io_uring", "bare", "io_uring_sqpoll"]);
    for row in &rows {
        let name = row["who"].as_str().unwrap();
        match row["skipped"].as_str() {
            Some(reason) => {
                assert!(name.starts_with("io_uring") && reason.contains("not permitted"), "{row}");
                assert_eq!((&row["ops"], &row["ratio"]), (&0.into(), &Value::Null));
                let told = format!("verbring: {name} is left out: {reason}");
                assert_eq!(errors.lines().filter(|line| *line == told).count(), 1, "{errors}");
            }
            None => check(row),
        }
    }
    let skipped = rows.iter().filter(|row| row["skipped"].is_string());
    assert_eq!(skipped.count(), 2);
}

#[test]
fn the_ring_is_held_against_itself() {
    let rows = rows(&["--baseline", "self", "--op", "write", "--size", "64"]);
    assert_eq!(names(&rows), ["verbring", "self"]);
    assert_eq!(rows[1]["size_bytes"], 64);
}

#[test]
fn sleep_is_held_against_a_futex() {
    let rows = rows(&["--sleep", "--baseline", "futex,self"]);
    assert_eq!(names(&rows), ["verbring", "futex", "self"]);
    assert!(rows.iter().all(|row| row["bench"] == "sleep"));
}

#[test]
fn idle_rings_are_in_an_engine_of_their_own() {
    let rows = rows(&["--idle-rings", "40"]);
    assert_eq!(names(&rows), ["verbring", "verbring_idle_rings"]);
    assert_eq!((&rows[0]["idle_rings"], &rows[1]["idle_rings"]), (&0.into(), &40.into()));
}

#[test]
fn several_clients_run_at_once() {
    let flags = ["--clients", "2", "--batch", "4", "--op", "write", "--size", "64"];
    let rows = rows(&[&flags[..], &["--baseline", "bare,memcpy", "--class", "high"]].concat());
    assert_eq!(names(&rows), ["verbring", "bare", "bare_memcpy"]);
    for row in &rows {
        assert_eq!((&row["clients"], &row["class"]), (&2.into(), &1.into()));
    }
}

#[test]
fn settings_reach_the_engine() {
    let rows = rows(&["--set", "spin_us=0", "--set", "intake_budget=1", "--batch", "2"]);
    assert_eq!(names(&rows), ["verbring"]);
    // A ring larger than the quota is the engine's to refuse: the setting has arrived there.
    let (code, out, errors) = output(&["--set", "quota.region_bytes=1", "--json"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains("the client: cannot have a ring"), "{errors}");
}

#[test]
fn an_op_that_fails_is_not_measured() {
    let flags = ["--class", "high", "--set", "quota.class_ceiling=low", "--json"];
    let (code, out, errors) = output(&flags);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains("the client: an op answered -13 (Some(Class))"), "{errors}");
}

#[test]
fn a_sweep_gives_rows_a_table_and_a_plot() {
    let dir = Dir::new();
    let plot = dir.0.join("a.svg");
    let flags = ["--op", "write", "--size", "64..256*2", "--batch", "1,2", "--baseline", "memcpy"];
    let texts = ["bytes", "MB/s", "verbring, batch 1, depth 1", "bare_memcpy, batch 2, depth 2"];
    let swept = |seconds| {
        let drawn = ["--plot", plot.to_str().unwrap(), "--seconds", seconds, "--slice-ms", "1"];
        let (code, out, errors) = output_of(&[&flags[..], &drawn].concat());
        assert_eq!(code, Some(0), "{errors}");
        (out, std::fs::read_to_string(&plot).unwrap())
    };
    // Who did not come to run has no line in the plot.
    let mut runs = SECONDS.into_iter().map(swept);
    let drawn = runs.find(|(_, svg)| texts.iter().all(|text| svg.contains(text)));
    let (out, svg) = drawn.expect("a line of everybody's in ten seconds");
    let mut lines = out.lines();
    let head = lines.next().unwrap();
    for column in ["#bytes", "#iterations", "BW avg[MB/s]", "MsgRate[Mpps]", "t_typical[usec]"] {
        assert!(head.contains(column), "{head}");
    }
    let told: Vec<Vec<&str>> = lines.map(|line| line.split_whitespace().collect()).collect();
    let expected: Vec<[&str; 4]> = ["64", "128", "256"]
        .into_iter()
        .flat_map(|size| ["1", "2"].map(|batch| (size, batch)))
        .flat_map(|(size, batch)| {
            ["verbring", "bare_memcpy"].map(|who| [who, "write", size, batch])
        })
        .collect();
    let told: Vec<&[&str]> = told.iter().map(|line| &line[..4]).collect();
    assert_eq!(told, expected);
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
}

#[test]
fn a_plot_that_cannot_be_written_is_a_failure() {
    let (code, out, errors) = output(&["--plot", "/nowhere/a.svg"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(errors.contains("cannot plot /nowhere/a.svg: No such file"), "{errors}");
}

#[test]
fn what_cannot_be_is_refused_with_field_value_and_limit() {
    for (flags, expected) in [
        (&["--depth", "4", "--batch", "8"][..], "--depth is 4, but must be at least --batch, 8"),
        (&["--batch", "0"], "--batch is 0, but must be 1 to 32768"),
        (&["--op", "write", "--size", "0"], "--size is 0, but must be 1 to 2147479552 bytes"),
        (&["--op", "write", "--working-set", "64"], "--working-set is 64, but must be source and"),
        (&["--op", "writev", "--pages", "0"], "--pages is 0, but must be 1 to"),
        (&["--size", "8..4"], "runs backwards"),
        (&["--size", "4Q"], "\"4Q\" is no number"),
        (&["--op", "copy"], "invalid value 'copy'"),
        (&["--baseline", "bar"], "invalid value 'bar'"),
        (&["--baseline", "futex"], "--baseline is futex, but must be anything else without"),
        (&["--baseline", "bare", "--sleep"], "--baseline is bare, but must be futex or self with"),
        (&["--sleep", "--batch", "2"], "--depth is 2, but must be 1 with --sleep"),
        (&["--class", "urgent"], "must be high, medium or low"),
        (&["--seconds", "0"], "must be a number of seconds from 0.1 to 3600"),
        (&["--pin", "100000"], "--pin is 100000, but must be of the cores this process may use"),
        (&["--clients", "0"], "invalid value '0' for '--clients"),
        (&["--devices", "rxe0:1:1"], "--devices is for --fabric verbs and --baseline verbs"),
        (&["--fabric", "verbs", "--devices", "rxe0"], "must be DEVICE:PORT:GID, as in rxe0:1:1"),
        (&["--fabric", "verbs", "--op", "nop"], "--op is nop, but must be one that moves bytes"),
        (&["--fabric", "verbs", "--idle-rings", "1"], "--idle-rings is for --fabric local"),
        (&["--set", "spin_u=1"], "unknown key spin_u; the nearest known one is spin_us"),
        (&["--set", "spin_us=x"], "spin_us is \"x\", but must be a whole number, 0 to 1000000"),
        (&["--set", "window_ops=0"], "window_ops is 0, but must be 1 to 4096"),
    ] {
        let dir = Dir::new();
        let Output { status, stdout, stderr } = bench(&dir).args(flags).output().unwrap();
        let errors = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{flags:?}: {errors}");
        assert!(stdout.is_empty() && errors.contains(expected), "{flags:?}: {errors}");
    }
}

/// One line that says what to do, on a machine without cards and on one without this card.
#[test]
fn without_a_card_queue_pairs_are_refused_in_one_line() {
    for part in ["--fabric", "--baseline"] {
        let (code, out, errors) = output(&[part, "verbs", "--devices", "nosuch0:1:1"]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{errors}");
        let ways_out = [
            "there is no RDMA device: load",
            "libibverbs.so.1 cannot be loaded: install",
            "the kernel has no RDMA",
            "there is no nosuch0:1:1: verbring devices shows",
        ];
        assert!(ways_out.iter().any(|text| errors.contains(text)), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

/// Every op by queue pairs from one engine to another, beside a bare queue pair.
#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn queue_pairs_run_beside_a_bare_one() {
    let ports = std::env::var("VERBRING_TEST_DEVICE").expect("rxe0:1:1,rxe1:1:1");
    for op in ["write", "read", "fetch-add", "writev"] {
        let flags = ["--op", op, "--bytes", "64", "--pages", "3", "--batch", "4", "--depth", "8"];
        let verbs = ["--fabric", "verbs", "--baseline", "verbs", "--devices", &ports];
        // An emulated machine may not come to run for tens of milliseconds.
        let time = ["--seconds", "0.2", "--slice-ms", "50", "--json"];
        let flags = [&flags[..], &verbs, &time].concat();
        let rows = rows_of(&flags, output_of(&flags));
        assert_eq!(names(&rows), ["verbring", "verbs"], "{op}");
        for row in &rows {
            assert_eq!((&row["fabric"], &row["op"]), (&"verbs".into(), &op.into()), "{row}");
        }
    }
}

/// The process of a bench that plays this role, by the name it was started under.
fn player(dir: &Dir, role: &str) -> Option<String> {
    let name = format!("verbring-bench-{role}\0").into_bytes();
    let plays = |pid: &String| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(&name))
    };
    processes_of(dir).into_iter().find(plays)
}

/// Starts a bench of several points and waits for the first one's row, so that it runs for sure.
fn start(dir: &Dir) -> (Child, BufReader<ChildStdout>) {
    let flags = ["--op", "write", "--size", "64", "--batch", "1..64", "--seconds", "1", "--json"];
    let mut child = bench(dir)
        .args(flags)
        .args(["--slice-ms", "5", "--baseline", "memcpy"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with('{'), "no first row");
    (child, out)
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_process_that_dies_ends_the_bench_in_plain_words() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (role, expected) in [
        ("client", &["the client ended early"][..]),
        ("echo", &["the echo ended early"]),
        // Whoever notices first tells it.
        ("engine", &["the engine ended early", "the client: ", "cannot read /proc/"]),
    ] {
        let dir = Dir::new();
        let (mut child, mut out) = start(&dir);
        let pid = until(role, || player(&dir, role));
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
        out.read_to_string(&mut String::new()).unwrap();
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{role}: {errors}");
        assert!(expected.iter().any(|text| errors.contains(text)), "{role}: {errors}");
        assert_eq!(dir.entries(), 0, "{role}: left behind");
        until("all to end", || processes_of(&dir).is_empty().then_some(()));
    }
}

/// Processes that have this directory for their temporary files.
fn processes_of(dir: &Dir) -> Vec<String> {
    let wanted = format!("TMPDIR={}\0", dir.0.display()).into_bytes();
    let held = |pid: &str| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|text| text.windows(wanted.len()).any(|part| part == wanted))
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && held(name))
        .collect()
}

/// The far end spins while its slice lasts, and only the client can end that: were it not to die
/// with its parent, it would spin for ever.
#[test]
fn nothing_outlives_a_bench_that_is_killed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Dir::new();
    let mut child = bench(&dir)
        .args(["--slice-ms", "1000", "--baseline", "bare"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let echo = until("the echo process", || player(&dir, "echo"));
    let runs = || {
        let stat = std::fs::read_to_string(format!("/proc/{echo}/stat")).unwrap();
        thread::sleep(Duration::from_millis(1));
        stat.contains(") R ")
    };
    until("its slice", || (0..20).all(|_| runs()).then_some(()));
    let client = player(&dir, "client").unwrap();
    // The parent first, which would see to the others if it saw the client die.
    child.kill().unwrap();
    let _ = kill(Pid::from_raw(client.parse().unwrap()), Signal::SIGKILL);
    child.wait().unwrap();
    until("all to end", || processes_of(&dir).is_empty().then_some(()));
}
