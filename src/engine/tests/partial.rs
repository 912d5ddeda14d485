//! A fabric that takes a part of a post: the prefix is followed to its end, the rest goes back to
//! where it was, in order, with its fate and its credits.

use super::script::{Script, Stage};
use super::watched::entries;
use super::world::{LIMITS, Pair, SENDER, World, cancel, moved, outcome};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_RETRYABLE, Class, Detail, FATE_ACCEPTED, FATE_POSTED, Opcode, Page, Sqe,
    errno,
};
use crate::engine::Limits;
use crate::fabric::Request;

const WIDE: Limits = Limits { window_wrs: 16, window_bytes: 1 << 20, ..LIMITS };

fn held() -> (Stage, Pair<Script>) {
    let stage = Stage::new();
    let pair = Pair::new(World::new(WIDE, stage.fabric(WIDE)), 16);
    stage.hold();
    (stage, pair)
}

fn offsets(requests: &[Request]) -> Vec<u64> {
    requests.iter().map(|request| request.remote_offset).collect()
}

/// Three classes, sliced ops and single ones, and a list op: whatever the prefix, what the fabric
/// gets in the end is the order of a post that it took whole.
#[test]
fn partial_posts_go_back_to_their_place_and_order() {
    let mut whole = None;
    for taken in (0..=16).rev() {
        let (stage, mut pair) = held();
        let pages: Vec<Page> = (0..3)
            .map(|at| Page { local_offset: 4096 + at * 64, remote_offset: at * 64 })
            .collect();
        let list = pair.list(Opcode::Writev, &pages, 32);
        let sqes = [
            pair.write_as(Class::Low, 0, 600),
            pair.write_as(Class::Medium, 1024, 0),
            Sqe { remote_offset: 8192, class: Class::Medium as u8, ..list },
            pair.write_as(Class::High, 2048, 100),
            pair.write_as(Class::High, 3072, 1000),
            pair.write_as(Class::Medium, 5120, 600),
        ];
        for sqe in sqes {
            pair.world.push(SENDER, sqe);
        }
        stage.take_only(&[taken]);
        pair.world.turn();
        assert_eq!(stage.held(), taken.min(15));
        assert_eq!(stage.plan().offered[0].len(), 15);
        pair.world.turn();
        assert_eq!(stage.held(), 15, "the rest is offered again at once");
        let order = offsets(&stage.plan().taken);
        assert_eq!(order[..5], [2048, 3072, 3328, 3584, 3840], "high first");
        assert_eq!(&order, whole.get_or_insert_with(|| order.clone()), "after a prefix of {taken}");
        stage.release();
        pair.world.settle();
        let cqes = pair.world.pop(SENDER);
        let mut bytes: Vec<i32> = cqes.iter().map(|cqe| cqe.res).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, [0, 96, 100, 600, 600, 1000]);
        pair.world.expect_rest();
    }
}

/// Prefixes again and again, of lists that cross the blocks they are kept in.
#[test]
fn partial_posts_of_a_long_list_lose_no_page() {
    for step in 1..7 {
        for bytes in [0, 24, 300] {
            let (stage, mut pair) = held();
            let pages: Vec<Page> = (0..150)
                .map(|at| Page { local_offset: at * 304, remote_offset: (149 - at) * 304 })
                .collect();
            let sqe = pair.list(Opcode::Writev, &pages, bytes);
            pair.world.push(SENDER, sqe);
            for _ in 0..1_000 {
                stage.take_only(&[step, 0, 1]);
            }
            for _ in 0..600 {
                pair.world.turn();
                stage.complete_all();
            }
            let all = 150 * i32::try_from(bytes).unwrap();
            assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(all));
            let slices = if bytes == 300 { 2 } else { 1 };
            assert_eq!(stage.plan().taken.len(), 150 * slices, "each page once");
            let (near, far) = (pair.world.bytes(pair.near), pair.world.bytes(pair.target));
            for at in 0..150 {
                let (from, to, length) = (at * 304, (149 - at) * 304, bytes as usize);
                assert_eq!(near[from..from + length], far[to..to + length], "page {at}");
            }
            pair.world.expect_rest();
        }
    }
}

#[test]
fn partial_posts_return_the_rest_to_accepted() {
    for taken in 0..=4 {
        let (stage, mut pair) = held();
        for at in 0..4 {
            let sqe = pair.write(at * 64, 64);
            pair.world.push(SENDER, sqe);
        }
        stage.take_only(&[taken]);
        pair.world.turn();
        let mut fates = entries(&pair.world.clients[SENDER].heap);
        fates.sort_unstable();
        let stage_of = |number| if number < taken as u64 { FATE_POSTED } else { FATE_ACCEPTED };
        assert_eq!(fates, (0..4).map(|number| (number, stage_of(number))).collect::<Vec<_>>());
    }
}

#[test]
fn what_was_not_taken_can_be_cancelled_and_what_was_cannot() {
    for taken in 0..=4usize {
        let (stage, mut pair) = held();
        for at in 0..4 {
            let sqe = pair.write(at * 64, 64);
            pair.world.push(SENDER, sqe);
        }
        stage.take_only(&[taken, 0]);
        pair.world.turn();
        for number in 0..4 {
            pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, number));
        }
        pair.world.turn();
        stage.release();
        pair.world.settle();
        let cqes = pair.world.pop(SENDER);
        assert_eq!(cqes.len(), 8);
        for number in 0..4usize {
            let find = |key: usize| cqes.iter().find(|cqe| cqe.user_data == key as u64).unwrap();
            let (op, request) = (outcome(find(number)), outcome(find(4 + number)));
            if number < taken {
                assert_eq!((op, request), (moved(64), (-errno::EALREADY, 0, 0)));
            } else {
                let back = (-errno::ECANCELED, CQE_RETRYABLE, Detail::Cancelled as u16);
                assert_eq!((op, request), (back, (0, 0, 0)));
            }
        }
        pair.world.expect_rest();
    }
}

/// An op half of which was taken stays posted when the other half comes back.
#[test]
fn a_half_posted_op_stays_posted() {
    let (stage, mut pair) = held();
    let sqe = pair.write(0, 1024);
    pair.world.push(SENDER, sqe);
    stage.take_only(&[2, 0, 1]);
    for held in [2, 2, 3, 4] {
        pair.world.turn();
        assert_eq!(stage.held(), held);
        assert_eq!(entries(&pair.world.clients[SENDER].heap), [(0, FATE_POSTED)]);
    }
    stage.release();
    pair.world.settle();
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(1024));
}

/// A deadline counts again for an op whose post was not taken, and is forgotten once it was.
#[test]
fn a_deadline_survives_a_post_that_was_not_taken() {
    for bytes in [64, 600] {
        let (stage, mut pair) = held();
        let sqe = Sqe { arg: [5, 0], ..pair.write(0, bytes) };
        pair.world.push(SENDER, sqe);
        stage.take_only(&[0; 20]);
        for _ in 0..10 {
            pair.world.turn();
        }
        let late = (-errno::ETIME, CQE_RETRYABLE, Detail::Deadline as u16);
        assert_eq!(outcome(&pair.world.pop(SENDER)[0]), late);
        assert_eq!(stage.plan().taken.len(), 0);
        pair.world.expect_rest();
    }
}
