//! Whatever the mode: all that is queued is served, each op once, also what was parked or capped.

use crate::abi::Class;
use crate::random::Random;
use crate::sched::{Mode, Policy, Shape};
use crate::seeds::each_seed;

use super::stock::{Stock, Want};

const SESSIONS: u32 = 5;
const LINES: [u16; 3] = [0, 1, 2];

fn want(random: &mut Random) -> Want {
    Want {
        class: random.pick(&Class::ALL),
        origin: u8::from(random.below(4) == 0),
        session: random.below32(SESSIONS),
        line: random.pick(&LINES),
        bytes: 1 << random.below(20),
    }
}

#[test]
fn nothing_is_left_behind() {
    each_seed(40, |seed| {
        for mode in Mode::ALL {
            let policy = Policy { mode, aging_ns: [seed % 2 * 50, 70], ..Policy::DEFAULT };
            let shape = Shape { sessions: SESSIONS, peers: 3, window_bytes: 1 << 20 };
            drain(&mut Stock::new(&policy, shape, 64), &mut Random::new(seed));
        }
    });
}

fn drain(stock: &mut Stock, random: &mut Random) {
    let mut queued = 0;
    for now_ns in 0..1_000 {
        let scheduler = &mut stock.scheduler;
        scheduler.begin(u32::MAX, 1 << 30);
        let first = scheduler.first(&stock.ledger);
        assert_eq!(first, scheduler.first(&stock.ledger));
        match (random.below(10), first) {
            (0..5, _) if queued < 64 => {
                let want = want(random);
                stock.add(want, now_ns);
                queued += 1;
            }
            (5, Some(slot)) => scheduler.park(&stock.ledger, slot),
            (6, _) => scheduler.unpark(random.pick(&LINES)),
            (7, _) => {
                let owner = random.below32(SESSIONS);
                if random.below(2) == 0 { scheduler.cap(owner) } else { scheduler.uncap(owner) }
            }
            (8, _) => scheduler.age(&mut stock.ledger, now_ns, 100),
            (_, Some(slot)) => {
                stock.serve(slot);
                queued -= 1;
            }
            _ => {}
        }
        assert_eq!(stock.scheduler.is_empty(), queued == 0);
        assert_eq!(stock.ledger.open_count(), queued);
    }
    LINES.into_iter().for_each(|line| stock.scheduler.unpark(line));
    (0..SESSIONS).for_each(|owner| stock.scheduler.uncap(owner));
    for _ in 0..queued {
        stock.scheduler.begin(u32::MAX, 1 << 30);
        assert!(stock.next().is_some());
    }
    assert!(stock.scheduler.is_empty() && stock.scheduler.first(&stock.ledger).is_none());
}
