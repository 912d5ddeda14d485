//! What the log says of rails: one event for each change of a rail's state, with the rail, its
//! connection, where that leads, the card and its device, and the queue pair.
//!
//! What ops notice is for people: a rail that carried something and does no more is a warning, one
//! that is connected is told as such. The steps between, of a rail that nobody uses meanwhile, are
//! `debug`: a path that is down for long goes through them again and again.

use std::net::Ipv6Addr;

use tracing::field::{debug as in_full, display};
use tracing::{debug, info, warn};

use super::joint::{Stage, Step};
use super::{RailPlace, Whose};
use crate::control::server::Server;
use crate::fabric::qp::provider::ProviderError;
use crate::fabric::qp::{Ask, News};

/// Which rail it is.
struct Subject {
    rail: u16,
    connection: Option<usize>,
    peer: String,
    card: u8,
    device: String,
    queue_pair: Option<u32>,
}

macro_rules! say {
    ($level:ident, $it:expr, $($field:ident = $value:expr,)* $text:literal) => {
        $level!(
            rail = $it.rail,
            connection = $it.connection,
            peer = $it.peer,
            card = $it.card,
            device = $it.device,
            queue_pair = $it.queue_pair,
            $($field = $value,)*
            $text
        )
    };
}

impl Server {
    fn subject(&self, rail: u16) -> Option<(Subject, &RailPlace)> {
        let place = self.peers.rails.get(usize::from(rail))?.as_ref()?;
        let connection = match place.whose {
            Whose::Home => None,
            Whose::Connection(key, _) | Whose::Apart(key, _) => Some(key),
        };
        let known = connection.and_then(|key| self.peers.connections.get(key));
        let peer = match connection {
            None => "this engine".to_string(),
            Some(_) => known.map_or_else(String::new, super::Connection::place),
        };
        let (card, queue_pair) = (place.card, place.joint.number());
        let device = self.card.as_ref().map_or("", |all| all.name_of(card)).to_string();
        Some((Subject { rail, connection, peer, card, device, queue_pair }, place))
    }

    /// A rail's queue pair is asked for.
    pub(super) fn log_rail_begins(&self, rail: u16) {
        let Some((it, _)) = self.subject(rail) else { return };
        say!(debug, it, "a rail begins");
    }

    /// A rail is about to be told something.
    pub(super) fn log_rail_news(&self, rail: u16, epoch: u32, news: News) {
        let Some((it, place)) = self.subject(rail) else { return };
        let why = place.joint.doubt();
        match news {
            News::Connected { credits } => {
                let rebuilt = place.connected.saturating_sub(1);
                let gid = place.joint.settings().gid_index;
                let address = place.joint.address().map(Ipv6Addr::from).map(display);
                let because = display(place.joint.because());
                say!(
                    info,
                    it,
                    epoch = epoch,
                    credits = credits,
                    gid = gid,
                    address = address,
                    because = because,
                    rebuilt = rebuilt,
                    "rail connected"
                );
            }
            News::Broken if place.joint.stage() == Stage::Up => {
                say!(warn, it, epoch = epoch, why = why, "rail broken");
            }
            News::Broken => say!(debug, it, epoch = epoch, why = why, "rail broken"),
            News::Quiet => say!(debug, it, epoch = epoch, "rail quiet at both ends"),
            News::Reset => say!(debug, it, epoch = epoch, "rail reset"),
            News::Gone => say!(info, it, epoch = epoch, "rail gone"),
        }
    }

    /// A rail wishes something, and has not been heeded yet.
    pub(super) fn log_rail_wish(&self, rail: u16, epoch: u32, ask: Ask) {
        let Some((it, place)) = self.subject(rail) else { return };
        let why = place.joint.doubt();
        match ask {
            Ask::Quiesce if place.joint.stage() == Stage::Up && why.is_none() => {
                let why = "requests on it failed or took too long";
                say!(warn, it, epoch = epoch, why = why, "rail in doubt");
            }
            Ask::Quiesce => say!(debug, it, epoch = epoch, why = why, "rail in doubt"),
            Ask::Reset => say!(debug, it, epoch = epoch, "rail to be reset"),
            Ask::Connect => say!(debug, it, epoch = epoch, "rail to be connected"),
        }
    }

    /// An address was chosen for a rail, which is about to be connected by it.
    pub(super) fn log_rail_connecting(&self, rail: u16) {
        let Some((it, place)) = self.subject(rail) else { return };
        let (gid, ways) = (place.joint.settings().gid_index, place.joint.ways());
        let because = display(place.joint.because());
        say!(debug, it, gid = gid, ways = ways, because = because, "rail connecting");
    }

    /// A rail could not be connected by an address that is there: the first time since it was is a
    /// warning.
    pub(super) fn log_rail_fails(&self, rail: u16, step: Step, error: &ProviderError, first: bool) {
        let Some((it, place)) = self.subject(rail) else { return };
        let (gid, ways) = (place.joint.settings().gid_index, place.joint.ways());
        let (step, error) = (in_full(step), display(error));
        if first {
            say!(
                warn,
                it,
                step = step,
                gid = gid,
                ways = ways,
                error = error,
                "rail not connected"
            );
        } else {
            say!(
                debug,
                it,
                step = step,
                gid = gid,
                ways = ways,
                error = error,
                "rail not connected"
            );
        }
    }

    /// A rail could not be connected, and is tried again later.
    pub(super) fn log_rail_put_off(&self, rail: u16, now_ns: u64) {
        let Some((it, place)) = self.subject(rail) else { return };
        let until_ns = place.put_off.due_ns().unwrap_or(now_ns);
        let pause_ms = until_ns.saturating_sub(now_ns) / 1_000_000;
        say!(debug, it, pause_ms = pause_ms, "rail put off");
    }

    /// A rail has failed for good, and its connection goes on without it.
    pub(super) fn log_rail_leaves(&self, rail: u16, why: &str) {
        let Some((it, _)) = self.subject(rail) else { return };
        say!(warn, it, why = why, "a rail has failed for good; the others go on");
    }

    /// Nothing is left of a rail, and its number is free.
    pub(super) fn log_rail_over(&self, rail: u16) {
        let Some((it, _)) = self.subject(rail) else { return };
        say!(debug, it, "rail over");
    }
}
