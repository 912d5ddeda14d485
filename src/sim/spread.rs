//! Two wires of different rates: what each carries of a load for both, and how long that takes.

use std::collections::BTreeMap;

use super::joined::{Joined, RAILS};
use super::options::Options;
use crate::abi::{Cqe, Opcode, Sqe};
use crate::fabric::qp;
use crate::fabric::qp::sim::SimConfig;
use crate::ids::RingId;
use crate::random::Random;
use crate::sched::{Contract, Policy};

const MS: u64 = 1_000_000;
/// Ops under way, and bytes of the largest.
const UNDER_WAY: u64 = 64;
const LARGEST: u32 = 64 << 10;
/// What a KiB takes on the faster wire.
const KIB_NS: u64 = 500;

/// Wires of which the second is so many times slower.
fn options(slower: u64) -> Options {
    let mut options = Options::draw(&mut Random::new(1));
    let card = SimConfig { latency_ns: 2_000, kib_ns: KIB_NS, ..SimConfig::DEFAULT };
    options.engines = 2;
    options.cards = vec![card, SimConfig { kib_ns: slower * KIB_NS, ..card }];
    options.strands = vec![0, 1];
    (options.sq_entries, options.cq_entries) = (128, 128);
    (options.contract, options.owners) = (Contract::of_ops(options.limits.records), 1);
    options.limits = crate::engine::Limits {
        window_wrs: 64,
        window_bytes: 1 << 20,
        slice_bytes: LARGEST,
        intake_budget: 64,
        policy: Policy::DEFAULT,
        ..options.limits
    };
    options.rails = qp::Config {
        depth: 64,
        receives: 8,
        inline_bytes: 64,
        signal_every: 4,
        message_bytes_max: card.limits.message_bytes_max,
        // A full window takes the slower wire 50 ms.
        stuck_ns: 200 * MS,
        lost_ns: 2_000 * MS,
        ..options.rails
    };
    options
}

/// Draws the bytes of an op.
type Draw = fn(&mut Random) -> u32;

/// What came of a load.
struct Spread {
    /// Bytes that each rail carried, and what its wire would have if it had always been busy.
    carried: [u64; 2],
    most: [u64; 2],
    /// How long each op took, in order of length.
    took_ns: Vec<u64>,
}

/// One load of ops, each of as many bytes as `size` draws, kept up for a while of virtual time.
fn spread(slower: u64, size: Draw) -> Spread {
    const SPAN_NS: u64 = 100 * MS;
    let mut two = Joined::new(&options(slower), UNDER_WAY * u64::from(LARGEST));
    while !two.cables[0].ready() {
        two.step();
    }
    let mut random = Random::new(7);
    let (mut carried, mut took_ns, mut out) = ([0; 2], Vec::new(), BTreeMap::new());
    let begun_ns = two.net.now_ns();
    while two.net.now_ns() < begun_ns + SPAN_NS {
        for place in 0..UNDER_WAY {
            if out.contains_key(&place) || two.end.room() == 0 {
                continue;
            }
            let sqe = Sqe {
                opcode: Opcode::Write as u8,
                user_data: place,
                local_region: two.own,
                remote_region: two.import,
                local_offset: place * u64::from(LARGEST),
                remote_offset: place * u64::from(LARGEST),
                bytes: size(&mut random),
                ..Sqe::default()
            };
            two.end.push(sqe.to_words());
            out.insert(place, two.net.now_ns());
        }
        if two.end.publish() {
            two.nodes[0].engine.wake(RingId(0));
        }
        two.step();
        while let Some(words) = two.end.pop().unwrap() {
            let cqe = Cqe::from_words(words);
            let bytes = u64::try_from(cqe.res).unwrap();
            carried[usize::from(cqe.detail & 0xff) - usize::from(RAILS[0])] += bytes;
            took_ns.push(two.net.now_ns() - out.remove(&cqe.user_data).unwrap());
        }
        two.end.release();
    }
    took_ns.sort_unstable();
    Spread { carried, most: [1, slower].map(|times| SPAN_NS * 1_024 / (times * KIB_NS)), took_ns }
}

/// Both wires are full, and an op by the slower one takes hardly longer than one by the other: it
/// has as much before it as its wire moves in the same time, not as many ops.
#[test]
fn of_two_wires_each_carries_what_it_can_in_the_same_time() {
    let sizes: [(&str, u64, Draw); 3] = [
        ("all alike", 32 << 10, |_| 32 << 10),
        ("large and small", 34 << 10, |random| random.pick(&[4 << 10, LARGEST])),
        ("any", 36 << 10, |random| (8 << 10) + random.below32(LARGEST - (8 << 10))),
    ];
    for slower in [1, 2, 4, 8] {
        for (name, mean, size) in sizes {
            let Spread { carried, most, took_ns } = spread(slower, size);
            let full = [0, 1].map(|rail| 100 * carried[rail] / most[rail]);
            // What is under way, over both wires' rate: 1 KiB in KIB_NS and 1 / slower of that.
            let mean_ns = UNDER_WAY * (mean / 1_024) * KIB_NS * slower / (slower + 1);
            let p99_ns = took_ns[took_ns.len() * 99 / 100];
            println!("1 : {slower}, {name}: {full:?} % of each wire, {p99_ns} ns, {mean_ns} ns");
            assert!(full.iter().all(|full| *full >= 90), "1 : {slower}, {name}: {full:?}");
            assert!(2 * p99_ns <= 3 * mean_ns, "1 : {slower}, {name}: {p99_ns} of {mean_ns} ns");
        }
    }
}
