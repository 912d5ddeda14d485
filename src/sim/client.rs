//! A simulated client: it draws ops, and knows what may come of each.
//!
//! Its ring, buffers and slots are its own: of each region it may reach, one row of slots belongs
//! to it alone, and one op at a time is under way to a slot. So what a slot must hold is known
//! whenever no op is under way to it, however many ops there are elsewhere and in whatever order
//! they are carried out. Counters are shared by all clients; what they must hold is a range.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::check::edges::Edges;
use super::check::once::Open;
use super::check::{data, fates, hold, untouched};
use super::counts::{Count, Counts};
use super::draw::draw_twins;
use super::ground::{BUFFERS, Ground, SLOT_BYTES, SLOT_SIZE, SLOTS};
use super::twins::Twins;
use crate::abi::{
    CQE_COALESCED, CQE_MAYBE_DONE, CQE_MORE, CQE_NOTIFY, CQE_RETRYABLE, Class, Cqe, Opcode,
    SQE_REVOKE, Sqe, errno,
};
use crate::fabric::qp::sim::Net;
use crate::ids::{RingId, SessionId};
use crate::random::Random;
use crate::ring::{ClientEnd, Heap, Memory as _, Verdict, Word};
use crate::shm::Mapping;

/// No import: what lies behind it cannot be reached now.
pub(super) const NOWHERE: u32 = 0;

/// A region that a client may reach, under the name that its engine gave it.
#[derive(Debug)]
pub(super) struct Target {
    /// The import's id.
    pub(super) import: u32,
    /// Which ground lies behind it.
    pub(super) ground: usize,
    pub(super) slots: Vec<Slot>,
}

impl Target {
    pub(super) fn new(import: u32, ground: usize) -> Self {
        Self { import, ground, slots: vec![Slot::default(); SLOTS] }
    }
}

/// A piece of a region that only this client changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) busy: bool,
    /// What lay there when the last op to it ended: nobody may touch it since.
    pub(super) left: Option<Vec<u8>>,
}

/// An op under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Out {
    pub(super) opcode: Opcode,
    pub(super) target: usize,
    /// `usize::MAX` for what has none.
    pub(super) slot: usize,
    pub(super) buffer: usize,
    pub(super) bytes: u32,
    pub(super) notify: bool,
    pub(super) skips: bool,
    /// It names edges of its own.
    pub(super) tied: bool,
    pub(super) number: u64,
}

/// The immediate of an op's notification: no other op has it.
pub(super) fn immediate(row: usize, user_data: u64) -> u32 {
    let number = u32::try_from(user_data).expect("few ops");
    assert!(number < 1 << 24, "few ops");
    u32::try_from(row).expect("few rows") << 24 | number
}

/// One client thread.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) net: Net,
    /// The engine it is attached to.
    pub(super) engine: usize,
    /// Its place among all clients: its row in every ground.
    pub(super) row: usize,
    /// Its session; its ring has the same number.
    pub(super) session: SessionId,
    /// Its own region: id and memory.
    pub(super) own: u32,
    pub(super) memory: Arc<Mapping>,
    /// The region of its own that others write to.
    ground: u32,
    pub(super) end: ClientEnd<Arc<Heap>>,
    pub(super) targets: Vec<Target>,
    out: Open,
    /// Ops that share a buffer.
    twins: Twins,
    /// What depends on what in its ring.
    edges: Edges,
    /// Of a hundred ops so many are tied to others.
    pub(super) ties: u64,
    /// CQEs published that it was told of: what they end is not to be touched any more.
    published: u32,
    pub(super) free: Vec<usize>,
    /// What the last READ left in a buffer.
    pub(super) landed: Vec<Option<Vec<u8>>>,
    next: u64,
    pub(super) armed: Option<u64>,
    /// The engine sleeps and is to be rung.
    pub(super) bell: bool,
    /// It waits for notifications no more.
    deaf: bool,
    /// The FLUSH that revokes its ground.
    pub(super) revoking: Option<u64>,
    /// What its ground held when it was quiet: nobody may touch it since.
    pub(super) quiet: Option<Vec<u8>>,
    /// Notifications heard.
    pub(super) heard: u64,
    /// Ops whose final CQE came.
    pub(super) ended: u64,
    /// It broke its ring: nothing is known of its ops any more.
    pub(super) broken: bool,
    /// It looks at nothing until then.
    pub(super) away_until_ns: u64,
    pub(super) ceiling: Class,
}

