//! Descriptors that travel: SCM_RIGHTS in and out, pidfds, peers' credentials, bells.
#![expect(unsafe_code, reason = "takes ownership of descriptors that the kernel just handed over")]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept4,
    connect, recv, recvmsg, send, sendmsg, setsockopt, shutdown, socket, socketpair, sockopt,
};

use crate::abi::MESSAGE_BYTES_MAX;

/// Descriptors that a message may bring.
pub const DESCRIPTORS_MAX: usize = 4;

/// One control message as it came.
#[derive(Debug)]
pub struct Received {
    /// The datagram, cut at [`MESSAGE_BYTES_MAX`] + 1 so that an oversized one shows.
    pub bytes: Vec<u8>,
    /// Descriptors beside it, at most [`DESCRIPTORS_MAX`].
    pub descriptors: Vec<OwnedFd>,
    /// True if more descriptors came than may, or than our table has room for; the kernel has
    /// closed them.
    pub surplus: bool,
}

/// Receives one datagram; `None` at end of file. With `wait` false never blocks, except that the
/// kernel may have to close surplus descriptors, and the last close of a file can hang.
///
/// # Errors
/// The system's; EAGAIN if nothing is there.
pub fn receive(socket: BorrowedFd<'_>, wait: bool) -> Result<Option<Received>, Errno> {
    const CONTROL_WORDS: usize = 6;
    let mut buffer = [0u8; MESSAGE_BYTES_MAX + 1];
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: CMSG_SPACE only computes.
    let space = unsafe { libc::CMSG_SPACE(CONTROL_BYTES) } as usize;
    assert!(space <= size_of_val(&control));
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all of msghdr's fields are integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = space;
    let wait = if wait { 0 } else { libc::MSG_DONTWAIT };
    let flags = libc::MSG_CMSG_CLOEXEC | wait;
    let length = loop {
        // SAFETY: `message` points to one live iovec over `buffer` and to `control`, with lengths
        // that lie inside them.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        match Errno::result(length) {
            Err(Errno::EINTR) => {}
            other => break usize::try_from(other?).unwrap_or(0),
        }
    };
    let mut descriptors = take_rights(&message);
    let mut surplus = message.msg_flags & libc::MSG_CTRUNC != 0;
    // Padding leaves room for one more than was asked for.
    if descriptors.len() > DESCRIPTORS_MAX {
        descriptors.truncate(DESCRIPTORS_MAX);
        surplus = true;
    }
    if length == 0 && descriptors.is_empty() && !surplus {
        return Ok(None);
    }
    Ok(Some(Received { bytes: buffer[..length].to_vec(), descriptors, surplus }))
}

/// Bytes of as many descriptors as may come.
const CONTROL_BYTES: u32 = 4 * 4;
const _: () = assert!(CONTROL_BYTES as usize == DESCRIPTORS_MAX * size_of::<RawFd>());

/// Takes the descriptors that recvmsg has just installed, also if it had room for some only: what
/// is not taken here stays open for ever.
fn take_rights(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: recvmsg has filled `message`, whose control buffer is live and aligned to 8.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !part.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return headers that lie inside the buffer.
        let header = unsafe { part.read() };
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: CMSG_LEN only computes.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: the header lies inside the buffer, and its data right behind it.
            let data: *const RawFd = unsafe { libc::CMSG_DATA(part) }.cast();
            for index in 0..header.cmsg_len.saturating_sub(empty) / size_of::<RawFd>() {
                // SAFETY: the kernel has written cmsg_len bytes, so that many descriptors.
                let place = unsafe { data.add(index) };
                // SAFETY: as above; a header's data is aligned as the header is.
                let fd = unsafe { place.read() };
                // SAFETY: the kernel installed this descriptor for us with this very message, so
                // nothing else owns it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `part` is a header of `message`'s buffer.
        part = unsafe { libc::CMSG_NXTHDR(message, part) };
    }
    descriptors
}

/// Looks, without taking anything, how many bytes wait (up to `bytes`), and whether descriptors
/// come with the last of them.
///
/// Whoever takes a message with descriptors may have to close some, and that can hang. No control
/// buffer is offered here: the kernel then installs none and only says that there are some.
///
/// # Errors
/// The system's; EAGAIN if nothing is there.
pub fn peek(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, bool), Errno> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    loop {
        let mut slices = [IoSliceMut::new(bytes)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, None, flags) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(seen) => return Ok((seen.bytes, seen.flags.contains(MsgFlags::MSG_CTRUNC))),
        }
    }
}

