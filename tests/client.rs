//! Claim: what the client's types promise holds against a real engine: leases, verdict-free ends,
//! notifications, revocation, and the requests of the control socket. Two sessions of one process
//! meet over an embedded engine; nothing here depends on how fast anything is.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use verbring::abi::{self, Counter, Detail, Kind, Opcode, errno};
use verbring::client::{ControlError, OpRef, RingError, Scope};
use verbring::{
    Arm, Completion, Engine, FetchAdd, Flush, Import, Nop, Read, Readv, Region, Rights, Ring,
    RingOptions, Session, Write, Writev,
};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

/// A session that exports a region, and another one that has imported it.
struct Meeting {
    engine: Engine,
    owner: Session,
    owned: Region,
    user: Session,
    import: Import,
    region: Region,
    ring: Ring,
}

fn meet() -> Meeting {
    let engine = Engine::builder().spawn().unwrap();
    let owner = engine.connect().unwrap();
    let owned = owner.alloc(1 << 16).unwrap();
    let secret = owned.export("met", Rights::ALL).unwrap();
    let user = engine.connect().unwrap();
    let import = user.import("met", None, &secret).unwrap();
    let region = user.alloc(1 << 16).unwrap();
    let ring = user.ring(RingOptions::new(8, 16)).unwrap();
    Meeting { engine, owner, owned, user, import, region, ring }
}

fn next(ring: &mut Ring) -> Completion {
    ring.submit_and_wait(1, PATIENCE).unwrap();
    ring.reap().unwrap().expect("a completion in time")
}

#[test]
fn scattered_pages_move_both_ways() {
    let Meeting { engine: _engine, owned, import, region, mut ring, .. } = meet();
    let mut pages: Vec<_> =
        [3u64, 1, 7].map(|n| region.lend(n * 4096..(n + 1) * 4096).unwrap()).into();
    for (byte, page) in (1..).zip(&mut pages) {
        page.fill(byte);
    }
    let list = region.lend(0..48).unwrap();
    let places = [8192, 0, 20480];
    ring.push(Writev::scattered(list, pages, &places, import.at(4096)).unwrap()).unwrap();
    let mut wrote = next(&mut ring);
    assert_eq!(wrote.result, Ok(3 * 4096));
    for (byte, place) in (1..).zip(places) {
        let mut landed = [0; 4096];
        owned.lend(4096 + place..8192 + place).unwrap().read(0, &mut landed);
        assert_eq!(landed, [byte; 4096]);
    }
    for page in &mut wrote.pages {
        page.fill(0);
    }
    let list = wrote.lease.unwrap();
    ring.push(Readv::scattered(list, wrote.pages, &places, import.at(4096)).unwrap()).unwrap();
    let read = next(&mut ring);
    assert_eq!(read.result, Ok(3 * 4096));
    for (byte, page) in (1..).zip(&read.pages) {
        let mut landed = [0; 4096];
        page.read(0, &mut landed);
        assert_eq!(landed, [byte; 4096]);
    }
}

#[test]
fn a_revoked_region_is_out_of_reach() {
    let Meeting { engine: _engine, owner, owned, import, region, mut ring, .. } = meet();
    ring.push(Write::new(region.lend(0..8).unwrap(), import.at(0))).unwrap();
    assert_eq!(next(&mut ring).result, Ok(8));
    ring.push(Flush::import(&import)).unwrap();
    assert_eq!(next(&mut ring).result, Ok(0));
    let mut owners_ring = owner.ring(RingOptions::default()).unwrap();
    owners_ring.push(Flush::region(&owned).revoke()).unwrap();
    assert_eq!(next(&mut owners_ring).result, Ok(0));
    ring.push(Write::new(region.lend(0..8).unwrap(), import.at(0))).unwrap();
    let error = next(&mut ring).result.unwrap_err();
    assert_eq!((error.errno, error.detail), (errno::ESTALE, Detail::Revoked));
    assert!(!error.retryable && !error.maybe_done);
}

