//! One connection between two engines' gates, as values: bytes in, bytes out, messages in between.
//!
//! ```text
//!  initiator                                  responder
//!  "VRBG" version 0, record (e, psk) ------->
//!            <------- "VRBG" version status, record (e, ee)     status 0; else nothing follows
//!  record, record, ...  <------------------>  record, record, ...
//! ```
//!
//! A record is its length, 16 bits little-endian, and so many bytes; after the handshake each is
//! one sealed message of 1 to [`MESSAGE_BYTES_MAX`] bytes. The handshake is Noise's NNpsk0
//! (<https://noiseprotocol.org/noise.html>, revision 34, section 9): both ends show that they have
//! the pre-shared key, and what was said stays secret should that become known later. A record
//! that is left out, repeated, moved or changed does not open.
//!
//! **A responder believes nothing before the first sealed record**: what comes before it can be a
//! copy of what another initiator once said.
//!
//! **Deliberately absent**: sockets and clocks. How long somebody may take is the caller's to say.
//! **Invariants**: between calls less than one record is held; nothing is answered to who does
//! not begin as an engine does; after an error nothing more is taken.

use snow::{Builder, HandshakeState, TransportState};
use thiserror::Error;

use super::Key;
use crate::abi::MESSAGE_BYTES_MAX;

/// The only version that is spoken.
const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"VRBG";
const PREAMBLE_BYTES: usize = 8;
/// What a seal adds.
const SEAL_BYTES: usize = 16;
/// A record's own length.
const LENGTH_BYTES: usize = 2;
/// A message of the handshake: a key and a seal.
const GREETING_BYTES: usize = 32 + SEAL_BYTES;
const RECORD_BYTES_MAX: usize = MESSAGE_BYTES_MAX + SEAL_BYTES;
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

/// What is wrong with a connection. It is over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ChannelError {
    /// It does not begin as an engine does.
    #[error("what came is not from an engine's gate")]
    Stranger,
    /// It is another version's.
    #[error("the other engine's gate speaks version {theirs}, this one {VERSION}")]
    Version {
        /// The other end's.
        theirs: u16,
    },
    /// It was made with another key.
    #[error("the keys differ: psk_file must hold the same key at both engines")]
    Key,
    /// A record's length cannot be.
    #[error("a record is {bytes} bytes, but must be {low} to {high}")]
    Record {
        /// What it says.
        bytes: usize,
        /// The least.
        low: usize,
        /// The most.
        high: usize,
    },
    /// A record does not open.
    #[error("a record was changed, repeated or left out on its way")]
    Forged,
    /// A field has a value that means nothing.
    #[error("status is {status}, but must be 0 to 2")]
    Status {
        /// What it says.
        status: u16,
    },
    /// The cipher failed: it has no randomness, or has sealed too much.
    #[error("the handshake cannot be made: {0}")]
    Cipher(String),
    /// It is over already.
    #[error("the connection is over")]
    Over,
}

/// What a responder says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Welcome,
    Version,
    Key,
}

