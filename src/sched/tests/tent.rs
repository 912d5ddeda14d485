//! Mode tent is what it says it is.

use crate::abi::Class::{self, High, Low};
use crate::sched::{Mode, Policy, Shape};

use super::stock::{Stock, Want};

const POLICY: Policy = Policy { mode: Mode::Tent, ..Policy::DEFAULT };
const SHAPE: Shape = Shape { sessions: 1, peers: 1, window_bytes: 160 };

/// Workload W06: 10 ops of 16 bytes of class high and as many of low, and a pass of 10 ops and 160
/// bytes. An eighth of the budget is 20 bytes, of which high gets four at a visit and low one.
#[test]
fn w06_five_high_one_low_four_high() {
    let mut stock = Stock::new(&POLICY, SHAPE, 20);
    for class in [High, Low] {
        (0..10).for_each(|_| stock.add(Want::of(class, 16), 0));
    }
    stock.scheduler.begin(10, 160);
    let taken: Vec<Class> = std::iter::from_fn(|| stock.next()).collect();
    let must = [[High; 5].as_slice(), &[Low], &[High; 4]].concat();
    assert_eq!(taken, must);
}
