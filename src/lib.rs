//! io_uring for RDMA.

pub mod abi;
#[cfg(not(verbring_loom))]
pub mod client;
#[cfg(not(verbring_loom))]
mod clock;
#[cfg(not(verbring_loom))]
pub mod control;
pub mod engine;
pub mod fabric;
#[cfg(not(verbring_loom))]
pub mod host;
pub mod ids;
pub mod ledger;
pub mod ring;
pub mod sched;
#[cfg(all(test, not(verbring_loom)))]
mod seeds;
#[cfg(not(verbring_loom))]
pub mod shm;
mod sync;
#[cfg(test)]
mod tidy;

#[cfg(not(verbring_loom))]
pub use client::{
    Arm, Cancel, CmpSwap, Completion, FetchAdd, Flush, Import, Lease, Nop, PagePair, RawRing, Read,
    Readv, Region, Rights, Ring, RingOptions, Secret, Session, Ticket, Write, Writev,
};
#[cfg(not(verbring_loom))]
pub use host::Engine;
