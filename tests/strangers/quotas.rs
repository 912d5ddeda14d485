//! Hunger: whoever has used up a quota is told which, keeps what it has, and gets more as soon as
//! it has given some back.

use verbring::abi::{
    self, Counter, Detail, OBJECT_REGION, OBJECT_RING, Opcode, REGION_ALLOCATED, Sqe, errno,
};
use verbring::host::Config;

use super::raw::{Answer, HandRing, Wire};
use super::stage::{Stage, until};

/// Insists on a refusal that names the setting.
fn over(stage: &mut Stage, answer: Answer, setting: &str) {
    let text = stage.tally.answer(answer).refused(errno::EDQUOT, Detail::Quota);
    assert!(text.contains(setting), "{text:?} does not name {setting}");
}

/// The observer and the neighbour have a session each.
#[test]
fn sessions() {
    sessions_up_to("quotas, sessions of a uid", "quota.sessions", |config| {
        config.quota.sessions = 6;
    });
    sessions_up_to("quotas, sessions of the engine", "sessions_max", |config| {
        config.sessions_max = 6;
    });
}

fn sessions_up_to(name: &'static str, setting: &str, change: impl FnOnce(&mut Config)) {
    let mut stage = Stage::with(name, change);
    while stage.goes_on() {
        let wires: Vec<Wire> = (0..4).map(|_| stage.wire()).collect();
        for _ in 0..8 {
            let one_more = Wire::connect(&stage.socket);
            over(&mut stage, one_more.receive(), setting);
        }
        drop(wires);
        until("the sessions are over", || stage.counter(Counter::Sessions) == 2);
    }
    stage.finish();
}

/// The neighbour has one ring.
#[test]
fn rings() {
    rings_up_to("quotas, rings of a uid", "quota.rings", |config| config.quota.rings = 5);
    rings_up_to("quotas, rings of the engine", "rings_max", |config| config.rings_max = 5);
}

fn rings_up_to(name: &'static str, setting: &str, change: impl FnOnce(&mut Config)) {
    let mut stage = Stage::with(name, change);
    let mut wire = stage.wire();
    while stage.goes_on() {
        let mut other = stage.wire();
        let rings: Vec<HandRing> = (0..3).map(|_| wire.ring(2, 2)).collect();
        // One that is never mapped counts too.
        let _unmapped = other.ask_ring(2, 2).done();
        for wire in [&mut wire, &mut other] {
            over(&mut stage, wire.ask_ring(2, 2), setting);
        }
        for ring in rings {
            wire.release(OBJECT_RING, ring.number).done();
        }
        drop(other);
        until("the rings are given back", || stage.counter(Counter::Rings) == 1);
    }
    drop(wire);
    stage.finish();
}

/// The neighbour has two regions and an import.
#[test]
fn regions() {
    regions_up_to("quotas, regions of a uid", "quota.regions", |config| config.quota.regions = 10);
    regions_up_to("quotas, regions of the engine", "regions_max", |config| config.regions_max = 10);
}

fn regions_up_to(name: &'static str, setting: &str, change: impl FnOnce(&mut Config)) {
    let mut stage = Stage::with(name, change);
    let mut wire = stage.wire();
    while stage.goes_on() {
        let mut other = stage.wire();
        let (first, _memory) = wire.region(4096);
        let export = wire.ask_export(first, abi::RIGHTS_ALL, "quota").reply::<abi::ExportReply>().0;
        let mut ids = vec![first];
        for _ in 0..3 {
            ids.push(wire.region(4096).0);
            let import = other.ask_import("quota", export.secret);
            import.done();
        }
        for wire in [&mut wire, &mut other] {
            over(&mut stage, wire.ask_import("quota", export.secret), setting);
            over(&mut stage, wire.ask_region(REGION_ALLOCATED, 1, &[]), setting);
        }
        for id in ids {
            wire.release(OBJECT_REGION, id).done();
        }
        drop(other);
        until("the regions are given back", || stage.counter(Counter::Regions) == 3);
    }
    drop(wire);
    stage.finish();
}

/// Regions, ring segments, and one byte too many.
#[test]
fn region_bytes() {
    const LIMIT: u64 = 4 << 20;
    let mut stage = Stage::with("quotas, bytes of a uid", |config| {
        config.quota.region_bytes = LIMIT;
    });
    let setting = "quota.region_bytes";
    let mut wire = stage.wire();
    let mut first_count = None;
    while stage.goes_on() {
        for bytes in [LIMIT, LIMIT + 1, 1 << 40, u64::MAX - 4095, u64::MAX] {
            over(&mut stage, wire.ask_region(REGION_ALLOCATED, bytes, &[]), setting);
        }
        let mut ids = Vec::new();
        let refusal = loop {
            match wire.ask_region(REGION_ALLOCATED, 256 << 10, &[]) {
                Answer::Done(bytes, _fds) => {
                    let reply = zerocopy::FromBytes::read_from_bytes(&bytes);
                    let reply: abi::RegionReply = reply.unwrap();
                    wire.mapped(OBJECT_REGION, reply.region).done();
                    ids.push(reply.region);
                }
                refused => break refused,
            }
        };
        over(&mut stage, refusal, setting);
        over(&mut stage, wire.ask_ring(4096, 4096), setting);
        assert_eq!(ids.len(), *first_count.get_or_insert(ids.len()), "all was given back");
        for id in ids {
            wire.release(OBJECT_REGION, id).done();
        }
    }
    assert!(first_count.is_some_and(|count| count > 8), "most of the quota is to be had");
    drop(wire);
    stage.finish();
}

/// More ops than the quota, or the whole engine, has room for: they wait, and all are done.
#[test]
fn ops() {
    ops_up_to("quotas, ops of a uid", 100, |config| config.quota.ops = 100);
    ops_up_to("quotas, ops of the engine", 96, |config| config.records = 96);
}

fn ops_up_to(name: &'static str, limit: u64, change: impl FnOnce(&mut Config)) {
    const ENTRIES: u32 = 128;
    const OP_BYTES: u32 = 16 << 10;
    let mut stage = Stage::with(name, change);
    let mut wire = stage.wire();
    let (near, memory) = wire.region(u64::from(OP_BYTES));
    let (far, target) = wire.region(u64::from(OP_BYTES));
    let import = wire.own_import(far, "hungry");
    let mut rings: Vec<HandRing> = (0..4).map(|_| wire.ring(ENTRIES, ENTRIES)).collect();
    let mut most = 0;
    while stage.goes_on() || most == 0 {
        for ring in &mut rings {
            for number in 0..ENTRIES {
                ring.write(&Sqe {
                    opcode: Opcode::Write as u8,
                    class: (number % 4) as u8,
                    local_region: near,
                    remote_region: import,
                    bytes: OP_BYTES,
                    user_data: u64::from(number),
                    ..Sqe::default()
                });
            }
            ring.publish();
        }
        for ring in &mut rings {
            let mut seen = [false; ENTRIES as usize];
            for _ in 0..ENTRIES {
                let in_flight = stage.counter(Counter::InFlight);
                assert!(in_flight <= limit, "{in_flight} ops in flight, {limit} are allowed");
                most = most.max(in_flight);
                let cqe = ring.next();
                assert_eq!(cqe.res, OP_BYTES as i32, "{cqe:?}");
                let before = std::mem::replace(&mut seen[cqe.user_data as usize], true);
                assert!(!before, "a completion came twice");
                stage.tally.attempts += 1;
                stage.tally.cqe(&cqe);
            }
        }
    }
    drop((wire, rings, memory, target));
    stage.finish();
}
