//! Other engines that the test plays, over real sockets: they break the rules, guess secrets, close
//! in the middle, and are reached in vain. The card is played, too; the engine is real.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

use super::joint::Say;
use super::message::{Failure, Have, Hello, Message, VERSION, Want};
use crate::abi::{Detail, ReplyHead, errno};
use crate::client::ControlError;
use crate::control::fds;
use crate::control::wire::{self, Refusal};
use crate::control::{CardDone, CardWork, PairWork};
use crate::fabric::qp::provider::{Access, Key, ProviderError};
use crate::host::tests::{PATIENCE, Played, played, registration};
use crate::host::{Config, Engine};
use crate::{Region, Rights, Session};

/// A path for a socket that nobody else uses.
pub(super) fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("verbring-peers-{}-{name}", std::process::id()))
}

fn engine(name: &str, rails_max: u16) -> (Engine, Played, PathBuf) {
    // The other engine is this very process: its death is not seen.
    leasing(name, rails_max, 50)
}

fn leasing(name: &str, rails_max: u16, verbs_lease_ms: u32) -> (Engine, Played, PathBuf) {
    let socket = path(name);
    let config = Config {
        socket: Some(socket.clone()),
        verbs_lease_ms,
        // Nobody here answers calls.
        peer_silence_ms: 600_000,
        ..Config::default()
    };
    let (engine, card) = played(config, rails_max);
    (engine, card, socket)
}

/// Another engine, the test's end of its connection.
pub(super) struct Other(OwnedFd);

impl Other {
    pub(super) fn reach(path: &Path) -> Self {
        Self(fds::reach(path, 100).unwrap())
    }

    /// Another host's, behind a gate.
    #[cfg(feature = "net")]
    pub(super) fn behind(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Nothing has been said to it.
    #[cfg(feature = "net")]
    pub(super) fn silent(&self) -> bool {
        matches!(fds::peek(self.0.as_fd(), &mut [0]), Err(nix::errno::Errno::EAGAIN))
    }

    pub(super) fn say(&self, message: &Message) {
        self.say_bytes(&message.to_bytes());
    }

    pub(super) fn say_bytes(&self, bytes: &[u8]) {
        // It may be closed already: what it said before is then still read.
        let _ = fds::transmit(self.0.as_fd(), bytes, &[], false);
    }

    /// The next datagram; `None` at the end of the connection.
    fn hear_bytes(&self) -> Option<Vec<u8>> {
        let timeout = PollTimeout::try_from(PATIENCE).unwrap();
        let mut watched = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut watched, timeout), Ok(1), "nothing in time");
        // A connection that was reset said so after all that was sent before.
        fds::receive(self.0.as_fd(), false).ok().flatten().map(|received| received.bytes)
    }

    pub(super) fn hear(&self) -> Option<Message> {
        self.hear_bytes().map(|bytes| Message::parse(&bytes).unwrap())
    }

    /// The engine has lost it.
    pub(super) fn is_left(&self, why: impl std::fmt::Debug) {
        assert_eq!(self.hear(), Some(Message::Bye), "{why:?}");
        assert_eq!(self.hear(), None, "{why:?}");
    }

    /// Is welcomed, as soon as there is a rail for it; the card was asked for a queue pair.
    fn greet(path: &Path, card: &Played) -> (Self, u64) {
        let until = Instant::now() + PATIENCE;
        loop {
            let other = Self::reach(path);
            other.say(&Message::Hello(HELLO));
            match other.hear() {
                Some(Message::Welcome(hello)) => {
                    assert_eq!(hello.rails, 1);
                    let order = card.next();
                    assert!(makes_pair(&order.work, 0), "{:?}", order.work);
                    return (other, order.token);
                }
                Some(Message::Refuse(why)) if why.errno == errno::EDQUOT => {
                    assert!(Instant::now() < until, "the rail is not given back: {why:?}");
                    thread::sleep(Duration::from_millis(1));
                }
                heard => panic!("{heard:?}"),
            }
        }
    }

    fn denied(&self, want: Want) -> (i32, Option<Detail>) {
        self.say(&Message::Want(want));
        let heard = self.hear();
        let Some(Message::No(tag, why)) = heard else { panic!("{heard:?}") };
        assert_eq!(tag, want.tag);
        (why.errno, Detail::from_number(why.detail))
    }
}

