//! Numbers on the command line: one, a list, or a range to sweep over.
//!
//! `64`, `4K,64K,1M`, `64..1M` (doubling), `64..1M*4` (by four each time). K, M and G are powers
//! of 1,024; KiB, MiB and GiB are the same.

use std::str::FromStr;

use thiserror::Error;

/// The values of one parameter, in the order they are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sweep(pub(super) Vec<u64>);

/// A text that is no sweep.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum BadSweep {
    #[error("{0:?} is no number: write digits, with K, M or G for powers of 1,024")]
    Number(String),
    #[error("{0:?} is no factor: a range grows by 2 or more each time, as in 64..1M*4")]
    Factor(String),
    #[error("{0:?} runs backwards: the first number must be 1 or more and not above the last")]
    Backwards(String),
    #[error("{0} values, but must be at most {VALUES_MAX}")]
    Many(usize),
}

impl FromStr for Sweep {
    type Err = BadSweep;

    fn from_str(text: &str) -> Result<Self, BadSweep> {
        let mut values = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                None => values.push(read_bytes(part)?),
                Some((first, rest)) => range(part, first, rest, &mut values)?,
            }
        }
        if values.len() > VALUES_MAX { Err(BadSweep::Many(values.len())) } else { Ok(Self(values)) }
    }
}

fn range(part: &str, first: &str, rest: &str, values: &mut Vec<u64>) -> Result<(), BadSweep> {
    let (last, factor) = match rest.split_once(['*', 'x']) {
        None => (rest, 2),
        Some((last, factor)) => match factor.parse() {
            Ok(factor) if factor >= 2 => (last, factor),
            _ => return Err(BadSweep::Factor(factor.to_string())),
        },
    };
    let (first, last) = (read_bytes(first)?, read_bytes(last)?);
    if first == 0 || first > last {
        return Err(BadSweep::Backwards(part.to_string()));
    }
    let grown = |value: &u64| value.checked_mul(factor);
    values.extend(std::iter::successors(Some(first), grown).take_while(|value| *value <= last));
    Ok(())
}

/// Reads a number; a unit may follow.
pub(super) fn read_bytes(text: &str) -> Result<u64, BadSweep> {
    let bad = || BadSweep::Number(text.to_string());
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err(bad()),
    };
    // The standard parser also takes a sign.
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// More would take longer than anybody waits.
const VALUES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<u64> {
        text.parse::<Sweep>().unwrap().0
    }

    fn refusal(text: &str) -> String {
        text.parse::<Sweep>().unwrap_err().to_string()
    }

    #[test]
    fn numbers_lists_and_ranges() {
        assert_eq!(values("64"), [64]);
        assert_eq!(values("0"), [0]);
        assert_eq!(values("4K,1M,3"), [4096, 1 << 20, 3]);
        assert_eq!(values("4KiB,1MiB,1GiB,1G"), [4096, 1 << 20, 1 << 30, 1 << 30]);
        assert_eq!(values("64..512"), [64, 128, 256, 512]);
        assert_eq!(values("64..500"), [64, 128, 256]);
        assert_eq!(values("64..4K*4"), [64, 256, 1024, 4096]);
        assert_eq!(values("64..4Kx8"), [64, 512, 4096]);
        assert_eq!(values("1,2..8,100"), [1, 2, 4, 8, 100]);
        assert_eq!(values("7..7"), [7]);
        let top = u64::MAX;
        assert_eq!(values(&format!("{top}..{top}")), [top], "no overflow");
    }

    #[test]
    fn what_is_no_sweep_is_named() {
        for text in
            ["", "x", "4Q", "-1", "+1", "1,", "..4", "64..", "20000000000000000000", "99999999999G"]
        {
            assert!(refusal(text).contains("is no number"), "{text}");
        }
        assert_eq!(
            refusal("8..4"),
            "\"8..4\" runs backwards: the first number must be 1 or more and not above the last"
        );
        assert!(refusal("0..4").contains("runs backwards"));
        for text in ["1..8*1", "1..8*0", "1..8*x", "1..8*"] {
            assert!(refusal(text).contains("is no factor"), "{text}");
        }
        let many = vec!["1"; 65].join(",");
        assert_eq!(refusal(&many), "65 values, but must be at most 64");
    }
}
