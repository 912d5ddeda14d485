//! Worlds by the hundred. `VERBRING_WORLDS=n` runs more of them.

use std::cell::RefCell;

use super::{Count, Counts, Kind, failover, run};
use crate::seeds::each_seed;

#[test]
fn whatever_goes_wrong_every_world_comes_to_its_end() {
    let worlds = std::env::var("VERBRING_WORLDS").map_or(2_000, |text| text.parse().unwrap());
    let sums = RefCell::new(Counts::default());
    each_seed(worlds, |seed| match run(seed) {
        Ok(report) => sums.borrow_mut().merge(&report.counts),
        Err(broken) => panic!("{broken}\nreplay: {}", broken.replay()),
    });
    let sums = sums.into_inner();
    for count in Count::ALL {
        println!("{:>12} {}", sums.of(*count), count.name());
    }
    // Worlds in which nothing goes wrong prove nothing.
    let never = |count: &&Count| count.kind() != Kind::Sum && sums.of(**count) == 0;
    let never: Vec<_> = Count::ALL.iter().filter(never).map(|count| count.name()).collect();
    assert!(never.is_empty() || worlds < 2_000, "never happened: {never:?}");
}

#[test]
fn a_seed_gives_the_same_trace_each_time() {
    each_seed(50, |seed| assert_eq!(run(seed).unwrap(), run(seed).unwrap()));
}

#[test]
fn a_rail_that_is_killed_under_load_costs_its_share_and_comes_back_in_time() {
    let report = failover();
    assert!(report.broken.is_empty(), "{report:#?}");
}
