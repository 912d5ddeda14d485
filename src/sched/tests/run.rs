//! Ops that are queued as a whole are told the same as if they had come one by one. That they are
//! served alike is in `orders`.

use crate::abi::Class;
use crate::random::Random;
use crate::sched::{Mode, Policy, Run, Shape};
use crate::seeds::each_seed;

use super::stock::{Stock, Want};

#[test]
fn what_is_queued_as_a_whole_waits_for_what_it_would_have_waited_for() {
    const RECORDS: u32 = 64;
    let shape = Shape { sessions: 3, peers: 2, window_bytes: 1_000 };
    each_seed(100, |seed| {
        for mode in Mode::ALL {
            let mut random = Random::new(seed);
            let policy = Policy { mode, ..Policy::DEFAULT };
            let mut singly = Stock::new(&policy, shape, RECORDS);
            let mut whole = Stock::new(&policy, shape, RECORDS);
            for _ in 0..6 {
                let (session, line) = (random.below32(3), random.pick(&[0, 1]));
                let mut run = Run::EMPTY;
                for _ in 0..random.below(9) {
                    let class = random.pick(&Class::ALL);
                    let want = Want { class, origin: 0, session, line, bytes: 1 };
                    let slot = singly.push(want, 0);
                    assert_eq!(whole.open(want, 0), slot);
                    run.push(&mut whole.scheduler, &mut whole.ledger, slot);
                }
                run.end(&mut whole.scheduler, &mut whole.ledger);
                for slot in 0..RECORDS {
                    assert_eq!(whole.ledger[slot].wait, singly.ledger[slot].wait, "{mode:?}");
                }
            }
        }
    });
}
