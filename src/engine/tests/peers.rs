//! Ops between two engines: bytes, atomics and notifications, both ways, against a model; through
//! queue pairs that fail; and what one rail's trouble may not do to others.

use super::two::{BYTES, CONFIG, ME, Two, add, rails_of, transfer};
use super::world::{LIMITS, arm, cancel, failed, outcome};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_FLUSHED, CQE_MAYBE_DONE, CQE_NOTIFY, CQE_RETRYABLE, Class, Cqe, Detail,
    FABRIC_LOCAL, FABRIC_VERBS, Opcode, Page, RIGHT_READ, RIGHT_WRITE, RIGHTS_ALL, SQE_NOTIFY,
    STATE_QUEUED, Sqe, WAIT_CREDIT, WAIT_RAIL, errno,
};
use crate::engine::{Limits, Reply, Wind};
use crate::fabric::qp::provider::{WcStatus, WrVerb};
use crate::fabric::qp::sim::{PostPlan, Say, WorkPlan};
use crate::fabric::qp::{Config, RailState};
use crate::ids::RegionId;
use crate::seeds::{Random, each_seed};

const ALL_ON_1: [u16; 3] = [1; 3];

/// Side 0 with a region of its own and an import of side 1's.
struct Route {
    two: Two,
    ids: (RegionId, RegionId),
    target: RegionId,
}

fn route(two: Two) -> Route {
    route_by(two, ALL_ON_1)
}

fn route_by(mut two: Two, rails: [u16; 3]) -> Route {
    let near = two.region(0);
    let target = two.region(1);
    let far = two.offer(1, target, RIGHTS_ALL, rails);
    Route { two, ids: (near, far), target }
}

fn carried(rail: u16) -> u16 {
    u16::from(FABRIC_VERBS) << 8 | rail
}

const MOVES: [Opcode; 4] = [Opcode::Write, Opcode::Read, Opcode::FetchAdd, Opcode::CmpSwap];
const CELL: u64 = 2048;
const CELLS: u64 = BYTES / CELL;

/// Both sides' regions, and what they must hold.
struct Model {
    /// By side: the region it works from, its import of the other's, and the region it offers.
    near: [RegionId; 2],
    far: [RegionId; 2],
    offered: [RegionId; 2],
    near_bytes: [Vec<u8>; 2],
    offered_bytes: [Vec<u8>; 2],
}

