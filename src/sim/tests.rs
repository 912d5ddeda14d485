//! Worlds by the hundred. `VERBRING_WORLDS=n` runs more of them.

use std::cell::RefCell;

use super::{Asked, Count, Counts, Idle, Kind, failover, run, run_crowd};
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

/// `VERBRING_CROWDS=n` runs more of them.
#[test]
fn of_32_engines_joined_to_all_some_die_and_come_back_and_nothing_breaks() {
    let worlds = std::env::var("VERBRING_CROWDS").map_or(2, |text| text.parse().unwrap());
    let sums = RefCell::new(Counts::default());
    each_seed(worlds, |seed| match run_crowd(seed, 32) {
        Ok(report) => sums.borrow_mut().merge(&report.counts),
        Err(broken) => panic!("{broken}\nreplay: {}", broken.replay()),
    });
    let sums = sums.into_inner();
    let of = |count| sums.of(count);
    assert!(of(Count::EngineDied) >= worlds, "{sums:?}");
    assert_eq!(of(Count::EngineReturned), of(Count::EngineDied));
    // Each that came back was joined to all the others, but for those that were away, too.
    assert!(of(Count::Rejoined) > 25 * of(Count::EngineReturned), "{sums:?}");
    assert!(of(Count::DoneVerbs) > 1_000 * worlds && of(Count::HostDown) > 0, "{sums:?}");
}

#[test]
fn a_crowd_of_any_size_gives_the_same_trace_each_time() {
    each_seed(1, |seed| {
        for engines in [2, 5, 11] {
            let report = run_crowd(seed, engines).unwrap_or_else(|broken| panic!("{broken}"));
            assert_eq!(report, run_crowd(seed, engines).unwrap(), "{engines} engines");
        }
    });
}

#[test]
fn a_turn_does_the_same_whatever_the_number_of_idle_peers() {
    let (turns, ops) = (1_000, 4);
    let asked = |idle| {
        let mut hub = Idle::new(idle);
        let begun = hub.asked();
        (0..turns).for_each(|_| hub.turn());
        let rest = hub.asked() - begun;
        for _ in 0..200 {
            hub.push(ops);
            hub.finish(ops);
        }
        (rest, hub.asked() - begun - rest)
    };
    let (rest, work) = asked(0);
    assert_eq!(rest, Asked { turns, polls: turns, doorbells: 0, rails: 0 });
    assert!(work.doorbells >= 200 && work.rails >= 200, "{work:?}");
    for idle in [1, 8, 31, 61] {
        assert_eq!(asked(idle), (rest, work), "{idle} idle peers");
    }
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