/// What a client is made with.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) net: Net,
    pub(super) engine: usize,
    pub(super) row: usize,
    pub(super) session: SessionId,
    pub(super) own: u32,
    pub(super) memory: Arc<Mapping>,
    pub(super) ground: u32,
    pub(super) heap: Arc<Heap>,
    /// The most urgent class that it may use.
    pub(super) ceiling: Class,
    /// Of a hundred ops so many are tied to others.
    pub(super) ties: u64,
}

impl Client {
    pub(super) fn new(place: Place) -> Self {
        let Place { net, engine, row, session, own, memory, ground, heap, ceiling, ties } = place;
        Self {
            net,
            engine,
            row,
            session,
            own,
            memory,
            ground,
            published: heap.first_index(),
            end: ClientEnd::new(heap),
            targets: Vec::new(),
            out: Open::default(),
            twins: Twins::default(),
            edges: Edges::default(),
            ties,
            free: (0..BUFFERS).collect(),
            landed: vec![None; BUFFERS],
            next: 1,
            armed: None,
            bell: false,
            deaf: false,
            ceiling,
            revoking: None,
            quiet: None,
            heard: 0,
            ended: 0,
            broken: false,
            away_until_ns: 0,
        }
    }

    /// Its ring's number: sessions have one each.
    pub(super) fn ring(&self) -> RingId {
        RingId(self.session.0)
    }

    /// Notifications are waited for.
    pub(super) fn armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Another region is within reach, or one by another name.
    pub(super) fn reach(&mut self, import: u32, ground: usize) {
        let known = self.targets.iter_mut().find(|target| target.ground == ground);
        match known {
            Some(target) => target.import = import,
            None => self.targets.push(Target::new(import, ground)),
        }
    }

    /// Ops under way, an ARM aside.
    pub(super) fn open(&self) -> usize {
        self.out.len() - usize::from(self.armed.is_some())
    }

    /// Pushes a few ops, as the ring takes them.
    pub(super) fn work(
        &mut self,
        random: &mut Random,
        grounds: &mut [Ground],
        counts: &mut Counts,
    ) {
        for _ in 0..1 + random.below(4) {
            if self.end.room() == 0 {
                break;
            }
            let drawn = self.draw(random, grounds);
            if let Some((sqe, out)) = drawn {
                let (twins, folds) = draw_twins(random, &sqe, self.end.room());
                if twins > 1 {
                    self.twins.begin(out.buffer, twins);
                }
                for twin in 0..u64::from(twins) {
                    // Its own name, perhaps another class, and the effect of the first.
                    let user_data = if twin == 0 { sqe.user_data } else { self.number() };
                    let low = twin > 0 && random.below(3) == 0;
                    let class = if low { Class::Low as u8 } else { sqe.class };
                    let sqe = Sqe { flags: sqe.flags | folds, class, user_data, ..sqe };
                    self.submit(&sqe, Out { number: out.number + twin, ..out });
                    counts.add(Count::Ops);
                }
            }
        }
        self.bell |= self.end.publish();
    }

    /// Writes a tail that cannot be: its ring is over. What was under way may have happened or not.
    pub(super) fn break_ring(&mut self, grounds: &mut [Ground]) {
        self.broken = true;
        let tail = self.end.memory().word(Word::SqTail);
        let pushed = tail.load(Ordering::Relaxed);
        tail.store(pushed.wrapping_add(self.end.memory().sq_entries() + 1), Ordering::Release);
        self.bell = true;
        for out in self.out.abandon().into_values() {
            self.perhaps(&out, grounds);
        }
        self.twins.abandon();
        self.armed = None;
        self.deaf = true;
    }

