//! io_uring as a contestant: NOPs, entered by system calls or taken by a kernel thread (SQPOLL).
//!
//! It gets the best set-up that the kernel knows; what it refuses is left away, one by one.
#![expect(unsafe_code, reason = "the crate's push leaves it to the caller that buffers live on")]

use std::io;

use io_uring::{Builder, CompletionQueue, IoUring, SubmissionQueue, Submitter};
use io_uring::{cqueue, opcode, squeue};

use super::shape::Shape;
use super::slice::{Rig, TIMED};
use crate::cli::Failure;

/// One ring of this thread's own.
pub(super) struct UringRig {
    submitter: Submitter<'static>,
    submissions: SubmissionQueue<'static>,
    completions: CompletionQueue<'static>,
    plain: squeue::Entry,
    timed: squeue::Entry,
    sqpoll: bool,
}

impl UringRig {
    /// Makes a ring that holds all that the shape has in flight, and lives as long as the process.
    /// `sqpoll`: the core on which a kernel thread is to poll; `None` for system calls.
    ///
    /// # Errors
    /// The system's, for machines on which io_uring may not be used.
    pub(super) fn new(shape: &Shape, sqpoll: Option<usize>) -> io::Result<Self> {
        let ring = Box::leak(Box::new(Self::best(shape.entries(), sqpoll)?));
        let (mut submitter, submissions, completions) = ring.split();
        // Spares a look-up of the descriptor in every call; kernels before 5.18 do not know it.
        let _ = submitter.register_ring_fd();
        let nop = opcode::Nop::new().build();
        let timed = nop.clone().user_data(TIMED);
        let sqpoll = sqpoll.is_some();
        Ok(Self { submitter, submissions, completions, plain: nop, timed, sqpoll })
    }

    /// The ring with the most helpful set of flags that this kernel takes.
    fn best(entries: u32, sqpoll: Option<usize>) -> io::Result<IoUring> {
        let mut refused = io::Error::from(io::ErrorKind::Unsupported);
        for fewer in 0..=3 {
            let mut builder = IoUring::builder();
            if let Some(core) = sqpoll {
                builder.setup_sqpoll(SQPOLL_IDLE_MS);
                builder.setup_sqpoll_cpu(core.try_into().unwrap_or(0));
            } else {
                helpful(&mut builder, fewer);
            }
            if fewer < 3 {
                builder.setup_single_issuer();
            }
            if fewer < 1 {
                builder.setup_no_sqarray();
            }
            match builder.build(entries) {
                Ok(ring) => return Ok(ring),
                Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }
}

/// What spares a ring that is entered by its one thread: work is done when it asks, not by
/// interrupting it.
fn helpful(builder: &mut Builder<squeue::Entry, cqueue::Entry>, fewer: u32) {
    match fewer {
        0 | 1 => builder.setup_defer_taskrun(),
        2 => builder.setup_coop_taskrun(),
        _ => builder,
    };
}

impl Rig for UringRig {
    #[inline]
    fn submit(&mut self, count: u32, tag: u64) -> Result<(), Failure> {
        let entry = if tag == TIMED { &self.timed } else { &self.plain };
        for _ in 0..count {
            // SAFETY: a NOP names no buffer, so there is none that would have to live on.
            while unsafe { self.submissions.push(entry) }.is_err() {
                // The polling thread has completed an op before it gave its slot back.
                self.submissions.sync();
            }
        }
        self.submissions.sync();
        self.submitter.submit().map(|_| ()).map_err(entering)
    }

    #[inline]
    fn reap(&mut self) -> Result<(u32, u32), Failure> {
        let (mut popped, mut timed) = (0, 0);
        self.completions.sync();
        for cqe in &mut self.completions {
            if cqe.result() < 0 {
                return Err(Failure::Failed(format!("io_uring answered {}", cqe.result())));
            }
            popped += 1;
            timed += u32::from(cqe.user_data() == TIMED);
        }
        self.completions.sync();
        Ok((popped, timed))
    }

    fn check(&mut self) -> Result<(), Failure> {
        // Wakes a kernel thread that sleeps, and runs work that was deferred.
        let want = usize::from(!self.sqpoll);
        self.submitter.submit_and_wait(want).map(|_| ()).map_err(entering)
    }

    fn at_rest(&mut self) -> bool {
        !self.sqpoll || self.submissions.need_wakeup()
    }
}

fn entering(error: io::Error) -> Failure {
    Failure::of("io_uring_enter", &error)
}

/// After so long without work the kernel thread sleeps, rounded up to its ticks.
const SQPOLL_IDLE_MS: u32 = 1;
