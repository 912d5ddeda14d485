//! One session has all that it may have of the pool of edges, behind an op to a peer that does not
//! answer; what becomes of the others meanwhile, and of it once the peer is known to be gone.

use super::edges::{ask, behind, join};
use super::two::{CONFIG, ME, Two, add, transfer};
use super::world::{LIMITS, failed, moved, nop, outcome};
use crate::abi::{
    CQE_DEP_FAILED, CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Detail, EDGE_ORDER_ONLY,
    FABRIC_VERBS, Opcode, SQE_LINK, STATE_UNTAKEN, Sqe, WAIT_EDGES, errno,
};
use crate::engine::Limits;
use crate::fabric::qp::RailState;
use crate::fabric::qp::provider::PathSettings;
use crate::ids::RegionId;
use crate::seeds::{Random, each_seed};

const SMALL: Limits = Limits { records: 512, edges: 128, ..LIMITS };
/// What each session is sure of.
const PART: u32 = SMALL.edges / SMALL.sessions_max / 2;
/// The rail to the peer that falls silent, and one to a peer that does not.
const DEAD: u16 = 1;
const ALIVE: u16 = 2;
/// It is waited for 2 ms: thousands of turns.
const PATH: PathSettings = PathSettings { timeout: 8, retry: 1, ..PathSettings::DEFAULT };
/// SQEs of the session that waits.
const ASKED: usize = 120;

/// What becomes of an op: `res`, flags, detail.
type End = (i32, u16, u16);

/// A region of a session, and its imports.
#[derive(Clone, Copy)]
struct Reach {
    near: RegionId,
    here: RegionId,
    dead: RegionId,
    alive: RegionId,
}

impl Reach {
    fn here(&self, at: u64) -> Sqe {
        let sqe = transfer(Opcode::Write, (self.near, self.here), at * 8, 8);
        Sqe { remote_offset: 32_768 + at * 8, ..sqe }
    }

    fn alive(&self, at: u64) -> Sqe {
        transfer(Opcode::Write, (self.near, self.alive), at * 8, 8)
    }

    fn dead(&self, at: u64) -> Sqe {
        transfer(Opcode::Write, (self.near, self.dead), at * 8, 8)
    }
}

/// Two sessions of side 0, and a peer at the end of each rail. Both peers are side 1, which makes
/// no turn: of one the card goes on by itself, the other's does not.
struct Scene {
    two: Two,
    waits: Reach,
    other: Reach,
    /// The other session's client.
    client: usize,
}

impl Scene {
    fn new() -> Self {
        let mut two = Two::by(SMALL, CONFIG, 2, PATH);
        let sessions = [1, 2].map(|at| two.worlds[0].session(at));
        let targets = [two.region(1), two.region(1)];
        let [waits, other] = sessions.map(|session| {
            let near = two.region_of(0, session);
            let here = two.worlds[0].import(session, near);
            let dead = two.offer_to(session, 1, targets[0], DEAD);
            let alive = two.offer_to(session, 1, targets[1], ALIVE);
            Reach { near, here, dead, alive }
        });
        assert_eq!(two.worlds[0].ring(sessions[0], 128, 128), WAITS);
        let client = two.worlds[0].ring(sessions[1], 64, 64);
        two.settle();
        two.net.kill(two.join.number(DEAD, 1));
        two.stopped = Some(1);
        // Nobody says what is to become of a rail that fails: a lease is not over.
        two.served = false;
        Self { two, waits, other, client }
    }

    fn edges(&self) -> u32 {
        self.two.worlds[0].engine.edges.in_use()
    }
}

/// Client of the session that waits; `ME` is that of one that does nothing.
const WAITS: usize = ME + 1;

