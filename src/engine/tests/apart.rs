//! A flow whose requests are refused by the peer's card: it is taken off the rail that it shares
//! after two errors, and errs on as it likes. The test is the control side that decides so.

use std::collections::BTreeMap;

use super::two::{BYTES, CONFIG, ME, Two, add, rails_of, transfer};
use super::world::{LIMITS, failed, outcome};
use crate::abi::{
    CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Cqe, Detail, Opcode, RIGHT_READ, RIGHTS_ALL,
    SQE_NOTIFY, SQE_SUPERSEDE, Sqe, errno,
};
use crate::engine::Command;
use crate::engine::tables::RegionKind;
use crate::fabric::Stop;
use crate::fabric::qp::provider::WrVerb;
use crate::fabric::qp::{Config, News, RailState, Told};
use crate::ids::{RegionId, SessionId};
use crate::seeds::{Random, each_seed};

/// The rail of all, the one that the flow gets, and one that is never joined.
const SHARED: u16 = 1;
const OWN: u16 = 2;
const ABSENT: u16 = 3;

/// The bad session's client.
const BAD: usize = ME + 1;
const ERRORS_MAX: u32 = 2;

struct Scene {
    two: Two,
    good: (RegionId, RegionId),
    /// Of the bad session: by the first import WRITEs are refused, by the second nothing is.
    forged: (RegionId, RegionId),
    honest: (RegionId, RegionId),
    targets: [RegionId; 2],
    /// The rails of all, and where the flow is moved to after its second error.
    shared: u64,
    to: u16,
    errors: u32,
    /// How often the shared rail was lost to all.
    failures: u32,
    was: RailState,
}

impl Scene {
    fn new(config: Config, to: u16) -> Self {
        Self::over(config, 1 << SHARED, to)
    }

    fn over(config: Config, shared: u64, to: u16) -> Self {
        // One more than is shared.
        let rails = 1 + u16::try_from(shared.count_ones()).unwrap();
        let mut two = Two::with(LIMITS, config, rails);
        let bad = two.worlds[0].session(1);
        assert_eq!(two.worlds[0].ring(bad, 64, 64), BAD);
        let near = [SessionId(0), bad].map(|session| two.region_of(0, session));
        let targets = [two.region(1), two.region(1)];
        for rail in 1..=ABSENT {
            for target in targets {
                two.lend(1, target, (rail, RIGHTS_ALL, 0)).unwrap();
            }
        }
        let mut import = |session, rights, target| {
            two.import_set(session, 1, rights, ([shared; 3], target), target)
        };
        let good = import(SessionId(0), RIGHTS_ALL, targets[0]);
        let honest = import(bad, RIGHTS_ALL, targets[1]);
        // Keys that admit less than the import claims, as those that a peer has withdrawn.
        let forged = import(bad, RIGHT_READ, targets[1]);
        let kind = &mut two.worlds[0].engine.regions[forged.index() as usize].kind;
        if let RegionKind::Peer { rights, .. } = kind {
            *rights = RIGHTS_ALL;
        }
        let (errors, failures, was) = (0, 0, RailState::Ready);
        Self {
            two,
            good: (near[0], good),
            forged: (near[1], forged),
            honest: (near[1], honest),
            targets,
            shared,
            to,
            errors,
            failures,
            was,
        }
    }

    fn reroute(&mut self, rail: u16) {
        for import in [self.forged.1, self.honest.1] {
            let rails = [1 << rail; 3];
            let token = self.two.told(0, |token| Command::Reroute { region: import, rails, token });
            assert!(self.two.done(0, token));
        }
    }

    fn step(&mut self) -> bool {
        let worked = self.two.step();
        for (side, rail, region) in std::mem::take(&mut self.two.join.offences) {
            assert_eq!((side, region), (0, self.forged.1.index()), "who is blamed");
            if self.shared >> rail & 1 != 0 {
                self.errors += 1;
                if self.errors == ERRORS_MAX {
                    self.reroute(self.to);
                }
            }
        }
        let state = self.two.state(0, SHARED);
        self.failures += u32::from(self.was == RailState::Ready && state != RailState::Ready);
        self.was = state;
        worked
    }

