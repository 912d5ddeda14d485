//! A client that goes while the engine is taking back a ring of its: the ring is asked back twice,
//! by RELEASE and by the end of the session, and its number may belong to another client by the
//! time of the second answer. With one ring in all it is the neighbour who gets it next.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, recv, send, shutdown,
    socket,
};
use verbring::abi::{self, Head, Kind};
use verbring::client::ControlError;
use verbring::host::Config;
use verbring::{Engine, Nop, RingOptions, Session};
use zerocopy::IntoBytes;

use super::chance::{Chance, Replay, Run};
use super::part::{PATIENCE, Scratch};

const ROUNDS_PER_KILL: u64 = 50;

#[test]
fn a_client_that_goes_amid_a_release_takes_no_ring_of_its_neighbour() {
    let run = Run::from_environment();
    let scratch = Scratch::new();
    let mut config = Config::default();
    config.socket = Some(scratch.socket());
    config.rings_max = 1;
    // Both ask for it until they have it.
    config.quota.control_per_s = 1_000_000;
    let engine = Engine::builder().config(config).spawn().unwrap();
    let neighbour = engine.connect().unwrap();
    let (next, turns) = channel();
    let (used, uses) = channel();
    let neighbour = std::thread::spawn(move || use_rings(&neighbour, &turns, &used));
    let mut released = 0;
    let rounds = run.kills * ROUNDS_PER_KILL;
    for seed in run.seed..run.seed + rounds {
        let _replay = Replay { test: "amid_a_release", seed };
        let begun = || next.send(()).expect("the neighbour came to harm");
        released += u64::from(go_amid_release(&scratch.socket(), seed, begun));
        uses.recv_timeout(2 * PATIENCE).expect("the neighbour came to harm");
    }
    drop(next);
    neighbour.join().expect("the neighbour came to harm");
    println!(
        "{rounds} clients went amid a RELEASE, seed {}: {released} had their answer before; each \
         time a neighbour had the ring next",
        run.seed
    );
    engine.shutdown().unwrap();
}

/// Takes the one ring each time the other client is about to give it back.
fn use_rings(session: &Session, turns: &Receiver<()>, used: &Sender<()>) {
    while turns.recv().is_ok() {
        let mut ring = until_free(|| session.ring(RingOptions::new(2, 2)));
        ring.push(Nop::new()).unwrap();
        assert_eq!(ring.submit_and_wait(1, Some(PATIENCE)).unwrap(), 1, "the op is held up");
        assert_eq!(ring.reap().unwrap().unwrap().result, Ok(0));
        ring.release().unwrap();
        used.send(()).unwrap();
    }
}

/// Gives a ring back and goes at some moment of that. True if the answer was faster.
fn go_amid_release(path: &Path, seed: u64, begun: impl FnOnce()) -> bool {
    let mut chance = Chance::new(seed);
    let end = dial(path);
    let line = end.try_clone().unwrap();
    let session = Session::from_socket(end).unwrap();
    let ring = until_free(|| session.raw_ring(RingOptions::new(2, 2)));
    begun();
    let bytes = u32::try_from(size_of::<abi::Release>()).unwrap();
    let head = Head { kind: Kind::Release as u16, reserved: 0, bytes, tag: u64::MAX };
    let release = abi::Release { head, object: abi::OBJECT_RING, id: ring.number() };
    // By hand, since a client that is answered by silence waits a while to learn why.
    send(line.as_raw_fd(), release.as_bytes(), MsgFlags::empty()).unwrap();
    let until = Instant::now() + Duration::from_nanos(chance.below(100_000));
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    let answered = recv(line.as_raw_fd(), &mut [0; 64], MsgFlags::MSG_DONTWAIT).is_ok();
    shutdown(line.as_raw_fd(), Shutdown::Both).unwrap();
    answered
}

fn dial(path: &Path) -> OwnedFd {
    let end = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None);
    let end = end.unwrap();
    connect(end.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    end
}

/// Tries until the ring is nobody else's.
fn until_free<T>(mut make: impl FnMut() -> Result<T, ControlError>) -> T {
    let start = Instant::now();
    loop {
        match make() {
            Ok(made) => return made,
            Err(ControlError::Refused(_)) if start.elapsed() < PATIENCE => {}
            Err(error) => panic!("no ring: {error}"),
        }
    }
}
