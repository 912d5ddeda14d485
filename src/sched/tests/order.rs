//! Which op is first when something happens to those before it: ageing, cancelling, going back.

use crate::abi::{Class, WAIT_CAP, WAIT_CLASS, WAIT_LANE, WAIT_NONE, WAIT_TURN};
use crate::sched::{Mode, Policy, Shape};

use super::stock::{Stock, Want};

const SHAPE: Shape = Shape { sessions: 4, peers: 4, window_bytes: 1 << 20 };

fn stock(policy: Policy, records: u32) -> Stock {
    Stock::new(&policy, SHAPE, records)
}

fn want(class: Class, session: u32) -> Want {
    Want { session, ..Want::of(class, 4_096) }
}

/// The slots served until nothing is left.
fn drain(stock: &mut Stock) -> Vec<u32> {
    std::iter::from_fn(|| {
        let slot = stock.scheduler.first(&stock.ledger)?;
        stock.serve(slot);
        Some(slot)
    })
    .collect()
}

/// S7: what is old counts as high, among high in the order of intake, also at equal times; its
/// class stays what it is.
#[test]
fn s7_old_ops_count_as_high_in_the_order_of_intake() {
    for mode in [Mode::Strict, Mode::Tent] {
        let policy = Policy { mode, aging_ns: [100, 100], ..Policy::STRICT };
        let mut stock = stock(Policy { mode, ..policy }, 16);
        let classes = [Class::Low, Class::Medium, Class::Low, Class::High, Class::Medium];
        let old: Vec<u32> = classes.map(|class| stock.push(want(class, 0), 10)).to_vec();
        let young = stock.push(want(Class::Medium, 0), 11);
        let urgent = stock.push(want(Class::High, 0), 12);
        stock.scheduler.age(&mut stock.ledger, 109, 1_000);
        let aged = |stock: &Stock| old.iter().filter(|slot| stock.ledger[**slot].aged).count();
        assert_eq!(aged(&stock), 0);
        stock.scheduler.age(&mut stock.ledger, 110, 1_000);
        assert_eq!(aged(&stock), 4);
        assert_eq!(stock.ledger[old[0]].op.class, Class::Low);
        stock.scheduler.begin(100, 1 << 20);
        let order = drain(&mut stock);
        assert_eq!(order, [&old[..], &[urgent, young]].concat(), "{mode}");
    }
}

/// A pass over flows is bounded, and the next goes on where it ended.
#[test]
fn s7_ageing_comes_to_all_flows_a_few_at_a_time() {
    let policy = Policy { aging_ns: [100, 0], ..Policy::STRICT };
    let mut stock = stock(policy, 16);
    let slots: Vec<u32> = (0..4).map(|at| stock.push(want(Class::Medium, at), 0)).collect();
    let low = stock.push(want(Class::Low, 0), 0);
    let mut calls = 0;
    while slots.iter().any(|slot| !stock.ledger[*slot].aged) {
        let before = slots.iter().filter(|slot| stock.ledger[**slot].aged).count();
        stock.scheduler.age(&mut stock.ledger, 1_000, 1);
        let after = slots.iter().filter(|slot| stock.ledger[**slot].aged).count();
        assert!(after <= before + 1);
        calls += 1;
        assert!(calls < 100);
    }
    assert!(!stock.ledger[low].aged, "low never ages here");
}

/// S10: what is cancelled is gone at once, so the next pick does not pay for it.
#[test]
fn s10_a_hundred_thousand_cancelled_ops_cost_a_pick_nothing() {
    const COUNT: u32 = 100_000;
    for mode in Mode::ALL {
        let mut stock = stock(Policy { mode, ..Policy::DEFAULT }, COUNT + 1);
        let slots: Vec<u32> =
            (0..COUNT).map(|at| stock.push(want(Class::Medium, at % 4), 0)).collect();
        let last = stock.push(want(Class::Medium, 3), 0);
        slots.into_iter().for_each(|slot| stock.drop(slot));
        // Nothing but the last is on any list: there is nothing to pass over.
        let place = stock.scheduler.place(&stock.ledger, last);
        assert_eq!((place.ahead, place.first, place.flows), (0, true, 1), "{mode}");
        stock.scheduler.begin(10, 1 << 20);
        assert_eq!(stock.scheduler.first(&stock.ledger), Some(last), "{mode}");
        stock.drop(last);
        assert!(stock.scheduler.is_empty());
    }
}

