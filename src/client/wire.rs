//! The control socket: one request under way, its reply told from an ended session and from a
//! dead engine.
//!
//! A lock keeps requests of several threads apart; it is held while the engine answers, and this
//! is no place for anything that has to be fast.
//!
//! **Invariants**: a reply that is not the one expected ends the session, since what comes after
//! it cannot be told apart any more. Every wait also watches the engine's pidfd.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::time::TimeSpec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::error::{ControlError, Refusal};
use crate::abi::{self, Detail, Head, Kind, ReplyHead};
use crate::control::fds::{self, Received};

/// An exiting process closes its sockets a little before its pidfd turns readable. So long a
/// closed socket waits to see whether it means a dead engine or an ended session.
const DEATH_GRACE: Duration = Duration::from_millis(200);

/// The client's end of a control socket.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    /// Comes with the reply to HELLO.
    pidfd: OnceLock<OwnedFd>,
    /// The last tag used; the lock is the turn to speak.
    tag: Mutex<u64>,
    /// When the end of the session was first noticed.
    over: OnceLock<Instant>,
}

/// Which of two ends has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    EngineGone,
    SessionOver,
}

impl From<End> for ControlError {
    fn from(end: End) -> Self {
        match end {
            End::EngineGone => Self::EngineGone,
            End::SessionOver => Self::SessionOver,
        }
    }
}

impl Wire {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, pidfd: OnceLock::new(), tag: Mutex::new(0), over: OnceLock::new() }
    }

    pub(super) fn watch(&self, pidfd: OwnedFd) {
        let first = self.pidfd.set(pidfd);
        debug_assert!(first.is_ok(), "HELLO is sent once");
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.get().map(OwnedFd::as_fd)
    }

    /// True once the engine's process is gone.
    pub(super) fn engine_gone(&self) -> bool {
        self.engine_goes(Duration::ZERO)
    }

    /// True once the other end of the socket is closed.
    pub(super) fn hung_up(&self) -> bool {
        let mut watched = [PollFd::new(self.socket(), PollFlags::empty())];
        wait(&mut watched, Some(Duration::ZERO)).is_ok() && told(&watched[0])
    }

    fn engine_goes(&self, within: Duration) -> bool {
        let Some(pidfd) = self.pidfd() else { return false };
        let mut watched = [PollFd::new(pidfd, PollFlags::POLLIN)];
        wait(&mut watched, Some(within)).is_ok() && told(&watched[0])
    }

    fn note_end(&self) -> Instant {
        *self.over.get_or_init(Instant::now)
    }

    /// Says which end a closed socket means.
    pub(super) fn end(&self) -> End {
        let grace = DEATH_GRACE.saturating_sub(self.note_end().elapsed());
        if self.engine_goes(grace) { End::EngineGone } else { End::SessionOver }
    }

    /// Sends a request and waits for its reply, which brings `FDS` descriptors.
    pub(super) fn call<Q, R, const FDS: usize>(
        &self,
        kind: Kind,
        request: impl FnOnce(Head) -> Q,
        attached: Option<BorrowedFd<'_>>,
    ) -> Result<(R, [OwnedFd; FDS]), ControlError>
    where
        Q: IntoBytes + Immutable,
        R: FromBytes,
    {
        // A thread that panicked in here leaves a reply unread at worst, which the tag shows.
        let mut tag = self.tag.lock().unwrap_or_else(PoisonError::into_inner);
        if self.over.get().is_some() {
            return Err(self.end().into());
        }
        *tag += 1;
        let bytes = u32::try_from(size_of::<Q>()).unwrap_or(u32::MAX);
        let request = request(Head { kind: kind as u16, reserved: 0, bytes, tag: *tag });
        match fds::transmit(self.socket(), request.as_bytes(), attached.as_slice(), true) {
            // An engine that hung up may have said why before.
            Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => {}
            Err(source) => return Err(os("sendmsg", source)),
        }
        let received = self.await_reply()?;
        let answer = parse(kind, *tag, received);
        if let Err(ControlError::Protocol { .. }) = answer {
            self.note_end();
            // The socket may be closed from the other side already.
            let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        }
        answer
    }

    fn await_reply(&self) -> Result<Received, ControlError> {
        loop {
            // Looked at before the socket: what a dead engine sent before is then there to read.
            let gone = self.engine_gone();
            match fds::receive(self.socket(), false) {
                Ok(Some(received)) => return Ok(received),
                Ok(None) => return Err(self.end().into()),
                // Told once, if the engine hung up with a request unread; its last words follow.
                Err(Errno::ECONNRESET) => continue,
                Err(Errno::EAGAIN) if gone => return Err(ControlError::EngineGone),
                Err(Errno::EAGAIN) => {}
                Err(source) => return Err(os("recvmsg", source)),
            }
            let socket = PollFd::new(self.socket(), PollFlags::POLLIN);
            let watched = match self.pidfd() {
                Some(pidfd) => wait(&mut [socket, PollFd::new(pidfd, PollFlags::POLLIN)], None),
                None => wait(&mut [socket], None),
            };
            watched.map_err(|source| os("ppoll", source))?;
        }
    }
}

