//! Regions, exports, rings and sessions taken away under load: ops on them end, each once, with a
//! word about why; memory goes when nothing touches it any more, and not before.

use verbring::abi::{
    Counter, Cqe, Detail, ExportReply, FABRIC_LOCAL, ImportReply, OBJECT_REGION, OBJECT_RING,
    Opcode, RIGHTS_ALL, SQE_REVOKE, Sqe, errno,
};

use super::chance::Chance;
use super::raw::{HandRing, Wire};
use super::stage::{Stage, until};

const REGION_BYTES: u64 = 4 << 20;

/// An owner with a region on offer, and a user who writes into it.
struct Pair {
    owner: Wire,
    region: u32,
    user: Wire,
    near: u32,
    import: u32,
    ring: HandRing,
}

impl Pair {
    fn new(stage: &Stage, name: &str) -> Self {
        let (mut owner, mut user) = (stage.wire(), stage.wire());
        let region = owner.region(REGION_BYTES).0;
        let secret = owner.ask_export(region, RIGHTS_ALL, name).reply::<ExportReply>().0.secret;
        let import = user.ask_import(name, secret).reply::<ImportReply>().0.region;
        let near = user.region(REGION_BYTES).0;
        let ring = user.ring(64, 64);
        Self { owner, region, user, near, import, ring }
    }

    /// 64 large WRITEs and READs, more than the window lets in at once.
    fn load(&mut self, chance: &mut Chance) {
        for at in 0..64 {
            let opcodes = [Opcode::Write, Opcode::Read, Opcode::FetchAdd];
            let opcode = chance.of(&opcodes);
            let large = if opcode == Opcode::FetchAdd { 0 } else { 1 << 20 };
            self.ring.write(&Sqe {
                opcode: opcode as u8,
                class: chance.below(4) as u8,
                user_data: at,
                local_region: self.near,
                remote_region: self.import,
                local_offset: (1 << 20) * chance.below(3),
                remote_offset: (1 << 20) * chance.below(3),
                bytes: large,
                ..Sqe::default()
            });
        }
        self.ring.publish();
    }

    /// Takes 64 CQEs: each op once.
    fn reap(&mut self, mut look: impl FnMut(&Cqe)) {
        let mut missing = u64::MAX;
        while missing != 0 {
            let cqe = self.ring.next();
            assert!(missing >> cqe.user_data & 1 == 1, "two CQEs of one op: {cqe:?}");
            missing &= !(1 << cqe.user_data);
            look(&cqe);
        }
    }
}

fn done_or(cqe: &Cqe, errno: i32, details: &[Detail]) {
    let done = cqe.res >= 0 && cqe.detail == u16::from(FABRIC_LOCAL) << 8;
    let ended = cqe.res == -errno && details.iter().any(|&detail| detail as u16 == cqe.detail);
    assert!(done || ended, "{cqe:?}");
}

/// The owner releases the region, or revokes its exports, or goes, while the user's ops are
/// queued and posted.
#[test]
fn exports_taken_back() {
    let mut stage = Stage::set("regions released and revoked under load");
    let mut chance = Chance::new(50);
    while stage.goes_on() || stage.tally.attempts < 20 * 64 {
        let mut pair = Pair::new(&stage, "under-load");
        pair.load(&mut chance);
        if chance.once_in(2) {
            until("some of it is under way", || pair.ring.ready() > 0);
        }
        stage.tally.attempts += 64;
        match chance.below(3) {
            0 => drop(pair.owner.release(OBJECT_REGION, pair.region).done()),
            1 => revoke(&mut pair),
            _ => pair.owner = stage.wire(),
        }
        let mut tally = std::mem::take(&mut stage.tally);
        pair.reap(|cqe| {
            done_or(cqe, errno::ESTALE, &[Detail::Revoked]);
            tally.cqe(cqe);
        });
        stage.tally = tally;
        // What is gone stays gone.
        until("the export is gone", || {
            pair.ring.push(&Sqe {
                opcode: Opcode::Write as u8,
                local_region: pair.near,
                remote_region: pair.import,
                ..Sqe::default()
            });
            pair.ring.next().res == -errno::ESTALE
        });
    }
    assert!(stage.tally.refusals(errno::ESTALE, Detail::Revoked) > 0, "nothing was cut off");
    stage.finish();
}

