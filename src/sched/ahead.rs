//! What is in flight on a device, in order: for the question whether something small may pass by an
//! op that waits for room, without putting it off.
//!
//! It may if there will be room for both by the time that enough has ended for the first. That is
//! known if the device ends requests in the order in which it took them, as this host's own does;
//! elsewhere it is a guess.

/// Sizes of requests in flight, oldest first.
#[derive(Debug)]
pub struct Ahead {
    sizes: Box<[u32]>,
    from: u32,
    to: u32,
}

impl Ahead {
    /// For at most so many requests in flight.
    #[must_use]
    pub fn new(requests: u32) -> Self {
        let places = requests.max(1).next_power_of_two();
        Self { sizes: vec![0; places as usize].into(), from: 0, to: 0 }
    }

    #[inline]
    fn place(&mut self, at: u32) -> &mut u32 {
        let mask = self.sizes.len() - 1;
        &mut self.sizes[at as usize & mask]
    }

    /// A request was given to the device.
    #[inline]
    pub fn push(&mut self, bytes: u32) {
        *self.place(self.to) = bytes;
        self.to = self.to.wrapping_add(1);
    }

    /// The oldest has ended.
    #[inline]
    pub fn pop(&mut self) {
        debug_assert!(self.from != self.to, "nothing is in flight");
        self.from = self.from.wrapping_add(1);
    }

    /// The youngest was not taken.
    pub fn take_back(&mut self) {
        debug_assert!(self.from != self.to, "nothing is in flight");
        self.to = self.to.wrapping_sub(1);
    }

    /// How large a request may be that goes now, with `bytes_max` for all, and does not put off one
    /// of `first` bytes that has no room yet.
    #[must_use]
    pub fn room(&self, bytes_max: u64, first: u32) -> u64 {
        let count = self.to.wrapping_sub(self.from);
        let mask = self.sizes.len() - 1;
        let size = |at: u32| u64::from(self.sizes[self.from.wrapping_add(at) as usize & mask]);
        let mut flying: u64 = (0..count).map(size).sum();
        let free = bytes_max.saturating_sub(flying);
        let Some(most) = bytes_max.checked_sub(u64::from(first)) else { return 0 };
        for at in 0..count {
            if flying <= most {
                break;
            }
            flying -= size(at);
        }
        free.min(most.saturating_sub(flying))
    }
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use super::*;
    use crate::seeds::property;

    /// When the first goes, if `extra` went before it: after so many of those in flight have ended.
    fn goes_after(flying: &[u32], bytes_max: u64, first: u32, extra: Option<u32>) -> usize {
        let sum = |ended: usize| -> u64 {
            let rest = flying[ended..].iter().chain(&extra);
            rest.map(|size| u64::from(*size)).sum()
        };
        let fits = |ended: &usize| sum(*ended) + u64::from(first) <= bytes_max;
        (0..=flying.len()).find(fits).unwrap_or(flying.len() + 1)
    }

    proptest::proptest! {
        #![proptest_config(property(500))]

        #[test]
        fn what_passes_by_puts_nothing_off_and_one_byte_more_would(
            sizes in proptest::collection::vec(1..100u32, 1..20),
            ended in 0..20usize,
            (spare, first) in (0..100u64, 1..100u32),
        ) {
            let mut ahead = Ahead::new(20);
            let mut flying = Vec::new();
            for (at, size) in sizes.iter().enumerate() {
                ahead.push(*size);
                flying.push(*size);
                if at < ended && at % 2 == 0 {
                    ahead.pop();
                    flying.remove(0);
                }
            }
            let sum: u64 = flying.iter().map(|size| u64::from(*size)).sum();
            let bytes_max = sum + spare % u64::from(first);
            proptest::prop_assume!(bytes_max >= u64::from(first));
            let room = ahead.room(bytes_max, first);
            proptest::prop_assert!(sum + room <= bytes_max, "it has no room itself");
            let alone = goes_after(&flying, bytes_max, first, None);
            let with = |extra: u64| u32::try_from(extra).ok();
            proptest::prop_assert_eq!(goes_after(&flying, bytes_max, first, with(room)), alone);
            let more = room + 1;
            let fits = sum + more <= bytes_max;
            let late = goes_after(&flying, bytes_max, first, with(more)) > alone;
            proptest::prop_assert!(!fits || late, "{room} is less than it may be");
        }
    }

    #[test]
    fn what_was_not_taken_is_forgotten() {
        let mut ahead = Ahead::new(4);
        ahead.push(60);
        ahead.push(30);
        assert_eq!(ahead.room(100, 50), 10);
        ahead.take_back();
        assert_eq!(ahead.room(100, 50), 40);
    }
}
