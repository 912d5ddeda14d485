//! Control messages that cannot be: cut, too long, out of order, made of random bytes.

use verbring::abi::{self, Counter, Detail, Head, Kind, OBJECT_REGION, OBJECT_RING, errno};
use zerocopy::IntoBytes;

use super::chance::Chance;
use super::raw::{Answer, Wire};
use super::stage::Stage;

/// Bytes of each kind's request, by kind from 1.
const LENGTHS: [usize; 17] = [64, 32, 24, 32, 88, 128, 152, 24, 16, 16, 24, 32, 32, 24, 16, 24, 24];

/// A message of some kind whose fields behind the head are all zero.
fn message(kind: u16, length: usize) -> Vec<u8> {
    let head = Head { kind, reserved: 0, bytes: length as u32, tag: 1 };
    let mut bytes = head.as_bytes().to_vec();
    bytes.resize(length.max(16), 0);
    bytes.truncate(length);
    bytes
}

/// Says something that ends the session, with a refusal first.
fn expect_the_end(stage: &mut Stage, wire: Wire, bytes: &[u8]) {
    let answer = stage.tally.answer(wire.say(bytes, &[]));
    answer.refused(errno::EPROTO, Detail::Message);
    wire.receive().over();
    stage.tally.ended += 1;
}

/// Every length that a kind does not have, from 1 byte to far beyond the longest.
#[test]
fn of_the_wrong_length() {
    let mut stage = Stage::set("messages truncated and oversized");
    let evicted = stage.counter(Counter::Evicted);
    let mut chance = Chance::new(10);
    while stage.goes_on() {
        for kind in [Kind::Hello, Kind::Ring, Kind::Region, Kind::Import, Kind::Probe, Kind::Why] {
            let right = LENGTHS[kind as usize - 1];
            let cut = 1 + chance.below(right as u64 - 1) as usize;
            let long = right + 1 + chance.below(600) as usize;
            for length in [cut, long, 512, 513, 514, 4096, 65_536] {
                let wire = if kind == Kind::Hello { stage.connect() } else { stage.wire() };
                expect_the_end(&mut stage, wire, &message(kind as u16, length));
            }
            // The right length, and a head that says another.
            let mut lying = message(kind as u16, right);
            lying[4..8].copy_from_slice(&chance.u32().to_le_bytes());
            let wire = stage.wire();
            expect_the_end(&mut stage, wire, &lying);
        }
    }
    assert_eq!(stage.counter(Counter::Evicted) - evicted, stage.tally.ended);
    stage.finish();
}

/// No bytes at all cannot be told from a hang-up: that is what it is taken for.
#[test]
fn of_no_length() {
    let mut stage = Stage::set("messages without a byte");
    while stage.goes_on() {
        let wire = stage.wire();
        wire.send(&[], &[]).unwrap();
        stage.tally.answer(wire.receive()).over();
    }
    stage.finish();
}

/// Versions are agreed on, or refused by name; a feature that is not offered is never ignored.
#[test]
fn r12_of_other_versions_and_features() {
    let mut stage = Stage::set("HELLO of other versions and features");
    let own = abi::ABI_VERSION;
    while stage.goes_on() {
        let ask = |low, high, features| {
            let mut wire = stage.connect();
            let hello = |head| abi::Hello {
                head,
                version_min: low,
                version_max: high,
                features,
                ..Default::default()
            };
            wire.ask(Kind::Hello, hello, &[])
        };
        let ranges = [(0, 0), (own + 1, own + 1), (own + 1, u16::MAX), (own, 0), (u16::MAX, 0)];
        let mut refused: Vec<_> = ranges.iter().map(|(low, high)| ask(*low, *high, 0)).collect();
        refused.extend([1, 40, 63].map(|bit| ask(own, own, (1 << bit) & !abi::FEATURES)));
        for (low, high) in [(own, own), (0, own), (own, u16::MAX), (0, u16::MAX)] {
            let (reply, _) = ask(low, high, 0).reply::<abi::HelloReply>();
            assert_eq!((reply.version, reply.features), (u32::from(own), 0));
        }
        for answer in refused {
            stage.tally.answer(answer).refused(errno::EOPNOTSUPP, Detail::Version);
        }
    }
    stage.finish();
}

