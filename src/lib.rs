//! io_uring for RDMA.

pub mod abi;
pub mod ids;
pub mod ring;
mod sync;
