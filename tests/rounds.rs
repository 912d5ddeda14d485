//! The rounds of `verbring bench` that compare engines, and `verbring qos`, as programs meet them.
//!
//! Claimed: every mode gets a row of the promised shape that holds together; shares and latencies
//! add up; what was not measured is null; charts are drawn; what cannot be is refused with the
//! field, the value and the limit; nothing is left behind. Nothing here asserts a speed.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde_json::Value;
use verbring::abi::{Opcode, Sqe};
use verbring::host::{Config, VerbsUse};
use verbring::{Engine, Rights, RingOptions};

/// Each of these keeps every core busy: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

const MODES: [&str; 5] = ["weighted", "strict", "fifo", "tent", "direct"];

/// A directory of one test, gone with the value.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("verbring-rounds-{}-{count}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn output(flags: &[&str]) -> (Option<i32>, String, String) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Dir::new();
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_verbring"))
        .args(flags)
        .env("TMPDIR", &dir.0)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0, "left behind");
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// The rows of a run that succeeds.
fn rows(flags: &[&str]) -> Vec<Value> {
    let (code, out, errors) = output(&[flags, &["--json"]].concat());
    assert_eq!(code, Some(0), "{flags:?}: {errors}");
    assert_eq!(errors.lines().find(|line| !line.contains("is not quiet")), None, "{errors}");
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("no {name}: {row}"))
}

fn names<'a>(rows: &'a [Value], name: &str) -> Vec<&'a str> {
    rows.iter().map(|row| row[name].as_str().unwrap()).collect()
}

const SHORT_BURST: [&str; 10] =
    ["bench", "burst", "--runs", "2", "--batches", "8", "--batch", "4", "--working-set", "64K"];

#[test]
fn a_burst_has_one_row_a_mode_with_exactly_its_fields() {
    let rows = rows(&SHORT_BURST);
    assert_eq!(names(&rows, "mode"), MODES);
    for row in &rows {
        let mut fields: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        let mut expected = [
            "mode",
            "ops_per_s",
            "high_avg_ns",
            "high_p99_ns",
            "low_avg_ns",
            "low_p99_ns",
            "runs",
            "spread",
        ];
        expected.sort_unstable();
        assert_eq!(fields, expected);
        assert_eq!(row["runs"], 2);
        assert!(number(row, "ops_per_s") > 0.0 && number(row, "spread") >= 0.0, "{row}");
        for class in ["high", "low"] {
            let [avg, p99] = ["avg", "p99"].map(|it| number(row, &format!("{class}_{it}_ns")));
            assert!(avg > 0.0 && p99 > 0.0, "{row}");
        }
    }
}

