//! Names and secrets: guessed, squatted on, and used for more than was offered.

use verbring::abi::{self, Counter, Detail, ExportReply, ImportReply, Kind, OBJECT_REGION, errno};

use super::chance::Chance;
use super::stage::{Stage, until};

/// Near misses of a secret, one bit away, and random ones. The tenth ends the session.
#[test]
fn guessed() {
    let mut stage = Stage::set("secrets guessed");
    let mut chance = Chance::new(30);
    let mut owner = stage.wire();
    let (region, _memory) = owner.region(4096);
    let secret = owner.ask_export(region, abi::RIGHTS_ALL, "guessed").reply::<ExportReply>();
    let secret = secret.0.secret;
    let evicted = stage.counter(Counter::Evicted);
    while stage.goes_on() {
        let mut wire = stage.wire();
        for guess in 1..=10 {
            let mut wrong = secret;
            match guess {
                1 => wrong = [0; 32],
                2 => wrong = chance.bytes(32).try_into().unwrap(),
                _ => wrong[chance.below(32) as usize] ^= 1 << chance.below(8),
            }
            // Asking for a name that is not there gives nothing away, and costs nothing.
            let answer = wire.ask_import("not there", wrong);
            stage.tally.answer(answer).refused(errno::ENOENT, Detail::Name);
            let answer = wire.ask_import("guessed", wrong);
            let text = stage.tally.answer(answer).refused(errno::EACCES, Detail::Secret);
            assert!(text.contains("ten"), "says what comes: {text}");
            if guess == 9 {
                // The right one, between wrong ones, still serves; it does not wipe them out.
                let import = wire.ask_import("guessed", secret).reply::<ImportReply>().0.region;
                wire.release(OBJECT_REGION, import).done();
            }
        }
        wire.receive().over();
        stage.tally.ended += 1;
    }
    assert_eq!(stage.counter(Counter::Evicted) - evicted, stage.tally.ended);
    drop((owner, _memory));
    stage.finish();
}

/// A name is whose it is while its session lives; then it is free. Names that cannot be.
#[test]
fn names_squatted_on() {
    let mut stage = Stage::set("names squatted on");
    let mut victim = stage.wire();
    let (mut own, mut _memory) = victim.region(4096);
    let sessions = stage.counter(Counter::Sessions);
    while stage.goes_on() {
        let mut squatter = stage.wire();
        let (region, _) = squatter.region(4096);
        let old = squatter.ask_export(region, abi::RIGHTS_ALL, "wanted").reply::<ExportReply>();
        for _ in 0..4 {
            let answer = victim.ask_export(own, abi::RIGHTS_ALL, "wanted");
            stage.tally.answer(answer).refused(errno::EEXIST, Detail::Name);
        }
        for name in ["", "half\0way"] {
            let answer = squatter.ask_export(region, abi::RIGHTS_ALL, name);
            stage.tally.answer(answer).refused(errno::EINVAL, Detail::Name);
        }
        let bad = [0xff; 64];
        let export = |head| abi::Export { head, region, rights: abi::RIGHTS_ALL, name: bad };
        let answer = squatter.ask(Kind::Export, export, &[]);
        stage.tally.answer(answer).refused(errno::EINVAL, Detail::Name);
        drop(squatter);
        until("the squatter is gone", || stage.counter(Counter::Sessions) == sessions);
        // Its export went with it, so the name is free, and its secret opens nothing any more.
        let fresh = victim.ask_export(own, abi::RIGHTS_ALL, "wanted").reply::<ExportReply>();
        assert_ne!(fresh.0.secret, old.0.secret);
        let mut late = stage.wire();
        let answer = late.ask_import("wanted", old.0.secret);
        stage.tally.answer(answer).refused(errno::EACCES, Detail::Secret);
        victim.release(OBJECT_REGION, own).done();
        (own, _memory) = victim.region(4096);
    }
    drop((victim, _memory));
    stage.finish();
}

/// Rights that were not offered, do not exist, or are none.
#[test]
fn rights_beyond_the_offer() {
    let mut stage = Stage::set("rights beyond the offer");
    let mut wire = stage.wire();
    let mut ring = wire.ring(64, 64);
    let (region, _memory) = wire.region(4096);
    let (near, _near) = wire.region(4096);
    for bad in [0, 16, 31, u32::MAX] {
        let answer = wire.ask_export(region, bad, "rights");
        stage.tally.answer(answer).refused(errno::EINVAL, Detail::Rights);
    }
    let mut imports = Vec::new();
    for offered in 1..16 {
        let name = format!("rights-{offered}");
        let secret = wire.ask_export(region, offered, &name).reply::<ExportReply>().0.secret;
        for wanted in 1..32 {
            let name = super::raw::padded(&name);
            let uid = abi::UID_OWN;
            let (rights, peer) = (wanted, 0);
            let import = |head| abi::Import { head, rights, uid, name, secret, peer, reserved: 0 };
            let answer = stage.tally.answer(wire.ask(Kind::Import, import, &[]));
            if wanted & 16 != 0 {
                answer.refused(errno::EINVAL, Detail::Rights);
            } else if wanted & !offered != 0 {
                answer.refused(errno::EACCES, Detail::Rights);
            } else {
                imports.push((wanted, answer.reply::<ImportReply>().0.region));
            }
        }
    }
    while stage.goes_on() {
        for &(rights, remote_region) in &imports {
            for (opcode, needs) in [(1, 2), (2, 1), (3, 2), (4, 1), (5, 4), (6, 4)] {
                for notify in [0, abi::SQE_NOTIFY] {
                    let needs = if notify == 0 { needs } else { needs | abi::RIGHT_NOTIFY };
                    let sqe = abi::Sqe {
                        opcode,
                        flags: notify,
                        local_region: near,
                        remote_region,
                        arg: [u64::from(opcode == 3 || opcode == 4) << 32, 0],
                        ..abi::Sqe::default()
                    };
                    ring.push(&sqe);
                    let cqe = ring.next();
                    let refused = (cqe.res, cqe.detail);
                    let should = (-errno::EACCES, Detail::Rights as u16);
                    assert_eq!(refused == should, rights & needs != needs, "{rights} {opcode}");
                    stage.tally.attempts += 1;
                    stage.tally.cqe(&cqe);
                }
            }
        }
    }
    drop((wire, ring, _memory, _near));
    stage.finish();
}