pub(super) const HELLO: Hello = Hello {
    boot_id: [1, 2],
    pid: 3,
    rails: 1,
    cards: 1,
    there: 4,
    picked: [0, 1, 2, 3],
    own: [0, 1, 2, 3],
    told: [[[0; 16]; 4]; 4],
    silence_ms: 10_000,
    link: 0,
    features: 0,
};

pub(super) fn makes_pair(work: &CardWork, on: u8) -> bool {
    matches!(work, CardWork::Pair { card, work: PairWork::Create { .. } } if *card == on)
}

pub(super) fn no_pair() -> CardDone {
    let hint = "it is only played";
    CardDone::Failed(ProviderError::Os { call: "ibv_create_qp", errno: errno::ENOMEM, hint })
}

pub(super) fn want(tag: u64, asker: u32, name: &str, secret: [u8; 32]) -> Want {
    let mut field = [0; 64];
    field[..name.len()].copy_from_slice(name.as_bytes());
    let uid = nix::unistd::geteuid().as_raw();
    Want { tag, uid, asker, rights: 0, name: field, secret }
}

/// A region of a session, which the card knows as 7.
pub(super) fn alloc(session: &Session, card: &Played) -> Region {
    thread::scope(|scope| {
        let alloc = scope.spawn(|| session.alloc(8192).unwrap());
        drop(card.registers(7));
        alloc.join().unwrap()
    })
}

pub(super) fn let_go(region: Region, card: &Played) {
    thread::scope(|scope| {
        let release = scope.spawn(|| region.release().unwrap());
        assert_eq!(card.deregisters(), 7);
        release.join().unwrap();
    });
}

/// The engine still serves.
pub(super) fn serves(engine: &Engine) {
    assert!(engine.connect().unwrap().probe().unwrap().op_bytes_max > 0);
}

