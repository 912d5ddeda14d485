//! Sizes and settings: what was asked for, what was given, and that it is what is told.

use verbring::fabric::qp::provider::{
    Caps, MESSAGE_BYTES, Move, Provider, ProviderControl, ProviderError, WcStatus, WrVerb,
};

use super::side::{ALL, BYTES, CAPS, RAIL, Side, both_ways, connect, noise, places};

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn memory_beyond_the_device_s_limit_is_registered_in_pieces() {
    let [first, second] = places();
    let piece = 24 << 10;
    let mut sides =
        [(&first, 1 << 30), (&second, piece)].map(|(place, most)| Side::open(place, CAPS, most));
    connect(&mut sides);
    let [a, b] = &mut sides;
    let sent = noise(BYTES as usize, 5);
    a.memory.write(0, &sent);
    let keys = b.registration.keys.clone();
    let cut: Vec<_> = keys.iter().map(|key| (key.offset, key.bytes)).collect();
    assert_eq!(cut, [(0, piece), (piece, piece), (2 * piece, u64::from(BYTES) - 2 * piece)]);
    for key in &keys {
        let mut wr = a.wr(WrVerb::Write, u32::try_from(key.bytes).expect("small"), *key);
        wr.address += key.offset;
        assert_eq!(a.run_one(wr), WcStatus::Success);
    }
    assert_eq!(b.read(0, BYTES as usize), sent);
    // A key admits its own piece, and not one byte of the next.
    let mut across = a.wr(WrVerb::Write, 2, keys[0]);
    across.remote_address += piece - 1;
    assert_eq!(a.run_one(across), WcStatus::RemoteAccess);
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn sizes_beyond_the_device_shrink_until_it_agrees() {
    let [first, _] = places();
    let mut side = Side::open(&first, CAPS, 1 << 30);
    let limits = side.control.limits();
    assert!(limits.pairs_max > 1 && limits.depth_max > 64 && limits.atomics, "{limits:?}");
    let ask = Caps { sends: 32, receives: 8, inline_bytes: 1 << 20, ranges: 16 };
    let created = side.control.create(ask).expect("something smaller");
    let caps = created.caps;
    assert_eq!((caps.sends, caps.receives), (32, 8), "only what is too large shrinks");
    assert!((MESSAGE_BYTES..1 << 20).contains(&caps.inline_bytes), "{caps:?}");
    assert!(caps.inline_bytes >= 128, "more than the least was tried: {caps:?}");
    // 80 + 40 entries of the completion queue are promised; no more than there are can be.
    let entries = side.provider.completions_max(0);
    let error = side.control.create(Caps { sends: entries, ..CAPS }).expect_err("full");
    let wanted = u64::from(entries) + 80 + 40 + 16;
    let told = matches!(
        error,
        ProviderError::Limit { value, limit, .. } if (value, limit) == (wanted, entries.into())
    );
    assert!(told, "{error}");
    // What was ended gives its share back.
    let rest = Caps { sends: entries - 80 - 16, ..CAPS };
    assert!(side.control.create(rest).is_err());
    side.control.destroy(created.number, created.pair).expect("destroyed");
    let created = side.control.create(rest).expect("room");
    side.control.destroy(created.number, created.pair).expect("destroyed");
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn settings_are_in_force_as_the_device_tells() {
    let [mut first, mut second] = places();
    first.settings.mtu_bytes_max = 2048;
    second.settings.mtu_bytes_max = 1024;
    first.settings.traffic_class = 0x68;
    first.settings.service_level = 3;
    (first.settings.timeout, first.settings.retry, first.settings.rnr_retry) = (11, 4, 5);
    first.settings.rnr_timer = 9;
    let mut sides = [&first, &second].map(|place| Side::open(place, CAPS, 1 << 30));
    let links = connect(&mut sides);
    let [a, b] = &mut sides;
    assert_ne!(links[0].own.psn, links[0].peer.psn, "random, of 2^24");
    let told = a.control.effective(a.number).expect("told");
    assert_eq!(told.mtu_bytes, 1024, "the least of both ends");
    assert_eq!((told.timeout, told.retry, told.rnr_retry, told.rnr_timer), (11, 4, 5, 9));
    // Soft-RoCE takes a service level and does not tell it: Ethernet has none.
    assert_eq!(told.traffic_class, 0x68);
    assert_eq!((told.reads_out, told.reads_in), (links[0].reads_out(), links[0].reads_in()));
    assert!(told.reads_out > 0);
    let wr = a.wr(WrVerb::Write, 64, b.key());
    assert_eq!(a.run_one(wr), WcStatus::Success);
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn nothing_is_posted_on_rails_that_are_not_known() {
    both_ways(|[mut a, b]| {
        let wr = a.wr(WrVerb::Write, 64, b.key());
        for rail in [0, 9] {
            let bad = a.provider.post(rail, &[wr]).expect_err("no such rail");
            assert_eq!((bad.taken, bad.errno), (Some(0), 22));
            assert!(a.provider.post_receives(rail, 0, 1).is_err());
        }
        let pair = a.provider.release(RAIL).expect("ours");
        assert!(a.provider.post(RAIL, &[wr]).is_err() && a.provider.release(RAIL).is_none());
        // While the data path had it, control could move it; it still can.
        a.control.modify(a.number, &Move::Reset).expect("RESET");
        a.control.destroy(a.number, pair).expect("destroyed");
        let registration = a.control.register(&a.memory, ALL).expect("registered");
        a.control.deregister(registration.id).expect("deregistered");
    });
}
