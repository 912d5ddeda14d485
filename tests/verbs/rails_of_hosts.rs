//! Two hosts with two cables between them: ops go by both; when the port of one is set down under
//! load they go on by the other alone, nothing is lost or applied twice, and the rail comes back
//! with its port. The engines hear each other by a third way.

use std::time::Duration;

use super::engine::{PATIENCE, settle};
use super::hosts::{Host, KeyFile, Load, Target, reach};
use super::side::{places, second_places};
use super::two_rails::Cable;

/// Runs until so many rails were used since now; returns WRITEs a second in the 3 s that follow.
fn rate(load: &mut Load, import: &verbring::Import, rails: usize, when: &str) -> f64 {
    const SPAN: Duration = Duration::from_secs(3);
    let waited = load.run_until_rails(import, rails);
    let before = load.tally;
    load.keep_on(import, SPAN);
    let done = load.tally.writes - before.writes;
    assert!(done > 0, "{when}: it stands still");
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let rate = done as f64 / SPAN.as_secs_f64();
    println!("{when:30} {rate:7.0} WRITEs/s of 4 KiB, after {:.2} s", waited.as_secs_f64());
    rate
}

#[test]
#[ignore = "needs four RDMA ports on two cables: tests/run vm"]
fn a_port_set_down_between_two_hosts_leaves_the_load_to_the_other() {
    let ([a0, b0], [a1, b1]) = (places(), second_places());
    let key = KeyFile::new();
    let mut near = Host::with_cards("near", &[&a0, &a1], "127.0.0.1:7490", 10_000, &key);
    let mut far = Host::with_cards("far", &[&b0, &b1], "127.0.0.1:7491", 10_000, &key);
    let session = near.served.session();
    let target = Target::at(&far);
    let (import, _) = reach(&session, &far.url, &target.secret);
    let mut load = Load::new(&session);
    rate(&mut load, &import, 2, "both rails");
    for (place, name) in [(&a1, "second"), (&a0, "first")] {
        let cable = Cable::of(place);
        cable.cut();
        load.keep_on(&import, Duration::from_secs(1));
        rate(&mut load, &import, 1, &format!("the {name} port is down"));
        assert_eq!(load.rails_used(), 1, "what is down carries nothing");
        cable.mend();
        rate(&mut load, &import, 2, &format!("the {name} port is up again"));
        assert!(near.lives() && far.lives(), "an engine is gone");
    }
    load.drain(PATIENCE);
    // Of what was on a rail that was cut, only atomics cannot be repeated.
    assert_eq!(load.tally.failed_writes, 0, "{:?}", load.tally);
    load.compare(&target.region);
    println!("{:?}, {:#?}", load.tally, load.failures);
    drop((import, target, load, session, far, near));
    for place in [&a0, &b0, &a1, &b1] {
        settle(&place.device);
    }
}

/// The far engine has its cards in the other order: they are paired by the networks that they are
/// on, not by their places, and what is lent is known by the right card's keys.
#[test]
#[ignore = "needs four RDMA ports on two cables: tests/run vm"]
fn cards_in_another_order_meet_those_of_their_own_cable() {
    let ([a0, b0], [a1, b1]) = (places(), second_places());
    let key = KeyFile::new();
    let near = Host::with_cards("near", &[&a0, &a1], "127.0.0.1:7492", 10_000, &key);
    let far = Host::with_cards("far", &[&b1, &b0], "127.0.0.1:7493", 10_000, &key);
    for (from, to, target_at) in [(&near, &far, &far), (&far, &near, &near)] {
        let session = from.served.session();
        let target = Target::at(target_at);
        let (import, _) = reach(&session, &to.url, &target.secret);
        let mut load = Load::new(&session);
        rate(&mut load, &import, 2, "crossed, both rails");
        load.drain(PATIENCE);
        assert_eq!(load.tally.failed(), 0, "{:?}, {:#?}", load.tally, load.failures);
        load.compare(&target.region);
    }
    drop((far, near));
    for place in [&a0, &b0, &a1, &b1] {
        settle(&place.device);
    }
}