#[test]
fn what_is_no_greeting_is_turned_away() {
    let (engine, card, socket) = engine("greeting", 3);
    let good = Message::Hello(HELLO).to_bytes();
    let turned_away = |bytes: &[u8]| {
        let until = Instant::now() + PATIENCE;
        loop {
            let other = Other::reach(&socket);
            other.say_bytes(bytes);
            let heard = other.hear_bytes().expect("an answer");
            if let Ok(Message::Refuse(why)) = Message::parse(&heard) {
                assert_eq!(other.hear(), None, "nothing follows a refusal");
                return why.errno;
            }
            // So many have come that the door is shut before their words are heard.
            assert!(Instant::now() < until, "{heard:?}");
            thread::sleep(Duration::from_millis(1));
        }
    };
    let mut newer = good.clone();
    newer[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
    assert_eq!(turned_away(&newer), errno::EOPNOTSUPP);
    for cut in 4..good.len() {
        assert_eq!(turned_away(&good[..cut]), errno::EPROTO, "{cut} bytes");
    }
    assert_eq!(turned_away(&[good.as_slice(), &[0; 4096]].concat()), errno::EPROTO);
    assert_eq!(turned_away(&Message::Withdraw(1).to_bytes()), errno::EPROTO);
    let boot_id = engine.connect().unwrap().boot_id();
    let itself = Message::Hello(Hello { boot_id, ..HELLO }).to_bytes();
    assert_eq!(turned_away(&itself), errno::EINVAL);
    let greedy = Message::Hello(Hello { rails: 3, ..HELLO }).to_bytes();
    assert_eq!(turned_away(&greedy), errno::EDQUOT, "there is one rail for peers");
    // Another first word, or less than one, is a client's.
    for bytes in [&good[..3], &[[1], [0; 1]].concat(), &[0x55; 40]] {
        let other = Other::reach(&socket);
        other.say_bytes(bytes);
        let reply = other.hear_bytes().unwrap();
        assert!(reply.len() >= size_of::<ReplyHead>() && Message::parse(&reply).is_err());
    }
    drop(Other::greet(&socket, &card));
    serves(&engine);
}

#[test]
fn a_rail_is_given_back_however_its_peer_leaves() {
    let (engine, card, socket) = engine("leaving", 3);
    for round in 0..12 {
        let (other, token) = Other::greet(&socket, &card);
        match round % 3 {
            // It closes, then its queue pair cannot be made.
            0 => drop(other),
            // The other way round.
            1 => {}
            _ => {
                other.say(&Message::Joint(0, Say::Quiet { life: 0 }));
                other.say_bytes(&[0]);
                other.is_left(round);
            }
        }
        card.say(token, no_pair());
    }
    drop(Other::greet(&socket, &card));
    serves(&engine);
}

#[test]
fn what_is_said_out_of_turn_ends_the_connection() {
    let (engine, card, socket) = engine("turns", 3);
    let key = Key { offset: 0, bytes: 1, address: 4096, lkey: 0, rkey: 1 };
    let have = Have {
        tag: 1,
        loan: 1,
        region: 1,
        bytes: 1,
        rights: 1,
        keys_total: 1,
        first: 0,
        keys: vec![(0, key)],
    };
    let failure = Failure { errno: 1, detail: 0, text: String::new() };
    let last = [
        Message::Hello(HELLO).to_bytes(),
        Message::Welcome(HELLO).to_bytes(),
        Message::Refuse(failure.clone()).to_bytes(),
        Message::Joint(1, Say::Quiet { life: 0 }).to_bytes(),
        Message::Joint(0, Say::Quiet { life: 1 }).to_bytes(),
        Message::Joint(0, Say::Up { life: 0 }).to_bytes(),
        Message::Have(have).to_bytes(),
        Message::No(1, failure).to_bytes(),
        Message::GiveBack(1).to_bytes(),
        vec![0x55; 600],
        vec![1],
    ];
    for bytes in last {
        let (other, token) = Other::greet(&socket, &card);
        // A withdrawal of what is not known has crossed a return, and is no offence.
        other.say(&Message::Withdraw(7));
        let found = other.denied(want(5, 0, "nothing", [0; 32]));
        assert_eq!(found, (errno::ENOENT, Some(Detail::Name)));
        other.say_bytes(&bytes);
        other.is_left(bytes);
        card.say(token, no_pair());
    }
    serves(&engine);
}

#[test]
fn an_empty_datagram_and_descriptors_end_the_connection() {
    let (engine, card, socket) = engine("descriptors", 3);
    for with in [false, true] {
        let (other, token) = Other::greet(&socket, &card);
        if with {
            let bytes = Message::Withdraw(7).to_bytes();
            fds::transmit(other.0.as_fd(), &bytes, &[other.0.as_fd()], false).unwrap();
        } else {
            other.say_bytes(&[]);
        }
        if with {
            // What it had not read goes with the socket, and may take the answer along.
            let heard = other.hear();
            assert!(matches!(heard, None | Some(Message::Bye)), "{heard:?}");
            assert!(heard.is_none() || other.hear().is_none(), "nothing follows");
        } else {
            other.is_left(with);
        }
        card.say(token, no_pair());
    }
    serves(&engine);
}

/// Who says BYE is silent: it is answered, and nobody waits for the lease.
#[test]
fn a_peer_that_says_bye_is_answered_and_let_go() {
    let (engine, card, socket) = leasing("bye", 3, 60_000);
    for round in 0..3 {
        let (other, token) = Other::greet(&socket, &card);
        if round == 2 {
            // It has heard that it is lost.
            other.say_bytes(&[0]);
            assert_eq!(other.hear(), Some(Message::Bye));
            other.say(&Message::Bye);
            assert_eq!(other.hear(), None);
        } else {
            other.say(&Message::Bye);
            other.is_left(round);
        }
        card.say(token, no_pair());
    }
    serves(&engine);
}

#[test]
fn secrets_are_guessed_ten_times_and_no_more() {
    let (engine, card, socket) = engine("secrets", 3);
    let session = engine.connect().unwrap();
    let region = alloc(&session, &card);
    {
        let secret = region.export("known", Rights::READ).unwrap();
        let secret: [u8; 32] = *secret.as_bytes();
        let (other, _) = Other::greet(&socket, &card);
        let denied = |want| other.denied(want);
        for guess in 0..10 {
            let found = denied(want(guess, 500, "known", [0; 32]));
            assert_eq!(found, (errno::EACCES, Some(Detail::Secret)));
        }
        let found = denied(want(10, 500, "known", secret));
        assert_eq!(found, (errno::EACCES, Some(Detail::Secret)), "this uid has guessed enough");
        let more = Want { rights: 3, ..want(11, 501, "known", secret) };
        assert_eq!(denied(more), (errno::EACCES, Some(Detail::Rights)));
        // The right one: a key with the rights of the loan and no more. The fabric has no rails,
        // so that the loan comes to nothing, and its key ends.
        other.say(&Message::Want(want(12, 501, "known", secret)));
        let order = card.next();
        let CardWork::Register { memory, access } = order.work else { panic!("{:?}", order.work) };
        assert_eq!(access, Access { write: false, read: true, atomics: false });
        card.say(order.token, CardDone::Registered(registration(8, memory.bytes())));
        let Some(Message::No(12, why)) = other.hear() else { panic!("no answer") };
        assert_eq!(why.errno, errno::ESTALE);
        assert_eq!(card.deregisters(), 8);
    }
    let_go(region, &card);
}

/// It names whom it asks for as it likes: what is remembered of them is bounded.
#[test]
fn a_peer_that_guesses_under_ever_new_names_is_left() {
    let (engine, card, socket) = engine("askers", 3);
    let session = engine.connect().unwrap();
    let region = alloc(&session, &card);
    region.export("known", Rights::READ).unwrap();
    let (other, token) = Other::greet(&socket, &card);
    let mut denied = 0;
    for asker in 0..2_000 {
        other.say(&Message::Want(want(u64::from(asker), asker, "known", [0; 32])));
        let Some(Message::No(..)) = other.hear() else { break };
        denied += 1;
    }
    assert_eq!(denied, 1_025, "then the connection ends");
    card.say(token, no_pair());
    let_go(region, &card);
    serves(&engine);
}

#[test]
fn a_peer_that_calls_is_answered() {
    let (engine, card, socket) = engine("calling", 3);
    let (other, token) = Other::greet(&socket, &card);
    for _ in 0..3 {
        other.say(&Message::Call);
        assert_eq!(other.hear(), Some(Message::Here));
        other.say(&Message::Here);
    }
    drop(other);
    card.say(token, no_pair());
    serves(&engine);
}

#[test]
fn atomics_are_exported_once_the_card_serves_them() {
    let (engine, card, _) = engine("atomics", 3);
    let session = engine.connect().unwrap();
    let region = alloc(&session, &card);
    thread::scope(|scope| {
        let export = scope.spawn(|| region.export("words", Rights::ALL).unwrap_err());
        let order = card.next();
        let CardWork::Register { access, .. } = order.work else { panic!("{:?}", order.work) };
        assert_eq!(access, Access { write: false, read: false, atomics: true });
        card.say(order.token, no_pair());
        let error = export.join().unwrap();
        assert_eq!(error.refusal().map(|refusal| refusal.errno), Some(errno::ENOMEM));
        region.export("words", Rights::READ).unwrap();
    });
    let_go(region, &card);
}

/// A place that the test listens at.
pub(super) struct Door(OwnedFd, PathBuf);

impl Door {
    pub(super) fn open(name: &str) -> Self {
        let path = path(name);
        let _ = std::fs::remove_file(&path);
        let made =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(made.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&made, Backlog::new(8).unwrap()).unwrap();
        Self(made, path)
    }

    pub(super) fn url(&self) -> String {
        format!("unix:{}", self.1.display())
    }

    fn knocked(&self, within: Duration) -> Option<Other> {
        let mut watched = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(within).unwrap();
        (poll(&mut watched, timeout) == Ok(1)).then(|| Other(fds::accept(self.0.as_fd()).unwrap()))
    }

    /// An engine has come, and says what it should.
    pub(super) fn greeted(&self) -> (Other, Hello) {
        let other = self.knocked(PATIENCE).expect("nobody came");
        let Some(Message::Hello(hello)) = other.hear() else { panic!("no greeting") };
        (other, hello)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.1);
    }
}