    /// An op of which nothing will be heard.
    fn perhaps(&self, out: &Out, grounds: &mut [Ground]) {
        let Some(target) = self.targets.get(out.target) else { return };
        let ground = &mut grounds[target.ground];
        match out.opcode {
            Opcode::FetchAdd => ground.adds.end(false, true),
            Opcode::Write if out.notify => ground.notices.end(false, true),
            _ => {}
        }
    }

    /// Asks for its own ground back from all who have it.
    pub(super) fn revoke(&mut self) -> bool {
        // It is to succeed: nothing that may fail comes before it.
        if self.revoking.is_some() || self.end.room() == 0 || self.edges.links() {
            return false;
        }
        let user_data = self.number();
        let number = self.end.pushed();
        let sqe = Sqe {
            opcode: Opcode::Flush as u8,
            flags: SQE_REVOKE,
            user_data,
            local_region: self.ground,
            ..Sqe::default()
        };
        self.submit(&sqe, Out { number, ..Out::of(Opcode::Flush) });
        self.bell |= self.end.publish();
        self.revoking = Some(user_data);
        true
    }

    /// Its engine is dead: what its ring and its fate table say is all there is to know.
    pub(super) fn outlive(&mut self, grounds: &mut [Ground], counts: &mut Counts, trace: &mut u64) {
        if !self.broken {
            self.hear(grounds, counts, trace);
            for (user_data, out) in self.out.abandon() {
                if matches!(out.opcode, Opcode::Arm | Opcode::Flush) {
                    continue;
                }
                let (res, flags) = match self.end.verdict(out.number) {
                    // A success that was skipped, or whose CQE was published and lost.
                    Verdict::Done => (i32::try_from(out.bytes).unwrap_or(0), 0),
                    Verdict::NotStarted => {
                        counts.add(Count::VerdictNotStarted);
                        // With others beside it its slot says nothing of it alone.
                        if !self.twins.has(out.buffer) {
                            self.judge_untried(&out, grounds);
                        }
                        (-errno::ECANCELED, CQE_RETRYABLE)
                    }
                    Verdict::Indeterminate => {
                        counts.add(Count::VerdictIndeterminate);
                        (-errno::EHOSTDOWN, CQE_MAYBE_DONE)
                    }
                };
                if res >= 0 && !out.skips {
                    // The CQE is what would have told the result.
                    self.perhaps(&out, grounds);
                    continue;
                }
                self.judge(out, &Cqe { user_data, res, flags, ..Cqe::default() }, grounds, counts);
            }
        }
        self.twins.abandon();
        self.armed = None;
        self.revoking = None;
        for target in &mut self.targets {
            target.import = NOWHERE;
        }
    }

    /// Attaches to an engine again, with the memory it has.
    pub(super) fn attach(&mut self, own: u32, ground: u32, heap: Arc<Heap>) {
        self.own = own;
        self.ground = ground;
        self.published = heap.first_index();
        self.end = ClientEnd::new(heap);
        self.edges = Edges::default();
        self.broken = false;
        self.deaf = false;
        self.free = (0..BUFFERS).collect();
        self.landed = vec![None; BUFFERS];
        // Slots whose last op's end is not known are known again from what lies there.
        for slot in self.targets.iter_mut().flat_map(|target| &mut target.slots) {
            slot.left = slot.left.take().filter(|_| !slot.busy);
            slot.busy = false;
        }
    }

    /// Keeps an ARM under way, so that notifications are heard.
    pub(super) fn listen(&mut self) {
        if self.armed.is_some() || self.deaf || self.end.room() == 0 {
            return;
        }
        let user_data = self.number();
        let sqe = Sqe {
            opcode: Opcode::Arm as u8,
            user_data,
            local_region: self.ground,
            bytes: 4,
            ..Sqe::default()
        };
        let number = self.end.pushed();
        self.submit(&sqe, Out { number, ..Out::of(Opcode::Arm) });
        self.bell |= self.end.publish();
        self.armed = Some(user_data);
    }

