//! Claim: rules 1, 6, 8 and 9 of the ring (`docs/architecture.md`), as a client meets them. Rules
//! 2 to 4 are held against models in `src/engine/tests`, rule 5 in `tests/quiet.rs` and
//! `tests/loom.rs`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;
use std::time::Duration;

use verbring::abi::{
    self, CQE_MORE, CQE_NOTIFY, CQE_RETRYABLE, Class, Cqe, Detail, Opcode, SQE_NOTIFY, SQE_REVOKE,
    Sqe, errno,
};
use verbring::engine::{Command, Engine as Core, Event, Limits, Ring};
use verbring::fabric::Local;
use verbring::ids::{RingId, SessionId};
use verbring::ring::{ClientEnd, Fault, Heap, Memory, Word};
use verbring::sched::{Contract, Policy};
use verbring::{Engine, Import, RawRing, Region, Rights, RingOptions, Session};

const FIRST: u32 = u32::MAX - 3;

/// A core with two sessions of one ring each, on the heap.
fn core() -> (Core<Local, Arc<Heap>>, [Arc<Heap>; 2]) {
    let limits = Limits {
        engine: 0,
        records: 64,
        list_blocks: 64,
        edges: 64,
        sessions_max: 2,
        rings_max: 2,
        regions_max: 4,
        window_wrs: 8,
        window_bytes: 1 << 20,
        slice_bytes: 1 << 16,
        turn_bytes: u64::MAX,
        intake_budget: 16,
        ring_idle_ns: u64::MAX,
        cut_off_ns: u64::MAX,
        policy: Policy::DEFAULT,
    };
    let mut core = Core::new(limits, Local::new(4, 8, 1 << 16));
    let memories = [0, 1].map(|_| Arc::new(Heap::new(8, 8, FIRST)));
    for (at, memory) in (0..2).zip(&memories) {
        let session = SessionId(at);
        core.command(Command::AddSession { session, owner: at, contract: Contract::of_ops(64) });
        let ring = Box::new(Ring::new(RingId(at), session, Arc::clone(memory), false));
        core.command(Command::AddRing { ring, token: 0 });
    }
    (core, memories)
}

/// Each impossible value faults its ring alone, with its own reason; the neighbour goes on.
#[test]
fn rule_1_an_impossible_cursor_faults_that_ring_alone() {
    let cases: [(Fault, Word, u32); 5] = [
        (Fault::SqTailBeyond, Word::SqTail, FIRST.wrapping_add(2 + 9)),
        (Fault::SqTailBeyond, Word::SqTail, FIRST.wrapping_add(1 << 31)),
        (Fault::SqTailBack, Word::SqTail, FIRST.wrapping_add(1)),
        (Fault::CqHead, Word::CqHead, FIRST.wrapping_add(3)),
        (Fault::CqHead, Word::CqHead, FIRST.wrapping_sub(1)),
    ];
    for (fault, word, value) in cases {
        let (mut core, memories) = core();
        let [mut broken, mut sound] = memories.clone().map(ClientEnd::new);
        let nop = Sqe::default().to_words();
        let mut now_ns = 0;
        let mut turn = |core: &mut Core<Local, Arc<Heap>>| {
            now_ns += 1_000;
            core.turn(now_ns)
        };
        for _ in 0..2 {
            broken.push(nop).unwrap();
        }
        broken.publish();
        turn(&mut core);
        memories[0].word(word).store(value, std::sync::atomic::Ordering::Release);
        if word == Word::CqHead {
            // The head is looked at when room runs out: six slots are left for these.
            for _ in 0..8 {
                broken.push(nop).unwrap();
            }
            broken.publish();
        }
        for _ in 0..4 {
            turn(&mut core);
        }
        assert_eq!(
            core.event(),
            Some(Event::Faulted { ring: RingId(0), fault }),
            "{word:?} {value}"
        );
        let flags = broken.engine_flags();
        assert_ne!(flags & abi::ENGINE_FAULTED, 0);
        assert_eq!(flags >> 16, u32::from(fault.reason()));
        let tail = memories[0].word(Word::CqTail).load(std::sync::atomic::Ordering::Acquire);
        for number in 0..100 {
            sound.push(Sqe { user_data: number, ..Sqe::default() }.to_words()).unwrap();
            sound.publish();
            turn(&mut core);
            let cqe = Cqe::from_words(sound.pop().unwrap().unwrap());
            assert_eq!((cqe.user_data, cqe.res), (number, 0));
            sound.release();
        }
        assert_eq!(
            memories[0].word(Word::CqTail).load(std::sync::atomic::Ordering::Acquire),
            tail,
            "a faulted ring got a CQE"
        );
        assert_eq!(core.event(), None);
    }
}

