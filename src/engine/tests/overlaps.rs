//! A million WRITEs that overlap, and READs between them, with every kind of tie, merging, COALESCE
//! and SUPERSEDE, towards a peer and on this host: what bytes hold in the end is what a serial
//! replay leaves there, wherever something orders who writes them.
//!
//! A round is up to 60 ops on few bytes. They are ordered by edges, links, DRAINs, and by CQEs that
//! were popped before the next op was pushed; what that leaves open is open in the reference, too
//! (`overlaps_model`). Rails break under some rounds, so that what was posted goes again; then what
//! an op reads may be what one behind it has written, but not what it writes last.
//!
//! By default a tenth is run: `VERBRING_OVERLAPS=1000000 cargo test --lib overlaps` runs all.

use std::collections::BTreeMap;

use super::merging::merged;
use super::overlaps_model::{MOVES_MAX, Move, Moves};
use super::two::{CONFIG, ME, Two};
use super::world::LIMITS;
use crate::abi::{
    CQE_COALESCED, CQE_DEP_FAILED, CQE_FLUSHED, Counter, Cqe, EDGE_ORDER_ONLY, Opcode, RIGHTS_ALL,
    SQE_COALESCE, SQE_DRAIN, SQE_HARDLINK, SQE_LINK, SQE_NO_MERGE, SQE_SUPERSEDE, Sqe,
};
use crate::engine::Limits;
use crate::fabric::qp::Config;
use crate::ids::{RegionId, SessionId};
use crate::ledger::TIE_RIDES;
use crate::sched::{Mode, Policy};
use crate::seeds::{Random, each_seed};

/// Of the sender's region: bytes that nothing writes, and those that READs bring.
const FIXED: u64 = 1024;
const BROUGHT: u64 = 512;
/// Bytes of each of the two regions that WRITEs go to.
const TARGET: u64 = 512;

/// WRITEs of one seed.
const WRITES: u64 = 1_000;

/// Ops of a round, but for two NOPs that take up the last links.
const OPS: usize = MOVES_MAX - 4;

/// How often what the test is about has happened.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    writes: u64,
    reads: u64,
    /// Edges, order only ones, links, hard links, DRAINs, and CQEs popped before a push.
    ties: [u64; 6],
    /// Bytes that several wrote, of whom one is known to be the last, or not.
    decided: u64,
    open: u64,
    failed: u64,
    broken: u64,
    rode: u64,
    merged: u64,
    folded: u64,
    superseded: u64,
}

impl Tally {
    fn add(&mut self, more: &Self) {
        self.writes += more.writes;
        self.reads += more.reads;
        (0..6).for_each(|at| self.ties[at] += more.ties[at]);
        self.decided += more.decided;
        self.open += more.open;
        self.failed += more.failed;
        self.broken += more.broken;
        self.rode += more.rode;
        self.merged += more.merged;
        self.folded += more.folded;
        self.superseded += more.superseded;
    }
}

/// One of the sender's rings, in a round.
#[derive(Clone, Debug, Default)]
struct Ring {
    client: usize,
    /// Its SQEs: which op each is, and what was pushed.
    pushed: Vec<(usize, Sqe)>,
    drain: u64,
}

/// What the ops of a round are pushed through.
struct Bench {
    two: Two,
    rails: u16,
    clients: [usize; 2],
    near: RegionId,
    /// The targets, as they are imported and as they are: at the peer, and on this host.
    imports: [RegionId; 2],
    targets: [RegionId; 2],
    tally: Tally,
}

/// One round.
struct Round<'a> {
    bench: &'a mut Bench,
    random: &'a mut Random,
    rings: [Ring; 2],
    moves: Moves,
    count: usize,
    ends: BTreeMap<usize, Cqe>,
    /// By op.
    sqes: Vec<Sqe>,
}

fn limits(random: &mut Random) -> Limits {
    let mode = random.pick(&[Mode::Weighted, Mode::Strict, Mode::Fifo, Mode::Tent]);
    let policy = Policy { mode, ..Policy::DEFAULT };
    Limits { window_wrs: random.pick(&[1, 4, 8]), policy, ..LIMITS }
}

