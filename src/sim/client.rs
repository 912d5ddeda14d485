//! A simulated client: it draws ops, and knows what may come of each.
//!
//! Its ring, buffers and slots are its own: of each region it may reach, one row of slots belongs
//! to it alone, and one op at a time is under way to a slot. So what a slot must hold is known
//! whenever no op is under way to it, however many ops there are elsewhere and in whatever order
//! they are carried out. Counters are shared by all clients; what they must hold is a range.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::counts::{Count, Counts};
use super::ground::{BUFFERS, Ground, SLOT_BYTES, SLOT_SIZE, SLOTS};
use crate::abi::{
    CQE_MAYBE_DONE, CQE_MORE, CQE_NOTIFY, CQE_RETRYABLE, Cqe, Opcode, SQE_REVOKE, Sqe, errno,
};
use crate::ids::RingId;
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
    pub(super) number: u64,
}

/// One client thread.
#[derive(Debug)]
pub(super) struct Client {
    /// The engine it is attached to.
    pub(super) engine: usize,
    /// Its place among all clients: its row in every ground.
    pub(super) row: usize,
    /// Its own region: id and memory.
    pub(super) own: u32,
    pub(super) memory: Arc<Mapping>,
    /// The region of its own that others write to.
    ground: u32,
    pub(super) end: ClientEnd<Arc<Heap>>,
    pub(super) targets: Vec<Target>,
    out: BTreeMap<u64, Out>,
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
}

/// What a client is made with.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) engine: usize,
    pub(super) row: usize,
    pub(super) own: u32,
    pub(super) memory: Arc<Mapping>,
    pub(super) ground: u32,
    pub(super) heap: Arc<Heap>,
}