#[test]
fn notifications_without_an_arm_are_counted_for_the_next() {
    let Meeting { engine: _engine, owner, owned, import, region, mut ring, .. } = meet();
    for immediate in [5, 6, 7] {
        let op = Write::new(region.lend(0..0).unwrap(), import.at(0));
        ring.push(op.notify(immediate)).unwrap();
        assert_eq!(next(&mut ring).result, Ok(0));
    }
    let mut owners_ring = owner.ring(RingOptions::default()).unwrap();
    owners_ring.push(Arm::new(&owned, 1)).unwrap();
    let told = next(&mut owners_ring);
    assert_eq!((told.result, told.more), (Ok(3), false));
    let notification = told.notification.unwrap();
    assert_eq!((notification.immediate, notification.count), (7, 3));
}

#[test]
fn an_op_in_flight_can_be_asked_about_and_taken_back() {
    let Meeting { engine: _engine, owner, owned, .. } = meet();
    let mut ring = owner.ring(RingOptions::default()).unwrap();
    let armed = ring.push(Arm::new(&owned, 1)).unwrap();
    ring.push(Nop::new()).unwrap();
    // Taken in order: once the NOP is done, the ARM has been taken.
    assert_eq!(next(&mut ring).result, Ok(0));
    let why = owner.why(armed).unwrap();
    assert_eq!((why.opcode, why.number), (Some(Opcode::Arm), armed.number()));
    assert_eq!((why.state, why.wait), (abi::STATE_ARMED, abi::WAIT_NOTIFY));
    let record = owner.cancel(OpRef::record(ring.number(), why.record)).unwrap();
    assert_eq!(record, why.record);
    let cancelled = next(&mut ring);
    assert_eq!((cancelled.ticket, cancelled.record, cancelled.more), (armed, record, false));
    let error = cancelled.result.unwrap_err();
    assert_eq!((error.errno, error.detail), (errno::ECANCELED, Detail::Cancelled));
    assert!(error.retryable);
    let gone = owner.cancel(armed).unwrap_err();
    let refusal = gone.refusal().unwrap();
    assert_eq!((refusal.request, refusal.errno), (Kind::Cancel, errno::ENOENT));
    assert!(!refusal.text.is_empty());
}

#[test]
fn a_memfd_becomes_a_region_and_stays_ours() {
    let Meeting { engine: _engine, user, import, mut ring, owned, .. } = meet();
    let memfd = verbring::shm::create(c"a-region", 8192, false).unwrap();
    let kept = memfd.try_clone().unwrap();
    let region = user.region_from_memfd(memfd, 8192).unwrap();
    owned.lend(0..8).unwrap().set_u64(0, 40);
    let old = region.lend(4096..4104).unwrap();
    ring.push(FetchAdd::new(old, import.at(0), 2).unwrap()).unwrap();
    let added = next(&mut ring);
    assert_eq!((added.result, added.lease.unwrap().u64(0)), (Ok(8), 40));
    assert_eq!(owned.lend(0..8).unwrap().u64(0), 42);
    let again = user.region_from_memfd(kept, 8192).unwrap_err();
    assert!(matches!(again, ControlError::Memory(_)), "sealed for good: {again}");
}

#[test]
fn a_released_ring_gives_its_ranges_back() {
    let Meeting { engine: _engine, user, import, region, mut ring, .. } = meet();
    for at in 0..8u64 {
        let lease = region.lend(at * 4096..(at + 1) * 4096).unwrap();
        ring.push(Read::new(lease, import.at(0))).unwrap();
    }
    ring.submit();
    let rings = || user.stats(Scope::Session).unwrap()[Counter::Rings];
    assert_eq!(rings(), 1);
    ring.release().unwrap();
    assert_eq!(rings(), 0);
    assert!(region.lend(0..8 * 4096).is_ok());
    region.release().unwrap();
    import.release().unwrap();
    let stats = user.stats(Scope::Session).unwrap();
    assert_eq!((stats[Counter::Regions], stats[Counter::InFlight]), (0, 0));
}

