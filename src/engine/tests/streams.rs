//! Random streams of ops over three sessions with two rings each, on a fabric that takes parts,
//! completes late and out of order, fails, and repeats itself; against the model. Each SQE gets
//! exactly one final CQE, every result is the model's, and at rest nothing is left.

use super::model::{Model, Pending, REGION_BYTES};
use super::script::{Mood, Script, Stage};
use super::watched::entries;
use super::world::{LIMITS, World};
use crate::abi::{
    CANCEL_BY_NUMBER, CANCEL_BY_RECORD, Class, Opcode, SQE_REVOKE, SQE_SKIP_SUCCESS, STATE_UNTAKEN,
    errno,
};
use crate::engine::{Command, Limits, Reply, Turn, Wind};
use crate::ids::SessionId;
use crate::ring::Verdict;
use crate::sched::Contract;
use crate::seeds::{Random, each_seed};

const SESSIONS: u32 = 3;

/// One seeded run.
struct Stream {
    random: Random,
    world: World<Script>,
    stage: Stage,
    model: Model,
    /// Control-socket questions under way: token, side, whether it cancels, number.
    question: Option<(u64, usize, bool, u64)>,
    revokes: u32,
    tokens: Vec<u64>,
}

impl Stream {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let limits = Limits {
            records: random.pick(&[24, 128]),
            window_wrs: 1 + random.below32(8),
            window_bytes: random.pick(&[100, 700, 4096]),
            slice_bytes: random.pick(&[64, 256, 1000]),
            intake_budget: random.pick(&[1, 8, 64]),
            ring_idle_ns: random.pick(&[3_000, 1_000_000]),
            ..LIMITS
        };
        let stage = Stage::new();
        let mut world = World::new(limits, stage.fabric(limits));
        let mut model = Model::new();
        let contract = Contract {
            bytes_max: random.pick(&[1, 100, 2_000, u64::MAX]),
            high_bytes_max: random.pick(&[1, 300, u64::MAX]),
            ..Contract::of_ops(limits.records)
        };
        let owners = 1 + random.below32(SESSIONS);
        for session in (0..SESSIONS).map(SessionId) {
            world.session_under(session.0, session.0 % owners, contract);
            for _ in 0..2 {
                let sizes = [2, 4, 8, 16, 64];
                let cq_entries = random.pick(&sizes);
                world.ring(session, random.pick(&sizes), cq_entries);
                model.add_side(session.0 as usize, cq_entries);
            }
            let id = world.region(session, REGION_BYTES);
            let real = world.memory[&id.0].clone();
            model.add_place(id, real);
        }
        let errors = random.chance(50);
        stage.plan().mood = Some(Mood {
            random: Random::new(random.next()),
            partial: random.below(80),
            prompt: 10 + random.below(90),
            broken: if errors { 5 } else { 0 },
            stale: random.below(20),
            old: Vec::new(),
        });
        model.errors = errors;
        let mut stream =
            Self { random, world, stage, model, question: None, revokes: 0, tokens: Vec::new() };
        for place in 0..SESSIONS as usize {
            stream.offer(place);
        }
        stream
    }

    /// Everybody imports a place, again.
    fn offer(&mut self, place: usize) {
        let target = self.model.places[place].id;
        let sessions = (0..SESSIONS).map(SessionId);
        self.model.places[place].imports =
            sessions.map(|session| self.world.import(session, target)).collect();
        self.model.places[place].revoked = false;
    }

    fn sides(&self) -> usize {
        self.model.sides.len()
    }

    fn submit(&mut self) {
        let side = self.random.index(self.sides());
        if self.model.sides[side].winding || self.world.clients[side].end.room() == 0 {
            return;
        }
        let number = self.world.clients[side].end.pushed();
        let memory = &self.world.memory;
        let mut store = |region: crate::ids::RegionId, at: u64, pages: &[crate::abi::Page]| {
            memory[&region.0].write(at, zerocopy::IntoBytes::as_bytes(pages));
        };
        let made = self.model.make(&mut self.random, side, number, &mut store);
        let Some(mut pending) = made else { return };
        if pending.refused.is_none() && pending.sqe.flags & SQE_REVOKE != 0 {
            if self.revokes == 6 {
                pending.sqe.flags &= !SQE_REVOKE;
            } else {
                self.revokes += 1;
                let session = self.model.sides[side].session;
                self.model.places[session].revoked = true;
            }
        }
        assert_eq!(self.world.push(side, pending.sqe), number);
        self.model.sides[side].pending.insert(number, pending);
    }

    /// Reads everything that a ring's client can see. A skipped success shows in the fate table.
    fn read(&mut self, side: usize) {
        let taken = self.world.clients[side].taken();
        let fates = entries(&self.world.clients[side].heap);
        let cqes = self.world.pop(side);
        let unsaid = |number: u64, pending: &Pending| {
            pending.sqe.flags & SQE_SKIP_SUCCESS != 0
                && number < taken
                && !fates.iter().any(|&(entry, _)| entry == number)
                && !cqes.iter().any(|cqe| cqe.user_data & 0xffff_ffff == number)
        };
        let pending = &mut self.model.sides[side].pending;
        let numbers: Vec<u64> =
            pending.iter().filter(|&(&number, op)| unsaid(number, op)).map(|(&at, _)| at).collect();
        let silent = numbers.iter().filter_map(|number| Some((*number, pending.remove(number)?)));
        // What a silent CANCEL or FLUSH says is about CQEs, which are read before.
        let after = [Opcode::Cancel as u8, Opcode::Flush as u8];
        let (late, others): (Vec<_>, Vec<_>) =
            silent.partition(|(_, op)| after.contains(&op.sqe.opcode));
        for number in numbers {
            assert_eq!(self.world.clients[side].end.verdict(number), Verdict::Done);
        }
        for (_, op) in others {
            self.model.apply(side, &op);
        }
        for cqe in cqes {
            if let Some(op) = self.model.judge(side, &cqe) {
                self.ended(side, cqe.user_data & 0xffff_ffff, &op, cqe.res >= 0);
            }
        }
        for (number, op) in late {
            self.model.apply(side, &op);
            self.ended(side, number, &op, true);
        }
    }

    /// What follows from the end of a FLUSH.
    fn ended(&mut self, side: usize, number: u64, op: &Pending, well: bool) {
        if op.sqe.opcode != Opcode::Flush as u8 || op.refused.is_some() {
            return;
        }
        let session = self.model.sides[side].session;
        let own = self.model.places[session].id.0 == op.sqe.local_region;
        let names = |earlier: &Pending| {
            let data = earlier.sqe.remote_region != 0 && earlier.refused.is_none();
            data && (own || earlier.sqe.remote_region == op.sqe.local_region)
        };
        let mut earlier = self.model.sides[side].pending.range(..number);
        assert!(!well || !earlier.any(|(_, op)| names(op)), "flushed, but not over");
        if op.sqe.flags & SQE_REVOKE != 0 && !self.model.places[session].gone {
            self.offer(session);
        }
    }

    fn ask(&mut self) {
        if self.question.is_some() || !self.world.engine.accepts() {
            return;
        }
        let side = self.random.index(self.sides());
        let Some((&number, _)) = self.model.sides[side].pending.first_key_value() else { return };
        let number = number + self.random.below(10);
        let cancel = self.random.chance(50);
        let token = self.world.query(side, CANCEL_BY_NUMBER, number, cancel);
        self.question = Some((token, side, cancel, number));
    }

    fn hear(&mut self) {
        let Some((token, side, cancel, number)) = self.question else { return };
        let Some(reply) = self.world.reply(token) else { return };
        self.question = None;
        match reply {
            Reply::Failed { errno: errno::ENOENT, .. } => {}
            Reply::Failed { errno, .. } => assert!(cancel && errno == errno::EALREADY),
            Reply::Cancelled { record, .. } => {
                assert!(cancel);
                self.read(side);
                self.model.taken_back(side, CANCEL_BY_RECORD, record.0);
            }
            Reply::Why { why, .. } => {
                let pending = &self.model.sides[side].pending[&number];
                assert_eq!((why.number, why.record.0 == 0), (number, why.state == STATE_UNTAKEN));
                let Some(opcode) = why.opcode else {
                    assert_eq!(why.state, STATE_UNTAKEN, "{why:?}");
                    return;
                };
                let said = (why.user_data, opcode as u8, why.class);
                let sqe = &pending.sqe;
                let class = Class::from_byte(sqe.class);
                assert_eq!(said, (sqe.user_data, sqe.opcode, class), "{why:?}");
            }
            other => panic!("a question was answered with {other:?}"),
        }
    }

    fn step(&mut self) {
        for _ in 0..self.random.below(8) {
            self.submit();
        }
        if self.random.chance(10) {
            self.ask();
        }
        self.world.turn();
        self.hear();
        let side = self.random.index(self.sides());
        if self.random.chance(60) {
            self.read(side);
        }
    }

    /// One session leaves in the middle of it all; its places and its memory come back.
    fn leave(&mut self, session: u32) {
        for side in [2 * session as usize, 2 * session as usize + 1] {
            self.model.sides[side].winding = true;
            let mode = self.random.pick(&[Wind::Cancel, Wind::Drain]);
            let token = self.world.wind(side, mode);
            self.tokens.push(token);
        }
        let place = &mut self.model.places[session as usize];
        place.gone = true;
        let token = self.world.remove(place.id);
        self.tokens.push(token);
    }

    /// Lets everything end, by good behaviour of the fabric and eager clients.
    fn calm(&mut self) {
        if let Some(mood) = self.stage.plan().mood.as_mut() {
            (mood.partial, mood.prompt, mood.broken, mood.stale) = (0, 100, 0, 0);
        }
        // Quiet for a while is quiet for good: nothing here waits for time.
        let (mut quiet, mut turns) = (0, 0);
        while quiet < 20 {
            quiet = if self.calm_turn().worked() { 0 } else { quiet + 1 };
            turns += 1;
            assert!(turns < 20_000, "still at work");
        }
        assert_eq!(self.world.engine.ledger.open_count(), self.world.armed(), "still at work");
        assert!(self.question.is_none() && self.world.engine.query.is_none());
        for (at, side) in self.model.sides.iter().enumerate() {
            let records = self.world.engine.sessions[side.session].records;
            let behind = self.world.clients[at].taken() < self.world.clients[at].end.pushed();
            // Only ARMs may keep a ring from being served.
            assert!(!behind || side.winding || records > 0, "starved: {side:?}");
        }
        for place in self.model.places.iter().filter(|place| !place.gone) {
            let waiting = self.world.engine.regions[place.id.index() as usize].pending;
            assert_eq!(place.told, place.heard + u64::from(waiting), "notifications");
        }
    }

    fn calm_turn(&mut self) -> Turn {
        let turn = self.world.turn();
        self.hear();
        for side in 0..self.sides() {
            self.read(side);
        }
        turn
    }

    /// Everybody who is still there leaves.
    fn end(&mut self) {
        for session in 0..SESSIONS {
            if !self.model.places[session as usize].gone {
                self.leave(session);
            }
        }
        for _ in 0..200 {
            self.calm_turn();
        }
        for token in std::mem::take(&mut self.tokens) {
            let reply = self.world.reply(token);
            let gone = matches!(reply, Some(Reply::RingGone { .. } | Reply::RegionGone { .. }));
            assert!(gone, "left, and yet: {reply:?}");
        }
        self.world.expect_rest();
        for side in 0..self.sides() {
            let client = &mut self.world.clients[side];
            for &number in self.model.sides[side].pending.keys() {
                assert!(number >= client.taken(), "taken, but without an end: {number}");
                assert_eq!(client.end.verdict(number), Verdict::NotStarted);
            }
            assert!(self.model.sides[side].taken_back.is_empty(), "taken back for nobody");
        }
        for session in (0..SESSIONS).map(SessionId) {
            let token = self.world.token();
            self.world.engine.command(Command::RemoveSession { session, token });
            self.world.expect_done(token);
        }
        self.model.compare();
    }
}

#[test]
fn rule_2_every_sqe_of_a_random_stream_ends_once_and_as_the_model_says() {
    let tally = std::cell::RefCell::new((0, 0, std::collections::BTreeMap::new()));
    each_seed(200, |seed| {
        let mut stream = Stream::new(seed);
        let steps = 300 + stream.random.below(300);
        let leaver = stream.random.below32(2 * SESSIONS);
        for step in 0..steps {
            stream.step();
            if step == steps / 2 && leaver < SESSIONS {
                stream.leave(leaver);
            }
        }
        stream.calm();
        stream.end();
        let mut sum = tally.borrow_mut();
        sum.0 += stream.model.finals;
        sum.1 += stream.model.successes;
        for (kind, count) in &stream.model.tally {
            *sum.2.entry(*kind).or_insert(0) += count;
        }
    });
    println!("final CQEs, successes, outcomes: {:?}", tally.borrow());
}
