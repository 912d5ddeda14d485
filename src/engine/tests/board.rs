//! A ring whose ops depend on each other, over a fabric whose completions come when the test says;
//! after every turn what was started and what has ended is compared with the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::script::{Script, Stage};
use super::world::{Pair, SENDER, World};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_DEP_FAILED, Cqe, Opcode, RecordEntry, SQE_SKIP_SUCCESS, Sqe,
};
use crate::engine::graph::{Course, Graph};
use crate::engine::{Command, Limits, Reply};
use crate::fabric::Request;
use crate::ids::SessionId;
use crate::ring::Verdict;
use crate::sync::AtomicU64;
use crate::telemetry::{Recorder, read_entry};

/// Bytes of every op that moves some.
pub(super) const BYTES: u32 = 8;
/// Ops are told by their offsets: the remote one counts up to this, the local one the rounds.
const PLACES: u64 = 1024;
/// Entries of the recorder: an op is looked for in it when its CQE comes.
const ENTRIES: u32 = 4096;

/// What was asked of an op: how it would end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Well,
    /// The fabric says this errno.
    Broken(i32),
    /// A field of it is wrong.
    Refused,
    /// It is taken back, if it still waits.
    TakenBack,
}

/// How often ops came to their ends in each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) ran: u64,
    pub(super) failed: u64,
    pub(super) inherited: u64,
    pub(super) taken_back: u64,
    pub(super) refused: u64,
    /// Carried out though something before it had failed.
    pub(super) passed: u64,
    /// Were not started in the turn in which they were taken.
    pub(super) waited: u64,
}

/// What is known of an op.
#[derive(Clone, Copy, Debug)]
struct Op {
    fate: Fate,
    sqe: Sqe,
    taken: bool,
    posted: bool,
    /// It was seen to wait.
    waited: bool,
    /// The turn after which nothing was in its way.
    ready: Option<u64>,
}

/// One ring, the fabric, and the reference.
pub(super) struct Board {
    pub(super) stage: Stage,
    pub(super) pair: Pair<Script>,
    pub(super) graph: Graph,
    pub(super) tally: Tally,
    /// Ops that are not over, by number.
    ops: BTreeMap<u64, Op>,
    /// What the recorder is written to, how many entries of it were read, and those of this turn.
    kept: Arc<[[AtomicU64; 8]]>,
    read: u32,
    entries: BTreeMap<u64, RecordEntry>,
    taken: u64,
    /// CQEs that came and are yet to be looked at.
    coming: BTreeSet<u64>,
    turns: u64,
    question: Option<(u64, u64)>,
    to_take_back: u64,
    /// One turn of so many is followed by a look at all that waits.
    pub(super) looks_every: u64,
}

impl Board {
    pub(super) fn new(limits: Limits, entries: u32) -> Self {
        let stage = Stage::new();
        stage.plan().unchained = true;
        let mut pair = Pair::new(World::new(limits, stage.fabric(limits)), entries);
        stage.hold();
        let (recorder, kept) = Recorder::on_heap(ENTRIES);
        pair.world.engine.command(Command::SetRecorder { session: SessionId(0), recorder });
        Self {
            stage,
            pair,
            graph: Graph::default(),
            tally: Tally::default(),
            ops: BTreeMap::new(),
            kept,
            read: 0,
            entries: BTreeMap::new(),
            taken: 0,
            coming: BTreeSet::new(),
            turns: 0,
            question: None,
            to_take_back: 0,
            looks_every: 1,
        }
    }

    /// SQEs that may be pushed.
    pub(super) fn room(&mut self) -> bool {
        self.pair.world.clients[SENDER].end.room() > 0
    }

    /// An SQE of an opcode that the board can judge: WRITE, NOP or JOIN.
    pub(super) fn sqe(&self, opcode: Opcode) -> Sqe {
        let number = self.pair.world.clients[SENDER].end.pushed();
        let sqe = match opcode {
            Opcode::Write => {
                assert!(number < PLACES * PLACES, "offsets to tell ops by");
                let local_offset = number / PLACES * 64;
                Sqe { local_offset, ..self.pair.write(number % PLACES * 64, BYTES) }
            }
            _ => Sqe { opcode: opcode as u8, ..Sqe::default() },
        };
        Sqe { user_data: 1 + number, ..sqe }
    }