#[derive(Debug)]
enum State {
    /// The other end's first words are to come.
    Greeting(Box<HandshakeState>),
    Open(Box<TransportState>),
    Over,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Channel {
    initiator: bool,
    state: State,
    /// The other end has shown that it has the key, and is here now.
    proved: bool,
    heard: Vec<u8>,
    said: Vec<u8>,
}

fn preamble(version: u16, status: Status) -> [u8; PREAMBLE_BYTES] {
    let [a, b, c, d] = MAGIC;
    let ([e, f], [g, h]) = (version.to_le_bytes(), (status as u16).to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

fn cipher(error: snow::Error) -> ChannelError {
    ChannelError::Cipher(format!("{error:?}"))
}

impl Channel {
    fn new(key: &Key, initiator: bool) -> Result<Self, ChannelError> {
        let pattern = PATTERN.parse().map_err(cipher)?;
        let first = preamble(VERSION, Status::Welcome);
        let builder = Builder::new(pattern).psk(0, key.bytes()).map_err(cipher)?;
        let builder = builder.prologue(&first).map_err(cipher)?;
        let made = if initiator { builder.build_initiator() } else { builder.build_responder() };
        let mut noise = made.map_err(cipher)?;
        let mut said = Vec::new();
        if initiator {
            said.extend(first);
            greet(&mut noise, &mut said)?;
        }
        let state = State::Greeting(Box::new(noise));
        Ok(Self { initiator, state, proved: false, heard: Vec::new(), said })
    }

    /// The end that has reached out: its first words are to be sent.
    ///
    /// # Errors
    /// [`ChannelError::Cipher`] if there is no randomness.
    pub(crate) fn initiator(key: &Key) -> Result<Self, ChannelError> {
        Self::new(key, true)
    }

    /// The end that was reached.
    ///
    /// # Errors
    /// As for [`Channel::initiator`].
    pub(crate) fn responder(key: &Key) -> Result<Self, ChannelError> {
        Self::new(key, false)
    }

    /// True once the other end has shown that it has the key, now.
    pub(crate) fn proved(&self) -> bool {
        self.proved
    }

    /// Takes what has come, and appends the messages in it. After an error what is to be sent may
    /// still tell the other end why.
    ///
    /// # Errors
    /// [`ChannelError`]; the connection is over.
    pub(crate) fn hear(
        &mut self,
        bytes: &[u8],
        messages: &mut Vec<Vec<u8>>,
    ) -> Result<(), ChannelError> {
        self.heard.extend_from_slice(bytes);
        let came = self.take(messages);
        if came.is_err() {
            self.state = State::Over;
            self.heard = Vec::new();
        }
        came
    }

    fn take(&mut self, messages: &mut Vec<Vec<u8>>) -> Result<(), ChannelError> {
        let mut at = 0;
        loop {
            let rest = self.heard.get(at..).unwrap_or_default();
            let taken = match &mut self.state {
                State::Over => return Err(ChannelError::Over),
                State::Greeting(_) => self.greeted(at)?,
                State::Open(open) => match record(rest, SEAL_BYTES + 1, RECORD_BYTES_MAX)? {
                    None => 0,
                    Some(sealed) => {
                        let mut message = vec![0; sealed.len() - SEAL_BYTES];
                        open.read_message(sealed, &mut message)
                            .map_err(|_| ChannelError::Forged)?;
                        messages.push(message);
                        self.proved = true;
                        LENGTH_BYTES + sealed.len()
                    }
                },
            };
            if taken == 0 {
                self.heard.drain(..at);
                return Ok(());
            }
            at += taken;
        }
    }

    /// Reads the other end's first words; how many bytes they were, 0 if some are still to come.
    fn greeted(&mut self, at: usize) -> Result<usize, ChannelError> {
        let rest = self.heard.get(at..).unwrap_or_default();
        let known = rest.iter().zip(&MAGIC).all(|(came, wanted)| came == wanted);
        if !known {
            return Err(ChannelError::Stranger);
        }
        let Some((head, rest)) = rest.split_first_chunk::<PREAMBLE_BYTES>() else { return Ok(0) };
        let [_, _, _, _, a, b, c, d] = *head;
        let (version, status) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if let Err(error) = judge(self.initiator, version, status) {
            if !self.initiator && matches!(error, ChannelError::Version { .. }) {
                self.said.extend(preamble(VERSION, Status::Version));
            }
            return Err(error);
        }
        let Some(greeting) = record(rest, GREETING_BYTES, GREETING_BYTES)? else { return Ok(0) };
        let taken = PREAMBLE_BYTES + LENGTH_BYTES + greeting.len();
        let State::Greeting(noise) = &mut self.state else { return Err(ChannelError::Over) };
        if noise.read_message(greeting, &mut []).is_err() {
            if !self.initiator {
                self.said.extend(preamble(VERSION, Status::Key));
            }
            return Err(ChannelError::Key);
        }
        if !self.initiator {
            self.said.extend(preamble(VERSION, Status::Welcome));
            greet(noise, &mut self.said)?;
        }
        let State::Greeting(noise) = std::mem::replace(&mut self.state, State::Over) else {
            return Err(ChannelError::Over);
        };
        self.state = State::Open(Box::new(noise.into_transport_mode().map_err(cipher)?));
        self.proved = self.initiator;
        Ok(taken)
    }

    /// Seals a message, behind what is to be sent already.
    ///
    /// # Errors
    /// [`ChannelError::Record`] for a message that is empty or too long, [`ChannelError::Over`] if
    /// the connection is over, or the handshake is not.
    pub(crate) fn say(&mut self, message: &[u8]) -> Result<(), ChannelError> {
        let State::Open(open) = &mut self.state else { return Err(ChannelError::Over) };
        if !(1..=MESSAGE_BYTES_MAX).contains(&message.len()) {
            let (bytes, low, high) = (message.len(), 1, MESSAGE_BYTES_MAX);
            return Err(ChannelError::Record { bytes, low, high });
        }
        let mut sealed = [0; RECORD_BYTES_MAX];
        let length = open.write_message(message, &mut sealed).map_err(cipher)?;
        put(&mut self.said, &sealed[..length]);
        Ok(())
    }

    /// What is to be sent.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.said
    }

    /// So many bytes of it were sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.said.drain(..bytes);
    }
}

/// What is to be made of the other end's first words.
fn judge(initiator: bool, version: u16, status: u16) -> Result<(), ChannelError> {
    match status {
        0 if version == VERSION => Ok(()),
        1 if initiator => Err(ChannelError::Version { theirs: version }),
        2 if initiator => Err(ChannelError::Key),
        _ if version != VERSION => Err(ChannelError::Version { theirs: version }),
        _ => Err(ChannelError::Status { status }),
    }
}

fn greet(noise: &mut HandshakeState, said: &mut Vec<u8>) -> Result<(), ChannelError> {
    let mut greeting = [0; GREETING_BYTES];
    let length = noise.write_message(&[], &mut greeting).map_err(cipher)?;
    put(said, &greeting[..length]);
    Ok(())
}

fn put(said: &mut Vec<u8>, record: &[u8]) {
    let length = u16::try_from(record.len()).unwrap_or(u16::MAX);
    said.extend(length.to_le_bytes());
    said.extend_from_slice(record);
}

/// The record at the beginning, if it is all there. A length that cannot be is seen at once.
fn record(bytes: &[u8], low: usize, high: usize) -> Result<Option<&[u8]>, ChannelError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let bytes = usize::from(u16::from_le_bytes(*length));
    if !(low..=high).contains(&bytes) {
        return Err(ChannelError::Record { bytes, low, high });
    }
    Ok(rest.get(..bytes))
}

#[cfg(test)]
mod tests;
