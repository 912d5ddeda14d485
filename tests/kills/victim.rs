//! The client that is killed: some activities at once, each on a session of its own, and a meeting
//! with a peer, so that ops of other sessions name its regions and it names theirs.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use verbring::abi::SECRET_BYTES;
use verbring::client::RingError;
use verbring::{Arm, Import, Region, Rights, Ring, RingOptions, Secret, Session, Write};

use super::calls::{Activity, carry_on};
use super::chance::Chance;
use super::part::{self, PATIENCE, Part};

/// What the victim says: something has begun.
const BEGUN: u8 = b'b';
/// What the victim says: the secret of its export follows.
const SECRET: u8 = b's';

/// A victim, as the test sees it.
#[derive(Debug)]
pub(crate) struct Victim {
    part: Part,
    /// The name of its export.
    name: String,
    /// Things that have yet to begin.
    to_begin: u64,
    meets: bool,
}

impl Victim {
    /// Starts a victim. What it does follows from the seed.
    pub(crate) fn start(socket: &Path, seed: u64, arena: &str, secret: &Secret) -> Self {
        let mut chance = Chance::new(seed);
        let mut activities = vec![chance.one_of(&Activity::LOADS)];
        activities.extend((0..chance.below(3)).map(|_| chance.one_of(&Activity::CALLS)));
        let meets = chance.percent(50);
        let name = format!("victim-{seed}");
        let numbers: Vec<String> = activities.iter().map(|&each| number(each)).collect();
        let part = Part::start(&[
            "victim",
            socket.to_str().unwrap(),
            &seed.to_string(),
            &numbers.join(" "),
            if meets { &name } else { "" },
            arena,
            &secret.to_hex(),
        ]);
        let to_begin = activities.len() as u64 + u64::from(meets);
        Self { part, name, to_begin, meets }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until all that it does is under way; returns the secret of its export, if it has one.
    pub(crate) fn await_begin(&mut self) -> Option<Secret> {
        let mut secret = None;
        for _ in 0..self.to_begin {
            match self.part.hear() {
                [BEGUN] => {}
                [SECRET] => secret = Some(Secret::from_bytes(self.part.hear())),
                other => panic!("the victim said {other:?}"),
            }
        }
        assert_eq!(secret.is_some(), self.meets);
        secret
    }

    pub(crate) fn kill(self) {
        self.part.kill();
    }
}

fn number(activity: Activity) -> String {
    let all = || Activity::LOADS.into_iter().chain(Activity::CALLS);
    all().position(|each| each == activity).unwrap().to_string()
}

fn activity(number: &str) -> Activity {
    let mut all = Activity::LOADS.into_iter().chain(Activity::CALLS);
    all.nth(number.parse().unwrap()).unwrap()
}

/// The victim's part: `victim SOCKET SEED ACTIVITIES OWN_NAME ARENA ARENA_SECRET`.
pub(crate) fn play(words: &[&str]) {
    let [socket, seed, activities, name, arena, secret] = words else {
        panic!("a victim takes six words, not {words:?}")
    };
    let socket = PathBuf::from(socket);
    let mut chance = Chance::new(seed.parse().unwrap());
    for number in activities.split(' ') {
        let (socket, activity, seed) = (socket.clone(), activity(number), chance.next());
        let mut line = part::line();
        std::thread::spawn(move || {
            let mut first = true;
            let mut begun = || {
                if std::mem::take(&mut first) {
                    say(&mut line, &[BEGUN]);
                }
            };
            carry_on(activity, &socket, seed, &mut begun);
        });
    }
    if !name.is_empty() {
        let (name, arena) = (name.to_string(), arena.to_string());
        let secret: Secret = secret.parse().unwrap();
        let line = part::line();
        std::thread::spawn(move || {
            let over = meet(&socket, &name, &arena, &secret, line);
            panic!("the meeting is over: {over:?}");
        });
    }
    part::wait_for_end(&mut part::line());
}

/// What cannot be said is said to a test that is over.
fn say(line: &mut UnixStream, what: &[u8]) {
    let _ = line.write_all(what);
}

/// Lets a peer write into a region of ours, tell us of it, and writes into one of its own.
fn meet(
    socket: &Path,
    name: &str,
    arena: &str,
    secret: &Secret,
    mut line: UnixStream,
) -> Result<(), Box<dyn std::error::Error>> {
    let session = Session::connect(socket)?;
    let region = session.alloc(MEETING_BYTES)?;
    let import = session.import(arena, None, secret)?;
    let mut ring = session.ring(RingOptions::new(32, 64))?;
    let own = region.export(name, Rights::ALL)?;
    let mut told = vec![SECRET];
    told.extend_from_slice(own.as_bytes());
    assert_eq!(told.len(), 1 + SECRET_BYTES);
    say(&mut line, &told);
    let mut armed = 0;
    loop {
        if armed == 0 {
            ring.push(Arm::new(&region, 4)).map_err(|error| error.reason)?;
            armed = 4;
        }
        for completion in write_some(&mut ring, &region, &import)? {
            armed -= u32::from(completion.notification.is_some());
            completion.result?;
        }
    }
}

pub(crate) const MEETING_BYTES: u64 = 1 << 20;
/// Where the far side of a meeting may be written.
pub(crate) const MEETING_AT: u64 = 512 << 10;

/// Writes a few ranges, with and without a word about it, and waits for a completion.
pub(crate) fn write_some(
    ring: &mut Ring,
    near: &Region,
    far: &Import,
) -> Result<Vec<verbring::Completion>, RingError> {
    while ring.in_flight() < 16 {
        let number = ring.in_flight() as u64;
        // A range that is still lent is left alone.
        let Ok(lease) = near.lend(number * 8_192..(number + 1) * 8_192) else { break };
        let write = Write::new(lease, far.at(MEETING_AT + number * 8_192));
        let write = if number.is_multiple_of(4) { write.notify(7) } else { write };
        if ring.push(write).is_err() {
            break;
        }
    }
    ring.submit_and_wait(1, Some(PATIENCE))?;
    let mut completions = Vec::new();
    while let Some(completion) = ring.reap()? {
        completions.push(completion);
    }
    Ok(completions)
}
