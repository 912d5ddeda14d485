//! A CQ that is never read: back-pressure for its own ring, and nothing for anybody else.

use verbring::abi::{OBJECT_RING, Sqe};

use super::raw::HandRing;
use super::stage::{Stage, until};

const SQ: u32 = 64;
const CQ: u32 = 8;

/// Thirty rings whose CQs are full and whose SQs too. The engine takes what it can answer, no
/// more, and takes the rest as soon as CQEs are popped.
#[test]
fn f20_completions() {
    let mut stage = Stage::set("a CQ never read");
    let mut wire = stage.wire();
    let mut rings: Vec<HandRing> = (0..30).map(|_| wire.ring(SQ, CQ)).collect();
    for ring in &mut rings {
        for number in 0..SQ {
            ring.write(&Sqe { user_data: u64::from(number), ..Sqe::default() });
        }
        ring.publish();
    }
    stage.tally.attempts = rings.len() as u64 * u64::from(SQ);
    for ring in &rings {
        until("the CQ is full", || ring.ready() == CQ);
    }
    while stage.goes_on() {
        for ring in &rings {
            assert_eq!((ring.ready(), ring.taken(), ring.fault()), (CQ, CQ, None));
            ring.ring_bell();
        }
    }
    for ring in &mut rings {
        for number in 0..SQ {
            // Whoever lets an engine fall asleep over a full CQ rings when there is room again.
            ring.ring_bell();
            let cqe = ring.next();
            assert_eq!((cqe.user_data, cqe.res), (u64::from(number), 0), "in order, each once");
            stage.tally.cqe(&cqe);
        }
    }
    for ring in rings {
        wire.release(OBJECT_RING, ring.number).done();
    }
    drop(wire);
    stage.finish();
}

/// The same rings, left as they are: the end of the session takes them all back.
#[test]
fn completions_of_a_session_that_leaves() {
    let mut stage = Stage::set("a CQ never read, and its session leaves");
    while stage.goes_on() {
        let mut wire = stage.wire();
        for _ in 0..4 {
            let mut ring = wire.ring(SQ, CQ);
            for _ in 0..SQ {
                ring.write(&Sqe::default());
            }
            ring.publish();
            until("the CQ is full", || ring.ready() == CQ);
            stage.tally.attempts += u64::from(SQ);
            stage.tally.granted += u64::from(CQ);
        }
    }
    stage.finish();
}