impl Bench {
    fn new(random: &mut Random) -> Self {
        let config = Config { merge_bytes_max: LIMITS.slice_bytes, attempts_max: 8, ..CONFIG };
        let rails = 1 + u16::try_from(random.below(3)).unwrap();
        let mut two = Two::with(limits(random), config, rails);
        two.worlds.iter_mut().for_each(|world| world.audited = false);
        let ring = two.worlds[0].ring(SessionId(0), 64, 64);
        let near = two.region(0);
        let targets = [1, 0].map(|side| two.region(side));
        let far = if random.chance(50) {
            let set = (1..=rails).fold(0, |set, rail| set | 1 << rail);
            two.offer_set(1, targets[0], RIGHTS_ALL, set)
        } else {
            two.offer(1, targets[0], RIGHTS_ALL, [1, 1 + 1 % rails, 1 + 2 % rails])
        };
        let own = two.worlds[0].import(SessionId(0), targets[1]);
        for rail in 1..=rails {
            two.net.delay(two.join.number(rail, 0), random.pick(&[1_000, 5_000, 20_000]));
        }
        let clients = [ME, ring];
        let imports = [far, own];
        Self { two, rails, clients, near, imports, targets, tally: Tally::default() }
    }

    /// All bytes that ops of a round touch, in one: the sender's, the peer's, this host's.
    fn memory(&self) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(FIXED + BROUGHT + 2 * TARGET).unwrap()];
        let (near, targets) = all.split_at_mut(usize::try_from(FIXED + BROUGHT).unwrap());
        let (far, own) = targets.split_at_mut(targets.len() / 2);
        let places = [(0, self.near, near), (1, self.targets[0], far), (0, self.targets[1], own)];
        for (side, region, bytes) in places {
            self.two.worlds[side].memory[&region.0].read(0, bytes);
        }
        all
    }

    /// Where an op's bytes come from and go to.
    fn moves(&self, sqe: &Sqe) -> Option<Move> {
        let place = |at: u64| usize::try_from(at).unwrap();
        let near = place(sqe.local_offset);
        let peer = sqe.remote_region == self.imports[0].0;
        let base = FIXED + BROUGHT + if peer { 0 } else { TARGET };
        let there = place(base + sqe.remote_offset);
        let bytes = sqe.bytes as usize;
        if sqe.opcode == Opcode::Write as u8 {
            Some(Move { from: near, to: there, bytes })
        } else if sqe.opcode == Opcode::Read as u8 {
            Some(Move { from: there, to: near, bytes })
        } else {
            None
        }
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.two.worlds[0].engine.sessions[0].counters[counter as usize]
    }
}

