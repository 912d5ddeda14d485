//! Strangers at the gate where other hosts' engines come in: without the key they get no further
//! than the door, whatever they say or do not say, and however many they are.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;

use verbring::gate::Key;

use super::chance::Chance;
use super::stage::{PATIENCE, Stage, until};

/// What an engine says first, all but the key.
const PREAMBLE: &[u8] = b"VRBG\x01\0\0\0";
const WRONG_KEY: &[u8] = b"VRBG\x01\0\x02\0";
const WRONG_VERSION: &[u8] = b"VRBG\x01\0\x01\0";

/// A key file, gone with the test.
struct KeyFile(PathBuf);

impl KeyFile {
    fn new(name: &str) -> Self {
        let file = format!("verbring-hostile-{}-{name}.key", std::process::id());
        Self(std::env::temp_dir().join(file))
    }

    fn stage(&self, name: &'static str) -> Stage {
        Stage::with(name, |config| {
            // Now that it is this attack's turn: the descriptor would be counted by another one's.
            let _ = std::fs::remove_file(&self.0);
            Key::make(&self.0).unwrap();
            config.listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
            config.psk_file = Some(self.0.clone());
        })
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn knock(stage: &Stage) -> TcpStream {
    let stream = TcpStream::connect(stage.listening()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What somebody is told who says this, until the gate closes; a reset is an end, too.
fn told(stage: &Stage, words: &[u8]) -> Vec<u8> {
    let mut stream = knock(stage);
    let _ = stream.write_all(words);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    answer
}

#[test]
fn who_has_no_key_gets_no_further_whatever_they_say() {
    let key = KeyFile::new("words");
    let mut stage = key.stage("words of strangers at the gate");
    let mut chance = Chance::new(90);
    let mut random =
        |length: usize| (0..length).map(|_| chance.below(256) as u8).collect::<Vec<u8>>();
    while stage.goes_on() {
        stage.tally.attempts += 6;
        let greeting = [PREAMBLE, &[48, 0], &random(48)].concat();
        assert_eq!(told(&stage, &greeting), WRONG_KEY);
        // What follows a greeting that was refused is not read any more.
        let answer = told(&stage, &[greeting.as_slice(), &random(600)].concat());
        assert!(answer.is_empty() || answer == WRONG_KEY, "{answer:?}");
        assert_eq!(told(&stage, b"VRBG\x02\0\0\0"), WRONG_VERSION);
        assert_eq!(told(&stage, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"), b"");
        assert_eq!(told(&stage, &[PREAMBLE, &[0xff, 0xff], &random(1 << 16)].concat()), b"");
        // Cut off anywhere; nobody is waited for.
        let mut cut = knock(&stage);
        let _ = cut.write_all(&greeting[..greeting.len() / 2]);
    }
    stage.finish();
}

/// More than there are places for, all silent, for as long as the attack lasts; and as many as can
/// be who come and go at once.
#[test]
fn many_who_say_nothing_or_come_and_go() {
    let key = KeyFile::new("many");
    let mut stage = key.stage("floods of strangers at the gate");
    let mut silent = std::collections::VecDeque::new();
    let mut grown = None;
    let mut come = 0_u64;
    while stage.goes_on() || come < 10_000 {
        let mut stream = knock(&stage);
        if come.is_multiple_of(4) {
            let _ = stream.write_all(&PREAMBLE[..(come / 4 % 8) as usize]);
            silent.push_back(stream);
        }
        if silent.len() > 300 {
            silent.pop_front();
        }
        come += 1;
        // By then all that is ever needed is there.
        if come == 3_000 {
            grown = Some(resident_bytes());
        }
    }
    let more = resident_bytes().saturating_sub(grown.unwrap());
    assert!(more < 16 << 20, "{come} strangers have left {more} bytes");
    stage.tally.attempts += come;
    // Whoever has been silent longest has made room for the others.
    let mut first = silent.pop_front().unwrap();
    until("the oldest is let go", || matches!(first.read(&mut [0; 1]), Ok(0) | Err(_)));
    drop((first, silent));
    stage.finish();
}

/// Bytes of memory that this process has.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
