//! How long an op can wait at most, from what is in flight and what its class is sure to get.
//!
//! An op that is next of its class waits for four things, one after the other:
//!
//! ```text
//!   what the window holds already     window bytes / rate + window WRs * time of a WR
//! + what is past taking back          one slice on each rail
//! + other classes that are due        by mode, see `before_ns`
//! + its own class ahead of it         ahead bytes / (rate * share of its class)
//! ```
//!
//! All are bounds from above: a window is taken as full both in bytes and in WRs, and classes as
//! busy that may have nothing to do. The time before intake is not in it, nor is the op's own.
//!
//! **Deliberately absent**: measuring. Rates come from whoever asks.

use super::policy::{Mode, Policy};
use crate::abi::Class;

/// A device, as bounds see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Bytes that may be in flight on it.
    pub window_bytes: u64,
    /// Work requests that may be in flight on it.
    pub window_wrs: u32,
    /// Bytes of the largest slice.
    pub slice_bytes: u32,
    /// Rails over which it is reached; 1 for this host's own.
    pub rails: u32,
    /// Bytes a second that it moves under load; not 0.
    pub bytes_per_s: u64,
    /// Nanoseconds that a work request costs beside its bytes.
    pub wr_ns: u64,
}

impl Device {
    /// Nanoseconds that so many bytes in so many work requests take.
    #[must_use]
    pub fn time_ns(&self, bytes: u64, wrs: u64) -> u64 {
        let moving = u128::from(bytes) * NS_PER_S;
        let moving = moving.div_ceil(u128::from(self.bytes_per_s.max(1)));
        let asking = u128::from(wrs) * u128::from(self.wr_ns);
        u64::try_from(moving + asking).unwrap_or(u64::MAX)
    }

    /// Nanoseconds until a full window is empty.
    #[must_use]
    pub fn window_ns(&self) -> u64 {
        self.time_ns(self.window_bytes, self.window_wrs.into())
    }

    /// Nanoseconds of one slice on each rail.
    #[must_use]
    pub fn slices_ns(&self) -> u64 {
        let rails = u64::from(self.rails.max(1));
        self.time_ns(rails * u64::from(self.slice_bytes), rails)
    }

    /// The worst wait of an op, from intake until the device begins with it, when `ahead_bytes` of
    /// its own class go first. `None`: no bound but all that was taken before it.
    ///
    /// A rate of 0 is taken for 1, and sums saturate.
    #[must_use]
    pub fn worst_wait_ns(&self, policy: &Policy, class: Class, ahead_bytes: u64) -> Option<u64> {
        let due = self.before_ns(policy, class)?;
        let own = self.own_ns(policy, class, ahead_bytes)?;
        let held = self.window_ns().saturating_add(self.slices_ns());
        Some(held.saturating_add(due).saturating_add(own))
    }

    /// What other classes may still be given before an op that is next of its class.
    ///
    /// * Weighted: a class that was just served leads by its last slice over its weight; the
    ///   others may catch up with that, in WRs as small as they like, and go beyond by one slice
    ///   each.
    /// * Strict, high: one slice each that medium and low are owed.
    /// * Strict, medium and low: the debt it begins with, and that of its last slice, are paid
    ///   off by its share of what others are served; then one slice each that others are owed.
    #[must_use]
    pub fn before_ns(&self, policy: &Policy, class: Class) -> Option<u64> {
        let slice = u64::from(self.slice_bytes.max(policy.floor_bytes));
        let others = Class::ALL.len() as u64 - 1;
        let one_each = self.time_ns(u64::from(self.slice_bytes) * others, others);
        let at = place(class);
        match policy.mode {
            Mode::Weighted => {
                let (own, all) = weights(policy, at);
                let catching_up = slice.saturating_mul(all - own).div_ceil(own);
                Some(self.charged_ns(policy, catching_up).saturating_add(one_each))
            }
            Mode::Strict if class == Class::High => Some(one_each),
            Mode::Strict => {
                let share = u64::from(policy.min_share[at]);
                if share == 0 {
                    return None;
                }
                let last = slice.saturating_mul(1_000).div_ceil(share);
                let debt = self.window_bytes.max(last);
                Some(self.charged_ns(policy, debt).saturating_add(one_each))
            }
            Mode::Fifo | Mode::Tent | Mode::Direct => None,
        }
    }

    /// What its own class has before it, at the share of its class.
    fn own_ns(&self, policy: &Policy, class: Class, ahead_bytes: u64) -> Option<u64> {
        let (share, of) = least_share(policy, class)?;
        let stretched = u128::from(ahead_bytes) * u128::from(of);
        let stretched = stretched.div_ceil(u128::from(share));
        Some(self.charged_ns(policy, u64::try_from(stretched).unwrap_or(u64::MAX)))
    }

    /// Time of what was charged as so many bytes: as many WRs as the floor makes of them.
    fn charged_ns(&self, policy: &Policy, bytes: u64) -> u64 {
        self.time_ns(bytes, bytes.div_ceil(u64::from(policy.floor_bytes.max(1))))
    }
}

