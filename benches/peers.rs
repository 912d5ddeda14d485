//! What does a turn cost an engine that is joined to many others? A hub works with one peer, or
//! with none, beside so many that are idle, over simulated queue pairs.
//!
//! A number that grows to the right means that a turn looks at peers that it has nothing to do
//! with. The simulated device is in all of them, so that they are not those of a real one; what
//! counts is that they are equal. Instructions are compared in `tests/turns.rs`.
#![allow(missing_docs, reason = "a benchmark's functions are named for its report")]

use std::cell::RefCell;

use divan::Bencher;
use verbring::sim::Idle;

fn main() {
    divan::main();
}

const IDLE: [u16; 5] = [0, 1, 8, 31, 61];

/// A turn with nothing to do.
#[divan::bench(args = IDLE)]
fn rest(bencher: Bencher<'_, '_>, idle: u16) {
    let mut hub = Idle::new(idle);
    bencher.bench_local(|| hub.turn());
}

/// A turn that takes four WRITEs to one peer, and posts them.
#[divan::bench(args = IDLE, sample_size = 1, sample_count = 2_000)]
fn post(bencher: Bencher<'_, '_>, idle: u16) {
    let hub = RefCell::new(Idle::new(idle));
    hub.borrow_mut().push(OPS);
    let prepare = || {
        let mut hub = hub.borrow_mut();
        hub.finish(OPS);
        hub.push(OPS);
    };
    bencher.with_inputs(prepare).bench_local_values(|()| hub.borrow_mut().turn());
}

/// WRITEs at a time.
const OPS: u32 = 4;
