//! What arrives: WRITE, READ, atomics, messages, in order, inline or not, and with an event.

use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use verbring::fabric::qp::provider::{Provider, Range, Ranges, WcKind, WcStatus, Wr, WrId, WrVerb};

use super::side::{RAIL, Side, both_ways, noise};

const SUCCESS: WcStatus = WcStatus::Success;

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn writes_and_reads_move_exactly_their_bytes() {
    both_ways(|[mut a, b]| {
        let sent = noise(40_000, 1);
        a.memory.write(0, &sent);
        let mut wr = a.wr(WrVerb::Write, 30_001, b.key());
        (wr.address, wr.remote_address) = (wr.address + 7, wr.remote_address + 1000);
        assert_eq!(a.run_one(wr), SUCCESS);
        assert_eq!(b.read(1000, 30_001), sent[7..30_008]);
        assert_eq!(b.read(0, 1000), [0; 1000], "before the range");
        assert_eq!(b.read(31_001, 1000), [0; 1000], "behind the range");

        b.memory.write(0, &noise(5000, 2));
        let wr = a.wr(WrVerb::Read, 5000, b.key());
        assert_eq!(a.run_one(wr), SUCCESS);
        assert_eq!(a.read(0, 5000), noise(5000, 2));
        assert_eq!(a.read(5000, 1000), sent[5000..6000]);

        let mut empty = a.wr(WrVerb::Write, 0, b.key());
        (empty.lkey, empty.rkey) = (0, 0);
        assert_eq!(a.run_one(empty), SUCCESS, "0 bytes need no key");
        a.close();
        b.close();
    });
}