/// S14: nothing is chosen ahead of time: an urgent op goes before all that is not yet charged.
#[test]
fn s14_an_urgent_op_is_next_however_far_a_pass_has_come() {
    for mode in [Mode::Weighted, Mode::Strict] {
        let mut stock = stock(Policy { mode, ..Policy::DEFAULT }, 64);
        (0..32).for_each(|at| stock.add(want(Class::Low, at % 4), 0));
        (0..16).for_each(|_| assert_eq!(stock.next(), Some(Class::Low)));
        let first = stock.scheduler.first(&stock.ledger).unwrap();
        let urgent = stock.push(want(Class::High, 1), 0);
        assert_eq!(stock.scheduler.first(&stock.ledger), Some(urgent), "{mode}");
        stock.serve(urgent);
        assert_eq!(stock.scheduler.first(&stock.ledger), Some(first), "{mode}");
    }
}

/// S16: an op that goes back, twice, is where it was, with the time it was taken at, and its flow
/// is in turn; what it was charged is given back.
#[test]
fn s16_an_op_that_goes_back_keeps_its_place_and_age() {
    for mode in [Mode::Weighted, Mode::Strict, Mode::Fifo] {
        let mut stock = stock(Policy { mode, ..Policy::DEFAULT }, 64);
        for at in 0..12 {
            stock.add(want(Class::ALL[at % 3], u32::try_from(at / 3).unwrap()), 5);
        }
        let slot = stock.scheduler.first(&stock.ledger).unwrap();
        for _ in 0..2 {
            let Stock { ledger, scheduler, .. } = &mut stock;
            scheduler.charge(ledger, slot, 4_096);
            scheduler.remove(ledger, slot);
            assert_ne!(scheduler.first(ledger), Some(slot));
            scheduler.push_front(ledger, slot);
            scheduler.refund(ledger, slot, 4_096);
            assert_eq!(scheduler.first(ledger), Some(slot), "{mode}");
            assert_eq!(ledger[slot].taken_ns, 5);
        }
        let order = drain(&mut stock);
        assert_eq!((order[0], order.len()), (slot, 12));
    }
}

/// What is parked lets others pass, and comes back with its ops in order; others never wait for it.
#[test]
fn parked_flows_let_others_pass() {
    let mut stock = stock(Policy::STRICT, 64);
    let mine: Vec<u32> =
        (0..3).map(|_| stock.push(Want { line: 2, ..want(Class::High, 0) }, 0)).collect();
    let other = stock.push(Want { line: 3, ..want(Class::High, 0) }, 0);
    let low = stock.push(want(Class::Low, 1), 0);
    stock.scheduler.park(&stock.ledger, mine[0]);
    assert_eq!((stock.scheduler.parked(), stock.scheduler.queued()), (1 << 2, 0b1101));
    assert_eq!(drain(&mut stock), [other, low]);
    assert!(!stock.scheduler.is_empty());
    assert_eq!(stock.scheduler.any(2), Some(mine[0]));
    stock.scheduler.unpark(2);
    assert_eq!(drain(&mut stock), mine);
    assert_eq!((stock.scheduler.parked(), stock.scheduler.queued()), (0, 0));
}

#[test]
fn a_place_says_what_is_waited_for() {
    let mut stock = stock(Policy::STRICT, 64);
    let [first, second] = [0, 1].map(|_| stock.push(want(Class::High, 0), 0));
    let other = stock.push(want(Class::High, 1), 0);
    let low = stock.push(want(Class::Low, 1), 0);
    assert_eq!(stock.scheduler.first(&stock.ledger), Some(first));
    assert_eq!([first, second].map(|slot| stock.ledger[slot].wait), [WAIT_NONE, WAIT_LANE]);
    let wait = |stock: &Stock, slot: u32| stock.scheduler.place(&stock.ledger, slot).wait;
    let waits = [first, second, other, low].map(|slot| wait(&stock, slot));
    assert_eq!(waits, [WAIT_NONE, WAIT_LANE, WAIT_TURN, WAIT_CLASS]);
    let place = stock.scheduler.place(&stock.ledger, second);
    assert_eq!((place.ahead, place.first, place.flows), (1, false, 2));
    stock.scheduler.cap(0);
    assert_eq!(stock.scheduler.first(&stock.ledger), Some(other));
    assert_eq!(wait(&stock, first), WAIT_CAP);
    stock.scheduler.uncap(0);
    assert_eq!(drain(&mut stock).len(), 4);
}
