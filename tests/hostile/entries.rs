//! Garbage entries: each is taken, refused by name or done, and has one CQE; nobody else is named.

use verbring::abi::{
    self, Counter, Detail, OBJECT_REGION, OBJECT_RING, OP_BYTES_MAX, Opcode, SQE_NO_MERGE,
    SQE_NOTIFY, SQE_REVOKE, SQE_SKIP_SUCCESS, STATS_SESSION, Sqe, errno,
};

use super::chance::Chance;
use super::raw::Wire;
use super::stage::{Stage, until};

/// 64 random bytes an entry. None of them can name a region or get all reserved fields right, so
/// each must come back refused, in a CQE of its own that carries its `user_data` and no record.
#[test]
fn f18_random_bytes() {
    let mut stage = Stage::set("garbage entries, random bytes");
    let mut wire = stage.wire();
    let mut ring = wire.ring(64, 64);
    let mut chance = Chance::new(1);
    while stage.goes_on() {
        let mut sent = Vec::new();
        for _ in 0..64 {
            let mut sqe = Sqe::from_words(std::array::from_fn(|_| chance.u64()));
            // All of ABI 1 fits into the low bits: make some come close.
            if chance.once_in(2) {
                (sqe.opcode, sqe.class) = (sqe.opcode % 16, sqe.class % 4);
            }
            sqe.user_data |= 1;
            sent.push(sqe.user_data);
            ring.write(&sqe);
        }
        ring.publish();
        for _ in 0..64 {
            let cqe = ring.next();
            let place = sent.iter().position(|user_data| *user_data == cqe.user_data);
            sent.swap_remove(place.expect("a CQE of an entry of this burst"));
            assert!(cqe.res < 0 && cqe.record == 0, "garbage was accepted: {cqe:?}");
            let errno = [errno::EINVAL, errno::EOPNOTSUPP, errno::E2BIG];
            assert!(errno.contains(&-cqe.res) && cqe.detail != 0, "says not what is wrong");
            stage.tally.cqe(&cqe);
            stage.tally.attempts += 1;
        }
    }
    assert_eq!(ring.fault(), None);
    drop((wire, ring));
    stage.finish();
}

/// Entries that are right but for up to two fields, which are at an extreme or at random, over
/// rings of every size. Every entry taken is accounted for.
#[test]
fn f18_almost_right() {
    let mut stage = Stage::set("garbage entries, almost right");
    let mut wire = stage.wire();
    let mut chance = Chance::new(2);
    let (near, memory) = wire.region(REGION_BYTES);
    let (far, _far) = wire.region(REGION_BYTES);
    let neighbour = stage.neighbour.ids;
    let forged = [0, u32::MAX, neighbour.near, neighbour.far, neighbour.import, near ^ 1 << 20];
    let (mut pushed, mut taken) = (0, 0);
    while stage.goes_on() || pushed < 50_000 {
        // A good page list, and one of random words: a third of it lies beyond the region.
        for page in 0..LIST_BYTES / 16 {
            memory.write(LIST_AT + 16 * page, &(16 * page).to_le_bytes());
            memory.write(LIST_AT + 16 * page + 8, &(chance.u64() & 0x7fff).to_le_bytes());
            let offset = chance.below(3 * REGION_BYTES / 2);
            memory.write(LIST_AT + LIST_BYTES + 16 * page, &offset.to_le_bytes());
        }
        // REVOKE ends an import; every ring begins with a fresh one.
        let import = wire.own_import(far, &format!("almost-right-{pushed}"));
        let draft = Draft { near, import, forged };
        let mut ring = {
            let mut entries = || 2 << chance.below(6);
            wire.ring(entries(), entries())
        };
        for _ in 0..16 {
            for _ in 0..ring.room() {
                ring.write(&draft.almost(&mut chance));
                pushed += 1;
            }
            ring.publish();
            // ARMs may hold all CQ slots for good: then the ring is full, and that is all.
            for _ in 0..3 {
                stage.turns(1);
                while let Some(cqe) = ring.pop() {
                    let known = cqe.res >= 0 || Detail::from_number(cqe.detail).is_some();
                    assert!(known, "{cqe:?}");
                    stage.tally.cqe(&cqe);
                }
            }
            assert_eq!(ring.fault(), None);
        }
        wire.release(OBJECT_RING, ring.number).done();
        wire.release(OBJECT_REGION, import).done();
        taken += u64::from(ring.taken());
    }
    let stats = session_counters(&mut wire);
    let counter = |counter: Counter| stats[counter as usize];
    assert_eq!(counter(Counter::Taken), taken, "entries taken");
    assert_eq!(counter(Counter::Completed), taken, "each has one end");
    assert_eq!(counter(Counter::InFlight), 0);
    for detail in [
        Detail::Opcode,
        Detail::Class,
        Detail::Flags,
        Detail::LocalRegion,
        Detail::RemoteRegion,
        Detail::LocalOffset,
        Detail::RemoteOffset,
        Detail::Bytes,
        Detail::Immediate,
        Detail::Arg,
        Detail::Page,
        Detail::Edges,
    ] {
        assert!(stage.tally.refusals(errno::EINVAL, detail) > 0, "none refused for {detail}");
    }
    assert!(stage.tally.granted > pushed / 16, "too few are almost right");
    stage.tally.attempts = pushed;
    drop((wire, memory, _far));
    stage.finish();
}

