//! The scheduler against the reference: random workloads, equal orders, in every mode.
//!
//! `VERBRING_PICKS=1000000 cargo test --lib orders` makes that many picks; without, a tenth.

use crate::abi::Class;
use crate::random::Random;
use crate::sched::{Mode, Place, Policy, Run, Shape};
use crate::seeds::each_seed;

use super::reference::{Item, Reference};
use super::stock::{Stock, Want};

const RECORDS: usize = 24;
const PICKS_PER_WORLD: u64 = 250;

/// A scheduler, its reference, and what they are asked.
struct World {
    stock: Stock,
    reference: Reference,
    random: Random,
    policy: Policy,
    shape: Shape,
    slice_bytes: u32,
    uids: u32,
    now_ns: u64,
    picks: u64,
}

#[test]
fn orders_are_those_of_the_reference() {
    let picks = std::env::var("VERBRING_PICKS").map_or(100_000, |text| text.parse().unwrap());
    let modes = Mode::ALL.len() as u64;
    each_seed(picks / PICKS_PER_WORLD / modes, |seed| {
        for mode in Mode::ALL {
            let mut world = World::new(mode, seed);
            while world.picks < PICKS_PER_WORLD {
                world.step();
                if mode == Mode::Tent {
                    world.pass()
                } else {
                    world.pick()
                }
                world.compare();
            }
        }
    });
}

impl World {
    fn new(mode: Mode, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let ageing = random.chance(50);
        let aging_ns = if ageing { [random.below(60), random.below(90)] } else { [0; 2] };
        let weight = |random: &mut Random| 1 + u8::try_from(random.below(7)).unwrap();
        let policy = Policy {
            mode,
            weights: [weight(&mut random), weight(&mut random), weight(&mut random)],
            floor_bytes: random.pick(&[0, 1, 100, 4_096]),
            min_share: random.pick(&[[0; 3], [0, 10, 10], [100, 150, 250], [0, 200, 0]]),
            aging_ns,
            ..Policy::DEFAULT
        };
        let shape = Shape {
            sessions: 1 + random.below32(7),
            peers: random.pick(&[1, 1, 2, 5]),
            window_bytes: random.pick(&[0, 10_000, 1_000_000]),
        };
        let mut world = Self {
            stock: Stock::new(&policy, shape, u32::try_from(RECORDS).unwrap()),
            reference: Reference::new(&policy, shape),
            slice_bytes: random.pick(&[64, 1_000, 100_000]),
            uids: 1 + random.below32(shape.sessions),
            random,
            policy,
            shape,
            now_ns: 0,
            picks: 0,
        };
        (0..shape.sessions).for_each(|session| world.adopt(session));
        world
    }

    fn adopt(&mut self, session: u32) {
        if self.reference.items().iter().any(|item| item.session == session) {
            return;
        }
        let uid = 1_000 + self.random.below32(self.uids);
        let weight = 1 + u8::try_from(uid % 3).unwrap();
        self.stock.scheduler.adopt(crate::ids::SessionId(session), uid, weight);
        self.reference.adopt(session, uid, weight);
    }

    /// Something happens to what is queued.
    fn step(&mut self) {
        self.now_ns += self.random.below(3);
        match self.random.below(16) {
            0..4 => self.push(),
            4..6 => self.push_run(),
            6 => self.drop_any(),
            7 => self.park(),
            8 => {
                let line = u16::try_from(self.random.below(self.shape.peers.into())).unwrap();
                self.stock.scheduler.unpark(line);
                self.reference.unpark(line);
            }
            9 => self.cap(),
            10 => self.age(),
            11 => {
                let session = self.random.below32(self.shape.sessions);
                self.adopt(session);
            }
            12 => self.requeue(),
            _ => {}
        }
    }

