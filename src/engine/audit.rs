//! What must hold between two turns, counted afresh from the records: the engine's own sums are
//! compared with it, and the fate tables are read as a client would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use crate::abi::{Class, FATE_ACCEPTED, FATE_FREE, FATE_POSTED, FATE_SHIFT, Opcode};
use crate::fabric::Fabric;
use crate::ids::RingId;
use crate::ledger::{Aside, LANE, List, NIL, RING, Record, State, TIE_DRAIN};
use crate::ring::{Memory, Word};
use crate::sched::credits::Window;
use crate::sched::{Bounds, Mode};

use super::Engine;
use super::lines::CARDS_MAX;
use super::tables::{Ring, Share};

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Counts afresh, between two turns, what is held for what is in flight.
    ///
    /// # Panics
    /// If the engine's sums, lists and tables do not tell one story.
    pub fn audit(&self) {
        let open: BTreeSet<u32> = open(self).collect();
        assert_eq!(open.len(), self.ledger.open_count() as usize, "open records");
        credits(self, &open);
        lists(self, &open);
        edges(self, &open);
        references(self, &open);
        self.folds.audit(&self.ledger);
        shares(self, &open);
        for ring in self.rings.iter().flatten() {
            slots(self, ring, &open);
        }
        assert!(self.dirty.is_empty(), "rings left unpublished");
        let parked = self.rings.iter().flatten().filter(|ring| ring.polled).count();
        assert_eq!(self.polled.len(), parked, "the poll set");
    }

    /// Reads every fate table between two turns, as a client would.
    ///
    /// # Panics
    /// If one says something else than its ops.
    pub fn audit_fates(&self) {
        for ring in self.rings.iter().flatten() {
            fates(self, ring);
        }
    }
}

fn open<F: Fabric, M>(engine: &Engine<F, M>) -> impl Iterator<Item = u32> + '_ {
    (0..engine.ledger.capacity()).filter(|&slot| engine.ledger[slot].state != State::Free)
}

/// Credits taken are the requests in the fabric, and every request belongs to an open record.
fn credits<F: Fabric, M>(engine: &Engine<F, M>, open: &BTreeSet<u32>) {
    let mut posts: BTreeMap<u32, u32> = BTreeMap::new();
    let mut by_rail = vec![(0, 0); usize::from(engine.fabric.rails())];
    for post in engine.posts.open_posts() {
        *posts.entry(post.slot).or_default() += 1;
        let (ops, bytes) = &mut by_rail[usize::from(post.slice.rail)];
        *ops += 1;
        *bytes += u64::from(post.slice.bytes);
    }
    let in_fabric: BTreeMap<u32, u32> = open
        .iter()
        .map(|&slot| (slot, engine.ledger[slot].in_fabric))
        .filter(|&(_, count)| count > 0)
        .collect();
    assert_eq!(posts, in_fabric, "posts by record");
    let (wrs, bytes) = by_rail[0];
    let near = || open.iter().map(|&slot| &engine.ledger[slot]).filter(|record| at_home(record));
    let whole: u64 = near().filter(|record| record.whole).map(asked).sum();
    // What is in the window as a whole has its bytes there, not those of its requests.
    let bytes = if engine.limits.policy.mode == Mode::Tent { whole } else { bytes };
    let ops = near().filter(|record| record.whole || record.in_fabric > 0).count();
    let held = (engine.window.ops() as usize, engine.window.wrs(), engine.window.bytes());
    assert_eq!(held, (ops, wrs, bytes), "credits of this host");
    if whole == 0 {
        within(&engine.window, "this host");
    }
    abroad_credits(engine, open, &by_rail);
    high(engine);
}

/// What owners have of class high in the fabric is counted, within its bound but for one request
/// that goes alone; and whoever is out of turn for it has none to spare.
fn high<F: Fabric, M>(engine: &Engine<F, M>) {
    let mut owners = vec![(0, 0); engine.owners.len()];
    for post in engine.posts.open_posts().filter(|post| post.slice.bytes > 0) {
        let record = &engine.ledger[post.slot];
        if record.op.class == Class::High {
            let session = &engine.sessions[record.session.0 as usize];
            let (wrs, bytes) = &mut owners[session.owner as usize];
            (*wrs, *bytes) = (*wrs + 1, *bytes + u64::from(post.slice.bytes));
        }
    }
    for (place, (owner, (wrs, bytes))) in engine.owners.iter().zip(owners).enumerate() {
        assert_eq!(owner.high, bytes, "bytes of class high of owner {place}");
        assert!(bytes <= owner.high_max || wrs == 1, "more of class high than {place} may");
        let out = owner.wants_high.is_some_and(|bytes| owner.admits_high(bytes));
        assert!(!out, "owner {place} is out of turn for nothing");
    }
}

