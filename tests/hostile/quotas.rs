//! Quotas used up, one after the other: what is beyond is refused and named, what is given back is
//! there again, and what others have is theirs.

use verbring::abi::{
    Counter, Detail, Kind, OBJECT_REGION, OBJECT_RING, Opcode, Probe, ProbeReply, REGION_ALLOCATED,
    RIGHTS_ALL, RegionReply, RingReply, SQE_SKIP_SUCCESS, Sqe, errno,
};
use verbring::client::{ConnectError, ControlError};
use verbring::{RingOptions, Session};

use super::raw::{Answer, HandRing, Wire};
use super::stage::{Stage, until};

fn expect_quota(stage: &mut Stage, answer: Answer, setting: &str) {
    let text = stage.tally.answer(answer).refused(errno::EDQUOT, Detail::Quota);
    assert!(text.contains(setting), "names {setting}: {text}");
}

/// As many sessions as there may be, and many more. Each peer beyond is told so in the answer to
/// its HELLO, whether it asks at once or after a while.
#[test]
fn sessions() {
    let mut stage = Stage::with("quota of sessions", |config| config.quota.sessions = 8);
    let path = stage.socket.clone();
    while stage.goes_on() {
        let mut wires: Vec<Wire> = (0..6).map(|_| stage.wire()).collect();
        for _ in 0..20 {
            let answer = Wire::connect(&path).hello();
            expect_quota(&mut stage, answer, "quota.sessions");
        }
        match Session::connect(&path) {
            Err(ConnectError::Hello(ControlError::Refused(refusal))) => {
                assert_eq!((refusal.errno, refusal.detail), (errno::EDQUOT, Detail::Quota));
                stage.tally.attempts += 1;
                stage.tally.refuse(errno::EDQUOT, Detail::Quota as u16);
            }
            other => panic!("{other:?}"),
        }
        // Some say nothing, some hang up.
        let silent: Vec<Wire> = (0..30).map(|_| Wire::connect(&path)).collect();
        stage.tally.attempts += 30;
        stage.tally.ended += 30;
        drop(silent);
        wires.iter_mut().for_each(|wire| drop(wire.probe().done()));
        drop(wires);
        // Whoever connects now is served after those who hung up before they were accepted.
        let behind = || matches!(Wire::connect(&path).hello(), Answer::Done(..));
        until("those who hung up are gone", behind);
        until("their places are free", || stage.counter(Counter::Sessions) == 2);
    }
    stage.finish();
}

/// The same for the engine's own limit.
#[test]
fn sessions_of_the_engine() {
    let mut stage = Stage::with("sessions_max", |config| config.sessions_max = 4);
    while stage.goes_on() {
        let wires: Vec<Wire> = (0..2).map(|_| stage.wire()).collect();
        for _ in 0..8 {
            let answer = Wire::connect(&stage.socket).hello();
            expect_quota(&mut stage, answer, "sessions_max");
        }
        drop(wires);
        until("their places are free", || stage.counter(Counter::Sessions) == 2);
    }
    stage.finish();
}

/// Rings: those made count from the first moment, mapped or not.
#[test]
fn rings() {
    let mut stage = Stage::with("quota of rings", |config| config.quota.rings = 9);
    while stage.goes_on() {
        let mut wire = stage.wire();
        let mut numbers = Vec::new();
        for at in 0..8 {
            if at % 2 == 0 {
                numbers.push(wire.ring(2, 2).number);
            } else {
                wire.ask_ring(2, 2).reply::<RingReply>();
            }
        }
        for _ in 0..16 {
            let answer = wire.ask_ring(2, 2);
            expect_quota(&mut stage, answer, "quota.rings");
        }
        wire.release(OBJECT_RING, numbers[0]).done();
        wire.ask_ring(2, 2).done();
        let answer = wire.ask_ring(2, 2);
        expect_quota(&mut stage, answer, "quota.rings");
        drop(wire);
        until("all are taken back", || stage.counter(Counter::Rings) == 1);
    }
    stage.finish();
}

