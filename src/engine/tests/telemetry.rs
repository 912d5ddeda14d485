//! The telemetry page: what an op is counted as, where, and when the page has it. That the counts
//! keep their laws is looked at after every turn of every world (`world`).

use proptest::prelude::*;

use super::cancel::held_under;
use super::script::{BROKEN, Script, Stage};
use super::world::{LIMITS, Pair, SENDER, STEP_NS, World, cancel, flush, nop};
use crate::abi::{
    CANCEL_BY_NUMBER, Class, HISTOGRAM_STEPS, HISTOGRAM_UNIT_NS, Opcode, Sqe, Tally,
    WAIT_WINDOW_WRS, lane_block,
};
use crate::engine::Command;
use crate::engine::meter::Meter;
use crate::fabric::Fabric;
use crate::ids::{RingId, SessionId};
use crate::ledger::{Ledger, Op, State};
use crate::seeds::property;
use crate::sync::AtomicU64;
use crate::telemetry::{
    BLOCK_WORDS, EVERY_NS, Histogram, Page, SERVICE_AT, WAIT_AT, Words, read_block,
};

/// A page on the heap.
struct Kept {
    lines: std::sync::Arc<[[AtomicU64; 8]]>,
    rails: u32,
}

impl Kept {
    fn of<F: Fabric>(world: &mut World<F>) -> Self {
        let header = *world.engine.telemetry_header();
        let (page, lines) = Page::on_heap(&header);
        world.engine.keep_telemetry(page);
        Self { lines, rails: header.rails }
    }

    fn block(&self, number: u32) -> Words {
        let lines = &self.lines[number as usize * BLOCK_WORDS / 8..][..BLOCK_WORDS / 8];
        let mut words = [0; BLOCK_WORDS];
        assert!(read_block(lines.iter(), &mut words), "nobody writes now");
        words
    }

    fn lane(&self, class: Class) -> Words {
        self.block(lane_block(class, 0))
    }

    fn rail(&self, rail: u32) -> Words {
        self.block(6 + rail)
    }

    fn session(&self, session: u32) -> Words {
        self.block(6 + self.rails + 1 + session)
    }
}

fn of<const N: usize>(words: &Words, tallies: [Tally; N]) -> [u64; N] {
    tallies.map(|tally| words[tally as usize])
}

fn held() -> (Stage, Pair<Script>, Kept) {
    let (stage, mut pair) = held_under(LIMITS, 16);
    let kept = Kept::of(&mut pair.world);
    (stage, pair, kept)
}

/// Makes a turn after which the page has all that was counted.
fn turn(pair: &mut Pair<Script>) {
    pair.world.now_ns += EVERY_NS;
    pair.world.turn();
}

#[test]
fn an_op_is_counted_in_its_lane_its_session_and_its_rail() {
    use Tally::{Bytes, Completed, Defers, Dispatched, Enqueued, InFlight, Passed, Queued};
    let (stage, mut pair, kept) = held();
    // Two ops of four slices each: the window takes the first whole, and nothing of the second.
    for at in [0, 1024] {
        let sqe = pair.write_as(Class::High, at, 1024);
        pair.world.push(SENDER, sqe);
    }
    pair.world.push(SENDER, nop());
    turn(&mut pair);
    let under_way = [Enqueued, Queued, Dispatched, InFlight, Completed, Bytes];
    for words in [kept.lane(Class::High), kept.session(0)] {
        assert_eq!(of(&words, under_way), [2, 1, 1, 1, 0, 0]);
        assert_eq!(of(&words, [Defers]), [1]);
        assert_eq!(words[Tally::Waits as usize + usize::from(WAIT_WINDOW_WRS)], 1);
    }
    assert_eq!(of(&kept.rail(0), [Dispatched, InFlight, Queued, Bytes]), [4, 4, 0, 0]);
    assert_eq!(of(&kept.lane(Class::Medium), [Passed, Enqueued]), [1, 0], "the NOP");
    stage.release();
    stage.complete_all();
    pair.world.settle();
    turn(&mut pair);
    turn(&mut pair);
    for words in [kept.lane(Class::High), kept.session(0)] {
        assert_eq!(of(&words, under_way), [2, 0, 2, 0, 2, 2048]);
    }
    assert_eq!(of(&kept.session(0), [Passed]), [1]);
    assert_eq!(of(&kept.rail(0), [Dispatched, InFlight, Completed, Bytes]), [8, 0, 8, 2048]);
    assert_eq!(of(&kept.session(1), under_way), [0; 6], "nothing of another session's");
}

