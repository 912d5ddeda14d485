//! The client against a peer that answers by the book, by hand, or wrongly.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::fake::{FIRST_RING, Fake, FakeRing, RECORD, STATS_FROM, reply_head, send_failure};
use super::*;
use crate::abi::{
    CQE_MORE, CQE_NOTIFY, CQE_RETRYABLE, Class, Counter, Cqe, Detail, Opcode, Page, Sqe, errno,
};
use crate::control::fds;
use crate::ring::{Fault, Memory, Verdict, Word};
use crate::shm::ShmError;

const SOON: Option<Duration> = Some(Duration::from_secs(20));

fn ring_of(session: &Session, fake: &Fake) -> (Ring, FakeRing) {
    let ring = session.ring(RingOptions::new(4, 8)).unwrap();
    (ring, fake.ring())
}

fn import_of(session: &Session) -> Import {
    session.import("x", None, &Secret::from_bytes([b'x'; 32])).unwrap()
}

fn next(ring: &mut Ring) -> Completion {
    ring.reap().unwrap().unwrap()
}

#[test]
fn types_may_go_where_the_docs_say() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<Session>();
    sync::<Session>();
    send::<Region>();
    sync::<Region>();
    send::<Import>();
    sync::<Import>();
    send::<Lease>();
    send::<Ring>();
    send::<RawRing>();
}

