//! Neighbours that share a work request: which do, how many, and what a failure costs them.

use super::super::provider::{Caps, WcStatus};
use super::super::sim::{Say, SimConfig, WorkPlan};
use super::super::{Config, RailState};
use super::faults::{ends, plan};
use super::pair::{CONFIG, Shape, Two};
use crate::abi::errno;
use crate::fabric::conformance::{FORGED, Harness, request, succeed};
use crate::fabric::{
    DONE_RETURNED, Fabric, REQUEST_APART, REQUEST_CHAIN, REQUEST_NOTIFY, Request, Stop, Verb,
};

const MOST: u32 = 1_000;

fn over(ranges: u32, config: Config) -> Two {
    let caps_max = Caps { ranges, ..SimConfig::DEFAULT.caps_max };
    Two::new(Shape { sim: SimConfig { caps_max, ..SimConfig::DEFAULT }, config, ..Shape::DEFAULT })
}

fn merging(ranges: u32) -> Two {
    over(ranges, Config { merge_bytes_max: MOST, inline_bytes: 16, ..CONFIG })
}

/// Neighbours at the far end, from places here that are no neighbours.
fn apart_here(n: u64) -> Request {
    request(n, Verb::Write, 8192 - n * 200, n * 64, 64)
}

/// Neighbours at both ends.
fn side_by_side(n: u64) -> Request {
    request(n, Verb::Write, n * 64, n * 64, 64)
}

/// Posts in one list; the work requests that became of it, as bytes and ranges.
fn works(two: &mut Two, batch: &[Request]) -> Vec<(u32, u16)> {
    let number = two.join.number(0, 0);
    let before = two.net.posted(number).len();
    two.near().fill(0, 16384, 7);
    succeed(two, batch);
    let posted = two.net.posted(number);
    let made = posted[before..].iter().map(|wr| (wr.bytes, wr.ranges.count.max(1)));
    two.near.audit();
    made.collect()
}

#[test]
fn as_many_share_as_there_are_ranges_and_no_more() {
    for (ranges, count) in [(1, 5), (2, 2), (2, 3), (3, 7), (16, 15), (16, 16)] {
        let mut two = merging(ranges);
        let batch: Vec<_> = (0..count).map(apart_here).collect();
        let made = works(&mut two, &batch[..usize::try_from(count).unwrap()]);
        let most = u64::from(ranges).min(u64::from(MOST / 64));
        let full = usize::try_from(count / most).unwrap();
        let mut expected = vec![(64 * most, most); full];
        expected.extend((count % most != 0).then_some((count % most * 64, count % most)));
        let made: Vec<_> = made.iter().map(|made| (made.0.into(), made.1.into())).collect();
        assert_eq!(made, expected, "{count} with {ranges} ranges");
        assert_eq!(two.near.counts().merged, count - expected.len() as u64);
        // What lies side by side here, too, needs no range of its own.
        let batch: Vec<_> = (0..15).map(side_by_side).collect();
        assert_eq!(works(&mut two, &batch), [(960, 1)], "{ranges} ranges");
    }
}

#[test]
fn a_shared_work_request_is_never_longer_than_what_bounds_it() {
    for (first, second, shares) in [(900, 99, true), (900, 100, true), (900, 101, false)] {
        for message_bytes_max in [1 << 30, MOST] {
            let merge_bytes_max = if message_bytes_max == MOST { 1 << 20 } else { MOST };
            let config = Config { merge_bytes_max, message_bytes_max, ..CONFIG };
            let mut two = over(16, config);
            for verb in [Verb::Write, Verb::Read] {
                let next = request(2, verb, 4096, u64::from(first), second);
                let made = works(&mut two, &[request(1, verb, 0, 0, first), next]);
                let expected =
                    if shares { vec![(first + second, 2)] } else { vec![(first, 1), (second, 1)] };
                assert_eq!(made, expected, "{first} and {second} at {message_bytes_max}");
            }
        }
    }
    // The first of them may be longer by itself, as a slice is; and one of many pieces has none.
    let mut two = merging(16);
    let long = [request(1, Verb::Write, 0, 0, 2_000), request(2, Verb::Write, 2_000, 2_000, 8)];
    assert_eq!(works(&mut two, &long), [(2_000, 1), (8, 1)]);
}

