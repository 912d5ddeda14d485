//! The contract: bytes that clients in any language and the engine agree on. ABI 1.
//!
//! Everything here is a layout or a number; nothing here does anything. All integers are
//! little-endian and explicitly sized, reserved bytes are zero and checked, and nothing is ever
//! renumbered: `tests/abi.table` freezes every offset and constant, and the Rust, C, C++ and Python
//! clients are each held to it. The prose version is `docs/abi.md`.
//!
//! **Deliberately absent**: any knowledge of rings as moving things, of engines, or of sockets.

#![allow(
    missing_debug_implementations,
    unnameable_types,
    reason = "zerocopy's derives make helper types that have no name and no Debug"
)]

mod cards;
mod control;
mod cqe;
mod edges;
mod peers;
mod recorder;
mod segment;
mod sqe;
mod status;
mod table;
mod telemetry;
mod waits;

pub use cards::*;
pub use control::*;
pub use cqe::*;
pub use peers::*;
pub use recorder::*;
pub use segment::*;
pub use sqe::*;
pub use status::*;
pub use table::table;
pub use telemetry::*;
pub use waits::wait_name;

#[cfg(not(all(target_endian = "little", target_pointer_width = "64")))]
compile_error!("verbring's ABI is defined for little-endian 64-bit hosts");

/// First eight bytes of every ring segment: `VERBRING` read as a little-endian integer.
pub const MAGIC: u64 = u64::from_le_bytes(*b"VERBRING");
/// The ABI this crate speaks. It is not the crate's version.
pub const ABI_VERSION: u16 = 1;
/// Feature bits that HELLO may ask for: none is defined yet. Those of PROBE are `FEATURE_*`.
pub const FEATURES: u64 = 0;

/// Most bytes one op may move: 2^31 - 4096, so that `res` can always carry the count.
pub const OP_BYTES_MAX: u32 = (1 << 31) - 4096;
/// Most pages in the list of one WRITEV or READV.
pub const PAGES_MAX: u32 = 1024;
/// Smallest and largest number of SQ or CQ entries; counts are powers of two.
pub const ENTRIES_MIN: u32 = 2;
/// See [`ENTRIES_MIN`].
pub const ENTRIES_MAX: u32 = 32_768;
/// CQE times are in units of this many nanoseconds.
pub const CQE_TIME_UNIT_NS: u64 = 16;
/// Bytes in an export's secret.
pub const SECRET_BYTES: usize = 32;
/// Bytes in the name field of EXPORT and IMPORT; names are UTF-8, padded with zeros.
pub const NAME_BYTES: usize = 64;
/// Bytes in the URL field of CONNECT; URLs are UTF-8, padded with zeros.
pub const URL_BYTES: usize = 128;
