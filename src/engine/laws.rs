//! What must hold between the counts of the telemetry page: compared with each other, with the
//! counters that STATS gives, and with the ops that are there.
//!
//! The page tells them as laws (`docs/abi.md`), so that whoever reads it can rely on them.

use crate::abi::{
    Class, Counter, HISTOGRAM_BUCKETS, Opcode, SQE_SUPERSEDE, Tally, WAIT_REASONS, lane_block,
};
use crate::fabric::Fabric;
use crate::ledger::{Record, State, TIE_COUNTED};
use crate::telemetry::{SERVICE_AT, WAIT_AT, Words};

use super::Engine;

/// Sums of blocks.
type Sums = Vec<u64>;

impl<F: Fabric, M> Engine<F, M> {
    /// Compares, between two turns, what is counted for the telemetry page with what is there.
    ///
    /// # Panics
    /// If a law does not hold.
    pub fn audit_telemetry(&mut self) {
        // Ops that ended alike are counted now.
        let header = *self.meter.tallies().header();
        let blocks: Vec<Words> = (0..)
            .map_while(|block| {
                (u64::from(block) < header.blocks()).then(|| *self.meter.tallies().block(block))
            })
            .collect();
        let blocks: Vec<&Words> = blocks.iter().collect();
        let (lanes, rest) = blocks.split_at(header.lanes as usize);
        let (rails, sessions) = rest.split_at(header.rails as usize);
        let mut open: Vec<Record> = Vec::new();
        open.extend((0..self.ledger.capacity()).map(|slot| self.ledger[slot]).filter(moves));
        for (class, origin) in Class::ALL.into_iter().flat_map(|c| [(c, 0), (c, 1)]) {
            let own = |op: &&Record| (op.op.class, op.origin) == (class, origin);
            let block = lanes[lane_block(class, origin) as usize];
            ops(block, open.iter().filter(own), &format!("{class:?} lane of origin {origin}"));
        }
        for (number, block) in (0..).zip(&sessions[1..]) {
            let own = |op: &&Record| op.session.0 == number;
            ops(block, open.iter().filter(own), &format!("session {number}"));
            let counters = &self.sessions[number as usize].counters;
            if block[Tally::Uses as usize] % 2 == 1 {
                stats(block, counters, &format!("session {number}"));
            }
        }
        ops(sessions[0], [].iter(), "sessions that are gone");
        sums(lanes, sessions);
        self.by_class(lanes);
        self.by_rail(rails, lanes, &open);
    }

    /// What STATS says of each class.
    fn by_class(&self, lanes: &[&Words]) {
        for class in Class::ALL {
            let of = |tally: Tally| {
                let own = [0, 1].map(|origin| lanes[lane_block(class, origin) as usize]);
                own.map(|block| block[tally as usize]).iter().sum::<u64>()
            };
            let ended = of(Tally::Completed) + of(Tally::Failed) + of(Tally::Withdrawn);
            let counter = super::finish::counter_of(class);
            let told = self.stats_of_all()[counter as usize];
            assert_eq!(ended + of(Tally::Passed), told, "ended ops of {class:?}");
        }
    }

    fn stats_of_all(&self) -> [u64; Counter::COUNT] {
        let mut sum = self.departed;
        for session in self.sessions.iter().filter(|session| session.live) {
            for (total, own) in sum.iter_mut().zip(session.counters) {
                *total += own;
            }
        }
        sum
    }

    /// Requests at rails, and the service of the ops that went by them.
    fn by_rail(&self, rails: &[&Words], lanes: &[&Words], open: &[Record]) {
        for (rail, block) in (0..).zip(rails) {
            let of = |tally: Tally| block[tally as usize];
            let there = self.posts.open_posts().filter(|post| post.slice.rail == rail).count();
            let ended = of(Tally::Completed) + of(Tally::Failed) + of(Tally::Requeued);
            assert_eq!(of(Tally::Dispatched), ended + there as u64, "requests at rail {rail}");
        }
        let (rails, lanes) = (sum(rails), sum(lanes));
        let moved: u64 = open.iter().map(|op| op.done_bytes).sum();
        let bytes = Tally::Bytes as usize;
        assert_eq!(rails[bytes], lanes[bytes] + moved, "bytes by rail and by lane");
        assert_eq!(rails[SERVICE_AT..], lanes[SERVICE_AT..], "service by rail and by lane");
        assert_eq!(rails[Tally::Requeued as usize], lanes[Tally::Returned as usize], "handed back");
    }
}

