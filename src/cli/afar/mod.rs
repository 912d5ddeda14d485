//! What `demo` and `bench` share where their other end is on another host.
//!
//! The two ends have nothing between them but the ring, so the region that one of them offers has
//! a mailbox at its end, and what else is to be said is said there:
//!
//! ```text
//!   near end                          the region that the far end offers
//!                                +---------------------------+--------+--------+
//!   WRITE, READ ---------------> | what is offered           | order  | answer |
//!   WRITE, with a notification --|---------------------------|--> ^   |        |
//!   READ, until it is there -----|---------------------------|--------|--> ^   |
//!                                +---------------------------+--------+--------+
//! ```
//!
//! **Invariants**: what is in a mailbox is hostile until it was parsed, at both ends; nothing
//! waits for the other end without a bound, but for the offer, which waits for a signal, too.
//! **Tests**: letters here, both ends together through an engine's local fabric.

mod letter;
mod mailbox;
mod offer;
mod source;

pub(crate) use letter::Body;
pub(crate) use mailbox::Mailbox;
pub(crate) use offer::{Offer, stop_signal};
pub(crate) use source::FarArgs;

use std::path::Path;

use verbring::abi::FABRIC_VERBS;
use verbring::{Import, Secret, Session};

use crate::cli::Failure;

/// Attaches to the engine here, which must use a card: nothing else leads to another host.
pub(crate) fn attach(socket: &Path) -> Result<Session, Failure> {
    let session = Session::connect(socket).map_err(|error| Failure::of("cannot attach", &error))?;
    let probe = session.probe().map_err(|error| Failure::of("no answer", &error))?;
    if probe.uses(FABRIC_VERBS) {
        return Ok(session);
    }
    Err(Failure::Failed(format!(
        "--socket is {}, whose engine does not use verbs, and nothing else reaches another host: \
         verbring devices --why tells what is in the way; then verbring serve --verbs require",
        socket.display()
    )))
}

/// Connects to the engine at `url`, over queue pairs, and takes up what is offered there.
pub(crate) fn import(
    session: &Session,
    url: &str,
    name: &str,
    uid: Option<u32>,
    secret: &Secret,
) -> Result<Import, Failure> {
    let peer = session
        .connect_peer_over(url, FABRIC_VERBS)
        .map_err(|error| Failure::of(format!("--peer is {url}, which is not reached"), &error))?;
    peer.import(name, uid, secret).map_err(|error| {
        let attempt = format!("cannot take up what is offered at {url} under the name {name:?}");
        Failure::of(attempt, &error)
    })
}
