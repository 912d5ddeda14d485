//! The flight recorder: an entry for every op that is over, which tells what its CQE tells and what
//! led to it; none for NOPs and for what was refused; nothing of another session's.

use std::sync::Arc;

use super::cancel::held_under;
use super::script::{BROKEN, Script, Stage};
use super::world::{LIMITS, Pair, RECEIVER, SENDER, World, arm, cancel, flush, nop, revoke};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_FLUSHED, CQE_MAYBE_DONE, Class, Cqe, Detail, Opcode, RecordEntry,
    SQE_SKIP_SUCCESS, Sqe, WAIT_CLASS, WAIT_FABRIC, WAIT_LANE, WAIT_NONE, WAIT_WINDOW_BYTES,
    WAIT_WINDOW_WRS, errno,
};
use crate::engine::{Command, Limits, Reply, Wind};
use crate::fabric::{DONE_FLUSHED, DONE_MAYBE, Done, Fabric};
use crate::ids::{RecordId, SessionId};
use crate::sync::AtomicU64;
use crate::telemetry::{Recorder, read_entry};

/// What a session's recorder writes to.
struct Kept(Arc<[[AtomicU64; 8]]>);

impl Kept {
    fn of<F: Fabric>(world: &mut World<F>, session: u32) -> Self {
        let (recorder, lines) = Recorder::on_heap(32);
        let session = SessionId(session);
        world.engine.command(Command::SetRecorder { session, recorder });
        Self(lines)
    }

    /// All entries; fewer than there are places were written.
    fn all(&self) -> Vec<RecordEntry> {
        self.0.iter().map_while(read_entry).map(RecordEntry::from_words).collect()
    }

    fn last(&self) -> RecordEntry {
        *self.all().last().expect("an entry")
    }
}

fn held() -> (Stage, Pair<Script>, Kept) {
    let (stage, mut pair) = held_under(LIMITS, 16);
    let kept = Kept::of(&mut pair.world, 0);
    (stage, pair, kept)
}

fn time_ns(word: u64) -> u64 {
    word >> 16
}

fn count(word: u64) -> u64 {
    word & 0xffff
}

/// An entry and the CQE of the same op agree.
fn expect_same(entry: &RecordEntry, cqe: &Cqe) {
    assert_eq!((entry.record, entry.user_data), (cqe.record, cqe.user_data));
    assert_eq!((entry.res, entry.flags, entry.detail), (cqe.res, cqe.flags, cqe.detail));
    let total = u64::from(cqe.queued) + u64::from(cqe.service);
    assert!(time_ns(entry.total) / 16 >= total && time_ns(entry.total) / 16 <= total + 1);
    if count(entry.queued) > 0 {
        assert_eq!(time_ns(entry.queued) / 16, u64::from(cqe.queued));
    }
}

#[test]
fn an_entry_tells_what_the_cqe_tells_and_how_it_came_to_that() {
    let (stage, mut pair, kept) = held();
    let taken_ns = pair.world.now_ns;
    let sqe = Sqe { user_data: 77, ..pair.write_as(Class::High, 0, 1024) };
    pair.world.push(SENDER, sqe);
    for _ in 0..5 {
        pair.world.turn();
        assert_eq!(kept.all(), [], "it is not over");
    }
    stage.complete_all();
    pair.world.turn();
    let [cqe] = pair.world.pop(SENDER)[..] else { panic!("one CQE") };
    let [entry] = kept.all()[..] else { panic!("one entry") };
    expect_same(&entry, &cqe);
    assert_eq!((entry.sequence, entry.ring, entry.user_data), (1, 0, 77));
    assert_eq!((entry.opcode, entry.class), (Opcode::Write as u8, Class::High as u8));
    assert_eq!((entry.bytes, entry.res, entry.rail, entry.cause), (1024, 1024, 0, 0));
    assert_eq!((count(entry.queued), entry.retries), (4, 0), "four slices");
    assert!(entry.taken_ns > taken_ns && entry.taken_ns < pair.world.now_ns);
    assert_eq!(entry.taken_ns + time_ns(entry.total), pair.world.now_ns);
}