impl Client {
    pub(super) fn new(place: Place) -> Self {
        let Place { engine, row, own, memory, ground, heap } = place;
        Self {
            engine,
            row,
            own,
            memory,
            ground,
            end: ClientEnd::new(heap),
            targets: Vec::new(),
            out: BTreeMap::new(),
            free: (0..BUFFERS).collect(),
            landed: vec![None; BUFFERS],
            next: 1,
            armed: None,
            bell: false,
            deaf: false,
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
        RingId(u32::try_from(self.row).unwrap_or(u32::MAX))
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
                self.end.push(sqe.to_words());
                self.out.insert(sqe.user_data, out);
                counts.add(Count::Ops);
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
        for (_, out) in std::mem::take(&mut self.out) {
            self.perhaps(&out, grounds);
        }
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
        if self.revoking.is_some() || self.end.room() == 0 {
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
        self.end.push(sqe.to_words());
        self.bell |= self.end.publish();
        self.out.insert(user_data, Out { number, ..Out::of(Opcode::Flush) });
        self.revoking = Some(user_data);
        true
    }

    /// Its engine is dead: what its ring and its fate table say is all there is to know.
    pub(super) fn outlive(&mut self, grounds: &mut [Ground], counts: &mut Counts, trace: &mut u64) {
        if !self.broken {
            self.hear(grounds, counts, trace);
            for (user_data, out) in std::mem::take(&mut self.out) {
                if matches!(out.opcode, Opcode::Arm | Opcode::Flush) {
                    continue;
                }
                let (res, flags) = match self.end.verdict(out.number) {
                    // A success that was skipped, or whose CQE was published and lost.
                    Verdict::Done => (i32::try_from(out.bytes).unwrap_or(0), 0),
                    Verdict::NotStarted => {
                        counts.add(Count::VerdictNotStarted);
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
        self.end = ClientEnd::new(heap);
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
        self.end.push(sqe.to_words());
        self.bell |= self.end.publish();
        self.armed = Some(user_data);
        let number = self.end.pushed() - 1;
        self.out.insert(user_data, Out { number, ..Out::of(Opcode::Arm) });
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
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
                assert_eq!(Some(cqe.user_data), self.armed, "a notification for no ARM: {cqe:?}");
                if cqe.flags & CQE_MORE == 0 {
                    self.armed = None;
                    self.out.remove(&cqe.user_data);
                }
                continue;
            }
            let out = self.out.remove(&cqe.user_data);
            let out = out.unwrap_or_else(|| panic!("a CQE for nothing, or a second one: {cqe:?}"));
            assert!(!(out.skips && cqe.res >= 0), "a success that was to be skipped: {cqe:?}");
            if self.armed == Some(cqe.user_data) {
                self.armed = None;
                continue;
            }
            if self.revoking == Some(cqe.user_data) {
                self.revoking = None;
                assert_eq!(cqe.res, 0, "a revocation that failed: {cqe:?}");
                self.quiet = Some(grounds[self.row].all());
                continue;
            }
            self.judge(out, &cqe, grounds, counts);
        }
        self.end.release();
        self.forget_skipped(grounds, counts);
    }

    /// A skipped success has no CQE: its fate tells.
    fn forget_skipped(&mut self, grounds: &mut [Ground], counts: &mut Counts) {
        let skipped: Vec<u64> =
            self.out.iter().filter(|(_, out)| out.skips).map(|(user_data, _)| *user_data).collect();
        for user_data in skipped {
            let Some(out) = self.out.get(&user_data).copied() else { continue };
            if self.end.verdict(out.number) != Verdict::Done {
                continue;
            }
            self.out.remove(&user_data);
            counts.add(Count::Skipped);
            let res = i32::try_from(out.bytes).unwrap_or(0);
            let res = if matches!(out.opcode, Opcode::Nop) { 0 } else { res };
            self.judge(out, &Cqe { user_data, res, ..Cqe::default() }, grounds, counts);
        }
    }

    fn judge(&mut self, out: Out, cqe: &Cqe, grounds: &mut [Ground], counts: &mut Counts) {
        self.ended += 1;
        counts.end(cqe);
        let good = cqe.res >= 0;
        let maybe = cqe.flags & CQE_MAYBE_DONE != 0;
        assert!(good || !(maybe && cqe.flags & CQE_RETRYABLE != 0), "both at once: {cqe:?}");
        match out.opcode {
            Opcode::Nop => return assert!(good || cqe.res == -errno::ECANCELED, "{cqe:?}"),
            Opcode::Cancel => return,
            _ => {}
        }
        let target = &mut self.targets[out.target];
        let ground = &mut grounds[target.ground];
        self.free.push(out.buffer);
        let at = out.buffer as u64 * SLOT_BYTES;
        let mut buffer = vec![0; SLOT_SIZE];
        self.memory.read(at, &mut buffer);
        if good {
            assert_eq!(u32::try_from(cqe.res).ok(), Some(out.bytes), "bytes: {cqe:?} {out:?}");
        }
        match out.opcode {
            Opcode::FetchAdd => {
                let old = u64::from_le_bytes(buffer[..8].try_into().expect("8 bytes"));
                ground.adds.end(good, maybe);
                if good {
                    let fresh = ground.olds.insert(old);
                    assert!(fresh, "two adds were given the same old value {old}: {cqe:?}");
                }
            }
            opcode => {
                let slot = ground.read(self.row, out.slot);
                let bytes = out.bytes as usize;
                if good {
                    assert!(slot[..bytes] == buffer[..bytes], "bytes differ: {out:?} {cqe:?}");
                }
                if opcode == Opcode::Read || cqe.res == -errno::ETIME {
                    let left = target.slots[out.slot].left.as_ref();
                    let same = left.is_none_or(|left| *left == slot);
                    assert!(same, "changed what it was only to read, or not to start: {cqe:?}");
                }
                if out.notify {
                    ground.notices.end(good, maybe);
                }
                target.slots[out.slot] = Slot { busy: false, left: Some(slot) };
            }
        }
        self.landed[out.buffer] = Some(buffer);
    }

    /// Nobody may write to a buffer after the CQE of its op.
    pub(super) fn unmoved_buffer(&self, buffer: usize) {
        let Some(landed) = &self.landed[buffer] else { return };
        let mut now = vec![0; SLOT_SIZE];
        self.memory.read(buffer as u64 * SLOT_BYTES, &mut now);
        assert!(*landed == now, "buffer {buffer} was touched after its CQE");
    }

    /// At the end: nothing was touched after its CQE, anywhere.
    pub(super) fn unmoved(&self, grounds: &[Ground]) {
        if let Some(quiet) = &self.quiet {
            assert!(*quiet == grounds[self.row].all(), "a ground was touched after its revocation");
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
                assert!(*left == now, "slot {at} was touched after its CQE");
            }
        }
    }
}

impl Out {
    pub(super) fn of(opcode: Opcode) -> Self {
        Self {
            opcode,
            target: 0,
            slot: usize::MAX,
            buffer: 0,
            bytes: 0,
            notify: false,
            skips: false,
            number: 0,
        }
    }
}
