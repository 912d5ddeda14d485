//! Worlds: engines, clients, queue pairs and controls in virtual time, with faults drawn from a
//! seed.
//!
//! A world drives the production core, the production fabric of queue pairs and the production
//! control of a rail, unchanged, over simulated cards and wires. It first lets everything go
//! wrong that its options allow; then it plants no more faults, and everything must come to its
//! end. Clients look at every CQE and every byte.
//!
//! What must hold: each SQE gets one final CQE; what a CQE says is true of the bytes; nothing is
//! touched after its CQE; atomics and notifications happen at most once, and as often as their
//! ends say; depth is never exceeded; at the end every credit, record, loan and queue pair is
//! back. A world in which something does not hold panics, and its seed is all that is needed to
//! see it again: the same seed gives the same trace.

#![allow(clippy::expect_used, reason = "a world stops at the first surprise")]

mod cable;
mod client;
mod counts;
mod draw;
mod failover;
mod faults;
mod ground;
mod loans;
mod node;
mod options;
#[cfg(test)]
mod tests;
mod world;

pub use counts::{Count, Counts, Kind};
pub use failover::{Failover, Phase, failover};

/// What came of a world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How often everything happened.
    pub counts: Counts,
    /// Of every CQE, in order: two runs of one seed have the same.
    pub trace: u64,
}

/// Runs the world of a seed.
///
/// # Panics
/// If something that must hold does not.
#[must_use]
pub fn run(seed: u64) -> Report {
    world::World::new(seed).run()
}