#[test]
fn out_of_order() {
    let mut stage = Stage::set("messages out of order");
    while stage.goes_on() {
        for kind in Kind::ALL.into_iter().skip(1) {
            // PREPARE is refused for what it is, and the session may go on.
            if kind != Kind::Prepare {
                let bytes = message(kind as u16, LENGTHS[kind as usize - 1]);
                let wire = stage.connect();
                expect_the_end(&mut stage, wire, &bytes);
            }
        }
        let mut wire = stage.wire();
        stage.tally.answer(wire.hello()).refused(errno::EPROTO, Detail::Message);
        wire.receive().over();
        stage.tally.ended += 1;

        // Order within a session: each of these is refused, none ends it.
        let mut wire = stage.wire();
        let mapped = wire.mapped(OBJECT_RING, 0);
        stage.tally.answer(mapped).refused(errno::EINVAL, Detail::Ring);
        let ring = wire.ring(2, 2);
        let twice = wire.mapped(OBJECT_RING, ring.number);
        stage.tally.answer(twice).refused(errno::EINVAL, Detail::Ring);
        wire.release(OBJECT_RING, ring.number).done();
        let gone = wire.release(OBJECT_RING, ring.number);
        stage.tally.answer(gone).refused(errno::EINVAL, Detail::Ring);
        let (made, _) = wire.ask_region(abi::REGION_ALLOCATED, 4096, &[]).reply();
        let abi::RegionReply { region, .. } = made;
        let early = wire.ask_export(region, abi::RIGHTS_ALL, "early");
        stage.tally.answer(early).refused(errno::EINVAL, Detail::LocalRegion);
        let early = wire.release(OBJECT_REGION, region);
        stage.tally.answer(early).refused(errno::EINVAL, Detail::LocalRegion);
        wire.mapped(OBJECT_REGION, region).done();
        let object = wire.mapped(3, region);
        stage.tally.answer(object).refused(errno::EINVAL, Detail::Message);
        wire.probe().done();
    }
    stage.finish();
}

/// Kinds that are not known or not served, reserved fields, the reply bit.
#[test]
fn of_unknown_kinds() {
    let mut stage = Stage::set("messages of unknown kinds");
    let mut chance = Chance::new(11);
    while stage.goes_on() {
        for kind in [0, 17, 18, 255, 0x8001, 0xffff, chance.u16() | 17] {
            let wire = stage.wire();
            expect_the_end(&mut stage, wire, &message(kind, 16 + chance.below(400) as usize));
        }
        let mut reserved = message(Kind::Probe as u16, 16);
        reserved[2] = 1;
        let wire = stage.wire();
        expect_the_end(&mut stage, wire, &reserved);
        let mut wire = stage.wire();
        let answer = wire.say(&message(Kind::Prepare as u16, 16), &[]);
        stage.tally.answer(answer).refused(errno::EOPNOTSUPP, Detail::Message);
        wire.probe().done();
    }
    stage.finish();
}

/// URLs and requirements that cannot be, peers that nobody connected, and an engine that reaches no
/// other. None of it ends the session.
#[test]
fn of_peers() {
    let mut stage = Stage::with("peers that are not there", |config| {
        config.verbs = verbring::host::VerbsUse::Off;
    });
    while stage.goes_on() {
        let mut wire = stage.wire();
        let long = [b'u'; abi::URL_BYTES];
        let urls: [&[u8]; 8] = [
            b"",
            b"unix:",
            b"unix:relative",
            b"/no/scheme",
            b"tcp:10.0.0.1:1",
            b"unix:/a\0b",
            b"unix:/\xff",
            &long,
        ];
        for url in urls {
            let answer = wire.ask_connect(0, url);
            stage.tally.answer(answer).refused(errno::EINVAL, Detail::Url);
        }
        for require in [u32::from(abi::FABRIC_LOCAL), 3, 63, u32::MAX] {
            let answer = wire.ask_connect(require, b"unix:/nobody/there");
            stage.tally.answer(answer).refused(errno::EINVAL, Detail::Require);
        }
        for require in [0, u32::from(abi::FABRIC_VERBS)] {
            let answer = wire.ask_connect(require, b"unix:/nobody/there");
            stage.tally.answer(answer).refused(errno::EOPNOTSUPP, Detail::Require);
        }
        let (region, _memory) = wire.region(4096);
        let export = wire.ask_export(region, abi::RIGHTS_ALL, "near").reply::<abi::ExportReply>().0;
        for peer in [1, 2, u32::MAX] {
            let answer = wire.ask_peer_import(peer, "near", export.secret);
            stage.tally.answer(answer).refused(errno::EINVAL, Detail::Peer);
        }
        wire.ask_import("near", export.secret).done();
    }
    stage.finish();
}

/// Random bytes, and random fields behind a head that is right. Whatever happens, there is one
/// answer to each message, or the end.
#[test]
fn of_random_bytes() {
    let mut stage = Stage::with("random messages", |config| {
        // What is granted by chance must not fill the machine.
        config.quota.region_bytes = 16 << 20;
    });
    let mut chance = Chance::new(12);
    while stage.goes_on() || stage.tally.attempts < 5_000 {
        let wire = stage.wire();
        for _ in 0..64 {
            let kind = chance.below(16) as u16;
            let mut bytes = if chance.once_in(8) {
                let length = 1 + chance.below(600) as usize;
                chance.bytes(length)
            } else {
                let length = *LENGTHS.get(usize::from(kind).wrapping_sub(1)).unwrap_or(&16);
                let mut bytes = message(kind, length);
                let random = chance.bytes(length);
                bytes[16..].copy_from_slice(&random[16..]);
                bytes
            };
            // Small numbers meet what is there.
            for at in (16..bytes.len()).step_by(4) {
                if chance.once_in(2) {
                    let end = bytes.len().min(at + 4);
                    bytes[at..end].fill(0);
                    bytes[at] = chance.below(4) as u8;
                }
            }
            if matches!(stage.tally.answer(wire.say(&bytes, &[])), Answer::Over) {
                break;
            }
        }
    }
    assert!(stage.tally.granted > 0 && stage.tally.refusals(errno::EPROTO, Detail::Message) > 0);
    stage.finish();
}
