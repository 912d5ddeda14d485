//! Strangers, on one host: whatever a client says, sends, uses up or leaves unfinished, it gets a
//! clear refusal or loses its session, and everything else goes on.
//!
//! Claimed: no message, descriptor, hunger or departure of a client disturbs another one, stops the
//! engine, or stays behind when its session is over. Tried against an engine in this process, which
//! listens at a socket. Beside each attack a neighbour session completes at least 100,000 READs and
//! WRITEs whose bytes are compared; afterwards descriptors, mappings, threads, sessions, rings,
//! regions and ops in flight are what they were before; and the engine still shuts down in good
//! order. Each attack prints one line with its counts.
//!
//! `VERBRING_SEED=n` gives random attacks another stream.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "hostile numbers are cut on purpose, honest ones are small"
)]

mod chance;
mod neighbour;
mod raw;
mod stage;
mod tally;

mod departures;
mod descriptors;
mod messages;
mod quotas;
