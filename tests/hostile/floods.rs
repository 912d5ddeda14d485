//! Control sockets that are flooded, or whose replies nobody reads. The data path does not notice,
//! and nobody else's control socket does either.

use nix::errno::Errno;
use verbring::abi::{Counter, Head, Kind, ProbeReply};
use zerocopy::IntoBytes;

use super::raw::{Answer, Wire};
use super::stage::{Stage, until};

fn probe(tag: u64) -> Vec<u8> {
    let head = Head { kind: Kind::Probe as u16, reserved: 0, bytes: 16, tag };
    head.as_bytes().to_vec()
}

/// Far more messages than a uid may send in a second. They are answered later, each once, in
/// order; none is refused.
#[test]
fn beyond_the_rate() {
    const RATE: u32 = 2_000;
    let mut stage = Stage::with("control messages flooded", |config| {
        config.quota.control_per_s = RATE;
    });
    let wire = stage.wire();
    let (mut sent, mut answered) = (0u64, 0u64);
    while stage.goes_on() || answered < 2 * u64::from(RATE) + 500 {
        while sent - answered < 100 && wire.send(&probe(sent), &[]).is_ok() {
            sent += 1;
        }
        match stage.tally.answer(wire.receive()) {
            Answer::Done(bytes, _) => {
                let tag = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                assert_eq!((bytes.len(), tag), (size_of::<ProbeReply>(), answered));
            }
            other => panic!("{other:?}"),
        }
        answered += 1;
    }
    drop(wire);
    stage.finish();
}

/// A client that hangs up while it is held back for its rate.
#[test]
fn gone_while_held_back() {
    let mut stage = Stage::with("gone while held back for its rate", |config| {
        config.quota.control_per_s = 100;
    });
    let before = stage.counter(Counter::Sessions);
    while stage.goes_on() {
        let wire = stage.connect();
        for tag in 0..150 {
            if wire.send(&probe(tag), &[]) == Err(Errno::EPIPE) {
                break;
            }
            stage.tally.attempts += 1;
        }
        drop(wire);
        // The observer is of the same uid: it waits for the next second with everybody else.
        stage.tally.ended += 1;
    }
    until("they are all gone", || stage.counter(Counter::Sessions) == before);
    stage.finish();
}

/// Requests without end, and not one reply read: the engine sends until there is no more room, and
/// then ends the session.
#[test]
fn replies_not_read() {
    let mut stage = Stage::set("replies not read");
    let evicted = stage.counter(Counter::Evicted);
    while stage.goes_on() {
        let wire = stage.wire();
        let mut tag = 0;
        until("the session is over", || match wire.send(&probe(tag), &[]) {
            Ok(()) => {
                tag += 1;
                false
            }
            Err(Errno::EAGAIN) => false,
            Err(Errno::EPIPE | Errno::ECONNRESET) => true,
            Err(errno) => panic!("{errno}"),
        });
        stage.tally.attempts += tag;
        stage.tally.ended += 1;
    }
    assert_eq!(stage.counter(Counter::Evicted) - evicted, stage.tally.ended);
    stage.finish();
}

/// Sixty connections at a time that never say a word; then one that does.
#[test]
fn silent_connections() {
    let mut stage = Stage::with("silent connections", |config| {
        config.quota.sessions = 64;
    });
    while stage.goes_on() {
        let wires: Vec<Wire> = (0..60).map(|_| stage.connect()).collect();
        stage.tally.attempts += wires.len() as u64;
        stage.turns(1);
        drop(wires);
        until("there is room again", || stage.counter(Counter::Sessions) == 2);
        stage.wire().probe().done();
        until("there is room again", || stage.counter(Counter::Sessions) == 2);
        stage.tally.granted += 1;
    }
    stage.finish();
}
