//! Claim: graphs that clients say are the graphs that a real engine runs: chains by handle and by
//! link, diamonds, failures that travel and those that do not, DRAIN, joins of any number. What
//! must come first is of the lowest class, and what must come after it of the highest, so that an
//! engine which ignored an edge would be found out by the bytes. Nothing here depends on how fast
//! anything is.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use verbring::abi::{self, Class, Counter, Detail, Opcode, errno};
use verbring::client::Scope;
use verbring::{
    Completion, Engine, FetchAdd, Import, Join, Nop, Read, Region, Rights, Ring, RingOptions,
    Session, Ticket, Write,
};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));
const PLACE: u64 = 32 << 10;

struct World {
    _engine: Engine,
    session: Session,
    region: Region,
    import: Import,
    ring: Ring,
}

fn world() -> World {
    let engine = Engine::builder().spawn().unwrap();
    let session = engine.connect().unwrap();
    let region = session.alloc(64 << 10).unwrap();
    let secret = region.export("graphs", Rights::ALL).unwrap();
    let import = session.import("graphs", None, &secret).unwrap();
    let ring = session.ring(RingOptions::new(512, 1024)).unwrap();
    World { _engine: engine, session, region, import, ring }
}

impl World {
    /// A WRITE of one u64 to a place in the upper half.
    fn write(&self, at: u64, place: u64, value: u64) -> Write {
        let mut lease = self.region.lend(at * 8..at * 8 + 8).unwrap();
        lease.set_u64(0, value);
        Write::new(lease, self.import.at(PLACE + place * 8)).class(Class::Low)
    }

    fn read(&self, at: u64, place: u64) -> Read {
        let lease = self.region.lend(at * 8..at * 8 + 8).unwrap();
        Read::new(lease, self.import.at(PLACE + place * 8)).class(Class::High)
    }

    fn add(&self, at: u64, place: u64, addend: u64) -> FetchAdd {
        let lease = self.region.lend(at * 8..at * 8 + 8).unwrap();
        FetchAdd::new(lease, self.import.at(PLACE + place * 8), addend).unwrap()
    }

    /// An atomic on a place that is no multiple of 8: the engine refuses it.
    fn bad(&self, at: u64) -> FetchAdd {
        let lease = self.region.lend(at * 8..at * 8 + 8).unwrap();
        FetchAdd::new(lease, self.import.at(PLACE + 3), 1).unwrap()
    }

    /// Submits, and returns all completions that there will be.
    fn run(&mut self) -> Vec<Completion> {
        self.ring.submit();
        let mut done = Vec::new();
        while self.ring.in_flight() > 0 {
            assert!(self.ring.wait(1, PATIENCE).unwrap() > 0, "a completion in time");
            done.extend(self.ring.reap().unwrap());
        }
        assert!(self.ring.reap().unwrap().is_none());
        done
    }
}

fn of<'d>(done: &'d [Completion], op: &Ticket) -> &'d Completion {
    done.iter().find(|completion| completion.ticket == *op).expect("it has completed")
}

/// What an op has read, or the old value of an atomic.
fn value(done: &[Completion], op: &Ticket) -> u64 {
    let completion = of(done, op);
    assert_eq!(completion.result, Ok(8), "{completion:?}");
    completion.lease.as_ref().unwrap().u64(0)
}

/// Asserts that an op did not run since one that it waited for was refused.
fn failed_behind(done: &[Completion], op: &Ticket) {
    let completion = of(done, op);
    let error = completion.result.unwrap_err();
    let told = (error.errno, error.detail, error.dep_failed, error.retryable);
    assert_eq!(told, (errno::ECANCELED, Detail::RemoteOffset, true, true), "{completion:?}");
    let flags = abi::CQE_DEP_FAILED | abi::CQE_RETRYABLE;
    assert_eq!((completion.flags, completion.record == 0), (flags, false));
}

#[test]
fn the_engine_says_that_it_serves_graphs() {
    let probe = world().session.probe().unwrap();
    assert!(probe.serves(Opcode::Join));
    let links = u64::from(abi::SQE_LINK | abi::SQE_HARDLINK | abi::SQE_DRAIN);
    assert_eq!(probe.sqe_flags & links, links);
}

#[test]
fn a_chain_runs_in_its_order_whatever_the_classes() {
    let mut world = world();
    for round in 0..50 {
        let write = world.ring.push(world.write(0, 0, round)).unwrap();
        let read = world.ring.push(world.read(1, 0).after(write)).unwrap();
        let again = world.ring.push(world.write(2, 0, 1000 + round).after(read)).unwrap();
        let last = world.ring.push(world.read(3, 0).after(again)).unwrap();
        let done = world.run();
        assert_eq!([value(&done, &read), value(&done, &last)], [round, 1000 + round]);
    }
}

