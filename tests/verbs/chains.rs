//! Chains on a long wire: dependent requests go out together, and are still in order.
//!
//! Each end of the cable holds every packet back for 5 ms, so a round trip takes 10 ms and hides
//! what the machine itself adds. Times are the best of several: an emulated machine stands still
//! now and then.

use std::time::{Duration, Instant};

use verbring::fabric::conformance::{Harness, request};
use verbring::fabric::{Fabric, REQUEST_CHAIN, Request, Verb};

use super::conformance::Two;
use super::side::places;
use super::wire::{ROUND_TRIP, Wire};

const TRIES: usize = 9;
const PATIENCE: Duration = Duration::from_secs(30);

/// Posts all at once and waits for all; how long it took.
fn time(two: &mut Two, requests: &[Request]) -> Duration {
    let begun = Instant::now();
    assert_eq!(two.fabric().post(requests), requests.len(), "one post");
    let mut done = Vec::with_capacity(16);
    let mut ended = 0;
    while ended < requests.len() {
        assert!(begun.elapsed() < PATIENCE, "{ended} of {} completed", requests.len());
        let now_ns = two.advance();
        two.fabric().poll(now_ns, &mut done);
        ended += done.len();
        for end in done.drain(..) {
            assert_eq!((end.errno, end.flags), (0, 0), "{end:?}");
        }
    }
    begun.elapsed()
}

fn best(two: &mut Two, requests: &[Request]) -> Duration {
    (0..TRIES).map(|_| time(two, requests)).min().expect("at least one")
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_chain_of_eight_writes_takes_hardly_longer_than_one() {
    let [first, second] = places();
    let mut two = Two::new([&first, &second], 1);
    let write = |n: u64| request(n, Verb::Write, 0, n * 64, 64);
    let chained = |n| Request { flags: REQUEST_CHAIN, ..write(n) };
    let chain: Vec<_> = (1..=8).map(|n| if n == 1 { write(n) } else { chained(n) }).collect();
    let wire = Wire::long([&first, &second]);
    let one = best(&mut two, &[write(0)]);
    let eight = best(&mut two, &chain);
    let apart = {
        let begun = Instant::now();
        for n in 0..8 {
            time(&mut two, &[write(n)]);
        }
        begun.elapsed()
    };
    drop(wire);
    eprintln!("one WRITE {one:?}, a chain of 8 {eight:?}, one after another {apart:?}");
    assert!(one >= ROUND_TRIP, "the wire is not slow: {one:?}");
    assert!(2 * eight <= 3 * one, "a chain of 8 took {eight:?}, one WRITE {one:?}");
    assert!(apart >= 8 * ROUND_TRIP, "one after another took {apart:?}");
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn what_is_read_over_a_long_wire_is_there_before_the_chained_write_takes_it() {
    let [first, second] = places();
    let mut two = Two::new([&first, &second], 1);
    let (near, far) = (two.near(), two.far());
    let _wire = Wire::long([&first, &second]);
    for n in 1..=5_u8 {
        near.fill(0, 4096, 0xee);
        far.fill(0, 4096, n);
        far.fill(8192, 4096, 0xdd);
        let read = request(1, Verb::Read, 0, 0, 4096);
        // Without a fence it would leave 10 ms before what it is to carry has come.
        let write = Request { flags: REQUEST_CHAIN, ..request(2, Verb::Write, 0, 8192, 4096) };
        time(&mut two, &[read, write]);
        let mut arrived = vec![0; 4096];
        far.read(8192, &mut arrived);
        assert!(arrived.iter().all(|&byte| byte == n), "round {n}: {:?}", &arrived[..8]);
    }
}
