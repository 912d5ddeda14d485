//! How an engine shares its devices among those who want them: plain values, set once.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Which op goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Classes share bytes by weight, and users, sessions and peers of a class share evenly.
    #[default]
    Weighted,
    /// The most urgent class that has work goes first; within a class as in `Weighted`.
    Strict,
    /// First come, first served, whatever the class; the windows hold.
    Fifo,
    /// Byte deficits over a window of whole ops, as in Mooncake's TENT (pull request 2655, July
    /// 2026), with what is wrong in it: for comparison.
    Tent,
    /// No scheduling: all goes to the device as it comes, as far as that holds it.
    Direct,
}

impl Mode {
    /// All modes, the default first.
    pub const ALL: [Self; 5] = [Self::Weighted, Self::Strict, Self::Fifo, Self::Tent, Self::Direct];

    /// Its name in settings and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weighted => "weighted",
            Self::Strict => "strict",
            Self::Fifo => "fifo",
            Self::Tent => "tent",
            Self::Direct => "direct",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not weighted, strict, fifo, tent or direct")]
pub struct NoMode;

impl FromStr for Mode {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<Self, NoMode> {
        Self::ALL.into_iter().find(|mode| mode.name() == text).ok_or(NoMode)
    }
}

/// What may be in flight at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Ops of which something is in flight.
    pub ops: u32,
    /// Work requests: slices and pages.
    pub wrs: u32,
    /// Bytes.
    pub bytes: u64,
}

impl Bounds {
    /// No bound.
    pub const NONE: Self = Self { ops: u32::MAX, wrs: u32::MAX, bytes: u64::MAX };
}

/// How an engine shares its devices, beside the windows themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which op goes next.
    pub mode: Mode,
    /// `Weighted`: shares of high, medium and low in bytes; each 1 to 64.
    pub weights: [u8; 3],
    /// A work request counts as at least so many bytes.
    pub floor_bytes: u32,
    /// `Strict`: what high, medium and low get at the least of what is moved while they have work,
    /// in thousandths; together at most 500. The most urgent class needs none.
    pub min_share: [u16; 3],
    /// Nanoseconds after which a queued op of class medium, and of class low, counts as high; 0 for
    /// never.
    pub aging_ns: [u64; 2],
    /// Ops in flight on this host's own device; its work requests and bytes are the engine's
    /// `window_wrs` and `window_bytes`.
    pub window_ops: u32,
    /// What may be in flight on one card, over all its rails.
    pub card: Bounds,
    /// What may be in flight towards one peer.
    pub peer: Bounds,
    /// Part of a device's window that is kept for internal work.
    pub reserve_ops: u32,
    /// As `reserve_ops`, in bytes.
    pub reserve_bytes: u64,
    /// Nanoseconds that one slice of a large op is to take at the measured rate; 0 lets slices have
    /// their full size always.
    pub slice_ns: u64,
    /// Ops that ask for it are folded.
    pub coalesce: bool,
    /// Makes the places of ops in the index that finds what may be folded hard to foretell.
    pub coalesce_key: u64,
}

impl Policy {
    /// Weighted 4:2:1, without any bound of its own.
    pub const DEFAULT: Self = Self {
        mode: Mode::Weighted,
        weights: [4, 2, 1],
        floor_bytes: 512,
        min_share: [0, 10, 10],
        aging_ns: [0; 2],
        window_ops: u32::MAX,
        card: Bounds::NONE,
        peer: Bounds::NONE,
        reserve_ops: 0,
        reserve_bytes: 0,
        slice_ns: 0,
        coalesce: true,
        coalesce_key: 0,
    };

    /// The most urgent class always goes first, and nothing else is looked at.
    pub const STRICT: Self = Self { mode: Mode::Strict, min_share: [0; 3], ..Self::DEFAULT };
}

/// What one uid may have of an engine, over all its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contract {
    /// Ops in flight.
    pub ops_max: u32,
    /// Bytes that ops in flight ask for. One op may ask for more than that, alone.
    pub bytes_max: u64,
    /// Bytes of class high that are posted at once. One request may have more, alone.
    pub high_bytes_max: u64,
    /// Edges of ops that wait.
    pub edges_max: u32,
    /// Its share beside other uids in the same lane; 1 to 64.
    pub weight: u8,
    /// Its most urgent class.
    pub ceiling: crate::abi::Class,
}

impl Contract {
    /// So many ops in flight, and no other bound.
    #[must_use]
    pub fn of_ops(ops_max: u32) -> Self {
        Self {
            ops_max,
            bytes_max: u64::MAX,
            high_bytes_max: u64::MAX,
            edges_max: u32::MAX,
            weight: 1,
            ceiling: crate::abi::Class::High,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_shown() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("Weighted".parse::<Mode>(), Err(NoMode));
    }
}
