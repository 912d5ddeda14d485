//! Ops whose ranges continue each other at a peer share a work request; each keeps its own CQE.

use super::two::{CONFIG, Two, transfer};
use super::world::{LIMITS, outcome};
use crate::abi::{Counter, Opcode, RIGHTS_ALL, SQE_NO_MERGE, SQE_NOTIFY, Sqe, errno};
use crate::engine::{Command, Reply};
use crate::fabric::qp::Config;
use crate::fabric::qp::provider::WcStatus;
use crate::fabric::qp::sim::WorkPlan;
use crate::ids::RegionId;

fn route() -> (Two, (RegionId, RegionId), RegionId) {
    let config = Config { merge_bytes_max: LIMITS.slice_bytes, ..CONFIG };
    let mut two = Two::with(LIMITS, config, 1);
    let near = two.region(0);
    let target = two.region(1);
    let far = two.offer(1, target, RIGHTS_ALL, [1; 3]);
    (two, (near, far), target)
}

/// Ops that went in a neighbour's work request, as STATS says.
pub(super) fn merged(two: &mut Two) -> u64 {
    let token = two.told(0, |token| Command::Stats { session: None, token });
    match two.worlds[0].reply(token) {
        Some(Reply::Stats { counters, .. }) => counters[Counter::Merged as usize],
        other => panic!("{other:?}"),
    }
}

/// Pushes neighbours before any turn; how many work requests became of them.
fn works(two: &mut Two, sqes: &[Sqe]) -> usize {
    let number = two.join.number(1, 0);
    let before = two.net.posted(number).len();
    for (sqe, user_data) in sqes.iter().zip(1..) {
        two.push(0, Sqe { user_data, ..*sqe });
    }
    two.settle();
    two.net.posted(number).len() - before
}

#[test]
fn neighbours_share_a_work_request_and_each_has_its_cqe() {
    let (mut two, ids, target) = route();
    for (opcode, round) in [(Opcode::Write, 1), (Opcode::Read, 2)] {
        let made = [0, 1, 2, 3].map(|n| {
            // They lie in another order here.
            let sqe = transfer(opcode, ids, 0, 8);
            Sqe { local_offset: 512 - n * 100, remote_offset: n * 8, ..sqe }
        });
        let ours = two.worlds[0].memory[&ids.0.0].clone();
        for n in 0..4_u8 {
            let at = u64::from(n);
            match opcode {
                Opcode::Write => ours.write(512 - at * 100, &[n + 1; 8]),
                _ => ours.write(512 - at * 100, &[0; 8]),
            }
        }
        assert_eq!(works(&mut two, &made), 1, "{opcode:?}");
        let mut ends: Vec<_> =
            two.pop(0).iter().map(|cqe| (cqe.user_data, cqe.res, cqe.flags)).collect();
        ends.sort_unstable();
        assert_eq!(ends, [1, 2, 3, 4].map(|user_data| (user_data, 8, 0)));
        let theirs = two.worlds[1].bytes(target);
        let expected: Vec<u8> = (1..5).flat_map(|n| [n; 8]).collect();
        assert_eq!(theirs[..32], expected);
        let here = two.worlds[0].bytes(ids.0);
        assert!((0..4_u8).all(|n| here[512 - usize::from(n) * 100] == n + 1));
        assert_eq!(merged(&mut two), 3 * round);
    }
    two.expect_rest();
}

#[test]
fn an_op_that_would_not_be_merged_is_not_and_who_notifies_is_last() {
    let (mut two, ids, _) = route();
    let write = |n: u64, flags| Sqe { flags, ..transfer(Opcode::Write, ids, n * 8, 8) };
    let apart = SQE_NO_MERGE;
    for (flags, count) in [
        ([0, 0, 0, 0], 1),
        ([apart, 0, 0, 0], 2),
        ([0, apart, 0, 0], 3),
        ([apart; 4], 4),
        // A message goes behind.
        ([0, 0, 0, SQE_NOTIFY], 2),
        ([0, SQE_NOTIFY, 0, 0], 3),
    ] {
        let mut sqes = Vec::new();
        for (n, flags) in (0..).zip(flags) {
            sqes.push(write(n, flags));
        }
        assert_eq!(works(&mut two, &sqes), count, "{flags:?}");
        let ends: Vec<_> = two.pop(0).iter().map(|cqe| cqe.res).collect();
        assert_eq!(ends, [8; 4], "{flags:?}");
    }
    two.expect_rest();
}

/// What was cut into slices is not put together again; what is smaller is, up to a slice.
#[test]
fn merged_ops_are_of_a_slice_at_most() {
    let slice = LIMITS.slice_bytes;
    for (bytes, count) in [(slice, 2), (slice / 2, 1), (slice / 2 + 1, 2)] {
        let (mut two, ids, _) = route();
        let at = |at| transfer(Opcode::Write, ids, at, bytes);
        assert_eq!(works(&mut two, &[at(0), at(bytes.into())]), count, "{bytes}");
        assert!(two.pop(0).iter().all(|cqe| u32::try_from(cqe.res) == Ok(bytes)));
    }
}

/// The card refuses what several ops shared: all but the guilty one succeed.
#[test]
fn a_refusal_costs_only_the_op_at_fault() {
    let (mut two, ids, _) = route();
    let number = two.join.number(1, 0);
    for after in [0, 2] {
        let status = WcStatus::RemoteAccess;
        two.net.plan_work(number, WorkPlan { after, status, effect: false });
    }
    let sqes = [0, 1, 2, 3].map(|n| transfer(Opcode::Write, ids, n * 8, 8));
    works(&mut two, &sqes);
    for cqe in two.pop(0) {
        let bad = cqe.user_data == 3;
        assert_eq!(outcome(&cqe).0, if bad { -errno::EACCES } else { 8 }, "{cqe:?}");
    }
    two.expect_rest();
}
