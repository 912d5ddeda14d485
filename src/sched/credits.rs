//! The window: credits in ops and bytes for what is in flight on a device.
//!
//! A credit is a [`Grant`]: made by [`Window::take`], kept with the request, ended by
//! [`Window::give`]. It cannot be copied, so it cannot be given back twice.

use crate::abi::{WAIT_WINDOW_BYTES, WAIT_WINDOW_OPS};
use crate::plant::{Plant, planted};

/// Credits for one request.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "credits that are dropped are lost to the window"]
pub struct Grant {
    bytes: u32,
}

/// What may be in flight, and what is.
#[derive(Debug)]
pub struct Window {
    ops_max: u32,
    bytes_max: u64,
    ops: u32,
    bytes: u64,
}

impl Window {
    /// Makes an empty window; both limits are at least 1.
    #[must_use]
    pub fn new(ops_max: u32, bytes_max: u64) -> Self {
        assert!(ops_max > 0 && bytes_max > 0);
        Self { ops_max, bytes_max, ops: 0, bytes: 0 }
    }

    /// Takes credits for one request of `bytes`.
    ///
    /// A request larger than the whole window is let in alone: nothing is refused for its size.
    ///
    /// # Errors
    /// The `WAIT_*` reason: which credit is used up.
    #[inline]
    pub fn take(&mut self, bytes: u32) -> Result<Grant, u16> {
        self.admits(bytes)?;
        self.ops += 1;
        self.bytes += u64::from(bytes);
        Ok(Grant { bytes })
    }

    /// Says whether [`Window::take`] would have it.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn admits(&self, bytes: u32) -> Result<(), u16> {
        if self.ops == self.ops_max {
            return Err(WAIT_WINDOW_OPS);
        }
        if self.bytes + u64::from(bytes) > self.bytes_max && self.ops > 0 {
            return Err(WAIT_WINDOW_BYTES);
        }
        Ok(())
    }

    /// Gives a request's credits back.
    ///
    /// # Panics
    /// If more comes back than was taken: that is never clamped.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "a grant ends here")]
    pub fn give(&mut self, grant: Grant) {
        let Grant { bytes } = grant;
        assert!(self.ops > 0 && self.bytes >= u64::from(bytes), "gave back more than was taken");
        self.ops -= u32::from(!planted(Plant::GrantKept));
        self.bytes -= u64::from(bytes);
    }

    /// Requests in flight.
    pub fn ops(&self) -> u32 {
        self.ops
    }

    /// Bytes in flight.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_and_limits_hold_on_both_sides() {
        let mut window = Window::new(2, 100);
        let a = window.take(60).unwrap();
        assert_eq!(window.take(41).unwrap_err(), WAIT_WINDOW_BYTES);
        let b = window.take(40).unwrap();
        assert_eq!(window.take(0).unwrap_err(), WAIT_WINDOW_OPS);
        window.give(a);
        window.give(b);
        assert_eq!((window.ops(), window.bytes()), (0, 0));
    }

    #[test]
    fn what_exceeds_the_window_goes_alone() {
        let mut window = Window::new(4, 100);
        let small = window.take(1).unwrap();
        assert!(window.take(1000).is_err());
        window.give(small);
        let alone = window.take(1000).unwrap();
        assert!(window.take(0).is_err());
        window.give(alone);
    }

    #[cfg(not(verbring_loom))]
    proptest::proptest! {
        #![proptest_config(crate::seeds::property(500))]

        /// In whatever order credits come and go: the sums are those of the grants that are
        /// out, a refusal names what is used up, and an empty window refuses nothing.
        #[test]
        fn credits_are_conserved(
            ops_max in 1..6u32,
            bytes_max in 1..300u64,
            steps in proptest::collection::vec((proptest::bool::ANY, 0..400u32, 0..8usize), 1..200),
        ) {
            let mut window = Window::new(ops_max, bytes_max);
            let mut grants: Vec<Grant> = Vec::new();
            for (take, bytes, at) in steps {
                let out: u64 = grants.iter().map(|grant| u64::from(grant.bytes)).sum();
                let ops = u32::try_from(grants.len()).unwrap();
                proptest::prop_assert_eq!((window.ops(), window.bytes()), (ops, out));
                if take {
                    let fits = ops == 0 || out + u64::from(bytes) <= bytes_max;
                    let must = match (ops < ops_max, fits) {
                        (false, _) => Err(WAIT_WINDOW_OPS),
                        (true, false) => Err(WAIT_WINDOW_BYTES),
                        (true, true) => Ok(()),
                    };
                    let taken = window.take(bytes).map(|grant| grants.push(grant));
                    proptest::prop_assert_eq!(taken, must);
                } else if at < grants.len() {
                    window.give(grants.swap_remove(at));
                }
            }
            grants.drain(..).for_each(|grant| window.give(grant));
            proptest::prop_assert_eq!((window.ops(), window.bytes()), (0, 0));
        }
    }

    #[test]
    #[should_panic(expected = "more than was taken")]
    fn f33_over_release_is_caught() {
        let mut window = Window::new(4, 100);
        window.give(Grant { bytes: 1 });
    }
}
