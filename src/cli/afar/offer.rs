//! The far end: a region on offer, with orders that come by its mailbox.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use verbring::client::RingError;
use verbring::{Arm, Region, Rights, Ring, RingOptions, Session};

use super::letter::{Body, LETTER_BYTES, Letter};
use super::mailbox::{ANSWER_AT, MAILBOX_BYTES, ORDER_AT};
use super::source::SECRET_VARIABLE;
use crate::cli::serve::hold_signals;
use crate::cli::{Failure, grouped};

/// A region that is exported, and its mailbox.
pub(crate) struct Offer {
    ring: Ring,
    armed: bool,
    region: Region,
    /// Without the mailbox.
    bytes: u64,
    name: String,
    secret: String,
    /// The run that orders come from, and the last one followed.
    place: Option<(u64, u64)>,
    /// The letter that was looked at last, whatever it was.
    looked_at: [u8; LETTER_BYTES],
}

/// What the near end wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    run: u64,
    sequence: u64,
    pub(crate) body: Body,
}

impl Order {
    /// True for the first of a near end: whatever another one had begun is over.
    pub(crate) fn is_first(&self) -> bool {
        self.sequence == 1
    }
}

impl Offer {
    /// Exports a new region of `bytes`, a multiple of 4,096, and its mailbox.
    pub(crate) fn make(
        session: &Session,
        name: &str,
        bytes: u64,
        rights: Rights,
    ) -> Result<Self, Failure> {
        let region = session
            .alloc(bytes + MAILBOX_BYTES)
            .map_err(|error| Failure::of("cannot have a region", &error))?;
        let ring = session
            .ring(RingOptions::new(4, ARMS * 2))
            .map_err(|error| Failure::of("cannot have a ring", &error))?;
        let secret = region
            .export(name, rights | Rights::NOTIFY)
            .map_err(|error| Failure::of(format!("cannot offer a region as {name:?}"), &error))?;
        Ok(Self {
            ring,
            armed: false,
            region,
            bytes,
            name: name.to_string(),
            secret: secret.to_hex(),
            place: None,
            looked_at: [0; LETTER_BYTES],
        })
    }

    /// The region; what is offered lies at its start.
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// What the near end must know, for programs.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "offered": self.name,
            "bytes": self.bytes,
            "uid": geteuid().as_raw(),
            "secret": self.secret,
        })
    }

    /// How to go on, for people: `verb` is the command of both ends.
    pub(crate) fn to_text(&self, verb: &str) -> String {
        format!(
            "{} bytes are on offer. On the other host, whose engine has the same key, run\n\
             \n  \
               {SECRET_VARIABLE}={} \\\n  \
               verbring {verb} --peer verbring://HOST:PORT --uid {} --socket PATH\n\
             \n\
             where HOST:PORT is where the engine of this host listens (its setting listen), and\n\
             PATH is the socket of the engine over there. SIGINT ends the offer.\n",
            grouped(self.bytes),
            self.secret,
            geteuid(),
        )
    }

    /// Waits for the next order, for at most so long. Orders that are out of their order are
    /// refused here.
    pub(crate) fn next(&mut self, within: Duration) -> Result<Option<Order>, Failure> {
        if !self.armed {
            let arm = Arm::new(&self.region, ARMS);
            self.ring.push(arm).map_err(|error| Failure::of("cannot arm", &error))?;
            self.ring.submit();
            self.armed = true;
        }
        // A notification says only that it is time to look: what counts is what is found.
        self.ring.wait(1, Some(within)).map_err(over)?;
        while let Some(completion) = self.ring.reap().map_err(over)? {
            completion.result.map_err(|error| Failure::of("cannot be notified", &error))?;
            self.armed &= completion.more;
        }
        self.look()
    }

    fn look(&mut self) -> Result<Option<Order>, Failure> {
        let mut bytes = [0; LETTER_BYTES];
        self.lend(ORDER_AT)?.read(0, &mut bytes);
        if bytes == self.looked_at {
            return Ok(None);
        }
        let letter = Letter::parse(&bytes)
            .map_err(|error| Failure::of("what came by the mailbox is no order", &error))?;
        let Some(Letter { run, sequence, body }) = letter else { return Ok(None) };
        self.looked_at = bytes;
        let order = Order { run, sequence, body };
        let follows = match self.place {
            Some((current, last)) if current == run => last.checked_add(1) == Some(sequence),
            _ => sequence == 1,
        };
        if !follows {
            self.answer(&order, Body::Refused)?;
            return Ok(None);
        }
        self.place = Some((run, sequence));
        Ok(Some(order))
    }

    /// Answers an order.
    pub(crate) fn answer(&self, order: &Order, body: Body) -> Result<(), Failure> {
        let letter = Letter { run: order.run, sequence: order.sequence, body };
        self.lend(ANSWER_AT)?.write(0, &letter.to_bytes());
        Ok(())
    }

    fn lend(&self, at: u64) -> Result<verbring::Lease, Failure> {
        let start = self.bytes + at;
        self.region
            .lend(start..start + LETTER_BYTES as u64)
            .map_err(|error| Failure::of("cannot look into the mailbox", &error))
    }

    /// Takes the offer back.
    pub(crate) fn withdraw(self) -> Result<(), Failure> {
        self.ring
            .release()
            .and_then(|()| self.region.release())
            .map_err(|error| Failure::of("cannot give the region back", &error))
    }
}

fn over(error: RingError) -> Failure {
    Failure::of("the ring is over", &error)
}

/// Has SIGINT, SIGTERM and SIGHUP arrive as a message. To be called before any thread is started.
pub(crate) fn stop_signal() -> Result<Receiver<()>, Failure> {
    let signals = hold_signals(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])?;
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("signals".to_string())
        .spawn(move || {
            if signals.wait().is_ok() {
                let _ = sender.send(());
            }
        })
        .map_err(|error| Failure::of("cannot start a thread", &error))?;
    Ok(receiver)
}

/// Notifications asked for at once; more are counted, and told by the next.
const ARMS: u32 = 8;
