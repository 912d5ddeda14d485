//! Connections to other hosts that were lost: made anew by themselves, and told apart from those
//! whose place they take.
//!
//! Ops that were under way to a lost peer wait until nothing that was sent can arrive any more. If
//! the peer can be asked, that is known soon; so it is asked, over a new connection:
//!
//! * It is the same engine. It knows its end of the lost connection by our boot id and the link's
//!   name, moves the queue pairs of that to ERROR first, and welcomes us then: silent. We come only
//!   when ours are in ERROR, so that it need not wait for us, either.
//! * It is another one, started since. What was sent to the one before can change nothing here or
//!   there: what is still on the wire has the usual lease to get lost in.
//! * It is not to be reached. Until it must have noticed by itself, and a lease, its ops wait.
//!
//! So a peer that is back is in use again without anybody's doing, as far as connections go: what
//! its sessions export has new secrets if it was started anew.

use std::hash::{DefaultHasher, Hash, Hasher};

use tracing::{debug, info};

use super::connections::{failure, no_room};
use super::message::{Hello, Message};
use super::pairing::{Pair, pair};
use super::{Connection, Phase};
use crate::clock;
use crate::control::server::Server;
use crate::control::wire::Url;

/// The first pause before a lost connection is made anew, and the longest, ns.
const AGAIN_AFTER_NS: u64 = 50_000_000;
const AGAIN_AFTER_MAX_NS: u64 = 2_000_000_000;

/// A lost connection that is to be made anew.
#[derive(Debug)]
pub(super) struct Again {
    url: Url,
    failures: u32,
    due_ns: u64,
    /// Nobody waits for it from then on.
    until_ns: u64,
}

/// A connection that waits for the end of a lost one, whose queue pairs here still deliver.
#[derive(Clone, Debug)]
pub(super) struct Behind {
    old: usize,
    then: Then,
}

/// What is done once they do not.
#[derive(Clone, Debug)]
enum Then {
    /// We say HELLO.
    Greet,
    /// The other engine, which has said this, is welcomed with so many rails a card.
    LetIn { rails: u8, hello: Box<Hello> },
}

/// What a connection is called at both ends, as long as this engine lives; 0 is no name.
pub(super) fn link_name(url: &Url) -> u64 {
    match url {
        Url::Socket(_) => 0,
        Url::Host { host, port } => {
            let mut hasher = DefaultHasher::new();
            (host, port).hash(&mut hasher);
            hasher.finish() | 1
        }
    }
}

/// A pause that doubles with each failure, with up to a quarter more, so that engines that lost
/// each other at the same moment do not meet at the same moments for ever.
fn pause_ns(failures: u32, chance: u64) -> u64 {
    let pause_ns = AGAIN_AFTER_MAX_NS.min(AGAIN_AFTER_NS << failures.min(16));
    pause_ns + chance % (pause_ns / 4)
}

impl Server {
    /// A connection of ours that had rails is lost: it is to be made anew until nobody waits.
    pub(super) fn want_again(&mut self, url: Url, until_ns: u64) {
        if !matches!(url, Url::Host { .. }) || self.ending() {
            return;
        }
        self.peers.again.retain(|again| again.url != url);
        let now_ns = clock::now_ns();
        let due_ns = now_ns + pause_ns(0, now_ns);
        self.peers.again.push(Again { url, failures: 0, due_ns, until_ns });
    }

    /// When a lost connection is to be made anew.
    pub(super) fn again_due_ns(&self) -> Option<u64> {
        self.peers.again.iter().map(|again| again.due_ns).min()
    }

    /// Makes lost connections anew whose time has come.
    pub(super) fn reach_again(&mut self, now_ns: u64) {
        let mut due = Vec::new();
        for again in &mut self.peers.again {
            if now_ns >= again.due_ns {
                again.failures += 1;
                again.due_ns = now_ns + pause_ns(again.failures, now_ns);
                due.push(again.url.clone());
            }
        }
        let up = |connection: &Connection, url: &Url| {
            connection.url.as_ref() == Some(url) && connection.phase == Phase::Up
        };
        let connections = &self.peers.connections;
        self.peers.again.retain(|again| {
            let done = connections.iter().any(|(_, connection)| up(connection, &again.url));
            now_ns < again.until_ns && !done
        });
        for url in due {
            let known = |connection: &Connection| connection.url.as_ref() == Some(&url);
            let wanted = self.peers.again.iter().any(|again| again.url == url);
            if wanted && !self.peers.connections.iter().any(|(_, it)| known(it)) {
                debug!(%url, "connecting anew");
                // What is in the way now may not be the next time.
                let _ = self.reach(url);
            }
        }
    }

