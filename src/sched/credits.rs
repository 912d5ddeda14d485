//! The window: credits in ops, work requests and bytes for what is in flight.
//!
//! A request's credit is a [`Grant`]: made by [`Window::take`], kept with the request, ended by
//! [`Window::give`]. It cannot be copied, so it cannot be given back twice. An op has a credit of
//! its own from its first request in flight to its last: whoever takes and gives says so.
//!
//! Part of a window may be kept for the engine's own work, so that it never waits for users who
//! wait for it.

use crate::abi::{WAIT_WINDOW_BYTES, WAIT_WINDOW_OPS, WAIT_WINDOW_WRS};
use crate::plant::{Plant, planted};

use super::policy::Bounds;

/// Credits for one request.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "credits that are dropped are lost to the window"]
pub struct Grant {
    bytes: u32,
}

impl Grant {
    /// Bytes of the request that it is for.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }
}

/// Who takes credits, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Bytes of the request.
    pub bytes: u32,
    /// It is the only one of its op that is in flight.
    pub enters: bool,
    /// The engine itself asks.
    pub internal: bool,
}

/// What may be in flight, and what is.
#[derive(Debug)]
pub struct Window {
    /// What all may use together.
    bounds: Bounds,
    /// What users may use of it.
    users: Bounds,
    all: Used,
    /// By users, if anything is kept from them.
    by_users: Used,
    reserved: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    ops: u32,
    wrs: u32,
    bytes: u64,
}

impl Used {
    /// What is used up for a request of so many bytes; one that is larger than all may go alone.
    #[inline]
    fn admits(&self, bounds: &Bounds, ask: Ask) -> Result<(), u16> {
        if self.wrs >= bounds.wrs {
            return Err(WAIT_WINDOW_WRS);
        }
        if ask.enters && self.ops >= bounds.ops {
            return Err(WAIT_WINDOW_OPS);
        }
        if self.bytes + u64::from(ask.bytes) > bounds.bytes && self.wrs > 0 {
            return Err(WAIT_WINDOW_BYTES);
        }
        Ok(())
    }

    #[inline]
    fn take(&mut self, ask: Ask) {
        self.ops += u32::from(ask.enters);
        self.wrs += 1;
        self.bytes += u64::from(ask.bytes);
    }

    fn hold(&mut self, bytes: u32) {
        self.ops += 1;
        self.bytes += u64::from(bytes);
    }

    fn release(&mut self, bytes: u32) {
        self.leave();
        assert!(self.bytes >= u64::from(bytes), "gave back more than was taken");
        self.bytes -= u64::from(bytes);
    }

    fn leave(&mut self) {
        assert!(self.ops > 0, "gave back more than was taken");
        self.ops -= 1;
    }

    #[inline]
    fn give(&mut self, bytes: u32, leaves: bool) {
        let bytes = u64::from(bytes);
        let held = self.wrs > 0 && self.bytes >= bytes && self.ops >= u32::from(leaves);
        assert!(held, "gave back more than was taken");
        self.wrs -= u32::from(!planted(Plant::GrantKept));
        self.bytes -= bytes;
        self.ops -= u32::from(leaves);
    }
}

