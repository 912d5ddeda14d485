//! Messages between two ends of a rail, and the credit that they need.
//!
//! A message is a SEND of 16 bytes. Each takes one receive that the other end has posted, so a
//! sender keeps count: it starts with as many credits as the peer has receives for notifications,
//! and gets one back when the peer has handed a notification out and posted its receive anew.
//! Credit comes back inside notifications that go the other way, or, when half of it is owed, in
//! a message of its own. Such messages need no credit: they use [`RECEIVES_KEPT`] receives beside
//! the others. Two are enough, since a peer that has not seen the first two halves come back has
//! no credit left, and so cannot cause a third.

use crate::plant::{Plant, planted};

/// Receives beside those for notifications.
pub const RECEIVES_KEPT: u32 = 2;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The region that was changed, by its owner's name for it, and the immediate.
    pub(super) notification: Option<(u32, u32)>,
    /// Notifications that the receiver of this may send more.
    pub(super) credits: u32,
}

const NOTIFICATION: u64 = 1;
const CREDIT: u64 = 2;

impl Message {
    pub(super) fn to_words(self) -> [u64; 2] {
        let credits = u64::from(self.credits) << 32;
        match self.notification {
            Some((region, immediate)) => {
                [u64::from(region) | u64::from(immediate) << 32, credits | NOTIFICATION]
            }
            None => [0, credits | CREDIT],
        }
    }

    /// Reads a message of a peer; `None` if it is not one.
    pub(super) fn from_words(words: [u64; 2]) -> Option<Self> {
        let low = |word: u64| (word & 0xffff_ffff) as u32;
        let high = |word: u64| (word >> 32) as u32;
        let credits = high(words[1]);
        match u64::from(low(words[1])) {
            NOTIFICATION => {
                Some(Self { notification: Some((low(words[0]), high(words[0]))), credits })
            }
            CREDIT if words[0] == 0 => Some(Self { notification: None, credits }),
            _ => None,
        }
    }
}

/// Credit of one rail, both ways.
#[derive(Debug)]
pub(super) struct Credits {
    /// Receives for notifications, at this end.
    receives: u32,
    /// Notifications that may be sent, and the most that it can be.
    granted: u32,
    granted_max: u32,
    /// Of these, taken by requests whose notification is not posted yet.
    reserved: u32,
    /// Receives to post.
    missing: u32,
    /// Notifications that came and were not handed out: each keeps its receive.
    kept: u32,
    /// Credit to return: once the receives are posted, and now.
    settling: u32,
    owed: u32,
    /// A message that only returns credit is posted.
    pub(super) message_posted: bool,
}

impl Credits {
    pub(super) fn new(receives: u32) -> Self {
        Self {
            receives,
            granted: 0,
            granted_max: 0,
            reserved: 0,
            missing: 0,
            kept: 0,
            settling: 0,
            owed: 0,
            message_posted: false,
        }
    }

    /// A fresh queue pair: it has no receives, and nothing is known of the peer's.
    pub(super) fn restart(&mut self, receives: u32) {
        self.receives = receives;
        self.granted = 0;
        self.granted_max = 0;
        self.missing = (receives + RECEIVES_KEPT).saturating_sub(self.kept);
        self.settling = 0;
        self.owed = 0;
        self.message_posted = false;
    }

    /// The peer has `credits` receives for us.
    pub(super) fn connect(&mut self, credits: u32) {
        self.granted = credits;
        self.granted_max = credits;
    }

    /// Notifications that further requests may have.
    pub(super) fn free(&self) -> u32 {
        self.granted.saturating_sub(self.reserved)
    }

    pub(super) fn reserve(&mut self) {
        self.reserved += 1;
    }

    pub(super) fn unreserve(&mut self) {
        assert!(self.reserved > 0, "gave back more than was reserved");
        self.reserved -= 1;
    }

    /// Forgets all reservations; what remains is reserved anew.
    pub(super) fn unreserve_all(&mut self) {
        self.reserved = 0;
    }

    /// Takes one credit for a notification that has a reservation.
    pub(super) fn spend(&mut self) -> bool {
        if self.granted == 0 {
            return false;
        }
        self.granted -= 1;
        self.unreserve();
        true
    }

    /// Takes [`Credits::spend`] back: the notification was not posted.
    pub(super) fn unspend(&mut self) {
        self.granted += 1;
        self.reserved += 1;
    }

    /// Credit comes back from the peer; false if it is more than there can be.
    pub(super) fn grant(&mut self, credits: u32) -> bool {
        let granted = self.granted.saturating_add(credits);
        self.granted = granted.min(self.granted_max);
        granted <= self.granted_max
    }

    /// A notification came: it keeps its receive until it is handed out.
    pub(super) fn keep(&mut self) {
        self.kept += 1;
    }

