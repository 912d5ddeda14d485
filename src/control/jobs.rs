//! Slow or risky work off the control thread: making memory, judging strangers' descriptors,
//! taking and closing them. Each job runs on a thread of its own. A bounded number make memory at
//! a time; what may hang is bounded by the number of sessions.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::fds::{self, Received};
use super::wire::{self, Refusal};
use crate::abi::{Detail, Kind, errno};
use crate::gate::{Gate, NotReached};
use crate::shm::{self, Mapping, ShmError};

/// What is to be done.
#[derive(Debug)]
pub(super) enum Work {
    /// Makes and populates a memfd.
    Make { name: &'static std::ffi::CStr, bytes: u64, huge: bool },
    /// Judges, maps, seals and populates a stranger's memfd.
    Adopt { fd: OwnedFd, bytes: u64 },
    /// Populates once more what the client might have punched holes into until it was sealed.
    Populate { mapping: Arc<Mapping> },
}

/// A job that is over.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) token: usize,
    pub(super) outcome: Outcome,
}

/// What came of a job.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Of [`Work::Make`] and [`Work::Adopt`].
    Made(Memory),
    /// Of [`Work::Populate`].
    Populated,
    /// It failed; a stranger's descriptor is still to be closed.
    Failed(ShmError, Option<OwnedFd>),
    /// Of [`Jobs::close`] and [`Jobs::turn_away`].
    Closed,
    /// Of [`Jobs::receive`].
    Received(Result<Option<Received>, Errno>),
    /// Of [`Jobs::reach`].
    Reached(Result<(OwnedFd, Option<IpAddr>), Refusal>),
}

/// Memory that is ready for use.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) fd: OwnedFd,
    pub(super) mapping: Mapping,
    pub(super) huge: bool,
}

/// The jobs under way, and those that wait for a thread.
pub(super) struct Jobs {
    waiting: VecDeque<(usize, Work)>,
    running: usize,
    sender: Sender<Finished>,
    receiver: Receiver<Finished>,
    kick: Arc<dyn Fn() + Send + Sync>,
}

/// Threads at a time that make memory.
const RUNNING_MAX: usize = 16;
/// How long a peer that is turned away has to say HELLO, so that it gets its answer.
const HELLO_WITHIN_MS: u16 = 100;
/// How often another engine is asked again that has too many at its door, each 20 ms later.
const REACH_TRIES: u32 = 250;
/// Bytes of a huge page.
const HUGE_BYTES: u64 = 2 << 20;

impl Jobs {
    pub(super) fn new(kick: Arc<dyn Fn() + Send + Sync>) -> Self {
        let (sender, receiver) = channel();
        Self { waiting: VecDeque::new(), running: 0, sender, receiver, kick }
    }

    pub(super) fn start(&mut self, token: usize, work: Work) {
        self.waiting.push_back((token, work));
        self.fill();
    }

    /// Closes strangers' descriptors.
    pub(super) fn close(&self, token: usize, descriptors: Vec<Arc<OwnedFd>>) {
        self.aside(token, move || {
            drop(descriptors);
            Outcome::Closed
        });
    }

    /// Takes a message that comes with descriptors: the kernel closes the surplus.
    pub(super) fn receive(&self, token: usize, socket: Arc<OwnedFd>) {
        self.aside(token, move || Outcome::Received(fds::receive(socket.as_fd(), false)));
    }

