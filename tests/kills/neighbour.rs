//! Those who must not notice: a neighbour, who looks at every byte of every op, and a peer, who
//! writes into the victim's memory and lets it write into its own.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use verbring::abi::errno;
use verbring::client::ControlError;
use verbring::{
    Arm, Completion, FetchAdd, Import, Read, Region, Rights, Ring, RingOptions, Secret, Session,
    Write,
};

use super::part::PATIENCE;
use super::victim::{MEETING_BYTES, write_some};

/// A thread whose ops all succeed, or it panics.
#[derive(Debug)]
pub(crate) struct Neighbour {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// Ops whose bytes were found right.
    verified: AtomicU64,
    wish: Mutex<Wish>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Work,
    Pause,
    /// Nothing is in flight.
    Paused,
    End,
}

/// Ops in flight at once.
const DEPTH: u64 = 8;
/// Bytes of one op, at most.
const BYTES_MAX: u64 = 8 << 10;

impl Neighbour {
    pub(crate) fn start(socket: &Path) -> Self {
        let shared = Arc::new(Shared {
            verified: AtomicU64::new(0),
            wish: Mutex::new(Wish::Work),
            changed: Condvar::new(),
        });
        let session = Session::connect(socket).unwrap();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || work(&session, &shared)
        });
        Self { shared, thread }
    }

    pub(crate) fn verified(&self) -> u64 {
        self.shared.verified.load(Ordering::Relaxed)
    }

    /// Waits until so many ops are verified in all.
    pub(crate) fn await_verified(&self, count: u64) {
        let start = Instant::now();
        while self.verified() < count {
            assert!(!self.thread.is_finished(), "the neighbour came to harm");
            assert!(start.elapsed() < PATIENCE, "the neighbour is held up");
            std::thread::yield_now();
        }
    }

    /// Waits until nothing of it is in flight.
    pub(crate) fn pause(&self) {
        let mut wish = self.shared.wish.lock().unwrap();
        *wish = Wish::Pause;
        let start = Instant::now();
        while *wish != Wish::Paused {
            assert!(!self.thread.is_finished(), "the neighbour came to harm");
            assert!(start.elapsed() < PATIENCE, "the neighbour is held up");
            let tick = Duration::from_millis(10);
            wish = self.shared.changed.wait_timeout(wish, tick).unwrap().0;
        }
    }

    pub(crate) fn resume(&self) {
        *self.shared.wish.lock().unwrap() = Wish::Work;
        self.shared.changed.notify_all();
    }

    /// Ends it; returns how many ops it has verified.
    pub(crate) fn end(self) -> u64 {
        *self.shared.wish.lock().unwrap() = Wish::End;
        self.shared.changed.notify_all();
        self.thread.join().expect("the neighbour came to harm");
        self.shared.verified.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Between two rounds, with nothing in flight; false at the end.
    fn goes_on(&self) -> bool {
        let mut wish = self.wish.lock().unwrap();
        loop {
            match *wish {
                Wish::Work => return true,
                Wish::End => return false,
                Wish::Pause => {
                    *wish = Wish::Paused;
                    self.changed.notify_all();
                }
                Wish::Paused => wish = self.changed.wait(wish).unwrap(),
            }
        }
    }
}

/// Writes, adds, reads back and compares, until told otherwise.
fn work(session: &Session, shared: &Shared) {
    let bytes = 2 * DEPTH * BYTES_MAX;
    let near = session.alloc(bytes).unwrap();
    let far = session.alloc(bytes).unwrap();
    let secret = far.export("neighbour", Rights::ALL).unwrap();
    let import = session.import("neighbour", None, &secret).unwrap();
    let mut ring = session.ring(RingOptions::default()).unwrap();
    let mut round = 0;
    while shared.goes_on() {
        verify_round(&mut ring, &near, &import, round);
        round += 1;
        shared.verified.fetch_add(2 * DEPTH + 1, Ordering::Relaxed);
    }
}

fn verify_round(ring: &mut Ring, near: &Region, import: &Import, round: u64) {
    let length = 8 + round * 712 % (BYTES_MAX - 8);
    let expected = |place: u64| -> Vec<u8> {
        (0..length)
            .map(|at| (at ^ at >> 8).wrapping_add(31 * round + place).to_le_bytes()[0])
            .collect()
    };
    for place in 0..DEPTH {
        let from = place * BYTES_MAX;
        let mut lease = near.lend(from..from + length).unwrap();
        lease.write(0, &expected(place));
        ring.push(Write::new(lease, import.at(from))).unwrap();
    }
    for done in finish(ring, DEPTH) {
        assert_eq!(u64::from(done.result.unwrap()), length);
    }
    for place in 0..DEPTH {
        let from = (DEPTH + place) * BYTES_MAX;
        let lease = near.lend(from..from + length).unwrap();
        ring.push(Read::new(lease, import.at(place * BYTES_MAX))).unwrap();
    }
    for done in finish(ring, DEPTH) {
        assert_eq!(u64::from(done.result.unwrap()), length);
        let lease = done.lease.unwrap();
        let mut back = vec![0; usize::try_from(length).unwrap()];
        lease.read(0, &mut back);
        assert!(back == expected(lease.offset() / BYTES_MAX - DEPTH), "round {round}: other bytes");
    }
    let lease = near.lend(0..8).unwrap();
    let sum = import.at(DEPTH * BYTES_MAX);
    ring.push(FetchAdd::new(lease, sum, 1).unwrap()).unwrap();
    for done in finish(ring, 1) {
        assert_eq!(done.result, Ok(8));
        assert_eq!(done.lease.unwrap().u64(0), round, "an addition was lost");
    }
}

