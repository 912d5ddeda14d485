//! SUPERSEDE: of what is queued for one slot the last value is written, once, and no later than
//! the first would have been.

use super::cancel::held_under;
use super::fold::{blocked, counter, end};
use super::script::Script;
use super::watched::entries;
use super::world::{LIMITS, Pair, RECEIVER, SENDER, arm, cancel, failed, moved, outcome};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_COALESCED, CQE_RETRYABLE, Class, Counter, Detail, FATE_ACCEPTED,
    SQE_NOTIFY, SQE_SUPERSEDE, Sqe, errno,
};
use crate::engine::Limits;

/// A value from another place each, all for one slot.
fn value(pair: &Pair<Script>, from: u64) -> Sqe {
    let sqe = pair.write(from * 64, 64);
    Sqe { flags: SQE_SUPERSEDE, remote_offset: 4096, ..sqe }
}

/// Which value the slot has.
fn written(pair: &Pair<Script>) -> u64 {
    let slot = &pair.world.bytes(pair.target)[4096..4160];
    let near = pair.world.bytes(pair.near);
    let from = (0..64).find(|from| near[from * 64..][..64] == *slot);
    from.map_or(u64::MAX, |from| from as u64)
}

#[test]
fn the_last_value_is_written_and_every_one_is_told() {
    let (stage, mut pair) = blocked(64);
    for from in 1..=20 {
        let sqe = value(&pair, from);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    assert_eq!(counter(&pair, Counter::Superseded), 19);
    let cqes = end(&stage, &mut pair);
    assert_eq!((written(&pair), stage.plan().taken.len(), cqes.len()), (20, 2, 21));
    for number in 1..=20 {
        let flags = if number < 20 { CQE_COALESCED } else { 0 };
        let (res, _, detail) = moved(64);
        assert_eq!(outcome(&cqes[&number]), (res, flags, detail));
        assert_eq!(cqes[&number].record, cqes[&20].record);
    }
    assert_eq!(counter(&pair, Counter::FoldNone), 0, "it is no attempt to coalesce");
}

#[test]
fn a_tag_a_range_and_a_notification_tell_slots_apart() {
    let (stage, mut pair) = blocked(64);
    let base = Sqe { arg: [0, 5], ..value(&pair, 1) };
    let apart = [
        base,
        Sqe { arg: [0, 6], ..base },
        Sqe { remote_offset: 4097, ..base },
        Sqe { bytes: 63, ..base },
        Sqe { flags: base.flags | SQE_NOTIFY, ..base },
    ];
    for sqe in apart.into_iter().chain(apart) {
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    assert_eq!(counter(&pair, Counter::Superseded), 5);
    assert_eq!(end(&stage, &mut pair).len(), 11);
    assert_eq!(stage.plan().taken.len(), 6);
}

/// Whoever always has a newer value is served as early as if it had none.
#[test]
fn a_newer_value_stands_where_the_older_stood() {
    let (stage, mut pair) = blocked(64);
    let first = value(&pair, 1);
    pair.world.push(SENDER, first);
    for at in 0..4 {
        let other = pair.write(512 + at * 64, 64);
        pair.world.push(SENDER, other);
    }
    pair.world.turn();
    for from in 2..6 {
        let sqe = value(&pair, from);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    stage.complete_all();
    pair.world.turn();
    assert_eq!(stage.plan().held[0].local_offset, 5 * 64);
    assert_eq!(end(&stage, &mut pair).len(), 10);
    assert_eq!(written(&pair), 5);
}

/// The last value that is not taken back is written.
#[test]
fn f24_taking_back_the_last_value_writes_the_one_before() {
    let back = failed(errno::ECANCELED, CQE_RETRYABLE, Detail::Cancelled);
    for gone in 0..1 << 4 {
        let (stage, mut pair) = blocked(64);
        for from in 1..=4 {
            let sqe = value(&pair, from);
            pair.world.push(SENDER, sqe);
        }
        pair.world.turn();
        let gone: Vec<u64> = (1..=4).filter(|number| gone >> (number - 1) & 1 == 1).collect();
        for &number in gone.iter().rev() {
            let sqe = Sqe { user_data: 100 + number, ..cancel(CANCEL_BY_NUMBER, number) };
            pair.world.push(SENDER, sqe);
        }
        pair.world.turn();
        let cqes = end(&stage, &mut pair);
        let last = (1..=4).rev().find(|number| !gone.contains(number));
        for number in 1..=4 {
            let told = outcome(&cqes[&number]);
            let (res, _, detail) = moved(64);
            let flags = if Some(number) == last { 0 } else { CQE_COALESCED };
            assert_eq!(told, if gone.contains(&number) { back } else { (res, flags, detail) });
        }
        assert_eq!(stage.plan().taken.len(), 1 + usize::from(last.is_some()));
        if let Some(last) = last {
            assert_eq!(written(&pair), last);
        }
    }
}

/// A value that was replaced is never moved: its fate entry says accepted to the end.
#[test]
fn what_was_replaced_reads_as_not_started() {
    let (stage, mut pair) = blocked(64);
    for from in 1..=3 {
        let sqe = value(&pair, from);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    stage.complete_all();
    pair.world.turn();
    let heap = &pair.world.clients[SENDER].heap;
    let stages: Vec<u64> = (1..=3)
        .map(|number| entries(heap).iter().find(|entry| entry.0 == number).unwrap().1)
        .collect();
    assert_eq!(stages[..2], [FATE_ACCEPTED; 2]);
    assert_ne!(stages[2], FATE_ACCEPTED);
    assert_eq!(end(&stage, &mut pair).len(), 4);
}

/// More of them than are ended in one turn, with one notification for all.
#[test]
fn a_storm_of_values_is_one_transfer() {
    let limits = Limits { records: 2048, window_wrs: 1, ..LIMITS };
    let (stage, mut pair) = held_under(limits, 512);
    let listen = arm(pair.target, 1);
    pair.world.push(RECEIVER, listen);
    let first = pair.write(0, 64);
    pair.world.push(SENDER, first);
    pair.world.turn();
    for from in 0..400 {
        let sqe = value(&pair, from % 30);
        let sqe = Sqe { flags: sqe.flags | SQE_NOTIFY, immediate: 7, ..sqe };
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    let cqes = end(&stage, &mut pair);
    assert_eq!((cqes.len(), stage.plan().taken.len(), written(&pair)), (401, 2, 9));
    assert_eq!(pair.world.pop(RECEIVER).len(), 1);
    assert_eq!(counter(&pair, Counter::Superseded), 399);
}

/// The newer value is as urgent as the more urgent of both, and stands in that class's queue.
#[test]
fn a_value_is_as_urgent_as_the_most_urgent_that_it_replaces() {
    for classes in [[Class::High, Class::Low], [Class::Low, Class::High]] {
        let (stage, mut pair) = blocked(64);
        let other = pair.write_as(Class::Medium, 512, 64);
        pair.world.push(SENDER, other);
        for (from, class) in (1..).zip(classes) {
            let sqe = Sqe { class: class as u8, ..value(&pair, from) };
            pair.world.push(SENDER, sqe);
        }
        pair.world.turn();
        stage.complete_all();
        pair.world.turn();
        assert_eq!(stage.plan().held[0].local_offset, 2 * 64, "{classes:?}");
        assert_eq!(end(&stage, &mut pair).len(), 4);
    }
}