#[test]
fn what_is_cancelled_fails_or_is_not_taken_is_counted_as_that() {
    use Tally::{
        Cancelled, Dispatched, Enqueued, Failed, InFlight, Passed, Queued, Requeued, Withdrawn,
    };
    let (stage, mut pair, kept) = held();
    stage.take_only(&[0]);
    let sqe = pair.write_as(Class::Low, 0, 64);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    for at in 1..6 {
        let sqe = pair.write_as(Class::Low, at * 64, 64);
        pair.world.push(SENDER, sqe);
    }
    turn(&mut pair);
    let low = kept.lane(Class::Low);
    assert_eq!(of(&low, [Requeued, Enqueued, Dispatched, InFlight, Queued]), [1, 6, 5, 4, 2]);
    pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, 5));
    turn(&mut pair);
    let low = kept.lane(Class::Low);
    assert_eq!(of(&low, [Withdrawn, Cancelled, Queued]), [1, 1, 1]);
    assert_eq!(of(&kept.lane(Class::Medium), [Passed]), [1], "the CANCEL");
    (0..4).for_each(|_| stage.complete(0, BROKEN));
    turn(&mut pair);
    turn(&mut pair);
    for words in [kept.lane(Class::Low), kept.session(0)] {
        assert_eq!(of(&words, [Failed, Withdrawn]), [4, 1]);
    }
    assert_eq!(of(&kept.rail(0), [Failed]), [4]);
}

#[test]
fn work_of_the_engine_itself_has_lanes_of_its_own() {
    let mut ledger = Ledger::new(0, 4);
    let mut meter = Meter::new(1, 2);
    for (origin, ops) in [(0, 1), (1, 2)] {
        for _ in 0..ops {
            *ledger.vacant().unwrap() = Op { opcode: Opcode::Write, class: Class::Low, ..Op::NOP };
            let (_, record) = ledger.open(SessionId(1), RingId(0), 100).unwrap();
            record.origin = origin;
            meter.enqueued_one(record);
            (record.state, record.posted_ns) = (State::Posted, 200);
            meter.dispatched(record);
            record.done_bytes = 8;
            meter.ended(record, 1_000);
        }
    }
    let session = meter.header().session_block(1);
    let ended = [Tally::Enqueued, Tally::Dispatched, Tally::Completed, Tally::Bytes];
    let blocks = [lane_block(Class::Low, 0), lane_block(Class::Low, 1), session];
    for (block, ops) in blocks.into_iter().zip([1, 2, 3]) {
        assert_eq!(of(meter.tallies().block(block), ended), [ops, ops, ops, 8 * ops]);
    }
}

#[test]
fn counts_of_a_session_that_ends_stay_in_the_sums() {
    let (_stage, mut pair, kept) = held();
    let session = pair.world.session(2);
    let ring = pair.world.ring(session, 8, 8);
    pair.world.push(ring, nop());
    turn(&mut pair);
    assert_eq!(kept.session(2)[Tally::Uses as usize], 1);
    assert_eq!(kept.session(2)[Tally::Passed as usize], 1);
    let token = pair.world.wind(ring, crate::engine::Wind::Cancel);
    pair.world.settle();
    assert!(pair.world.reply(token).is_some());
    let token = pair.world.token();
    pair.world.engine.command(Command::RemoveSession { session: SessionId(2), token });
    turn(&mut pair);
    turn(&mut pair);
    let words = kept.session(2);
    assert_eq!(of(&words, [Tally::Uses, Tally::Passed]), [2, 0]);
    let gone = kept.block(6 + kept.rails);
    assert_eq!(gone[Tally::Passed as usize], 1);
}