#[test]
fn a_linked_chain_needs_no_handles_and_no_one_submit() {
    let mut world = world();
    for round in 0..50 {
        world.ring.push(world.write(0, 0, round).link()).unwrap();
        let read = world.ring.push(world.read(1, 0).link()).unwrap();
        world.ring.submit();
        world.ring.push(world.write(2, 0, 1000 + round).hard_link()).unwrap();
        let last = world.ring.push(world.read(3, 0)).unwrap();
        let done = world.run();
        assert_eq!([value(&done, &read), value(&done, &last)], [round, 1000 + round]);
    }
}

#[test]
fn a_diamond_joins_both_its_sides() {
    let mut world = world();
    for round in 0..50 {
        let top = world.ring.push(world.write(0, 0, round)).unwrap();
        let left = world.ring.push(world.add(1, 0, 1 << 20).class(Class::High).after(top)).unwrap();
        let right = world.ring.push(world.add(2, 0, 1 << 40).class(Class::Low).after(top)).unwrap();
        let bottom = world.ring.push(world.read(3, 0).after(left).after(right)).unwrap();
        let done = world.run();
        assert_eq!(value(&done, &bottom), round + (1 << 20) + (1 << 40));
        let (left, right) = (value(&done, &left) - round, value(&done, &right) - round);
        assert!([(0, 1 << 20), (1 << 40, 0)].contains(&(left, right)), "{left:#x} {right:#x}");
    }
}

#[test]
fn a_failure_travels_by_edges_that_carry_it_and_by_no_others() {
    let mut world = world();
    let before = world.session.stats(Scope::Session).unwrap()[Counter::DepFailed];
    let bad = world.ring.push(world.bad(0)).unwrap();
    let child = world.ring.push(world.write(1, 0, 1).after(bad)).unwrap();
    let grandchild = world.ring.push(world.write(2, 0, 2).after(child)).unwrap();
    let join = world.ring.push(Join::of([grandchild])).unwrap();
    let ordered = world.ring.push(world.write(3, 0, 3).after_end(bad)).unwrap();
    let behind = world.ring.push(world.read(4, 0).after(ordered).after_end(child)).unwrap();
    let done = world.run();
    let refused = of(&done, &bad);
    let error = refused.result.unwrap_err();
    assert_eq!((error.errno, error.detail), (errno::EINVAL, Detail::RemoteOffset));
    assert_eq!((error.dep_failed, refused.record), (false, 0));
    for op in [child, grandchild, join] {
        failed_behind(&done, &op);
        let entry = world.session.find_record(of(&done, &op).record).unwrap();
        assert_eq!(entry.cause, errno::EINVAL, "{entry}");
        assert!(entry.to_string().contains("since an op that it waited for failed"), "{entry}");
    }
    assert_eq!((value(&done, &behind), of(&done, &ordered).result), (3, Ok(8)));
    let after = world.session.stats(Scope::Session).unwrap()[Counter::DepFailed];
    assert_eq!(after - before, 3);
    // The same by links: LINK passes it on, HARDLINK does not.
    world.ring.push(world.bad(10).link()).unwrap();
    let linked = world.ring.push(world.write(11, 0, 1).hard_link()).unwrap();
    let last = world.ring.push(world.read(12, 0)).unwrap();
    let done = world.run();
    failed_behind(&done, &linked);
    assert_eq!(value(&done, &last), 3);
}

#[test]
fn what_is_over_is_waited_for_no_more_and_its_failure_is_remembered() {
    let mut world = world();
    let good = world.ring.push(world.write(0, 0, 9)).unwrap();
    let bad = world.ring.push(world.bad(1)).unwrap();
    world.run();
    let well = world.ring.push(world.read(0, 0).after(good).after_end(bad)).unwrap();
    let badly = world.ring.push(world.read(1, 0).after(good).after(bad)).unwrap();
    let done = world.run();
    assert_eq!(value(&done, &well), 9);
    failed_behind(&done, &badly);
}

#[test]
fn a_drain_parts_what_is_before_it_from_what_is_behind() {
    let mut world = world();
    for round in 0..20u64 {
        for place in 0..50 {
            world.ring.push(world.write(place, place, round + place)).unwrap();
        }
        let bad = world.ring.push(world.bad(60)).unwrap();
        let drain = world.ring.push(Nop::new().drain()).unwrap();
        let reads: Vec<Ticket> =
            (0..50).map(|n| world.ring.push(world.read(100 + n, n)).unwrap()).collect();
        let done = world.run();
        assert_eq!(of(&done, &drain).result, Ok(0));
        assert!(of(&done, &bad).result.is_err());
        for (place, read) in (0..).zip(&reads) {
            assert_eq!(value(&done, read), round + place);
        }
    }
}

