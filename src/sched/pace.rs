//! How large a slice may be, so that it takes its device no longer than it should.
//!
//! The rate is that of the device alone: bytes that ended, over the time in which something was in
//! flight all along. Time in queues is no part of it (a predictor that had it would see a slow
//! device wherever there is a long queue, and make slices ever smaller).

/// A time over which the rate is taken, at the least.
const SPAN_NS: u64 = 200_000;
/// Requests must move so much each, or the rate says more of their number than of bytes. So a
/// request costs about what so many bytes do.
pub const REQUEST_BYTES: u32 = 4_096;
/// Slices are multiples of it.
pub const GRAIN_BYTES: u32 = 4_096;

/// The size of slices on one device.
#[derive(Debug)]
pub struct Pace {
    slice_max: u32,
    slice_ns: u64,
    least: u32,
    slice: u32,
    /// Bytes a second, smoothed; 0 before it was measured.
    rate: u64,
    /// When the span that is measured began; `None` while nothing is in flight.
    since_ns: Option<u64>,
    bytes: u64,
    requests: u64,
}

impl Pace {
    /// Slices of `slice_max` bytes, or fewer so that one takes about `slice_ns`, but of no fewer
    /// than `least`; always `slice_max` if `slice_ns` is 0.
    #[must_use]
    pub fn new(slice_max: u32, slice_ns: u64, least: u32) -> Self {
        Self {
            slice_max,
            slice_ns,
            least,
            slice: slice_max,
            rate: 0,
            since_ns: None,
            bytes: 0,
            requests: 0,
        }
    }

    /// Bytes of a slice.
    #[inline]
    #[must_use]
    pub fn slice(&self) -> u32 {
        self.slice
    }

    /// The measured rate in bytes a second; 0 if there is none yet.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Nothing is in flight now.
    #[inline]
    pub fn rests(&mut self) {
        self.since_ns = None;
    }

    /// What has ended by now was posted then, and nothing was in flight before: for a device that
    /// is done with all by the time that a post returns, on which nothing is ever seen in flight.
    #[inline]
    pub fn began(&mut self, now_ns: u64) {
        if self.since_ns.is_none() {
            self.begin(now_ns);
        }
    }

    /// Requests ended in this turn; `flying` is what is left in flight.
    #[inline]
    pub fn ended(&mut self, requests: u32, bytes: u64, flying: bool, now_ns: u64) {
        if let Some(since_ns) = self.since_ns {
            self.bytes += bytes;
            self.requests += u64::from(requests);
            if now_ns - since_ns >= SPAN_NS {
                self.measure(now_ns - since_ns);
                self.begin(now_ns);
            }
        }
        if !flying {
            self.since_ns = None;
        } else if self.since_ns.is_none() {
            self.begin(now_ns);
        }
    }

    fn begin(&mut self, now_ns: u64) {
        self.since_ns = Some(now_ns);
        self.bytes = 0;
        self.requests = 0;
    }

    #[cold]
    fn measure(&mut self, span_ns: u64) {
        if self.requests == 0 || self.bytes / self.requests < u64::from(REQUEST_BYTES) {
            return;
        }
        let rate = u128::from(self.bytes) * 1_000_000_000 / u128::from(span_ns);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        self.rate = if self.rate == 0 { rate } else { self.rate - self.rate / 4 + rate / 4 };
        if self.slice_ns > 0 {
            let bytes = u128::from(self.rate) * u128::from(self.slice_ns) / 1_000_000_000;
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX) / GRAIN_BYTES * GRAIN_BYTES;
            // A limit below the least is kept to.
            self.slice = bytes.max(self.least).min(self.slice_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that moves so many bytes a microsecond, in requests of a given size.
    fn run(pace: &mut Pace, from_ns: u64, request: u64, bytes_per_us: u64, spans: u64) -> u64 {
        let mut now_ns = from_ns;
        while now_ns < from_ns + spans * SPAN_NS {
            now_ns += request * 1_000 / bytes_per_us;
            pace.ended(1, request, true, now_ns);
        }
        now_ns
    }

    #[test]
    fn slices_follow_the_rate_down_and_up_again() {
        let mut pace = Pace::new(128 << 10, 100_000, GRAIN_BYTES);
        assert_eq!(pace.slice(), 128 << 10);
        // 400 bytes a microsecond: 40,000 in 100 of them.
        let now_ns = run(&mut pace, 0, 8_192, 400, 40);
        assert_eq!(pace.slice(), 36 << 10, "{pace:?}");
        let now_ns = run(&mut pace, now_ns, 8_192, 10, 40);
        assert_eq!(pace.slice(), 4 << 10, "never below the least");
        run(&mut pace, now_ns, 65_536, 10_000, 40);
        assert_eq!(pace.slice(), 128 << 10, "{pace:?}");
    }

    #[test]
    fn neither_idle_time_nor_small_requests_tell_a_rate() {
        let mut pace = Pace::new(128 << 10, 100_000, GRAIN_BYTES);
        let mut now_ns = 0;
        for _ in 0..1_000 {
            // One at a time, with a pause between: nothing was in flight all along.
            now_ns += 1_000_000;
            pace.ended(1, 65_536, false, now_ns);
        }
        run(&mut pace, now_ns, 64, 10, 40);
        assert_eq!((pace.rate(), pace.slice()), (0, 128 << 10));
    }

    #[test]
    fn what_is_done_when_the_post_returns_tells_a_rate() {
        let mut pace = Pace::new(128 << 10, 100_000, 32 << 10);
        let mut now_ns = 0;
        for _ in 0..40 {
            // Two slices in 6 ms, and then a pause.
            pace.began(now_ns);
            now_ns += 6_000_000;
            pace.ended(2, 256 << 10, false, now_ns);
            now_ns += 50_000_000;
        }
        assert!((43_000_000..44_000_000).contains(&pace.rate()), "{pace:?}");
        assert_eq!(pace.slice(), 32 << 10);
        // It goes on where something stays in flight, and not over a rest.
        pace.ended(0, 0, true, now_ns - 50_000_000);
        pace.rests();
        pace.began(now_ns);
        pace.ended(1, 64 << 10, true, now_ns + 1_000);
        pace.began(now_ns + 1_000);
        pace.ended(1, 64 << 10, false, now_ns + 3_000_000);
        assert!((43_000_000..44_000_000).contains(&pace.rate()), "{pace:?}");
    }

    #[test]
    fn slices_stay_whole_if_no_time_is_set() {
        let mut pace = Pace::new(128 << 10, 0, GRAIN_BYTES);
        run(&mut pace, 0, 8_192, 10, 40);
        assert_eq!(pace.slice(), 128 << 10);
        assert!((9_000_000..11_000_000).contains(&pace.rate()));
    }
}
