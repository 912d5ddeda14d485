//! Chains that a ring's client says with edges, through engines that are joined by cards: what
//! depends on what is under way goes out behind it, without waiting for the answer; and where one
//! of them fails, those behind it do, and nobody else does.

use std::ops::RangeInclusive;
use std::thread::sleep;
use std::time::{Duration, Instant};

use verbring::abi::{FABRIC_VERBS, STATE_POSTED, errno};
use verbring::{
    Completion, FetchAdd, Import, Region, Rights, Ring, RingOptions, Secret, Session, Ticket, Write,
};

use super::engine::{PATIENCE, config_at};
use super::engines::{Side, pattern, read, word};
use super::side::places;
use super::wire::{ROUND_TRIP, Wire};

/// Ops of a chain.
const LENGTH: u64 = 8;
const BYTES: u64 = 64;
const ROUNDS: usize = 9;
/// How often all rounds are made anew on a machine that is busy with something else.
const TRIES: usize = 4;

/// A session of the near engine, and what it has of the far one.
struct Client {
    session: Session,
    region: Region,
    ring: Ring,
    import: Import,
}

impl Client {
    /// With a region of 64 KiB, and an import of what the far side exports.
    fn new(near: &Side, far: &Side, secret: &Secret) -> Self {
        let session = near.engine.connect().expect("a session");
        let region = session.alloc(64 << 10).expect("a region");
        let ring = session.ring(RingOptions::new(64, 64)).expect("a ring");
        let peer = session.connect_peer_over(&far.url, FABRIC_VERBS).expect("a peer");
        let import = peer.import("there", None, secret).expect("an import");
        Self { session, region, ring, import }
    }

    /// A WRITE of bytes of their own to the place of the same number.
    fn write(&self, place: u64) -> Write {
        let at = place * BYTES;
        let mut lease = self.region.lend(at..at + BYTES).expect("free");
        lease.write(0, &pattern(BYTES, place));
        Write::new(lease, self.import.at(at))
    }

    /// Pushes WRITEs of which each waits for the one before it.
    fn chain(&mut self, length: u64) {
        let mut before: Option<Ticket> = None;
        for place in 0..length {
            let write = self.write(place);
            let write = match before {
                Some(before) => write.after(before),
                None => write,
            };
            before = Some(self.ring.push(write).expect("room"));
        }
    }

    /// Waits until all has ended.
    fn ends(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        while self.ring.in_flight() > 0 {
            let waited = self.ring.submit_and_wait(1, Some(PATIENCE)).expect("a wait");
            assert!(waited > 0, "{} of {}", done.len(), done.len() + self.ring.in_flight());
            done.extend(std::iter::from_fn(|| self.ring.reap().expect("a sound ring")));
        }
        done
    }

    /// From the first push to the last end of a chain, all of which went well.
    fn time(&mut self, length: u64) -> Duration {
        let begun = Instant::now();
        self.chain(length);
        let ends = self.ends();
        let took = begun.elapsed();
        assert_eq!(ends.len() as u64, length);
        assert!(ends.iter().all(|done| done.result == Ok(64) && done.fabric == FABRIC_VERBS));
        took
    }
}

fn median(mut times: [Duration; ROUNDS]) -> Duration {
    times.sort_unstable();
    times[ROUNDS / 2]
}

/// Medians of one WRITE, a chain, and as many WRITEs one after another. Each round has all three,
/// so that whatever slows the machine down slows all of them down.
fn measure(client: &mut Client) -> [Duration; 3] {
    let [mut one, mut chain, mut apart] = [[Duration::ZERO; ROUNDS]; 3];
    for round in 0..ROUNDS {
        one[round] = client.time(1);
        chain[round] = client.time(LENGTH);
        apart[round] = (0..LENGTH).map(|_| client.time(1)).sum();
    }
    [one, chain, apart].map(median)
}

/// What the wire takes must be most of what one WRITE takes: else it is not the wire that is
/// compared, and all is measured again. Which try counts is for one WRITE alone to say.
#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_rings_chain_of_eight_writes_takes_hardly_longer_than_one() {
    let [first, second] = places();
    let near = Side::start("near", config_at(&first));
    let far = Side::start("far", config_at(&second));
    let secret = far.region.export("there", Rights::ALL).expect("an export");
    let mut client = Client::new(&near, &far, &secret);
    client.time(LENGTH);
    let wire = Wire::long([&first, &second]);
    let mut least = measure(&mut client);
    for _ in 1..TRIES {
        if least[0] < 2 * ROUND_TRIP {
            break;
        }
        println!("one WRITE {:?}: the machine is busy, and is given another try", least[0]);
        least = least.min(measure(&mut client));
    }
    let [one, chain, apart] = least;
    drop(wire);
    for place in 0..LENGTH {
        assert!(read(&far.region, place * BYTES, BYTES) == pattern(BYTES, place), "{place}");
    }
    let times = |took: Duration| took.as_secs_f64() / one.as_secs_f64();
    println!(
        "one WRITE of a ring {one:?}, a chain of {LENGTH} {chain:?} ({:.2} times), \
         one after another {apart:?} ({:.2} times): medians of {ROUNDS}",
        times(chain),
        times(apart)
    );
    assert!(one >= ROUND_TRIP, "the wire is not long: {one:?}");
    assert!(2 * chain <= 3 * one, "a chain of {LENGTH} took {chain:?}, one WRITE {one:?}");
    assert!(apart > 4 * one, "one after another took {apart:?}: there is nothing to be saved");
}

