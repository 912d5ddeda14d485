//! Rails of flows' own between an engine and another that the test plays: asked for, granted,
//! refused and given back, at each step of their joining. The card is played, too.

use std::thread;
use std::time::{Duration, Instant};

use super::apart::ERRORS_MAX;
use super::joint::Say;
use super::message::{FEATURE_APART, Have, Hello, Message, Want};
use super::scripted::{Door, HELLO, Other, no_pair, serves};
use super::two_cards::{NUMBER, Stage, endpoint};
use crate::control::{CardDone, CardOrder, CardWork, PairWork};
use crate::fabric::qp::provider::{Key, Move};
use crate::host::tests::PATIENCE;
use crate::ids::RegionId;
use crate::{Flush, Import, Peer, Rights, RingOptions, Session};

/// With so many rails, two may be flows' own.
const RAILS: u16 = 12;
/// The connection's only rail, and the first places of each end: the engine has made the
/// connection.
const SHARED: u16 = 2;
const OURS: u8 = 12;
const THEIRS: u8 = 13;

const KNOWS: Hello = Hello { features: FEATURE_APART, ..HELLO };

/// Steps after each of which the rail may come to its end.
const STEPS: u8 = 5;

/// An engine that is connected to another.
fn up(name: &str, hello: Hello) -> (Stage, Other, Session, Peer) {
    let stage = Stage::new(name, 1, RAILS);
    let session = stage.engine.connect().unwrap();
    let door = Door::open(&format!("{name}-door"));
    let url = door.url();
    let (other, peer) = thread::scope(|scope| {
        let connect = scope.spawn(|| session.connect_peer(&url).unwrap());
        let (other, said) = door.greeted();
        assert_eq!(said.features, FEATURE_APART);
        other.say(&Message::Welcome(hello));
        stage.makes(0, stage.asked_for_pairs(1)[0]);
        stage.joins(&other, 0, 0);
        (other, connect.join().unwrap())
    });
    settled(&stage, &other);
    (stage, other, session, peer)
}

/// The session has something of the other engine's.
fn imports(other: &Other, peer: &Peer, loan: u32) -> Import {
    let secret = crate::Secret::from_bytes([1; 32]);
    thread::scope(|scope| {
        let imported = scope.spawn(|| peer.import("there", None, &secret));
        let heard = hears(other);
        let Some(Message::Want(Want { tag, .. })) = heard else { panic!("{heard:?}") };
        let key = Key { offset: 0, bytes: 4096, address: 4096, lkey: 0, rkey: 1 };
        let (region, bytes, rights, keys) = (1, 4096, Rights::READ.bits(), vec![(0, key)]);
        let (keys_total, first) = (1, 0);
        let have = Have { tag, loan, region, bytes, rights, keys_total, first, keys };
        other.say(&Message::Have(have));
        imported.join().unwrap().unwrap()
    })
}

/// Requests by an import have failed the rail of all, so often.
fn errs(stage: &Stage, import: &Import, times: u32) {
    for _ in 0..times {
        stage.card.blames(SHARED, RegionId(import.id()).index());
    }
}

/// The card does what it is asked for.
fn answer(stage: &Stage, (token, work): (u64, PairWork)) {
    match work {
        PairWork::Create { .. } => stage.makes(0, token),
        PairWork::Endpoint { .. } => stage.card.say(token, CardDone::Endpoint(endpoint(0))),
        PairWork::Move { .. } => stage.card.say(token, CardDone::Moved),
        PairWork::Destroy { .. } => stage.card.say(token, CardDone::Destroyed),
    }
}

/// The rail at a place is joined up to a step: what the card was asked for then and has not done.
fn joins_until(stage: &Stage, other: &Other, at: u8, step: u8) -> Option<(u64, PairWork)> {
    let work = stage.pair_work(0);
    assert!(matches!(work.1, PairWork::Create { .. }), "{work:?}");
    if step == 0 {
        return Some(work);
    }
    answer(stage, work);
    let work = stage.pair_work(0);
    assert!(matches!(work.1, PairWork::Endpoint { number: NUMBER, .. }), "{work:?}");
    if step == 1 {
        return Some(work);
    }
    answer(stage, work);
    let ready = Message::Joint(at, Say::Ready { life: 0, endpoint: endpoint(0), round: 0 });
    assert_eq!(other.hear(), Some(ready.clone()));
    if step == 2 {
        return None;
    }
    other.say(&ready);
    let work = stage.pair_work(0);
    if step == 3 {
        return Some(work);
    }
    answer(stage, work);
    assert_eq!(other.hear(), Some(Message::Joint(at, Say::Up { life: 0 })));
    other.say(&Message::Joint(at, Say::Up { life: 0 }));
    settled(stage, other);
    None
}