impl Window {
    /// Makes an empty window; all limits are at least 1.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self::with_reserve(bounds, 0, 0)
    }

    /// [`Window::new`] with a part of its ops (and as many work requests) and of its bytes that
    /// is for the engine's own work only.
    ///
    /// # Panics
    /// If nothing is left for users.
    #[must_use]
    pub fn with_reserve(bounds: Bounds, ops: u32, bytes: u64) -> Self {
        assert!(bounds.ops > 0 && bounds.wrs > 0 && bounds.bytes > 0);
        let users = Bounds {
            ops: bounds.ops.saturating_sub(ops),
            wrs: bounds.wrs.saturating_sub(ops),
            bytes: bounds.bytes.saturating_sub(bytes),
        };
        assert!(users.ops > 0 && users.wrs > 0 && users.bytes > 0, "nothing is left for users");
        let reserved = ops > 0 || bytes > 0;
        Self { bounds, users, all: Used::default(), by_users: Used::default(), reserved }
    }

    /// Takes credits for one request.
    ///
    /// A request larger than the whole window is let in alone: nothing is refused for its size.
    ///
    /// # Errors
    /// The `WAIT_*` reason: which credit is used up.
    #[inline]
    pub fn take(&mut self, ask: Ask) -> Result<Grant, u16> {
        self.admits(ask)?;
        self.all.take(ask);
        if self.reserved && !ask.internal {
            self.by_users.take(ask);
        }
        Ok(Grant { bytes: ask.bytes })
    }

    /// Says whether [`Window::take`] would have it.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn admits(&self, ask: Ask) -> Result<(), u16> {
        self.all.admits(&self.bounds, ask)?;
        if self.reserved && !ask.internal {
            self.by_users.admits(&self.users, ask)?;
        }
        Ok(())
    }

    /// Gives a request's credits back; `leaves` if nothing else of its op is in flight.
    ///
    /// # Panics
    /// If more comes back than was taken: that is never clamped.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "a grant ends here")]
    pub fn give(&mut self, grant: Grant, leaves: bool, internal: bool) {
        let Grant { bytes } = grant;
        self.all.give(bytes, leaves);
        if self.reserved && !internal {
            self.by_users.give(bytes, leaves);
        }
    }

    /// Takes what a grant of another window stands for here, too: there is room, or it goes alone.
    #[inline]
    pub fn share(&mut self, ask: Ask) {
        self.all.take(ask);
    }

    /// Gives back what a grant stood for here.
    #[inline]
    pub fn unshare(&mut self, grant: &Grant, leaves: bool) {
        self.all.give(grant.bytes, leaves);
    }

    /// Takes credits for a whole op at once, whatever there is: whoever asks has looked.
    pub fn hold(&mut self, bytes: u32, internal: bool) {
        self.all.hold(bytes);
        if self.reserved && !internal {
            self.by_users.hold(bytes);
        }
    }

    /// Gives back what [`Window::hold`] took.
    pub fn release(&mut self, bytes: u32, internal: bool) {
        self.all.release(bytes);
        if self.reserved && !internal {
            self.by_users.release(bytes);
        }
    }

    /// An op whose last request was of another window has nothing in flight any more.
    pub fn leave(&mut self, internal: bool) {
        self.all.leave();
        if self.reserved && !internal {
            self.by_users.leave();
        }
    }

    /// Ops in flight.
    #[must_use]
    pub fn ops(&self) -> u32 {
        self.all.ops
    }

    /// Requests in flight.
    #[inline]
    #[must_use]
    pub fn wrs(&self) -> u32 {
        self.all.wrs
    }

    /// Bytes in flight.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.all.bytes
    }

    /// What may be in flight.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Ops and bytes that users may still bring into flight.
    #[must_use]
    pub fn left(&self) -> (u32, u64) {
        let (used, bounds) =
            if self.reserved { (&self.by_users, &self.users) } else { (&self.all, &self.bounds) };
        let ops = (bounds.ops - used.ops.min(bounds.ops)).min(bounds.wrs - used.wrs);
        (ops, bounds.bytes.saturating_sub(used.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(bytes: u32) -> Ask {
        Ask { bytes, enters: true, internal: false }
    }

    const BOUNDS: Bounds = Bounds { ops: 2, wrs: 3, bytes: 100 };

    #[test]
    fn what_is_taken_comes_back_and_limits_hold_on_all_sides() {
        let mut window = Window::new(BOUNDS);
        let a = window.take(ask(60)).unwrap();
        assert_eq!(window.take(ask(41)).unwrap_err(), WAIT_WINDOW_BYTES);
        let b = window.take(ask(30)).unwrap();
        assert_eq!(window.take(ask(0)).unwrap_err(), WAIT_WINDOW_OPS);
        let more = Ask { enters: false, ..ask(10) };
        let c = window.take(more).unwrap();
        assert_eq!(window.take(Ask { bytes: 0, ..more }).unwrap_err(), WAIT_WINDOW_WRS);
        assert_eq!(window.left(), (0, 0));
        window.give(a, true, false);
        window.give(b, false, false);
        window.give(c, true, false);
        assert_eq!((window.ops(), window.wrs(), window.bytes()), (0, 0, 0));
    }

    #[test]
    fn what_exceeds_the_window_goes_alone() {
        let mut window = Window::new(BOUNDS);
        let small = window.take(ask(1)).unwrap();
        assert!(window.take(ask(1000)).is_err());
        window.give(small, true, false);
        let alone = window.take(ask(1000)).unwrap();
        assert!(window.take(ask(0)).is_err());
        window.give(alone, true, false);
    }

    /// A4: users fill what is theirs; the engine's own work is still let in.
    #[test]
    fn a_reserve_is_not_for_users() {
        let mut window = Window::with_reserve(BOUNDS, 1, 40);
        let user = window.take(ask(60)).unwrap();
        assert_eq!(window.left(), (0, 0));
        let more = Ask { enters: false, ..ask(1) };
        assert_eq!(window.take(more).unwrap_err(), WAIT_WINDOW_BYTES);
        let own = window.take(Ask { internal: true, ..ask(40) }).unwrap();
        window.give(user, true, false);
        // What the engine holds of its own part costs users nothing.
        let user = window.take(ask(60)).unwrap();
        window.give(own, true, true);
        window.give(user, true, false);
        assert_eq!((window.ops(), window.wrs(), window.bytes()), (0, 0, 0));
    }

    #[test]
    #[should_panic(expected = "nothing is left for users")]
    fn a_reserve_leaves_something() {
        let _ = Window::with_reserve(BOUNDS, 2, 0);
    }

    #[cfg(not(verbring_loom))]
    proptest::proptest! {
        #![proptest_config(crate::seeds::property(500))]

        /// In whatever order credits come and go: the sums are those of the grants that are
        /// out, a refusal names what is used up, and an empty window refuses nothing.
        #[test]
        fn credits_are_conserved(
            (ops, wrs, bytes) in (2..6u32, 2..6u32, 2..300u64),
            reserve in (0..2u32, 0..2u64),
            steps in proptest::collection::vec(
                (0..3u8, 0..400u32, 0..8usize, proptest::bool::ANY),
                1..200,
            ),
        ) {
            let bounds = Bounds { ops, wrs, bytes };
            let mut window = Window::with_reserve(bounds, reserve.0, reserve.1);
            let mut out: Vec<(Grant, bool, bool)> = Vec::new();
            for (step, bytes, at, internal) in steps {
                let sums = |own: bool| {
                    let of = out.iter().filter(|(_, _, internal)| own || !internal);
                    let bytes: u64 = of.clone().map(|(grant, ..)| u64::from(grant.bytes)).sum();
                    let ops = of.clone().filter(|(_, enters, _)| *enters).count();
                    (u32::try_from(ops).unwrap(), u32::try_from(of.count()).unwrap(), bytes)
                };
                let held = (window.ops(), window.wrs(), window.bytes());
                proptest::prop_assert_eq!(held, sums(true));
                if step < 2 {
                    let ask = Ask { bytes, enters: step == 0, internal };
                    let fits = |(o, w, b): (u32, u32, u64), ops, wrs, most| {
                        if w >= wrs {
                            return Err(WAIT_WINDOW_WRS);
                        }
                        if ask.enters && o >= ops {
                            return Err(WAIT_WINDOW_OPS);
                        }
                        let fits = w == 0 || b + u64::from(bytes) <= most;
                        if fits { Ok(()) } else { Err(WAIT_WINDOW_BYTES) }
                    };
                    let Bounds { ops, wrs, bytes: most } = bounds;
                    let mut must = fits(sums(true), ops, wrs, most);
                    if must.is_ok() && !internal {
                        let (kept, bytes) = reserve;
                        must = fits(sums(false), ops - kept, wrs - kept, most - bytes);
                    }
                    let taken = window.take(ask);
                    let given = taken.as_ref().map(|_| ()).map_err(|wait| *wait);
                    proptest::prop_assert_eq!(given, must);
                    if let Ok(grant) = taken {
                        out.push((grant, step == 0, internal));
                    }
                } else if at < out.len() {
                    let (grant, entered, internal) = out.swap_remove(at);
                    window.give(grant, entered, internal);
                }
            }
            out.drain(..).for_each(|(grant, entered, own)| window.give(grant, entered, own));
            proptest::prop_assert_eq!((window.ops(), window.wrs(), window.bytes()), (0, 0, 0));
        }
    }

    #[test]
    #[should_panic(expected = "more than was taken")]
    fn f33_over_release_is_caught() {
        let mut window = Window::new(BOUNDS);
        window.give(Grant { bytes: 1 }, false, false);
    }
}
