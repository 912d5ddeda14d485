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
//! ends say; depth is never exceeded; what is held is what is in flight; at the end nothing is.
//! Each has a file of its own in `check`, and [`Invariant`] lists them. A world in which one does
//! not hold ends with [`Broken`], whose seed is all that is needed to see it again: the same seed
//! gives the same trace. That the checkers see what they are there for is shown by faults planted
//! in the core itself: [`Plant`].

#![allow(clippy::expect_used, reason = "a world stops at the first surprise")]

mod cable;
mod check;
mod client;
mod counts;
mod draw;
#[cfg(test)]
mod eager;
mod failover;
mod faults;
mod ground;
mod idle;
mod joined;
mod lives;
mod loans;
mod node;
mod options;
mod plants;
#[cfg(test)]
mod spread;
#[cfg(test)]
mod tests;
mod twins;
mod world;

pub use check::{Broken, Invariant};
pub use counts::{Count, Counts, Kind};
pub use failover::{Failover, Phase, failover};
pub use idle::{Asked, Idle};
pub use options::ENGINES_MAX;

pub use crate::plant::Plant;

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
/// # Errors
/// [`Broken`] if something that must hold does not.
///
/// # Examples
/// The same seed is the same world, and something went wrong in it that did no harm:
/// ```
/// use verbring::sim::{Count, run};
///
/// let report = run(7)?;
/// assert_eq!(report.trace, run(7)?.trace);
/// assert!(report.counts.of(Count::Ops) > 0);
/// # Ok::<(), verbring::sim::Broken>(())
/// ```
pub fn run(seed: u64) -> Result<Report, Broken> {
    check::watch((seed, None, None), || world::World::new(seed, None).run())
}

/// Runs a seed's world of so many engines, 2 to [`ENGINES_MAX`], all joined to all. Some of them
/// die and come back.
///
/// # Errors
/// [`Broken`] if something that must hold does not.
///
/// # Panics
/// If there are too many engines, or too few.
pub fn run_crowd(seed: u64, engines: u16) -> Result<Report, Broken> {
    assert!((2..=ENGINES_MAX).contains(&engines), "{engines} engines, not 2 to {ENGINES_MAX}");
    let engines = Some(engines);
    check::watch((seed, engines, None), || world::World::new(seed, engines).run())
}

/// Runs the world of a seed with a fault planted in the core, which it should find.
///
/// # Errors
/// [`Broken`] if something that must hold does not.
///
/// # Panics
/// If this build cannot be planted in: see [`Plant::possible`].
pub fn run_planted(seed: u64, plant: Plant) -> Result<Report, Broken> {
    assert!(Plant::possible(), "nothing can be planted in this build: {}", plant.how());
    #[cfg(verbring_plant)]
    crate::plant::set(Some(plant));
    let result = check::watch((seed, None, Some(plant)), || world::World::new(seed, None).run());
    #[cfg(verbring_plant)]
    crate::plant::set(None);
    result
}