/// Nothing arrives until the queue pair gives up. A WRITE can be repeated then, in the chain or
/// beside it; an atomic cannot: it may have been carried out. What depends on it is not.
#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_failure_in_a_rings_chain_ends_the_rest_and_costs_no_innocent_of_its_queue_pair() {
    const WORD: u64 = 32 << 10;
    let [first, second] = places();
    let mut config = config_at(&first);
    // It gives up after 2 s: time enough to see that all of the chain is under way. (To Soft-RoCE
    // seven repeats, as many as can be said, are repeats without end.)
    (config.verbs_timeout, config.verbs_retry) = (17, 3);
    let near = Side::start("near", config);
    let far = Side::start("far", config_at(&second));
    let secret = far.region.export("there", Rights::ALL).expect("an export");
    let [mut guilty, mut innocent] = [0; 2].map(|_| Client::new(&near, &far, &secret));
    far.region.lend(0..WORD + 8).expect("free").fill(0);

    let wire = Wire::silent([&first, &second]);
    // Beside the chain: before it, and behind it, of the same session and of another.
    for place in 0..2 {
        let write = innocent.write(100 + place);
        innocent.ring.push(write).expect("room");
    }
    innocent.ring.submit();
    let write = guilty.write(0);
    let head = guilty.ring.push(write).expect("room");
    let lease = guilty.region.lend(WORD..WORD + 8).expect("free");
    let add = FetchAdd::new(lease, guilty.import.at(WORD), 1).expect("a word").after(head);
    let bad = guilty.ring.push(add).expect("room");
    let mut last = bad;
    for place in 2..LENGTH {
        let write = guilty.write(place).after(last);
        last = guilty.ring.push(write).expect("room");
    }
    let beside: Vec<Ticket> = (50..53)
        .map(|place| {
            let write = guilty.write(place);
            guilty.ring.push(write).expect("room")
        })
        .collect();
    guilty.ring.submit();
    for place in 2..4 {
        let write = innocent.write(100 + place);
        innocent.ring.push(write).expect("room");
    }
    innocent.ring.submit();
    is_posted(&guilty.session, last);

    // The verdict of what cannot be repeated needs no cable.
    let mut ends = Vec::new();
    while !ends.iter().any(|done: &Completion| done.ticket == bad) {
        guilty.ring.submit_and_wait(1, Some(PATIENCE)).expect("a wait");
        let done = guilty.ring.reap().expect("a sound ring").expect("a verdict in time");
        assert!(done.result.is_err(), "nothing arrives: {done:?}");
        ends.push(done);
    }
    drop(wire);
    ends.extend(guilty.ends());
    let others = innocent.ends();

    let bad_end = ends.iter().find(|done| done.ticket == bad).expect("it has ended");
    println!("the verdict came {:?} after the post", bad_end.service);
    assert_eq!((ends.len(), others.len()), (11, 4));
    judge(&ends, head, &beside, bad..=last);
    assert_eq!(ends.iter().filter(|done| done.result.is_ok()).count(), 1 + beside.len());
    assert!(others.iter().all(|done| done.result == Ok(64)), "{others:?}");

    let there = |place: u64| read(&far.region, place * BYTES, BYTES) == pattern(BYTES, place);
    assert!([0, 50, 51, 52, 100, 101, 102, 103].into_iter().all(there), "all who went well");
    let untouched = |place: u64| read(&far.region, place * BYTES, BYTES) == [0; 64];
    assert!((2..LENGTH).all(untouched), "what depends on a failure did not run");
    assert_eq!(word(&far.region, WORD), 0, "nothing arrived");
    // The queue pair serves on; what has ended gives its leases back.
    drop((ends, others));
    guilty.time(LENGTH);
    assert!((0..LENGTH).all(there));
}

/// The first of a range fails, the rest inherit that, and all else goes well.
fn judge(ends: &[Completion], head: Ticket, beside: &[Ticket], fails: RangeInclusive<Ticket>) {
    for done in ends {
        match &done.result {
            Ok(bytes) => {
                assert!(done.ticket == head || beside.contains(&done.ticket), "{done:?}");
                assert_eq!((*bytes, done.fabric), (64, FABRIC_VERBS));
            }
            Err(error) if done.ticket == *fails.start() => {
                assert!(error.maybe_done && !error.retryable && !error.dep_failed, "{error:?}");
                assert!([errno::EIO, errno::ETIMEDOUT].contains(&error.errno), "{error:?}");
            }
            Err(error) => {
                assert!(fails.contains(&done.ticket), "{done:?}");
                assert_eq!(error.errno, errno::ECANCELED, "{error:?}");
                assert!(error.dep_failed && error.retryable && !error.maybe_done, "{error:?}");
            }
        }
    }
}

/// Waits until an op that rides is with the queue pair, though none of those before it is over. A
/// question that comes in the very turn in which the op is taken may miss it, and is asked again.
fn is_posted(session: &Session, op: Ticket) {
    let begun = Instant::now();
    loop {
        let why = session.why(op);
        if why.as_ref().is_ok_and(|why| why.state == STATE_POSTED) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "it is not posted: {why:?}");
        sleep(Duration::from_millis(10));
    }
}
