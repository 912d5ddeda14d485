//! Graphs as entries: whatever is asked for, an op waits for just that, in entries that fit.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::fake::{Fake, FakeRing};
use super::super::{
    Arm, Cancel, CmpSwap, Completion, FetchAdd, Flush, Import, LendError, Nop, Op, PagePair, Read,
    Readv, Region, RingOptions, Secret, Session, Write, Writev,
};
use super::*;
use crate::abi::{
    self, CQE_DEP_FAILED, CQE_RETRYABLE, Class, Cqe, Detail, SQE_COALESCE, SQE_DRAIN, SQE_HARDLINK,
    SQE_LINK, SQE_NO_MERGE, SQE_SUPERSEDE, errno,
};
use crate::seeds::property;

const SOON: Option<Duration> = Some(Duration::from_secs(20));

struct World {
    session: Session,
    fake: Fake,
    ring: Ring,
    engine: FakeRing,
}

fn world(sq_entries: u32) -> World {
    let (session, fake) = Fake::attach();
    let ring = session.ring(RingOptions::new(sq_entries, 128)).unwrap();
    let engine = fake.ring();
    World { session, fake, ring, engine }
}

impl World {
    fn sides(&self) -> (Region, Import) {
        let import = self.session.import("x", None, &Secret::from_bytes([b'x'; 32])).unwrap();
        (self.session.alloc(8192).unwrap(), import)
    }

    fn nop(&mut self) -> Ticket {
        self.ring.push(Nop::new()).unwrap()
    }

    /// Pushes an op and returns its entry; those before it are served.
    fn entry(&mut self, op: impl Op) -> Sqe {
        let ticket = self.ring.push(op).unwrap();
        self.ring.submit();
        loop {
            let sqe = self.engine.serve(0);
            if self.ring.reap().unwrap().unwrap().ticket == ticket {
                return sqe;
            }
        }
    }

    fn next(&mut self) -> Completion {
        self.ring.reap().unwrap().unwrap()
    }
}

#[test]
fn builders_say_what_an_op_waits_for() {
    let mut world = world(64);
    let (region, import) = world.sides();
    let (far, lend) = (import.at(0), |range| region.lend(range).unwrap());
    let (a, b) = (world.nop(), world.nop());
    let edges = |op: Sqe| (op.opcode, op.edges, op.flags);
    let read = Read::new(lend(0..8), far).after(a).after_end(b).coalesce();
    assert_eq!(edges(world.entry(read)), (2, [2, 0x8001], SQE_COALESCE));
    let write = Write::new(lend(0..8), far).coalesce().supersede(77).no_merge().link();
    let write = world.entry(write);
    let flags = SQE_COALESCE | SQE_SUPERSEDE | SQE_NO_MERGE | SQE_LINK;
    assert_eq!((edges(write), write.tag()), ((1, [0, 0], flags), 77));
    let pages = [PagePair { local: 0, remote: 0 }];
    let writev = Writev::new(lend(0..32), 16, &pages, 16, far).unwrap().after(a).drain();
    assert_eq!(edges(world.entry(writev)), (3, [4, 0], SQE_DRAIN));
    let readv = Readv::new(lend(0..32), 16, &pages, 16, far).unwrap().after(a).hard_link();
    assert_eq!(edges(world.entry(readv)), (4, [5, 0], SQE_HARDLINK));
    let add = FetchAdd::new(lend(0..8), far, 1).unwrap().after(a).link().hard_link();
    assert_eq!(edges(world.entry(add)), (5, [6, 0], SQE_LINK | SQE_HARDLINK));
    let swap = CmpSwap::new(lend(0..8), far, 1, 2).unwrap().after_end(a).link();
    let swap = world.entry(swap);
    assert_eq!((edges(swap), swap.arg), ((6, [0x8007, 0], SQE_LINK), [1, 2]));
    assert_eq!(edges(world.entry(Cancel::record(1).after(a))), (8, [8, 0], 0));
    assert_eq!(edges(world.entry(Flush::region(&region).after(a))), (9, [9, 0], 0));
    assert_eq!(edges(world.entry(Arm::new(&region, 1).after(a))), (10, [10, 0], 0));
    assert_eq!(edges(world.entry(Nop::new().after(a).drain())), (0, [11, 0], SQE_DRAIN));
    assert_eq!(edges(world.entry(Join::new())), (7, [0, 0], 0));
    let join = world.entry(Join::of([a, b]).class(Class::High).link());
    assert_eq!((edges(join), join.class), ((7, [13, 12], SQE_LINK), 1));
}