impl Round<'_> {
    /// A WRITE or READ of bytes that others move, too.
    fn transfer(&mut self, ring: usize) -> Sqe {
        let random = &mut *self.random;
        let last = self.rings[ring].pushed.last().map(|(_, sqe)| *sqe);
        let most = random.pick(&[8, 8, 32, 32, 128, TARGET]);
        let bytes = 1 + random.below(most);
        let remote_region = self.bench.imports[usize::from(random.chance(25))].0;
        let (local_region, class) = (self.bench.near.0, random.below32(4).to_le_bytes()[0]);
        let mut sqe = Sqe { local_region, remote_region, class, ..Sqe::default() };
        sqe.remote_offset = random.below(TARGET + 1 - bytes);
        sqe.bytes = u32::try_from(bytes).unwrap();
        if random.chance(12) {
            sqe.opcode = Opcode::Read as u8;
            sqe.local_offset = FIXED + random.below(BROUGHT + 1 - bytes);
            return sqe;
        }
        sqe.opcode = Opcode::Write as u8;
        let (from, of) = if random.chance(75) { (0, FIXED) } else { (FIXED, BROUGHT) };
        sqe.local_offset = from + random.below(of + 1 - bytes);
        // It may continue the last one.
        if let Some(last) = last
            && last.opcode == sqe.opcode
            && last.remote_offset + u64::from(last.bytes) + bytes <= TARGET
            && random.chance(35)
        {
            sqe.remote_region = last.remote_region;
            sqe.remote_offset = last.remote_offset + u64::from(last.bytes);
            sqe.class = last.class;
        }
        sqe
    }

    /// An op that nothing of its own ring orders: it may be folded, or merged.
    fn free(&mut self, ring: usize) -> Sqe {
        let fresh = self.transfer(ring);
        let again = self.rings[ring].pushed.iter().map(|(_, sqe)| *sqe);
        let again = again.filter(|sqe| sqe.flags & (SQE_COALESCE | SQE_SUPERSEDE) != 0);
        let again: Vec<Sqe> = again.collect();
        let random = &mut *self.random;
        if !again.is_empty() && random.chance(40) {
            let mut sqe = random.pick(&again);
            if sqe.flags & SQE_SUPERSEDE != 0 {
                sqe.local_offset = random.below(FIXED + 1 - u64::from(sqe.bytes));
            }
            return sqe;
        }
        let write = fresh.opcode == Opcode::Write as u8;
        let flags = match random.below(10) {
            0..5 => SQE_COALESCE,
            5 if write => SQE_SUPERSEDE,
            6 => SQE_NO_MERGE,
            _ => 0,
        };
        Sqe { flags, ..fresh }
    }

    /// An op that waits for others, or whom the next one waits for.
    fn tied(&mut self, ring: usize) -> Sqe {
        let mut sqe = self.transfer(ring);
        let earlier = self.rings[ring].pushed.len() as u64;
        let random = &mut *self.random;
        let mut edge = || {
            let reach = random.pick(&[1, 1, 4, 60]);
            let distance = u16::try_from(1 + random.below(reach.min(earlier))).unwrap();
            if random.chance(30) { distance | EDGE_ORDER_ONLY } else { distance }
        };
        let mut edges = [0; 10];
        if earlier > 0 {
            edges.iter_mut().for_each(|it| *it = edge());
        }
        let kind = random.below(20);
        let named = if kind < 2 { random.index(11) } else { random.index(3) };
        edges[named..].fill(0);
        if kind < 2 {
            sqe = Sqe { opcode: Opcode::Join as u8, class: sqe.class, ..Sqe::default() };
            for (at, edge) in (0..).zip(&edges[2..]) {
                sqe.arg[at / 4] |= u64::from(*edge) << (16 * (at % 4));
            }
        } else if kind == 2 {
            sqe = Sqe { opcode: Opcode::Nop as u8, class: sqe.class, ..Sqe::default() };
        }
        sqe.edges.copy_from_slice(&edges[..2]);
        sqe.flags = match random.below(20) {
            0..4 => SQE_LINK,
            4..6 => SQE_HARDLINK,
            6 => SQE_LINK | SQE_HARDLINK,
            7 => SQE_DRAIN,
            8 if kind > 2 => SQE_COALESCE,
            _ => 0,
        };
        sqe
    }

    /// Pushes an op, and notes what comes before it.
    fn push(&mut self, ring: usize, mut sqe: Sqe) {
        let Ring { client, pushed, drain } = &mut self.rings[ring];
        let ties = &mut self.bench.tally.ties;
        let mut before = *drain;
        for edge in crate::engine::graph::named(&sqe) {
            let distance = usize::from(edge & !EDGE_ORDER_ONLY);
            if distance > 0 {
                before |= 1 << pushed[pushed.len() - distance].0;
                ties[usize::from(edge & EDGE_ORDER_ONLY != 0)] += 1;
            }
        }
        if let Some((last, linked)) = pushed.last() {
            let linked = linked.flags & (SQE_LINK | SQE_HARDLINK);
            before |= u64::from(linked != 0) << last;
            ties[2] += u64::from(linked == SQE_LINK);
            ties[3] += u64::from(linked & SQE_HARDLINK != 0);
        }
        if sqe.flags & SQE_DRAIN != 0 {
            pushed.iter().for_each(|(op, _)| before |= 1 << op);
            ties[4] += 1;
        }
        ties[5] += self.ends.len() as u64;
        self.ends.keys().for_each(|op| before |= 1 << op);
        let moves = self.bench.moves(&sqe);
        let tally = &mut self.bench.tally;
        tally.writes += u64::from(sqe.opcode == Opcode::Write as u8);
        tally.reads += u64::from(sqe.opcode == Opcode::Read as u8);
        let op = self.moves.push(moves, before);
        assert_eq!(op, self.count);
        sqe.user_data = 1 + op as u64;
        if sqe.flags & SQE_DRAIN != 0 {
            *drain = 1 << op;
        }
        pushed.push((op, sqe));
        self.sqes.push(sqe);
        self.count += 1;
        self.bench.two.worlds[0].push(*client, sqe);
    }

    fn step(&mut self) {
        self.bench.two.step();
        let ledger = &self.bench.two.worlds[0].engine.ledger;
        let rides = (0..ledger.capacity()).any(|slot| ledger[slot].ties & TIE_RIDES != 0);
        self.bench.tally.rode += u64::from(rides);
    }

    fn pop(&mut self) {
        for client in self.bench.clients {
            for cqe in self.bench.two.worlds[0].pop(client) {
                let op = usize::try_from(cqe.user_data - 1).unwrap();
                assert!(self.ends.insert(op, cqe).is_none(), "a second CQE: {cqe:?}");
            }
        }
    }

    /// Pushes all of it, and has it end.
    fn play(&mut self) {
        let breaks = self.random.chance(10).then(|| self.random.index(OPS));
        let tied = self.random.pick(&[20, 50, 80]);
        let haste = self.random.pick(&[5, 20, 60]);
        while self.count < OPS {
            let ring = usize::from(self.random.chance(20));
            let sqe = if self.random.chance(tied) { self.tied(ring) } else { self.free(ring) };
            self.push(ring, sqe);
            if self.random.chance(haste) {
                for _ in 0..self.random.below(8) {
                    self.step();
                }
                self.pop();
            }
            if breaks == Some(self.count) {
                let rail = 1 + u16::try_from(self.random.below(self.bench.rails.into())).unwrap();
                let side = self.random.index(2);
                let number = self.bench.two.join.number(rail, side);
                self.bench.two.net.break_pair(number);
                self.bench.tally.broken += 1;
                self.moves.repeat();
            }
        }
        for ring in 0..2 {
            self.push(ring, Sqe::default());
        }
        self.bench.two.settle();
        self.pop();
        assert_eq!(self.ends.len(), self.count, "one CQE for each");
    }

    /// Believes the CQEs: who was carried out for whom, and who failed.
    fn judge(&mut self) {
        let own = self.ends.iter().filter(|(_, cqe)| cqe.flags & CQE_COALESCED == 0);
        let own: BTreeMap<u64, usize> = own.map(|(op, cqe)| (cqe.record, *op)).collect();
        for (&op, cqe) in &self.ends {
            if cqe.res < 0 {
                assert!(cqe.flags & (CQE_FLUSHED | CQE_DEP_FAILED) != 0, "{cqe:?}");
                self.bench.tally.failed += 1;
                self.moves.fail(op);
            } else {
                assert_eq!(u32::try_from(cqe.res), Ok(self.sqes[op].bytes), "{cqe:?}");
            }
            if cqe.flags & CQE_COALESCED != 0 {
                let by = own[&cqe.record];
                self.may_fold(op, by);
                self.moves.fold(op, by);
            }
        }
    }

    /// An op may be carried out for another that asks for the same; or, where the last value wins,
    /// for one that writes to the same place.
    fn may_fold(&self, op: usize, by: usize) {
        let [op, by] = [op, by].map(|op| self.sqes[op]);
        let flags = op.flags & by.flags & (SQE_COALESCE | SQE_SUPERSEDE);
        let [same, other] = [op, by].map(|sqe| self.bench.moves(&sqe).unwrap());
        let alike = match flags {
            SQE_COALESCE => (op.opcode, same) == (by.opcode, other),
            SQE_SUPERSEDE => (same.to, same.bytes) == (other.to, other.bytes),
            _ => false,
        };
        let free = [op, by].iter().all(|sqe| sqe.edges == [0; 2]);
        assert!(alike && free, "{by:?} was carried out for {op:?}");
    }

    /// Every byte holds what it may hold.
    fn compare(&mut self, before: &[u8]) {
        let after = self.bench.memory();
        self.moves.order(before.len());
        let ends = self.moves.ends(before);
        for (byte, (&is, may_be)) in after.iter().zip(&ends).enumerate() {
            let (last, writers) = self.moves.last(byte);
            let tally = &mut self.bench.tally;
            tally.decided += u64::from(writers > 1 && last == 1);
            tally.open += u64::from(last > 1);
            assert!(
                may_be.has(is),
                "byte {byte} was {}, is {is}; {last} of {writers} may have been last: {:#?}",
                before[byte],
                self.rings,
            );
        }
    }
}