/// Regions and imports count together, and exports have the same limit.
#[test]
fn regions_and_exports() {
    let mut stage = Stage::with("quota of regions and exports", |config| {
        config.quota.regions = 19;
    });
    while stage.goes_on() {
        let mut wire = stage.wire();
        let mut ids = Vec::new();
        for _ in 0..8 {
            ids.push(wire.region(4096).0);
            let import = wire.own_import(ids[0], &format!("import-{}", ids.len()));
            ids.push(import);
        }
        for _ in 0..8 {
            let answer = wire.ask_region(REGION_ALLOCATED, 4096, &[]);
            expect_quota(&mut stage, answer, "quota.regions");
        }
        // One export is the neighbour's, eight are ours.
        for at in 0..10 {
            wire.ask_export(ids[0], RIGHTS_ALL, &format!("export-{at}")).done();
        }
        for at in 0..8 {
            let answer = wire.ask_export(ids[0], RIGHTS_ALL, &format!("more-{at}"));
            expect_quota(&mut stage, answer, "quota.regions");
        }
        wire.release(OBJECT_REGION, ids[1]).done();
        wire.ask_region(REGION_ALLOCATED, 4096, &[]).done();
        drop(wire);
        until("all are taken back", || stage.counter(Counter::Regions) == 3);
    }
    stage.finish();
}

/// Bytes: rounded up to pages, charged while the memory is being made, and until it is gone, also
/// when its session does not wait for either.
#[test]
fn bytes() {
    const QUOTA: u64 = 64 << 20;
    let mut stage = Stage::with("quota of bytes", |config| config.quota.region_bytes = QUOTA);
    let mut wire = stage.wire();
    let used = stage.counter(Counter::RegionBytes);
    while stage.goes_on() {
        for bytes in [QUOTA, QUOTA - used + 1, u64::MAX, u64::MAX - 4095, 1 << 63] {
            let answer = wire.ask_region(REGION_ALLOCATED, bytes, &[]);
            expect_quota(&mut stage, answer, "quota.region_bytes");
        }
        let mut ids = Vec::new();
        // A byte costs a page.
        for _ in 0..16 {
            let answer = wire.ask_region(REGION_ALLOCATED, 1, &[]);
            ids.push(answer.reply::<RegionReply>().0.region);
        }
        assert_eq!(stage.counter(Counter::RegionBytes), used + 16 * 4096);
        for id in ids {
            wire.mapped(OBJECT_REGION, id).done();
            wire.release(OBJECT_REGION, id).done();
        }
        // Sessions that ask for all there is, and leave at once.
        let rest = QUOTA - used;
        for _ in 0..4 {
            let mut hasty = stage.wire();
            let head = hasty.head::<verbring::abi::RegionRequest>(Kind::Region);
            let request = verbring::abi::RegionRequest {
                head,
                source: REGION_ALLOCATED,
                flags: 0,
                bytes: rest,
            };
            let _ = hasty.send(zerocopy::IntoBytes::as_bytes(&request), &[]);
            drop(hasty);
            stage.tally.attempts += 1;
            let mapped = super::stage::mapped_bytes_named("verbring-region");
            // The neighbour and the engine each have its two regions mapped.
            assert!(mapped <= QUOTA + used, "{mapped} bytes are mapped, {QUOTA} are allowed");
        }
        until("all is given back", || stage.counter(Counter::RegionBytes) == used);
    }
    drop(wire);
    stage.finish();
}

/// Ops of a uid: what is beyond waits in its SQ, untaken, and is taken when others end. The
/// neighbour has the same uid, so that it waits too, but only for as long.
#[test]
fn ops() {
    const QUOTA: u32 = 256;
    let mut stage = Stage::with("quota of ops", |config| config.quota.ops = QUOTA);
    let mut wire = stage.wire();
    let (region, _memory) = wire.region(4096);
    while stage.goes_on() {
        let mut ring = wire.ring(512, 512);
        // ARMs stay in flight until somebody notifies.
        push_arms(&mut ring, region, 400);
        stage.tally.attempts += 400;
        until("the quota is used up", || stage.counter(Counter::InFlight) == u64::from(QUOTA));
        stage.turns(3);
        assert!(ring.taken() <= QUOTA && ring.taken() > QUOTA - 64, "{}", ring.taken());
        stage.tally.granted += u64::from(ring.taken());
        assert_eq!((ring.ready(), ring.fault()), (0, None), "back-pressure, nothing else");
        wire.release(OBJECT_RING, ring.number).done();
        let verified = stage.neighbour.verified();
        until("the neighbour goes on", || stage.neighbour.verified() > verified + 1_000);
    }
    drop((wire, _memory));
    stage.finish();
}