/// True of an op that moves something on this host.
fn at_home(record: &Record) -> bool {
    matches!(record.state, State::Queued | State::Posted) && record.line == 0
}

/// Bytes that an op moves.
fn asked(record: &Record) -> u64 {
    u64::from(record.op.bytes) * u64::from(record.op.pages.max(1))
}

/// What windows hold is within their bounds, but for one request that goes alone.
fn within(window: &Window, of: &str) {
    let Bounds { ops, wrs, bytes } = *window.bounds();
    assert!(window.wrs() <= wrs && window.ops() <= ops, "the window of {of}: {window:?}");
    assert!(window.bytes() <= bytes || window.wrs() <= 1, "the window of {of}: {window:?}");
}

/// Cards and lines have what their rails have, and the ops of which something is in flight.
fn abroad_credits<F: Fabric, M>(
    engine: &Engine<F, M>,
    open: &BTreeSet<u32>,
    by_rail: &[(u32, u64)],
) {
    let abroad = &engine.abroad;
    let mut cards = [(0, 0, 0); CARDS_MAX];
    for (way, (wrs, bytes)) in abroad.ways.iter().zip(by_rail).skip(1) {
        let card = &mut cards[usize::from(way.card)];
        (card.1, card.2) = (card.1 + wrs, card.2 + bytes);
    }
    let mut lines: BTreeMap<u16, (u32, u32, u64)> = BTreeMap::new();
    for post in engine.posts.open_posts().filter(|post| post.slice.rail != 0) {
        let line = lines.entry(engine.ledger[post.slot].line).or_default();
        (line.1, line.2) = (line.1 + 1, line.2 + u64::from(post.slice.bytes));
    }
    for &slot in open {
        let record = &engine.ledger[slot];
        if record.line != 0 && record.in_fabric > 0 {
            cards[usize::from(record.entered)].0 += 1;
            lines.entry(record.line).or_default().0 += 1;
        }
    }
    let held = |window: &Window| (window.ops(), window.wrs(), window.bytes());
    for (card, sums) in abroad.cards.iter().zip(cards) {
        assert_eq!(held(&card.window), sums, "credits of a card");
        within(&card.window, "a card");
    }
    for line in 1..engine.fabric.rails() {
        let window = abroad.peer_window(line);
        assert_eq!(held(window), lines.remove(&line).unwrap_or_default(), "credits of line {line}");
        within(window, "a peer");
    }
}

/// Every record is on the one list that its state names, in order of intake on its ring's.
fn lists<F: Fabric, M>(engine: &Engine<F, M>, open: &BTreeSet<u32>) {
    let mut lanes = BTreeSet::new();
    let near = engine.lanes.heads().map(|head| (head, false));
    let far = engine.abroad.queue.heads().map(|head| (head, true));
    for (head, abroad) in near.chain(far) {
        for slot in walk::<LANE, F, M>(engine, head) {
            let record = &engine.ledger[slot];
            let told = (record.aside, engine.fabric.rails() > 1 && record.line != 0);
            assert_eq!(told, (Aside::No, abroad), "a flow: {record:?}");
            assert!(lanes.insert(slot), "twice in a flow");
        }
    }
    for slot in walk::<LANE, F, M>(engine, engine.admitted.head()) {
        assert!(engine.ledger[slot].whole, "admitted");
        assert!(lanes.insert(slot), "twice in a list");
    }
    for rail in 1..engine.fabric.rails() {
        for (queue, aside) in engine.abroad.lanes(rail) {
            for class in Class::ALL {
                for slot in walk::<LANE, F, M>(engine, queue.head(class).unwrap_or(NIL)) {
                    let record = &engine.ledger[slot];
                    let own = if aside == Aside::Rail { record.rail } else { record.line };
                    let told = (record.class, own, record.aside);
                    assert_eq!(told, (class, rail, aside), "a rail's lane");
                    assert!(lanes.insert(slot), "twice in a lane");
                }
            }
        }
    }
    let flushes: BTreeSet<u32> = walk::<LANE, F, M>(engine, engine.flushes.head()).collect();
    let regions = engine.regions.iter();
    let arms: BTreeSet<u32> =
        regions.flat_map(|region| walk::<LANE, F, M>(engine, region.arms.head())).collect();
    let mut deadlines = 0;
    for &slot in open {
        let record = &engine.ledger[slot];
        let waits = in_lane(record);
        assert_eq!(lanes.contains(&slot), waits, "in a lane: {record:?}");
        assert_eq!(arms.contains(&slot), record.state == State::Armed, "armed: {record:?}");
        let flush = record.state == State::Flushing && record.op.opcode == Opcode::Flush;
        assert_eq!(flushes.contains(&slot), flush, "flushing: {record:?}");
        let waits = waits || matches!(record.state, State::Waiting | State::Folded);
        deadlines += u32::from(waits && record.op.deadline_us > 0);
    }
    assert_eq!(engine.deadlines, deadlines, "deadlines in lanes");
    assert!(lanes.len() + arms.len() + flushes.len() <= open.len(), "a free record on a list");
}

