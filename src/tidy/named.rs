//! What docs/faults.md says is shown by tests: they must be there, and every number must have its
//! row. And one rule that has no other test: nobody reads the wall clock.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Source, everything, obey, package, planted};

const PAGE: &str = "docs/faults.md";
/// Where tests that each bear a macro's name are written once.
const CONFORMANCE: &str = "src/fabric/conformance.rs";

/// Numbers that the page must have a row for.
fn numbers() -> impl Iterator<Item = String> {
    let faults = (1..=33).filter(|n| !matches!(n, 29));
    let faults = faults.map(|n| format!("F{n:02}"));
    let of = |letter: &'static str, numbers: Vec<u8>| {
        numbers.into_iter().map(move |n| format!("{letter}{n}"))
    };
    faults
        .chain(of("B", (1..=15).collect()))
        .chain(of("W", vec![17, 18, 19, 22]))
        .chain(of("R", vec![1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14]))
        .chain(of("Q", (1..=16).chain([19, 20]).collect()))
        .chain(of("X", vec![1, 2, 3, 4, 5, 7]))
}

/// Names of the tests in a file: functions behind a `#[test]`, and those of the macro.
fn tests_of(source: &Source) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let conformance = source.path == CONFORMANCE;
    let mut expected = conformance;
    for line in source.code.lines().map(str::trim) {
        if line.starts_with("#[test]") {
            expected = true;
        }
        let function = line.strip_prefix("pub fn ").or_else(|| line.strip_prefix("fn "));
        let Some(function) = function else { continue };
        let end = function.find(['(', '<']).unwrap_or(function.len());
        if expected {
            found.insert(function[..end].to_string());
        }
        expected = conformance;
    }
    found
}

/// The `file::test` pairs in a text, in backticks.
fn named(text: &str) -> Vec<(String, String)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| word.split_once(".rs::"))
        .map(|(file, test)| (format!("{file}.rs"), test.to_string()))
        .collect()
}

/// Rows of the page's tables: the first cell, and the whole.
fn rows(page: &str) -> Vec<(&str, &str)> {
    page.lines()
        .filter(|line| line.starts_with("| "))
        .filter_map(|line| Some((line[2..].split_once(" |")?.0, line)))
        .collect()
}

/// What is wrong with a page, given all tests.
fn offences(page: &str, tests: &BTreeSet<(String, String)>) -> Vec<String> {
    let mut found = Vec::new();
    let all = named(page);
    for (file, test) in &all {
        if !tests.contains(&(file.clone(), test.clone())) {
            found.push(format!("{file}::{test} is named, and not a test"));
        }
    }
    let rows = rows(page);
    for number in numbers() {
        let own: Vec<_> = rows.iter().filter(|(id, _)| *id == number).collect();
        let [(_, row)] = own.as_slice() else {
            found.push(format!("{number} has {} rows", own.len()));
            continue;
        };
        let prefix = format!("{}_", number.to_lowercase());
        let bears = |(_, test): &(String, String)| test.starts_with(&prefix);
        if named(row).is_empty() || number.starts_with('F') && !named(row).iter().any(bears) {
            found.push(format!("{number} is shown by no test of its name"));
        }
    }
    for (file, test) in tests {
        let bytes = test.as_bytes();
        let numbered = bytes.len() > 4
            && bytes[0] == b'f'
            && bytes[1..3].iter().all(u8::is_ascii_digit)
            && bytes[3] == b'_';
        if numbered && !all.contains(&(file.clone(), test.clone())) {
            found.push(format!("{file}::{test} bears a number, and is not named"));
        }
    }
    found
}

fn every_test() -> BTreeSet<(String, String)> {
    let of = |source: &Source| {
        let path = source.path.clone();
        tests_of(source).into_iter().map(move |test| (path.clone(), test))
    };
    everything().iter().flat_map(of).collect()
}

#[test]
fn what_is_said_of_faults_is_shown_by_tests_that_exist() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE)).unwrap();
    let found = offences(&page, &every_test());
    assert!(found.is_empty(), "{PAGE}:\n{}", found.join("\n"));
    assert!(named(&page).len() > 100, "the page is not read as it is written");
}

#[test]
fn planted_gaps_are_found() {
    let row = |number: &str| {
        let test = format!("{}_a", number.to_lowercase());
        format!("| {number} | a | `src/a.rs::{test}` |\n")
    };
    let page: String = numbers().map(|number| row(&number)).collect();
    let tests: BTreeSet<_> = named(&page).into_iter().collect();
    assert_eq!(offences(&page, &tests), [""; 0]);
    let without = page.replace(&row("F13"), "");
    assert_eq!(offences(&without, &tests).len(), 2, "a row and a test that nobody names");
    let twice = page.clone() + &row("Q9");
    assert_eq!(offences(&twice, &tests), ["Q9 has 2 rows"]);
    let renamed = page.replace("src/a.rs::x3_a", "src/a.rs::x3_b");
    assert_eq!(offences(&renamed, &tests), ["src/a.rs::x3_b is named, and not a test"]);
    let other = page.replace("src/a.rs::f08_a", "src/a.rs::f09_a");
    assert_eq!(offences(&other, &tests).len(), 2, "a test of another number");
    let source = "#[test]\nfn a() {}\nfn b() {}\n#[test]\n#[ignore = \"c\"]\nfn d<T>() {}\n";
    let read: Vec<_> = tests_of(&Source::new("tests/a.rs", source)).into_iter().collect();
    assert_eq!(read, ["a", "d"]);
}

/// Ways to the wall clock, which people and servers set.
const WALL_CLOCK: &[&str] = &["SystemTime", "UNIX_EPOCH", "CLOCK_REALTIME", "gettimeofday"];

fn wall_clock(source: &Source) -> Vec<String> {
    let place = |word: &str| source.shipped.find(word);
    let offence = |word| Some(source.offence(place(word)?, format!("{word}: not monotonic")));
    WALL_CLOCK.iter().filter_map(|word| offence(*word)).collect()
}

#[test]
fn f27_nothing_that_is_shipped_reads_the_wall_clock() {
    obey(wall_clock, &package());
    assert_eq!(planted(wall_clock, "src/host/mod.rs", "use std::time::SystemTime;"), 1);
    assert_eq!(planted(wall_clock, "src/clock.rs", "clock_gettime(ClockId::CLOCK_REALTIME)"), 1);
    assert_eq!(planted(wall_clock, "src/host/mod.rs", "// SystemTime\nlet a = \"UNIX_EPOCH\";"), 0);
}
