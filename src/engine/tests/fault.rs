//! Rule 1: a value that cannot be faults that ring alone, with a reason; it gets no more CQEs, its
//! fate table stays true.

use super::script::{BROKEN, Script, Stage};
use super::watched::entries;
use super::world::{
    LIMITS, Pair, RECEIVER, SENDER, World, arm, cancel, flush, moved, nop, outcome, revoke,
};
use crate::abi::{
    CANCEL_BY_NUMBER, Class, ENGINE_FAULTED, FATE_ACCEPTED, FATE_POSTED, FAULT_CQ_HEAD,
    FAULT_SQ_TAIL_BACK, FAULT_SQ_TAIL_BEYOND, SQE_SKIP_SUCCESS, Sqe,
};
use crate::engine::{Limits, Reply, Wind};
use crate::ring::{Fault, Verdict, Word};
use crate::seeds::{Random, each_seed};

fn held(limits: Limits) -> (Stage, Pair<Script>) {
    let stage = Stage::new();
    let pair = Pair::new(World::new(limits, stage.fabric(limits)), 16);
    stage.hold();
    (stage, pair)
}

/// Has a client's tail run back.
fn break_ring(pair: &mut Pair<Script>, client: usize) {
    let client = &pair.world.clients[client];
    client.store(Word::SqTail, client.load(Word::SqHead).wrapping_sub(1));
}

#[test]
fn rule_1_every_impossible_cursor_faults_its_ring_with_a_reason() {
    let cases: [(&str, Word, u32, Fault, u16); 8] = [
        ("beyond", Word::SqTail, 17, Fault::SqTailBeyond, FAULT_SQ_TAIL_BEYOND),
        ("far beyond", Word::SqTail, 1 << 31, Fault::SqTailBeyond, FAULT_SQ_TAIL_BEYOND),
        ("back", Word::SqTail, u32::MAX, Fault::SqTailBack, FAULT_SQ_TAIL_BACK),
        (
            "back by all",
            Word::SqTail,
            0_u32.wrapping_sub(16),
            Fault::SqTailBack,
            FAULT_SQ_TAIL_BACK,
        ),
        ("head passes tail", Word::CqHead, 1, Fault::CqHead, FAULT_CQ_HEAD),
        ("head far beyond", Word::CqHead, 1 << 31, Fault::CqHead, FAULT_CQ_HEAD),
        ("head back", Word::CqHead, 0_u32.wrapping_sub(17), Fault::CqHead, FAULT_CQ_HEAD),
        ("head back by one", Word::CqHead, u32::MAX - 16, Fault::CqHead, FAULT_CQ_HEAD),
    ];
    for (name, word, by, fault, reason) in cases {
        let (stage, mut pair) = held(LIMITS);
        // A full CQ, of which 16 CQEs are unread: the head is looked at when room is wanted.
        for _ in 0..32 {
            let _ = pair.world.try_push(SENDER, nop());
            pair.world.turn();
            if pair.world.clients[SENDER].taken() < 17 && word == Word::SqTail {
                pair.world.pop(SENDER);
            }
        }
        let client = &pair.world.clients[SENDER];
        let base = if word == Word::SqTail { Word::SqHead } else { Word::CqTail };
        client.store(word, client.load(base).wrapping_add(by));
        pair.world.turn();
        let ring = pair.world.clients[SENDER].ring;
        assert_eq!(pair.world.faults(), [(ring, fault)], "{name}");
        assert_eq!(pair.world.flags(SENDER), ENGINE_FAULTED | u32::from(reason) << 16, "{name}");
        // The neighbour notices nothing, and cursors put right again change nothing.
        let client = &pair.world.clients[SENDER];
        client.store(Word::SqTail, client.load(Word::SqHead).wrapping_add(1));
        assert_eq!(outcome(&pair.world.run(RECEIVER, nop())), (0, 0, 0), "{name}");
        assert_eq!(pair.world.flags(RECEIVER), 0, "{name}");
        assert_eq!(pair.world.faults().len(), 1, "{name}");
        stage.release();
        pair.world.settle();
    }
}

