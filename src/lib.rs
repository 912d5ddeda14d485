//! io_uring for RDMA.

pub mod abi;
#[cfg(not(verbring_loom))]
pub mod control;
#[cfg(not(verbring_loom))]
pub mod host;
pub mod ids;
pub mod ring;
#[cfg(not(verbring_loom))]
pub mod shm;
mod sync;
