//! Ids that are not the caller's: regions, imports, rings and records, guessed, stolen and stale.

use verbring::abi::{
    self, CANCEL_BY_NUMBER, CANCEL_BY_RECORD, CANCEL_BY_USER_DATA, Counter, Detail, Kind,
    OBJECT_REGION, OBJECT_RING, OpQuery, Opcode, Sqe, errno,
};

use super::chance::Chance;
use super::raw::{Answer, Wire};
use super::stage::Stage;

const REGION_BYTES: u64 = 4096;

/// Ids over the whole of u32: the own ones with every bit flipped, every generation of the own
/// place, places near and far, those of a neighbour, the ends, and random ones.
fn forged(own: &[u32], stolen: &[u32], chance: &mut Chance) -> u32 {
    let mine = chance.of(own);
    let id = match chance.below(8) {
        0 => mine ^ 1 << chance.below(32),
        1 => mine & 0xf_ffff | (chance.u32() << 20),
        2 => mine & !0xf_ffff | chance.u32() & 0xf_ffff,
        3 => chance.of(stolen),
        4 => chance.of(stolen) ^ 1 << chance.below(32),
        5 => chance.of(&[0, 1, 1 << 20, u32::MAX, u32::MAX - 1, 1 << 31, 0xf_ffff]),
        6 => chance.below(4096) as u32 | 1 << 20,
        _ => chance.u32(),
    };
    if own.contains(&id) { id ^ 1 << 31 } else { id }
}

/// In entries: the near side, the far side, FLUSH and ARM.
#[test]
fn of_regions_in_entries() {
    let mut stage = Stage::set("forged region ids in entries");
    let mut wire = stage.wire();
    let mut ring = wire.ring(64, 64);
    let mut chance = Chance::new(20);
    let (near, _near) = wire.region(REGION_BYTES);
    let (far, _far) = wire.region(REGION_BYTES);
    let import = wire.own_import(far, "ids");
    let ids = stage.neighbour.ids;
    let (own, stolen) = ([near, far, import], [ids.near, ids.far, ids.import]);
    while stage.goes_on() || stage.tally.attempts < 200_000 {
        for _ in 0..64 {
            let wrong = forged(&own, &stolen, &mut chance);
            // An import is no near side, and a region no far side, though both are the caller's.
            let (wrong_near, wrong_far) =
                if chance.once_in(8) { (import, chance.of(&[near, far])) } else { (wrong, wrong) };
            let opcodes =
                [Opcode::Write, Opcode::Read, Opcode::Writev, Opcode::FetchAdd, Opcode::CmpSwap];
            let opcode = chance.of(&opcodes);
            let moving = Sqe {
                opcode: opcode as u8,
                local_region: near,
                remote_region: import,
                arg: [u64::from(opcode == Opcode::Writev) << 32, 0],
                ..Sqe::default()
            };
            let detail = if chance.once_in(2) { Detail::LocalRegion } else { Detail::RemoteRegion };
            let sqe = match (chance.below(8), detail) {
                (0, _) => Sqe { opcode: 9, local_region: wrong, ..Sqe::default() },
                (1, _) => Sqe { opcode: 10, local_region: wrong_near, bytes: 1, ..Sqe::default() },
                (_, Detail::LocalRegion) => Sqe { local_region: wrong_near, ..moving },
                _ => Sqe { remote_region: wrong_far, ..moving },
            };
            let about = if sqe.local_region == near { detail } else { Detail::LocalRegion };
            ring.write(&Sqe { user_data: u64::from(about as u16), ..sqe });
        }
        ring.publish();
        for _ in 0..64 {
            let cqe = ring.next();
            let told = (cqe.res, u64::from(cqe.detail), cqe.record);
            assert_eq!(told, (-errno::EINVAL, cqe.user_data, 0), "{cqe:?}");
            stage.tally.cqe(&cqe);
            stage.tally.attempts += 1;
        }
    }
    drop((wire, ring, _near, _far));
    stage.finish();
}

/// On the control socket: MAPPED, RELEASE and EXPORT of what is not there, or another's.
#[test]
fn of_objects_in_messages() {
    let mut stage = Stage::set("forged ids in messages");
    let mut wire = stage.wire();
    let mut chance = Chance::new(21);
    let (region, _memory) = wire.region(REGION_BYTES);
    let ring = wire.ring(2, 2);
    let ids = stage.neighbour.ids;
    let stolen = [ids.near, ids.far, ids.import];
    while stage.goes_on() {
        let id = forged(&[region], &stolen, &mut chance);
        let answers = [
            (wire.ask_export(id, abi::RIGHTS_ALL, "stolen"), Detail::LocalRegion),
            (wire.release(OBJECT_REGION, id), Detail::LocalRegion),
            (wire.mapped(OBJECT_REGION, id), Detail::Ring),
        ];
        for (answer, detail) in answers {
            stage.tally.answer(answer).refused(errno::EINVAL, detail);
        }
        let number = chance.of(&[ids.ring, ring.number + 1, u32::MAX, chance.clone().u32()]);
        if number != ring.number {
            for answer in [wire.release(OBJECT_RING, number), wire.mapped(OBJECT_RING, number)] {
                stage.tally.answer(answer).refused(errno::EINVAL, Detail::Ring);
            }
        }
        let object = chance.u32() | 4;
        let answer = wire.release(object, region);
        stage.tally.answer(answer).refused(errno::EINVAL, Detail::LocalRegion);
    }
    // What is the caller's is still there.
    wire.release(OBJECT_REGION, region).done();
    wire.release(OBJECT_RING, ring.number).done();
    drop((wire, ring, _memory));
    stage.finish();
}