#[test]
fn who_is_no_neighbour_shares_nothing() {
    let (a, b) = (side_by_side(0), side_by_side(1));
    let apart = |made: Request| Request { flags: REQUEST_APART, ..made };
    let read = Request { verb: Verb::Read, ..b };
    let add = request(1, Verb::FetchAdd, 64, 64, 8);
    let gap = Request { remote_offset: 65, ..b };
    let before = Request { remote_offset: 64, ..a };
    let nothing = Request { bytes: 0, ..b };
    let chained = Request { flags: REQUEST_CHAIN, ..b };
    let under_way = Request { attempts: 1, ..b };
    for (first, second) in [
        (apart(a), b),
        (a, apart(b)),
        (a, read),
        (a, add),
        (a, gap),
        (before, Request { remote_offset: 0, ..b }),
        (a, nothing),
        (a, chained),
        (a, under_way),
    ] {
        let mut two = merging(16);
        let batch = [first, Request { ticket: 9, ..second }];
        assert_eq!(works(&mut two, &batch).len(), 2, "{batch:?}");
        assert_eq!(two.near.counts().merged, 0);
    }
    // READs that land in one place keep their order.
    let reads = [request(1, Verb::Read, 0, 0, 64), request(2, Verb::Read, 32, 64, 64)];
    assert_eq!(works(&mut merging(16), &reads).len(), 2);
    // Without it being asked for, nobody shares.
    assert_eq!(works(&mut over(16, CONFIG), &[a, b]).len(), 2);
}

#[test]
fn small_neighbours_go_inline_together_as_far_as_that_reaches() {
    for (bytes, inline) in [(31, true), (32, true), (33, false)] {
        let mut two = over(16, Config { merge_bytes_max: MOST, inline_bytes: 64, ..CONFIG });
        let number = two.join.number(0, 0);
        let next = request(2, Verb::Write, 4096, u64::from(bytes), bytes);
        two.near().fill(0, 64, 1);
        two.near().fill(4096, 64, 2);
        assert_eq!(two.near.post(&[request(1, Verb::Write, 0, 0, bytes), next]), 2);
        assert_eq!(two.net.posted(number).last().unwrap().inline, inline);
        // Inline, the memory is free at once.
        two.near().fill(0, 8192, 3);
        ends(&mut two, 2);
        let mut there = [0; 80];
        two.far().read(0, &mut there);
        let length = bytes as usize;
        let expected = if inline { [1, 2] } else { [3, 3] };
        assert_eq!([there[length - 1], there[length]], expected, "{bytes}");
    }
}

#[test]
fn who_notifies_is_the_last_of_those_that_share() {
    let mut two = merging(16);
    let told = |n| Request { flags: REQUEST_NOTIFY, immediate: 5, ..side_by_side(n) };
    let batch = [side_by_side(0), told(1), side_by_side(2), side_by_side(3), told(4), told(5)];
    // A message is of 16 bytes.
    let made: Vec<_> = works(&mut two, &batch).iter().map(|made| made.0).collect();
    assert_eq!(made, [128, 16, 192, 16, 64, 16]);
    let mut out = Vec::with_capacity(8);
    two.arrivals(&mut out);
    assert_eq!(out.len(), 3);
}

/// The card refuses what several shared: each goes by itself then, and only the guilty fails,
/// however seldom requests are repeated.
#[test]
fn a_refusal_of_what_is_shared_costs_only_the_guilty() {
    for attempts_max in [0, 3] {
        for guilty in 0..4_u32 {
            for told in [false, true] {
                let mut two = over(16, Config { merge_bytes_max: MOST, attempts_max, ..CONFIG });
                two.near().fill(0, 8192, 7);
                let number = two.join.number(0, 0);
                let refused =
                    |after| WorkPlan { after, status: WcStatus::RemoteAccess, effect: false };
                two.net.plan_work(number, refused(0));
                two.net.plan_work(number, refused(guilty));
                let mut batch: Vec<_> = (0..4).map(apart_here).collect();
                batch[3].flags = if told { REQUEST_NOTIFY } else { 0 };
                assert_eq!(two.near.post(&batch), 4);
                assert_eq!(two.net.posted(number).len(), 1 + usize::from(told));
                let context = format!("{guilty} of at most {attempts_max}, told: {told}");
                for end in ends(&mut two, 4) {
                    let bad = end.ticket == u64::from(guilty);
                    // Those behind the guilty one were flushed, and may be repeated no more.
                    let never = attempts_max == 0 || told && end.ticket == 3;
                    let flushed = never && end.ticket > u64::from(guilty);
                    assert!(flushed || (end.errno != 0) == bad, "{context}: {end:?}");
                    assert!(!bad || end.errno == errno::EACCES, "{context}: {end:?}");
                }
                let mut out = Vec::with_capacity(8);
                two.arrivals(&mut out);
                assert!(out.len() <= usize::from(told), "{context}");
                assert_eq!(two.near.state(0), RailState::Ready);
                two.near.audit();
                assert!(two.near.at_rest());
            }
        }
    }
}