/// Ops that go through lanes; one whose place another has taken counts as queued there.
fn moves(op: &Record) -> bool {
    let replaced = op.state == State::Folded && op.op.flags & SQE_SUPERSEDE != 0;
    let moves = !matches!(op.op.opcode, Opcode::Nop | Opcode::Join);
    let rode = op.state == State::Waiting && op.ties & TIE_COUNTED != 0;
    replaced || rode || (matches!(op.state, State::Queued | State::Posted) && moves)
}

/// Laws of one lane, or one session.
fn ops<'a>(block: &Words, open: impl Iterator<Item = &'a Record>, of_what: &str) {
    let (mut queued, mut in_flight) = (0, 0);
    for op in open {
        match op.state {
            State::Queued | State::Folded | State::Waiting => queued += 1,
            _ => in_flight += 1,
        }
    }
    let of = |tally: Tally| block[tally as usize];
    let came = of(Tally::Enqueued) + of(Tally::Requeued);
    let went = of(Tally::Dispatched) + of(Tally::Withdrawn);
    assert_eq!(came, went + queued, "queued ops of {of_what}");
    let ended = of(Tally::Completed) + of(Tally::Failed);
    let posted = of(Tally::Dispatched) - of(Tally::Requeued);
    assert_eq!(posted, ended + in_flight, "ops in flight of {of_what}");
    assert!(of(Tally::Cancelled) <= of(Tally::Withdrawn), "cancelled ops of {of_what}");
    let total = |from: usize, count: u32| block[from..][..count as usize].iter().sum::<u64>();
    let reasons = total(Tally::Waits as usize, WAIT_REASONS);
    assert_eq!(reasons, of(Tally::Defers), "defers by reason, of {of_what}");
    assert_eq!(total(WAIT_AT, HISTOGRAM_BUCKETS), ended, "queue waits of {of_what}");
    assert_eq!(total(SERVICE_AT, HISTOGRAM_BUCKETS), ended, "service times of {of_what}");
}

/// A session's counts are those that STATS gives.
fn stats(block: &Words, counters: &[u64; Counter::COUNT], of_what: &str) {
    let of = |tally: Tally| block[tally as usize];
    let told = |counter: Counter| counters[counter as usize];
    let ended = of(Tally::Completed) + of(Tally::Failed) + of(Tally::Withdrawn);
    let ended = ended + of(Tally::Passed) + told(Counter::Refused);
    assert_eq!(ended, told(Counter::Completed), "final outcomes of {of_what}");
    assert_eq!(of(Tally::Bytes), told(Counter::Bytes), "bytes of {of_what}");
    assert_eq!(of(Tally::Defers), told(Counter::Defers), "defers of {of_what}");
}

/// What lanes have counted is what sessions have, those that are gone among them.
fn sums(lanes: &[&Words], sessions: &[&Words]) {
    let apart = [Tally::Sequence, Tally::Queued, Tally::InFlight, Tally::Uses].map(|t| t as usize);
    let both = sum(lanes).into_iter().zip(sum(sessions));
    for (word, (lanes, sessions)) in both.enumerate() {
        // What is derived was so when it was copied last.
        assert!(apart.contains(&word) || lanes == sessions, "word {word} of lanes and sessions");
    }
}

fn sum(blocks: &[&Words]) -> Sums {
    let mut sums = vec![0; blocks[0].len()];
    for block in blocks {
        for (sum, value) in sums.iter_mut().zip(block.iter()) {
            *sum += value;
        }
    }
    sums
}
