//! The far end of a demo between hosts: offers a region, and digests what it is told to look at.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use verbring::Rights;

use super::exporter::look;
use super::{EXPORT_NAME, WINDOW_BYTES, digest_text};
use crate::cli::afar::{Body, FarArgs, Offer, attach, stop_signal};
use crate::cli::{Failure, grouped, say, say_json};

/// Offers a region until the sender is done, or until a signal.
pub(super) fn run(far: &FarArgs, json: bool) -> Result<(), Failure> {
    far.for_offer()?;
    let socket = far.socket()?;
    let stop = stop_signal()?;
    let session = attach(&socket)?;
    let rights = Rights::READ | Rights::WRITE;
    let mut offer = Offer::make(&session, EXPORT_NAME, WINDOW_BYTES, rights)?;
    if json {
        say_json(&offer.to_json())?;
    } else {
        say(&offer.to_text("demo"))?;
    }
    let received = serve(&mut offer, &stop)?;
    offer.withdraw()?;
    if json { say_json(&received.to_json()) } else { say(&received.to_text()) }
}

/// What came, over all passes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// Files that came whole.
    pub(super) passes: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// The last one's digest.
    pub(super) sha256: Option<String>,
    /// The sender has said that it is done.
    pub(super) done: bool,
}

impl Received {
    fn to_json(&self) -> serde_json::Value {
        let Self { passes, bytes, sha256, done } = self;
        let ended = if *done { "done" } else { "signal" };
        json!({ "ended": ended, "passes": passes, "bytes": bytes, "sha256_received": sha256 })
    }

    fn to_text(&self) -> String {
        let ended = if self.done { "the sender is done" } else { "ended by a signal" };
        let (passes, bytes) = (grouped(self.passes), grouped(self.bytes));
        let last = self.sha256.as_ref();
        let last = last.map(|sha256| format!("  SHA-256 received   {sha256}\n"));
        let last = last.unwrap_or_default();
        format!("{ended}: {passes} files of {bytes} bytes in all\n{last}")
    }
}

/// Follows orders until the last, or until `stop` says so.
pub(super) fn serve(offer: &mut Offer, stop: &Receiver<()>) -> Result<Received, Failure> {
    let mut received = Received::default();
    let mut digest = Sha256::new();
    let mut digested = 0;
    while stop.try_recv().is_err() {
        let Some(order) = offer.next(LOOK_EVERY)? else { continue };
        if order.is_first() {
            (digest, digested) = (Sha256::new(), 0);
        }
        let answer = match order.body {
            // Whoever has the secret may say anything.
            Body::Look { bytes, last } if bytes <= WINDOW_BYTES => {
                look(offer.region(), bytes, &mut digest)?;
                digested += bytes;
                if last {
                    let sum = digest.finalize_reset();
                    received.passes += 1;
                    received.bytes += std::mem::take(&mut digested);
                    received.sha256 = Some(digest_text(&sum));
                    Body::Digest(sum.into())
                } else {
                    Body::Seen
                }
            }
            Body::Done => {
                received.done = true;
                return Ok(received);
            }
            Body::Look { .. } | Body::Seen | Body::Digest(_) | Body::Refused => Body::Refused,
        };
        offer.answer(&order, answer)?;
    }
    Ok(received)
}

/// Signals are noticed within this time; orders at once.
const LOOK_EVERY: Duration = Duration::from_millis(100);