    /// A notification was handed out; `current` if it came by the queue pair in use.
    pub(super) fn hand_out(&mut self, current: bool) {
        self.kept -= 1;
        self.missing += 1;
        self.settling += u32::from(current && !planted(Plant::CreditKept));
    }

    /// A message that only returned credit was read.
    pub(super) fn recycle(&mut self) {
        self.missing += 1;
    }

    /// Receives for notifications, at this end.
    pub(super) fn receives(&self) -> u32 {
        self.receives
    }

    /// Receives to post.
    pub(super) fn missing(&self) -> u32 {
        self.missing
    }

    /// So many of them are posted.
    pub(super) fn posted(&mut self, receives: u32) {
        self.missing -= receives;
        if self.missing == 0 {
            self.owed += std::mem::take(&mut self.settling);
        }
    }

    /// Enough is owed for a message of its own.
    pub(super) fn due(&self) -> bool {
        self.owed > 0 && self.owed >= self.receives.div_ceil(2) && !self.message_posted
    }

    /// Takes what is owed, to be returned by the message that is being made.
    pub(super) fn pay(&mut self) -> u32 {
        std::mem::take(&mut self.owed)
    }

    /// Takes [`Credits::pay`] back: the message was not posted.
    pub(super) fn unpay(&mut self, credits: u32) {
        self.owed += credits;
    }

    #[cfg(any(test, feature = "sim"))]
    pub(super) fn reserved(&self) -> u32 {
        self.reserved
    }

    #[cfg(any(test, feature = "sim"))]
    pub(super) fn audit(&self) -> super::CreditAudit {
        super::CreditAudit {
            granted: self.granted,
            receives: self.receives,
            used: self.kept + self.settling + self.owed,
            missing: self.missing,
        }
    }

    /// Nothing is reserved: no request waits with a notification.
    pub(super) fn at_rest(&self) -> bool {
        self.reserved == 0 && self.granted <= self.granted_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were_and_others_are_refused() {
        for notification in [None, Some((0, 0)), Some((u32::MAX, 7))] {
            let message = Message { notification, credits: 9 };
            assert_eq!(Message::from_words(message.to_words()), Some(message));
        }
        for words in [[0, 0], [0, 3], [1, CREDIT], [5, u64::MAX]] {
            assert_eq!(Message::from_words(words), None, "{words:?}");
        }
    }

    #[test]
    fn a_peer_cannot_grant_more_than_it_has() {
        let mut credits = Credits::new(4);
        credits.connect(3);
        credits.reserve();
        assert!(credits.spend());
        assert!(credits.grant(1));
        assert!(!credits.grant(1));
        assert!(!credits.grant(u32::MAX));
        assert_eq!(credits.free(), 3);
    }

    /// Two ends that send as fast as credit lets them, each looking at its messages at its own
    /// pace: there is always a receive for what comes, and never does credit run dry for good.
    #[test]
    fn credit_finds_its_way_back_and_receives_always_suffice() {
        crate::seeds::each_seed(300, |seed| {
            let mut random = crate::seeds::Random::new(seed);
            let receives = 1 + random.below32(9);
            let mut ends = [Credits::new(receives), Credits::new(receives)];
            // Messages under way to each end, and receives it has posted.
            let mut wire = [Vec::new(), Vec::new()];
            let mut posted = [0_u32; 2];
            for (end, posted) in ends.iter_mut().zip(&mut posted) {
                end.restart(receives);
                *posted = end.missing();
                end.posted(*posted);
                end.connect(receives);
            }
            let mut sent = [0_u64; 2];
            for _ in 0..2000 {
                let us = random.index(2);
                let peer = 1 - us;
                let end = &mut ends[us];
                if random.chance(50) {
                    if end.free() > 0 && random.chance(70) {
                        end.reserve();
                        assert!(end.spend());
                        let notification = Some((1, 1));
                        wire[peer].push(Message { notification, credits: end.pay() });
                        sent[us] += 1;
                        // Never a message without a receive for it.
                        assert!(wire[peer].len() <= posted[peer] as usize);
                    } else if end.due() {
                        wire[peer].push(Message { notification: None, credits: end.pay() });
                        assert!(wire[peer].len() <= posted[peer] as usize, "a credit message");
                    }
                    continue;
                }
                for message in wire[us].drain(..) {
                    posted[us] -= 1;
                    assert!(end.grant(message.credits));
                    if message.notification.is_some() {
                        end.keep();
                        end.hand_out(true);
                    } else {
                        end.recycle();
                    }
                }
                posted[us] += end.missing();
                end.posted(end.missing());
            }
            assert!(sent.iter().all(|sent| *sent > 100), "{sent:?}");
        });
    }
}
