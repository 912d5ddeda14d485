//! `verbring bench chain` and `bench coalesce` as programs meet them.
//!
//! Claimed: every graph and every load gets rows of the promised shape that hold together, with
//! each way of running it; counters account for every op; what cannot be is refused with the field,
//! the value and the limit; charts are drawn; nothing is left behind. Nothing here asserts a speed.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

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
            std::env::temp_dir().join(format!("verbring-chains-{}-{count}", std::process::id()));
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
        .arg("bench")
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

fn named(rows: &[Value]) -> Vec<(String, String)> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_string();
    rows.iter().map(|row| (text(row, "shape"), text(row, "who"))).collect()
}

const SHORT: [&str; 4] = ["--runs", "2", "--slice-ms", "1"];

#[test]
fn a_chain_has_a_row_for_each_way_to_run_it() {
    let flags = ["chain", "--lengths", "1,16", "--size", "64,4K", "--graphs", "none"];
    let rows = rows(&[&flags[..], &SHORT].concat());
    let ways = ["wired", "edge", "independent", "one_by_one"];
    let expected: Vec<(String, String)> = ["chain_1", "chain_16", "chain_1", "chain_16"]
        .into_iter()
        .flat_map(|shape| ways.map(|who| (shape.to_string(), who.to_string())))
        .collect();
    assert_eq!(named(&rows), expected);
    for (at, row) in rows.iter().enumerate() {
        assert_eq!(row["bench"], "chain", "{row}");
        assert_eq!(row["size_bytes"], if at < 8 { 64 } else { 4_096 }, "{row}");
        let ops = number(row, "ops");
        assert_eq!(number(row, "edges"), ops - 1.0, "{row}");
        let told = number(row, "ns_per_op") * ops;
        assert!((number(row, "chain_ns") - told).abs() < 1e-6 * told && told > 0.0, "{row}");
        assert_eq!((&row["runs"], number(row, "spread") >= 0.0), (&2.into(), true));
        let costs = ops > 1.0 && row["who"] != "independent";
        assert_eq!(row["ns_per_edge"].is_number(), costs, "{row}");
        // Whoever names another has waited, or would have; nobody else has.
        let names = ops > 1.0 && (row["who"] == "wired" || row["who"] == "edge");
        assert_eq!(row["waited"].is_number(), names, "{row}");
    }
}

#[test]
fn graphs_run_with_their_edges_and_without() {
    let flags = ["chain", "--lengths", "1", "--size", "64", "--nodes", "3300", "--edges", "6600"];
    let rows = rows(&[&flags[..], &SHORT].concat());
    let graphs = ["diamonds_256", "fan_out_1024", "fan_in_1024", "random_3300", "random_nops_3300"];
    let expected: Vec<(String, String)> = graphs
        .into_iter()
        .flat_map(|shape| {
            ["wired", "edge", "independent"].map(|who| (shape.to_string(), who.to_string()))
        })
        .collect();
    assert_eq!(named(&rows)[4..], expected);
    let sizes: Vec<[f64; 2]> = rows[4..]
        .iter()
        .step_by(3)
        .map(|row| ["ops", "edges"].map(|name| number(row, name)))
        .collect();
    assert_eq!(sizes[..3], [[1_024.0, 1_024.0], [1_025.0, 1_024.0], [1_141.0, 1_140.0]]);
    for [nodes, edges] in &sizes[3..] {
        assert!(*nodes == 3_300.0 && (edges - 6_600.0).abs() <= 10.0, "{nodes} {edges}");
    }
    for ways in rows[4..].chunks(3) {
        assert!(ways[..2].iter().all(|row| number(row, "waited") > 0.0), "nobody waited: {ways:?}");
        assert!(ways[2]["waited"].is_null(), "{}", ways[2]);
    }
}