/// Revokes, and waits for the FLUSH that says so: from then on nobody else's op touches the region.
fn revoke(pair: &mut Pair) {
    let mut ring = pair.owner.ring(2, 2);
    let (opcode, flags) = (Opcode::Flush as u8, SQE_REVOKE);
    ring.push(&Sqe { opcode, flags, local_region: pair.region, ..Sqe::default() });
    assert_eq!(ring.next().res, 0);
    pair.owner.release(OBJECT_RING, ring.number).done();
}

/// The user takes back its own side under its own ops: the near region, the import, or the ring.
#[test]
fn own_objects_released() {
    let mut stage = Stage::set("own regions and rings released under load");
    let mut chance = Chance::new(51);
    while stage.goes_on() || stage.tally.attempts < 20 * 64 {
        let mut pair = Pair::new(&stage, "own");
        pair.load(&mut chance);
        if chance.once_in(2) {
            until("some of it is under way", || pair.ring.ready() > 0);
        }
        stage.tally.attempts += 64;
        let first = if chance.once_in(2) { pair.near } else { pair.import };
        if chance.once_in(2) {
            pair.user.release(OBJECT_REGION, first).done();
            let mut tally = std::mem::take(&mut stage.tally);
            pair.reap(|cqe| {
                // Taken before the release, or refused after it.
                let after = [Detail::LocalRegion, Detail::RemoteRegion, Detail::Released];
                let refused = cqe.res < 0 && after.iter().any(|d| *d as u16 == cqe.detail);
                assert!(refused || cqe.res >= 0, "{cqe:?}");
                tally.cqe(cqe);
            });
            stage.tally = tally;
        }
        pair.user.release(OBJECT_RING, pair.ring.number).done();
        // The reply says that nothing of this ring is under way any more.
        assert!(
            pair.ring.load(verbring::abi::AT_ENGINE_FLAGS) & verbring::abi::ENGINE_CLOSING != 0
        );
        let ready = pair.ring.ready();
        for _ in 0..ready {
            let cqe = pair.ring.pop().unwrap();
            let details = [Detail::Closing];
            done_or(&cqe, errno::ESHUTDOWN, &details);
            stage.tally.cqe(&cqe);
        }
    }
    stage.finish();
}

/// Sessions that end in the middle of their load, with everything they have.
#[test]
fn sessions_that_leave() {
    let mut stage = Stage::set("sessions that leave under load");
    let mut chance = Chance::new(52);
    while stage.goes_on() || stage.tally.ended < 40 {
        let mut pair = Pair::new(&stage, "leaving");
        pair.load(&mut chance);
        for _ in 0..chance.below(4) {
            stage.turns(1);
        }
        stage.tally.attempts += 64;
        stage.tally.ended += 2;
        if chance.once_in(2) {
            drop(pair.owner);
            drop(pair.user);
        } else {
            drop(pair.user);
            drop(pair.owner);
        }
        until("both are gone", || stage.counter(Counter::Sessions) == 2);
    }
    stage.finish();
}

/// A client that is dropped in the middle of its ops leaves the ranges it lent where they are; one
/// that releases its ring has them back. Through the safe client.
#[test]
fn clients_that_drop_everything() {
    let mut stage = Stage::set("clients that drop everything under load");
    while stage.goes_on() {
        let session = stage.session();
        let region = session.alloc(1 << 20).unwrap();
        let secret = region.export("dropped", verbring::Rights::ALL).unwrap();
        let import = session.import("dropped", None, &secret).unwrap();
        let mut ring = session.ring(verbring::RingOptions::new(16, 16)).unwrap();
        for at in 0..8u64 {
            let lease = region.lend(at * 65_536..(at + 1) * 65_536).unwrap();
            ring.push(verbring::Write::new(lease, import.at((1 << 19) + at * 4_096))).unwrap();
        }
        ring.submit();
        stage.tally.attempts += 8;
        if stage.tally.attempts.is_multiple_of(16) {
            ring.release().unwrap();
            assert!(region.lend(0..1 << 19).is_ok(), "nothing is under way: all is free");
            region.release().unwrap();
        } else {
            drop(ring);
            assert!(region.lend(0..1).is_err(), "an op that nobody waits for may still land");
        }
        stage.tally.granted += 8;
    }
    stage.finish();
}