    /// Pushes an op that is to end like this; its number. One that is refused has another wrong
    /// field each time.
    pub(super) fn push(&mut self, mut sqe: Sqe, fate: Fate) -> u64 {
        if fate == Fate::Refused {
            match self.pair.world.clients[SENDER].end.pushed() % 3 {
                0 => sqe.class = 9,
                1 => sqe.opcode = 200,
                _ => sqe.flags |= 1 << 15,
            }
        }
        let number = self.graph.push(&sqe);
        assert_eq!(self.pair.world.push(SENDER, sqe), number);
        self.to_take_back += u64::from(fate == Fate::TakenBack);
        self.ops.insert(
            number,
            Op { fate, sqe, taken: false, posted: false, waited: false, ready: None },
        );
        number
    }

    /// Ops without an end.
    pub(super) fn open(&self) -> usize {
        self.ops.len()
    }

    /// Completes one of the requests that the fabric holds, as its op is to end.
    pub(super) fn complete(&mut self, at: usize) {
        let number = number_of(&self.stage.plan().held[at]);
        let errno = match self.ops[&number].fate {
            Fate::Broken(errno) => errno,
            _ => 0,
        };
        self.stage.complete(at, errno);
    }

    pub(super) fn complete_all(&mut self) {
        while self.stage.held() > 0 {
            self.complete(0);
        }
    }

    /// Asks on the control socket to take back what waits and is to be taken back, one at a time.
    pub(super) fn take_back(&mut self) {
        if self.to_take_back == 0 || self.question.is_some() || !self.pair.world.engine.accepts() {
            return;
        }
        let due = |(_, op): &(&u64, &Op)| op.fate == Fate::TakenBack && op.taken && !op.posted;
        let Some((&number, _)) = self.ops.iter().find(due) else { return };
        let token = self.pair.world.query(SENDER, CANCEL_BY_NUMBER, number, true);
        self.question = Some((token, number));
    }

    /// A turn, and a look at all that came of it.
    pub(super) fn turn(&mut self) {
        self.turns += 1;
        self.stage.plan().taken.clear();
        self.stage.plan().offered.clear();
        self.pair.world.turn();
        let posted: Vec<u64> = self.stage.plan().taken.iter().map(number_of).collect();
        self.look_at_intake();
        self.read_entries();
        let cqes = self.pair.world.pop(SENDER);
        self.coming = cqes.iter().map(|cqe| cqe.user_data - 1).collect();
        for cqe in cqes {
            self.end(&cqe);
            self.coming.remove(&(cqe.user_data - 1));
        }
        for number in posted {
            self.skip(number);
            let open = self.graph.waits_for(number);
            assert!(open.is_empty(), "{number} was started before {open:?} were over");
            let inherits = self.graph.inherits(number);
            assert!(inherits.is_empty(), "{number} was started, and inherits {inherits:?}");
            let Some(op) = self.ops.get_mut(&number) else { continue };
            assert!(!op.posted, "{number} was started twice");
            op.posted = true;
            self.tally.waited += u64::from(op.waited);
        }
        self.hear();
        if self.turns.is_multiple_of(self.looks_every) {
            self.nothing_is_forgotten();
        }
    }

    fn look_at_intake(&mut self) {
        let taken = self.pair.world.clients[SENDER].taken();
        for number in self.taken..taken {
            self.graph.take(number, self.turns);
            if let Some(op) = self.ops.get_mut(&number) {
                op.taken = true;
            }
        }
        self.taken = taken;
    }

    /// Skipped successes show in the fate table.
    fn skip(&mut self, before: u64) {
        for number in self.graph.waits_for(before) {
            let Some(op) = self.ops.get(&number) else { continue };
            if op.sqe.flags & SQE_SKIP_SUCCESS != 0 && op.taken {
                self.skip_one(number);
            }
        }
    }

    fn skip_all(&mut self) {
        let skips = |op: &&Op| op.sqe.flags & SQE_SKIP_SUCCESS != 0 && op.taken;
        let open = self.ops.iter().filter(|(_, op)| skips(op)).map(|(number, _)| *number);
        for number in open.collect::<Vec<_>>() {
            if self.ops.contains_key(&number) {
                self.skip_one(number);
            }
        }
    }

    fn skip_one(&mut self, number: u64) {
        let over = self.pair.world.clients[SENDER].end.verdict(number) == Verdict::Done;
        if over && !self.coming.contains(&number) {
            // Those before it first, as deep as they go.
            let mut order = vec![number];
            while let Some(&last) = order.last() {
                let open = self.graph.waits_for(last);
                if open.is_empty() {
                    self.graph.skip(last, self.turns).unwrap();
                    self.ops.remove(&last);
                    self.tally.ran += 1;
                    order.pop();
                } else {
                    order.extend(open);
                }
            }
        }
    }