const REGION_BYTES: u64 = 64 << 10;
const LIST_AT: u64 = 32 << 10;
const LIST_BYTES: u64 = 8 << 10;

struct Draft {
    near: u32,
    import: u32,
    forged: [u32; 6],
}

impl Draft {
    /// An entry of any kind that is served, then wrong in up to two fields.
    fn almost(&self, chance: &mut Chance) -> Sqe {
        let mut sqe = self.right(chance);
        for _ in 0..chance.below(3) {
            self.spoil(&mut sqe, chance);
        }
        sqe
    }

    fn right(&self, chance: &mut Chance) -> Sqe {
        let opcodes = [Opcode::Write, Opcode::Read, Opcode::Writev, Opcode::Readv];
        let rest = [Opcode::FetchAdd, Opcode::CmpSwap, Opcode::Cancel, Opcode::Flush, Opcode::Nop];
        let opcode = match chance.below(64) {
            0 => Opcode::Arm,
            1..40 => chance.of(&opcodes),
            _ => chance.of(&rest),
        };
        let (class, user_data) = (chance.below(4) as u8, chance.below(64));
        let sqe = Sqe { opcode: opcode as u8, class, user_data, ..Sqe::default() };
        let [local_region, remote_region] = [self.near, self.import];
        let moving = Sqe {
            local_region,
            remote_region,
            local_offset: 8 * chance.below(512),
            remote_offset: 8 * chance.below(512),
            ..sqe
        };
        match opcode {
            Opcode::Write | Opcode::Read => Sqe { bytes: chance.below(4096) as u32, ..moving },
            Opcode::Writev | Opcode::Readv => Sqe {
                local_offset: LIST_AT + 16 * chance.below(LIST_BYTES / 8),
                bytes: chance.below(64) as u32,
                arg: [(1 + chance.below(80)) << 32, 0],
                ..moving
            },
            Opcode::FetchAdd => Sqe { arg: [chance.u64(), 0], ..moving },
            Opcode::CmpSwap => Sqe { arg: [chance.u64(), chance.u64()], ..moving },
            Opcode::Cancel => Sqe { arg: [chance.below(64), chance.below(3)], ..sqe },
            Opcode::Arm => Sqe { local_region, bytes: 1, ..sqe },
            Opcode::Flush => Sqe { local_region, ..sqe },
            _ => sqe,
        }
    }

    fn spoil(&self, sqe: &mut Sqe, chance: &mut Chance) {
        let edge = [REGION_BYTES - 8, REGION_BYTES - 1, REGION_BYTES, 1 << 32, u64::MAX - 7];
        let any = [chance.of(&edge), u64::MAX, chance.u64(), chance.u64() >> chance.below(64)];
        let lengths = [0, 1, 8, OP_BYTES_MAX, OP_BYTES_MAX + 1, u32::MAX, chance.u32()];
        let flags = [SQE_NO_MERGE, SQE_NOTIFY, SQE_SKIP_SUCCESS, SQE_REVOKE, chance.u16()];
        match chance.below(10) {
            0 => sqe.opcode = chance.below(256) as u8,
            1 => sqe.class = chance.below(256) as u8,
            2 => sqe.flags |= chance.of(&flags),
            3 => sqe.edges[chance.below(2) as usize] = chance.u16(),
            4 => sqe.local_region = chance.of(&self.forged),
            5 => sqe.remote_region = chance.of(&self.forged),
            6 => sqe.local_offset = chance.of(&any),
            7 => sqe.remote_offset = chance.of(&any),
            8 => sqe.bytes = chance.of(&lengths),
            _ if chance.once_in(2) => sqe.immediate = chance.u32(),
            _ => sqe.arg[chance.below(2) as usize] = chance.of(&any),
        }
    }
}

/// More successes without a CQE than the CQ has slots, in one turn: their CQ slots are free again
/// before their fate entries are, and neither may be taken for the other.
#[test]
fn skipped_successes() {
    let mut stage = Stage::set("skipped successes beyond the CQ");
    let mut wire = stage.wire();
    let mut ring = wire.ring(64, 2);
    let sqe = Sqe { flags: SQE_SKIP_SUCCESS, ..Sqe::default() };
    while stage.goes_on() {
        for _ in 0..64 {
            ring.write(&sqe);
        }
        ring.publish();
        until("all are taken", || ring.room() == 64);
        stage.tally.attempts += 64;
        stage.tally.granted += 64;
        assert_eq!(ring.ready(), 0, "a success that was to be skipped has a CQE");
    }
    drop((wire, ring));
    stage.finish();
}

/// The attacker's own counters.
pub(crate) fn session_counters(wire: &mut Wire) -> [u64; Counter::COUNT] {
    let request = |head| abi::Stats { head, scope: STATS_SESSION, reserved: 0 };
    let answer = wire.ask(abi::Kind::Stats, request, &[]);
    answer.reply::<abi::StatsReply>().0.counters
}
