//! A descriptor that whoever closes it last must wait for: a TCP socket that lingers over bytes
//! which its peer does not take. It stands for all files whose end can hang.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::thread::JoinHandle;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt::Linger};

/// Both ends. Dropping the whole lets go of whoever hangs.
#[derive(Debug)]
pub(crate) struct Slow {
    end: Option<TcpStream>,
    peer: Option<TcpStream>,
    closer: Option<JoinHandle<()>>,
}

impl Slow {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut end = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        end.set_nonblocking(true).unwrap();
        while end.write(&[0; 65_536]).is_ok() {}
        setsockopt(&end, Linger, &libc::linger { l_onoff: 1, l_linger: 3_600 }).unwrap();
        Self { end: Some(end), peer: Some(peer), closer: None }
    }

    /// The descriptor to send away.
    pub(crate) fn raw(&self) -> RawFd {
        self.end.as_ref().unwrap().as_raw_fd()
    }

    /// Closes our copy: from now on the last close is the receiver's. If it was faster, it is
    /// ours, and hangs on a thread of its own.
    pub(crate) fn leave_it_there(&mut self) {
        let end = self.end.take();
        self.closer = Some(std::thread::spawn(move || drop(end)));
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // Bytes that the peer has not taken are thrown away with it, and nobody waits any more.
        drop(self.peer.take());
        if let Some(closer) = self.closer.take() {
            closer.join().unwrap();
        }
    }
}