    fn end(&mut self, cqe: &Cqe) {
        let number = cqe.user_data - 1;
        self.skip(number);
        let op = self.ops.get(&number).copied();
        let op = op.unwrap_or_else(|| panic!("a CQE for nothing, or a second one: {cqe:?}"));
        let course = self.graph.end(number, cqe, self.turns);
        let course = course.unwrap_or_else(|why| panic!("{why}; {op:?}"));
        self.ops.remove(&number);
        let tally = &mut self.tally;
        match course {
            Course::Ran => {
                let bytes = if op.sqe.opcode == Opcode::Write as u8 { BYTES } else { 0 };
                let expected = match op.fate {
                    Fate::Broken(errno) => -errno,
                    _ => i32::try_from(bytes).unwrap(),
                };
                assert_eq!(cqe.res, expected, "{number}: {op:?} {cqe:?}");
                *(if cqe.res < 0 { &mut tally.failed } else { &mut tally.ran }) += 1;
                tally.passed += u64::from(self.graph.passed_a_failure(number));
            }
            Course::Inherited => {
                assert!(!op.posted, "started, and yet: {cqe:?}");
                tally.inherited += 1;
                self.recorded(cqe, op.sqe);
            }
            Course::Early => {
                assert_eq!(op.fate, Fate::TakenBack, "{number}: {op:?} {cqe:?}");
                tally.taken_back += 1;
            }
            Course::Refused => {
                let fault = self.graph.fault(number);
                let fault = fault.map(|(errno, detail)| (-errno, detail as u16));
                let told = fault == Some((cqe.res, cqe.detail));
                assert!(op.fate == Fate::Refused || told, "{number}: {op:?} {cqe:?}");
                tally.refused += 1;
            }
        }
    }

    /// Reads what was recorded in this turn.
    fn read_entries(&mut self) {
        self.entries.clear();
        while let Some(words) = read_entry(&self.kept[(self.read % ENTRIES) as usize]) {
            let entry = RecordEntry::from_words(words);
            if entry.sequence != self.read + 1 {
                break;
            }
            self.entries.insert(entry.record, entry);
            self.read += 1;
        }
    }

    /// The record of an op that inherited a failure names the first cause.
    fn recorded(&mut self, cqe: &Cqe, sqe: Sqe) {
        assert_ne!(cqe.flags & CQE_DEP_FAILED, 0);
        if sqe.opcode == Opcode::Nop as u8 {
            return;
        }
        let entry = self.entries.get(&cqe.record);
        let entry = entry.unwrap_or_else(|| panic!("no entry for {cqe:?}"));
        let said = (entry.res, entry.flags, entry.detail);
        assert_eq!(said, (cqe.res, cqe.flags, cqe.detail), "{entry:?}");
        let told = self.graph.recorded(cqe.user_data - 1, entry.cause.into());
        told.unwrap_or_else(|why| panic!("{why}: {entry:?}"));
    }

    fn hear(&mut self) {
        let Some((token, number)) = self.question else { return };
        let Some(reply) = self.pair.world.reply(token) else { return };
        self.question = None;
        let Some(op) = self.ops.get_mut(&number) else { return };
        // It was too late, so that it ends as any other.
        assert!(matches!(reply, Reply::Failed { .. }), "taken back without a CQE: {reply:?}");
        op.fate = Fate::Well;
    }

    /// What nothing was in the way of after the last turn but one has started, or is over.
    fn nothing_is_forgotten(&mut self) {
        let roomy = self.stage.held() < self.pair.world.engine.limits.window_wrs as usize;
        for (&number, op) in &mut self.ops {
            if !op.taken || op.posted {
                continue;
            }
            if !self.graph.waits_for(number).is_empty() {
                assert_eq!(op.ready, None, "{number}");
                op.waited = true;
                continue;
            }
            let since = *op.ready.get_or_insert(self.turns);
            let skipped = op.sqe.flags & SQE_SKIP_SUCCESS != 0;
            let patience = 2 * self.looks_every;
            let forgotten = roomy && !skipped && self.turns > since + patience;
            assert!(!forgotten, "{number} could start since turn {since}: {op:?}");
        }
    }

    /// Everything that was pushed comes to its end, whatever is left to complete first.
    pub(super) fn finish(&mut self) {
        let mut turns = 0;
        while self.open() > 0 {
            self.take_back();
            self.complete_all();
            self.turn();
            turns += 1;
            if turns % self.looks_every == 0 || self.stage.held() == 0 {
                self.skip_all();
            }
            assert!(turns < 100_000, "still open: {:?}", self.ops.keys().take(20));
        }
        while self.question.is_some() {
            self.turn();
        }
    }
}

/// The op that a request belongs to.
fn number_of(request: &Request) -> u64 {
    request.local_offset / 64 * PLACES + request.remote_offset / 64
}
