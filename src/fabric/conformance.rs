//! The tests that every fabric must pass, whatever moves its bytes.
//!
//! A fabric shows itself by a [`Harness`]: two memories, a way to let the world go on, and the
//! fabric at the near one. [`cases`] names each test; `conformance!` makes a `#[test]` of each,
//! and [`run_all`] runs them all where a test harness is not to be had.
//!
//! What is asked for: one completion for each request, never more; a prefix where depth ends; all
//! verbs, all sizes; order within a rail; errors that cost only the guilty; notifications after
//! their bytes; chains in order. A fabric that does not offer notifications or chains (see
//! [`Limits`](super::Limits)) is spared those, and must then say so.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use super::{
    Arrival, DONE_FLUSHED, Done, Fabric, REQUEST_APART, REQUEST_CHAIN, REQUEST_NOTIFY, Request,
    Verb,
};
use crate::abi::errno;
use crate::random::Random;
use crate::shm::Mapping;

/// Region index of the near memory: the local side of requests.
pub const NEAR: u32 = 0;
/// Region index of the far memory.
pub const FAR: u32 = 1;
/// Region index that looks like the far memory, whose keys the far side does not admit (or an
/// index that is not attached, for a fabric without keys).
pub const FORGED: u32 = 2;
/// An index below the fabric's limit that is never attached.
pub const NOWHERE: u32 = 3;
/// Bytes of each memory.
pub const BYTES: u64 = 64 << 10;

/// A fabric with something at its far end.
pub trait Harness {
    /// The fabric.
    type Fabric: Fabric;

    /// The fabric at the near end, with [`NEAR`], [`FAR`] and [`FORGED`] attached.
    fn fabric(&mut self) -> &mut Self::Fabric;

    /// Lets everything but the near fabric's `poll` go on for a while, and returns the time, ns.
    fn advance(&mut self) -> u64;

    /// The near memory, of [`BYTES`].
    fn near(&self) -> Arc<Mapping>;

    /// The far memory, of [`BYTES`].
    fn far(&self) -> Arc<Mapping>;

    /// Takes what the far end was notified of: regions must be [`FAR`].
    fn arrivals(&mut self, out: &mut Vec<Arrival>);

    /// Rails there are.
    fn rails(&self) -> u16 {
        1
    }
}