#[test]
fn a_burst_is_told_beside_direct_and_a_model_and_drawn() {
    let plot = std::env::temp_dir().join(format!("verbring-burst-{}.svg", std::process::id()));
    let flags = [&SHORT_BURST[..], &["--plot", plot.to_str().unwrap()]].concat();
    let (code, out, errors) = output(&flags);
    assert_eq!(code, Some(0), "{errors}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].contains("high avg[us]") && lines.len() == 1 + 5 + 2, "{out}");
    for (line, mode) in lines[1..6].iter().zip(MODES) {
        assert!(line.starts_with(mode) && line.matches('%').count() == 6, "{line}");
    }
    assert!(lines[5].contains("+0.0%"), "direct is as itself: {out}");
    assert!(lines[6].starts_with("weighted: submitted at") && lines[7].starts_with("strict: "));
    let svg = std::fs::read_to_string(&plot).unwrap();
    std::fs::remove_file(&plot).unwrap();
    for text in ["high avg", "low p99", "weighted", "direct"] {
        assert!(svg.contains(text), "{text}");
    }
}

/// Clients that are told of a recorder too small for a burst say so, by the setting's name.
#[test]
fn a_burst_needs_a_recorder_that_holds_it() {
    let flags = [&SHORT_BURST[..], &["--set", "recorder_entries=16", "--modes", "fifo"]].concat();
    let (code, _, errors) = output(&flags);
    assert_eq!(code, Some(1));
    assert!(errors.contains("recorder_entries is 16, but must be at least 32"), "{errors}");
}

#[test]
fn a_mix_tells_high_at_every_load_and_what_is_left_to_low() {
    let flags = ["bench", "mix", "--runs", "1", "--slice-ms", "30", "--loads", "5,20"];
    let rows = rows(&[&flags[..], &["--modes", "strict,direct", "--low-size", "64K"]].concat());
    assert_eq!(names(&rows, "mode"), ["strict", "strict", "direct", "direct"]);
    for (row, load) in rows.iter().zip([0.05, 0.2, 0.05, 0.2]) {
        assert_eq!(number(row, "load"), load, "{row}");
        let latencies = ["high_p50_ns", "high_p99_ns", "high_p999_ns"].map(|it| number(row, it));
        assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{row}");
        assert!(number(row, "unloaded_p50_ns") <= number(row, "unloaded_p999_ns"), "{row}");
        let share = number(row, "low_share");
        assert!((0.0..=1.0).contains(&share) && number(row, "low_of_alone") >= 0.0, "{row}");
        let low = number(row, "low_bytes_per_s");
        let high = number(row, "high_per_s") * 4096.0;
        assert!((low - share * (low + high)).abs() <= 1e-6 * (low + high), "{row}");
        assert!(number(row, "offered_per_s") > 0.0 && row["runs"] == 1, "{row}");
    }
    let offered = |at: usize| number(&rows[at], "offered_per_s");
    assert!((offered(1) / offered(0) - 4.0).abs() < 1e-9 && offered(0) == offered(2));
}

const TENANTS: [(&str, &[&str]); 6] = [
    ("foreground", &["foreground", "migration"]),
    ("checkpoint", &["foreground", "checkpoint"]),
    ("tight 0 of 16", &["loose"]),
    ("tight 1 of 16", &["tight", "loose"]),
    ("tight 4 of 16", &["tight", "loose"]),
    ("tight 8 of 16", &["tight", "loose"]),
];

#[test]
fn every_tenant_has_its_figures_and_null_where_nothing_was_measured() {
    let flags = ["bench", "qos", "--runs", "1", "--slice-ms", "20", "--modes", "weighted,fifo"];
    let rows = rows(&[&flags[..], &["--no-baselines"]].concat());
    let mut expected = Vec::new();
    for workloads in [&TENANTS[..1], &TENANTS[1..2], &TENANTS[2..]] {
        for mode in ["weighted", "fifo"] {
            for (workload, tenants) in workloads {
                expected.extend(tenants.iter().map(|tenant| (*workload, mode, *tenant)));
            }
        }
    }
    let told: Vec<(&str, &str, &str)> = rows
        .iter()
        .map(|row| {
            let name = |field: &str| row[field].as_str().unwrap();
            (name("workload"), name("mode"), name("tenant"))
        })
        .collect();
    assert_eq!(told, expected);
    for row in &rows {
        assert!(row["isolation_leakage"].is_null(), "{row}");
        assert_eq!(row["slo_attainment"].is_null(), row["slo_us"].is_null(), "{row}");
        assert_eq!(row["goodput"].is_null(), row["slo_us"].is_null(), "{row}");
        let jain = number(row, "jain_fairness");
        assert!((0.0..=1.0 + 1e-9).contains(&jain), "{row}");
        assert_eq!(row["floor"].is_null(), row["mode"] == "fifo", "{row}");
        if !row["goodput"].is_null() {
            let expected = number(row, "bytes_per_s") * number(row, "slo_attainment");
            assert!((number(row, "goodput") - expected).abs() <= 1e-6 * expected, "{row}");
        }
    }
    for pair in rows.windows(2).filter(|pair| {
        pair[0]["workload"] == pair[1]["workload"] && pair[0]["mode"] == pair[1]["mode"]
    }) {
        let sum = number(&pair[0], "share") + number(&pair[1], "share");
        // A play of a core that others use may move nothing at all.
        assert!((sum - 1.0).abs() < 1e-9 || sum == 0.0, "{pair:?}");
    }
}

#[test]
fn a_baseline_gives_leakage() {
    let flags = ["bench", "qos", "--runs", "1", "--slice-ms", "20", "--modes", "direct"];
    for row in rows(&[&flags[..], &["--workloads", "checkpoint"]].concat()) {
        assert!((0.0..=1.0).contains(&number(&row, "isolation_leakage")), "{row}");
    }
}

#[test]
fn a_window_has_a_row_a_size_and_one_knee() {
    for (over, points, field, sizes) in [
        ("bytes", "64K..256K", "window_bytes", [65_536.0, 131_072.0, 262_144.0]),
        ("ops", "1..4", "window_ops", [1.0, 2.0, 4.0]),
    ] {
        let plot = std::env::temp_dir().join(format!("verbring-{over}-{}.svg", std::process::id()));
        let flags = ["bench", "window", "--over", over, "--points", points, "--runs", "1"];
        let more = ["--slice-ms", "10", "--high-per-s", "2000", "--plot", plot.to_str().unwrap()];
        let rows = rows(&[&flags[..], &more].concat());
        let told: Vec<f64> = rows.iter().map(|row| number(row, field)).collect();
        assert_eq!(told, sizes);
        assert_eq!(rows.iter().filter(|row| row["knee"] == true).count(), 1);
        for row in &rows {
            assert!(number(row, "slice_bytes") <= number(row, "window_bytes"), "{row}");
            assert!(number(row, "high_p50_ns") <= number(row, "high_p99_ns"), "{row}");
        }
        let svg = std::fs::read_to_string(&plot).unwrap();
        std::fs::remove_file(&plot).unwrap();
        assert!(svg.contains("throughput of all") && svg.matches("<circle").count() == 9);
    }
}

#[test]
fn a_bound_is_the_sum_of_its_terms() {
    let flags = ["qos", "--bound", "--rate", "1000000000", "--wr-ns", "100", "--ahead", "4096"];
    let rows = rows(&flags);
    assert_eq!(rows.len(), 15);
    for row in &rows {
        assert_eq!(number(row, "rate_bytes_per_s"), 1e9);
        let window = number(row, "window_bytes") + 100.0 * number(row, "window_wrs");
        assert_eq!(number(row, "window_ns"), window, "{row}");
        assert_eq!(number(row, "slices_ns"), number(row, "slice_bytes") + 100.0, "{row}");
        match row["worst_wait_ns"].as_f64() {
            Some(worst) => {
                let terms = ["window_ns", "slices_ns", "others_ns"].map(|it| number(row, it));
                assert!(worst >= terms.iter().sum::<f64>() + 4_096.0, "{row}");
            }
            None => assert!(!["weighted", "strict"].contains(&row["mode"].as_str().unwrap())),
        }
    }
    let told: Vec<_> = rows.iter().filter(|row| row["class"] == "high").collect();
    assert_eq!(told.len(), 5);
}

#[test]
fn a_bound_of_an_engine_of_its_own_is_measured() {
    let (code, out, errors) =
        output(&["qos", "--bound", "--seconds", "0.05", "--set", "window_ops=7", "--load"]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "--load is for --socket: {errors}");
    let (code, out, errors) =
        output(&["qos", "--bound", "--seconds", "0.05", "--set", "window_ops=7"]);
    assert_eq!(code, Some(0), "{errors}");
    for text in [", 7 ops", "by a load of large ops", "by a load of small ops", "no bound"] {
        assert!(out.contains(text), "{text}: {out}");
    }
}

/// An idle engine has no rate, and is not given one; one that works has, and so has one that is
/// made to.
#[test]
fn a_bound_of_a_running_engine_goes_by_what_it_moves() {
    let dir = Dir::new();
    let path = dir.0.join("socket");
    let mut config = Config::default();
    (config.verbs, config.window_ops) = (VerbsUse::Off, 9);
    let engine = Engine::builder().config(config).socket(&path).spawn().unwrap();
    let flags = ["qos", "--bound", "--seconds", "0.05", "--socket", path.to_str().unwrap()];
    let (code, out, errors) = output(&flags);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains("the engine moved nothing meanwhile"), "{errors}");

    let (code, out, errors) = output(&[&flags[..], &["--peer", "verbring://nowhere:1"]].concat());
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(errors.contains("no connection to verbring://nowhere:1 is up"), "{errors}");

    let loaded = rows(&[&flags[..], &["--load"]].concat());
    assert!(loaded.iter().all(|row| row["window_ops"] == 9 && number(row, "wr_ns") > 0.0));

    let session = engine.connect().unwrap();
    let region = session.alloc(1 << 20).unwrap();
    let secret = region.export("busy", Rights::ALL).unwrap();
    let import = session.import("busy", None, &secret).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut ring = session.raw_ring(RingOptions::default()).unwrap();
            let sqe = Sqe {
                opcode: Opcode::Write as u8,
                local_region: region.id(),
                remote_region: import.id(),
                remote_offset: 1 << 19,
                bytes: 1 << 19,
                ..Sqe::default()
            };
            while !over.load(Ordering::Relaxed) {
                ring.push(sqe).unwrap();
                ring.submit_and_wait(1, None).unwrap();
                assert_eq!(ring.pop().unwrap().unwrap().res, 1 << 19);
            }
        });
        let watched = rows(&flags);
        over.store(true, Ordering::Relaxed);
        for row in &watched {
            assert!(number(row, "rate_bytes_per_s") >= f64::from(1 << 19), "{row}");
            assert_eq!((&row["wr_ns"], &row["window_ops"]), (&0.into(), &9.into()));
        }
    });
    drop((import, region, session));
    engine.shutdown().unwrap();
}