#[test]
fn an_op_takes_its_lease_along_and_brings_it_back() {
    let (session, fake) = Fake::attach();
    let region = session.alloc(8192).unwrap();
    let import = import_of(&session);
    let (mut ring, mut engine) = ring_of(&session, &fake);
    // Cursors wrap on the way.
    for round in 0..20u32 {
        let mut lease = region.lend(16..48).unwrap();
        lease.write(0, &round.to_le_bytes());
        let ticket = ring.push(Write::new(lease, import.at(4096))).unwrap();
        assert_eq!((ticket.ring(), ticket.number()), (ring.number(), u64::from(round)));
        assert!(
            matches!(region.lend(47..60), Err(LendError::Lent { lent, .. }) if lent == (16..48))
        );
        assert_eq!(ring.submit(), 1);
        let sqe = engine.take();
        assert_eq!((sqe.local_region, sqe.local_offset, sqe.bytes), (region.id(), 16, 32));
        engine.complete(Cqe {
            user_data: sqe.user_data,
            record: RECORD,
            res: 32,
            detail: 0x0102,
            queued: 10,
            service: 100,
            ..Cqe::default()
        });
        assert_eq!(ring.wait(1, None).unwrap(), 1);
        let done = next(&mut ring);
        assert_eq!((done.ticket, done.record, done.result), (ticket, RECORD, Ok(32)));
        assert_eq!((done.fabric, done.rail, done.flags, done.more), (1, 2, 0, false));
        assert_eq!(done.queued, Duration::from_nanos(160));
        assert_eq!(done.service, Duration::from_nanos(1600));
        let mut bytes = [0; 4];
        done.lease.unwrap().read(0, &mut bytes);
        assert_eq!(u32::from_le_bytes(bytes), round);
        assert!(region.lend(16..48).is_ok(), "the range is free again");
    }
    assert!(ring.reap().unwrap().is_none());
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_failure_says_what_why_and_whether_to_try_again() {
    let (session, fake) = Fake::attach();
    let (mut ring, mut engine) = ring_of(&session, &fake);
    ring.push(Nop::new()).unwrap();
    ring.push(Nop::new()).unwrap();
    ring.submit();
    for (res, detail) in [(-errno::ECANCELED, Detail::Cancelled as u16), (-4095, 999)] {
        let user_data = engine.take().user_data;
        let flags = CQE_RETRYABLE;
        engine.complete(Cqe { user_data, res, detail, flags, ..Cqe::default() });
    }
    let error = next(&mut ring).result.unwrap_err();
    assert_eq!((error.errno, error.detail), (errno::ECANCELED, Detail::Cancelled));
    assert!(error.retryable && !error.maybe_done);
    assert!(error.to_string().contains("ECANCELED"), "{error}");
    assert!(error.to_string().contains("cancelled"), "{error}");
    let done = next(&mut ring);
    let error = done.result.unwrap_err();
    assert_eq!((error.errno, error.detail, error.detail_number), (4095, Detail::None, 999));
    assert_eq!((done.fabric, done.rail), (0, 0), "a failure was carried by nothing");
}

/// A ring and its other end.
struct Pair {
    ring: Ring,
    engine: FakeRing,
}

impl Pair {
    /// Pushes an op and returns the entry that the engine sees, without `user_data`.
    fn entry(&mut self, op: impl Op) -> Sqe {
        let ticket = self.ring.push(op).unwrap();
        self.ring.submit();
        let sqe = self.engine.serve(0);
        assert_eq!(next(&mut self.ring).ticket, ticket);
        Sqe { user_data: 0, ..sqe }
    }
}

#[test]
fn builders_fill_their_fields_and_no_others() {
    let (session, fake) = Fake::attach();
    let region = session.alloc(8192).unwrap();
    let import = import_of(&session).slice(1000, 4000).unwrap();
    let (ring, engine) = ring_of(&session, &fake);
    let mut pair = Pair { ring, engine };
    let lend = |range| region.lend(range).unwrap();
    let base = Sqe {
        local_region: region.id(),
        remote_region: import.id(),
        local_offset: 64,
        remote_offset: 1024,
        ..Sqe::default()
    };
    let write = Write::new(lend(64..164), import.at(24))
        .class(Class::High)
        .notify(7)
        .deadline(Duration::from_nanos(1_500))
        .tag(11)
        .no_merge();
    let flags = abi::SQE_NOTIFY | abi::SQE_NO_MERGE;
    let sqe = Sqe { opcode: 1, class: 1, flags, bytes: 100, immediate: 7, arg: [2, 11], ..base };
    assert_eq!(pair.entry(write), sqe);
    let read = Read::new(lend(64..164), import.at(24));
    assert_eq!(pair.entry(read), Sqe { opcode: 2, bytes: 100, ..base });
    let add = FetchAdd::new(lend(64..72), import.at(24), 5).unwrap().class(Class::Low);
    let sqe = Sqe { opcode: 5, class: 3, bytes: u32::MAX, arg: [5, 0], ..base };
    assert_eq!(pair.entry(add.deadline(Duration::from_secs(u64::MAX))), sqe);
    let swap = CmpSwap::new(lend(64..72), import.at(24), 5, 6).unwrap();
    let sqe = Sqe { opcode: 6, bytes: 1, arg: [5, 6], ..base };
    assert_eq!(pair.entry(swap.deadline(Duration::ZERO)), sqe);
    let sqe = Sqe { class: 2, arg: [0, 3], ..Sqe::default() };
    assert_eq!(pair.entry(Nop::new().class(Class::Medium).tag(3)), sqe);
    let (opcode, flags) = (Opcode::Flush as u8, abi::SQE_REVOKE);
    let sqe = Sqe { opcode, flags, local_region: region.id(), ..Sqe::default() };
    assert_eq!(pair.entry(Flush::region(&region).revoke()), sqe);
    let sqe = Sqe { flags: 0, local_region: import.id(), ..sqe };
    assert_eq!(pair.entry(Flush::import(&import)), sqe);
    let opcode = Opcode::Arm as u8;
    let sqe = Sqe { opcode, local_region: region.id(), bytes: 5, ..Sqe::default() };
    assert_eq!(pair.entry(Arm::new(&region, 5)), sqe);
    let arg = [RECORD, abi::CANCEL_BY_RECORD];
    let sqe = Sqe { opcode: Opcode::Cancel as u8, arg, ..Sqe::default() };
    assert_eq!(pair.entry(Cancel::record(RECORD)), sqe);
    let ticket = pair.ring.push(Nop::new()).unwrap();
    pair.ring.submit();
    pair.engine.serve(0);
    next(&mut pair.ring);
    let arg = [ticket.number(), abi::CANCEL_BY_NUMBER];
    assert_eq!(pair.entry(Cancel::new(ticket)), Sqe { arg, ..sqe });
}

#[test]
fn a_page_list_is_written_into_the_lease_and_stays_in_it() {
    let (session, fake) = Fake::attach();
    let region = session.alloc(8192).unwrap();
    let import = import_of(&session);
    let (ring, engine) = ring_of(&session, &fake);
    let mut pair = Pair { ring, engine };
    let pages = [PagePair { local: 0, remote: 512 }, PagePair { local: 200, remote: 0 }];
    let op = Writev::new(region.lend(96..496).unwrap(), 368, &pages, 100, import.at(8)).unwrap();
    let sqe = pair.entry(op.deadline(Duration::from_micros(9)).tag(4));
    let should = Sqe {
        opcode: Opcode::Writev as u8,
        local_region: region.id(),
        remote_region: import.id(),
        local_offset: 96 + 368,
        remote_offset: 8,
        bytes: 100,
        arg: [2 << 32 | 9, 4],
        ..Sqe::default()
    };
    assert_eq!(sqe, should);
    let mut list = [0; 32];
    region.lend(464..496).unwrap().read(0, &mut list);
    let list = <[Page; 2]>::read_from_bytes(&list).unwrap();
    let page = |local_offset, remote_offset| Page { local_offset, remote_offset };
    assert_eq!(list, [page(96, 512), page(296, 0)]);
}

#[test]
fn a_page_list_that_does_not_fit_is_refused_with_its_lease() {
    let (session, _fake) = Fake::attach();
    let region = session.alloc(8192).unwrap();
    let import = import_of(&session);
    let pages = [PagePair { local: 0, remote: 512 }, PagePair { local: 200, remote: 0 }];
    let reason = |list_at, pages: &[PagePair], page_bytes| {
        let lease = region.lend(96..496).unwrap();
        let unfit = Readv::new(lease, list_at, pages, page_bytes, import.at(0)).unwrap_err();
        assert_eq!(unfit.lease.offset(), 96, "the lease comes back");
        unfit.reason
    };
    assert_eq!(reason(0, &[], 1), UnfitReason::PageCount { count: 0 });
    let many = [PagePair { local: 0, remote: 0 }; 1025];
    assert_eq!(reason(0, &many, 1), UnfitReason::PageCount { count: 1025 });
    assert_eq!(reason(369, &pages, 1), UnfitReason::List);
    assert_eq!(reason(u64::MAX, &pages, 1), UnfitReason::List);
    assert_eq!(reason(368, &pages, 201), UnfitReason::Page { index: 1 });
    let wraps = [PagePair { local: u64::MAX, remote: 0 }];
    assert_eq!(reason(0, &wraps, 1), UnfitReason::Page { index: 0 });
    assert_eq!(reason(99, &pages, 100), UnfitReason::PageInList { index: 0 });
    assert_eq!(reason(231, &pages, 32), UnfitReason::PageInList { index: 1 });
    for list_at in [100, 168, 300] {
        let lease = region.lend(96..496).unwrap();
        let op = Readv::new(lease, list_at, &pages, 100, import.at(0));
        assert!(op.is_ok(), "list and pages only touch at {list_at}");
    }
}

#[test]
fn scattered_pages_travel_with_their_list_and_come_back_in_order() {
    let (session, fake) = Fake::attach();
    let region = session.alloc(8192).unwrap();
    let import = import_of(&session);
    let (mut ring, mut engine) = ring_of(&session, &fake);
    let lend = |range| region.lend(range).unwrap();
    let pages = vec![lend(300..400), lend(100..200)];
    let op = Readv::scattered(lend(0..40), pages, &[7, 9], import.at(8)).unwrap();
    ring.push(op).unwrap();
    ring.submit();
    assert!(region.lend(399..400).is_err());
    assert!(region.lend(200..300).is_ok(), "what lies between is free");
    let sqe = engine.serve(200);
    assert_eq!((sqe.local_offset, sqe.bytes, sqe.pages()), (0, 100, 2));
    assert_eq!((sqe.remote_region, sqe.remote_offset), (import.id(), 8));
    let done = next(&mut ring);
    let mut list = [0; 32];
    done.lease.unwrap().read(0, &mut list);
    let page = |local_offset, remote_offset| Page { local_offset, remote_offset };
    assert_eq!(<[Page; 2]>::read_from_bytes(&list).unwrap(), [page(300, 7), page(100, 9)]);
    let offsets: Vec<_> = done.pages.iter().map(Lease::offset).collect();
    assert_eq!(offsets, [300, 100]);
    drop(done.pages);

    let other = session.alloc(4096).unwrap();
    let there = || other.lend(0..100).unwrap();
    let reason = |list: u64, pages: Vec<Lease>, remotes: &[u64]| {
        let given = pages.len();
        let unfit = Writev::scattered(lend(0..list), pages, remotes, import.at(0)).unwrap_err();
        assert_eq!((unfit.lease.bytes(), unfit.pages.len()), (list, given), "all come back");
        unfit.reason
    };
    let pages = || vec![lend(300..400), lend(100..200)];
    assert_eq!(reason(40, vec![], &[]), UnfitReason::PageCount { count: 0 });
    assert_eq!(reason(40, pages(), &[1]), UnfitReason::Remotes { pages: 2, remotes: 1 });
    assert_eq!(reason(31, pages(), &[1, 2]), UnfitReason::List);
    let longer = vec![lend(300..400), lend(100..201)];
    assert_eq!(reason(32, longer, &[1, 2]), UnfitReason::PageBytes { index: 1 });
    let elsewhere = vec![lend(300..400), there()];
    assert_eq!(reason(32, elsewhere, &[1, 2]), UnfitReason::PageRegion { index: 1 });
}

#[test]
fn atomics_want_one_aligned_word() {
    let (session, _fake) = Fake::attach();
    let region = session.alloc(8192).unwrap();
    let import = import_of(&session);
    for range in [0..7, 0..9, 4..12, 0..0] {
        let lease = region.lend(range.clone()).unwrap();
        let unfit = FetchAdd::new(lease, import.at(0), 1).unwrap_err();
        assert_eq!(unfit.reason, UnfitReason::Word, "{range:?}");
        let unfit = CmpSwap::new(unfit.lease, import.at(0), 1, 2).unwrap_err();
        assert_eq!(unfit.lease.offset(), range.start);
    }
}

#[test]
fn what_cannot_be_pushed_comes_back() {
    let (session, fake) = Fake::attach();
    let region = session.alloc(8192).unwrap();
    let import = import_of(&session);
    let (mut ring, mut engine) = ring_of(&session, &fake);
    for _ in 0..4 {
        ring.push(Nop::new()).unwrap();
    }
    let op = Write::new(region.lend(0..8).unwrap(), import.at(0)).notify(3);
    let full = ring.push(op).unwrap_err();
    assert_eq!(full.reason, PushReason::Full);
    assert!(region.lend(0..8).is_err(), "the op still has its lease");
    assert_eq!(ring.submit(), 4);
    engine.serve(0);
    let ticket = ring.push(full.op).unwrap();
    assert_eq!(ticket.number(), 4);

    let (other, other_fake) = Fake::attach();
    let other_region = other.alloc(8192).unwrap();
    let (mut other_ring, _engine) = ring_of(&other, &other_fake);
    let lend = || other_region.lend(0..8).unwrap();
    let foreign = other_ring.push(Write::new(lend(), import.at(0))).unwrap_err();
    assert_eq!(foreign.reason, PushReason::Foreign, "near side here, far side there");
    drop(foreign);
    let own = Write::new(lend(), import_of(&other).at(0));
    let foreign = ring.push(own).unwrap_err();
    assert_eq!(foreign.reason, PushReason::Foreign, "both sides there");
    assert!(other_ring.push(foreign.op).is_ok());
    let foreign = ring.push(Arm::new(&other_region, 1)).unwrap_err();
    assert_eq!(foreign.reason, PushReason::Foreign);
    let (mut second, _engine) = ring_of(&session, &fake);
    let foreign = second.push(Cancel::new(ticket)).unwrap_err();
    assert_eq!(foreign.reason, PushReason::Foreign, "a ticket of another ring");
}

#[test]
fn a_ring_carries_no_more_than_its_slots() {
    let (session, fake) = Fake::attach();
    let (mut ring, mut engine) = ring_of(&session, &fake);
    // An engine that takes more than it has CQ slots for does not make the ring grow.
    for _ in 0..3 {
        for _ in 0..4 {
            ring.push(Nop::new()).unwrap();
        }
        ring.submit();
        for _ in 0..4 {
            assert!(engine.end.look().unwrap() > 0);
            engine.end.take(0);
        }
        engine.end.publish_taken();
    }
    assert_eq!(ring.in_flight(), 12);
    assert_eq!(ring.push(Nop::new()).unwrap_err().reason, PushReason::Full);
}

#[test]
fn notifications_come_one_by_one_with_one_ticket() {
    let (session, fake) = Fake::attach();
    let region = session.alloc(8192).unwrap();
    let (mut ring, mut engine) = ring_of(&session, &fake);
    let ticket = ring.push(Arm::new(&region, 2)).unwrap();
    ring.submit();
    assert_eq!(engine.end.look().unwrap(), 1);
    let user_data = Sqe::from_words(engine.end.peek(0)).user_data;
    engine.end.take(2);
    for (flags, queued, res) in [(CQE_NOTIFY | CQE_MORE, 0xC0FFEE, 1), (CQE_NOTIFY, 0xBEEF, 3)] {
        engine.complete(Cqe { user_data, record: 1, res, flags, queued, ..Cqe::default() });
    }
    let first = next(&mut ring);
    assert_eq!((first.ticket, first.result, first.more), (ticket, Ok(1), true));
    assert_eq!(first.notification, Some(Notification { immediate: 0xC0FFEE, count: 1 }));
    assert_eq!(first.queued, Duration::ZERO);
    assert_eq!(ring.in_flight(), 1);
    let last = next(&mut ring);
    assert_eq!((last.ticket, last.result, last.more), (ticket, Ok(3), false));
    assert_eq!(last.notification, Some(Notification { immediate: 0xBEEF, count: 3 }));
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_skipped_success_holds_nothing_and_a_failure_is_told() {
    let (session, fake) = Fake::attach();
    let (mut ring, mut engine) = ring_of(&session, &fake);
    ring.push(Nop::new()).unwrap();
    let skipped = ring.push(Nop::new().skip_success()).unwrap();
    let failed = ring.push(Nop::new().skip_success()).unwrap();
    assert_eq!(ring.in_flight(), 1);
    ring.submit();
    engine.serve(0);
    assert_eq!(engine.take().flags, abi::SQE_SKIP_SUCCESS);
    engine.end.forgo(1);
    engine.serve(-errno::EINVAL);
    assert!(next(&mut ring).result.is_ok());
    let told = next(&mut ring);
    assert_eq!(told.ticket, failed);
    assert_eq!(told.result.unwrap_err().errno, errno::EINVAL);
    assert!(ring.reap().unwrap().is_none(), "{skipped:?} has no completion");
}

#[test]
fn a_sleeper_is_woken_by_the_bell() {
    const ROUNDS: u32 = 200;
    let (session, fake) = Fake::attach();
    let options = RingOptions { spin: Duration::ZERO, ..RingOptions::new(4, 8) };
    let mut ring = session.ring(options).unwrap();
    let mut engine = fake.ring();
    let server = std::thread::spawn(move || {
        for _ in 0..ROUNDS {
            engine.sleep();
            let word = |word| engine.end.memory().word(word).load(Ordering::Relaxed);
            // The client asks for its bell at the second CQE, then sleeps.
            while word(Word::BellAt) != word(Word::CqTail).wrapping_add(1) {
                std::thread::yield_now();
            }
            for _ in 0..2 {
                engine.end.look().unwrap();
                engine.serve(0);
            }
        }
    });
    for _ in 0..ROUNDS {
        ring.push(Nop::new()).unwrap();
        ring.push(Nop::new()).unwrap();
        assert_eq!(ring.submit_and_wait(2, SOON).unwrap(), 2);
        next(&mut ring);
        next(&mut ring);
    }
    server.join().unwrap();
    // Nothing completes before the bell is armed, which the client does on its way to sleep.
    assert!(ring.sleeps() > 0 && ring.sleeps() <= 2 * u64::from(ROUNDS), "{}", ring.sleeps());
}

#[test]
fn a_wait_ends_with_the_time_and_counts_what_is_there() {
    let (session, fake) = Fake::attach();
    let (mut ring, mut engine) = ring_of(&session, &fake);
    assert_eq!(ring.wait(1, Some(Duration::ZERO)).unwrap(), 0);
    assert_eq!(ring.sleeps(), 0, "no time to sleep");
    assert_eq!(ring.wait(1, Some(Duration::from_millis(1))).unwrap(), 0);
    ring.push(Nop::new()).unwrap();
    ring.submit();
    engine.serve(0);
    assert_eq!(ring.wait(5, Some(Duration::from_millis(1))).unwrap(), 1);
    assert_eq!(ring.wait(0, None).unwrap(), 1);
    assert_eq!(ring.wait(1, None).unwrap(), 1);
}

#[test]
fn a_reactor_polls_the_bell() {
    let (session, fake) = Fake::attach();
    let (mut ring, mut engine) = ring_of(&session, &fake);
    let readable = |ring: &Ring, within| {
        let mut watched = [nix::poll::PollFd::new(ring.as_fd(), nix::poll::PollFlags::POLLIN)];
        wire::wait(&mut watched, within).unwrap();
        wire::told(&watched[0])
    };
    for _ in 0..3 {
        ring.push(Nop::new()).unwrap();
        ring.submit();
        assert!(ring.arm(1).unwrap());
        assert!(!readable(&ring, Some(Duration::ZERO)));
        engine.serve(0);
        assert!(readable(&ring, SOON));
        assert!(!ring.arm(1).unwrap(), "it is there: nothing to wait for");
        next(&mut ring);
    }
    assert!(ring.arm(1).unwrap());
    assert!(!readable(&ring, Some(Duration::ZERO)), "old rings are silenced");
    drop(engine);
    drop(fake);
    assert!(readable(&ring, SOON), "a ring that is over wakes a reactor");
    assert!(matches!(ring.arm(1), Err(RingError::SessionOver)));
}

/// Pushes seven one-byte WRITEs and leaves them in all states an engine can die in.
fn half_done(ring: &mut Ring, engine: &mut FakeRing, region: &Region, import: &Import) {
    for at in 0..4 {
        let lease = region.lend(at..at + 1).unwrap();
        ring.push(Write::new(lease, import.at(0))).unwrap();
    }
    ring.submit();
    // 0: completed. 1: done, its success skipped. 2: posted. 3: accepted.
    engine.serve(1);
    for number in 1..=3 {
        engine.end.look().unwrap();
        engine.end.take(1);
        engine.end.fate_accepted(u32::try_from(number).unwrap(), RECORD, number);
    }
    engine.end.fate_posted(2, 2);
    engine.end.fate_freed(1);
    engine.end.publish_taken();
    // 4 and 5: published, not taken. 6: not even published.
    for at in 4..7 {
        if at == 6 {
            ring.submit();
        }
        let lease = region.lend(at..at + 1).unwrap();
        ring.push(Write::new(lease, import.at(0))).unwrap();
    }
}

#[test]
fn a_dead_engine_leaves_completions_then_verdicts() {
    let (session, mut fake) = Fake::attach_mortal();
    let region = session.alloc(4096).unwrap();
    let import = import_of(&session);
    let (mut ring, mut engine) = ring_of(&session, &fake);
    half_done(&mut ring, &mut engine, &region, &import);
    assert!(!session.engine_gone());
    assert!(ring.verdicts().is_none(), "no verdict while it lives");
    fake.kill();
    assert!(session.engine_gone());
    assert_eq!(ring.wait(7, SOON).unwrap(), 1, "what has come goes first");
    let lost = ring.verdicts().unwrap();
    let verdicts: Vec<_> = lost.iter().map(|lost| (lost.ticket.number(), lost.verdict)).collect();
    let should = [
        (1, Verdict::Done),
        (2, Verdict::Indeterminate),
        (3, Verdict::NotStarted),
        (4, Verdict::NotStarted),
        (5, Verdict::NotStarted),
        (6, Verdict::NotStarted),
    ];
    assert_eq!(verdicts, should);
    assert!(region.lend(1..2).is_err());
    drop(lost);
    assert!(region.lend(1..7).is_ok(), "nobody touches it any more");
    assert_eq!(ring.wait(1, SOON).unwrap(), 1);
    assert!(matches!(ring.arm(1), Ok(false)));
    let done = next(&mut ring);
    assert_eq!((done.ticket.number(), done.result), (0, Ok(1)));
    assert_eq!(ring.verdict(&done.ticket), Some(Verdict::Done));
    assert!(matches!(ring.wait(1, SOON), Err(RingError::EngineGone)));
    assert!(matches!(ring.wait(1, None), Err(RingError::EngineGone)));
    assert!(matches!(ring.arm(1), Err(RingError::EngineGone)));
    assert!(matches!(session.probe(), Err(ControlError::EngineGone)));
    assert!(matches!(ring.release(), Err(ControlError::EngineGone)));
}

#[test]
fn a_sleeper_learns_of_the_death() {
    let (session, mut fake) = Fake::attach_mortal();
    let (mut ring, engine) = ring_of(&session, &fake);
    let memory = engine.end.memory().clone();
    let awake = memory.word(Word::BellAt).load(Ordering::Relaxed);
    let killer = std::thread::spawn(move || {
        while memory.word(Word::BellAt).load(Ordering::Relaxed) == awake {
            std::thread::yield_now();
        }
        fake.kill();
        drop(engine);
    });
    assert!(matches!(ring.wait(1, None), Err(RingError::EngineGone)));
    killer.join().unwrap();
}

#[test]
fn who_only_reaps_learns_of_the_death_too() {
    let (session, mut fake) = Fake::attach_mortal();
    let (mut ring, _engine) = ring_of(&session, &fake);
    assert!(ring.reap().unwrap().is_none());
    fake.kill();
    let over = (0..10_000).find_map(|_| ring.reap().err());
    assert!(matches!(over, Some(RingError::EngineGone)), "{over:?}");
}

#[test]
fn an_ended_session_ends_every_call() {
    let (session, mut fake) = Fake::attach();
    let (mut ring, mut engine) = ring_of(&session, &fake);
    ring.push(Nop::new()).unwrap();
    ring.submit();
    engine.serve(0);
    fake.hang_up();
    assert_eq!(ring.wait(2, None).unwrap(), 1, "what has come goes first");
    next(&mut ring);
    assert!(matches!(ring.wait(1, None), Err(RingError::SessionOver)));
    assert!(ring.verdicts().is_none(), "the engine lives, and may still be at work");
    assert!(matches!(session.stats(Scope::Session), Err(ControlError::SessionOver)));
    assert!(matches!(session.alloc(4096), Err(ControlError::SessionOver)));
}

#[test]
fn a_faulted_ring_gives_its_reason_after_its_last_cqe() {
    let (session, fake) = Fake::attach();
    let (mut ring, mut engine) = ring_of(&session, &fake);
    ring.push(Nop::new()).unwrap();
    ring.submit();
    assert_eq!(ring.fault(), None);
    engine.serve(0);
    engine.end.fault(Fault::SqTailBack);
    assert_eq!(ring.fault(), Some(abi::FAULT_SQ_TAIL_BACK));
    assert_eq!(ring.wait(2, None).unwrap(), 1);
    next(&mut ring);
    let reason = abi::FAULT_SQ_TAIL_BACK;
    assert!(matches!(ring.wait(1, None), Err(RingError::Faulted { reason: r }) if r == reason));
    assert!(matches!(ring.reap(), Err(RingError::Faulted { .. })));
    assert!(matches!(ring.arm(1), Err(RingError::Faulted { .. })));
    let (mut other, mut engine) = ring_of(&session, &fake);
    other.push(Nop::new()).unwrap();
    other.submit();
    engine.serve(0);
    assert!(next(&mut other).result.is_ok(), "other rings go on");
}

#[test]
fn a_ring_that_the_engine_breaks_is_not_believed() {
    let (session, fake) = Fake::attach();
    let (mut ring, mut engine) = ring_of(&session, &fake);
    ring.push(Nop::new()).unwrap();
    ring.submit();
    let user_data = engine.take().user_data;
    // The right place, another number; then a place that holds another op.
    for wrong in [user_data ^ 1 << 32, user_data ^ 1] {
        engine.complete(Cqe { user_data: wrong, ..Cqe::default() });
        assert!(matches!(ring.reap(), Err(RingError::Corrupt { .. })), "{wrong:#x}");
        ring.push(Nop::new()).unwrap();
        ring.submit();
        engine.take();
    }
    assert_eq!(ring.in_flight(), 3, "no op has ended");
    let tail = engine.end.memory().word(Word::CqTail);
    tail.fetch_add(9, Ordering::Relaxed);
    assert!(matches!(ring.reap(), Err(RingError::Corrupt { .. })), "nine CQEs in eight slots");
    assert!(matches!(ring.wait(1, None), Err(RingError::Corrupt { .. })));
    assert!(matches!(ring.arm(1), Err(RingError::Corrupt { .. })));
}

#[test]
fn a_dropped_ring_keeps_its_ranges_and_a_released_one_frees_them() {
    let (session, fake) = Fake::attach();
    let region = session.alloc(4096).unwrap();
    let import = import_of(&session);
    for (start, release) in [(0, false), (100, true)] {
        let (mut ring, _engine) = ring_of(&session, &fake);
        ring.push(Write::new(region.lend(start..start + 8).unwrap(), import.at(0))).unwrap();
        ring.submit();
        if release {
            ring.release().unwrap();
        } else {
            drop(ring);
        }
        assert_eq!(region.lend(start..start + 8).is_ok(), release);
    }
}

#[test]
fn a_raw_ring_passes_entries_as_they_are() {
    let (session, fake) = Fake::attach();
    let mut ring = session.raw_ring(RingOptions::new(2, 2)).unwrap();
    let mut engine = fake.ring();
    let sqe = |n: u64| Sqe { user_data: n, arg: [n, !n], immediate: 5, ..Sqe::default() };
    for n in 0..20 {
        assert_eq!(ring.push(sqe(2 * n)), Some(2 * n));
        assert_eq!(ring.push(sqe(2 * n + 1)), Some(2 * n + 1));
        assert_eq!(ring.push(sqe(0)), None, "two slots");
        assert_eq!(ring.submit(), 2);
        assert_eq!(ring.submit(), 0);
        for number in [2 * n, 2 * n + 1] {
            assert!(engine.end.room(1).unwrap() > 0, "popped slots are given back");
            assert_eq!(engine.serve(7), sqe(number));
        }
        assert_eq!(ring.wait(9, None).unwrap(), 2, "as many as there are slots");
        for number in [2 * n, 2 * n + 1] {
            let cqe = ring.pop().unwrap().unwrap();
            assert_eq!((cqe.user_data, cqe.res), (number, 7));
        }
        assert_eq!(ring.pop().unwrap(), None);
    }
    assert_eq!(ring.number(), FIRST_RING);
    assert_eq!(ring.verdict(40), Verdict::NotStarted);
    assert_eq!(ring.verdict(39), Verdict::Done);
    ring.release().unwrap();
}

#[test]
fn control_requests_say_what_was_asked_and_told() {
    let (session, fake) = Fake::attach();
    assert_eq!((session.number(), session.engine(), session.boot_id()), (3, 4, [1, 2]));
    assert_eq!(session.engine_pid(), std::process::id());
    let probe = session.probe().unwrap();
    assert!(probe.serves(Opcode::Write) && !probe.serves(Opcode::Run));
    assert_eq!(probe.class_ceiling, Some(Class::Medium));
    assert!(probe.uses(abi::FABRIC_LOCAL));
    assert!(![abi::FABRIC_VERBS, 64, 255].into_iter().any(|fabric| probe.uses(fabric)));
    let stats = session.stats(Scope::Engine).unwrap();
    assert_eq!(stats[Counter::Bytes], STATS_FROM + Counter::Bytes as u64);
    assert_eq!(stats.as_slice().len(), Counter::COUNT);
    let (mut ring, _engine) = ring_of(&session, &fake);
    ring.push(Nop::new()).unwrap();
    let ticket = ring.push(Nop::new()).unwrap();
    assert_eq!(session.cancel(ticket).unwrap(), RECORD);
    let why = session.why(OpRef::number(ring.number(), 1)).unwrap();
    assert_eq!((why.record, why.number, why.queued), (RECORD, 1, None));
    assert_eq!((why.opcode, why.class), (Some(Opcode::Nop), Some(Class::Medium)));
}

#[test]
fn regions_and_imports_are_what_the_engine_says() {
    let (session, _fake) = Fake::attach();
    let region = session.alloc(5000).unwrap();
    assert_eq!((region.bytes(), region.is_huge()), (5000, false));
    assert!(session.alloc_huge(4096).unwrap().is_huge());
    let secret = region.export("name", Rights::READ | Rights::NOTIFY).unwrap();
    assert_eq!(secret.as_bytes(), &[b'n'; 32]);
    for name in ["", "a\0b", &"x".repeat(65)] {
        assert!(matches!(region.export(name, Rights::ALL), Err(ControlError::Name)), "{name:?}");
    }
    assert!(region.export(&"x".repeat(64), Rights::ALL).is_ok());
    let import = session.import("name", Some(7), &secret).unwrap();
    assert_eq!(import.rights(), Rights::READ | Rights::WRITE);
    assert!(import.rights().contains(Rights::READ) && !import.rights().contains(Rights::ALL));
    assert_eq!(import.bytes(), 8192);
    let slice = import.slice(100, 50).unwrap();
    assert_eq!((slice.bytes(), slice.at(7)), (50, import.at(107)));
    assert_eq!(slice.slice(10, 40).unwrap().at(0), import.at(110));
    assert!(slice.slice(10, 41).is_none() && slice.slice(u64::MAX, 2).is_none());
    import.release().unwrap();
    region.release().unwrap();
}

#[test]
fn a_refusal_carries_errno_detail_and_the_engines_words() {
    let (session, _fake) = Fake::attach();
    let error = session.import("y", None, &Secret::from_bytes([0; 32])).unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!((refusal.request, refusal.errno), (Kind::Import, errno::EACCES));
    assert_eq!((refusal.detail, refusal.detail_number), (Detail::Secret, 25));
    assert_eq!(refusal.text, "wrong secret for \u{2018}x\u{2019}");
    let text = error.to_string();
    assert!(text.contains("EACCES") && text.contains("secret"), "{text}");
    assert!(session.probe().is_ok(), "the session goes on");
}

#[test]
fn a_memfd_of_ours_is_looked_at_before_it_is_sent() {
    let (session, _fake) = Fake::attach();
    let memfd = shm::create(c"ours", 8192, false).unwrap();
    let ours = Mapping::shared(memfd.as_fd(), 8192).unwrap();
    let region = session.region_from_memfd(memfd, 8192).unwrap();
    region.lend(8..16).unwrap().set_u64(0, 0x0102);
    assert_eq!(ours.word64(8).load(Ordering::Relaxed), 0x0102);
    let memfd = shm::create(c"ours", 4096, false).unwrap();
    let small = session.region_from_memfd(memfd, 8192).unwrap_err();
    assert!(matches!(small, ControlError::Memory(ShmError::Size { .. })), "{small}");
    let pipe = nix::unistd::pipe().unwrap();
    let other = session.region_from_memfd(pipe.0, 4096).unwrap_err();
    assert!(matches!(other, ControlError::Memory(ShmError::NotMemfd)), "{other}");
}

/// Opens a session with an engine that answers the first request after HELLO wrongly.
fn answered(wrongly: fn(&OwnedFd, Head)) -> ControlError {
    let (client, socket) = fds::control_pair().unwrap();
    let server = std::thread::spawn(move || {
        let head = |message: fds::Received| Head::read_from_prefix(&message.bytes).unwrap().0;
        let hello = head(fds::receive(socket.as_fd(), true).unwrap().unwrap());
        let reply = reply_head(hello, size_of::<abi::HelloReply>());
        let reply = abi::HelloReply { reply, version: 1, ..Default::default() };
        let pidfd = fds::pidfd_open(std::process::id().cast_signed()).unwrap();
        fds::transmit(socket.as_fd(), reply.as_bytes(), &[pidfd.as_fd()], true).unwrap();
        wrongly(&socket, head(fds::receive(socket.as_fd(), true).unwrap().unwrap()));
        let after = fds::receive(socket.as_fd(), true);
        assert!(matches!(after, Ok(None)), "the client has hung up: {after:?}");
    });
    let session = Session::greet(client, false).unwrap();
    let error = session.probe().unwrap_err();
    assert!(matches!(session.probe(), Err(ControlError::SessionOver)), "after {error}");
    server.join().unwrap();
    error
}

fn send(socket: &OwnedFd, bytes: &[u8], attached: &[OwnedFd]) {
    let attached: Vec<_> = attached.iter().map(OwnedFd::as_fd).collect();
    fds::transmit(socket.as_fd(), bytes, &attached, true).unwrap();
}

fn probe_reply(head: Head) -> abi::ProbeReply {
    let reply = reply_head(head, size_of::<abi::ProbeReply>());
    abi::ProbeReply { reply, ..Default::default() }
}

#[test]
fn a_reply_that_cannot_be_ends_the_session() {
    type Wrongly = fn(&OwnedFd, Head);
    let cases: [(&str, Wrongly); 9] = [
        ("shorter than its head", |socket, _| send(socket, &[1; 23], &[])),
        ("something else", |socket, head| {
            let head = Head { tag: head.tag + 1, ..head };
            send(socket, probe_reply(head).as_bytes(), &[]);
        }),
        ("something else", |socket, head| {
            let head = Head { kind: Kind::Stats as u16, ..head };
            send(socket, probe_reply(head).as_bytes(), &[]);
        }),
        ("another length", |socket, head| {
            send(socket, &probe_reply(head).as_bytes()[..100], &[]);
        }),
        ("another length", |socket, head| {
            send(socket, &[probe_reply(head).as_bytes(), &[0; 600]].concat(), &[]);
        }),
        ("wrong length for its kind", |socket, head| {
            send(socket, reply_head(head, 24).as_bytes(), &[]);
        }),
        ("above zero", |socket, head| {
            let mut reply = probe_reply(head);
            reply.reply.status = 1;
            send(socket, reply.as_bytes(), &[]);
        }),
        ("too few or too many", |socket, head| {
            let surplus = socket.try_clone().unwrap();
            send(socket, probe_reply(head).as_bytes(), &[surplus]);
        }),
        ("more descriptors than any", |socket, head| {
            let surplus: Vec<_> = (0..9).map(|_| socket.try_clone().unwrap()).collect();
            send(socket, probe_reply(head).as_bytes(), &surplus);
        }),
    ];
    for (what, wrongly) in cases {
        let error = answered(wrongly);
        let text = error.to_string();
        assert!(matches!(error, ControlError::Protocol { .. }), "{text}");
        assert!(text.contains(what), "{text}");
    }
}

#[test]
fn an_engine_may_refuse_before_it_has_heard_anything() {
    let (client, socket) = fds::control_pair().unwrap();
    let mut head = reply_head(Head { kind: Kind::Hello as u16, ..Head::default() }, 24);
    head.status = -errno::EDQUOT;
    head.detail = Detail::Quota as u32;
    send_failure(&socket, head, "all sessions are in use");
    drop(socket);
    match Session::from_socket(client) {
        Err(ConnectError::Hello(ControlError::Refused(refusal))) => {
            assert_eq!((refusal.errno, refusal.detail), (errno::EDQUOT, Detail::Quota));
            assert_eq!(refusal.text, "all sessions are in use");
        }
        other => panic!("{other:?}"),
    }
    let (client, socket) = fds::control_pair().unwrap();
    drop(socket);
    let over = Session::from_socket(client).unwrap_err();
    assert!(matches!(over, ConnectError::Hello(ControlError::SessionOver)), "{over:?}");
    let nowhere = Session::connect("/nonexistent/verbring").unwrap_err();
    assert!(nowhere.to_string().contains("/nonexistent/verbring"), "{nowhere}");
}

#[test]
fn last_words_are_heard_after_a_request_was_left_unread() {
    let (client, socket) = fds::control_pair().unwrap();
    let server = std::thread::spawn(move || {
        // HELLO lies unread when the socket is closed: the client is told of a reset.
        let mut watched = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        wire::wait(&mut watched, SOON).unwrap();
        assert!(wire::told(&watched[0]));
        let mut head = reply_head(Head { kind: Kind::Hello as u16, ..Head::default() }, 24);
        head.status = -errno::EDQUOT;
        send_failure(&socket, head, "no room");
    });
    let refused = Session::from_socket(client).unwrap_err();
    assert!(refused.to_string().contains("no room"), "{refused:?}");
    server.join().unwrap();
}

#[test]
fn secrets_travel_as_hex_and_do_not_leak_into_logs() {
    let secret = Secret::from_bytes(core::array::from_fn(|at| 250 - 7 * at.to_le_bytes()[0]));
    let hex = secret.to_hex();
    assert_eq!(&hex[..6], "faf3ec");
    assert_eq!(hex.parse::<Secret>().unwrap(), secret);
    assert_eq!(hex.to_uppercase().parse::<Secret>().unwrap(), secret);
    assert!(!format!("{secret:?}").contains("fa"));
    for bad in ["", &hex[1..], &format!("{hex}0"), &hex.replacen("fa", "g0", 1)] {
        assert_eq!(bad.parse::<Secret>(), Err(BadSecret), "{bad}");
    }
}

#[test]
#[should_panic(expected = "outside its lease")]
fn a_lease_is_no_way_to_what_lies_beside_it() {
    let (session, _fake) = Fake::attach();
    let region = session.alloc(4096).unwrap();
    region.lend(8..16).unwrap().read(1, &mut [0; 8]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A region lends like a row of cells, each of which is in one pair of hands at most.
    #[test]
    fn lending_is_exclusive(
        steps in prop::collection::vec((0u64..80, 0u64..20, 0usize..6), 1..60),
    ) {
        const CELLS: u64 = 64;
        let (session, _fake) = Fake::attach();
        let region = session.alloc(CELLS).unwrap();
        let mut leases: Vec<Lease> = Vec::new();
        for (start, length, drops) in steps {
            let range = start..start + length;
            let holds = |cell| {
                leases.iter().any(|l| (l.offset()..l.offset() + l.bytes()).contains(&cell))
            };
            let inside = range.end <= CELLS;
            let free = !range.clone().any(holds);
            match region.lend(range.clone()) {
                Ok(mut lease) => {
                    prop_assert!(inside && free);
                    prop_assert_eq!((lease.offset(), lease.bytes()), (start, length));
                    lease.fill(7);
                    leases.push(lease);
                }
                Err(LendError::Outside { .. }) => prop_assert!(!inside),
                Err(LendError::Lent { lent, .. }) => {
                    prop_assert!(inside && !free);
                    prop_assert!(lent.start < range.end && range.start < lent.end);
                }
            }
            if drops < 2 && !leases.is_empty() {
                leases.swap_remove(drops % leases.len());
            }
        }
    }
}
