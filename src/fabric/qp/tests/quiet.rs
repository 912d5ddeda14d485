//! When an end may be told: not before neither card can touch the bytes any more; and what a rail
//! that comes back has given up by then.

use std::sync::atomic::Ordering;

use super::super::{EHOSTDOWN, EIO, RailState};
use super::faults::{add, ends, two, write};
use super::pair::{CONFIG, Shape, Two};
use crate::fabric::conformance::{Harness, succeed};
use crate::fabric::{DONE_FLUSHED, DONE_MAYBE, Done, Fabric, Stop};

/// Time passes and the near end looks, while nobody answers what it wishes.
fn unanswered(two: &mut Two, steps: u32, done: &mut Vec<Done>) {
    for _ in 0..steps {
        two.net.advance(500);
        two.near.poll(two.net.now_ns(), done);
    }
}

/// While a rail recovers, its depth stays taken by what the device may still have.
#[test]
fn f14_depth_is_not_given_back_before_the_work_that_holds_it_has_ended() {
    let mut two = two();
    let number = two.join.number(0, 0);
    two.net.land_late(true);
    two.net.delay(number, 50_000);
    let batch: Vec<_> = (0..16).map(write).collect();
    assert_eq!(two.near.post(&batch), 16);
    two.step();
    two.near.degrade(0);
    let mut done = Vec::with_capacity(32);
    unanswered(&mut two, 100, &mut done);
    // Nobody has moved the queue pair: its work goes on, and then waits to be told.
    assert_eq!(two.near.state(0), RailState::Degraded);
    assert_eq!((two.near.room(0).requests, two.near.room(0).stop), (0, Some(Stop::Degraded)));
    assert_eq!(two.near.post(&batch), 0, "not even one");
    let mut seen = Vec::new();
    for _ in 0..400 {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
        let state = two.near.state(0);
        let (posted, pending) = (two.near.posted(0), two.net.pending(number));
        if state == RailState::Degraded {
            assert_eq!(two.near.room(0).requests, 0);
        } else {
            assert!(posted >= u32::try_from(pending).unwrap(), "{pending} are still with it");
        }
        if seen.last() != Some(&state) {
            seen.push(state);
        }
    }
    assert_eq!(seen, [RailState::Degraded, RailState::Rebuilding, RailState::Ready]);
    done.extend(ends(&mut two, 16 - done.len()));
    assert!(done.iter().all(|end| end.errno == 0), "{done:?}");
    assert_eq!(two.net.overfull(), 0);
    assert_eq!(two.near.room(0).requests, CONFIG.depth);
}

/// The card has flushed everything, and what it had sent before lands later: nothing is told, and
/// nothing repeated, as long as the other end may still take it.
#[test]
fn q11_a_failure_is_told_only_when_no_late_packet_can_land_any_more() {
    let mut two = two();
    let number = two.join.number(0, 0);
    two.net.land_late(true);
    two.net.delay(number, 30_000);
    let batch: Vec<_> = (0..8).map(add).collect();
    assert_eq!(two.near.post(&batch), 8);
    two.net.advance(10_000);
    two.net.break_pair(number);
    let mut done = Vec::with_capacity(16);
    unanswered(&mut two, 20, &mut done);
    assert_eq!(two.net.pending(number), 0, "all of it is flushed here");
    assert_eq!((two.net.landed_late(), done.len()), (0, 0));
    unanswered(&mut two, 400, &mut done);
    assert!(two.net.landed_late() > 0, "nothing landed: the world is too kind");
    assert_eq!(done, [], "told while the other end could still take it");
    let found = ends(&mut two, 8);
    let maybe = DONE_FLUSHED | DONE_MAYBE;
    assert!(found.iter().all(|end| (end.errno, end.flags) == (EIO, maybe)), "{found:?}");
    let sums = || (0..8).map(|n| two.far().word64(n * 64).load(Ordering::Relaxed));
    let told: Vec<_> = sums().collect();
    assert!(told.contains(&1), "some were done after they were flushed: {told:?}");
    two.net.advance(10_000_000);
    assert_eq!(sums().collect::<Vec<_>>(), told, "and none after it was told");
}