    fn steps(&mut self, count: u32) {
        for _ in 0..count {
            self.step();
        }
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            let worked = self.step();
            let [a, b] = &self.two.worlds;
            let restless = a.engine.watches().timed || b.engine.watches().timed;
            if !worked && !restless && self.two.net.is_still() {
                return;
            }
        }
        panic!("no rest");
    }

    fn push(&mut self, client: usize, sqe: Sqe) -> u64 {
        self.two.worlds[0].push(client, sqe)
    }

    /// The flow has erred so often.
    fn err(&mut self, times: u32) {
        for _ in 0..times {
            self.push(BAD, transfer(Opcode::Write, self.forged, 0, 64));
            self.settle();
            let cqes = self.two.worlds[0].pop(BAD);
            assert_eq!(cqes.iter().map(outcome).collect::<Vec<_>>(), [refused()]);
        }
    }

    /// WRITEs posted by a rail of side 0 that carry something.
    fn writes(&self, rail: u16) -> usize {
        let posted = self.two.net.posted(self.two.join.number(rail, 0));
        posted.iter().filter(|wr| wr.verb == WrVerb::Write && wr.bytes > 0).count()
    }
}

fn refused() -> (i32, u16, u16) {
    failed(errno::EACCES, 0, Detail::Wire)
}

const CELL: u64 = 1024;

/// What a client asked for, by `user_data`.
struct Asked {
    opcode: Opcode,
    at: u64,
    bytes: u32,
    forged: bool,
}

/// Everybody's ops for a while: the neighbour's, good ones of the bad flow, and bad ones.
fn ask(scene: &mut Scene, random: &mut Random, cell: u64) -> (usize, Asked) {
    let at = cell * CELL;
    let bytes = 1 + random.below32(1000);
    let user_data = 1 + cell;
    let op = |opcode, ids| Sqe { user_data, ..transfer(opcode, ids, at, bytes) };
    let class = 1 + u8::try_from(random.below32(3)).unwrap();
    let opcode = random.pick(&[Opcode::Write, Opcode::Read]);
    let (client, sqe, forged) = match random.below(10) {
        0..4 => (ME, op(opcode, scene.good), false),
        4 => (BAD, op(Opcode::Read, scene.forged), false),
        5 => (BAD, op(opcode, scene.honest), false),
        6 => (BAD, Sqe { user_data, ..add(scene.honest, at, 1) }, false),
        _ => (BAD, op(Opcode::Write, scene.forged), true),
    };
    let sqe = Sqe { class, ..sqe };
    scene.push(client, sqe);
    let opcode = Opcode::from_byte(sqe.opcode).unwrap();
    (client, Asked { opcode, at, bytes: sqe.bytes, forged })
}

/// An op's end is as it must be, and so are the bytes.
fn judge(scene: &Scene, client: usize, asked: &Asked, cqe: &Cqe) {
    if asked.forged {
        assert_eq!(outcome(cqe), refused());
        return;
    }
    let atomic = asked.opcode == Opcode::FetchAdd;
    // The flow's own good ops are flushed by its bad ones, for ever; the neighbour's are repeated.
    if client == BAD && cqe.res < 0 {
        let other = if atomic { CQE_MAYBE_DONE } else { CQE_RETRYABLE };
        assert!(cqe.flags == CQE_FLUSHED | other || cqe.flags == CQE_FLUSHED | CQE_RETRYABLE);
        return;
    }
    assert_eq!(cqe.res, if atomic { 8 } else { i32::try_from(asked.bytes).unwrap() }, "{cqe:?}");
    let at = usize::try_from(asked.at).unwrap();
    let range = at..at + asked.bytes as usize;
    let near = if client == ME { scene.good.0 } else { scene.honest.0 };
    let far = scene.targets[usize::from(client == BAD)];
    let (near, far) = (scene.two.worlds[0].bytes(near), scene.two.worlds[1].bytes(far));
    assert!(atomic || near[range.clone()] == far[range], "bytes of cell {}", asked.at / CELL);
}

