//! WHY towards peers: which rails may carry an op, how each of them is, and what it lacks there.

use super::two::{CONFIG, Two, rails_of, transfer};
use super::world::{LIMITS, STEP_NS};
use crate::abi::{
    Class, Opcode, RAIL_CONNECTING, RAIL_DEAD, RAIL_DEGRADED, RAIL_FULL, RAIL_MEMORY, RAIL_OPEN,
    RAIL_PAUSED, RAIL_REBUILDING, RIGHTS_ALL, SQE_NOTIFY, STATE_POSTED, STATE_QUEUED, Sqe,
    WAIT_CLASS, WAIT_CREDIT, WAIT_FABRIC, WAIT_LANE, WAIT_RAIL, WAIT_WINDOW_BYTES,
};
use crate::engine::why::rail_state;
use crate::engine::{Limits, Why};
use crate::fabric::qp::{News, RailState, Told};
use crate::fabric::{Room, Stop};
use crate::ids::RegionId;
use crate::sched::{Bounds, Policy};

/// Rails 1 and 2 to one place.
const BOTH: u64 = 0b110;

/// Two engines, rails between them, and a region of one that the other has by all of them.
fn joined(limits: Limits, rails: u16) -> (Two, (RegionId, RegionId)) {
    let mut two = Two::with(limits, CONFIG, rails);
    let (near, target) = (two.region(0), two.region(1));
    let set = if rails == 1 { 2 } else { BOTH };
    let far = two.offer_set(1, target, RIGHTS_ALL, set);
    (two, (near, far))
}

/// Completions come late, so that what is posted stays so for a while.
fn slow(two: &Two, rail: u16) {
    two.net.delay(two.join.number(rail, 0), 200 * STEP_NS);
}

fn states(why: &Why) -> Vec<u8> {
    let count = why.rails.count_ones() as usize;
    why.rail_states.to_le_bytes()[..count].to_vec()
}

#[test]
fn a_rail_whose_depth_is_used_up_is_named_with_its_depth() {
    let (mut two, ids) = joined(Limits { window_bytes: 1 << 20, ..LIMITS }, 1);
    slow(&two, 1);
    let depth = u64::from(CONFIG.depth);
    let numbers: Vec<u64> =
        (0..depth + 2).map(|at| two.push(0, transfer(Opcode::Write, ids, at * 512, 100))).collect();
    let low = Sqe { class: Class::Low as u8, ..transfer(Opcode::Write, ids, 0, 100) };
    let low = two.push(0, low);
    two.steps(3);
    let posted = two.why(0, numbers[0]).unwrap();
    assert_eq!((posted.state, posted.wait, posted.rail), (STATE_POSTED, WAIT_FABRIC, 1));
    assert_eq!((posted.rails, posted.posts, posted.in_fabric), (2, 1, 1));
    let first = two.why(0, numbers[numbers.len() - 2]).unwrap();
    assert_eq!((first.state, first.wait, first.ahead), (STATE_QUEUED, WAIT_RAIL, 0));
    assert_eq!((first.used, first.limit, first.wants, first.rail), (depth, depth, 1, 1));
    assert_eq!((first.rails, states(&first)), (2, vec![RAIL_FULL]));
    assert_eq!(two.why(0, numbers[numbers.len() - 1]).unwrap().ahead, 1);
    assert_eq!(two.why(0, low).unwrap().wait, WAIT_RAIL, "it takes nothing, of whatever class");
    two.settle();
    two.expect_rest();
}

#[test]
fn a_cards_window_is_told_with_its_bytes() {
    let card = Bounds { bytes: 1024, ..Bounds::NONE };
    let policy = Policy { card, ..LIMITS.policy };
    let (mut two, ids) = joined(Limits { policy, ..LIMITS }, 1);
    slow(&two, 1);
    let big = two.push(0, transfer(Opcode::Write, ids, 0, 2000));
    let next = two.push(0, transfer(Opcode::Write, ids, 4096, 100));
    let low = Sqe { class: Class::Low as u8, ..transfer(Opcode::Write, ids, 8192, 100) };
    let low = two.push(0, low);
    two.steps(3);
    let why = two.why(0, big).unwrap();
    assert_eq!((why.state, why.wait, why.rail), (STATE_POSTED, WAIT_WINDOW_BYTES, 1));
    assert_eq!((why.used, why.limit, why.wants), (1024, 1024, 256));
    assert_eq!((why.posts, why.in_fabric, states(&why)), (4, 4, vec![RAIL_OPEN]));
    let why = two.why(0, next).unwrap();
    assert_eq!((why.wait, why.ahead), (WAIT_LANE, 1));
    let why = two.why(0, low).unwrap();
    assert_eq!((why.wait, why.ahead), (WAIT_CLASS, 0));
    two.settle();
    two.expect_rest();
}

#[test]
fn a_notification_without_credit_says_so() {
    let (mut two, ids) = joined(LIMITS, 1);
    two.stopped = Some(1);
    let credits = u64::from(CONFIG.receives);
    for at in 0..=credits {
        let sqe = transfer(Opcode::Write, ids, at * 1024, 100);
        two.push(0, Sqe { flags: SQE_NOTIFY, immediate: 1, ..sqe });
    }
    two.steps(60);
    let why = two.why(0, credits).unwrap();
    assert_eq!((why.state, why.wait, why.wants), (STATE_QUEUED, WAIT_CREDIT, 1));
    assert_eq!((why.rails, states(&why)), (2, vec![RAIL_OPEN]));
    two.stopped = None;
    two.settle();
    two.expect_rest();
}

/// A rail that is broken, and one that has left: each is told as it is.
#[test]
fn rails_that_take_nothing_are_told_one_by_one() {
    let (mut two, ids) = joined(LIMITS, 2);
    two.served = false;
    two.net.break_pair(two.join.number(2, 0));
    two.push(0, transfer(Opcode::Write, ids, 0, 4000));
    two.steps(100);
    let told = Told { rail: 1, epoch: 1, news: News::Gone };
    rails_of(&mut two.worlds[0]).tell(told);
    assert_eq!(two.state(0, 1), RailState::Dead);
    let number = two.push(0, transfer(Opcode::Write, ids, 8192, 100));
    two.steps(100);
    let down = match two.state(0, 2) {
        RailState::Degraded => RAIL_DEGRADED,
        RailState::Rebuilding => RAIL_REBUILDING,
        other => panic!("the plan struck elsewhere: {other:?}"),
    };
    let why = two.why(0, number).unwrap();
    assert_eq!((why.state, why.rails), (STATE_QUEUED, BOTH));
    assert_eq!(states(&why), [RAIL_DEAD, down], "{why:?}");
    assert_eq!((why.limit, why.posts), (0, 0));
    two.served = true;
    two.settle();
}

#[test]
fn each_stop_of_a_rail_has_a_number_of_its_own() {
    let stops = [
        (None, RAIL_OPEN),
        (Some(Stop::Depth), RAIL_FULL),
        (Some(Stop::Memory), RAIL_MEMORY),
        (Some(Stop::Connecting), RAIL_CONNECTING),
        (Some(Stop::Degraded), RAIL_DEGRADED),
        (Some(Stop::Rebuilding), RAIL_REBUILDING),
        (Some(Stop::Paused), RAIL_PAUSED),
        (Some(Stop::Dead), RAIL_DEAD),
    ];
    for (number, (stop, state)) in (0..).zip(stops) {
        let said = rail_state(Room { requests: 0, notifies: 0, stop });
        assert_eq!((said, said), (state, number));
    }
}
