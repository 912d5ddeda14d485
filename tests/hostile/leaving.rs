//! Clients that leave in the middle of a request, and engines that shut down in the middle of
//! theirs.

use std::path::Path;

use verbring::Engine;
use verbring::abi::{
    AT_ENGINE_FLAGS, Counter, ENGINE_CLOSING, Export, Import, Kind, Mapped, OBJECT_REGION,
    OBJECT_RING, Opcode, REGION_ALLOCATED, RIGHTS_ALL, RegionRequest, Release, RingRequest, Sqe,
    Stats,
};
use zerocopy::IntoBytes;

use super::chance::Chance;
use super::raw::{HandRing, Wire, padded};
use super::stage::{Stage, until};

/// Each request that the engine answers late, sent without a look for the answer. Whatever stage it
/// has reached when its session ends, nothing of it stays.
#[test]
fn in_the_middle_of_a_request() {
    let mut stage = Stage::set("clients that leave in the middle of a request");
    let mut chance = Chance::new(70);
    let victim = stage.session();
    let offered = victim.alloc(4096).unwrap();
    let secret = *offered.export("offered", verbring::Rights::ALL).unwrap().as_bytes();
    while stage.goes_on() || stage.tally.attempts < 600 {
        let mut wire = stage.wire();
        let ring = wire.ring(2, 2).number;
        let region = wire.region(4096).0;
        let made = wire.ask_region(REGION_ALLOCATED, 1 << 20, &[]);
        let made = made.reply::<verbring::abi::RegionReply>().0.region;
        let half = wire.ask_ring(2, 2).reply::<verbring::abi::RingReply>().0.ring;
        for _ in 0..=chance.below(3) {
            let bytes = request(&mut wire, chance.below(9), [ring, half, region, made], secret);
            let _ = wire.send(&bytes, &[]);
            stage.tally.attempts += 1;
        }
        if chance.once_in(2) {
            stage.turns(1);
        }
        drop(wire);
        stage.tally.ended += 1;
    }
    until("all are gone", || stage.counter(Counter::Sessions) == 3);
    drop((offered, victim));
    stage.finish();
}

fn request(wire: &mut Wire, which: u64, ids: [u32; 4], secret: [u8; 32]) -> Vec<u8> {
    let [ring, half, region, made] = ids;
    let object = OBJECT_REGION;
    match which {
        0 => {
            let head = wire.head::<RingRequest>(Kind::Ring);
            let request =
                RingRequest { head, sq_entries: 1_024, cq_entries: 1_024, flags: 0, reserved: 0 };
            request.as_bytes().to_vec()
        }
        1 => {
            let head = wire.head::<RegionRequest>(Kind::Region);
            let (source, flags) = (REGION_ALLOCATED, 0);
            RegionRequest { head, source, flags, bytes: 8 << 20 }.as_bytes().to_vec()
        }
        2 => {
            let head = wire.head::<Mapped>(Kind::Mapped);
            Mapped { head, object, id: made }.as_bytes().to_vec()
        }
        3 => {
            let head = wire.head::<Mapped>(Kind::Mapped);
            Mapped { head, object: OBJECT_RING, id: half }.as_bytes().to_vec()
        }
        4 => {
            let head = wire.head::<Import>(Kind::Import);
            let (rights, uid, name) = (0, verbring::abi::UID_OWN, padded("offered"));
            Import { head, rights, uid, name, secret, peer: 0, reserved: 0 }.as_bytes().to_vec()
        }
        5 => {
            let head = wire.head::<Release>(Kind::Release);
            Release { head, object, id: region }.as_bytes().to_vec()
        }
        6 => {
            let head = wire.head::<Release>(Kind::Release);
            Release { head, object: OBJECT_RING, id: ring }.as_bytes().to_vec()
        }
        7 => {
            let head = wire.head::<Export>(Kind::Export);
            let (rights, name) = (RIGHTS_ALL, padded("hasty"));
            Export { head, region, rights, name }.as_bytes().to_vec()
        }
        _ => {
            let head = wire.head::<Stats>(Kind::Stats);
            Stats { head, scope: 1, reserved: 0 }.as_bytes().to_vec()
        }
    }
}

const LOAD_BYTES: u32 = 16 << 20;

/// A client with 64 large ops under way at an engine.
fn busy_client(socket: &Path) -> (Wire, HandRing) {
    let mut wire = Wire::connect(socket);
    wire.hello().done();
    let (region, _) = wire.region(2 * u64::from(LOAD_BYTES));
    let import = wire.own_import(region, "busy");
    let mut ring = wire.ring(64, 64);
    for at in 0..64 {
        ring.write(&Sqe {
            opcode: Opcode::Write as u8,
            user_data: at,
            local_region: region,
            remote_region: import,
            remote_offset: LOAD_BYTES.into(),
            bytes: LOAD_BYTES,
            ..Sqe::default()
        });
    }
    ring.publish();
    until("all is taken", || ring.taken() == 64);
    (wire, ring)
}

/// Clients that leave, and such as stay, while an engine of theirs drains. Those that stay see
/// every op through; the engine ends in good order.
#[test]
fn while_the_engine_drains() {
    let mut stage = Stage::set("clients that leave while the engine drains");
    while stage.goes_on() || stage.tally.attempts < 8 {
        let path = stage.socket.with_extension("drained");
        let engine = Engine::builder().socket(&path).spawn().unwrap();
        let (wire, mut ring) = busy_client(&path);
        std::thread::scope(|scope| {
            let end = scope.spawn(|| engine.shutdown());
            let closing = || ring.load(AT_ENGINE_FLAGS) & ENGINE_CLOSING != 0;
            until("the ring is closing", closing);
            stage.tally.attempts += 1;
            if stage.tally.attempts.is_multiple_of(2) {
                drop(wire);
                stage.tally.ended += 1;
            }
            let outcome = end.join().unwrap();
            assert_eq!(outcome, Ok(()), "a thread of the engine panicked");
        });
        if stage.tally.attempts % 2 == 1 {
            for _ in 0..64 {
                let cqe = ring.next();
                assert_eq!(cqe.res, LOAD_BYTES as i32, "taken before the drain: {cqe:?}");
            }
            stage.tally.granted += 1;
        }
    }
    stage.finish();
}