/// An owner with a region of 1 MiB, and a user with an import of it and a region of its own.
struct Two {
    engine: Engine,
    owner: Session,
    region: Region,
    own: Region,
    import: Import,
    arms: RawRing,
    ring: RawRing,
}

fn two() -> Two {
    let engine = Engine::builder().spawn().unwrap();
    let (owner, user) = (engine.connect().unwrap(), engine.connect().unwrap());
    let region = owner.alloc(1 << 20).unwrap();
    let secret = region.export("rules", Rights::ALL).unwrap();
    let import = user.import("rules", None, &secret).unwrap();
    let own = user.alloc(1 << 20).unwrap();
    let arms = owner.raw_ring(RingOptions::new(16, 16)).unwrap();
    let ring = user.raw_ring(RingOptions::new(256, 256)).unwrap();
    Two { engine, owner, region, own, import, arms, ring }
}

fn next(ring: &mut RawRing) -> Cqe {
    assert!(ring.wait(1, Some(Duration::from_secs(60))).unwrap() > 0, "nothing came");
    ring.pop().unwrap().unwrap()
}

impl Two {
    fn write(&self, user_data: u64, bytes: u32) -> Sqe {
        Sqe {
            opcode: Opcode::Write as u8,
            user_data,
            local_region: self.own.id(),
            remote_region: self.import.id(),
            bytes,
            ..Sqe::default()
        }
    }

    fn arm(&mut self, user_data: u64, count: u32) {
        let local_region = self.region.id();
        let opcode = Opcode::Arm as u8;
        let arm = Sqe { opcode, user_data, local_region, bytes: count, ..Sqe::default() };
        self.arms.push(arm).unwrap();
        self.arms.submit();
    }

    /// Notifies the owner; the sender's op completes whether or not anybody listens.
    fn tell(&mut self, immediate: u32) {
        let tell = Sqe { flags: SQE_NOTIFY, immediate, ..self.write(1, 0) };
        self.ring.push(tell).unwrap();
        self.ring.submit();
        assert_eq!(next(&mut self.ring).res, 0);
    }
}

#[test]
fn rule_6_only_what_had_no_effect_is_retryable() {
    let mut two = two();
    let bad = Sqe { remote_offset: 1 << 40, ..two.write(1, 8) };
    two.ring.push(bad).unwrap();
    two.ring.submit();
    let cqe = next(&mut two.ring);
    assert_eq!((cqe.res, cqe.flags), (-errno::EINVAL, 0), "a permanent error");
    // Low ops that fill the window, and behind them one with a deadline that will have passed and
    // one that is taken back.
    for number in 0..8 {
        two.ring.push(Sqe { class: Class::Low as u8, ..two.write(number, 1 << 20) }).unwrap();
    }
    let late = Sqe { class: Class::Low as u8, arg: [1, 0], ..two.write(8, 1 << 20) };
    two.ring.push(late).unwrap();
    let back = two.ring.push(Sqe { class: Class::Low as u8, ..two.write(9, 1 << 20) }).unwrap();
    let opcode = Opcode::Cancel as u8;
    let arg = [back, abi::CANCEL_BY_NUMBER];
    two.ring.push(Sqe { opcode, user_data: 10, arg, ..Sqe::default() }).unwrap();
    two.ring.submit();
    let mut cqes: Vec<Cqe> = (0..11).map(|_| next(&mut two.ring)).collect();
    cqes.sort_by_key(|cqe| cqe.user_data);
    for cqe in &cqes[..8] {
        assert_eq!((cqe.res, cqe.flags), (1 << 20, 0));
    }
    let detail = |detail: Detail| detail as u16;
    let ended = |cqe: &Cqe| (cqe.res, cqe.flags, cqe.detail);
    assert_eq!(ended(&cqes[8]), (-errno::ETIME, CQE_RETRYABLE, detail(Detail::Deadline)));
    assert_eq!(ended(&cqes[9]), (-errno::ECANCELED, CQE_RETRYABLE, detail(Detail::Cancelled)));
    assert_eq!(ended(&cqes[10]), (0, 0, 0));
    two.engine.shutdown().unwrap();
}