    fn submit(&mut self, sqe: &Sqe, out: Out) {
        self.end.push(sqe.to_words());
        self.edges.push(sqe);
        self.out.begin(sqe.user_data, out);
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Looks at the CQEs that the engine has just published, as whoever watches the ring can: from
    /// this moment on no card may touch what they end. When the client hears them is its own
    /// affair.
    pub(super) fn witness(&mut self, grounds: &[Ground], counts: &mut Counts) {
        let tail = self.end.memory().word(Word::CqTail).load(Ordering::Acquire);
        let mut cqes = Vec::new();
        while !self.broken && self.published != tail {
            let words = self.end.memory().cqe(self.published);
            let words = [0, 1, 2, 3].map(|at: usize| words[at].load(Ordering::Relaxed));
            self.published = self.published.wrapping_add(1);
            cqes.push(Cqe::from_words(words));
        }
        self.edges.expect(&cqes);
        for cqe in cqes {
            self.edges.hear(&cqe, self.end.memory(), counts);
            if self.revoking == Some(cqe.user_data) {
                self.net.forbid_all(grounds[self.row].memory());
                self.quiet = Some(grounds[self.row].all());
            } else if let Some(out) = self.out.get(cqe.user_data)
                && (!out.moves() || self.twins.publish(out.buffer))
            {
                self.close(out, grounds);
            }
        }
        if !self.broken {
            self.edges.look(self.end.memory(), counts);
        }
    }

    /// Nobody may touch what an op used.
    fn close(&self, out: &Out, grounds: &[Ground]) {
        if matches!(out.opcode, Opcode::Write | Opcode::Read | Opcode::FetchAdd) {
            untouched::close(&self.net, &self.memory, out.buffer as u64 * SLOT_BYTES);
        }
        if out.slot != usize::MAX {
            let ground = &grounds[self.targets[out.target].ground];
            untouched::close(&self.net, ground.memory(), ground.slot(self.row, out.slot));
        }
    }

    /// Hears the engine; checks each CQE against what was asked.
    pub(super) fn hear(&mut self, grounds: &mut [Ground], counts: &mut Counts, trace: &mut u64) {
        while let Some(words) = self.end.pop().expect("an engine's tail that can be") {
            for word in words {
                *trace = (*trace ^ word).wrapping_mul(0x0100_0000_01b3);
            }
            let cqe = Cqe::from_words(words);
            if cqe.flags & CQE_NOTIFY != 0 {
                self.heard += u64::try_from(cqe.res).expect("a count");
                let asked = Some(cqe.user_data) == self.armed;
                hold!(OneCqe, asked, "a notification for no ARM: {cqe:?}");
                grounds[self.row].heard.hear(cqe.queued);
                if cqe.flags & CQE_MORE == 0 {
                    self.armed = None;
                    self.out.end(&cqe);
                }
                continue;
            }
            let out = self.out.end(&cqe);
            if self.armed == Some(cqe.user_data) {
                self.armed = None;
                continue;
            }
            if self.revoking == Some(cqe.user_data) {
                self.revoking = None;
                hold!(Data, cqe.res == 0, "a revocation that failed: {cqe:?}");
                continue;
            }
            self.judge(out, &cqe, grounds, counts);
        }
        self.end.release();
        self.forget_skipped(grounds, counts);
    }

    /// A skipped success has no CQE: its fate tells.
    fn forget_skipped(&mut self, grounds: &mut [Ground], counts: &mut Counts) {
        let skipped = self.out.iter().filter(|(_, out)| out.skips);
        let skipped: Vec<_> = skipped.map(|(user_data, out)| (user_data, out.number)).collect();
        for (user_data, number) in skipped {
            if self.end.verdict(number) != Verdict::Done {
                continue;
            }
            let Some(out) = self.out.skip(user_data) else { continue };
            counts.add(Count::Skipped);
            let res = i32::try_from(out.bytes).unwrap_or(0);
            let res = if matches!(out.opcode, Opcode::Nop | Opcode::Join) { 0 } else { res };
            self.judge(out, &Cqe { user_data, res, ..Cqe::default() }, grounds, counts);
        }
    }

    fn judge(&mut self, out: Out, cqe: &Cqe, grounds: &mut [Ground], counts: &mut Counts) {
        self.ended += 1;
        counts.end(cqe);
        data::consistent(&out, cqe);
        if matches!(out.opcode, Opcode::Nop | Opcode::Join | Opcode::Cancel) {
            return;
        }
        let folded = cqe.flags & CQE_COALESCED != 0;
        hold!(Data, !folded || self.twins.has(out.buffer), "folded with nothing: {cqe:?}");
        let Some((out, cqe)) = self.twins.end(out, *cqe) else { return };
        let cqe = &cqe;
        let good = cqe.res >= 0;
        let maybe = cqe.flags & CQE_MAYBE_DONE != 0;
        self.close(&out, grounds);
        let target = &mut self.targets[out.target];
        let ground = &mut grounds[target.ground];
        self.free.push(out.buffer);
        let at = out.buffer as u64 * SLOT_BYTES;
        let mut buffer = vec![0; SLOT_SIZE];
        self.memory.read(at, &mut buffer);
        if out.opcode == Opcode::FetchAdd {
            let old = u64::from_le_bytes(buffer[..8].try_into().expect("8 bytes"));
            ground.adds.end(good, maybe);
            if good {
                data::fresh(&mut ground.olds, old);
            }
        } else {
            let slot = ground.read(self.row, out.slot);
            let before = target.slots[out.slot].left.as_deref();
            data::moved(&out, cqe, before, &slot, &buffer);
            if out.notify {
                ground.notices.end(good, maybe);
                if !good && !maybe {
                    ground.heard.fail(immediate(self.row, cqe.user_data));
                }
            }
            target.slots[out.slot] = Slot { busy: false, left: Some(slot) };
        }
        self.landed[out.buffer] = Some(buffer);
    }

    /// Its engine died before it was started: so says the fate table.
    fn judge_untried(&self, out: &Out, grounds: &[Ground]) {
        if matches!(out.opcode, Opcode::Write | Opcode::Read) {
            let target = &self.targets[out.target];
            let before = target.slots[out.slot].left.as_deref();
            let now = grounds[target.ground].read(self.row, out.slot);
            fates::not_started(out, before, &now);
        }
    }

    /// Nobody may write to a buffer after the CQE of its op.
    pub(super) fn unmoved_buffer(&self, buffer: usize) {
        let Some(landed) = &self.landed[buffer] else { return };
        let mut now = vec![0; SLOT_SIZE];
        self.memory.read(buffer as u64 * SLOT_BYTES, &mut now);
        untouched::same("buffer", buffer, landed, &now);
    }

    /// At the end: nothing was touched after its CQE, anywhere.
    pub(super) fn unmoved(&self, grounds: &[Ground]) {
        if let Some(quiet) = &self.quiet {
            untouched::same("ground", self.row, quiet, &grounds[self.row].all());
        }
        if self.broken {
            return;
        }
        (0..BUFFERS).filter(|buffer| self.free.contains(buffer)).for_each(|buffer| {
            self.unmoved_buffer(buffer);
        });
        for target in &self.targets {
            for (at, slot) in target.slots.iter().enumerate() {
                let Some(left) = slot.left.as_ref().filter(|_| !slot.busy) else { continue };
                let now = grounds[target.ground].read(self.row, at);
                untouched::same("slot", at, left, &now);
            }
        }
    }
}

impl Out {
    /// True if it has a slot and a buffer to itself, or together with its like.
    fn moves(&self) -> bool {
        matches!(self.opcode, Opcode::Write | Opcode::Read)
    }

    pub(super) fn of(opcode: Opcode) -> Self {
        Self {
            opcode,
            target: 0,
            slot: usize::MAX,
            buffer: 0,
            bytes: 0,
            notify: false,
            skips: false,
            tied: false,
            number: 0,
        }
    }
}
