//! What may not be done: it ends as an error, nothing is touched, and the queue pair comes back.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use verbring::fabric::qp::provider::{
    Access, Caps, Move, PairState, Provider, ProviderControl, ProviderError, WcKind, WcStatus, Wr,
    WrVerb,
};
use verbring::fabric::verbs::AsyncEvent;

use super::side::{BYTES, RAIL, Side, both_ways, connect, pair, places, rebuild};

/// Posts a bad request and a good one behind it: the first gets one of `statuses`, the second is
/// flushed, nothing arrives, and after a rebuild everything works.
fn guilty_and_innocent(sides: &mut [Side; 2], bad: Wr, statuses: &[WcStatus]) {
    let [a, b] = &mut *sides;
    a.memory.fill(0, 4096, 0x55);
    b.memory.fill(0, BYTES.into(), 0);
    let good = a.wr(WrVerb::Write, 64, b.key());
    let ended = a.run(&[bad, good]);
    assert!(statuses.contains(&ended[0]), "{bad:?} ended {ended:?}");
    assert_eq!(ended[1], WcStatus::Flushed);
    assert_eq!(b.read(0, 65_536), vec![0; 65_536], "nothing arrived");
    assert_eq!(a.control.state(a.number).expect("a state"), PairState::Error);
    // What is posted now is flushed, too, also unsignalled.
    let mut late = a.wr(WrVerb::Write, 64, b.key());
    late.signaled = false;
    if a.provider.post(RAIL, &[late]).is_ok() {
        assert_eq!(a.wait(1, WcKind::Work)[0].status, WcStatus::Flushed);
    }
    rebuild(sides);
    let [a, b] = sides;
    let good = a.wr(WrVerb::Write, 64, b.key());
    assert_eq!(a.run_one(good), WcStatus::Success);
    assert_eq!(b.read(0, 64), [0x55; 64]);
    // The messages of the queue pair's new life are found, too.
    let mut send = a.wr(WrVerb::Send, 16, b.key());
    send.arg = [8, 9];
    assert_eq!(a.run_one(send), WcStatus::Success);
    let received = b.wait(1, WcKind::Receive);
    assert_eq!((received[0].status, received[0].message), (WcStatus::Success, [8, 9]));
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_bad_key_and_a_range_beyond_the_end_cost_only_themselves() {
    both_ways(|mut sides| {
        let [a, b] = &mut sides;
        let key = b.key();
        let mut bad_key = a.wr(WrVerb::Write, 64, key);
        bad_key.rkey ^= 0x5500;
        let mut beyond = a.wr(WrVerb::Write, 64, key);
        beyond.remote_address += u64::from(BYTES) - 63;
        let mut before = a.wr(WrVerb::Read, 64, key);
        before.remote_address -= 1;
        for bad in [bad_key, beyond, before] {
            guilty_and_innocent(&mut sides, bad, &[WcStatus::RemoteAccess]);
        }
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_bad_local_key_is_refused_also_where_the_bytes_would_be_inline() {
    both_ways(|mut sides| {
        let [a, b] = &mut sides;
        let mut wrong = a.wr(WrVerb::Write, 64, b.key());
        wrong.lkey ^= 0x5500;
        let mut beyond = a.wr(WrVerb::Write, 64, b.key());
        beyond.address += u64::from(BYTES) - 63;
        beyond.inline = true;
        // An address where nothing is: copying from there would end the process.
        let mut nowhere = a.wr(WrVerb::Write, 64, b.key());
        nowhere.address = 0x1000;
        nowhere.inline = true;
        for bad in [wrong, beyond, nowhere] {
            // The one is the standard's, the other Soft-RoCE's.
            let local = [WcStatus::LocalProtection, WcStatus::LocalOperation];
            guilty_and_innocent(&mut sides, bad, &local);
        }
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn rights_are_those_of_the_registration() {
    both_ways(|mut sides| {
        let memory = sides[1].memory.clone();
        let read_only = Access { write: false, read: true, atomics: false };
        let registration = sides[1].control.register(&memory, read_only).expect("registered");
        let key = registration.keys[0];
        let [a, _] = &mut sides;
        let read = a.wr(WrVerb::Read, 64, key);
        assert_eq!(a.run_one(read), WcStatus::Success);
        let write = a.wr(WrVerb::Write, 64, key);
        guilty_and_innocent(&mut sides, write, &[WcStatus::RemoteAccess]);
        let [a, _] = &mut sides;
        let add = a.wr(WrVerb::FetchAdd, 8, key);
        // An atomic without the right ends as the one or the other, by the card.
        let status = a.run_one(add);
        assert!(
            matches!(status, WcStatus::RemoteAccess | WcStatus::RemoteInvalid),
            "an atomic ended {status:?}"
        );
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_key_that_was_withdrawn_admits_nothing() {
    both_ways(|mut sides| {
        let memory = sides[1].memory.clone();
        let all = super::side::ALL;
        let registration = sides[1].control.register(&memory, all).expect("registered");
        let key = registration.keys[0];
        let wr = sides[0].wr(WrVerb::Write, 64, key);
        assert_eq!(sides[0].run_one(wr), WcStatus::Success);
        sides[1].control.deregister(registration.id).expect("deregistered");
        assert!(matches!(
            sides[1].control.deregister(registration.id),
            Err(ProviderError::Unknown { what: "registration", .. })
        ));
        let wr = sides[0].wr(WrVerb::Write, 64, key);
        guilty_and_innocent(&mut sides, wr, &[WcStatus::RemoteAccess]);
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_full_send_queue_takes_a_prefix_that_follows_its_way() {
    let [first, second] = places();
    let tiny = Caps { sends: 4, receives: 4, inline_bytes: 16, ranges: 1 };
    let mut sides = [&first, &second].map(|place| Side::open(place, tiny, 1 << 30));
    connect(&mut sides);
    let [a, b] = &mut sides;
    a.memory.fill(0, 4096, 0x77);
    // Large enough that the first cannot be done before the last is posted.
    let list: Vec<_> = (0..64).map(|_| a.wr(WrVerb::Write, 32_768, b.key())).collect();
    let bad = a.provider.post(RAIL, &list).expect_err("64 do not fit into 4");
    let taken = bad.taken.expect("rxe says which was not taken") as usize;
    assert_eq!(bad.errno, 12, "ENOMEM");
    assert!((1..64).contains(&taken), "{taken} were taken");
    let done = a.wait(taken, WcKind::Work);
    let expected: Vec<_> = list[..taken].iter().map(|wr| (wr.wr_id, WcStatus::Success)).collect();
    assert_eq!(done.iter().map(|wc| (wc.wr_id, wc.status)).collect::<Vec<_>>(), expected);
    assert_eq!(a.poll(), [], "and nothing else");
    let again = a.wr(WrVerb::Write, 64, b.key());
    assert_eq!(a.run_one(again), WcStatus::Success);
    // Receives beyond the queue are cut off as well.
    let bad = b.provider.post_receives(RAIL, 1 << 32 | 3 << 16 | 0xffff, 9).expect_err("full");
    assert_eq!(bad.errno, 12);
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_peer_that_is_gone_is_noticed_and_outstanding_work_is_flushed() {
    let [first, second] = places();
    let [mut a, b] = pair([&first, &second]);
    let key = b.key();
    b.close();
    let list = [a.wr(WrVerb::Write, 64, key), a.wr(WrVerb::Read, 64, key)];
    assert_eq!(a.run(&list), [WcStatus::RetryExceeded, WcStatus::Flushed]);
    a.close();
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn moves_that_cannot_be_are_told_with_both_states() {
    let [first, _] = places();
    let mut side = Side::open(&first, super::side::CAPS, 1 << 30);
    let own = {
        side.control.modify(side.number, &Move::Init(side.settings)).expect("INIT");
        side.control.endpoint(side.number, &side.settings, 0).expect("an endpoint")
    };
    let link = verbring::fabric::qp::provider::Link { own, peer: own, settings: side.settings };
    let error = side.control.modify(side.number, &Move::ReadyToSend(link)).expect_err("from INIT");
    let told = matches!(
        error,
        ProviderError::State { have: PairState::Init, want: PairState::ReadyToSend, .. }
    );
    assert!(told, "{error}");
    let error = side.control.state(0xff_ffff).expect_err("no such queue pair");
    assert!(matches!(error, ProviderError::Unknown { what: "queue pair", .. }), "{error}");
    let mut settings = side.settings;
    settings.gid_index = 200;
    let error = side.control.endpoint(side.number, &settings, 0).expect_err("no such GID");
    assert!(error.to_string().contains("GID"), "{error}");
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn f12_what_the_device_says_by_itself_arrives_as_a_value() {
    let [first, _] = places();
    let mut side = Side::open(&first, super::side::CAPS, 1 << 30);
    while side.control.next_event().is_some() {}
    let parent = format!("/sys/class/infiniband/{}/parent", first.device);
    let netdev = fs::read_to_string(parent).expect("a Soft-RoCE device");
    let address = |verb: &str| {
        let done = Command::new("ip")
            .args(["address", verb, "10.98.7.6/24", "dev", netdev.trim()])
            .status();
        assert!(done.expect("ip").success());
    };
    address("add");
    let begun = Instant::now();
    let mut seen = None;
    while seen.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30), "no event");
        seen = side.control.next_event();
    }
    address("delete");
    let port = u32::from(first.settings.port);
    assert_eq!(seen, Some(AsyncEvent::AddressesChanged(port)));
}