#[test]
fn what_an_op_lacked_last_outlives_its_post() {
    let narrow = Limits { window_bytes: 300, ..LIMITS };
    for (limits, wait) in
        [(Limits { window_wrs: 1, ..LIMITS }, WAIT_WINDOW_WRS), (narrow, WAIT_WINDOW_BYTES)]
    {
        let (stage, mut pair) = held_under(limits, 16);
        let kept = Kept::of(&mut pair.world, 0);
        for at in 0..2 {
            let sqe = pair.write(at * 512, 200);
            pair.world.push(SENDER, sqe);
        }
        for _ in 0..4 {
            pair.world.turn();
        }
        stage.release();
        pair.world.settle();
        let [first, second] = kept.all()[..] else { panic!("two entries") };
        assert_eq!((first.wait, count(first.total)), (0, 0));
        assert_eq!(u16::from(second.wait), wait);
        assert!(count(second.total) > 0 && time_ns(second.queued) > time_ns(first.queued));
    }
}

#[test]
fn what_the_fabric_did_not_take_is_not_counted_as_posted() {
    let (stage, mut pair, kept) = held();
    stage.take_only(&[0, 2, 1]);
    let sqe = pair.write(0, 1000);
    pair.world.push(SENDER, sqe);
    for _ in 0..6 {
        pair.world.turn();
    }
    assert_eq!(stage.held(), 4);
    stage.release();
    pair.world.settle();
    assert_eq!(count(kept.last().queued), 4);
    // Never posted at all: it ended while the fabric took nothing.
    stage.hold();
    stage.take_only(&[0; 20]);
    let sqe = Sqe { arg: [3, 0], ..pair.write(0, 100) };
    pair.world.push(SENDER, sqe);
    for _ in 0..20 {
        pair.world.turn();
    }
    let late = kept.last();
    assert_eq!((late.res, late.detail), (-errno::ETIME, Detail::Deadline as u16));
    assert_eq!((late.queued, i32::from(late.cause)), (0, errno::ETIME));
    assert!(time_ns(late.total) >= 3_000);
}

/// Ends the oldest request that is held, in this way.
fn end(stage: &Stage, pair: &mut Pair<Script>, done: Done) {
    let ticket = stage.plan().held.remove(0).ticket;
    stage.stale(Done { ticket, ..done });
    pair.world.turn();
}

#[test]
fn the_cause_is_the_first_failure_that_is_no_flush() {
    const FLUSH: (i32, u16) = (BROKEN, DONE_FLUSHED);
    const CHAINED: (i32, u16) = (errno::ECANCELED, DONE_FLUSHED);
    const REFUSED: (i32, u16) = (errno::EACCES, 0);
    const SILENT: (i32, u16) = (errno::ETIMEDOUT, DONE_FLUSHED | DONE_MAYBE);
    const GOOD: (i32, u16) = (0, 0);
    for (ends, told, cause) in [
        ([FLUSH, GOOD, FLUSH, CHAINED], FLUSH, 0),
        ([REFUSED, FLUSH, FLUSH, SILENT], REFUSED, errno::EACCES),
        ([FLUSH, REFUSED, SILENT, FLUSH], FLUSH, errno::EACCES),
        ([CHAINED, FLUSH, GOOD, SILENT], CHAINED, errno::ETIMEDOUT),
        ([GOOD, SILENT, REFUSED, FLUSH], SILENT, errno::ETIMEDOUT),
        ([GOOD, GOOD, GOOD, (BROKEN, 0)], (BROKEN, 0), BROKEN),
    ] {
        let (stage, mut pair, kept) = held();
        let sqe = pair.write(0, 1024);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        for (errno, flags) in ends {
            end(&stage, &mut pair, Done { flags, ..Done::new(0, errno) });
        }
        let cqe = pair.world.pop(SENDER)[0];
        let entry = kept.last();
        expect_same(&entry, &cqe);
        assert_eq!(entry.res, -told.0, "{ends:?}");
        assert_eq!(entry.flags & CQE_FLUSHED != 0, told.1 & DONE_FLUSHED != 0, "{ends:?}");
        assert_eq!(i32::from(entry.cause), cause, "{ends:?}");
        // Not of the cause, but of the op.
        let maybe = told.1 & DONE_MAYBE != 0;
        assert!(!maybe || entry.flags & CQE_MAYBE_DONE != 0);
    }
}

