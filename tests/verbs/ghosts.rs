//! A WRITE of x = 1 that times out on one rail and succeeds on the other; then x = 2 is written.
//! The packets of the first attempt come late, and out of order: x never goes back to 1.
//!
//! Two hosts with two cables. What the near card of the first cable sends is held back for longer
//! than that card waits for an answer. Many words are written at once, each an x of its own, half
//! of them by that cable: its rail times out, the other host takes its end of it out of use, and
//! says so, which may take a while, too; only then do they go by the other cable.
//! `src/engine/tests/ghosts.rs` has the same story with simulated cards.
//!
//! A **round** is one such word: its WRITE of 1 was posted again, by what its record says, and
//! ended well by the second rail, while the first one's card has given up (it counts that); then
//! its WRITE of 2 ended well. Rounds are counted until there are `VERBRING_GHOSTS` of them, 100 by
//! default.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use verbring::abi::FABRIC_VERBS;
use verbring::{Completion, Import, Region, Rights, Ring, RingOptions, Session, Write};

use super::engine::{PATIENCE, settle};
use super::hosts::{Host, KeyFile, reach};
use super::side::{Place, places, second_places};
use super::wire::{Wire, held_back, netdev, sent};

/// Words written at once; far enough apart that each is a work request of its own.
const WORDS: u64 = 120;
const APART: u64 = 128;
const REGION_BYTES: u64 = WORDS * APART;
/// A card gives up after 3 * 134 ms. Other engines are not called, nor missed, meanwhile.
const SETTINGS: [[&str; 2]; 4] = [
    ["--verbs-timeout", "15"],
    ["--verbs-retry", "2"],
    ["--peer-silence-ms", "20000"],
    ["--log", "error"],
];

/// In turn: how late packets are, in milliseconds; by how much more or less, so that they overtake
/// each other; and how long it takes the engines' words to each other, each way. The last is for an
/// engine that does not wait for the other one's word: there packets come before it.
const LATENESS: [[u32; 3]; 3] = [[2_000, 0, 0], [1_500, 1_400, 600], [800, 0, 600]];

/// A pass has half of the words go twice.
const MOST_PASSES: usize = 200;

/// After the last late packet is due.
const MARGIN: Duration = Duration::from_millis(100);

/// The near end: what writes.
struct Near {
    session: Session,
    ring: Ring,
    region: Region,
    import: Import,
    /// The rails by the first cable, and by the second.
    rails: [u8; 2],
}

impl Near {
    fn new(near: &Host, far: &Host, secret: &verbring::Secret) -> Self {
        let session = near.served.session();
        let (import, _) = reach(&session, &far.url, secret);
        let peers = session.peers().expect("peers");
        let peer = peers.iter().find(|peer| peer.place == far.url).expect("the far host");
        let rails = [0, 1].map(|card| {
            let mut rails = peer.rails.iter().filter(|rail| rail.card == card);
            rails.next().expect("a rail by each card").rail
        });
        let region = session.alloc(REGION_BYTES).expect("a region");
        let ring = session.ring(RingOptions::new(128, 256)).expect("a ring");
        Self { session, ring, region, import, rails }
    }

    /// Writes a value to these words, all at once; returns how each ended.
    fn write(&mut self, words: &[u64], value: u64) -> Vec<(u64, Completion)> {
        let push = |word: &u64| {
            let at = word * APART;
            let mut lease = self.region.lend(at..at + 8).expect("free");
            lease.set_u64(0, value);
            self.ring.push(Write::new(lease, self.import.at(at))).expect("room")
        };
        let tickets: Vec<_> = words.iter().map(push).collect();
        self.ring.submit();
        let (mut ended, begun) = (Vec::new(), Instant::now());
        while ended.len() < words.len() {
            self.ring.submit_and_wait(1, Some(Duration::from_millis(100))).expect("a wait");
            while let Some(mut done) = self.ring.reap().expect("a sound ring") {
                assert_eq!((&done.result, done.fabric), (&Ok(8), FABRIC_VERBS), "{done:?}");
                drop(done.lease.take());
                let at = tickets.iter().position(|ticket| *ticket == done.ticket);
                ended.push((words[at.expect("an op of ours")], done));
            }
            assert!(begun.elapsed() < PATIENCE, "{} of {} ended", ended.len(), words.len());
        }
        ended
    }

    /// Both rails carry.
    fn wait_for_both(&mut self) {
        let words: Vec<u64> = (0..WORDS).collect();
        let begun = Instant::now();
        loop {
            let ended = self.write(&words, 2);
            let carried = |rail| ended.iter().any(|(_, done)| done.rail == rail);
            if self.rails.iter().all(|rail| carried(*rail)) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the first rail does not come back");
            sleep(Duration::from_millis(20));
        }
    }
}