    /// A peer that we have reached says who it is: those that we lost there are judged by it.
    pub(super) fn met_again(&mut self, key: usize, hello: &Hello) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        connection.boot_id = hello.boot_id;
        let Some(url @ Url::Host { .. }) = connection.led_to.clone() else { return };
        let lease_ns = self.card.as_ref().map_or(0, |card| card.lease_ns);
        let by_ns = clock::now_ns().saturating_add(lease_ns);
        let mut silent = Vec::new();
        for (other, lost) in &mut self.peers.connections {
            if other == key || lost.phase != Phase::Lost || lost.led_to.as_ref() != Some(&url) {
                continue;
            }
            if lost.boot_id == hello.boot_id {
                silent.push(other);
            } else {
                info!(connection = other, %url, "another engine is there now");
                lost.parting.no_later(by_ns);
            }
        }
        for other in silent {
            info!(connection = other, %url, "the other engine has let go of the lost connection");
            self.peer_silent(other);
        }
    }

    /// The connection whose place one that comes in takes, if there is one.
    pub(super) fn place_of(&self, key: usize, hello: &Hello) -> Option<usize> {
        if hello.link == 0 {
            return None;
        }
        let same = |connection: &Connection| {
            (connection.boot_id, connection.link) == (hello.boot_id, hello.link)
                && connection.from.is_some()
        };
        let found = self.peers.connections.iter().find(|(other, it)| *other != key && same(it));
        found.map(|(old, _)| old)
    }

    /// One that comes in takes the place of another, which is lost. The other end of that is
    /// silent, or nobody would have come.
    pub(super) fn take_place(&mut self, key: usize, old: usize, rails: u8, hello: Hello) {
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.behind =
                Some(Behind { old, then: Then::LetIn { rails, hello: Box::new(hello) } });
        }
        self.lose_connection(old, "it has connected anew");
        self.peer_silent(old);
    }

    /// Says HELLO on a connection of ours, unless what was lost there still delivers.
    pub(super) fn greet(&mut self, key: usize) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        let led_to = connection.led_to.clone();
        let old = self.peers.connections.iter().find(|(other, it)| {
            *other != key && it.phase == Phase::Lost && it.led_to == led_to && led_to.is_some()
        });
        let old = old.map(|(old, _)| old).filter(|old| !self.rails_hushed(*old));
        match (old, self.peers.connections.get_mut(key)) {
            (Some(old), Some(connection)) => {
                connection.behind = Some(Behind { old, then: Then::Greet });
            }
            _ => self.say_hello(key, led_to.as_ref().map_or(0, link_name)),
        }
    }

    fn say_hello(&mut self, key: usize, link: u64) {
        let rails = self.rails_wanted();
        let cards = self.cards_for(rails, u8::MAX).max(1);
        self.say(key, &Message::Hello(self.own_hello(rails, cards, link)));
    }

    /// A lost connection's queue pairs here deliver nothing any more, or it is gone: whoever
    /// waits for that goes on.
    pub(super) fn let_on_behind(&mut self, old: usize) {
        let behind =
            |connection: &Connection| connection.behind.as_ref().is_some_and(|it| it.old == old);
        let found = self.peers.connections.iter().find(|(_, it)| behind(it));
        let Some(key) = found.map(|(key, _)| key) else { return };
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let Some(behind) = connection.behind.take() else { return };
        match behind.then {
            Then::Greet => {
                let link = connection.led_to.as_ref().map_or(0, link_name);
                self.say_hello(key, link);
            }
            Then::LetIn { rails, hello } => {
                let cards = self.cards_for(rails, hello.cards);
                let still = self.peers.connections.contains(old);
                match self.peers.connections.get_mut(key) {
                    // Its rails are what there is too little of.
                    Some(connection) if cards == 0 && still => {
                        connection.behind =
                            Some(Behind { old, then: Then::LetIn { rails, hello } });
                    }
                    _ if cards == 0 => {
                        self.say(key, &Message::Refuse(failure(&no_room())));
                        self.lose_connection(key, "there is no rail for it");
                    }
                    _ => self.let_in(key, rails, cards, &hello),
                }
            }
        }
    }

    /// Welcomes an engine that has come in, with pairs of at most so many cards.
    pub(super) fn let_in(&mut self, key: usize, rails: u8, cards: u8, hello: &Hello) {
        let own = self.own_hello(rails, cards, 0);
        let there = |it: &Hello| it.told[..usize::from(it.there)].to_vec();
        let pairs = pair(&there(&own), &there(hello), cards.into());
        let mut welcome = own;
        for (at, pair) in pairs.iter().enumerate() {
            (welcome.picked[at], welcome.own[at]) = (pair.other, pair.own);
            welcome.told[at] = own.told[usize::from(pair.own)];
        }
        let cards = u8::try_from(pairs.len()).unwrap_or(0);
        // The cards that there are is the other's to know.
        let welcome = Hello { cards, there: hello.there, ..welcome };
        self.say(key, &Message::Welcome(welcome));
        let with = |it: &Pair| (*it, hello.told[usize::from(it.other)]);
        let pairs: Vec<_> = pairs.iter().map(with).collect();
        self.join_rails(key, rails, &pairs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_never_all_alike() {
        let second = 1_000_000_000;
        assert_eq!(pause_ns(0, 0), AGAIN_AFTER_NS);
        assert_eq!(pause_ns(3, 0), 8 * AGAIN_AFTER_NS);
        for failures in [6, 16, u32::MAX] {
            assert_eq!(pause_ns(failures, 0), 2 * second);
            assert!((2 * second..5 * second / 2).contains(&pause_ns(failures, u64::MAX)));
        }
        assert_ne!(pause_ns(4, 12_345), pause_ns(4, 54_321));
    }

    #[test]
    fn a_link_has_one_name_for_each_place() {
        let host = |port| Url::Host { host: "a.example".to_string(), port };
        assert_eq!(link_name(&host(1)), link_name(&host(1)));
        assert_ne!(link_name(&host(1)), link_name(&host(2)));
        assert_ne!(link_name(&host(1)), 0);
        assert_eq!(link_name(&Url::Socket("/run/a".into())), 0);
    }
}
