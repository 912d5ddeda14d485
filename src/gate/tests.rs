//! Gates that are there: sockets on this host's loopback, threads, and people at the door who
//! should not be let in.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::key::tests_key;
use super::{Arrived, Gate, NotReached};
use crate::abi::MESSAGE_BYTES_MAX;
use crate::control::fds;

/// A gate, its thread, and who has come in.
struct House {
    gate: Gate,
    arrived: Receiver<Arrived>,
    thread: JoinHandle<()>,
}

impl House {
    fn new(key: u8) -> Self {
        let (usher, arrived) = channel();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let usher = Box::new(move |it| drop(usher.send(it)));
        let (gate, thread) = Gate::new(tests_key(key), Some(listen), usher).unwrap();
        Self { gate, arrived, thread: std::thread::spawn(move || thread.run()) }
    }

    fn address(&self) -> SocketAddr {
        self.gate.listening().unwrap()
    }

    fn reach(&self, other: &Self) -> Result<OwnedFd, NotReached> {
        let address = other.address();
        self.gate.reach(&address.ip().to_string(), address.port()).map(|reached| reached.socket)
    }

    /// Someone's first words, in the clear.
    fn knock(&self, words: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        let _ = stream.write_all(words);
        stream
    }

    fn end(self) {
        drop(self.gate);
        self.thread.join().unwrap();
    }
}

fn say(socket: &OwnedFd, message: &[u8]) {
    fds::transmit(socket.as_fd(), message, &[], true).unwrap();
}

fn hear(socket: &OwnedFd) -> Option<Vec<u8>> {
    fds::receive(socket.as_fd(), true).unwrap().map(|received| received.bytes)
}

/// What someone is answered until the gate closes.
fn answer(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    bytes
}

fn joined(one: &House, other: &House) -> (OwnedFd, OwnedFd) {
    let ours = one.reach(other).unwrap();
    say(&ours, b"hello");
    let Arrived { socket, from, first } = other.arrived.recv().unwrap();
    assert_eq!((first.as_slice(), from.ip()), (b"hello".as_slice(), other.address().ip()));
    (ours, socket)
}

#[test]
fn messages_of_any_size_go_both_ways_in_order_and_by_the_thousand() {
    let (one, other) = (House::new(1), House::new(1));
    let (ours, theirs) = joined(&one, &other);
    let sent: Vec<Vec<u8>> =
        (0..5_000_u32).map(|at| vec![at.to_le_bytes()[0]; 1 + at as usize % 512]).collect();
    let copies = sent.clone();
    let (tell, told) = channel();
    // Both directions at once, more than any socket on the way holds.
    let back = std::thread::spawn(move || {
        for message in &copies {
            say(&theirs, message);
        }
        for message in &copies {
            assert_eq!(hear(&theirs).as_ref(), Some(message));
        }
        tell.send(theirs).unwrap();
    });
    let ours_too = ours.try_clone().unwrap();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || sent.iter().for_each(|message| say(&ours_too, message))
    });
    for message in &sent {
        assert_eq!(hear(&ours).as_ref(), Some(message));
    }
    writer.join().unwrap();
    back.join().unwrap();
    // What is said last arrives, before the end does.
    let theirs = told.recv().unwrap();
    say(&theirs, &[7; MESSAGE_BYTES_MAX]);
    drop(theirs);
    assert_eq!(hear(&ours), Some(vec![7; MESSAGE_BYTES_MAX]));
    assert_eq!(hear(&ours), None);
    one.end();
    other.end();
}

#[test]
fn the_end_of_an_engine_is_read_as_an_end() {
    let (one, other) = (House::new(1), House::new(1));
    let (ours, theirs) = joined(&one, &other);
    say(&ours, b"last");
    one.end();
    assert_eq!(hear(&theirs), Some(b"last".to_vec()));
    assert_eq!(hear(&theirs), None);
    drop(ours);
    other.end();
}

#[test]
fn many_come_at_once_and_each_has_its_own_line() {
    let (one, other) = (House::new(1), House::new(1));
    let pairs: Vec<_> = (0..40).map(|_| joined(&one, &other)).collect();
    for (at, (ours, theirs)) in pairs.iter().enumerate() {
        say(ours, &[u8::try_from(at).unwrap()]);
        say(theirs, &[u8::try_from(at + 100).unwrap()]);
    }
    for (at, (ours, theirs)) in pairs.iter().enumerate() {
        assert_eq!(hear(theirs), Some(vec![u8::try_from(at).unwrap()]));
        assert_eq!(hear(ours), Some(vec![u8::try_from(at + 100).unwrap()]));
    }
    one.end();
    other.end();
}

#[test]
fn another_key_and_another_version_are_refused_with_the_reason() {
    let (one, other) = (House::new(1), House::new(2));
    let error = one.reach(&other).unwrap_err();
    assert!(matches!(error, NotReached::Refused { key: true, .. }), "{error}");
    assert!(error.to_string().contains("psk_file must hold the same key"), "{error}");
    assert_eq!(answer(other.knock(b"VRBG\x07\0\0\0")), b"VRBG\x01\0\x01\0");
    assert!(other.arrived.try_recv().is_err());
    let strangers = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = strangers.local_addr().unwrap().port();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = strangers.accept().unwrap();
        let _ = stream.write_all(b"SSH-2.0-OpenSSH\r\n");
        let _ = stream.read(&mut [0; 100]);
        port
    });
    let error = one.gate.reach("127.0.0.1", port).unwrap_err().to_string();
    assert!(error.contains("does not answer as an engine"), "{error}");
    let closed = host.join().unwrap();
    let error = one.gate.reach("127.0.0.1", closed).unwrap_err();
    assert!(matches!(error, NotReached::Connect { .. }), "{error}");
    let error = one.gate.reach("no.such.host.invalid", 9).unwrap_err();
    assert!(matches!(error, NotReached::Name { .. }), "{error}");
    one.end();
    other.end();
}

#[test]
fn who_says_what_no_engine_says_is_let_go_and_told_nothing() {
    let house = House::new(1);
    for words in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0; 3_000], b"VRBG\x01\0\0\0\xff\xff"] {
        assert_eq!(answer(house.knock(words)), b"", "{words:?}");
    }
    // The right words, of one who has no key.
    let words = [b"VRBG\x01\0\0\0\x30\0".as_slice(), &[7; 48]].concat();
    assert_eq!(answer(house.knock(&words)), b"VRBG\x01\0\x02\0");
    assert!(house.arrived.try_recv().is_err());
    house.end();
}

/// Silent ones take every place, and more: whoever has the key still gets in.
#[test]
fn those_who_say_nothing_keep_nobody_out() {
    let (one, other) = (House::new(1), House::new(1));
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(other.knock(b"VRB"));
        if silent.len() % 100 == 0 {
            let _ = joined(&one, &other);
        }
    }
    // The first have gone to make room; the last are still there.
    assert_eq!(answer(silent.remove(0)), b"");
    drop(silent);
    let (ours, theirs) = joined(&one, &other);
    say(&theirs, b"still here");
    assert_eq!(hear(&ours), Some(b"still here".to_vec()));
    one.end();
    other.end();
}
