//! Folding towards a peer: ops that wait for rails, that fail on one, or lack a credit.

use std::collections::BTreeMap;

use super::two::{CONFIG, Two, transfer};
use super::world::outcome;
use crate::abi::{
    CQE_COALESCED, Counter, Cqe, Detail, Opcode, RIGHTS_ALL, SQE_COALESCE, SQE_NOTIFY,
    SQE_SUPERSEDE, Sqe, errno,
};
use crate::fabric::qp::provider::WcStatus;
use crate::fabric::qp::sim::WorkPlan;
use crate::ids::RegionId;

/// Two engines, and a region of the second that the first may write to.
fn reached() -> (Two, (RegionId, RegionId)) {
    let mut two = Two::new(1);
    let (near, target) = (two.region(0), two.region(1));
    let far = two.offer(1, target, RIGHTS_ALL, [1; 3]);
    (two, (near, far))
}

fn end(two: &mut Two) -> BTreeMap<u64, Cqe> {
    two.settle();
    let cqes = two.pop(0);
    let count = cqes.len();
    let by_number: BTreeMap<u64, Cqe> = cqes.into_iter().map(|cqe| (cqe.user_data, cqe)).collect();
    assert_eq!(by_number.len(), count, "two CQEs for one op");
    by_number
}

fn counter(two: &Two, counter: Counter) -> u64 {
    two.worlds[0].engine.sessions[0].counters[counter as usize]
}

#[test]
fn w22_six_alike_go_by_a_rail_once_and_fail_together() {
    for status in [None, Some(WcStatus::RemoteAccess)] {
        for flags in [SQE_COALESCE, SQE_SUPERSEDE] {
            let (mut two, ids) = reached();
            if let Some(status) = status {
                let number = two.join.number(1, 0);
                two.net.plan_work(number, WorkPlan { after: 0, status, effect: false });
            }
            let sqe = Sqe { flags, ..transfer(Opcode::Write, ids, 0, 64) };
            (0..6).for_each(|_| _ = two.push(0, sqe));
            let cqes = end(&mut two);
            assert_eq!(cqes.len(), 6);
            let survivor = if flags == SQE_COALESCE { 0 } else { 5 };
            for (number, cqe) in &cqes {
                let (res, told, detail) = outcome(cqe);
                let folded = if *number == survivor { 0 } else { CQE_COALESCED };
                assert_eq!((cqe.record, told), (cqes[&survivor].record, folded));
                match status {
                    None => assert_eq!(res, 64),
                    Some(_) => {
                        assert_eq!((res, detail), (-errno::EACCES, Detail::Wire as u16));
                    }
                }
            }
            let moved = if status.is_none() { 64 } else { 0 };
            assert_eq!(counter(&two, Counter::Bytes), moved);
            let folded = [Counter::FoldHit, Counter::Superseded].map(|of| counter(&two, of));
            assert_eq!(folded, if flags == SQE_COALESCE { [5, 0] } else { [0, 5] });
            two.expect_rest();
        }
    }
}

/// The peer does not look at what arrives, so that no credit comes back: values wait aside, and
/// are replaced there, by some of their class and by others.
#[test]
fn values_that_lack_a_credit_are_replaced_where_they_wait() {
    for classes in [[0, 0, 0], [3, 3, 3], [3, 1, 2], [1, 3, 1]] {
        let (mut two, ids) = reached();
        two.stopped = Some(1);
        let tell = Sqe { flags: SQE_NOTIFY, ..transfer(Opcode::Write, ids, 0, 8) };
        for _ in 0..CONFIG.receives + 2 {
            two.push(0, tell);
        }
        two.steps(20);
        let early = two.pop(0).len();
        for class in classes {
            let flags = SQE_NOTIFY | SQE_SUPERSEDE;
            two.push(0, Sqe { flags, class, ..transfer(Opcode::Write, ids, 512, 8) });
            two.steps(5);
        }
        assert_eq!(counter(&two, Counter::Superseded), 2, "{classes:?}");
        two.stopped = None;
        let cqes = end(&mut two);
        assert_eq!(early + cqes.len(), CONFIG.receives as usize + 5);
        assert!(cqes.values().all(|cqe| cqe.res == 8));
        two.expect_rest();
    }
}