/// What each op waits for by the entries alone: its JOINs are seen through.
fn waits_for(entries: &[Sqe], number: usize) -> BTreeMap<u64, bool> {
    let entry = entries[number];
    let mut edges = entry.edges.to_vec();
    if entry.opcode == Opcode::Join as u8 {
        edges.extend(entry.arg.iter().flat_map(|word| {
            word.to_le_bytes()
                .chunks(2)
                .map(|two| u16::from_le_bytes([two[0], two[1]]))
                .collect::<Vec<_>>()
        }));
    }
    let mut found = BTreeMap::new();
    for edge in edges.into_iter().filter(|edge| *edge != 0) {
        let (before, carries) = (number - usize::from(edge & 0x7fff), edge & 0x8000 == 0);
        if entries[before].opcode == Opcode::Join as u8 {
            assert!(carries && entries[before].flags == SQE_SKIP_SUCCESS);
            for (leaf, carries) in waits_for(entries, before) {
                *found.entry(leaf).or_insert(false) |= carries;
            }
        } else {
            *found.entry(before as u64).or_insert(false) |= carries;
        }
    }
    found
}

proptest! {
    #![proptest_config(property(64))]

    /// Any number of edges, of any kind, with repeats: the entries say the same, in full.
    #[test]
    fn an_op_waits_for_all_that_it_names_and_for_nothing_else(
        named in prop::collection::vec((0u64..20, any::<bool>()), 0..160),
        joins in any::<bool>(),
    ) {
        let mut world = world(64);
        let ops: Vec<Ticket> = (0..20).map(|_| world.nop()).collect();
        let mut wanted = BTreeMap::new();
        let mut join = Join::new().class(Class::Low);
        let mut nop = Nop::new().class(Class::Low);
        for (number, carries) in &named {
            *wanted.entry(*number).or_insert(false) |= *carries;
            let op = ops[usize::try_from(*number).unwrap()];
            if *carries {
                (join, nop) = (join.after(op), nop.after(op));
            } else {
                (join, nop) = (join.after_end(op), nop.after_end(op));
            }
        }
        let limit = if joins { 10 } else { 2 };
        let last = if joins { world.ring.push(join) } else {
            let pushed = world.ring.push(nop);
            Ok(pushed.unwrap())
        };
        let last = last.unwrap();
        let helpers = named.len().saturating_sub(limit).div_ceil(9) as u64;
        prop_assert_eq!(last.number(), 20 + helpers);
        prop_assert_eq!(world.ring.submit(), 21 + helpers);
        let entries: Vec<Sqe> = (0..21 + helpers).map(|_| world.engine.serve(0)).collect();
        prop_assert!(entries[20..].iter().all(|entry| entry.class == Class::Low as u8));
        prop_assert_eq!(waits_for(&entries, entries.len() - 1), wanted);
    }
}

#[test]
fn a_join_of_a_thousand_is_pushed_whole_or_not_at_all() {
    let mut world = world(128);
    let ops: Vec<Ticket> = (0..16).map(|_| world.nop()).collect();
    let thousand = || ops.iter().cycle().take(1000);
    // 110 JOINs leave ten for the last one.
    let refused = world.ring.join(ops.iter().cycle().take(10 + 9 * 127 + 1)).unwrap_err();
    assert_eq!(refused.reason, PushReason::TooMany { needs: 129, entries: 128 });
    let told = refused.to_string();
    assert!(told.contains("129 SQ slots, and its ring has 128"), "{told}");
    world.nop();
    world.nop();
    let refused = world.ring.join(thousand()).unwrap_err();
    assert_eq!(refused.reason, PushReason::Full);
    world.ring.submit();
    world.engine.serve(0);
    // What was not pushed can be, once there is room.
    let last = world.ring.push(refused.op).unwrap();
    assert_eq!((last.number(), world.ring.submit()), (18 + 110, 111));
}

#[test]
fn what_cannot_be_waited_for_is_named() {
    let mut world = world(8);
    let mut other = world.session.ring(RingOptions::new(8, 8)).unwrap();
    let (own, strange) = (world.nop(), other.push(Nop::new()).unwrap());
    let mut refused = |op: Nop| world.ring.push(op).unwrap_err().reason;
    let ring = other.number();
    assert_eq!(refused(Nop::new().after(strange)), PushReason::OtherRing { ring });
    let both = Nop::new().after(own).after(own).after(own).after_end(strange);
    assert_eq!(refused(both), PushReason::OtherRing { ring });
    let later = (0..3).map(|_| other.push(Nop::new()).unwrap()).last().unwrap();
    let unpushed = other.push(Nop::new().after(later)).map(|ticket| ticket.number());
    assert_eq!(unpushed.unwrap(), 4);
    drop(world.fake);
}