/// Rounds until there were so many WRITEs.
fn run(seed: u64) -> Tally {
    let random = &mut Random::new(seed);
    let mut bench = Bench::new(random);
    while bench.tally.writes < WRITES {
        let before = bench.memory();
        let rings = bench.clients.map(|client| Ring { client, ..Ring::default() });
        let (moves, ends, sqes) = (Moves::default(), BTreeMap::new(), Vec::new());
        let mut round = Round { bench: &mut bench, random, rings, moves, count: 0, ends, sqes };
        round.play();
        round.judge();
        round.compare(&before);
    }
    bench.two.expect_rest();
    bench.tally.merged = merged(&mut bench.two);
    bench.tally.folded = bench.counted(Counter::FoldHit);
    bench.tally.superseded = bench.counted(Counter::Superseded);
    bench.tally
}

#[test]
fn overlapping_writes_end_as_a_serial_replay_wherever_they_are_ordered() {
    let writes: u64 =
        std::env::var("VERBRING_OVERLAPS").map_or(100_000, |text| text.parse().unwrap());
    let sum = std::cell::Cell::new(Tally::default());
    each_seed(writes.div_ceil(WRITES), |seed| {
        let mut all = sum.get();
        all.add(&run(seed));
        sum.set(all);
    });
    let all = sum.get();
    println!("{all:?}");
    assert!(!all.ties.contains(&0) && all.reads > 0 && all.decided > 0, "{all:?}");
    assert!(all.merged > 0 && all.folded > 0 && all.superseded > 0 && all.rode > 0, "{all:?}");
    assert!(all.failed * 100 < all.writes, "{all:?}");
}
