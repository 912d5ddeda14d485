//! What moves bytes. One request in, one completion out.
//!
//! The engine posts requests and polls completions; it does not know whether a card, a copy loop
//! or a simulated world is behind them. Neither call blocks or reads a clock.

#[cfg(not(verbring_loom))]
mod local;
#[cfg(not(verbring_loom))]
pub mod qp;

#[cfg(not(verbring_loom))]
pub use local::Local;

use crate::abi::Page;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Local to remote.
    Write,
    /// Remote to local.
    Read,
    /// Adds `arg[0]` to a remote u64, old value to local.
    FetchAdd,
    /// Replaces a remote u64 by `arg[1]` if it is `arg[0]`, old value to local.
    CmpSwap,
}

/// One work request. Ranges and rights were checked by the engine; a fabric checks again what its
/// own safety rests on.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Comes back in the completion; no two requests have the same.
    pub ticket: u64,
    /// What to do.
    pub verb: Verb,
    /// Index of the local region.
    pub local: u32,
    /// Index of the remote region.
    pub remote: u32,
    /// Byte offset into the local region.
    pub local_offset: u64,
    /// Byte offset into the remote region.
    pub remote_offset: u64,
    /// Bytes to move.
    pub bytes: u32,
    /// Operands of atomics.
    pub arg: [u64; 2],
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The request's ticket.
    pub ticket: u64,
    /// 0, or a positive errno.
    pub errno: i32,
}

/// What a fabric can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests it holds at once.
    pub depth: u32,
    /// `FABRIC_*`, as in a CQE's detail.
    pub fabric: u8,
}

/// Moves bytes between regions.
pub trait Fabric {
    /// What a region is to this fabric.
    type Memory;

    /// What it can take. Constant.
    fn limits(&self) -> Limits;

    /// Makes a region known under an index that is not in use.
    fn attach(&mut self, region: u32, memory: Self::Memory);

    /// Forgets a region that no request names any more, and hands its memory back.
    fn detach(&mut self, region: u32) -> Option<Self::Memory>;

    /// Copies a page list out of a region, once; false if the range does not lie inside.
    fn read_pages(&self, region: u32, offset: u64, pages: &mut [Page]) -> bool;

    /// Takes a prefix of `batch`, in order, and returns its length.
    fn post(&mut self, batch: &[Request]) -> usize;

    /// Works for a bounded time and appends completions, never beyond `done`'s capacity.
    fn poll(&mut self, now_ns: u64, done: &mut Vec<Done>);
}