#[test]
fn repeats_by_the_fabric_are_added_up() {
    let (stage, mut pair, kept) = held();
    let sqe = pair.write(0, 600);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    for times in [2, 0, 3] {
        end(&stage, &mut pair, Done { attempts: times, ..Done::new(0, 0) });
    }
    let entry = kept.last();
    assert_eq!((entry.res, entry.retries, count(entry.queued)), (600, 5, 3));
}

#[test]
fn every_op_that_is_over_has_an_entry_but_nops_and_refused_ones() {
    let (stage, mut pair, kept) = held();
    let sent = [
        nop(),
        Sqe { opcode: 99, ..nop() },
        arm(pair.near, 3),
        flush(pair.near),
        cancel(CANCEL_BY_NUMBER, 2),
        Sqe { flags: SQE_SKIP_SUCCESS, ..pair.write(0, 64) },
        Sqe { flags: SQE_SKIP_SUCCESS, ..nop() },
        revoke(pair.near),
    ];
    for sqe in sent {
        pair.world.push(SENDER, sqe);
    }
    stage.release();
    pair.world.settle();
    let mut seen: Vec<_> = kept.all().iter().map(|e| (e.opcode, e.res, e.bytes)).collect();
    seen.sort_unstable();
    let code = |opcode: Opcode| opcode as u8;
    let expected = [
        (code(Opcode::Write), 64, 64),
        (code(Opcode::Cancel), 0, 0),
        (code(Opcode::Flush), 0, 0),
        (code(Opcode::Flush), 0, 0),
        (code(Opcode::Arm), -errno::ECANCELED, 3),
    ];
    assert_eq!(seen, expected);
    let cqes = pair.world.pop(SENDER);
    for entry in kept.all().iter().filter(|entry| entry.opcode != code(Opcode::Write)) {
        let cqe = cqes.iter().find(|cqe| cqe.record == entry.record).unwrap();
        expect_same(entry, cqe);
    }
    assert_eq!(cqes.len(), 6);
}

#[test]
fn an_arm_counts_its_notifications() {
    let (stage, mut pair, _) = held();
    stage.release();
    let kept = Kept::of(&mut pair.world, 1);
    pair.world.push(RECEIVER, arm(pair.target, 2));
    for immediate in [5, 6] {
        assert_eq!(kept.all(), []);
        let sqe = pair.tell(immediate);
        pair.world.push(SENDER, sqe);
        pair.world.settle();
    }
    let entry = kept.last();
    assert_eq!((entry.opcode, entry.res, entry.bytes), (Opcode::Arm as u8, 2, 2));
    assert_eq!((entry.ring, entry.queued, u16::from(entry.wait)), (1, 0, WAIT_NONE));
}

#[test]
fn a_session_finds_its_own_ops_alone() {
    let (stage, mut pair, kept) = held();
    let other = Kept::of(&mut pair.world, 1);
    let sqe = pair.write(0, 64);
    pair.world.push(SENDER, sqe);
    pair.world.push(RECEIVER, arm(pair.target, 1));
    pair.world.turn();
    // While they are open, the engine tells; to the uid whose ops they are, or to all.
    let open: Vec<u32> = (0..pair.world.engine.ledger.capacity())
        .filter(|slot| pair.world.engine.ledger.find(pair.world.engine.ledger.id(*slot)).is_some())
        .collect();
    assert_eq!(open.len(), 2);
    for slot in open {
        let record = pair.world.engine.ledger.id(slot);
        let of = pair.world.engine.ledger[slot].session.0;
        for (owner, seen) in [(Some(of), true), (Some(1 - of), false), (None, true)] {
            let token = pair.world.token();
            pair.world.engine.command(Command::Find { record, owner, token });
            let answer = pair.world.reply(token);
            match answer {
                Some(Reply::Why { why, .. }) if seen => assert_eq!(why.record, record),
                Some(Reply::Failed { errno: errno::ENOENT, .. }) if !seen => {}
                other => panic!("{owner:?} asked about {record:?}: {other:?}"),
            }
        }
    }
    let token = pair.world.token();
    let never = RecordId(u64::MAX);
    pair.world.engine.command(Command::Find { record: never, owner: None, token });
    assert!(matches!(pair.world.reply(token), Some(Reply::Failed { .. })));
    stage.release();
    pair.world.settle();
    assert_eq!((kept.all().len(), other.all().len()), (1, 0));
    // A session that is over leaves its place to another, whose ops are not for its recorder.
    let winds = [pair.world.wind(SENDER, Wind::Cancel), pair.world.wind(RECEIVER, Wind::Cancel)];
    pair.world.settle();
    assert_eq!(other.all().len(), 1, "the ARM, taken back");
    for token in winds {
        assert!(matches!(pair.world.reply(token), Some(Reply::RingGone { .. })));
    }
    let regions = [pair.far, pair.near].map(|region| pair.world.remove(region));
    pair.world.settle();
    for token in regions {
        assert!(matches!(pair.world.reply(token), Some(Reply::RegionGone { .. })));
    }
    let token = pair.world.token();
    pair.world.engine.command(Command::RemoveSession { session: SessionId(0), token });
    pair.world.expect_done(token);
    assert_eq!(Arc::strong_count(&kept.0), 1, "the engine has let go of it");
    let session = pair.world.session(0);
    let client = pair.world.ring(session, 16, 16);
    let region = pair.world.region(session, 4096);
    pair.world.push(client, flush(region));
    pair.world.settle();
    assert_eq!(kept.all().len(), 1);
}