/// Waits for all that is in flight.
fn finish(ring: &mut Ring, count: u64) -> Vec<Completion> {
    let count = usize::try_from(count).unwrap();
    assert_eq!(ring.submit_and_wait(count, Some(PATIENCE)).unwrap(), count, "ops are held up");
    (0..count).map(|_| ring.reap().unwrap().unwrap()).collect()
}

/// A thread that meets victims: to it alone their death shows, as ESTALE.
#[derive(Debug)]
pub(crate) struct Peer {
    secret: Secret,
    orders: Sender<(String, Secret)>,
    thread: JoinHandle<Met>,
}

/// What a peer has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Met {
    /// Victims it wrote to.
    victims: u64,
    /// Victims that were gone before.
    missed: u64,
    /// Ops on victims' regions that were done, and that found them gone.
    done: u64,
    stale: u64,
    /// Notifications from victims.
    notified: u64,
}

impl Met {
    pub(crate) fn happened(&self) -> bool {
        self.victims > 0 && self.done > 0 && self.stale > 0
    }
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { victims, missed, done, stale, notified } = self;
        write!(
            f,
            "{victims} met by a peer ({missed} too late), {done} of its ops done and \
             {stale} stale, {notified} notifications"
        )
    }
}

/// Ops that a peer has in flight when it meets nobody: its ARM.
pub(crate) const PEER_IDLE_OPS: u64 = 1;

impl Peer {
    /// The name of its export.
    pub(crate) const ARENA: &str = "arena";

    pub(crate) fn start(socket: &Path) -> Self {
        let session = Session::connect(socket).unwrap();
        let arena = session.alloc(MEETING_BYTES).unwrap();
        let secret = arena.export(Self::ARENA, Rights::ALL).unwrap();
        let (orders, wanted) = channel();
        let thread = std::thread::spawn(move || Meeting::new(session, arena).serve(&wanted));
        Self { secret, orders, thread }
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Has it meet a victim, until that is gone.
    pub(crate) fn meet(&self, name: &str, secret: Secret) {
        self.orders.send((name.to_string(), secret)).expect("the peer came to harm");
    }

    pub(crate) fn end(self) -> Met {
        drop(self.orders);
        self.thread.join().expect("the peer came to harm")
    }
}

struct Meeting {
    session: Session,
    arena: Region,
    ring: Ring,
    met: Met,
}

impl Meeting {
    fn new(session: Session, arena: Region) -> Self {
        let ring = session.ring(RingOptions::default()).unwrap();
        Self { session, arena, ring, met: Met::default() }
    }

    fn serve(mut self, wanted: &Receiver<(String, Secret)>) -> Met {
        self.arm();
        loop {
            match wanted.recv_timeout(Duration::from_millis(1)) {
                Ok((name, secret)) => self.meet(&name, &secret),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.met,
            }
            while let Some(completion) = self.ring.reap().unwrap() {
                assert!(!self.take(completion));
            }
        }
    }

    fn arm(&mut self) {
        self.ring.push(Arm::new(&self.arena, 1)).unwrap();
        self.ring.submit();
    }

    fn meet(&mut self, name: &str, secret: &Secret) {
        let import = match self.session.import(name, None, secret) {
            Ok(import) => import,
            Err(ControlError::Refused(refusal))
                if [errno::ENOENT, errno::ESTALE].contains(&refusal.errno) =>
            {
                self.met.missed += 1;
                return;
            }
            Err(error) => panic!("{error}"),
        };
        self.met.victims += 1;
        let mut stale = false;
        while !stale {
            for completion in write_some(&mut self.ring, &self.arena, &import).unwrap() {
                stale |= self.take(completion);
            }
        }
        while self.ring.in_flight() > usize::try_from(PEER_IDLE_OPS).unwrap() {
            self.ring.submit_and_wait(1, Some(PATIENCE)).unwrap();
            let completion = self.ring.reap().unwrap().expect("ops are held up");
            self.take(completion);
        }
        import.release().unwrap();
    }

    /// True if an op found the victim gone.
    fn take(&mut self, completion: Completion) -> bool {
        if let Some(notification) = completion.notification {
            self.met.notified += u64::from(notification.count);
            self.arm();
            return false;
        }
        match completion.result {
            Ok(_) => self.met.done += 1,
            Err(error) if error.errno == errno::ESTALE => {
                self.met.stale += 1;
                return true;
            }
            Err(error) => panic!("an op on the victim's region failed: {error}"),
        }
        false
    }
}