/// Several local ranges are one message: gathered in order by a WRITE, inline or not, and scattered
/// in order by a READ; beside others in one list, and after more than one list's worth of ranges.
#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn ranges_are_gathered_and_scattered_in_order() {
    both_ways(|[mut a, b]| {
        let most = u16::try_from(a.caps.ranges).expect("few ranges");
        assert!((2..=16).contains(&most), "{most} ranges");
        let own = a.key();
        a.memory.write(0, &noise(40_000, 1));
        let sent = a.read(0, 40_000);
        for (count, inline) in [(2, false), (2, true), (most, false), (most, true)] {
            // From behind, with gaps, each of its own length.
            let bytes = |n: u16| if inline { 1 + u32::from(n % 3) } else { 100 + u32::from(n) };
            let range = |n: u16| Range {
                address: own.address + 20_000 - u64::from(n) * 1_000,
                lkey: own.lkey,
                bytes: bytes(n),
            };
            let ranges: Vec<_> = (0..count).map(range).collect();
            let total = ranges.iter().map(|range| range.bytes).sum();
            let part = |range: &Range| {
                let at = usize::try_from(range.address - own.address).expect("inside");
                sent[at..at + range.bytes as usize].to_vec()
            };
            let expected = ranges.iter().flat_map(part).collect::<Vec<_>>();
            let mut list = Vec::new();
            for n in 0..5_u64 {
                let single = Wr { signaled: false, ..a.wr(WrVerb::Write, 8, b.key()) };
                let to = b.key().address + 10_000 + n * 4_000;
                let several = Ranges { first: 0, count };
                let wr = a.wr(WrVerb::Write, total, b.key());
                list.push(single);
                list.push(Wr {
                    remote_address: to,
                    ranges: several,
                    inline,
                    signaled: n == 4,
                    ..wr
                });
            }
            a.provider.post_ranges(RAIL, &list, &ranges).expect("posted");
            assert_eq!(a.wait(1, WcKind::Work)[0].status, SUCCESS, "{count} ranges");
            for n in 0..5 {
                assert_eq!(b.read(10_000 + n * 4_000, expected.len()), expected, "{count} ranges");
            }
            // And back, to where nothing is.
            a.memory.fill(0, 40_000, 0);
            let wr = a.wr(WrVerb::Read, total, b.key());
            let from = b.key().address + 10_000;
            let wr = Wr { remote_address: from, ranges: Ranges { first: 0, count }, ..wr };
            a.provider.post_ranges(RAIL, &[wr], &ranges).expect("posted");
            assert_eq!(a.wait(1, WcKind::Work)[0].status, SUCCESS, "{count} ranges");
            let mut scattered = vec![0; 40_000];
            let mut rest = &expected[..];
            for range in &ranges {
                let at = usize::try_from(range.address - own.address).expect("inside");
                let (part, behind) = rest.split_at(range.bytes as usize);
                scattered[at..at + part.len()].copy_from_slice(part);
                rest = behind;
            }
            assert!(a.read(0, 40_000) == scattered, "{count} ranges");
            a.memory.write(0, &sent);
        }
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn inline_bytes_are_those_at_the_time_of_the_post() {
    both_ways(|[mut a, b]| {
        assert_eq!(a.caps.inline_bytes, 64);
        a.memory.fill(0, 64, 0x11);
        let mut wr = a.wr(WrVerb::Write, 64, b.key());
        wr.inline = true;
        a.provider.post(RAIL, &[wr]).expect("posted");
        a.memory.fill(0, 64, 0x22);
        assert_eq!(a.wait(1, WcKind::Work)[0].status, SUCCESS);
        assert_eq!(b.read(0, 64), [0x11; 64]);
        // More than may be inline goes the ordinary way.
        let mut wr = a.wr(WrVerb::Write, 65, b.key());
        wr.inline = true;
        assert_eq!(a.run_one(wr), SUCCESS);
        assert_eq!(b.read(0, 65), [vec![0x22; 64], vec![0]].concat());
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn atomics_change_the_word_and_bring_back_the_old_one() {
    both_ways(|[mut a, b]| {
        let word = |side: &Side| u64::from_le_bytes(side.read(0, 8).try_into().expect("8 bytes"));
        b.memory.write(0, &u64::to_le_bytes(u64::MAX - 1));
        let mut add = a.wr(WrVerb::FetchAdd, 8, b.key());
        add.arg = [43, 0];
        assert_eq!(a.run_one(add), SUCCESS);
        assert_eq!((word(&a), word(&b)), (u64::MAX - 1, 41));
        for (compare, old, new) in [(7, 41, 41), (41, 41, 99)] {
            let mut swap = a.wr(WrVerb::CmpSwap, 8, b.key());
            swap.arg = [compare, 99];
            assert_eq!(a.run_one(swap), SUCCESS);
            assert_eq!((word(&a), word(&b)), (old, new));
        }
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn messages_arrive_in_order_behind_the_bytes_posted_before_them() {
    both_ways(|[mut a, mut b]| {
        // More rounds than receives: buffers are used again, each message once.
        for round in 0..40_u64 {
            a.memory.write(0, &noise(3000, round));
            let mut write = a.wr(WrVerb::Write, 3000, b.key());
            write.signaled = false;
            let mut send = a.wr(WrVerb::Send, 16, b.key());
            send.arg = [round << 32 | 5, !round];
            assert_eq!(a.run(&[write, send]), [SUCCESS], "one of two is signalled");
            let wc = b.wait(1, WcKind::Receive)[0];
            assert_eq!((wc.status, wc.bytes, wc.message), (SUCCESS, 16, send.arg));
            assert_eq!(b.read(0, 3000), noise(3000, round));
            let id = WrId(wc.wr_id);
            assert_eq!((id.rail(), id.slot()), (RAIL, WrId::RECEIVE));
            b.provider.post_receives(RAIL, wc.wr_id, 1).expect("the place is free again");
        }
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_fenced_write_carries_what_the_read_before_it_brought() {
    both_ways(|[mut a, b]| {
        for round in 0..20 {
            let fresh = noise(4096, round);
            b.memory.write(0, &fresh);
            let mut read = a.wr(WrVerb::Read, 4096, b.key());
            read.signaled = false;
            let mut write = a.wr(WrVerb::Write, 4096, b.key());
            write.fence = true;
            write.remote_address += 8192;
            assert_eq!(a.run(&[read, write]), [SUCCESS]);
            assert_eq!(b.read(8192, 4096), fresh, "round {round}");
        }
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn an_armed_queue_gives_one_event() {
    both_ways(|[mut a, b]| {
        let readable = |side: &Side, wait: Duration| {
            let channel = side.provider.channels().next().expect("a card");
            let mut fds = [PollFd::new(channel, PollFlags::POLLIN)];
            let wait = PollTimeout::try_from(wait).expect("a short time");
            poll(&mut fds, wait).expect("polled") == 1
        };
        a.provider.arm().expect("armed");
        assert!(!readable(&a, Duration::ZERO));
        let wr = a.wr(WrVerb::Write, 8, b.key());
        a.provider.post(RAIL, &[wr]).expect("posted");
        assert!(readable(&a, Duration::from_secs(30)), "the completion woke us");
        assert_eq!(a.provider.take_events(), 1);
        assert_eq!(a.wait(1, WcKind::Work)[0].wr_id, wr.wr_id);
        // Not armed again: a completion alone wakes nobody.
        let wr = a.wr(WrVerb::Write, 8, b.key());
        assert_eq!(a.run_one(wr), SUCCESS);
        assert!(!readable(&a, Duration::ZERO));
        assert_eq!(a.provider.take_events(), 0);
    });
}