pub(super) fn refusal(error: &ControlError) -> (i32, String) {
    let refusal = error.refusal().expect("an answer");
    (refusal.errno, refusal.text.clone())
}

fn connects(session: &Session, url: &str) -> (i32, String) {
    refusal(&session.connect_peer(url).unwrap_err())
}

#[test]
fn urls_that_lead_nowhere_are_refused_and_say_why() {
    let (engine, _card, socket) = engine("nowhere", 3);
    let session = engine.connect().unwrap();
    let tried = |url: &str, errno: i32, words: &str| {
        let (found, text) = connects(&session, url);
        assert!(found == errno && text.contains(words), "{url}: {found} {text}");
    };
    tried("unix:/nowhere/at/all", errno::ENETUNREACH, "no engine listens");
    tried("tcp:host:1", errno::EINVAL, "unix:");
    tried("unix:relative", errno::EINVAL, "absolute");
    tried(&format!("unix:/{}", "a".repeat(110)), errno::EINVAL, "at most 107");
    tried(&format!("unix:{}", socket.display()), errno::EINVAL, "the engine itself");
    let error = session.connect_peer_over("unix:/nowhere/at/all", 1).unwrap_err();
    assert_eq!(refusal(&error).0, errno::EINVAL);
    let door = Door::open("file");
    std::fs::remove_file(&door.1).unwrap();
    std::fs::write(&door.1, "no socket").unwrap();
    tried(&door.url(), errno::ENETUNREACH, "no engine listens");
    let off = Engine::builder().config(off()).spawn().unwrap();
    let (found, text) = connects(&off.connect().unwrap(), &door.url());
    assert!(found == errno::EOPNOTSUPP && text.contains("verbs is not in use"), "{text}");
    serves(&engine);
}