/// CANCEL and WHY, in entries and on the socket: rings of others, and records of others, which
/// are easy to guess. The neighbour would tell of every op that was taken back.
#[test]
fn of_ops_of_others() {
    let mut stage = Stage::set("CANCEL and WHY of others' ops");
    let mut wire = stage.wire();
    let mut ring = wire.ring(64, 64);
    let mut chance = Chance::new(22);
    let theirs = stage.neighbour.ids.ring;
    while stage.goes_on() || stage.tally.attempts < 20_000 {
        // A NOP's record says where the ledger's generations stand.
        ring.push(&Sqe::default());
        let near_record = ring.next().record;
        let guess = |chance: &mut Chance| {
            let generation = (near_record >> 32).wrapping_add(chance.below(64)).wrapping_sub(32);
            generation << 32 | chance.below(256)
        };
        for _ in 0..60 {
            let arg = match chance.below(3) {
                0 => [guess(&mut chance), CANCEL_BY_RECORD],
                1 => [chance.below(64), CANCEL_BY_USER_DATA],
                _ => [chance.below(1 << 20) + (1 << 40), CANCEL_BY_NUMBER],
            };
            let sqe =
                Sqe { opcode: Opcode::Cancel as u8, arg, user_data: 1 << 60, ..Sqe::default() };
            ring.write(&sqe);
        }
        ring.publish();
        for _ in 0..60 {
            let cqe = ring.next();
            assert_eq!(cqe.res, -errno::ENOENT, "an op of another's was found: {cqe:?}");
            stage.tally.cqe(&cqe);
            stage.tally.attempts += 1;
        }
        for kind in [Kind::Cancel, Kind::Why] {
            let query = |ring, by, target| move |head| OpQuery { head, ring, by, target };
            let target = chance.below(64);
            let answer = wire.ask(kind, query(theirs, chance.below(3) as u32, target), &[]);
            let answer = stage.tally.answer(answer);
            if kind == Kind::Cancel {
                answer.refused(errno::EINVAL, Detail::Ring);
            } else if !matches!(answer, Answer::Done(..)) {
                // The neighbour is of the same uid, which may ask why any op of its own waits.
                answer.refused(errno::ENOENT, Detail::None);
            }
            let answer = wire.ask(kind, query(ring.number, 2, guess(&mut chance)), &[]);
            stage.tally.answer(answer).refused(errno::ENOENT, Detail::None);
            let answer = wire.ask(kind, query(ring.number, 3 + chance.u32() / 2, 0), &[]);
            stage.tally.answer(answer).refused(errno::EINVAL, Detail::Arg);
        }
    }
    assert_eq!(stage.counter(Counter::Cancelled), 0);
    drop((wire, ring));
    stage.finish();
}

/// Ids of what was released, and of a session that is over, where few places are there, so that
/// they are taken again at once.
#[test]
fn that_are_stale() {
    let mut stage = Stage::with("stale ids", |config| {
        (config.regions_max, config.rings_max) = (6, 3);
    });
    let mut old: Vec<u32> = Vec::new();
    while stage.goes_on() {
        let mut wire = stage.wire();
        let (near, memory) = wire.region(REGION_BYTES);
        let import = wire.own_import(near, "stale");
        let mut ring = wire.ring(16, 16);
        for &stale in old.iter().rev().take(12) {
            let good = Sqe { opcode: Opcode::Write as u8, local_region: near, ..Sqe::default() };
            let sqe = Sqe { remote_region: stale, ..good };
            let detail = expect_refused(&mut stage, &mut ring, &sqe);
            assert_eq!(detail, Detail::RemoteRegion as u16);
            let sqe = Sqe { remote_region: import, local_region: stale, ..good };
            let detail = expect_refused(&mut stage, &mut ring, &sqe);
            assert_eq!(detail, Detail::LocalRegion as u16);
            let answer = wire.release(OBJECT_REGION, stale);
            stage.tally.answer(answer).refused(errno::EINVAL, Detail::LocalRegion);
        }
        // The own id is good, and nothing of its place's earlier lives is in the memory.
        let mut bytes = [1; REGION_BYTES as usize];
        memory.read(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0), "memory of an earlier region");
        memory.fill(0, REGION_BYTES, 0x5A);
        old.extend([near, import]);
        leave_somehow(wire, near, import, &stage);
    }
    stage.finish();
}

fn expect_refused(stage: &mut Stage, ring: &mut super::raw::HandRing, sqe: &Sqe) -> u16 {
    ring.push(sqe);
    let cqe = ring.next();
    assert_eq!((cqe.res, cqe.record), (-errno::EINVAL, 0), "{cqe:?}");
    stage.tally.attempts += 1;
    stage.tally.cqe(&cqe);
    cqe.detail
}

/// Half of the sessions release what they have, the others just go; either way it is gone.
fn leave_somehow(mut wire: Wire, near: u32, import: u32, stage: &Stage) {
    if near & 1 << 20 == 0 {
        wire.release(OBJECT_REGION, import).done();
        wire.release(OBJECT_REGION, near).done();
        match wire.release(OBJECT_REGION, near) {
            Answer::Refused { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    drop(wire);
    super::stage::until("the session is gone", || stage.counter(Counter::Sessions) == 2);
}