/// What a class gets at the least of what is moved, while all classes have work: so many parts of
/// so many. `None` if that may be nothing, or depends on who comes first.
#[must_use]
pub fn least_share(policy: &Policy, class: Class) -> Option<(u64, u64)> {
    let at = place(class);
    match policy.mode {
        Mode::Weighted => Some(weights(policy, at)),
        Mode::Strict if class == Class::High => {
            let others: u64 = policy.min_share[1..].iter().map(|share| u64::from(*share)).sum();
            Some((1_000_u64.saturating_sub(others).max(1), 1_000))
        }
        Mode::Strict => match policy.min_share[at] {
            0 => None,
            share => Some((share.into(), 1_000)),
        },
        Mode::Fifo | Mode::Tent | Mode::Direct => None,
    }
}

/// A class's weight, and that of all.
fn weights(policy: &Policy, at: usize) -> (u64, u64) {
    let all = policy.weights.iter().map(|weight| u64::from(*weight).max(1)).sum();
    (u64::from(policy.weights[at]).max(1), all)
}

fn place(class: Class) -> usize {
    class as usize - 1
}

const NS_PER_S: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// A gigabyte a second makes a byte a nanosecond.
    const DEVICE: Device = Device {
        window_bytes: 256_000,
        window_wrs: 64,
        slice_bytes: 128_000,
        rails: 1,
        bytes_per_s: 1_000_000_000,
        wr_ns: 100,
    };

    fn policy(mode: Mode) -> Policy {
        Policy { mode, floor_bytes: 1_000, ..Policy::DEFAULT }
    }

    fn worst(device: Device, mode: Mode, class: Class) -> Option<u64> {
        device.worst_wait_ns(&policy(mode), class, 0)
    }

    #[test]
    fn a_high_op_waits_for_the_window_and_a_slice_a_rail() {
        assert_eq!(DEVICE.window_ns(), 256_000 + 64 * 100);
        assert_eq!(DEVICE.slices_ns(), 128_000 + 100);
        let two = Device { rails: 2, ..DEVICE };
        assert_eq!(two.slices_ns(), 2 * DEVICE.slices_ns());
        // Strict, and nobody owed anything but a slice each.
        let held = DEVICE.window_ns() + DEVICE.slices_ns();
        let each = 2 * DEVICE.slices_ns();
        assert_eq!(worst(DEVICE, Mode::Strict, Class::High), Some(held + each));
        // Weighted: three quarters of a slice for the others to catch up, in WRs of 1,000 bytes.
        let due = 96_000 + 96 * 100;
        assert_eq!(worst(DEVICE, Mode::Weighted, Class::High), Some(held + due + each));
    }

    #[test]
    fn less_urgent_classes_wait_by_their_shares() {
        let held = DEVICE.window_ns() + 3 * DEVICE.slices_ns();
        let due = 6 * 128_000;
        assert_eq!(worst(DEVICE, Mode::Weighted, Class::Low), Some(held + due + due / 10));
        // A hundredth: the others get a hundred slices' bytes meanwhile.
        let due = 100 * 128_000;
        assert_eq!(worst(DEVICE, Mode::Strict, Class::Low), Some(held + due + due / 10));
        let ahead = 7_000;
        let all = DEVICE.worst_wait_ns(&policy(Mode::Weighted), Class::Low, ahead);
        let more = 7 * ahead;
        assert_eq!(all, worst(DEVICE, Mode::Weighted, Class::Low).map(|it| it + more + more / 10));
    }

    #[test]
    fn where_nothing_is_sure_there_is_no_bound() {
        for mode in [Mode::Fifo, Mode::Tent, Mode::Direct] {
            assert!(Class::ALL.iter().all(|class| worst(DEVICE, mode, *class).is_none()));
        }
        let alone = Policy { floor_bytes: 1_000, ..Policy::STRICT };
        assert!(DEVICE.worst_wait_ns(&alone, Class::High, 0).is_some());
        assert_eq!(DEVICE.worst_wait_ns(&alone, Class::Low, 0), None);
        assert_eq!(least_share(&alone, Class::High), Some((1_000, 1_000)));
    }

    #[test]
    fn extremes_saturate() {
        let most = Device {
            window_bytes: u64::MAX,
            window_wrs: u32::MAX,
            slice_bytes: u32::MAX,
            rails: u32::MAX,
            bytes_per_s: 0,
            wr_ns: u64::MAX,
        };
        assert_eq!(worst(most, Mode::Weighted, Class::Low), Some(u64::MAX));
        assert_eq!(most.worst_wait_ns(&policy(Mode::Strict), Class::Low, u64::MAX), Some(u64::MAX));
        let free = Device { window_bytes: 0, window_wrs: 0, slice_bytes: 0, wr_ns: 0, ..DEVICE };
        let policy = Policy { floor_bytes: 0, ..policy(Mode::Weighted) };
        assert_eq!(free.worst_wait_ns(&policy, Class::High, 0), Some(0));
    }

    /// More of anything that is in the way, or less rate, never makes a bound smaller.
    #[test]
    fn bounds_grow_with_what_is_in_the_way() {
        for mode in [Mode::Weighted, Mode::Strict] {
            for class in Class::ALL {
                let base = worst(DEVICE, mode, class).unwrap();
                for more in [
                    Device { window_bytes: 300_000, ..DEVICE },
                    Device { window_wrs: 65, ..DEVICE },
                    Device { slice_bytes: 129_000, ..DEVICE },
                    Device { rails: 2, ..DEVICE },
                    Device { bytes_per_s: 900_000_000, ..DEVICE },
                    Device { wr_ns: 101, ..DEVICE },
                ] {
                    assert!(worst(more, mode, class).unwrap() > base, "{mode} {class:?} {more:?}");
                }
            }
        }
    }
}