/// People are told, beside the rows, what was promised and whether it is so; a chart is drawn.
#[test]
fn a_chain_answers_what_was_asked_of_it() {
    let plot = std::env::temp_dir().join(format!("verbring-chains-{}.svg", std::process::id()));
    let flags = ["chain", "--lengths", "1,16", "--size", "64", "--graphs", "fan-out", "--plot"];
    let (code, out, errors) = output(&[&flags[..], &[plot.to_str().unwrap()], &SHORT].concat());
    assert_eq!(code, Some(0), "{errors}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].contains("ns/edge") && lines.len() == 1 + 8 + 3 + 3, "{out}");
    let asked = ["wiring and release", "a chain of 16 WRITEs", "a chain of 16 WRITEs"];
    for (line, asked) in lines[12..].iter().zip(asked) {
        assert!(line.starts_with(asked), "{line}");
        assert!(line.ends_with(": yes") || line.ends_with(": no"), "{line}");
    }
    let svg = std::fs::read_to_string(&plot).unwrap();
    std::fs::remove_file(&plot).unwrap();
    for text in ["ops of a chain", "one_by_one", "independent"] {
        assert!(svg.contains(text), "{text}");
    }
}

/// Back-pressure, not refusal: a graph goes through a pool that is far too small for it.
#[test]
fn a_graph_goes_through_a_small_pool() {
    let flags = ["chain", "--lengths", "256", "--size", "64", "--graphs", "fan-in,random"];
    let more = ["--nodes", "3300", "--edges", "6600", "--set", "edges=64"];
    let rows = rows(&[&flags[..], &more, &["--set", "sessions_max=2"], &SHORT].concat());
    assert_eq!(rows.len(), 4 + 3 + 3);
}

#[test]
fn refreshes_are_accounted_for_op_by_op() {
    let flags = ["coalesce", "--duplicates", "0,90", "--batch", "32", "--keys", "1,1000"];
    let rows = rows(&[&flags[..], &["--memory", "8M"], &SHORT].concat());
    let shapes = [
        "six_and_one",
        "keys_1_duplicates_0_batch_32",
        "keys_1_duplicates_90_batch_32",
        "keys_1000_duplicates_0_batch_32",
        "keys_1000_duplicates_90_batch_32",
        "half_duplicates",
        "miss",
    ];
    let expected: Vec<(String, String)> = shapes
        .into_iter()
        .flat_map(|shape| ["plain", "coalesce"].map(|who| (shape.to_string(), who.to_string())))
        .collect();
    assert_eq!(named(&rows), expected);
    let outcomes = ["hit", "none", "disabled", "edges", "key", "started"];
    for row in &rows {
        let [ops, transfers, hits] = ["ops", "transfers", "fold_hit"].map(|it| number(row, it));
        let attempts: f64 = outcomes.iter().map(|it| number(row, &format!("fold_{it}"))).sum();
        assert_eq!(attempts, if row["who"] == "plain" { 0.0 } else { ops }, "{row}");
        assert!(ops > 0.0 && transfers + hits == ops, "{row}");
        assert_eq!(row["bench"], "coalesce");
        assert!(row["ns_per_edge"].is_null() && row["chain_ns"].is_null(), "{row}");
        assert_eq!(row["ratio"].is_number(), row["who"] == "coalesce", "{row}");
        assert!(number(row, "ns_per_op") > 0.0 && row["runs"] == 2, "{row}");
    }
    let six = &rows[1];
    assert_eq!(number(six, "fold_hit") * 7.0, number(six, "ops") * 5.0, "{six}");
    assert!(number(&rows[9], "fold_hit") > 0.0, "{}", rows[9]);
}

/// With folding off nothing folds, and the outcome says why.
#[test]
fn an_engine_that_does_not_fold_says_so() {
    let flags = ["coalesce", "--duplicates", "50", "--batch", "32", "--keys", "1000"];
    let more = ["--memory", "8M", "--set", "coalesce=false"];
    for row in rows(&[&flags[..], &more, &SHORT].concat()) {
        let expected = if row["who"] == "plain" { 0.0 } else { number(&row, "ops") };
        assert_eq!(number(&row, "fold_disabled"), expected, "{row}");
        assert_eq!(number(&row, "transfers"), number(&row, "ops"), "{row}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_field_value_and_limit() {
    for (flags, expected) in [
        (&["chain", "--lengths", "0"][..], "--lengths is 0, but must be 1 to 1000000"),
        (&["chain", "--size", "0"], "--size is 0, but must be 1 to 2147479552 bytes"),
        (&["chain", "--graphs", "ring"], "invalid value 'ring'"),
        (&["chain", "--nodes", "32"], "32 is not in 33..=1000000"),
        (&["chain", "--edges", "1"], "--edges is 1, but must be 83999 to 147999"),
        (&["chain", "--reach", "9"], "9 is not in 10..=32767"),
        (&["chain", "--set", "edges=1"], "edges is 1, but must be "),
        (&["coalesce", "--duplicates", "101"], "--duplicates is 101, but must be at most 100"),
        (&["coalesce", "--batch", "4096"], "--batch is 4096, but must be at most 2048"),
        (&["coalesce", "--batch", "0"], "--batch is 0, but must be 1 to 32768"),
        (&["coalesce", "--keys", "2M"], "--keys is 2097152, but must be at most 1048576"),
        (&["coalesce", "--keys", "0"], "--working-set is 0, but must be source and destination"),
        (&["coalesce", "--size", "0"], "--size is 0, but must be 1 to 2147479552 bytes"),
    ] {
        let (code, out, errors) = output(flags);
        assert_eq!(code, Some(2), "{flags:?}: {errors}");
        assert!(out.is_empty() && errors.contains(expected), "{flags:?}: {errors}");
    }
}