fn off() -> Config {
    Config { verbs: crate::host::VerbsUse::Off, ..Config::default() }
}

#[test]
fn peers_that_fail_while_they_are_reached_fail_the_connect_alone() {
    let (engine, card, _) = engine("reaching", 3);
    let session = engine.connect().unwrap();
    let door = Door::open("reached");
    let url = door.url();
    for round in 0..8 {
        thread::scope(|scope| {
            let connect = scope.spawn(|| connects(&session, &url));
            let (other, hello) = door.greeted();
            let mut token = None;
            match round {
                0 => drop(other),
                1 => other.say_bytes(&[0x55; 600]),
                2 => other.say(&Message::Withdraw(1)),
                3 => {
                    let text = "no room".to_string();
                    let detail = Detail::Quota as u16;
                    other.say(&Message::Refuse(Failure { errno: 122, detail, text }));
                }
                4 => other.say(&Message::Welcome(hello)),
                5 => other.say(&Message::Welcome(Hello { rails: 3, ..HELLO })),
                // It took us for a client, and has no room for one.
                6 => {
                    let why = Refusal::new(errno::EDQUOT, Detail::Quota, "quota.sessions");
                    other.say_bytes(&wire::failure(1, 0, &why));
                }
                _ => {
                    other.say(&Message::Welcome(HELLO));
                    let order = card.next();
                    assert!(makes_pair(&order.work, 0));
                    token = Some(order.token);
                    card.say(order.token, no_pair());
                }
            }
            let (found, text) = connect.join().unwrap();
            let want = match round {
                0 | 1 | 2 | 7 => (errno::EHOSTDOWN, "lost"),
                3 => (errno::EDQUOT, "refuses: no room"),
                4 => (errno::EINVAL, "the engine itself"),
                6 => (errno::EDQUOT, "refuses: quota.sessions"),
                _ => (errno::EDQUOT, "rails"),
            };
            assert!(found == want.0 && text.contains(want.1), "{round}: {found} {text}");
            assert_eq!(token.is_some(), round == 7);
        });
    }
    serves(&engine);
}

#[test]
fn sessions_that_want_the_same_peer_share_its_connection() {
    let (engine, card, _) = engine("sharing", 3);
    let sessions = [(); 3].map(|()| engine.connect().unwrap());
    let door = Door::open("shared");
    let url = door.url();
    thread::scope(|scope| {
        let all: Vec<_> =
            sessions.iter().map(|session| scope.spawn(|| connects(session, &url))).collect();
        let (other, _) = door.greeted();
        assert!(door.knocked(Duration::from_millis(200)).is_none(), "one connection is enough");
        other.say(&Message::Welcome(HELLO));
        let order = card.next();
        drop(other);
        for connect in all {
            assert_eq!(connect.join().unwrap().0, errno::EHOSTDOWN);
        }
        card.say(order.token, no_pair());
    });
    serves(&engine);
}
