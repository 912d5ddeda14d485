//! The gate: how engines of other hosts come in, and how this one gets out to them.
//!
//! Engines talk in datagrams over a local socket ([`control`](crate::control)), whoever they are.
//! For one on another host the gate stands in between: a thread that seals what the control thread
//! says onto a TCP connection, and hands it what came over that and was genuine. So the control
//! thread reads nothing that somebody without the key has written, and it is the same for both
//! kinds of peer.
//!
//! ```text
//!  control thread --- SEQPACKET pair --- gate thread ===== TCP, sealed ===== the other's gate
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | `key` | the pre-shared key and its file |
//! | `channel` | a connection as values: handshake, records |
//! | `lines` | connections that are there: sockets, times, bounds |
//! | `reach` | making one to another host |
//! | `doorman` | the log of who was turned away, so many lines a second at most |
//!
//! **Nothing listens** unless `listen` is set, and nothing is reached or let in without `psk_file`.

#![cfg_attr(
    not(feature = "net"),
    expect(dead_code, reason = "without feature net nobody is let in or reached")
)]

#[cfg(feature = "net")]
mod channel;
#[cfg(feature = "net")]
mod doorman;
mod key;
#[cfg(feature = "net")]
mod lines;
#[cfg(feature = "net")]
mod reach;
#[cfg(feature = "net")]
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use thiserror::Error;

pub use key::{Key, KeyError};
#[cfg(feature = "net")]
pub(crate) use lines::{Gate, GateThread};

/// What a stranger says, at both ends, cut into pieces: never a message.
#[cfg(all(fuzzing, feature = "net"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let key = Key::fuzz();
    for initiator in [false, true] {
        let Some((cut, bytes)) = bytes.split_first() else { return };
        let made = match initiator {
            true => channel::Channel::initiator(&key),
            false => channel::Channel::responder(&key),
        };
        let (Ok(mut end), mut messages) = (made, Vec::new()) else { return };
        for piece in bytes.chunks(usize::from(*cut) + 1) {
            let _ = end.hear(piece, &mut messages);
        }
        assert!(messages.is_empty());
    }
}

/// Another host's engine has come in, has shown the key, and has said something.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// Its datagrams, and ours to it.
    pub(crate) socket: OwnedFd,
    /// Where it is.
    pub(crate) from: SocketAddr,
    /// What it said first.
    pub(crate) first: Vec<u8>,
}

/// Another host's engine was reached.
#[derive(Debug)]
pub(crate) struct Reached {
    /// Its datagrams, and ours to it.
    pub(crate) socket: OwnedFd,
    /// The address of this host that it was reached from.
    pub(crate) by: IpAddr,
}

/// Why another host's engine was not reached.
#[derive(Debug, Error)]
pub(crate) enum NotReached {
    /// Its name means nothing.
    #[error("{host} cannot be resolved: {why}")]
    Name {
        /// The name.
        host: String,
        /// Why not.
        why: io::Error,
    },
    /// Nobody is there, or nobody listens.
    #[error("{address} cannot be connected to: {why}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// Why not.
        why: io::Error,
    },
    /// It does not answer as an engine's gate.
    #[error("{address} accepts connections, but does not answer as an engine: {why}")]
    Answer {
        /// The address.
        address: SocketAddr,
        /// What it does instead.
        why: String,
    },
    /// The handshake came out so.
    #[error("{address}: {why}")]
    Refused {
        /// The address.
        address: SocketAddr,
        /// Why.
        why: String,
        /// The keys differ.
        key: bool,
    },
    /// Something of this host is used up.
    #[error("{0}")]
    Here(String),
}

/// A gate in a library that was built without it: there is none.
#[cfg(not(feature = "net"))]
#[derive(Clone, Debug)]
pub(crate) struct Gate(());

#[cfg(not(feature = "net"))]
impl Gate {
    /// See the one of builds with feature `net`.
    pub(crate) fn reach(&self, _host: &str, _port: u16) -> Result<Reached, NotReached> {
        Err(NotReached::Here("this build is without feature net".to_string()))
    }

    /// See the one of builds with feature `net`.
    pub(crate) fn listening(&self) -> Option<SocketAddr> {
        None
    }
}

/// Its thread: there is none, either.
#[cfg(not(feature = "net"))]
#[derive(Debug)]
pub(crate) struct GateThread(());

#[cfg(not(feature = "net"))]
impl GateThread {
    /// See the one of builds with feature `net`.
    pub(crate) fn run(self) {}
}
