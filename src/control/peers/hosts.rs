//! Another host's engine, which the test plays behind a gate of its own: it comes and is reached,
//! loses the connection and comes back, or is started anew. The card is played, too.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};

use super::message::{Hello, Message};
use super::scripted::{HELLO, Other, no_pair, path, refusal};
use super::two_cards::Stage;
use crate::Secret;
use crate::abi::errno;
use crate::fabric::qp::provider::Move;
use crate::gate::{Arrived, Gate, Key};
use crate::host::Config;
use crate::host::tests::PATIENCE;

/// A key file that is gone with the test.
struct KeyFile(std::path::PathBuf);

impl KeyFile {
    fn new(name: &str) -> Self {
        let path = path(&format!("{name}.key"));
        let _ = std::fs::remove_file(&path);
        Key::make(&path).unwrap();
        Self(path)
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The gate of the engine that the test plays.
struct Far {
    gate: Gate,
    arrived: Receiver<Arrived>,
    thread: JoinHandle<()>,
}

impl Far {
    fn new(key: &KeyFile, port: u16) -> Self {
        let (usher, arrived) = channel();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let usher = Box::new(move |it| drop(usher.send(it)));
        let (gate, thread) = Gate::new(Key::read(&key.0).unwrap(), Some(listen), usher).unwrap();
        Self { gate, arrived, thread: thread::spawn(move || thread.run()) }
    }

    fn port(&self) -> u16 {
        self.gate.listening().unwrap().port()
    }

    fn reach(&self, stage: &Stage) -> Other {
        let address = stage.engine.listening().unwrap();
        Other::behind(self.gate.reach(&address.ip().to_string(), address.port()).unwrap().socket)
    }

    /// An engine has come, and says what it should.
    fn greeted(&self) -> (Other, Hello) {
        let Arrived { socket, first, .. } = self.arrived.recv_timeout(PATIENCE).unwrap();
        let Ok(Message::Hello(hello)) = Message::parse(&first) else { panic!("no greeting") };
        (Other::behind(socket), hello)
    }

    fn end(self) {
        drop(self.gate);
        self.thread.join().unwrap();
    }
}

/// An engine, and a way in for other hosts. Its peers would take ten minutes to notice its loss.
fn stage(name: &str, key: &KeyFile) -> Stage {
    let listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let psk_file = Some(key.0.clone());
    Stage::with(name, 1, 5, |config| Config { listen, psk_file, ..config })
}

/// As long as anybody may be silent, ms.
const SILENT: u32 = 600_000;
const FROM_HOST: Hello = Hello { silence_ms: SILENT, link: 7, ..HELLO };

/// A connection that comes from another host is up.
fn joined(stage: &Stage, far: &Far, hello: Hello) -> Other {
    let other = far.reach(stage);
    other.say(&Message::Hello(hello));
    let Some(Message::Welcome(answer)) = other.hear() else { panic!("no welcome") };
    assert_eq!((answer.rails, answer.cards, answer.silence_ms), (1, 1, SILENT));
    let tokens = stage.asked_for_pairs(1);
    stage.makes(0, tokens[0]);
    stage.joins(&other, 0, 0);
    stage.settled(&other);
    other
}

#[test]
fn whoever_comes_anew_takes_the_place_of_what_it_has_lost_once_that_is_silent() {
    let key = KeyFile::new("anew");
    let (stage, far) = (stage("anew", &key), Far::new(&key, 0));
    let first = joined(&stage, &far, FROM_HOST);
    // Another link of the same engine, and the same link of another: both are of their own.
    let apart = joined(&stage, &far, Hello { link: 8, ..FROM_HOST });
    let stranger = joined(&stage, &far, Hello { boot_id: [3, 4], ..FROM_HOST });
    let second = far.reach(&stage);
    second.say(&Message::Hello(FROM_HOST));
    // Its queue pair may still deliver until it is in ERROR, and so nobody is welcomed.
    let (token, moves) = stage.asked_to_move(0);
    assert_eq!(moves, [Move::Error]);
    assert!(second.silent());
    stage.moved(token);
    assert_eq!(first.hear(), Some(Message::Bye));
    // There is no other rail: it gets that of the lost one.
    assert_eq!(stage.moves(0, true), [Move::Reset]);
    stage.destroys();
    assert!(matches!(second.hear(), Some(Message::Welcome(_))));
    for other in [&apart, &stranger] {
        stage.settled(other);
    }
    far.end();
}

#[test]
fn a_lost_connection_is_made_anew_and_says_what_became_of_the_other_engine() {
    // Started anew meanwhile, or not: either way nobody waits until it must have noticed.
    for boot_id in [[9, 9], HELLO.boot_id] {
        let key = KeyFile::new("again");
        let (stage, far) = (stage("again", &key), Far::new(&key, 0));
        let url = format!("verbring://127.0.0.1:{}", far.port());
        let port = far.port();
        let (peer, other, hello) = thread::scope(|scope| {
            let connect = scope.spawn(|| stage.session.connect_peer(&url));
            let (other, hello) = far.greeted();
            other.say(&Message::Welcome(Hello { link: 0, ..FROM_HOST }));
            let tokens = stage.asked_for_pairs(1);
            stage.makes(0, tokens[0]);
            stage.joins(&other, 0, 0);
            (connect.join().unwrap().unwrap(), other, hello)
        });
        assert_ne!(hello.link, 0);
        drop(other);
        far.end();
        assert_eq!(stage.moves(0, true), [Move::Error]);
        let far = Far::new(&key, port);
        let (other, again) = far.greeted();
        assert_eq!(again, hello, "it says the same");
        other.say(&Message::Welcome(Hello { boot_id, link: 0, ..FROM_HOST }));
        // The old queue pair is let go, and a new one is made, in either order.
        let mut orders = [stage.next(), stage.next()];
        orders.sort_unstable();
        assert_eq!([orders[0].0, orders[1].0], ["create", "reset"]);
        let text = refusal(&peer.import("any", None, &Secret::from_bytes([0; 32])).unwrap_err());
        assert_eq!(text.0, errno::EHOSTDOWN, "{}", text.1);
        stage.fails(orders[0].1, no_pair());
        stage.moved(orders[1].1);
        drop(other);
        far.end();
    }
}

#[test]
fn without_a_key_no_other_host_is_reached_and_the_reason_is_told() {
    let key = KeyFile::new("keys");
    let (other, far) = (KeyFile::new("keys-other"), Far::new(&key, 0));
    let url = format!("verbring://127.0.0.1:{}", far.port());
    let stage = stage("keys", &other);
    let (code, text) = refusal(&stage.session.connect_peer(&url).unwrap_err());
    assert!(code == errno::EACCES && text.contains("the keys differ"), "{code} {text}");
    let plain = Stage::new("no-key", 1, 5);
    let (code, text) = refusal(&plain.session.connect_peer(&url).unwrap_err());
    assert!(code == errno::EOPNOTSUPP && text.contains("set psk_file"), "{code} {text}");
    for url in ["verbring://", "verbring://host", "verbring://host:0", "verbring://a:b:1"] {
        let (code, text) = refusal(&stage.session.connect_peer(url).unwrap_err());
        assert!(code == errno::EINVAL && text.contains("verbring://HOST:PORT"), "{code} {text}");
    }
    far.end();
}
