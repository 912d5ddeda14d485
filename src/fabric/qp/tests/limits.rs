//! Limits, on both sides of each; counters where they wrap; and credits that come back twice.

use super::super::provider::{Access, ProviderControl, WcStatus};
use super::super::sim::{Say, WorkPlan};
use super::super::{Config, Memory, RailState};
use super::faults::{ends, notify, plan, two, write};
use super::pair::{CONFIG, Shape, Two, exported};
use crate::abi::errno;
use crate::fabric::conformance::{Harness, NOWHERE, request, succeed};
use crate::fabric::{Done, Fabric, Request, Verb};

/// Every life of a queue pair has an epoch; notifications of each are heard.
#[test]
fn f28_epochs_go_round_and_every_life_is_told_from_the_others() {
    let mut two = two();
    two.near.rails[0].epoch = u32::MAX - 2;
    let mut told = Vec::with_capacity(64);
    for life in 0..6_u64 {
        // The first one's receives are of another epoch, so that only the rest tells of its end.
        match life {
            0 => two.near.degrade(0),
            _ => two.net.break_pair(two.join.number(0, 0)),
        }
        for _ in 0..200 {
            two.step();
        }
        assert_eq!(two.near.state(0), RailState::Ready, "life {life}");
        let epoch = (u32::MAX - 2).wrapping_add(u32::try_from(life).unwrap() + 1);
        assert_eq!(two.near.rails[0].epoch, epoch);
        succeed(&mut two, &[write(life), notify(10 + life)]);
        two.arrivals(&mut told);
        assert_eq!(told.len() as u64, life + 1);
    }
    assert_eq!(two.near.counts().stale_news, 0);
    assert!(two.near.at_rest());
}

/// Generations of slots go round in the middle of a stream; late completions are still known, and
/// so is work that the device was not to have.
#[test]
fn f28_generations_of_slots_go_round() {
    let mut two = two();
    for stamp in &mut two.near.rails[0].stamps {
        stamp.generation = u32::MAX - 1;
    }
    succeed(&mut two, &(0..100).map(write).collect::<Vec<_>>());
    assert_eq!(two.near.counts().stale, 0);
    assert!(two.near.at_rest());
    // What is taken back is remembered by its generation: also the first after the wrap.
    for stamp in &mut two.near.rails[0].stamps {
        (stamp.generation, stamp.burnt) = (u32::MAX, 0);
    }
    two.net.plan_post(two.join.number(0, 0), plan(16, Say::Wrong(2), errno::ENOMEM));
    assert_eq!(two.near.post(&(0..8).map(write).collect::<Vec<_>>()), 2);
    assert!(ends(&mut two, 2).iter().all(|end| end.errno == 0));
    assert!(two.near.counts().ghosts > 0, "{:?}", two.near.counts());
    succeed(&mut two, &(0..40).map(write).collect::<Vec<_>>());
    assert!(two.near.at_rest());
}

/// A key ends while requests that name it are posted and queued: they end, and what a queue pair
/// carries beside them is repeated.
#[test]
fn f30_a_key_that_ends_under_load_costs_only_those_that_name_it() {
    for after_ns in [0, 500, 1_500, 5_000] {
        let mut two = two();
        let access = Access { write: true, read: true, atomics: true };
        let far = two.far();
        let lent = two.join.control(1).register(&far, access).unwrap();
        let memory = Memory::peer(exported(&lent.keys, false), NOWHERE).unwrap();
        two.near.attach(NOWHERE, memory);
        let batch: Vec<_> = (0..30)
            .map(|n| if n % 3 == 0 { Request { remote: NOWHERE, ..write(n) } } else { write(n) })
            .collect();
        let mut taken = two.near.post(&batch);
        two.net.advance(after_ns);
        two.join.control(1).deregister(lent.id).unwrap();
        let mut done = Vec::with_capacity(32);
        for _ in 0..8_000 {
            taken += two.near.post(&batch[taken..]);
            let now_ns = two.advance();
            two.near.poll(now_ns, &mut done);
        }
        done.sort_by_key(|end| end.ticket);
        assert_eq!((taken, done.len()), (30, 30));
        let refused = |n| Done::new(n, errno::EACCES);
        for (end, n) in done.iter().zip(0..) {
            // It may have been repeated, for a neighbour's sake.
            let end = Done { attempts: 0, ..*end };
            let good = end == Done::new(n, 0);
            assert!(good || n % 3 == 0 && end == refused(n), "{end:?} after {after_ns} ns");
        }
        assert_eq!(Done { attempts: 0, ..done[27] }, refused(27), "the key had ended by then");
        assert_eq!(two.near.state(0), RailState::Ready);
        assert!(two.near.at_rest());
    }
}

/// A credit that comes back twice stops the engine: clamped, it would hide that a queue pair is
/// overcommitted from then on.
#[test]
#[should_panic(expected = "more than was taken")]
fn f33_depth_given_back_twice_is_caught() {
    let mut two = two();
    assert_eq!(two.near.post(&[write(0)]), 1);
    two.near.rails[0].used = 0;
    ends(&mut two, 1);
}

