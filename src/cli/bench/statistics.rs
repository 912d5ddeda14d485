//! What slices say: medians, spread, and how sure a ratio is.
//!
//! Two contestants are compared by pairs of neighbouring slices, so that what the machine does to
//! both is no part of the ratio. The interval is a bootstrap's: rounds are drawn again with
//! replacement, many times, and the middle 95 % of the ratios so found are the interval. It asks
//! nothing of how slices are distributed.

/// The value below which this share of the samples lies, between neighbours by proportion.
/// Zero for no samples.
pub(super) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_of_sorted(&sorted, share)
}

/// The middle of the samples.
pub(super) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// From the 10th to the 90th percentile, as a part of the median.
pub(super) fn spread(samples: &[f64]) -> f64 {
    let middle = median(samples);
    if middle == 0.0 { 0.0 } else { (quantile(samples, 0.9) - quantile(samples, 0.1)) / middle }
}

/// A ratio and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio {
    pub(super) middle: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Ratio {
    /// Of paired samples: the median of the pairs' ratios. `None` for no pairs.
    pub(super) fn of_pairs(numerators: &[f64], denominators: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = numerators
            .iter()
            .zip(denominators)
            .filter(|(_, denominator)| **denominator > 0.0)
            .map(|(numerator, denominator)| numerator / denominator)
            .collect();
        if ratios.is_empty() {
            return None;
        }
        let mut draws = Draws(0x9e37_79b9_7f4a_7c15);
        let mut drawn = vec![0.0; ratios.len()];
        let medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                for slot in &mut drawn {
                    *slot = ratios[draws.below(ratios.len())];
                }
                median(&drawn)
            })
            .collect();
        let [low, high] = [0.025, 0.975].map(|share| quantile(&medians, share));
        Some(Self { middle: median(&ratios), low, high })
    }
}

fn quantile_of_sorted(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    #[expect(clippy::cast_precision_loss, reason = "samples are counted in thousands")]
    let at = share * last as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to last")]
    let below = at.floor() as usize;
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    low + (high - low) * at.fract()
}

/// Numbers that look random and are the same in every run (xorshift).
struct Draws(u64);

impl Draws {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap_or(0)
    }
}

/// Enough for ends of an interval that stay where they are.
const RESAMPLES: usize = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_known_samples() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(median(&samples), 3.0);
        assert_eq!((quantile(&samples, 0.0), quantile(&samples, 1.0)), (1.0, 5.0));
        assert_eq!(quantile(&samples, 0.25), 2.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert_eq!((median(&[]), spread(&[]), spread(&[0.0])), (0.0, 0.0, 0.0));
        // Eleven samples from 0 to 10: the 10th percentile is 1, the 90th is 9.
        let eleven: Vec<f64> = (0..=10).map(f64::from).collect();
        assert_eq!(spread(&eleven), (9.0 - 1.0) / 5.0);
    }

    #[test]
    fn a_constant_ratio_is_sure() {
        let ratio = Ratio::of_pairs(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0]).unwrap();
        assert_eq!(ratio, Ratio { middle: 2.0, low: 2.0, high: 2.0 });
        assert_eq!(Ratio::of_pairs(&[], &[]), None);
        assert_eq!(Ratio::of_pairs(&[1.0], &[0.0]), None);
    }

    /// What both slices of a pair share is no part of the ratio, however large it is.
    #[test]
    fn what_a_pair_shares_cancels() {
        let noise = [1.0, 10.0, 0.1, 50.0];
        let ratio = Ratio::of_pairs(&noise.map(|it| it * 3.0), &noise).unwrap();
        assert!((ratio.middle - 3.0).abs() < 1e-9 && ratio.high - ratio.low < 1e-9, "{ratio:?}");
    }

    /// Of a hundred experiments with a known true ratio, about 95 intervals hold it.
    #[test]
    fn the_interval_holds_the_truth_as_often_as_it_says() {
        let mut draws = Draws(42);
        let mut noise = || {
            // The sum of many small things, near enough to the usual bell.
            let sum: usize = (0..12).map(|_| draws.below(1_000)).sum();
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let sum = sum as f64;
            1.0 + (sum - 6_000.0) / 60_000.0
        };
        let mut held = 0;
        for _ in 0..100 {
            let a: Vec<f64> = (0..60).map(|_| 1.25 * noise()).collect();
            let b: Vec<f64> = (0..60).map(|_| noise()).collect();
            let ratio = Ratio::of_pairs(&a, &b).unwrap();
            assert!(ratio.low <= ratio.middle && ratio.middle <= ratio.high, "{ratio:?}");
            held += u32::from((ratio.low..=ratio.high).contains(&1.25));
        }
        assert!((88..=100).contains(&held), "{held} of 100 intervals hold the true ratio");
    }
}
