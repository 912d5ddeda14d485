//! Slow or risky work off the control thread: making memory, judging strangers' descriptors,
//! closing them. Each job runs on a thread of its own, a bounded number at a time.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::shm::{self, Mapping, ShmError};

/// What is to be done.
#[derive(Debug)]
pub(super) enum Work {
    /// Makes and populates a memfd.
    Make { name: &'static std::ffi::CStr, bytes: u64, huge: bool },
    /// Judges, maps, populates and seals a stranger's memfd.
    Adopt { fd: OwnedFd, bytes: u64 },
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) token: usize,
    pub(super) result: Result<Memory, ShmError>,
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
    sender: Sender<Made>,
    receiver: Receiver<Made>,
    kick: std::sync::Arc<dyn Fn() + Send + Sync>,
}

/// Threads at a time.
const RUNNING_MAX: usize = 16;
/// Bytes of a huge page.
const HUGE_BYTES: u64 = 2 << 20;

impl Jobs {
    pub(super) fn new(kick: std::sync::Arc<dyn Fn() + Send + Sync>) -> Self {
        let (sender, receiver) = channel();
        Self { waiting: VecDeque::new(), running: 0, sender, receiver, kick }
    }

    pub(super) fn start(&mut self, token: usize, work: Work) {
        self.waiting.push_back((token, work));
        self.fill();
    }

    /// The next finished job.
    pub(super) fn finished(&mut self) -> Option<Made> {
        let made = self.receiver.try_recv().ok()?;
        self.running -= 1;
        self.fill();
        Some(made)
    }

    fn fill(&mut self) {
        while self.running < RUNNING_MAX {
            let Some((token, work)) = self.waiting.pop_front() else { return };
            let (sender, kick) = (self.sender.clone(), std::sync::Arc::clone(&self.kick));
            let job = move || {
                let result = carry_out(work);
                let _ = sender.send(Made { token, result });
                kick();
            };
            match std::thread::Builder::new().name("verbring-job".into()).spawn(job) {
                Ok(_) => self.running += 1,
                Err(error) => {
                    let source = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(11));
                    let result = Err(ShmError::Os { call: "clone", source });
                    self.running += 1;
                    let _ = self.sender.send(Made { token, result });
                    (self.kick)();
                }
            }
        }
    }
}

fn carry_out(work: Work) -> Result<Memory, ShmError> {
    match work {
        Work::Make { name, bytes, huge } => {
            if huge && let Ok(memory) = make(name, bytes.next_multiple_of(HUGE_BYTES), true) {
                return Ok(memory);
            }
            make(name, bytes, false)
        }
        Work::Adopt { fd, bytes } => {
            shm::inspect(fd.as_fd(), bytes)?;
            let mapping = Mapping::shared(fd.as_fd(), bytes)?;
            mapping.populate()?;
            shm::seal_for_good(fd.as_fd())?;
            Ok(Memory { fd, mapping, huge: false })
        }
    }
}

fn make(name: &std::ffi::CStr, bytes: u64, huge: bool) -> Result<Memory, ShmError> {
    let fd = shm::create(name, bytes, huge)?;
    let mapping = Mapping::shared(fd.as_fd(), bytes)?;
    mapping.populate()?;
    Ok(Memory { fd, mapping, huge })
}

/// Closes strangers' descriptors on a thread of their own: a close can hang.
pub(super) fn close_aside(descriptors: Vec<OwnedFd>) {
    if descriptors.is_empty() {
        return;
    }
    // If no thread is to be had the closure, and the descriptors with it, is dropped here.
    let _ =
        std::thread::Builder::new().name("verbring-close".into()).spawn(move || drop(descriptors));
}
