//! io_uring for RDMA: 64-byte entries in a shared-memory ring, scheduled by an engine.
//!
//! # Quick start
//!
//! ```
//! use verbring::{Engine, Rights, RingOptions, Write};
//!
//! let engine = Engine::builder().spawn()?; // or `Session::connect("/run/verbring.sock")`
//! let session = engine.connect()?;
//! let region = session.alloc(64 << 10)?;
//! let secret = region.export("quick-start", Rights::WRITE)?;
//! let import = session.import("quick-start", None, &secret)?;
//!
//! let mut ring = session.ring(RingOptions::default())?;
//! let mut lease = region.lend(0..5)?;
//! lease.write(0, b"hello");
//! ring.push(Write::new(lease, import.at(4096)))?;
//! ring.submit_and_wait(1, None)?;
//! assert_eq!(ring.reap()?.ok_or("no completion")?.result?, 5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The model
//!
//! 1. An [`Engine`] runs in this process or in a daemon (`verbring serve`).
//! 2. A [`Session`] attaches a process to it. What it may use is limited by its uid's quota.
//! 3. A [`Region`] is memory that both sides have mapped and sealed; it is named by id and offset.
//! 4. An export offers a region under a name, with [`Rights`] and a [`Secret`].
//! 5. An [`Import`] is a region of another session, as far as its rights go; a [`Peer`] is another
//!    engine, of this host or another, whose sessions' regions are imported through it and reached
//!    by RDMA.
//! 6. A [`Ring`] carries ops from one thread: it is `Send`, not `Sync`.
//! 7. A [`Lease`] lends a range of a region to an op and comes back in its [`Completion`].
//! 8. An op has a class; more urgent ones go first. Without edges nothing is ordered.
//! 9. Every op ends in one final completion, with its ledger record's id, or in a verdict if the
//!    engine dies.
//! 10. The engine sleeps when nothing is to be done, and so can you: [`Ring::wait`], or your own
//!     reactor on the ring's bell.
//!
//! # Features
//!
//! `cli` (default): the `verbring` command. Library users turn default features off.
//!
//! `ibverbs`: libibverbs through the crates `ibverbs` and `ibverbs-sys`, linked instead of loaded
//! at run time. It takes cmake, pkg-config, libclang and the headers of libnl and libibverbs.
//!
//! `net`: engines of other hosts, by TCP and a pre-shared key (`listen`, `verbring://host:port`).
//!
//! `sim`: a simulated queue pair provider, worlds of engines over it, and the tests that every
//! fabric must pass. For `verbring sim`, and for those who write a fabric or a provider.
//!
//! # Platforms
//!
//! Linux 5.14 or newer, little-endian, 64-bit.

pub mod abi;
#[cfg(not(verbring_loom))]
pub mod client;
#[cfg(not(verbring_loom))]
mod clock;
#[cfg(not(verbring_loom))]
pub mod control;
pub mod edges;
pub mod engine;
pub mod fabric;
pub mod fold;
#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(not(verbring_loom))]
pub mod gate;
#[cfg(not(verbring_loom))]
pub mod host;
pub mod ids;
pub mod ledger;
mod plant;
#[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
mod random;
pub mod ring;
pub mod sched;
#[cfg(all(test, not(verbring_loom)))]
mod seeds;
#[cfg(not(verbring_loom))]
pub mod shm;
#[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
pub mod sim;
mod sync;
pub mod telemetry;
#[cfg(test)]
mod tidy;

#[cfg(not(verbring_loom))]
pub use client::{
    Arm, Cancel, CmpSwap, Completion, FetchAdd, Flush, Import, Join, Lease, Nop, PagePair, Peer,
    RawRing, Read, Readv, Region, Rights, Ring, RingOptions, Secret, Session, Ticket, Write,
    Writev,
};
#[cfg(not(verbring_loom))]
pub use host::Engine;

/// The README's Rust examples, as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