/// A port that goes down takes nobody along but what is on its way: the card repeats that until its
/// own time-out; then the rail is rebuilt until the port is back.
#[test]
fn f12_work_on_a_port_that_goes_down_is_done_when_it_is_back() {
    let mut two = Two::new(Shape { rails: 2, step_ns: 50_000, ..Shape::DEFAULT });
    let far = two.join.number(0, 1);
    two.net.kill(far);
    let batch: Vec<_> = (0..8).map(write).collect();
    assert_eq!(two.near.post(&batch), 8);
    let mut done = Vec::with_capacity(64);
    for n in 8..16 {
        let other = crate::fabric::Request { rail: 1, ..write(n) };
        assert_eq!(two.near.post(&[other]), 1, "the other rail goes on");
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
    }
    // Until the card gives up, and the rail is rebuilt, over a port that is still down.
    for _ in 0..40_000 {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
        if two.near.counts().degraded == 2 {
            break;
        }
    }
    assert_eq!((two.near.counts().degraded, done.len()), (2, 8));
    two.net.revive(far);
    done.extend(ends(&mut two, 16 - done.len()));
    done.sort_by_key(|end| end.ticket);
    let again = |n| if n < 8 { 2 } else { 0 };
    let good = |n| Done { attempts: again(n), ..Done::new(n, 0) };
    assert_eq!(done, (0..16).map(good).collect::<Vec<_>>());
    assert_eq!(two.near.state(0), RailState::Ready);
    assert!(two.near.at_rest());
}

/// A rail whose peer is gone is given up: later work ends at once, and its place is free again.
#[test]
fn b10_work_that_fails_while_its_rail_ends_is_told_once_and_nothing_stays() {
    for at in 0..40 {
        let mut two = two();
        two.net.delay(two.join.number(0, 0), 4_000);
        assert_eq!(two.near.post(&(0..8).map(add).collect::<Vec<_>>()), 8);
        let mut done = Vec::with_capacity(16);
        unanswered(&mut two, at, &mut done);
        two.net.break_pair(two.join.number(0, 0));
        two.join.lose(1);
        let left = 8 - done.len();
        done.extend(ends(&mut two, left));
        let mut tickets: Vec<_> = done.iter().map(|end| end.ticket).collect();
        tickets.sort_unstable();
        assert_eq!(tickets, (0..8).collect::<Vec<_>>(), "each once");
        let bad = |end: &&Done| ![0, EHOSTDOWN, EIO].contains(&end.errno);
        assert_eq!(done.iter().find(bad), None, "{done:?}");
        assert_eq!(two.near.state(0), RailState::Dead);
        assert!(two.near.at_rest() && two.near.release(0).is_some());
    }
}

/// Between the look at a rail and its post it may fail: it is looked at again, and takes nothing.
#[test]
fn q09_a_rail_that_fails_after_room_was_promised_takes_nothing() {
    let mut two = two();
    assert_eq!(two.near.room(0).requests, CONFIG.depth);
    two.net.break_pair(two.join.number(0, 0));
    assert_eq!(two.near.room(0).requests, CONFIG.depth, "nobody knows yet");
    // The device takes it, and flushes it: it is found again, and repeated.
    assert_eq!(two.near.post(&[write(0)]), 1);
    let mut nothing = Vec::with_capacity(1);
    two.near.poll(two.net.now_ns(), &mut nothing);
    assert_eq!((two.near.room(0).requests, two.near.post(&[write(1)])), (0, 0));
    assert_eq!(ends(&mut two, 1), [Done { attempts: 1, ..Done::new(0, 0) }]);
    // In one batch the rail fails by its first post, and the rest is not given to it.
    let plan = super::faults::plan(0, super::super::sim::Say::Missing, crate::abi::errno::ENOMEM);
    two.net.plan_post(two.join.number(0, 0), plan);
    assert_eq!(two.near.post(&[write(2)]), 1);
    assert_eq!(two.near.post(&[write(3)]), 0);
    assert_eq!(ends(&mut two, 1), [Done { attempts: 1, ..Done::new(2, 0) }]);
    succeed(&mut two, &[write(3)]);
}
