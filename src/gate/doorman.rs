//! The log of who was turned away: one line each, and so many lines a second at most, so that a
//! flood at the door does not become one in the log.

use std::fmt::Display;
use std::net::SocketAddr;

use tracing::warn;

/// Lines a second.
const LINES_A_SECOND: u32 = 10;
const SECOND_NS: u64 = 1_000_000_000;

/// What was said of late.
#[derive(Debug, Default)]
pub(super) struct Doorman {
    since_ns: u64,
    lines: u32,
    /// Turned away without a line.
    unsaid: u64,
}

impl Doorman {
    /// Somebody is turned away. True if that was said.
    pub(super) fn turned_away(&mut self, from: SocketAddr, why: &dyn Display, now_ns: u64) -> bool {
        if now_ns.saturating_sub(self.since_ns) >= SECOND_NS {
            let unsaid = std::mem::take(&mut self.unsaid);
            if unsaid > 0 {
                warn!(more = unsaid, "more were turned away at the gate");
            }
            (self.since_ns, self.lines) = (now_ns, 0);
        }
        let said = self.lines < LINES_A_SECOND;
        if said {
            self.lines += 1;
            warn!(%from, %why, "turned away at the gate");
        } else {
            self.unsaid += 1;
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_and_one_for_the_rest() {
        let mut doorman = Doorman::default();
        let from = SocketAddr::from(([127, 0, 0, 1], 9));
        for second in 5..8 {
            let said =
                (0..1_000).filter(|_| doorman.turned_away(from, &"no", second * SECOND_NS)).count();
            assert_eq!((said, doorman.unsaid), (10, 990));
        }
        assert!(doorman.turned_away(from, &"no", 8 * SECOND_NS));
        assert_eq!(doorman.unsaid, 0, "said by now");
    }
}