fn push_arms(ring: &mut HandRing, region: u32, count: u32) {
    let arm = Sqe { opcode: Opcode::Arm as u8, local_region: region, bytes: 1, ..Sqe::default() };
    for _ in 0..count {
        ring.write(&arm);
    }
    ring.publish();
}

/// Records of the engine: a session that takes all it can get leaves every other one its part.
#[test]
fn records() {
    let mut stage = Stage::with("records used up", |config| {
        (config.records, config.sessions_max, config.quota.ops) = (1_024, 4, 1 << 20);
    });
    let mut wire = stage.wire();
    let (region, _memory) = wire.region(4096);
    let mut rings: Vec<HandRing> = (0..4).map(|_| wire.ring(512, 512)).collect();
    for ring in &mut rings {
        push_arms(ring, region, 512);
        stage.tally.attempts += 512;
    }
    // Half is set aside: an eighth for each of the three that are here, or may come.
    until("what is not others' is used up", || {
        rings.iter().map(HandRing::taken).sum::<u32>() == 1_024 - 3 * 128
    });
    while stage.goes_on() {
        rings.iter().for_each(HandRing::ring_bell);
        assert_eq!(rings.iter().map(HandRing::taken).sum::<u32>(), 1_024 - 3 * 128);
    }
    for ring in rings {
        stage.tally.granted += u64::from(ring.taken());
        wire.release(OBJECT_RING, ring.number).done();
    }
    drop((wire, _memory));
    stage.finish();
}

/// Page-list blocks: lists of 1,024 pages that move slowly, as many as will fit; the neighbour
/// needs a block for its short lists all the while.
#[test]
fn list_blocks() {
    let mut stage = Stage::with("page lists used up", |config| {
        (config.list_blocks, config.sessions_max) = (128, 4);
    });
    let mut wire = stage.wire();
    let (near, _near) = wire.region(1 << 20);
    let (far, _far) = wire.region(1 << 20);
    let import = wire.own_import(far, "blocks");
    let mut ring = wire.ring(64, 64);
    // The list's entries are all zero: every page goes to the same place.
    let sqe = Sqe {
        opcode: Opcode::Writev as u8,
        class: 3,
        flags: SQE_SKIP_SUCCESS,
        local_region: near,
        remote_region: import,
        local_offset: 1 << 19,
        bytes: 4096,
        arg: [1_024 << 32, 0],
        ..Sqe::default()
    };
    while stage.goes_on() {
        for _ in 0..ring.room() {
            ring.write(&sqe);
            stage.tally.attempts += 1;
            stage.tally.granted += 1;
        }
        ring.publish();
        assert_eq!((ring.ready(), ring.fault()), (0, None));
    }
    wire.release(OBJECT_RING, ring.number).done();
    drop((wire, ring, _near, _far));
    stage.finish();
}

/// What PROBE says of the limits is what holds.
#[test]
fn as_probe_says() {
    let mut stage = Stage::with("limits as PROBE says", |config| {
        (config.quota.rings, config.quota.regions) = (4, 6);
    });
    let probe = stage.wire().ask(Kind::Probe, |head| Probe { head }, &[]).reply::<ProbeReply>().0;
    while stage.goes_on() {
        let session = stage.session();
        let rings: Vec<_> = (1..probe.rings_max)
            .map(|_| session.raw_ring(RingOptions::new(2, 2)).unwrap())
            .collect();
        let refusal = session.raw_ring(RingOptions::new(2, 2)).unwrap_err();
        let refusal = refusal.refusal().unwrap();
        assert_eq!((refusal.errno, refusal.detail), (errno::EDQUOT, Detail::Quota));
        stage.tally.attempts += 1;
        stage.tally.refuse(errno::EDQUOT, Detail::Quota as u16);
        let regions: Vec<_> =
            (3..probe.regions_max).map(|_| session.alloc(4096).unwrap()).collect();
        assert!(session.alloc(4096).is_err());
        stage.tally.attempts += 1;
        stage.tally.refuse(errno::EDQUOT, Detail::Quota as u16);
        drop((regions, rings));
        let entries = probe.entries_max * 2;
        let mut wire = stage.wire();
        let answer = wire.ask_ring(entries, 2);
        stage.tally.answer(answer).refused(errno::EINVAL, Detail::Entries);
        drop((session, wire));
        until("all is taken back", || stage.counter(Counter::Rings) == 1);
    }
    stage.finish();
}