#[test]
fn an_edge_reaches_back_32767_and_no_further() {
    let mut world = world(8);
    let first = world.nop();
    let skip = |world: &mut World| {
        world.ring.push(Nop::new().skip_success()).unwrap();
        world.ring.submit();
        world.engine.take();
        world.engine.end.forgo(1);
    };
    world.ring.submit();
    world.engine.serve(0);
    world.next();
    (1..32_767).for_each(|_| skip(&mut world));
    let op = world.ring.push(Nop::new().after(first)).unwrap();
    assert_eq!(op.number(), 32_767);
    world.ring.submit();
    assert_eq!(world.engine.serve(0).edges, [32_767, 0]);
    for op in [Nop::new().after(first), Nop::new().after(op).after_end(first)] {
        let refused = world.ring.push(op).unwrap_err();
        assert_eq!(refused.reason, PushReason::TooFar { back: 32_768 });
        assert!(refused.to_string().contains("32768"), "{refused}");
    }
}

#[test]
fn a_number_that_was_never_pushed_is_no_predecessor() {
    // As a ticket of a ring that was released, and whose number was given again.
    let mut before = world(8);
    let ticket = (0..3).map(|_| before.nop()).last().unwrap();
    let mut world = world(8);
    assert_eq!(world.ring.number(), ticket.ring());
    world.nop();
    let refused = world.ring.push(Nop::new().after(ticket)).unwrap_err();
    assert_eq!(refused.reason, PushReason::Unpushed { number: 2 });
}

#[test]
fn joins_that_a_ring_adds_are_not_heard_of() {
    let mut world = world(32);
    let ops: Vec<Ticket> = (0..12).map(|_| world.nop()).collect();
    let last = ops.iter().fold(Nop::new(), Nop::after);
    let last = world.ring.push(last).unwrap();
    assert_eq!(world.ring.in_flight(), 13);
    world.ring.submit();
    for _ in 0..12 {
        world.engine.serve(0);
    }
    assert_eq!(world.ring.wait(12, SOON).unwrap(), 12);
    // Two JOINs that failed, then nothing of a caller's: nobody is told that one is ready.
    for _ in 0..2 {
        let user_data = world.engine.take().user_data;
        let (res, flags) = (-errno::ECANCELED, CQE_DEP_FAILED | CQE_RETRYABLE);
        world.engine.complete(Cqe { user_data, res, flags, ..Cqe::default() });
    }
    assert_eq!(world.ring.wait(13, Some(Duration::ZERO)).unwrap(), 12);
    assert!(world.ring.arm(13).unwrap());
    for op in &ops {
        assert_eq!(world.next().ticket, *op);
    }
    assert!(world.ring.reap().unwrap().is_none());
    let user_data = world.engine.take().user_data;
    let (res, flags) = (-errno::ECANCELED, CQE_DEP_FAILED | CQE_RETRYABLE);
    let detail = Detail::Deadline as u16;
    world.engine.complete(Cqe { user_data, res, flags, detail, ..Cqe::default() });
    assert!(!world.ring.arm(1).unwrap());
    assert_eq!(world.ring.wait(1, SOON).unwrap(), 1);
    let failed = world.next();
    let error = failed.result.unwrap_err();
    assert_eq!((failed.ticket, error.dep_failed, error.retryable), (last, true, true));
    let told = "deadline), since an op before it failed, may be tried again";
    assert!(error.to_string().contains(told), "{error}");
}

#[test]
fn a_shared_range_is_lent_until_the_last_lease_is_back() {
    let mut world = world(8);
    let (region, import) = world.sides();
    let first = region.lend(0..64).unwrap();
    let leases = [first.share(), first.share(), first];
    for lease in leases {
        world.ring.push(Read::new(lease, import.at(0)).coalesce()).unwrap();
    }
    world.ring.submit();
    for left in (0..3).rev() {
        let user_data = world.engine.take().user_data;
        let flags = if left == 0 { 0 } else { abi::CQE_COALESCED };
        world.engine.complete(Cqe { user_data, record: 5, res: 64, flags, ..Cqe::default() });
        let done = world.next();
        assert_eq!((done.coalesced(), done.record), (left > 0, 5));
        assert!(
            matches!(region.lend(63..65), Err(LendError::Lent { lent, .. }) if lent == (0..64))
        );
        drop(done);
        assert_eq!(region.lend(0..64).is_ok(), left == 0);
    }
    // An empty lease holds nothing, and neither does what shares it.
    let held = region.lend(8..16).unwrap();
    drop(region.lend(8..8).unwrap().share());
    assert!(region.lend(8..9).is_err());
    drop(held);
    assert!(region.lend(8..9).is_ok());
}