/// Whoever waits does so for edges that name it, and for its own DRAIN; edges are counted by ring,
/// session and owner.
fn edges<F: Fabric, M: Memory>(engine: &Engine<F, M>, open: &BTreeSet<u32>) {
    let mut waits: BTreeMap<u32, u32> = BTreeMap::new();
    let mut by_ring: BTreeMap<RingId, u32> = BTreeMap::new();
    for &slot in open {
        let record = &engine.ledger[slot];
        for (waiter, _) in engine.edges.waiters(record.dependents) {
            *by_ring.entry(record.ring).or_default() += 1;
            if let Some(waiter) = engine.ledger.find(waiter) {
                *waits.entry(waiter).or_default() += 1;
            }
        }
    }
    for (ring, waiter) in engine.edges.settled() {
        *by_ring.entry(ring).or_default() += 1;
        if let Some(waiter) = engine.ledger.find(waiter) {
            *waits.entry(waiter).or_default() += 1;
        }
    }
    let mut drains: BTreeMap<RingId, u32> = BTreeMap::new();
    for &slot in open {
        let record = &engine.ledger[slot];
        let drain = u32::from(record.ties & TIE_DRAIN != 0);
        *drains.entry(record.ring).or_default() += drain;
        let edges = waits.get(&slot).copied().unwrap_or(0);
        assert_eq!(record.awaits, edges + drain, "what is waited for: {record:?}");
        let waiting = record.state == State::Waiting;
        assert!(!waiting || record.awaits > 0, "waits for nothing: {record:?}");
    }
    assert_eq!(engine.edges.in_use(), by_ring.values().sum::<u32>(), "edges");
    let mut sessions = vec![0; engine.sessions.len()];
    let mut owners = vec![0; engine.owners.len()];
    for ring in engine.rings.iter().flatten() {
        let edges = by_ring.get(&ring.id).copied().unwrap_or(0);
        assert_eq!(ring.ties.edges, edges, "edges of a ring");
        assert_eq!(ring.ties.drains, drains.get(&ring.id).copied().unwrap_or(0), "drains");
        let session = ring.session.0 as usize;
        sessions[session] += edges;
        owners[engine.sessions[session].owner as usize] += edges;
    }
    for (place, (session, owner)) in engine.sessions.iter().zip(&engine.owners).enumerate() {
        assert_eq!((session.edges, owner.edges), (sessions[place], owners[place]), "edges");
    }
    assert_eq!(engine.edge_share.free + engine.edges.in_use(), engine.limits.edges, "edges left");
}

fn some(place: u32) -> Option<u32> {
    (place != NIL).then_some(place)
}

fn in_lane(record: &Record) -> bool {
    let data = matches!(record.state, State::Queued | State::Posted);
    data && !record.posted_whole
}

fn walk<'a, const L: usize, F: Fabric, M>(
    engine: &'a Engine<F, M>,
    head: u32,
) -> impl Iterator<Item = u32> + 'a {
    std::iter::successors(some(head), move |&slot| some(List::<L>::next(&engine.ledger, slot)))
        .take(1 + engine.ledger.capacity() as usize)
}

/// References are held from intake to the final CQE, one for each place an op names.
fn references<F: Fabric, M>(engine: &Engine<F, M>, open: &BTreeSet<u32>) {
    let mut own: BTreeMap<u32, u32> = BTreeMap::new();
    let mut remote: BTreeMap<u32, u32> = BTreeMap::new();
    for &slot in open {
        let op = &engine.ledger[slot].op;
        for place in [op.local, op.import].into_iter().filter(|&place| place != NIL) {
            *own.entry(place).or_default() += 1;
        }
        if op.target != NIL {
            *remote.entry(op.target).or_default() += 1;
        }
    }
    for (place, region) in (0u32..).zip(&engine.regions) {
        assert_eq!(region.refs, own.get(&place).copied().unwrap_or(0), "refs of {place}");
        let count = remote.get(&place).copied().unwrap_or(0);
        assert_eq!(region.remote_refs, count, "remote refs of {place}");
        if region.id.is_none() {
            assert!(region.idle() && region.arms.is_empty(), "a free region is named");
        }
    }
}