/// True if a control socket that is shut down for reading holds messages that nobody read, and
/// with them perhaps descriptors, which its close would close.
#[must_use]
pub fn unread(socket: BorrowedFd<'_>) -> bool {
    // An empty message looks like the end, but a message has a time, and that finds no room.
    let stamped = setsockopt(&socket, sockopt::ReceiveTimestamp, &true).is_ok();
    !stamped || peek(socket, &mut [0]) != Ok((0, false))
}

/// Sends one datagram with descriptors; with `wait` false never blocks.
///
/// # Errors
/// The system's; EAGAIN if the peer does not read.
pub fn transmit(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: bool,
) -> Result<(), Errno> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let attached = if raw.is_empty() { &[][..] } else { &rights[..] };
    let mut flags = MsgFlags::MSG_NOSIGNAL;
    if !wait {
        flags |= MsgFlags::MSG_DONTWAIT;
    }
    loop {
        let slices = [IoSlice::new(bytes)];
        match sendmsg::<()>(socket.as_raw_fd(), &slices, attached, flags, None) {
            Err(Errno::EINTR) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Accepts a connection.
///
/// # Errors
/// The system's.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: accept4 just returned this new descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects to a control socket. While there are too many at its door, tries again 20 ms later, so
/// many times in all.
///
/// # Errors
/// The system's; ETIMEDOUT if there are too many at its door for all that time.
pub fn reach(path: &Path, tries: u32) -> Result<OwnedFd, Errno> {
    let address = UnixAddr::new(path)?;
    for _ in 0..tries {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        match connect(made.as_raw_fd(), &address) {
            Ok(()) => return Ok(made),
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [], PollTimeout::from(20u8));
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::ETIMEDOUT)
}

/// Makes a control socket pair: one end for each side.
///
/// # Errors
/// The system's.
pub fn control_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Makes a bell: a byte sent at one end makes the other readable. The ends do not share a blocking
/// mode, unlike an eventfd that was handed over.
///
/// # Errors
/// The system's.
pub fn bell_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
}

/// Rings a bell. A full one is rung already; a dead one is noticed elsewhere.
pub fn ring_bell(bell: BorrowedFd<'_>) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    while send(bell.as_raw_fd(), &[1], flags) == Err(Errno::EINTR) {}
}

/// Silences a bell: takes all pending bytes, at most a few buffers full. False if its other end is
/// closed.
pub fn silence_bell(bell: BorrowedFd<'_>) -> bool {
    let mut pending = [0; 512];
    for _ in 0..64 {
        match recv(bell.as_raw_fd(), &mut pending, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return false,
            Ok(512) | Err(Errno::EINTR) => {}
            Ok(_) | Err(Errno::EAGAIN) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// What the engine found in a client's bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is silent now.
    Silenced,
    /// There may be more in it: look again, since nothing will tell.
    More,
    /// A client has put descriptors into it. They are still there.
    Strays,
}

/// Silences a client's bell: takes a bounded number of bytes, since a client may pour them in
/// faster than they can be taken, and never a descriptor, whose close would be ours.
pub fn hear_bell(bell: BorrowedFd<'_>) -> Heard {
    let mut pending = [0; 64];
    let seen = match peek(bell, &mut pending) {
        Ok((_, true)) => return Heard::Strays,
        Ok((seen @ 1.., false)) => seen,
        _ => return Heard::Silenced,
    };
    while recv(bell.as_raw_fd(), &mut pending[..seen], MsgFlags::MSG_DONTWAIT) == Err(Errno::EINTR)
    {
    }
    if seen == pending.len() { Heard::More } else { Heard::Silenced }
}

/// Shuts one of our bells down; true if it holds descriptors (or more than is worth looking at),
/// which its close would close.
#[must_use]
pub fn shut_bell(bell: BorrowedFd<'_>) -> bool {
    let shut = shutdown(bell.as_raw_fd(), Shutdown::Both).is_ok();
    !shut || !(0..64).any(|_| hear_bell(bell) == Heard::Silenced)
}

/// Opens a descriptor that becomes readable when process `pid` is gone.
///
/// # Errors
/// The system's; ESRCH if there is no such process.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the call just returned this new descriptor; it is close-on-exec by definition.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a pidfd of the process at the other end of a socket, as it was when it connected: unlike
/// one opened by number, it cannot mean a process that took over the number.
///
/// # Errors
/// ENOPROTOOPT before Linux 6.5; then `pidfd_open` has to do.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const SO_PEERPIDFD: i32 = 77;
    let mut fd: RawFd = -1;
    let mut length: libc::socklen_t = 4;
    // SAFETY: `fd` and `length` are live for the call and of the size the option writes (an int).
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    Errno::result(status)?;
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the option just installed this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