#[test]
#[should_panic(expected = "more than was reserved")]
fn f33_credit_for_a_notification_given_back_twice_is_caught() {
    let mut two = two();
    two.near.rails[0].credits.unreserve();
}

/// A message at the port's limit is one work request, and a byte more is two.
#[test]
fn q20_messages_depth_and_credit_hold_at_their_limits_and_one_beyond() {
    const MOST: u32 = 1_000;
    let config = Config { message_bytes_max: MOST, ..CONFIG };
    for (bytes, works) in [(0, 1), (1, 1), (MOST - 1, 1), (MOST, 1), (MOST + 1, 2), (3_000, 3)] {
        let mut two = Two::new(Shape { config, ..Shape::DEFAULT });
        let number = two.join.number(0, 0);
        assert_eq!(two.near.post(&[request(1, Verb::Write, 0, 0, bytes)]), 1);
        let lengths: Vec<_> = two.net.posted(number).iter().map(|wr| wr.bytes).collect();
        assert_eq!(lengths.len(), works, "{bytes} bytes");
        assert_eq!(lengths.iter().sum::<u32>(), bytes);
        assert!(lengths.iter().all(|length| *length <= MOST));
        assert_eq!(ends(&mut two, 1), [Done::new(1, 0)]);
    }
    for count in [CONFIG.depth - 1, CONFIG.depth, CONFIG.depth + 1] {
        let mut two = two();
        let batch: Vec<_> = (0..u64::from(count)).map(write).collect();
        let taken = two.near.post(&batch);
        assert_eq!(taken, count.min(CONFIG.depth) as usize);
        assert_eq!(two.near.room(0).requests, CONFIG.depth.saturating_sub(count));
        ends(&mut two, taken);
    }
    for count in [CONFIG.receives - 1, CONFIG.receives, CONFIG.receives + 1] {
        let mut two = Two::new(Shape { config: Config { depth: 32, ..CONFIG }, ..Shape::DEFAULT });
        let batch: Vec<_> = (0..u64::from(count)).map(notify).collect();
        let taken = two.near.post(&batch);
        assert_eq!(taken, count.min(CONFIG.receives) as usize, "nobody looks at what arrived");
        assert_eq!(two.near.room(0).notifies, CONFIG.receives.saturating_sub(count));
        ends(&mut two, taken);
    }
}

/// A request that needs the whole depth waits for it before all that came later: what is small and
/// would fit does not pass it by, so that it is not passed for ever.
#[test]
fn b12_a_long_request_is_not_passed_by_short_ones_for_ever() {
    let config = Config { depth: 8, message_bytes_max: 64, ..CONFIG };
    let mut two = Two::new(Shape { config, ..Shape::DEFAULT });
    two.net.delay(two.join.number(0, 0), 5_000);
    assert_eq!(two.near.post(&(0..3).map(write).collect::<Vec<_>>()), 3);
    let long = request(100, Verb::Write, 8_192, 8_192, 8 * 64);
    let mut queue: std::collections::VecDeque<_> = [long].into();
    let mut done = Vec::with_capacity(400);
    let mut next = 3;
    for _ in 0..400 {
        // Short ones keep coming, more than there is ever room for.
        while queue.len() < 12 {
            queue.push_back(write(next % 60));
            next += 1;
        }
        let offered: Vec<_> = queue.iter().copied().collect();
        let taken = two.near.post(&offered);
        queue.drain(..taken);
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
    }
    let place = done.iter().position(|end| end.ticket == 100);
    assert_eq!(place, Some(3), "right behind those that came before it");
    assert!(done.len() > 50 && done.iter().all(|end| end.errno == 0));
}

/// One of its pieces fails, on the wire or before it is posted: it is told with the last of them.
#[test]
fn b06_a_request_in_pieces_ends_only_when_its_last_piece_has() {
    let config = Config { message_bytes_max: 64, ..CONFIG };
    for on_the_wire in [true, false] {
        let mut two = Two::new(Shape { config, ..Shape::DEFAULT });
        let number = two.join.number(0, 0);
        two.net.delay(number, 2_000);
        if on_the_wire {
            let status = WcStatus::RemoteAccess;
            two.net.plan_work(number, WorkPlan { after: 1, status, effect: false });
        } else {
            two.net.plan_post(number, plan(5, Say::Right, errno::EINVAL));
        }
        assert_eq!(two.near.post(&[request(7, Verb::Write, 0, 0, 640)]), 1);
        assert!(two.net.pending(number) > 0);
        let mut done = Vec::with_capacity(2);
        for _ in 0..1_000 {
            if done.is_empty() {
                let now_ns = two.advance();
                two.near.poll(now_ns, &mut done);
            }
        }
        assert_eq!(two.net.pending(number), 0, "told while pieces were under way");
        let code = if on_the_wire { errno::EACCES } else { errno::EINVAL };
        assert_eq!(done, [Done::new(7, code)]);
        assert!(two.near.at_rest());
    }
}