/// The provider refuses to post what several share: they are posted one by one.
#[test]
fn a_post_that_is_refused_costs_only_the_guilty() {
    for (guilty, code) in [(None, 0), (Some(2), errno::EINVAL)] {
        let mut two = merging(16);
        two.near().fill(0, 8192, 7);
        let number = two.join.number(0, 0);
        two.net.plan_post(number, plan(1, Say::Right, errno::EINVAL));
        if let Some(guilty) = guilty {
            two.net.plan_post(number, plan(guilty, Say::Right, errno::EINVAL));
        }
        let apart = Request { flags: REQUEST_APART, ..side_by_side(100) };
        let batch = [&[apart][..], &[0, 1, 2, 3].map(apart_here)].concat();
        let mut taken = two.near.post(&batch);
        assert_eq!(taken, 5, "what is to be split stays");
        let mut done = Vec::with_capacity(8);
        for _ in 0..2_000 {
            taken += two.near.post(&batch[taken..]);
            let now_ns = two.advance();
            two.near.poll(now_ns, &mut done);
        }
        assert_eq!(done.len(), 5);
        for end in done {
            let bad = guilty.is_some_and(|guilty| end.ticket == u64::from(guilty));
            assert_eq!(end.errno, if bad { code } else { 0 }, "{end:?}");
        }
        assert_eq!((two.near.counts().merged, two.near.counts().degraded), (0, 0));
        two.near.audit();
        assert!(two.near.at_rest());
    }
}

/// Nobody knows what failed: all of it is repeated, or handed back for another rail.
#[test]
fn what_is_shared_is_repeated_or_handed_back_one_by_one() {
    for shared in [false, true] {
        let config = Config { merge_bytes_max: MOST, ..CONFIG };
        let mut two = Two::new(Shape { config, rails: 2, ..Shape::DEFAULT });
        if shared {
            two.near.share(0b11);
        }
        two.near().fill(0, 8192, 7);
        let batch: Vec<_> = (0..4).map(apart_here).collect();
        assert_eq!(two.near.post(&batch), 4);
        two.net.break_pair(two.join.number(0, 0));
        let done = ends(&mut two, 4);
        for (end, n) in done.iter().zip(0..) {
            let flags = if shared { DONE_RETURNED } else { 0 };
            assert_eq!((end.ticket, end.errno, end.flags, end.attempts), (n, 0, flags, 1));
        }
        let number = two.join.number(1, 0);
        for request in &batch {
            assert_eq!(two.near.post(&[Request { rail: 1, attempts: 1, ..*request }]), 1);
        }
        assert_eq!(two.net.posted(number).len(), 4);
        ends(&mut two, 4);
        two.near.audit();
        assert!(two.near.at_rest());
    }
}

/// The device takes a part of a list: what shared a work request that was not taken goes back.
#[test]
fn what_is_shared_and_not_posted_goes_back_whole() {
    for (taken, kept) in [(0, 0), (1, 4), (2, 5)] {
        let mut two = merging(16);
        two.near().fill(0, 8192, 7);
        two.net.plan_post(two.join.number(0, 0), plan(taken, Say::Right, errno::ENOMEM));
        let mut batch: Vec<_> = (0..4).map(apart_here).collect();
        batch.push(Request { flags: REQUEST_APART, ..side_by_side(20) });
        batch.push(side_by_side(22));
        assert_eq!(two.near.post(&batch), kept, "{taken}");
        assert_eq!(two.near.room(0).stop, Some(Stop::Memory));
        two.near.audit();
        assert!(ends(&mut two, kept).iter().all(|end| end.errno == 0));
        succeed(&mut two, &batch[kept..]);
        assert_eq!(two.near.counts().merged, 3);
        assert!(two.near.at_rest());
    }
}

/// A forged key is of another region, so that it stands beside what shares and not among it.
#[test]
fn a_forged_key_is_no_neighbour() {
    let mut two = merging(16);
    let mut batch: Vec<_> = (0..6).map(apart_here).collect();
    batch[3].remote = FORGED;
    assert_eq!(two.near.post(&batch), 6);
    for end in ends(&mut two, 6) {
        assert_eq!(end.errno != 0, end.ticket == 3, "{end:?}");
    }
    assert!(two.near.at_rest());
}
