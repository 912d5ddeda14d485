//! Claim: the ABI does not change by accident. `tests/abi.table` lists every offset, size and
//! constant of ABI 1; the Rust definitions must print exactly that, and the C, C++ and Python ones
//! are held to the same file by `tests/run c python`. Once version 1.0 is out, a deliberate change
//! is a new ABI number and a new table.

#[test]
fn the_frozen_table_is_what_the_crate_defines() {
    let frozen = include_str!("abi.table");
    let defined = verbring::abi::table();
    for (line, (name, value)) in frozen.lines().zip(&defined) {
        assert_eq!(line, format!("{name} {value}"));
    }
    assert_eq!(frozen.lines().count(), defined.len(), "names were added or lost");
}

#[test]
fn no_name_stands_for_two_numbers() {
    let mut names: Vec<String> = verbring::abi::table().into_iter().map(|(name, _)| name).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}