/// One test: its name, and what runs it.
pub type Case<H> = (&'static str, fn(&mut H));

/// Every test, by name.
#[must_use]
pub fn cases<H: Harness>() -> Vec<Case<H>> {
    vec![
        ("every_verb_does_what_it_says", every_verb_does_what_it_says),
        ("every_size_arrives_whole", every_size_arrives_whole),
        ("depth_ends_a_post_with_a_prefix", depth_ends_a_post_with_a_prefix),
        ("a_rail_keeps_its_order", a_rail_keeps_its_order),
        ("each_request_completes_once", each_request_completes_once),
        ("wrong_requests_end_as_failed", wrong_requests_end_as_failed),
        ("a_forged_key_costs_only_the_guilty", a_forged_key_costs_only_the_guilty),
        ("a_notification_follows_its_bytes", a_notification_follows_its_bytes),
        ("notifications_beyond_credit_wait", notifications_beyond_credit_wait),
        ("a_chain_from_read_to_write_keeps_its_order", a_chain_from_read_to_write_keeps_its_order),
        ("a_chain_ends_where_a_link_fails", a_chain_ends_where_a_link_fails),
        ("a_chain_of_all_verbs_keeps_its_order", a_chain_of_all_verbs_keeps_its_order),
        ("a_chain_is_cut_at_every_place", a_chain_is_cut_at_every_place),
        ("a_chain_may_be_posted_over_time", a_chain_may_be_posted_over_time),
        ("random_chains_agree_with_a_model", random_chains_agree_with_a_model),
        (
            "neighbours_keep_their_bytes_and_their_order",
            neighbours_keep_their_bytes_and_their_order,
        ),
        ("random_requests_agree_with_a_model", random_requests_agree_with_a_model),
    ]
}

/// Runs every test, each on a harness of its own; says which one runs.
pub fn run_all<H: Harness>(make: impl Fn() -> H, mut say: impl FnMut(&str)) {
    for (name, case) in cases() {
        say(name);
        case(&mut make());
    }
}

/// Makes a `#[test]` of every conformance test, in a module of this name.
#[macro_export]
#[doc(hidden)]
macro_rules! conformance {
    ($module:ident, $make:expr) => {
        mod $module {
            #[test]
            fn no_test_is_left_out() {
                fn cases<H: $crate::fabric::conformance::Harness>(_: &H) -> usize {
                    $crate::fabric::conformance::cases::<H>().len()
                }
                assert_eq!(cases(&$make), 17);
            }

            #[test]
            fn every_verb_does_what_it_says() {
                $crate::fabric::conformance::every_verb_does_what_it_says(&mut $make);
            }
            #[test]
            fn every_size_arrives_whole() {
                $crate::fabric::conformance::every_size_arrives_whole(&mut $make);
            }
            #[test]
            fn depth_ends_a_post_with_a_prefix() {
                $crate::fabric::conformance::depth_ends_a_post_with_a_prefix(&mut $make);
            }
            #[test]
            fn a_rail_keeps_its_order() {
                $crate::fabric::conformance::a_rail_keeps_its_order(&mut $make);
            }
            #[test]
            fn each_request_completes_once() {
                $crate::fabric::conformance::each_request_completes_once(&mut $make);
            }
            #[test]
            fn wrong_requests_end_as_failed() {
                $crate::fabric::conformance::wrong_requests_end_as_failed(&mut $make);
            }
            #[test]
            fn a_forged_key_costs_only_the_guilty() {
                $crate::fabric::conformance::a_forged_key_costs_only_the_guilty(&mut $make);
            }
            #[test]
            fn a_notification_follows_its_bytes() {
                $crate::fabric::conformance::a_notification_follows_its_bytes(&mut $make);
            }
            #[test]
            fn notifications_beyond_credit_wait() {
                $crate::fabric::conformance::notifications_beyond_credit_wait(&mut $make);
            }
            #[test]
            fn a_chain_from_read_to_write_keeps_its_order() {
                $crate::fabric::conformance::a_chain_from_read_to_write_keeps_its_order(&mut $make);
            }
            #[test]
            fn a_chain_ends_where_a_link_fails() {
                $crate::fabric::conformance::a_chain_ends_where_a_link_fails(&mut $make);
            }
            #[test]
            fn a_chain_of_all_verbs_keeps_its_order() {
                $crate::fabric::conformance::a_chain_of_all_verbs_keeps_its_order(&mut $make);
            }
            #[test]
            fn a_chain_is_cut_at_every_place() {
                $crate::fabric::conformance::a_chain_is_cut_at_every_place(&mut $make);
            }
            #[test]
            fn a_chain_may_be_posted_over_time() {
                $crate::fabric::conformance::a_chain_may_be_posted_over_time(&mut $make);
            }
            #[test]
            fn random_chains_agree_with_a_model() {
                $crate::fabric::conformance::random_chains_agree_with_a_model(&mut $make);
            }
            #[test]
            fn neighbours_keep_their_bytes_and_their_order() {
                $crate::fabric::conformance::neighbours_keep_their_bytes_and_their_order(
                    &mut $make,
                );
            }
            #[test]
            fn random_requests_agree_with_a_model() {
                $crate::fabric::conformance::random_requests_agree_with_a_model(&mut $make);
            }
        }
    };
}

/// A request by the first rail, between places that name themselves.
#[must_use]
pub fn request(ticket: u64, verb: Verb, near: u64, far: u64, bytes: u32) -> Request {
    Request {
        ticket,
        verb,
        local: NEAR,
        remote: FAR,
        local_offset: near,
        remote_offset: far,
        bytes,
        arg: [0; 2],
        rail: 0,
        flags: 0,
        immediate: 0,
        attempts: 0,
    }
}

/// Rounds without a completion after which a fabric hangs.
const PATIENCE: u32 = 20_000;

/// Posts all, in order, as the fabric takes them, and waits for all; completions in their order.
///
/// # Panics
/// If a completion is missing, comes twice, or belongs to nothing.
pub fn carry<H: Harness>(harness: &mut H, requests: &[Request]) -> Vec<Done> {
    let mut ends: Vec<Done> = Vec::new();
    let mut posted = 0;
    let mut quiet = 0;
    let mut done = Vec::with_capacity(8);
    while ends.len() < requests.len() {
        if posted < requests.len() {
            posted += harness.fabric().post(&requests[posted..]);
        }
        let now_ns = harness.advance();
        done.clear();
        harness.fabric().poll(now_ns, &mut done);
        assert!(done.len() <= 8, "more completions than there was room for");
        quiet = if done.is_empty() { quiet + 1 } else { 0 };
        assert!(quiet < PATIENCE, "{} of {} completed", ends.len(), requests.len());
        for end in &done {
            let known = requests[..posted].iter().any(|request| request.ticket == end.ticket);
            assert!(known, "{end:?} belongs to nothing that was taken");
            assert!(!ends.iter().any(|other| other.ticket == end.ticket), "{end:?} came twice");
            ends.push(*end);
        }
    }
    done.clear();
    for _ in 0..20 {
        let now_ns = harness.advance();
        harness.fabric().poll(now_ns, &mut done);
    }
    assert!(done.is_empty(), "a surplus of completions: {done:?}");
    ends
}

/// Carries requests that must all succeed.
pub fn succeed<H: Harness>(harness: &mut H, requests: &[Request]) {
    for end in carry(harness, requests) {
        assert_eq!((end.errno, end.flags), (0, 0), "{end:?}");
    }
}

fn bytes_of(memory: &Mapping, offset: u64, bytes: u32) -> Vec<u8> {
    let mut read = vec![0; bytes as usize];
    memory.read(offset, &mut read);
    read
}

fn fill(memory: &Mapping, random: &mut Random) {
    for word in 0..BYTES / 8 {
        memory.write(word * 8, &random.next().to_le_bytes());
    }
}

fn word(memory: &Mapping, offset: u64) -> u64 {
    u64::from_le_bytes(bytes_of(memory, offset, 8).try_into().unwrap())
}

/// WRITE, READ, and both atomics, one after the other.
pub fn every_verb_does_what_it_says<H: Harness>(harness: &mut H) {
    let (near, far) = (harness.near(), harness.far());
    near.write(0, b"from here to there");
    far.write(4096, b"and from there to here");
    far.write(8192, &41_u64.to_le_bytes());
    let add = Request { arg: [5, 0], ..request(3, Verb::FetchAdd, 256, 8192, 8) };
    let swap = Request { arg: [46, 99], ..request(4, Verb::CmpSwap, 264, 8192, 8) };
    let miss = Request { arg: [46, 7], ..request(5, Verb::CmpSwap, 272, 8192, 8) };
    let wrap = Request { arg: [u64::MAX, 0], ..request(6, Verb::FetchAdd, 280, 8192, 8) };
    let write = request(1, Verb::Write, 0, 128, 18);
    let read = request(2, Verb::Read, 512, 4096, 22);
    for request in [write, read, add, swap, miss, wrap] {
        succeed(harness, &[request]);
    }
    assert_eq!(bytes_of(&far, 128, 18), b"from here to there");
    assert_eq!(bytes_of(&near, 512, 22), b"and from there to here");
    let old = [256, 264, 272, 280].map(|at| word(&near, at));
    assert_eq!((old, word(&far, 8192)), ([41, 46, 99, 99], 98));
}

/// From nothing to all there is, both ways, and not a byte beside it.
pub fn every_size_arrives_whole<H: Harness>(harness: &mut H) {
    let (near, far) = (harness.near(), harness.far());
    let mut random = Random::new(7);
    let all = u32::try_from(BYTES).unwrap();
    for bytes in [0, 1, 7, 8, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 40_000, all - 1, all] {
        for verb in [Verb::Write, Verb::Read] {
            fill(&near, &mut random);
            fill(&far, &mut random);
            let spare = BYTES - u64::from(bytes);
            let (from, to) = (random.below(spare + 1), random.below(spare + 1));
            let (source, target) = match verb {
                Verb::Write => (&near, &far),
                _ => (&far, &near),
            };
            let (at, into) = if verb == Verb::Write { (from, to) } else { (to, from) };
            let before = bytes_of(target, 0, all);
            succeed(harness, &[request(1, verb, at, into, bytes)]);
            let mut expected = before;
            let place = usize::try_from(to).unwrap();
            expected[place..place + bytes as usize].copy_from_slice(&bytes_of(source, from, bytes));
            assert!(bytes_of(target, 0, all) == expected, "{verb:?} of {bytes} bytes");
        }
    }
}

/// What is beyond the depth is not taken, and what is taken completes.
pub fn depth_ends_a_post_with_a_prefix<H: Harness>(harness: &mut H) {
    let depth = harness.fabric().limits().depth;
    assert!(depth > 0);
    let batch: Vec<_> = (0..u64::from(depth) + 5)
        .map(|n| request(n + 1, Verb::Write, 0, 8 * (n % 64), 8))
        .collect();
    let taken = harness.fabric().post(&batch);
    assert!(taken >= 1 && taken <= depth as usize, "{taken} of {} at depth {depth}", batch.len());
    assert_eq!(harness.fabric().post(&batch[taken..]), 0, "a full rail took more");
    let mut done = Vec::with_capacity(batch.len());
    for _ in 0..PATIENCE {
        let now_ns = harness.advance();
        harness.fabric().poll(now_ns, &mut done);
    }
    let mut tickets: Vec<_> = done.iter().map(|end| end.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (1..=taken as u64).collect::<Vec<_>>());
    succeed(harness, &batch[taken..]);
}

/// Many writes to one place: the last one is what remains; and they complete in order.
pub fn a_rail_keeps_its_order<H: Harness>(harness: &mut H) {
    let (near, far) = (harness.near(), harness.far());
    for rail in 0..harness.rails() {
        let writes: Vec<_> = (0..100)
            .map(|n| {
                near.write(n * 8, &n.to_le_bytes());
                Request { rail, ..request(n + 1, Verb::Write, n * 8, 64, 8) }
            })
            .collect();
        let ends = carry(harness, &writes);
        assert!(ends.is_sorted_by_key(|end| end.ticket), "{ends:?}");
        assert!(ends.iter().all(|end| end.errno == 0));
        assert_eq!(word(&far, 64), 99);
    }
}

/// Long runs over all rails, in batches of every size.
pub fn each_request_completes_once<H: Harness>(harness: &mut H) {
    let mut random = Random::new(3);
    let rails = u64::from(harness.rails());
    for round in 0..20_u64 {
        let count = 1 + random.below(200);
        let batch: Vec<_> = (0..count)
            .map(|n| {
                let verb = random.pick(&[Verb::Write, Verb::Read, Verb::Write]);
                let rail = u16::try_from(random.below(rails)).unwrap();
                let (near, far) = (random.below(BYTES - 64), random.below(BYTES - 64));
                let bytes = random.below32(64);
                Request { rail, ..request(round << 32 | n, verb, near, far, bytes) }
            })
            .collect();
        succeed(harness, &batch);
    }
}

/// Regions that are not there, and ranges that are not inside.
pub fn wrong_requests_end_as_failed<H: Harness>(harness: &mut H) {
    let good = request(1, Verb::Write, 0, 0, 8);
    let bad = [
        (Request { ticket: 2, remote: NOWHERE, ..good }, errno::ESTALE),
        (Request { ticket: 3, local: NOWHERE, ..good }, errno::ESTALE),
        (Request { ticket: 4, remote_offset: BYTES - 7, ..good }, errno::EINVAL),
        (Request { ticket: 5, local_offset: BYTES - 7, ..good }, errno::EINVAL),
        (Request { ticket: 6, remote_offset: u64::MAX, ..good }, errno::EINVAL),
        (Request { ticket: 7, local_offset: u64::MAX - 3, ..good }, errno::EINVAL),
    ];
    let mut batch = vec![good];
    batch.extend(bad.iter().map(|(request, _)| *request));
    batch.push(Request { ticket: 8, ..good });
    for end in carry(harness, &batch) {
        let wrong = bad.iter().find(|(request, _)| request.ticket == end.ticket);
        assert_eq!(end.errno, wrong.map_or(0, |(_, errno)| *errno), "{end:?}");
    }
}

/// One request that the far side refuses, amid others that it does not: those all happen.
pub fn a_forged_key_costs_only_the_guilty<H: Harness>(harness: &mut H) {
    let (near, far) = (harness.near(), harness.far());
    let mut random = Random::new(5);
    fill(&near, &mut random);
    for verb in [Verb::Write, Verb::Read, Verb::FetchAdd] {
        let count = 24_u64;
        let guilty = random.below(count);
        let mut batch: Vec<_> =
            (0..count).map(|n| request(n, Verb::Write, n * 64, n * 64, 64)).collect();
        let index = usize::try_from(guilty).unwrap();
        batch[index] = Request { remote: FORGED, ..request(guilty, verb, 8192, 8192, 8) };
        far.fill(0, BYTES, 0);
        for end in carry(harness, &batch) {
            assert_eq!(end.errno != 0, end.ticket == guilty, "{verb:?} {end:?}");
        }
        for n in (0..count).filter(|n| *n != guilty) {
            assert!(bytes_of(&far, n * 64, 64) == bytes_of(&near, n * 64, 64), "{n}");
        }
        assert!(bytes_of(&far, 8192, 8) == [0; 8], "a forged key wrote");
    }
}

/// Waits until the far end was told of something; what it was told, once nothing follows.
fn told<H: Harness>(harness: &mut H) -> Vec<Arrival> {
    let mut all = Vec::new();
    let mut out = Vec::with_capacity(4);
    let mut done = Vec::with_capacity(4);
    for _ in 0..200 {
        out.clear();
        harness.arrivals(&mut out);
        all.extend(&out);
        let now_ns = harness.advance();
        harness.fabric().poll(now_ns, &mut done);
    }
    assert!(done.is_empty());
    all
}

/// Whoever is told of a change sees it.
pub fn a_notification_follows_its_bytes<H: Harness>(harness: &mut H) {
    if !harness.fabric().limits().notifies {
        return;
    }
    let (near, far) = (harness.near(), harness.far());
    let mut out = Vec::with_capacity(1);
    for n in 1..50_u32 {
        near.fill(0, 3000, u8::try_from(n).unwrap());
        let write = Request {
            flags: REQUEST_NOTIFY,
            immediate: n,
            ..request(u64::from(n), Verb::Write, 0, 100, 3000)
        };
        let mut done = Vec::with_capacity(4);
        let mut rounds = 0;
        while harness.fabric().post(&[write]) == 0 {
            rounds += 1;
            assert!(rounds < PATIENCE, "no credit came back");
            let now_ns = harness.advance();
            harness.fabric().poll(now_ns, &mut done);
        }
        while out.is_empty() || done.is_empty() {
            rounds += 1;
            assert!(rounds < PATIENCE, "nobody was told");
            let now_ns = harness.advance();
            if out.is_empty() {
                harness.arrivals(&mut out);
                if !out.is_empty() {
                    let byte = u8::try_from(n).unwrap();
                    assert!(bytes_of(&far, 100, 3000) == [byte; 3000], "told before the bytes");
                }
            }
            harness.fabric().poll(now_ns, &mut done);
        }
        assert_eq!(done, [Done::new(u64::from(n), 0)]);
        let arrival = out.pop().unwrap();
        assert_eq!((arrival.region, arrival.immediate), (FAR, n));
    }
    assert_eq!(told(harness), []);
}

/// A far end that does not look: the sender waits for it, and nothing is lost or doubled; other
/// requests go on.
pub fn notifications_beyond_credit_wait<H: Harness>(harness: &mut H) {
    if !harness.fabric().limits().notifies {
        return;
    }
    let mut done = Vec::with_capacity(4096);
    let room = harness.fabric().room(0);
    let credit = room.notifies;
    assert!(credit > 0);
    let notify = |n: u32| Request {
        flags: REQUEST_NOTIFY,
        immediate: n,
        ..request(u64::from(n), Verb::Write, 0, 0, 8)
    };
    let mut sent = 0;
    for _ in 0..PATIENCE / 10 {
        sent += u32::try_from(harness.fabric().post(&[notify(sent + 1)])).unwrap();
        let now_ns = harness.advance();
        harness.fabric().poll(now_ns, &mut done);
    }
    assert_eq!((sent, harness.fabric().room(0).notifies), (credit, 0), "credit is the limit");
    assert_eq!(done.len(), credit as usize);
    let plain: Vec<_> = (1..30).map(|n| request(1000 + n, Verb::Write, 0, 64, 8)).collect();
    succeed(harness, &plain);
    let mut came = told(harness);
    let more = 10 * credit;
    let mut rounds = 0;
    while sent < credit + more {
        rounds += 1;
        assert!(rounds < PATIENCE, "credit did not come back: {sent} sent");
        sent += u32::try_from(harness.fabric().post(&[notify(sent + 1)])).unwrap();
        let now_ns = harness.advance();
        harness.fabric().poll(now_ns, &mut done);
        let mut out = Vec::with_capacity(4);
        harness.arrivals(&mut out);
        came.extend(out);
    }
    for _ in 0..PATIENCE {
        if done.len() == sent as usize {
            break;
        }
        let now_ns = harness.advance();
        harness.fabric().poll(now_ns, &mut done);
    }
    assert_eq!(done.len(), sent as usize);
    came.extend(told(harness));
    let immediates: Vec<_> = came.iter().map(|arrival| arrival.immediate).collect();
    assert_eq!(immediates, (1..=sent).collect::<Vec<_>>());
}

/// READ, then a WRITE of what was read, in one post: the WRITE carries what the READ brought.
pub fn a_chain_from_read_to_write_keeps_its_order<H: Harness>(harness: &mut H) {
    if harness.fabric().limits().chain_max < 2 {
        return;
    }
    let (near, far) = (harness.near(), harness.far());
    for n in 0..40_u64 {
        near.fill(0, 4096, 0xee);
        far.write(0, &[u8::try_from(n).unwrap(); 4096]);
        far.fill(8192, 4096, 0xdd);
        let read = request(2 * n, Verb::Read, 0, 0, 4096);
        let write =
            Request { flags: REQUEST_CHAIN, ..request(2 * n + 1, Verb::Write, 0, 8192, 4096) };
        succeed(harness, &[read, write]);
        assert!(bytes_of(&far, 8192, 4096) == bytes_of(&far, 0, 4096), "chain {n}");
    }
}

/// What follows a failure in a chain does not happen; the next chain does.
pub fn a_chain_ends_where_a_link_fails<H: Harness>(harness: &mut H) {
    if harness.fabric().limits().chain_max < 2 {
        return;
    }
    let (near, far) = (harness.near(), harness.far());
    for remote in [FORGED, NOWHERE] {
        near.fill(0, 64, 7);
        far.fill(0, 4096, 0);
        let link = |n: u64| request(n, Verb::Write, 0, n * 64, 64);
        let chained = |n| Request { flags: REQUEST_CHAIN, ..link(n) };
        let batch = [
            link(1),
            Request { remote, ..chained(2) },
            chained(3),
            chained(4),
            link(5),
            chained(6),
        ];
        for end in carry(harness, &batch) {
            match end.ticket {
                2 => assert!(end.errno != 0 && end.errno != errno::ECANCELED, "{end:?}"),
                3 | 4 => assert_eq!(end.errno, errno::ECANCELED, "{end:?}"),
                _ => assert_eq!(end.errno, 0, "{end:?}"),
            }
        }
        let there = [1, 2, 3, 4, 5, 6].map(|n| bytes_of(&far, n * 64, 1)[0]);
        assert_eq!(there, [7, 0, 0, 0, 7, 7]);
    }
}

/// WRITE, READ of what was written, additions, and WRITEs of what those brought: whoever is chained
/// sees what the one before it left, at either end.
pub fn a_chain_of_all_verbs_keeps_its_order<H: Harness>(harness: &mut H) {
    if harness.fabric().limits().chain_max < 2 {
        return;
    }
    let (near, far) = (harness.near(), harness.far());
    let mut random = Random::new(13);
    for rail in 0..harness.rails() {
        for _ in 0..10 {
            let [value, first, second] = [0; 3].map(|_| random.next());
            near.write(0, &value.to_le_bytes());
            near.fill(8, 40, 0xee);
            far.fill(0, 40, 0xdd);
            let add =
                |n, near, add| Request { arg: [add, 0], ..request(n, Verb::FetchAdd, near, 0, 8) };
            let swap = Request {
                arg: [value.wrapping_add(first).wrapping_add(second), 99],
                ..request(6, Verb::CmpSwap, 32, 0, 8)
            };
            let mut chain = [
                request(1, Verb::Write, 0, 0, 8),
                request(2, Verb::Read, 8, 0, 8),
                add(3, 16, first),
                request(4, Verb::Write, 8, 8, 16),
                add(5, 24, second),
                swap,
                request(7, Verb::Write, 24, 24, 16),
                request(8, Verb::Read, 40, 0, 8),
            ];
            for (link, request) in chain.iter_mut().enumerate() {
                request.flags = if link > 0 { REQUEST_CHAIN } else { 0 };
                request.rail = rail;
            }
            succeed(harness, &chain);
            let sums = [value, value.wrapping_add(first), swap.arg[0]];
            let there = [0, 8, 16, 24, 32].map(|at| word(&far, at));
            assert_eq!(there, [99, sums[0], sums[0], sums[1], sums[2]]);
            assert_eq!(word(&near, 40), 99);
        }
    }
}

/// The link that fails is the first, one amid the others, or the last: what came before it has
/// happened, what follows has not, of whatever kind it is; and it says so.
pub fn a_chain_is_cut_at_every_place<H: Harness>(harness: &mut H) {
    const LINKS: u64 = 6;
    if harness.fabric().limits().chain_max < 2 {
        return;
    }
    let (near, far) = (harness.near(), harness.far());
    near.fill(0, BYTES, 7);
    for guilty in 0..LINKS {
        for remote in [FORGED, NOWHERE] {
            far.fill(0, 4096, 0);
            let chain: Vec<_> = (0..LINKS)
                .map(|n| {
                    let verb = [Verb::Write, Verb::FetchAdd][usize::from(n % 3 == 1)];
                    let flags = if n > 0 { REQUEST_CHAIN } else { 0 };
                    let bytes = if verb == Verb::Write { 64 } else { 8 };
                    let link = request(n, verb, n * 64, n * 64, bytes);
                    let remote = if n == guilty { remote } else { FAR };
                    Request { arg: [1, 0], flags, remote, ..link }
                })
                .collect();
            for end in carry(harness, &chain) {
                let context = format!("guilty {guilty} at {remote}: {end:?}");
                if end.ticket < guilty {
                    assert_eq!((end.errno, end.flags), (0, 0), "{context}");
                } else if end.ticket > guilty {
                    let cut = (errno::ECANCELED, DONE_FLUSHED);
                    assert_eq!((end.errno, end.flags), cut, "{context}");
                } else {
                    assert!(end.errno != 0 && end.errno != errno::ECANCELED, "{context}");
                }
            }
            for n in 0..LINKS {
                let byte = bytes_of(&far, n * 64, 1)[0];
                let happened = if n % 3 == 1 { 1 } else { 7 };
                assert_eq!(byte, if n < guilty { happened } else { 0 }, "{n} of {guilty}");
            }
        }
    }
}

/// A chain whose links are posted one by one, each when the one before has long ended: it is cut
/// all the same, until a request comes that is chained to nothing.
pub fn a_chain_may_be_posted_over_time<H: Harness>(harness: &mut H) {
    if harness.fabric().limits().chain_max < 2 {
        return;
    }
    let (near, far) = (harness.near(), harness.far());
    near.fill(0, 4096, 7);
    far.fill(0, 4096, 0);
    let link = |n: u64, flags| Request { flags, ..request(n, Verb::Write, 0, n * 64, 64) };
    succeed(harness, &[link(1, 0)]);
    succeed(harness, &[link(2, REQUEST_CHAIN)]);
    for (first, remote) in [(10, FORGED), (20, NOWHERE)] {
        let wrong = Request { remote, ..link(first, REQUEST_CHAIN) };
        assert!(carry(harness, &[wrong])[0].errno != 0);
        for n in first + 1..first + 4 {
            let end = carry(harness, &[link(n, REQUEST_CHAIN)])[0];
            assert_eq!((end.errno, end.flags), (errno::ECANCELED, DONE_FLUSHED), "{end:?}");
        }
        succeed(harness, &[link(first + 5, 0)]);
        succeed(harness, &[link(first + 6, REQUEST_CHAIN)]);
    }
    for n in 1..27 {
        let there = [1, 2, 15, 16, 25, 26].contains(&n);
        assert_eq!(bytes_of(&far, n * 64, 1)[0], if there { 7 } else { 0 }, "{n}");
    }
}

/// Chains of every length, good and bad, over all rails, against a plain model.
pub fn random_chains_agree_with_a_model<H: Harness>(harness: &mut H) {
    if harness.fabric().limits().chain_max < 2 {
        return;
    }
    let (near, far) = (harness.near(), harness.far());
    let mut random = Random::new(17);
    fill(&near, &mut random);
    for round in 0..30_u64 {
        far.fill(0, BYTES, 0);
        let mut batch = Vec::new();
        let mut expected = Vec::new();
        // What the last request of each rail left; none of this round before the first.
        let mut broken = vec![None; usize::from(harness.rails())];
        for n in 0..1 + random.below(60) {
            let rail = random.index(broken.len());
            let before = broken[rail].filter(|_| random.below(100) < 75);
            let bad = random.below(10) == 0;
            let errno = match before {
                Some(true) => errno::ECANCELED,
                _ if bad => errno::ESTALE,
                _ => 0,
            };
            broken[rail] = Some(errno != 0);
            expected.push(errno);
            batch.push(Request {
                rail: u16::try_from(rail).unwrap(),
                remote: if bad { NOWHERE } else { FAR },
                flags: if before.is_some() { REQUEST_CHAIN } else { 0 },
                ..request(n, Verb::Write, n * 64, n * 64, 64)
            });
        }
        for end in carry(harness, &batch) {
            let errno = expected[usize::try_from(end.ticket).unwrap()];
            assert_eq!(end.errno, errno, "round {round}: {end:?}");
            let at = end.ticket * 64;
            let there = bytes_of(&far, at, 64) == bytes_of(&near, at, 64);
            assert_eq!(there, errno == 0, "round {round}: {end:?}");
        }
    }
}

/// WRITEs and READs that continue each other at the far end, up and down, over and over: whether
/// they share a work request or not, each has its own end, the last one at a place is what is
/// there, and one that is wrong costs no neighbour anything.
pub fn neighbours_keep_their_bytes_and_their_order<H: Harness>(harness: &mut H) {
    const PART: u64 = BYTES / 4;
    let (near, far) = (harness.near(), harness.far());
    let mut random = Random::new(19);
    fill(&near, &mut random);
    fill(&far, &mut random);
    let part = u32::try_from(PART).unwrap();
    // Far: written | read. Near: source | landings. One rail, since two keep no order.
    let mut written = bytes_of(&far, 0, part);
    for round in 0..40_u64 {
        let mut batch = Vec::new();
        let (mut to, mut from) = (random.below(PART / 2), random.below(PART / 2));
        let mut landings = Vec::new();
        for n in 0..2 + random.below(60) {
            let bytes = random.pick(&[1, 8, 64, 64, 64, 100, 512]);
            match random.below(12) {
                0 => (to, from) = (random.below(PART / 2), random.below(PART / 2)),
                1 => to = to.saturating_sub(random.below(100)),
                2 => from = random.below(PART / 2),
                _ => {}
            }
            to = if to + 512 > PART { 0 } else { to };
            from = if from + 512 > PART { 0 } else { from };
            let apart = if random.chance(10) { REQUEST_APART } else { 0 };
            let mut made = if round % 4 == 3 {
                let into = PART + n * 512;
                landings.push((into, PART + to, bytes));
                request(n, Verb::Read, into, PART + to, bytes)
            } else {
                request(n, Verb::Write, from, to, bytes)
            };
            let wrong = random.chance(3);
            if wrong {
                made.remote = NOWHERE;
                landings.pop();
            } else if made.verb == Verb::Write {
                let place = usize::try_from(to).unwrap();
                written[place..place + bytes as usize]
                    .copy_from_slice(&bytes_of(&near, from, bytes));
            }
            batch.push(Request { flags: apart, ..made });
            (to, from) = (to + u64::from(bytes), from + u64::from(bytes));
        }
        for end in carry(harness, &batch) {
            let request = &batch[usize::try_from(end.ticket).unwrap()];
            let errno = if request.remote == NOWHERE { errno::ESTALE } else { 0 };
            assert_eq!((end.errno, end.flags), (errno, 0), "round {round}: {end:?}");
        }
        for (into, from, bytes) in landings {
            assert!(bytes_of(&near, into, bytes) == bytes_of(&far, from, bytes), "round {round}");
        }
        assert!(bytes_of(&far, 0, part) == written, "round {round}");
    }
}

/// Reads of constant bytes, writes whose last one counts, and additions, against a plain model.
pub fn random_requests_agree_with_a_model<H: Harness>(harness: &mut H) {
    const PART: u64 = BYTES / 4;
    let (near, far) = (harness.near(), harness.far());
    let mut random = Random::new(11);
    fill(&near, &mut random);
    fill(&far, &mut random);
    let rails = u64::from(harness.rails());
    let part = u32::try_from(PART).unwrap();
    // Far: read | written | sums. Near: source | landings | old sums. A rail writes its own words.
    let mut written = bytes_of(&far, PART, part);
    let mut sums: Vec<u64> = (0..8).map(|n| word(&far, 2 * PART + 8 * n)).collect();
    for round in 0..30_u64 {
        let mut batch = Vec::new();
        let mut landings = Vec::new();
        for n in 0..1 + random.below(40) {
            let rail = random.below(rails);
            let bytes = random.below32(128);
            let mut made = match random.below(3) {
                0 => {
                    let (from, to) = (random.below(PART - 128), PART + n * 128);
                    landings.push((from, to, bytes));
                    request(n, Verb::Read, to, from, bytes)
                }
                1 => {
                    let from = random.below(PART - 128);
                    let own = PART / rails;
                    let to = rail * own + random.below(own - 128);
                    let place = usize::try_from(to).unwrap();
                    written[place..place + bytes as usize]
                        .copy_from_slice(&bytes_of(&near, from, bytes));
                    request(n, Verb::Write, from, PART + to, bytes)
                }
                _ => {
                    let (at, add) = (random.index(8), random.next());
                    sums[at] = sums[at].wrapping_add(add);
                    let far = 2 * PART + 8 * at as u64;
                    Request {
                        arg: [add, 0],
                        ..request(n, Verb::FetchAdd, 2 * PART + 8 * n, far, 8)
                    }
                }
            };
            made.rail = u16::try_from(rail).unwrap();
            made.ticket |= round << 32;
            batch.push(made);
        }
        succeed(harness, &batch);
        for (from, to, bytes) in landings {
            assert!(bytes_of(&near, to, bytes) == bytes_of(&far, from, bytes), "round {round}");
        }
        assert!(bytes_of(&far, PART, part) == written, "round {round}");
        let there: Vec<_> = (0..8).map(|n| word(&far, 2 * PART + 8 * n)).collect();
        assert_eq!(there, sums, "round {round}");
    }
}

#[cfg(test)]
mod local {
    use super::*;
    use crate::fabric::qp::sim::SimProvider;
    use crate::fabric::{Local, Pair};

    /// The same-host fabric: its far end is a mapping of this process, too.
    struct Here<F> {
        fabric: F,
        memories: [Arc<Mapping>; 2],
    }

    impl<F: Fabric> Harness for Here<F> {
        type Fabric = F;

        fn fabric(&mut self) -> &mut F {
            &mut self.fabric
        }

        fn advance(&mut self) -> u64 {
            0
        }

        fn near(&self) -> Arc<Mapping> {
            Arc::clone(&self.memories[0])
        }

        fn far(&self) -> Arc<Mapping> {
            Arc::clone(&self.memories[1])
        }

        fn arrivals(&mut self, _out: &mut Vec<Arrival>) {}
    }

    fn over<F: Fabric<Memory: From<Arc<Mapping>>>>(mut fabric: F) -> Here<F> {
        let memories = [0; 2].map(|_| Arc::new(Mapping::anonymous(BYTES).unwrap()));
        fabric.attach(NEAR, Arc::clone(&memories[0]).into());
        fabric.attach(FAR, Arc::clone(&memories[1]).into());
        Here { fabric, memories }
    }

    fn here(depth: u32) -> Here<Local> {
        over(Local::new(4, depth, 4096))
    }

    fn alone(depth: u32) -> Here<Pair<SimProvider>> {
        over(Pair::new(Local::new(4, depth, 4096), None))
    }

    crate::conformance!(shallow, super::here(1));
    crate::conformance!(deep, super::here(64));
    crate::conformance!(without_rails, super::alone(16));
}