/// A random graph behind an op to the dead peer, which comes first: every other op has an edge to
/// an earlier one, so that all wait for it in the end. And how each ends.
fn graph(random: &mut Random, reach: &Reach) -> Vec<(Sqe, End)> {
    let gone = |flags| failed(errno::EHOSTDOWN, flags, Detail::Peer);
    let inherited = failed(errno::ECANCELED, CQE_DEP_FAILED | CQE_RETRYABLE, Detail::Peer);
    let head = match random.chance(50) {
        true => (reach.dead(0), gone(CQE_FLUSHED | CQE_RETRYABLE)),
        // It may have been done, and is not repeated.
        false => (add((reach.near, reach.dead), 0, 1), gone(CQE_FLUSHED | CQE_MAYBE_DONE)),
    };
    let mut graph: Vec<(Sqe, End)> = vec![head];
    // Some are wide and soon have the pool, some are long.
    let (order_only, most) = (random.below(60), 1 + random.index(10));
    for at in 1..ASKED {
        let many = 1 + random.index(most);
        let mut edges = Vec::new();
        for _ in 0..many {
            let back = 1 + random.index(at);
            let order = if random.chance(order_only) { EDGE_ORDER_ONLY } else { 0 };
            edges.push(u16::try_from(back).unwrap() | order);
        }
        let fails = edges.iter().any(|edge| {
            let back = usize::from(edge & !EDGE_ORDER_ONLY);
            edge & EDGE_ORDER_ONLY == 0 && graph[at - back].1.0 < 0
        });
        let place = at as u64;
        let (sqe, end) = match random.index(4) {
            _ if many > 2 => (join(&edges), (0, 0, 0)),
            0 => (nop(), (0, 0, 0)),
            1 => (reach.here(place), moved(8)),
            2 => (reach.alive(place), (8, 0, u16::from(FABRIC_VERBS) << 8 | ALIVE)),
            _ => (reach.dead(place), gone(CQE_FLUSHED | CQE_RETRYABLE)),
        };
        edges.resize(2.max(edges.len()), 0);
        graph.push((
            Sqe { edges: [edges[0], edges[1]], ..sqe },
            if fails { inherited } else { end },
        ));
    }
    graph
}