#[test]
fn a_join_of_hundreds_completes_when_all_are_over() {
    const COUNT: u64 = 300;
    let mut world = world();
    for round in 0..10 {
        let writes: Vec<Ticket> =
            (0..COUNT).map(|n| world.ring.push(world.write(n, n, round + n)).unwrap()).collect();
        let join = world.ring.join(&writes).unwrap();
        assert_eq!(join.number() - writes[0].number(), COUNT + 33, "33 JOINs were put before it");
        let read = world.ring.push(world.read(COUNT, COUNT - 1).after(join)).unwrap();
        let done = world.run();
        assert_eq!(done.len() as u64, COUNT + 2);
        assert_eq!((of(&done, &join).result, value(&done, &read)), (Ok(0), round + COUNT - 1));
    }
    // One that failed is enough, and none of the JOINs between is heard of. An op takes as many.
    let mut ops: Vec<Ticket> =
        (0..99).map(|n| world.ring.push(world.write(n, n, 0)).unwrap()).collect();
    ops.insert(50, world.ring.push(world.bad(COUNT)).unwrap());
    let join = world.ring.join(&ops).unwrap();
    let read = ops.iter().fold(world.read(COUNT + 1, 0), Read::after_end);
    let read = world.ring.push(read).unwrap();
    let write = ops.iter().fold(world.write(COUNT + 2, 0, 7), Write::after);
    let write = world.ring.push(write).unwrap();
    let done = world.run();
    assert_eq!(done.len(), 103);
    failed_behind(&done, &join);
    failed_behind(&done, &write);
    assert_eq!(value(&done, &read), 0);
}

#[test]
fn edges_reach_an_arm_neither_way_but_one() {
    let mut world = world();
    let arm = world.ring.push(verbring::Arm::new(&world.region, 1)).unwrap();
    world.ring.push(Nop::new().after(arm)).unwrap();
    world.ring.submit_and_wait(1, PATIENCE).unwrap();
    let refused = world.ring.reap().unwrap().unwrap().result.unwrap_err();
    assert_eq!((refused.errno, refused.detail), (errno::EINVAL, Detail::Edges));
    let write = world.ring.push(world.write(0, 0, 4)).unwrap();
    world.ring.push(verbring::Arm::new(&world.region, 1).after(write)).unwrap();
    let last = world.ring.push(world.read(1, 0).notify(5).after(write)).unwrap();
    world.ring.submit();
    let mut done = Vec::new();
    while done.len() < 3 {
        assert!(world.ring.wait(1, PATIENCE).unwrap() > 0, "a completion in time");
        done.extend(world.ring.reap().unwrap());
    }
    assert_eq!(value(&done, &last), 4);
    let told = done.iter().find_map(|completion| completion.notification).unwrap();
    assert_eq!((told.immediate, told.count), (5, 1));
}

#[test]
fn ops_of_one_effect_are_done_once_and_complete_each() {
    let mut world = world();
    let stats = |world: &World| world.session.stats(Scope::Session).unwrap();
    let before = stats(&world);
    let source = world.region.lend(0..64).unwrap();
    let leases: Vec<_> = (0..6).map(|_| source.share()).collect();
    let ops: Vec<Ticket> = leases
        .into_iter()
        .map(|lease| {
            world.ring.push(Write::new(lease, world.import.at(PLACE)).notify(3).coalesce()).unwrap()
        })
        .collect();
    drop(source);
    let done = world.run();
    let survivor = of(&done, &ops[0]);
    assert!(!survivor.coalesced());
    for op in &ops {
        let end = of(&done, op);
        assert_eq!((end.result, end.record), (Ok(64), survivor.record));
        assert_eq!(end.coalesced(), *op != ops[0]);
    }
    let after = stats(&world);
    assert_eq!(after[Counter::FoldHit] - before[Counter::FoldHit], 5);
    assert_eq!(after[Counter::FoldNone] - before[Counter::FoldNone], 1);
    assert_eq!(after[Counter::Bytes] - before[Counter::Bytes], 64);
    assert_eq!(after[Counter::Notified] - before[Counter::Notified], 1);
    drop(done);
    assert!(world.region.lend(0..64).is_ok(), "all leases are back");
    // An edge keeps an op from being folded.
    let first = world.ring.push(world.read(0, 0).coalesce()).unwrap();
    let lease = world.region.lend(64..72).unwrap();
    let read = Read::new(lease.share(), world.import.at(PLACE)).coalesce().after(first);
    world.ring.push(read).unwrap();
    world.ring.push(Read::new(lease, world.import.at(PLACE)).coalesce()).unwrap();
    assert!(world.run().iter().all(|end| end.result == Ok(8) && !end.coalesced()));
    assert_eq!(stats(&world)[Counter::FoldEdges] - after[Counter::FoldEdges], 1);
}

#[test]
fn of_values_for_one_place_the_last_is_carried() {
    let mut world = world();
    let ops: Vec<Ticket> = (0..4u64)
        .map(|value| world.ring.push(world.write(value, 0, 40 + value).supersede(9)).unwrap())
        .collect();
    let done = world.run();
    let last = of(&done, &ops[3]);
    assert_eq!((last.result, last.coalesced()), (Ok(8), false));
    for op in &ops[..3] {
        let end = of(&done, op);
        assert_eq!((end.result, end.coalesced(), end.record), (Ok(8), true, last.record));
    }
    let read = world.ring.push(world.read(9, 0)).unwrap();
    assert_eq!(value(&world.run(), &read), 43);
    assert_eq!(world.session.stats(Scope::Session).unwrap()[Counter::Superseded], 3);
}
