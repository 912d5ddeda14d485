//! Many small ops through an engine and its queue pairs, and chains of every length: clients see
//! neither a full queue nor a time-out, and nothing is left.

use super::two::{CONFIG, Two, rails_of, transfer};
use super::world::{LIMITS, arm};
use crate::abi::{CQE_MORE, CQE_NOTIFY, Opcode, RIGHTS_ALL, SQE_NOTIFY, Sqe};
use crate::engine::Limits;
use crate::fabric::qp::{Config, SENDS_KEPT};
use crate::ids::SessionId;

const KIB: u32 = 1024;

/// 10,000 writes of 1 KiB, each with a notification, 512 of them in flight, over a queue pair of so
/// many entries.
fn many_small(entries: u32, receives: u32) {
    const OPS: u64 = 10_000;
    const IN_FLIGHT: u64 = 512;
    let limits = Limits {
        records: 2048,
        window_wrs: entries,
        window_bytes: 1 << 30,
        slice_bytes: 1 << 16,
        intake_budget: 64,
        ..LIMITS
    };
    let depth = entries - SENDS_KEPT;
    let config =
        Config { depth, receives, rails_max: 2, inline_bytes: 16, signal_every: 64, ..CONFIG };
    let mut two = Two::with(limits, config, 1);
    let (near, target) = (two.region(0), two.region(1));
    let far = two.offer(1, target, RIGHTS_ALL, [1; 3]);
    // So far that the queue pair fills before the first answer is back.
    two.net.delay(two.join.number(1, 0), 10_000);
    let [client, owner] = [0, 1].map(|side| two.worlds[side].ring(SessionId(0), 1024, 1024));
    two.worlds.iter_mut().for_each(|world| world.audited = false);
    let (mut pushed, mut ended, mut told, mut arms, mut most) = (0_u64, 0_u64, 0_i32, 0, 0);
    let mut steps = 0;
    while ended < OPS || u64::try_from(told).unwrap() < OPS {
        while pushed < OPS && pushed - ended < IN_FLIGHT {
            let at = pushed % 64 * u64::from(KIB);
            let immediate = u32::try_from(pushed).unwrap();
            let sqe = transfer(Opcode::Write, (near, far), at, KIB);
            let sqe = Sqe { flags: SQE_NOTIFY, immediate, user_data: 1 + pushed, ..sqe };
            assert!(two.worlds[0].try_push(client, sqe).is_some(), "a client met a full queue");
            pushed += 1;
        }
        if arms == 0 {
            two.worlds[1].push(owner, Sqe { user_data: 1, ..arm(target, 256) });
            arms = 1;
        }
        two.step();
        most = most.max(rails_of(&mut two.worlds[0]).posted(1));
        for cqe in two.worlds[0].pop(client) {
            assert_eq!(cqe.res, i32::try_from(KIB).unwrap(), "{cqe:?}");
            ended += 1;
        }
        for cqe in two.worlds[1].pop(owner) {
            assert!(cqe.flags & CQE_NOTIFY != 0, "{cqe:?}");
            told += cqe.res;
            arms -= i32::from(cqe.flags & CQE_MORE == 0);
        }
        steps += 1;
        assert!(steps < 400_000, "it hangs: {ended} ended, {told} told");
    }
    assert_eq!((ended, told), (OPS, i32::try_from(OPS).unwrap()), "one CQE and one notification");
    two.settle();
    assert_eq!(two.worlds[0].pop(client), [], "and no more than that");
    assert!(two.worlds[0].bytes(near) == two.worlds[1].bytes(target));
    let number = two.join.number(1, 0);
    assert_eq!(two.net.overfull(), 0);
    assert!(two.net.occupied_most(number) <= entries as usize);
    let counts = rails_of(&mut two.worlds[0]).counts();
    assert_eq!((counts.degraded, counts.repeats, counts.partial), (0, 0, 0), "{counts:?}");
    for world in &mut two.worlds {
        assert!(rails_of(world).at_rest());
    }
    two.worlds[0].expect_rest();
    // Where the queue pair is smaller than what clients have in flight, it was full.
    assert!(most > depth / 2 || u64::from(depth) > IN_FLIGHT, "{most} of {depth} were used");
}

#[test]
fn w18_ten_thousand_small_writes_and_notifications_never_meet_a_full_queue() {
    many_small(4_351, 512);
}

/// The same where the queue pair, and the peer's receives, are far fewer than the ops in flight.
#[test]
fn w18_also_where_the_queue_pair_is_smaller_than_what_is_in_flight() {
    many_small(66, 16);
}

/// Ops of 1 to 16 slices that notify, which are chains, over 1 to 4 queue pairs of depth 1 to 16,
/// with no signal but those that are needed.
#[test]
fn w17_every_depth_chain_and_number_of_queue_pairs_ends_through_the_engine() {
    let limits = Limits { slice_bytes: 64, window_bytes: 1 << 20, ..LIMITS };
    for depth in 1..=16 {
        for chain in 1..=16_u32 {
            for rails in 1..=4_u16 {
                let case = format!("depth {depth}, chains of {chain}, {rails} queue pairs");
                let rails_max = rails + 1;
                let config =
                    Config { depth, rails_max, receives: 2, signal_every: 1 << 20, ..CONFIG };
                let mut two = Two::with(limits, config, rails);
                two.worlds.iter_mut().for_each(|world| world.audited = false);
                let near = two.region(0);
                let targets = [0; 4].map(|_| two.region(1));
                let far: Vec<_> = (1..=rails)
                    .map(|rail| two.offer(1, targets[usize::from(rail) - 1], RIGHTS_ALL, [rail; 3]))
                    .collect();
                let begun_ns = two.net.now_ns();
                for round in 0..3 {
                    for far in &far {
                        let sqe = transfer(Opcode::Write, (near, *far), round * 2048, 64 * chain);
                        two.push(0, Sqe { flags: SQE_NOTIFY, immediate: 1, ..sqe });
                    }
                }
                two.settle();
                let cqes = two.pop(0);
                assert_eq!(cqes.len(), 3 * usize::from(rails), "{case}");
                let bytes = i32::try_from(64 * chain).unwrap();
                assert!(cqes.iter().all(|cqe| cqe.res == bytes), "{case}: {cqes:?}");
                let spent_ns = two.net.now_ns() - begun_ns;
                assert!(spent_ns < CONFIG.stuck_ns, "{case}: {spent_ns} ns, a time-out");
                for target in &targets[..usize::from(rails)] {
                    let region = &two.worlds[1].engine.regions[target.index() as usize];
                    assert_eq!(region.pending, 3, "{case}");
                }
                assert_eq!(rails_of(&mut two.worlds[0]).counts().degraded, 0, "{case}");
                two.expect_rest();
            }
        }
    }
}