/// What was asked for in one cell.
#[derive(Clone, Copy, Debug)]
struct Asked {
    opcode: Opcode,
    side: usize,
    at: usize,
    bytes: u32,
    arg: [u64; 2],
    notify: bool,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Model {
    fn new(two: &mut Two, rails: [u16; 3]) -> Self {
        let near = [0, 1].map(|side| two.region(side));
        let offered = [0, 1].map(|side| two.region(side));
        let far = [0, 1].map(|side| two.offer(1 - side, offered[1 - side], RIGHTS_ALL, rails));
        let bytes = |ids: [RegionId; 2]| [0, 1].map(|side| two.worlds[side].bytes(ids[side]));
        let (near_bytes, offered_bytes) = (bytes(near), bytes(offered));
        Self { near, far, offered, near_bytes, offered_bytes }
    }

    fn ask(&self, random: &mut Random, side: usize, cell: u64) -> (Asked, Sqe) {
        let opcode = random.pick(&MOVES);
        let atomic = matches!(opcode, Opcode::FetchAdd | Opcode::CmpSwap);
        let bytes = if atomic { 8 } else { random.below32(1025) };
        let at = cell * CELL;
        let notify = random.chance(40);
        let offset = usize::try_from(at).unwrap();
        let found = word(&self.offered_bytes[1 - side], offset);
        let guess = if random.chance(50) { found } else { 7 };
        let arg = match opcode {
            Opcode::FetchAdd => [u64::from(random.below32(1000)), 0],
            Opcode::CmpSwap => [guess, 99],
            _ => [0; 2],
        };
        let flags = if notify { SQE_NOTIFY } else { 0 };
        let immediate = if notify { u32::try_from(cell).unwrap() } else { 0 };
        let class = 1 + u8::try_from(random.below32(3)).unwrap();
        let ids = (self.near[side], self.far[side]);
        let length = if atomic { 0 } else { bytes };
        let sqe = transfer(opcode, ids, at, length);
        let sqe = Sqe { arg, flags, immediate, class, user_data: 1 + cell, ..sqe };
        (Asked { opcode, side, at: offset, bytes, arg, notify }, sqe)
    }

    /// Carries out what succeeded.
    fn carry_out(&mut self, asked: &Asked) {
        let range = asked.at..asked.at + asked.bytes as usize;
        let near = &mut self.near_bytes[asked.side];
        let far = &mut self.offered_bytes[1 - asked.side];
        let old = word(far, asked.at);
        match asked.opcode {
            Opcode::Write => far[range.clone()].copy_from_slice(&near[range]),
            Opcode::Read => near[range.clone()].copy_from_slice(&far[range]),
            _ => {
                near[asked.at..asked.at + 8].copy_from_slice(&old.to_le_bytes());
                let new = match asked.opcode {
                    Opcode::FetchAdd => old.wrapping_add(asked.arg[0]),
                    _ if old == asked.arg[0] => asked.arg[1],
                    _ => old,
                };
                far[asked.at..asked.at + 8].copy_from_slice(&new.to_le_bytes());
            }
        }
    }

    /// Takes a cell as it is: it is not known what a failed op did there.
    fn look_again(&mut self, two: &Two, asked: &Asked) {
        let cell = asked.at..asked.at + usize::try_from(CELL).unwrap();
        let (side, peer) = (asked.side, 1 - asked.side);
        let near = two.worlds[side].bytes(self.near[side]);
        let far = two.worlds[peer].bytes(self.offered[peer]);
        self.near_bytes[side][cell.clone()].copy_from_slice(&near[cell.clone()]);
        self.offered_bytes[peer][cell.clone()].copy_from_slice(&far[cell]);
    }

    /// Believes a final CQE, if it is one that can be.
    fn judge(&mut self, two: &Two, asked: &Asked, cqe: &Cqe, tally: &mut Tally) {
        let (peer, told) = (1 - asked.side, i32::from(asked.notify));
        if cqe.res >= 0 {
            assert_eq!(cqe.res, i32::try_from(asked.bytes).unwrap(), "{asked:?}");
            assert_eq!(cqe.detail >> 8, u16::from(FABRIC_VERBS), "{cqe:?}");
            self.carry_out(asked);
            tally.least[peer] += told;
            tally.most[peer] += told;
            return;
        }
        let has = |flag| cqe.flags & flag != 0;
        assert!(has(CQE_FLUSHED), "{cqe:?} {asked:?}");
        assert!(has(CQE_MAYBE_DONE) != has(CQE_RETRYABLE), "{cqe:?}");
        tally.most[peer] += if has(CQE_MAYBE_DONE) { told } else { 0 };
        self.look_again(two, asked);
    }

    fn compare(&self, two: &Two) {
        for side in 0..2 {
            assert!(two.worlds[side].bytes(self.near[side]) == self.near_bytes[side], "near");
            let offered = two.worlds[side].bytes(self.offered[side]);
            assert!(offered == self.offered_bytes[side], "offered by {side}");
        }
    }
}

/// Batches of ops from both sides on cells of their own; `trouble` strikes while they are under
/// way. Every op has one CQE; what succeeded is done, and its notification was counted.
fn play(seed: u64, rails: u16, trouble: impl Fn(&mut Two, &mut Random)) {
    let mut random = Random::new(seed);
    let mut two = Two::new(rails);
    two.bound_high(&mut random);
    let by_class = [1, 1 + 1 % rails, 1 + 2 % rails];
    let mut model = Model::new(&mut two, by_class);
    let mut tally = Tally::default();
    for _ in 0..12 {
        for side in 0..2 {
            two.push(side, Sqe { user_data: u64::MAX, ..arm(model.offered[side], 16) });
        }
        let mut batch: Vec<Option<Asked>> = Vec::new();
        for cell in 0..CELLS {
            let side = random.index(2);
            let asked = random.chance(60).then(|| {
                let (asked, sqe) = model.ask(&mut random, side, cell);
                two.push(side, sqe);
                asked
            });
            batch.push(asked);
            if random.chance(20) {
                two.step();
            }
        }
        trouble(&mut two, &mut random);
        two.settle();
        let mut ended = 0;
        for side in 0..2 {
            for cqe in two.pop(side) {
                if cqe.flags & CQE_NOTIFY != 0 {
                    tally.told[side] += cqe.res;
                    continue;
                }
                ended += 1;
                let asked = batch_of(&batch, &cqe).unwrap();
                assert_eq!(asked.side, side);
                assert!(cqe.res < 0 || by_class.contains(&(cqe.detail & 0xff)), "{cqe:?}");
                model.judge(&two, &asked, &cqe, &mut tally);
            }
        }
        assert_eq!(ended, batch.iter().flatten().count(), "one CQE for each");
        model.compare(&two);
        tally.compare(&two, &model);
        for side in 0..2 {
            end_arms(&mut two, side, model.offered[side]);
        }
    }
    for side in 0..2 {
        assert_eq!(two.worlds[side].engine.strays(), 0);
    }
    two.expect_rest();
}

/// Notifications by the side that hears them: told, and how many there must and may be.
#[derive(Default)]
struct Tally {
    told: [i32; 2],
    least: [i32; 2],
    most: [i32; 2],
}

impl Tally {
    fn compare(&self, two: &Two, model: &Model) {
        for side in 0..2 {
            let region = model.offered[side].index() as usize;
            let merged = two.worlds[side].engine.regions[region].pending;
            let all = self.told[side] + i32::try_from(merged).unwrap();
            assert!((self.least[side]..=self.most[side]).contains(&all), "notifications");
        }
    }
}

/// Takes back the ARMs that were not used up: they make room for those of the next round.
fn end_arms(two: &mut Two, side: usize, region: RegionId) {
    while let Some(slot) = arm_of(two, side, region) {
        let number = two.worlds[side].engine.ledger[slot].number;
        let sqe = Sqe { user_data: u64::MAX, ..cancel(CANCEL_BY_NUMBER, number) };
        two.push(side, sqe);
        two.settle();
        two.pop(side);
    }
}

fn batch_of(batch: &[Option<Asked>], cqe: &Cqe) -> Option<Asked> {
    let cell = usize::try_from(cqe.user_data.checked_sub(1)?).ok()?;
    batch.get(cell).copied().flatten()
}

fn arm_of(two: &Two, side: usize, region: RegionId) -> Option<u32> {
    let arms = two.worlds[side].engine.regions[region.index() as usize].arms;
    (!arms.is_empty()).then(|| arms.head())
}

#[test]
fn bytes_atomics_and_notifications_go_both_ways() {
    each_seed(40, |seed| play(seed, 1 + u16::try_from(seed % 3).unwrap(), |_, _| {}));
}

#[test]
fn through_queue_pairs_that_fail_the_truth_is_told() {
    each_seed(60, |seed| {
        let rails = 1 + u16::try_from(seed % 3).unwrap();
        play(seed, rails, |two, random| {
            for _ in 0..random.below32(3) {
                two.steps(random.below32(12));
                let rail = 1 + u16::try_from(random.index(usize::from(rails))).unwrap();
                let number = two.join.number(rail, random.index(2));
                two.net.break_pair(number);
            }
        });
    });
}

#[test]
fn a_success_says_which_fabric_and_rail_carried_it() {
    let Route { mut two, ids, .. } = route_by(Two::new(3), [1, 2, 3]);
    for (class, rail) in Class::ALL.into_iter().zip(1..) {
        let sqe = Sqe { class: class as u8, ..transfer(Opcode::Write, ids, 0, 700) };
        let cqe = two.run(0, sqe);
        assert_eq!(outcome(&cqe), (700, 0, carried(rail)));
        assert!(!two.net.posted(two.join.number(rail, 0)).is_empty());
    }
    let own = two.worlds[0].import(crate::ids::SessionId(0), ids.0);
    let sqe = Sqe { remote_offset: 4096, ..transfer(Opcode::Write, (ids.0, own), 0, 9) };
    let cqe = two.run(0, sqe);
    assert_eq!(outcome(&cqe), (9, 0, u16::from(FABRIC_LOCAL) << 8));
    two.expect_rest();
}

#[test]
fn page_lists_go_by_rails() {
    let Route { mut two, ids, target } = route(Two::new(1));
    let pages: Vec<Page> =
        (0..100).map(|at| Page { local_offset: at * 64, remote_offset: (99 - at) * 64 }).collect();
    let at = BYTES - 16 * 100;
    two.worlds[0].memory[&ids.0.0].write(at, zerocopy::IntoBytes::as_bytes(&pages[..]));
    for opcode in [Opcode::Writev, Opcode::Readv] {
        let flags = SQE_NOTIFY;
        let sqe = Sqe {
            local_offset: at,
            remote_offset: 0,
            arg: [100 << 32, 0],
            flags,
            immediate: 5,
            ..transfer(opcode, ids, 0, 64)
        };
        assert_eq!(outcome(&two.run(0, sqe)), (6400, 0, carried(1)));
        let (near, far) = (two.worlds[0].bytes(ids.0), two.worlds[1].bytes(target));
        for page in &pages {
            let [from, to] =
                [page.local_offset, page.remote_offset].map(|at| usize::try_from(at).unwrap());
            assert_eq!(near[from..from + 64], far[to..to + 64]);
        }
    }
    assert_eq!(two.worlds[1].engine.regions[target.index() as usize].pending, 2, "once an op");
    two.expect_rest();
}

/// Not before the last byte is in place, however the slices went.
#[test]
fn rule_7_notify_follows_all_bytes_of_its_own_op_at_the_peer() {
    each_seed(40, |seed| {
        let mut random = Random::new(seed);
        let Route { mut two, ids, target } = route(Two::new(1));
        two.bound_high(&mut random);
        two.push(1, arm(target, 16));
        for cell in 0..8 {
            let class = 1 + u8::try_from(random.below32(3)).unwrap();
            let at = u64::from(cell) * 2048;
            let bytes = 300 + random.below32(1700);
            let op = transfer(Opcode::Write, ids, at, bytes);
            two.push(0, Sqe { flags: SQE_NOTIFY, immediate: cell << 16 | bytes, class, ..op });
            two.steps(random.below32(3));
        }
        let breaks = random.chance(50).then(|| random.below32(30));
        let mut heard = 0;
        for step in 0..4_000 {
            two.step();
            if breaks == Some(step) {
                two.net.break_pair(two.join.number(1, random.index(2)));
            }
            for cqe in two.pop(1) {
                let (cell, bytes) = (cqe.queued >> 16, cqe.queued & 0xffff);
                let at = cell as usize * 2048;
                let range = at..at + bytes as usize;
                let (near, far) = (two.worlds[0].bytes(ids.0), two.worlds[1].bytes(target));
                assert!(near[range.clone()] == far[range], "told of {bytes} bytes in {cell}");
                heard += cqe.res;
            }
        }
        let ends = two.pop(0);
        assert_eq!(ends.len(), 8);
        let good = ends.iter().filter(|cqe| cqe.res > 0).count();
        assert!(heard >= i32::try_from(good).unwrap() && heard <= 8, "{heard} of {good}");
    });
}

/// The next posts of a queue pair take so many work requests each, for want of memory.
fn plan_posts(two: &Two, number: u32, takes: &[u32]) {
    for &taken in takes {
        two.net.plan_post(number, PostPlan { taken, say: Say::Right, errno: errno::ENOMEM });
    }
}

/// A slice in the middle is refused, while the last one's notification is not posted yet: it would
/// be repeated, if it did not depend on the others. The owner is not told of an op that failed.
#[test]
fn an_op_that_failed_in_its_middle_notifies_nobody() {
    for opcode in [Opcode::Write, Opcode::Read] {
        let Route { mut two, ids, target } = route(Two::new(1));
        let (status, effect) = (WcStatus::RemoteAccess, false);
        let number = two.join.number(1, 0);
        two.net.plan_work(number, WorkPlan { after: 1, status, effect });
        plan_posts(&two, number, &[4, 0, 0]);
        let sqe = Sqe { flags: SQE_NOTIFY, immediate: 3, ..transfer(opcode, ids, 0, 1000) };
        let cqe = two.run(0, sqe);
        assert_eq!(outcome(&cqe), failed(errno::EACCES, 0, Detail::Wire));
        let pending = two.worlds[1].engine.regions[target.index() as usize].pending;
        assert_eq!(pending, 0, "{opcode:?}");
        two.expect_rest();
    }
}

/// The same when another op came between its slices, so that they are no chain.
#[test]
fn an_op_that_failed_and_was_overtaken_notifies_nobody() {
    let limits = Limits { window_bytes: 4096, ..LIMITS };
    let Route { mut two, ids, target } = route(Two::with(limits, CONFIG, 1));
    let number = two.join.number(1, 0);
    // Of its four slices one is posted, and refused by the peer; meanwhile another op goes first.
    plan_posts(&two, number, &[1]);
    let (status, effect) = (WcStatus::RemoteAccess, false);
    two.net.plan_work(number, WorkPlan { after: 0, status, effect });
    let class = Class::Low as u8;
    let sqe = Sqe { flags: SQE_NOTIFY, class, ..transfer(Opcode::Write, ids, 0, 1000) };
    let failing = two.push(0, Sqe { user_data: 1, ..sqe });
    // Markers move nothing.
    let moved = |two: &Two| -> Vec<u32> {
        let posted = two.net.posted(number);
        posted.iter().map(|wr| wr.bytes).filter(|bytes| *bytes > 0).collect()
    };
    two.step();
    assert_eq!(moved(&two), [256], "the plan struck elsewhere");
    let class = Class::High as u8;
    two.push(0, Sqe { class, user_data: 2, ..transfer(Opcode::Write, ids, 8192, 100) });
    two.step();
    assert_eq!(moved(&two), [256, 100], "a slice left before the first one's end");
    two.settle();
    let mut ends: Vec<_> = two.pop(0).iter().map(|cqe| (cqe.user_data, cqe.res)).collect();
    ends.sort_unstable();
    assert_eq!((failing, ends), (0, vec![(1, -errno::EACCES), (2, 100)]));
    let pending = two.worlds[1].engine.regions[target.index() as usize].pending;
    assert_eq!(pending, 0);
    two.expect_rest();
}

/// What breaks a rail at side 0 and keeps it broken.
fn break_for_good(two: &mut Two, rail: u16) {
    two.served = false;
    two.net.break_pair(two.join.number(rail, 0));
    two.steps(40);
    assert_ne!(two.state(0, rail), RailState::Ready);
}

#[test]
fn a_degraded_rail_parks_its_ops_and_others_go_on() {
    let mut two = Two::new(2);
    let near = two.region(0);
    let targets = [two.region(1), two.region(1)];
    let slow = two.offer(1, targets[0], RIGHTS_ALL, [1; 3]);
    let fast = two.offer(1, targets[1], RIGHTS_ALL, [2; 3]);
    let own = two.worlds[0].import(crate::ids::SessionId(0), near);
    two.push(0, transfer(Opcode::Write, (near, slow), 0, 2000));
    two.step();
    break_for_good(&mut two, 1);
    let parked = 1 + two.push(0, transfer(Opcode::Write, (near, slow), 4096, 300));
    two.push(0, transfer(Opcode::Write, (near, slow), 8192, 300));
    two.push(0, transfer(Opcode::Write, (near, fast), 0, 3000));
    let sqe = Sqe { remote_offset: 16384, ..transfer(Opcode::Write, (near, own), 0, 3000) };
    two.push(0, sqe);
    two.steps(60);
    let cqes = two.pop(0);
    let told: Vec<_> = cqes.iter().map(outcome).collect();
    assert!(told.contains(&(3000, 0, carried(2))), "{told:?}");
    assert!(told.contains(&(3000, 0, u16::from(FABRIC_LOCAL) << 8)), "{told:?}");
    assert_eq!(told.len(), 2);
    for number in [parked - 1, parked] {
        let why = two.why(0, number).unwrap();
        assert_eq!((why.state, why.wait), (STATE_QUEUED, WAIT_RAIL), "{why:?}");
    }
    // Nothing to do but to wait: the engine may sleep, and must look again now and then.
    for _ in 0..3 {
        assert!(!two.worlds[0].turn().worked());
    }
    assert!(two.worlds[0].engine.fall_asleep());
    assert!(two.worlds[0].engine.watches().completions);
    two.served = true;
    two.settle();
    let told: Vec<_> = two.pop(0).iter().map(outcome).collect();
    assert_eq!(told, [(2000, 0, carried(1)), (300, 0, carried(1)), (300, 0, carried(1))]);
    two.expect_rest();
}

#[test]
fn on_a_rail_the_most_urgent_and_oldest_goes_first() {
    let Route { mut two, ids, .. } = route(Two::new(1));
    break_for_good(&mut two, 1);
    for (class, at) in [(3, 0), (2, 1), (3, 2), (1, 3), (2, 4), (1, 5)] {
        let sqe = transfer(Opcode::Write, ids, at * 1024, 8);
        two.push(0, Sqe { class, user_data: 100 + at, ..sqe });
        two.step();
    }
    two.served = true;
    two.settle();
    let order: Vec<_> = two.pop(0).iter().map(|cqe| cqe.user_data - 100).collect();
    assert_eq!(order, [3, 5, 1, 4, 0, 2]);
    two.expect_rest();
}

#[test]
fn a_dead_rail_ends_its_ops_and_no_others() {
    let Route { mut two, ids, .. } = route(Two::new(2));
    let other = two.region(1);
    let alive = two.offer(1, other, RIGHTS_ALL, [2; 3]);
    let flags = CQE_FLUSHED | CQE_RETRYABLE;
    two.net.kill(two.join.number(1, 1));
    two.push(0, transfer(Opcode::Write, ids, 0, 900));
    two.push(0, add(ids, 4096, 1));
    let told = transfer(Opcode::Write, ids, 8192, 8);
    two.push(0, Sqe { flags: SQE_NOTIFY, immediate: 1, ..told });
    two.steps(5);
    two.join.lose(1);
    two.stopped = Some(1);
    two.net.break_pair(two.join.number(1, 0));
    two.settle();
    assert_eq!(two.state(0, 1), RailState::Dead);
    let mut ends: Vec<_> = two.pop(0).iter().map(outcome).collect();
    ends.sort_unstable();
    let gone = |flags| failed(errno::EHOSTDOWN, flags, Detail::Peer);
    let maybe = gone(CQE_FLUSHED | CQE_MAYBE_DONE);
    let mut must = [gone(flags), maybe, maybe];
    must.sort_unstable();
    assert_eq!(ends, must, "what was posted and cannot be repeated may have been done");
    for sqe in [transfer(Opcode::Write, ids, 0, 3000), add(ids, 4096, 1)] {
        assert_eq!(outcome(&two.run(0, sqe)), gone(flags), "later ones were not done");
    }
    two.stopped = None;
    let sqe = transfer(Opcode::Write, (ids.0, alive), 0, 3000);
    assert_eq!(outcome(&two.run(0, sqe)), (3000, 0, carried(2)));
    two.expect_rest();
}

#[test]
fn without_credit_a_notification_waits_and_nothing_else_does() {
    let Route { mut two, ids, target } = route(Two::new(1));
    two.stopped = Some(1);
    let credits = u64::from(CONFIG.receives);
    for at in 0..credits + 2 {
        let sqe = transfer(Opcode::Write, ids, at * 1024, 600);
        two.push(0, Sqe { flags: SQE_NOTIFY, immediate: 1, ..sqe });
    }
    let plain = two.push(0, transfer(Opcode::Write, ids, 32768, 600));
    two.steps(60);
    let ends = two.pop(0);
    assert_eq!(ends.len() as u64, credits + 1, "{ends:?}");
    assert!(ends.iter().any(|cqe| cqe.user_data == plain), "a plain WRITE goes by");
    let why = two.why(0, credits).unwrap();
    assert_eq!(why.wait, WAIT_CREDIT, "{why:?}");
    assert!(!two.worlds[0].turn().worked() && two.worlds[0].engine.fall_asleep());
    two.stopped = None;
    two.settle();
    assert_eq!(two.pop(0).len(), 2);
    let pending = two.worlds[1].engine.regions[target.index() as usize].pending;
    assert_eq!(u64::from(pending), credits + 2);
    two.expect_rest();
}

#[test]
fn parked_ops_are_cancelled_expire_and_are_wound_up() {
    let Route { mut two, ids, .. } = route(Two::new(1));
    break_for_good(&mut two, 1);
    let write = transfer(Opcode::Write, ids, 0, 900);
    let first = two.push(0, write);
    // A deadline of 50 us.
    two.push(0, Sqe { arg: [50, 0], ..write });
    two.push(0, write);
    two.steps(2);
    two.push(0, cancel(CANCEL_BY_NUMBER, first));
    two.steps(2);
    let ends: Vec<_> = two.pop(0).iter().map(outcome).collect();
    assert!(ends.contains(&failed(errno::ECANCELED, CQE_RETRYABLE, Detail::Cancelled)));
    assert_eq!(ends.len(), 2);
    assert!(two.worlds[0].engine.watches().timed, "a deadline is waited for");
    assert!(two.worlds[0].engine.fall_asleep(), "asleep, but for a nap");
    two.steps(1_100);
    let ends: Vec<_> = two.pop(0).iter().map(outcome).collect();
    assert_eq!(ends, [failed(errno::ETIME, CQE_RETRYABLE, Detail::Deadline)]);
    let token = two.worlds[0].wind(ME, Wind::Cancel);
    two.steps(3);
    let gone = two.worlds[0].reply(token);
    assert!(matches!(gone, Some(Reply::RingGone { .. })), "{gone:?}");
    let ends: Vec<_> = two.pop(0).iter().map(outcome).collect();
    assert_eq!(ends, [failed(errno::ESHUTDOWN, CQE_RETRYABLE, Detail::Closing)]);
    two.served = true;
    two.settle();
    two.expect_rest();
}

/// Draining waits for what is parked, and lets the engine sleep meanwhile.
#[test]
fn a_ring_that_drains_waits_for_its_rail_asleep() {
    let Route { mut two, ids, .. } = route(Two::new(1));
    break_for_good(&mut two, 1);
    two.push(0, transfer(Opcode::Write, ids, 0, 900));
    two.steps(2);
    let token = two.worlds[0].wind(ME, Wind::Drain);
    two.steps(3);
    assert!(two.worlds[0].engine.fall_asleep());
    two.served = true;
    two.settle();
    assert!(matches!(two.worlds[0].reply(token), Some(Reply::RingGone { .. })));
    assert_eq!(two.pop(0).iter().map(outcome).collect::<Vec<_>>(), [(900, 0, carried(1))]);
    two.expect_rest();
}

/// An engine that sleeps hears an arrival in the turn that the device's channel asks for.
#[test]
fn arrivals_come_without_anything_in_flight() {
    let Route { mut two, ids, target } = route(Two::new(1));
    two.push(1, arm(target, 1));
    two.settle();
    assert!(two.worlds[1].engine.fall_asleep());
    two.stopped = Some(1);
    let sqe = transfer(Opcode::Write, ids, 0, 64);
    two.run(0, Sqe { flags: SQE_NOTIFY, immediate: 77, ..sqe });
    two.stopped = None;
    two.settle();
    let cqes = two.pop(1);
    assert_eq!((cqes[0].flags & CQE_NOTIFY, cqes[0].queued, cqes[0].res), (CQE_NOTIFY, 77, 1));
}

/// Rights are the keys': a WRITE by keys that admit READ alone harms only itself.
#[test]
fn keys_admit_what_was_lent() {
    let mut two = Two::new(1);
    let (near, target) = (two.region(0), two.region(1));
    let far = two.offer(1, target, RIGHT_READ, ALL_ON_1);
    // The import claims more than was lent.
    two.worlds[0].engine.regions[far.index() as usize].kind = claimed(&two, far);
    let cqe = two.run(0, transfer(Opcode::Write, (near, far), 0, 100));
    assert_eq!(outcome(&cqe), failed(errno::EACCES, 0, Detail::Wire));
    let cqe = two.run(0, transfer(Opcode::Read, (near, far), 0, 100));
    assert_eq!(outcome(&cqe), (100, 0, carried(1)));
    two.expect_rest();
}

fn claimed(two: &Two, far: RegionId) -> crate::engine::tables::RegionKind {
    use crate::engine::tables::RegionKind;
    match two.worlds[0].engine.regions[far.index() as usize].kind {
        RegionKind::Peer { epoch, rails, .. } => {
            RegionKind::Peer { epoch, rights: RIGHT_READ | RIGHT_WRITE, rails }
        }
        other => other,
    }
}

/// The fabric keeps its word also for a batch of both kinds: a prefix, in order.
#[test]
fn a_batch_of_both_kinds_is_taken_as_a_prefix() {
    use crate::fabric::{Fabric as _, Request, Verb};
    let Route { mut two, ids, target } = route(Two::new(1));
    let own = two.region(0);
    let requests: Vec<Request> = (0..24_u32)
        .map(|at| {
            let rail = u16::from(at % 3 == 2);
            let remote = if rail == 0 { own } else { ids.1 }.index();
            let offset = 64 * u64::from(at);
            Request {
                ticket: u64::from(at),
                verb: Verb::Write,
                local: ids.0.index(),
                remote,
                local_offset: offset,
                remote_offset: offset,
                bytes: 64,
                rail,
                ..Request::NONE
            }
        })
        .collect();
    let mut done = Vec::with_capacity(64);
    let mut taken = 0;
    for _ in 0..200 {
        two.net.advance(500);
        let now_ns = two.net.now_ns();
        let fabric = two.worlds[0].engine.fabric_mut();
        if taken < requests.len() {
            taken += fabric.post(&requests[taken..]);
        }
        fabric.poll(now_ns, &mut done);
    }
    let mut tickets: Vec<u64> = done.iter().map(|done| done.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (0..24).collect::<Vec<_>>());
    assert!(done.iter().all(|done| done.errno == 0), "{done:?}");
    let near = two.worlds[0].bytes(ids.0);
    let places = [two.worlds[0].bytes(own), two.worlds[1].bytes(target)];
    for at in 0..24 {
        let range = 64 * at..64 * (at + 1);
        assert!(near[range.clone()] == places[usize::from(at % 3 == 2)][range], "{at}");
    }
}

/// More than a rail's window holds, and more than the device's depth: all of it goes.
#[test]
fn a_flood_goes_through_a_small_rail() {
    let limits = Limits { window_bytes: 512, ..LIMITS };
    let config = Config { depth: 2, signal_every: 1, ..CONFIG };
    let Route { mut two, ids, target } = route(Two::with(limits, config, 1));
    for at in 0..30 {
        two.push(0, transfer(Opcode::Write, ids, at * 2048, 2048));
    }
    two.settle();
    assert!(two.pop(0).iter().all(|cqe| outcome(cqe) == (2048, 0, carried(1))));
    let (near, far) = (two.worlds[0].bytes(ids.0), two.worlds[1].bytes(target));
    assert!(near[..30 * 2048] == far[..30 * 2048]);
    let posted = two.net.posted(two.join.number(1, 0));
    assert!(posted.iter().filter(|wr| wr.verb == WrVerb::Write).count() >= 30 * 8);
    assert!(rails_of(&mut two.worlds[0]).at_rest());
    two.expect_rest();
    assert_eq!(two.client(0).taken(), 30);
}

/// A post of everything would keep what has ended meanwhile from being told.
#[test]
fn a_long_queue_goes_to_a_rail_in_posts_of_bounded_length() {
    let limits = Limits { intake_budget: 64, ..LIMITS };
    let Route { mut two, ids, .. } = route(Two::with(limits, Config { depth: 32, ..CONFIG }, 1));
    let number = two.join.number(1, 0);
    let before = two.net.posted(number).len();
    for at in 0..20 {
        two.push(0, transfer(Opcode::Write, ids, 8 * at, 8));
    }
    let posted = [0; 2].map(|_| {
        two.step();
        two.net.posted(number).len() - before
    });
    assert_eq!(posted, [16, 20]);
    two.settle();
    assert_eq!(two.pop(0).iter().filter(|cqe| cqe.res == 8).count(), 20);
    two.expect_rest();
}
