//! Devices whose driver moves the bytes while it posts: what an urgent op waits then, beside a
//! flood and with the limits that engines have by default.

use super::joined::Joined;
use super::options::Options;
use crate::abi::{CQE_TIME_UNIT_NS, Class, Cqe, Opcode, Sqe};
use crate::fabric::qp;
use crate::fabric::qp::sim::SimConfig;
use crate::ids::RingId;
use crate::random::Random;
use crate::sched::bound::Device;
use crate::sched::{Bounds, Contract, Policy};

const MS: u64 = 1_000_000;
/// What a KiB takes: 40 MB/s, as Soft-RoCE on an emulated machine.
const KIB_NS: u64 = 25_600;
const RATE: u64 = 1_024 * 1_000_000_000 / KIB_NS;
/// As by default.
const SLICE: u32 = 128 << 10;
const WINDOW: u64 = 2 << 20;
const TURN: u64 = 256 << 10;
/// Bytes of one op of the flood, and how many are under way.
const LOW: u32 = 1 << 20;
const LOWS: u64 = 32;
/// Bytes of an urgent op, and the place of it.
const HIGH: u32 = 4_096;
const HIGH_AT: u64 = LOWS * LOW as u64;
/// Urgent ops, of which the first are not counted: slices are whole until the rate is known.
const OPS: usize = 220;
const SKIPPED: usize = 20;

fn options(cards: usize, slice_ns: u64, turn_bytes: u64) -> Options {
    let mut options = Options::draw(&mut Random::new(1));
    let kib_ns = KIB_NS;
    let card = SimConfig { latency_ns: 2_000, kib_ns, eager: true, ..SimConfig::DEFAULT };
    options.engines = 2;
    options.cards = vec![card; cards];
    options.strands = (0..2).take(cards).collect();
    (options.sq_entries, options.cq_entries) = (64, 64);
    (options.contract, options.owners) = (Contract::of_ops(options.limits.records), 1);
    let bounds = Bounds { ops: 64, wrs: 256, bytes: WINDOW };
    options.limits = crate::engine::Limits {
        window_wrs: 64,
        window_bytes: 256 << 10,
        slice_bytes: SLICE,
        turn_bytes,
        intake_budget: 64,
        cut_off_ns: 1_000 * MS,
        policy: Policy { card: bounds, slice_ns, ..Policy::DEFAULT },
        ..options.limits
    };
    options.rails = qp::Config {
        depth: 128,
        receives: 8,
        inline_bytes: 64,
        signal_every: 4,
        message_bytes_max: card.limits.message_bytes_max,
        merge_bytes_max: 0,
        stuck_ns: 1_000 * MS,
        lost_ns: 2_000 * MS,
        ..options.rails
    };
    options
}

/// What became of urgent ops beside a flood.
struct Urgent {
    /// The longest that one took. Of the turn in which it is pushed all counts: it may have come at
    /// once after the engine had looked.
    most_ns: u64,
    /// What the engine says that the last one took from intake to its end.
    told_ns: u64,
    /// Bytes of the last slices that the flood was cut into.
    slice: u32,
}

/// Urgent ops, each pushed as soon as the one before it has ended.
fn urgent(options: &Options) -> Urgent {
    let mut two = Joined::new(options, HIGH_AT + u64::from(HIGH));
    while !two.cables[0].ready() {
        two.step();
    }
    let sqe = |place: u64, class: Class, bytes: u32| Sqe {
        opcode: Opcode::Write as u8,
        class: class as u8,
        user_data: place,
        local_region: two.own,
        remote_region: two.import,
        local_offset: place * u64::from(LOW),
        remote_offset: place * u64::from(LOW),
        bytes,
        ..Sqe::default()
    };
    let lows: Vec<_> = (0..LOWS).map(|place| sqe(place, Class::Low, LOW).to_words()).collect();
    let high = sqe(LOWS, Class::High, HIGH).to_words();
    let (mut took_ns, mut told_ns, mut since_ns) = (Vec::new(), 0, None);
    let (mut idle, mut turn_ns) = (vec![true; lows.len()], two.net.now_ns());
    while took_ns.len() < OPS {
        for (low, idle) in lows.iter().zip(&mut idle).filter(|(_, idle)| **idle) {
            two.end.push(*low);
            *idle = false;
        }
        if since_ns.is_none() {
            two.end.push(high);
            since_ns = Some(turn_ns);
        }
        if two.end.publish() {
            two.nodes[0].engine.wake(RingId(0));
        }
        turn_ns = two.net.now_ns();
        two.step();
        while let Some(words) = two.end.pop().unwrap() {
            let cqe = Cqe::from_words(words);
            assert!(cqe.res > 0, "{cqe:?}");
            match idle.get_mut(usize::try_from(cqe.user_data).unwrap()) {
                Some(idle) => *idle = true,
                None => {
                    took_ns.push(two.net.now_ns() - since_ns.take().unwrap());
                    told_ns = CQE_TIME_UNIT_NS * (u64::from(cqe.queued) + u64::from(cqe.service));
                }
            }
        }
        two.end.release();
    }
    let most_ns = took_ns.iter().skip(SKIPPED).max().copied().unwrap();
    let posted = two.net.posted(two.cables[0].numbers_at(0)[0]);
    let slice = posted.iter().rev().take(40).map(|wr| wr.bytes).max().unwrap();
    Urgent { most_ns, told_ns, slice }
}

/// What `verbring qos --bound` prints for these cards: they move their bytes one after the other.
fn bound_ns(policy: &Policy, cards: u32) -> u64 {
    let device = Device {
        window_bytes: WINDOW * u64::from(cards),
        window_wrs: 256 * cards,
        slice_bytes: SLICE,
        rails: cards,
        bytes_per_s: RATE,
        wr_ns: 0,
    };
    device.worst_wait_ns(policy, Class::High, 0).unwrap()
}

#[test]
fn an_urgent_op_waits_for_no_more_than_a_turn_or_two() {
    for (cards, slice_ns, slice) in [(1, 0, SLICE), (1, 100_000, 32 << 10), (2, 100_000, SLICE)] {
        let options = options(usize::try_from(cards).unwrap(), slice_ns, TURN);
        let urgent = urgent(&options);
        let (most_ns, bound_ns) = (urgent.most_ns, bound_ns(&options.limits.policy, cards));
        println!("{cards} cards, slices of {slice}: at most {most_ns} ns; bound {bound_ns}");
        assert!(most_ns <= bound_ns, "{most_ns} ns of {bound_ns}");
        // The turn that it came in, and its own, each with a slice beyond what a turn may give.
        let turn_ns = (TURN + u64::from(slice)) * KIB_NS / 1_024;
        assert!(most_ns <= 2 * turn_ns + MS, "{most_ns} ns, turns of {turn_ns}");
        // Its own turn's time is known, and the rate of a card that is posted to alone.
        assert!((turn_ns / 2..turn_ns + MS).contains(&urgent.told_ns), "{} ns", urgent.told_ns);
        assert_eq!(urgent.slice, slice);
    }
}

/// Else the driver moves all that a doorbell carries while the op waits to be seen, and as much
/// with it.
#[test]
fn without_a_limit_for_turns_the_bound_is_not_kept() {
    let options = options(1, 0, u64::MAX);
    let (most_ns, bound_ns) = (urgent(&options).most_ns, bound_ns(&options.limits.policy, 1));
    println!("at most {most_ns} ns; bound {bound_ns}");
    assert!(most_ns > bound_ns, "{most_ns} ns of {bound_ns}");
}