#[test]
fn an_engine_that_goes_to_sleep_leaves_nothing_uncopied() {
    let (_stage, mut pair, kept) = held();
    turn(&mut pair);
    pair.world.push(SENDER, nop());
    pair.world.push(SENDER, flush(pair.far));
    pair.world.settle();
    let passed = || kept.lane(Class::Medium)[Tally::Passed as usize];
    assert_eq!(passed(), 0, "it is not due yet");
    assert!(pair.world.engine.fall_asleep());
    assert_eq!(passed(), 2);
}

proptest! {
    #![proptest_config(property(60))]

    /// Ops that wait and take as long as it pleases: percentiles of the page's histograms are
    /// those of the records, up to a bucket.
    #[test]
    fn histograms_tell_what_the_records_tell(
        steps in proptest::collection::vec((0..3_usize, 0..20_u32, proptest::bool::ANY), 1..60),
    ) {
        let (stage, mut pair, kept) = held();
        let mut waits: [Vec<u64>; 3] = Default::default();
        let mut services: [Vec<u64>; 3] = Default::default();
        let mut pushed = Vec::new();
        for (at, (class, shift, complete)) in (0_u64..).zip(steps) {
            let class = Class::ALL[class];
            let sqe = Sqe { user_data: at, ..pair.write_as(class, 64 * at % 4096, 64) };
            pair.world.push(SENDER, sqe);
            pushed.push(class);
            if complete {
                stage.complete_all();
            }
            pair.world.now_ns += 1 << shift;
            pair.world.turn();
            for cqe in pair.world.pop(SENDER) {
                let class = pushed[usize::try_from(cqe.user_data).unwrap()].index();
                waits[class].push(u64::from(cqe.queued) * 16);
                services[class].push(u64::from(cqe.service) * 16);
            }
        }
        turn(&mut pair);
        turn(&mut pair);
        for cqe in pair.world.pop(SENDER) {
            let class = pushed[usize::try_from(cqe.user_data).unwrap()].index();
            waits[class].push(u64::from(cqe.queued) * 16);
            services[class].push(u64::from(cqe.service) * 16);
        }
        for class in Class::ALL {
            let words = kept.lane(class);
            same(&words[WAIT_AT..SERVICE_AT], &mut waits[class.index()])?;
            same(&words[SERVICE_AT..], &mut services[class.index()])?;
        }
    }
}

/// CQEs tell times in the units of the finest buckets.
fn same(counts: &[u64], times_ns: &mut [u64]) -> Result<(), TestCaseError> {
    let histogram = Histogram::new(counts.to_vec(), HISTOGRAM_UNIT_NS, HISTOGRAM_STEPS);
    prop_assert_eq!(histogram.count(), times_ns.len() as u64);
    times_ns.sort_unstable();
    for thousandths in [500, 900, 990, 999] {
        let rank = (times_ns.len() * thousandths).div_ceil(1_000);
        let exact = rank.checked_sub(1).map(|rank| times_ns[rank]);
        let told = histogram.at_thousandths(u32::try_from(thousandths).unwrap());
        prop_assert_eq!(told.is_some(), exact.is_some());
        if let (Some(told), Some(exact)) = (told, exact) {
            prop_assert!((exact..=exact + (exact / 8).max(15)).contains(&told), "{told} {exact}");
        }
    }
    Ok(())
}

#[test]
fn a_turn_is_shorter_than_copies_are_apart() {
    // Else the tests above would tell nothing of what is due.
    const { assert!(STEP_NS < EVERY_NS / 100) };
}