/// Everything that can be under way on a ring when it breaks, with the verdict on each.
#[test]
fn rule_1_the_fate_table_of_a_broken_ring_stays_true() {
    for half_way in [false, true] {
        let (stage, mut pair) = held(Limits { window_wrs: 4, ..LIMITS });
        let skipped = Sqe { flags: SQE_SKIP_SUCCESS, ..pair.write_as(Class::High, 256, 64) };
        let sqes = [
            (pair.write_as(Class::High, 0, 64), Verdict::Done),
            (pair.write_as(Class::High, 128, 64), Verdict::Indeterminate),
            (skipped, Verdict::Done),
            // Two slices, of which one is posted.
            (pair.write_as(Class::Medium, 512, 300), Verdict::Indeterminate),
            (pair.write_as(Class::Low, 2048, 64), Verdict::NotStarted),
            (arm(pair.near, 2), Verdict::NotStarted),
            (cancel(CANCEL_BY_NUMBER, 4), Verdict::Done),
            (flush(pair.near), Verdict::Done),
        ];
        for (sqe, _) in &sqes {
            pair.world.push(SENDER, *sqe);
        }
        pair.world.turn();
        assert_eq!(stage.held(), 4);
        let cqes = pair.world.pop(SENDER);
        assert_eq!(cqes.len(), 2, "the CANCEL and its target: {cqes:?}");
        if half_way {
            pair.world.push(SENDER, nop());
        }
        break_ring(&mut pair, SENDER);
        pair.world.turn();
        let tail = pair.world.clients[SENDER].load(Word::CqTail);
        (0..4).for_each(|_| {
            pair.world.turn();
        });
        // In the fabric: one that succeeds, one that fails, one skipped, half an op.
        for errno in [0, BROKEN, 0, 0] {
            stage.complete(0, errno);
            pair.world.turn();
        }
        (0..4).for_each(|_| {
            pair.world.turn();
        });
        assert_eq!(pair.world.clients[SENDER].load(Word::CqTail), tail, "no more CQEs");
        assert_eq!(stage.plan().taken.len(), 4, "nothing more is posted");
        assert_eq!(pair.world.engine.ledger.open_count(), 0);
        for (number, (_, verdict)) in (0..).zip(&sqes) {
            if number == 4 {
                continue; // Taken back before the ring broke: its CQE was read.
            }
            let client = &mut pair.world.clients[SENDER];
            assert_eq!(client.end.verdict(number), *verdict, "SQE {number}");
        }
        let left = entries(&pair.world.clients[SENDER].heap);
        let (near, far) = (pair.world.bytes(pair.near), pair.world.bytes(pair.target));
        assert!(near[..64] == far[..64] && near[256..320] == far[256..320], "DONE has landed");
        assert_ne!(near[2048..2112], far[2048..2112], "NOT_STARTED has not");
        let stages: Vec<u64> = left.iter().map(|&(_, stage)| stage).collect();
        assert_eq!(stages.iter().filter(|&&stage| stage == FATE_POSTED).count(), 2, "{left:?}");
        assert_eq!(stages.iter().filter(|&&stage| stage == FATE_ACCEPTED).count(), 1, "{left:?}");
    }
}

/// What was written in the turn in which a ring breaks is still told, in CQEs or entries: once a
/// refusal or a failure of that turn read as DONE, and a WRITE that landed as NOT_STARTED.
#[test]
fn rule_1_the_turn_in_which_a_ring_breaks_is_told_in_full() {
    for taken_first in [false, true] {
        let limits = Limits { window_wrs: 4, intake_budget: 64, ..LIMITS };
        let (stage, mut pair) = held(limits);
        let session = pair.world.clients[SENDER].session;
        let client = pair.world.ring(session, 16, 4);
        stage.take_only(&[0; 8]);
        if taken_first {
            // Two CQEs unread; then garbage and a WRITE are taken; then the CQ's head is asked for
            // room, and is wrong.
            for sqe in [nop(), nop()] {
                pair.world.push(client, sqe);
            }
            pair.world.turn();
            pair.world.push(client, Sqe { opcode: 99, ..nop() });
            let sqe = Sqe { flags: SQE_SKIP_SUCCESS, ..pair.write(128, 64) };
            pair.world.push(client, sqe);
            pair.world.push(client, nop());
            let end = &pair.world.clients[client];
            end.store(Word::CqHead, end.load(Word::CqTail).wrapping_add(3));
            stage.plan().takes.clear();
        } else {
            // An op is late, which is found after intake has found the tail to be wrong.
            let late = Sqe { arg: [2, 0], ..pair.write(0, 64) };
            pair.world.push(client, late);
            pair.world.turn();
            pair.world.turn();
            break_ring(&mut pair, client);
        }
        pair.world.turn();
        assert_eq!(pair.world.faults().len(), 1);
        stage.plan().takes.clear();
        stage.release();
        pair.world.settle();
        let published = pair.world.clients[client].end.observe_tail().unwrap();
        let mut told = std::collections::BTreeMap::new();
        for _ in 0..published {
            let words = pair.world.clients[client].end.pop().unwrap().unwrap();
            let cqe = crate::abi::Cqe::from_words(words);
            told.insert(cqe.user_data, cqe.res);
        }
        if taken_first {
            assert_eq!(told.get(&2), Some(&-crate::abi::errno::EINVAL), "the refusal: {told:?}");
            let landed =
                pair.world.bytes(pair.near)[128..192] == pair.world.bytes(pair.target)[128..192];
            let verdict = pair.world.clients[client].end.verdict(3);
            assert!(landed, "posted in the turn in which its ring broke");
            assert_eq!(verdict == Verdict::Done, landed, "{verdict:?}");
            assert_ne!(verdict, Verdict::Indeterminate);
        } else {
            let failed = told.contains_key(&0);
            let verdict = pair.world.clients[client].end.verdict(0);
            assert!(failed || verdict == Verdict::NotStarted, "{told:?} {verdict:?}");
        }
    }
}