/// What the other session does time and again: with edges and without, on this host and to the
/// peer that answers, as many edges at once as it is sure of. When each op ended, and how.
fn round(scene: &mut Scene) -> Vec<(u32, u64, End)> {
    let Scene { two, other, client, .. } = scene;
    let far = [4, 5, 6, 7].map(|at| Sqe { flags: SQE_LINK, ..other.alive(at) });
    let near = [8, 9, 10].map(|at| Sqe { flags: SQE_LINK, ..other.here(at) });
    let mut sqes = vec![nop(), other.here(0), other.alive(1), other.here(2)];
    sqes.extend(far);
    sqes[7].flags = 0;
    sqes.extend(near);
    sqes[10].flags = 0;
    sqes.push(join(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
    sqes.push(behind([1, 0]));
    for (sqe, at) in sqes.iter().zip(1..) {
        two.worlds[0].push(*client, Sqe { user_data: at, ..*sqe });
    }
    let mut ends = Vec::new();
    for step in 0..500 {
        two.step();
        let cqes = two.worlds[0].pop(*client);
        ends.extend(cqes.iter().map(|cqe| (step, cqe.user_data, outcome(cqe))));
        if ends.len() == sqes.len() {
            return ends;
        }
    }
    panic!("of {} ops ended in 500 turns: {ends:?}", sqes.len());
}

/// Behind an op on its slow way, the other session has its part of the edges at once, with what the
/// one that waits could not use of all that is nobody's, and no more: the rest is sure to others.
fn takes_its_part(scene: &mut Scene) {
    const ALL: u16 = 40;
    let before = scene.edges();
    let Scene { two, other, client, .. } = scene;
    let number = two.join.number(ALIVE, 0);
    two.net.delay(number, 50_000);
    let first = two.worlds[0].push(*client, other.alive(0));
    for at in 1..=ALL {
        two.worlds[0].push(*client, behind([at, 0]));
    }
    two.steps(10);
    let has = two.worlds[0].engine.edges.in_use() - before;
    assert!(has >= PART, "{has}");
    assert_eq!(before + has, SMALL.edges - (SMALL.sessions_max - 2) * PART);
    let why = ask(&mut two.worlds[0], *client, first + u64::from(has) + 1);
    assert_eq!((why.state, why.wait, why.wants), (STATE_UNTAKEN, WAIT_EDGES, 1), "{why:?}");
    assert_eq!(why.used, u64::from(has), "{why:?}");
    two.steps(200);
    let ends = two.worlds[0].pop(*client);
    assert!(ends.len() == 1 + usize::from(ALL) && ends.iter().all(|cqe| cqe.res >= 0), "{ends:?}");
    two.net.delay(number, 1_000);
    assert_eq!(scene.edges(), before);
}

/// The same rounds with nobody else there: what "not held back" is measured by.
fn alone() -> Vec<(u32, u64, End)> {
    let mut scene = Scene::new();
    let first = round(&mut scene);
    assert_eq!(round(&mut scene), first, "a round is like any other");
    first
}

#[test]
fn f23_a_pool_full_of_what_waits_for_a_silent_peer_holds_no_other_session_back() {
    let alone = alone();
    each_seed(24, |seed| {
        let mut scene = Scene::new();
        let graph = graph(&mut Random::new(seed), &scene.waits);
        for (sqe, _) in &graph {
            scene.two.worlds[0].push(WAITS, *sqe);
        }
        scene.two.steps(60);
        // It has its part and all that is nobody's, but for what its next op is too large for.
        let taken = scene.two.worlds[0].clients[WAITS].taken();
        assert!(taken < ASKED as u64, "the pool is too large for this");
        let why = ask(&mut scene.two.worlds[0], WAITS, taken);
        assert_eq!((why.state, why.wait), (STATE_UNTAKEN, WAIT_EDGES), "{why:?}");
        let most = SMALL.edges - (SMALL.sessions_max - 1) * PART;
        assert_eq!(why.used, u64::from(scene.edges()), "{why:?}");
        assert!(why.used + why.wants > u64::from(most) && why.used <= u64::from(most), "{why:?}");

        // First nobody knows that the peer is silent, then its rail is out of use.
        for state in [RailState::Ready, RailState::Degraded] {
            for _ in 0..5_000 {
                if scene.two.state(0, DEAD) == state {
                    break;
                }
                scene.two.step();
            }
            for _ in 0..3 {
                assert_eq!(round(&mut scene), alone, "{state:?}");
            }
            takes_its_part(&mut scene);
            assert_eq!(scene.two.state(0, DEAD), state);
        }
        assert_eq!(scene.two.worlds[0].pop(WAITS), []);
        assert_eq!(scene.two.worlds[0].clients[WAITS].taken(), taken);

        scene.two.join.lose(1);
        scene.two.served = true;
        scene.two.settle();
        assert_eq!(scene.two.state(0, DEAD), RailState::Dead);
        let mut cqes = scene.two.worlds[0].pop(WAITS);
        cqes.sort_by_key(|cqe| cqe.user_data);
        let ends: Vec<End> = cqes.iter().map(outcome).collect();
        let expected: Vec<End> = graph.iter().map(|(_, end)| *end).collect();
        assert_eq!(ends, expected);
        assert_eq!(scene.edges(), 0);
        takes_its_part_and_the_rest(&mut scene);
        scene.two.worlds[0].expect_rest();
    });
}

/// The pool is whole again: one session can have all that is nobody's of it.
fn takes_its_part_and_the_rest(scene: &mut Scene) {
    let Scene { two, waits, .. } = scene;
    two.net.delay(two.join.number(ALIVE, 0), 50_000);
    two.worlds[0].push(WAITS, waits.alive(0));
    for at in 1..ASKED {
        two.worlds[0].push(WAITS, behind([u16::try_from(at).unwrap(), 0]));
    }
    two.steps(30);
    let most = SMALL.edges - (SMALL.sessions_max - 1) * PART;
    assert_eq!(two.worlds[0].engine.edges.in_use(), most);
    two.settle();
    assert!(two.worlds[0].pop(WAITS).iter().all(|cqe| cqe.res >= 0));
}
