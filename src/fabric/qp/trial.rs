//! When a rail that failed is trusted again, and when a card is not.
//!
//! A rail that is connected again may be on trial first ([`RailState::Trial`]): it waits out a
//! back-off, which doubles with each failure that follows the last one closely, and, if it shares
//! its work with others, shows by a WRITE of no bytes that the path works. Until then the others
//! carry what it would.
//!
//! A card errs when it refuses a post, or says of itself that it failed. Many errors of that kind
//! in a row pause it: its rails are rebuilt and stay on trial. When the pause is over one rail is
//! probed; if that succeeds the card is in use again, if the card errs once more it pauses for
//! twice as long. What peers and paths do never counts against a card.
//!
//! **Deliberately absent**: chance of its own. Jitter comes from a seed.

use super::Rails;
use super::provider::{Provider, WcStatus};
use super::rail::RailState;
use super::status::cards_own;

/// How failures that repeat themselves are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// A rail that fails, is rebuilt, and fails again at once, waits for about so long, ns; with
    /// each further failure twice as long, and half of it at least.
    pub backoff_first_ns: u64,
    /// No wait is longer, ns. A rail that worked for so long begins anew.
    pub backoff_max_ns: u64,
    /// Errors in a row that are a card's own, after which it pauses; at least 1.
    pub card_errors_max: u32,
    /// The first pause, ns; each that follows is twice as long.
    pub pause_first_ns: u64,
    /// No pause is longer, ns.
    pub pause_max_ns: u64,
    /// Where jitter comes from.
    pub seed: u64,
}

impl Recovery {
    /// For real devices.
    pub const DEFAULT: Self = Self {
        backoff_first_ns: 10_000_000,
        backoff_max_ns: 2_000_000_000,
        card_errors_max: 32,
        pause_first_ns: 30_000_000_000,
        pause_max_ns: 300_000_000_000,
        seed: 1,
    };
}

/// Why a rail was wound down, as far as it is known at this end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust {
    /// It failed since it was last in use.
    failed: bool,
    /// The path itself failed, or the card: not a request, and not just the other end.
    pub(super) path_failed: bool,
    /// Failures of the path that followed each other closely.
    failures: u32,
    /// In use since; on trial: not before this.
    since_ns: u64,
    /// On trial: it must be probed.
    probe: bool,
    /// The other end has cut its trial short: it waits no longer for that.
    held: bool,
}

/// One card.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Card {
    errors: u32,
    paused: bool,
    until_ns: u64,
    length_ns: u64,
    /// The rail that tries whether the card works, when its pause is over; and whether the card
    /// erred meanwhile.
    prober: Option<u16>,
    erred: bool,
}

impl Card {
    pub(super) fn paused(&self) -> bool {
        self.paused
    }

    /// Something of it succeeded.
    #[inline]
    pub(super) fn worked(&mut self) {
        self.errors = 0;
    }

    /// True if a rail may be tried now.
    fn admits(&mut self, rail: u16, now_ns: u64) -> bool {
        if !self.paused {
            return true;
        }
        now_ns >= self.until_ns && *self.prober.get_or_insert(rail) == rail
    }
}

/// How long the wait is after so many failures that followed each other, ns, before jitter.
fn wait_ns(recovery: &Recovery, failures: u32) -> u64 {
    let Some(doubled) = failures.checked_sub(2) else { return 0 };
    let wait_ns = recovery.backoff_first_ns.saturating_mul(1 << doubled.min(40));
    wait_ns.min(recovery.backoff_max_ns)
}