/// A ring breaks at any moment of any load: no verdict is wrong, and the neighbours' streams go on.
#[test]
fn rule_1_no_verdict_on_a_broken_ring_is_wrong() {
    let counts = std::cell::RefCell::new([0; 3]);
    each_seed(100, |seed| {
        let mut random = Random::new(seed);
        let limits = Limits { window_wrs: 4, intake_budget: 4, ..LIMITS };
        let (stage, mut pair) = held(limits);
        let session = pair.world.clients[SENDER].session;
        let client = pair.world.ring(session, 16, random.pick(&[4, 16]));
        let mut pushed = 0;
        let turns = 1 + random.below(20);
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..turns {
            for _ in 0..random.below(6) {
                let flags = if random.chance(50) { SQE_SKIP_SUCCESS } else { 0 };
                let class = random.pick(&Class::ALL);
                let sqe = Sqe { flags, ..pair.write_as(class, pushed * 64, 64) };
                if pair.world.try_push(client, sqe).is_some() {
                    pushed += 1;
                }
            }
            while stage.held() > 0 && random.chance(60) {
                let at = random.index(stage.held());
                stage.complete(at, if random.chance(10) { BROKEN } else { 0 });
            }
            if random.chance(30) {
                stage.take_only(&[random.index(4)]);
            }
            pair.world.turn();
            if random.chance(50) {
                seen.extend(pair.world.pop(client).iter().map(|cqe| (cqe.user_data, cqe.res)));
            }
        }
        if random.chance(50) {
            break_ring(&mut pair, client);
        } else {
            let end = &pair.world.clients[client];
            end.store(Word::CqHead, end.load(Word::CqTail).wrapping_add(1 << 31));
            let _ = pair.world.try_push(client, nop());
        }
        (0..6).for_each(|_| {
            pair.world.turn();
        });
        while stage.held() > 0 {
            stage.complete(0, if random.chance(40) { BROKEN } else { 0 });
            pair.world.turn();
        }
        (0..20).for_each(|_| {
            pair.world.turn();
        });
        let mut counts = counts.borrow_mut();
        judge(&mut pair, client, pushed, &mut seen, &mut counts);
        assert_eq!(outcome(&pair.world.run(RECEIVER, nop())), (0, 0, 0));
    });
    let counts = counts.into_inner();
    println!("DONE, INDETERMINATE, NOT_STARTED: {counts:?}");
    let one_seed = std::env::var("VERBRING_SEED").is_ok();
    assert!(one_seed || counts.iter().all(|&count| count > 20), "{counts:?}");
}

fn judge(
    pair: &mut Pair<Script>,
    client: usize,
    pushed: u64,
    seen: &mut std::collections::BTreeMap<u64, i32>,
    counts: &mut [u32; 3],
) {
    // What the client's own head hid from it, it may still read.
    let end = &mut pair.world.clients[client].end;
    while let Ok(Some(words)) = end.pop() {
        let cqe = crate::abi::Cqe::from_words(words);
        seen.insert(cqe.user_data, cqe.res);
    }
    let (near, far) = (pair.world.bytes(pair.near), pair.world.bytes(pair.target));
    for number in 0..pushed {
        if seen.contains_key(&number) {
            continue;
        }
        let at = usize::try_from(number * 64).unwrap();
        let landed = near[at..at + 64] == far[at..at + 64];
        match pair.world.clients[client].end.verdict(number) {
            Verdict::Done => {
                assert!(landed, "SQE {number} is DONE, but never landed");
                counts[0] += 1;
            }
            Verdict::Indeterminate => counts[1] += 1,
            Verdict::NotStarted => {
                assert!(!landed, "SQE {number} is NOT_STARTED, but landed");
                counts[2] += 1;
            }
        }
    }
}

/// A broken ring is still there until its owner winds it up, with or without ops in flight.
#[test]
fn rule_1_a_broken_ring_is_wound_up_like_any_other() {
    for early in [false, true] {
        let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
        for at in 0..4 {
            let sqe = pair.write(at * 64, 64);
            pair.world.push(SENDER, sqe);
        }
        pair.world.push(SENDER, revoke(pair.near));
        pair.world.turn();
        break_ring(&mut pair, SENDER);
        pair.world.turn();
        let mut token = 0;
        if early {
            token = pair.world.wind(SENDER, Wind::Cancel);
        }
        (0..3).for_each(|_| {
            pair.world.turn();
        });
        assert!(pair.world.reply(token).is_none());
        stage.complete_all();
        (0..3).for_each(|_| {
            pair.world.turn();
        });
        if !early {
            assert!(pair.world.engine.winding.is_empty(), "nothing of it is under way");
            token = pair.world.wind(SENDER, Wind::Drain);
            pair.world.turn();
        }
        let reply = pair.world.reply(token);
        assert!(matches!(reply, Some(Reply::RingGone { .. })), "{reply:?}");
        pair.world.expect_rest();
        // Its place serves the next ring.
        let session = pair.world.clients[SENDER].session;
        let next = pair.world.ring(session, 4, 4);
        assert_eq!(pair.world.clients[next].ring, pair.world.clients[SENDER].ring);
        let sqe = pair.write(1024, 64);
        stage.release();
        assert_eq!(outcome(&pair.world.run(next, sqe)), moved(64));
    }
}