/// Judges a reply; a failed one is a refusal.
fn parse<R: FromBytes, const FDS: usize>(
    kind: Kind,
    tag: u64,
    received: Received,
) -> Result<(R, [OwnedFd; FDS]), ControlError> {
    let broken = |what| Err(ControlError::Protocol { what });
    let bytes = &received.bytes;
    let Ok((head, text)) = ReplyHead::read_from_prefix(bytes) else {
        return broken("a reply shorter than its head");
    };
    // An engine that takes no further session says so before it has heard anything.
    let unasked = kind == Kind::Hello && head.tag == 0 && head.status < 0;
    if head.kind != kind as u16 | abi::REPLY || head.tag != tag && !unasked {
        return broken("a reply to something else");
    }
    if u64::from(head.bytes) != bytes.len() as u64 || head.reserved != 0 {
        return broken("a reply of another length than it says");
    }
    if received.surplus {
        return broken("more descriptors than any reply brings");
    }
    if head.status > 0 {
        return broken("a status above zero");
    }
    if head.status < 0 {
        let detail = u16::try_from(head.detail).ok().and_then(Detail::from_number);
        return Err(ControlError::Refused(Refusal {
            request: kind,
            errno: head.status.saturating_neg(),
            detail: detail.unwrap_or(Detail::None),
            detail_number: head.detail,
            text: String::from_utf8_lossy(text).into_owned(),
        }));
    }
    let Ok(reply) = R::read_from_bytes(bytes) else {
        return broken("a reply of the wrong length for its kind");
    };
    match received.descriptors.try_into() {
        Ok(descriptors) => Ok((reply, descriptors)),
        Err(_) => broken("a reply with too few or too many descriptors"),
    }
}

/// Waits until one of `watched` has something to tell, or the time is up. Signals do not end it.
pub(super) fn wait(watched: &mut [PollFd<'_>], within: Option<Duration>) -> Result<(), Errno> {
    let until = within.and_then(|within| Instant::now().checked_add(within));
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match ppoll(watched, left.map(TimeSpec::from_duration), None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(other) => return Err(other),
        }
    }
}

/// True if a poll found anything on this descriptor, be it only its end.
pub(super) fn told(watched: &PollFd<'_>) -> bool {
    watched.revents().is_none_or(|events| !events.is_empty())
}

pub(super) fn os(call: &'static str, source: Errno) -> ControlError {
    ControlError::Os { call, source: source.into() }
}

/// Pads text with zeros to the length of a message's field; `None` if it is empty, too long, or
/// holds a zero itself.
pub(super) fn padded<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || bytes.len() > BYTES || bytes.contains(&0) {
        return None;
    }
    let mut field = [0; BYTES];
    field[..bytes.len()].copy_from_slice(bytes);
    Some(field)
}
