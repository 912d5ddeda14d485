//! A histogram as its readers see it: how many times fell into each bucket, and what follows from
//! that.
//!
//! Buckets are an eighth of an octave wide in this version, so that a percentile is at most that
//! much above the time that an exact one would be.

use crate::abi::{HISTOGRAM_BUCKETS, HISTOGRAM_STEPS, HISTOGRAM_UNIT_NS, bucket_bounds_ns};

/// How many times fell into each bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    unit_ns: u32,
    steps: u32,
}

impl Histogram {
    /// A histogram of these counts, whose buckets are as a page's header says.
    #[must_use]
    pub fn new(counts: Vec<u64>, unit_ns: u32, steps: u32) -> Self {
        Self { counts, unit_ns, steps }
    }

    /// An empty one, as this version makes them.
    #[must_use]
    pub fn empty() -> Self {
        let counts = vec![0; HISTOGRAM_BUCKETS as usize];
        Self::new(counts, HISTOGRAM_UNIT_NS, HISTOGRAM_STEPS)
    }

    /// Returns how many times it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Returns the count of each bucket.
    #[must_use]
    pub fn buckets(&self) -> &[u64] {
        &self.counts
    }

    /// Returns the first nanosecond of a bucket, and of the one behind it.
    #[must_use]
    pub fn bounds_ns(&self, bucket: u32) -> [u64; 2] {
        bucket_bounds_ns(bucket, self.unit_ns, self.steps)
    }

    /// Returns the longest time of the bucket that this many thousandths of all times do not
    /// exceed (500 for p50, 999 for p99.9), in nanoseconds; `None` if it is empty.
    #[must_use]
    pub fn at_thousandths(&self, thousandths: u32) -> Option<u64> {
        let count = self.count();
        // The rank of that time among all, from 1.
        let rank = (u128::from(count) * u128::from(thousandths.min(1_000))).div_ceil(1_000);
        let rank = u64::try_from(rank).unwrap_or(u64::MAX).max(1);
        let mut below = 0_u64;
        for (bucket, count) in (0..).zip(&self.counts) {
            below = below.saturating_add(*count);
            if below >= rank {
                return Some(self.bounds_ns(bucket)[1].saturating_sub(1));
            }
        }
        None
    }

    /// Returns what has come since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let both = self.counts.iter().zip(&earlier.counts);
        let counts = both.map(|(now, then)| now.saturating_sub(*then)).collect();
        Self { counts, ..*self }
    }

    /// Adds another one, of the same buckets.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum = sum.saturating_add(*count);
        }
    }
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::abi::bucket_of;
    use crate::seeds::property;

    fn of(times_ns: &[u64]) -> Histogram {
        let mut histogram = Histogram::empty();
        for time_ns in times_ns {
            histogram.counts[bucket_of(*time_ns) as usize] += 1;
        }
        histogram
    }

    /// Times of all magnitudes, as `mantissa << shift`.
    fn times() -> impl Strategy<Value = Vec<u64>> {
        proptest::collection::vec((1..1_u64 << 12, 0..24_u32), 1..400)
            .prop_map(|times| times.into_iter().map(|(ns, shift)| ns << shift).collect())
    }

    proptest! {
        #![proptest_config(property(300))]

        /// The model: all times, sorted. What the histogram says is never below the exact
        /// percentile, and at most a bucket above it.
        #[test]
        fn percentiles_are_exact_up_to_a_bucket(mut times_ns in times()) {
            let histogram = of(&times_ns);
            times_ns.sort_unstable();
            prop_assert_eq!(histogram.count(), times_ns.len() as u64);
            for thousandths in [0, 1, 500, 900, 990, 999, 1_000] {
                let rank = (times_ns.len() * thousandths as usize).div_ceil(1_000).max(1);
                let exact = times_ns[rank - 1];
                let told = histogram.at_thousandths(thousandths).unwrap();
                let most = exact + (exact / 8).max(u64::from(HISTOGRAM_UNIT_NS) - 1);
                prop_assert!((exact..=most).contains(&told), "{} for {}", told, exact);
            }
        }

        #[test]
        fn what_came_since_is_what_was_added(before in times(), more in times()) {
            let mut sum = of(&before);
            sum.add(&of(&more));
            prop_assert_eq!(sum.since(&of(&before)), of(&more));
        }
    }

    #[test]
    fn an_empty_one_has_no_percentiles() {
        assert_eq!(Histogram::empty().at_thousandths(500), None);
        assert_eq!(of(&[40]).at_thousandths(0), Some(47));
        assert_eq!(of(&[u64::MAX]).at_thousandths(1_000), Some((1 << 36) - 1));
    }
}