/// Rounds of ops while the flow errs; the shared rail fails for nobody else's fault.
fn play(seed: u64, config: Config) {
    let mut random = Random::new(seed);
    let mut scene = Scene::new(config, OWN);
    let mut bad = 0;
    for _ in 0..6 {
        let mut open = BTreeMap::new();
        for cell in 0..BYTES / CELL {
            if random.chance(70) {
                let (client, asked) = ask(&mut scene, &mut random, cell);
                bad += u32::from(asked.forged);
                open.insert((client, 1 + cell), asked);
            }
            for _ in 0..random.below32(3) {
                scene.step();
            }
        }
        scene.settle();
        for client in [ME, BAD] {
            for cqe in scene.two.worlds[0].pop(client) {
                let asked = open.remove(&(client, cqe.user_data)).unwrap();
                judge(&scene, client, &asked, &cqe);
            }
        }
        assert!(open.is_empty(), "one CQE for each");
    }
    let expected = bad.min(ERRORS_MAX);
    assert_eq!((scene.errors, scene.failures), (expected, expected), "of {bad} bad ops");
    scene.two.expect_rest();
}

#[test]
fn a_flow_that_errs_costs_its_neighbours_two_rebuilds_and_no_third() {
    each_seed(16, |seed| play(seed, CONFIG));
}

/// Where neighbours share a work request, one fails for all that are in it, and each goes alone
/// then: two rebuilds for one bad op, and the flow has been found out.
#[test]
fn also_where_ops_share_a_work_request() {
    each_seed(8, |seed| play(seed, Config { merge_bytes_max: 4096, depth: 16, ..CONFIG }));
}

/// All that the flow had under way on the shared rail is handed back at its second error: else each
/// of these would fail the rail once more.
#[test]
fn what_was_under_way_follows_to_the_rail_of_its_own() {
    let mut scene = Scene::new(CONFIG, OWN);
    for at in 0..7 {
        scene.push(BAD, transfer(Opcode::Write, scene.forged, at * 64, 64));
    }
    for at in 0..20 {
        scene.push(ME, transfer(Opcode::Write, scene.good, at * 64, 64));
    }
    scene.settle();
    let ends = scene.two.worlds[0].pop(BAD);
    assert_eq!(ends.iter().map(outcome).collect::<Vec<_>>(), [refused(); 7]);
    assert!(scene.two.pop(0).iter().all(|cqe| cqe.res == 64));
    assert_eq!((scene.errors, scene.failures), (2, 2));
    // Five of them by the rail of its own.
    assert!(scene.writes(OWN) >= 5);
    scene.two.expect_rest();
}

/// What went by another rail of the set before the second error was heard of may fail that, too;
/// but nothing that is asked for from then on.
#[test]
fn of_two_rails_neither_fails_again_once_the_flow_is_set_apart() {
    let mut scene = Scene::over(CONFIG, 1 << SHARED | 1 << OWN, ABSENT);
    for round in 0..6 {
        for at in 0..12 {
            scene.push(BAD, transfer(Opcode::Write, scene.forged, at * 64, 64));
            scene.push(ME, transfer(Opcode::Write, scene.good, at * 64, 64));
            scene.push(BAD, add(scene.honest, 8192, 1));
        }
        scene.settle();
        let ends = scene.two.worlds[0].pop(BAD);
        assert_eq!(ends.iter().filter(|cqe| outcome(cqe) == refused()).count(), 12, "{ends:?}");
        assert!(scene.two.pop(0).iter().all(|cqe| cqe.res == 64));
        assert!(if round == 0 { scene.errors >= 2 } else { scene.errors == 0 }, "round {round}");
        scene.errors = 0;
    }
    scene.two.expect_rest();
}

/// A rail that is yet to be agreed upon holds the flow, and nobody else; and if there is none in
/// the end it shares on.
#[test]
fn a_flow_waits_for_its_rail_and_comes_back_if_it_gets_none() {
    let mut scene = Scene::new(CONFIG, ABSENT);
    scene.err(2);
    let before = scene.writes(SHARED);
    for at in 0..9 {
        let flags = if at % 2 == 0 { SQE_NOTIFY } else { 0 };
        scene.push(BAD, Sqe { flags, ..transfer(Opcode::Write, scene.honest, at * 64, 64) });
        scene.push(BAD, add(scene.honest, 8192 + at * 8, 1));
    }
    scene.steps(300);
    assert!(scene.two.worlds[0].pop(BAD).is_empty());
    assert_eq!(scene.writes(SHARED), before, "nothing of the flow by the shared rail");
    scene.push(ME, transfer(Opcode::Write, scene.good, 0, 64));
    scene.steps(300);
    assert_eq!(scene.two.pop(0).iter().map(|cqe| cqe.res).collect::<Vec<_>>(), [64]);
    assert!(scene.two.worlds[0].engine.fall_asleep(), "waiting is not being busy");
    scene.reroute(SHARED);
    scene.settle();
    let ends = scene.two.worlds[0].pop(BAD);
    assert_eq!(ends.iter().filter(|cqe| cqe.res > 0).count(), 18, "{ends:?}");
    scene.err(2);
    assert_eq!(scene.errors, 4, "it shares on");
    scene.two.expect_rest();
}