#[test]
fn two_sleepers_wake_each_other() {
    const ROUNDS: u64 = 1_000;
    let Meeting { engine: _engine, owner, owned, user, import, region, .. } = meet();
    let sleepy = RingOptions { spin: Duration::ZERO, ..RingOptions::default() };
    let answering = user.ring(sleepy).unwrap();
    let back = region.export("back", Rights::ALL).unwrap();
    let back = owner.import("back", None, &back).unwrap();
    // Each side waits for the other's notification before it sends its own.
    let play = |mut ring: Ring, region: &Region, import: &Import, begins: bool| {
        for round in 0..ROUNDS {
            ring.push(Arm::new(region, 1)).unwrap();
            let send = |ring: &mut Ring| {
                let op = Write::new(region.lend(0..0).unwrap(), import.at(0)).notify(9);
                ring.push(op).unwrap();
            };
            if begins {
                send(&mut ring);
            }
            let mut told = 0;
            for _ in 0..1 + u32::from(begins) {
                let completion = next(&mut ring);
                told += u64::from(completion.notification.is_some());
                assert!(completion.result.is_ok(), "round {round}: {completion:?}");
            }
            assert_eq!(told, 1, "round {round}");
            if !begins {
                send(&mut ring);
                assert_eq!(next(&mut ring).result, Ok(0));
            }
        }
        ring.sleeps()
    };
    let beginning = owner.ring(sleepy).unwrap();
    let slept = std::thread::scope(|scope| {
        let other = scope.spawn(|| play(answering, &region, &import, false));
        let own = play(beginning, &owned, &back, true);
        [own, other.join().unwrap()]
    });
    assert!(slept.iter().all(|slept| *slept > 0), "slept {slept:?}");
}

#[test]
fn the_end_of_the_engine_ends_every_wait() {
    let Meeting { engine, owner, owned, .. } = meet();
    let mut ring = owner.ring(RingOptions::default()).unwrap();
    ring.push(Arm::new(&owned, 1)).unwrap();
    ring.submit();
    let waiting = std::thread::spawn(move || {
        loop {
            match ring.wait(1, PATIENCE) {
                Ok(0) => panic!("the time is up"),
                Ok(_) => while ring.reap().is_ok_and(|completion| completion.is_some()) {},
                Err(over) => return over,
            }
        }
    });
    engine.shutdown().unwrap();
    let over = waiting.join().unwrap();
    assert!(matches!(over, RingError::SessionOver), "{over:?}");
    assert!(!owner.engine_gone(), "its process lives: it is this one");
    assert!(matches!(owner.probe(), Err(ControlError::SessionOver)));
}

#[test]
fn a_raw_ring_tells_whether_the_engine_sleeps() {
    let asleep_soon = |spin_us| {
        let mut config = verbring::host::Config::default();
        (config.spin_us, config.ring_idle_ms) = (spin_us, 60_000);
        Engine::builder().config(config).spawn().unwrap()
    };
    let op = abi::Sqe::default();
    let engine = asleep_soon(0);
    let mut ring = engine.connect().unwrap().raw_ring(RingOptions::new(2, 2)).unwrap();
    for _ in 0..3 {
        while !ring.engine_sleeps() {
            std::thread::yield_now();
        }
        ring.push(op).unwrap();
        assert_eq!(ring.submit_and_wait(1, PATIENCE).unwrap(), 1, "it was woken");
        ring.pop().unwrap().unwrap();
    }
    // One that looks for work for a second does not sleep just after it had some.
    let engine = asleep_soon(1_000_000);
    let mut ring = engine.connect().unwrap().raw_ring(RingOptions::new(2, 2)).unwrap();
    let awake = (0..100).any(|_| {
        ring.push(op).unwrap();
        ring.submit_and_wait(1, PATIENCE).unwrap();
        ring.pop().unwrap().unwrap();
        !ring.engine_sleeps()
    });
    assert!(awake);
}
