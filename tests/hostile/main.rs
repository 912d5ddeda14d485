//! Hostile clients, on one host: whatever one does, it gets a clear refusal or loses one ring, and
//! everything else goes on.
//!
//! Claimed: no entry, cursor, message, descriptor or departure of a client disturbs another one,
//! stops the engine, or stays behind when its session is over. Tried against an engine in this
//! process, which listens at a socket. Beside each attack a neighbour session completes at least
//! 100,000 READs and WRITEs whose bytes are compared; afterwards descriptors, mappings, threads,
//! sessions, rings, regions and ops in flight are what they were before; and the engine still
//! shuts down in good order. Each attack prints one line with its counts.
//!
//! Attackers speak the protocol by hand (`raw`), so that nothing of the client's care is in their
//! way. `VERBRING_SEED=n` gives random attacks another stream.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "hostile numbers are cut on purpose, honest ones are small"
)]

mod chance;
mod neighbour;
mod processes;
mod raw;
mod slow;
mod stage;
mod tally;

mod bells;
mod changed;
mod cursors;
mod descriptors;
mod entries;
mod floods;
mod gate;
mod ids;
mod kept_socket;
mod leaving;
mod lists;
mod memfds;
mod messages;
mod offsets;
mod quotas;
mod races;
mod secrets;
mod starved;
mod uids;
mod under_load;
mod unread;
