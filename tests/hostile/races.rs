//! Ops that are cancelled in three ways, expire, and complete, all at once: each has one end, and
//! whoever asked for it was told the truth.

use std::collections::BTreeMap;

use verbring::abi::{
    CANCEL_BY_NUMBER, CANCEL_BY_USER_DATA, Counter, Cqe, Detail, FABRIC_LOCAL, Kind, OBJECT_RING,
    OpQuery, Opcode, Sqe, errno,
};

use super::chance::Chance;
use super::raw::{Answer, HandRing, Wire};
use super::stage::{Stage, until};

const REGION_BYTES: u64 = 1 << 20;
/// Ops of a round; as many CANCELs come with them.
const OPS: u64 = 24;

/// How an op ended, or what a CANCEL was told.
type Ends = BTreeMap<u64, Cqe>;

#[test]
fn of_cancel_deadline_and_completion() {
    let mut stage = Stage::set("cancel against deadline against completion");
    let mut wire = stage.wire();
    let mut ring = wire.ring(64, 64);
    let (near, _near) = wire.region(REGION_BYTES);
    let import = wire.own_import(near, "races");
    let mut chance = Chance::new(60);
    let mut number = 0;
    let mut told = Told::default();
    while stage.goes_on() || told.rounds < 200 {
        let first = number;
        let mut targets = BTreeMap::new();
        for _ in 0..OPS {
            ring.write(&op(&mut chance, near, import, number));
            number += 1;
        }
        for _ in 0..OPS {
            let target = first + chance.below(OPS);
            let by = chance.of(&[CANCEL_BY_NUMBER, CANCEL_BY_USER_DATA]);
            ring.write(&Sqe {
                opcode: Opcode::Cancel as u8,
                user_data: number,
                arg: [target, by],
                ..Sqe::default()
            });
            targets.insert(number, target);
            number += 1;
        }
        ring.publish();
        let mut ends = Ends::new();
        // From the socket too, while CQEs come.
        let mut asked = Vec::new();
        for _ in 0..4 {
            collect(&mut ring, &mut ends);
            let target = first + chance.below(OPS);
            asked.push((target, cancel(&mut wire, &ring, target)));
        }
        while ends.len() < 2 * OPS as usize {
            let cqe = ring.next();
            assert!(ends.insert(cqe.user_data, cqe).is_none(), "two ends: {cqe:?}");
        }
        told.check(&ends, &targets, &asked);
        ends.values().for_each(|cqe| stage.tally.cqe(cqe));
        stage.tally.attempts += 2 * OPS + 4;
    }
    assert!(told.cancelled > 0 && told.too_late > 0, "the race has always the same end: {told:?}");
    assert_eq!(stage.counter(Counter::Cancelled), told.cancelled);
    drop((wire, ring, _near));
    stage.finish();
}

/// A WRITE or READ that takes a while, in any class, half of them with a deadline that may pass.
fn op(chance: &mut Chance, near: u32, import: u32, number: u64) -> Sqe {
    let deadline_us = if chance.once_in(2) { chance.below(400) } else { 0 };
    Sqe {
        opcode: chance.of(&[Opcode::Write, Opcode::Read]) as u8,
        class: chance.below(4) as u8,
        user_data: number,
        local_region: near,
        remote_region: import,
        remote_offset: REGION_BYTES / 2,
        bytes: chance.of(&[64, 4_096, 65_536, 300_000]),
        arg: [deadline_us, 0],
        ..Sqe::default()
    }
}

fn collect(ring: &mut HandRing, ends: &mut Ends) {
    while let Some(cqe) = ring.pop() {
        assert!(ends.insert(cqe.user_data, cqe).is_none(), "two ends: {cqe:?}");
    }
}

fn cancel(wire: &mut Wire, ring: &HandRing, target: u64) -> i32 {
    let (ring, by) = (ring.number, CANCEL_BY_NUMBER as u32);
    match wire.ask(Kind::Cancel, |head| OpQuery { head, ring, by, target }, &[]) {
        Answer::Done(..) => 0,
        Answer::Refused { errno, .. } => errno,
        Answer::Over => panic!("the session is over"),
    }
}

#[derive(Debug, Default)]
struct Told {
    rounds: u64,
    cancelled: u64,
    too_late: u64,
}

impl Told {
    /// Compares what each op came to with what those were told who wanted to take it back.
    fn check(&mut self, ends: &Ends, targets: &BTreeMap<u64, u64>, asked: &[(u64, i32)]) {
        self.rounds += 1;
        let from_ring = targets.iter().map(|(cancel, target)| (*target, -ends[cancel].res));
        let mut takers: BTreeMap<u64, u32> = BTreeMap::new();
        for (target, errno) in from_ring.chain(asked.iter().copied()) {
            match errno {
                0 => *takers.entry(target).or_default() += 1,
                errno::EALREADY => {
                    let res = ends[&target].res;
                    assert_ne!(res, -errno::ECANCELED, "posted, and then cancelled");
                    self.too_late += 1;
                }
                errno => assert_eq!(errno, errno::ENOENT),
            }
        }
        for (number, cqe) in ends.iter().filter(|(number, _)| !targets.contains_key(number)) {
            let taken_back = takers.remove(number).unwrap_or(0);
            let end = (cqe.res, cqe.detail);
            let done = cqe.res > 0 && cqe.detail == u16::from(FABRIC_LOCAL) << 8;
            let late = end == (-errno::ETIME, Detail::Deadline as u16);
            let cancelled = end == (-errno::ECANCELED, Detail::Cancelled as u16);
            assert!(done || late || cancelled, "{cqe:?}");
            assert_eq!(u32::from(cancelled), taken_back, "{number} was taken back so often");
            self.cancelled += u64::from(cancelled);
        }
        assert!(takers.is_empty());
    }
}

/// CANCELs that look through hundreds of ops, or for one that is not there, with nothing behind
/// them in the ring that would keep the engine looking.
#[test]
fn of_a_long_search() {
    const ARMS: u64 = 900;
    let mut stage = Stage::set("CANCELs that search for long");
    let mut wire = stage.wire();
    let (region, _memory) = wire.region(4096);
    while stage.goes_on() {
        let mut ring = wire.ring(1_024, 1_024);
        let arm =
            Sqe { opcode: Opcode::Arm as u8, local_region: region, bytes: 1, ..Sqe::default() };
        for user_data in 0..ARMS {
            ring.write(&Sqe { user_data, ..arm });
        }
        ring.publish();
        until("all are armed", || ring.taken() == ARMS as u32);
        for (target, found) in [(ARMS - 1, true), (ARMS - 1, false), (u64::MAX, false)] {
            let arg = [target, CANCEL_BY_USER_DATA];
            ring.push(&Sqe {
                opcode: Opcode::Cancel as u8,
                user_data: ARMS,
                arg,
                ..Sqe::default()
            });
            if found {
                let taken_back = ring.next();
                assert_eq!((taken_back.user_data, taken_back.res), (target, -errno::ECANCELED));
            }
            let cqe = ring.next();
            assert_eq!((cqe.user_data, cqe.res), (ARMS, if found { 0 } else { -errno::ENOENT }));
            stage.tally.attempts += 1;
            stage.tally.cqe(&cqe);
        }
        wire.release(OBJECT_RING, ring.number).done();
    }
    drop((wire, _memory));
    stage.finish();
}