#[test]
fn what_cannot_be_is_refused_with_field_value_and_limit() {
    for (flags, expected) in [
        (&["bench", "burst", "--batches", "3"][..], "--batches is 3, but must be even"),
        (
            &["bench", "burst", "--batch", "1024"],
            "--batches times --batch is 524288, but must be at most 16384",
        ),
        (&["bench", "burst", "--modes", "lifo"], "not weighted, strict, fifo, tent or direct"),
        (&["bench", "burst", "--size", "0"], "--size is 0, but must be 1 to 2147479552 bytes"),
        (&["bench", "burst", "--set", "mode=x"], "mode is \"x\", but must be"),
        (&["bench", "burst", "--pin", "100000"], "--pin is 100000, but must be of the cores"),
        (&["bench", "mix", "--loads", "0"], "invalid value '0' for '--loads"),
        (&["bench", "mix", "--low-size", "0"], "--size is 0, but must be 1 to"),
        (&["bench", "qos", "--workloads", "none"], "invalid value 'none'"),
        (&["bench", "window", "--points", "1K"], "window_bytes is 1024, but must be"),
        (&["bench", "--json", "burst"], "cannot be used with"),
        (&["qos"], "--bound"),
        (&["qos", "--bound", "--rails", "0"], "invalid value '0' for '--rails"),
        (&["qos", "--bound", "--peer", "verbring://there:1"], "--socket <PATH>"),
        (
            &["qos", "--bound", "--socket", "/nowhere", "--peer", "there", "--load"],
            "'--peer <URL>' cannot be used with '--load'",
        ),
    ] {
        let (code, out, errors) = output(flags);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{flags:?}: {errors}");
        assert!(errors.contains(expected), "{flags:?}: {errors}");
    }
}
