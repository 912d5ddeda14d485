//! Descriptors that travel: SCM_RIGHTS in and out, pidfds, peers' credentials, bells.
#![expect(unsafe_code, reason = "takes ownership of descriptors that the kernel just handed over")]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, accept4,
    recv, recvmsg, send, sendmsg, socketpair,
};

use crate::abi::MESSAGE_BYTES_MAX;

/// Descriptors that a message may bring; the kernel closes what is beyond.
pub const DESCRIPTORS_MAX: usize = 4;

/// One control message as it came.
#[derive(Debug)]
pub struct Received {
    /// The datagram, cut at [`MESSAGE_BYTES_MAX`] + 1 so that an oversized one shows.
    pub bytes: Vec<u8>,
    /// Descriptors beside it, at most [`DESCRIPTORS_MAX`].
    pub descriptors: Vec<OwnedFd>,
    /// True if more descriptors came than may; the kernel has closed them.
    pub surplus: bool,
}

/// Receives one datagram; `None` at end of file. With `wait` false never blocks.
///
/// # Errors
/// The system's; EAGAIN if nothing is there.
pub fn receive(socket: BorrowedFd<'_>, wait: bool) -> Result<Option<Received>, Errno> {
    let mut buffer = [0u8; MESSAGE_BYTES_MAX + 1];
    let mut space = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut flags = MsgFlags::MSG_CMSG_CLOEXEC;
    if !wait {
        flags |= MsgFlags::MSG_DONTWAIT;
    }
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let length = message.bytes;
    let mut surplus = message.flags.contains(MsgFlags::MSG_CTRUNC);
    let mut descriptors = Vec::new();
    if let Ok(parts) = message.cmsgs() {
        for part in parts {
            if let ControlMessageOwned::ScmRights(raw) = part {
                for fd in raw {
                    // SAFETY: the kernel installed this descriptor for us with this very message,
                    // so nothing else owns it.
                    descriptors.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
    }
    // Padding may leave room for one more than was asked for.
    if descriptors.len() > DESCRIPTORS_MAX {
        descriptors.truncate(DESCRIPTORS_MAX);
        surplus = true;
    }
    if length == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    Ok(Some(Received { bytes: buffer[..length].to_vec(), descriptors, surplus }))
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
