//! A WRITE of x = 1 that times out on one rail succeeds on another; then x = 2 is written. Packets
//! of the first attempt come late: x never goes back to 1.
//!
//! The controls of both ends take their time, so that the other end's queue pair takes such packets
//! for a while. Held: from an op's success on nothing of any of its attempts lands.

use std::sync::atomic::Ordering;

use super::two::{CONFIG, Two, rails_of, transfer};
use super::world::LIMITS;
use crate::abi::{Opcode, RIGHTS_ALL};
use crate::fabric::qp::provider::PathSettings;
use crate::fabric::qp::{Config, Recovery};
use crate::seeds::{Random, each_seed};

/// A silent peer is noticed after 16 us.
const PATH: PathSettings = PathSettings { timeout: 1, retry: 1, ..PathSettings::DEFAULT };
const ROUNDS: u64 = 250;
/// A rail that failed is tried again soon, so that there are two of them in most rounds.
const RECOVERY: Recovery =
    Recovery { backoff_first_ns: 5_000, backoff_max_ns: 40_000, ..Recovery::DEFAULT };

/// A step in which the controls do something, or not.
fn step(two: &mut Two, random: &mut Random) {
    two.served = random.below(10) == 0;
    two.step();
}

#[test]
fn q11_a_late_packet_of_a_write_that_was_repeated_never_overwrites_the_one_after_it() {
    each_seed(1, |seed| {
        let mut random = Random::new(seed);
        let config = Config { attempts_max: 20, recovery: RECOVERY, ..CONFIG };
        let mut two = Two::by(LIMITS, config, 2, PATH);
        let (near, target) = (two.region(0), two.region(1));
        let far = two.offer_set(1, target, RIGHTS_ALL, 0b110);
        let [source, x] = [(0, near), (1, target)]
            .map(|(side, region)| two.worlds[side].memory[&region.0].clone());
        let x = || x.word64(0).load(Ordering::Acquire);
        let mut elsewhere = 0;
        for round in 0..ROUNDS {
            let rail = 1 + u16::try_from(random.below(2)).unwrap();
            let late_ns = random.pick(&[1_000, 10_000, 60_000]);
            two.net.hold_up(two.join.number(rail, 0), random.below(late_ns));
            for value in [2 * round + 1, 2 * round + 2] {
                let before = rails_of(&mut two.worlds[0]).counts().returned;
                source.word64(0).store(value, Ordering::Release);
                two.push(0, transfer(Opcode::Write, (near, far), 0, 8));
                let cqe = loop {
                    step(&mut two, &mut random);
                    if let [cqe] = two.pop(0)[..] {
                        break cqe;
                    }
                };
                assert_eq!((cqe.res, x()), (8, value), "{cqe:?}");
                elsewhere += rails_of(&mut two.worlds[0]).counts().returned - before;
            }
            for _ in 0..random.below(60) {
                step(&mut two, &mut random);
                assert_eq!(x(), 2 * round + 2, "in round {round}");
            }
        }
        two.served = true;
        two.settle();
        assert_eq!(x(), 2 * ROUNDS);
        // Late packets did land, while the repeat waited for the other end to take no more of them.
        let landed = two.net.landed_held();
        assert!(elsewhere > ROUNDS / 4 && landed > ROUNDS / 20, "{elsewhere} {landed}");
    });
}