    fn push(&mut self) {
        for _ in 0..1 + self.random.below(4) {
            if self.reference.len() == RECORDS {
                return;
            }
            let want = Want {
                class: self.random.pick(&Class::ALL),
                origin: u8::from(self.random.chance(25)),
                session: self.random.below32(self.shape.sessions),
                line: u16::try_from(self.random.below(self.shape.peers.into())).unwrap(),
                bytes: self.random.below32(1 << self.random.clone().below(18)),
            };
            let slot = self.stock.push(want, self.now_ns);
            self.reference.push(self.item(slot), false);
        }
    }

    /// Users' ops of one session and line, queued as a whole: as if they had come one by one.
    fn push_run(&mut self) {
        let session = self.random.below32(self.shape.sessions);
        let line = u16::try_from(self.random.below(self.shape.peers.into())).unwrap();
        let (mut run, mut slots) = (Run::EMPTY, Vec::new());
        for _ in 0..1 + self.random.below(6) {
            if self.reference.len() + slots.len() == RECORDS {
                break;
            }
            let class = self.random.pick(&Class::ALL);
            let bytes = self.random.below32(1 << self.random.clone().below(18));
            let want = Want { class, origin: 0, session, line, bytes };
            let slot = self.stock.open(want, self.now_ns);
            run.push(&mut self.stock.scheduler, &mut self.stock.ledger, slot);
            slots.push(slot);
        }
        run.end(&mut self.stock.scheduler, &mut self.stock.ledger);
        for slot in slots {
            self.reference.push(self.item(slot), false);
        }
    }

    fn item(&self, slot: u32) -> Item {
        let record = &self.stock.ledger[slot];
        Item {
            slot,
            class: record.op.class,
            aged: record.aged,
            origin: record.origin,
            session: record.session.0,
            line: record.line,
            bytes: record.op.bytes,
            sequence: record.sequence,
            taken_ns: record.taken_ns,
        }
    }

    fn any(&mut self) -> Option<u32> {
        let items = self.reference.items();
        (!items.is_empty()).then(|| items[self.random.index(items.len())].slot)
    }

    fn drop_any(&mut self) {
        if let Some(slot) = self.any() {
            self.stock.drop(slot);
            self.reference.remove(slot);
        }
    }

    /// Any op goes out, and back to the front of its flow.
    fn requeue(&mut self) {
        let Some(slot) = self.any() else { return };
        let Stock { ledger, scheduler, .. } = &mut self.stock;
        scheduler.remove(ledger, slot);
        scheduler.push_front(ledger, slot);
        let item = self.reference.item(slot);
        self.reference.remove(slot);
        self.reference.push(item, true);
    }

    fn park(&mut self) {
        if let Some(slot) = self.any() {
            self.stock.scheduler.park(&self.stock.ledger, slot);
            self.reference.park(slot);
        }
    }

    fn cap(&mut self) {
        let session = self.random.below32(self.shape.sessions);
        let uid = self.reference.uids[session as usize];
        if self.random.chance(40) {
            self.stock.scheduler.cap(uid);
            self.reference.set_cap(uid, true);
        } else {
            for uid in self.reference.capped.clone() {
                self.stock.scheduler.uncap(uid);
                self.reference.set_cap(uid, false);
            }
        }
    }

    /// Flows are looked at in any order; what ages was due, and in the end nothing is left that is.
    fn age(&mut self) {
        if matches!(self.policy.mode, Mode::Fifo | Mode::Direct) {
            return;
        }
        for _ in 0..500 {
            self.stock.scheduler.age(&mut self.stock.ledger, self.now_ns, 1);
            let items = self.reference.items().iter();
            let new = |item: &&Item| self.stock.ledger[item.slot].aged && !item.aged;
            let Some(slot) = items.clone().find(new).map(|item| item.slot) else { continue };
            assert!(self.reference.due(self.now_ns, self.policy.aging_ns).contains(&slot));
            self.reference.age(slot);
        }
        assert_eq!(self.reference.due(self.now_ns, self.policy.aging_ns), [0; 0]);
    }