/// A splitmix64.
fn mixed(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// True if a completion says that nobody answered.
fn unanswered(status: WcStatus) -> bool {
    use WcStatus::{ReceiverNotReady, RemoteAborted, ResponseTimeout, RetryExceeded};
    matches!(status, RetryExceeded | ReceiverNotReady | ResponseTimeout | RemoteAborted)
}

impl<P: Provider> Rails<P> {
    /// A work request failed, at this position: what that says of its path and its card.
    pub(super) fn suspect_path(&mut self, number: u16, at: u32, status: WcStatus) {
        if cards_own(status) {
            return self.card_erred(number);
        }
        if !unanswered(status) {
            return;
        }
        let rail = &mut self.rails[usize::from(number)];
        rail.trust.path_failed = true;
        if at == rail.first_work && !std::mem::replace(&mut rail.barren, true) {
            self.counts.barren += 1;
        }
    }

    /// A rail's card erred. Too often in a row, and it pauses.
    pub(super) fn card_erred(&mut self, number: u16) {
        let rail = &mut self.rails[usize::from(number)];
        rail.trust.path_failed = true;
        self.counts.card_errors += 1;
        let name = rail.card;
        let recovery = &self.config.recovery;
        let card = &mut self.cards[usize::from(name)];
        card.errors = card.errors.saturating_add(1);
        card.erred |= card.prober == Some(number);
        if card.paused || card.errors < recovery.card_errors_max {
            return;
        }
        card.paused = true;
        card.length_ns = recovery.pause_first_ns;
        card.until_ns = self.now_ns.saturating_add(card.length_ns);
        self.counts.pauses += 1;
        self.degrade_card(name);
    }

    /// A rail leaves service.
    pub(super) fn distrust(&mut self, number: u16) {
        let recovery = &self.config.recovery;
        let rail = &mut self.rails[usize::from(number)];
        let trust = &mut rail.trust;
        let worked_ns = self.now_ns.saturating_sub(trust.since_ns);
        if rail.state == RailState::Ready && worked_ns >= recovery.backoff_max_ns {
            trust.failures = 0;
        }
        let tried = rail.state == RailState::Trial;
        trust.held = tried && !trust.path_failed && !rail.marker_posted;
        self.counts.probes_failed += u64::from(tried && rail.marker_posted);
        trust.failures = trust.failures.saturating_add(u32::from(trust.path_failed));
        trust.path_failed = false;
        trust.failed = true;
        self.give_up_probing(number);
    }

    /// A rail does not try its card any more. If the card erred, it pauses for longer.
    pub(super) fn give_up_probing(&mut self, number: u16) {
        let recovery = &self.config.recovery;
        let card = &mut self.cards[usize::from(self.rails[usize::from(number)].card)];
        if card.prober != Some(number) {
            return;
        }
        card.prober = None;
        if std::mem::take(&mut card.erred) {
            card.length_ns = card.length_ns.saturating_mul(2).min(recovery.pause_max_ns);
            card.until_ns = self.now_ns.saturating_add(card.length_ns);
            self.counts.pauses += 1;
        }
    }

    /// A rail is connected: it takes requests, or is on trial first.
    pub(super) fn connected(&mut self, number: u16) {
        let recovery = &self.config.recovery;
        let rail = &mut self.rails[usize::from(number)];
        // What was heard of the failure after the rail was wound down.
        let late = u32::from(std::mem::take(&mut rail.trust.path_failed));
        rail.trust.failures = rail.trust.failures.saturating_add(late);
        if !std::mem::take(&mut rail.trust.held) {
            let wait_ns = wait_ns(recovery, rail.trust.failures);
            let jitter_ns = mixed(&mut self.jitter) % (wait_ns / 2 + 1);
            rail.trust.since_ns = self.now_ns.saturating_add(wait_ns - jitter_ns);
        }
        let paused = self.cards[usize::from(rail.card)].paused;
        rail.trust.probe = paused || rail.shared && rail.trust.failed;
        rail.go(RailState::Trial, &mut self.counts);
        self.try_out(number);
    }

    /// Goes on with a rail on trial.
    pub(super) fn try_out(&mut self, number: u16) {
        let rail = &mut self.rails[usize::from(number)];
        if rail.marker_posted {
            // Only time tells that its completion will not come.
            return self.attend(number);
        }
        let card = &mut self.cards[usize::from(rail.card)];
        if self.now_ns < rail.trust.since_ns || !card.admits(number, self.now_ns) {
            self.attend(number);
        } else if !rail.trust.probe {
            self.trusted(number);
        } else if self.post_marker(number) {
            self.counts.probes += 1;
            self.attend(number);
        } else if self.rails[usize::from(number)].state == RailState::Trial {
            // As a post that stops: it is tried again, and in the end rebuilt.
            let rail = &mut self.rails[usize::from(number)];
            let since = *rail.stuck_since_ns.get_or_insert(self.now_ns);
            if self.now_ns.saturating_sub(since) > self.config.stuck_ns {
                self.degrade(number);
            }
            self.attend(number);
        }
    }

    /// A rail on trial has shown that its path works, or need not.
    pub(super) fn trusted(&mut self, number: u16) {
        let rail = &mut self.rails[usize::from(number)];
        let card = &mut self.cards[usize::from(rail.card)];
        if card.prober == Some(number) {
            *card = Card::default();
        }
        rail.go(RailState::Ready, &mut self.counts);
        rail.stuck_since_ns = None;
        rail.trust =
            Trust { failures: rail.trust.failures, since_ns: self.now_ns, ..Trust::default() };
        self.attend(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let recovery = Recovery { backoff_first_ns: 10, backoff_max_ns: 75, ..Recovery::DEFAULT };
        let waits: Vec<u64> = (0..8).map(|failures| wait_ns(&recovery, failures)).collect();
        assert_eq!(waits, [0, 0, 10, 20, 40, 75, 75, 75]);
        assert_eq!(wait_ns(&recovery, u32::MAX), 75);
    }

    #[test]
    fn what_is_a_cards_own_is_no_peers() {
        for number in 0..64 {
            let status = WcStatus::from_ibv(number);
            assert!(!(cards_own(status) && unanswered(status)), "{status:?}");
        }
        assert!(cards_own(WcStatus::from_ibv(2)) && cards_own(WcStatus::from_ibv(19)));
        assert!(cards_own(WcStatus::from_ibv(21)), "IBV_WC_GENERAL_ERR");
        // A local protection error is a request's, a remote one the peer's, a flush nobody's.
        assert!(![4, 5, 10, 11, 12].map(WcStatus::from_ibv).into_iter().any(cards_own));
    }
}
