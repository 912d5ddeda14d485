//! Chains on a long wire: dependent requests go out together, and are still in order.
//!
//! Each end of the cable holds every packet back for 5 ms, so a round trip takes 10 ms and hides
//! what the machine itself adds. Times are the best of several: an emulated machine stands still
//! now and then.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use verbring::fabric::conformance::{Harness, request};
use verbring::fabric::{Fabric, REQUEST_CHAIN, Request, Verb};

use super::conformance::Two;
use super::side::{Place, places};

/// How long a packet is held back at each end.
const DELAY: Duration = Duration::from_millis(5);
const ROUND_TRIP: Duration = Duration::from_millis(10);
const TRIES: usize = 9;
const PATIENCE: Duration = Duration::from_secs(30);

/// Both ends of a cable that is slow until this is dropped.
struct LongWire([String; 2]);

impl LongWire {
    fn between(ends: [&Place; 2]) -> Self {
        let netdevs = ends.map(|place| {
            let parent = format!("/sys/class/infiniband/{}/parent", place.device);
            let netdev = fs::read_to_string(parent).expect("a Soft-RoCE device");
            netdev.trim().to_string()
        });
        let delay = format!("{}ms", DELAY.as_millis());
        for netdev in &netdevs {
            tc(&["qdisc", "add", "dev", netdev, "root", "netem", "delay", &delay]);
        }
        Self(netdevs)
    }
}

impl Drop for LongWire {
    fn drop(&mut self) {
        for netdev in &self.0 {
            let _ = Command::new("tc").args(["qdisc", "del", "dev", netdev, "root"]).status();
        }
    }
}

fn tc(arguments: &[&str]) {
    let status = Command::new("tc").args(arguments).status().expect("tc, of iproute2");
    assert!(status.success(), "tc {arguments:?}");
}

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
    let wire = LongWire::between([&first, &second]);
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
    let _wire = LongWire::between([&first, &second]);
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
