//! Bells: filled up from both sides, closed, abused as letter boxes.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, send, sendmsg, shutdown};
use verbring::abi::{AT_BELL_AT, AT_CQ_TAIL, AT_ENGINE_FLAGS, OBJECT_RING, Sqe};

use super::raw::HandRing;
use super::slow::Slow;
use super::stage::{Stage, until};

const FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// Four threads pour bytes into the SQ bells of four rings for as long as it takes.
#[test]
fn sq_bells_filled() {
    let mut stage = Stage::set("SQ bells filled up");
    let mut wire = stage.wire();
    let mut rings: Vec<HandRing> = (0..4).map(|_| wire.ring(16, 16)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = rings
        .iter()
        .map(|ring| {
            let (bell, stop) = (ring.sq_bell.try_clone().unwrap(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let (mut sent, mut full) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    // Single bytes, each an event of its own, and heaps.
                    let heap = vec![1; if sent % 64 == 0 { 65_536 } else { 1 }];
                    match send(bell.as_raw_fd(), &heap, FLAGS) {
                        Ok(_) => sent += 1,
                        Err(Errno::EAGAIN) => full += 1,
                        Err(errno) => panic!("{errno}"),
                    }
                }
                (sent, full)
            })
        })
        .collect();
    while stage.goes_on() {
        for ring in &mut rings {
            ring.push(&Sqe { user_data: 5, ..Sqe::default() });
            assert_eq!((ring.next().user_data, ring.fault()), (5, None));
            stage.tally.granted += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        let (sent, _full): (u64, u64) = flood.join().unwrap();
        stage.tally.attempts += sent;
    }
    for ring in rings {
        wire.release(OBJECT_RING, ring.number).done();
    }
    drop(wire);
    stage.finish();
}

/// The client asks for its bell at every CQE and never silences it: the engine finds it full.
#[test]
fn cq_bells_filled() {
    let mut stage = Stage::set("CQ bells filled up");
    let mut wire = stage.wire();
    let mut ring = wire.ring(16, 16);
    while stage.goes_on() || stage.tally.attempts < 1_000 {
        ring.store(AT_BELL_AT, ring.load(AT_CQ_TAIL));
        ring.push(&Sqe::default());
        ring.next();
        stage.tally.attempts += 1;
        stage.tally.granted += 1;
    }
    let mut pending = [0; 8192];
    let count = nix::sys::socket::recv(ring.cq_bell.as_raw_fd(), &mut pending, FLAGS).unwrap();
    assert!((64..1_000).contains(&count), "{count} bytes wait in a bell that must be full");
    drop((wire, ring));
    stage.finish();
}

/// Bells closed and shut down, before, while and after they are used.
#[test]
fn bells_closed() {
    let mut stage = Stage::set("bells closed");
    while stage.goes_on() {
        let mut wire = stage.wire();
        for how in 0..4 {
            let mut ring = wire.ring(16, 16);
            ring.store(AT_BELL_AT, ring.load(AT_CQ_TAIL));
            match how {
                0 => shutdown(ring.cq_bell.as_raw_fd(), Shutdown::Both).unwrap(),
                1 => shutdown(ring.cq_bell.as_raw_fd(), Shutdown::Read).unwrap(),
                2 => shutdown(ring.sq_bell.as_raw_fd(), Shutdown::Write).unwrap(),
                // Takes the place of both bells: their last descriptors are closed.
                _ => close_bells(&mut ring),
            }
            ring.push(&Sqe::default());
            stage.tally.attempts += 1;
            // Without a bell the ring is only looked at while it does not sleep.
            until("the entry is taken, or the engine sleeps over it", || {
                ring.ready() > 0 || ring.load(AT_ENGINE_FLAGS) != 0
            });
            wire.release(OBJECT_RING, ring.number).done();
            stage.tally.granted += u64::from(ring.ready());
        }
    }
    stage.finish();
}

fn close_bells(ring: &mut HandRing) {
    let null = || std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap().into();
    (ring.sq_bell, ring.cq_bell) = (null(), null());
}

/// Descriptors sent over a bell, among them one whose close hangs. Whoever takes them off the bell
/// must not be the engine's thread, or nobody's ops move any more.
#[test]
fn bells_that_carry_descriptors() {
    let mut stage = Stage::set("descriptors sent over bells");
    let mut kept = Vec::new();
    while stage.goes_on() || stage.tally.attempts < 40 {
        let mut wire = stage.wire();
        let ring = wire.ring(16, 16);
        let mut slow = Slow::new();
        let many = vec![ring.cq_bell.as_raw_fd(); 252];
        let all = [vec![slow.raw()], many].concat();
        for rights in [&all[..1], &all[..]] {
            let message = [ControlMessage::ScmRights(rights)];
            let slices = [std::io::IoSlice::new(&[1])];
            let bell = ring.sq_bell.as_fd();
            let sent = sendmsg::<()>(bell.as_raw_fd(), &slices, &message, FLAGS, None);
            stage.tally.attempts += 1;
            if sent.is_err() {
                // The session is over by now.
                assert!([Err(Errno::EPIPE), Err(Errno::ECONNRESET)].contains(&sent.map(|_| 0)));
            }
        }
        slow.leave_it_there();
        wire.receive().over();
        stage.tally.ended += 1;
        kept.push(slow);
        if kept.len() == 8 {
            kept.clear();
        }
    }
    drop(kept);
    stage.finish();
}