/// The card does all that it is asked for, until so many queue pairs are destroyed.
fn plays_out(stage: &Stage, mut pairs: u32) {
    while pairs > 0 {
        let CardOrder { token, work } = stage.card.next();
        let CardWork::Pair { work, .. } = work else { panic!("{work:?}") };
        pairs -= u32::from(matches!(work, PairWork::Destroy { .. }));
        answer(stage, (token, work));
    }
}

/// The next that is said and is not of a joint.
fn hears(other: &Other) -> Option<Message> {
    loop {
        let heard = other.hear();
        if !matches!(heard, Some(Message::Joint(..))) {
            return heard;
        }
    }
}

/// Everybody has heard what was said before.
fn settled(stage: &Stage, other: &Other) {
    other.say(&Message::Call);
    assert_eq!(hears(other), Some(Message::Here));
    serves(&stage.engine);
}

/// Connections and their rails, until there are so many.
fn until(stage: &Stage, rails: &[usize]) {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = stage.session.peers().unwrap();
        let counts: Vec<usize> =
            found.iter().map(|peer| peer.rails.len()).filter(|count| *count > 0).collect();
        if counts == rails {
            return;
        }
        assert!(Instant::now() < end, "in vain: {found:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The other engine has no rail there any more: it was quiet, if it was ever connected.
fn closes(other: &Other, at: u8, step: u8) {
    if step >= 2 {
        other.say(&Message::Joint(at, Say::Quiet { life: 0 }));
    }
    other.say(&Message::Over(at));
}

#[test]
fn a_rail_of_a_flows_own_is_given_back_with_its_last_import_at_any_step() {
    for step in 0..STEPS {
        let (stage, other, _session, peer) = up("own-rail", KNOWS);
        for round in 0..2 {
            let first = imports(&other, &peer, 1);
            // What it was found to be it is when it comes again.
            errs(&stage, &first, if round == 0 { ERRORS_MAX } else { 0 });
            assert_eq!(hears(&other), Some(Message::Apart(OURS)), "round {round}");
            let last = imports(&other, &peer, 2);
            let work = joins_until(&stage, &other, OURS, step);
            until(&stage, &[2]);
            first.release().unwrap();
            assert_eq!(hears(&other), Some(Message::GiveBack(1)));
            last.release().unwrap();
            assert_eq!(hears(&other), Some(Message::GiveBack(2)));
            assert_eq!(hears(&other), Some(Message::Over(OURS)));
            work.into_iter().for_each(|work| answer(&stage, work));
            closes(&other, OURS, step);
            plays_out(&stage, 1);
            until(&stage, &[1]);
        }
        settled(&stage, &other);
    }
}

#[test]
fn a_flow_that_gets_no_rail_shares_on_and_asks_again_later() {
    for step in 0..STEPS {
        let (stage, other, _session, peer) = up("no-rail", KNOWS);
        let import = imports(&other, &peer, 1);
        errs(&stage, &import, ERRORS_MAX);
        for _ in 0..2 {
            assert_eq!(hears(&other), Some(Message::Apart(OURS)));
            let work = joins_until(&stage, &other, OURS, step);
            closes(&other, OURS, step);
            work.into_iter().for_each(|work| answer(&stage, work));
            plays_out(&stage, 1);
            until(&stage, &[1]);
            errs(&stage, &import, 16);
        }
        import.release().unwrap();
    }
}

/// One that does not know of such rails is not asked: the other would take it for a broken peer.
#[test]
fn a_peer_that_offers_none_is_not_asked() {
    let (stage, other, _session, peer) = up("offers-none", HELLO);
    let import = imports(&other, &peer, 1);
    errs(&stage, &import, 40);
    settled(&stage, &other);
    until(&stage, &[1]);
    import.release().unwrap();
    assert_eq!(hears(&other), Some(Message::GiveBack(1)));
}

#[test]
fn with_its_session_or_connection_a_rail_of_its_own_ends_at_any_step() {
    for step in 0..STEPS {
        for lost in [false, true] {
            let (stage, other, session, peer) = up("ends", KNOWS);
            let import = imports(&other, &peer, 1);
            errs(&stage, &import, ERRORS_MAX);
            assert_eq!(hears(&other), Some(Message::Apart(OURS)));
            let work = joins_until(&stage, &other, OURS, step);
            if lost {
                drop(other);
                work.into_iter().for_each(|work| answer(&stage, work));
                plays_out(&stage, 2);
                until(&stage, &[]);
                continue;
            }
            drop((import, peer, session));
            assert_eq!(hears(&other), Some(Message::GiveBack(1)));
            assert_eq!(hears(&other), Some(Message::Over(OURS)));
            work.into_iter().for_each(|work| answer(&stage, work));
            closes(&other, OURS, step);
            plays_out(&stage, 1);
            until(&stage, &[1]);
            settled(&stage, &other);
        }
    }
}

/// A queue pair that cannot be made costs the flow its rail, and nobody the connection.
#[test]
fn a_rail_of_its_own_that_fails_for_good_is_given_up() {
    let (stage, other, _session, peer) = up("own-fails", KNOWS);
    let import = imports(&other, &peer, 1);
    errs(&stage, &import, ERRORS_MAX);
    assert_eq!(hears(&other), Some(Message::Apart(OURS)));
    let Some((token, _)) = joins_until(&stage, &other, OURS, 0) else { panic!("no order") };
    stage.card.say(token, no_pair());
    assert_eq!(hears(&other), Some(Message::Over(OURS)));
    other.say(&Message::Over(OURS));
    until(&stage, &[1]);
    settled(&stage, &other);
    import.release().unwrap();
}

/// What is lent is lent on it, too, and is taken back with it: nobody waits for it afterwards.
#[test]
fn a_rail_that_a_peer_asks_for_is_lent_what_the_others_are() {
    for step in 0..STEPS {
        let (stage, other, _session, _peer) = up("theirs", KNOWS);
        let (region, wanted) = stage.export();
        let loan = stage.lends(&other, wanted, &[0]);
        other.say(&Message::Apart(THEIRS));
        let work = joins_until(&stage, &other, THEIRS, step);
        until(&stage, &[2]);
        closes(&other, THEIRS, step);
        work.into_iter().for_each(|work| answer(&stage, work));
        plays_out(&stage, 1);
        assert_eq!(hears(&other), Some(Message::Over(THEIRS)));
        until(&stage, &[1]);
        let mut ring = stage.session.ring(RingOptions::new(8, 8)).unwrap();
        ring.push(Flush::region(&region).revoke()).unwrap();
        ring.submit();
        assert_eq!(hears(&other), Some(Message::Withdraw(loan)));
        other.say(&Message::GiveBack(loan));
        assert_eq!(stage.card.deregisters(), 8);
        ring.submit_and_wait(1, Some(PATIENCE)).unwrap();
        assert_eq!(ring.reap().unwrap().expect("nothing has it").result, Ok(0));
        stage.let_go(region);
    }
}

/// Both ends ask at the same moment, and more than there may be: who has none says so.
#[test]
fn both_ends_ask_at_once_and_for_no_more_than_there_may_be() {
    let (stage, other, _session, peer) = up("both-ask", KNOWS);
    let import = imports(&other, &peer, 1);
    other.say(&Message::Apart(THEIRS));
    errs(&stage, &import, ERRORS_MAX);
    let mut works = vec![stage.pair_work(0), stage.pair_work(0)];
    assert_eq!(hears(&other), Some(Message::Apart(OURS)));
    until(&stage, &[3]);
    other.say(&Message::Apart(THEIRS + 2));
    assert_eq!(hears(&other), Some(Message::Over(THEIRS + 2)));
    // It says what it said before it heard that.
    let quiet = Say::Quiet { life: 0 };
    other.say(&Message::Joint(THEIRS + 2, quiet));
    settled(&stage, &other);
    for at in [OURS, THEIRS] {
        other.say(&Message::Over(at));
    }
    works.drain(..).for_each(|work| answer(&stage, work));
    plays_out(&stage, 2);
    assert_eq!(hears(&other), Some(Message::Over(THEIRS)));
    until(&stage, &[1]);
    serves(&stage.engine);
    // Its own places are not the other's to ask for.
    other.say(&Message::Apart(OURS));
    assert_eq!(stage.moves(0, true), [Move::Error]);
    assert_eq!(hears(&other), Some(Message::Bye));
    drop(import);
}