/// Pools: what is used and what is free make up the whole, and guarantees are set aside.
fn shares<F: Fabric, M>(engine: &Engine<F, M>, open: &BTreeSet<u32>) {
    let sessions = engine.sessions.len();
    let (mut records, mut blocks) = (vec![0; sessions], vec![0; sessions]);
    let mut owners = vec![(0, 0u64, 0); engine.owners.len()];
    for &slot in open {
        let record = &engine.ledger[slot];
        let session = record.session.0 as usize;
        records[session] += 1;
        let (ops, bytes, with_bytes) = &mut owners[engine.sessions[session].owner as usize];
        *ops += 1;
        let asked = if record.state == State::Folded { 0 } else { record.op.asked() };
        *bytes += asked;
        *with_bytes += u32::from(asked > 0);
        let list = std::iter::successors(some(record.op.list), |&at| some(engine.pages.next(at)));
        blocks[session] += u32::try_from(list.count()).unwrap_or(u32::MAX);
    }
    for (place, session) in engine.sessions.iter().enumerate() {
        assert_eq!(session.records, records[place], "records of session {place}");
        assert_eq!(session.blocks, blocks[place], "blocks of session {place}");
        let owner = &engine.owners[place];
        let (ops, bytes, with_bytes) = owners[place];
        assert_eq!((owner.ops, owner.bytes), (ops, bytes), "ops and bytes of owner {place}");
        assert!(bytes <= owner.bytes_max || with_bytes == 1, "more bytes than owner {place} may");
    }
    let whole = |share: &Share, used: &[u32], capacity: u32| {
        assert_eq!(share.free + used.iter().sum::<u32>(), capacity, "a pool's sum");
    };
    whole(&engine.record_share, &records, engine.limits.records);
    whole(&engine.block_share, &blocks, engine.limits.list_blocks);
    assert_eq!(engine.pages.free_count(), engine.block_share.free, "free page blocks");
}

/// A ring's promised CQ slots are those that its ops may still fill.
fn slots<F: Fabric, M: Memory>(engine: &Engine<F, M>, ring: &Ring<M>, open: &BTreeSet<u32>) {
    let mine: Vec<u32> = walk::<RING, F, M>(engine, ring.ops.head()).collect();
    let records: Vec<&Record> = mine.iter().map(|&slot| &engine.ledger[slot]).collect();
    assert!(records.is_sorted_by(|a, b| a.number < b.number), "a ring's ops in order");
    let all = open.iter().filter(|&&slot| engine.ledger[slot].ring == ring.id).count();
    assert_eq!(all, mine.len(), "ops of a ring");
    assert!(ring.frees.is_empty(), "fate entries left to free");
    let memory = ring.end.memory();
    if !ring.faulted {
        let slots = |record: &&Record| match record.op.opcode {
            Opcode::Arm => record.op.bytes - record.cursor,
            _ => 1,
        };
        assert_eq!(ring.end.reserved(), records.iter().map(slots).sum::<u32>(), "promised slots");
        assert_eq!(ring.fates.len() + mine.len(), memory.cq_entries() as usize, "fate entries");
    }
}

/// A ring's fate table is what its ops say.
fn fates<F: Fabric, M: Memory>(engine: &Engine<F, M>, ring: &Ring<M>) {
    let memory = ring.end.memory();
    let taken = memory.word(Word::SqHead).load(Ordering::Acquire);
    let taken = taken.wrapping_sub(memory.first_index());
    assert_eq!(u64::from(taken), ring.next_number & 0xffff_ffff, "sq_head");
    let load = |place| memory.fate(place)[1].load(Ordering::Acquire);
    let stage = |place| load(place) & ((1 << FATE_SHIFT) - 1);
    assert!(ring.fates.iter().all(|&place| stage(place) == FATE_FREE), "a free fate entry");
    for slot in walk::<RING, F, M>(engine, ring.ops.head()) {
        let record = &engine.ledger[slot];
        let folded = record.state == State::Folded && engine.folds.is_posted(&engine.ledger, slot);
        let posted = folded || record.state == State::Posted;
        let stage = if posted { FATE_POSTED } else { FATE_ACCEPTED };
        assert_eq!(load(record.fate), (record.number << FATE_SHIFT) | stage, "{record:?}");
        let id = memory.fate(record.fate)[0].load(Ordering::Relaxed);
        assert_eq!(id, engine.ledger.id(slot).0, "the record of a fate entry");
        assert_eq!(engine.ledger[slot].ring, RingId(ring.id.0));
    }
}