/// How often a card has given up.
fn given_up(place: &Place) -> u64 {
    let path =
        format!("/sys/class/infiniband/{}/ports/1/hw_counters/retry_exceeded_err", place.device);
    fs::read_to_string(path).expect("Soft-RoCE's counters").trim().parse().expect("a number")
}

fn holds(target: &Region, word: u64) -> u64 {
    target.lend(word * APART..word * APART + 8).expect("free").u64(0)
}

/// What a while of late packets came to.
#[derive(Debug, Default)]
struct Tally {
    rounds: u64,
    /// Times the first rail's card gave up.
    given_up: u64,
    /// Packets of it that were still on their way when all had written 2, and came after that.
    late: u64,
    /// Words that went by the second rail alone.
    others: u64,
}

impl Tally {
    /// A while in which what the first rail sends is late.
    fn play(
        &mut self,
        near: &mut Near,
        target: &Region,
        [first, second]: [&Place; 2],
        lateness: [u32; 3],
    ) {
        near.wait_for_both();
        let wire = netdev(first);
        let [late, more, word] = lateness.map(|ms| format!("{ms}ms"));
        let longest = Duration::from_millis((lateness[0] + lateness[1]).into());
        let before = given_up(first);
        let slow = Wire::from(vec![wire.clone()], &["delay", &late, &more]);
        let other = Wire::from(vec![netdev(second)], &["delay", "20ms"]);
        let words_slow = Wire::from(vec!["lo".to_string()], &["delay", &word]);
        let all: Vec<u64> = (0..WORDS).collect();
        let ended = near.write(&all, 1);
        let recorder = near.session.recorder().expect("a recorder");
        let records = recorder.records();
        let twice = |done: &Completion| {
            let record = records.iter().rev().find(|entry| entry.record == done.record);
            record.expect("it is over").retries > 0
        };
        let moved: Vec<u64> = ended
            .iter()
            .filter(|(_, done)| done.rail == near.rails[1] && twice(done))
            .map(|(word, _)| *word)
            .collect();
        near.write(&all, 2);
        // In this order: to ask for what is held back takes a while.
        let (written, before_late) = (Instant::now(), sent(&wire));
        let late = held_back(&wire);
        while written.elapsed() < longest + MARGIN || sent(&wire) < before_late + late {
            assert!(written.elapsed() < PATIENCE, "packets are held back for good");
            for &word in &all {
                assert_eq!(holds(target, word), 2, "word {word}, {lateness:?} ms, {self:?}");
            }
            sleep(Duration::from_millis(5));
        }
        let gone = given_up(first) - before;
        if gone > 0 {
            self.rounds += moved.len() as u64;
        }
        self.given_up += gone;
        self.late += late;
        self.others += WORDS - moved.len() as u64;
        drop((slow, other, words_slow));
    }
}

#[test]
#[ignore = "needs four RDMA ports on two cables: tests/run vm"]
fn what_timed_out_on_one_rail_never_lands_after_what_came_next() {
    let least = match std::env::var("VERBRING_GHOSTS") {
        Ok(text) => text.parse().expect("a number of rounds"),
        Err(_) => 100,
    };
    let ([a0, b0], [a1, b1]) = (places(), second_places());
    let key = KeyFile::new();
    let near = Host::with_settings("near", &[&a0, &a1], "127.0.0.1:7510", &key, &SETTINGS);
    let far = Host::with_settings("far", &[&b0, &b1], "127.0.0.1:7511", &key, &SETTINGS);
    let there = far.served.session();
    let target = there.alloc(REGION_BYTES).expect("a region");
    let secret = target.export("there", Rights::ALL).expect("an export");
    let mut writer = Near::new(&near, &far, &secret);
    let (mut tally, begun) = (Tally::default(), Instant::now());
    for (pass, lateness) in LATENESS.into_iter().cycle().enumerate() {
        // Where all is slow, what was late is there before the second value is.
        if tally.rounds >= least && tally.late >= least {
            break;
        }
        assert!(pass < MOST_PASSES, "hardly anything goes twice, or late: {tally:?}");
        tally.play(&mut writer, &target, [&a0, &a1], lateness);
        println!("{:6.1} s, {lateness:?} ms: {tally:?}", begun.elapsed().as_secs_f64());
    }
    drop((writer, target, there, near, far));
    for place in [&a0, &b0, &a1, &b1] {
        settle(&place.device);
    }
}