#[test]
fn rule_8_notifications_merge_exactly_and_senders_never_wait() {
    let mut two = two();
    two.arm(7, 17);
    let cqe = next(&mut two.arms);
    assert_eq!((cqe.res, cqe.detail), (-errno::E2BIG, Detail::Bytes as u16), "17 of 16 CQ slots");
    two.arm(8, 2);
    // The ARM is in force once a later entry of its ring is done.
    two.arms.push(Sqe::default()).unwrap();
    two.arms.submit();
    assert_eq!(next(&mut two.arms).user_data, 0);
    for immediate in 100..105 {
        two.tell(immediate);
    }
    let (first, second) = (next(&mut two.arms), next(&mut two.arms));
    let seen = |cqe: &Cqe| (cqe.user_data, cqe.queued, cqe.res, cqe.flags);
    assert_eq!(seen(&first), (8, 100, 1, CQE_NOTIFY | CQE_MORE));
    assert_eq!(seen(&second), (8, 101, 1, CQE_NOTIFY));
    assert_eq!(two.arms.ready().unwrap(), 0);
    for immediate in 200..1_200 {
        two.tell(immediate);
    }
    two.arm(9, 1);
    assert_eq!(seen(&next(&mut two.arms)), (9, 1_199, 3 + 1_000, CQE_NOTIFY));
    two.engine.shutdown().unwrap();
}

#[test]
fn rule_9_flush_proves_quiet_and_revoke_ends_what_was_shared() {
    let mut two = two();
    // FLUSH of an import: its CQE comes after those of all earlier ops, and passes over later ones.
    for number in 0..16 {
        two.ring.push(Sqe { class: Class::Low as u8, ..two.write(number, 1 << 20) }).unwrap();
    }
    let flush = |region: u32, flags: u16| Sqe {
        opcode: Opcode::Flush as u8,
        user_data: 99,
        local_region: region,
        flags,
        ..Sqe::default()
    };
    two.ring.push(flush(two.import.id(), 0)).unwrap();
    two.ring.submit();
    let order: Vec<u64> = (0..17).map(|_| next(&mut two.ring).user_data).collect();
    assert_eq!(order[16], 99, "{order:?}");
    // FLUSH passes over an ARM of the region; REVOKE waits for importers and ends the export.
    two.arm(5, 1);
    two.arms.push(flush(two.region.id(), 0)).unwrap();
    two.arms.push(flush(two.region.id(), SQE_REVOKE)).unwrap();
    two.arms.submit();
    for _ in 0..2 {
        let cqe = next(&mut two.arms);
        assert_eq!((cqe.user_data, cqe.res), (99, 0));
    }
    two.ring.push(two.write(1, 8)).unwrap();
    two.ring.submit();
    let cqe = next(&mut two.ring);
    assert_eq!((cqe.res, cqe.detail), (-errno::ESTALE, Detail::Revoked as u16));
    // The name is free again, and a new export is a new secret.
    let again = two.region.export("rules", Rights::ALL).unwrap();
    assert!(two.owner.import("rules", None, &again).is_ok());
    two.engine.shutdown().unwrap();
}
