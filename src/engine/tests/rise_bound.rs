//! How long a chain takes whose last op is high and whose others are not, while low ops flood, also
//! those that were there first in its own flow: no longer than the bound that `verbring qos
//! --bound` prints for class high, once for each link. Under virtual time, over a device of a known
//! rate.

use super::shares::{KIB_NS, REQUEST_NS, Stage, limits};
use super::world::STEP_NS;
use crate::abi::{Class, EDGE_ORDER_ONLY, SQE_HARDLINK, SQE_LINK};
use crate::random::Random;
use crate::sched::bound::Device;
use crate::sched::{Mode, Policy};

/// Bytes of a link.
const LINK_BYTES: u32 = 4_096;
/// Ops of the flood that each client has under way.
const FLOOD: u32 = 16;
/// The client that pushes chains, behind a flood of its own.
const CHAINED: usize = 3;

/// One device, and what floods it.
struct Case {
    policy: Policy,
    device: Device,
    flood_bytes: u32,
}

impl Case {
    fn draw(random: &mut Random, mode: Mode) -> Self {
        let policy = Policy { mode, min_share: [0, 50, 50], ..Policy::DEFAULT };
        let slice_bytes = LINK_BYTES << random.below(5);
        let window_bytes = u64::from(slice_bytes) * (1 + random.below(8));
        let device = Device {
            window_bytes,
            window_wrs: 1 + random.below32(64),
            slice_bytes,
            rails: 1,
            bytes_per_s: 1024 * 1_000_000_000 / KIB_NS,
            wr_ns: REQUEST_NS,
        };
        Self { policy, device, flood_bytes: 2 * u32::try_from(window_bytes).unwrap() }
    }

    fn stage(&self) -> Stage {
        let Device { window_wrs, window_bytes, slice_bytes, .. } = self.device;
        let limits = limits(self.policy, window_wrs, window_bytes, slice_bytes);
        let mut stage = Stage::new(limits, &[0, 1, 2, 3]);
        (0..200).for_each(|_| self.turn(&mut stage));
        stage
    }

    /// A turn, with a low flood by everybody.
    fn turn(&self, stage: &mut Stage) {
        for client in 0..=CHAINED {
            stage.flood(client, Class::Low, self.flood_bytes, FLOOD);
        }
        stage.turn();
    }

    /// What `qos --bound` prints for class high, and the op's own time. Intake, release and
    /// completion are a turn late each, and the device, that falls dry between two turns, loses a
    /// turn for each window that it holds.
    fn bound_ns(&self) -> u64 {
        let bytes = LINK_BYTES.into();
        let wait_ns = self.device.worst_wait_ns(&self.policy, Class::High, bytes);
        let wait_ns = wait_ns.expect("a bound");
        let turns_ns = STEP_NS * (4 + wait_ns / self.device.window_ns().max(STEP_NS));
        wait_ns + self.device.time_ns(bytes, 1) + turns_ns
    }

    /// Pushes a chain, the last op of this class and the others low or medium; how long it took.
    fn chain_ns(&self, stage: &mut Stage, random: &mut Random, links: u32, last: Class) -> u64 {
        let mut linked = false;
        for left in (0..links).rev() {
            let class = match left {
                0 => last,
                _ if last == Class::Low => Class::Low,
                _ => random.pick(&[Class::Low, Class::Low, Class::Medium]),
            };
            let first = left == links - 1;
            let edge = random.pick(&[1, 1 | EDGE_ORDER_ONLY]);
            let edges = [if first || linked { 0 } else { edge }, 0];
            let flags = random.pick(&[0, 0, SQE_LINK, SQE_HARDLINK]);
            linked = flags != 0;
            let flags = if left == 0 { 0 } else { flags };
            stage.push_tied(CHAINED, (class, LINK_BYTES), edges, flags);
        }
        let end = stage.clients[CHAINED].took_ns.len() - 1;
        while stage.clients[CHAINED].took_ns[end] == 0 {
            self.turn(stage);
        }
        stage.clients[CHAINED].took_ns[end]
    }
}

#[test]
fn s13_a_chain_that_ends_high_is_within_the_printed_bound_under_a_low_flood() {
    let mut random = Random::new(13);
    for round in 0..40 {
        let mode = if round % 2 == 0 { Mode::Weighted } else { Mode::Strict };
        let case = Case::draw(&mut random, mode);
        let mut stage = case.stage();
        let bound_ns = case.bound_ns();
        for links in [1, 2, 3, 8] {
            let took_ns = case.chain_ns(&mut stage, &mut random, links, Class::High);
            let most_ns = u64::from(links) * bound_ns;
            let told = format!("{mode}, {links} links, {:?}", case.device);
            assert!(took_ns <= most_ns, "{took_ns} > {most_ns}: {told}");
            // Nobody is high: the flood goes first, and the bound would be passed.
            if links == 2 {
                let took_ns = case.chain_ns(&mut stage, &mut random, links, Class::Low);
                assert!(took_ns > most_ns, "no flood, {took_ns} <= {most_ns}: {told}");
            }
        }
    }
}