/// A newer value takes the place of an older one in the queue, and that is in the line that both
/// have left.
#[test]
fn what_takes_the_place_of_an_op_follows_too() {
    let mut scene = Scene::new(CONFIG, ABSENT);
    scene.err(2);
    let value = |at| Sqe {
        flags: SQE_SUPERSEDE,
        local_offset: at,
        ..transfer(Opcode::Write, scene.honest, 0, 64)
    };
    let (older, newer) = (value(0), value(512));
    scene.push(BAD, older);
    scene.two.step();
    let shared = scene.writes(SHARED);
    scene.reroute(OWN);
    // The walk over the records has not come there yet.
    scene.two.worlds[0].engine.abroad.purge = None;
    scene.push(BAD, newer);
    scene.two.step();
    scene.two.worlds[0].engine.abroad.purge = Some(0);
    scene.settle();
    assert_eq!(scene.two.worlds[0].pop(BAD).len(), 2);
    assert_eq!((scene.writes(SHARED), scene.writes(OWN)), (shared, 1));
    scene.two.expect_rest();
}

/// The rail of its own is given back: nothing waits for it any more once that was asked for, so
/// that its number may be another's.
#[test]
fn a_rail_that_was_cleared_is_released_and_used_anew() {
    let mut scene = Scene::new(CONFIG, OWN);
    scene.err(3);
    assert_eq!(scene.errors, 2);
    for at in 0..20 {
        scene.push(BAD, transfer(Opcode::Write, scene.honest, at * 64, 64));
    }
    scene.two.step();
    scene.reroute(SHARED);
    let number = scene.two.join.number(OWN, 0);
    scene.two.net.break_pair(number);
    // Its end: what it had goes by the shared rail, as what is queued.
    scene.two.served = false;
    scene.steps(50);
    let rails = rails_of(&mut scene.two.worlds[0]);
    let wish = rails.wish().unwrap();
    rails.tell(Told { rail: OWN, epoch: wish.epoch, news: News::Gone });
    let token = scene.two.told(0, |token| Command::Clear { token });
    scene.two.served = true;
    scene.settle();
    assert!(scene.two.done(0, token));
    let ends = scene.two.worlds[0].pop(BAD);
    assert!(ends.len() == 20 && ends.iter().all(|cqe| cqe.res == 64), "{ends:?}");
    assert_eq!(scene.two.state(0, OWN), RailState::Dead);
    assert!(rails_of(&mut scene.two.worlds[0]).release(OWN).is_some());
    // Another connection's set has that number from now on.
    let far = scene.two.offer_set(1, scene.targets[0], RIGHTS_ALL, 1 << OWN | 1 << ABSENT);
    let room = crate::fabric::Fabric::room(rails_of(&mut scene.two.worlds[0]), OWN);
    assert_eq!((room.stop, far == scene.good.1), (Some(Stop::Connecting), false));
}

#[test]
fn an_import_that_goes_is_not_rerouted() {
    let mut scene = Scene::new(CONFIG, OWN);
    let region = scene.honest.1;
    let withdrawn = scene.two.told(0, |token| Command::Withdraw { region, token });
    assert!(scene.two.done(0, withdrawn));
    scene.two.worlds[0].remove(region);
    scene.settle();
    let rails = [1 << OWN; 3];
    let token = scene.two.told(0, |token| Command::Reroute { region, rails, token });
    let reply = scene.two.worlds[0].reply(token);
    assert!(matches!(reply, Some(crate::engine::Reply::Failed { .. })), "{reply:?}");
    scene.two.expect_rest();
}