    /// Tells a peer that it cannot have a session, in answer to its HELLO if it says one, and
    /// closes its socket.
    pub(super) fn turn_away(&self, token: usize, socket: OwnedFd, refusal: Refusal) {
        self.aside(token, move || {
            let timeout = PollTimeout::from(HELLO_WITHIN_MS);
            let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout);
            let hello = fds::receive(socket.as_fd(), false).ok().flatten();
            let tag = hello.and_then(|hello| wire::head(&hello.bytes)).map_or(0, |head| head.tag);
            let bytes = wire::failure(Kind::Hello as u16, tag, &refusal);
            let _ = fds::transmit(socket.as_fd(), &bytes, &[], false);
            drop(socket);
            Outcome::Closed
        });
    }

    /// Connects to another engine's socket. A path may lead into a file system that hangs.
    pub(super) fn reach(&self, token: usize, path: PathBuf) {
        self.aside(token, move || {
            let reached = fds::reach(&path, REACH_TRIES);
            Outcome::Reached(reached.map(|socket| (socket, None)).map_err(not_reached))
        });
    }

    /// Connects to the gate of another host's engine. A name may take long to resolve.
    pub(super) fn reach_host(&self, token: usize, gate: Gate, host: String, port: u16) {
        self.aside(token, move || {
            let reached = gate.reach(&host, port).map(|it| (it.socket, Some(it.by)));
            Outcome::Reached(reached.map_err(no_host))
        });
    }

    /// Runs what may hang for as long as a stranger likes. Such jobs are not counted among those
    /// that make memory; the server allows each session one.
    fn aside(&self, token: usize, job: impl FnOnce() -> Outcome + Send + 'static) {
        if self.run("verbring-aside", token, job).is_err() {
            // No thread is to be had: the closure, and the descriptors with it, was dropped here.
            let _ = self.sender.send(Finished { token, outcome: Outcome::Closed });
            (self.kick)();
        }
    }

    /// The next finished job.
    pub(super) fn finished(&mut self) -> Option<Finished> {
        let finished = self.receiver.try_recv().ok()?;
        let aside = |outcome: &Outcome| {
            matches!(outcome, Outcome::Closed | Outcome::Received(_) | Outcome::Reached(_))
        };
        if !aside(&finished.outcome) {
            self.running -= 1;
            self.fill();
        }
        Some(finished)
    }

    fn fill(&mut self) {
        while self.running < RUNNING_MAX {
            let Some((token, work)) = self.waiting.pop_front() else { return };
            self.running += 1;
            if let Err(source) = self.run("verbring-job", token, move || carry_out(work)) {
                let outcome = Outcome::Failed(ShmError::Os { call: "clone", source }, None);
                let _ = self.sender.send(Finished { token, outcome });
                (self.kick)();
            }
        }
    }

    fn run(
        &self,
        name: &str,
        token: usize,
        job: impl FnOnce() -> Outcome + Send + 'static,
    ) -> Result<(), Errno> {
        let (sender, kick) = (self.sender.clone(), Arc::clone(&self.kick));
        let run = move || {
            let outcome = job();
            let _ = sender.send(Finished { token, outcome });
            kick();
        };
        match std::thread::Builder::new().name(name.into()).spawn(run) {
            Ok(_) => Ok(()),
            Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN))),
        }
    }
}

fn not_reached(errno: Errno) -> Refusal {
    let (code, text) = match errno {
        Errno::EACCES | Errno::EPERM => (errno::EACCES, "its socket may not be used"),
        Errno::ETIMEDOUT => (errno::ETIMEDOUT, "it does not accept connections"),
        _ => (errno::ENETUNREACH, "no engine listens there"),
    };
    Refusal::new(code, Detail::Peer, format!("{text}: {}", errno.desc()))
}

fn no_host(why: NotReached) -> Refusal {
    let code = match &why {
        NotReached::Name { .. } | NotReached::Connect { .. } => errno::ENETUNREACH,
        NotReached::Answer { .. } => errno::EPROTO,
        NotReached::Refused { key: true, .. } => errno::EACCES,
        NotReached::Refused { .. } => errno::EOPNOTSUPP,
        NotReached::Here(_) => errno::ENOMEM,
    };
    Refusal::new(code, Detail::Peer, why.to_string())
}

fn carry_out(work: Work) -> Outcome {
    let made = match work {
        Work::Make { name, bytes, huge } => {
            let huge = huge.then(|| make(name, bytes.next_multiple_of(HUGE_BYTES), true));
            match huge {
                Some(Ok(memory)) => Ok(memory),
                _ => make(name, bytes, false),
            }
        }
        Work::Adopt { fd, bytes } => match adopt(&fd, bytes) {
            Ok(mapping) => Ok(Memory { fd, mapping, huge: false }),
            Err(error) => return Outcome::Failed(error, Some(fd)),
        },
        Work::Populate { mapping } => match mapping.populate() {
            Ok(()) => return Outcome::Populated,
            Err(error) => Err(error),
        },
    };
    made.map_or_else(|error| Outcome::Failed(error, None), Outcome::Made)
}

/// Sealed first, populated then: what its owner punches out before the seals is there again, and
/// after them it can punch no more.
fn adopt(fd: &OwnedFd, bytes: u64) -> Result<Mapping, ShmError> {
    shm::inspect(fd.as_fd(), bytes)?;
    let mapping = Mapping::shared(fd.as_fd(), bytes)?;
    shm::seal_for_good(fd.as_fd())?;
    mapping.populate()?;
    Ok(mapping)
}

fn make(name: &std::ffi::CStr, bytes: u64, huge: bool) -> Result<Memory, ShmError> {
    let fd = shm::create(name, bytes, huge)?;
    let mapping = Mapping::shared(fd.as_fd(), bytes)?;
    mapping.populate()?;
    Ok(Memory { fd, mapping, huge })
}
