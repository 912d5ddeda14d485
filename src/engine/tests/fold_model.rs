//! Folding against a reference: a queue of groups, one of which is in the fabric at a time.
//!
//! One ring, one class, a window of one request: what is queued goes in order, so that the
//! reference knows at every moment what is posted, what may be folded into what, and who is told
//! what when something completes or is taken back.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::cancel::held_under;
use super::fold::{counter, outcomes};
use super::script::{BROKEN, Script, Stage};
use super::world::{LIMITS, Pair, SENDER};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_COALESCED, Counter, Cqe, Opcode, SQE_COALESCE, SQE_SUPERSEDE, Sqe, errno,
};
use crate::engine::{Limits, Reply};
use crate::fold::FOLDED_MAX;
use crate::seeds::property;

/// What an op is, as far as folding is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    flags: u16,
    opcode: Opcode,
    place: u64,
    from: u64,
}

/// Ops that end together: the one that is carried out, and those folded into it.
#[derive(Clone, Debug)]
struct Group {
    key: Key,
    survivor: u64,
    folded: Vec<u64>,
}

/// How an op ended: `res`, and whether another one was carried out for it.
type Told = (i32, Option<u64>);

#[derive(Debug, Default)]
struct Reference {
    queue: VecDeque<Group>,
    posted: Option<Group>,
    told: BTreeMap<u64, Told>,
    outcomes: [u64; 6],
    superseded: u64,
}

impl Reference {
    fn push(&mut self, number: u64, key: Key) {
        let same_place = |other: &Key| {
            (other.flags, other.opcode, other.place) == (key.flags, key.opcode, key.place)
        };
        if key.flags == SQE_SUPERSEDE
            && let Some(group) = self.queue.iter_mut().find(|group| same_place(&group.key))
        {
            group.folded.push(group.survivor);
            (group.survivor, group.key) = (number, key);
            self.superseded += 1;
            return;
        }
        if key.flags == SQE_COALESCE {
            let room = |group: &&mut Group| group.folded.len() < FOLDED_MAX as usize;
            let mut same = self.queue.iter_mut().filter(|group| group.key == key);
            if let Some(group) = same.find(room) {
                group.folded.push(number);
                self.outcomes[0] += 1;
                return;
            }
            let mut queued = self.queue.iter().filter(|group| group.key != key);
            let at = if self.posted.as_ref().is_some_and(|group| group.key == key) {
                5
            } else if queued.any(|group| same_place(&group.key)) {
                4
            } else {
                1
            };
            self.outcomes[at] += 1;
        }
        self.queue.push_back(Group { key, survivor: number, folded: Vec::new() });
    }

    fn post(&mut self) {
        if self.posted.is_none() {
            self.posted = self.queue.pop_front();
        }
    }

    fn complete(&mut self, res: i32) {
        if let Some(group) = self.posted.take() {
            self.told.insert(group.survivor, (res, None));
            for number in group.folded {
                self.told.insert(number, (res, Some(group.survivor)));
            }
        }
    }

    /// True if it was queued.
    fn cancel(&mut self, number: u64) -> bool {
        let within = |group: &Group| group.survivor == number || group.folded.contains(&number);
        let Some(at) = self.queue.iter().position(within) else { return false };
        let group = &mut self.queue[at];
        if group.survivor != number {
            group.folded.retain(|folded| *folded != number);
        } else if let Some(heir) = group.folded.pop() {
            group.survivor = heir;
        } else {
            self.queue.remove(at);
        }
        self.told.insert(number, (-errno::ECANCELED, None));
        true
    }
}

/// An engine, and who ended how.
struct Real {
    stage: Stage,
    pair: Pair<Script>,
    cqes: BTreeMap<u64, Cqe>,
    keys: Vec<Key>,
}

impl Real {
    fn turn(&mut self) {
        self.pair.world.turn();
        for cqe in self.pair.world.pop(SENDER) {
            assert!(self.cqes.insert(cqe.user_data, cqe).is_none(), "a second CQE");
        }
    }

    fn push(&mut self, key: Key) -> u64 {
        self.keys.push(key);
        let from = key.from * 64;
        let sqe = Sqe {
            flags: key.flags,
            remote_offset: 4096 + key.place * 64,
            ..self.pair.op(key.opcode, from, 64)
        };
        self.pair.world.push(SENDER, sqe)
    }

    fn told(&self) -> BTreeMap<u64, Told> {
        let alone = self.cqes.values().filter(|cqe| cqe.flags & CQE_COALESCED == 0);
        let survivors: BTreeMap<u64, u64> = alone.map(|cqe| (cqe.record, cqe.user_data)).collect();
        let told = |(number, cqe): (&u64, &Cqe)| {
            let folded = cqe.flags & CQE_COALESCED != 0;
            (*number, (cqe.res, folded.then(|| survivors[&cqe.record])))
        };
        self.cqes.iter().map(told).collect()
    }
}

fn key(kind: u8, place: u64, from: u64) -> Key {
    let (flags, opcode) = match kind {
        0 => (0, Opcode::Write),
        1 => (SQE_COALESCE, Opcode::Read),
        2 | 3 => (SQE_SUPERSEDE, Opcode::Write),
        _ => (SQE_COALESCE, Opcode::Write),
    };
    Key { flags, opcode, place, from }
}

proptest! {
    #![proptest_config(property(200))]

    #[test]
    fn groups_are_those_of_an_obvious_reference(
        steps in proptest::collection::vec((0..16u8, 0..8u8, 0..3u64, 0..3u64), 1..250),
        places in 1..=3u64,
    ) {
        let limits = Limits { window_wrs: 1, ..LIMITS };
        let (stage, pair) = held_under(limits, 128);
        let mut real = Real { stage, pair, cqes: BTreeMap::new(), keys: Vec::new() };
        let mut reference = Reference::default();
        for (step, kind, place, from) in steps {
            match step {
                0..10 if real.keys.len() - real.cqes.len() < 100 => {
                    let key = key(kind, place % places, from);
                    let number = real.push(key);
                    reference.push(number, key);
                }
                10..12 => {
                    let number = real.keys.len() as u64 * (u64::from(kind) + 1) / 9;
                    let token = real.pair.world.query(SENDER, CANCEL_BY_NUMBER, number, true);
                    let expected = reference.cancel(number);
                    real.turn();
                    let reply = real.pair.world.reply(token);
                    prop_assert_eq!(expected, matches!(reply, Some(Reply::Cancelled { .. })));
                    reference.post();
                    continue;
                }
                _ if real.stage.held() > 0 => {
                    let errno = if kind == 0 { BROKEN } else { 0 };
                    real.stage.complete(0, errno);
                    reference.complete(if errno == 0 { 64 } else { -errno });
                }
                _ => {}
            }
            reference.post();
            real.turn();
            prop_assert_eq!(&real.told(), &reference.told);
            prop_assert_eq!(outcomes(&real.pair), reference.outcomes);
            prop_assert_eq!(counter(&real.pair, Counter::Superseded), reference.superseded);
        }
        while reference.posted.is_some() {
            real.stage.complete(0, 0);
            reference.complete(64);
            reference.post();
            real.turn();
        }
        prop_assert_eq!(&real.told(), &reference.told);
        prop_assert_eq!(real.cqes.len(), real.keys.len());
        let attempts = real.keys.iter().filter(|key| key.flags == SQE_COALESCE).count();
        prop_assert_eq!(reference.outcomes.iter().sum::<u64>(), attempts as u64);
        real.pair.world.expect_rest();
    }
}