    /// A class is in turn; the op to serve of it is served a slice.
    fn pick(&mut self) {
        let elsewhere = if self.random.chance(10) { 1 << self.random.below(3) } else { 0 };
        let Stock { ledger, scheduler, .. } = &mut self.stock;
        let class = scheduler.class(ledger, elsewhere);
        assert_eq!(class, self.reference.class(elsewhere));
        let Some(class) = class else { return };
        for class in Class::ALL {
            let slot = scheduler.first_of(ledger, class);
            assert_eq!(slot, self.reference.first_of(class));
        }
        self.picks += 1;
        let bytes = self.random.below32(self.slice_bytes);
        let Some(slot) = self.stock.scheduler.first_of(&self.stock.ledger, class) else {
            let Some(slot) = self.any() else { return };
            let item = self.reference.item(slot);
            self.stock.scheduler.charge_aside(&self.stock.ledger, slot, bytes);
            let class = if item.aged { Class::High } else { item.class };
            self.reference.charge_aside(class, bytes);
            return;
        };
        self.beside(slot);
        self.serve(slot);
    }

    fn beside(&mut self, slot: u32) {
        let (ledger, slice) = (&self.stock.ledger, self.slice_bytes);
        let room = self.random.below(2 * u64::from(slice));
        let fits = |slot: u32| {
            let record = &ledger[slot];
            u64::from(slice.min(record.op.bytes - record.cursor)) <= room
        };
        let found = self.stock.scheduler.beside(ledger, slot, room, slice);
        assert_eq!(found, self.reference.beside(slot, fits));
    }

    /// Posts a slice, that may be refused.
    fn serve(&mut self, slot: u32) {
        let Stock { ledger, scheduler, .. } = &mut self.stock;
        let record = &mut ledger[slot];
        let bytes = self.slice_bytes.min(record.op.bytes - record.cursor);
        record.cursor += bytes;
        let whole = record.cursor == record.op.bytes;
        scheduler.charge(ledger, slot, bytes);
        self.reference.charge(slot, bytes);
        let item = self.reference.item(slot);
        if whole {
            scheduler.remove(ledger, slot);
            self.reference.remove(slot);
        }
        if self.random.chance(90) {
            if whole {
                ledger.close(slot);
            }
            return;
        }
        ledger[slot].cursor -= bytes;
        if whole {
            scheduler.push_front(ledger, slot);
            self.reference.push(item, true);
        }
        scheduler.refund(ledger, slot, bytes);
        self.reference.refund(slot, bytes);
    }

    /// A pass in mode tent takes what the one function takes, in that order.
    fn pass(&mut self) {
        let ops = 1 + self.random.below32(16);
        let bytes = self.random.below(1 << self.random.clone().below(20));
        self.stock.scheduler.begin(ops, bytes);
        for slot in self.reference.pick(ops, bytes) {
            assert_eq!(self.stock.scheduler.first(&self.stock.ledger), Some(slot));
            self.stock.serve(slot);
            self.picks += 1;
        }
        assert_eq!(self.stock.scheduler.first(&self.stock.ledger), None);
        self.picks += 1;
    }

    fn compare(&mut self) {
        let Stock { ledger, scheduler, .. } = &mut self.stock;
        assert_eq!(scheduler.queued(), self.reference.queued());
        assert_eq!(scheduler.parked(), self.reference.parked());
        assert_eq!(scheduler.is_empty(), self.reference.len() == 0);
        for line in 0..self.shape.peers {
            let any = scheduler.any(line);
            assert_eq!(any.is_some(), self.reference.queued() >> line & 1 == 1);
            assert!(any.is_none_or(|slot| self.reference.item(slot).line == line));
        }
        if self.policy.mode != Mode::Tent {
            assert_eq!(scheduler.class(ledger, 0), self.reference.class(0));
            let first = scheduler.first(ledger);
            let class = self.reference.class(0);
            assert_eq!(first, class.and_then(|class| self.reference.first_of(class)));
        }
        let Some(slot) = self.any() else { return };
        let place = self.stock.scheduler.place(&self.stock.ledger, slot);
        let must: Place = self.reference.place(slot, self.stock.ledger[slot].wait);
        assert_eq!(place, must);
    }
}