/// Whoever waited has a reason: what it lacked, or who went before it.
#[test]
fn what_lacked_nothing_and_waited_says_who_went_before_it() {
    let (stage, mut pair, kept) = held();
    let mut push = |data: u64, class| {
        let sqe = Sqe { user_data: data, ..pair.write_as(class, data * 512, 64) };
        pair.world.push(SENDER, sqe);
    };
    (1..=6).for_each(|data| push(data, Class::Medium));
    push(7, Class::Low);
    for _ in 0..3 {
        pair.world.turn();
    }
    stage.release();
    pair.world.settle();
    let all = kept.all();
    let reason = |data: u64| {
        let entry = all.iter().find(|entry| entry.user_data == data).unwrap();
        (u16::from(entry.wait), time_ns(entry.queued) > 0, count(entry.total) > 0)
    };
    assert_eq!(reason(1), (WAIT_NONE, false, false));
    assert_eq!(reason(4), (WAIT_NONE, false, false), "posted in the turn that took it");
    assert_eq!(reason(5), (WAIT_WINDOW_WRS, true, true));
    assert_eq!(reason(6), (WAIT_LANE, true, false), "it was behind another all the time");
    assert_eq!(reason(7), (WAIT_CLASS, true, false), "first of its lane, behind another class");
}

#[test]
fn what_was_never_posted_says_what_it_waited_for() {
    let (stage, mut pair) = held_under(Limits { window_wrs: 1, ..LIMITS }, 16);
    let kept = Kept::of(&mut pair.world, 0);
    for (at, class) in (0..).zip([Class::Medium, Class::Medium, Class::Medium, Class::Low]) {
        let sqe = pair.write_as(class, at * 512, 64);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    for number in [3, 2, 1] {
        pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, number));
    }
    for _ in 0..4 {
        pair.world.turn();
    }
    let all = kept.all();
    let writes = all.iter().filter(|entry| entry.opcode == Opcode::Write as u8);
    let waits: Vec<_> =
        writes.map(|entry| (u16::from(entry.wait), time_ns(entry.total) > 0)).collect();
    stage.release();
    pair.world.settle();
    assert_eq!(waits, [(WAIT_CLASS, true), (WAIT_LANE, true), (WAIT_WINDOW_WRS, true)]);
}

/// A device that does not take what it is offered is a reason, too.
#[test]
fn what_the_fabric_did_not_take_at_first_says_so() {
    let (stage, mut pair, kept) = held();
    stage.take_only(&[0, 0]);
    let sqe = pair.write(0, 100);
    pair.world.push(SENDER, sqe);
    for _ in 0..3 {
        pair.world.turn();
    }
    stage.release();
    pair.world.settle();
    let entry = kept.last();
    assert_eq!((u16::from(entry.wait), count(entry.total)), (WAIT_FABRIC, 0));
    assert!(time_ns(entry.queued) > 0);
}
